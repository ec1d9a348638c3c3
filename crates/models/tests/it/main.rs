//! What the crate promises: the numbers of the reference, the same bytes on any number of threads, and a clear refusal.

use candle_core::{Device, Tensor};
use models::processor::{CpuLevel, Precision};
use models::upscale::{Cpu, Upscaler};
use weights::checkpoint::Checkpoint;
use weights::detect::{Compact, Layout, Naming, RrdbNet};
use weights::synthetic;

mod batch;
mod chained;
mod contents;
mod controlnet;
mod diffusion;
mod generate;
mod goldens;
mod guidance;
mod lora;
mod model;
mod ops;
mod refusals;
mod samplers;
mod schedules;
mod text;
mod threads;
mod tiled;

const COMPACT: Layout = Layout::Compact(Compact { num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_conv: 2, upscale: 2 });

const ESRGAN: Layout = Layout::Esrgan(RrdbNet {
    naming: Naming::BasicSr,
    in_nc: 3,
    out_nc: 3,
    num_filters: 16,
    num_blocks: 2,
    ups: 1,
    plus: false,
    shuffle_factor: None,
});

fn load(layout: Layout) -> Upscaler {
    let checkpoint = Checkpoint::from_bytes(synthetic::network(&layout.tensors())).unwrap();
    Upscaler::load_on_cpu(&checkpoint, cpu()).unwrap()
}

/// The most capable kernels of this machine.
fn cpu() -> Cpu {
    Cpu { level: CpuLevel::detect(), precision: Precision::Exact }
}

/// A tile of values from 0 to 1.
fn tile(h: usize, w: usize) -> Tensor {
    let values = synthetic::tensor("tile.bias", &[3 * h * w]).iter().map(|value| value * 25.0 + 0.5).collect();
    Tensor::from_vec(values, (1, 3, h, w), &Device::Cpu).unwrap()
}

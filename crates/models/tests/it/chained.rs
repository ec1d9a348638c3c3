//! Networks as chains of the CPU's kernels against the plain path of candle.

use candle_core::{DType, Device};
use models::processor::{CpuLevel, Precision};
use models::upscale::{Cpu, Upscaler};
use models::watch::Unwatched;
use weights::checkpoint::Checkpoint;
use weights::detect::{Compact, Layout, Naming, RrdbNet};
use weights::synthetic;

use crate::{COMPACT, ESRGAN, tile};

const PLUS: Layout = Layout::Esrgan(RrdbNet {
    naming: Naming::Old { ups: 2 },
    in_nc: 3,
    out_nc: 3,
    num_filters: 24,
    num_blocks: 1,
    ups: 2,
    plus: true,
    shuffle_factor: None,
});

const UNSHUFFLED: Layout = Layout::Esrgan(RrdbNet {
    naming: Naming::Bsrgan,
    in_nc: 12,
    out_nc: 3,
    num_filters: 32,
    num_blocks: 1,
    ups: 2,
    plus: false,
    shuffle_factor: Some(2),
});

const ONCE: Layout = Layout::Compact(Compact { num_in_ch: 3, num_out_ch: 3, num_feat: 20, num_conv: 3, upscale: 1 });
const THRICE: Layout = Layout::Compact(Compact { num_in_ch: 3, num_out_ch: 3, num_feat: 17, num_conv: 1, upscale: 3 });

fn numbers(upscaler: &Upscaler, h: usize, w: usize) -> Vec<f32> {
    upscaler.forward_raw(&tile(h, w), &Unwatched).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn chains_give_the_numbers_of_the_plain_path() {
    for layout in [COMPACT, ONCE, THRICE, ESRGAN, PLUS, UNSHUFFLED] {
        let checkpoint = Checkpoint::from_bytes(synthetic::network(&layout.tensors())).unwrap();
        let plain = Upscaler::load(&checkpoint, &Device::Cpu, DType::F32).unwrap();
        for level in CpuLevel::ALL {
            if !level.is_available() {
                eprintln!("skipped: this processor has no {level}");
                continue;
            }
            let chained = Upscaler::load_on_cpu(&checkpoint, Cpu { level, precision: Precision::Exact }).unwrap();
            for (h, w) in [(1, 1), (1, 30), (9, 4), (33, 17), (5, 130), (10, 211)] {
                let (want, got) = (numbers(&plain, h, w), numbers(&chained, h, w));
                assert_eq!(got.len(), want.len());
                let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{layout:?} {level} {h}x{w}: off by {worst}");
            }
        }
    }
}

#[test]
fn vector_levels_of_f32_give_the_same_bytes() {
    for layout in [COMPACT, ESRGAN] {
        let checkpoint = Checkpoint::from_bytes(synthetic::network(&layout.tensors())).unwrap();
        let of = |level| {
            let upscaler = Upscaler::load_on_cpu(&checkpoint, Cpu { level, precision: Precision::Exact }).unwrap();
            numbers(&upscaler, 21, 211).into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let levels = CpuLevel::available().filter(|level| level.chain_bytes(Precision::Exact) == "fma-1");
        let all: Vec<_> = levels.map(of).collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{layout:?}");
        if all.len() < 2 {
            eprintln!("skipped: this processor has no two levels to compare");
        }
    }
}

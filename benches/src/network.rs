//! Whole networks on synthetic weights, a tile on each thread.

use std::{
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use candle_core::{Device, Tensor};
use models::{
    upscale::{Cpu, Upscaler},
    watch::Unwatched,
};
use weights::{
    checkpoint::Checkpoint,
    detect::{Compact, Layout, Naming, RrdbNet},
    synthetic,
};

use crate::figure::{Clock, Figure, Times};

/// A network and the name it goes by here.
#[derive(Debug)]
pub struct Network {
    name: String,
    upscaler: Upscaler,
    /// Additions and multiplications for each pixel that goes in, where they are counted.
    flop: Option<f64>,
}

impl Network {
    /// A network that is known here, on synthetic weights.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn known(name: &str, layout: &Layout, cpu: Cpu) -> Result<Self> {
        let checkpoint = Checkpoint::from_bytes(synthetic::network(&layout.tensors()))?; // not kept
        let upscaler = Upscaler::load_on_cpu(&checkpoint, cpu)?;
        Ok(Self { name: name.to_owned(), upscaler, flop: Some(flop(layout)) })
    }

    /// The network of a weights file.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn of_file(path: &Path, cpu: Cpu) -> Result<Self> {
        let upscaler = Upscaler::load_on_cpu(&Checkpoint::open(path)?, cpu)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, upscaler, flop: None })
    }
}

/// RRDBNet x4 as Real-ESRGAN publishes it (`RealESRGAN_x4plus`).
pub const RRDB: Layout = Layout::Esrgan(RrdbNet {
    naming: Naming::BasicSr,
    in_nc: 3,
    out_nc: 3,
    num_filters: 64,
    num_blocks: 23,
    ups: 2,
    plus: false,
    shuffle_factor: None,
});

/// SRVGGNetCompact x4 as Real-ESRGAN publishes it for animated video (`realesr-animevideov3`).
pub const COMPACT: Layout =
    Layout::Compact(Compact { num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_conv: 16, upscale: 4 });

/// Enlarges a tile of `h` x `w` pixels `passes` times, after one pass on each of `threads` threads. Gives what a pass took and
/// the last output, [1, c, h*scale, w*scale].
///
/// # Errors
/// What the network fails with.
pub fn run(network: &Network, h: usize, w: usize, passes: usize, threads: usize) -> Result<(Figure, Vec<f32>)> {
    let Network { name, upscaler, flop } = network;
    let values: Vec<f32> = synthetic::tensor("input.", &[1, 3, h, w]).iter().map(|value| value * 0.5 + 0.5).collect();
    let tile = Tensor::from_vec(values, (1, 3, h, w), &Device::Cpu)?;

    let (next, warm) = (AtomicUsize::new(0), Barrier::new(threads + 1));
    let worker = || -> Result<Option<Tensor>> {
        let warmed = upscaler.forward_raw(&tile, &Unwatched);
        warm.wait(); // before the error is told: the others wait for it
        warmed?;
        let mut last = None;
        loop {
            let pass = next.fetch_add(1, Ordering::Relaxed);
            if pass >= passes {
                return Ok(last);
            }
            let output = upscaler.forward_raw(&tile, &Unwatched)?;
            last = (pass + 1 == passes).then_some(output);
        }
    };
    let (all, outputs) = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        warm.wait();
        let clock = Clock::start();
        let outputs: Vec<_> = workers.into_iter().map(|worker| worker.join().expect("no pass panics")).collect();
        (clock.stop(), outputs)
    });
    let outputs = outputs.into_iter().collect::<Result<Vec<_>>>()?;
    let last = outputs.into_iter().flatten().next().context("no thread ran the last pass")?;
    // Passes of several threads overlap, so only their mean is known.
    let mean = Times { cpu_s: all.cpu_s / passes as f64, wall_s: all.wall_s / passes as f64 };
    let figure = Figure::new(format!("{name} {h}x{w}"), passes, vec![mean], flop.map(|flop| flop * (h * w) as f64));
    Ok((figure, last.flatten_all()?.to_vec1()?))
}

/// Additions and multiplications for each pixel that goes in.
fn flop(layout: &Layout) -> f64 {
    let convolutions = layout.tensors().into_iter().filter(|(_, shape)| shape.len() == 4);
    let works = convolutions.map(|(name, shape)| {
        let area = match name.as_str() {
            "conv_up1.weight" => 4,
            "conv_up2.weight" | "conv_hr.weight" | "conv_last.weight" => 16,
            _ => 1,
        };
        2.0 * (shape.iter().product::<usize>() * area) as f64
    });
    works.sum()
}

#[cfg(test)]
mod tests {
    use models::processor::{CpuLevel, Precision};

    use super::*;

    /// 69 dense blocks, the convolutions before and behind them, and those at two and four times the size.
    #[test]
    fn operations_are_counted_at_the_size_where_they_happen() {
        assert_eq!(flop(&RRDB), 2.0 * 17_926_848.0);
        assert_eq!(flop(&COMPACT), 2.0 * (3 * 64 * 9 + 16 * 64 * 64 * 9 + 64 * 48 * 9) as f64);
    }

    #[test]
    fn every_pass_gives_the_same_whatever_the_threads() {
        let layout = Layout::Compact(Compact { num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_conv: 1, upscale: 2 });
        let cpu = Cpu { level: CpuLevel::detect(), precision: Precision::Fast };
        let small = Network::known("small", &layout, cpu).unwrap();
        let output = |passes, threads| run(&small, 5, 7, passes, threads).unwrap().1;
        let one = output(1, 1);
        assert_eq!(one.len(), 3 * 10 * 14);
        assert_eq!(output(5, 2), one);
    }
}

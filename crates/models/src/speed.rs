//! How fast a device would run a network, guessed from one product before any network is there.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor};

use crate::ops::{Backend, Linear, Then};

/// Numbers of a row of the product, before and after: those of the second stage of a UNet.
const CHANNELS: usize = 640;
/// Rows, as many as give each core a share.
const ROWS_OF_A_CPU: usize = 512;
/// Rows that keep a graphics device busy: the positions of the latent of a 512 x 512 picture.
const ROWS_ELSEWHERE: usize = 4096;
/// What is multiplied at least before its time is believed.
const ENOUGH: Duration = Duration::from_millis(10);

/// The share of a product's speed that networks reach with our kernels: in benches/README.md the UNet of SD 1.5 gets 61 billion
/// multiply-adds per second out of a core (0.40 T in 6.6 s), and a linear layer 54. Winograd's method makes up for what is no
/// product.
const REACHED_BY_KERNELS: f64 = 1.0;
/// The same with candle. Not measured by us: its convolutions are said to be 4 to 10 times slower than PyTorch's, which reach
/// about half.
const REACHED_BY_CANDLE: f64 = 0.1;

/// About how many million multiply-adds of a network `backend` gets done in a second. Takes some 20 ms, on a slow device as
/// long as two products of 0.2 billion.
///
/// # Errors
/// If the device fails at the product.
pub fn guess(backend: &Backend) -> Result<f64> {
    let ramp = |count: usize| (0..count).map(|i| (i % 17) as f32 / 17.0).collect::<Vec<_>>();
    let weight = Tensor::from_vec(ramp(CHANNELS * CHANNELS), (CHANNELS, CHANNELS), &Device::Cpu)?;
    let (device, dtype, rows, reached) = match backend {
        Backend::Kernels(_) => (&Device::Cpu, DType::F32, ROWS_OF_A_CPU, REACHED_BY_KERNELS),
        Backend::Candle(device, dtype) => (device, *dtype, ROWS_ELSEWHERE, REACHED_BY_CANDLE),
    };
    let x = Tensor::from_vec(ramp(rows * CHANNELS), (1, rows, CHANNELS), &Device::Cpu)?;
    let (layer, x) = (Linear::new(backend, &weight, None)?, x.to_device(device)?.to_dtype(dtype)?);
    let time = |products: u32| {
        let start = Instant::now();
        for _ in 0..products {
            layer.forward(&x, Then::default())?;
        }
        device.synchronize()?; // what a graphics device is told, it does later
        Result::Ok(start.elapsed())
    };
    time(1)?; // the first wakes threads, or loads what multiplies
    let mut products = 1;
    loop {
        let elapsed = time(products)?;
        if elapsed >= ENOUGH {
            let multiply_adds = f64::from(products) * (rows * CHANNELS * CHANNELS) as f64;
            return Ok(multiply_adds / 1e6 / elapsed.as_secs_f64() * reached);
        }
        products *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::{Kind, Processor};

    #[test]
    fn every_mode_of_a_processor_is_guessed_within_what_machines_can_do() {
        let processor = Processor::open(Kind::Cpu, None).unwrap();
        for mode in processor.modes() {
            let guessed = guess(&processor.backend(mode.precision)).unwrap();
            assert!((1.0..1e9).contains(&guessed), "{guessed} million a second as {mode:?}");
        }
    }
}

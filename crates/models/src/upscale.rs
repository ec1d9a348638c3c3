//! Upscaling a tile with a network (the reference's `ImageUpscaleWithModel`, one call of the model).

mod atd;
mod compact;
mod dat;
mod hat;
mod layers;
mod mosr;
mod omnisr;
mod parts;
mod plksr;
mod rcan;
mod rrdbnet;
mod span;
mod swinir;
mod window;

use std::sync::Mutex;

use candle_core::{DType, Device, Tensor};
use kernels::{precision::Precision, threads::Share};
use weights::checkpoint::Checkpoint;
use weights::detect::{self, Layout, ModelFacts};

use crate::error::{ModelError, Result};
use crate::ops::Backend;
use crate::pad::pad_tensor;
use crate::watch::{Progress, Watch};
use compact::{ChainedCompact, Compact};
use layers::{Layers, Net};
pub use parts::Cpu;
use parts::{Links, Parts};
use rrdbnet::{ChainedRrdbNet, RrdbNet};

/// A network that makes tiles larger, ready on a device.
#[derive(Debug)]
pub struct Upscaler {
    network: Network,
    facts: ModelFacts,
    device: Device,
    dtype: DType,
}

#[derive(Debug)]
enum Network {
    /// Tensors, operation by operation.
    Layers(Box<dyn Net>),
    /// Pixels, with the chains of a CPU.
    ChainedEsrgan(ChainedRrdbNet),
    ChainedCompact(ChainedCompact),
}

impl Upscaler {
    /// Loads the network that `checkpoint` holds, to compute with the kernels of a CPU.
    pub fn load_on_cpu(checkpoint: &Checkpoint, cpu: Cpu) -> Result<Self> {
        let detect::Network { layout, facts } = detect::detect(checkpoint)?;
        let links = Links { checkpoint, cpu };
        let network = match layout {
            Layout::Esrgan(layout) => Network::ChainedEsrgan(ChainedRrdbNet::load(&layout, &links)?),
            Layout::Compact(layout) => Network::ChainedCompact(ChainedCompact::load(&layout, &links)?),
            layout => {
                // As chains do: where they gain nothing from shorter numbers, all is exact.
                let gains = cpu.level.chain_bytes(Precision::Fast) != cpu.level.chain_bytes(Precision::Exact);
                let precision = if gains { cpu.precision } else { Precision::Exact };
                let backend = Backend::Kernels(Cpu { precision, ..cpu });
                Network::Layers(load_layers(&layout, &Layers::new(checkpoint, &backend))?)
            }
        };
        Ok(Self { network, facts, device: Device::Cpu, dtype: DType::F32 })
    }

    /// Loads the network that `checkpoint` holds onto `device`, to compute with candle and `dtype` numbers.
    ///
    /// A CPU computes with f32 only; other devices with f32, f16 and bf16. On a CPU this is the plain path, slow and only there
    /// to compare with: see [`Self::load_on_cpu`].
    pub fn load(checkpoint: &Checkpoint, device: &Device, dtype: DType) -> Result<Self> {
        let kind = match device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        };
        if !matches!((kind, dtype), (_, DType::F32))
            && !matches!((kind, dtype), ("cuda" | "metal", DType::F16 | DType::BF16))
        {
            return Err(ModelError::Dtype { device: kind, dtype });
        }
        let detect::Network { layout, facts } = detect::detect(checkpoint)?;
        let parts = Parts { checkpoint, device, dtype };
        let network: Box<dyn Net> = match layout {
            Layout::Esrgan(layout) => Box::new(RrdbNet::load(&layout, &parts)?),
            Layout::Compact(layout) => Box::new(Compact::load(&layout, &parts)?),
            layout => {
                let backend = Backend::Candle(device.clone(), dtype);
                load_layers(&layout, &Layers::new(checkpoint, &backend))?
            }
        };
        Ok(Self { network: Network::Layers(network), facts, device: device.clone(), dtype })
    }

    /// What is known of the network.
    pub fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    /// The device on which the network is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The numbers it computes with.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Enlarges `tile`, [1, c, h, w] of values from 0 to 1, to [1, c', h*scale, w*scale], f32, within 0 to 1.
    ///
    /// The tile may lie on any device; the result lies on the network's. It is [`ModelError::Interrupted`] as soon as
    /// `watch` says so, which is asked several times for each block of the network.
    pub fn run(&self, tile: &Tensor, watch: &dyn Watch) -> Result<Tensor> {
        Ok(self.forward_raw(tile, watch)?.clamp(0f32, 1f32)?)
    }

    /// Enlarges pixels `[h][w][c]`, 0 to 1, to `[h*scale][w*scale][c']`, within 0 to 1.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Panics
    /// If the pixels are not `h * w * c` numbers.
    pub fn run_pixels(&self, pixels: &[f32], h: usize, w: usize, watch: &dyn Watch) -> Result<Vec<f32>> {
        let channels = self.facts.input_channels as usize;
        assert_eq!(pixels.len(), h * w * channels, "as many numbers as the size says");
        if self.is_chained() && self.facts.size_requirements.padding(w, h) == (0, 0) && h * w > 0 {
            let mut pixels = self.forward_pixels(pixels, h, w, watch)?;
            pixels.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
            return Ok(pixels);
        }
        let tile = Tensor::from_slice(pixels, (1, h, w, channels), &self.device)?;
        let picture = self.run(&tile.permute((0, 3, 1, 2))?.contiguous()?, watch)?; // [1, c', h*scale, w*scale]
        Ok(picture.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1()?)
    }

    fn is_chained(&self) -> bool {
        matches!(self.network, Network::ChainedEsrgan(_) | Network::ChainedCompact(_))
    }

    /// Enlarges `tile` as [`Self::run`] does, but leaves values outside of 0 to 1 as they are.
    pub fn forward_raw(&self, tile: &Tensor, watch: &dyn Watch) -> Result<Tensor> {
        let channels = self.facts.input_channels;
        let (h, w) = match *tile.dims() {
            [1, c, h, w] if c == channels as usize && h > 0 && w > 0 => (h, w),
            ref found => return Err(ModelError::Input { channels, found: found.to_vec() }),
        };
        let (right, bottom) = self.facts.size_requirements.padding(w, h);
        let x = tile.to_device(&self.device)?.to_dtype(self.dtype)?.contiguous()?;
        let x = pad_tensor(&x, right, bottom)?;
        let y = match &self.network {
            Network::Layers(net) => {
                let _share = Share::take();
                net.forward(&x, &mut Progress::begin(watch, net.work())?)?
            }
            Network::ChainedEsrgan(_) | Network::ChainedCompact(_) => {
                let (h, w) = (h + bottom, w + right);
                let pixels = x.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1()?; // [h][w][c]
                let scale = self.facts.scale as usize;
                let pixels = self.forward_pixels(&pixels, h, w, watch)?;
                let y = Tensor::from_vec(pixels, (1, h * scale, w * scale, ()), &self.device)?;
                y.permute((0, 3, 1, 2))? // [1, c', h*scale, w*scale]
            }
        };
        let scale = self.facts.scale as usize;
        let y = y.narrow(2, 0, h * scale)?.narrow(3, 0, w * scale)?;
        Ok(y.to_dtype(DType::F32)?.contiguous()?)
    }

    /// Enlarges pixels `[h][w][c]`, whose sides the network takes as they are, to `[h*scale][w*scale][c']`, with the kernels
    /// of a CPU.
    fn forward_pixels(&self, pixels: &[f32], h: usize, w: usize, watch: &dyn Watch) -> Result<Vec<f32>> {
        let _share = Share::take();
        match &self.network {
            Network::ChainedEsrgan(net) => {
                net.forward(pixels, h, w, &Mutex::new(Progress::begin(watch, net.work() * net.trunk_pixels(h, w))?))
            }
            Network::ChainedCompact(net) => {
                net.forward(pixels, h, w, &Mutex::new(Progress::begin(watch, net.work() * (h * w) as f64)?))
            }
            Network::Layers(_) => unreachable!("networks of single operations take tensors"),
        }
    }

    /// Estimates the memory in bytes that the weights and the work on a tile of `h` x `w` pixels take at their peak.
    ///
    /// Measured peaks on a CPU lie between 75 and 100 % of it.
    pub fn memory_estimate(&self, h: usize, w: usize) -> u64 {
        let (right, bottom) = self.facts.size_requirements.padding(w, h);
        let pixels = ((h + bottom) * (w + right)) as u64;
        let values = match &self.network {
            Network::Layers(net) => net.values_per_pixel(),
            Network::ChainedEsrgan(net) => return self.chained_estimate(net.memory(h + bottom, w + right), pixels),
            Network::ChainedCompact(net) => return self.chained_estimate(net.memory(h + bottom, w + right), pixels),
        };
        let exact = (self.facts.parameters + pixels * values as u64) * self.dtype.size_in_bytes() as u64;
        exact + exact / 4 // what kernels and allocators need beside it
    }

    /// The bytes of a chained network and its work, and of the pixels that go in and come out.
    fn chained_estimate(&self, bytes: usize, pixels: u64) -> u64 {
        let scale = u64::from(self.facts.scale);
        let values = u64::from(self.facts.input_channels) + 2 * scale * scale * u64::from(self.facts.output_channels);
        bytes as u64 + pixels * values * size_of::<f32>() as u64
    }
}

/// Loads a network whose parts are single operations.
fn load_layers(layout: &Layout, layers: &Layers<'_>) -> Result<Box<dyn Net>> {
    Ok(match layout {
        Layout::Span(layout) => Box::new(span::Span::load(layout, layers)?),
        Layout::SwinIr(layout) => Box::new(swinir::SwinIr::load(layout, layers)?),
        Layout::Hat(layout) => Box::new(hat::Hat::load(layout, layers)?),
        Layout::OmniSr(layout) => Box::new(omnisr::OmniSr::load(layout, layers)?),
        Layout::Dat(layout) => Box::new(dat::Dat::load(layout, layers)?),
        Layout::Plksr(layout) => Box::new(plksr::Plksr::load(layout, layers)?),
        Layout::Rcan(layout) => Box::new(rcan::Rcan::load(layout, layers)?),
        Layout::MoSr(layout) => Box::new(mosr::MoSr::load(layout, layers)?),
        Layout::Atd(layout) => Box::new(atd::Atd::load(layout, layers)?),
        Layout::Esrgan(_) | Layout::Compact(_) => unreachable!("these have chains, and candle's operations"),
    })
}

//! Upscaling a tile with a network (the reference's `ImageUpscaleWithModel`, one call of the model).

mod compact;
mod parts;
mod rrdbnet;

use candle_core::{DType, Device, Tensor};
use weights::checkpoint::Checkpoint;
use weights::detect::{self, Layout, ModelFacts};

use crate::error::{ModelError, Result};
use crate::pad::pad_tensor;
use crate::watch::{Progress, Watch};
use compact::Compact;
use parts::Parts;
use rrdbnet::RrdbNet;

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
    Esrgan(RrdbNet),
    Compact(Compact),
}

impl Upscaler {
    /// Loads the network that `checkpoint` holds onto `device`, to compute with `dtype` numbers.
    ///
    /// A CPU computes with f32 only; other devices with f32, f16 and bf16.
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
        let network = match layout {
            Layout::Esrgan(layout) => Network::Esrgan(RrdbNet::load(&layout, &parts)?),
            Layout::Compact(layout) => Network::Compact(Compact::load(&layout, &parts)?),
        };
        Ok(Self { network, facts, device: device.clone(), dtype })
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
            Network::Esrgan(net) => net.forward(&x, &mut Progress::begin(watch, net.work())?)?,
            Network::Compact(net) => net.forward(&x, &mut Progress::begin(watch, net.work())?)?,
        };
        let scale = self.facts.scale as usize;
        let y = y.narrow(2, 0, h * scale)?.narrow(3, 0, w * scale)?;
        Ok(y.to_dtype(DType::F32)?.contiguous()?)
    }

    /// Estimates the memory in bytes that the weights and the work on a tile of `h` x `w` pixels take at their peak.
    ///
    /// Measured peaks on a CPU lie between 75 and 100 % of it.
    pub fn memory_estimate(&self, h: usize, w: usize) -> u64 {
        let (right, bottom) = self.facts.size_requirements.padding(w, h);
        let pixels = ((h + bottom) * (w + right)) as u64;
        let values = match &self.network {
            Network::Esrgan(net) => net.values_per_pixel(),
            Network::Compact(net) => net.values_per_pixel(),
        };
        let exact = (self.facts.parameters + pixels * values as u64) * self.dtype.size_in_bytes() as u64;
        exact + exact / 4 // what kernels and allocators need beside it
    }
}

//! The device that networks run on, and the numbers they are computed with: all that others need to know of it.

use candle_core::{DType, Device, Tensor};

use crate::{error::Result, kernels, upscale::Upscaler, watch::Watch};

/// A kind of device, by ordinal where a machine can have several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The processor.
    Cpu,
    /// An NVIDIA card.
    Cuda(usize),
    /// An Apple device.
    Metal(usize),
}

/// An opened device. It computes in f32, which equals the reference everywhere.
#[derive(Debug, Clone)]
pub struct Processor {
    device: Device,
    level: String,
}

impl Processor {
    /// The numbers that are computed with.
    const DTYPE: DType = DType::F32;

    /// Opens a device.
    ///
    /// # Errors
    /// If it is not there, or this program was built without support for it.
    pub fn open(kind: Kind) -> Result<Self> {
        let device = match kind {
            Kind::Cpu => Device::Cpu,
            Kind::Cuda(ordinal) => Device::new_cuda(ordinal)?,
            Kind::Metal(ordinal) => Device::new_metal(ordinal)?,
        };
        let level = kernels::level(&device, Self::DTYPE)?;
        Ok(Self { device, level })
    }

    /// Whether it is the machine's own processor, which shares its memory with everything else.
    pub fn is_cpu(&self) -> bool {
        self.device.is_cpu()
    }

    /// What its kernels are, as far as that can change bytes; see [`kernels::level`].
    pub fn level(&self) -> &str {
        &self.level
    }

    /// The name of the numbers that are computed with, such as `f32`.
    pub fn dtype(&self) -> &'static str {
        Self::DTYPE.as_str()
    }

    /// Bytes that a number takes.
    pub fn number_bytes(&self) -> u64 {
        Self::DTYPE.size_in_bytes() as u64
    }

    /// Loads a super-resolution network onto this device.
    pub fn load(&self, checkpoint: &weights::checkpoint::Checkpoint) -> Result<Upscaler> {
        Upscaler::load(checkpoint, &self.device, Self::DTYPE)
    }
}

impl Upscaler {
    /// Runs the network on pixels `[h][w][3]`, 0 to 1, and returns pixels `[h*scale][w*scale][3]`, clamped to 0..1.
    ///
    /// # Errors
    /// As [`Upscaler::run`]; [`ModelError::Interrupted`](crate::error::ModelError::Interrupted) when `watch` says stop.
    pub fn run_pixels(&self, rgb: &[f32], h: usize, w: usize, watch: &dyn Watch) -> Result<Vec<f32>> {
        let tile = Tensor::from_slice(rgb, (1, h, w, 3), self.device())?;
        let tile = tile.permute((0, 3, 1, 2))?.contiguous()?; // [1, 3, h, w]
        let picture = self.run(&tile, watch)?; // [1, 3, h*scale, w*scale]
        Ok(picture.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1()?)
    }
}

#[cfg(test)]
mod tests {
    use weights::{checkpoint::Checkpoint, synthetic};

    use super::*;
    use crate::watch::Unwatched;

    #[test]
    fn pixels_go_in_and_come_out_interleaved() {
        let tensor = |name: &str, shape: &[usize]| (format!("body.{name}"), shape.to_vec());
        let tensors = [
            tensor("0.weight", &[4, 3, 3, 3]),
            tensor("0.bias", &[4]),
            tensor("1.weight", &[4]),
            tensor("2.weight", &[12, 4, 3, 3]),
            tensor("2.bias", &[12]),
        ];
        let processor = Processor::open(Kind::Cpu).unwrap();
        let upscaler = processor.load(&Checkpoint::from_bytes(synthetic::network(&tensors)).unwrap()).unwrap();
        let rgb: Vec<f32> = (0..5 * 7 * 3).map(|i| i as f32 / 105.0).collect();
        let pixels = upscaler.run_pixels(&rgb, 5, 7, &Unwatched).unwrap();

        // The same numbers as the network gives by itself, channel by channel.
        let planes: Vec<f32> = (0..3).flat_map(|c| rgb.iter().skip(c).step_by(3).copied()).collect();
        let tile = Tensor::from_vec(planes, (1, 3, 5, 7), &Device::Cpu).unwrap();
        let planes: Vec<f32> = upscaler.run(&tile, &Unwatched).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let (h, w) = (10, 14);
        assert_eq!(pixels.len(), h * w * 3);
        for (index, sample) in pixels.iter().enumerate() {
            let (y, x, c) = (index / 3 / w, index / 3 % w, index % 3);
            assert_eq!(*sample, planes[(c * h + y) * w + x], "{x} {y} {c}");
        }
    }
}

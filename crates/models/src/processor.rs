//! The device that networks run on, and the modes in which it computes: all that others need to know of it.

use candle_core::{DType, Device};
pub use kernels::{
    level::{Level as CpuLevel, LevelError},
    precision::Precision,
};

use crate::{
    error::Result,
    fingerprint,
    ops::Backend,
    upscale::{Cpu, Upscaler},
};

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

/// One way in which a device computes. What two devices compute in modes of the same level and type has the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    /// How exact it is.
    pub precision: Precision,
    /// What its kernels are, as far as that can change bytes, such as `fma-1`.
    pub level: String,
    /// The name of the numbers that are multiplied, such as `f32`.
    pub dtype: &'static str,
}

impl Mode {
    fn new(precision: Precision, level: impl Into<String>) -> Self {
        Self { precision, level: level.into(), dtype: dtype(precision).as_str() }
    }
}

/// The numbers that are multiplied.
pub(crate) const fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::Exact => DType::F32,
        Precision::Fast => DType::BF16,
    }
}

/// An opened device.
#[derive(Debug, Clone)]
pub struct Processor {
    device: Device,
    cpu: Option<CpuLevel>,
    /// The exact one first.
    modes: Vec<Mode>,
}

impl Processor {
    /// Opens a device. A CPU computes at the level `cpu`, or at the most capable that it has; other devices take no
    /// notice of it.
    ///
    /// # Errors
    /// If the device is not there, this program was built without support for it, or the CPU lacks that level.
    pub fn open(kind: Kind, cpu: Option<CpuLevel>) -> Result<Self> {
        let device = match kind {
            Kind::Cpu => {
                let level = cpu.map_or_else(|| Ok(CpuLevel::detect()), CpuLevel::checked)?;
                return Ok(Self { device: Device::Cpu, cpu: Some(level), modes: cpu_modes(level) });
            }
            Kind::Cuda(ordinal) => Device::new_cuda(ordinal)?,
            Kind::Metal(ordinal) => Device::new_metal(ordinal)?,
        };
        let level = |precision| fingerprint::level(&device, dtype(precision)).map(|level| Mode::new(precision, level));
        let exact = level(Precision::Exact)?;
        // A device too old for bf16 fails at the first convolution with it, which the level takes.
        let modes = [Some(exact), level(Precision::Fast).ok()].into_iter().flatten().collect();
        Ok(Self { device, cpu: None, modes })
    }

    /// Whether it is the machine's own processor, which shares its memory with everything else.
    pub fn is_cpu(&self) -> bool {
        self.device.is_cpu()
    }

    /// The level at which a CPU computes; `None` for other devices.
    pub fn cpu_level(&self) -> Option<CpuLevel> {
        self.cpu
    }

    /// The ways in which it computes, the exact one first. One that gains nothing from shorter numbers has no other.
    pub fn modes(&self) -> &[Mode] {
        &self.modes
    }

    /// The type of the numbers that `precision` multiplies here: what is not faster is computed exactly.
    fn dtype(&self, precision: Precision) -> DType {
        match self.modes.iter().any(|mode| mode.precision == precision) {
            true => dtype(precision),
            false => DType::F32,
        }
    }

    /// Bytes that a weight takes.
    pub fn number_bytes(&self, precision: Precision) -> u64 {
        self.dtype(precision).size_in_bytes() as u64
    }

    /// Who computes on this device as `precision` says. What no mode of this device is made for is computed exactly.
    pub fn backend(&self, precision: Precision) -> Backend {
        match self.cpu {
            Some(level) => {
                let is_there = self.modes.iter().any(|mode| mode.precision == precision);
                let precision = if is_there { precision } else { Precision::Exact };
                Backend::Kernels(Cpu { level, precision })
            }
            None => Backend::Candle(self.device.clone(), self.dtype(precision)),
        }
    }

    /// Loads a super-resolution network onto this device, to compute as `precision` says. What no mode of this device is
    /// made for is computed exactly.
    pub fn load(&self, checkpoint: &weights::checkpoint::Checkpoint, precision: Precision) -> Result<Upscaler> {
        match self.cpu {
            Some(level) => Upscaler::load_on_cpu(checkpoint, Cpu { level, precision }),
            None => Upscaler::load(checkpoint, &self.device, self.dtype(precision)),
        }
    }
}

/// The modes of a CPU whose kernels are those of `level`.
fn cpu_modes(level: CpuLevel) -> Vec<Mode> {
    let modes = [Precision::Exact, Precision::Fast].map(|precision| (precision, level.chain_bytes(precision)));
    // A level that gains nothing from shorter numbers computes both alike.
    let differ = modes[0].1 != modes[1].1;
    modes.into_iter().take(1 + usize::from(differ)).map(|(precision, bytes)| Mode::new(precision, bytes)).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
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
        let processor = Processor::open(Kind::Cpu, None).unwrap();
        let upscaler =
            processor.load(&Checkpoint::from_bytes(synthetic::network(&tensors)).unwrap(), Precision::Exact).unwrap();
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

    #[test]
    fn what_a_cpu_computes_depends_on_its_instructions_only_where_bytes_do() {
        let modes = |level| {
            let modes = cpu_modes(level)
                .into_iter()
                .map(|Mode { precision, level, dtype }| format!("{precision:?} {level} {dtype}"));
            modes.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(modes(CpuLevel::Portable), "Exact portable-1 f32");
        for level in [CpuLevel::Avx2, CpuLevel::Avx512, CpuLevel::Avx512Bf16] {
            assert_eq!(modes(level), "Exact fma-1 f32");
        }
        assert_eq!(modes(CpuLevel::Amx), "Exact fma-1 f32, Fast amx-1 bf16");
    }

    #[test]
    fn a_level_that_this_cpu_lacks_is_refused_when_it_is_opened() {
        for level in CpuLevel::ALL {
            match Processor::open(Kind::Cpu, Some(level)) {
                Ok(processor) => assert_eq!(processor.cpu_level(), Some(level)),
                Err(error) => {
                    assert!(!level.is_available(), "{error}");
                    let words = format!("this processor cannot compute at level `{level}`");
                    assert!(error.to_string().starts_with(&words), "{error}");
                }
            }
        }
        assert_eq!(Processor::open(Kind::Cpu, None).unwrap().cpu_level(), Some(CpuLevel::detect()));
    }
}

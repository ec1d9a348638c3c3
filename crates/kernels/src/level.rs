//! Which instructions the kernels use: found at start, or forced.

use std::{fmt, str::FromStr};

use crate::precision::Precision;

/// A set of instructions that the kernels are written for, from the plainest to the most capable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// What every processor has.
    Portable,
    /// x86-64 with AVX2, FMA and F16C: 8 numbers at a time.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL: 16 numbers at a time. Its f32 results are those of [`Level::Avx2`].
    Avx512,
    /// [`Level::Avx512`], and dot products of bf16 pairs.
    Avx512Bf16,
    /// [`Level::Avx512Bf16`], and products of bf16 matrices in tile registers.
    Amx,
}

impl Level {
    /// All levels, the plainest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The most capable level of this processor.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|level| level.is_available()).unwrap_or(Self::Portable)
    }

    /// The levels of this processor, the plainest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|level| level.is_available())
    }

    /// Whether this processor, and its operating system, can run the kernels of this level.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Self::Portable => true,
            Self::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Self::Avx512 => {
                Self::Avx2.is_available() && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")
            }
            Self::Avx512Bf16 => Self::Avx512.is_available() && has!("avx512bf16"),
            Self::Amx => Self::Avx512Bf16.is_available() && crate::amx::is_available(),
        }
    }

    /// Whether this processor, and its operating system, can run the kernels of this level.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// The name by which it is forced and shown, such as `avx512`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }
}

impl Level {
    /// Names what chains of convolutions compute at this level, as far as it can change bytes: levels of one name give the same
    /// ones. The number grows whenever a kernel comes to give others.
    ///
    /// Levels that multiply and add in one step share their f32 results, however many numbers they take at a time. Only tiles
    /// gain enough from bf16 to be worth other bytes.
    pub const fn chain_bytes(self, precision: Precision) -> &'static str {
        match (self, precision) {
            (Self::Amx, Precision::Fast) => "amx-1",
            (Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 | Self::Amx, _) => "fma-1",
            (Self::Portable, _) if cfg!(target_arch = "x86_64") => "portable-1",
            (Self::Portable, _) => "portable-fma-1", // other processors multiply and add in one step, see `simd::portable`
        }
    }

    /// Names what linear layers, attention and single convolutions compute, as [`Self::chain_bytes`] does: these also gain
    /// from bf16 pairs.
    pub const fn product_bytes(self, precision: Precision) -> &'static str {
        match (self, precision) {
            (Self::Avx512Bf16, Precision::Fast) => "bf16-1",
            _ => self.chain_bytes(precision),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A level that there is not, or not here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// No level goes by this name.
    #[error("`{0}` is not a level of CPU instructions; there are portable, avx2, avx512, avx512-bf16 and amx")]
    Unknown(String),
    /// This processor lacks it.
    #[error("this processor cannot compute at level `{wanted}`; the most it can is `{best}`")]
    Unavailable {
        /// What was asked for.
        wanted: Level,
        /// What this processor can do.
        best: Level,
    },
}

/// Reads a name, whether or not this processor has that level.
impl FromStr for Level {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        let named = Self::ALL.into_iter().find(|level| level.name() == text);
        named.ok_or_else(|| LevelError::Unknown(text.chars().take(100).collect()))
    }
}

impl Level {
    /// This level, if this processor has it.
    pub fn checked(self) -> Result<Self, LevelError> {
        if self.is_available() { Ok(self) } else { Err(LevelError::Unavailable { wanted: self, best: Self::detect() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_goes_by_its_name() {
        for level in Level::ALL {
            assert_eq!(level.name().parse(), Ok(level));
        }
        let error = "sse9".parse::<Level>().unwrap_err().to_string();
        assert!(error.starts_with("`sse9` is not a level of CPU instructions"), "{error}");
    }

    #[test]
    fn what_is_detected_is_available() {
        assert!(Level::detect().is_available());
        assert!(Level::Portable.is_available());
        for level in Level::available() {
            assert_eq!(level.checked(), Ok(level));
            assert!(level <= Level::detect());
        }
    }
}

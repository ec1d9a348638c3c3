//! How large results are to be, where that is not what the network makes of a picture.
//!
//! The network enlarges by a whole number, and what it gives is resampled to the exact size. Sizes are rounded as the
//! reference does (pixels.md, section 6): half to even, and never to nothing.

use std::{fmt, ops::Range, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::region::{Region, Size};

/// The longest side that may be asked for, in pixels.
pub const MAX_SIDE: u32 = 1_000_000;

/// Output pixels a side per input pixel, to six digits behind the point: 0.01 to 64.
///
/// Kept as a whole number, so that a job that is read again is planned as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Factor {
    millionths: u32,
}

/// A number that no factor can be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("is {0}, and 0.01 to 64 is wanted")]
pub struct NotAFactor(f64);

impl Factor {
    /// The factor next to `factor`.
    pub fn new(factor: f64) -> Result<Self, NotAFactor> {
        if (0.01..=64.0).contains(&factor) {
            Ok(Self { millionths: (factor * 1e6).round() as u32 })
        } else {
            Err(NotAFactor(factor))
        }
    }

    /// It as a number: the one nearest to its decimal digits.
    pub fn get(self) -> f64 {
        f64::from(self.millionths) / 1e6
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// The size of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// That of the picture times this.
    Factor(Factor),
    /// So many pixels from left to right, 1 to [`MAX_SIDE`]; the height follows.
    Width(u32),
    /// So many pixels from top to bottom, 1 to [`MAX_SIDE`]; the width follows.
    Height(u32),
}

impl Target {
    /// The size that a picture of `size` gets; `None` when a side would no longer fit 32 bits.
    pub fn size_of(self, size: Size) -> Option<Size> {
        let rounded = |length: f64| {
            let length = length.round_ties_even().max(1.0);
            (length <= f64::from(u32::MAX)).then_some(length as u32)
        };
        // The order of the operations is the reference's.
        let follow = |side: u32, other: u32, of: u32| rounded(f64::from(side) * f64::from(other) / f64::from(of));
        match self {
            Self::Factor(factor) => {
                let side = |length: u32| rounded(f64::from(length) * factor.get());
                Some(Size::new(side(size.width)?, side(size.height)?))
            }
            Self::Width(width) => Some(Size::new(width, follow(size.height, width, size.width)?)),
            Self::Height(height) => Some(Size::new(follow(size.width, height, size.height)?, height)),
        }
    }

    /// How many times as large a side of a picture of `size` gets.
    pub fn factor_for(self, size: Size) -> f64 {
        match self {
            Self::Factor(factor) => factor.get(),
            Self::Width(width) => f64::from(width) / f64::from(size.width),
            Self::Height(height) => f64::from(height) / f64::from(size.height),
        }
    }
}

/// How a picture is resampled, by the names of the reference's `upscale_method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResizeMethod {
    /// The pixel under the centre.
    NearestExact,
    /// Two neighbours a side.
    Bilinear,
    /// The mean of all pixels touched.
    Area,
    /// Four neighbours a side.
    Bicubic,
    /// A windowed sinc over six pixels, which widens when a picture shrinks.
    #[default]
    Lanczos,
}

impl ResizeMethod {
    /// Every method.
    pub const ALL: [Self; 5] = [Self::NearestExact, Self::Bilinear, Self::Area, Self::Bicubic, Self::Lanczos];

    /// Its name in the reference.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NearestExact => "nearest-exact",
            Self::Bilinear => "bilinear",
            Self::Area => "area",
            Self::Bicubic => "bicubic",
            Self::Lanczos => "lanczos",
        }
    }
}

/// A name that is no method's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a method: nearest-exact, bilinear, area, bicubic or lanczos is wanted")]
pub struct NotAMethod(String);

impl FromStr for ResizeMethod {
    type Err = NotAMethod;

    fn from_str(name: &str) -> Result<Self, NotAMethod> {
        let found = Self::ALL.into_iter().find(|method| method.name() == name);
        found.ok_or_else(|| NotAMethod(name.chars().take(80).collect()))
    }
}

/// What is asked for: a size, and the way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resize {
    /// How large results are to be.
    pub target: Target,
    /// How they are resampled to it.
    pub method: ResizeMethod,
}

/// The last step of one picture: from what the network makes of it to the size that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resampling {
    /// The size of the result.
    pub to: Size,
    /// How it is resampled.
    pub method: ResizeMethod,
}

/// Half the width of the 8-bit bicubic kernel, in pixels of the coarser side (pixels.md, section 6.3).
pub const BICUBIC_SUPPORT: f64 = 2.0;

/// The input positions of one axis that 8-bit resampling makes output position `i` of, when `from` positions become `to`.
///
/// `support` is half the width of the kernel in pixels of the coarser side.
pub fn taps(support: f64, from: usize, to: usize, i: usize) -> Range<usize> {
    let scale = from as f64 / to as f64;
    let support = support * scale.max(1.0);
    let centre = (i as f64 + 0.5) * scale;
    let first = (centre - support + 0.5).max(0.0) as usize;
    let last = ((centre + support + 0.5) as usize).min(from);
    first..last
}

/// The pixels of a picture of size `from` that 8-bit resampling to size `to` makes the pixels of `output` of.
///
/// An axis that keeps its length is not resampled. `output` must lie within `to` and have pixels.
pub fn window(support: f64, from: Size, to: Size, output: Region) -> Region {
    let axis = |from: u32, to: u32, start: u32, length: u32| {
        if from == to {
            return (start, length);
        }
        let taps = |i: u32| taps(support, from as usize, to as usize, i as usize);
        let (first, last) = (taps(start).start as u32, taps(start + length - 1).end as u32);
        (first, last - first)
    };
    let (x, width) = axis(from.width, to.width, output.x, output.width);
    let (y, height) = axis(from.height, to.height, output.y, output.height);
    Region { x, y, width, height }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(factor: f64) -> Target {
        Target::Factor(Factor::new(factor).unwrap())
    }

    #[track_caller]
    fn check(target: Target, from: (u32, u32), to: (u32, u32)) {
        assert_eq!(target.size_of(Size::new(from.0, from.1)), Some(Size::new(to.0, to.1)), "{target:?}");
    }

    #[test]
    fn sides_are_rounded_half_to_even_and_never_to_nothing() {
        check(factor(1.5), (3, 5), (4, 8)); // 4.5 and 7.5
        check(factor(1.1), (100, 5), (110, 6)); // 1.1 is a little more than it says
        check(factor(0.01), (1, 30), (1, 1));
        check(Target::Width(150), (100, 3), (150, 4));
        check(Target::Width(5), (1000, 7), (5, 1));
        check(Target::Height(4096), (640, 480), (5461, 4096));
        assert_eq!(Target::Width(1_000_000).size_of(Size::new(1, 5000)), None);
    }

    #[test]
    fn the_side_that_was_asked_for_says_how_much_larger_a_picture_gets() {
        let size = Size::new(100, 3);
        assert_eq!(Target::Width(150).factor_for(size), 1.5);
        assert_eq!(Target::Height(12).factor_for(size), 4.0);
        assert_eq!(factor(2.5).factor_for(size), 2.5);
    }

    #[test]
    fn a_factor_is_read_back_as_it_was_written() {
        for number in [0.01, 0.1, 1.0 / 3.0, 1.1, 1.5, 2.0, 63.999999, 64.0] {
            let factor = Factor::new(number).unwrap();
            assert_eq!(serde_json::from_str::<Factor>(&serde_json::to_string(&factor).unwrap()).unwrap(), factor);
            assert_eq!(Factor::new(factor.get()), Ok(factor));
        }
        assert_eq!(Factor::new(1.1).unwrap().get(), 1.1);
        assert_eq!(Factor::new(1.5).unwrap().to_string(), "1.5");
        for number in [0.0, -1.0, 0.009, 64.1, f64::NAN, f64::INFINITY] {
            assert!(Factor::new(number).is_err(), "{number}");
        }
    }

    #[test]
    fn a_method_is_read_as_it_is_shown() {
        for method in ResizeMethod::ALL {
            assert_eq!(method.name().parse(), Ok(method));
            assert_eq!(serde_json::to_value(method).unwrap(), method.name());
        }
        assert!("bislerp".parse::<ResizeMethod>().is_err(), "it is for latents");
    }
}

//! What a plan must know of a model without running it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::DetectError;

/// What is known of a model from its tensors' names and shapes alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The name of the architecture, such as `ESRGAN`.
    pub architecture: String,
    /// How many times wider and higher the output is.
    pub scale: u32,
    /// The channels that it takes; a colour picture has 3.
    pub input_channels: u32,
    /// The channels that it gives.
    pub output_channels: u32,
    /// The sizes that it takes.
    pub size_requirements: SizeRequirements,
    /// How many numbers its weights are.
    pub parameters: u64,
    /// Short words that tell models of one architecture apart, such as `64nf`.
    pub tags: Vec<String>,
    /// Every size of the network under the name that its architecture gives it.
    pub hyperparameters: Map<String, Value>,
}

impl ModelFacts {
    /// Returns the facts of an `architecture` of which nothing else is known yet.
    pub(super) fn of(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            scale: 1,
            input_channels: 0,
            output_channels: 0,
            size_requirements: SizeRequirements::NONE,
            parameters: 0,
            tags: Vec::new(),
            hyperparameters: Map::new(),
        }
    }
}

/// Returns the entries of a JSON object.
pub(super) fn map(object: Value) -> Map<String, Value> {
    let Value::Object(entries) = object else { unreachable!("hyperparameters are written as an object") };
    entries
}

/// Returns the scale of a network that multiplies sides by `grown` after it has divided them by `divided`.
pub(super) fn scale(architecture: &'static str, grown: usize, divided: usize) -> Result<u32, DetectError> {
    let (numerator, denominator) = (grown as u64, divided as u64);
    match u16::try_from(grown) {
        Ok(_) if grown.is_multiple_of(divided) => Ok((grown / divided) as u32),
        _ => Err(DetectError::Scale { architecture, numerator, denominator }),
    }
}

/// The sizes of picture that a network takes; others are padded, see [`SizeRequirements::padding`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeRequirements {
    /// The smallest side, in pixels.
    pub minimum: u32,
    /// What each side must be a multiple of, in pixels; at least 1.
    pub multiple_of: u32,
    /// Whether both sides must be equal.
    pub square: bool,
}

impl SizeRequirements {
    /// Any size will do.
    pub const NONE: Self = Self { minimum: 0, multiple_of: 1, square: false };

    /// Returns how many columns to add at the right and how many rows at the bottom of a picture.
    pub fn padding(&self, width: usize, height: usize) -> (usize, usize) {
        let length = |side: usize| side.max(self.minimum as usize).next_multiple_of(self.multiple_of.max(1) as usize);
        let (mut right, mut bottom) = (length(width), length(height));
        if self.square {
            (right, bottom) = (right.max(bottom), right.max(bottom));
        }
        (right - width, bottom - height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_grow_to_the_minimum_and_then_to_a_multiple() {
        let check = |minimum, multiple_of, square, size: (usize, usize), expected| {
            let requirements = SizeRequirements { minimum, multiple_of, square };
            assert_eq!(requirements.padding(size.0, size.1), expected, "{requirements:?} {size:?}");
        };
        check(0, 1, false, (1, 1), (0, 0));
        check(2, 1, false, (1, 1), (1, 1));
        check(2, 4, false, (2, 3), (2, 1));
        check(16, 8, false, (15, 17), (1, 7));
        check(16, 1, true, (15, 17), (2, 0));
    }
}

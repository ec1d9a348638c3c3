//! Why a model cannot be loaded or run.

use std::fmt;

use candle_core::DType;
use weights::checkpoint::CheckpointError;
use weights::detect::DetectError;

use crate::processor::LevelError;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The weights file cannot be read.
    #[error("cannot read the weights")]
    Checkpoint(#[from] CheckpointError),
    /// The weights are of no network that can be run.
    #[error("cannot tell which network the weights are of")]
    Detect(#[from] DetectError),
    /// A weight is infinite or no number.
    #[error("tensor `{tensor}` holds a value that is infinite or no number")]
    NotFinite {
        /// The tensor.
        tensor: String,
    },
    /// The processor lacks the instructions that were asked for.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// The device does not compute with these numbers.
    #[error("a {device} device cannot compute with {} numbers", .dtype.as_str())]
    Dtype {
        /// The kind of device.
        device: &'static str,
        /// The type of the numbers.
        dtype: DType,
    },
    /// The tile is not one that this model takes.
    #[error("the model takes tiles of shape [1, {channels}, height, width], but got {found:?}")]
    Input {
        /// The channels that the model takes.
        channels: u32,
        /// The shape of the tile.
        found: Vec<usize>,
    },
    /// A tensor is not one that this network takes.
    #[error("`{name}` should have shape {}, but has {found:?}", Sides(.wanted))]
    Tensor {
        /// What it is called.
        name: &'static str,
        /// The shape that it should have; 0 stands for any length.
        wanted: Vec<usize>,
        /// The shape that it has; none where it is missing.
        found: Vec<usize>,
    },
    /// The tensors of a LoRA do not fit together, or not the weight that they are to change.
    #[error("module `{module}` of LoRA `{lora}` cannot change tensor `{tensor}` of shape {shape:?}")]
    Lora {
        /// The LoRA.
        lora: String,
        /// Its name for the module.
        module: String,
        /// The weight.
        tensor: String,
        /// The weight's shape.
        shape: Vec<usize>,
        /// Why, if it is not its shape alone.
        source: Option<Box<ModelError>>,
    },
    /// A file holds no more than what differs from another network, and that was not given.
    #[error("this control net is a {kind}: it can be loaded only with the checkpoint of the model that it steers")]
    NeedsBase {
        /// What it is.
        kind: &'static str,
    },
    /// Latents or a picture cannot be cut in such tiles.
    #[error(
        "tiles of {width} x {height} with an overlap of {overlap} cannot be blended: the overlap must be less than half of \
         either side, and in pixels all of them multiples of 16"
    )]
    Tiles {
        /// The width of a tile.
        width: usize,
        /// The height of a tile.
        height: usize,
        /// The overlap.
        overlap: usize,
    },
    /// The device has too little memory for this tile. A smaller tile may pass.
    #[error("the device ran out of memory")]
    OutOfMemory(#[source] candle_core::Error),
    /// Whoever watched asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The device failed in another way.
    #[error("the computation failed")]
    Device(#[source] candle_core::Error),
}

/// The sides of a tensor, of which 0 stands for any.
struct Sides<'a>(&'a [usize]);

impl fmt::Display for Sides<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sides = self.0.iter().map(|side| if *side == 0 { "any".to_owned() } else { side.to_string() });
        write!(f, "[{}]", sides.collect::<Vec<_>>().join(", "))
    }
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        // Each driver has an error type of its own, which are known here by their text alone.
        let text = format!("{error:?}").to_ascii_lowercase();
        if ["out of memory", "out_of_memory", "outofmemory"].iter().any(|words| text.contains(words)) {
            Self::OutOfMemory(error)
        } else {
            Self::Device(error)
        }
    }
}

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, ModelError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lack_of_memory_asks_for_smaller_tiles() {
        let convert = |text: &str| ModelError::from(candle_core::Error::Msg(text.to_owned()));
        assert!(matches!(
            convert("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
            ModelError::OutOfMemory(_)
        ));
        assert!(matches!(convert("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)"), ModelError::Device(_)));
    }
}

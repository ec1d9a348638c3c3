//! Why a prompt cannot be encoded, and what of it was left out.

use weights::detect::{DetectError, diffusion::Clip};

use crate::error::ModelError;

/// Why text encoders cannot be loaded, or a prompt not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The weights cannot be read, or the device failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// It cannot be told which text encoders a file holds.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// No model has these text encoders.
    #[error("{}: a model has one of CLIP L, G and H, or L and G", Found(.found))]
    Encoders {
        /// The encoders that were found.
        found: Vec<Clip>,
    },
    /// A tensor has other sides than its encoder needs.
    #[error("tensor `{tensor}` of {clip} has shape {found:?} instead of {wants}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The encoder.
        clip: Clip,
        /// Its sides.
        found: Vec<usize>,
        /// The sides that are needed.
        wants: String,
    },
    /// The layer to stop at is none.
    #[error("stop_at_clip_layer is {found}, but layers are counted from -1, the last, to -24")]
    ClipLayer {
        /// What was asked for.
        found: i32,
    },
    /// A part of the prompt weighs infinitely much, or no number.
    #[error("a part of the prompt has weight {weight}, which is no finite number")]
    Weight {
        /// The weight.
        weight: f64,
    },
    /// Two prompts were given to a model that takes one.
    #[error("only a model with CLIP L and G takes a prompt for each")]
    OnePrompt,
    /// An embedding is there but cannot be read.
    #[error("cannot read embedding `{name}`")]
    Embedding {
        /// Its name.
        name: String,
        /// Why.
        source: ModelError,
    },
    /// The tensor of an embedding is no list of vectors.
    #[error("embedding `{name}` has a tensor of shape {found:?}, which is no list of vectors of one width")]
    EmbeddingShape {
        /// Its name.
        name: String,
        /// The sides of its tensor.
        found: Vec<usize>,
    },
    /// The pooled output does not fit.
    #[error("the pooled output has shape {found:?} instead of [batch, width]")]
    Pooled {
        /// Its shape.
        found: Vec<usize>,
    },
}

impl From<candle_core::Error> for TextError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

/// What the functions of [`super`] return.
pub type Result<T> = std::result::Result<T, TextError>;

struct Found<'a>(&'a [Clip]);

impl std::fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            [] => write!(f, "there is no text encoder"),
            found => {
                let names: Vec<_> = found.iter().map(Clip::to_string).collect();
                write!(f, "the text encoders are {}", names.join(" and "))
            }
        }
    }
}

/// What of a prompt was left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// There is no embedding of this name.
    #[error("there is no embedding `{name}`; it was left out")]
    MissingEmbedding {
        /// The name.
        name: String,
    },
    /// An embedding without a name.
    #[error("`embedding:` without a name was left out")]
    NamelessEmbedding,
    /// An embedding for encoders of another width.
    #[error("embedding `{name}` is {found} wide, but {clip} takes {wants}; it was left out")]
    EmbeddingWidth {
        /// The name.
        name: String,
        /// The encoder.
        clip: Clip,
        /// The width of its vectors.
        found: usize,
        /// The width of the encoder.
        wants: usize,
    },
}

//! Which text encoders a file holds: their tensors' names and sizes.

use std::fmt;

use weights::checkpoint::Checkpoint;

use super::{
    bpe,
    error::{Result, TextError},
    tokens::CHUNK,
};
use crate::error::ModelError;

/// A text encoder of those that diffusion models have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Clip {
    /// OpenAI's CLIP ViT-L/14: SD 1.x, SDXL.
    L,
    /// OpenCLIP's ViT-bigG/14: SDXL and its refiner.
    G,
    /// OpenCLIP's ViT-H/14: SD 2.x.
    H,
}

impl Clip {
    /// The name that files use: `clip_l`, `clip_g` or `clip_h`.
    pub fn name(self) -> &'static str {
        match self {
            Self::L => "clip_l",
            Self::G => "clip_g",
            Self::H => "clip_h",
        }
    }

    /// The token that fills a chunk.
    pub fn padding(self) -> u32 {
        match self {
            Self::L => bpe::END,
            Self::G | Self::H => 0,
        }
    }
}

impl fmt::Display for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CLIP {self:?}")
    }
}

/// How the tensors of an encoder are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// As in Hugging Face's transformers: `encoder.layers.0.self_attn.q_proj.weight`.
    Transformers,
    /// As in OpenCLIP: `transformer.resblocks.0.attn.in_proj_weight`.
    OpenClip,
}

impl Spelling {
    fn token_embedding(self) -> &'static str {
        match self {
            Self::Transformers => "embeddings.token_embedding.weight",
            Self::OpenClip => "token_embedding.weight",
        }
    }

    fn position_embedding(self) -> &'static str {
        match self {
            Self::Transformers => "embeddings.position_embedding.weight",
            Self::OpenClip => "positional_embedding",
        }
    }

    fn layers(self) -> &'static str {
        match self {
            Self::Transformers => "encoder.layers.",
            Self::OpenClip => "transformer.resblocks.",
        }
    }

    fn first_of_mlp(self) -> &'static str {
        match self {
            Self::Transformers => "mlp.fc1.weight",
            Self::OpenClip => "mlp.c_fc.weight",
        }
    }
}

/// One text encoder of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) clip: Clip,
    pub(super) spelling: Spelling,
    /// What comes before all names.
    pub(super) prefix: &'static str,
    /// How many tokens have a vector.
    pub(super) tokens: usize,
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) layers: usize,
    /// The width between the two layers of each `mlp`.
    pub(super) hidden: usize,
}

/// Which encoder stands behind a prefix.
enum Which {
    Known(Clip),
    /// H, or G where the network has a size conditioning: that of the refiner.
    OfOnlyEmbedder,
    /// What the number of layers says.
    ByLayers,
}

/// Where encoders stand: in checkpoints of whole models, then in files of their own. Longer prefixes come before shorter ones.
const PLACES: [(&str, Spelling, Which); 13] = [
    ("cond_stage_model.transformer.text_model.", Spelling::Transformers, Which::Known(Clip::L)),
    ("cond_stage_model.transformer.", Spelling::Transformers, Which::Known(Clip::L)), // old files
    ("cond_stage_model.model.", Spelling::OpenClip, Which::Known(Clip::H)),
    ("conditioner.embedders.0.transformer.text_model.", Spelling::Transformers, Which::Known(Clip::L)),
    ("conditioner.embedders.0.model.", Spelling::OpenClip, Which::OfOnlyEmbedder),
    ("conditioner.embedders.1.model.", Spelling::OpenClip, Which::Known(Clip::G)),
    ("text_encoder.text_model.", Spelling::Transformers, Which::ByLayers), // folders of diffusers
    ("text_encoder_2.text_model.", Spelling::Transformers, Which::Known(Clip::G)),
    ("transformer.text_model.", Spelling::Transformers, Which::ByLayers),
    ("text_model.", Spelling::Transformers, Which::ByLayers),
    ("", Spelling::Transformers, Which::ByLayers),
    ("model.", Spelling::OpenClip, Which::ByLayers),
    ("", Spelling::OpenClip, Which::ByLayers),
];

/// There in networks that are told the size of the picture.
const SIZE_CONDITIONING: &str = "model.diffusion_model.label_emb.0.0.weight";

/// Finds the text encoders that a file holds.
///
/// # Errors
/// If the tensors that tell an encoder's sizes are missing or make no sense.
pub(super) fn find(checkpoint: &Checkpoint) -> Result<Vec<Layout>> {
    let tensors = checkpoint.tensors();
    let is_there = |(prefix, spelling, _): &&(&str, Spelling, _)| {
        tensors.contains_key(&format!("{prefix}{}", spelling.token_embedding()))
    };
    PLACES
        .iter()
        .filter(is_there)
        .map(|(prefix, spelling, which)| layout(checkpoint, prefix, *spelling, which))
        .collect()
}

fn layout(checkpoint: &Checkpoint, prefix: &'static str, spelling: Spelling, which: &Which) -> Result<Layout> {
    let list = format!("{prefix}{}", spelling.layers());
    let names = checkpoint.tensors().range(list.clone()..).map_while(|(name, _)| name.strip_prefix(&list));
    // One that is missing in between is refused when it is loaded.
    let layers =
        names.filter_map(|name| name.split_once('.')?.0.parse::<usize>().ok()).max().map_or(0, |last| last + 1);
    let clip = match which {
        Which::Known(clip) => *clip,
        Which::OfOnlyEmbedder if checkpoint.tensors().contains_key(SIZE_CONDITIONING) => Clip::G,
        Which::OfOnlyEmbedder => Clip::H,
        Which::ByLayers => {
            match [Clip::L, Clip::G, Clip::H].into_iter().find(|clip| said_heads(checkpoint, *clip).is_some()) {
                Some(clip) => clip,
                None if layers > 24 => Clip::G, // 32
                None if layers > 12 => Clip::H, // 24
                None => Clip::L,                // 12
            }
        }
    };
    let sides = |name: String, wants: &str, fits: fn(usize, usize) -> bool| -> Result<[usize; 2]> {
        let info = checkpoint.tensors().get(&name);
        let found = info.map(|info| info.shape.clone()).ok_or_else(|| missing(&name))?;
        match found[..] {
            [rows, columns] if columns > 0 && fits(rows, columns) => Ok([rows, columns]),
            _ => Err(TextError::Shape { tensor: name, clip, found, wants: wants.to_owned() }),
        }
    };
    let [tokens, width] = sides(
        format!("{prefix}{}", spelling.token_embedding()),
        &format!("[at least {}, width]", bpe::TOKENS),
        |rows, _| rows >= bpe::TOKENS,
    )?;
    sides(format!("{prefix}{}", spelling.position_embedding()), &format!("[{CHUNK}, width]"), |rows, _| rows == CHUNK)?;
    let [hidden, _] = sides(format!("{list}0.{}", spelling.first_of_mlp()), "[outputs, width]", |rows, _| rows > 0)?;
    let heads = heads(checkpoint, clip, width)?;
    Ok(Layout { clip, spelling, prefix, tokens, width, heads, layers, hidden })
}

fn missing(tensor: &str) -> TextError {
    ModelError::from(weights::checkpoint::CheckpointError::NoSuchTensor { tensor: tensor.to_owned() }).into()
}

fn heads_key(clip: Clip) -> String {
    format!("{}.num_heads", clip.name())
}

fn said_heads(checkpoint: &Checkpoint, clip: Clip) -> Option<&String> {
    checkpoint.metadata().get(&heads_key(clip))
}

/// Heads are 64 wide, unless the file says how many there are.
fn heads(checkpoint: &Checkpoint, clip: Clip, width: usize) -> Result<usize> {
    let said = said_heads(checkpoint, clip);
    let heads = match said {
        Some(said) => said.parse().ok().filter(|&heads: &usize| heads > 0 && width.is_multiple_of(heads)),
        None => width.is_multiple_of(64).then_some(width / 64),
    };
    let found = said.map_or("missing".to_owned(), |said| format!("`{said}`"));
    heads.ok_or_else(|| TextError::Heads { clip, width, key: heads_key(clip), found })
}

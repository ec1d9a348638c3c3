//! Which text encoders a file holds: their tensors' names and sizes.

use std::fmt;

use crate::{checkpoint::Checkpoint, detect::DetectError};

/// Tokens that every CLIP knows.
pub const TOKENS: usize = 49408;
/// Tokens that a text encoder reads at once: the length of its list of positions.
pub const CHUNK: usize = 77;

/// The token that ends a prompt, and fills the chunks of CLIP L.
pub const END_TOKEN: u32 = 49407;

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
    pub const fn name(self) -> &'static str {
        match self {
            Self::L => "clip_l",
            Self::G => "clip_g",
            Self::H => "clip_h",
        }
    }

    /// The name for people, such as `CLIP L`.
    const fn title(self) -> &'static str {
        match self {
            Self::L => "CLIP L",
            Self::G => "CLIP G",
            Self::H => "CLIP H",
        }
    }

    /// The token that fills a chunk.
    pub fn padding(self) -> u32 {
        match self {
            Self::L => END_TOKEN,
            Self::G | Self::H => 0,
        }
    }
}

impl fmt::Display for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// How the tensors of an encoder are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// As in Hugging Face's transformers: `encoder.layers.0.self_attn.q_proj.weight`.
    Transformers,
    /// As in OpenCLIP: `transformer.resblocks.0.attn.in_proj_weight`.
    OpenClip,
}

impl Spelling {
    /// The tensor of a vector for each token.
    fn token_embedding(self) -> &'static str {
        match self {
            Self::Transformers => "embeddings.token_embedding.weight",
            Self::OpenClip => "token_embedding.weight",
        }
    }

    /// The tensor of a vector for each position.
    fn position_embedding(self) -> &'static str {
        match self {
            Self::Transformers => "embeddings.position_embedding.weight",
            Self::OpenClip => "positional_embedding",
        }
    }

    /// What the names of layers begin with.
    fn layers(self) -> &'static str {
        match self {
            Self::Transformers => "encoder.layers.",
            Self::OpenClip => "transformer.resblocks.",
        }
    }

    /// The first of the two linear layers of a layer.
    fn first_of_mlp(self) -> &'static str {
        match self {
            Self::Transformers => "mlp.fc1.weight",
            Self::OpenClip => "mlp.c_fc.weight",
        }
    }
}

/// One text encoder of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextLayout {
    /// Which one it is.
    pub clip: Clip,
    /// How its tensors are called.
    pub spelling: Spelling,
    /// What comes before all names.
    pub prefix: &'static str,
    /// How many tokens have a vector.
    pub tokens: usize,
    /// The width of those vectors.
    pub width: usize,
    /// The heads of its attention.
    pub heads: usize,
    /// How many layers it has.
    pub layers: usize,
    /// The width between the two layers of each `mlp`.
    pub hidden: usize,
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
pub fn text_encoders(checkpoint: &Checkpoint) -> Result<Vec<TextLayout>, DetectError> {
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

fn layout(
    checkpoint: &Checkpoint,
    prefix: &'static str,
    spelling: Spelling,
    which: &Which,
) -> Result<TextLayout, DetectError> {
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
    let sides = |name: String, what: &'static str, fits: fn(usize, usize) -> bool| {
        let architecture = clip.title();
        match checkpoint.tensors().get(&name).map(|info| &info.shape[..]) {
            Some(&[rows, columns]) if columns > 0 && fits(rows, columns) => Ok([rows, columns]),
            Some(found) => Err(DetectError::Odd { architecture, tensor: name, found: found.to_vec(), what }),
            None => Err(DetectError::Missing { architecture, tensor: name }),
        }
    };
    let table = format!("{prefix}{}", spelling.token_embedding());
    let [tokens, width] = sides(table, "a vector for each token", |rows, _| rows >= TOKENS)?;
    let table = format!("{prefix}{}", spelling.position_embedding());
    sides(table, "a vector for each of 77 positions", |rows, _| rows == CHUNK)?;
    let first = format!("{list}0.{}", spelling.first_of_mlp());
    let [hidden, _] = sides(first, "the width of its layers", |rows, _| rows > 0)?;
    let heads = heads(checkpoint, clip, width)?;
    Ok(TextLayout { clip, spelling, prefix, tokens, width, heads, layers, hidden })
}

fn heads_key(clip: Clip) -> String {
    format!("{}.num_heads", clip.name())
}

fn said_heads(checkpoint: &Checkpoint, clip: Clip) -> Option<&String> {
    checkpoint.metadata().get(&heads_key(clip))
}

/// Heads are 64 wide, unless the file says how many there are.
fn heads(checkpoint: &Checkpoint, clip: Clip, width: usize) -> Result<usize, DetectError> {
    let said = said_heads(checkpoint, clip);
    let heads = match said {
        Some(said) => said.parse().ok().filter(|&heads: &usize| heads > 0 && width.is_multiple_of(heads)),
        None => width.is_multiple_of(64).then_some(width / 64),
    };
    let found = said.map_or("missing".to_owned(), |said| format!("`{said}`"));
    heads.ok_or_else(|| DetectError::Heads { clip: clip.title(), width, key: heads_key(clip), found })
}

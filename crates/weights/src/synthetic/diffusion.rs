//! Whole checkpoints of Stable Diffusion with synthetic weights, of full or tiny size, so that everything can be tried without a
//! download. Their pictures mean nothing.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{CheckpointError, Float, Planned, narrowed, save};
use crate::detect::diffusion::{ControlNet, Heads, InputBlock, OutputBlock, REFINER_SIZES, SDXL_SIZES, Unet, Vae};

/// Tensors by their names, with their shapes.
pub type Listed = Vec<(String, Vec<usize>)>;

/// What a checkpoint is to be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// Stable Diffusion 1.x.
    Sd1,
    /// Stable Diffusion 1.x, trained to fill in what a mask covers.
    Sd1Inpaint,
    /// Stable Diffusion 2.x.
    Sd2,
    /// SDXL.
    Sdxl,
    /// SDXL, trained to fill in what a mask covers.
    SdxlInpaint,
    /// The refiner of SDXL.
    SdxlRefiner,
    /// A ControlNet for Stable Diffusion 1.x.
    ControlSd1,
    /// A ControlNet for SDXL.
    ControlSdxl,
}

/// How large the networks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// As few channels as there can be, in the structure of the real one.
    Tiny,
    /// As large as the real one.
    Full,
}

/// A text encoder, by where it stands in a checkpoint.
struct Text {
    prefix: &'static str,
    clip: Clip,
}

/// The sizes of a text encoder.
struct Clip {
    name: &'static str,
    is_open: bool,
    width: usize,
    layers: usize,
    heads: usize,
}

const TOKENS: usize = 49408;
const CHUNK: usize = 77;

impl Clip {
    fn l(size: Size) -> Self {
        let (width, layers, heads) = if size == Size::Full { (768, 12, 12) } else { (64, 3, 4) };
        Self { name: "clip_l", is_open: false, width, layers, heads }
    }

    fn h(size: Size) -> Self {
        let (width, layers, heads) = if size == Size::Full { (1024, 24, 16) } else { (80, 3, 5) };
        Self { name: "clip_h", is_open: true, width, layers, heads }
    }

    fn g(size: Size) -> Self {
        let (width, layers, heads) = if size == Size::Full { (1280, 32, 20) } else { (96, 3, 6) };
        Self { name: "clip_g", is_open: true, width, layers, heads }
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (c, wide) = (self.width, 4 * self.width);
        let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
        let mut add = |name: &str, shape: &[usize]| tensors.push((name.to_owned(), shape.to_vec()));
        if self.is_open {
            add("token_embedding.weight", &[TOKENS, c]);
            add("positional_embedding", &[CHUNK, c]);
            add("text_projection", &[c, c]);
            add("ln_final.weight", &[c]);
            add("ln_final.bias", &[c]);
            add("logit_scale", &[]);
        } else {
            add("embeddings.token_embedding.weight", &[TOKENS, c]);
            add("embeddings.position_embedding.weight", &[CHUNK, c]);
            add("final_layer_norm.weight", &[c]);
            add("final_layer_norm.bias", &[c]);
        }
        for layer in 0..self.layers {
            let list = if self.is_open { "transformer.resblocks" } else { "encoder.layers" };
            let mut layer = |name: &str, sides: &[usize]| {
                add(&format!("{list}.{layer}.{name}weight"), sides);
                add(&format!("{list}.{layer}.{name}bias"), &sides[..1]);
            };
            if self.is_open {
                layer("ln_1.", &[c]);
                layer("ln_2.", &[c]);
                layer("mlp.c_fc.", &[wide, c]);
                layer("mlp.c_proj.", &[c, wide]);
                layer("attn.out_proj.", &[c, c]);
                layer("attn.in_proj_", &[3 * c, c]);
            } else {
                layer("layer_norm1.", &[c]);
                layer("layer_norm2.", &[c]);
                layer("mlp.fc1.", &[wide, c]);
                layer("mlp.fc2.", &[c, wide]);
                ["q", "k", "v", "out"].iter().for_each(|part| layer(&format!("self_attn.{part}_proj."), &[c, c]));
            }
        }
        tensors
    }
}

/// What of a UNet differs between models: for each level its channels, as multiples of the first, and the depth of transformers.
struct Plan {
    in_channels: usize,
    model_channels: usize,
    levels: &'static [(usize, usize)],
    middle: usize,
    context_dim: usize,
    adm_in_channels: Option<usize>,
    is_linear: bool,
    heads: Heads,
}

impl Plan {
    const RES_BLOCKS: usize = 2;

    fn unet(&self) -> Unet {
        let Self { in_channels, model_channels, context_dim, adm_in_channels, is_linear, heads, .. } = *self;
        let mut channels = model_channels;
        let mut kept = vec![channels];
        let mut input = Vec::new();
        for (level, &(times, depth)) in self.levels.iter().enumerate() {
            let outputs = times * model_channels;
            for _ in 0..Self::RES_BLOCKS {
                input.push(InputBlock::Res { inputs: channels, outputs, depth });
                channels = outputs;
                kept.push(channels);
            }
            if level + 1 < self.levels.len() {
                input.push(InputBlock::Down { channels });
                kept.push(channels);
            }
        }
        let mut output = Vec::new();
        for (level, &(times, depth)) in self.levels.iter().enumerate().rev() {
            let outputs = times * model_channels;
            for block in 0..=Self::RES_BLOCKS {
                let inputs = channels + kept.pop().expect("as many blocks up as down");
                output.push(OutputBlock { inputs, outputs, depth, is_up: level > 0 && block == Self::RES_BLOCKS });
                channels = outputs;
            }
        }
        Unet {
            in_channels,
            out_channels: 4,
            model_channels,
            embedding: 4 * model_channels,
            adm_in_channels,
            context_dim,
            is_linear,
            input,
            middle: Some(self.middle),
            output,
            heads,
        }
    }
}

impl Model {
    /// Every model.
    pub const ALL: [Self; 8] = [
        Self::Sd1,
        Self::Sd1Inpaint,
        Self::Sd2,
        Self::Sdxl,
        Self::SdxlInpaint,
        Self::SdxlRefiner,
        Self::ControlSd1,
        Self::ControlSdxl,
    ];

    /// The name for machines, such as `sdxl-refiner`.
    pub fn id(self) -> &'static str {
        match self {
            Self::Sd1 => "sd1",
            Self::Sd1Inpaint => "sd1-inpaint",
            Self::Sd2 => "sd2",
            Self::Sdxl => "sdxl",
            Self::SdxlInpaint => "sdxl-inpaint",
            Self::SdxlRefiner => "sdxl-refiner",
            Self::ControlSd1 => "control-sd1",
            Self::ControlSdxl => "control-sdxl",
        }
    }

    fn text(self, size: Size) -> Vec<Text> {
        match self {
            Self::Sd1 | Self::Sd1Inpaint => {
                vec![Text { prefix: "cond_stage_model.transformer.text_model.", clip: Clip::l(size) }]
            }
            Self::Sd2 => vec![Text { prefix: "cond_stage_model.model.", clip: Clip::h(size) }],
            Self::Sdxl | Self::SdxlInpaint => vec![
                Text { prefix: "conditioner.embedders.0.transformer.text_model.", clip: Clip::l(size) },
                Text { prefix: "conditioner.embedders.1.model.", clip: Clip::g(size) },
            ],
            Self::SdxlRefiner => vec![Text { prefix: "conditioner.embedders.0.model.", clip: Clip::g(size) }],
            Self::ControlSd1 | Self::ControlSdxl => Vec::new(),
        }
    }

    /// The sizes of its UNet, or of the one that its ControlNet is for.
    fn unet(self, size: Size) -> Unet {
        let is_full = size == Size::Full;
        let (l, g, h) = (Clip::l(size).width, Clip::g(size).width, Clip::h(size).width);
        let width = Heads::Width(if is_full { 64 } else { 16 });
        let in_channels = if matches!(self, Self::Sd1Inpaint | Self::SdxlInpaint) { 9 } else { 4 };
        let model_channels = if is_full { 320 } else { 32 };
        let sd1 = Plan {
            in_channels,
            model_channels,
            levels: &[(1, 1), (2, 1), (4, 1), (4, 0)],
            middle: 1,
            context_dim: l,
            adm_in_channels: None,
            is_linear: false,
            heads: Heads::Count(8),
        };
        let plan = match self {
            Self::Sd1 | Self::Sd1Inpaint | Self::ControlSd1 => sd1,
            Self::Sd2 => Plan { context_dim: h, is_linear: true, heads: width, ..sd1 },
            Self::Sdxl | Self::SdxlInpaint | Self::ControlSdxl => Plan {
                levels: if is_full { &[(1, 0), (2, 2), (4, 10)] } else { &[(1, 0), (2, 1), (4, 2)] },
                middle: if is_full { 10 } else { 2 },
                context_dim: l + g,
                adm_in_channels: Some(g + SDXL_SIZES),
                is_linear: true,
                heads: width,
                ..sd1
            },
            Self::SdxlRefiner => Plan {
                model_channels: if is_full { 384 } else { 32 },
                levels: if is_full { &[(1, 0), (2, 4), (4, 4), (4, 0)] } else { &[(1, 0), (2, 1), (4, 1), (4, 0)] },
                middle: if is_full { 4 } else { 1 },
                context_dim: g,
                adm_in_channels: Some(g + REFINER_SIZES),
                is_linear: true,
                heads: width,
                ..sd1
            },
        };
        plan.unet()
    }

    /// Lists the tensors of its checkpoint, and what the header says beside them: how attention is split, and whose it is.
    pub fn tensors(self, size: Size) -> (Listed, BTreeMap<String, String>) {
        let unet = self.unet(size);
        let mut metadata = BTreeMap::from([("family".to_owned(), self.id().replace('-', "_"))]);
        match unet.heads {
            Heads::Count(count) => metadata.insert("unet.num_heads".to_owned(), count.to_string()),
            Heads::Width(width) => metadata.insert("unet.num_head_channels".to_owned(), width.to_string()),
        };
        let mut tensors = Vec::new();
        let mut add = |prefix: &str, part: &mut dyn Iterator<Item = (String, Vec<usize>)>| {
            tensors.extend(part.map(|(name, shape)| (format!("{prefix}{name}"), shape)));
        };
        if let Self::ControlSd1 | Self::ControlSdxl = self {
            let last = unet.model_channels;
            let unet = Unet { out_channels: 0, output: Vec::new(), ..unet };
            let net = ControlNet { unet, hint: [3, 16, 16, 32, 32, 96, 96, 256, last] };
            add("control_model.", &mut net.tensors());
            return (tensors, metadata);
        }
        let ch = if size == Size::Full { 128 } else { 32 };
        let vae = Vae {
            in_channels: 3,
            ch,
            levels: [1, 2, 4, 4].map(|times| times * ch).to_vec(),
            num_res_blocks: 2,
            z_channels: 4,
            embed_dim: 4,
        };
        add("model.diffusion_model.", &mut unet.tensors());
        add("first_stage_model.", &mut vae.tensors());
        for Text { prefix, clip } in self.text(size) {
            add(prefix, &mut clip.tensors().into_iter());
            metadata.insert(format!("{}.num_heads", clip.name), clip.heads.to_string());
        }
        (tensors, metadata)
    }

    /// Writes its checkpoint to the safetensors file at `path`, in numbers of `float`. Of the weights no more than one tensor is in
    /// memory.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(self, size: Size, float: Float, path: &Path) -> Result<(), CheckpointError> {
        let (tensors, metadata) = self.tensors(size);
        let plan = |(name, shape): (String, Vec<usize>)| Planned { name, dtype: float.dtype(), shape };
        save(path, tensors.into_iter().map(plan).collect(), &metadata, |Planned { name, shape, .. }| {
            narrowed(name, &super::tensor(name, shape), float)
        })
    }
}

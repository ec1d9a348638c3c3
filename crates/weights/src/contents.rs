//! What a file holds, of all that diffusion models are made of: told from its tensors' names and shapes, for people who look.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{Checkpoint, CheckpointError, TensorInfo},
    detect::{
        DetectError,
        diffusion::{self as layout, Family, Purpose, Training},
    },
    diffusers::is_unet,
    lora::Lora,
};

/// Why it cannot be told what a file holds.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// Something is known but incomplete.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// A tensor that tells cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

type Result<T> = std::result::Result<T, ContentsError>;

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A network with an autoencoder or text encoders.
    Checkpoint,
    /// A network by itself.
    Unet,
    /// An autoencoder by itself.
    Vae,
    /// Text encoders by themselves.
    TextEncoder,
    /// Changes of a model's weights.
    Lora,
    /// A network that steers another one.
    ControlNet,
    /// The layers that join frames.
    MotionModule,
    /// Changes of such layers.
    MotionLora,
    /// Vectors that a prompt names.
    Embedding,
}

impl Kind {
    /// The name for machines, such as `text_encoder`.
    pub fn id(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Unet => "unet",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::Lora => "lora",
            Self::ControlNet => "control_net",
            Self::MotionModule => "motion_module",
            Self::MotionLora => "motion_lora",
            Self::Embedding => "embedding",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checkpoint => "checkpoint",
            Self::Unet => "UNet",
            Self::Vae => "VAE",
            Self::TextEncoder => "text encoder",
            Self::Lora => "LoRA",
            Self::ControlNet => "ControlNet",
            Self::MotionModule => "motion module",
            Self::MotionLora => "motion LoRA",
            Self::Embedding => "embedding",
        })
    }
}

/// Something that is known of a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// A word.
    Text(String),
    /// A number.
    Number(f64),
    /// Several words.
    List(Vec<String>),
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// The kind of file.
    pub kind: Kind,
    /// The family that it belongs to, where it can be told.
    pub family: Option<Family>,
    /// The channels that its UNet takes.
    pub in_channels: Option<usize>,
    /// Whether it holds an autoencoder.
    pub has_vae: bool,
    /// Whether it holds text encoders.
    pub has_text_encoders: bool,
    /// The widths of an embedding's vectors.
    pub widths: Vec<usize>,
    /// What is known of it for people, by name: `family` is always among them where it can be told.
    pub facts: Vec<(&'static str, Fact)>,
}

impl Contents {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            family: None,
            in_channels: None,
            has_vae: false,
            has_text_encoders: false,
            widths: Vec::new(),
            facts: Vec::new(),
        }
    }

    fn family(mut self, family: Option<Family>) -> Self {
        self.family = family;
        self.facts.extend(family.map(|family| ("family", Fact::Text(family.id().to_owned()))));
        self
    }

    fn texts(mut self, name: &'static str, encoders: Vec<String>) -> Self {
        self.has_text_encoders = !encoders.is_empty();
        self.list(name, encoders)
    }

    fn text(mut self, name: &'static str, value: impl ToString) -> Self {
        self.facts.push((name, Fact::Text(value.to_string())));
        self
    }

    fn number(mut self, name: &'static str, value: impl Into<f64>) -> Self {
        self.facts.push((name, Fact::Number(value.into())));
        self
    }

    fn count(self, name: &'static str, value: usize) -> Self {
        self.number(name, u32::try_from(value).unwrap_or(u32::MAX))
    }

    fn list(mut self, name: &'static str, values: impl IntoIterator<Item = impl ToString>) -> Self {
        self.facts.push((name, Fact::List(values.into_iter().map(|value| value.to_string()).collect())));
        self
    }

    /// Tells what a file, or a folder of diffusers, holds; none if it is nothing of a diffusion model.
    ///
    /// # Errors
    /// If it holds something that is known but incomplete: the tensor is named.
    pub fn of(file: &Checkpoint) -> Result<Option<Self>> {
        let any = |part: &str| file.tensors().keys().any(|name| name.contains(part));
        if any("motion_modules.") || any("temporal_attentions.") {
            return Ok(Some(motion(file)));
        }
        let begins = |start: &str| file.tensors().keys().any(|name| name.starts_with(start));
        if file.has("lora_controlnet") || begins("control_model.") || begins("zero_convs.") || begins("controlnet_") {
            return control_net(file).map(Some);
        }
        let lora = Lora::read(file);
        if lora.others.len() < file.tensors().len() - lora.others.len() {
            return Ok(Some(of_lora(file, &lora)));
        }
        if is_unet(&file.shapes()) || layout::network(file).tensors().contains_key("input_blocks.0.0.weight") {
            return model(file).map(Some);
        }
        if let Some(vae) = layout::vae(file) {
            return Ok(Some(of_vae(Self::new(Kind::Vae), &vae_layout(&vae)?)));
        }
        let texts = texts(file)?;
        if !texts.is_empty() {
            return Ok(Some(Self::new(Kind::TextEncoder).texts("encoders", texts)));
        }
        Ok(embedding(file))
    }
}

/// The text encoders of a file, in words.
fn texts(file: &Checkpoint) -> Result<Vec<String>> {
    let mut found = layout::text_encoders(file)?;
    found.sort_by_key(|layout| layout.clip);
    Ok(found.into_iter().map(|layout| format!("{}, {} layers", layout.clip, layout.layers)).collect())
}

fn model(file: &Checkpoint) -> Result<Contents> {
    let network = layout::network(file);
    let unet = layout::Unet::infer(&network.shapes(), network.metadata())?;
    let family = Family::of(&unet)?;
    let training = Training::of(family, &network, file)?;
    let (vae, texts) = (layout::vae(file), texts(file)?);
    let is_whole = vae.is_some() || !texts.is_empty();
    let contents = Contents::new(if is_whole { Kind::Checkpoint } else { Kind::Unet })
        .family(Some(family))
        .text("purpose", Purpose::of(&unet).id())
        .text("prediction", training)
        .number("latent_scale", family.latent_scale());
    let contents = of_unet(contents, &unet).texts("text_encoders", texts);
    Ok(match vae {
        Some(vae) => of_vae(contents, &vae_layout(&vae)?),
        None => contents,
    })
}

fn of_unet(contents: Contents, unet: &layout::Unet) -> Contents {
    let contents = Contents { in_channels: Some(unet.in_channels), ..contents };
    let contents = contents
        .count("in_channels", unet.in_channels)
        .count("model_channels", unet.model_channels)
        .count("context_dim", unet.context_dim);
    match unet.adm_in_channels {
        Some(channels) => contents.count("adm_in_channels", channels),
        None => contents,
    }
}

fn vae_layout(vae: &Checkpoint) -> Result<layout::Vae> {
    Ok(layout::Vae::infer(&vae.shapes())?)
}

fn of_vae(contents: Contents, vae: &layout::Vae) -> Contents {
    let contents = Contents { has_vae: true, ..contents };
    contents.count("vae_channels", vae.ch).count("vae_latent_channels", vae.embed_dim).count("vae_scale", vae.scale())
}

fn of_lora(file: &Checkpoint, lora: &Lora) -> Contents {
    let methods = lora.methods();
    let (network, text) = lora.parts();
    let parts = [(network, "network"), (text, "text encoders")];
    Contents::new(Kind::Lora)
        .family(lora.family(file.metadata()))
        .list("methods", methods.iter().map(|(method, count)| format!("{method} of {count} modules")))
        .list("ranks", lora.ranks())
        .list("parts", parts.into_iter().filter(|(is, _)| *is).map(|(_, part)| part))
        .count("modules", lora.modules.len())
        .count("unknown_tensors", lora.others.len())
}

fn control_net(file: &Checkpoint) -> Result<Contents> {
    let contents = Contents::new(Kind::ControlNet);
    if file.has("lora_controlnet") {
        // Sizes that it leaves to its model are not in it.
        let columns = file.tensors().iter().find(|(name, _)| name.ends_with("attn2.to_k.down"));
        let family = columns.and_then(|(_, info)| match info.shape.get(1) {
            Some(768) => Some(Family::Sd1),
            Some(1024) => Some(Family::Sd2),
            Some(2048) => Some(Family::Sdxl),
            _ => None,
        });
        return Ok(contents.family(family).text("form", "control-LoRA"));
    }
    let is_diffusers = file.has("controlnet_cond_embedding.conv_in.weight");
    let net = layout::control_net(file);
    let net = layout::ControlNet::infer(&net.shapes(), net.metadata())?;
    let form = match (file.has("difference"), is_diffusers) {
        (true, _) => "difference from its model",
        (_, true) => "diffusers",
        _ => "LDM",
    };
    let contents = contents.family(Some(Family::of(&net.unet)?)).text("form", form);
    Ok(of_unet(contents, &net.unet).count("hint_channels", net.hint[0]))
}

/// The layers that AnimateDiff (Guo et al. 2023) puts between those of a UNet.
fn motion(file: &Checkpoint) -> Contents {
    let names = || file.tensors().keys();
    let levels = names()
        .filter_map(|name| name.split_once("down_blocks.")?.1.split('.').next()?.parse::<usize>().ok())
        .max()
        .map_or(0, |last| last + 1);
    let family = match levels {
        4 => Some(Family::Sd1),
        3 => Some(Family::Sdxl),
        _ => None,
    };
    if names().any(|name| name.contains("_lora.down.weight")) {
        return Contents::new(Kind::MotionLora).family(family);
    }
    let has_middle = names().any(|name| name.contains("mid_block."));
    let table = file.tensors().iter().find(|(name, _)| name.contains("pos_encoder."));
    let frames = table.and_then(|(_, info)| info.shape.get(1).copied());
    let version = match (has_middle, family, frames) {
        (true, ..) => "v2",
        (false, Some(Family::Sd1), Some(32)) => "v3",
        _ => "v1",
    };
    let contents = Contents::new(Kind::MotionModule).family(family).text("version", version);
    match frames {
        Some(frames) => contents.count("frames", frames),
        None => contents.text("frames", "any: the file has no table of positions"),
    }
}

/// The vectors of a textual inversion: few tensors, as wide as text encoders are, or called after them.
fn embedding(file: &Checkpoint) -> Option<Contents> {
    const MOST: usize = 4;
    const WIDTHS: [usize; 3] = [768, 1024, 1280];
    let known = |name: &str| {
        matches!(name, "clip_l" | "clip_g" | "clip_h" | "*" | "emb_params") || name.starts_with("bundle_emb.")
    };
    let is_one = |(name, info): (&String, &TensorInfo)| {
        let width = info.shape.last().copied().unwrap_or(0);
        matches!(info.shape.len(), 1 | 2) && (known(name) || WIDTHS.contains(&width))
    };
    if file.tensors().len() > MOST || !file.tensors().iter().all(is_one) {
        return None;
    }
    let vectors = file.tensors().iter().map(|(name, info)| {
        let (width, rows) =
            (info.shape.last().copied().unwrap_or(0), if info.shape.len() == 1 { 1 } else { info.shape[0] });
        (width, format!("`{name}`: {rows} of {width}"))
    });
    let (widths, vectors): (Vec<_>, Vec<_>) = vectors.unzip();
    let family = match widths[..] {
        [768] => Some(Family::Sd1),
        [1024] => Some(Family::Sd2),
        [768, 1280] | [1280, 768] => Some(Family::Sdxl),
        _ => None,
    };
    let contents = Contents::new(Kind::Embedding).family(family).list("vectors", vectors);
    Some(Contents { widths, ..contents })
}

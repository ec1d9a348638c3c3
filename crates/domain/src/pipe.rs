//! What a picture is redrawn with: a `basic_pipe` of networks and prompts, resolved to digests.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    check::{Invalid, Wrong, in_range},
    digest::Digest,
    region::Size,
};

/// The families of networks that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Stable Diffusion 1.
    Sd1,
    /// Stable Diffusion 2.
    Sd2,
    /// Stable Diffusion XL.
    Sdxl,
    /// The refiner of Stable Diffusion XL.
    SdxlRefiner,
}

impl Family {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "sd1",
            Self::Sd2 => "sd2",
            Self::Sdxl => "sdxl",
            Self::SdxlRefiner => "sdxl_refiner",
        }
    }

    /// Whether latents of the one are latents of the other.
    pub fn shares_latents_with(self, other: Self) -> bool {
        let is_xl = |family| match family {
            Self::Sd1 | Self::Sd2 => false,
            Self::Sdxl | Self::SdxlRefiner => true,
        };
        is_xl(self) == is_xl(other)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A weights file by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// What people call it.
    pub name: String,
}

/// A checkpoint with its networks, and the facts about it that a plan needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The file.
    pub weights: Weights,
    /// What it is.
    pub family: Family,
    /// Channels that its UNet takes: 4, or 9 for an inpainting checkpoint.
    pub in_channels: u32,
}

impl Checkpoint {
    /// Whether its UNet also takes a mask and a masked picture.
    pub fn is_inpainting(&self) -> bool {
        self.in_channels == 9
    }
}

/// A LoRA on top of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// The file.
    pub weights: Weights,
    /// How much of it goes into the UNet, -100 to 100.
    pub strength_model: f64,
    /// How much of it goes into the text encoders, -100 to 100.
    pub strength_clip: f64,
}

/// A mask by its content: `f32` values, 0 to 1, row by row, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskRef {
    /// SHA-256 of the values, under which they lie in the store.
    pub digest: Digest,
    /// Its size.
    pub size: Size,
}

/// Pixels by their content: `f32` red, green and blue, 0 to 1, row by row, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PixelsRef {
    /// SHA-256 of the samples, under which they lie in the store.
    pub digest: Digest,
    /// Their size.
    pub size: Size,
}

/// A prompt and where in the picture it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditioning {
    /// The prompt, with weights as in `(red:1.2)` and embeddings as in `embedding:name`.
    pub text: String,
    /// How much it counts among the prompts, 0 to 10.
    pub strength: f64,
    /// Where it holds, more or less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<ConditioningMask>,
    /// The rectangle that it is evaluated in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub area: Option<Area>,
}

impl Conditioning {
    /// A prompt that holds everywhere.
    pub fn everywhere(text: impl Into<String>) -> Self {
        Self { text: text.into(), strength: 1.0, mask: None, area: None }
    }
}

/// Where a prompt holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConditioningMask {
    /// The mask of the whole picture.
    pub mask: MaskRef,
    /// How much it counts, 0 to 10.
    pub strength: f64,
    /// Evaluates the prompt in the mask's bounding box only.
    pub set_area_to_bounds: bool,
}

/// A rectangle of a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "unit", rename_all = "snake_case")]
pub enum Area {
    /// In pixels.
    Pixels {
        /// Columns, at least 8.
        width: u32,
        /// Rows, at least 8.
        height: u32,
        /// The leftmost column.
        x: u32,
        /// The topmost row.
        y: u32,
    },
    /// In parts of the picture, 0 to 1.
    Percentage {
        /// From left to right.
        width: f64,
        /// From top to bottom.
        height: f64,
        /// The left edge.
        x: f64,
        /// The upper edge.
        y: f64,
    },
}

/// A ControlNet on a segment or a whole picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlNet {
    /// The file.
    pub weights: Weights,
    /// The family whose UNet it steers.
    pub family: Family,
    /// How much it steers, 0 to 10; 0 changes nothing.
    pub strength: f64,
    /// From which part of the schedule on, 0 to 1.
    pub start_percent: f64,
    /// To which part of the schedule, 0 to 1.
    pub end_percent: f64,
    /// Steers the negative prompt with a control of its own, as the advanced node does.
    pub advanced: bool,
    /// The control picture; `None`: the picture that is redrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PixelsRef>,
}

impl ControlNet {
    /// Refuses one out of range, or that steers another family's UNet.
    pub fn check(&self, at: &str, family: Family) -> Result<(), Invalid> {
        if self.family != family {
            let wrong = Wrong::Family { name: self.weights.name.clone(), got: self.family, want: family };
            return Err(wrong.at(format!("{at}.control_net")));
        }
        in_range(format!("{at}.strength"), self.strength, 0.0, 10.0)?;
        in_range(format!("{at}.start_percent"), self.start_percent, 0.0, 1.0)?;
        in_range(format!("{at}.end_percent"), self.end_percent, 0.0, 1.0)?;
        match self.image {
            Some(PixelsRef { size, .. }) if size.pixels() == 0 => Err(Wrong::NoPixels(size).at(format!("{at}.image"))),
            _ => Ok(()),
        }
    }
}

/// The networks and prompts that pictures are redrawn with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BasicPipe {
    /// UNet, VAE and text encoders.
    pub checkpoint: Checkpoint,
    /// A VAE instead of the checkpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<Weights>,
    /// LoRAs, in the order in which they are laid on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<Lora>,
    /// Files that prompts name as `embedding:name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<Weights>,
    /// The layer of the text encoder at which it stops, -24 to -1; `None`: the family's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_at_clip_layer: Option<i32>,
    /// What is wanted; at least one.
    pub positive: Vec<Conditioning>,
    /// What is not wanted; at least one.
    pub negative: Vec<Conditioning>,
    /// ControlNets over the whole picture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control_nets: Vec<ControlNet>,
}

impl Weights {
    /// The file without its name: what it is called changes no pixel.
    fn nameless(&self) -> Self {
        Self { digest: self.digest, name: String::new() }
    }
}

impl ControlNet {
    /// The same net without names.
    pub fn nameless(&self) -> Self {
        Self { weights: self.weights.nameless(), ..self.clone() }
    }
}

impl BasicPipe {
    /// The same pipe without names, but for those of embeddings, by which prompts call them.
    pub fn nameless(&self) -> Self {
        let Self { checkpoint, vae, loras, control_nets, .. } = self;
        Self {
            checkpoint: Checkpoint { weights: checkpoint.weights.nameless(), ..checkpoint.clone() },
            vae: vae.as_ref().map(Weights::nameless),
            loras: loras.iter().map(|lora| Lora { weights: lora.weights.nameless(), ..lora.clone() }).collect(),
            control_nets: control_nets.iter().map(ControlNet::nameless).collect(),
            ..self.clone()
        }
    }

    /// Refuses a pipe that cannot be used; `at` is its path.
    pub fn check(&self, at: &str) -> Result<(), Invalid> {
        if let Some(layer) = self.stop_at_clip_layer {
            in_range(format!("{at}.stop_at_clip_layer"), layer, -24, -1)?;
        }
        for (i, lora) in self.loras.iter().enumerate() {
            in_range(format!("{at}.loras[{i}].strength_model"), lora.strength_model, -100.0, 100.0)?;
            in_range(format!("{at}.loras[{i}].strength_clip"), lora.strength_clip, -100.0, 100.0)?;
        }
        check_prompts(&format!("{at}.positive"), &self.positive)?;
        check_prompts(&format!("{at}.negative"), &self.negative)?;
        for (i, net) in self.control_nets.iter().enumerate() {
            net.check(&format!("{at}.control_nets[{i}]"), self.checkpoint.family)?;
        }
        Ok(())
    }
}

/// Refuses prompts that cannot be used; `at` is the path of their list.
pub fn check_prompts(at: &str, prompts: &[Conditioning]) -> Result<(), Invalid> {
    if prompts.is_empty() {
        return Err(Wrong::Missing("a prompt, which may be empty").at(at));
    }
    for (i, prompt) in prompts.iter().enumerate() {
        let at = format!("{at}[{i}]");
        in_range(format!("{at}.strength"), prompt.strength, 0.0, 10.0)?;
        if let Some(ConditioningMask { mask, strength, .. }) = &prompt.mask {
            in_range(format!("{at}.mask.strength"), *strength, 0.0, 10.0)?;
            if mask.size.pixels() == 0 {
                return Err(Wrong::NoPixels(mask.size).at(format!("{at}.mask")));
            }
        }
        match &prompt.area {
            None => {}
            Some(Area::Pixels { width, height, .. }) => {
                in_range(format!("{at}.area.width"), *width, 8, u32::MAX)?;
                in_range(format!("{at}.area.height"), *height, 8, u32::MAX)?;
            }
            Some(Area::Percentage { width, height, x, y }) => {
                for (side, value) in [("width", width), ("height", height), ("x", x), ("y", y)] {
                    in_range(format!("{at}.area.{side}"), *value, 0.0, 1.0)?;
                }
            }
        }
    }
    Ok(())
}

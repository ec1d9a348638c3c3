//! Which model a UNet belongs to, and what it was trained to predict.

use std::fmt;

use super::Unet;
use crate::{
    checkpoint::{Checkpoint, CheckpointError},
    detect::DetectError,
    diffusers,
};

/// The numbers that SDXL is told of sizes beside the pooled text: six, as 256 features each.
pub const SDXL_SIZES: usize = 6 * 256;
/// The numbers that the refiner of SDXL is told: five, as 256 features each.
pub const REFINER_SIZES: usize = 5 * 256;
/// What SD 2.x unclip is told of a picture: an embedding of CLIP L or H with its noise level.
const UNCLIP: [usize; 2] = [2 * 768, 2 * 1024];

/// Models whose networks, text encoders and latents go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Stable Diffusion 1.x.
    Sd1,
    /// Stable Diffusion 2.x.
    Sd2,
    /// Stable Diffusion 2.x unclip, which is also told of a picture.
    Sd2Unclip,
    /// SDXL, and what was distilled from it: SSD-1B, Vega, KOALA.
    Sdxl,
    /// The refiner of SDXL.
    SdxlRefiner,
}

impl Family {
    /// Tells the family of a UNet by its structure, whatever its width: SD 1.x has convolutions around transformers, SD 2.x linear
    /// layers; SDXL is told sizes as well, with the pooled text of one of two encoders, its refiner with that of its only one.
    ///
    /// # Errors
    /// [`DetectError::Odd`] if the network takes a condition that none of them takes.
    pub fn of(unet: &Unet) -> Result<Self, DetectError> {
        let context = unet.context_dim;
        match unet.adm_in_channels {
            None if unet.is_linear => Ok(Self::Sd2),
            None => Ok(Self::Sd1),
            Some(adm) if context == 1024 && UNCLIP.contains(&adm) => Ok(Self::Sd2Unclip),
            Some(adm) if adm == context + REFINER_SIZES => Ok(Self::SdxlRefiner),
            Some(adm) if (SDXL_SIZES + 1..SDXL_SIZES + context).contains(&adm) => Ok(Self::Sdxl),
            Some(adm) => Err(DetectError::Odd {
                architecture: "UNet",
                tensor: "label_emb.0.0.weight".to_owned(),
                found: vec![unet.embedding, adm],
                what: "the family",
            }),
        }
    }

    /// By what latents are multiplied before the network sees them.
    pub fn latent_scale(self) -> f64 {
        match self {
            Self::Sd1 | Self::Sd2 | Self::Sd2Unclip => 0.18215,
            Self::Sdxl | Self::SdxlRefiner => 0.13025,
        }
    }

    /// The name for machines, such as `sdxl_refiner`.
    pub fn id(self) -> &'static str {
        match self {
            Self::Sd1 => "sd1",
            Self::Sd2 => "sd2",
            Self::Sd2Unclip => "sd2_unclip",
            Self::Sdxl => "sdxl",
            Self::SdxlRefiner => "sdxl_refiner",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sd1 => "SD 1.x",
            Self::Sd2 => "SD 2.x",
            Self::Sd2Unclip => "SD 2.x unclip",
            Self::Sdxl => "SDXL",
            Self::SdxlRefiner => "SDXL refiner",
        })
    }
}

/// What a UNet takes beside the noised latent, as further channels of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Nothing: 4 channels.
    Generate,
    /// A mask, and the latent of the picture around it: 9 channels.
    Inpaint,
    /// The latent of the picture to change: 8 channels (InstructPix2Pix).
    Edit,
}

impl Purpose {
    /// Tells the purpose of a UNet from its channels.
    pub fn of(unet: &Unet) -> Self {
        match unet.in_channels {
            8 => Self::Edit,
            5.. => Self::Inpaint,
            _ => Self::Generate,
        }
    }

    /// The name for machines, such as `inpaint`.
    pub fn id(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Inpaint => "inpaint",
            Self::Edit => "edit",
        }
    }
}

/// What a UNet was trained to predict, and at which noise levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Training {
    /// The noise, at the usual 1000 levels.
    Epsilon,
    /// The velocity, at the usual 1000 levels.
    Velocity {
        /// Whether the last level is shifted to noise alone (Lin et al. 2023).
        zero_terminal_snr: bool,
    },
    /// The velocity, at any level between two.
    ContinuousVelocity {
        /// The lowest level.
        sigma_min: f32,
        /// The highest level.
        sigma_max: f32,
    },
    /// The latent, as in Karras et al. 2022: Playground 2.5.
    Edm,
}

impl fmt::Display for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epsilon => f.write_str("epsilon"),
            Self::Velocity { zero_terminal_snr: false } => f.write_str("v"),
            Self::Velocity { zero_terminal_snr: true } => f.write_str("v, zero terminal SNR"),
            Self::ContinuousVelocity { sigma_min, sigma_max } => {
                write!(f, "v, noise levels {sigma_min} to {sigma_max}")
            }
            Self::Edm => f.write_str("EDM"),
        }
    }
}

impl Training {
    /// Tells what the network of `family` was trained for: `network` has its tensors, without prefix, and `file` what stands beside
    /// them. A folder's scheduler says it; else SDXL is marked by tensors that say so, SD 2.x by how far the biases of its last
    /// norm are spread.
    ///
    /// # Errors
    /// If a tensor that tells cannot be read.
    pub fn of(family: Family, network: &Checkpoint, file: &Checkpoint) -> Result<Self, CheckpointError> {
        /// Biases that are spread wider than this are those of a network that predicts the velocity.
        const SPREAD: f64 = 0.09;
        let says = |marker: &str| file.has(marker);
        let number = |marker: &str| file.read_f32(marker).map(|numbers| numbers.first().copied());
        let said = |key: &str| file.metadata().get(key).map(String::as_str);
        match said(diffusers::PREDICTION) {
            Some("v_prediction") => {
                let zero_terminal_snr = said(diffusers::ZERO_TERMINAL_SNR) == Some("true");
                return Ok(Self::Velocity { zero_terminal_snr });
            }
            Some("epsilon") => return Ok(Self::Epsilon),
            _ => {}
        }
        match family {
            Family::Sd2 | Family::Sd2Unclip => {
                let is_plain =
                    network.tensors().get("input_blocks.0.0.weight").is_some_and(|info| info.shape[1..2] == [4]);
                let bias = "output_blocks.11.1.transformer_blocks.0.norm1.bias";
                let is_velocity = is_plain
                    && network.tensors().contains_key(bias)
                    && standard_deviation(&network.read_f32(bias)?) > SPREAD;
                Ok(if is_velocity { Self::Velocity { zero_terminal_snr: false } } else { Self::Epsilon })
            }
            Family::Sdxl if says("edm_mean") && says("edm_std") => Ok(Self::Edm),
            Family::Sdxl if says("edm_vpred.sigma_max") => {
                let lowest = if says("edm_vpred.sigma_min") { number("edm_vpred.sigma_min")? } else { None };
                let (sigma_min, sigma_max) = (lowest.unwrap_or(0.002), number("edm_vpred.sigma_max")?.unwrap_or(120.0));
                Ok(Self::ContinuousVelocity { sigma_min, sigma_max })
            }
            Family::Sdxl if says("v_pred") => Ok(Self::Velocity { zero_terminal_snr: says("ztsnr") }),
            Family::Sd1 | Family::Sdxl | Family::SdxlRefiner => Ok(Self::Epsilon),
        }
    }
}

fn standard_deviation(numbers: &[f32]) -> f64 {
    let count = numbers.len().max(1) as f64;
    let mean = numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    (numbers.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// The tensors of a file's network, without the prefix before their names, by LDM's names.
///
/// The prefix is the one of `model.diffusion_model.`, `model.model.` and `net.` that most names have, if more than five do, or
/// `model.`; a file without it holds nothing but the network.
pub fn network(file: &Checkpoint) -> Checkpoint {
    const PREFIXES: [&str; 3] = ["model.diffusion_model.", "model.model.", "net."];
    const FEW: usize = 5;
    let count = |prefix: &str| file.tensors().keys().filter(|name| name.starts_with(prefix)).count();
    let (most, prefix) = PREFIXES
        .map(|prefix| (count(prefix), prefix))
        .into_iter()
        .rev()
        .max_by_key(|(count, _)| *count)
        .expect("three");
    let part = file.part(if most > FEW { prefix } else { "model." });
    diffusers::unet_as_ldm(if part.tensors().is_empty() { file.clone() } else { part })
}

/// The tensors of a file's control net by LDM's names, without the prefix `control_model.`, if it has one.
pub fn control_net(file: &Checkpoint) -> Checkpoint {
    let part = file.part("control_model.");
    if part.tensors().is_empty() { diffusers::controlnet_as_ldm(file.clone()) } else { part }
}

/// The tensors of a file's autoencoder by LDM's names, without the prefix `first_stage_model.`, if it has one. A file without
/// any such prefix may hold nothing but an autoencoder.
pub fn vae(file: &Checkpoint) -> Option<Checkpoint> {
    [file.part("first_stage_model."), diffusers::vae_as_ldm(file.clone())]
        .into_iter()
        .find(|part| part.tensors().contains_key("decoder.conv_in.weight"))
}

//! The names that the library `diffusers` has for the tensors of Stable Diffusion, and those of the models' own code (LDM).
//!
//! Both name the same networks: LDM counts blocks through, diffusers groups them by level. Checkpoints in one file have LDM's
//! names, folders, most LoRAs and many ControlNets those of diffusers. [`UnetNames`] and [`vae`] turn one into the other,
//! [`open`] shows a folder as a single checkpoint with LDM's names.

mod controlnet;
mod folder;
mod unet;
pub mod vae;

pub use controlnet::controlnet_as_ldm;
pub use folder::{FolderError, open};
pub(crate) use folder::{PREDICTION, ZERO_TERMINAL_SNR};
pub use unet::UnetNames;

use crate::{checkpoint::Checkpoint, detect::Shapes};

/// Says whether tensors have the names that diffusers has for a UNet, or for the encoder of a ControlNet.
pub fn is_unet(shapes: &Shapes) -> bool {
    shapes.contains_key("conv_in.weight") && shapes.contains_key("down_blocks.0.resnets.0.conv1.weight")
}

/// The UNet that a file has below no prefix, by LDM's names. What is none by the names of diffusers comes back as it is.
pub fn unet_as_ldm(file: Checkpoint) -> Checkpoint {
    let shapes = file.shapes();
    if !is_unet(&shapes) {
        return file;
    }
    let names = UnetNames::of_diffusers(&shapes);
    file.renamed(|name| names.to_ldm(name))
}

/// The autoencoder that a file has below no prefix, by LDM's names. What is none by the names of diffusers comes back as it is.
pub fn vae_as_ldm(file: Checkpoint) -> Checkpoint {
    if !file.tensors().contains_key("encoder.down_blocks.0.resnets.0.conv1.weight") {
        return file;
    }
    let levels = vae::levels(file.tensors().keys().map(String::as_str));
    file.renamed(|name| vae::to_ldm(name, levels)).with_convolutions(|name| name.contains(".attn_1."))
}

/// Returns one more than the largest `i` of names `<list>.<i>.…`.
fn count<'a>(names: impl Iterator<Item = &'a str>, list: &str) -> usize {
    let index = |name: &str| name.strip_prefix(list)?.strip_prefix('.')?.split('.').next()?.parse::<usize>().ok();
    names.filter_map(index).max().map_or(0, |last| last.saturating_add(1))
}

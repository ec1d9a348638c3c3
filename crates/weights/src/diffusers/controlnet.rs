//! The names of a ControlNet's tensors: those of a UNet's way down, and a few of its own.

use super::{UnetNames, is_unet};
use crate::{checkpoint::Checkpoint, detect::diffusion::ControlNet};

/// Names that count further are not believed.
const MOST: usize = 1000;

/// The ControlNet that a file has below no prefix, by LDM's names. What is none by the names of diffusers comes back as it is.
pub fn controlnet_as_ldm(file: Checkpoint) -> Checkpoint {
    let shapes = file.shapes();
    if !is_unet(&shapes) {
        return file;
    }
    let names = UnetNames::of_diffusers(&shapes);
    file.renamed(|name| own_name(name).or_else(|| names.to_ldm(name)))
}

/// Returns LDM's name of a tensor that only a ControlNet has.
fn own_name(name: &str) -> Option<String> {
    let (layer, part) = name.rsplit_once('.')?;
    let ldm = match layer {
        "controlnet_mid_block" => "middle_block_out.0".to_owned(),
        "controlnet_cond_embedding.conv_in" => ControlNet::hint_conv(0),
        "controlnet_cond_embedding.conv_out" => ControlNet::hint_conv(ControlNet::HINT_CONVS - 1),
        _ => {
            let (list, number) = layer.rsplit_once('.')?;
            let number = number.parse::<usize>().ok().filter(|number| *number < MOST)?;
            match list {
                "controlnet_down_blocks" => format!("zero_convs.{number}.0"),
                "controlnet_cond_embedding.blocks" => ControlNet::hint_conv(number + 1),
                _ => return None,
            }
        }
    };
    Some(format!("{ldm}.{part}"))
}

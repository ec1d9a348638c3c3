//! The networks of Stable Diffusion 1, 2 and XL, told from their tensors: sizes come from shapes, as for upscalers.
//!
//! A checkpoint holds several networks below prefixes (see [`Checkpoint::part`](crate::checkpoint::Checkpoint::part)); what is in
//! here sees one of them, without its prefix. What a network does not need is passed over, since checkpoints carry much else.

mod controlnet;
mod family;
pub mod memory;
mod text;
mod unet;
mod vae;

use super::{DetectError, Shapes, mismatch::Mismatch, parts::Part};

pub use controlnet::ControlNet;
pub use family::{Family, Purpose, REFINER_SIZES, SDXL_SIZES, Training, control_net, network, vae};
pub use text::{CHUNK, Clip, END_TOKEN, Spelling, TOKENS, TextLayout, text_encoders};
pub use unet::{Heads, InputBlock, OutputBlock, Unet};
pub use vae::Vae;

/// Refuses a file that lacks a tensor that `parts` need, or has it in another shape.
fn check(architecture: &'static str, parts: Vec<Part>, shapes: &Shapes) -> Result<(), DetectError> {
    let mismatch = Mismatch { unexpected: Vec::new(), ..Mismatch::between(parts, shapes) };
    match mismatch.is_empty() {
        true => Ok(()),
        false => Err(DetectError::Mismatch { architecture, mismatch }),
    }
}

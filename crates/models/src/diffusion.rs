//! Latent diffusion: Stable Diffusion 1, 2 and XL, as the reference computes them on a CPU.
//!
//! - [`generate`] makes a picture of words in one call; all else is below it.
//! - [`model`] puts the parts together, from whatever files they come, changed by [`lora`]s.
//! - [`unet`] says what is noise in a latent, [`vae`] makes latents of pictures and pictures of latents, [`controlnet`] steers
//!   the first by a picture.
//! - [`text`] makes of a prompt what a network is conditioned with; [`conditioning`] says where, when and how strongly it counts.
//! - [`guidance`] is one call of the denoiser: all prompts, areas and masks of a noise level; [`batch`] joins such calls of
//!   several runs.
//! - [`samplers`] go from noise to a latent, down the noise levels that [`schedule`] chooses, with the noise of [`random`].
//! - [`sampling`] joins all of this as KSampler does, and [`detail`] as the Impact Pack's detailers do; [`redraw`] takes these from
//!   pixels to pixels; [`preview`] shows roughly what a latent holds.
//!
//! [`weights::contents`] says what a file holds.
//!
//! This module knows no job: tensors in, tensors out. Start reading at [`sampling::run`].

pub mod batch;
pub mod conditioning;
pub mod controlnet;
pub mod detail;
mod equations;
mod file;
pub mod generate;
pub mod guidance;
pub mod lora;
pub mod model;
pub mod preview;
pub mod random;
pub mod redraw;
pub mod samplers;
pub mod sampling;
pub mod schedule;
pub mod text;
pub mod unet;
pub mod vae;

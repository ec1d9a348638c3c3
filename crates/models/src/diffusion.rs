//! Latent diffusion: Stable Diffusion 1, 2 and XL, as the reference computes them on a CPU.
//!
//! - [`model`] puts the parts together, from whatever files they come, changed by [`lora`]s.
//! - [`unet`] says what is noise in a latent, [`vae`] makes latents of pictures and pictures of latents.
//! - [`unet`] says what is noise in a latent, and [`controlnet`] where a picture wants it; [`vae`] makes latents of pictures and pictures of latents.
//! - [`text`] makes of a prompt what a network is conditioned with.
//! - [`samplers`] go from noise to a latent, down the noise levels that [`schedule`] chooses, with the noise of [`random`].
//!
//! This module knows no job: tensors in, tensors out. Start reading at [`unet::Unet::forward`].

pub mod controlnet;
mod file;
pub mod lora;
pub mod model;
pub mod random;
pub mod samplers;
pub mod schedule;
pub mod text;
pub mod unet;
pub mod vae;

//! The operations of the `diffusion` form: samplers, noise, text encoders, VAEs.

mod models;
mod networks;
mod noise;
mod sampling;
mod schedules;
mod stored;
mod text;

pub(super) use models::backend;
pub(super) use networks::to_device;

use super::pixels::Op;

/// Every operation that can be replayed.
pub const OPS: &[(&str, Op)] = &[
    ("info", |_, _| Ok(super::Got::default())), // a note to the reader
    ("randn", noise::randn),
    ("rand", noise::rand),
    ("randn_sequence", noise::randn_sequence),
    ("seed_sequence", noise::seed_sequence),
    ("prepare_noise", noise::prepare_noise),
    ("brownian_noise", noise::brownian_noise),
    ("model_sampling", schedules::model_sampling),
    ("ksampler_sigmas", schedules::ksampler_sigmas),
    ("impact_sigmas", schedules::impact_sigmas),
    ("optimal_steps_sigmas", schedules::optimal_steps_sigmas),
    ("ltxv_sigmas", schedules::ltxv_sigmas),
    ("tokenize", text::tokenize),
    ("clip_encode", text::clip_encode),
    ("clip_encode_sdxl", text::clip_encode_sdxl),
    ("size_embedding", text::size_embedding),
    ("stored_precision", stored::stored_precision),
    ("lora", stored::lora),
    ("unet_forward", networks::unet_forward),
    ("controlnet_forward", networks::controlnet_forward),
    ("vae_encode", networks::vae_encode),
    ("vae_encode_tiled_node", networks::vae_encode_tiled_node),
    ("vae_encode_for_inpaint", networks::vae_encode_for_inpaint),
    ("vae_decode", networks::vae_decode),
    ("vae_decode_tiled", networks::vae_decode_tiled),
    ("vae_decode_tiled_node", networks::vae_decode_tiled_node),
    ("apply_model", sampling::apply_model),
    ("ksampler", sampling::ksampler),
    ("ksampler_conditioning", sampling::ksampler_conditioning),
    ("ksampler_differential", sampling::ksampler_differential),
    ("ksampler_control", sampling::ksampler_control),
    ("ksampler_control_simple", sampling::ksampler_control_simple),
    ("inpaint_model_conditioning", sampling::inpaint_model_conditioning),
    ("img2img", sampling::img2img),
    ("refiner_handover", sampling::refiner_handover),
    ("impact_ksampler_wrapper", sampling::impact_ksampler_wrapper),
    ("impact_separated_sample", sampling::impact_separated_sample),
    ("impact_refiner", sampling::impact_refiner),
    ("impact_advanced_wrapper", sampling::impact_advanced_wrapper),
];

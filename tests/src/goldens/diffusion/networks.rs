//! The networks of latent diffusion by themselves.

use std::sync::Arc;

use anyhow::Context as _;
use candle_core::{Device, Tensor as DeviceTensor};
use models::{
    diffusion::{
        controlnet::ControlNet,
        unet::Inputs,
        vae::{Tiling, Vae},
    },
    error::ModelError,
    watch::Unwatched,
};

use super::models::{backend, checkpoint, model};
use crate::goldens::{
    Answer, Failure, Got,
    cases::{Case, Tensor, Tensors},
};

pub fn to_device(tensor: &Tensor) -> Result<DeviceTensor, Failure> {
    let numbers = DeviceTensor::from_vec(tensor.data.clone(), tensor.shape.as_slice(), &Device::Cpu);
    Ok(numbers.map_err(ModelError::from)?)
}

pub fn from_device(tensor: &DeviceTensor) -> Result<Tensor, Failure> {
    let numbers = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(ModelError::from)?;
    Ok(Tensor::floats(tensor.dims(), numbers))
}

/// Between pictures, [b, h, w, c], and maps, [b, c, h, w].
pub fn permuted(tensor: &DeviceTensor, order: [usize; 4]) -> Result<DeviceTensor, Failure> {
    Ok(tensor.permute(order).and_then(|tensor| tensor.contiguous()).map_err(ModelError::from)?)
}

/// The tensors that a network takes.
struct Given {
    x: DeviceTensor,
    timesteps: Vec<f32>,
    context: DeviceTensor,
    y: Option<DeviceTensor>,
}

impl Given {
    fn read(case: &Case, tensors: &Tensors) -> Result<Self, Failure> {
        let input = |name: &str| to_device(case.input(tensors, name)?);
        let x = input("x")?;
        // A batch has the same timesteps as its first ones.
        let timesteps = case.input(tensors, "timesteps")?.data.iter().copied().take(x.dims()[0]).collect();
        Ok(Self { x, timesteps, context: input("context")?, y: case.has_input("y").then(|| input("y")).transpose()? })
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs { x: &self.x, timesteps: &self.timesteps, context: &self.context, y: self.y.as_ref() }
    }
}

/// The autoencoder of a case.
fn vae(case: &Case) -> Result<Arc<Vae>, Failure> {
    Ok(model(case)?.vae.context("the model has no VAE")?)
}

/// Pictures of a case, [b, c, h, w].
fn pictures(case: &Case, tensors: &Tensors) -> Result<DeviceTensor, Failure> {
    permuted(&to_device(case.input(tensors, "pixels")?)?, [0, 3, 1, 2])
}

/// Pictures, [b, c, h, w], as cases have them.
fn pixels(pictures: &DeviceTensor) -> Answer {
    Ok(Got::default().tensor("pixels", from_device(&permuted(pictures, [0, 2, 3, 1])?)?))
}

pub fn unet_forward(case: &Case, tensors: &Tensors) -> Answer {
    let unet = model(case)?.unet;
    let given = Given::read(case, tensors)?;
    let output = from_device(&unet.forward(given.inputs(), None, &Unwatched)?)?;
    let mut got = Got::default().tensor("trace.out", output.clone()).tensor("output", output);
    got = got.tensor("trace.time_embed", from_device(&unet.embed_time(&given.timesteps)?)?);
    if let Some(label) = given.y.map(|y| unet.embed_label(&y)).transpose()?.flatten() {
        got = got.tensor("trace.label_emb", from_device(&label)?);
    }
    Ok(got)
}

pub fn controlnet_forward(case: &Case, tensors: &Tensors) -> Answer {
    let net = ControlNet::load(&checkpoint(case)?, &backend())?;
    let hint = to_device(case.input(tensors, "hint")?)?;
    let residuals = net.forward(Given::read(case, tensors)?.inputs(), &hint, &Unwatched)?;
    let mut got = Got::default().tensor("middle", from_device(&residuals.middle)?);
    for (i, output) in residuals.output.iter().enumerate() {
        got = got.tensor(format!("output.{i}"), from_device(output)?);
    }
    Ok(got)
}

pub fn vae_encode(case: &Case, tensors: &Tensors) -> Answer {
    let vae = vae(case)?;
    let pictures = vae.crop(&pictures(case, tensors)?)?;
    let moments = vae.encode_moments(&pictures, &Unwatched)?;
    let latent = vae.encode(&pictures, &Unwatched)?;
    Ok(Got::default().tensor("latent", from_device(&latent)?).tensor("moments", from_device(&moments)?))
}

pub fn vae_encode_tiled_node(case: &Case, tensors: &Tensors) -> Answer {
    let vae = vae(case)?;
    let tiling = Tiling::of_encode_node(case.param("tile_size")?, case.param("overlap")?);
    let latent = vae.encode_tiled(&vae.crop(&pictures(case, tensors)?)?, tiling, &Unwatched)?;
    Ok(Got::default().tensor("latent", from_device(&latent)?))
}

pub fn vae_encode_for_inpaint(case: &Case, tensors: &Tensors) -> Answer {
    let (pictures, mask) = (pictures(case, tensors)?, to_device(case.input(tensors, "mask")?)?);
    let grey = vae(case)?.encode_for_inpaint(&pictures, &mask, case.param("grow_mask_by")?, &Unwatched)?;
    let got = Got::default().tensor("latent", from_device(&grey.latents)?);
    Ok(got.tensor("noise_mask", from_device(&grey.noise_mask)?))
}

pub fn vae_decode(case: &Case, tensors: &Tensors) -> Answer {
    pixels(&vae(case)?.decode(&to_device(case.input(tensors, "latent")?)?, &Unwatched)?)
}

pub fn vae_decode_tiled_node(case: &Case, tensors: &Tensors) -> Answer {
    let vae = vae(case)?;
    let scale = vae.layout().scale();
    let tiling = Tiling::of_decode_node(case.param("tile_size")?, case.param("overlap")?, scale);
    pixels(&vae.decode_tiled(&to_device(case.input(tensors, "latent")?)?, tiling, &Unwatched)?)
}

pub fn vae_decode_tiled(case: &Case, tensors: &Tensors) -> Answer {
    let (width, height) = (case.param("tile_x")?, case.param("tile_y")?);
    let tiling = Tiling { width, height, overlap: case.param("overlap")? };
    pixels(&vae(case)?.decode_tiled(&to_device(case.input(tensors, "latent")?)?, tiling, &Unwatched)?)
}

//! The networks of latent diffusion by themselves.

use candle_core::{Device, Tensor as DeviceTensor};
use models::{
    diffusion::{unet::Inputs, vae::Vae},
    error::ModelError,
    watch::Unwatched,
};

use super::models::{checkpoint, model};
use crate::goldens::{
    Answer, Failure, Got,
    cases::{Case, Tensor, Tensors},
};

fn to_device(tensor: &Tensor) -> Result<DeviceTensor, Failure> {
    let numbers = DeviceTensor::from_vec(tensor.data.clone(), tensor.shape.as_slice(), &Device::Cpu);
    Ok(numbers.map_err(ModelError::from)?)
}

fn from_device(tensor: &DeviceTensor) -> Result<Tensor, Failure> {
    let numbers = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(ModelError::from)?;
    Ok(Tensor::floats(tensor.dims(), numbers))
}

/// Between pictures, [b, h, w, c], and maps, [b, c, h, w].
fn permuted(tensor: &DeviceTensor, order: [usize; 4]) -> Result<DeviceTensor, Failure> {
    Ok(tensor.permute(order).and_then(|tensor| tensor.contiguous()).map_err(ModelError::from)?)
}

pub fn unet_forward(case: &Case, tensors: &Tensors) -> Answer {
    let unet = model(case)?.unet;
    let input = |name: &str| to_device(case.input(tensors, name)?);
    let (x, context) = (input("x")?, input("context")?);
    let y = case.has_input("y").then(|| input("y")).transpose()?;
    let timesteps = &case.input(tensors, "timesteps")?.data;
    // A batch has the same timesteps as its first ones.
    let batch = x.dims()[0];
    let inputs =
        Inputs { x: &x, timesteps: &timesteps[..batch.min(timesteps.len())], context: &context, y: y.as_ref() };
    let output = from_device(&unet.forward(inputs, &Unwatched)?)?;
    let mut got = Got::default().tensor("trace.out", output.clone()).tensor("output", output);
    got = got.tensor("trace.time_embed", from_device(&unet.embed_time(inputs.timesteps)?)?);
    if let Some(label) = y.map(|y| unet.embed_label(&y)).transpose()?.flatten() {
        got = got.tensor("trace.label_emb", from_device(&label)?);
    }
    Ok(got)
}

pub fn vae_encode(case: &Case, tensors: &Tensors) -> Answer {
    let vae = Vae::load(&checkpoint(case)?.part("first_stage_model."), &super::models::backend())?;
    let pictures = permuted(&to_device(case.input(tensors, "pixels")?)?, [0, 3, 1, 2])?;
    let pictures = vae.crop(&pictures)?;
    let moments = vae.encode_moments(&pictures, &Unwatched)?;
    let latent = vae.encode(&pictures, &Unwatched)?;
    Ok(Got::default().tensor("latent", from_device(&latent)?).tensor("moments", from_device(&moments)?))
}

pub fn vae_decode(case: &Case, tensors: &Tensors) -> Answer {
    let vae = Vae::load(&checkpoint(case)?.part("first_stage_model."), &super::models::backend())?;
    let pictures = vae.decode(&to_device(case.input(tensors, "latent")?)?, &Unwatched)?;
    Ok(Got::default().tensor("pixels", from_device(&permuted(&pictures, [0, 2, 3, 1])?)?))
}

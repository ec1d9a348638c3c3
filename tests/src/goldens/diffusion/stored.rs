//! Weights as files store them, and as LoRAs leave them.

use anyhow::Context as _;
use models::{
    diffusion::{
        lora::LoraFile,
        model::{File, Model, ModelFiles},
        text::Options,
        unet::Inputs,
    },
    error::ModelError,
    watch::Unwatched,
};
use weights::checkpoint::{Checkpoint, Float};

use super::{
    models::{backend, checkpoint},
    networks::{from_device, permuted, to_device},
    sampling,
};
use crate::goldens::{
    Answer, Failure, Got,
    cases::{Case, Tensors},
};

/// A checkpoint as `case` has it, but with numbers of another type.
fn stored_as(case: &Case, float: Float) -> anyhow::Result<Checkpoint> {
    let exact = checkpoint(case).map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.safetensors");
    exact.save_safetensors(&path, exact.tensors().keys().map(String::as_str), Some(float), exact.metadata())?;
    Ok(Checkpoint::open(&path)?) // the folder may go while the file is open
}

pub fn stored_precision(case: &Case, tensors: &Tensors) -> Answer {
    let float = match case.param::<String>("dtype")?.as_str() {
        "float16" => Float::F16,
        "bfloat16" => Float::Bf16,
        "float32" => Float::F32,
        other => return Err(Failure::NotBuilt(other.to_owned())),
    };
    let file = File::new(case.name.as_str(), stored_as(case, float)?);
    let model = Model::load(&ModelFiles::single(file), &backend())?;
    let text = model.text.as_ref().context("the model has no text encoder")?;
    let encoded = text.encode(&case.param::<String>("text")?, &Options::default())?;
    let x = to_device(case.input(tensors, "x")?)?;
    let batch = x.dims()[0];
    let context = encoded.cond.repeat((batch, 1, 1)).map_err(ModelError::from)?;
    let timesteps: Vec<f32> = case.input(tensors, "timesteps")?.data.iter().copied().take(batch).collect();
    let inputs = Inputs { x: &x, timesteps: &timesteps, context: &context, y: None };
    let output = model.unet.forward(inputs, None, &Unwatched)?;
    let vae = model.vae.as_ref().context("the model has no VAE")?;
    let pixels = vae.decode(&to_device(case.input(tensors, "latent")?)?, &Unwatched)?;
    Ok(Got::default()
        .tensor("cond", from_device(&encoded.cond)?)
        .tensor("cond_pooled", from_device(&encoded.pooled)?)
        .tensor("output", from_device(&output)?)
        .tensor("pixels", from_device(&permuted(&pixels, [0, 2, 3, 1])?)?))
}

/// The files of a case of operation `lora`: its model and the LoRA that changes it.
fn files_with_lora(case: &Case) -> Result<ModelFiles, Failure> {
    let name: String = case.param("lora")?;
    let lora = Checkpoint::open(&case.folder().join(&name)).with_context(|| name.clone())?;
    let lora = LoraFile {
        file: File::new(name, lora),
        strength_model: case.param("strength_model")?,
        strength_clip: case.param("strength_clip")?,
    };
    let model = File::new(case.get("model").as_str().unwrap_or_default(), checkpoint(case)?);
    Ok(ModelFiles { loras: vec![lora], ..ModelFiles::single(model) })
}

/// What a LoRA does to weights, to conditioning, and to the latent that comes of both.
pub fn lora(case: &Case, tensors: &Tensors) -> Answer {
    let files = files_with_lora(case)?;
    let model = Model::load(&files, &backend())?;
    let (positive, mut got) = sampling::from_text(case, tensors, &model)?;
    got = got.tensor("positive", from_device(&positive.cond)?);
    got = got.tensor("positive_pooled", from_device(&positive.pooled)?);
    // Weights were recorded behind the run, by changing once more what was changed for it.
    let twice = ModelFiles { loras: [files.loras.clone(), files.loras.clone()].concat(), ..files };
    for output in case.outputs() {
        if let Some(tensor) = output.name.strip_prefix("patched.diffusion_model.") {
            got = got.tensor(output.name.clone(), from_device(&Model::weight(&twice, tensor)?)?);
        }
    }
    Ok(got)
}

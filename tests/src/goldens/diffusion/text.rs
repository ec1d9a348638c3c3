//! From prompts to conditioning: tokens, text encoders, and what SDXL is told of sizes.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use candle_core::{Device, Tensor as DeviceTensor};
use models::{
    diffusion::text::{
        Clip, Encoded, Options, TextEncoder,
        embedding::Folder,
        error::TextError,
        size::{AESTHETIC_NEGATIVE, AESTHETIC_POSITIVE, RefinerSize, SdxlSize},
        tokens::{Token, Weighted, tokenize as tokens_of},
    },
    error::ModelError,
};
use serde_json::{Value, json};

use super::models::model;
use crate::goldens::{
    Answer, Failure, Got,
    cases::{Case, Tensor, Tensors},
};

impl From<TextError> for Failure {
    fn from(error: TextError) -> Self {
        Self::Refused(format!("{:#}", anyhow!(error)))
    }
}

fn embeddings(case: &Case) -> anyhow::Result<Option<Folder>> {
    Ok(case.param_if_any::<String>("embeddings")?.map(|folder| Folder::new(case.folder().join(folder))))
}

pub fn tokenize(case: &Case, _: &Tensors) -> Answer {
    let embeddings = embeddings(case)?;
    let text: String = case.param("text")?;
    let mut got = Got::default();
    for name in case.get("expect").as_object().into_iter().flat_map(|expect| expect.keys()) {
        let clip = match name.as_str() {
            "l" => Clip::L,
            "g" => Clip::G,
            "h" => Clip::H,
            other => return Err(anyhow!("an encoder `{other}`").into()),
        };
        let tokens = tokens_of(&text, clip, embeddings.as_ref().map(|folder| folder as _))?;
        let chunks = tokens.chunks.iter().map(|chunk| chunk.iter().map(row).collect());
        got = got.value(name, chunks.collect::<Vec<Value>>());
    }
    Ok(got)
}

/// A token as cases record it: its id or the row of an embedding, its weight, and its word.
fn row(token: &Weighted) -> Value {
    let what = match &token.token {
        Token::Id(id) => json!(id),
        Token::Vector { embedding, row } => {
            let name = embedding.name.trim_end_matches(".safetensors");
            json!({"embedding": name, "key": embedding.tensor, "row": row})
        }
    };
    let weight = if token.weight.is_finite() { json!(token.weight) } else { json!(token.weight.to_string()) };
    json!([what, weight, token.word])
}

/// The text encoders of a case's model.
fn encoder(case: &Case) -> Result<Arc<TextEncoder>, Failure> {
    Ok(model(case)?.text.context("the model has no text encoder")?)
}

fn tensor(x: &DeviceTensor) -> Result<Tensor, Failure> {
    let numbers = x.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(ModelError::from)?;
    Ok(Tensor::floats(x.dims(), numbers))
}

fn conditioning(encoded: &Encoded) -> Answer {
    Ok(Got::default().tensor("cond", tensor(&encoded.cond)?).tensor("cond_pooled", tensor(&encoded.pooled)?))
}

pub fn clip_encode(case: &Case, _: &Tensors) -> Answer {
    let embeddings = embeddings(case)?;
    let options = Options {
        stop_at_clip_layer: case.param_if_any("stop_at_clip_layer")?,
        embeddings: embeddings.as_ref().map(|folder| folder as _),
        ..Options::default()
    };
    conditioning(&encoder(case)?.encode(&case.param::<String>("text")?, &options)?)
}

pub fn clip_encode_sdxl(case: &Case, _: &Tensors) -> Answer {
    let [l, g] = ["text_l", "text_g"].map(|name| case.param::<String>(name));
    conditioning(&encoder(case)?.encode_each(&l?, &g?, &Options::default())?)
}

pub fn size_embedding(case: &Case, tensors: &Tensors) -> Answer {
    let pooled = case.input(tensors, "pooled")?;
    let pooled = DeviceTensor::from_vec(pooled.data.clone(), pooled.shape.as_slice(), &Device::Cpu);
    let pooled = pooled.map_err(ModelError::from)?;
    let number = |name: &str, default: f64| Ok::<_, Failure>(case.param_if_any(name)?.unwrap_or(default));
    let (height, width): (f64, f64) = (case.param("height")?, case.param("width")?);
    let (crop_h, crop_w) = (number("crop_h", 0.0)?, number("crop_w", 0.0)?);
    let y = if case.get("model") == "sdxl_refiner" {
        let is_negative = case.param::<String>("prompt_type")? == "negative";
        let usual = if is_negative { AESTHETIC_NEGATIVE } else { AESTHETIC_POSITIVE };
        let aesthetic_score = number("aesthetic_score", usual)?;
        RefinerSize { crop_h, crop_w, ..RefinerSize::whole(height, width, aesthetic_score) }.behind(&pooled)?
    } else {
        let (target_height, target_width) = (number("target_height", height)?, number("target_width", width)?);
        SdxlSize { height, width, crop_h, crop_w, target_height, target_width }.behind(&pooled)?
    };
    Ok(Got::default().tensor("y", tensor(&y)?))
}

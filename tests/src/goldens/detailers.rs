//! The nodes of the `detailers` form.
//!
//! Their models are listed in `models.json`, names and shapes alone: [`checkpoint`] computes the weights.

use std::collections::BTreeMap;

use anyhow::Context;
use models::error::ModelError;
use serde::Deserialize;
use weights::{
    checkpoint::Checkpoint,
    synthetic::{self, Fill},
};

use super::{
    Answer, Failure, Got,
    cases::{Case, Tensors},
    networks,
    pixels::{Op, frames_tensor, to_frames},
};

/// Every node that can be replayed.
pub const NODES: &[(&str, Op)] = &[("ImageUpscaleWithModel", image_upscale_with_model)];

/// The checkpoint of the model that a case calls `key`.
fn checkpoint(case: &Case, key: &str) -> Result<Checkpoint, Failure> {
    #[derive(Deserialize)]
    struct Model {
        tensors: BTreeMap<String, Vec<usize>>,
        overrides: BTreeMap<String, Override>,
    }
    /// Makes `value * mul + add` of the synthetic values of a tensor.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Override {
        #[serde(default = "one")]
        mul: f32,
        #[serde(default)]
        add: f32,
    }
    fn one() -> f32 {
        1.0
    }
    let Model { tensors, mut overrides } =
        Model::deserialize(case.model(key)?).with_context(|| format!("the model of `{key}`"))?;
    let entry = |(name, shape): (String, Vec<usize>)| {
        let fill = match overrides.remove(&name) {
            Some(Override { mul, add }) => {
                Fill::Given(synthetic::tensor(&name, &shape).iter().map(|value| value * mul + add).collect())
            }
            None => Fill::Synthetic,
        };
        (name, shape, fill)
    };
    let entries: Vec<_> = tensors.into_iter().map(entry).collect();
    if let Some(name) = overrides.keys().next() {
        return Err(Failure::Broken(format!("the model of `{key}` has no tensor `{name}` to override")));
    }
    Ok(Checkpoint::from_bytes(synthetic::safetensors(&entries)).map_err(ModelError::from)?)
}

fn image_upscale_with_model(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    let network = networks::open(&checkpoint(case, "upscale_model")?)?;
    Ok(Got::default().tensor("image", frames_tensor(&networks::upscale(&network, &picture)?)))
}

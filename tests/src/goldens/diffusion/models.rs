//! The checkpoints of `models.json`: all tensors are computed from their names.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Deserialize;
use weights::{
    checkpoint::Checkpoint,
    synthetic::{self, Fill},
};

use crate::goldens::{Failure, cases::Case};

#[derive(Deserialize)]
struct Model {
    metadata: BTreeMap<String, String>,
    /// By what the values of some tensors are multiplied.
    extra_scale: BTreeMap<String, f32>,
    tensors: BTreeMap<String, Vec<usize>>,
}

/// The checkpoint that a case calls its model.
pub fn checkpoint(case: &Case) -> Result<Checkpoint, Failure> {
    let model: Model = serde_json::from_value(case.model("model")?.clone()).context("models.json")?;
    let entry = |(name, shape): (String, Vec<usize>)| {
        let fill = match model.extra_scale.get(&name) {
            None => Fill::Synthetic,
            Some(scale) => Fill::Given(synthetic::tensor(&name, &shape).iter().map(|x| x * scale).collect()),
        };
        (name, shape, fill)
    };
    let entries: Vec<_> = model.tensors.into_iter().map(entry).collect();
    Ok(Checkpoint::from_bytes(synthetic::with_metadata(&entries, model.metadata)).context("the model of the case")?)
}

//! The checkpoints of `models.json`: all tensors are computed from their names.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{LazyLock, Mutex, PoisonError},
};

use anyhow::{Context as _, anyhow};
use models::{
    diffusion::model::{File, LoadError, Model, ModelFiles},
    ops::Backend,
    processor::{CpuLevel, Precision},
    upscale::Cpu,
};
use serde::Deserialize;
use weights::{
    checkpoint::Checkpoint,
    synthetic::{self, Fill},
};

use crate::goldens::{Failure, cases::Case};

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        anyhow!(error).into()
    }
}

/// The exact numbers of the best kernels of this CPU.
pub fn backend() -> Backend {
    Backend::Kernels(Cpu { level: CpuLevel::detect(), precision: Precision::Exact })
}

#[derive(Deserialize)]
struct Listed {
    metadata: BTreeMap<String, String>,
    /// By what the values of some tensors are multiplied.
    extra_scale: BTreeMap<String, f32>,
    tensors: BTreeMap<String, Vec<usize>>,
}

/// The checkpoint that a case calls its model.
pub fn checkpoint(case: &Case) -> Result<Checkpoint, Failure> {
    checkpoint_named(case, case.get("model").as_str().context("the case has no model")?)
}

/// A checkpoint of the set that a case belongs to.
pub fn checkpoint_named(case: &Case, name: &str) -> Result<Checkpoint, Failure> {
    let model: Listed = serde_json::from_value(case.model_named(name)?.clone()).context("models.json")?;
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

/// The model of a case.
pub fn model(case: &Case) -> Result<Model, Failure> {
    model_named(case, case.get("model").as_str().context("the case has no model")?)
}

/// A model of the set that a case belongs to, which is loaded once.
pub fn model_named(case: &Case, name: &str) -> Result<Model, Failure> {
    static LOADED: LazyLock<Mutex<HashMap<String, Model>>> = LazyLock::new(Mutex::default);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{} {name}", case.folder().display());
    if let Some(model) = loaded.get(&key) {
        return Ok(model.clone());
    }
    let checkpoint = checkpoint_named(case, name)?;
    let model = Model::load(&ModelFiles::single(File::new(name, checkpoint)), &backend())?;
    loaded.insert(key, model.clone());
    Ok(model)
}

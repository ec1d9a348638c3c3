//! LoRAs: small changes of a model's weights, made as the weights are loaded.
//!
//! Several change a weight one after the other, in f32, before it becomes what the device computes with. The arithmetic is in
//! `methods`.

mod methods;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use candle_core::Tensor;
use weights::{
    detect::diffusion::Family,
    lora::{
        Lora, Method, Module,
        targets::{Part, Target, Targets},
    },
};

use super::file::File;
use crate::{
    error::{ModelError, Result},
    layers::{self, Patch},
};
use methods::Source;

/// A LoRA, and how strongly it is to be applied.
#[derive(Debug, Clone)]
pub struct LoraFile {
    /// The file.
    pub file: File,
    /// How strongly it changes the network: 1 as it was trained, negative for the opposite.
    pub strength_model: f64,
    /// How strongly it changes the text encoders.
    pub strength_clip: f64,
}

/// Why a LoRA cannot be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// A strength is no finite number.
    #[error("LoRA {lora} has {field} {value}, which is no finite number")]
    Strength {
        /// The LoRA, as it was called.
        lora: String,
        /// The strength's name.
        field: &'static str,
        /// The strength.
        value: f64,
    },
    /// The file is no LoRA.
    #[error("{lora} is no LoRA: none of its tensors changes a weight, such as `{tensor}`")]
    NoLora {
        /// The file, as it was called.
        lora: String,
        /// Its first tensor.
        tensor: String,
    },
    /// The LoRA was trained on another model.
    #[error("LoRA {lora} {}, but the model is one of {family}: module `{module}` {}", Guess(.found), Unfit(.sides))]
    Family {
        /// The LoRA, as it was called.
        lora: String,
        /// What it was trained on, if it can be told.
        found: Option<Family>,
        /// The family of the model.
        family: Family,
        /// A module that does not fit, as the file calls it.
        module: String,
        /// The shape of the weight, and the outputs and inputs that the module is for; none where there is no such weight.
        sides: Option<(Vec<usize>, [usize; 2])>,
    },
}

struct Guess<'a>(&'a Option<Family>);

impl fmt::Display for Guess<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(family) => write!(f, "was trained on {family}"),
            None => f.write_str("was trained on another model"),
        }
    }
}

struct Unfit<'a>(&'a Option<(Vec<usize>, [usize; 2])>);

impl fmt::Display for Unfit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("belongs to no weight"),
            Some((shape, [outputs, inputs])) => {
                write!(f, "is for {outputs} outputs of {inputs} inputs, where the weight has shape {shape:?}")
            }
        }
    }
}

/// Tensors of a LoRA that change nothing of the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} tensors of LoRA {lora} change nothing of this model, such as `{}`", .tensors.len(), .tensors[0])]
pub struct Unused {
    /// The LoRA, as it was called.
    pub lora: String,
    /// The tensors, at least one.
    pub tensors: Vec<String>,
}

/// What LoRAs change of a model's weights.
#[derive(Debug)]
pub(super) struct Patches<'a> {
    changes: HashMap<Target, Vec<Change<'a>>>,
    pub(super) unused: Vec<Unused>,
}

#[derive(Debug)]
struct Change<'a> {
    file: &'a File,
    /// The file's name for the module.
    name: String,
    strength: f64,
    what: What,
}

#[derive(Debug)]
enum What {
    Weight(Method, Module),
    /// The tensor that is added.
    Bias(String),
}

impl<'a> Patches<'a> {
    /// Finds the weights of a model of `family` that LoRAs change. None of their values is read.
    ///
    /// # Errors
    /// If a file is no LoRA or belongs to another family, or a strength is no number.
    pub(super) fn new(
        loras: &'a [LoraFile],
        targets: &Targets,
        family: Family,
    ) -> std::result::Result<Self, LoraError> {
        let mut all = Self { changes: HashMap::new(), unused: Vec::new() };
        for lora in loras {
            for (field, value) in [("strength_model", lora.strength_model), ("strength_clip", lora.strength_clip)] {
                if !value.is_finite() {
                    return Err(LoraError::Strength { lora: lora.file.to_string(), field, value });
                }
            }
            if lora.strength_model != 0.0 || lora.strength_clip != 0.0 {
                all.add(lora, targets, family)?;
            }
        }
        Ok(all)
    }

    fn add(&mut self, lora: &'a LoraFile, targets: &Targets, family: Family) -> std::result::Result<(), LoraError> {
        let (file, name) = (&lora.file, lora.file.to_string());
        let Lora { modules, .. } = Lora::read(&file.checkpoint);
        let Some(first) = modules.keys().next().cloned() else {
            let tensor = file.checkpoint.tensors().keys().next().cloned().unwrap_or_default();
            return Err(LoraError::NoLora { lora: name, tensor });
        };
        let found = || Lora::read(&file.checkpoint).family(file.checkpoint.metadata());
        let mut unused: BTreeSet<String> = file.checkpoint.tensors().keys().cloned().collect();
        let mut is_used = false;
        for (module_name, module) in modules {
            let Some(target) = targets.find(&module_name) else { continue };
            if let Some(shape) = targets.shape(target)
                && !module.fits(shape)
            {
                let sides = Some((shape.to_vec(), module.sides().unwrap_or_default()));
                return Err(LoraError::Family { lora: name, found: found(), family, module: module_name, sides });
            }
            is_used = true;
            module.tensors.values().for_each(|tensor| {
                unused.remove(tensor);
            });
            let strength = if target.part == Part::Unet { lora.strength_model } else { lora.strength_clip };
            let mut change = |tensor: String, what: What| {
                let target = Target { part: target.part, tensor };
                let change = Change { file, name: module_name.clone(), strength, what };
                self.changes.entry(target).or_default().push(change);
            };
            if let (Some(bias), Some(layer)) = (module.bias(), target.tensor.strip_suffix(".weight")) {
                change(format!("{layer}.bias"), What::Bias(bias.to_owned()));
            }
            if let Some(method) = module.method() {
                change(target.tensor.clone(), What::Weight(method, module));
            }
        }
        if !is_used {
            return Err(LoraError::Family { lora: name, found: found(), family, module: first, sides: None });
        }
        if !unused.is_empty() {
            self.unused.push(Unused { lora: name, tensors: unused.into_iter().collect() });
        }
        Ok(())
    }

    /// Says whether anything of these parts changes.
    pub(super) fn change(&self, parts: &[Part]) -> bool {
        self.changes.keys().any(|target| parts.contains(&target.part))
    }

    /// What changes a part.
    pub(super) fn of(&self, part: Part) -> PartPatches<'_> {
        PartPatches { patches: self, part }
    }
}

/// What LoRAs change of one part.
#[derive(Clone, Copy)]
pub(super) struct PartPatches<'a> {
    patches: &'a Patches<'a>,
    part: Part,
}

impl Patch for PartPatches<'_> {
    fn patched(&self, name: &str, weight: Tensor) -> Result<Tensor> {
        let target = Target { part: self.part, tensor: name.to_owned() };
        let mut weight = weight;
        for change in self.patches.changes.get(&target).into_iter().flatten() {
            let refused = |source: Option<ModelError>| ModelError::Lora {
                lora: change.file.name.clone(),
                module: change.name.clone(),
                tensor: name.to_owned(),
                shape: weight.dims().to_vec(),
                source: source.map(Box::new),
            };
            let changed = change.apply(&weight).map_err(|error| match error {
                fatal @ (ModelError::OutOfMemory(_) | ModelError::NotFinite { .. }) => fatal,
                error => refused(Some(error)),
            })?;
            if changed.dims() != weight.dims() {
                return Err(refused(None));
            }
            weight = changed;
        }
        Ok(weight)
    }
}

impl Change<'_> {
    /// Changes a weight, f32.
    fn apply(&self, weight: &Tensor) -> Result<Tensor> {
        let read = &self.file.checkpoint;
        match &self.what {
            What::Bias(_) | What::Weight(..) if self.is_idle() => Ok(weight.clone()),
            What::Bias(tensor) => Ok((weight + (layers::tensor(read, tensor)? * self.strength)?)?),
            What::Weight(method, module) => methods::apply(*method, &Source { read, module }, weight, self.strength),
        }
    }

    /// Whether it changes nothing. A replacement has no strength in the reference.
    fn is_idle(&self) -> bool {
        self.strength == 0.0 && !matches!(self.what, What::Weight(Method::Replacement, _))
    }
}

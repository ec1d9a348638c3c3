//! Reading cases: the three forms of `cases.json`, and the tensors beside it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::compare::Tolerance;

/// Which document describes a set of cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Pixel operations and upscaling networks.
    Pixels,
    /// Samplers, text encoders, VAEs and their parts.
    Diffusion,
    /// The SEGS nodes from end to end.
    Detailers,
}

/// One recorded case.
#[derive(Debug, Clone)]
pub struct Case {
    /// How it is written down.
    pub form: Form,
    /// Its operation or node.
    pub group: String,
    /// Its name, unique within the set.
    pub name: String,
    /// The folder of its set.
    folder: Arc<Path>,
    /// All that `cases.json` says of it.
    body: Value,
}

/// An output that a case wants.
#[derive(Debug)]
pub struct Output {
    /// What the case calls it.
    pub name: String,
    /// The tensor that holds it.
    pub tensor: String,
}

/// A tensor in memory. Bytes and whole numbers are held as floats too, which they fit exactly here.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The sides, outermost first.
    pub shape: Vec<usize>,
    /// The values, row by row.
    pub data: Vec<f32>,
    /// Whether the values were stored as bytes: pixels of `k / 255`, or masks of 0 and 1.
    pub is_bytes: bool,
}

impl Tensor {
    /// A tensor of floats.
    pub fn floats(shape: &[usize], data: Vec<f32>) -> Self {
        Self { shape: shape.to_vec(), data, is_bytes: false }
    }

    /// A tensor of bytes.
    pub fn bytes(shape: &[usize], data: &[u8]) -> Self {
        let data = data.iter().map(|&byte| f32::from(byte)).collect();
        Self { shape: shape.to_vec(), data, is_bytes: true }
    }
}

/// Reads the cases of a set.
pub fn read(folder: &Path) -> anyhow::Result<Vec<Case>> {
    let file: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json"))?)?;
    let bodies = file["cases"].as_array().context("`cases` is not a list")?;
    let form = match bodies.first() {
        Some(body) if body.get("node").is_some() => Form::Detailers,
        Some(_) if file.get("conventions").is_some() => Form::Pixels,
        _ => Form::Diffusion,
    };
    let folder: Arc<Path> = folder.into();
    let case = |body: &Value| {
        let text = |key: &str| body[key].as_str().map(str::to_owned).with_context(|| format!("a case lacks `{key}`"));
        let group = text(if form == Form::Detailers { "node" } else { "op" })?;
        Ok(Case { form, group, name: text("name")?, folder: folder.clone(), body: body.clone() })
    };
    bodies.iter().map(case).collect()
}

impl Case {
    /// Something that `cases.json` says of it, or null.
    pub fn get(&self, key: &str) -> &Value {
        &self.body[key]
    }

    /// A parameter of any type.
    pub fn param<T: DeserializeOwned>(&self, key: &str) -> anyhow::Result<T> {
        let value = self.body["params"].get(key).with_context(|| format!("the case has no parameter `{key}`"))?;
        serde_json::from_value(value.clone()).with_context(|| format!("parameter `{key}` is {value}"))
    }

    /// A parameter that may be absent or null.
    pub fn param_if_any<T: DeserializeOwned>(&self, key: &str) -> anyhow::Result<Option<T>> {
        match self.body["params"].get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.param(key).map(Some),
        }
    }

    /// The tensors it names. A case that names none needs no file.
    pub fn tensors(&self) -> anyhow::Result<Tensors> {
        let path = match self.body["file"].as_str() {
            Some(file) => self.folder.join(file),
            None => return Ok(Tensors::default()),
        };
        let names_any =
            ["inputs", "outputs"].iter().any(|key| self.body[key].as_object().is_some_and(|o| !o.is_empty()));
        if !path.exists() && !names_any {
            return Ok(Tensors::default());
        }
        Tensors::read(path)
    }

    /// What is to be compared, of the forms whose outputs are tensors by name.
    pub fn outputs(&self) -> Vec<Output> {
        let outputs = self.body["outputs"].as_object().into_iter().flatten();
        let output = |(name, value): (&String, &Value)| {
            // Pixels: {"tensor": name, ...}; diffusion: the name itself.
            let tensor = value.as_str().or_else(|| value["tensor"].as_str())?;
            Some(Output { name: name.clone(), tensor: tensor.to_owned() })
        };
        outputs.filter_map(output).collect()
    }

    /// How close an output must be.
    pub fn tolerance(&self, output: &str) -> Tolerance {
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        match self.form {
            Form::Pixels => Tolerance { atol: number(&self.body["tolerance"][output]["max_abs"]), rtol: 0.0 },
            Form::Diffusion | Form::Detailers => {
                Tolerance { atol: number(&self.body["atol"]), rtol: number(&self.body["rtol"]) }
            }
        }
    }

    /// What is expected besides tensors.
    pub fn expected(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.body["expect"].as_object().into_iter().flatten()
    }

    /// Whether the reference failed here, so that a refusal is the right answer.
    pub fn expects_refusal(&self) -> bool {
        self.body.get("expect_error").is_some_and(|error| !error.is_null() && *error != Value::Bool(false))
            || self.body["expect"].get("error").is_some()
    }

    /// Whether the reference gave NaN, in place of which we may refuse.
    pub fn expects_nan(&self, tensors: &Tensors) -> bool {
        let mut outputs = self.outputs().into_iter().filter_map(|output| tensors.get(&output.tensor).ok());
        outputs.any(|tensor| tensor.data.iter().any(|x| x.is_nan()))
    }

    /// The input called `name`.
    pub fn input<'t>(&self, tensors: &'t Tensors, name: &str) -> anyhow::Result<&'t Tensor> {
        let value = &self.body["inputs"][name];
        let tensor = value.as_str().or_else(|| value["tensor"].as_str());
        tensors.get(tensor.with_context(|| format!("the case has no input `{name}`"))?)
    }

    /// Whether it has an input called `name`.
    pub fn has_input(&self, name: &str) -> bool {
        self.body["inputs"].get(name).is_some()
    }
}

/// The tensors of one file.
#[derive(Debug, Default)]
pub struct Tensors {
    path: PathBuf,
    by_name: BTreeMap<String, Tensor>,
}

impl Tensors {
    fn read(path: PathBuf) -> anyhow::Result<Self> {
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = SafeTensors::deserialize(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
        let mut by_name = BTreeMap::new();
        for (name, view) in file.iter() {
            let data = view.data();
            let data = match view.dtype() {
                Dtype::U8 | Dtype::BOOL => data.iter().map(|&byte| f32::from(byte)).collect(),
                Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
                Dtype::I64 => {
                    let number = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("chunks of 8 bytes"));
                    data.chunks_exact(8).map(|b| number(b) as f32).collect()
                }
                other => bail!("tensor `{name}` of {} has dtype {other:?}", path.display()),
            };
            let is_bytes = view.dtype() == Dtype::U8;
            by_name.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), data, is_bytes });
        }
        Ok(Self { path, by_name })
    }

    /// The tensor called `name` in the file.
    pub fn get(&self, name: &str) -> anyhow::Result<&Tensor> {
        self.by_name.get(name).with_context(|| format!("{} has no tensor `{name}`", self.path.display()))
    }
}

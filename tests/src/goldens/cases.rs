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

/// How the cases of a set are written down.
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
    /// What it shares with the other cases of its set.
    set: Arc<Set>,
    /// All that `cases.json` says of it.
    body: Value,
}

/// What the cases of a set share.
#[derive(Debug, Default)]
struct Set {
    folder: PathBuf,
    /// The tensors that cases call `inputs:NAME`, of the detailers form.
    inputs: Tensors,
    /// Encoded prompts, `NAME.tokens` and `NAME.pooled`, of the detailers form.
    conds: Tensors,
    /// `models.json`, of all but the pixels form.
    models: Value,
}

/// An output that a case wants.
#[derive(Debug, PartialEq)]
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
    let mut set = Set { folder: folder.to_owned(), ..Set::default() };
    if form == Form::Detailers {
        set.inputs = Tensors::read(folder.join("inputs.safetensors"))?;
        set.conds = Tensors::read(folder.join("conds.safetensors"))?;
    }
    if form != Form::Pixels {
        set.models = serde_json::from_slice(&std::fs::read(folder.join("models.json"))?)?;
    }
    let set = Arc::new(set);
    let case = |body: &Value| {
        let text = |key: &str| body[key].as_str().map(str::to_owned).with_context(|| format!("a case lacks `{key}`"));
        let group = text(if form == Form::Detailers { "node" } else { "op" })?;
        Ok(Case { form, group, name: text("name")?, set: set.clone(), body: body.clone() })
    };
    bodies.iter().map(case).collect()
}

impl Case {
    /// The folder that holds its set, and the files that it names.
    pub fn folder(&self) -> &Path {
        &self.set.folder
    }

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
            Some(file) => self.set.folder.join(file),
            None => return Ok(Tensors::default()),
        };
        let names_any =
            ["inputs", "outputs"].iter().any(|key| self.body[key].as_object().is_some_and(|o| !o.is_empty()));
        if !path.exists() && !names_any {
            return Ok(Tensors::default());
        }
        Tensors::read(path)
    }

    /// What `models.json` says of the model that the case calls `key`.
    pub fn model(&self, key: &str) -> anyhow::Result<&Value> {
        self.model_named(self.body[key].as_str().with_context(|| format!("the case has no model `{key}`"))?)
    }

    /// What `models.json` says of the model of a name.
    pub fn model_named(&self, name: &str) -> anyhow::Result<&Value> {
        self.set.models["models"].get(name).with_context(|| format!("models.json has no model `{name}`"))
    }

    /// The tensors that are to be compared.
    ///
    /// Outputs of the detailers form may nest; each of their tensors is named by its path, `segs.items.0.cropped_mask`.
    pub fn outputs(&self) -> Vec<Output> {
        if self.form == Form::Detailers {
            let leaves = self.leaves().into_iter();
            let output =
                |(name, value): (String, &Value)| Some(Output { name, tensor: tensor_name(value)?.to_owned() });
            return leaves.filter_map(output).collect();
        }
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
            Form::Pixels => {
                let atol = number(&self.body["tolerance"][output]["max_abs"]);
                Tolerance { atol, rtol: 0.0, rms: None, is_bytes: true }
            }
            Form::Diffusion => {
                let (atol, rtol) = (number(&self.body["atol"]), number(&self.body["rtol"]));
                Tolerance { atol, rtol, rms: None, is_bytes: false }
            }
            Form::Detailers => {
                let kind = match output {
                    "latent" | "hidden" => "latent",
                    _ if is_traced(output) => "step",
                    _ => "image",
                };
                // A fragile case is replayed in such a way that it is as close as others, and has no bounds of its own.
                let usual = |of: &str| match (kind, of) {
                    ("image", "max_abs") => 4.0 / 255.0,
                    ("image", _) => 1.0 / 255.0,
                    (_, "max_abs") => 1e-2,
                    _ => 2e-3,
                };
                let bounds = &self.body["tolerance"];
                let bound = |of: &str| bounds[format!("{kind}_{of}")].as_f64();
                let bound = |of: &str| if bounds.is_null() { usual(of) } else { bound(of).unwrap_or(0.0) };
                Tolerance { atol: bound("max_abs"), rtol: 0.0, rms: Some(bound("rms")), is_bytes: false }
            }
        }
    }

    /// What is expected besides tensors, by name as in [`Self::outputs`]; the rows of a list by their numbers.
    pub fn expected(&self) -> Vec<(String, &Value)> {
        if self.form == Form::Detailers {
            return self.leaves().into_iter().filter(|(_, value)| tensor_name(value).is_none()).collect();
        }
        match &self.body["expect"] {
            Value::Array(rows) => rows.iter().enumerate().map(|(i, row)| (i.to_string(), row)).collect(),
            expect => expect.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value)).collect(),
        }
    }

    /// The outputs of the detailers form taken apart into tensors and whatever holds none, each with its path.
    fn leaves(&self) -> Vec<(String, &Value)> {
        let mut found = Vec::new();
        let outputs = self.body["outputs"].as_object().into_iter().flatten();
        outputs.for_each(|(name, value)| put_leaves(name.clone(), value, &mut found));
        found
    }

    /// Whether the reference failed here, so that a refusal is the right answer.
    pub fn expects_refusal(&self) -> bool {
        self.body.get("expect_error").is_some_and(|error| !error.is_null() && *error != Value::Bool(false))
            || self.body["expect"].get("error").is_some()
    }

    /// Whether the reference gave NaN, in place of which we may refuse.
    pub fn expects_nan(&self, tensors: &Tensors) -> bool {
        let mut outputs = self.outputs().into_iter().filter_map(|output| self.tensor(tensors, &output.tensor).ok());
        outputs.any(|tensor| tensor.data.iter().any(|x| x.is_nan()))
    }

    /// The input called `name`.
    pub fn input<'t>(&'t self, tensors: &'t Tensors, name: &str) -> anyhow::Result<&'t Tensor> {
        let value = match self.form {
            Form::Pixels | Form::Diffusion => &self.body["inputs"][name],
            Form::Detailers => &self.body[name],
        };
        let tensor = value.as_str().or_else(|| value["tensor"].as_str());
        self.tensor(tensors, tensor.with_context(|| format!("the case has no input `{name}`"))?)
    }

    /// The tensor that the case calls `name`: one of its own file, or one that its set shares.
    pub fn tensor<'t>(&'t self, tensors: &'t Tensors, name: &str) -> anyhow::Result<&'t Tensor> {
        match name.strip_prefix(SHARED) {
            Some(name) => self.set.inputs.get(name),
            None => tensors.get(name),
        }
    }

    /// A tensor of an encoded prompt that its set shares.
    pub fn cond(&self, name: &str) -> anyhow::Result<&Tensor> {
        self.set.conds.get(name)
    }

    /// Whether it has an input called `name`.
    pub fn has_input(&self, name: &str) -> bool {
        self.body["inputs"].get(name).is_some()
    }
}

/// Whether a tensor of the detailers form was recorded inside of a sampling run: `run0.x.1`.
pub fn is_traced(name: &str) -> bool {
    name.strip_prefix("run").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Begins the name of a tensor that the cases of a set share.
const SHARED: &str = "inputs:";

/// The tensor that an output of the detailers form names, if it is one.
fn tensor_name(value: &Value) -> Option<&str> {
    value.as_str().filter(|name| ["in.", "out.", SHARED].iter().any(|prefix| name.starts_with(prefix)))
}

fn holds_tensor(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(holds_tensor),
        Value::Object(fields) => fields.values().any(holds_tensor),
        _ => tensor_name(value).is_some(),
    }
}

fn put_leaves<'v>(path: String, value: &'v Value, found: &mut Vec<(String, &'v Value)>) {
    match value {
        Value::Array(items) if holds_tensor(value) => {
            items.iter().enumerate().for_each(|(i, item)| put_leaves(format!("{path}.{i}"), item, found));
        }
        Value::Object(fields) if holds_tensor(value) => {
            fields.iter().for_each(|(name, field)| put_leaves(format!("{path}.{name}"), field, found));
        }
        _ => found.push((path, value)),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_in_a_nested_output_is_left_out() {
        let outputs = json!({
            "segs": {"shape": [8, 9], "items": [{"label": "face", "bbox": [1, 2, 3, 4], "image": "out.segs.0.image"}]},
            "cnet_images": ["black:64x64"],
            "latent": "out.latent",
        });
        let (group, name, set) = (String::new(), String::new(), Arc::default());
        let case = Case { form: Form::Detailers, group, name, set, body: json!({"outputs": outputs}) };

        let tensor = |name: &str, tensor: &str| Output { name: name.to_owned(), tensor: tensor.to_owned() };
        let images = tensor("segs.items.0.image", "out.segs.0.image");
        assert_eq!(case.outputs(), [tensor("latent", "out.latent"), images]);
        let expected: BTreeMap<_, _> = case.expected().into_iter().map(|(path, value)| (path, value.clone())).collect();
        let want = json!({
            "segs.shape": [8, 9],
            "segs.items.0.label": "face",
            "segs.items.0.bbox": [1, 2, 3, 4],
            "cnet_images": ["black:64x64"],
        });
        assert_eq!(json!(expected), want);
    }
}

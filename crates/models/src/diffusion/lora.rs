//! LoRAs: small changes of a model's weights, made as the weights are loaded.
//!
//! Several change a weight one after the other, in f32, before it becomes what the device computes with. Formulas are those of the
//! papers that [`Method`] names, with the reference's (ComfyUI 0.3.64) habits where it has its own: they stand at each.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use candle_core::{Device, Tensor};
use weights::{
    checkpoint::Checkpoint,
    detect::diffusion::Family,
    lora::{
        Lora, Method, Module, Role,
        targets::{Part, Target, Targets},
    },
};

use super::file::File;
use crate::{
    error::{ModelError, Result},
    layers::{Patch, values},
};

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
            What::Bias(tensor) => Ok((weight + (tensor_of(read, tensor)? * self.strength)?)?),
            What::Weight(method, module) => apply(*method, &Source { read, module }, weight, self.strength),
        }
    }

    /// Whether it changes nothing. A replacement has no strength in the reference.
    fn is_idle(&self) -> bool {
        self.strength == 0.0 && !matches!(self.what, What::Weight(Method::Replacement, _))
    }
}

/// The tensors of a module.
struct Source<'a> {
    read: &'a Checkpoint,
    module: &'a Module,
}

impl Source<'_> {
    fn has(&self, role: Role) -> bool {
        self.module.tensors.contains_key(&role)
    }

    /// Reads a tensor that the method of the module has.
    fn tensor(&self, role: Role) -> Result<Tensor> {
        tensor_of(self.read, &self.module.tensors[&role])
    }

    /// Reads a tensor as a matrix: a row for each of its first side.
    fn matrix(&self, role: Role) -> Result<Tensor> {
        let tensor = self.tensor(role)?;
        let rows = tensor.dims().first().copied().unwrap_or(1);
        Ok(tensor.reshape((rows, ()))?)
    }

    /// Reads a tensor, if the module has it.
    fn optional(&self, role: Role) -> Result<Option<Tensor>> {
        self.has(role).then(|| self.tensor(role)).transpose()
    }

    fn alpha(&self) -> Result<Option<f64>> {
        let Some(alpha) = self.optional(Role::Alpha)? else { return Ok(None) };
        Ok(Some(f64::from(alpha.flatten_all()?.get(0)?.to_scalar::<f32>()?)))
    }

    /// The factor of a change of this rank: alpha/rank, or 1 where no alpha or no rank is known.
    fn factor(&self, rank: Option<usize>) -> Result<f64> {
        Ok(match (self.alpha()?, rank) {
            (Some(alpha), Some(rank)) if rank > 0 => alpha / rank as f64,
            _ => 1.0,
        })
    }

    /// A product of two matrices, or of a core with one on either side.
    fn product(&self, core: Role, a: Role, b: Role) -> Result<Tensor> {
        match self.has(core) {
            true => tucker(&self.tensor(core)?, &self.matrix(a)?, &self.matrix(b)?),
            false => Ok(self.matrix(a)?.matmul(&self.matrix(b)?)?),
        }
    }
}

fn tensor_of(read: &Checkpoint, name: &str) -> Result<Tensor> {
    let numbers = values(read, name)?;
    Ok(Tensor::from_vec(numbers, read.tensors()[name].shape.as_slice(), &Device::Cpu)?)
}

fn apply(method: Method, of: &Source<'_>, weight: &Tensor, strength: f64) -> Result<Tensor> {
    let (rows, shape) = (weight.dims().first().copied().unwrap_or(1), weight.shape());
    let flat = weight.reshape((rows, ()))?; // [o, i*k*k]
    let (change, factor) = match method {
        Method::Replacement => return Ok(of.tensor(Role::SetWeight)?),
        Method::Difference => {
            let role = if of.has(Role::Diff) { Role::Diff } else { Role::NormWeight };
            return Ok((weight + (of.tensor(role)? * strength)?)?);
        }
        Method::Lora => {
            let rank = of.module.rank();
            let change = match of.has(Role::Mid) {
                // The convolutions one behind the other: 1x1, k x k between the ranks, 1x1.
                true => tucker(&of.tensor(Role::Mid)?, &of.matrix(Role::Up)?.t()?, &of.matrix(Role::Down)?)?,
                false => of.matrix(Role::Up)?.matmul(&of.matrix(Role::Down)?)?,
            };
            (change, of.factor(rank)?)
        }
        Method::LoHa => {
            let first = of.product(Role::HadaT1, Role::HadaW1A, Role::HadaW1B)?;
            let second = of.product(Role::HadaT2, Role::HadaW2A, Role::HadaW2B)?;
            ((first * second)?, of.factor(of.module.rank())?)
        }
        Method::LoKr => {
            let side = |role: Role| Ok::<_, ModelError>(of.matrix(role)?.dim(0)?);
            let (mut rank, mut factors) = (None, Vec::new());
            let halves = [
                (Role::LokrW1, Role::LokrW1A, Role::LokrW1B, None),
                (Role::LokrW2, Role::LokrW2A, Role::LokrW2B, Some(Role::LokrT2)),
            ];
            for (whole, a, b, core) in halves {
                factors.push(match (of.has(whole), core.filter(|core| of.has(*core))) {
                    (true, _) => of.matrix(whole)?,
                    (false, core) => {
                        rank = Some(side(b)?);
                        core.map_or_else(|| Ok(of.matrix(a)?.matmul(&of.matrix(b)?)?), |core| of.product(core, a, b))?
                    }
                });
            }
            (kronecker(&factors[0], &factors[1])?, of.factor(rank)?)
        }
        Method::GLora => glora(of, weight, &flat)?,
        Method::Oft => (oft(of, &flat, strength)?, 1.0),
        Method::Boft => (boft(of, &flat, strength)?, 1.0),
    };
    let change = change.reshape(shape)?;
    match of.optional(Role::DoraScale)? {
        Some(scale) => dora(&scale, weight, &(change * factor)?, strength),
        None => Ok((weight + (change * (strength * factor))?)?),
    }
}

/// Multiplies a core, [i, j, k, k], by a, [i, p], and b, [j, q]: Σ core[i, j, …] a[i, p] b[j, q], as [p, q*k*k].
fn tucker(core: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (i, j) = (core.dim(0)?, core.dim(1)?);
    let (p, q) = (a.dim(1)?, b.dim(1)?);
    let left = a.t()?.contiguous()?.matmul(&core.reshape((i, ()))?)?.reshape((p, j, ()))?; // [p, j, k*k]
    let places = left.dim(2)?;
    let left = left.transpose(0, 1)?.contiguous()?.reshape((j, p * places))?;
    let both = b.t()?.contiguous()?.matmul(&left)?.reshape((q, p, places))?;
    Ok(both.transpose(0, 1)?.contiguous()?.reshape((p, q * places))?)
}

/// Puts b, [o2, i2], times each number of a, [o1, i1], side by side: [o1*o2, i1*i2]. The places of a kernel may be part of i2.
fn kronecker(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((o1, i1), (o2, i2)) = (a.dims2()?, b.dims2()?);
    Ok(a.reshape((o1, 1, i1, 1))?.broadcast_mul(&b.reshape((1, o2, 1, i2))?)?.reshape((o1 * o2, i1 * i2))?)
}

/// W A₁ A₂ + B₁ B₂ and its factor. Files of older versions have the matrices of each product the other way round.
fn glora(of: &Source<'_>, weight: &Tensor, flat: &Tensor) -> Result<(Tensor, f64)> {
    let [a1, a2, b1, b2] = [Role::GloraA1, Role::GloraA2, Role::GloraB1, Role::GloraB2].map(|role| of.matrix(role));
    let (a1, a2, b1, b2) = (a1?, a2?, b1?, b2?);
    let are_equal = |sides: [usize; 4]| sides.iter().all(|side| *side == sides[0]);
    let is_old = are_equal([b2.dim(1)?, b1.dim(0)?, a1.dim(0)?, a2.dim(1)?]);
    let is_new = are_equal([b2.dim(0)?, b1.dim(1)?, a1.dim(1)?, a2.dim(0)?]);
    // Where all matrices are square, old ones are meant if they are as large as the weight.
    let is_square = weight.dims().first() == weight.dims().get(1) && weight.dim(0)? == a2.dim(0)?;
    if is_old && (!is_new || is_square) {
        let change = (b2.matmul(&b1)? + flat.matmul(&a2)?.matmul(&a1)?)?;
        return Ok((change, of.factor(Some(a1.dim(0)?))?));
    }
    let (o, i) = (weight.dim(0)?, weight.dim(1)?);
    let places = flat.dim(1)? / i.max(1);
    // By channel: [o*k*k, i] A₁ A₂.
    let by_channel = flat.reshape((o, i, places))?.transpose(1, 2)?.contiguous()?.reshape((o * places, i))?;
    let turned = by_channel.matmul(&a1)?.matmul(&a2)?.reshape((o, places, i))?;
    let turned = turned.transpose(1, 2)?.contiguous()?.reshape((o, i * places))?;
    Ok(((turned + b1.matmul(&b2)?)?, of.factor(Some(a2.dim(0)?))?))
}

/// Turns of vectors: (I + Q)(I − Q)⁻¹ of the antisymmetric part Q of each of `blocks`, [.., n, n], as [count, n, n] with numbers
/// in row-major order. The whole of Q is shortened to length `limit` if it is longer and that is above 0.
fn turns(blocks: &Tensor, limit: f64) -> Result<(Vec<f64>, usize)> {
    let n = blocks.dims().last().copied().unwrap_or(0);
    let side = blocks.dims().iter().rev().nth(1).copied();
    if n == 0 || side != Some(n) {
        return Err(candle_core::Error::Msg(format!("blocks {:?} are not square", blocks.shape())).into());
    }
    let numbers: Vec<f64> = blocks.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
    let mut q = vec![0.0; numbers.len()];
    for (block, q) in numbers.chunks_exact(n * n).zip(q.chunks_exact_mut(n * n)) {
        for (at, q) in q.iter_mut().enumerate() {
            *q = block[at] - block[at % n * n + at / n];
        }
    }
    let length = q.iter().map(|x| x * x).sum::<f64>().sqrt() + 1e-8;
    if limit > 0.0 && length > limit {
        q.iter_mut().for_each(|q| *q *= limit / length);
    }
    let mut all = Vec::with_capacity(q.len());
    for q in q.chunks_exact(n * n) {
        let unit = |at: usize| if at / n == at % n { 1.0 } else { 0.0 };
        // R (I − Q) = I + Q, which transposed is (I + Q) Rᵀ = I − Q, as Qᵀ = −Q.
        let left: Vec<f64> = q.iter().enumerate().map(|(at, q)| unit(at) + q).collect();
        let right: Vec<f64> = q.iter().enumerate().map(|(at, q)| unit(at) - q).collect();
        let transposed = solve(left, right, n);
        all.extend((0..n * n).map(|at| transposed[at % n * n + at / n]));
    }
    Ok((all, n))
}

/// Solves left · x = right for x, all [n, n], by elimination with the largest pivot. I + Q is never singular.
fn solve(mut left: Vec<f64>, mut right: Vec<f64>, n: usize) -> Vec<f64> {
    for column in 0..n {
        let size = |row: &usize| left[row * n + column].abs();
        let pivot = (column..n).max_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or(column);
        for at in 0..n {
            left.swap(column * n + at, pivot * n + at);
            right.swap(column * n + at, pivot * n + at);
        }
        let inverse = 1.0 / left[column * n + column];
        for at in 0..n {
            left[column * n + at] *= inverse;
            right[column * n + at] *= inverse;
        }
        for row in (0..n).filter(|row| *row != column) {
            let factor = left[row * n + column];
            if factor != 0.0 {
                for at in 0..n {
                    left[row * n + at] -= factor * left[column * n + at];
                    right[row * n + at] -= factor * right[column * n + at];
                }
            }
        }
    }
    right
}

/// The change by turns of outputs in blocks, [o, i*k*k]. As in the reference the strength shortens it here and once more where it is
/// added, and a `rescale` is passed over.
fn oft(of: &Source<'_>, flat: &Tensor, strength: f64) -> Result<Tensor> {
    let (turns, n) = turns(&of.tensor(Role::OftBlocks)?, of.alpha()?.unwrap_or(0.0))?;
    let count = turns.len() / (n * n);
    // (R − I)ᵀ of each block, as it is applied to columns.
    let part = |at: usize| {
        let (block, row, column) = (at / (n * n), at / n % n, at % n);
        let unit = if row == column { 1.0 } else { 0.0 };
        ((turns[block * n * n + column * n + row] - unit) * strength) as f32
    };
    let turned = Tensor::from_iter((0..turns.len()).map(part), &Device::Cpu)?.reshape((count, n, n))?;
    Ok(turned.matmul(&flat.reshape((count, n, ()))?)?.reshape(flat.shape())?)
}

/// The change by several turns one after the other, each of other outputs together, [o, i*k*k]. As in the reference the strength
/// shortens each turn, and once more the change where it is added.
fn boft(of: &Source<'_>, flat: &Tensor, strength: f64) -> Result<Tensor> {
    let blocks = of.tensor(Role::OftBlocks)?; // [m, o/n, n, n]
    let (turns, n) = turns(&blocks, of.alpha()?.unwrap_or(0.0))?;
    let (stages, count) = (blocks.dim(0)?, blocks.dim(1)?);
    let (o, rest) = flat.dims2()?;
    if n % 2 == 1 || count * n != o || stages >= usize::BITS as usize {
        return Err(candle_core::Error::Msg(format!("blocks {:?} for {o} outputs", blocks.shape())).into());
    }
    let mut x = flat.clone();
    for (stage, turns) in turns.chunks_exact(count * n * n).enumerate() {
        let part = |(at, turn): (usize, &f64)| {
            let unit = if at / n % n == at % n { 1.0 } else { 0.0 };
            (turn * strength + (1.0 - strength) * unit) as f32
        };
        let turn = Tensor::from_iter(turns.iter().enumerate().map(part), &Device::Cpu)?.reshape((count, n, n))?;
        let apart = (1 << stage) * (n / 2);
        let swapped = |x: &Tensor, a: usize, b: usize| -> Result<Tensor> {
            Ok(x.reshape(((), a, b, rest))?.transpose(1, 2)?.contiguous()?.reshape((o, rest))?)
        };
        x = swapped(&x, 2, apart)?;
        x = turn.matmul(&x.reshape((count, n, rest))?)?.reshape((o, rest))?;
        x = swapped(&x, apart, 2)?;
    }
    if let Some(rescale) = of.optional(Role::Rescale)? {
        x = x.broadcast_mul(&rescale.reshape(((), 1))?)?;
    }
    Ok((x - flat)?)
}

/// Gives a changed weight the lengths that were trained (Liu et al. 2024), for each output or for each input.
///
/// As in the reference lengths of outputs are those before the change, and of inputs those behind it.
fn dora(scale: &Tensor, weight: &Tensor, change: &Tensor, strength: f64) -> Result<Tensor> {
    let changed = (weight + change)?;
    let o = weight.dim(0)?;
    let flat = weight.reshape((o, ()))?;
    let i = weight.dims().get(1).copied().unwrap_or(1);
    let by_input = changed.reshape((o, i, ()))?; // [o, i, k*k]
    let scaled = if scale.dims().first() == Some(&o) {
        let lengths = flat.sqr()?.sum_keepdim(1)?.sqrt()?; // [o, 1]
        let factors = (scale.reshape((o, 1))? / (lengths + f64::from(f32::EPSILON))?)?;
        changed.reshape((o, ()))?.broadcast_mul(&factors)?
    } else {
        let lengths = by_input.sqr()?.sum_keepdim((0, 2))?.sqrt()?; // [1, i, 1]
        let factors = (scale.reshape((1, i, 1))? / (lengths + f64::from(f32::EPSILON))?)?;
        by_input.broadcast_mul(&factors)?
    };
    let scaled = scaled.reshape(weight.shape())?;
    match strength == 1.0 {
        true => Ok(scaled),
        false => Ok((weight + ((scaled - weight)? * strength)?)?),
    }
}

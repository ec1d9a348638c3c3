//! How a weight is changed: the formulas of the papers that [`Method`] names, with the reference's (ComfyUI 0.3.64) habits where it
//! has its own, which stand at each.

use candle_core::{Device, Tensor};
use weights::{
    checkpoint::Checkpoint,
    lora::{Method, Module, Role},
};

use crate::{
    diffusion::equations::solve,
    error::{ModelError, Result},
    layers,
};

/// The tensors of a module.
pub(super) struct Source<'a> {
    pub(super) read: &'a Checkpoint,
    pub(super) module: &'a Module,
}

impl Source<'_> {
    fn has(&self, role: Role) -> bool {
        self.module.tensors.contains_key(&role)
    }

    /// Reads a tensor that the method of the module has.
    fn tensor(&self, role: Role) -> Result<Tensor> {
        layers::tensor(self.read, &self.module.tensors[&role])
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

/// Changes a weight, f32, by a method whose tensors `of` has, `strength` times as much as was trained.
pub(super) fn apply(method: Method, of: &Source<'_>, weight: &Tensor, strength: f64) -> Result<Tensor> {
    let (rows, shape) = (weight.dims().first().copied().unwrap_or(1), weight.shape());
    let flat = weight.reshape((rows, ()))?; // [o, i*k*k]
    let (change, factor) = match method {
        Method::Replacement => return of.tensor(Role::SetWeight),
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
        let transposed = solve(left, right, n); // I + Q is never singular
        all.extend((0..n * n).map(|at| transposed[at % n * n + at / n]));
    }
    Ok((all, n))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;
    use weights::{
        lora::Lora,
        synthetic::{self, Fill},
    };

    use super::*;

    /// Changes a weight by the tensors of one module, given by what stands behind its name.
    fn change(weight: (&[usize], &[f32]), tensors: &[(&str, Vec<usize>, Vec<f32>)], strength: f64) -> Vec<f32> {
        let entry = |(name, shape, values): &(&str, Vec<usize>, Vec<f32>)| {
            (format!("x.{name}"), shape.clone(), Fill::Given(values.clone()))
        };
        let bytes = synthetic::safetensors(&tensors.iter().map(entry).collect::<Vec<_>>());
        let checkpoint = Checkpoint::from_bytes(bytes).unwrap();
        let lora = Lora::read(&checkpoint);
        assert!(lora.others.is_empty(), "{:?}", lora.others);
        let module = &lora.modules["x"];
        assert!(module.fits(weight.0), "{:?} for {:?}", module.sides(), weight.0);
        let source = Source { read: &checkpoint, module };
        let weight = Tensor::from_vec(weight.1.to_vec(), weight.0, &Device::Cpu).unwrap();
        let changed = apply(module.method().unwrap(), &source, &weight, strength).unwrap();
        assert_eq!(changed.dims(), weight.dims());
        changed.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn check(what: &str, got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*got) - want).abs() <= 2e-6 * want.abs().max(1.0), "{what}: {got} and {want} at {i}");
        }
    }

    /// Numbers that are the same in each run.
    fn numbers(name: &str, count: usize) -> Vec<f32> {
        synthetic::tensor(&format!("{name}.bias"), &[count]).iter().map(|x| x * 40.0).collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(*x)).collect()
    }

    /// [n, k] times [k, m].
    fn times(a: &[f64], b: &[f64], n: usize, m: usize) -> Vec<f64> {
        let k = a.len() / n;
        let sum = |at: usize| (0..k).map(|i| a[at / m * k + i] * b[i * m + at % m]).sum();
        (0..n * m).map(sum).collect()
    }

    #[test]
    fn every_method_gives_the_weights_that_lycoris_gives() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../../tests/data/lycoris.json")).unwrap();
        let read = |tensor: &Value| -> (Vec<usize>, Vec<f32>) {
            let shape = serde_json::from_value(tensor["shape"].clone()).unwrap();
            (shape, serde_json::from_value(tensor["values"].clone()).unwrap())
        };
        assert_eq!(cases.len(), 22);
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let tensors: BTreeMap<String, Value> = serde_json::from_value(case["tensors"].clone()).unwrap();
            let entries: Vec<_> = tensors
                .iter()
                .map(|(name, tensor)| {
                    let (shape, values) = read(tensor);
                    (name.as_str(), shape, values)
                })
                .collect();
            let ((shape, weight), (_, merged)) = (read(&case["weight"]), read(&case["merged"]));
            let got = change((&shape, &weight), &entries, 1.0);
            assert!(got.iter().zip(&weight).any(|(got, was)| (got - was).abs() > 1e-3), "{name} changes nothing");
            for (got, want) in got.iter().zip(&merged) {
                assert!((got - want).abs() <= 3e-6 * want.abs().max(1.0), "{name}: {got} and {want}");
            }
        }
    }

    #[test]
    fn a_product_is_added_as_often_as_alpha_and_strength_say() {
        let (o, i, r) = (5, 4, 2);
        let (w, up, down) = (numbers("w", o * i), numbers("up", o * r), numbers("down", r * i));
        let product = times(&wide(&up), &wide(&down), o, i);
        let want = |factor: f64| -> Vec<f64> {
            w.iter().zip(&product).map(|(w, change)| f64::from(*w) + factor * change).collect()
        };
        for (up_name, down_name) in [
            ("lora_up.weight", "lora_down.weight"),
            ("lora_B.weight", "lora_A.weight"),
            ("lora_B.default.weight", "lora_A.default.weight"),
            ("lora.up.weight", "lora.down.weight"),
            ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
        ] {
            let pair = [(up_name, vec![o, r], up.clone()), (down_name, vec![r, i], down.clone())];
            check(up_name, &change((&[o, i], &w), &pair, -0.7), &want(-0.7));
            let mut with_alpha = pair.to_vec();
            with_alpha.push(("alpha", vec![], vec![3.0]));
            check(up_name, &change((&[o, i], &w), &with_alpha, 0.5), &want(0.5 * 3.0 / r as f64));
        }
        // The matrices of a linear layer also change a 1 x 1 convolution.
        let pair = [("lora_up.weight", vec![o, r], up.clone()), ("lora_down.weight", vec![r, i], down.clone())];
        check("1x1", &change((&[o, i, 1, 1], &w), &pair, 1.0), &want(1.0));
    }

    #[test]
    fn differences_are_added_and_replacements_replace() {
        let (w, other) = (numbers("w", 6), numbers("other", 6));
        let sum: Vec<f64> = w.iter().zip(&other).map(|(w, x)| f64::from(*w) + 0.3 * f64::from(*x)).collect();
        check("diff", &change((&[2, 3], &w), &[("diff", vec![2, 3], other.clone())], 0.3), &sum);
        check("w_norm", &change((&[6], &w), &[("w_norm", vec![6], other.clone())], 0.3), &sum);
        // The reference takes no notice of the strength.
        check("set", &change((&[2, 3], &w), &[("set_weight", vec![2, 3], other.clone())], 0.3), &wide(&other));
    }

    #[test]
    fn old_files_of_glora_have_their_matrices_the_other_way_round() {
        let (o, i, r) = (5, 4, 2);
        let w = numbers("w", o * i);
        let [a1, a2] = [numbers("a1", r * i), numbers("a2", i * r)];
        let [b1, b2] = [numbers("b1", r * i), numbers("b2", o * r)];
        let tensors = [
            ("a1.weight", vec![r, i], a1.clone()),
            ("a2.weight", vec![i, r], a2.clone()),
            ("b1.weight", vec![r, i], b1.clone()),
            ("b2.weight", vec![o, r], b2.clone()),
        ];
        let turned = times(&times(&wide(&w), &wide(&a2), o, r), &wide(&a1), o, i);
        let added = times(&wide(&b2), &wide(&b1), o, i);
        let want: Vec<f64> = (0..o * i).map(|at| f64::from(w[at]) + 0.4 * (turned[at] + added[at])).collect();
        check("glora", &change((&[o, i], &w), &tensors, 0.4), &want);
    }

    #[test]
    fn lengths_of_outputs_are_those_before_the_change_as_in_the_reference() {
        let (o, i, r, strength) = (3, 4, 1, 0.6);
        let (w, up, down) = (numbers("w", o * i), numbers("up", o * r), numbers("down", r * i));
        let scale: Vec<f32> = numbers("scale", o).iter().map(|x| 1.5 + x).collect();
        let product = times(&wide(&up), &wide(&down), o, i);
        let length = |row: usize| wide(&w[row * i..][..i]).iter().map(|x| x * x).sum::<f64>().sqrt();
        let want: Vec<f64> = (0..o * i)
            .map(|at| {
                let (row, w) = (at / i, f64::from(w[at]));
                let long = (w + product[at] * 2.0) * f64::from(scale[row]) / length(row);
                w + strength * (long - w)
            })
            .collect();
        let tensors = [
            ("lora_up.weight", vec![o, r], up.clone()),
            ("lora_down.weight", vec![r, i], down.clone()),
            ("alpha", vec![], vec![2.0]),
            ("dora_scale", vec![o, 1], scale.clone()),
        ];
        check("dora", &change((&[o, i], &w), &tensors, strength), &want);
    }

    #[test]
    fn a_turn_is_shortened_twice_as_in_the_reference() {
        // Q = [[0, q], [-q, 0]] turns by the angle whose half has the tangent q.
        let (q, strength) = (0.3f64, 0.5);
        let w = numbers("w", 2 * 3);
        let blocks = vec![0.0, q as f32 / 2.0, -q as f32 / 2.0, 0.0];
        let turned = |q: f64, row: usize, column: usize| {
            let (cos, sin) = ((1.0 - q * q) / (1.0 + q * q), 2.0 * q / (1.0 + q * q));
            let [x, y] = [0, 1].map(|row| f64::from(w[row * 3 + column]));
            if row == 0 { cos * x - sin * y } else { sin * x + cos * y }
        };
        let want = |q: f64| -> Vec<f64> {
            let change = |at: usize| turned(q, at / 3, at % 3) - f64::from(w[at]);
            (0..6).map(|at| f64::from(w[at]) + strength * strength * change(at)).collect()
        };
        let blocks = [("oft_blocks", vec![1, 2, 2], blocks)];
        check("oft", &change((&[2, 3], &w), &blocks, strength), &want(q));
        // Q is as long as √2 q, and no longer than alpha.
        let limited = [blocks[0].clone(), ("alpha", vec![], vec![0.2])];
        check("limit", &change((&[2, 3], &w), &limited, strength), &want(0.2 / 2f64.sqrt()));
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_no_panic() {
        let weight = Tensor::zeros((4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let refused = |tensors: &[(&str, Vec<usize>)]| {
            let entries: Vec<_> =
                tensors.iter().map(|(name, shape)| (format!("x.{name}"), shape.clone(), Fill::Synthetic)).collect();
            let checkpoint = Checkpoint::from_bytes(synthetic::safetensors(&entries)).unwrap();
            let lora = Lora::read(&checkpoint);
            let module = &lora.modules["x"];
            let source = Source { read: &checkpoint, module };
            let changed = apply(module.method().unwrap(), &source, &weight, 1.0);
            assert!(changed.is_err(), "{tensors:?} gives {changed:?}");
        };
        refused(&[("lora_up.weight", vec![4, 2]), ("lora_down.weight", vec![3, 4])]);
        refused(&[("lora_up.weight", vec![]), ("lora_down.weight", vec![])]);
        refused(&[("lora_up.weight", vec![4, 2]), ("lora_down.weight", vec![2, 4]), ("lora_mid.weight", vec![2])]);
        refused(&[("oft_blocks", vec![2, 2, 3])]);
        refused(&[("oft_blocks", vec![3, 2, 2])]);
        refused(&[("oft_blocks", vec![70, 2, 2, 2])]);
        refused(&[("oft_blocks", vec![2, 1, 3, 3])]);
        refused(&[("lokr_w1", vec![2, 2]), ("lokr_w2", vec![3, 2])]);
        refused(&[("hada_w1_a", vec![4]), ("hada_w1_b", vec![4]), ("hada_w2_a", vec![4]), ("hada_w2_b", vec![4])]);
        refused(&[("a1.weight", vec![4]), ("a2.weight", vec![4]), ("b1.weight", vec![]), ("b2.weight", vec![4])]);
        refused(&[("diff", vec![4])]);
    }
}

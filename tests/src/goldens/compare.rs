//! When is a result equal to the recorded one?

use std::fmt;

use serde_json::Value;

use super::cases::Tensor;

/// How far a value may be off: `atol + rtol * |want|`, and how far all of them together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// The same for all values.
    pub atol: f64,
    /// In proportion to the value.
    pub rtol: f64,
    /// The root of the mean of the squares, where it is bounded.
    pub rms: Option<f64>,
    /// Whether the values were bytes once, of which one may tip over.
    pub is_bytes: bool,
}

/// Where a byte may tip over and nothing bounds the whole, so many values must be this close all the same: it tells a
/// tipped byte from a wrong rule. What may be off by more is no byte.
const BYTE: f64 = 1.0 / 255.0;
const CLOSE: f64 = 1e-5;
const CLOSE_SHARE: f64 = 0.99;

/// How close a tensor came.
#[derive(Debug, Clone, PartialEq)]
pub struct Closeness {
    /// The output.
    pub output: String,
    /// The largest part of its tolerance that a value used; above 1 it is wrong.
    pub ratio: f64,
    /// How far that value is off.
    off: f64,
    /// How far it might be.
    allowed: f64,
    /// What it is, and what it should be.
    pair: (f32, f32),
    /// Where it is.
    at: Vec<usize>,
    /// Share of values within 1e-5, where that is asked for.
    close_share: Option<f64>,
    /// How far all values are off together, and how far they might be, where that is bounded.
    rms: Option<(f64, f64)>,
}

impl Closeness {
    /// Why the tensor is not equal, or `None` if it is.
    pub fn miss(&self) -> Option<String> {
        if self.ratio > 1.0 {
            return Some(format!("{self}, {} for {}", self.pair.0, self.pair.1));
        }
        if let Some((rms, allowed)) = self.rms.filter(|(rms, allowed)| rms > allowed) {
            return Some(format!("`{}` off by {rms:.2e} of {allowed:.2e} in the root mean square", self.output));
        }
        let share = self.close_share.filter(|share| *share < CLOSE_SHARE)?;
        Some(format!("only {:.2} % of `{}` are within {CLOSE:e}", 100.0 * share, self.output))
    }
}

impl fmt::Display for Closeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, off, allowed, at, .. } = self;
        if *off == 0.0 {
            return write!(f, "`{output}` exact");
        }
        write!(f, "`{output}` off by {off:.2e} of {allowed:.2e} at {at:?}")
    }
}

/// Compares two tensors. Leading sides of 1 do not matter; any other difference of shape is an error.
pub fn tensors(name: &str, got: &Tensor, want: &Tensor, tolerance: &Tolerance) -> Result<Closeness, String> {
    fn core(shape: &[usize]) -> &[usize] {
        &shape[shape.iter().take_while(|&&side| side == 1).count()..]
    }
    if core(&got.shape) != core(&want.shape) || got.data.len() != want.data.len() {
        return Err(format!("`{name}` has shape {:?} instead of {:?}", got.shape, want.shape));
    }
    let (mut worst, mut worst_at, mut close, mut squares) = ((0.0, 0.0, tolerance.atol), 0, 0usize, 0.0);
    for (at, (&got, &want)) in got.data.iter().zip(&want.data).enumerate() {
        let off = match (got.is_nan(), want.is_nan()) {
            (true, true) => 0.0,
            (false, false) if got == want => 0.0,
            (false, false) => f64::from((f64::from(got) - f64::from(want)).abs() as f32),
            _ => f64::INFINITY,
        };
        let allowed = tolerance.atol + tolerance.rtol * f64::from(want.abs());
        let ratio = if off == 0.0 { 0.0 } else { off / allowed };
        close += usize::from(off <= CLOSE);
        squares += off * off;
        if ratio > worst.0 {
            (worst, worst_at) = ((ratio, off, allowed), at);
        }
    }
    let mut rest = worst_at;
    let mut at: Vec<_> = want.shape.iter().rev().map(|&side| (rest % side, rest /= side).0).collect();
    at.reverse();
    let pair = got.data.get(worst_at).copied().zip(want.data.get(worst_at).copied()).unwrap_or_default();
    let count = want.data.len().max(1) as f64;
    let asks_share = tolerance.is_bytes && (BYTE..2.0 * BYTE).contains(&tolerance.atol) && !want.data.is_empty();
    let close_share = asks_share.then(|| close as f64 / count);
    let rms = tolerance.rms.map(|allowed| ((squares / count).sqrt(), allowed));
    let (ratio, off, allowed) = worst;
    Ok(Closeness { output: name.to_owned(), ratio, off, allowed, pair, at, close_share, rms })
}

/// Compares two values, numbers by value; the error names the first difference.
pub fn values(path: &str, got: &Value, want: &Value) -> Result<(), String> {
    match (got, want) {
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => Ok(()),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().try_for_each(|(i, (a, b))| values(&format!("{path}[{i}]"), a, b))
        }
        (Value::Array(a), Value::Array(b)) => Err(format!("`{path}` has {} items instead of {}", a.len(), b.len())),
        (Value::Object(got), Value::Object(want)) => want.iter().try_for_each(|(key, want)| match got.get(key) {
            Some(got) => values(&format!("{path}.{key}"), got, want),
            None => Err(format!("`{path}.{key}` was not computed")),
        }),
        _ if got == want => Ok(()),
        _ => Err(format!("`{path}` is {got} instead of {want}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TIGHT: Tolerance = Tolerance { atol: 1e-6, rtol: 0.0, rms: None, is_bytes: false };

    fn floats(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::floats(shape, data.to_vec())
    }

    #[test]
    fn the_worst_value_is_named_with_its_place() {
        let got = tensors("x", &floats(&[2, 2], &[0.0, 0.0, 0.5, 0.0]), &floats(&[2, 2], &[0.0; 4]), &TIGHT).unwrap();
        let miss = got.miss().unwrap();
        assert_eq!(miss, "`x` off by 5.00e-1 of 1.00e-6 at [1, 0], 0.5 for 0");
    }

    #[test]
    fn a_tipped_byte_passes_and_a_wrong_rule_does_not() {
        let byte = Tolerance { atol: 0.00393, is_bytes: true, ..TIGHT };
        let mut off = vec![0.0; 1000];
        off[..9].fill(0.0039);
        let close = |off: &[f32]| tensors("x", &floats(&[1000], off), &floats(&[1000], &[0.0; 1000]), &byte).unwrap();
        assert_eq!(close(&off).miss(), None);
        off[..11].fill(0.0039);
        assert!(close(&off).miss().unwrap().starts_with("only 98.90 %"));
    }

    #[test]
    fn many_small_misses_do_not_pass_for_one_larger() {
        let both = Tolerance { atol: 0.01, rms: Some(0.001), ..TIGHT };
        let close = |off: &[f32]| tensors("x", &floats(&[1000], off), &floats(&[1000], &[0.0; 1000]), &both).unwrap();
        let mut one = vec![0.0; 1000];
        one[7] = 0.009;
        assert_eq!(close(&one).miss(), None);
        assert_eq!(close(&[0.002; 1000]).miss().unwrap(), "`x` off by 2.00e-3 of 1.00e-3 in the root mean square");
    }

    #[test]
    fn shapes_must_agree_but_for_leading_ones() {
        let (row, column) = (floats(&[1, 1, 3], &[0.0; 3]), floats(&[3, 1], &[0.0; 3]));
        assert!(tensors("x", &row, &floats(&[3], &[0.0; 3]), &TIGHT).is_ok());
        assert!(tensors("x", &row, &column, &TIGHT).is_err());
    }

    #[test]
    fn nan_equals_nothing_but_nan() {
        let (nan, zero) = (floats(&[1], &[f32::NAN]), floats(&[1], &[0.0]));
        assert!(tensors("x", &nan, &zero, &TIGHT).unwrap().miss().is_some());
        assert!(tensors("x", &nan, &nan, &TIGHT).unwrap().miss().is_none());
    }

    #[test]
    fn values_differ_by_their_first_difference() {
        let want = json!({"a": [1, 2.0], "b": null});
        assert_eq!(values("v", &json!({"a": [1.0, 2], "b": null, "c": 1}), &want), Ok(()));
        assert_eq!(values("v", &json!({"a": [1, 3], "b": null}), &want).unwrap_err(), "`v.a[1]` is 3 instead of 2.0");
        assert_eq!(values("v", &json!({"a": [1, 2]}), &want).unwrap_err(), "`v.b` was not computed");
    }
}

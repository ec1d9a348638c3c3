//! Weights computed from tensor names: no file, any size, the same in every language.
//!
//! The rule is the one that the golden cases are made with. A tensor called `name` holds, at flat row-major index `i`
//! counted from 0,
//!
//! ```text
//! key   = fnv1a64(name)
//! z     = splitmix64's output for the state key + (i + 1) * 0x9E3779B97F4A7C15
//! u     = (z >> 40) / 2^24                        in [0, 1), exact in f32
//! value = (2u - 1) * a + b                        in f32
//!
//! rank >= 2                a = sqrt(3 / fan_in), b = 0, fan_in = all sides but the first multiplied
//! rank <= 1, "...weight"   a = 0.1,  b = 1        the scale of a norm
//! rank <= 1, other         a = 0.02, b = 0        a bias
//! ```
//!
//! so that variance is kept through a linear layer. Such a model draws nothing meaningful.

pub mod diffusion;

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};

/// How one tensor of a synthetic file is filled.
#[derive(Debug, Clone, PartialEq)]
pub enum Fill {
    /// By the rule of this module.
    Synthetic,
    /// With `1 + 5 * value`, as the running variance of a batch norm, which must be positive.
    RunningVariance,
    /// With these values, as many as the shape holds: buffers that an architecture computes.
    Given(Vec<f32>),
}

/// One tensor of a synthetic file: its name, its shape and how it is filled.
pub type Entry = (String, Vec<usize>, Fill);

/// Returns the values of the synthetic tensor called `name`, in row-major order.
pub fn tensor(name: &str, shape: &[usize]) -> Vec<f32> {
    let key = fnv1a64(name);
    let (a, b) = match shape {
        [_, sides @ ..] if !sides.is_empty() => {
            let fan_in: usize = sides.iter().product();
            ((3.0 / fan_in as f64).sqrt() as f32, 0.0)
        }
        _ if name.ends_with("weight") => (0.1, 1.0),
        _ => (0.02, 0.0),
    };
    (1..=shape.iter().product::<usize>() as u64)
        .map(|count| {
            let z = splitmix64(key.wrapping_add(count.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            let u = (z >> 40) as f32 / (1u32 << 24) as f32;
            (2.0 * u - 1.0) * a + b
        })
        .collect()
}

/// Returns a whole `.safetensors` file of f32 tensors.
///
/// # Panics
/// If a [`Fill::Given`] does not hold as many values as its shape says.
pub fn safetensors(entries: &[Entry]) -> Vec<u8> {
    with_metadata(entries, BTreeMap::new())
}

/// Returns the file that [`safetensors`] does, with `metadata` in its header.
pub fn with_metadata(entries: &[Entry], metadata: BTreeMap<String, String>) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = entries
        .iter()
        .map(|(name, shape, fill)| {
            let values = match fill {
                Fill::Synthetic => tensor(name, shape),
                Fill::RunningVariance => tensor(name, shape).iter().map(|v| 1.0 + 5.0 * v).collect(),
                Fill::Given(values) => values.clone(),
            };
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        })
        .collect();
    let views: BTreeMap<&str, TensorView<'_>> = entries
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            let view =
                TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor has as many values as its shape");
            (name.as_str(), view)
        })
        .collect();
    let metadata = (!metadata.is_empty()).then(|| metadata.into_iter().collect());
    safetensors::serialize(views, metadata).expect("f32 tensors of known size can be written to memory")
}

/// Returns a `.safetensors` file with a synthetic tensor for each of `tensors`, as [`crate::detect::Layout::tensors`] lists them.
pub fn network(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let fill = |name: &str| match name.ends_with(".running_var") {
        true => Fill::RunningVariance,
        false => Fill::Synthetic,
    };
    let entries: Vec<Entry> = tensors.iter().map(|(name, shape)| (name.clone(), shape.clone(), fill(name))).collect();
    safetensors(&entries)
}

fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

fn splitmix64(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values were computed with numpy by the script that made the golden cases.
    #[test]
    fn values_follow_the_rule_bit_for_bit() {
        let check = |name: &str, shape: &[usize], expected: &[f32]| {
            assert_eq!(&tensor(name, shape)[..expected.len()], expected, "{name}");
        };
        check("body.0.weight", &[4, 3, 3, 3], &[0.19629578, 0.1656555, -0.16141999]);
        check("body.0.bias", &[4], &[-0.004595685, 0.008023594, 0.014735295]);
        check("body.1.weight", &[4], &[1.0123622, 0.94400764, 0.9220344]);
    }
}

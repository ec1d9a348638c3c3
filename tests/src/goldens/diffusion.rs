//! The operations of the `diffusion` form: samplers, noise, text encoders, VAEs.

use super::pixels::Op;

/// Every operation that can be replayed.
pub const OPS: &[(&str, Op)] = &[];

//! The nodes of the `detailers` form.

use super::pixels::Op;

/// Every node that can be replayed.
pub const NODES: &[(&str, Op)] = &[];

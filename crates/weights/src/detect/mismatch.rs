//! How the tensors of a file differ from those of a network.

use std::collections::BTreeMap;
use std::fmt;

use super::Shapes;
use super::parts::{Part, Role};

/// How many names of each kind an error shows.
pub(super) const SHOWN: usize = 3;

/// The tensors by which a file differs from the network that it seems to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// What the network needs and the file lacks.
    pub missing: Vec<String>,
    /// What the file has and the network has no use for.
    pub unexpected: Vec<String>,
    /// What has another shape than the network needs.
    pub misshapen: Vec<Misshapen>,
}

/// A tensor of another shape than the network needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshapen {
    /// Its name.
    pub tensor: String,
    /// The shape that the network needs.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

impl Mismatch {
    /// Holds the tensors of a file against the `parts` of a network.
    pub(super) fn between(parts: Vec<Part>, shapes: &Shapes) -> Self {
        let mut unused: BTreeMap<&str, &Vec<usize>> = shapes.iter().map(|(name, shape)| (&**name, shape)).collect();
        let mut mismatch = Self::default();
        for Part { name: tensor, shape: expected, role } in parts {
            match unused.remove(tensor.as_str()) {
                None if role.is_needed() => mismatch.missing.push(tensor),
                Some(found) if *found != expected && !matches!(role, Role::Flag | Role::Leftover) => {
                    mismatch.misshapen.push(Misshapen { tensor, expected, found: found.clone() });
                }
                _ => {}
            }
        }
        mismatch.unexpected = unused.into_keys().map(str::to_owned).collect();
        mismatch
    }

    /// Says whether there is no difference.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut clauses = Vec::new();
        match &self.missing[..] {
            [] => {}
            [name] => clauses.push(format!("lacks tensor `{name}`")),
            names => clauses.push(format!("lacks {} tensors, such as {}", names.len(), Names(names))),
        }
        match &self.unexpected[..] {
            [] => {}
            [name] => clauses.push(format!("has an unexpected `{name}`")),
            names => clauses.push(format!("has {} unexpected entries, such as {}", names.len(), Names(names))),
        }
        let shape = |m: &Misshapen| format!("`{}` should be {:?}, but is {:?}", m.tensor, m.expected, m.found);
        match &self.misshapen[..] {
            [] => {}
            [one] => clauses.push(format!("has a tensor of another shape: {}", shape(one))),
            many => {
                let shown: Vec<_> = many.iter().take(SHOWN).map(shape).collect();
                clauses.push(format!("has {} tensors of another shape, such as {}", many.len(), shown.join(", ")));
            }
        }
        f.write_str(&clauses.join("; it "))
    }
}

/// Shows the first few of many names.
pub(super) struct Names<'a, T>(pub(super) &'a [T]);

impl<T: fmt::Display> fmt::Display for Names<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<_> = self.0.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
        f.write_str(&shown.join(", "))
    }
}

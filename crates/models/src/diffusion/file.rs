//! Weights files as messages call them.

use std::fmt;

use weights::checkpoint::Checkpoint;

/// A weights file with the name by which messages call it.
#[derive(Debug, Clone)]
pub struct File {
    /// The name: a path, or what a job calls it.
    pub name: String,
    /// What it holds.
    pub checkpoint: Checkpoint,
}

impl File {
    /// Calls a file by a name.
    pub fn new(name: impl Into<String>, checkpoint: Checkpoint) -> Self {
        Self { name: name.into(), checkpoint }
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.name)
    }
}

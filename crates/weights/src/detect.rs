//! Which network a set of tensors is, and what a plan must know of it.
//!
//! A file says nothing of its network but names and shapes. Detection looks for names that only one architecture has, in a
//! fixed order, then takes every size from the shapes, and at last holds the file against the list of tensors that this
//! network has: one missing, one too many, or one of another shape, and the file is refused by that tensor's name.

mod compact;
mod esrgan;
mod facts;
mod signature;

use std::collections::BTreeMap;

pub use compact::Compact;
pub use esrgan::{Naming, RrdbNet};
pub use facts::{ModelFacts, SizeRequirements};

use crate::checkpoint::Checkpoint;

/// The shapes of tensors by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Why a set of tensors is no network that can be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// The names belong to no known architecture.
    #[error("no known architecture has these tensors; the first of {count} are {}", quoted(.first))]
    Unknown {
        /// How many names there are.
        count: usize,
        /// The first few of them.
        first: Vec<String>,
    },
    /// The architecture is known by its names, but cannot be run yet.
    #[error("this is a {architecture} model, which is not supported yet")]
    NotSupported {
        /// The architecture.
        architecture: &'static str,
    },
    /// The network lacks a tensor.
    #[error("the {architecture} model lacks tensor `{tensor}`")]
    Missing {
        /// The architecture.
        architecture: &'static str,
        /// The tensor.
        tensor: String,
    },
    /// The network has no use for something in the file.
    #[error("the {architecture} model has an unexpected `{name}`")]
    Unexpected {
        /// The architecture.
        architecture: &'static str,
        /// The tensor, or the entry that is none.
        name: String,
    },
    /// A tensor has another shape than the network needs.
    #[error("tensor `{tensor}` of the {architecture} model should have shape {expected:?}, but has {found:?}")]
    Shape {
        /// The architecture.
        architecture: &'static str,
        /// The tensor.
        tensor: String,
        /// The shape that the network needs.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor from which sizes are read has none that make sense.
    #[error("tensor `{tensor}` of the {architecture} model has shape {found:?}, from which {what} cannot be told")]
    Odd {
        /// The architecture.
        architecture: &'static str,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// What was to be read from it.
        what: &'static str,
    },
    /// The dense blocks grow by another number of channels than the architecture does.
    #[error("the dense blocks of the ESRGAN model grow by {found} channels, but only a growth of 32 is supported")]
    Growth {
        /// The number of channels.
        found: usize,
    },
    /// The picture would not grow by a whole number.
    #[error("the {architecture} model scales by {numerator}/{denominator}, which is no whole number")]
    Scale {
        /// The architecture.
        architecture: &'static str,
        /// What it multiplies sides by...
        numerator: u64,
        /// ...after having divided them by this.
        denominator: u64,
    },
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// A network, as far as its tensors tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Its architecture and sizes, as whoever runs it needs them.
    pub layout: Layout,
    /// What a plan needs to know of it.
    pub facts: ModelFacts,
}

/// An architecture with all its sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// ESRGAN in all its spellings.
    Esrgan(RrdbNet),
    /// Real-ESRGAN's compact network.
    Compact(Compact),
}

impl Layout {
    /// Returns the name of the architecture.
    pub fn architecture(&self) -> &'static str {
        match self {
            Self::Esrgan(_) => esrgan::ARCHITECTURE,
            Self::Compact(_) => compact::ARCHITECTURE,
        }
    }

    /// Lists every tensor of the network with its shape: these must be in a file, and no others.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        match self {
            Self::Esrgan(net) => net.tensors(),
            Self::Compact(net) => net.tensors(),
        }
    }

    /// Returns what a plan needs to know of the network.
    pub fn facts(&self) -> Result<ModelFacts, DetectError> {
        let mut facts = match self {
            Self::Esrgan(net) => net.facts()?,
            Self::Compact(net) => net.facts(),
        };
        let count = |shape: &[usize]| shape.iter().product::<usize>() as u64;
        facts.parameters = self.tensors().iter().map(|(_, shape)| count(shape)).sum();
        Ok(facts)
    }
}

/// Says which network `checkpoint` holds.
pub fn detect(checkpoint: &Checkpoint) -> Result<Network, DetectError> {
    let network = detect_shapes(&checkpoint.shapes())?;
    match checkpoint.others().first() {
        None => Ok(network),
        Some(name) => Err(DetectError::Unexpected { architecture: network.layout.architecture(), name: name.clone() }),
    }
}

/// Says which network has tensors of these names and shapes.
pub fn detect_shapes(shapes: &Shapes) -> Result<Network, DetectError> {
    let Some(architecture) = signature::find(shapes) else {
        let first = shapes.keys().take(5).cloned().collect();
        return Err(DetectError::Unknown { count: shapes.len(), first });
    };
    let layout = match architecture {
        esrgan::ARCHITECTURE => Layout::Esrgan(RrdbNet::infer(shapes)?),
        compact::ARCHITECTURE => Layout::Compact(Compact::infer(shapes)?),
        architecture => return Err(DetectError::NotSupported { architecture }),
    };
    compare(architecture, &layout.tensors(), shapes)?;
    Ok(Network { layout, facts: layout.facts()? })
}

/// Checks that the file has exactly the tensors of the network.
fn compare(architecture: &'static str, expected: &[(String, Vec<usize>)], shapes: &Shapes) -> Result<(), DetectError> {
    let mut unused = shapes.clone();
    for (tensor, expected) in expected {
        let Some(found) = unused.remove(tensor) else {
            return Err(DetectError::Missing { architecture, tensor: tensor.clone() });
        };
        if found != *expected {
            return Err(DetectError::Shape { architecture, tensor: tensor.clone(), expected: expected.clone(), found });
        }
    }
    match unused.pop_first() {
        None => Ok(()),
        Some((name, _)) => Err(DetectError::Unexpected { architecture, name }),
    }
}

/// Larger sides than this are not believed: they would only make the arithmetic on them overflow.
const CHANNELS_LIMIT: usize = 1 << 16;

/// Returns the outputs and inputs of the square convolution `tensor`.
fn convolution(architecture: &'static str, shapes: &Shapes, tensor: &str) -> Result<(usize, usize), DetectError> {
    let Some(found) = shapes.get(tensor) else {
        return Err(DetectError::Missing { architecture, tensor: tensor.to_owned() });
    };
    match found[..] {
        [outputs @ 1..=CHANNELS_LIMIT, inputs @ 1..=CHANNELS_LIMIT, height, width] if height == width => {
            Ok((outputs, inputs))
        }
        _ => Err(DetectError::Odd {
            architecture,
            tensor: tensor.to_owned(),
            found: found.clone(),
            what: "the number of channels",
        }),
    }
}

/// Returns the length of a list of parts: one more than the largest `i` of a name `<list>.<i>.…`.
///
/// A list cannot be longer than the file has names: of a longer one the first gap is reported, so that no amount of work
/// follows from a large number in a name.
fn list_length(architecture: &'static str, shapes: &Shapes, list: &str) -> Result<usize, DetectError> {
    let index = |name: &str| -> Option<usize> {
        let (index, _) = name.strip_prefix(list)?.strip_prefix('.')?.split_once('.')?;
        index.parse().ok()
    };
    let length = shapes.keys().filter_map(|name| index(name)).max().map_or(0, |last| last.saturating_add(1));
    if length > shapes.len() {
        let is_gap = |i: &usize| !shapes.keys().any(|name| index(name) == Some(*i));
        let gap = (0..length).find(is_gap).expect("fewer names than parts leave a gap");
        return Err(DetectError::Missing { architecture, tensor: format!("{list}.{gap}") });
    }
    Ok(length)
}

/// Lists the weight and the bias of a convolution.
fn weight_and_bias(name: &str, outputs: usize, inputs: usize, kernel: usize) -> [(String, Vec<usize>); 2] {
    [(format!("{name}.weight"), vec![outputs, inputs, kernel, kernel]), (format!("{name}.bias"), vec![outputs])]
}

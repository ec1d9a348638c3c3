//! Which network a set of tensors is, and what a plan must know of it.
//!
//! A file says nothing of its network but names and shapes. Detection looks for names that only one architecture has, in a
//! fixed order, then takes every size from the shapes, and at last holds the file against the list of tensors that this
//! network has: one missing, one too many, or one of another shape, and the file is refused by that tensor's name. What only
//! follows from the sizes, such as an attention mask, may be there or not.
//!
//! Each architecture has a module with its sizes, how they are told, and its tensors.

mod atd;
mod compact;
mod dat;
pub mod diffusion;
mod dysample;
mod esrgan;
mod facts;
mod hat;
mod head;
mod mismatch;
mod mosr;
mod omnisr;
mod parts;
mod plksr;
mod rcan;
mod shapes;
mod signature;
mod span;
mod swinir;

use std::collections::BTreeMap;
use std::fmt;

pub use atd::Atd;
pub use compact::Compact;
pub use dat::Dat;
pub use dysample::DySample;
pub use esrgan::{Naming, RrdbNet};
pub use facts::{ModelFacts, SizeRequirements};
pub use hat::Hat;
pub use head::{Resi, Upsampler};
pub use mismatch::{Mismatch, Misshapen};
pub use mosr::{MoSr, MoSrUpsampler};
pub use omnisr::OmniSr;
pub use parts::{Part, Role};
pub use plksr::{Plksr, PlksrKind};
pub use rcan::Rcan;
pub use span::Span;
pub use swinir::SwinIr;

use crate::checkpoint::{Checkpoint, CheckpointError};
use mismatch::Names;
use shapes::Reader;

/// The shapes of tensors by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Why a set of tensors is no network that can be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// The names belong to no known architecture.
    #[error("no known architecture has these tensors{}; the first of {count} are {}", Nearest(.nearest), Names(.first))]
    Unknown {
        /// How many names there are.
        count: usize,
        /// The first few of them.
        first: Vec<String>,
        /// The architecture whose names are there to the largest share, with those that are not.
        nearest: Option<(&'static str, Vec<&'static str>)>,
    },
    /// The network fills in what a mask covers.
    #[error("this is a {architecture} model, which needs a mask: it must be a single-image model")]
    NeedsMask {
        /// The architecture.
        architecture: &'static str,
    },
    /// The architecture is known by its names, but cannot be run.
    #[error("this is a {architecture} model, which is not supported yet")]
    NotSupported {
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor from which sizes are read is missing.
    #[error("the {architecture} model lacks tensor `{tensor}`")]
    Missing {
        /// The architecture.
        architecture: &'static str,
        /// The tensor.
        tensor: String,
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
    /// The file has not quite the tensors that the network has.
    #[error("the {architecture} model {mismatch}")]
    Mismatch {
        /// The architecture.
        architecture: &'static str,
        /// How they differ.
        mismatch: Mismatch,
    },
    /// The number of attention heads is not known or does not fit.
    #[error("{clip} is {width} wide, which makes no heads of width 64, and `{key}` in the file's metadata is {found}")]
    Heads {
        /// The text encoder.
        clip: &'static str,
        /// Its width.
        width: usize,
        /// The name under which a file may say it.
        key: String,
        /// What the file says.
        found: String,
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
    /// A tensor whose values tell a size cannot be read.
    #[error("tensor `{tensor}` of the {architecture} model cannot be read: {why}")]
    Unreadable {
        /// The architecture.
        architecture: &'static str,
        /// The tensor.
        tensor: &'static str,
        /// The error of the checkpoint.
        why: String,
    },
}

/// Shows which architecture is nearest.
struct Nearest<'a>(&'a Option<(&'static str, Vec<&'static str>)>);

impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((architecture, lacks)) = self.0 else { return Ok(()) };
        write!(f, "; nearest is {architecture}, which would also need {}", Names(lacks))?;
        match lacks.len().checked_sub(mismatch::SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, " and {more} more"),
        }
    }
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// ESRGAN in all its spellings.
    Esrgan(RrdbNet),
    /// Real-ESRGAN's compact network.
    Compact(Compact),
    /// SPAN.
    Span(Span),
    /// SwinIR.
    SwinIr(SwinIr),
    /// HAT.
    Hat(Hat),
    /// Omni-SR.
    OmniSr(OmniSr),
    /// DAT and DAT-2.
    Dat(Dat),
    /// PLKSR and RealPLKSR.
    Plksr(Plksr),
    /// RCAN.
    Rcan(Rcan),
    /// MoSR.
    MoSr(MoSr),
    /// ATD.
    Atd(Atd),
}

impl Layout {
    /// Returns the name of the architecture.
    pub fn architecture(&self) -> &'static str {
        match self {
            Self::Esrgan(_) => esrgan::ARCHITECTURE,
            Self::Compact(_) => compact::ARCHITECTURE,
            Self::Span(_) => span::ARCHITECTURE,
            Self::SwinIr(_) => swinir::ARCHITECTURE,
            Self::Hat(_) => hat::ARCHITECTURE,
            Self::OmniSr(_) => omnisr::ARCHITECTURE,
            Self::Dat(_) => dat::ARCHITECTURE,
            Self::Plksr(_) => plksr::ARCHITECTURE,
            Self::Rcan(_) => rcan::ARCHITECTURE,
            Self::MoSr(_) => mosr::ARCHITECTURE,
            Self::Atd(_) => atd::ARCHITECTURE,
        }
    }

    /// Lists every tensor that a file of the network may have: these and no others.
    pub fn parts(&self) -> Vec<Part> {
        match self {
            Self::Esrgan(net) => net.parts(),
            Self::Compact(net) => net.parts(),
            Self::Span(net) => net.parts(),
            Self::SwinIr(net) => net.parts(),
            Self::Hat(net) => net.parts(),
            Self::OmniSr(net) => net.parts(),
            Self::Dat(net) => net.parts(),
            Self::Plksr(net) => net.parts(),
            Self::Rcan(net) => net.parts(),
            Self::MoSr(net) => net.parts(),
            Self::Atd(net) => net.parts(),
        }
    }

    /// Lists the tensors of a whole file with their shapes: all of [`Self::parts`] whose shape is known, so that what holds
    /// them is detected as this network.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let is_known = |part: &Part| part.role != Role::Leftover;
        self.parts().into_iter().filter(is_known).map(|part| (part.name, part.shape)).collect()
    }

    /// Returns what a plan needs to know of the network.
    ///
    /// # Errors
    /// [`DetectError::Scale`] if the picture would not grow by a whole number.
    pub fn facts(&self) -> Result<ModelFacts, DetectError> {
        let mut facts = match self {
            Self::Esrgan(net) => net.facts()?,
            Self::Compact(net) => net.facts(),
            Self::Span(net) => net.facts(),
            Self::SwinIr(net) => net.facts()?,
            Self::Hat(net) => net.facts()?,
            Self::OmniSr(net) => net.facts(),
            Self::Dat(net) => net.facts()?,
            Self::Plksr(net) => net.facts(),
            Self::Rcan(net) => net.facts()?,
            Self::MoSr(net) => net.facts(),
            Self::Atd(net) => net.facts()?,
        };
        let is_trained = |part: &&Part| matches!(part.role, Role::Parameter | Role::Unused);
        let count = |part: &Part| part.shape.iter().fold(1u64, |count, side| count.saturating_mul(*side as u64));
        facts.parameters = self.parts().iter().filter(is_trained).map(count).fold(0, u64::saturating_add);
        Ok(facts)
    }

    /// Tells the sizes of a network of `architecture` from the shapes of its tensors.
    fn infer(architecture: &'static str, shapes: &Shapes) -> Result<Self, DetectError> {
        let from = &Reader { architecture, shapes };
        Ok(match architecture {
            esrgan::ARCHITECTURE => Self::Esrgan(RrdbNet::infer(from)?),
            compact::ARCHITECTURE => Self::Compact(Compact::infer(from)?),
            span::ARCHITECTURE => Self::Span(Span::infer(from)?),
            swinir::ARCHITECTURE => Self::SwinIr(SwinIr::infer(from)?),
            hat::ARCHITECTURE => Self::Hat(Hat::infer(from)?),
            omnisr::ARCHITECTURE => Self::OmniSr(OmniSr::infer(from)?),
            dat::ARCHITECTURE => Self::Dat(Dat::infer(from)?),
            plksr::ARCHITECTURE => Self::Plksr(Plksr::infer(from)?),
            rcan::ARCHITECTURE => Self::Rcan(Rcan::infer(from)?),
            mosr::ARCHITECTURE => Self::MoSr(MoSr::infer(from)?),
            atd::ARCHITECTURE => Self::Atd(Atd::infer(from)?),
            architecture => return Err(DetectError::NotSupported { architecture }),
        })
    }

    /// Says whether an entry of a file is no part of the network but harmless.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        matches!(self, Self::OmniSr(_)) && OmniSr::ignores(name)
    }
}

/// Says which network `checkpoint` holds.
///
/// # Errors
/// [`DetectError`], which names the tensors because of which it is none that can be run.
pub fn detect(checkpoint: &Checkpoint) -> Result<Network, DetectError> {
    let mut layout = infer(&checkpoint.shapes(), checkpoint.others())?;
    if let Layout::Dat(net) = &mut layout
        && let Some(tensor) = net.distances()
    {
        let unreadable = |error: CheckpointError| DetectError::Unreadable {
            architecture: dat::ARCHITECTURE,
            tensor,
            why: error.to_string(),
        };
        if let [.., dy, dx] = checkpoint.read_f32(tensor).map_err(unreadable)?[..] {
            net.turn([dy, dx]);
        }
    }
    Ok(Network { facts: layout.facts()?, layout })
}

/// Says which network has tensors of these names and shapes.
///
/// This is all that [`detect`] looks at, but for DAT's windows: which of their sides is which only values can tell.
///
/// # Errors
/// As [`detect`].
pub fn detect_shapes(shapes: &Shapes) -> Result<Network, DetectError> {
    let layout = infer(shapes, &[])?;
    Ok(Network { facts: layout.facts()?, layout })
}

/// Tells a network from shapes, and from the names of the `others` beside them that are no tensors.
fn infer(shapes: &Shapes, others: &[String]) -> Result<Layout, DetectError> {
    let has = |name: &str| shapes.contains_key(name);
    if signature::is_lama(has) {
        return Err(DetectError::NeedsMask { architecture: "LaMa" });
    }
    let Some(architecture) = signature::find(has) else {
        let first = shapes.keys().take(5).cloned().collect();
        return Err(DetectError::Unknown { count: shapes.len(), first, nearest: signature::nearest(has) });
    };
    let layout = Layout::infer(architecture, shapes)?;
    let mut mismatch = Mismatch::between(layout.parts(), shapes);
    mismatch.unexpected.extend_from_slice(others);
    mismatch.unexpected.retain(|name| !layout.ignores(name));
    match mismatch.is_empty() {
        true => Ok(layout),
        false => Err(DetectError::Mismatch { architecture, mismatch }),
    }
}

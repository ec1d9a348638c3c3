//! ESRGAN: a trunk of residual-in-residual dense blocks, then convolutions that each double the sides.

use serde_json::json;

use super::parts::{Builder, Part};
use super::shapes::Reader;
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "ESRGAN";

/// By how many channels a dense block grows with each convolution.
const GROWTH: usize = 32;

/// How the parts of the network are called: three code bases trained it, each with its own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// The first ESRGAN code: everything is a number in `model`.
    Old {
        /// How many convolutions double the sides; the parts behind them are numbered on.
        ups: usize,
    },
    /// BasicSR, so Real-ESRGAN.
    BasicSr,
    /// BSRGAN and RealSR.
    Bsrgan,
}

impl Naming {
    /// Returns the name of the first convolution.
    pub fn first(&self) -> &'static str {
        match self {
            Self::Old { .. } => "model.0",
            Self::BasicSr | Self::Bsrgan => "conv_first",
        }
    }

    /// Returns the name of the list of blocks.
    fn blocks(&self) -> &'static str {
        match self {
            Self::Old { .. } => "model.1.sub",
            Self::BasicSr => "body",
            Self::Bsrgan => "RRDB_trunk",
        }
    }

    /// Returns the name of convolution `k` (from 1) in dense block `rdb` (from 1) of block `block` (from 0).
    pub fn dense(&self, block: usize, rdb: usize, k: usize) -> String {
        match self {
            Self::Old { .. } => format!("model.1.sub.{block}.RDB{rdb}.conv{k}.0"),
            Self::BasicSr => format!("body.{block}.rdb{rdb}.conv{k}"),
            Self::Bsrgan => format!("RRDB_trunk.{block}.RDB{rdb}.conv{k}"),
        }
    }

    /// Returns the name of the weight of ESRGAN+'s additional 1x1 convolution in a dense block.
    pub fn dense_1x1(block: usize, rdb: usize) -> String {
        format!("model.1.sub.{block}.RDB{rdb}.conv1x1.weight")
    }

    /// Returns the name of the convolution behind `num_blocks` blocks.
    pub fn trunk(&self, num_blocks: usize) -> String {
        match self {
            Self::Old { .. } => format!("model.1.sub.{num_blocks}"),
            Self::BasicSr => "conv_body".to_owned(),
            Self::Bsrgan => "trunk_conv".to_owned(),
        }
    }

    /// Returns the name of the convolution behind doubling `up` (from 1).
    pub fn up(&self, up: usize) -> String {
        match self {
            Self::Old { .. } => format!("model.{}", 3 * up),
            Self::BasicSr => format!("conv_up{up}"),
            Self::Bsrgan => format!("upconv{up}"),
        }
    }

    /// Returns the name of the last convolution but one.
    pub fn hr(&self) -> String {
        match self {
            Self::Old { ups } => format!("model.{}", 3 * ups + 2),
            Self::BasicSr => "conv_hr".to_owned(),
            Self::Bsrgan => "HRconv".to_owned(),
        }
    }

    /// Returns the name of the last convolution.
    pub fn last(&self) -> String {
        match self {
            Self::Old { ups } => format!("model.{}", 3 * ups + 4),
            Self::BasicSr | Self::Bsrgan => "conv_last".to_owned(),
        }
    }
}

/// The sizes of an ESRGAN network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RrdbNet {
    /// How its parts are called.
    pub naming: Naming,
    /// The channels that the first convolution takes.
    pub in_nc: usize,
    /// The channels of the picture that comes out.
    pub out_nc: usize,
    /// The channels of the trunk.
    pub num_filters: usize,
    /// How many blocks the trunk has.
    pub num_blocks: usize,
    /// How many times the sides are doubled behind the trunk.
    pub ups: usize,
    /// Whether the dense blocks are those of ESRGAN+.
    pub plus: bool,
    /// By how much the sides of the picture are divided, its pixels becoming channels, before the first convolution.
    pub shuffle_factor: Option<usize>,
}

/// Says by which names the network goes, if it is one.
fn naming(from: &Reader<'_>) -> Option<Naming> {
    if from.has("model.1.sub.0.RDB1.conv1.0.weight") {
        Some(Naming::Old { ups: 0 })
    } else if from.has("body.0.rdb1.conv1.weight") {
        Some(Naming::BasicSr)
    } else if from.has("RRDB_trunk.0.RDB1.conv1.weight") {
        Some(Naming::Bsrgan)
    } else {
        None
    }
}

impl RrdbNet {
    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let mut naming = naming(from).ok_or_else(|| from.missing("model.1.sub.0.RDB1.conv1.0.weight"))?;
        let parts = from.length(naming.blocks())?;
        let (num_blocks, ups) = match &mut naming {
            Naming::Old { ups } => {
                // model.0 and .1 are the first convolution and the trunk, then three numbers per doubling, and three at the end.
                *ups = from.length("model")?.saturating_sub(5) / 3;
                (parts.saturating_sub(1), *ups) // the last of the blocks is the convolution behind them
            }
            naming => {
                let ups = (1..).take_while(|&up| from.has(&format!("{}.weight", naming.up(up)))).count();
                (parts, ups)
            }
        };
        let (num_filters, in_nc) = from.convolution(naming.first())?;
        let (out_nc, _) = from.convolution(&naming.last())?;
        let (found, _) = from.convolution(&naming.dense(0, 1, 1))?;
        if found != GROWTH {
            return Err(DetectError::Growth { found });
        }
        let plus = from.has(&Naming::dense_1x1(0, 1));
        let shuffle_factor = [2, 4].into_iter().find(|factor| in_nc == out_nc * factor * factor);
        Ok(Self { naming, in_nc, out_nc, num_filters, num_blocks, ups, plus, shuffle_factor })
    }

    /// Returns the channels of the picture that goes in.
    pub fn picture_channels(&self) -> usize {
        let factor = self.shuffle_factor.unwrap_or(1);
        self.in_nc / (factor * factor)
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let Self { naming, in_nc, out_nc, num_filters: c, num_blocks, ups, plus, .. } = *self;
        let mut to = Builder::default();
        to.conv(naming.first(), c, in_nc, 3);
        for block in 0..num_blocks {
            for rdb in 1..=3 {
                for k in 1..=5 {
                    let outputs = if k == 5 { c } else { GROWTH };
                    to.conv(&naming.dense(block, rdb, k), outputs, c + (k - 1) * GROWTH, 3);
                }
                if plus {
                    to.parameter(Naming::dense_1x1(block, rdb), [GROWTH, c, 1, 1]);
                }
            }
        }
        to.conv(&naming.trunk(num_blocks), c, c, 3);
        (1..=ups).for_each(|up| to.conv(&naming.up(up), c, c, 3));
        to.conv(&naming.hr(), c, c, 3);
        to.conv(&naming.last(), out_nc, c, 3);
        to.parts
    }

    pub(super) fn facts(&self) -> Result<ModelFacts, DetectError> {
        let Self { in_nc, out_nc, num_filters, num_blocks, ups, plus, shuffle_factor, .. } = *self;
        let grown = 1usize << ups.min(32);
        let scale = facts::scale(ARCHITECTURE, grown, shuffle_factor.unwrap_or(1))?;
        let size_requirements = match shuffle_factor {
            None => SizeRequirements { minimum: 2, ..SizeRequirements::NONE },
            Some(_) => SizeRequirements { minimum: 4, multiple_of: 4, square: false },
        };
        let mut tags = vec![format!("{num_filters}nf"), format!("{num_blocks}nb")];
        if plus {
            tags.insert(0, "ESRGAN+".to_owned());
        }
        if shuffle_factor.is_some() {
            tags.push("unshuffle".to_owned());
        }
        Ok(ModelFacts {
            scale,
            input_channels: self.picture_channels() as u32,
            output_channels: out_nc as u32,
            size_requirements,
            tags,
            hyperparameters: facts::map(json!({
                "in_nc": in_nc,
                "out_nc": out_nc,
                "num_filters": num_filters,
                "num_blocks": num_blocks,
                "scale": grown,
                "plus": plus,
                "shuffle_factor": shuffle_factor,
                "norm": null,
                "act": "leakyrelu",
                "upsampler": "upconv",
                "mode": "CNA",
            })),
            ..ModelFacts::of(ARCHITECTURE)
        })
    }
}

//! Compact: Real-ESRGAN's SRVGGNetCompact, a plain row of convolutions.

use serde_json::json;

use super::parts::{Builder, Part};
use super::shapes::Reader;
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "Compact";

/// The sizes of a Compact network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compact {
    /// The channels of the picture that goes in.
    pub num_in_ch: usize,
    /// The channels of the picture that comes out.
    pub num_out_ch: usize,
    /// The channels in between.
    pub num_feat: usize,
    /// How many convolutions stand between the first and the last.
    pub num_conv: usize,
    /// How many times wider and higher the output is.
    pub upscale: usize,
}

impl Compact {
    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let (num_feat, num_in_ch) = from.convolution("body.0")?;
        // Convolutions have the even numbers, activations the odd ones, and the last is a convolution.
        let length = from.length("body")?;
        if length % 2 == 0 || length < 3 {
            return Err(from.missing(format!("body.{length}.weight")));
        }
        let last = length - 1;
        let (num_out_ch, upscale) = from.shuffle(&format!("body.{last}"), num_in_ch)?;
        Ok(Self { num_in_ch, num_out_ch, num_feat, num_conv: (last - 2) / 2, upscale })
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let mut to = Builder::default();
        for step in 0..=self.num_conv {
            let inputs = if step == 0 { self.num_in_ch } else { self.num_feat };
            to.conv(&format!("body.{}", 2 * step), self.num_feat, inputs, 3);
            to.parameter(format!("body.{}.weight", 2 * step + 1), [self.num_feat]);
        }
        to.conv(&format!("body.{}", self.last()), self.num_out_ch * self.upscale * self.upscale, self.num_feat, 3);
        to.parts
    }

    /// Returns the number of the last convolution in `body`.
    pub fn last(&self) -> usize {
        2 * self.num_conv + 2
    }

    pub(super) fn facts(&self) -> ModelFacts {
        let Self { num_in_ch, num_out_ch, num_feat, num_conv, upscale } = *self;
        ModelFacts {
            scale: upscale as u32,
            input_channels: num_in_ch as u32,
            output_channels: num_out_ch as u32,
            size_requirements: SizeRequirements::NONE,
            tags: vec![format!("{num_feat}nf"), format!("{num_conv}nc")],
            hyperparameters: facts::map(json!({
                "num_in_ch": num_in_ch,
                "num_out_ch": num_out_ch,
                "num_feat": num_feat,
                "num_conv": num_conv,
                "upscale": upscale,
                "act_type": "prelu",
            })),
            ..ModelFacts::of(ARCHITECTURE)
        }
    }
}

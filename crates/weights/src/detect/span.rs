//! SPAN: a swift network without attention parameters, of 3x3 convolutions that were trained as three (Wan et al. 2023).

use serde_json::json;

use super::parts::{Builder, Part, Role};
use super::shapes::Reader;
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "SPAN";

/// How many blocks every SPAN has.
pub(super) const BLOCKS: usize = 6;

/// By how much the inner convolutions of a unit are wider.
const GAIN: usize = 2;

/// The sizes of a SPAN network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The channels of the picture that goes in.
    pub num_in_ch: usize,
    /// The channels of the picture that comes out.
    pub num_out_ch: usize,
    /// The channels in between.
    pub feature_channels: usize,
    /// How many times wider and higher the output is.
    pub upscale: usize,
    /// Whether the picture is first shifted by its mean colour and multiplied by 255.
    pub norm: bool,
}

impl Span {
    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let (feature_channels, num_in_ch) = from.convolution("conv_1.sk")?;
        let (num_out_ch, upscale) = from.shuffle("upsampler.0", num_in_ch)?;
        Ok(Self { num_in_ch, num_out_ch, feature_channels, upscale, norm: !from.has("no_norm") })
    }

    /// Lists the names of the units: 3x3 convolutions stored as the three that they were trained as, with outputs and inputs.
    ///
    /// A unit called `name` is the sum of the 1x1 convolution `name.sk` and of `name.conv.0` (1x1), `name.conv.1` (3x3) and
    /// `name.conv.2` (1x1) one behind the other.
    pub fn units(&self) -> Vec<(String, usize, usize)> {
        let c = self.feature_channels;
        let blocks =
            (1..=BLOCKS).flat_map(|block| ["c1_r", "c2_r", "c3_r"].map(|unit| format!("block_{block}.{unit}")));
        let within = blocks.chain(["conv_2".to_owned()]).map(|name| (name, c, c));
        [("conv_1".to_owned(), c, self.num_in_ch)].into_iter().chain(within).collect()
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let c = self.feature_channels;
        let mut to = Builder::default();
        for (unit, outputs, inputs) in self.units() {
            to.conv(&format!("{unit}.sk"), outputs, inputs, 1);
            to.conv(&format!("{unit}.conv.0"), GAIN * inputs, inputs, 1);
            to.conv(&format!("{unit}.conv.1"), GAIN * outputs, GAIN * inputs, 3);
            to.conv(&format!("{unit}.conv.2"), outputs, GAIN * outputs, 1);
            // What the others come to. It is computed again when the network is loaded, as the reference does.
            to.tensor(format!("{unit}.eval_conv.weight"), [outputs, inputs, 3, 3], Role::Unused);
            to.tensor(format!("{unit}.eval_conv.bias"), [outputs], Role::Unused);
        }
        to.conv("conv_cat", c, 4 * c, 1);
        to.conv("upsampler.0", self.num_out_ch * self.upscale * self.upscale, c, 3);
        if !self.norm {
            to.tensor("no_norm", [1], Role::Flag);
        }
        to.parts
    }

    pub(super) fn facts(&self) -> ModelFacts {
        let Self { num_in_ch, num_out_ch, feature_channels, upscale, norm } = *self;
        ModelFacts {
            scale: upscale as u32,
            input_channels: num_in_ch as u32,
            output_channels: num_out_ch as u32,
            size_requirements: SizeRequirements::NONE,
            tags: vec![format!("{feature_channels}nf")],
            hyperparameters: facts::map(json!({
                "num_in_ch": num_in_ch,
                "num_out_ch": num_out_ch,
                "feature_channels": feature_channels,
                "upscale": upscale,
                "bias": true,
                "norm": norm,
                "img_range": 255.0,
                "rgb_mean": [0.4488, 0.4371, 0.4040],
            })),
            ..ModelFacts::of(ARCHITECTURE)
        }
    }
}

//! Compact: Real-ESRGAN's SRVGGNetCompact, a plain row of convolutions.

use serde_json::{Map, json};

use super::{DetectError, ModelFacts, Shapes, SizeRequirements, convolution, list_length, weight_and_bias};

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
    pub(super) fn infer(shapes: &Shapes) -> Result<Self, DetectError> {
        let architecture = ARCHITECTURE;
        let (num_feat, num_in_ch) = convolution(architecture, shapes, "body.0.weight")?;
        // Convolutions have the even numbers, activations the odd ones, and the last is a convolution.
        let length = list_length(architecture, shapes, "body")?;
        if length % 2 == 0 || length < 3 {
            return Err(DetectError::Missing { architecture, tensor: format!("body.{length}.weight") });
        }
        let last = length - 1;
        let tensor = format!("body.{last}.weight");
        let (outputs, _) = convolution(architecture, shapes, &tensor)?;
        let Some((num_out_ch, upscale)) = square_rule(outputs, num_in_ch) else {
            return Err(DetectError::Odd { architecture, found: shapes[&tensor].clone(), tensor, what: "the scale" });
        };
        Ok(Self { num_in_ch, num_out_ch, num_feat, num_conv: (last - 2) / 2, upscale })
    }

    pub(super) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Vec::new();
        for step in 0..=self.num_conv {
            let inputs = if step == 0 { self.num_in_ch } else { self.num_feat };
            tensors.extend(weight_and_bias(&format!("body.{}", 2 * step), self.num_feat, inputs, 3));
            tensors.push((format!("body.{}.weight", 2 * step + 1), vec![self.num_feat]));
        }
        let outputs = self.num_out_ch * self.upscale * self.upscale;
        tensors.extend(weight_and_bias(&format!("body.{}", self.last()), outputs, self.num_feat, 3));
        tensors
    }

    /// Returns the number of the last convolution in `body`.
    pub fn last(&self) -> usize {
        2 * self.num_conv + 2
    }

    pub(super) fn facts(&self) -> ModelFacts {
        let Self { num_in_ch, num_out_ch, num_feat, num_conv, upscale } = *self;
        let hyperparameters = [
            ("num_in_ch", json!(num_in_ch)),
            ("num_out_ch", json!(num_out_ch)),
            ("num_feat", json!(num_feat)),
            ("num_conv", json!(num_conv)),
            ("upscale", json!(upscale)),
            ("act_type", json!("prelu")),
        ];
        ModelFacts {
            architecture: ARCHITECTURE.to_owned(),
            scale: upscale as u32,
            input_channels: num_in_ch as u32,
            output_channels: num_out_ch as u32,
            size_requirements: SizeRequirements::NONE,
            parameters: 0,
            tags: vec![format!("{num_feat}nf"), format!("{num_conv}nc")],
            hyperparameters: Map::from_iter(hyperparameters.map(|(name, value)| (name.to_owned(), value))),
        }
    }
}

/// Tells from the outputs of a convolution before a pixel shuffle how many channels come out, and by how much they grow: the
/// first of the likely numbers of channels that leaves a square.
fn square_rule(outputs: usize, input_channels: usize) -> Option<(usize, usize)> {
    [input_channels, 3, 4, 1].into_iter().find_map(|channels| {
        let square = outputs / channels;
        let scale = square.isqrt();
        (outputs.is_multiple_of(channels) && scale * scale == square).then_some((channels, scale))
    })
}

//! The ControlNet of Zhang et al. 2023, by the names of its own code.

use std::collections::BTreeMap;

use super::{Unet, check};
use crate::detect::{
    DetectError, Shapes,
    parts::{Builder, Part},
    shapes::Reader,
};

const ARCHITECTURE: &str = "ControlNet";
/// A control net that must be told which kind of hint it sees, and by what it is known.
const UNION: (&str, &str) = ("control_add_embedding.linear_1.weight", "ControlNet Union");

/// The sizes of a control net.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlNet {
    /// The copy of a UNet's way down and middle. It has no `output`, and `out_channels` is 0.
    pub unet: Unet,
    /// The channels of a hint, and those behind each of the convolutions that it goes through, `input_hint_block.0`,
    /// `input_hint_block.2` and so on. The last of them are [`Unet::model_channels`].
    pub hint: [usize; ControlNet::HINT_CONVS + 1],
}

impl ControlNet {
    /// How many convolutions a hint goes through.
    pub const HINT_CONVS: usize = 8;

    /// Returns by how much convolution `i` of a hint divides the sides: three of them halve, so that a hint comes to the size
    /// of a latent.
    pub fn hint_stride(i: usize) -> usize {
        if matches!(i, 2 | 4 | 6) { 2 } else { 1 }
    }

    /// Tells the sizes from the tensors below the network's prefix, and heads as [`Unet::infer`] does.
    ///
    /// # Errors
    /// If a tensor is missing, or has a shape that makes no sense.
    pub fn infer(shapes: &Shapes, metadata: &BTreeMap<String, String>) -> Result<Self, DetectError> {
        let from = &Reader { architecture: ARCHITECTURE, shapes };
        if from.has(UNION.0) {
            return Err(DetectError::NotSupported { architecture: UNION.1 });
        }
        let unet = Unet::read_trunk(from, metadata)?;
        let mut hint = [unet.model_channels; Self::HINT_CONVS + 1];
        for (i, channels) in hint[..Self::HINT_CONVS].iter_mut().enumerate() {
            *channels = from.convolution(&Self::hint_conv(i))?.1;
        }
        let net = Self { unet, hint };
        check(ARCHITECTURE, net.parts(), shapes)?;
        net.unet.check_heads(ARCHITECTURE)?;
        Ok(net)
    }

    /// Returns the name of convolution `i` of a hint.
    pub fn hint_conv(i: usize) -> String {
        format!("input_hint_block.{}", 2 * i)
    }

    /// The channels behind the first convolution and behind each block.
    fn outputs(&self) -> impl Iterator<Item = usize> {
        let blocks = self.unet.input.iter().map(|block| block.outputs());
        std::iter::once(self.unet.model_channels).chain(blocks)
    }

    /// Lists every tensor of the network with its shape.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        self.parts().into_iter().map(|part| (part.name, part.shape))
    }

    fn parts(&self) -> Vec<Part> {
        let mut to = Builder::default();
        self.unet.add_trunk(&mut to);
        for (i, pair) in self.hint.windows(2).enumerate() {
            to.conv(&Self::hint_conv(i), pair[1], pair[0], 3);
        }
        for (i, channels) in self.outputs().enumerate() {
            to.conv(&format!("zero_convs.{i}.0"), channels, channels, 1);
        }
        to.conv("middle_block_out.0", self.unet.deepest(), self.unet.deepest(), 1);
        to.parts
    }
}

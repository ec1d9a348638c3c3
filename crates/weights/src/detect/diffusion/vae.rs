//! The autoencoder of latent diffusion (Rombach et al. 2022), by the names of its own code.

use super::check;
use crate::detect::{
    DetectError, Shapes,
    parts::{Builder, Part},
    shapes::Reader,
};

const ARCHITECTURE: &str = "VAE";

/// The sizes of an autoencoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vae {
    /// The channels of a picture.
    pub in_channels: usize,
    /// The channels behind the encoder's first convolution.
    pub ch: usize,
    /// The channels of each level, the largest pictures first. Between two levels the sides halve.
    pub levels: Vec<usize>,
    /// The residual blocks of an encoder's level; a decoder's has one more.
    pub num_res_blocks: usize,
    /// The channels that the encoder gives, half of which are the mean.
    pub z_channels: usize,
    /// The channels of a latent.
    pub embed_dim: usize,
}

impl Vae {
    /// Tells the sizes from the tensors below the network's prefix.
    ///
    /// # Errors
    /// If a tensor is missing, or has a shape that makes no sense.
    pub fn infer(shapes: &Shapes) -> Result<Self, DetectError> {
        let from = &Reader { architecture: ARCHITECTURE, shapes };
        let (ch, in_channels) = from.convolution("encoder.conv_in")?;
        let level = |level: usize| Ok(from.convolution(&format!("encoder.down.{level}.block.0.conv2"))?.0);
        let levels = (0..from.count("encoder.down")?).map(level).collect::<Result<Vec<_>, DetectError>>()?;
        let (embed_twice, z_twice) = from.convolution("quant_conv")?;
        let vae = Self {
            in_channels,
            ch,
            num_res_blocks: from.count("encoder.down.0.block")?,
            levels,
            z_channels: z_twice / 2,
            embed_dim: embed_twice / 2,
        };
        check(ARCHITECTURE, vae.parts(), shapes)?;
        Ok(vae)
    }

    /// Returns how many pixels of a picture, each way, a number of a latent stands for.
    pub fn scale(&self) -> usize {
        1 << self.levels.len().saturating_sub(1)
    }

    /// Returns the channels of the deepest level.
    pub fn deepest(&self) -> usize {
        self.levels.last().copied().unwrap_or(self.ch)
    }

    /// Lists every tensor of the network with its shape.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        self.parts().into_iter().map(|part| (part.name, part.shape))
    }

    fn parts(&self) -> Vec<Part> {
        let mut to = Builder::default();
        let (deepest, z, embed) = (self.deepest(), self.z_channels, self.embed_dim);
        to.conv("encoder.conv_in", self.ch, self.in_channels, 3);
        let mut inputs = self.ch;
        for (level, &outputs) in self.levels.iter().enumerate() {
            for block in 0..self.num_res_blocks {
                add_res(&mut to, &format!("encoder.down.{level}.block.{block}"), inputs, outputs);
                inputs = outputs;
            }
            if level + 1 < self.levels.len() {
                to.conv(&format!("encoder.down.{level}.downsample.conv"), outputs, outputs, 3);
            }
        }
        add_middle(&mut to, "encoder.mid", deepest);
        to.norm("encoder.norm_out", deepest);
        to.conv("encoder.conv_out", 2 * z, deepest, 3);
        to.conv("quant_conv", 2 * embed, 2 * z, 1);

        to.conv("post_quant_conv", z, embed, 1);
        to.conv("decoder.conv_in", deepest, z, 3);
        add_middle(&mut to, "decoder.mid", deepest);
        let mut inputs = deepest;
        for (level, &outputs) in self.levels.iter().enumerate().rev() {
            for block in 0..=self.num_res_blocks {
                add_res(&mut to, &format!("decoder.up.{level}.block.{block}"), inputs, outputs);
                inputs = outputs;
            }
            if level > 0 {
                to.conv(&format!("decoder.up.{level}.upsample.conv"), outputs, outputs, 3);
            }
        }
        to.norm("decoder.norm_out", inputs);
        to.conv("decoder.conv_out", self.in_channels, inputs, 3);
        to.parts
    }
}

fn add_res(to: &mut Builder, name: &str, inputs: usize, outputs: usize) {
    to.norm(&format!("{name}.norm1"), inputs);
    to.conv(&format!("{name}.conv1"), outputs, inputs, 3);
    to.norm(&format!("{name}.norm2"), outputs);
    to.conv(&format!("{name}.conv2"), outputs, outputs, 3);
    if inputs != outputs {
        to.conv(&format!("{name}.nin_shortcut"), outputs, inputs, 1);
    }
}

fn add_middle(to: &mut Builder, name: &str, channels: usize) {
    add_res(to, &format!("{name}.block_1"), channels, channels);
    to.norm(&format!("{name}.attn_1.norm"), channels);
    for part in ["q", "k", "v", "proj_out"] {
        to.conv(&format!("{name}.attn_1.{part}"), channels, channels, 1);
    }
    add_res(to, &format!("{name}.block_2"), channels, channels);
}

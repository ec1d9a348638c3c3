//! The UNet of latent diffusion (Rombach et al. 2022) and of SDXL (Podell et al. 2023), by the names of their own code.

use std::collections::BTreeMap;

use super::check;
use crate::detect::{
    DetectError, Shapes,
    parts::{Builder, Part},
    shapes::{Reader, whole},
};

const ARCHITECTURE: &str = "UNet";

/// The sizes of a UNet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unet {
    /// The channels that go in: 4 of a latent, and 5 more where it inpaints.
    pub in_channels: usize,
    /// The channels that come out.
    pub out_channels: usize,
    /// The channels of the first convolution, and of the features of a timestep.
    pub model_channels: usize,
    /// The numbers of a timestep's embedding.
    pub embedding: usize,
    /// The numbers of a condition beside the text (`y`), if the network takes one.
    pub adm_in_channels: Option<usize>,
    /// The numbers of a token of text; 0 if there is no transformer.
    pub context_dim: usize,
    /// Whether the projections around transformers are linear layers, and not 1x1 convolutions.
    pub is_linear: bool,
    /// The blocks behind the first convolution, `input_blocks.1` and so on.
    pub input: Vec<InputBlock>,
    /// How many transformer blocks are in the middle, between two residual blocks; 0 for a single residual block, as in SSD-1B, and
    /// none if there is no middle at all, as in KOALA-700M.
    pub middle: Option<usize>,
    /// The blocks behind the middle, `output_blocks.0` and so on.
    pub output: Vec<OutputBlock>,
    /// How attention is split.
    pub heads: Heads,
}

/// A block on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputBlock {
    /// A residual block, and a transformer of `depth` blocks behind it.
    Res {
        /// The channels that go in.
        inputs: usize,
        /// The channels that come out.
        outputs: usize,
        /// Transformer blocks; 0 for no transformer.
        depth: usize,
    },
    /// A convolution that halves the sides.
    Down {
        /// Its channels.
        channels: usize,
    },
}

impl InputBlock {
    /// Returns the channels that come out.
    pub fn outputs(self) -> usize {
        match self {
            Self::Res { outputs, .. } => outputs,
            Self::Down { channels } => channels,
        }
    }
}

/// A block on the way up: a residual block, a transformer, and a doubling of the sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputBlock {
    /// The channels that go in, with those kept on the way down.
    pub inputs: usize,
    /// The channels that come out.
    pub outputs: usize,
    /// Transformer blocks; 0 for no transformer.
    pub depth: usize,
    /// Whether the sides double at its end.
    pub is_up: bool,
}

/// How the channels of an attention are split among heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// So many heads.
    Count(usize),
    /// Heads of so many channels.
    Width(usize),
}

impl Heads {
    /// Returns how many heads `channels` have; none if they cannot be shared.
    pub fn of(self, channels: usize) -> Option<usize> {
        match self {
            Self::Count(count) => whole(channels, count).map(|_| count),
            Self::Width(width) => whole(channels, width),
        }
    }
}

impl Unet {
    /// Tells the sizes from the tensors below the network's prefix, and heads from what a safetensors header says of them
    /// (`unet.num_heads` or `unet.num_head_channels`), which shapes do not tell. Without it a network without
    /// linear projections has 8 heads (Stable Diffusion 1), all others heads of 64 channels.
    ///
    /// # Errors
    /// If a tensor is missing, or has a shape that makes no sense.
    pub fn infer(shapes: &Shapes, metadata: &BTreeMap<String, String>) -> Result<Self, DetectError> {
        let from = &Reader { architecture: ARCHITECTURE, shapes };
        let trunk = Self::read_trunk(from, metadata)?;
        let (out_channels, _) = from.convolution("out.2")?;
        let output_block = |block: usize| -> Result<_, DetectError> {
            let name = format!("output_blocks.{block}");
            let (outputs, inputs) = from.convolution(&format!("{name}.0.in_layers.2"))?;
            let depth = from.count(&format!("{name}.1.transformer_blocks"))?;
            let is_up = from.has(&format!("{name}.{}.conv.weight", 1 + usize::from(depth > 0)));
            Ok(OutputBlock { inputs, outputs, depth, is_up })
        };
        let output = (0..from.count("output_blocks")?).map(output_block).collect::<Result<_, _>>()?;
        let unet = Self { out_channels, output, ..trunk };
        check(ARCHITECTURE, unet.parts(), shapes)?;
        unet.check_heads(ARCHITECTURE)?;
        Ok(unet)
    }

    /// Tells the sizes of the way down and of the middle, as a network without a way up.
    pub(super) fn read_trunk(from: &Reader<'_>, metadata: &BTreeMap<String, String>) -> Result<Self, DetectError> {
        let (model_channels, in_channels) = from.convolution("input_blocks.0.0")?;
        let (embedding, _) = from.linear("time_embed.0")?;
        let adm = from.has("label_emb.0.0.weight").then(|| from.linear("label_emb.0.0")).transpose()?;

        let mut input = Vec::new();
        for block in 1..from.count("input_blocks")? {
            let name = format!("input_blocks.{block}");
            input.push(match from.has(&format!("{name}.0.op.weight")) {
                true => InputBlock::Down { channels: from.convolution(&format!("{name}.0.op"))?.0 },
                false => {
                    let (outputs, inputs) = from.convolution(&format!("{name}.0.in_layers.2"))?;
                    InputBlock::Res { inputs, outputs, depth: from.count(&format!("{name}.1.transformer_blocks"))? }
                }
            });
        }
        let has_middle = from.has("middle_block.0.in_layers.2.weight");
        let middle = has_middle.then(|| from.count("middle_block.1.transformer_blocks")).transpose()?;

        let ends = |end: &str| from.shapes.keys().find(|name| name.ends_with(end)).map(|name| &name[..name.len() - 7]);
        let context_dim = match ends("attn2.to_k.weight") {
            Some(name) => from.linear(name)?.1,
            None => 0,
        };
        let is_linear = ends("proj_in.weight").is_some_and(|name| from.shapes[&format!("{name}.weight")].len() == 2);
        let number = |key: &str| metadata.get(key).and_then(|value| value.parse().ok()).filter(|number| *number > 0);
        let heads = match (number("unet.num_heads"), number("unet.num_head_channels")) {
            (_, Some(width)) => Heads::Width(width),
            (Some(count), None) => Heads::Count(count),
            (None, None) if is_linear => Heads::Width(64),
            (None, None) => Heads::Count(8),
        };
        Ok(Self {
            in_channels,
            out_channels: 0,
            model_channels,
            embedding,
            adm_in_channels: adm.map(|(_, inputs)| inputs),
            context_dim,
            is_linear,
            input,
            middle,
            output: Vec::new(),
            heads,
        })
    }

    /// Refuses channels that heads cannot share.
    pub(super) fn check_heads(&self, architecture: &'static str) -> Result<(), DetectError> {
        match self.attended().find(|channels| self.heads.of(*channels).is_none()) {
            None => Ok(()),
            Some(channels) => {
                let (tensor, found) = ("transformer_blocks".to_owned(), vec![channels]);
                Err(DetectError::Odd { architecture, tensor, found, what: "how heads share the channels" })
            }
        }
    }

    /// The channels of every transformer.
    fn attended(&self) -> impl Iterator<Item = usize> {
        let input = self.input.iter().filter_map(|block| match block {
            InputBlock::Res { outputs, depth: 1.., .. } => Some(*outputs),
            _ => None,
        });
        let output = self.output.iter().filter(|block| block.depth > 0).map(|block| block.outputs);
        input.chain(output).chain((self.middle > Some(0)).then(|| self.deepest()))
    }

    /// Returns the channels of the middle.
    pub fn deepest(&self) -> usize {
        self.input.last().map_or(self.model_channels, |block| block.outputs())
    }

    /// Lists every tensor of the network with its shape.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        self.parts().into_iter().map(|part| (part.name, part.shape))
    }

    fn parts(&self) -> Vec<Part> {
        let mut to = Builder::default();
        self.add_trunk(&mut to);
        for (number, OutputBlock { inputs, outputs, depth, is_up }) in self.output.iter().copied().enumerate() {
            let name = format!("output_blocks.{number}");
            self.add_res(&mut to, &format!("{name}.0"), inputs, outputs);
            self.add_transformer(&mut to, &format!("{name}.1"), outputs, depth);
            if is_up {
                to.conv(&format!("{name}.{}.conv", 1 + usize::from(depth > 0)), outputs, outputs, 3);
            }
        }
        to.norm("out.0", self.model_channels);
        to.conv("out.2", self.out_channels, self.model_channels, 3);
        to.parts
    }

    /// Adds the way down and the middle.
    pub(super) fn add_trunk(&self, to: &mut Builder) {
        to.linear("time_embed.0", self.embedding, self.model_channels);
        to.linear("time_embed.2", self.embedding, self.embedding);
        if let Some(inputs) = self.adm_in_channels {
            to.linear("label_emb.0.0", self.embedding, inputs);
            to.linear("label_emb.0.2", self.embedding, self.embedding);
        }
        to.conv("input_blocks.0.0", self.model_channels, self.in_channels, 3);
        for (block, number) in self.input.iter().zip(1..) {
            let name = format!("input_blocks.{number}");
            match *block {
                InputBlock::Down { channels } => to.conv(&format!("{name}.0.op"), channels, channels, 3),
                InputBlock::Res { inputs, outputs, depth } => {
                    self.add_res(to, &format!("{name}.0"), inputs, outputs);
                    self.add_transformer(to, &format!("{name}.1"), outputs, depth);
                }
            }
        }
        if let Some(depth) = self.middle {
            let channels = self.deepest();
            self.add_res(to, "middle_block.0", channels, channels);
            self.add_transformer(to, "middle_block.1", channels, depth);
            if depth > 0 {
                self.add_res(to, "middle_block.2", channels, channels);
            }
        }
    }

    fn add_res(&self, to: &mut Builder, name: &str, inputs: usize, outputs: usize) {
        to.norm(&format!("{name}.in_layers.0"), inputs);
        to.conv(&format!("{name}.in_layers.2"), outputs, inputs, 3);
        to.linear(&format!("{name}.emb_layers.1"), outputs, self.embedding);
        to.norm(&format!("{name}.out_layers.0"), outputs);
        to.conv(&format!("{name}.out_layers.3"), outputs, outputs, 3);
        if inputs != outputs {
            to.conv(&format!("{name}.skip_connection"), outputs, inputs, 1);
        }
    }

    fn add_transformer(&self, to: &mut Builder, name: &str, c: usize, depth: usize) {
        if depth == 0 {
            return;
        }
        to.norm(&format!("{name}.norm"), c);
        for projection in ["proj_in", "proj_out"].map(|part| format!("{name}.{part}")) {
            match self.is_linear {
                true => to.linear(&projection, c, c),
                false => to.conv(&projection, c, c, 1),
            }
        }
        for block in (0..depth).map(|block| format!("{name}.transformer_blocks.{block}")) {
            (1..=3).for_each(|norm| to.norm(&format!("{block}.norm{norm}"), c));
            for (attention, inputs) in [("attn1", c), ("attn2", self.context_dim)] {
                to.linear_if(false, &format!("{block}.{attention}.to_q"), c, c);
                to.linear_if(false, &format!("{block}.{attention}.to_k"), c, inputs);
                to.linear_if(false, &format!("{block}.{attention}.to_v"), c, inputs);
                to.linear(&format!("{block}.{attention}.to_out.0"), c, c);
            }
            to.linear(&format!("{block}.ff.net.0.proj"), 8 * c, c);
            to.linear(&format!("{block}.ff.net.2"), c, 4 * c);
        }
    }
}

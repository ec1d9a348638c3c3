//! ATD: window attention, attention to a dictionary of tokens, and attention within the categories that the dictionary makes
//! of the pixels (Zhang et al. 2024, arXiv 2401.08209).

use serde_json::json;

use super::head::{Resi, Upsampler};
use super::parts::{Builder, Part, Role};
use super::shapes::Reader;
use super::swinir::heads;
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "ATD";

/// The sizes of an ATD network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Atd {
    /// The channels of the picture, in and out.
    pub in_chans: usize,
    /// The channels of the trunk.
    pub embed_dim: usize,
    /// How many layers each group has.
    pub depths: Vec<usize>,
    /// How many heads the attention of each group has.
    pub num_heads: Vec<usize>,
    /// The side of a window, in pixels.
    pub window_size: usize,
    /// How many tokens the dictionary of a group has.
    pub num_tokens: usize,
    /// The channels of the queries and keys of the attention to the dictionary.
    pub reducted_dim: usize,
    /// The side of the kernel in the feed-forward part, in pixels.
    pub convffn_kernel_size: usize,
    /// The channels between the two linear layers of a layer.
    pub mlp_hidden: usize,
    /// Whether queries, keys and values have a bias; with them the last linear layer of the attention within categories.
    pub qkv_bias: bool,
    /// Whether `patch_embed.norm` stands before the layers.
    pub patch_norm: bool,
    /// Whether the mean colour is taken off first and put back at the end.
    pub norm: bool,
    /// What stands behind the layers of a group, and behind all groups.
    pub resi_connection: Resi,
    /// How the picture gets larger.
    pub upsampler: Upsampler,
}

impl Atd {
    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let (embed_dim, in_chans) = from.convolution("conv_first")?;
        let list = |group| format!("layers.{group}.residual_group.layers");
        let first = format!("{}.0", list(0));
        let groups = from.count("layers")?;
        let depths = (0..groups).map(|group| from.count(&list(group))).collect::<Result<_, _>>()?;
        let table = |group| format!("{}.0.attn_win.relative_position_bias_table", list(group));
        let num_heads = (0..groups).map(|group| heads(from, &table(group), embed_dim)).collect::<Result<_, _>>()?;
        let (_, _, convffn_kernel_size) = from.odd_kernel(&format!("{first}.convffn.dwconv.depthwise_conv.0"))?;
        Ok(Self {
            in_chans,
            embed_dim,
            depths,
            num_heads,
            window_size: from.window("relative_position_index_SA")?,
            num_tokens: from.vector(&format!("{first}.attn_atd.scale"))?,
            reducted_dim: from.linear(&format!("{first}.attn_atd.wq"))?.0,
            convffn_kernel_size,
            mlp_hidden: from.linear(&format!("{first}.convffn.fc1"))?.0,
            qkv_bias: from.has(&format!("{first}.wqkv.bias")),
            patch_norm: from.has("patch_embed.norm.weight"),
            norm: !from.has("no_norm"),
            resi_connection: Resi::infer(from, "layers.0.conv", false)?,
            upsampler: Upsampler::infer(from, in_chans)?,
        })
    }

    /// Says whether it is one of the light models, which are told by their head and their width.
    fn is_light(&self) -> bool {
        matches!(self.upsampler, Upsampler::Direct { .. }) && self.embed_dim == 48
    }

    /// Returns how many pixels attend to each other within a category. It is not in the file: the published models have two
    /// sizes.
    pub fn category_size(&self) -> usize {
        if self.is_light() { 128 } else { 256 }
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let (c, w, bias) = (self.embed_dim, self.window_size, self.qkv_bias);
        let mut to = Builder::default();
        if !self.norm {
            to.tensor("no_norm", [1], Role::Flag);
        }
        to.tensor("relative_position_index_SA", [w * w, w * w], Role::Buffer);
        to.conv("conv_first", c, self.in_chans, 3);
        if self.patch_norm {
            to.norm("patch_embed.norm", c);
        }
        for (group, (&depth, &heads)) in self.depths.iter().zip(&self.num_heads).enumerate() {
            let name = format!("layers.{group}.residual_group");
            to.parameter(format!("{name}.td"), [self.num_tokens, c]);
            for layer in 0..depth {
                let is_last = layer + 1 == depth;
                self.add_layer(&mut to, &format!("{name}.layers.{layer}"), heads, bias, is_last);
            }
            self.resi_connection.add(&mut to, &format!("layers.{group}.conv"), c);
        }
        to.norm("norm", c);
        self.resi_connection.add(&mut to, "conv_after_body", c);
        self.upsampler.add(&mut to, c, self.in_chans);
        to.parts
    }

    fn add_layer(&self, to: &mut Builder, name: &str, heads: usize, bias: bool, is_last: bool) {
        let (c, tokens, distances) = (self.embed_dim, self.num_tokens, 2 * self.window_size - 1);
        if !is_last {
            // Each layer but the last refines the dictionary for the next.
            to.parameter(format!("{name}.sigma"), [tokens, 1]);
            to.norm(&format!("{name}.norm3"), tokens);
        }
        to.norm(&format!("{name}.norm1"), c);
        to.norm(&format!("{name}.norm2"), c);
        to.linear_if(bias, &format!("{name}.wqkv"), 3 * c, c);
        to.parameter(format!("{name}.attn_win.relative_position_bias_table"), [distances * distances, heads]);
        to.linear(&format!("{name}.attn_win.proj"), c, c);
        to.parameter(format!("{name}.attn_atd.scale"), [tokens]);
        to.linear_if(bias, &format!("{name}.attn_atd.wq"), self.reducted_dim, c);
        to.linear_if(bias, &format!("{name}.attn_atd.wk"), self.reducted_dim, c);
        to.linear_if(bias, &format!("{name}.attn_atd.wv"), c, c);
        to.parameter(format!("{name}.attn_aca.logit_scale"), [1, 1]);
        to.linear_if(bias, &format!("{name}.attn_aca.proj"), c, c);
        to.mlp(&format!("{name}.convffn"), c, self.mlp_hidden);
        to.conv(&format!("{name}.convffn.dwconv.depthwise_conv.0"), self.mlp_hidden, 1, self.convffn_kernel_size);
    }

    pub(super) fn facts(&self) -> Result<ModelFacts, DetectError> {
        let upscale = self.upsampler.scale();
        let mut tags = vec![
            format!("{}dim", self.embed_dim),
            format!("{}w", self.window_size),
            format!("{}cat", self.category_size()),
        ];
        if self.is_light() {
            tags.insert(0, "light".to_owned());
        }
        Ok(ModelFacts {
            scale: facts::scale(ARCHITECTURE, upscale, 1)?,
            input_channels: self.in_chans as u32,
            output_channels: self.in_chans as u32,
            size_requirements: SizeRequirements { minimum: 8, ..SizeRequirements::NONE },
            tags,
            hyperparameters: facts::map(json!({
                "img_size": 64,
                "patch_size": 1,
                "in_chans": self.in_chans,
                "embed_dim": self.embed_dim,
                "depths": self.depths,
                "num_heads": self.num_heads,
                "window_size": self.window_size,
                "category_size": self.category_size(),
                "num_tokens": self.num_tokens,
                "reducted_dim": self.reducted_dim,
                "convffn_kernel_size": self.convffn_kernel_size,
                "mlp_ratio": self.mlp_hidden as f64 / self.embed_dim as f64,
                "qkv_bias": self.qkv_bias,
                "ape": false,
                "patch_norm": self.patch_norm,
                "upscale": upscale,
                "img_range": 1.0,
                "upsampler": self.upsampler.name(),
                "resi_connection": self.resi_connection.name(),
                "norm": self.norm,
            })),
            ..ModelFacts::of(ARCHITECTURE)
        })
    }
}

//! The names of a UNet's tensors.

use super::count;
use crate::detect::{
    Shapes,
    diffusion::{InputBlock, Unet},
};

/// A UNet has at most so many levels, and so many residual blocks in each: names that count further are not believed.
const MOST: usize = 64;

/// What is inside a residual block, by the names of diffusers and of LDM.
const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// What is in no block, by the names of diffusers and of LDM. Of two names that LDM has for one layer the first is preferred.
const OTHERS: [(&str, &str); 9] = [
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("class_embedding.linear_1", "label_emb.0.0"),
    ("class_embedding.linear_2", "label_emb.0.2"),
];

/// The names of one UNet's tensors, by diffusers and by LDM: how many blocks a level has tells which is which.
#[derive(Debug, Clone)]
pub struct UnetNames {
    /// Blocks by the names of diffusers and of LDM.
    blocks: Vec<Block>,
}

#[derive(Debug, Clone)]
struct Block {
    diffusers: String,
    ldm: String,
    /// What is inside, where it has names of its own.
    inside: &'static [(&'static str, &'static str)],
}

/// How the blocks of a UNet are grouped.
#[derive(Debug, Default)]
struct Plan {
    /// For each level of the way down: residual blocks, and whether a convolution that halves the sides follows.
    down: Vec<(usize, bool)>,
    /// For each level of the way up: whether each residual block has a transformer, and whether the sides double.
    up: Vec<(Vec<bool>, bool)>,
}

impl UnetNames {
    /// The names of a UNet of these sizes.
    pub fn of(unet: &Unet) -> Self {
        let mut plan = Plan::default();
        let mut blocks = 0;
        for block in &unet.input {
            match block {
                InputBlock::Res { .. } => blocks += 1,
                InputBlock::Down { .. } => plan.down.push((std::mem::take(&mut blocks), true)),
            }
        }
        plan.down.push((blocks, false));
        let mut level = Vec::new();
        for block in &unet.output {
            level.push(block.depth > 0);
            if block.is_up {
                plan.up.push((std::mem::take(&mut level), true));
            }
        }
        plan.up.push((level, false));
        Self::by(&plan)
    }

    /// The names of the UNet, or of the encoder of a ControlNet, whose tensors have these names of diffusers.
    pub fn of_diffusers(shapes: &Shapes) -> Self {
        let count = |list: &str| {
            count(
                shapes.range(list.to_owned()..).map(|(name, _)| &**name).take_while(|name| name.starts_with(list)),
                list,
            )
            .min(MOST)
        };
        let has = |name: String| shapes.contains_key(&name);
        let down = |level: usize| {
            let name = format!("down_blocks.{level}");
            (count(&format!("{name}.resnets")), has(format!("{name}.downsamplers.0.conv.weight")))
        };
        let up = |level: usize| {
            let name = format!("up_blocks.{level}");
            let has_transformer = |block: usize| has(format!("{name}.attentions.{block}.proj_in.weight"));
            let blocks = (0..count(&format!("{name}.resnets"))).map(has_transformer).collect();
            (blocks, has(format!("{name}.upsamplers.0.conv.weight")))
        };
        Self::by(&Plan {
            down: (0..count("down_blocks")).map(down).collect(),
            up: (0..count("up_blocks")).map(up).collect(),
        })
    }

    fn by(plan: &Plan) -> Self {
        let mut blocks = Vec::new();
        let mut add = |diffusers: String, ldm: String, inside| blocks.push(Block { diffusers, ldm, inside });
        let mut number = 1; // behind the first convolution
        for (level, &(count, is_halved)) in plan.down.iter().enumerate() {
            for block in 0..count {
                add(format!("down_blocks.{level}.resnets.{block}"), format!("input_blocks.{number}.0"), &RESNET[..]);
                add(format!("down_blocks.{level}.attentions.{block}"), format!("input_blocks.{number}.1"), &[]);
                number += 1;
            }
            if is_halved {
                let name = format!("down_blocks.{level}.downsamplers.0.conv");
                add(name, format!("input_blocks.{number}.0.op"), &[]);
                number += 1;
            }
        }
        for (diffusers, ldm, inside) in
            [("resnets.0", "0", &RESNET[..]), ("attentions.0", "1", &[]), ("resnets.1", "2", &RESNET)]
        {
            add(format!("mid_block.{diffusers}"), format!("middle_block.{ldm}"), inside);
        }
        let mut number = 0;
        for (level, (transformers, is_doubled)) in plan.up.iter().enumerate() {
            for (block, has_transformer) in transformers.iter().enumerate() {
                add(format!("up_blocks.{level}.resnets.{block}"), format!("output_blocks.{number}.0"), &RESNET);
                let mut place = 1;
                if *has_transformer {
                    add(format!("up_blocks.{level}.attentions.{block}"), format!("output_blocks.{number}.1"), &[]);
                    place = 2;
                }
                if *is_doubled && block + 1 == transformers.len() {
                    let name = format!("up_blocks.{level}.upsamplers.0.conv");
                    add(name, format!("output_blocks.{number}.{place}.conv"), &[]);
                }
                number += 1;
            }
        }
        for (diffusers, ldm) in OTHERS {
            add(diffusers.to_owned(), ldm.to_owned(), &[]);
        }
        Self { blocks }
    }

    /// Returns LDM's name of what diffusers calls `name`, a tensor or a module.
    pub fn to_ldm(&self, name: &str) -> Option<String> {
        self.blocks.iter().find_map(|block| {
            let (inside, rest) = translate(below(name, &block.diffusers)?, block.inside.iter().copied())?;
            Some(join([&block.ldm, inside, rest]))
        })
    }

    /// Returns the name that diffusers has for what LDM calls `name`, a tensor or a module.
    pub fn to_diffusers(&self, name: &str) -> Option<String> {
        self.blocks.iter().find_map(|block| {
            let names = block.inside.iter().map(|(diffusers, ldm)| (*ldm, *diffusers));
            let (inside, rest) = translate(below(name, &block.ldm)?, names)?;
            Some(join([&block.diffusers, inside, rest]))
        })
    }
}

/// Returns what follows `block` and a dot in `name`; nothing where it is the block itself.
fn below<'a>(name: &'a str, block: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(block)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
}

/// Splits `name` into the other name of the layer that it begins with and what follows. Where no layer has another name, all follows.
fn translate(
    name: &str,
    mut layers: impl ExactSizeIterator<Item = (&'static str, &'static str)>,
) -> Option<(&'static str, &str)> {
    if layers.len() == 0 || name.is_empty() {
        return Some(("", name));
    }
    layers.find_map(|(from, to)| Some((to, below(name, from)?)))
}

fn join<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

//! The names of an autoencoder's tensors.

use super::count;

/// Names inside a block, by diffusers and by LDM. Attention has two sets of names in diffusers, the second one older.
const INSIDE: [(&str, &str); 11] = [
    ("conv_shortcut", "nin_shortcut"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("query", "q"),
    ("to_k", "k"),
    ("key", "k"),
    ("to_v", "v"),
    ("value", "v"),
    ("to_out.0", "proj_out"),
    ("proj_attn", "proj_out"),
    ("conv_norm_out", "norm_out"),
];

/// Returns how many levels the autoencoder has whose tensors have these names of diffusers.
pub fn levels<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    count(names, "decoder.up_blocks")
}

/// Returns LDM's name of what diffusers calls `name` in an autoencoder of so many `levels`.
pub fn to_ldm(name: &str, levels: usize) -> Option<String> {
    let (head, rest) = match name.split_once('.')? {
        ("quant_conv" | "post_quant_conv", _) => return Some(name.to_owned()),
        (head @ ("encoder" | "decoder"), rest) => (head, rest),
        _ => return None,
    };
    let (block, rest) = block(rest, levels)?;
    let name = |part: &str| if part.is_empty() { String::new() } else { format!(".{part}") };
    // The one name in a block that has a dot inside.
    let rest = rest.replacen("to_out.0", "proj_out", 1);
    let (layer, tail) = rest.split_once('.').unwrap_or((&rest, ""));
    let layer = INSIDE.iter().find(|(diffusers, _)| *diffusers == layer).map_or(layer, |(_, ldm)| ldm);
    Some(format!("{head}{}{}{}", name(&block), name(layer), name(tail)))
}

/// Turns the name of a block into LDM's, and returns what follows.
fn block(name: &str, levels: usize) -> Option<(String, &str)> {
    let parts: Vec<&str> = name.splitn(5, '.').collect();
    Some(match parts[..] {
        ["mid_block", "resnets", block, ..] => {
            let number: usize = block.parse().ok()?;
            (format!("mid.block_{}", number.checked_add(1)?), after(name, 3))
        }
        ["mid_block", "attentions", "0", ..] => ("mid.attn_1".to_owned(), after(name, 3)),
        ["down_blocks", level, "resnets", block, _] => (format!("down.{level}.block.{block}"), after(name, 4)),
        ["down_blocks", level, "downsamplers", "0", _] => (format!("down.{level}.downsample"), after(name, 4)),
        ["up_blocks", level, part, block, _] => {
            // LDM counts from the largest pictures on the way up, too.
            let level = levels.checked_sub(1)?.checked_sub(level.parse().ok()?)?;
            match part {
                "resnets" => (format!("up.{level}.block.{block}"), after(name, 4)),
                "upsamplers" => (format!("up.{level}.upsample"), after(name, 4)),
                _ => return None,
            }
        }
        _ => (String::new(), name),
    })
}

/// Returns what follows the first `count` parts of a name.
fn after(name: &str, count: usize) -> &str {
    name.splitn(count + 1, '.').nth(count).unwrap_or("")
}

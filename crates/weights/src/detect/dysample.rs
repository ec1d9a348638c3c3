//! DySample: a picture made larger by looking where to look (Liu et al. 2023, arXiv 2308.15085).

use super::DetectError;
use super::parts::{Builder, Role};
use super::shapes::{Reader, root, whole};

/// The sizes of a DySample head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DySample {
    /// The channels that it takes.
    pub in_channels: usize,
    /// The channels of the picture that comes out.
    pub out_ch: usize,
    /// How many times wider and higher that is.
    pub scale: usize,
    /// How many groups of channels each look elsewhere.
    pub groups: usize,
    /// Whether the 1x1 convolution `end_conv` makes the picture of what was looked up; else there are as many channels as go in.
    pub end_conv: bool,
}

impl DySample {
    /// Tells its sizes from the convolutions under `name`; `groups` depends on the scale.
    pub(super) fn infer(from: &Reader<'_>, name: &str, groups: impl Fn(usize) -> usize) -> Result<Self, DetectError> {
        let offset = format!("{name}.offset");
        let (offsets, in_channels) = from.convolution(&offset)?;
        let last = format!("{name}.end_conv");
        let end_conv = from.has(&format!("{last}.weight"));
        let out_ch = if end_conv { from.convolution(&last)?.0 } else { in_channels };
        // Two axes, a number of groups, scale * scale places. The scale says how many groups, and so is looked for.
        let found = (1..=offsets.isqrt())
            .find(|&scale| whole(offsets, 2 * groups(scale)).and_then(root) == Some(scale))
            .ok_or_else(|| from.odd(&format!("{offset}.weight"), "the scale"))?;
        Ok(Self { in_channels, out_ch, scale: found, groups: groups(found), end_conv })
    }

    /// Adds its tensors under `name`.
    pub(super) fn add(&self, to: &mut Builder, name: &str) {
        let Self { in_channels, out_ch, scale, groups, end_conv } = *self;
        let offsets = 2 * groups * scale * scale;
        to.tensor(format!("{name}.init_pos"), [1, offsets, 1, 1], Role::Buffer);
        if end_conv {
            to.conv(&format!("{name}.end_conv"), out_ch, in_channels, 1);
        }
        to.conv(&format!("{name}.offset"), offsets, in_channels, 1);
        to.conv_if(false, &format!("{name}.scope"), offsets, in_channels, 1);
    }
}

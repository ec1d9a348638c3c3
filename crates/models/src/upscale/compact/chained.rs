//! [`Compact`](super::Compact) on a CPU: all of it is one chain.

use std::sync::Mutex;

use kernels::{
    chain::{Activation, Chain, Output, Pixels, Workspace},
    picture::Picture,
};
use weights::detect;

use crate::{
    error::Result,
    upscale::parts::{Links, Then, run, values},
    watch::Progress,
};

/// The whole network.
#[derive(Debug)]
pub(in crate::upscale) struct ChainedCompact {
    layout: detect::Compact,
    chain: Chain,
}

impl ChainedCompact {
    pub(in crate::upscale) fn load(layout: &detect::Compact, links: &Links<'_>) -> Result<Self> {
        let mut chain = links.chain();
        let mut y = chain.given(layout.num_in_ch);
        let last = layout.last();
        for i in (0..last).step_by(2) {
            let slopes = values(links.checkpoint, &format!("body.{}.weight", i + 1))?;
            y = links.conv3x3(&mut chain, &format!("body.{i}"), &[y], Then::activation(Activation::PRelu(slopes)))?;
        }
        links.conv3x3(&mut chain, &format!("body.{last}"), &[y], Then::nothing())?;
        Ok(Self { layout: *layout, chain })
    }

    /// The multiplications for each pixel.
    pub(in crate::upscale) fn work(&self) -> f64 {
        self.chain.work()
    }

    /// The bytes of the weights, and of the work on `h` x `w` pixels.
    pub(in crate::upscale) fn memory(&self, h: usize, w: usize) -> usize {
        self.chain.weight_bytes() + Picture::bytes(self.layout.num_in_ch, h, w) + self.chain.work_bytes(h, w)
    }

    /// Takes pixels `[h][w][c]`, and gives `[h*upscale][w*upscale][c']`.
    pub(in crate::upscale) fn forward(
        &self,
        pixels: &[f32],
        h: usize,
        w: usize,
        progress: &Mutex<Progress<'_>>,
    ) -> Result<Vec<f32>> {
        let detect::Compact { num_in_ch, num_out_ch, upscale, .. } = self.layout;
        let x = Picture::from_pixels(pixels, h, w, num_in_ch, 1);
        let channels = num_in_ch.max(num_out_ch); // a model may add to one channel only
        let mut out = vec![0.0; h * w * upscale * upscale * channels];
        let to = Pixels { out: &mut out, channels, shuffle: upscale, base: Some((pixels, num_in_ch)) };
        run(&self.chain, &[&x], Output::Pixels(to), &mut Workspace::default(), progress)?;
        Ok(out)
    }
}

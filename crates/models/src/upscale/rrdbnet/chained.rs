//! [`RrdbNet`](super::RrdbNet) on a CPU: each dense block is a chain, so that what it computes stays in the cache, and so
//! is everything behind them.

use std::{mem, sync::Mutex};

use kernels::{
    chain::{Activation, Chain, MapId, Output, Pixels, Workspace},
    picture::Picture,
};
use weights::detect::{self, Naming};

use super::RESIDUAL_SCALE;
use crate::{
    error::Result,
    upscale::parts::{Links, Then, run},
    watch::Progress,
};

/// The whole network.
#[derive(Debug)]
pub(in crate::upscale) struct ChainedRrdbNet {
    layout: detect::RrdbNet,
    /// From the picture.
    first: Chain,
    /// From the output of the block before; the third also takes the input of the first, to which it adds.
    body: Vec<[Chain; 3]>,
    /// From the last block, and what `first` gave, to the result.
    tail: Chain,
}

fn lrelu() -> Then {
    Then::activation(Activation::LeakyRelu(0.2))
}

impl ChainedRrdbNet {
    pub(in crate::upscale) fn load(layout: &detect::RrdbNet, links: &Links<'_>) -> Result<Self> {
        let names = layout.naming;
        let mut first = links.chain();
        let picture = first.given(layout.in_nc);
        links.conv3x3(&mut first, names.first(), &[picture], Then::nothing())?;

        let block = |i: usize| -> Result<_> {
            let rdb = |r: usize| dense_block(layout, i, r, links);
            Ok([rdb(1)?, rdb(2)?, rdb(3)?])
        };
        let body = (0..layout.num_blocks).map(block).collect::<Result<_>>()?;

        let mut tail = links.chain();
        let (y, skip) = (tail.given(layout.num_filters), tail.given(layout.num_filters));
        let added = Then::residuals([(1.0, skip)]).doubled(layout.ups > 0);
        let mut y = links.conv3x3(&mut tail, &names.trunk(layout.num_blocks), &[y], added)?;
        for up in 1..=layout.ups {
            y = links.conv3x3(&mut tail, &names.up(up), &[y], lrelu().doubled(up < layout.ups))?;
        }
        let y = links.conv3x3(&mut tail, &names.hr(), &[y], lrelu())?;
        links.conv3x3(&mut tail, &names.last(), &[y], Then::nothing())?;
        Ok(Self { layout: *layout, first, body, tail })
    }

    fn unshuffle(&self) -> usize {
        self.layout.shuffle_factor.unwrap_or(1)
    }

    /// The multiplications for each pixel of the trunk.
    pub(in crate::upscale) fn work(&self) -> f64 {
        self.first.work() + self.body.iter().flatten().map(Chain::work).sum::<f64>() + self.tail.work()
    }

    /// How many pixels the trunk has for a picture of `h` x `w`.
    pub(in crate::upscale) fn trunk_pixels(&self, h: usize, w: usize) -> f64 {
        (h * w) as f64 / (self.unshuffle() * self.unshuffle()) as f64
    }

    /// The bytes of the weights, and of the work on `h` x `w` pixels.
    pub(in crate::upscale) fn memory(&self, h: usize, w: usize) -> usize {
        let (h, w) = (h / self.unshuffle(), w / self.unshuffle());
        let chains = self.body.iter().flatten().chain([&self.first, &self.tail]);
        let weights: usize = chains.map(Chain::weight_bytes).sum();
        // A tile has a thread of its own where there are as many; where it is alone, there is room for more.
        let widest = self.body.first().map_or(0, |[.., last]| last.work_bytes(h, w)).max(self.tail.work_bytes(h, w));
        weights + 4 * Picture::bytes(self.layout.num_filters, h, w) + Picture::bytes(self.layout.in_nc, h, w) + widest
    }

    /// Takes pixels `[h][w][c]`, and gives `[h*scale][w*scale][c']`. The sides are multiples of the unshuffling.
    pub(in crate::upscale) fn forward(
        &self,
        pixels: &[f32],
        h: usize,
        w: usize,
        progress: &Mutex<Progress<'_>>,
    ) -> Result<Vec<f32>> {
        let channels = self.layout.picture_channels();
        let x = Picture::from_pixels(pixels, h, w, channels, self.unshuffle());
        let (h, w) = (x.h(), x.w()); // from here on those of the trunk
        let features = || Picture::zeros(self.layout.num_filters, h, w);
        let mut workspace = Workspace::default();
        let mut first = features();
        run(&self.first, &[&x], Output::Picture(&mut first), &mut workspace, progress)?;

        let (mut y, mut input, mut next) = (features(), features(), features());
        for (i, [rdb1, rdb2, rdb3]) in self.body.iter().enumerate() {
            mem::swap(&mut y, &mut input);
            let input = if i == 0 { &first } else { &input };
            run(rdb1, &[input], Output::Picture(&mut y), &mut workspace, progress)?;
            run(rdb2, &[&y], Output::Picture(&mut next), &mut workspace, progress)?;
            run(rdb3, &[&next, input], Output::Picture(&mut y), &mut workspace, progress)?;
        }
        drop((input, next));
        let last = if self.body.is_empty() { &first } else { &y };

        let mut out = vec![0.0; (h * w * self.layout.out_nc) << (2 * self.layout.ups)];
        let to = Pixels { out: &mut out, channels: self.layout.out_nc, shuffle: 1, base: None };
        run(&self.tail, &[last, &first], Output::Pixels(to), &mut workspace, progress)?;
        Ok(out)
    }
}

/// A dense block: each convolution sees the input and all outputs before it.
fn dense_block(layout: &detect::RrdbNet, block: usize, rdb: usize, links: &Links<'_>) -> Result<Chain> {
    let mut chain = links.chain();
    let name = |k: usize| layout.naming.dense(block, rdb, k);
    let x = chain.given(layout.num_filters);
    let x1 = links.conv3x3(&mut chain, &name(1), &[x], lrelu())?;
    let with = |chain: &mut Chain, other: Option<MapId>, k: usize, inputs: &[MapId]| {
        let residuals = other.map(|other| (1.0, other)).into_iter().collect();
        links.conv3x3(chain, &name(k), inputs, Then { residuals, ..lrelu() })
    };
    let of_x = match layout.plus {
        true => Some(links.conv1x1(&mut chain, &Naming::dense_1x1(block, rdb), x)?),
        false => None,
    };
    let x2 = with(&mut chain, of_x, 2, &[x, x1])?;
    let x3 = with(&mut chain, None, 3, &[x, x1, x2])?;
    let x4 = with(&mut chain, layout.plus.then_some(x2), 4, &[x, x1, x2, x3])?;
    let mut residuals = vec![(RESIDUAL_SCALE as f32, x)];
    if rdb == 3 {
        residuals.push((RESIDUAL_SCALE as f32, chain.given(layout.num_filters)));
    }
    links.conv3x3(&mut chain, &name(5), &[x, x1, x2, x3, x4], Then::residuals(residuals))?;
    Ok(chain)
}

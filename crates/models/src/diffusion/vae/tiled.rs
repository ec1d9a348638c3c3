//! Encoding and decoding in tiles that are blended, for pictures that are too large for the memory of a device.
//!
//! The work is done three times, in tiles that are wide, high, and neither, and the mean is taken, as the reference does: so
//! seams of one pass lie within tiles of another. Beside input and output there is one tile in memory.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::{Vae, to_unit};
use crate::{
    error::{ModelError, Result},
    layers::check_shape,
    watch::{Share, Watch},
};

/// How large tiles are and by how much neighbours overlap, counted in what is cut: numbers of latents or pixels of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// The width of a tile of the third pass; the first has half and the second twice of it.
    pub width: usize,
    /// The height of a tile of the third pass; the first has twice and the second half of it.
    pub height: usize,
    /// How much of a tile also belongs to its neighbour: less than half of either side.
    pub overlap: usize,
}

impl Tiling {
    /// What the reference decodes with when memory does not suffice, in numbers of latents.
    pub const OF_LATENTS: Self = Self { width: 64, height: 64, overlap: 16 };
    /// What the reference encodes with when memory does not suffice, in pixels.
    pub const OF_PICTURES: Self = Self { width: 512, height: 512, overlap: 64 };

    /// The tiles of latents that `VAEDecodeTiled` makes of sizes in pixels, where latents are `scale` times smaller: an overlap
    /// of more than a quarter of a tile becomes a quarter.
    pub fn of_decode_node(tile_size: usize, overlap: usize, scale: usize) -> Self {
        let overlap = if tile_size < 4 * overlap { tile_size / 4 } else { overlap };
        Self { width: tile_size / scale, height: tile_size / scale, overlap: overlap / scale }
    }

    /// The tiles of pictures that `VAEEncodeTiled` makes: as it is told.
    pub fn of_encode_node(tile_size: usize, overlap: usize) -> Self {
        Self { width: tile_size, height: tile_size, overlap }
    }

    /// Width and height in each of the three passes.
    fn passes(self) -> [(usize, usize); 3] {
        let Self { width, height, .. } = self;
        [(width / 2, height * 2), (width * 2, height / 2), (width, height)]
    }
}

/// The tiles along one axis.
struct Axis(Vec<Piece>);

/// The part of a tile along one axis.
struct Piece {
    from: Range<usize>,
    to: Range<usize>,
    /// What each line of the result counts, so that those of all pieces add up to 1.
    shares: Vec<f32>,
}

impl Axis {
    /// Cuts `length` lines in pieces of at most `tile` lines, of which neighbours share `overlap`, less than `tile`. None if
    /// the results, `out(lines)` lines each, do not lie side by side.
    fn cut(length: usize, tile: usize, overlap: usize, out: impl Fn(usize) -> usize, scale: f64) -> Option<Self> {
        let scaled = |lines: usize| (scale * lines as f64).round_ties_even() as usize;
        let starts = match length > tile {
            true => (0..length - overlap).step_by(tile - overlap).collect(),
            false => vec![0],
        };
        let feather = scaled(overlap);
        let piece = |start: usize| {
            let from = start..length.min(start + tile);
            let (to, lines) = (scaled(start), out(from.len()));
            let feather = if feather < lines { feather } else { 0 };
            let ramp = |t: usize| if t < feather { (t + 1) as f32 / feather as f32 } else { 1.0 };
            Piece { from, to: to..to + lines, shares: (0..lines).map(|t| ramp(t) * ramp(lines - 1 - t)).collect() }
        };
        let mut pieces: Vec<Piece> = starts.into_iter().map(piece).collect();
        let mut sums = vec![0.0; out(length)];
        for Piece { to, shares, .. } in &pieces {
            sums.get_mut(to.clone())?.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
        }
        if sums.contains(&0.0) {
            return None;
        }
        for Piece { to, shares, .. } in &mut pieces {
            shares.iter_mut().zip(&sums[to.clone()]).for_each(|(share, sum)| *share /= sum);
        }
        Some(Self(pieces))
    }
}

/// What is done to each tile.
struct Work<'a> {
    tiling: Tiling,
    /// Makes a tile, [1, c, h, w], a tile of the result.
    run: &'a dyn Fn(&Tensor, &dyn Watch) -> Result<Tensor>,
    /// How many lines of the result become of so many.
    out: &'a dyn Fn(usize) -> usize,
    /// The channels of the result.
    channels: usize,
    /// How many times as large the result is.
    scale: f64,
}

impl Work<'_> {
    /// Runs on x, [b, c, h, w], tile by tile.
    fn on(&self, x: &Tensor, watch: &dyn Watch) -> Result<Tensor> {
        let Tiling { width, height, overlap } = self.tiling;
        let refusal = || ModelError::Tiles { width, height, overlap };
        if overlap >= width / 2 || overlap >= height / 2 {
            return Err(refusal());
        }
        let (b, _, h, w) = x.dims4()?;
        let mut passes = Vec::new();
        for (tile_w, tile_h) in self.tiling.passes() {
            // What fits in one tile is one, without a ramp.
            let axis = |length, tile| match h <= tile_h && w <= tile_w {
                true => Axis::cut(length, length, 0, self.out, self.scale),
                false => Axis::cut(length, tile, overlap, self.out, self.scale),
            };
            let rows = axis(h, tile_h).ok_or_else(refusal)?;
            let columns = axis(w, tile_w).ok_or_else(refusal)?;
            passes.push((rows, columns));
        }
        // Passes of a single tile are one and the same.
        let single = |(rows, columns): &(Axis, Axis)| rows.0.len() * columns.0.len() == 1;
        let singles = passes.iter().filter(|pass| single(pass)).count();
        let mut seen = false;
        passes.retain(|pass| !single(pass) || !std::mem::replace(&mut seen, true));

        let tiles = |(rows, columns): &(Axis, Axis)| -> usize {
            let lines = |axis: &Axis| axis.0.iter().map(|piece| piece.from.len()).sum::<usize>();
            lines(rows) * lines(columns)
        };
        let total = (b * passes.iter().map(tiles).sum::<usize>()) as f64;
        let (out_h, out_w) = ((self.out)(h), (self.out)(w));
        let mut sums = vec![0f32; b * self.channels * out_h * out_w];
        let mut done = 0.0;
        for (n, sums) in sums.chunks_exact_mut(self.channels * out_h * out_w).enumerate() {
            let x = x.narrow(0, n, 1)?;
            for (rows, columns) in &passes {
                let weight = if rows.0.len() * columns.0.len() == 1 { singles as f32 / 3.0 } else { 1.0 / 3.0 };
                for down in &rows.0 {
                    for across in &columns.0 {
                        let tile = x.narrow(2, down.from.start, down.from.len())?;
                        let tile = tile.narrow(3, across.from.start, across.from.len())?.contiguous()?;
                        let part = down.from.len() as f64 * across.from.len() as f64 / total;
                        let y = (self.run)(&tile, &Share { watch, from: done, part })?;
                        done += part;
                        let y = y.flatten_all()?.to_vec1::<f32>()?;
                        add(&y, down, across, weight, (out_h, out_w), sums);
                    }
                }
            }
        }
        Ok(Tensor::from_vec(sums, (b, self.channels, out_h, out_w), &Device::Cpu)?)
    }
}

/// Adds a tile of the result to `sums`, [c, h, w].
fn add(y: &[f32], down: &Piece, across: &Piece, weight: f32, (h, w): (usize, usize), sums: &mut [f32]) {
    let width = across.to.len();
    for (y, sums) in y.chunks_exact(down.to.len() * width).zip(sums.chunks_exact_mut(h * w)) {
        for ((y, row), share) in y.chunks_exact(width).zip(down.to.clone()).zip(&down.shares) {
            let sums = &mut sums[row * w..][across.to.clone()];
            for ((sum, y), across) in sums.iter_mut().zip(y).zip(&across.shares) {
                *sum += y * (share * across * weight);
            }
        }
    }
}

impl Vae {
    /// Decodes latents, [b, embed_dim, h, w], as [`Self::decode`] does, in tiles of latents.
    ///
    /// # Errors
    /// If the overlap is half of a tile's side or more, and as [`Self::decode`].
    pub fn decode_tiled(&self, latents: &Tensor, tiling: Tiling, watch: &dyn Watch) -> Result<Tensor> {
        check_shape("latents", latents, &[0, self.layout.embed_dim, 0, 0])?;
        let scale = self.layout.scale();
        let work = Work {
            tiling,
            run: &|tile, watch| self.decode_raw(tile, watch)?.to_device(&Device::Cpu).map_err(Into::into),
            out: &|lines| lines * scale,
            channels: self.layout.in_channels,
            scale: scale as f64,
        };
        to_unit(work.on(latents, watch)?)
    }

    /// Encodes pictures, [b, c, h, w], as [`Self::encode`] does, in tiles of pictures.
    ///
    /// # Errors
    /// If the overlap is half of a tile's side or more, or the latents of tiles do not lie side by side, which they do where sides
    /// and overlap are multiples of twice [`scale`](weights::detect::diffusion::Vae::scale); and as [`Self::encode`].
    pub fn encode_tiled(&self, pictures: &Tensor, tiling: Tiling, watch: &dyn Watch) -> Result<Tensor> {
        self.check_pictures(pictures)?;
        let scale = self.layout.scale();
        let work = Work {
            tiling,
            run: &|tile, watch| self.encode_any(tile, watch)?.to_device(&Device::Cpu).map_err(Into::into),
            out: &|lines| lines / scale,
            channels: self.layout.embed_dim,
            scale: 1.0 / scale as f64,
        };
        work.on(pictures, watch)
    }
}

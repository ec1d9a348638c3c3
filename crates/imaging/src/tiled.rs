//! Tiled scaling: a picture rendered tile by tile, and the tiles blended back (reference: pixels.md, sections 2 and 3).
//!
//! [`BandBlender`] is what the farm assembles with: it blends the rows of one band and knows nothing of how the tiles
//! were made. A picture blended in bands of any height has the same bits as one blended whole, because every output
//! pixel sums the same products in the same order. [`tiled_scale`] runs the whole of it on pictures in memory, also for
//! scales that are no whole numbers; the farm's own tiles come from `domain::tiles`.

use std::ops::Range;

use domain::{
    region::{Region, Size},
    tiles::{Tile, TileGrid},
};

use crate::frames::{Frames, PixelError, crop_rows};

/// How tiles fade towards their edges along one axis: the factors that each line is multiplied by.
///
/// Line `t` and the `t`-th line from the end are multiplied by `(t + 1) / feather`, for `t` in `0..feather`. Where the
/// two ramps overlap a line has two factors, kept apart because the order of multiplications is part of the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Ramp {
    first: Vec<f32>,
    second: Vec<f32>,
    /// The lines that no ramp touches.
    plain: Range<usize>,
}

impl Ramp {
    /// The ramp of `len` lines. A feather of `len` or more leaves the axis without one.
    pub fn new(len: usize, feather: usize) -> Self {
        let feather = if feather >= len { 0 } else { feather };
        let factor = |t: usize| if t < feather { (t + 1) as f32 / feather as f32 } else { 1.0 };
        Self {
            first: (0..len).map(|i| factor(i.min(len - 1 - i))).collect(),
            second: (0..len).map(|i| factor(i.max(len - 1 - i))).collect(),
            plain: if 2 * feather <= len { feather..len - feather } else { 0..0 },
        }
    }

    /// `weight` times the factors of line `i`.
    fn apply(&self, weight: f32, i: usize) -> f32 {
        weight * self.first[i] * self.second[i]
    }
}

/// Where the result of a tile lies in the output, and how it fades.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Its pixels of the output.
    pub region: Region,
    /// Rows at the top and at the bottom over which it fades; 0 is a hard edge.
    pub feather_rows: u32,
    /// Columns at the left and at the right over which it fades; 0 is a hard edge.
    pub feather_columns: u32,
}

impl From<&Tile> for Placement {
    fn from(tile: &Tile) -> Self {
        Self { region: tile.output, feather_rows: tile.feather_rows, feather_columns: tile.feather_columns }
    }
}

/// Blends tiles into a band of output rows: `sum += pixel * weight` tile by tile, then `sum / weights`.
///
/// Tiles must be added in the order of the plan. Memory: 4 bytes per sample and 4 per pixel of the band.
#[derive(Debug)]
pub struct BandBlender {
    picture: Size,
    channels: usize,
    window: Region,
    sums: Vec<f32>,
    weights: Vec<f32>,
}

impl BandBlender {
    /// A band of the rows `rows` of an output picture, with nothing in it yet.
    pub fn new(picture: Size, channels: usize, rows: Range<u32>) -> Self {
        Self::window(picture, channels, Region::new(0, rows.start, picture.width, rows.len() as u32))
    }

    /// Only the pixels of `window` of an output picture.
    pub fn window(picture: Size, channels: usize, window: Region) -> Self {
        let pixels = window.size().pixels() as usize;
        Self { picture, channels, window, sums: vec![0.0; pixels * channels], weights: vec![0.0; pixels] }
    }

    /// Adds rows of a tile, `[row][column][channel]`, of which the first is the tile's row `first_row`.
    ///
    /// Rows outside of the band are skipped, so whole tiles may be given as well as just the rows that matter.
    pub fn add(&mut self, tile: &Placement, first_row: u32, rows: &[f32]) -> Result<(), PixelError> {
        let region = tile.region;
        if !region.is_within(self.picture) {
            return Err(PixelError::PastTheEnd { tile: region, picture: self.picture });
        }
        let stride = region.width as usize * self.channels;
        let given = rows.len() / stride;
        if given * stride != rows.len() || first_row as usize + given > region.height as usize {
            let size = Size::new(region.width, region.height.saturating_sub(first_row));
            return Err(PixelError::Length { got: rows.len(), frames: 1, size, channels: self.channels });
        }
        let window = self.window;
        let Some(shared) = window.intersection(&region) else { return Ok(()) };
        let down = Ramp::new(region.height as usize, tile.feather_rows as usize);
        let across = Ramp::new(region.width as usize, tile.feather_columns as usize);
        let columns = (shared.x - region.x) as usize..(shared.right() - region.x) as usize;
        for (y, row) in (first_row..).zip(rows.chunks_exact(stride)) {
            if !(shared.y..shared.bottom()).contains(&(region.y + y)) {
                continue;
            }
            let row = &row[columns.start * self.channels..columns.end * self.channels];
            let start = (region.y + y - window.y) as usize * window.width as usize + (shared.x - window.x) as usize;
            let sums = &mut self.sums[start * self.channels..][..row.len()];
            let weights = &mut self.weights[start..][..columns.len()];
            add_row(sums, weights, row, down.apply(1.0, y as usize), &across, columns.start);
        }
        Ok(())
    }

    /// The blended rows, `[row][column][channel]`. A pixel that no tile covers is refused.
    pub fn finish(mut self) -> Result<Vec<f32>, PixelError> {
        if let Some(hole) = self.weights.iter().position(|&weight| weight == 0.0) {
            let (x, y) = (hole % self.window.width as usize, hole / self.window.width as usize);
            return Err(PixelError::Uncovered { x: self.window.x + x as u32, y: self.window.y + y as u32 });
        }
        match self.channels {
            1 => divide::<1>(&mut self.sums, &self.weights),
            3 => divide::<3>(&mut self.sums, &self.weights),
            channels => {
                let pixels = self.sums.chunks_exact_mut(channels).zip(&self.weights);
                pixels.for_each(|(pixel, weight)| pixel.iter_mut().for_each(|sum| *sum /= weight));
            }
        }
        Ok(self.sums)
    }
}

fn divide<const C: usize>(sums: &mut [f32], weights: &[f32]) {
    for (pixel, weight) in sums.chunks_exact_mut(C).zip(weights) {
        pixel.iter_mut().for_each(|sum| *sum /= weight);
    }
}

/// Adds one row of a tile whose row weight is `weight`, or a part of it that begins at the tile's column `left`.
fn add_row(sums: &mut [f32], weights: &mut [f32], row: &[f32], weight: f32, across: &Ramp, left: usize) {
    let (width, channels) = (weights.len(), row.len() / weights.len());
    let end = across.plain.end.clamp(left, left + width) - left;
    let start = (across.plain.start.max(left) - left).min(end);
    for x in (0..start).chain(end..width) {
        let weight = across.apply(weight, left + x);
        let samples = x * channels..(x + 1) * channels;
        sums[samples.clone()].iter_mut().zip(&row[samples]).for_each(|(sum, sample)| *sum += sample * weight);
        weights[x] += weight;
    }
    // The middle, which is nearly everything: one weight for all, in a loop that vectorises.
    let samples = start * channels..end * channels;
    sums[samples.clone()].iter_mut().zip(&row[samples]).for_each(|(sum, sample)| *sum += sample * weight);
    weights[start..end].iter_mut().for_each(|sum| *sum += weight);
}

/// Rows of the result of one tile: those that a window of the output needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileRows {
    /// The tile.
    pub tile: Tile,
    /// The first of the rows, counted from the tile's own.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

impl TileRows {
    /// The rows of `tile` that the output rows `rows` need; `None` where these do not touch it.
    pub fn touching(tile: Tile, rows: Range<u32>) -> Option<Self> {
        let (from, to) = (rows.start.max(tile.output.y), rows.end.min(tile.output.bottom()));
        (from < to).then(|| Self { tile, first: from - tile.output.y, count: to - from })
    }

    /// Where they lie in the tile's result, which is rows of `f32` RGB.
    pub fn bytes(&self) -> Range<u64> {
        let row = u64::from(self.tile.output.width) * 3 * size_of::<f32>() as u64;
        u64::from(self.first) * row..(u64::from(self.first) + u64::from(self.count)) * row
    }
}

/// Blends the RGB pixels of `window` out of all rows that touch it, in the grid's order, and clamps them to 0..1.
///
/// The result of a single tile that is the whole picture is copied as it is.
pub fn blend_window(
    grid: &TileGrid,
    window: Region,
    tiles: impl IntoIterator<Item = Result<(TileRows, Vec<f32>), PixelError>>,
) -> Result<Vec<f32>, PixelError> {
    let mut tiles = tiles.into_iter();
    let mut pixels = if grid.is_whole() {
        let uncovered = PixelError::Uncovered { x: window.x, y: window.y };
        let (TileRows { tile, first, count }, samples) = tiles.next().ok_or(uncovered.clone())??;
        let rows = Frames::new(1, Size::new(tile.output.width, count), 3, samples)?;
        let there = Region::new(0, first, tile.output.width, count);
        if there.intersection(&window) != Some(window) {
            return Err(uncovered);
        }
        crop_rows(&rows.data, rows.height, rows.width, 3, Region { y: window.y - first, ..window })
    } else {
        let mut blender = BandBlender::window(grid.output(), 3, window);
        for tile in tiles {
            let (TileRows { tile, first, .. }, samples) = tile?;
            blender.add(&Placement::from(&tile), first, &samples)?;
        }
        blender.finish()?
    };
    pixels.iter_mut().for_each(|sample| *sample = sample.clamp(0.0, 1.0));
    Ok(pixels)
}

/// Starts and lengths of the tiles of one axis, in input pixels.
///
/// An axis that fits gives one tile; otherwise tiles advance by `tile - overlap`, and the last one is short.
fn spans(length: usize, tile: usize, overlap: usize) -> Vec<(usize, usize)> {
    if length <= tile {
        return vec![(0, length)];
    }
    let positions = (0..length - overlap).step_by(tile - overlap);
    positions.map(|start| (start, tile.min(length - start))).collect()
}

/// How many tiles a picture is cut into, which is also how often progress is told.
pub fn steps(picture: Size, tile: Size, overlap: u32) -> u64 {
    let along = |length: u32, tile: u32| {
        if length <= tile { 1 } else { u64::from((length - overlap).div_ceil(tile - overlap)) }
    };
    along(picture.height, tile.height) * along(picture.width, tile.width)
}

/// A length times a scale, half to even.
fn scaled(length: usize, scale: f64) -> u32 {
    (length as f64 * scale).round_ties_even() as u32
}

/// Renders every frame in tiles of at most `tile` and blends them.
///
/// `render` makes, of a tile of one frame, the same tile `scale` times as large, with any number of channels. Tiles are
/// rendered frame by frame and row by row. A frame that fits one tile is returned as it is rendered. A scale that is no
/// whole number may leave holes between tiles or push one past the end: both are refused.
pub fn tiled_scale<E: From<PixelError>>(
    frames: &Frames,
    tile: Size,
    overlap: u32,
    scale: f64,
    mut render: impl FnMut(Frames) -> Result<Frames, E>,
) -> Result<Frames, E> {
    let overlap = overlap as usize;
    let (tile_height, tile_width) = (tile.height as usize, tile.width as usize);
    if let Some(&tile) = [tile_height, tile_width].iter().find(|&&side| overlap >= side) {
        return Err(PixelError::Overlap { overlap, tile }.into());
    }
    frames.try_map(|frame| {
        if frame.height <= tile_height && frame.width <= tile_width {
            return render(frame);
        }
        let output = Size::new(scaled(frame.width, scale), scaled(frame.height, scale));
        let feather = scaled(overlap, scale);
        let mut blender: Option<BandBlender> = None;
        for &(y, height) in &spans(frame.height, tile_height, overlap) {
            for &(x, width) in &spans(frame.width, tile_width, overlap) {
                let input = Region::new(x as u32, y as u32, width as u32, height as u32);
                let data = crate::frames::crop_rows(&frame.data, frame.height, frame.width, frame.channels, input);
                let part = render(Frames::new(1, input.size(), frame.channels, data)?)?;
                let region = Region::new(scaled(x, scale), scaled(y, scale), part.width as u32, part.height as u32);
                let placement = Placement { region, feather_rows: feather, feather_columns: feather };
                let band = || BandBlender::new(output, part.channels, 0..output.height);
                blender.get_or_insert_with(band).add(&placement, 0, &part.data)?;
            }
        }
        let blender = blender.ok_or(PixelError::Empty { operation: "tiled scaling", size: output })?;
        let channels = blender.channels;
        Ok(Frames::new(1, output, channels, blender.finish()?)?)
    })
}

/// The tile side that `ImageUpscaleWithModel` begins with.
pub const MODEL_TILE: u32 = 512;
/// The smallest tile side that it falls back to when memory runs out.
pub const MODEL_TILE_MIN: u32 = 128;
/// The overlap of its tiles.
pub const MODEL_OVERLAP: u32 = 32;

/// What `ImageUpscaleWithModel` makes: the picture, and the tile side that had to be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Upscaled {
    /// The enlarged frames, clamped to 0..1.
    pub frames: Frames,
    /// The tile side that fitted the memory; the pixels depend on it.
    pub tile: u32,
}

/// `ImageUpscaleWithModel` on frames in memory: tiles of 512 that overlap by 32, clamped to 0..1 at the end.
///
/// Where `out_of_memory` says so of an error, everything is done again with half the tile, down to 128; any other error
/// is passed on at once.
pub fn upscale_with_model<E: From<PixelError>>(
    frames: &Frames,
    scale: f64,
    mut render: impl FnMut(Frames) -> Result<Frames, E>,
    out_of_memory: impl Fn(&E) -> bool,
) -> Result<Upscaled, E> {
    let mut tile = MODEL_TILE;
    loop {
        match tiled_scale(frames, Size::new(tile, tile), MODEL_OVERLAP, scale, &mut render) {
            Ok(frames) => return Ok(Upscaled { frames: frames.map(|x| x.clamp(0.0, 1.0)), tile }),
            Err(error) if out_of_memory(&error) && tile > MODEL_TILE_MIN => tile /= 2,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::tiles::{MAX_DENSITY, TileGrid, Tiling};
    use proptest::prelude::*;

    use super::*;

    /// A picture of `size` that no two pixels of are alike, and its tiles enlarged, each off by its own index.
    fn tiles_of(grid: &TileGrid, channels: usize) -> Vec<(Placement, Vec<f32>)> {
        let samples = |tile: &Tile, index: usize| {
            (0..tile.output.size().pixels() as usize * channels).map(move |i| (i as f32 * 0.37 + index as f32).sin())
        };
        grid.tiles()
            .enumerate()
            .map(|(index, tile)| (Placement::from(&tile), samples(&tile, index).collect()))
            .collect()
    }

    fn blend(grid: &TileGrid, tiles: &[(Placement, Vec<f32>)], channels: usize, rows: Range<u32>) -> Vec<f32> {
        let mut band = BandBlender::new(grid.output(), channels, rows);
        tiles.iter().for_each(|(placement, samples)| band.add(placement, 0, samples).unwrap());
        band.finish().unwrap()
    }

    #[test]
    fn ramps_overlap_multiply_and_vanish() {
        let factors = |len, feather| (0..len).map(|i| Ramp::new(len, feather).apply(1.0, i)).collect::<Vec<_>>();
        assert_eq!(factors(6, 2), [0.5, 1.0, 1.0, 1.0, 1.0, 0.5]);
        assert_eq!(factors(5, 4), [0.25 * 1.0, 0.5 * 1.0, 0.75 * 0.75, 0.5 * 1.0, 0.25 * 1.0]);
        assert_eq!(factors(4, 4), [1.0; 4]);
        assert_eq!(factors(1, 0), [1.0]);
    }

    #[test]
    fn the_farms_tiles_are_the_references_tiles() {
        for (length, tile, overlap) in [(20, 16, 4), (16, 16, 4), (17, 16, 4), (993, 512, 32), (40, 12, 8), (29, 16, 0)]
        {
            let tiling = Tiling { side: tile, overlap };
            let grid = TileGrid::new(Size::new(length, 1), tiling, 1).unwrap();
            let want: Vec<_> = grid.tiles().map(|t| (t.input.x as usize, t.input.width as usize)).collect();
            assert_eq!(spans(length as usize, tile as usize, overlap as usize), want);
            assert_eq!(steps(Size::new(length, 1), Size::new(tile, tile), overlap), grid.count());
        }
    }

    #[test]
    fn a_missing_tile_is_a_hole_and_no_black_pixels() {
        let mut band = BandBlender::new(Size::new(4, 4), 3, 1..3);
        let left = Placement { region: Region::new(0, 0, 3, 4), feather_rows: 0, feather_columns: 1 };
        band.add(&left, 0, &[1.0; 36]).unwrap();
        assert_eq!(band.finish(), Err(PixelError::Uncovered { x: 3, y: 1 }));
    }

    #[test]
    fn a_tile_of_another_size_or_place_is_refused() {
        let mut band = BandBlender::new(Size::new(4, 4), 3, 0..4);
        let tile = Placement { region: Region::new(2, 0, 3, 4), feather_rows: 0, feather_columns: 0 };
        assert!(matches!(band.add(&tile, 0, &[1.0; 36]), Err(PixelError::PastTheEnd { .. })));
        let tile = Placement { region: Region::new(1, 0, 3, 4), ..tile };
        assert!(matches!(band.add(&tile, 0, &[1.0; 35]), Err(PixelError::Length { .. })));
        assert!(matches!(band.add(&tile, 1, &[1.0; 36]), Err(PixelError::Length { .. })));
    }

    #[test]
    fn an_overlap_of_a_whole_tile_is_refused() {
        let picture = Frames::new(1, Size::new(9, 9), 1, vec![0.0; 81]).unwrap();
        let refused = tiled_scale(&picture, Size::new(8, 8), 8, 1.0, Ok::<_, PixelError>);
        assert_eq!(refused, Err(PixelError::Overlap { overlap: 8, tile: 8 }));
    }

    #[test]
    fn other_errors_than_memory_are_passed_on_at_once() {
        let picture = Frames::new(1, Size::new(9, 9), 1, vec![0.0; 81]).unwrap();
        let mut calls = 0;
        let fails = |_| {
            calls += 1;
            Err(PixelError::Uncovered { x: 0, y: 0 })
        };
        assert!(upscale_with_model(&picture, 2.0, fails, |_| false).is_err());
        assert_eq!(calls, 1);
    }

    proptest! {
        #[test]
        fn bands_of_any_height_have_the_bits_of_the_whole(
            size in (1..60u32, 1..60u32), side in 2..24u32, overlap in 0..23u32, scale in 1..4u32,
            channels in prop::sample::select(vec![1usize, 3, 4]), band in 1..40u32,
        ) {
            prop_assume!(overlap < side && side.div_ceil(side - overlap) <= MAX_DENSITY);
            let grid = TileGrid::new(Size::new(size.0, size.1), Tiling { side, overlap }, scale).unwrap();
            let tiles = tiles_of(&grid, channels);
            let output = grid.output();
            let whole = blend(&grid, &tiles, channels, 0..output.height);
            let mut banded = Vec::new();
            for start in (0..output.height).step_by(band as usize) {
                let rows = start..(start + band).min(output.height);
                // As the farm does it: only the tiles that touch the band, and only their rows within it.
                let mut blender = BandBlender::new(output, channels, rows.clone());
                for index in grid.touching_rows(rows.clone()) {
                    let (placement, samples) = &tiles[index as usize];
                    let region = placement.region;
                    let (from, to) = (rows.start.max(region.y), rows.end.min(region.bottom()));
                    if from < to {
                        let stride = region.width as usize * channels;
                        let (first, last) = (from - region.y, to - region.y);
                        let part = &samples[first as usize * stride..last as usize * stride];
                        blender.add(placement, first, part).unwrap();
                    }
                }
                banded.extend(blender.finish().unwrap());
            }
            let bits = |samples: &[f32]| samples.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&whole), bits(&banded));
        }

        #[test]
        fn the_fast_loop_has_the_bits_of_the_rule(
            size in (1..40u32, 1..40u32), side in 2..24u32, overlap in 0..23u32, scale in 1..4u32,
        ) {
            prop_assume!(overlap < side && side.div_ceil(side - overlap) <= MAX_DENSITY);
            let grid = TileGrid::new(Size::new(size.0, size.1), Tiling { side, overlap }, scale).unwrap();
            let output = grid.output();
            let tiles = tiles_of(&grid, 1);
            let pixels = output.pixels() as usize;
            let (mut acc, mut div) = (vec![0.0f32; pixels], vec![0.0f32; pixels]);
            for (Placement { region, feather_rows, feather_columns }, samples) in &tiles {
                let (w, h) = (region.width as usize, region.height as usize);
                let mut mask = vec![1.0f32; w * h];
                for t in 0..*feather_rows as usize {
                    for line in [t, h - 1 - t] {
                        (0..w).for_each(|x| mask[line * w + x] *= (t + 1) as f32 / *feather_rows as f32);
                    }
                }
                for t in 0..*feather_columns as usize {
                    for line in [t, w - 1 - t] {
                        (0..h).for_each(|y| mask[y * w + line] *= (t + 1) as f32 / *feather_columns as f32);
                    }
                }
                for i in 0..w * h {
                    let at = (region.y as usize + i / w) * output.width as usize + region.x as usize + i % w;
                    acc[at] += samples[i] * mask[i];
                    div[at] += mask[i];
                }
            }
            let want: Vec<_> = acc.iter().zip(&div).map(|(a, d)| (a / d).to_bits()).collect();
            let got: Vec<_> = blend(&grid, &tiles, 1, 0..output.height).iter().map(|x| x.to_bits()).collect();
            prop_assert_eq!(want, got);
        }
    }
}

//! Convolutions by plain sums over bf16, where tile registers multiply so fast that Winograd's method would lose.
//!
//! What a band of a map becomes is not points but rows of bf16, with the row above and the one below: `[block of 32
//! channels][row][x]`, each row behind one zero line. So the row ends at the zero line of the next one, and all pixels of a
//! band are one run, in which a tap of the kernel is an offset. The sums behind each row's end mean nothing and are left out;
//! one pixel in each row is computed in vain, but none in registers that a row does not fill.
//!
//! A convolution rounds its results where they are still in the nearest cache, and writes them to the bands of those that
//! read them. In f32 it writes only what is added later, or is the result of the chain.

#![cfg_attr(not(any(test, target_arch = "x86_64")), allow(dead_code))]

use std::ops::Range;

use half::bf16;

use super::{
    Chain, Ends, Frame, Map, Rows, Run, Scratch, Source, Stage, TILE, Target, To,
    schedule::{MapPlan, Schedule},
};
use crate::{
    amx::{self, LINES, Tiles},
    level::Level,
    line::{HalfLine, Line},
    precision::Precision,
    simd::{LANES, Simd},
};

/// Channels of a line.
const CHANNELS: usize = 32;
/// Taps of a kernel.
const TAPS: usize = 9;
/// Pixels whose sums are held at once: what fills all registers of sums, twice.
const CHUNK: usize = 96;
/// Vectors of outputs in a group, at most.
const MOST_VECTORS: usize = 2;
/// Lines of the sums of a chunk.
pub(super) const SUM_LINES: usize = CHUNK * MOST_VECTORS;

/// How a chain sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// In f32, by Winograd's method.
    Winograd,
    /// Products of bf16, in tile registers.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// The same in emulated registers.
    #[cfg(test)]
    Emulated,
}

impl Method {
    /// The fastest way to sum with this precision. Short of tile registers, products of bf16 gain less than Winograd's method.
    pub(super) fn new(level: Level, precision: Precision) -> Self {
        match (level, precision) {
            #[cfg(target_arch = "x86_64")]
            (Level::Amx, Precision::Fast) => Self::Tiles,
            _ => Self::Winograd,
        }
    }
}

/// The weights of one group of outputs: `[block of inputs][tap][vector][pair of inputs][output][2]`.
#[derive(Debug)]
pub(super) struct HalfGroup {
    /// Vectors of outputs.
    vectors: usize,
    lines: Vec<HalfLine>,
}

impl HalfGroup {
    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        self.lines.len() * size_of::<HalfLine>()
    }
}

/// Packs weights `[outputs][inputs][3][3]` for maps of these numbers of channels.
pub(super) fn pack(weight: &[f32], channels: &[usize], outputs: usize) -> Vec<HalfGroup> {
    let inputs: usize = channels.iter().sum();
    let blocks: usize = channels.iter().map(|count| count.div_ceil(CHANNELS)).sum();
    let vectors_in_all = outputs.div_ceil(LANES);
    let mut groups = Vec::new();
    for first in (0..vectors_in_all).step_by(MOST_VECTORS) {
        let vectors = MOST_VECTORS.min(vectors_in_all - first);
        let mut lines = vec![HalfLine::ZERO; blocks * TAPS * vectors * LINES];
        for output in first * LANES..outputs.min((first + vectors) * LANES) {
            let (vector, lane) = (output / LANES - first, output % LANES);
            let mut taps = weight[output * inputs * TAPS..].chunks_exact(TAPS);
            let mut block = 0; // each map begins a new one
            for &count in channels {
                for (channel, taps) in (0..count).zip(&mut taps) {
                    let (block, k) = (block + channel / CHANNELS, channel % CHANNELS);
                    for (tap, value) in taps.iter().enumerate() {
                        let line = ((block * TAPS + tap) * vectors + vector) * LINES + k / 2;
                        lines[line].0[2 * lane + k % 2] = bf16::from_f32(*value);
                    }
                }
                block += count.div_ceil(CHANNELS);
            }
        }
        groups.push(HalfGroup { vectors, lines });
    }
    groups
}

/// How a band of a map lies in memory: `[block of channels][row][x]`.
#[derive(Debug, Clone, Copy)]
struct Band {
    /// Pixels of a row.
    w: usize,
    /// Rows of a band, without those around it.
    rows: usize,
    /// Lines from one row to the next.
    pitch: usize,
    /// Lines from one block of channels to the next.
    block: usize,
    /// Blocks of channels.
    blocks: usize,
    /// Where the first band begins, and how many are kept.
    begin: usize,
    kept: usize,
}

impl Band {
    fn new(frame: &Frame, map: &Map, plan: &MapPlan) -> Self {
        let (_, w) = frame.size(map.doublings);
        let rows = frame.band_tile_rows * TILE;
        let (pitch, blocks) = (w + 1, map.channels.div_ceil(CHANNELS));
        Self { w, rows, pitch, block: (rows + 2) * pitch, blocks, begin: plan.points_at, kept: plan.point_bands }
    }

    /// Lines of a band. What the last register takes beyond the run of pixels lies in there too.
    fn lines(self) -> usize {
        self.blocks * self.block + 2 + LINES
    }

    /// Where a row of a band begins: row 0 is the one above it.
    fn at(self, band: usize, block: usize, row: usize) -> usize {
        self.begin + band % self.kept * self.lines() + block * self.block + row * self.pitch
    }

    /// The bands, of `all`, that row `y` of the map is in, and which of their rows it is.
    fn places(self, y: usize, all: usize) -> impl Iterator<Item = (usize, usize)> {
        let (band, row) = (y / self.rows, y % self.rows);
        let above = (row == 0 && band > 0).then(|| (band - 1, self.rows + 1));
        let below = (row == self.rows - 1 && band + 1 < all).then_some((band + 1, 0));
        [Some((band, row + 1)), above, below].into_iter().flatten()
    }
}

/// Lines of bf16 that a band of `map` takes.
pub(super) fn band_lines(frame: &Frame, map: &Map) -> usize {
    Band::new(frame, map, &MapPlan::default()).lines()
}

/// Makes room, with zeros where no result is ever written.
pub(super) fn prepare(chain: &Chain, frame: &Frame, schedule: &Schedule, scratch: &mut Scratch) {
    if scratch.halves.len() < schedule.points {
        scratch.halves = vec![HalfLine::ZERO; schedule.points];
    }
    for (map, plan) in chain.maps.iter().zip(&schedule.maps) {
        let layout = Band::new(frame, map, plan);
        for band in 0..layout.kept {
            for row in 0..=layout.blocks * (layout.rows + 2) {
                scratch.halves[layout.at(band, 0, row)] = HalfLine::ZERO;
            }
        }
    }
}

impl Run<'_> {
    /// Computes a band of a stage of a chain that sums products of bf16, and writes its result.
    #[inline(always)]
    pub(super) fn stage_of_halves<S: Simd>(&mut self, s: S, stage: &Stage, band: usize) {
        match self.chain.method {
            Method::Winograd => unreachable!("has points"),
            #[cfg(target_arch = "x86_64")]
            Method::Tiles => self.stage_in_tiles::<S, amx::Hardware>(s, stage, band),
            #[cfg(test)]
            Method::Emulated => self.stage_in_tiles::<S, amx::emulated::Emulated>(s, stage, band),
        }
    }

    /// Rounds a band of a given map to bf16, if that is not yet done.
    fn round<T: Tiles>(&mut self, map: usize, band: usize) {
        let Self { chain, frame, given, schedule, scratch, .. } = self;
        let done = &mut scratch.points_done[map];
        if *done > band {
            return;
        }
        *done = band + 1;
        let rows = Rows { chain, frame: *frame, given, schedule, kept: &scratch.rows };
        let facts = &chain.maps[map];
        let layout = Band::new(frame, facts, &schedule.maps[map]);
        for (block, row) in (0..layout.blocks).flat_map(|block| (0..layout.rows + 2).map(move |row| (block, row))) {
            let out = &mut scratch.halves[layout.at(band, block, row) + 1..][..layout.w];
            let from = |block: usize| {
                let y = (band * layout.rows + row) as isize - 1;
                rows.get(map, block, y).map(|row| &row[1..=layout.w])
            };
            match from(2 * block) {
                Some(low) if 2 * block + 1 < facts.blocks() => {
                    T::round(low, from(2 * block + 1).unwrap_or_default(), 1, out)
                }
                Some(low) => T::round(low, &[], 1, out),
                None => out.fill(HalfLine::ZERO),
            }
        }
    }

    /// See [`Self::stage_of_halves`].
    #[inline(always)]
    fn stage_in_tiles<S: Simd, T: Tiles>(&mut self, s: S, stage: &Stage, band: usize) {
        for &map in &stage.inputs {
            if let Source::Given(_) = self.chain.maps[map].source {
                self.round::<T>(map, band);
            }
        }
        let Self { chain, frame, given, schedule, scratch, target, .. } = self;
        let mut dest = std::mem::take(&mut scratch.rows[stage.output]);
        let rows = Rows { chain, frame: *frame, given, schedule, kept: &scratch.rows };
        let layout = |map: usize| Band::new(frame, &chain.maps[map], &schedule.maps[map]);
        let mut offsets = Vec::new();
        for &map in &stage.inputs {
            let layout = layout(map);
            for block in 0..layout.blocks {
                offsets.extend((0..TAPS).map(|tap| layout.at(band, block, tap / 3) + tap % 3));
            }
        }
        let input = layout(stage.inputs[0]);
        let (h, _) = frame.size(chain.maps[stage.inputs[0]].doublings);
        let first = band * input.rows;
        let count = (h - first).min(input.rows);
        let pixels = count * input.pitch - 1;
        let times = if stage.doubled { 2 } else { 1 };
        let is_read = chain.readers(stage.output).next().is_some();
        let link = is_read.then(|| Link { layout: layout(stage.output), h, first, rows: count, times });
        let mut rounded = [HalfLine::ZERO; CHUNK];
        let mut tiles = T::take();
        for start in (0..pixels).step_by(CHUNK) {
            let chunk = start..pixels.min(start + CHUNK);
            let filled = chunk.len().next_multiple_of(LINES);
            for (half, HalfGroup { vectors, lines }) in stage.halves.iter().enumerate() {
                let (a, sums) = (&scratch.halves[start..], &mut scratch.sums);
                amx::product(&mut tiles, a, filled, &offsets, lines, *vectors, true, &mut sums[..filled * vectors]);
                for vector in 0..*vectors {
                    let block = half * MOST_VECTORS + vector;
                    let mut part =
                        Part { stage, block, first, pitch: input.pitch, rows: &rows, target, dest: &mut dest };
                    match vectors {
                        1 => part.finish(s, chunk.clone(), sums.as_chunks_mut::<1>().0, vector),
                        _ => part.finish(s, chunk.clone(), sums.as_chunks_mut::<2>().0, vector),
                    }
                }
                if let Some(link) = &link {
                    let high = if *vectors == 2 { &sums[1..] } else { &[] };
                    let rounded = &mut rounded[..chunk.len()];
                    T::round(sums, high, *vectors, rounded);
                    link.write(half, chunk.clone(), rounded, &mut scratch.halves);
                }
            }
        }
        if let Some(link) = &link {
            link.write_borders(&mut scratch.halves);
        }
        scratch.rows[stage.output] = dest;
    }
}

/// Cuts pixels of a band at the ends of its rows: row, column, and the pixels from there on.
fn rows_of(pixels: Range<usize>, pitch: usize) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
    (pixels.start / pitch..pixels.end.div_ceil(pitch)).map(move |y| {
        let start = pixels.start.max(y * pitch);
        let end = pixels.end.min((y + 1) * pitch - 1); // without the one behind the row
        (y, start - y * pitch, start..end)
    })
}

/// A block of outputs of a band, whose sums become results.
struct Part<'a, 't, 'r> {
    stage: &'a Stage,
    block: usize,
    /// The first row of the band.
    first: usize,
    pitch: usize,
    rows: &'a Rows<'r>,
    target: &'a mut Target<'t>,
    dest: &'a mut [Line],
}

impl Part<'_, '_, '_> {
    /// Makes results of the sums of a chunk of pixels, which are those of a vector, and writes them where f32 is wanted.
    #[inline(always)]
    fn finish<S: Simd, const VECTORS: usize>(
        &mut self,
        s: S,
        chunk: Range<usize>,
        sums: &mut [[Line; VECTORS]],
        vector: usize,
    ) {
        let Self { stage, block, first, pitch, rows, target, dest } = self;
        let four_rows = TILE * *pitch;
        for top in chunk.start / four_rows..chunk.end.div_ceil(four_rows) {
            let mut ends = Ends::new(s, stage, *block, *first + top * TILE, rows, target, dest);
            let pixels = chunk.start.max(top * four_rows)..chunk.end.min((top + 1) * four_rows);
            for (y, x, run) in rows_of(pixels, *pitch) {
                ends.put_run(s, y % TILE, x, &mut sums[run.start - chunk.start..run.end - chunk.start], vector);
            }
        }
    }
}

impl<S: Simd> Ends<'_, '_, S> {
    /// Makes results of the sums of neighbouring pixels of row `j` from column `x` on, in their place, and writes them where
    /// f32 is wanted.
    #[inline(always)]
    fn put_run<const VECTORS: usize>(&mut self, s: S, j: usize, x: usize, sums: &mut [[Line; VECTORS]], vector: usize) {
        assert!(vector < VECTORS, "a vector of the group");
        match self.slope {
            Some(slope) => {
                for sum in sums.iter_mut() {
                    let sum = &mut sum[vector].0;
                    let value = s.add(s.load(sum), self.bias);
                    s.store(s.select_nonneg(value, value, s.mul(value, slope)), sum);
                }
            }
            None => {
                for sum in sums.iter_mut() {
                    let sum = &mut sum[vector].0;
                    s.store(s.add(s.load(sum), self.bias), sum);
                }
            }
        }
        for (factor, added) in &self.residuals {
            for (sum, added) in sums.iter_mut().zip(&added[j][x + 1..]) {
                let sum = &mut sum[vector].0;
                s.store(s.mul_add(s.load(sum), *factor, s.load(&added.0)), sum);
            }
        }
        let results = sums.iter().map(|sum| &sum[vector]);
        match &mut self.to {
            To::Nowhere => (),
            To::Lines { lines, rows, times: 1 } => {
                for (line, result) in lines[rows[j][0] + x..].iter_mut().zip(results) {
                    *line = *result;
                }
            }
            To::Lines { lines, rows, .. } => {
                for start in rows[j] {
                    for (pair, result) in lines[start + 2 * x..].chunks_exact_mut(2).zip(results.clone()) {
                        pair.fill(*result);
                    }
                }
            }
            To::Pixels { pixels, y, row, places } => {
                for (i, result) in results.enumerate() {
                    pixels.put(places, (*y + j, *row + j), x + i, &result.0);
                }
            }
        }
    }
}

/// Where the results of a band become the operands of other convolutions.
struct Link {
    /// Of the output.
    layout: Band,
    /// Rows of the input.
    h: usize,
    /// Where the band begins in them, and how many it has.
    first: usize,
    rows: usize,
    /// How often each row and each pixel is written.
    times: usize,
}

impl Link {
    /// Writes a block of the pixels of a chunk.
    fn write(&self, block: usize, chunk: Range<usize>, from: &[HalfLine], halves: &mut [HalfLine]) {
        let (out, times) = (self.layout, self.times);
        let bands = (self.h * times).div_ceil(out.rows);
        for (y, x, run) in rows_of(chunk.clone(), out.w / times + 1) {
            let from = &from[run.start - chunk.start..run.end - chunk.start];
            for y in (self.first + y) * times..(self.first + y + 1) * times {
                for (band, row) in out.places(y, bands) {
                    let to = &mut halves[out.at(band, block, row) + 1 + x * times..][..from.len() * times];
                    if times == 1 {
                        to.copy_from_slice(from);
                    } else {
                        for (pair, from) in to.chunks_exact_mut(2).zip(from) {
                            pair.fill(*from);
                        }
                    }
                }
            }
        }
    }

    /// Writes the zeros above the first row of the map and below the last one, if these are in the band.
    fn write_borders(&self, halves: &mut [HalfLine]) {
        let out = self.layout;
        let mut clear = |band: usize, row: usize| {
            for block in 0..out.blocks {
                halves[out.at(band, block, row)..][..out.pitch].fill(HalfLine::ZERO);
            }
        };
        if self.first == 0 {
            clear(0, 0);
        }
        if self.first + self.rows == self.h {
            let last = self.h * self.times - 1;
            clear(last / out.rows, last % out.rows + 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use rayon::ThreadPoolBuilder;

    use super::*;
    use crate::{
        amx::tests::{has_tiles, numbers},
        chain::{Activation, Chain, Conv, MapId, Output, Pixels, Workspace},
        picture::Picture,
    };

    /// The ways to sum products of bf16 that there are here.
    fn methods(test: &str) -> Vec<Method> {
        let mut methods = vec![Method::Emulated];
        #[cfg(target_arch = "x86_64")]
        if has_tiles(test) {
            methods.push(Method::Tiles);
        }
        methods
    }

    fn chain(level: Level, method: Method) -> Chain {
        Chain { method, ..Chain::new(level, Precision::Exact) }
    }

    /// Adds a convolution with weights that look random, for outputs as large as inputs.
    fn conv(
        chain: &mut Chain,
        inputs: &[MapId],
        outputs: usize,
        seed: u64,
        then: (Activation, &[(f32, MapId)], bool),
    ) -> MapId {
        let channels: usize = inputs.iter().map(|input| chain.maps[input.0].channels).sum();
        let scale = (3.0 / (9 * channels) as f32).sqrt();
        let weight: Vec<f32> = numbers(outputs * channels * TAPS, seed).into_iter().map(|x| x * scale).collect();
        let (activation, residuals, doubled) = then;
        let bias = numbers(outputs, seed + 1);
        chain.conv(inputs, Conv { weight: &weight, bias: &bias, activation, residuals: residuals.to_vec(), doubled })
    }

    fn lrelu() -> Activation {
        Activation::LeakyRelu(0.2)
    }

    /// A chain with all that chains can do: several inputs, few channels and many, residuals, doubled sides.
    fn everything(level: Level, method: Method) -> Chain {
        let mut chain = chain(level, method);
        let x = chain.given(19);
        let a = conv(&mut chain, &[x], 40, 1, (lrelu(), &[], false));
        let b = conv(&mut chain, &[x, a], 16, 2, (Activation::PRelu(numbers(16, 9)), &[], false));
        let c = conv(&mut chain, &[a, b, x], 40, 3, (Activation::None, &[(0.2, a), (0.5, a)], true));
        let d = conv(&mut chain, &[c], 33, 4, (lrelu(), &[], false));
        conv(&mut chain, &[d], 3, 5, (Activation::None, &[], false));
        chain
    }

    fn run(chain: &Chain, h: usize, w: usize, channels: usize, sides: usize) -> Vec<f32> {
        let picture = Picture::from_pixels(&numbers(h * w * channels, 7), h, w, channels, 1);
        let mut out = vec![f32::NAN; h * w * sides * sides * 3];
        let pixels = Pixels { out: &mut out, channels: 3, shuffle: 1, base: None };
        chain.run(&[&picture], Output::Pixels(pixels), &mut Workspace::default(), &|_| true).unwrap();
        out
    }

    /// The peak signal-to-noise ratio in dB, for results of which `exact` has the range.
    fn psnr(exact: &[f32], other: &[f32]) -> f64 {
        let (least, most) = exact.iter().fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
        let squares = exact.iter().zip(other).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        10.0 * (f64::from(most - least).powi(2) * exact.len() as f64 / squares).log10()
    }

    #[test]
    fn one_convolution_is_a_plain_sum_over_rounded_numbers() {
        let methods = methods("one convolution");
        for (inputs, outputs, h, w) in
            [(1, 1, 1, 1), (3, 5, 2, 1), (20, 40, 13, 9), (64, 32, 9, 70), (33, 17, 30, 15), (32, 16, 1, 97)]
        {
            let weight = numbers(outputs * inputs * TAPS, 1);
            let (bias, pixels) = (numbers(outputs, 2), numbers(h * w * inputs, 3));
            let round = |x: f32| bf16::from_f32(x).to_f64();
            let mut plain = Vec::new();
            for (y, x, o) in (0..h).flat_map(|y| (0..w).flat_map(move |x| (0..outputs).map(move |o| (y, x, o)))) {
                let mut sum = f64::from(bias[o]);
                for (tap, i) in (0..TAPS).flat_map(|tap| (0..inputs).map(move |i| (tap, i))) {
                    let (y, x) = ((y + tap / 3).wrapping_sub(1), (x + tap % 3).wrapping_sub(1));
                    if y < h && x < w {
                        sum += round(pixels[(y * w + x) * inputs + i]) * round(weight[(o * inputs + i) * TAPS + tap]);
                    }
                }
                plain.push(sum);
            }
            for &method in &methods {
                let mut chain = chain(Level::detect(), method);
                let input = chain.given(inputs);
                let (activation, residuals) = (Activation::None, Vec::new());
                chain.conv(&[input], Conv { weight: &weight, bias: &bias, activation, residuals, doubled: false });
                let mut out = vec![f32::NAN; plain.len()];
                let to = Output::Pixels(Pixels { out: &mut out, channels: outputs, shuffle: 1, base: None });
                let picture = Picture::from_pixels(&pixels, h, w, inputs, 1);
                chain.run(&[&picture], to, &mut Workspace::default(), &|_| true).unwrap();
                for (i, (value, plain)) in out.iter().zip(&plain).enumerate() {
                    let difference = (f64::from(*value) - plain).abs();
                    assert!(difference < 1e-4, "{inputs} to {outputs} at {h}x{w}, number {i}: {value} is not {plain}");
                }
            }
        }
    }

    #[test]
    fn a_chain_is_close_to_exact() {
        let methods = methods("a chain");
        for (h, w) in [(1, 1), (2, 3), (13, 9), (6, 50), (33, 17), (7, 130)] {
            let exact = run(&everything(Level::detect(), Method::Winograd), h, w, 19, 2);
            for &method in &methods {
                let fast = run(&everything(Level::detect(), method), h, w, 19, 2);
                let psnr = psnr(&exact, &fast);
                assert!(psnr > 45.0, "{method:?} at {h}x{w}: {psnr:.1} dB");
            }
        }
    }

    /// Dense blocks of 64 channels that grow by 32, with residuals within and around them; then the sides double.
    #[test]
    fn dense_blocks_are_within_50_db_of_exact() {
        let blocks = 6;
        let network = |method: Method| {
            let mut chain = chain(Level::detect(), method);
            let picture = chain.given(3);
            let mut trunk = conv(&mut chain, &[picture], 64, 1, (Activation::None, &[], false));
            let first = trunk;
            let mut outer = trunk;
            for block in 0..blocks {
                let mut maps = vec![trunk];
                for i in 0..4 {
                    let seed = 10 + 10 * block + i;
                    let grown = conv(&mut chain, &maps, 32, seed, (lrelu(), &[], false));
                    maps.push(grown);
                }
                let around = [(0.2, trunk), (0.2, outer)];
                let residuals = if block % 3 == 2 { &around[..] } else { &around[..1] };
                trunk = conv(&mut chain, &maps, 64, 18 + 10 * block, (Activation::None, residuals, false));
                if block % 3 == 2 {
                    outer = trunk;
                }
            }
            let body = conv(&mut chain, &[trunk], 64, 2, (Activation::None, &[(1.0, first)], true));
            let up = conv(&mut chain, &[body], 64, 3, (lrelu(), &[], false));
            conv(&mut chain, &[up], 3, 4, (Activation::None, &[], false));
            chain
        };
        let (h, w) = (20, 25);
        let exact = run(&network(Method::Winograd), h, w, 3, 2);
        for method in methods("dense blocks") {
            let psnr = psnr(&exact, &run(&network(method), h, w, 3, 2));
            eprintln!("{method:?}: {psnr:.1} dB");
            assert!(psnr > 50.0, "{method:?}: {psnr:.1} dB");
        }
    }

    #[test]
    fn bytes_depend_neither_on_threads_nor_on_vectors_nor_on_what_was_computed_before() {
        for method in methods("threads") {
            let expected = run(&everything(Level::detect(), method), 50, 21, 19, 2);
            for level in [Level::Avx2, Level::Avx512].into_iter().filter(|level| level.is_available()) {
                let chain = everything(level, method);
                for threads in [1, 2, 3, 7] {
                    let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    assert!(
                        pool.install(|| run(&chain, 50, 21, 19, 2)) == expected,
                        "{method:?}, {level}, {threads} threads"
                    );
                }
            }
            let chain = everything(Level::detect(), method);
            let mut workspace = Workspace::default();
            for (h, w) in [(9, 200), (50, 21), (3, 5), (50, 21)] {
                let picture = Picture::from_pixels(&numbers(h * w * 19, 7), h, w, 19, 1);
                let mut out = vec![f32::NAN; h * w * 12];
                let pixels = Pixels { out: &mut out, channels: 3, shuffle: 1, base: None };
                chain.run(&[&picture], Output::Pixels(pixels), &mut workspace, &|_| true).unwrap();
                assert!((h, w) != (50, 21) || out == expected, "{method:?}");
            }
        }
    }

    #[test]
    fn only_tiles_are_worth_bf16() {
        for level in Level::ALL {
            assert_eq!(Method::new(level, Precision::Exact), Method::Winograd);
            let fast = Method::new(level, Precision::Fast);
            assert_eq!(fast == Method::Winograd, level != Level::Amx || cfg!(not(target_arch = "x86_64")), "{level}");
        }
    }
}

//! Convolutions one behind the other, computed together row by row.
//!
//! A [`Chain`] is a small graph of 3 x 3 convolutions over maps of channels. It is not run layer by layer: as soon as a band
//! of rows is there, the next convolution takes it, so that what lies between two convolutions is a few rows that stay
//! in the cache, whatever the size of the picture. Concatenation is free (a convolution reads several maps), and bias,
//! activation, residuals and the doubling of sides are part of writing a result.
//!
//! Threads cut the picture into ranges of bands, and each computes the few rows of its neighbours that it needs. Every
//! number is the same sum in the same order wherever the cuts are.

mod halves;
mod schedule;
mod weights;

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    level::Level,
    line::{HalfLine, Line, lines, zeroed},
    picture::{BLOCK, Picture, TILE, row_lines},
    precision::Precision,
    product::{F32, Products},
    simd::{Kernel, LANES, Simd, dispatch},
    threads,
    winograd::{self, IN, POINTS},
};
use halves::{HalfGroup, Method};
use schedule::{Schedule, Strip};
use weights::Group;

/// Tiles that a band has at least, if the picture is large enough: they share one pass over the weights.
const BAND_TILES: usize = 14;
/// Vectors of outputs in a group, at most.
const MOST_VECTORS: usize = 2;
/// Tiles of a strip, if the picture is wider: what several stages read of it stays in the cache, and few columns at its sides
/// are computed twice.
const STRIP_TILES: usize = 48;
/// Tiles that a stage turns into points just before it sums them.
const TURNED_TILES: usize = 42;
/// Tiles whose sums are held at once.
const CHUNK_TILES: usize = 56;

/// A map of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapId(usize);

/// What becomes of a sum.
#[derive(Debug, Clone, PartialEq)]
pub enum Activation {
    /// Nothing.
    None,
    /// Negative numbers are multiplied by a slope.
    LeakyRelu(f32),
    /// Negative numbers are multiplied by the slope of their channel.
    PRelu(Vec<f32>),
}

/// A 3 x 3 convolution that keeps the size of its input, beyond whose borders there are zeros.
#[derive(Debug)]
pub struct Conv<'a> {
    /// `[outputs][inputs][3][3]`; the inputs are those of all input maps, one after the other.
    pub weight: &'a [f32],
    /// `[outputs]`.
    pub bias: &'a [f32],
    /// Applied to the sum and bias.
    pub activation: Activation,
    /// In turn: the result is multiplied by the factor, and the map, as large as the result before doubling, is added.
    pub residuals: Vec<(f32, MapId)>,
    /// Whether each result is written four times, so that both sides double.
    pub doubled: bool,
}

/// Convolutions one behind the other. See the module's head.
#[derive(Debug)]
pub struct Chain {
    level: Level,
    method: Method,
    maps: Vec<Map>,
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Map {
    channels: usize,
    /// How often the sides of the inputs are doubled to get its sides.
    doublings: u32,
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Given at each run, by index.
    Given(usize),
    /// Computed by a stage.
    Stage(usize),
}

impl Map {
    fn blocks(&self) -> usize {
        self.channels.div_ceil(BLOCK)
    }
}

#[derive(Debug)]
struct Stage {
    inputs: Vec<usize>,
    output: usize,
    /// The weights, if the chain sums by Winograd's method.
    groups: Vec<Group>,
    /// The weights, if it sums products of bf16.
    halves: Vec<HalfGroup>,
    /// One line for each block of outputs, and so the slopes.
    bias: Vec<Line>,
    /// What negative numbers are multiplied by; no activation where it is empty.
    slopes: Vec<Line>,
    residuals: Vec<(f32, usize)>,
    doubled: bool,
    /// Multiplications for each pixel of the chain's input.
    work: f64,
}

/// Where the result of a chain goes.
#[derive(Debug)]
pub enum Output<'a> {
    /// Into a map as large as the result.
    Picture(&'a mut Picture),
    /// Into pixels.
    Pixels(Pixels<'a>),
}

/// Pixels `[h*shuffle][w*shuffle][channels]` that are made of a result of h x w.
#[derive(Debug)]
pub struct Pixels<'a> {
    /// The pixels.
    pub out: &'a mut [f32],
    /// Channels of a pixel.
    pub channels: usize,
    /// r: channel `c * r * r + i * r + j` of the result becomes channel c of row i and column j of r x r pixels.
    pub shuffle: usize,
    /// A picture `[h][w][channels]`, and how many channels that is, whose pixels are repeated and added. A picture or result
    /// of one channel counts for all.
    pub base: Option<(&'a [f32], usize)>,
}

/// A run was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the computation was interrupted")]
pub struct Interrupted;

/// Memory that runs of chains use one after the other.
#[derive(Debug, Default)]
pub struct Workspace {
    workers: Vec<Scratch>,
}

/// The memory of one thread.
#[derive(Debug, Default)]
struct Scratch {
    /// For each map: the last rows of it, as in a [`Picture`].
    rows: Vec<Vec<Line>>,
    /// For each map: the last bands of it as points, `[band][block][point][tile]`.
    points: Vec<Line>,
    /// In their stead, where products are of bf16: the last bands of each map, see [`halves`].
    halves: Vec<HalfLine>,
    /// For each map: how many bands have become points, or bf16.
    points_done: Vec<usize>,
    /// Points of a few tiles of the only input of a stage, `[block][point][tile]`.
    turned: Vec<Line>,
    /// Sums at points, `[group][point][tile][vector]`.
    sums: Vec<Line>,
    /// A row beyond the borders.
    beyond: Vec<Line>,
}

impl Chain {
    /// An empty chain for `level`. Where the level gains nothing from bf16, it computes exactly all the same.
    pub fn new(level: Level, precision: Precision) -> Self {
        Self { level, method: Method::new(level, precision), maps: Vec::new(), stages: Vec::new() }
    }

    /// Adds a map that is given at each run, in the order of these calls.
    pub fn given(&mut self, channels: usize) -> MapId {
        let given = self.maps.iter().filter(|map| matches!(map.source, Source::Given(_))).count();
        self.map(channels, 0, Source::Given(given))
    }

    fn map(&mut self, channels: usize, doublings: u32, source: Source) -> MapId {
        self.maps.push(Map { channels, doublings, source });
        MapId(self.maps.len() - 1)
    }

    /// Adds a convolution over `inputs`, all of one size. The last one that is added gives the result of the chain.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn conv(&mut self, inputs: &[MapId], conv: Conv<'_>) -> MapId {
        let doublings = self.maps[inputs[0].0].doublings;
        assert!(inputs.iter().all(|input| self.maps[input.0].doublings == doublings), "inputs of one size");
        let channels: Vec<usize> = inputs.iter().map(|input| self.maps[input.0].channels).collect();
        let outputs = conv.bias.len();
        assert_eq!(
            conv.weight.len(),
            outputs * channels.iter().sum::<usize>() * 9,
            "weights for all inputs and outputs"
        );
        for (_, map) in &conv.residuals {
            let map = &self.maps[map.0];
            assert_eq!((map.channels, map.doublings), (outputs, doublings), "a residual as large as the result");
        }
        let output = self.map(outputs, doublings + u32::from(conv.doubled), Source::Stage(self.stages.len()));
        let (groups, halves) = if self.method == Method::Winograd {
            (dispatch(self.level, weights::Pack { weight: conv.weight, channels: &channels, outputs }), Vec::new())
        } else {
            (Vec::new(), halves::pack(conv.weight, &channels, outputs))
        };
        self.stages.push(Stage {
            inputs: inputs.iter().map(|input| input.0).collect(),
            output: output.0,
            groups,
            halves,
            bias: lines(conv.bias),
            slopes: match conv.activation {
                Activation::None => Vec::new(),
                Activation::LeakyRelu(slope) => lines(&vec![slope; outputs]),
                Activation::PRelu(slopes) => {
                    assert_eq!(slopes.len(), outputs, "a slope for each output");
                    lines(&slopes)
                }
            },
            residuals: conv.residuals.into_iter().map(|(factor, map)| (factor, map.0)).collect(),
            doubled: conv.doubled,
            work: conv.weight.len() as f64 * 4f64.powi(doublings as i32),
        });
        output
    }

    /// Multiplications for each pixel of the input, as the plain sums take them.
    pub fn work(&self) -> f64 {
        self.stages.iter().map(|stage| stage.work).sum()
    }

    /// Bytes that the packed weights take.
    pub fn weight_bytes(&self) -> usize {
        let of_stage = |stage: &Stage| {
            stage.groups.iter().map(Group::bytes).sum::<usize>()
                + stage.halves.iter().map(HalfGroup::bytes).sum::<usize>()
        };
        self.stages.iter().map(of_stage).sum()
    }

    /// Bytes that one thread takes to run the chain on maps of `h` x `w`, beside these maps and the result.
    pub fn work_bytes(&self, h: usize, w: usize) -> usize {
        if h == 0 || w == 0 {
            return 0;
        }
        let frame = self.frame(h, w);
        let schedule = self.schedule(&frame, 0..frame.bands);
        let rows = self.maps.iter().zip(&schedule.maps).map(|(map, plan)| {
            let (_, w) = frame.size(map.doublings);
            plan.row_bands * frame.band_tile_rows * TILE * map.blocks() * row_lines(w)
        });
        (rows.sum::<usize>() + schedule.points + self.sum_lines(MOST_VECTORS) + self.turned_lines()) * size_of::<Line>()
    }

    /// Lines of the points that a stage turns alone.
    fn turned_lines(&self) -> usize {
        let alone = self.stages.iter().filter(|stage| self.turns_alone(stage));
        let blocks = alone.map(|stage| self.maps[stage.inputs[0]].blocks()).max().unwrap_or(0);
        blocks * POINTS * (TURNED_TILES | 1)
    }

    /// How a picture is cut. Where several stages read a map, whose points must be kept for the last of them, strips keep
    /// these in the cache.
    fn frame(&self, h: usize, w: usize) -> Frame {
        let tiles = w.div_ceil(TILE);
        let keeps_points = self.method == Method::Winograd && self.stages.iter().any(|stage| !self.turns_alone(stage));
        let strips = if keeps_points { tiles.div_ceil(STRIP_TILES) } else { 1 };
        let band_tile_rows = BAND_TILES.div_ceil(tiles);
        Frame { h, w, band_tile_rows, bands: h.div_ceil(TILE * band_tile_rows), strips }
    }

    /// Lines that the sums of a chunk take.
    fn sum_lines(&self, group: usize) -> usize {
        if self.method != Method::Winograd {
            return halves::SUM_LINES;
        }
        let blocks = self.stages.iter().map(|stage| stage.bias.len()).max().unwrap_or(0);
        POINTS * (CHUNK_TILES | 1) * (blocks + group)
    }

    /// Runs the chain on maps of one size, and writes the result.
    ///
    /// `goes_on` hears of each part of the work, [`Self::work`] for each pixel in all, from any thread, and says whether to go
    /// on. What two threads both compute is heard of twice.
    ///
    /// # Panics
    /// If the maps or the output do not have the sizes that the chain has.
    pub fn run(
        &self,
        given: &[&Picture],
        output: Output<'_>,
        workspace: &mut Workspace,
        goes_on: &(dyn Fn(f64) -> bool + Sync),
    ) -> Result<(), Interrupted> {
        let (h, w) = (given[0].h, given[0].w);
        for map in &self.maps {
            if let Source::Given(index) = map.source {
                let picture = given[index];
                assert_eq!((picture.h, picture.w, picture.channels), (h, w, map.channels), "maps of the chain's sizes");
            }
        }
        if h == 0 || w == 0 {
            return Ok(());
        }
        let frame = self.frame(h, w);
        let last = &self.maps[self.stages.last().expect("a chain has a stage").output];
        let rows_of_a_band = (frame.band_tile_rows * TILE) << last.doublings;
        let (out_h, out_w) = (h << last.doublings, w << last.doublings);
        match &output {
            Output::Picture(out) => assert_eq!((out.h, out.w, out.channels), (out_h, out_w, last.channels)),
            Output::Pixels(to) => {
                assert_eq!(to.out.len(), out_h * out_w * to.shuffle * to.shuffle * to.channels);
                assert!(to.base.is_none_or(|(base, channels)| base.len() == out_h * out_w * channels));
            }
        }
        let mut output = match output {
            Output::Picture(out) => Target::Picture { pitch: out.pitch(), lines: &mut out.lines, first: 0 },
            Output::Pixels(pixels) => Target::Pixels { pixels, first: 0 },
        };
        let shares = threads::shares(frame.bands);
        workspace.workers.resize_with(workspace.workers.len().max(shares.len()), Scratch::default);
        let stopped = AtomicBool::new(false);
        let mut jobs = Vec::new();
        for (bands, scratch) in shares.into_iter().zip(&mut workspace.workers) {
            let rows = bands.start * rows_of_a_band..(bands.end * rows_of_a_band).min(out_h);
            jobs.push((bands, scratch, output.take_rows(rows, out_w)));
        }
        threads::each(jobs, |(bands, scratch, target)| {
            let schedule = self.schedule(&frame, bands);
            let run =
                Run { chain: self, frame, given, schedule: &schedule, scratch, target, goes_on, stopped: &stopped };
            dispatch(self.level, run);
        });
        if stopped.into_inner() { Err(Interrupted) } else { Ok(()) }
    }
}

/// How a picture is cut.
#[derive(Debug, Clone, Copy)]
struct Frame {
    h: usize,
    w: usize,
    /// Rows of tiles in a band, on every map: a map of twice the height has twice as many bands.
    band_tile_rows: usize,
    /// Bands of a map that is not doubled.
    bands: usize,
    /// Strips from left to right. More than one only if bands have one row of tiles.
    strips: usize,
}

impl Frame {
    fn size(&self, doublings: u32) -> (usize, usize) {
        (self.h << doublings, self.w << doublings)
    }

    /// Tiles beside each other.
    fn tiles(&self, doublings: u32) -> usize {
        (self.w << doublings).div_ceil(TILE)
    }

    /// Rows of tiles of a band.
    fn tile_rows(&self, doublings: u32, band: usize) -> Range<usize> {
        let all = (self.h << doublings).div_ceil(TILE);
        band * self.band_tile_rows..((band + 1) * self.band_tile_rows).min(all)
    }

    /// Bands of a map.
    fn bands(&self, doublings: u32) -> usize {
        (self.h << doublings).div_ceil(TILE * self.band_tile_rows)
    }
}

/// The rows of an output, from row `first` on, that one thread writes.
enum Target<'a> {
    Picture { lines: &'a mut [Line], pitch: usize, first: usize },
    Pixels { pixels: Pixels<'a>, first: usize },
}

impl<'a> Target<'a> {
    /// Takes away `rows` of a result of width `w`, the first that are left.
    fn take_rows(&mut self, rows: Range<usize>, w: usize) -> Target<'a> {
        match self {
            Self::Picture { lines, pitch, .. } => {
                let (mine, rest) = std::mem::take(lines).split_at_mut(rows.len() * *pitch);
                *lines = rest;
                Self::Picture { lines: mine, pitch: *pitch, first: rows.start }
            }
            Self::Pixels { pixels, .. } => {
                let Pixels { channels, shuffle, base, .. } = *pixels;
                let row = w * shuffle * shuffle * channels; // all that comes of a row of the result
                let (mine, rest) = std::mem::take(&mut pixels.out).split_at_mut(rows.len() * row);
                pixels.out = rest;
                Self::Pixels { pixels: Pixels { out: mine, channels, shuffle, base }, first: rows.start }
            }
        }
    }
}

/// One thread's part of a run.
struct Run<'a> {
    chain: &'a Chain,
    frame: Frame,
    given: &'a [&'a Picture],
    schedule: &'a Schedule,
    scratch: &'a mut Scratch,
    target: Target<'a>,
    goes_on: &'a (dyn Fn(f64) -> bool + Sync),
    stopped: &'a AtomicBool,
}

impl Kernel for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.prepare(s);
        let pixels = (self.frame.h * self.frame.w) as f64;
        for strip in &self.schedule.strips {
            self.scratch.points_done.fill(0);
            for &(index, band) in &self.schedule.steps {
                if self.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let stage = &self.chain.stages[index];
                if self.chain.method != Method::Winograd {
                    self.stage_of_halves(s, stage, band);
                } else if self.chain.turns_alone(stage) {
                    self.stage::<S, true>(s, stage, band, strip.stages[index].clone(), strip);
                } else {
                    for &map in &stage.inputs {
                        self.points(s, map, band, strip.maps[map].clone());
                    }
                    self.stage::<S, false>(s, stage, band, strip.stages[index].clone(), strip);
                }
                let parts = self.frame.bands(self.chain.maps[stage.inputs[0]].doublings) * self.frame.strips;
                if !(self.goes_on)(stage.work * pixels / parts as f64) {
                    self.stopped.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// The rows of all maps that are there.
#[derive(Clone, Copy)]
struct Rows<'a> {
    chain: &'a Chain,
    frame: Frame,
    given: &'a [&'a Picture],
    schedule: &'a Schedule,
    kept: &'a [Vec<Line>],
}

impl<'a> Rows<'a> {
    /// Row `y` of a block of `map`, or none beyond its borders.
    #[inline(always)]
    fn get(&self, map: usize, block: usize, y: isize) -> Option<&'a [Line]> {
        let facts = &self.chain.maps[map];
        let (h, w) = self.frame.size(facts.doublings);
        let y = usize::try_from(y).ok().filter(|y| *y < h)?;
        let row = row_lines(w);
        let (lines, y) = match facts.source {
            Source::Given(index) => (&self.given[index].lines, y),
            Source::Stage(_) => (&self.kept[map], y % self.schedule.kept_rows(&self.frame, map)),
        };
        Some(&lines[(y * facts.blocks() + block) * row..][..row])
    }

    /// Turns tiles of a row of tiles of a block of a map into points; see [`winograd::input`].
    #[inline(always)]
    fn turn<S: Simd>(
        &self,
        s: S,
        (map, block): (usize, usize),
        tile_row: usize,
        columns: Range<usize>,
        beyond: &'a [Line],
        out: &mut [Line],
        pitch: usize,
    ) {
        let mut inputs = [beyond; IN];
        for (i, input) in inputs.iter_mut().enumerate() {
            let row = self.get(map, block, (tile_row * TILE + i) as isize - 1).unwrap_or(beyond);
            *input = &row[columns.start * TILE..];
        }
        winograd::input(s, inputs, columns.len(), out, pitch);
    }

    /// Where the points of block 0 of a band of `map` begin.
    #[inline(always)]
    fn points_at(&self, map: usize, band: usize) -> usize {
        let (facts, plan) = (&self.chain.maps[map], &self.schedule.maps[map]);
        plan.points_at + band % plan.point_bands * facts.blocks() * POINTS * plan.pitch
    }
}

impl Run<'_> {
    /// Makes room, with zeros where no result is ever written.
    #[inline(always)]
    fn prepare<S: Simd>(&mut self, s: S) {
        let Self { chain, frame, schedule, scratch, .. } = self;
        scratch.points_done.clear();
        scratch.points_done.resize(chain.maps.len(), 0);
        scratch.rows.resize_with(chain.maps.len().max(scratch.rows.len()), Vec::new);
        let mut longest = 0;
        for (index, (map, rows)) in chain.maps.iter().zip(&mut scratch.rows).enumerate() {
            let (_, w) = frame.size(map.doublings);
            let row = row_lines(w);
            longest = longest.max(row);
            let room = schedule.kept_rows(frame, index) * map.blocks() * row;
            if room == 0 || rows.len() < room {
                *rows = zeroed(room);
            }
            for row in rows.chunks_exact_mut(row) {
                row[0] = Line::ZERO;
                row[w + 1..].fill(Line::ZERO);
            }
        }
        let mut points = schedule.points;
        if chain.method != Method::Winograd {
            halves::prepare(chain, frame, schedule, scratch);
            points = 0;
        }
        for (lines, room) in [
            (&mut scratch.beyond, longest),
            (&mut scratch.points, points),
            (&mut scratch.turned, chain.turned_lines()),
            (&mut scratch.sums, chain.sum_lines(F32(s).group() / LANES)),
        ] {
            if lines.len() < room {
                *lines = zeroed(room);
            }
        }
    }

    /// Turns some columns of tiles of a band of `map` into points, if that is not yet done.
    #[inline(always)]
    fn points<S: Simd>(&mut self, s: S, map: usize, band: usize, columns: Range<usize>) {
        let Self { chain, frame, given, schedule, scratch, .. } = self;
        let done = &mut scratch.points_done[map];
        if *done > band {
            return;
        }
        *done = band + 1;
        let rows = Rows { chain, frame: *frame, given, schedule, kept: &scratch.rows };
        let (facts, pitch) = (&chain.maps[map], schedule.maps[map].pitch);
        let begin = rows.points_at(map, band);
        for block in 0..facts.blocks() {
            for (r, tile_row) in frame.tile_rows(facts.doublings, band).enumerate() {
                let out = &mut scratch.points[begin + block * POINTS * pitch + r * columns.len()..];
                rows.turn(s, (map, block), tile_row, columns.clone(), &scratch.beyond, out, pitch);
            }
        }
    }

    /// Computes some columns of tiles of a band of a stage and writes the result. Its inputs are points, or it turns them
    /// itself if it is `ALONE`.
    #[inline(always)]
    fn stage<S: Simd, const ALONE: bool>(
        &mut self,
        s: S,
        stage: &Stage,
        band: usize,
        columns: Range<usize>,
        strip: &Strip,
    ) {
        let Self { chain, frame, given, schedule, scratch, target, .. } = self;
        let mut dest = std::mem::take(&mut scratch.rows[stage.output]);
        let rows = Rows { chain, frame: *frame, given, schedule, kept: &scratch.rows };
        let tile_rows = frame.tile_rows(chain.maps[stage.inputs[0]].doublings, band);
        let tiles = columns.len();
        let mut offsets = Vec::new();
        let count = tiles * tile_rows.len();
        let chunks = count.div_ceil(if ALONE { TURNED_TILES } else { CHUNK_TILES });
        for chunk in 0..chunks {
            let chunk = count * chunk / chunks..count * (chunk + 1) / chunks;
            // Tiles of a row of tiles: the first, the row, and its columns.
            let segments = (chunk.start / tiles..chunk.end.div_ceil(tiles)).map(|row| {
                let (start, end) = (chunk.start.max(row * tiles), chunk.end.min((row + 1) * tiles));
                let left = columns.start + start - row * tiles;
                (start - chunk.start, tile_rows.start + row, left..left + end - start)
            });
            let sum_pitch = chunk.len() | 1;
            if ALONE {
                let map = stage.inputs[0];
                for (block, out) in
                    scratch.turned.chunks_exact_mut(POINTS * sum_pitch).enumerate().take(chain.maps[map].blocks())
                {
                    for (first, tile_row, columns) in segments.clone() {
                        rows.turn(s, (map, block), tile_row, columns, &scratch.beyond, &mut out[first..], sum_pitch);
                    }
                }
            }
            let points = if ALONE { &scratch.turned } else { &scratch.points };
            for point in 0..POINTS {
                offsets.clear();
                for &map in &stage.inputs {
                    // Points of more columns than these lie in one row of tiles.
                    let (begin, pitch) = if ALONE {
                        (0, sum_pitch)
                    } else {
                        (rows.points_at(map, band) + columns.start - strip.maps[map].start, schedule.maps[map].pitch)
                    };
                    let begin = begin + point * pitch + if ALONE { 0 } else { chunk.start };
                    offsets.extend((0..chain.maps[map].blocks()).map(|block| begin + block * POINTS * pitch));
                }
                let mut at = 0;
                for group in &stage.groups {
                    let out = &mut scratch.sums[(at * POINTS + point * group.vectors) * sum_pitch..];
                    F32(s).product(points, chunk.len(), &offsets, BLOCK, group.at(point), group.vectors, true, out);
                    at += group.vectors;
                }
            }
            let mut block = 0;
            for group in &stage.groups {
                let sums = &scratch.sums[block * POINTS * sum_pitch..];
                for vector in 0..group.vectors {
                    for (first, tile_row, columns) in segments.clone() {
                        let mut ends = Ends::new(s, stage, block, tile_row * TILE, &rows, target, &mut dest);
                        for (i, column) in columns.enumerate() {
                            let from = (first + i) * group.vectors + vector;
                            let values = winograd::output(s, &sums[from..], sum_pitch * group.vectors);
                            ends.put(s, column * TILE, &values);
                        }
                    }
                    block += 1;
                }
            }
        }
        scratch.rows[stage.output] = dest;
    }
}

/// What becomes of the sums of one block of outputs in `TILE` rows.
struct Ends<'a, 't, S: Simd> {
    bias: S::V,
    slope: Option<S::V>,
    /// For each residual: the factor, and the rows that are added.
    residuals: Vec<(S::V, [&'a [Line]; TILE])>,
    /// How many of the rows lie within the picture.
    high: usize,
    w: usize,
    to: To<'a, 't>,
}

enum To<'a, 't> {
    /// No f32 is wanted.
    Nowhere,
    /// Into lines: where the rows begin, twice where the sides double.
    Lines { lines: &'a mut [Line], rows: [[usize; 2]; TILE], times: usize },
    /// Into pixels: the row in the picture, and in these pixels.
    Pixels { pixels: &'a mut Pixels<'t>, y: usize, row: usize, places: Places },
}

impl<'a, 't, S: Simd> Ends<'a, 't, S> {
    #[inline(always)]
    fn new(
        s: S,
        stage: &Stage,
        block: usize,
        y: usize,
        rows: &Rows<'a>,
        target: &'a mut Target<'t>,
        dest: &'a mut [Line],
    ) -> Self {
        let map = &rows.chain.maps[stage.output];
        let (h, w) = rows.frame.size(rows.chain.maps[stage.inputs[0]].doublings);
        let high = (h - y).min(TILE);
        let added = |map: usize| {
            let row = |j: usize| rows.get(map, block, (y + j) as isize).unwrap_or_default();
            std::array::from_fn(row)
        };
        let residuals = stage.residuals.iter().map(|(factor, map)| (s.splat(*factor), added(*map))).collect();
        let row = row_lines(rows.frame.size(map.doublings).1);
        let times = if stage.doubled { 2 } else { 1 };
        let starts = |pitch: usize, first: usize, ring: usize| {
            let start = |j: usize, copy: usize| ((y + j) * times + copy - first) % ring * pitch + block * row + 1;
            std::array::from_fn(|j| [start(j, 0), start(j, times - 1)])
        };
        let is_result = rows.chain.stages.last().is_some_and(|last| last.output == stage.output);
        let to = if dest.is_empty() && !is_result {
            To::Nowhere
        } else if dest.is_empty() {
            match target {
                Target::Picture { lines, pitch, first } => {
                    To::Lines { rows: starts(*pitch, *first, usize::MAX), lines, times }
                }
                Target::Pixels { pixels, first } => {
                    let places = pixels.places(block, map.channels, w);
                    To::Pixels { pixels, y, row: y - *first, places }
                }
            }
        } else {
            let ring = rows.schedule.kept_rows(&rows.frame, stage.output);
            To::Lines { lines: dest, rows: starts(map.blocks() * row, 0, ring), times }
        };
        let slope = stage.slopes.get(block).map(|slope| s.load(&slope.0));
        Self { bias: s.load(&stage.bias[block].0), slope, residuals, high, w, to }
    }

    /// Finishes the sums of 4 x 4 pixels from column `x` on, and writes those that lie within the picture.
    #[inline(always)]
    fn put(&mut self, s: S, x: usize, tile: &[[S::V; TILE]; TILE]) {
        let wide = (self.w - x).min(TILE);
        for (j, values) in tile.iter().enumerate().take(self.high) {
            let mut values = *values;
            for value in &mut values {
                *value = s.add(*value, self.bias);
                if let Some(slope) = self.slope {
                    *value = s.select_nonneg(*value, *value, s.mul(*value, slope));
                }
            }
            for (factor, added) in &self.residuals {
                let added: &[Line; TILE] = added[j][x + 1..][..TILE].try_into().expect("rows are filled up to a tile");
                for (value, added) in values.iter_mut().zip(added) {
                    *value = s.mul_add(*value, *factor, s.load(&added.0));
                }
            }
            match &mut self.to {
                To::Nowhere => (),
                To::Lines { lines, rows, times: 1 } => {
                    let lines = &mut lines[rows[j][0] + x..][..wide];
                    for (line, value) in lines.iter_mut().zip(values) {
                        s.store(value, &mut line.0);
                    }
                }
                To::Lines { lines, rows, .. } => {
                    for start in rows[j] {
                        let lines = &mut lines[start + 2 * x..][..2 * wide];
                        for (pair, value) in lines.chunks_exact_mut(2).zip(values) {
                            s.store(value, &mut pair[0].0);
                            s.store(value, &mut pair[1].0);
                        }
                    }
                }
                To::Pixels { pixels, y, row, places } => {
                    for (i, value) in values.into_iter().enumerate().take(wide) {
                        pixels.put(places, (*y + j, *row + j), x + i, &s.array(value));
                    }
                }
            }
        }
    }
}

impl Pixels<'_> {
    /// Where the channels of a block go in rows of `w` pixels of a result of `outputs` channels.
    fn places(&self, block: usize, outputs: usize, w: usize) -> Places {
        let (area, row) = (self.shuffle * self.shuffle, w * self.shuffle * self.channels);
        let mut places = Places { w, count: 0, at: [0; LANES], base: [0; LANES], spread: 1 };
        if outputs == area {
            places.spread = self.channels; // one channel counts for all
        }
        for (lane, channel) in (block * BLOCK..outputs.min((block + 1) * BLOCK)).enumerate() {
            let (c, i, j) = (channel / area, channel % area / self.shuffle, channel % self.shuffle);
            places.count = lane + 1;
            places.at[lane] = i * row + j * self.channels + c;
            places.base[lane] = c;
        }
        places
    }

    /// Puts `values`, a block of the result at column `x`, where they belong, in row `row` of these pixels. In `base` that
    /// is row `y`.
    #[inline(always)]
    fn put(&mut self, places: &Places, (y, row): (usize, usize), x: usize, values: &[f32; LANES]) {
        let start = (row * self.shuffle * places.w + x) * self.shuffle * self.channels;
        let base = self.base.map(|(base, channels)| &base[(y * places.w + x) * channels..][..channels]);
        for ((value, at), c) in values.iter().zip(places.at).zip(places.base).take(places.count) {
            for more in 0..places.spread {
                let base = base.map_or(0.0, |base| base[(c + more).min(base.len() - 1)]);
                self.out[start + at + more] = value + base;
            }
        }
    }
}

/// Where the channels of a block go.
struct Places {
    /// Pixels of a row of the result.
    w: usize,
    /// How many channels there are.
    count: usize,
    /// For each, how far behind the first of its pixel's numbers.
    at: [usize; LANES],
    /// For each, the channel that is added to it.
    base: [usize; LANES],
    /// To how many channels, from there on, each goes.
    spread: usize,
}

//! Single convolutions over channels that each lie together, `[c][h][w]`: what networks that are no chain are made of.
//!
//! A 3 x 3 convolution of stride 1 goes by Winograd's method, its kernels turned into points at each call: kept as points
//! they would take four times the memory, and turning them costs little, the less the more pictures share it. All others, and all in bf16 tiles, are sums over taps
//! and channels as they stand.

use std::ops::Range;

use crate::{
    kept::{Kept, Widen},
    level::Level,
    line::{Line, lines, zeroed},
    linear::Epilogue,
    operand::{self, Operand, Packed, ProductKernel},
    picture::{BLOCK, TILE, row_lines},
    precision::Precision,
    product::{F32, Products},
    simd::{Kernel, LANES, Simd, dispatch},
    threads,
    winograd::{self, IN, OUT, POINTS},
};

/// Tiles that are points at a time, if a row of them is not longer: one pass over the weights.
const BAND_TILES: usize = 256;
/// Tiles whose sums are held at once.
const CHUNK_TILES: usize = 64;
/// Lines of inputs whose kernels are turned at once where there are few tiles.
const CHUNK_LINES: usize = 4;
/// Pixels of a row that are written at once, and a few more: rows shall not share one set of the cache.
const STRIP: usize = CHUNK_TILES * OUT + 4;
/// Taps of a 3 x 3 kernel.
const TAPS: usize = 9;

/// The sizes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Channels that come out.
    pub outputs: usize,
    /// Channels that go in.
    pub inputs: usize,
    /// The sides of the kernel.
    pub kernel: usize,
    /// Pixels from one place of the kernel to the next, both ways.
    pub stride: usize,
    /// Zeros before the first and behind the last pixel, both ways.
    pub padding: usize,
}

impl Shape {
    /// The size of the result for `h` x `w` pixels; 0 where the kernel does not fit.
    pub fn output(&self, h: usize, w: usize) -> (usize, usize) {
        let side = |pixels: usize| match (pixels + 2 * self.padding).checked_sub(self.kernel) {
            Some(room) => room / self.stride + 1,
            None => 0,
        };
        (side(h), side(w))
    }
}

/// A convolution with its weights. Packed once, used often.
#[derive(Debug, Clone)]
pub struct Conv2d {
    level: Level,
    precision: Precision,
    shape: Shape,
    /// One line for each vector of outputs.
    bias: Vec<Line>,
    weights: Weights,
}

#[derive(Debug, Clone)]
enum Weights {
    /// `[group][input][tap][vector]`, for Winograd's method.
    Taps(Kept),
    /// `[group][row of the kernel][column][line of inputs][..]`, as the products want them.
    Packed(Packed),
}

impl Conv2d {
    /// Packs `weight`, `[outputs][inputs][kernel][kernel]`, and `bias`, `[outputs]`.
    ///
    /// # Panics
    /// If the lengths do not fit the shape, a side of it is 0, or this processor lacks `level`.
    pub fn new(level: Level, precision: Precision, shape: Shape, weight: &[f32], bias: Option<&[f32]>) -> Self {
        let Shape { outputs, inputs, kernel, stride, padding } = shape;
        assert!(outputs > 0 && inputs > 0 && kernel > 0 && stride > 0, "no side of {shape:?} is 0");
        assert_eq!(weight.len(), outputs * inputs * kernel * kernel, "as many weights as the shape says");
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "one bias for each output");
        let bias = bias.map_or_else(|| zeroed(outputs.div_ceil(LANES)), lines);
        let tiles = level == Level::Amx && precision == Precision::Fast;
        let weights = if (kernel, stride, padding) == (3, 1, 1) && !tiles {
            Weights::Taps(Kept::new(dispatch(level, PackTaps { shape, weight })))
        } else {
            Weights::Packed(operand::dispatch(level, precision, Pack { shape, weight }))
        };
        Self { level, precision, shape, bias, weights }
    }

    /// Its sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Computes `out`, `[b][outputs][h'][w']` of [`Shape::output`], from `x`, `[b][inputs][h][w]`. A residual is as large as
    /// `out`. To the outputs of each picture `shift`, `[b][outputs]`, is added behind the bias.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn forward(
        &self,
        x: &[f32],
        h: usize,
        w: usize,
        shift: Option<&[f32]>,
        epilogue: Epilogue<'_>,
        out: &mut [f32],
    ) {
        let Shape { outputs, inputs, .. } = self.shape;
        let (out_h, out_w) = self.shape.output(h, w);
        let (from, to) = ((inputs * h * w).max(1), (outputs * out_h * out_w).max(1));
        let b = x.len() / from;
        assert_eq!(x.len(), b * inputs * h * w, "as many numbers as the inputs have pixels");
        assert_eq!(out.len(), b * outputs * out_h * out_w, "as many numbers as the outputs have pixels");
        assert!(shift.is_none_or(|shift| shift.len() == b * outputs), "a shift for each output");
        epilogue.check(out);
        if out.is_empty() {
            return;
        }
        let ends = Ends { shift, epilogue };
        match &self.weights {
            Weights::Taps(taps) => self.winograd(taps, x, h, w, ends, out),
            Weights::Packed(weights) => {
                for (n, (x, out)) in x.chunks_exact(from).zip(out.chunks_exact_mut(to)).enumerate() {
                    let shift = shift.map(|shift| &shift[n * outputs..][..outputs]);
                    let residual = epilogue.residual.map(|residual| &residual[n * to..][..to]);
                    let ends = Ends { shift, epilogue: Epilogue { residual, ..epilogue } };
                    self.direct(weights, x, (h, w), (out_h, out_w), ends, out);
                }
            }
        }
    }

    /// How many vectors of outputs each group has, and its first.
    fn groups(&self, most: usize) -> Vec<Range<usize>> {
        let vectors = self.bias.len();
        (0..vectors).step_by(most).map(|first| first..vectors.min(first + most)).collect()
    }

    /// Rows of tiles of all pictures stand one after another: what is turned is used for all of them.
    fn winograd(&self, taps: &Kept, x: &[f32], h: usize, w: usize, ends: Ends<'_>, out: &mut [f32]) {
        let pictures = out.len() / (self.shape.outputs * h * w);
        let (tiles, tile_rows) = (w.div_ceil(TILE), pictures * h.div_ceil(TILE));
        let band_rows = (BAND_TILES / tiles).max(1);
        let pitch = (tiles * band_rows.min(tile_rows)) | 1; // odd: the points of a tile do not share one set of the cache
        let mut points = zeroed(self.shape.inputs.div_ceil(BLOCK) * POINTS * pitch);
        for first in (0..tile_rows).step_by(band_rows) {
            let band = first..tile_rows.min(first + band_rows);
            let blocks: Vec<_> = points.chunks_exact_mut(POINTS * pitch).enumerate().collect();
            threads::each(threads::parts(blocks), |blocks| {
                dispatch(
                    self.level,
                    ToPoints { inputs: self.shape.inputs, x, h, w, band: band.clone(), pitch, blocks },
                );
            });
            let jobs = self.jobs(out, (h, w), band.clone(), TILE);
            let points = &points;
            threads::each(jobs, |part| {
                let place = Place { h, w, tiles, pitch, band: band.start };
                dispatch(self.level, FromPoints { conv: self, taps, points, place, ends, part });
            });
        }
    }

    fn direct(
        &self,
        weights: &Packed,
        x: &[f32],
        (h, w): (usize, usize),
        (out_h, out_w): (usize, usize),
        ends: Ends<'_>,
        out: &mut [f32],
    ) {
        let lines = operand::dispatch(self.level, self.precision, Spread { shape: self.shape, x, h, w });
        let jobs = self.jobs(out, (out_h, out_w), 0..out_h, 1);
        threads::each(jobs, |part| {
            let width = w + 2 * self.shape.padding;
            let direct = Direct { conv: self, weights, lines: &lines, width, out_h, out_w, ends, part };
            operand::dispatch(self.level, self.precision, direct);
        });
    }

    /// Cuts the result, `[picture][output][h][w]`, into a part for each thread: by outputs, and by rows too where there are few
    /// of these. Rows are `step` pixels high, and those in `band` of all pictures are wanted.
    fn jobs<'a>(&self, out: &'a mut [f32], (h, w): (usize, usize), band: Range<usize>, step: usize) -> Vec<Part<'a>> {
        // Groups of two vectors, and so of one.
        let by_outputs = threads::shares(self.bias.len().div_ceil(2));
        let cuts = (threads::threads() / by_outputs.len()).clamp(1, band.len());
        let cut = |i: usize| band.start + band.len() * i / cuts;
        let part = |share: &Range<usize>, i: usize| Part {
            vectors: share.start * 2..self.bias.len().min(share.end * 2),
            rows: cut(i)..cut(i + 1),
            stripes: Vec::new(),
        };
        let mut parts: Vec<Part<'a>> =
            by_outputs.iter().flat_map(|share| (0..cuts).map(move |i| part(share, i))).collect();
        let of_picture = h.div_ceil(step);
        for (picture, planes) in out.chunks_exact_mut(self.shape.outputs * h * w).enumerate() {
            let row = |row: usize| h.min(row.saturating_sub(picture * of_picture) * step);
            let mut planes = planes.chunks_exact_mut(h * w);
            for parts in parts.chunks_exact_mut(cuts) {
                for part in &mut *parts {
                    let rows = row(part.rows.start)..row(part.rows.end);
                    part.stripes.push(Stripe { rows, planes: Vec::new() });
                }
                let vectors = parts[0].vectors.clone();
                let outputs = self.shape.outputs.min(vectors.end * LANES) - vectors.start * LANES;
                for plane in planes.by_ref().take(outputs) {
                    let (mut rest, mut at) = (plane, 0);
                    for Stripe { rows, planes } in parts.iter_mut().filter_map(|part| part.stripes.last_mut()) {
                        let (rows_of_plane, others) = rest[(rows.start - at) * w..].split_at_mut(rows.len() * w);
                        planes.push(rows_of_plane);
                        (rest, at) = (others, rows.end);
                    }
                }
            }
        }
        parts
    }
}

/// What is added to sums and biases.
#[derive(Clone, Copy)]
struct Ends<'a> {
    /// `[picture][output]`, before the function.
    shift: Option<&'a [f32]>,
    epilogue: Epilogue<'a>,
}

impl Ends<'_> {
    /// What `sum` becomes before the residual is added.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, sum: S::V, bias: S::V, shift: S::V) -> S::V {
        let mut value = s.add(sum, bias);
        if self.shift.is_some() {
            value = s.add(value, shift);
        }
        self.epilogue.function.map_or(value, |function| function.of(s, value))
    }

    /// The shift of a vector of the outputs of a picture; what stands behind the last output does not matter.
    #[inline(always)]
    fn shift<S: Simd>(&self, s: S, picture: usize, outputs: usize, vector: usize) -> S::V {
        match self.shift {
            None => s.splat(0.0),
            Some(shift) => {
                s.load_part(&shift[picture * outputs..][vector * LANES..outputs.min((vector + 1) * LANES)], 0.0)
            }
        }
    }
}

/// The part of a result that one thread computes.
struct Part<'a> {
    /// Vectors of outputs.
    vectors: Range<usize>,
    /// Rows of all pictures, one after another, as high as whoever cut them said.
    rows: Range<usize>,
    /// What these are of each picture.
    stripes: Vec<Stripe<'a>>,
}

/// Some rows of a picture.
struct Stripe<'a> {
    rows: Range<usize>,
    /// These rows of each output.
    planes: Vec<&'a mut [f32]>,
}

impl Part<'_> {
    /// Writes `wide` pixels of a vector of outputs of a picture, in a row from column `x` on, and adds the residual. Those of
    /// each output lie together in `pixels`, which of the next output `pitch` further.
    fn put(
        &mut self,
        epilogue: &Epilogue<'_>,
        [picture, vector]: [usize; 2],
        Shape { outputs, .. }: Shape,
        (h, w): (usize, usize),
        (y, x): (usize, usize),
        pixels: &[f32],
        pitch: usize,
        wide: usize,
    ) {
        let Stripe { rows, planes } = &mut self.stripes[picture];
        let first = (vector - self.vectors.start) * LANES;
        let last = planes.len().min(first + LANES);
        for (lane, to) in planes[first..last].iter_mut().enumerate() {
            let to = &mut to[(y - rows.start) * w + x..][..wide];
            let pixels = &pixels[lane * pitch..][..wide];
            match epilogue.residual {
                None => to.copy_from_slice(pixels),
                Some(residual) => {
                    let plane = picture * outputs + vector * LANES + lane;
                    let residual = &residual[(plane * h + y) * w + x..];
                    for ((to, pixel), residual) in to.iter_mut().zip(pixels).zip(residual) {
                        *to = pixel + residual;
                    }
                }
            }
        }
    }
}

/// Packs the kernels of a 3 x 3 convolution by taps.
struct PackTaps<'a> {
    shape: Shape,
    weight: &'a [f32],
}

impl Kernel for PackTaps<'_> {
    type Output = Vec<Line>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<Line> {
        let Shape { outputs, inputs, .. } = self.shape;
        let vectors = outputs.div_ceil(LANES);
        let most = F32(s).group() / LANES;
        let mut lines = zeroed(vectors * inputs * TAPS);
        for (output, weight) in self.weight.chunks_exact(inputs * TAPS).enumerate() {
            let (vector, lane) = (output / LANES, output % LANES);
            let group = vector / most * most;
            let of_group = most.min(vectors - group);
            for (tap, value) in weight.iter().enumerate() {
                lines[group * inputs * TAPS + tap * of_group + vector - group].0[lane] = *value;
            }
        }
        lines
    }
}

/// Turns a band of channels into points.
struct ToPoints<'a> {
    inputs: usize,
    x: &'a [f32],
    h: usize,
    w: usize,
    /// Rows of tiles of all pictures.
    band: Range<usize>,
    pitch: usize,
    /// Blocks of channels, and where their points go.
    blocks: Vec<(usize, &'a mut [Line])>,
}

impl Kernel for ToPoints<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { inputs, x, h, w, band, pitch, blocks } = self;
        let (row, tiles, of_picture) = (row_lines(w), w.div_ceil(TILE), h.div_ceil(TILE));
        // The band's rows of one block of a picture, and one more on both sides.
        let mut strip = zeroed((band.len() * TILE + 2) * row);
        let pictures = band.start / of_picture..band.end.div_ceil(of_picture);
        for (block, out) in blocks {
            for picture in pictures.clone() {
                let above = picture * of_picture; // rows of tiles
                let rows = band.start.max(above)..band.end.min(above + of_picture);
                let first = ((rows.start - above) * TILE) as isize - 1;
                let strip = &mut strip[..(rows.len() * TILE + 2) * row];
                let channels = block * BLOCK..inputs.min((block + 1) * BLOCK);
                let planes = &x[(picture * inputs + channels.start) * h * w..][..channels.len() * h * w];
                if channels.len() < BLOCK {
                    strip.fill(Line::ZERO);
                }
                for (i, to) in strip.chunks_exact_mut(row).enumerate() {
                    let Some(y) = usize::try_from(first + i as isize).ok().filter(|y| *y < h) else {
                        to.fill(Line::ZERO);
                        continue;
                    };
                    for (channel, plane) in planes.chunks_exact(h * w).enumerate() {
                        for (line, value) in to[1..].iter_mut().zip(&plane[y * w..][..w]) {
                            line.0[channel] = *value;
                        }
                    }
                }
                for r in 0..rows.len() {
                    let mut lines = [&strip[..row]; IN];
                    for (i, to) in lines.iter_mut().enumerate() {
                        *to = &strip[(r * TILE + i) * row..][..row];
                    }
                    winograd::input(s, lines, tiles, &mut out[(rows.start - band.start + r) * tiles..], pitch);
                }
            }
        }
    }
}

/// Turns the kernels of some inputs, `[input][tap][vector]`, into points, `[point][input][vector]`, those of the next point
/// `of_point` further.
#[inline(always)]
fn turn<S: Simd, W: Widen>(s: S, taps: &[W], vectors: usize, of_point: usize, kernels: &mut [Line]) {
    for (input, taps) in taps.chunks_exact(TAPS * vectors).enumerate() {
        for vector in 0..vectors {
            let kernel: [S::V; TAPS] = std::array::from_fn(|tap| taps[tap * vectors + vector].widen(s));
            let at = input * vectors + vector;
            for (point, value) in winograd::kernels(s, kernel).as_flattened().iter().enumerate() {
                s.store(*value, &mut kernels[point * of_point + at].0);
            }
        }
    }
}

/// Where points and rows lie.
#[derive(Clone, Copy)]
struct Place {
    h: usize,
    w: usize,
    /// Tiles beside each other.
    tiles: usize,
    /// Lines from a point to the next.
    pitch: usize,
    /// The row of tiles, of all pictures, with which the points begin.
    band: usize,
}

/// Sums points and writes the results of a part.
struct FromPoints<'a> {
    conv: &'a Conv2d,
    taps: &'a Kept,
    points: &'a [Line],
    place: Place,
    ends: Ends<'a>,
    part: Part<'a>,
}

impl Kernel for FromPoints<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { conv, taps, points, place, ends, mut part } = self;
        let Place { h, w, tiles, pitch, band } = place;
        let Shape { inputs, outputs, .. } = conv.shape;
        let of_picture = h.div_ceil(TILE);
        let lines = inputs.div_ceil(BLOCK);
        let most = F32(s).group() / LANES;
        let all = (part.rows.start - band) * tiles..(part.rows.end - band) * tiles;
        // Few tiles: as many inputs at a time as leave their kernels in the cache. Many: all, and some tiles at a time.
        let (step, chunks) =
            if all.len() <= CHUNK_TILES { (CHUNK_LINES, 1) } else { (lines, all.len().div_ceil(CHUNK_TILES)) };
        let of_point = (step * BLOCK * most) | 1; // odd, as the pitch of the points
        let mut kernels = zeroed(POINTS * of_point);
        let mut sums = zeroed(POINTS * (CHUNK_TILES | 1) * most);
        let mut pixels = vec![0.0; OUT * LANES * STRIP];
        for group in conv.groups(most) {
            if !part.vectors.contains(&group.start) {
                continue;
            }
            let vectors = group.len();
            let start = group.start * inputs * TAPS;
            let of_input = TAPS * vectors;
            for first in (0..lines).step_by(step) {
                let last = lines.min(first + step);
                let which = start + first * BLOCK * of_input..start + inputs.min(last * BLOCK) * of_input;
                match taps {
                    Kept::F32(taps) => turn(s, &taps[which.clone()], vectors, of_point, &mut kernels),
                    Kept::F16(taps) => turn(s, &taps[which.clone()], vectors, of_point, &mut kernels),
                    Kept::Bf16(taps) => turn(s, &taps[which.clone()], vectors, of_point, &mut kernels),
                }
                // What fills up the last line is multiplied by zeros.
                for i in 0..chunks {
                    let chunk = all.start + all.len() * i / chunks..all.start + all.len() * (i + 1) / chunks;
                    let sum_pitch = chunk.len() | 1;
                    for point in 0..POINTS {
                        if i + 1 == chunks {
                            // What is turned next comes from far away meanwhile.
                            let ahead = |point: usize| which.end + which.len() * point / POINTS;
                            taps.prefetch(s, ahead(point)..ahead(point + 1));
                        }
                        let offsets: Vec<usize> =
                            (first..last).map(|block| (block * POINTS + point) * pitch + chunk.start).collect();
                        let kernels = &kernels[point * of_point..][..(last - first) * BLOCK * vectors];
                        let sums = &mut sums[point * sum_pitch * vectors..];
                        F32(s).product(points, chunk.len(), &offsets, BLOCK, kernels, vectors, first == 0, sums);
                    }
                    if last < lines {
                        continue;
                    }
                    for vector in 0..vectors {
                        let bias = s.load(&conv.bias[group.start + vector].0);
                        let mut tile = chunk.start;
                        while tile < chunk.end {
                            // Tiles beside each other.
                            let end = chunk.end.min((tile / tiles + 1) * tiles);
                            let row = band + tile / tiles;
                            let picture = row / of_picture;
                            let (y, x) = (row % of_picture * TILE, tile % tiles * TILE);
                            let shift = ends.shift(s, picture, outputs, group.start + vector);
                            for i in 0..end - tile {
                                let from = (tile + i - chunk.start) * vectors + vector;
                                let values = winograd::output(s, &sums[from..], sum_pitch * vectors);
                                for (j, values) in values.into_iter().enumerate() {
                                    for (x, value) in values.into_iter().enumerate() {
                                        let value = ends.finish(s, value, bias, shift);
                                        for (lane, value) in s.array(value).into_iter().enumerate() {
                                            pixels[(j * LANES + lane) * STRIP + i * OUT + x] = value;
                                        }
                                    }
                                }
                            }
                            let wide = (w - x).min((end - tile) * OUT);
                            for (j, pixels) in pixels.chunks_exact(LANES * STRIP).enumerate().take((h - y).min(OUT)) {
                                let which = [picture, group.start + vector];
                                let at = (y + j, x);
                                part.put(&ends.epilogue, which, conv.shape, (h, w), at, pixels, STRIP, wide);
                            }
                            tile = end;
                        }
                    }
                }
            }
        }
    }
}

/// Packs kernels for sums over taps.
struct Pack<'a> {
    shape: Shape,
    weight: &'a [f32],
}

impl ProductKernel for Pack<'_> {
    type Output = Packed;

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, _: S, products: P) -> Packed {
        let Shape { outputs, inputs, kernel, .. } = self.shape;
        let taps = kernel * kernel;
        let lines = inputs.div_ceil(P::Line::NUMBERS);
        let (vectors, most) = (outputs.div_ceil(LANES), products.group() / LANES);
        let of_vector = taps * lines * LANES;
        let mut weights = vec![P::Line::ZERO; vectors * of_vector];
        for (output, weight) in self.weight.chunks_exact(inputs * taps).enumerate() {
            let group = output / LANES / most * most;
            let of_group = most.min(vectors - group);
            let to = &mut weights[group * of_vector..][..of_group * of_vector];
            for (input, weight) in weight.chunks_exact(taps).enumerate() {
                for (tap, value) in weight.iter().enumerate() {
                    let k = tap * lines * P::Line::NUMBERS + input;
                    P::Line::set_column(to, of_group, k, output - group * LANES, *value);
                }
            }
        }
        P::Line::packed(weights)
    }
}

/// Lays out inputs with zeros around them: `[y][line of channels][phase][x / stride]`, where the phase is x modulo the stride,
/// so that the inputs of neighbouring outputs are neighbours.
struct Spread<'a> {
    shape: Shape,
    x: &'a [f32],
    h: usize,
    w: usize,
}

impl ProductKernel for Spread<'_> {
    type Output = Packed;

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, _: S, _: P) -> Packed {
        let Self { shape: Shape { inputs, stride, padding, .. }, x, h, w } = self;
        let lines = inputs.div_ceil(P::Line::NUMBERS);
        let phase = (w + 2 * padding).div_ceil(stride);
        let row = lines * stride * phase;
        let mut out = vec![P::Line::ZERO; (h + 2 * padding) * row];
        for (input, plane) in x.chunks_exact(h * w).enumerate() {
            let (line, k) = (input / P::Line::NUMBERS, input % P::Line::NUMBERS);
            for (y, values) in plane.chunks_exact(w).enumerate() {
                let out = &mut out[(y + padding) * row + line * stride * phase..];
                for (x, value) in values.iter().enumerate() {
                    let x = x + padding;
                    out[x % stride * phase + x / stride].set_row(k, *value);
                }
            }
        }
        P::Line::packed(out)
    }
}

/// Sums over taps and channels, and writes the results of a part.
struct Direct<'a> {
    conv: &'a Conv2d,
    weights: &'a Packed,
    lines: &'a Packed,
    /// Inputs in a row, with the zeros.
    width: usize,
    out_h: usize,
    out_w: usize,
    ends: Ends<'a>,
    part: Part<'a>,
}

impl ProductKernel for Direct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, s: S, products: P) {
        let Self { conv, weights, lines, width, out_h, out_w, ends, mut part } = self;
        let (weights, inputs) = (P::Line::lines(weights), P::Line::lines(lines));
        let Shape { kernel, stride, inputs: channels, .. } = conv.shape;
        let lines = channels.div_ceil(P::Line::NUMBERS);
        let phase = width.div_ceil(stride);
        let of_vector = kernel * kernel * lines * LANES;
        let most = products.group() / LANES;
        let mut sums = zeroed(out_w * most);
        let pitch = out_w | 1;
        let mut pixels = vec![0.0; LANES * pitch];
        for y in part.rows.clone() {
            let mut offsets = Vec::with_capacity(kernel * kernel * lines);
            for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                let start = (y * stride + ky) * lines * stride * phase + kx % stride * phase + kx / stride;
                offsets.extend((0..lines).map(|line| start + line * stride * phase));
            }
            for group in conv.groups(most) {
                if !part.vectors.contains(&group.start) {
                    continue;
                }
                let vectors = group.len();
                let weights = &weights[group.start * of_vector..][..vectors * of_vector];
                products.product(inputs, out_w, &offsets, P::Line::NUMBERS, weights, vectors, true, &mut sums);
                for vector in 0..vectors {
                    let which = group.start + vector;
                    let (bias, shift) = (s.load(&conv.bias[which].0), ends.shift(s, 0, conv.shape.outputs, which));
                    for x in 0..out_w {
                        let value = ends.finish(s, s.load(&sums[x * vectors + vector].0), bias, shift);
                        for (lane, value) in s.array(value).into_iter().enumerate() {
                            pixels[lane * pitch + x] = value;
                        }
                    }
                    let size = (out_h, out_w);
                    part.put(&ends.epilogue, [0, which], conv.shape, size, (y, 0), &pixels, pitch, out_w);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::Function;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    struct Case {
        shape: Shape,
        h: usize,
        w: usize,
        x: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
        residual: Vec<f32>,
    }

    fn case(outputs: usize, inputs: usize, kernel: usize, stride: usize, h: usize, w: usize) -> Case {
        let shape = Shape { outputs, inputs, kernel, stride, padding: kernel / 2 };
        let (out_h, out_w) = shape.output(h, w);
        let scale = 1.0 / ((inputs * kernel * kernel) as f32).sqrt();
        let weight = numbers(outputs * inputs * kernel * kernel, 2).into_iter().map(|x| x * scale).collect();
        let residual = numbers(outputs * out_h * out_w, 4);
        Case { shape, h, w, x: numbers(inputs * h * w, 1), weight, bias: numbers(outputs, 3), residual }
    }

    impl Case {
        /// The sums as they are defined, in f64.
        fn plain(&self) -> Vec<f64> {
            let Shape { outputs, inputs, kernel, stride, padding } = self.shape;
            let (out_h, out_w) = self.shape.output(self.h, self.w);
            let mut out = Vec::new();
            for (o, y, x) in (0..outputs).flat_map(|o| (0..out_h).flat_map(move |y| (0..out_w).map(move |x| (o, y, x))))
            {
                let mut sum = f64::from(self.bias[o]);
                for (i, ky, kx) in
                    (0..inputs).flat_map(|i| (0..kernel).flat_map(move |y| (0..kernel).map(move |x| (i, y, x))))
                {
                    let (y, x) = ((y * stride + ky).wrapping_sub(padding), (x * stride + kx).wrapping_sub(padding));
                    if y < self.h && x < self.w {
                        let weight = self.weight[((o * inputs + i) * kernel + ky) * kernel + kx];
                        sum += f64::from(weight) * f64::from(self.x[(i * self.h + y) * self.w + x]);
                    }
                }
                out.push(sum);
            }
            out
        }

        fn run(&self, level: Level, precision: Precision, function: Option<Function>, residual: bool) -> Vec<f32> {
            let conv = Conv2d::new(level, precision, self.shape, &self.weight, Some(&self.bias));
            let mut out = vec![f32::NAN; self.residual.len()];
            let epilogue = Epilogue { function, residual: residual.then_some(&self.residual) };
            conv.forward(&self.x, self.h, self.w, None, epilogue, &mut out);
            out
        }
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for (outputs, inputs) in [(1, 1), (5, 3), (40, 17), (33, 64)] {
            for (kernel, stride) in [(3, 1), (3, 2), (1, 1), (1, 2)] {
                for (h, w) in [(1, 1), (2, 5), (9, 4), (7, 33)] {
                    cases.push(case(outputs, inputs, kernel, stride, h, w));
                }
            }
        }
        cases.push(case(48, 20, 3, 1, 70, 61)); // more than one band
        cases.push(case(3, 4, 5, 3, 11, 12));
        cases
    }

    #[test]
    fn sums_are_those_of_the_definition_at_every_level() {
        for case in cases() {
            let plain = case.plain();
            for level in Level::ALL {
                if !level.is_available() {
                    eprintln!("skipped: this processor has no {level}");
                    continue;
                }
                for (precision, tolerance) in [(Precision::Exact, 1e-5), (Precision::Fast, 2e-2)] {
                    let got = case.run(level, precision, None, false);
                    let worst =
                        got.iter().zip(&plain).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
                    let (shape, h, w) = (case.shape, case.h, case.w);
                    assert!(worst < tolerance, "{level} {precision:?} {shape:?} {h}x{w}: off by {worst}");
                }
            }
        }
    }

    #[test]
    fn what_follows_is_applied_in_order() {
        for case in [case(20, 8, 3, 1, 6, 7), case(20, 8, 3, 2, 6, 7)] {
            for level in Level::available() {
                let got = case.run(level, Precision::Exact, Some(Function::Silu), true);
                for ((got, sum), residual) in got.iter().zip(case.plain()).zip(&case.residual) {
                    let want = sum / (1.0 + (-sum).exp()) + f64::from(*residual);
                    assert!((f64::from(*got) - want).abs() < 1e-5, "{level}: {got} for {want}");
                }
            }
        }
    }

    #[test]
    fn pictures_are_computed_together_as_each_by_itself() {
        for (shape, h, w) in cases().into_iter().map(|case| (case.shape, case.h, case.w)) {
            const PICTURES: usize = 3;
            let Shape { outputs, inputs, kernel, .. } = shape;
            let (out_h, out_w) = shape.output(h, w);
            let weight = numbers(outputs * inputs * kernel * kernel, 2);
            let (from, to) = (inputs * h * w, outputs * out_h * out_w);
            let (x, residual) = (numbers(PICTURES * from, 1), numbers(PICTURES * to, 4));
            let shift = numbers(PICTURES * outputs, 5);
            for level in Level::available() {
                let conv = Conv2d::new(level, Precision::Exact, shape, &weight, None);
                let run = |pictures: Range<usize>| {
                    let of = |x: &'_ [f32], each: usize| x[pictures.start * each..pictures.end * each].to_vec();
                    let residual = of(&residual, to);
                    let epilogue = Epilogue { function: Some(Function::Silu), residual: Some(&residual) };
                    let mut out = vec![f32::NAN; residual.len()];
                    conv.forward(&of(&x, from), h, w, Some(&of(&shift, outputs)), epilogue, &mut out);
                    out
                };
                let each: Vec<_> = (0..PICTURES).flat_map(|picture| run(picture..picture + 1)).collect();
                for threads in [1, 3] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    assert_eq!(pool.install(|| run(0..PICTURES)), each, "{level} {shape:?} {h}x{w}");
                }
                // Without a function the shift is a bias.
                let (mut out, mut shifted) = (vec![0.0; to], vec![0.0; to]);
                conv.forward(&x[..from], h, w, Some(&shift[..outputs]), Epilogue::default(), &mut shifted);
                let biased = Conv2d::new(level, Precision::Exact, shape, &weight, Some(&shift[..outputs]));
                biased.forward(&x[..from], h, w, None, Epilogue::default(), &mut out);
                assert_eq!(out, shifted, "{level} {shape:?} {h}x{w}");
            }
        }
    }

    #[test]
    fn weights_that_are_kept_short_give_the_same_bytes() {
        let case = case(40, 17, 3, 1, 9, 33);
        let mut weight: Vec<f32> = case.weight.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect();
        let run = |weight: &[f32]| {
            let conv = Conv2d::new(Level::detect(), Precision::Exact, case.shape, weight, Some(&case.bias));
            let is_short = matches!(conv.weights, Weights::Taps(Kept::F16(_)));
            let mut out = vec![0.0; case.residual.len()];
            conv.forward(&case.x, case.h, case.w, None, Epilogue::default(), &mut out);
            out.truncate(39 * case.h * case.w);
            (is_short, out)
        };
        let short = run(&weight);
        *weight.last_mut().unwrap() = 0.1; // of the last output, which is cut off
        assert_eq!((true, run(&weight)), (short.0, (false, short.1)));
    }

    #[test]
    fn bytes_depend_on_neither_threads_nor_the_width_of_vectors() {
        for case in cases() {
            let levels = Level::available().filter(|level| level.chain_bytes(Precision::Exact) == "fma-1");
            let of_levels: Vec<_> = levels.map(|level| case.run(level, Precision::Exact, None, true)).collect();
            assert!(of_levels.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", case.shape);
            for precision in [Precision::Exact, Precision::Fast] {
                let of_threads = [1, 2, 3, 7].map(|threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| case.run(Level::detect(), precision, None, true))
                });
                assert!(of_threads.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", case.shape);
            }
        }
    }
}

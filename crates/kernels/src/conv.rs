//! Single convolutions over channels that each lie together, `[c][h][w]`: what networks that are no chain are made of.
//!
//! A 3 x 3 convolution of stride 1 goes by Winograd's method, its kernels turned into points at each call: kept as points
//! they would take four times the memory, and turning them costs little. All others, and all in bf16 tiles, are sums over taps
//! and channels as they stand.

use std::ops::Range;

use crate::{
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
    Taps(Vec<Line>),
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
            Weights::Taps(dispatch(level, PackTaps { shape, weight }))
        } else {
            Weights::Packed(operand::dispatch(level, precision, Pack { shape, weight }))
        };
        Self { level, precision, shape, bias, weights }
    }

    /// Its sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Computes `out`, `[outputs][h'][w']` of [`Shape::output`], from `x`, `[inputs][h][w]`. A residual is as large as `out`.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn forward(&self, x: &[f32], h: usize, w: usize, epilogue: Epilogue<'_>, out: &mut [f32]) {
        let (out_h, out_w) = self.shape.output(h, w);
        assert_eq!(x.len(), self.shape.inputs * h * w, "as many numbers as the inputs have pixels");
        assert_eq!(out.len(), self.shape.outputs * out_h * out_w, "as many numbers as the outputs have pixels");
        epilogue.check(out);
        if out.is_empty() {
            return;
        }
        match &self.weights {
            Weights::Taps(taps) => self.winograd(taps, x, h, w, epilogue, out),
            Weights::Packed(weights) => self.direct(weights, x, (h, w), (out_h, out_w), epilogue, out),
        }
    }

    /// How many vectors of outputs each group has, and its first.
    fn groups(&self, most: usize) -> Vec<Range<usize>> {
        let vectors = self.bias.len();
        (0..vectors).step_by(most).map(|first| first..vectors.min(first + most)).collect()
    }

    fn winograd(&self, taps: &[Line], x: &[f32], h: usize, w: usize, epilogue: Epilogue<'_>, out: &mut [f32]) {
        let (tiles, tile_rows) = (w.div_ceil(TILE), h.div_ceil(TILE));
        let band_rows = (BAND_TILES / tiles).max(1);
        let pitch = (tiles * band_rows.min(tile_rows)) | 1; // odd: the points of a tile do not share one set of the cache
        let mut points = zeroed(self.shape.inputs.div_ceil(BLOCK) * POINTS * pitch);
        for first in (0..tile_rows).step_by(band_rows) {
            let band = first..tile_rows.min(first + band_rows);
            let blocks: Vec<_> = points.chunks_exact_mut(POINTS * pitch).enumerate().collect();
            threads::each(threads::parts(blocks), |blocks| {
                dispatch(self.level, ToPoints { x, h, w, band: band.clone(), pitch, blocks });
            });
            let rows = (band.start * TILE, h.min(band.end * TILE));
            let jobs = self.jobs(out, h * w, w, rows, TILE);
            let points = &points;
            threads::each(jobs, |part| {
                let place = Place { h, w, tiles, pitch, band: band.start };
                dispatch(self.level, FromPoints { conv: self, taps, points, place, epilogue, part });
            });
        }
    }

    fn direct(
        &self,
        weights: &Packed,
        x: &[f32],
        (h, w): (usize, usize),
        (out_h, out_w): (usize, usize),
        epilogue: Epilogue<'_>,
        out: &mut [f32],
    ) {
        let lines = operand::dispatch(self.level, self.precision, Spread { shape: self.shape, x, h, w });
        let jobs = self.jobs(out, out_h * out_w, out_w, (0, out_h), 1);
        threads::each(jobs, |part| {
            let width = w + 2 * self.shape.padding;
            let direct =
                Direct { conv: self, weights, lines: &lines, width, out_w, plane: out_h * out_w, epilogue, part };
            operand::dispatch(self.level, self.precision, direct);
        });
    }

    /// Cuts rows of the result, which begin at multiples of `step`, into a part for each thread: by outputs, and by rows
    /// too where there are few of these.
    fn jobs<'a>(
        &self,
        out: &'a mut [f32],
        plane: usize,
        w: usize,
        (first, end): (usize, usize),
        step: usize,
    ) -> Vec<Part<'a>> {
        // Groups of two vectors, and so of one.
        let by_outputs = threads::shares(self.bias.len().div_ceil(2));
        let threads = threads::threads();
        let cuts = (threads / by_outputs.len()).clamp(1, (end - first).div_ceil(step));
        let cut = |i: usize| end.min(first + (end - first).div_ceil(step) * i / cuts * step);
        let mut planes = out.chunks_exact_mut(plane);
        let mut parts = Vec::new();
        for share in by_outputs {
            let vectors = share.start * 2..self.bias.len().min(share.end * 2);
            let mut of_share: Vec<Part<'a>> = (0..cuts)
                .map(|i| Part { vectors: vectors.clone(), rows: cut(i)..cut(i + 1), planes: Vec::new() })
                .collect();
            let outputs = self.shape.outputs.min(vectors.end * LANES) - vectors.start * LANES;
            for plane in planes.by_ref().take(outputs) {
                let mut rest = &mut plane[first * w..end * w];
                for part in &mut of_share {
                    let (rows, others) = rest.split_at_mut(part.rows.len() * w);
                    part.planes.push(rows);
                    rest = others;
                }
            }
            parts.append(&mut of_share);
        }
        parts
    }
}

/// The part of a result that one thread computes.
struct Part<'a> {
    /// Vectors of outputs.
    vectors: Range<usize>,
    rows: Range<usize>,
    /// These rows of each output.
    planes: Vec<&'a mut [f32]>,
}

impl Part<'_> {
    /// Writes `wide` pixels of a vector of outputs, in a row from column `x` on, and adds the residual. Those of each output
    /// lie together in `pixels`, which of the next output `pitch` further.
    fn put(
        &mut self,
        epilogue: &Epilogue<'_>,
        (vector, plane): (usize, usize),
        (y, x, w): (usize, usize, usize),
        pixels: &[f32],
        pitch: usize,
        wide: usize,
    ) {
        let first = (vector - self.vectors.start) * LANES;
        let last = self.planes.len().min(first + LANES);
        for (lane, to) in self.planes[first..last].iter_mut().enumerate() {
            let to = &mut to[(y - self.rows.start) * w + x..][..wide];
            let pixels = &pixels[lane * pitch..][..wide];
            match epilogue.residual {
                None => to.copy_from_slice(pixels),
                Some(residual) => {
                    let residual = &residual[(vector * LANES + lane) * plane + y * w + x..];
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
    x: &'a [f32],
    h: usize,
    w: usize,
    /// Rows of tiles.
    band: Range<usize>,
    pitch: usize,
    /// Blocks of channels, and where their points go.
    blocks: Vec<(usize, &'a mut [Line])>,
}

impl Kernel for ToPoints<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, h, w, band, pitch, blocks } = self;
        let (row, tiles) = (row_lines(w), w.div_ceil(TILE));
        // The band's rows of one block, and one more on both sides.
        let first = (band.start * TILE) as isize - 1;
        let count = band.len() * TILE + 2;
        let mut strip = zeroed(count * row);
        for (block, out) in blocks {
            let planes = &x[block * BLOCK * h * w..x.len().min((block + 1) * BLOCK * h * w)];
            if planes.len() < BLOCK * h * w {
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
            for r in 0..band.len() {
                let mut rows = [&strip[..row]; IN];
                for (i, to) in rows.iter_mut().enumerate() {
                    *to = &strip[(r * TILE + i) * row..][..row];
                }
                winograd::input(s, rows, tiles, &mut out[r * tiles..], pitch);
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
    /// The row of tiles with which the points begin.
    band: usize,
}

/// Sums points and writes the results of a part.
struct FromPoints<'a> {
    conv: &'a Conv2d,
    taps: &'a [Line],
    points: &'a [Line],
    place: Place,
    epilogue: Epilogue<'a>,
    part: Part<'a>,
}

impl Kernel for FromPoints<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { conv, taps, points, place, epilogue, mut part } = self;
        let Place { h, w, tiles, pitch, band } = place;
        let inputs = conv.shape.inputs;
        let lines = inputs.div_ceil(BLOCK);
        let most = F32(s).group() / LANES;
        let rows = part.rows.start / TILE..part.rows.end.div_ceil(TILE);
        let all = (rows.start - band) * tiles..(rows.end - band) * tiles;
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
            let taps = &taps[group.start * inputs * TAPS..];
            for first in (0..lines).step_by(step) {
                let last = lines.min(first + step);
                for input in first * BLOCK..inputs.min(last * BLOCK) {
                    for vector in 0..vectors {
                        let mut kernel = [s.splat(0.0); TAPS];
                        for (tap, to) in kernel.iter_mut().enumerate() {
                            *to = s.load(&taps[(input * TAPS + tap) * vectors + vector].0);
                        }
                        let at = (input - first * BLOCK) * vectors + vector;
                        for (point, value) in winograd::kernels(s, kernel).as_flattened().iter().enumerate() {
                            s.store(*value, &mut kernels[point * of_point + at].0);
                        }
                    }
                }
                // What fills up the last line is multiplied by zeros.
                for chunk in 0..chunks {
                    let chunk = all.start + all.len() * chunk / chunks..all.start + all.len() * (chunk + 1) / chunks;
                    let sum_pitch = chunk.len() | 1;
                    for point in 0..POINTS {
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
                            let (y, x) = ((band + tile / tiles) * TILE, tile % tiles * TILE);
                            for i in 0..end - tile {
                                let from = (tile + i - chunk.start) * vectors + vector;
                                let values = winograd::output(s, &sums[from..], sum_pitch * vectors);
                                for (j, values) in values.into_iter().enumerate() {
                                    for (x, value) in values.into_iter().enumerate() {
                                        let value = s.add(value, bias);
                                        let value = epilogue.function.map_or(value, |function| function.of(s, value));
                                        for (lane, value) in s.array(value).into_iter().enumerate() {
                                            pixels[(j * LANES + lane) * STRIP + i * OUT + x] = value;
                                        }
                                    }
                                }
                            }
                            let wide = (w - x).min((end - tile) * OUT);
                            for (j, pixels) in pixels.chunks_exact(LANES * STRIP).enumerate().take((h - y).min(OUT)) {
                                part.put(&epilogue, (group.start + vector, h * w), (y + j, x, w), pixels, STRIP, wide);
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
    out_w: usize,
    /// Numbers of an output.
    plane: usize,
    epilogue: Epilogue<'a>,
    part: Part<'a>,
}

impl ProductKernel for Direct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, s: S, products: P) {
        let Self { conv, weights, lines, width, out_w, plane, epilogue, mut part } = self;
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
                    let bias = s.load(&conv.bias[group.start + vector].0);
                    for x in 0..out_w {
                        let value = s.add(s.load(&sums[x * vectors + vector].0), bias);
                        let value = epilogue.function.map_or(value, |function| function.of(s, value));
                        for (lane, value) in s.array(value).into_iter().enumerate() {
                            pixels[lane * pitch + x] = value;
                        }
                    }
                    part.put(&epilogue, (group.start + vector, plane), (y, 0, out_w), &pixels, pitch, out_w);
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
            conv.forward(&self.x, self.h, self.w, epilogue, &mut out);
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

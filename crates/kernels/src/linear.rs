//! Linear layers and 1 x 1 convolutions, with what follows them.

use std::ops::Range;

use crate::{
    level::Level,
    line::{Line, zeroed},
    math::Function,
    operand::{Operand, Packed, ProductKernel, dispatch},
    precision::Precision,
    product::Products,
    simd::{LANES, Simd, lanes, lanes_mut},
    threads,
};

/// Rows that share one pass over the weights.
const BLOCK_ROWS: usize = 112;
/// Rows in which work is shared among threads.
const SHARE_ROWS: usize = 14;
/// Pixels of a 1 x 1 convolution that are packed by one thread.
const BLOCK_PIXELS: usize = 512;
/// Pixels of a 1 x 1 convolution that are packed at a time.
const SPAN_PIXELS: usize = 8 * BLOCK_PIXELS;

/// What follows the sums and bias of a layer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// A function of each number.
    pub function: Option<Function>,
    /// Numbers as many as the results, that are added last.
    pub residual: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    /// Panics unless it fits a result as large as `out`.
    pub(crate) fn check(&self, out: &[f32]) {
        assert!(self.residual.is_none_or(|residual| residual.len() == out.len()), "a residual as large as the result");
    }
}

/// A layer of weights that multiply rows of numbers. Packed once, used often.
#[derive(Debug, Clone)]
pub struct Linear {
    level: Level,
    precision: Precision,
    inputs: usize,
    outputs: usize,
    gated: bool,
    /// Vectors of sixteen outputs in groups of one or two, `[group][line][..]`; f32 is kept as short as it was.
    weights: Packed,
    /// One line for each vector.
    bias: Vec<Line>,
}

impl Linear {
    /// Packs `weight`, `[outputs][inputs]`, and `bias`, `[outputs]`, as torch's `Linear` keeps them.
    ///
    /// # Panics
    /// If the lengths do not fit together, or this processor lacks `level`.
    pub fn new(level: Level, precision: Precision, inputs: usize, weight: &[f32], bias: Option<&[f32]>) -> Self {
        Self::pack(level, precision, inputs, weight, bias, false)
    }

    /// As [`Self::new`], but of the outputs the first half is multiplied by the GELU of the second (GEGLU): the layer has half
    /// as many outputs as `weight` has rows.
    ///
    /// # Panics
    /// As [`Self::new`], and if the number of rows is odd.
    pub fn geglu(level: Level, precision: Precision, inputs: usize, weight: &[f32], bias: Option<&[f32]>) -> Self {
        Self::pack(level, precision, inputs, weight, bias, true)
    }

    fn pack(
        level: Level,
        precision: Precision,
        inputs: usize,
        weight: &[f32],
        bias: Option<&[f32]>,
        gated: bool,
    ) -> Self {
        assert!(inputs > 0 && weight.len().is_multiple_of(inputs), "weights are rows of {inputs} numbers");
        let rows = weight.len() / inputs;
        assert!(bias.is_none_or(|bias| bias.len() == rows), "one bias for each output");
        assert!(!gated || rows.is_multiple_of(2), "as many gates as outputs");
        let outputs = if gated { rows / 2 } else { rows };
        // The rows whose sums the lanes of each vector are. Gates stand beside what they multiply.
        let mut vectors: Vec<Range<usize>> = Vec::new();
        for first in (0..outputs).step_by(LANES) {
            let last = outputs.min(first + LANES);
            vectors.push(first..last);
            if gated {
                vectors.push(outputs + first..outputs + last);
            }
        }
        let of_vector = |rows: &Range<usize>| bias.map_or(Line::ZERO, |bias| Line::of(&bias[rows.clone()]));
        let bias = vectors.iter().map(of_vector).collect();
        let weights = dispatch(level, precision, Pack { inputs, weight, vectors: &vectors }).kept();
        Self { level, precision, inputs, outputs, gated, weights, bias }
    }

    /// Numbers in a row that goes in.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Numbers in a row that comes out.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Computes `out`, `[rows][outputs]`, from `x`, `[rows][inputs]`. A residual is as large as `out`.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn forward(&self, x: &[f32], epilogue: Epilogue<'_>, out: &mut [f32]) {
        let rows = x.len() / self.inputs;
        assert_eq!(x.len(), rows * self.inputs, "whole rows");
        assert_eq!(out.len(), rows * self.outputs, "as many results as rows and outputs say");
        epilogue.check(out);
        let mut jobs = Vec::new();
        let mut rest = out;
        for share in threads::shares(rows.div_ceil(SHARE_ROWS)) {
            let rows = share.start * SHARE_ROWS..rows.min(share.end * SHARE_ROWS);
            let (out, others) = rest.split_at_mut(rows.len() * self.outputs);
            rest = others;
            let residual = epilogue.residual.map(|all| &all[rows.start * self.outputs..rows.end * self.outputs]);
            let x = &x[rows.start * self.inputs..rows.end * self.inputs];
            jobs.push(Forward { layer: self, x, epilogue: Epilogue { residual, ..epilogue }, out });
        }
        threads::each(jobs, |job| dispatch(self.level, self.precision, job));
    }
}

/// Packs weights in groups of vectors.
struct Pack<'a> {
    inputs: usize,
    weight: &'a [f32],
    vectors: &'a [Range<usize>],
}

impl ProductKernel for Pack<'_> {
    type Output = Packed;

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, _: S, products: P) -> Packed {
        let lines = self.inputs.div_ceil(P::Line::NUMBERS);
        let mut weights = vec![P::Line::ZERO; self.vectors.len() * lines * LANES];
        let group = products.group() / LANES;
        for (vectors, group) in self.vectors.chunks(group).zip(weights.chunks_mut(group * lines * LANES)) {
            for (v, rows) in vectors.iter().enumerate() {
                for (lane, row) in rows.clone().enumerate() {
                    for (k, value) in self.weight[row * self.inputs..][..self.inputs].iter().enumerate() {
                        P::Line::set_column(group, vectors.len(), k, v * LANES + lane, *value);
                    }
                }
            }
        }
        P::Line::packed(weights)
    }
}

/// Packs rows: number l of row r goes to line `l * rows + r`.
#[inline(always)]
fn pack_rows<S: Simd, L: Operand>(s: S, x: &[f32], width: usize, to: &mut [L]) {
    let rows = x.len() / width;
    for (r, row) in x.chunks_exact(width).enumerate() {
        for (l, numbers) in row.chunks(L::NUMBERS).enumerate() {
            to[l * rows + r] = L::row(s, numbers);
        }
    }
}

struct Forward<'a> {
    layer: &'a Linear,
    x: &'a [f32],
    epilogue: Epilogue<'a>,
    out: &'a mut [f32],
}

impl ProductKernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, s: S, products: P) {
        let Self { layer, x, epilogue, out } = self;
        let (inputs, outputs) = (layer.inputs, layer.outputs);
        let lines = inputs.div_ceil(P::Line::NUMBERS);
        let last = inputs - (lines - 1) * P::Line::NUMBERS;
        let mut wide = Vec::new();
        let group = products.group() / LANES;
        let step = if layer.gated { 2 } else { group }; // vectors that are finished together
        let most = BLOCK_ROWS.min(x.len() / inputs);
        let mut packed = vec![P::Line::ZERO; most * lines];
        let mut sums = zeroed(most * step.max(group));
        for (block, x) in x.chunks(BLOCK_ROWS * inputs).enumerate() {
            let rows = x.len() / inputs;
            let offsets: Vec<usize> = (0..lines).map(|l| l * rows).collect();
            pack_rows(s, x, inputs, &mut packed);
            let start = block * BLOCK_ROWS * outputs;
            let out = &mut out[start..start + rows * outputs];
            let residual = epilogue.residual.map(|all| &all[start..start + rows * outputs]);
            for vector in (0..layer.bias.len()).step_by(step) {
                let vectors = step.min(layer.bias.len() - vector);
                let sized = vectors.min(group); // vectors in a group
                for first in (0..vectors).step_by(group) {
                    let start = (vector + first) * lines * LANES;
                    let which = start..start + sized * lines * LANES;
                    let weights = P::Line::widened(s, &layer.weights, which, &mut wide);
                    let sums = &mut sums[first * rows..][..sized * rows];
                    products.product(&packed, rows, &offsets, last, weights, sized, true, sums);
                }
                let at = |row: usize, v: usize| if sized == vectors { row * vectors + v } else { v * rows + row };
                for v in (0..vectors).step_by(if layer.gated { 2 } else { 1 }) {
                    let column = if layer.gated { vector / 2 } else { vector + v } * LANES;
                    let width = LANES.min(outputs - column);
                    let bias = s.load(&layer.bias[vector + v].0);
                    for row in 0..rows {
                        let mut y = s.add(s.load(&sums[at(row, v)].0), bias);
                        if layer.gated {
                            let gate = s.add(s.load(&sums[at(row, 1)].0), s.load(&layer.bias[vector + 1].0));
                            y = s.mul(y, Function::Gelu.of(s, gate));
                        }
                        let start = row * outputs + column;
                        finish(s, y, epilogue.function, residual, start, width, out);
                    }
                }
            }
        }
    }
}

/// Applies the function, adds the residual, and writes the first `width` lanes to the numbers from `start` on.
#[inline(always)]
fn finish<S: Simd>(
    s: S,
    mut y: S::V,
    function: Option<Function>,
    residual: Option<&[f32]>,
    start: usize,
    width: usize,
    out: &mut [f32],
) {
    if let Some(function) = function {
        y = function.of(s, y);
    }
    if width == LANES {
        if let Some(residual) = residual {
            y = s.add(y, s.load(lanes(residual, start)));
        }
        s.store(y, lanes_mut(out, start));
    } else {
        if let Some(residual) = residual {
            y = s.add(y, s.load_part(&residual[start..start + width], 0.0));
        }
        s.store_part(y, &mut out[start..start + width]);
    }
}

/// A 1 x 1 convolution: a layer over the channels of each pixel, where each channel's pixels lie together.
#[derive(Debug, Clone)]
pub struct Conv1x1 {
    level: Level,
    precision: Precision,
    inputs: usize,
    outputs: usize,
    /// Rows in blocks of at most [`BLOCK_ROWS`], `[block][line][output]`.
    weights: Packed,
    bias: Vec<f32>,
}

impl Conv1x1 {
    /// Packs `weight`, `[outputs][inputs]`, and `bias`, `[outputs]`.
    ///
    /// # Panics
    /// If the lengths do not fit together, or this processor lacks `level`.
    pub fn new(level: Level, precision: Precision, inputs: usize, weight: &[f32], bias: Option<&[f32]>) -> Self {
        assert!(inputs > 0 && weight.len().is_multiple_of(inputs), "weights are rows of {inputs} numbers");
        let outputs = weight.len() / inputs;
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "one bias for each output");
        let bias = bias.map_or_else(|| vec![0.0; outputs], <[f32]>::to_vec);
        let weights = dispatch(level, precision, PackOutputs { inputs, weight });
        Self { level, precision, inputs, outputs, weights, bias }
    }

    /// Channels that go in.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Channels that come out.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Computes `out`, `[outputs][pixels]`, from `x`, `[inputs][pixels]`. A residual is as large as `out`.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn forward(&self, x: &[f32], epilogue: Epilogue<'_>, out: &mut [f32]) {
        let pixels = x.len() / self.inputs;
        assert_eq!(x.len(), pixels * self.inputs, "as many pixels in each channel");
        assert_eq!(out.len(), pixels * self.outputs, "as many results as pixels and outputs say");
        epilogue.check(out);
        let shares = threads::shares(self.outputs.div_ceil(SHARE_ROWS));
        for first in (0..pixels).step_by(SPAN_PIXELS) {
            let span = first..pixels.min(first + SPAN_PIXELS);
            // First all columns are packed, then each thread computes some of the outputs.
            let parts = span.clone().step_by(BLOCK_PIXELS);
            let parts =
                parts.map(|first| PackPixels { conv: self, first, last: span.end.min(first + BLOCK_PIXELS), x });
            let mut columns: Vec<(PackPixels<'_>, Option<Packed>)> = parts.map(|part| (part, None)).collect();
            threads::each(threads::parts(columns.iter_mut().collect()), |parts| {
                for (part, columns) in parts {
                    *columns = Some(dispatch(self.level, self.precision, *part));
                }
            });
            let columns: Vec<(Range<usize>, Packed)> = columns
                .into_iter()
                .map(|(part, columns)| (part.pixels(), columns.expect("each part was packed")))
                .collect();
            let mut jobs = Vec::new();
            let mut rest = &mut *out;
            for share in &shares {
                let rows = share.start * SHARE_ROWS..self.outputs.min(share.end * SHARE_ROWS);
                let (out, others) = rest.split_at_mut(rows.len() * pixels);
                rest = others;
                let residual = epilogue.residual.map(|all| &all[rows.start * pixels..rows.end * pixels]);
                jobs.push(Channels {
                    conv: self,
                    columns: &columns,
                    rows,
                    epilogue: Epilogue { residual, ..epilogue },
                    out,
                });
            }
            threads::each(jobs, |job| dispatch(self.level, self.precision, job));
        }
    }
}

/// Packs weights in blocks of rows.
struct PackOutputs<'a> {
    inputs: usize,
    weight: &'a [f32],
}

impl ProductKernel for PackOutputs<'_> {
    type Output = Packed;

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, s: S, _: P) -> Packed {
        let lines = self.inputs.div_ceil(P::Line::NUMBERS);
        let outputs = self.weight.len() / self.inputs;
        let mut weights = vec![P::Line::ZERO; outputs * lines];
        let blocks = self.weight.chunks(BLOCK_ROWS * self.inputs).zip(weights.chunks_mut(BLOCK_ROWS * lines));
        for (rows, block) in blocks {
            pack_rows(s, rows, self.inputs, block);
        }
        P::Line::packed(weights)
    }
}

/// Packs some pixels as columns.
#[derive(Clone, Copy)]
struct PackPixels<'a> {
    conv: &'a Conv1x1,
    first: usize,
    last: usize,
    x: &'a [f32],
}

impl PackPixels<'_> {
    fn pixels(&self) -> Range<usize> {
        self.first..self.last
    }
}

impl ProductKernel for PackPixels<'_> {
    type Output = Packed;

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, s: S, products: P) -> Packed {
        let inputs = self.conv.inputs;
        let all = self.x.len() / inputs;
        let lines = inputs.div_ceil(P::Line::NUMBERS);
        let group = products.group() / LANES;
        let vectors = (self.last - self.first).div_ceil(LANES);
        let mut columns = vec![P::Line::ZERO; vectors * lines * LANES];
        for (i, columns) in columns.chunks_mut(group * lines * LANES).enumerate() {
            let vectors = columns.len() / (lines * LANES);
            for v in 0..vectors {
                let first = self.first + (i * group + v) * LANES;
                let width = LANES.min(self.last - first);
                let channel = |c: usize| {
                    if c == inputs {
                        s.splat(0.0)
                    } else if width == LANES {
                        s.load(lanes(self.x, c * all + first))
                    } else {
                        s.load_part(&self.x[c * all + first..][..width], 0.0)
                    }
                };
                for c in (0..inputs).step_by(2) {
                    products.set_columns(s, columns, vectors, c, v, [channel(c), channel(c + 1)]);
                }
            }
        }
        P::Line::packed(columns)
    }
}

/// Computes some of the outputs of packed pixels.
struct Channels<'a> {
    conv: &'a Conv1x1,
    columns: &'a [(Range<usize>, Packed)],
    rows: Range<usize>,
    epilogue: Epilogue<'a>,
    /// The outputs `rows` of all pixels, and so the residual.
    out: &'a mut [f32],
}

impl ProductKernel for Channels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, s: S, products: P) {
        let Self { conv, columns, rows, epilogue, out } = self;
        let weights = P::Line::lines(&conv.weights);
        let lines = conv.inputs.div_ceil(P::Line::NUMBERS);
        let last = conv.inputs - (lines - 1) * P::Line::NUMBERS;
        let group = products.group() / LANES;
        let pixels = out.len() / rows.len().max(1);
        let mut sums = zeroed(BLOCK_ROWS * group);
        let mut first = rows.start;
        while first < rows.end {
            let block = first / BLOCK_ROWS * BLOCK_ROWS;
            let height = BLOCK_ROWS.min(conv.outputs - block);
            let some = first..rows.end.min(block + height);
            let offsets: Vec<usize> = (0..lines).map(|l| l * height).collect();
            let weights = &weights[block * lines + some.start - block..];
            for (part, columns) in columns {
                let groups = P::Line::lines(columns).chunks(group * lines * LANES);
                for (start, columns) in part.clone().step_by(group * LANES).zip(groups) {
                    let vectors = columns.len() / (lines * LANES);
                    products.product(
                        weights,
                        some.len(),
                        &offsets,
                        last,
                        columns,
                        vectors,
                        true,
                        &mut sums[..some.len() * vectors],
                    );
                    for (row, sums) in some.clone().zip(sums.chunks_exact(vectors)) {
                        let bias = s.splat(conv.bias[row]);
                        for (v, sum) in sums.iter().enumerate() {
                            let pixel = start + v * LANES;
                            let y = s.add(s.load(&sum.0), bias);
                            let at = (row - rows.start) * pixels + pixel;
                            finish(s, y, epilogue.function, epilogue.residual, at, LANES.min(part.end - pixel), out);
                        }
                    }
                }
            }
            first = some.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operand::tests::{check_fast, check_levels, distance, random};

    /// `x` times the rows of `weight`, and what follows, in f64.
    fn plain(x: &[f32], inputs: usize, weight: &[f32], bias: &[f32], gated: bool) -> Vec<f64> {
        let mut out = Vec::new();
        for x in x.chunks_exact(inputs) {
            let sums = weight.chunks_exact(inputs).zip(bias).map(|(weight, bias)| {
                let products = x.iter().zip(weight).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
                f64::from(*bias) + products.sum::<f64>()
            });
            let sums: Vec<f64> = sums.collect();
            if gated {
                let (values, gates) = sums.split_at(sums.len() / 2);
                out.extend(values.iter().zip(gates).map(|(value, gate)| value * apply(Function::Gelu, *gate)));
            } else {
                out.extend(sums);
            }
        }
        out
    }

    /// The function as its own test has shown it to be right.
    fn apply(function: Function, x: f64) -> f64 {
        let mut y = [x as f32];
        function.apply(Level::Portable, &mut y);
        f64::from(y[0])
    }

    const SHAPES: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (2, 3, 5),
        (13, 17, 16),
        (14, 16, 33),
        (113, 40, 48),
        (77, 768, 96),
        (230, 31, 20),
        (5, 321, 130),
        (64, 64, 64),
    ];

    #[test]
    fn a_layer_is_its_plain_sums() {
        for (rows, inputs, outputs) in SHAPES {
            let (x, weight) = (random(rows * inputs, 1.0, 1), random(outputs * inputs, 0.2, 2));
            let (bias, residual) = (random(outputs, 1.0, 3), random(rows * outputs, 1.0, 4));
            for function in [None, Some(Function::Gelu), Some(Function::Silu)] {
                let mut want = plain(&x, inputs, &weight, &bias, false);
                for (y, residual) in want.iter_mut().zip(&residual) {
                    *y = function.map_or(*y, |function| apply(function, *y)) + f64::from(*residual);
                }
                let what = format!("{rows} x {inputs} to {outputs}, then {function:?}");
                let run = |level, precision, most| {
                    let layer = Linear::new(level, precision, inputs, &weight, Some(&bias));
                    let mut out = vec![f32::NAN; rows * outputs];
                    layer.forward(&x, Epilogue { function, residual: Some(&residual) }, &mut out);
                    let far = distance(&out, &want);
                    assert!(far < most, "{level} {precision:?} {what}: {far}");
                    out
                };
                check_levels(&what, |level| run(level, Precision::Exact, 5e-6));
                check_fast(&what, |level| run(level, Precision::Fast, 3e-2));
            }
        }
    }

    #[test]
    fn gates_multiply_the_first_half() {
        for (rows, inputs, outputs) in SHAPES {
            let (x, weight) = (random(rows * inputs, 1.0, 1), random(2 * outputs * inputs, 0.2, 2));
            let bias = random(2 * outputs, 1.0, 3);
            let want = plain(&x, inputs, &weight, &bias, true);
            let what = format!("{rows} x {inputs} to {outputs} with gates");
            let run = |level, precision, most| {
                let layer = Linear::geglu(level, precision, inputs, &weight, Some(&bias));
                assert_eq!(layer.outputs(), outputs);
                let mut out = vec![f32::NAN; rows * outputs];
                layer.forward(&x, Epilogue::default(), &mut out);
                let far = distance(&out, &want);
                assert!(far < most, "{level} {precision:?} {what}: {far}");
                out
            };
            check_levels(&what, |level| run(level, Precision::Exact, 2e-5));
            check_fast(&what, |level| run(level, Precision::Fast, 5e-2));
        }
    }

    #[test]
    fn a_convolution_of_single_pixels_is_a_layer_of_columns() {
        for (pixels, inputs, outputs) in SHAPES.into_iter().chain([(4100, 6, 3), (1000, 20, 115)]) {
            let (x, weight) = (random(pixels * inputs, 1.0, 1), random(outputs * inputs, 0.2, 2));
            let (bias, residual) = (random(outputs, 1.0, 3), random(pixels * outputs, 1.0, 4));
            let rows: Vec<f32> = (0..pixels * inputs).map(|i| x[i % inputs * pixels + i / inputs]).collect();
            let sums = plain(&rows, inputs, &weight, &bias, false);
            let value = |i: usize| sums[i % pixels * outputs + i / pixels];
            let want: Vec<f64> =
                (0..sums.len()).map(|i| apply(Function::Silu, value(i)) + f64::from(residual[i])).collect();
            let what = format!("{pixels} pixels of {inputs} to {outputs}");
            let run = |level, precision, most| {
                let conv = Conv1x1::new(level, precision, inputs, &weight, Some(&bias));
                let mut out = vec![f32::NAN; pixels * outputs];
                let epilogue = Epilogue { function: Some(Function::Silu), residual: Some(&residual) };
                conv.forward(&x, epilogue, &mut out);
                let far = distance(&out, &want);
                assert!(far < most, "{level} {precision:?} {what}: {far}");
                out
            };
            check_levels(&what, |level| run(level, Precision::Exact, 5e-6));
            check_fast(&what, |level| run(level, Precision::Fast, 3e-2));
        }
    }

    #[test]
    fn a_layer_without_rows_or_bias_is_one() {
        let layer = Linear::new(Level::detect(), Precision::Exact, 3, &[1.0, 2.0, 3.0], None);
        layer.forward(&[], Epilogue::default(), &mut []);
        let mut out = [0.0];
        layer.forward(&[1.0, 1.0, 0.5], Epilogue::default(), &mut out);
        assert_eq!(out, [4.5]);
    }
}

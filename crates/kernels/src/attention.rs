//! Attention: each query's mean of the values, weighted by the softmax of its products with the keys.
//!
//! The matrix of scores never exists. Keys come in blocks, and each query keeps the greatest score so far, the sum of its
//! weights and its weighted sum, all relative to that greatest score (Milakov and Gimelshein 2018; Dao et al. 2022). Scores
//! are computed with keys as rows and queries as columns, so that sixteen queries lie in a vector: their maxima and sums need
//! no sums across a vector, and the weights are columns of the next product as they are.

use std::ops::Range;

use crate::{
    level::Level,
    line::{Line, zeroed},
    math::exp2_falling,
    operand::{Operand, Packed, ProductKernel, dispatch},
    precision::Precision,
    product::Products,
    simd::{LANES, Simd},
    threads,
};

/// Keys whose scores are held at once. A multiple of what a line holds.
const BLOCK_KEYS: usize = 128;
/// Queries for which a block of keys is used while it is in the cache: more where heads are small.
const BLOCK_QUERIES: (usize, usize) = (128, 64);
/// The greatest head for which that is the first number.
const SMALL_HEAD: usize = 160;
/// Queries in which work is shared among threads. A multiple of a group of columns.
const SHARE_QUERIES: usize = 32;

/// Rows of numbers for several heads.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// The numbers.
    pub numbers: &'a [f32],
    /// Numbers from one row to the next.
    pub row: usize,
    /// Numbers from one head to the next.
    pub head: usize,
}

impl<'a> Heads<'a> {
    /// `[rows][heads][width]`, as linear layers give them.
    pub fn inside(numbers: &'a [f32], heads: usize, width: usize) -> Self {
        Self { numbers, row: heads * width, head: width }
    }

    /// `[heads][rows][width]`.
    pub fn outside(numbers: &'a [f32], rows: usize, width: usize) -> Self {
        Self { numbers, row: width, head: rows * width }
    }

    fn get(&self, head: usize, row: usize, width: usize) -> &'a [f32] {
        &self.numbers[head * self.head + row * self.row..][..width]
    }
}

/// Which keys a query attends to.
#[derive(Debug, Clone, Copy, Default)]
pub enum Mask<'a> {
    /// All.
    #[default]
    None,
    /// Those that are not behind it: key j where j <= query i.
    Causal,
    /// `[queries][keys]` numbers, the same for all heads, that are added to the scores.
    Added(&'a [f32]),
    /// `[heads][keys][queries]` numbers that are added to the scores. Keys are rows, as scores are computed.
    Biased(&'a [f32]),
}

/// The rows of one of many attentions of the same sizes.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    /// Queries.
    pub q: Heads<'a>,
    /// Keys.
    pub k: Heads<'a>,
    /// Values.
    pub v: Heads<'a>,
    /// Which keys a query attends to.
    pub mask: Mask<'a>,
}

/// What an attention computes. See the module's head.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// The level of the kernels.
    pub level: Level,
    /// How exactly products are computed. Softmax is f32.
    pub precision: Precision,
    /// How many heads there are.
    pub heads: usize,
    /// Rows of `q`.
    pub queries: usize,
    /// Rows of `k` and `v`.
    pub keys: usize,
    /// Numbers in a row of one head.
    pub width: usize,
    /// The factor of scores; mostly 1 / √width.
    pub scale: f32,
    /// Which keys a query attends to.
    pub mask: Mask<'a>,
}

impl Attention<'_> {
    /// Writes `[queries][heads][width]` to `out`. A query without any key gives NaN.
    ///
    /// # Panics
    /// If the lengths do not fit together, or this processor lacks the level.
    pub fn run(&self, q: Heads<'_>, k: Heads<'_>, v: Heads<'_>, out: &mut [f32]) {
        self.check(out, 1);
        let row = self.heads * self.width;
        let blocks = self.keys.div_ceil(BLOCK_KEYS);
        let mut packed: Vec<Option<(Packed, Packed)>> = vec![None; self.heads * blocks];
        threads::each(threads::parts(packed.iter_mut().enumerate().collect()), |part| {
            for (i, packed) in part {
                let (head, first) = (i / blocks, i % blocks * BLOCK_KEYS);
                let keys = first..self.keys.min(first + BLOCK_KEYS);
                *packed = Some(dispatch(self.level, self.precision, PackKeys { width: self.width, k, v, head, keys }));
            }
        });
        let packed: Vec<(Packed, Packed)> = packed.into_iter().map(|block| block.expect("each was packed")).collect();
        let mut jobs = Vec::new();
        let mut rest = out;
        for share in threads::shares(self.queries.div_ceil(SHARE_QUERIES)) {
            let queries = share.start * SHARE_QUERIES..self.queries.min(share.end * SHARE_QUERIES);
            let (out, others) = rest.split_at_mut(queries.len() * row);
            rest = others;
            jobs.push(Queries { attention: self, q, packed: &packed, queries, out });
        }
        threads::each(jobs, |job| dispatch(self.level, self.precision, job));
    }

    /// Writes `[windows][queries][heads][width]` to `out`: each window by itself, with its own mask in place of this one's.
    /// Made for many windows of few rows: each is one thread's work.
    ///
    /// # Panics
    /// As [`Self::run`].
    pub fn run_windows(&self, windows: &[Window<'_>], out: &mut [f32]) {
        windows.iter().for_each(|window| Attention { mask: window.mask, ..*self }.check(out, windows.len()));
        let size = self.queries * self.heads * self.width;
        let mut jobs = Vec::new();
        let mut rest = out;
        for share in threads::shares(windows.len()) {
            let (out, others) = rest.split_at_mut(share.len() * size);
            rest = others;
            jobs.push(Windows { attention: self, windows: &windows[share], out });
        }
        threads::each(jobs, |job| dispatch(self.level, self.precision, job));
    }

    /// Panics unless `out` is as large as the results of `windows`, and the mask fits.
    fn check(&self, out: &[f32], windows: usize) {
        assert!(self.heads > 0 && self.width > 0, "at least one head of at least one number");
        assert_eq!(out.len(), windows * self.queries * self.heads * self.width, "a result for each query and head");
        match self.mask {
            Mask::Added(mask) => assert_eq!(mask.len(), self.queries * self.keys, "a mask of queries and keys"),
            Mask::Biased(bias) => {
                assert_eq!(bias.len(), self.heads * self.queries * self.keys, "a bias of heads, keys and queries");
            }
            Mask::None | Mask::Causal => {}
        }
    }
}

/// Computes windows one after the other.
struct Windows<'a> {
    attention: &'a Attention<'a>,
    windows: &'a [Window<'a>],
    out: &'a mut [f32],
}

impl ProductKernel for Windows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, s: S, products: P) {
        let Self { attention, windows, out } = self;
        let Attention { heads, queries, keys, width, .. } = *attention;
        let size = (queries * heads * width).max(1);
        for (Window { q, k, v, mask }, out) in windows.iter().zip(out.chunks_exact_mut(size)) {
            let attention = Attention { mask: *mask, ..*attention };
            let mut packed = Vec::with_capacity(heads * keys.div_ceil(BLOCK_KEYS));
            for head in 0..heads {
                for first in (0..keys).step_by(BLOCK_KEYS) {
                    let keys = first..keys.min(first + BLOCK_KEYS);
                    packed.push(PackKeys { width, k: *k, v: *v, head, keys }.run(s, products));
                }
            }
            Queries { attention: &attention, q: *q, packed: &packed, queries: 0..queries, out }.run(s, products);
        }
    }
}

/// Packs keys as rows of numbers, `[line of numbers][key]`, and values as rows of keys, `[line of keys][number]`.
struct PackKeys<'a> {
    width: usize,
    k: Heads<'a>,
    v: Heads<'a>,
    head: usize,
    keys: Range<usize>,
}

impl ProductKernel for PackKeys<'_> {
    type Output = (Packed, Packed);

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, s: S, _: P) -> (Packed, Packed) {
        let Self { width, k, v, head, keys } = self;
        let numbers = P::Line::NUMBERS;
        let count = keys.len();
        let mut rows = vec![P::Line::ZERO; width.div_ceil(numbers) * count];
        let mut values = vec![P::Line::ZERO; count.div_ceil(numbers) * width];
        for (j, key) in keys.enumerate() {
            for (l, part) in k.get(head, key, width).chunks(numbers).enumerate() {
                rows[l * count + j] = P::Line::row(s, part);
            }
            let lines = &mut values[j / numbers * width..][..width];
            for (line, value) in lines.iter_mut().zip(v.get(head, key, width)) {
                line.set_row(j % numbers, *value);
            }
        }
        (P::Line::packed(rows), P::Line::packed(values))
    }
}

/// Computes the rows of some queries for all heads.
struct Queries<'a> {
    attention: &'a Attention<'a>,
    q: Heads<'a>,
    /// `[head][block]`.
    packed: &'a [(Packed, Packed)],
    queries: Range<usize>,
    out: &'a mut [f32],
}

/// The state of a group of queries: what they have seen of the keys so far.
struct Group<L> {
    /// Queries as columns.
    columns: Vec<L>,
    /// The greatest score, and the sum of weights relative to it, of each vector.
    greatest: [Line; 2],
    total: [Line; 2],
    /// Weighted sums of values, `[number][vector]`.
    means: Vec<Line>,
}

/// Less than any score; finite, so that it can be subtracted from itself.
const LEAST: f32 = -3e38;

impl ProductKernel for Queries<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, s: S, products: P) {
        let Self { attention, q, packed, queries, out } = self;
        let Attention { heads, keys, width, mask, .. } = *attention;
        let numbers = P::Line::NUMBERS;
        let lines = width.div_ceil(numbers);
        let last = width - (lines - 1) * numbers;
        let vectors = products.group() / LANES;
        let size = vectors * LANES;
        let blocks = keys.div_ceil(BLOCK_KEYS);
        let most = if width <= SMALL_HEAD { BLOCK_QUERIES.0 } else { BLOCK_QUERIES.1 };
        let scale = s.splat(attention.scale * std::f32::consts::LOG2_E); // weights are powers of 2

        let mut groups: Vec<Group<P::Line>> = (0..most.min(queries.len()).div_ceil(size))
            .map(|_| Group {
                columns: vec![P::Line::ZERO; lines * size],
                greatest: [Line::ZERO; 2],
                total: [Line::ZERO; 2],
                means: zeroed(width * vectors),
            })
            .collect();
        let mut scores = zeroed(BLOCK_KEYS * vectors);
        let mut weights = vec![P::Line::ZERO; BLOCK_KEYS / numbers * size];

        for head in 0..heads {
            for first in queries.clone().step_by(most) {
                let some = first..queries.end.min(first + most);
                for (group, first) in groups.iter_mut().zip(some.clone().step_by(size)) {
                    for v in 0..vectors {
                        // Lanes behind the last query repeat it.
                        let row = |lane: usize| q.get(head, (first + v * LANES + lane).min(some.end - 1), width);
                        let rows: [&[f32]; LANES] = std::array::from_fn(row);
                        for k in (0..width).step_by(2) {
                            let number = |k: usize| Line(rows.map(|row| row.get(k).copied().unwrap_or(0.0)));
                            let pair = [number(k), number(k + 1)];
                            let pair = [s.mul(s.load(&pair[0].0), scale), s.mul(s.load(&pair[1].0), scale)];
                            products.set_columns(s, &mut group.columns, vectors, k, v, pair);
                        }
                    }
                    group.greatest = [Line([LEAST; LANES]); 2];
                    group.total = [Line::ZERO; 2];
                    group.means.fill(Line::ZERO);
                }
                for block in 0..blocks {
                    let start = block * BLOCK_KEYS;
                    let count = BLOCK_KEYS.min(keys - start);
                    if matches!(mask, Mask::Causal) && start >= some.end {
                        break;
                    }
                    let (rows, values) = &packed[head * blocks + block];
                    let (rows, values) = (P::Line::lines(rows), P::Line::lines(values));
                    let row_offsets: Vec<usize> = (0..lines).map(|l| l * count).collect();
                    let value_offsets: [usize; BLOCK_KEYS / LANES] = std::array::from_fn(|l| l * width);
                    for (group, first) in groups.iter_mut().zip(some.clone().step_by(size)) {
                        let scores = &mut scores[..count * vectors];
                        products.product(rows, count, &row_offsets, last, &group.columns, vectors, true, scores);
                        mask_scores(s, scores, vectors, [head, first, start], attention);
                        weigh(s, products, scores, vectors, group, &mut weights);
                        let lines = count.div_ceil(numbers);
                        let offsets = &value_offsets[..lines];
                        products.product(
                            values,
                            width,
                            offsets,
                            P::Line::NUMBERS,
                            &weights[..lines * size],
                            vectors,
                            false,
                            &mut group.means,
                        );
                    }
                }
                for (group, first) in groups.iter().zip(some.clone().step_by(size)) {
                    for (lane, query) in (first..some.end).take(size).enumerate() {
                        let (v, lane) = (lane / LANES, lane % LANES);
                        let factor = 1.0 / group.total[v].0[lane];
                        let out = &mut out[((query - queries.start) * heads + head) * width..][..width];
                        for (out, mean) in out.iter_mut().zip(group.means.chunks_exact(vectors)) {
                            *out = mean[v].0[lane] * factor;
                        }
                    }
                }
            }
        }
    }
}

/// Adds the mask to scores of `head`, queries from `first` and keys from `start` on.
#[inline(always)]
fn mask_scores<S: Simd>(
    s: S,
    scores: &mut [Line],
    vectors: usize,
    [head, first, start]: [usize; 3],
    attention: &Attention<'_>,
) {
    let Attention { queries, keys, mask, .. } = *attention;
    let each = |scores: &mut [Line], change: &dyn Fn(usize, usize, &mut f32)| {
        for (key, scores) in (start..).zip(scores.chunks_exact_mut(vectors)) {
            let lanes = scores.iter_mut().flat_map(|line| &mut line.0);
            for (query, score) in (first..queries).zip(lanes) {
                change(key, query, score);
            }
        }
    };
    match mask {
        Mask::None => {}
        Mask::Causal => each(scores, &|key, query, score| {
            if key > query {
                *score = f32::NEG_INFINITY;
            }
        }),
        Mask::Added(mask) => each(scores, &|key, query, score| {
            *score += mask[query * keys + key] * std::f32::consts::LOG2_E;
        }),
        Mask::Biased(bias) => {
            let factor = s.splat(std::f32::consts::LOG2_E);
            for (key, scores) in (start..).zip(scores.chunks_exact_mut(vectors)) {
                let row = &bias[(head * keys + key) * queries..][first..queries.min(first + vectors * LANES)];
                for (line, bias) in scores.iter_mut().zip(row.chunks(LANES)) {
                    let score = s.mul_add(s.load_part(bias, 0.0), factor, s.load(&line.0));
                    s.store(score, &mut line.0);
                }
            }
        }
    }
}

/// Turns scores into weights, and makes what the group has seen so far relative to its new greatest scores.
#[inline(always)]
fn weigh<S: Simd, P: Products>(
    s: S,
    products: P,
    scores: &[Line],
    vectors: usize,
    group: &mut Group<P::Line>,
    weights: &mut [P::Line],
) {
    let count = scores.len() / vectors;
    let zero = s.splat(0.0);
    for v in 0..vectors {
        let before = s.load(&group.greatest[v].0);
        let mut greatest = before;
        for row in 0..count {
            greatest = s.max(s.load(&scores[row * vectors + v].0), greatest);
        }
        let correction = exp2_falling(s, s.sub(before, greatest));
        let mut total = s.mul(s.load(&group.total[v].0), correction);
        for (pair, scores) in scores.chunks_exact(2 * vectors).enumerate() {
            let pair_of_weights = [weight(s, &scores[v], greatest), weight(s, &scores[vectors + v], greatest)];
            total = s.add(total, s.add(pair_of_weights[0], pair_of_weights[1]));
            products.set_columns(s, weights, vectors, 2 * pair, v, pair_of_weights);
        }
        if !count.is_multiple_of(2) {
            let single = weight(s, &scores[(count - 1) * vectors + v], greatest);
            total = s.add(total, single);
            products.set_columns(s, weights, vectors, count - 1, v, [single, zero]);
        }
        for row in (count.next_multiple_of(2)..count.next_multiple_of(P::Line::NUMBERS)).step_by(2) {
            products.set_columns(s, weights, vectors, row, v, [zero; 2]);
        }
        s.store(greatest, &mut group.greatest[v].0);
        s.store(total, &mut group.total[v].0);
        for mean in group.means.iter_mut().skip(v).step_by(vectors) {
            let corrected = s.mul(s.load(&mean.0), correction);
            s.store(corrected, &mut mean.0);
        }
    }
}

/// The weight of keys, relative to the greatest score.
#[inline(always)]
fn weight<S: Simd>(s: S, score: &Line, greatest: S::V) -> S::V {
    exp2_falling(s, s.sub(s.load(&score.0), greatest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operand::tests::{check_fast, check_levels, distance, random};

    /// With the whole matrix of scores, in f64. Inputs are `[rows][heads][width]`.
    fn plain(attention: &Attention<'_>, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let Attention { heads, queries, keys, width, scale, mask, .. } = *attention;
        let mut out = vec![0.0; queries * heads * width];
        let row = |of: &[f32], row: usize, head: usize| of[(row * heads + head) * width..][..width].to_vec();
        for (query, head) in (0..queries).flat_map(|query| (0..heads).map(move |head| (query, head))) {
            let q = row(q, query, head);
            let score = |key: usize| {
                let products = q.iter().zip(row(k, key, head)).map(|(q, k)| f64::from(*q) * f64::from(k));
                products.sum::<f64>() * f64::from(scale)
                    + match mask {
                        Mask::Causal if key > query => f64::NEG_INFINITY,
                        Mask::Added(mask) => f64::from(mask[query * keys + key]),
                        Mask::Biased(bias) => f64::from(bias[(head * keys + key) * queries + query]),
                        _ => 0.0,
                    }
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - greatest).exp()).sum();
            for (key, score) in scores.iter().enumerate() {
                let out = &mut out[(query * heads + head) * width..][..width];
                for (out, v) in out.iter_mut().zip(row(v, key, head)) {
                    *out += (score - greatest).exp() / total * f64::from(v);
                }
            }
        }
        out
    }

    fn check(attention: Attention<'_>, scale: f32) {
        let Attention { heads, queries, keys, width, .. } = attention;
        let row = heads * width;
        let (q, k, v) = (random(queries * row, scale, 1), random(keys * row, scale, 2), random(keys * row, 1.0, 3));
        let want = plain(&attention, &q, &k, &v);
        let what = format!("{heads} heads, {queries} queries, {keys} keys of {width}");
        let run = |level, precision, most| {
            let mut out = vec![f32::NAN; queries * row];
            let (q, k) = (Heads::inside(&q, heads, width), Heads::inside(&k, heads, width));
            Attention { level, precision, ..attention }.run(q, k, Heads::inside(&v, heads, width), &mut out);
            let far = distance(&out, &want);
            assert!(far < most, "{level} {precision:?} {what}: {far}");
            out
        };
        check_levels(&what, |level| run(level, Precision::Exact, 2e-5));
        check_fast(&what, |level| run(level, Precision::Fast, 6e-2));
    }

    fn attention(heads: usize, queries: usize, keys: usize, width: usize) -> Attention<'static> {
        let scale = 1.0 / (width as f32).sqrt();
        let (level, precision) = (Level::Portable, Precision::Exact);
        Attention { level, precision, heads, queries, keys, width, scale, mask: Mask::None }
    }

    #[test]
    fn attention_is_that_with_all_scores_at_once() {
        for (heads, queries, keys, width) in [
            (1, 1, 1, 1),
            (2, 3, 5, 7),
            (8, 33, 77, 40),
            (3, 64, 129, 16),
            (2, 150, 300, 80),
            (1, 70, 260, 512),
            (1, 17, 31, 161),
        ] {
            check(attention(heads, queries, keys, width), 1.0);
        }
    }

    #[test]
    fn great_scores_do_no_harm() {
        check(Attention { scale: 1.0, ..attention(2, 40, 300, 40) }, 2.0);
    }

    #[test]
    fn a_mask_hides_keys() {
        check(Attention { mask: Mask::Causal, ..attention(12, 77, 77, 64) }, 1.0);
        check(Attention { mask: Mask::Causal, ..attention(1, 200, 200, 8) }, 1.0);
        let mut mask = random(50 * 140, 2.0, 9);
        for (i, mask) in mask.iter_mut().enumerate() {
            if i % 140 < 130 && i % 3 != 0 {
                *mask = f32::NEG_INFINITY; // all of some blocks, but not of all
            }
        }
        check(Attention { mask: Mask::Added(&mask), ..attention(2, 50, 140, 24) }, 1.0);
    }

    #[test]
    fn heads_have_biases_of_their_own() {
        for (heads, queries, keys, width) in [(2, 64, 64, 30), (3, 49, 144, 8), (1, 5, 131, 24)] {
            let bias = random(heads * queries * keys, 2.0, 9);
            check(Attention { mask: Mask::Biased(&bias), ..attention(heads, queries, keys, width) }, 1.0);
        }
    }

    #[test]
    fn windows_are_as_if_alone() {
        let (heads, queries, keys, width) = (3, 49, 64, 10);
        let bias = random(heads * queries * keys, 2.0, 9);
        let masks = [Mask::None, Mask::Biased(&bias), Mask::None, Mask::Biased(&bias), Mask::Biased(&bias)];
        let row = heads * width;
        let numbers = |rows: usize, seed| random(masks.len() * rows * row, 1.0, seed);
        let (q, k, v) = (numbers(queries, 1), numbers(keys, 2), numbers(keys, 3));
        let all = Attention { level: Level::detect(), ..attention(heads, queries, keys, width) };
        let windows: Vec<Window<'_>> = masks
            .into_iter()
            .enumerate()
            .map(|(i, mask)| {
                let heads =
                    |x, rows: usize| Heads::inside(&<[f32]>::as_ref(x)[i * rows * row..][..rows * row], heads, width);
                Window { q: heads(&q[..], queries), k: heads(&k[..], keys), v: heads(&v[..], keys), mask }
            })
            .collect();
        let mut out = vec![f32::NAN; q.len()];
        all.run_windows(&windows, &mut out);
        for (window, out) in windows.iter().zip(out.chunks_exact(queries * row)) {
            let mut alone = vec![0.0; out.len()];
            Attention { mask: window.mask, ..all }.run(window.q, window.k, window.v, &mut alone);
            assert_eq!(out, alone);
        }
    }

    #[test]
    fn a_query_that_sees_nothing_gives_no_number() {
        let mask = [f32::NEG_INFINITY; 3];
        let (level, mask) = (Level::detect(), Mask::Added(&mask));
        let mut out = [0.0; 2];
        let x = [1.0; 6];
        let heads = Heads::inside(&x, 1, 2);
        Attention { level, mask, ..attention(1, 1, 3, 2) }.run(Heads::inside(&x[..2], 1, 2), heads, heads, &mut out);
        assert!(out.iter().all(|x| x.is_nan()), "{out:?}");
    }

    #[test]
    fn heads_may_lie_outside() {
        let (heads, queries, keys, width) = (3, 20, 30, 12);
        let attention = Attention { level: Level::detect(), ..attention(heads, queries, keys, width) };
        let inside = |rows: usize, seed| random(rows * heads * width, 1.0, seed);
        let outside = |inside: &[f32], rows: usize| -> Vec<f32> {
            let at = |i: usize| inside[(i / width % rows * heads + i / (rows * width)) * width + i % width];
            (0..inside.len()).map(at).collect()
        };
        let (q, k, v) = (inside(queries, 1), inside(keys, 2), inside(keys, 3));
        let (mut a, mut b) = (vec![0.0; q.len()], vec![1.0; q.len()]);
        let all = |x| Heads::inside(x, heads, width);
        attention.run(all(&q), all(&k), all(&v), &mut a);
        let (q, k, v) = (outside(&q, queries), outside(&k, keys), outside(&v, keys));
        let keyed = |x| Heads::outside(x, keys, width);
        attention.run(Heads::outside(&q, queries, width), keyed(&k), keyed(&v), &mut b);
        assert_eq!(a, b);
    }
}

//! Winograd's convolution F(4x4, 3x3): 36 products for 16 outputs, where the plain sum takes 144.
//!
//! A tile of 6 x 6 inputs becomes 36 numbers, each of which is multiplied with one of the 36 numbers that a 3 x 3 kernel has
//! become; the sums over channels turn into 4 x 4 outputs. The points of interpolation are 0, ±1/√2, ±√2 and infinity
//! (Toom and Cook; Lavin and Gray 2015): with them the result is about half as exact as the plain f32 sum (rms 8e-7 of the
//! outputs' spread against 4e-7 at 64 channels), where the usual 0, ±1, ±2 lose twice as much again.

use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

use crate::{
    line::Line,
    simd::{LANES, Simd},
};

/// Outputs a side of a tile.
pub(crate) const OUT: usize = 4;
/// Inputs a side of a tile.
pub(crate) const IN: usize = 6;
/// Products of a tile.
pub(crate) const POINTS: usize = IN * IN;

/// From inputs to points, along one side.
#[inline(always)]
fn to_points<S: Simd>(s: S, d: [S::V; IN]) -> [S::V; IN] {
    let (half, two, two_and_half) = (s.splat(0.5), s.splat(2.0), s.splat(2.5));
    let (near, far) = (s.splat(FRAC_1_SQRT_2), s.splat(SQRT_2));
    let even_near = s.neg_mul_add(two, d[2], d[4]);
    let odd_near = s.neg_mul_add(two, d[1], d[3]);
    let even_far = s.neg_mul_add(half, d[2], d[4]);
    let odd_far = s.neg_mul_add(half, d[1], d[3]);
    [
        s.add(s.neg_mul_add(two_and_half, d[2], d[4]), d[0]),
        s.mul_add(near, odd_near, even_near),
        s.neg_mul_add(near, odd_near, even_near),
        s.mul_add(far, odd_far, even_far),
        s.neg_mul_add(far, odd_far, even_far),
        s.add(s.neg_mul_add(two_and_half, d[3], d[5]), d[1]),
    ]
}

/// From points to outputs, along one side.
#[inline(always)]
fn from_points<S: Simd>(s: S, m: [S::V; IN]) -> [S::V; OUT] {
    let (near_sum, near_difference) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
    let (far_sum, far_difference) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
    let (half, two) = (s.splat(0.5), s.splat(2.0));
    let (near, far) = (s.splat(FRAC_1_SQRT_2), s.splat(SQRT_2));
    let (near_cubed, far_cubed) = (s.splat(FRAC_1_SQRT_2 / 2.0), s.splat(2.0 * SQRT_2));
    [
        s.add(s.add(m[0], near_sum), far_sum),
        s.mul_add(far, far_difference, s.mul(near, near_difference)),
        s.mul_add(two, far_sum, s.mul(half, near_sum)),
        s.add(s.mul_add(far_cubed, far_difference, s.mul(near_cubed, near_difference)), m[5]),
    ]
}

/// What the 3 numbers of a kernel's row or column become.
fn kernel_points(g: [f64; 3]) -> [f64; IN] {
    let (a, b) = (std::f64::consts::FRAC_1_SQRT_2, std::f64::consts::SQRT_2);
    // Each point's polynomial over the product of its distances to the others.
    let at = |x: f64, scale: f64| (g[0] + x * g[1] + x * x * g[2]) / scale;
    [g[0], at(a, -1.5), at(-a, -1.5), at(b, 6.0), at(-b, 6.0), g[2]]
}

/// Turns a 3 x 3 kernel into its 36 numbers, row by row.
pub(crate) fn kernel(g: &[f32; 9]) -> [f32; POINTS] {
    let g = g.map(f64::from);
    let mut columns = [[0.0; 3]; IN]; // [point of the column][kernel's column]
    for x in 0..3 {
        for (y, value) in kernel_points([g[x], g[3 + x], g[6 + x]]).into_iter().enumerate() {
            columns[y][x] = value;
        }
    }
    let mut points = [0.0; POINTS];
    for (points, column) in points.chunks_exact_mut(IN).zip(columns) {
        for (point, value) in points.iter_mut().zip(kernel_points(column)) {
            *point = value as f32;
        }
    }
    points
}

/// Turns the tiles that start at each fourth pixel of six rows into points.
///
/// `rows` hold one line for each pixel, at least `4 * tiles + 2`; point p of tile t goes to `out[p * stride + t]`.
#[inline(always)]
pub(crate) fn input<S: Simd>(s: S, rows: [&[Line]; IN], tiles: usize, out: &mut [Line], stride: usize) {
    assert!(rows.iter().all(|row| row.len() >= OUT * tiles + IN - OUT), "a pixel on both sides of the tiles");
    assert!(tiles > 0 && out.len() >= (POINTS - 1) * stride + tiles, "room for the points");
    for t in 0..tiles {
        let mut columns = [[s.splat(0.0); IN]; IN]; // [column][point]
        for (x, column) in columns.iter_mut().enumerate() {
            // SAFETY: x < IN and t < tiles, and the rows are as long as checked above.
            let input = |y: usize| unsafe { &rows[y].get_unchecked(OUT * t + x).0 };
            *column = to_points(s, std::array::from_fn(|y| s.load(input(y))));
        }
        for y in 0..IN {
            let points = to_points(s, std::array::from_fn(|x| columns[x][y]));
            for (x, point) in points.into_iter().enumerate() {
                // SAFETY: y, x < IN and t < tiles, and there is room as checked above.
                s.store(point, unsafe { &mut out.get_unchecked_mut((y * IN + x) * stride + t).0 });
            }
        }
    }
}

/// Turns sums at points into the outputs of a tile, `[row][column]`; point p is `sums[p * stride]`.
#[inline(always)]
pub(crate) fn output<S: Simd>(s: S, sums: &[Line], stride: usize) -> [[S::V; OUT]; OUT] {
    assert!(sums.len() > (POINTS - 1) * stride, "a sum for each point");
    let mut rows = [[s.splat(0.0); OUT]; IN]; // [row of points][column]
    for (y, row) in rows.iter_mut().enumerate() {
        // SAFETY: y, x < IN, and there are as many sums as checked above.
        let sum = |x: usize| unsafe { &sums.get_unchecked((y * IN + x) * stride).0 };
        *row = from_points(s, std::array::from_fn(|x| s.load(sum(x))));
    }
    let mut tile = [[s.splat(0.0); OUT]; OUT];
    for x in 0..OUT {
        let column = from_points(s, std::array::from_fn(|y| rows[y][x]));
        for (y, value) in column.into_iter().enumerate() {
            tile[y][x] = value;
        }
    }
    tile
}

/// Turns the kernels of sixteen outputs for one input into points, row by row.
///
/// As exact as f32 allows without `f64`: used where kernels are turned anew at each call, which saves three quarters of
/// their memory.
#[inline(always)]
pub(crate) fn kernels<S: Simd>(s: S, taps: [S::V; 9]) -> [[S::V; IN]; IN] {
    let mut columns = [[s.splat(0.0); IN]; 3];
    for (x, column) in columns.iter_mut().enumerate() {
        *column = kernel_lanes(s, [taps[x], taps[3 + x], taps[6 + x]]);
    }
    let mut points = [[s.splat(0.0); IN]; IN];
    for (y, row) in points.iter_mut().enumerate() {
        *row = kernel_lanes(s, [columns[0][y], columns[1][y], columns[2][y]]);
    }
    points
}

/// [`kernel_points`] of sixteen rows or columns.
#[inline(always)]
fn kernel_lanes<S: Simd>(s: S, g: [S::V; 3]) -> [S::V; IN] {
    // At ±a: -(2 g0 + g2) / 3 and ∓√2 g1 / 3; at ±b: (g0 + 2 g2) / 6 and ±√2 g1 / 6.
    let (two, third, sixth) = (s.splat(2.0), s.splat(1.0 / 3.0), s.splat(1.0 / 6.0));
    let near = s.mul(s.mul_add(two, g[0], g[2]), third);
    let near_odd = s.mul(g[1], s.splat(SQRT_2 / 3.0));
    let far = s.mul(s.mul_add(two, g[2], g[0]), sixth);
    let far_odd = s.mul(g[1], s.splat(SQRT_2 / 6.0));
    let minus_near = s.sub(s.splat(0.0), near);
    [g[0], s.sub(minus_near, near_odd), s.sub(near_odd, near), s.add(far, far_odd), s.sub(far, far_odd), g[2]]
}

const _: () = assert!(LANES == 16);

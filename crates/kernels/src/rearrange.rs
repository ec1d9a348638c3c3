//! Numbers that change places and nothing else.

use crate::threads;

/// Makes `r * r` channels one of `r` times the sides: channel `c * r * r + i * r + j` becomes row i and column j of every r x r
/// pixels of channel c (Shi et al. 2016). From `[c*r*r][h][w]` to `[c][h*r][w*r]`.
///
/// # Panics
/// If the lengths do not fit together, or a side or `r` is 0.
pub fn pixel_shuffle(x: &[f32], h: usize, w: usize, r: usize, out: &mut [f32]) {
    let area = h * w * r * r;
    assert!(area > 0 && x.len().is_multiple_of(area) && out.len() == x.len(), "whole groups of {r} x {r} channels");
    each_channel(out, area, |channel, out| {
        let x = &x[channel * area..][..area];
        for (y, row) in out.chunks_exact_mut(w * r).enumerate() {
            for j in 0..r {
                let from = &x[(y % r * r + j) * h * w + y / r * w..][..w];
                for (to, from) in row[j..].iter_mut().step_by(r).zip(from) {
                    *to = *from;
                }
            }
        }
    });
}

/// Repeats each pixel `times` times in both directions. From `[c][h][w]` to `[c][h*times][w*times]`.
///
/// # Panics
/// If the lengths do not fit together, or a side or `times` is 0.
pub fn upsample_nearest(x: &[f32], h: usize, w: usize, times: usize, out: &mut [f32]) {
    let area = h * w;
    assert!(area * times > 0 && x.len().is_multiple_of(area), "whole channels of {h} x {w}");
    assert_eq!(out.len(), x.len() * times * times, "as many numbers as the larger channels have");
    each_channel(out, area * times * times, |channel, out| {
        let x = &x[channel * area..][..area];
        for (rows, from) in out.chunks_exact_mut(w * times * times).zip(x.chunks_exact(w)) {
            let (first, others) = rows.split_at_mut(w * times);
            for (pixels, value) in first.chunks_exact_mut(times).zip(from) {
                pixels.fill(*value);
            }
            for row in others.chunks_exact_mut(w * times) {
                row.copy_from_slice(first);
            }
        }
    });
}

/// Numbers of a side of the squares in which [`transpose`] goes: a line of the cache each way.
const SQUARE: usize = 16;

/// Makes columns of rows: from `[rows][columns]` to `[columns][rows]`.
///
/// # Panics
/// If the lengths are not `rows * columns`.
pub fn transpose(x: &[f32], rows: usize, columns: usize, out: &mut [f32]) {
    assert!(x.len() == rows * columns && out.len() == x.len(), "{rows} rows of {columns} numbers");
    if x.is_empty() {
        return;
    }
    each_channel(out, SQUARE * rows, |band, out| {
        let first = band * SQUARE;
        for row in (0..rows).step_by(SQUARE) {
            for (column, to) in (first..).zip(out.chunks_exact_mut(rows)) {
                for (i, to) in to[row..].iter_mut().take(SQUARE).enumerate() {
                    *to = x[(row + i) * columns + column];
                }
            }
        }
    });
}

/// Stands for a row of zeros in [`gather_rows`].
pub const NO_ROW: u32 = u32::MAX;

/// Writes the rows of `x`, each of `width` numbers, that `rows` names: row `i` of `out` is row `rows[i]`, or zeros where that
/// is [`NO_ROW`].
///
/// # Panics
/// If the lengths are no whole rows, `out` has not as many as `rows`, or a row is named that is not there.
pub fn gather_rows(x: &[f32], width: usize, rows: &[u32], out: &mut [f32]) {
    assert!(width > 0 && x.len().is_multiple_of(width) && out.len() == rows.len() * width, "rows of {width} numbers");
    const BAND: usize = 256;
    each_channel(out, BAND * width, |band, out| {
        for (to, row) in out.chunks_exact_mut(width).zip(&rows[band * BAND..]) {
            match *row {
                NO_ROW => to.fill(0.0),
                row => to.copy_from_slice(&x[row as usize * width..][..width]),
            }
        }
    });
}

/// Fills the channels of `out`, each of `area` numbers but the last, which may be shorter, on all threads.
fn each_channel(out: &mut [f32], area: usize, fill: impl Fn(usize, &mut [f32]) + Send + Sync) {
    let parts = threads::parts(out.chunks_mut(area).enumerate().collect());
    threads::each(parts, |part| part.into_iter().for_each(|(channel, out)| fill(channel, out)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_become_pixels() {
        // Two channels of 1 x 2 pixels, each made of four.
        let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let mut out = [0.0; 16];
        pixel_shuffle(&x, 1, 2, 2, &mut out);
        assert_eq!(out, [0., 2., 1., 3., 4., 6., 5., 7., 8., 10., 9., 11., 12., 14., 13., 15.]);
        pixel_shuffle(&x, 4, 4, 1, &mut out);
        assert_eq!(out[..], x);
    }

    #[test]
    fn rows_become_columns() {
        for (rows, columns) in [(1, 1), (3, 5), (16, 16), (17, 33), (40, 100)] {
            let x: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let mut out = vec![0.0; x.len()];
            transpose(&x, rows, columns, &mut out);
            for (i, number) in out.into_iter().enumerate() {
                assert_eq!(number, x[i % rows * columns + i / rows], "{rows} x {columns}");
            }
        }
    }

    #[test]
    fn rows_are_gathered() {
        let x = [1., 2., 3., 4., 5., 6.];
        let mut out = [9.0; 8];
        gather_rows(&x, 2, &[2, NO_ROW, 0, 2], &mut out);
        assert_eq!(out, [5., 6., 0., 0., 1., 2., 5., 6.]);
        let many: Vec<u32> = (0..1000).map(|i| i % 3).collect();
        let mut out = vec![0.0; 2000];
        gather_rows(&x, 2, &many, &mut out);
        assert!(out.iter().enumerate().all(|(i, number)| *number == x[i % 6]));
    }

    #[test]
    fn pixels_are_repeated() {
        let mut out = [0.0; 24];
        upsample_nearest(&[1., 2., 3., 4., 5., 6.], 1, 3, 2, &mut out);
        assert_eq!(out[..12], [1., 1., 2., 2., 3., 3., 1., 1., 2., 2., 3., 3.]);
        assert_eq!(out[12..], [4., 4., 5., 5., 6., 6., 4., 4., 5., 5., 6., 6.]);
    }
}

//! Numbers that change places and nothing else, in channels that each lie together, `[c][h][w]`.

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

/// Fills the channels of `out`, each of `area` numbers, on all threads.
fn each_channel(out: &mut [f32], area: usize, fill: impl Fn(usize, &mut [f32]) + Send + Sync) {
    let parts = threads::parts(out.chunks_exact_mut(area).enumerate().collect());
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
    fn pixels_are_repeated() {
        let mut out = [0.0; 24];
        upsample_nearest(&[1., 2., 3., 4., 5., 6.], 1, 3, 2, &mut out);
        assert_eq!(out[..12], [1., 1., 2., 2., 3., 3., 1., 1., 2., 2., 3., 3.]);
        assert_eq!(out[12..], [4., 4., 5., 5., 6., 6., 4., 4., 5., 5., 6., 6.]);
    }
}

//! Convolutions that see one channel each, `[c][h][w]`.

use crate::{
    level::Level,
    linear::Epilogue,
    simd::{Kernel, LANES, Simd, dispatch, lanes, lanes_mut},
    threads,
};

/// A convolution of each channel by itself, with square kernels of an odd side, that keeps the size of its input.
#[derive(Debug, Clone)]
pub struct Depthwise {
    level: Level,
    kernel: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Depthwise {
    /// Takes `weight`, `[channels][kernel][kernel]`, and `bias`, `[channels]`.
    ///
    /// # Panics
    /// If the lengths do not fit together, or `kernel` is even.
    pub fn new(level: Level, kernel: usize, weight: &[f32], bias: Option<&[f32]>) -> Self {
        assert!(kernel % 2 == 1 && weight.len().is_multiple_of(kernel * kernel), "kernels of {kernel} x {kernel}");
        let channels = weight.len() / (kernel * kernel);
        assert!(bias.is_none_or(|bias| bias.len() == channels), "one bias for each channel");
        let bias = bias.map_or_else(|| vec![0.0; channels], <[f32]>::to_vec);
        Self { level, kernel, weight: weight.to_vec(), bias }
    }

    /// How many channels there are.
    pub fn channels(&self) -> usize {
        self.bias.len()
    }

    /// Computes `out` from `x`, both `[channels][h][w]`, with zeros around. A residual is as large as `out`.
    ///
    /// # Panics
    /// If the lengths do not fit together, or this processor lacks the level.
    pub fn forward(&self, x: &[f32], h: usize, w: usize, epilogue: Epilogue<'_>, out: &mut [f32]) {
        assert_eq!(x.len(), self.channels() * h * w, "as many numbers as channels of {h} x {w}");
        assert_eq!(out.len(), x.len(), "as many results");
        epilogue.check(out);
        if x.is_empty() {
            return;
        }
        let area = h * w;
        let channels = out.chunks_exact_mut(area).zip(x.chunks_exact(area)).enumerate().collect();
        threads::each(threads::parts(channels), |channels| {
            let (border, room) = (self.kernel / 2, w.next_multiple_of(LANES) + self.kernel - 1);
            let mut padded = vec![0.0; (h + 2 * border) * room];
            for (channel, (out, x)) in channels {
                for (row, x) in padded.chunks_exact_mut(room).skip(border).zip(x.chunks_exact(w)) {
                    row[border..][..w].copy_from_slice(x);
                }
                let residual = epilogue.residual.map(|all| &all[channel * area..][..area]);
                let epilogue = Epilogue { residual, ..epilogue };
                dispatch(self.level, Channel { conv: self, channel, padded: &padded, room, w, epilogue, out });
            }
        });
    }
}

struct Channel<'a> {
    conv: &'a Depthwise,
    channel: usize,
    /// The channel with zeros around, in rows of `room` numbers.
    padded: &'a [f32],
    room: usize,
    w: usize,
    epilogue: Epilogue<'a>,
    out: &'a mut [f32],
}

impl Kernel for Channel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { conv, channel, padded, room, w, epilogue, out } = self;
        let k = conv.kernel;
        let weight = &conv.weight[channel * k * k..][..k * k];
        let bias = s.splat(conv.bias[channel]);
        for (y, row) in out.chunks_exact_mut(w).enumerate() {
            for at in (0..w).step_by(LANES) {
                let mut sum = bias;
                for (i, taps) in weight.chunks_exact(k).enumerate() {
                    let from = &padded[(y + i) * room + at..];
                    for (j, tap) in taps.iter().enumerate() {
                        sum = s.mul_add(s.load(lanes(from, j)), s.splat(*tap), sum);
                    }
                }
                if let Some(function) = epilogue.function {
                    sum = function.of(s, sum);
                }
                let count = LANES.min(w - at);
                if let Some(residual) = epilogue.residual {
                    sum = s.add(sum, s.load_part(&residual[y * w + at..][..count], 0.0));
                }
                if count == LANES {
                    s.store(sum, lanes_mut(row, at));
                } else {
                    s.store_part(sum, &mut row[at..]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        math::Function,
        operand::tests::{check_levels, distance, random},
    };

    #[test]
    fn each_channel_is_convolved_by_itself() {
        for (channels, kernel, h, w) in [(1, 1, 1, 1), (2, 3, 1, 1), (3, 3, 5, 16), (2, 5, 7, 33), (5, 3, 20, 47)] {
            let (x, weight) = (random(channels * h * w, 1.0, 1), random(channels * kernel * kernel, 1.0, 2));
            let (bias, residual) = (random(channels, 1.0, 3), random(x.len(), 1.0, 4));
            let want: Vec<f64> = (0..x.len())
                .map(|i| {
                    let (channel, row, column) = (i / (h * w), i / w % h, i % w);
                    let mut sum = f64::from(bias[channel]);
                    for (t, weight) in weight[channel * kernel * kernel..][..kernel * kernel].iter().enumerate() {
                        let at = (row + t / kernel)
                            .checked_sub(kernel / 2)
                            .zip((column + t % kernel).checked_sub(kernel / 2));
                        if let Some((row, column)) = at.filter(|(row, column)| *row < h && *column < w) {
                            sum += f64::from(*weight) * f64::from(x[(channel * h + row) * w + column]);
                        }
                    }
                    sum.max(0.0) + f64::from(residual[i])
                })
                .collect();
            let what = format!("{channels} channels of {h} x {w}, kernel {kernel}");
            check_levels(&what, |level| {
                let mut out = vec![f32::NAN; x.len()];
                let epilogue = Epilogue { function: Some(Function::Relu), residual: Some(&residual) };
                Depthwise::new(level, kernel, &weight, Some(&bias)).forward(&x, h, w, epilogue, &mut out);
                let far = distance(&out, &want);
                assert!(far < 1e-6, "{level} {what}: {far}");
                out
            });
        }
    }
}

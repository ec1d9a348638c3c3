//! Maps of channels in the layout that the kernels work on.

use crate::line::{Line, zeroed};

/// Channels of a pixel that lie side by side.
pub(crate) const BLOCK: usize = 16;
/// The sides of the tiles in which convolutions are computed.
pub(crate) const TILE: usize = 4;

/// How many lines a row of `w` pixels takes: one before the first pixel, and as many behind the last as the tiles reach.
pub(crate) fn row_lines(w: usize) -> usize {
    w.next_multiple_of(TILE) + 2
}

/// A map of channels: `[y][block of 16 channels][x]`, one line of 16 channels for each pixel, f32.
///
/// Each row starts with a zero line and ends with at least one, so that convolutions find their border. Channels that
/// fill up the last block are zero.
#[derive(Debug, Clone)]
pub struct Picture {
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) channels: usize,
    pub(crate) lines: Vec<Line>,
}

impl Picture {
    /// A map of zeros.
    pub fn zeros(channels: usize, h: usize, w: usize) -> Self {
        Self { h, w, channels, lines: zeroed(h * channels.div_ceil(BLOCK) * row_lines(w)) }
    }

    /// Bytes that a map takes.
    pub fn bytes(channels: usize, h: usize, w: usize) -> usize {
        h * channels.div_ceil(BLOCK) * row_lines(w) * size_of::<Line>()
    }

    /// Height in pixels.
    pub fn h(&self) -> usize {
        self.h
    }

    /// Width in pixels.
    pub fn w(&self) -> usize {
        self.w
    }

    /// How many channels there are.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Blocks of channels.
    pub(crate) fn blocks(&self) -> usize {
        self.channels.div_ceil(BLOCK)
    }

    /// Lines from one row to the next.
    pub(crate) fn pitch(&self) -> usize {
        self.blocks() * row_lines(self.w)
    }

    /// Reads pixels `[h][w][channels]`. With `unshuffle` r above 1, r x r pixels become the channels of one: channel
    /// `c * r * r + i * r + j` is channel c of the pixel in row i and column j of these.
    ///
    /// # Panics
    /// If `pixels` are not `h * w * channels` numbers, or `unshuffle` does not divide `h` and `w`.
    pub fn from_pixels(pixels: &[f32], h: usize, w: usize, channels: usize, unshuffle: usize) -> Self {
        assert_eq!(pixels.len(), h * w * channels, "as many numbers as the size says");
        assert!(h.is_multiple_of(unshuffle) && w.is_multiple_of(unshuffle), "the sides are multiples of the factor");
        let area = unshuffle * unshuffle;
        let mut picture = Self::zeros(channels * area, h / unshuffle, w / unshuffle);
        let (row, pitch) = (row_lines(picture.w), picture.pitch());
        for (y, pixels) in pixels.chunks_exact((w * channels).max(1)).enumerate() {
            let (top, i) = (y / unshuffle, y % unshuffle);
            for (x, pixel) in pixels.chunks_exact(channels).enumerate() {
                let (left, j) = (x / unshuffle, x % unshuffle);
                for (c, value) in pixel.iter().enumerate() {
                    let channel = c * area + i * unshuffle + j;
                    let line = top * pitch + channel / BLOCK * row + left + 1;
                    picture.lines[line].0[channel % BLOCK] = *value;
                }
            }
        }
        picture
    }
}

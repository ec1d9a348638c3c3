//! A window of a resized picture out of a window of the picture, in bytes (reference: pixels.md, section 6.3).

use domain::region::{Region, Size};

use super::{
    bytes8::{ByteResizer, Filter},
    rows::Held,
};
use crate::frames::{PixelError, crop_rows};

/// Resizes a picture of bytes through several sizes in turn, and makes only one window of the last.
///
/// The bytes are those of the whole picture, resized whole. Sizes between are never held: just the rows that one row of
/// the next is made of, as wide as the window there.
#[derive(Debug)]
pub struct WindowResizer {
    channels: usize,
    /// The pixels that come out.
    window: Region,
    /// The resizes, in turn.
    passes: Vec<Pass>,
}

/// One resize.
#[derive(Debug)]
struct Pass {
    held: Held<ByteResizer>,
    /// The input row after the last that was taken.
    taken: usize,
}

impl WindowResizer {
    /// Prepares a resize of a picture of 1, 3 or 4 channels and of the first of `sizes` to each of the others in turn, of
    /// which the pixels of `window` are made.
    ///
    /// # Panics
    /// When the window does not lie within the last size, or there is none.
    pub fn new(filter: Filter, sizes: &[Size], channels: usize, window: Region) -> Result<Self, PixelError> {
        let mut passes = Vec::new();
        let mut wanted = window;
        for pair in sizes.windows(2).rev() {
            let resizer = ByteResizer::windowed(filter, pair[0], pair[1], channels, wanted)?;
            wanted = resizer.input();
            passes.push(Pass { held: Held::new(resizer), taken: 0 });
        }
        passes.reverse();
        Ok(Self { channels, window, passes })
    }

    /// The pixels of the picture that the window is made of.
    pub fn input(&self) -> Region {
        self.passes.first().map_or(self.window, |pass| pass.held.passes.input())
    }

    /// Makes the window out of `input`, the pixels `region` of the picture.
    ///
    /// # Panics
    /// When `region` lacks a pixel of [`WindowResizer::input`], or `input` has not its size.
    pub fn window(mut self, input: &[u8], region: Region) -> Vec<u8> {
        let (needed, window) = (self.input(), self.window);
        assert_eq!(region.intersection(&needed), Some(needed), "{needed} is needed of {region}");
        let cut = Region { x: needed.x - region.x, y: needed.y - region.y, ..needed };
        let input = crop_rows(input, region.height as usize, region.width as usize, self.channels, cut);
        let stride = needed.width as usize * self.channels;
        let row = |y: usize| &input[(y - needed.y as usize) * stride..][..stride];
        let mut out = Vec::with_capacity(window.size().pixels() as usize * self.channels);
        (window.y as usize..window.bottom() as usize).for_each(|y| make(&mut self.passes, y, &row, &mut out));
        out
    }
}

/// Appends row `y` of what the last of `passes` makes; `row` hands over an input row of the first.
fn make<'a>(passes: &mut [Pass], y: usize, row: &impl Fn(usize) -> &'a [u8], out: &mut Vec<u8>) {
    let Some((last, before)) = passes.split_last_mut() else {
        out.extend_from_slice(row(y));
        return;
    };
    let needed = last.held.passes.rows_needed(y..y + 1);
    let mut input = Vec::new();
    for from in last.taken.max(needed.start)..needed.end {
        input.clear();
        make(before, from, row, &mut input);
        last.held.take(from, &input, needed.start);
    }
    last.taken = last.taken.max(needed.end);
    last.held.give(y, &needed, out);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILTERS: [Filter; 4] = [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];

    proptest! {
        #[test]
        fn a_window_has_the_bytes_of_the_whole(
            sizes in prop::collection::vec((1..24u32, 1..24u32), 1..4), channels in prop::sample::select(vec![1, 3, 4]),
            filter in prop::sample::select(FILTERS.to_vec()), at in prop::array::uniform4(0.0..1.0f64), seed in any::<u64>(),
        ) {
            let sizes: Vec<Size> = sizes.into_iter().map(|(width, height)| Size::new(width, height)).collect();
            let (from, to) = (sizes[0], sizes[sizes.len() - 1]);
            let len = from.pixels() * channels as u64;
            let bytes = |i: u64| ((i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
            let input: Vec<u8> = (0..len).map(bytes).collect();
            let mut whole = input.clone();
            for pair in sizes.windows(2) {
                whole = ByteResizer::new(filter, pair[0], pair[1], channels).unwrap().picture(&whole);
            }
            let part = |side: u32, at: f64, length: f64| {
                let start = (f64::from(side) * at) as u32;
                (start, 1 + (f64::from(side - start - 1) * length).round() as u32)
            };
            let ((x, width), (y, height)) = (part(to.width, at[0], at[1]), part(to.height, at[2], at[3]));
            let window = Region::new(x, y, width, height);
            let want = crop_rows(&whole, to.height as usize, to.width as usize, channels, window);
            let resizer = WindowResizer::new(filter, &sizes, channels, window).unwrap();
            let needed = resizer.input();
            prop_assert_eq!(resizer.window(&input, Region::new(0, 0, from.width, from.height)), want.clone());
            let cut = crop_rows(&input, from.height as usize, from.width as usize, channels, needed);
            let resizer = WindowResizer::new(filter, &sizes, channels, window).unwrap();
            prop_assert_eq!(resizer.window(&cut, needed), want);
        }
    }
}

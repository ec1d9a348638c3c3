//! Colour for what cannot be seen, so that it does not show at the edge of what can.
//!
//! A fully transparent pixel has a colour all the same, often black or white, and a network or a resampler would mix
//! it into the visible pixels beside it: a fringe. So before either sees the picture, such a pixel takes the colour of
//! the nearest pixel that is not fully transparent. Alpha is left as it is, and so is every visible pixel.

use std::collections::VecDeque;

use crate::picture::{Color, Sample};

/// How far colour is carried, in pixels: farther than it matters to what a network makes of a visible pixel.
///
/// Beyond it the file's own colour stays.
pub const REACH: usize = 16;

/// Takes the rows of a picture with alpha from the top, and gives them back with colour under what is transparent.
///
/// Nearest is by Euclid's distance; of equals, the one in the nearer row, then above, then to the left. So a pixel
/// depends on the [`REACH`] rows around it alone, and twice as many rows are held.
#[derive(Debug)]
pub struct Underpainter {
    width: usize,
    height: usize,
    /// The bytes of a pixel's colour, and those of the whole pixel.
    color_bytes: usize,
    pixel_bytes: usize,
    /// The rows that are still of use; the last is the one that was taken last.
    held: VecDeque<Row>,
    /// Rows that came.
    taken: usize,
    /// Rows that were given.
    given: usize,
}

#[derive(Debug)]
struct Row {
    bytes: Vec<u8>,
    ways: Ways,
}

/// The way from every pixel of a row to the nearest visible one in it.
#[derive(Debug)]
enum Ways {
    /// None is needed: all are visible.
    Visible,
    /// There is none: all are fully transparent.
    Hidden,
    /// Pixels to the right, 0 where the pixel itself is visible; [`NO_WAY`] where none is in reach.
    Mixed(Vec<i8>),
}

/// Stands for no way: farther than the reach.
const NO_WAY: i8 = i8::MAX;

impl Underpainter {
    /// A painter for a picture of this size; `None` for a picture without alpha, which has nothing to hide.
    pub fn new(width: u32, height: u32, color: Color, sample: Sample) -> Option<Self> {
        let pixel_bytes = color.channels() * sample.bytes();
        color.has_alpha().then(|| Self {
            width: width as usize,
            height: height as usize,
            color_bytes: pixel_bytes - sample.bytes(),
            pixel_bytes,
            held: VecDeque::new(),
            taken: 0,
            given: 0,
        })
    }

    /// Takes the next rows in the native layout, any whole number of them, and hands on those that are finished: all
    /// of them, when the last has come.
    ///
    /// # Panics
    /// Where `rows` is no whole number of rows, or more of them than the picture has: the caller mixed up two pictures.
    pub fn push<E>(&mut self, rows: &[u8], give: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let stride = self.width * self.pixel_bytes;
        assert!(rows.len().is_multiple_of(stride), "rows of {stride} bytes, given {} bytes", rows.len());
        for row in rows.chunks_exact(stride) {
            assert!(self.taken < self.height, "a picture of {} rows was given more", self.height);
            self.held.push_back(Row { bytes: row.to_vec(), ways: self.ways(row) });
            self.taken += 1;
            while self.given < self.taken && (self.taken == self.height || self.given + REACH < self.taken) {
                give(&self.painted())?;
                self.given += 1;
                if self.given - (self.taken - self.held.len()) > REACH {
                    self.held.pop_front();
                }
            }
        }
        Ok(())
    }

    fn ways(&self, row: &[u8]) -> Ways {
        // Alpha of 0 is zeros in every kind of sample, but for the sign of a float's zero.
        let is_hidden = |pixel: &[u8]| match &pixel[self.color_bytes..] {
            [low @ .., high] => low.iter().all(|&byte| byte == 0) && (*high == 0 || (low.len() == 3 && *high == 0x80)),
            [] => false,
        };
        let hidden: Vec<bool> = row.chunks_exact(self.pixel_bytes).map(is_hidden).collect();
        if !hidden.contains(&true) {
            return Ways::Visible;
        }
        if !hidden.contains(&false) {
            return Ways::Hidden;
        }
        let mut ways = vec![NO_WAY; hidden.len()];
        let mut left = usize::MAX;
        for (way, &hidden) in ways.iter_mut().zip(&hidden) {
            left = if hidden { left.saturating_add(1) } else { 0 };
            if left <= REACH {
                *way = -(left as i8);
            }
        }
        let mut right = usize::MAX;
        for (way, &hidden) in ways.iter_mut().zip(&hidden).rev() {
            right = if hidden { right.saturating_add(1) } else { 0 };
            if right <= REACH && right < usize::from(way.unsigned_abs()) {
                *way = right as i8;
            }
        }
        Ways::Mixed(ways)
    }

    /// The next row that is to be given.
    fn painted(&self) -> Vec<u8> {
        let at = self.given - (self.taken - self.held.len());
        let row = &self.held[at];
        let mut bytes = row.bytes.clone();
        if matches!(row.ways, Ways::Visible) {
            return bytes;
        }
        // Of each pixel: the squared distance to the nearest visible one, its row in `held`, the way to it there.
        let mut least = vec![(REACH * REACH) as u16 + 1; self.width];
        let (mut rows, mut ways) = (vec![at as u8; self.width], vec![0; self.width]);
        for down in 0..=REACH {
            let square = (down * down) as u16;
            if least.iter().all(|&least| least <= square) {
                break;
            }
            let above_and_below = [at.checked_sub(down), (down > 0).then_some(at + down)];
            for (index, row) in above_and_below.into_iter().flatten().filter_map(|i| Some((i, self.held.get(i)?))) {
                let mut nearer = |x: usize, way: i8| {
                    let distance = square + u16::from(way.unsigned_abs()).pow(2);
                    if distance < least[x] {
                        (least[x], rows[x], ways[x]) = (distance, index as u8, way);
                    }
                };
                match &row.ways {
                    Ways::Visible => (0..self.width).for_each(|x| nearer(x, 0)),
                    Ways::Hidden => {}
                    Ways::Mixed(ways) => ways.iter().enumerate().for_each(|(x, &way)| nearer(x, way)),
                }
            }
        }
        for (x, pixel) in bytes.chunks_exact_mut(self.pixel_bytes).enumerate() {
            let from = x.wrapping_add_signed(ways[x].into()) * self.pixel_bytes;
            pixel[..self.color_bytes]
                .copy_from_slice(&self.held[usize::from(rows[x])].bytes[from..][..self.color_bytes]);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn painted(width: u32, height: u32, color: Color, sample: Sample, pixels: &[u8], at_once: usize) -> Vec<u8> {
        let mut painter = Underpainter::new(width, height, color, sample).unwrap();
        let mut out = Vec::new();
        for rows in pixels.chunks(at_once * width as usize * painter.pixel_bytes) {
            let Ok(()) = painter.push(rows, &mut |row| {
                out.extend_from_slice(row);
                Ok::<(), Infallible>(())
            });
            assert!(painter.held.len() <= 2 * REACH + 1, "{} rows are held", painter.held.len());
        }
        out
    }

    /// Grey with alpha in text: a digit is a visible pixel's colour, `.` a transparent one of colour 0.
    fn check(before: &str, after: &str) {
        let rows: Vec<&str> = before.split_whitespace().collect();
        let pixel = |c: u8| if c == b'.' { [0, 0] } else { [c, 1] };
        let pixels: Vec<u8> = rows.iter().flat_map(|row| row.bytes().flat_map(pixel)).collect();
        let (width, height) = (rows[0].len(), rows.len());
        let out = painted(width as u32, height as u32, Color::GreyAlpha, Sample::U8, &pixels, 2);
        let alpha = |bytes: &[u8]| bytes.chunks(2).map(|pixel| pixel[1]).collect::<Vec<_>>();
        assert_eq!(alpha(&out), alpha(&pixels));
        let letter = |pixel: &[u8]| char::from(if pixel[0] == 0 { b'.' } else { pixel[0] });
        let text: Vec<String> = out.chunks(2 * width).map(|row| row.chunks(2).map(letter).collect()).collect();
        assert_eq!(text.join(" "), after);
    }

    #[test]
    fn transparent_pixels_take_the_color_of_the_nearest_visible_one() {
        check("1", "1");
        check(".", ".");
        check("1...2", "11122"); // of equals the left one
        check(". . 1 . . . 2 .", "1 1 1 1 1 2 2 2"); // and the one above
        check("1.. ... ..2", "111 112 222"); // the row of a pixel before both
        check("..... .3... ..... ....4", "33334 33334 33344 33444");
    }

    #[test]
    fn colour_is_carried_no_farther_than_the_reach() {
        let far = |n: usize| ".".repeat(n);
        check(&format!("1{}", far(30)), &format!("{}{}", "1".repeat(REACH + 1), far(30 - REACH)));
        check(&format!("1{}", " .".repeat(30)), &format!("1{}{}", " 1".repeat(REACH), " .".repeat(30 - REACH)));
    }

    #[test]
    fn every_kind_of_sample_is_painted() {
        let words = [[7u16, 8, 9, 1], [0, 0, 0, 0]].concat();
        let bytes: Vec<u8> = words.iter().flat_map(|k| k.to_le_bytes()).collect();
        let expected: Vec<u8> = [7u16, 8, 9, 1, 7, 8, 9, 0].iter().flat_map(|k| k.to_le_bytes()).collect();
        assert_eq!(painted(2, 1, Color::Rgba, Sample::U16, &bytes, 1), expected);

        let floats = [0.0f32, 0.0, 0.25, 1e-30, 0.5, -0.0];
        let bytes: Vec<u8> = floats.iter().flat_map(|k| k.to_le_bytes()).collect();
        let expected: Vec<u8> = [0.25f32, 0.0, 0.25, 1e-30, 0.25, -0.0].iter().flat_map(|k| k.to_le_bytes()).collect();
        assert_eq!(painted(3, 1, Color::GreyAlpha, Sample::F32, &bytes, 1), expected);
    }

    #[test]
    fn a_picture_without_alpha_needs_no_painter() {
        assert!(Underpainter::new(3, 3, Color::Rgb, Sample::U8).is_none());
        assert!(Underpainter::new(3, 3, Color::Grey, Sample::F32).is_none());
    }

    proptest! {
        #[test]
        fn the_nearest_is_what_a_search_of_the_whole_picture_finds(
            width in 1..40usize, height in 1..60usize, visible in 0..20usize, seed in any::<u64>(), at_once in 1..9usize,
        ) {
            let mut state = seed | 1;
            let mut next = |most: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 33) as usize % most
            };
            let mut pixels = vec![0; width * height * 2];
            for i in 0..visible {
                let at = next(width * height);
                pixels[2 * at..][..2].copy_from_slice(&[i as u8 + 1, 255]);
            }
            let seen: Vec<usize> = (0..width * height).filter(|&i| pixels[2 * i + 1] > 0).collect();
            let mut expected = pixels.clone();
            for at in (0..width * height).filter(|&i| pixels[2 * i + 1] == 0) {
                let nearest = seen.iter().map(|&from| {
                    let down = (from / width).abs_diff(at / width);
                    let distance = down.pow(2) + (from % width).abs_diff(at % width).pow(2);
                    ((distance, down, from / width, from % width), from)
                });
                if let Some((_, from)) = nearest.min().filter(|nearest| nearest.0.0 <= REACH * REACH) {
                    expected[2 * at] = pixels[2 * from];
                }
            }
            let (width, height) = (width as u32, height as u32);
            prop_assert_eq!(painted(width, height, Color::GreyAlpha, Sample::U8, &pixels, at_once), expected);
        }
    }
}

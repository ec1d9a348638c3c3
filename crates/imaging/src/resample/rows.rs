//! Resizing a picture that comes row by row, in memory for a few rows (reference: pixels.md, sections 6.1 and 6.3).
//!
//! ```
//! use domain::region::Size;
//! use imaging::{picture::Sample, resample::rows::RowResampler};
//!
//! let mut resampler = RowResampler::new("bilinear".parse()?, Size::new(2, 2), Size::new(4, 3), 1, Sample::U8)?;
//! let mut resized = Vec::new();
//! let mut take = |row: &[f32]| { resized.extend_from_slice(row); Ok::<(), std::io::Error>(()) };
//! resampler.push(&[0.0, 1.0], &mut take)?;
//! resampler.push(&[0.0, 1.0], &mut take)?;
//! resampler.finish()?;
//! assert_eq!(resized, [0.0, 0.25, 0.75, 1.0].repeat(3));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::Range;

use domain::region::Size;

use super::{
    ScaleMethod,
    bytes8::{Filter, LevelResizer},
    float::FloatResizer,
    level::Level,
};
use crate::{frames::PixelError, picture::Sample};

/// Takes the rows of a picture from the top, and gives the rows of the resized one as soon as they can be made.
///
/// The values are exactly those of the whole picture. What is held is the input rows that one output row is made of,
/// at the output's width: 6 of them for an enlarging Lanczos, 4 for bicubic, and more in proportion where a method
/// widens to shrink.
#[derive(Debug)]
pub struct RowResampler {
    passes: Box<dyn RowByRow>,
    to: Size,
    /// Samples of an input row.
    stride: usize,
    /// Rows that the input has.
    height: usize,
    /// Rows that came.
    taken: usize,
    /// Rows that were given.
    given: usize,
    /// The output row in the making.
    row: Vec<f32>,
}

impl RowResampler {
    /// Prepares a resize of a picture of `channels` interleaved channels.
    ///
    /// [`ScaleMethod::Lanczos`] works on samples of the given `depth`: in bytes it is the reference's to the byte, and
    /// by the same rules it works on 16-bit and float samples, which do not pass through bytes. It takes 1, 3 or 4
    /// channels, of which the fourth is alpha, by which colours are weighted. The other methods compute in floats
    /// whatever the depth, take any number of channels, and weigh all alike; bicubic may leave 0..1.
    pub fn new(method: ScaleMethod, from: Size, to: Size, channels: usize, depth: Sample) -> Result<Self, PixelError> {
        fn lanczos<L: Level>(from: Size, to: Size, channels: usize) -> Result<Box<dyn RowByRow>, PixelError> {
            Ok(Stream::boxed(LevelResizer::<L>::new(Filter::Lanczos, from, to, channels)?))
        }
        let passes = match (method, depth) {
            (ScaleMethod::Float(method), _) => Stream::boxed(FloatResizer::new(method, from, to, channels)?),
            (ScaleMethod::Lanczos, Sample::U8) => lanczos::<u8>(from, to, channels)?,
            (ScaleMethod::Lanczos, Sample::U16) => lanczos::<u16>(from, to, channels)?,
            (ScaleMethod::Lanczos, Sample::F32) => lanczos::<f32>(from, to, channels)?,
        };
        let (stride, height) = (from.width as usize * channels, from.height as usize);
        Ok(Self { passes, to, stride, height, taken: 0, given: 0, row: Vec::new() })
    }

    /// The size that comes out.
    pub fn output(&self) -> Size {
        self.to
    }

    /// Takes the next rows, any whole number of them, and hands every row that they complete to `give`.
    ///
    /// An error of `give` ends the resize: what is pushed after it makes no sound picture.
    ///
    /// # Panics
    /// Where `rows` is no whole number of rows, or more of them than the picture has: the caller mixed up two pictures.
    pub fn push<E>(&mut self, rows: &[f32], give: &mut dyn FnMut(&[f32]) -> Result<(), E>) -> Result<(), E> {
        let stride = self.stride;
        assert!(rows.len().is_multiple_of(stride), "rows of {stride} samples, given {} samples", rows.len());
        for row in rows.chunks_exact(stride) {
            assert!(self.taken < self.height, "a picture of {} rows was given more", self.height);
            self.passes.take(self.taken, row, self.next());
            self.taken += 1;
            while let Some(needed) = self.next().filter(|needed| needed.end <= self.taken) {
                self.row.clear();
                self.passes.give(self.given, needed, &mut self.row);
                self.given += 1;
                give(&self.row)?;
            }
        }
        Ok(())
    }

    /// Checks that every row came, and so that every row was given.
    pub fn finish(self) -> Result<(), PixelError> {
        if self.taken == self.height {
            return Ok(());
        }
        Err(PixelError::Rows { operation: "resampling", want: self.height, got: self.taken })
    }

    /// The input rows that the next output row is made of; `None` after the last.
    fn next(&self) -> Option<Range<usize>> {
        (self.given < self.to.height as usize).then(|| self.passes.needed(self.given))
    }
}

/// A resize whose rows first take the output's width, and are then made into output rows.
pub(super) trait TwoPass {
    type Sample: Copy + Debug + Send + 'static;
    fn sample(value: f32) -> Self::Sample;
    fn value(sample: Self::Sample) -> f32;
    fn needed(&self, y: usize) -> Range<usize>;
    fn across(&self, row: &[Self::Sample], out: &mut Vec<Self::Sample>);
    fn down<'a>(&self, y: usize, row: impl Fn(usize) -> &'a [Self::Sample], out: &mut Vec<Self::Sample>);
}

impl TwoPass for FloatResizer {
    type Sample = f32;

    fn sample(value: f32) -> f32 {
        value
    }

    fn value(sample: f32) -> f32 {
        sample
    }

    fn needed(&self, y: usize) -> Range<usize> {
        self.rows_needed(y..y + 1)
    }

    fn across(&self, row: &[f32], out: &mut Vec<f32>) {
        self.across(row, out);
    }

    fn down<'a>(&self, y: usize, row: impl Fn(usize) -> &'a [f32], out: &mut Vec<f32>) {
        self.down(y, row, out);
    }
}

impl<L: Level> TwoPass for LevelResizer<L> {
    type Sample = L;

    fn sample(value: f32) -> L {
        L::quantise(value)
    }

    fn value(sample: L) -> f32 {
        sample.dequantise()
    }

    fn needed(&self, y: usize) -> Range<usize> {
        self.rows_needed(y..y + 1)
    }

    fn across(&self, row: &[L], out: &mut Vec<L>) {
        self.across(row, out);
    }

    fn down<'a>(&self, y: usize, row: impl Fn(usize) -> &'a [L], out: &mut Vec<L>) {
        self.down(y, row, out);
    }
}

/// A resize and the rows that it holds, whatever its samples are.
trait RowByRow: Debug + Send {
    /// The input rows that output row `y` is made of. Neither end of them falls as `y` grows.
    fn needed(&self, y: usize) -> Range<usize>;

    /// Takes input row `y`, and drops the rows before `wanted`, those of the next output row.
    fn take(&mut self, y: usize, row: &[f32], wanted: Option<Range<usize>>);

    /// Appends output row `y`, whose input rows `needed` are held.
    fn give(&mut self, y: usize, needed: Range<usize>, out: &mut Vec<f32>);

    /// How many rows are held.
    #[cfg(test)]
    fn held(&self) -> usize;
}

/// Input rows at the output's width, as many as the next output row is made of.
#[derive(Debug)]
pub(super) struct Held<P: TwoPass> {
    pub passes: P,
    /// The rows. The last is that of the row that was taken last.
    rows: VecDeque<Vec<P::Sample>>,
    /// Which input row is the first of them.
    first: usize,
}

impl<P: TwoPass> Held<P> {
    pub fn new(passes: P) -> Self {
        Self { passes, rows: VecDeque::new(), first: 0 }
    }

    /// Takes input row `y`, and drops the rows before `wanted`.
    pub fn take(&mut self, y: usize, row: &[P::Sample], wanted: usize) {
        let mut across = Vec::new();
        while self.first < wanted {
            self.first += 1;
            match self.rows.pop_front() {
                Some(dropped) => across = dropped,
                None => break,
            }
        }
        if y < wanted {
            return; // methods that do not widen skip rows when they shrink
        }
        self.first = y - self.rows.len();
        across.clear();
        self.passes.across(row, &mut across);
        self.rows.push_back(across);
    }

    /// Appends output row `y`, whose input rows `needed` are held.
    pub fn give(&self, y: usize, needed: &Range<usize>, out: &mut Vec<P::Sample>) {
        debug_assert!(self.first <= needed.start && needed.end <= self.first + self.rows.len(), "the rows are held");
        self.passes.down(y, |row| &self.rows[row - self.first], out);
    }
}

/// A resize of samples that come and go as `f32`.
#[derive(Debug)]
struct Stream<P: TwoPass> {
    held: Held<P>,
    /// The samples of one row.
    samples: Vec<P::Sample>,
}

impl<P: TwoPass + Debug + Send + 'static> Stream<P> {
    fn boxed(passes: P) -> Box<dyn RowByRow> {
        Box::new(Self { held: Held::new(passes), samples: Vec::new() })
    }
}

impl<P: TwoPass + Debug + Send> RowByRow for Stream<P> {
    fn needed(&self, y: usize) -> Range<usize> {
        self.held.passes.needed(y)
    }

    fn take(&mut self, y: usize, row: &[f32], wanted: Option<Range<usize>>) {
        self.samples.clear();
        self.samples.extend(row.iter().map(|&value| P::sample(value)));
        self.held.take(y, &self.samples, wanted.map_or(usize::MAX, |wanted| wanted.start));
    }

    fn give(&mut self, y: usize, needed: Range<usize>, out: &mut Vec<f32>) {
        self.samples.clear();
        self.held.give(y, &needed, &mut self.samples);
        out.extend(self.samples.iter().map(|&sample| P::value(sample)));
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.held.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        frames::Frames,
        resample::{Crop, common_upscale},
    };

    const METHODS: [&str; 6] = ["nearest-exact", "bilinear", "bicubic", "area", "bislerp", "lanczos"];

    fn samples(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i as f32 * 1.3).sin() * 0.6 + 0.5).clamp(0.0, 1.0)).collect()
    }

    /// Resizes by rows, `at_once` of them a push.
    fn streamed(resampler: &mut RowResampler, input: &[f32], at_once: usize) -> Vec<f32> {
        let mut out = Vec::new();
        let mut take = |row: &[f32]| {
            out.extend_from_slice(row);
            Ok::<(), Infallible>(())
        };
        let Ok(()) = input.chunks(at_once * resampler.stride).try_for_each(|rows| resampler.push(rows, &mut take));
        out
    }

    proptest! {
        #[test]
        fn rows_are_those_of_the_whole_picture(
            from in (1..24u32, 1..40u32), to in (1..24u32, 1..40u32), channels in 3..5usize, at_once in 1..9usize,
            method in prop::sample::select(METHODS.to_vec()),
        ) {
            let (from, to) = (Size::new(from.0, from.1), Size::new(to.0, to.1));
            let method: ScaleMethod = method.parse().unwrap();
            let input = samples(from.pixels() as usize * channels);
            let frames = Frames::new(1, from, channels, input.clone()).unwrap();
            let whole = common_upscale(&frames, to, method, Crop::Disabled).unwrap();
            let mut resampler = RowResampler::new(method, from, to, channels, Sample::U8).unwrap();
            prop_assert_eq!(whole.data, streamed(&mut resampler, &input, at_once));
            prop_assert!(resampler.finish().is_ok());
        }

        #[test]
        fn lanczos_of_finer_samples_is_that_of_the_whole_picture_too(
            from in (1..24u32, 1..40u32), to in (1..24u32, 1..40u32), channels in prop::sample::select(vec![1usize, 3, 4]),
        ) {
            let (from, to) = (Size::new(from.0, from.1), Size::new(to.0, to.1));
            let input = samples(from.pixels() as usize * channels);
            let resampler = |depth| RowResampler::new(ScaleMethod::Lanczos, from, to, channels, depth).unwrap();
            let words: Vec<u16> = input.iter().map(|&x| Level::quantise(x)).collect();
            let whole = LevelResizer::<u16>::new(Filter::Lanczos, from, to, channels).unwrap().picture(&words);
            let whole: Vec<f32> = whole.into_iter().map(Level::dequantise).collect();
            prop_assert_eq!(whole, streamed(&mut resampler(Sample::U16), &input, 1));
            let whole = LevelResizer::<f32>::new(Filter::Lanczos, from, to, channels).unwrap().picture(&input);
            prop_assert_eq!(whole, streamed(&mut resampler(Sample::F32), &input, 1));
        }
    }

    #[test]
    fn finer_samples_agree_with_bytes_as_far_as_bytes_go() {
        let (from, to) = (Size::new(37, 29), Size::new(50, 17));
        let input: Vec<f32> = samples(37 * 29 * 3).iter().map(|&x| u8::quantise(x).dequantise()).collect();
        let by = |depth| streamed(&mut RowResampler::new(ScaleMethod::Lanczos, from, to, 3, depth).unwrap(), &input, 3);
        let worst = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (bytes, words, floats) = (by(Sample::U8), by(Sample::U16), by(Sample::F32));
        assert!(worst(&bytes, &floats) < 2.0 / 255.0, "{}", worst(&bytes, &floats));
        assert!(worst(&words, &floats) < 2.0 / 65_535.0, "{}", worst(&words, &floats));
        // More than 8 bits come out of 16-bit samples.
        assert!(words.iter().any(|&x| (x * 255.0 - (x * 255.0).round()).abs() > 0.2));
    }

    #[test]
    fn only_the_rows_of_one_kernel_are_held() {
        let (from, to) = (Size::new(5, 4000), Size::new(9, 9001));
        for (method, most) in METHODS.into_iter().zip([1, 2, 4, 2, 2, 7]) {
            let mut resampler = RowResampler::new(method.parse().unwrap(), from, to, 3, Sample::U8).unwrap();
            for _ in 0..from.height {
                resampler.push::<Infallible>(&[0.5; 15], &mut |_| Ok(())).unwrap();
                assert!(resampler.passes.held() <= most, "{method} holds {} rows", resampler.passes.held());
            }
        }
    }

    #[test]
    fn a_panorama_and_a_single_pixel_are_resized() {
        let flat = |from: Size, to: Size, method: &str, depth| {
            let mut resampler = RowResampler::new(method.parse().unwrap(), from, to, 3, depth).unwrap();
            let out = streamed(&mut resampler, &vec![0.25; from.pixels() as usize * 3], 5);
            assert_eq!(out.len() as u64, to.pixels() * 3, "{method} {from} to {to}");
            assert!(out.iter().all(|x| (x - 0.25).abs() < 1.5 / 255.0), "{method} {from} to {to}");
            resampler.finish().unwrap();
        };
        for method in METHODS {
            for depth in [Sample::U8, Sample::U16, Sample::F32] {
                flat(Size::new(30_000, 16), Size::new(45_000, 24), method, depth);
                flat(Size::new(30_000, 16), Size::new(1, 1), method, depth);
                flat(Size::new(1, 1), Size::new(1, 1), method, depth);
                flat(Size::new(1, 1), Size::new(7, 300), method, depth);
                flat(Size::new(1, 300), Size::new(2, 7), method, depth);
            }
        }
    }

    #[test]
    fn missing_rows_sizes_without_pixels_and_two_channels_are_refused() {
        let size = Size::new(2, 3);
        let mut short = RowResampler::new(ScaleMethod::Lanczos, size, size, 3, Sample::U8).unwrap();
        short.push::<Infallible>(&[0.0; 12], &mut |_| Ok(())).unwrap();
        assert_eq!(short.finish().unwrap_err().to_string(), "resampling takes 3 rows, but 2 came");
        assert!(RowResampler::new(ScaleMethod::Lanczos, size, Size::new(0, 1), 3, Sample::U8).is_err());
        assert!(RowResampler::new(ScaleMethod::Lanczos, size, size, 2, Sample::U16).is_err());
    }

    #[test]
    fn an_error_of_the_taker_comes_back() {
        let size = Size::new(2, 3);
        let mut resampler = RowResampler::new("area".parse().unwrap(), size, size, 1, Sample::U8).unwrap();
        assert_eq!(resampler.push(&[0.0; 6], &mut |_| Err("the disk is full")), Err("the disk is full"));
    }
}

//! A raster: the decoded picture as it lies in the store, cut so that a window of it is cheap to read.
//!
//! A raster is bands of [`BLOCK`] rows. Inside a band, blocks of [`BLOCK`] columns lie one after the other, each in the
//! native layout (row by row, channels interleaved, little-endian). The last block of a band and the last band are
//! narrower where the picture ends. So a window touches one contiguous range of bytes in each band that it crosses.
//!
//! What is fully transparent is given the colour of what is visible beside it ([`underpaint`](crate::underpaint)), so
//! that no window shows a network a colour that nobody sees.
//!
//! ```
//! use imaging::picture::{Color, Sample};
//! use imaging::raster::{Band, BandWriter, RasterInfo, Window};
//!
//! let raster = RasterInfo::new(300, 200, Color::Grey, Sample::U8);
//! let mut bands: Vec<Vec<u8>> = Vec::new();
//! let mut writer = BandWriter::new(raster);
//! writer.push(&vec![51; 300 * 200], |band: Band| { bands.push(band.bytes); Ok::<(), std::io::Error>(()) })?;
//!
//! let window = Window { x: 120, y: 100, width: 16, height: 60 };
//! let ranges = raster.band_ranges(window);
//! let parts: Vec<&[u8]> = ranges.iter().map(|r| &bands[r.band as usize][r.start as usize..r.end as usize]).collect();
//! let cut = raster.cut(window, &parts)?;
//! assert_eq!(cut.rgb.len(), 16 * 60 * 3);
//! assert_eq!(cut.rgb[0], 0.2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use serde::{Deserialize, Serialize};

use crate::picture::{Color, PictureInfo, Sample};
use crate::underpaint::Underpainter;

/// The rows of a band and the columns of a block.
pub const BLOCK: u32 = 128;

/// The shape of a raster: everything needed to find a pixel in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RasterInfo {
    /// The width in pixels; at least 1.
    pub width: u32,
    /// The height in pixels; at least 1.
    pub height: u32,
    /// The channels of a pixel.
    pub color: Color,
    /// The kind of sample.
    pub sample: Sample,
    /// The rows of a band and the columns of a block; at least 1.
    pub block: u32,
    /// The number of bands.
    pub bands: u32,
}

/// A rectangle of pixels inside a raster; neither side is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The left edge.
    pub x: u32,
    /// The upper edge.
    pub y: u32,
    /// The width.
    pub width: u32,
    /// The height.
    pub height: u32,
}

/// A finished band.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Band {
    /// Which band, from the top, from 0.
    pub index: u32,
    /// Its bytes: [`RasterInfo::band_len`] of them.
    pub bytes: Vec<u8>,
}

/// The bytes of one band that a window needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandRange {
    /// Which band, from the top, from 0.
    pub band: u32,
    /// The first byte.
    pub start: u64,
    /// The byte after the last one.
    pub end: u64,
}

/// The pixels of a window as the networks take them.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// Red, green, blue, `[y][x][3]`, 0 to 1. Grey is given three times.
    pub rgb: Vec<f32>,
    /// Alpha, `[y][x]`, 0 to 1, if the raster has it.
    pub alpha: Option<Vec<f32>>,
}

/// Why bytes and a raster do not belong together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RasterError {
    /// The window reaches over the edge, or has no pixels.
    #[error("window {}x{}+{}+{} does not lie inside the {width}x{height} raster", window.width, window.height, window.x, window.y)]
    Outside {
        /// The window.
        window: Window,
        /// The raster's width.
        width: u32,
        /// The raster's height.
        height: u32,
    },
    /// Another number of band parts than the window crosses bands.
    #[error("the window crosses {expected} bands, but {found} parts were given")]
    Parts {
        /// The bands crossed.
        expected: usize,
        /// The parts given.
        found: usize,
    },
    /// A band part of the wrong length.
    #[error("the part of band {band} is {found} bytes long instead of {expected}")]
    PartLength {
        /// Which band.
        band: u32,
        /// What [`RasterInfo::band_ranges`] says.
        expected: u64,
        /// What was given.
        found: u64,
    },
}

impl RasterInfo {
    /// The raster of a picture of this size, in blocks of [`BLOCK`].
    ///
    /// # Panics
    /// Where a side is 0: no picture that was decoded has one.
    pub fn new(width: u32, height: u32, color: Color, sample: Sample) -> Self {
        assert!(width > 0 && height > 0, "a raster has pixels");
        Self { width, height, color, sample, block: BLOCK, bands: height.div_ceil(BLOCK) }
    }

    /// The raster of a decoded picture.
    pub fn of(picture: &PictureInfo) -> Self {
        Self::new(picture.width, picture.height, picture.color, picture.sample)
    }

    /// The bytes of one pixel.
    pub const fn pixel_bytes(&self) -> usize {
        self.color.channels() * self.sample.bytes()
    }

    /// The bytes of all bands together.
    pub const fn total_bytes(&self) -> u64 {
        self.width as u64 * self.height as u64 * self.pixel_bytes() as u64
    }

    /// The rows of band `index`: `block`, or fewer in the last band.
    pub const fn band_rows(&self, index: u32) -> u32 {
        let left = self.height - index * self.block;
        if left < self.block { left } else { self.block }
    }

    /// The length in bytes of band `index`.
    pub const fn band_len(&self, index: u32) -> u64 {
        self.band_rows(index) as u64 * self.width as u64 * self.pixel_bytes() as u64
    }

    /// The byte range of every band that `window` crosses, from the top.
    ///
    /// Empty for a window that [`Self::cut`] would refuse.
    pub fn band_ranges(&self, window: Window) -> Vec<BandRange> {
        if self.check(window).is_err() {
            return Vec::new();
        }
        let (first, last) = (window.y / self.block, (window.y + window.height - 1) / self.block);
        let (left, right) = self.columns(window);
        let part = |band| {
            let column_bytes = u64::from(self.band_rows(band)) * self.pixel_bytes() as u64;
            BandRange { band, start: u64::from(left) * column_bytes, end: u64::from(right) * column_bytes }
        };
        (first..=last).map(part).collect()
    }

    /// Cuts `window` out of the bytes that [`Self::band_ranges`] names, given in the same order.
    ///
    /// 8-bit samples become `k / 255`, 16-bit samples `k / 65535`, in f32.
    pub fn cut(&self, window: Window, parts: &[impl AsRef<[u8]>]) -> Result<Cut, RasterError> {
        self.check(window)?;
        let ranges = self.band_ranges(window);
        if ranges.len() != parts.len() {
            return Err(RasterError::Parts { expected: ranges.len(), found: parts.len() });
        }
        let pixels = window.width as usize * window.height as usize;
        let mut cut = Cut {
            rgb: Vec::with_capacity(pixels * 3),
            alpha: self.color.has_alpha().then(|| Vec::with_capacity(pixels)),
        };
        for (range, part) in ranges.iter().zip(parts) {
            let (part, expected) = (part.as_ref(), range.end - range.start);
            if part.len() as u64 != expected {
                return Err(RasterError::PartLength { band: range.band, expected, found: part.len() as u64 });
            }
            self.cut_band(window, range.band, part, &mut cut);
        }
        Ok(cut)
    }

    /// Appends the rows of `window` that lie in `band`; `part` begins with the first block that the window touches.
    fn cut_band(&self, window: Window, band: u32, part: &[u8], cut: &mut Cut) {
        let (rows, top) = (self.band_rows(band), band * self.block);
        let (left, _) = self.columns(window);
        let pixel = self.pixel_bytes();
        let below = (window.y + window.height).min(top + rows);
        for y in window.y.max(top) - top..below - top {
            let mut x = window.x;
            while x < window.x + window.width {
                let block_x = x - x % self.block;
                let block_width = self.block.min(self.width - block_x);
                let end = (block_x + block_width).min(window.x + window.width);
                let block_start = (block_x - left) as usize * rows as usize * pixel;
                let row_start = block_start + y as usize * block_width as usize * pixel;
                let from = row_start + (x - block_x) as usize * pixel;
                append(&part[from..from + (end - x) as usize * pixel], self.color, self.sample, cut);
                x = end;
            }
        }
    }

    /// The columns of whole blocks that `window` touches: the first, and the one after the last.
    fn columns(&self, window: Window) -> (u32, u32) {
        let last = window.x + window.width - 1;
        (window.x - window.x % self.block, (last - last % self.block).saturating_add(self.block).min(self.width))
    }

    fn check(&self, window: Window) -> Result<(), RasterError> {
        let inside =
            |from: u32, length: u32, side: u32| length > 0 && from.checked_add(length).is_some_and(|end| end <= side);
        if inside(window.x, window.width, self.width) && inside(window.y, window.height, self.height) {
            Ok(())
        } else {
            Err(RasterError::Outside { window, width: self.width, height: self.height })
        }
    }
}

/// Appends a run of pixels as floats.
fn append(pixels: &[u8], color: Color, sample: Sample, cut: &mut Cut) {
    match sample {
        Sample::U8 => spread(pixels.iter().map(|&k| f32::from(k) / 255.0), color, cut),
        Sample::U16 => {
            let words = pixels.as_chunks::<2>().0.iter();
            spread(words.map(|&k| f32::from(u16::from_le_bytes(k)) / 65535.0), color, cut);
        }
        Sample::F32 => spread(pixels.as_chunks::<4>().0.iter().map(|&k| f32::from_le_bytes(k)), color, cut),
    }
}

/// Spreads interleaved samples over colour and alpha.
fn spread(mut samples: impl Iterator<Item = f32>, color: Color, cut: &mut Cut) {
    while let Some(first) = samples.next() {
        let mut next = || samples.next().expect("a row holds whole pixels");
        let rgb = if color.is_grey() { [first; 3] } else { [first, next(), next()] };
        cut.rgb.extend_from_slice(&rgb);
        if let Some(alpha) = &mut cut.alpha {
            alpha.push(next());
        }
    }
}

/// Turns rows that come from the top into bands.
#[derive(Debug)]
pub struct BandWriter {
    /// Where the picture has alpha.
    painter: Option<Underpainter>,
    cutter: BandCutter,
}

impl BandWriter {
    /// A writer that waits for the first row.
    pub fn new(raster: RasterInfo) -> Self {
        let RasterInfo { width, height, color, sample, .. } = raster;
        let cutter = BandCutter { raster, y: 0, band: Vec::new() };
        Self { painter: Underpainter::new(width, height, color, sample), cutter }
    }

    /// Takes whole rows in the native layout, and hands every band that they complete to `finished`.
    ///
    /// # Panics
    /// Where `rows` is no whole number of rows, or more of them than the raster has: the caller mixed up two pictures.
    pub fn push<E>(&mut self, rows: &[u8], mut finished: impl FnMut(Band) -> Result<(), E>) -> Result<(), E> {
        match &mut self.painter {
            Some(painter) => painter.push(rows, &mut |rows| self.cutter.push(rows, &mut finished)),
            None => self.cutter.push(rows, &mut finished),
        }
    }

    /// Whether every row has come, and so every band was handed out.
    pub fn is_complete(&self) -> bool {
        self.cutter.y == self.cutter.raster.height
    }
}

/// Cuts rows into the blocks of a band.
#[derive(Debug)]
struct BandCutter {
    raster: RasterInfo,
    /// The next row of the picture.
    y: u32,
    /// The band in the making; empty between bands.
    band: Vec<u8>,
}

impl BandCutter {
    fn push<E>(&mut self, rows: &[u8], finished: &mut dyn FnMut(Band) -> Result<(), E>) -> Result<(), E> {
        let raster = self.raster;
        let row_bytes = raster.width as usize * raster.pixel_bytes();
        assert!(rows.len().is_multiple_of(row_bytes), "rows of {row_bytes} bytes, given {} bytes", rows.len());
        for row in rows.chunks_exact(row_bytes) {
            assert!(self.y < raster.height, "a raster of {} rows was given more", raster.height);
            let index = self.y / raster.block;
            let band_rows = raster.band_rows(index) as usize;
            if self.band.is_empty() {
                self.band = vec![0; band_rows * row_bytes];
            }
            let y = (self.y % raster.block) as usize;
            let block_bytes = raster.block as usize * raster.pixel_bytes();
            for (i, run) in row.chunks(block_bytes).enumerate() {
                let at = i * block_bytes * band_rows + y * run.len();
                self.band[at..at + run.len()].copy_from_slice(run);
            }
            self.y += 1;
            if y + 1 == band_rows {
                finished(Band { index, bytes: std::mem::take(&mut self.band) })?;
            }
        }
        Ok(())
    }
}

//! Windows of a picture under work: the base's own pixels, and the layers over them (reference: pixels.md, sections 9, 10).
//!
//! A picture under work is never held whole. Whoever wants a region of it, a worker for its crop or the coordinator for a
//! band of rows, is told which pieces of the store it is made of, reads them as it likes, and hands over their bytes.
//! The pixels are those of the whole picture, byte for byte.
//!
//! ```
//! use domain::{digest::Digest, region::{Region, Size}, task::Base};
//! use imaging::{base::BaseWindow, picture::{Color, Sample}, raster::RasterInfo};
//!
//! let base = Base { picture: Digest::of(b"file"), decode: 2, size: Size::new(200, 100), enlarged: None };
//! let raster = RasterInfo::new(200, 100, Color::Grey, Sample::U8);
//! let window = BaseWindow::new(&base, &raster, Region::new(20, 10, 8, 6))?;
//! // One block of one band of the decoded picture.
//! assert_eq!(window.pieces().iter().map(|piece| piece.range.end).collect::<Vec<_>>(), [128 * 100]);
//! assert_eq!(window.compose(&[vec![255; 128 * 100]])?.data, [1.0; 8 * 6 * 3]);
//! # Ok::<(), imaging::frames::PixelError>(())
//! ```

mod layer;

use std::ops::Range;

use domain::{
    digest::Digest,
    layout,
    region::{Region, Size},
    task::{Base, Enlarged, ResultKey, Tiles},
    tiles::TileGrid,
};

use crate::{
    bytes::{dequantise, from_le, quantise},
    frames::{Frames, PixelError},
    raster::{RasterInfo, Window},
    resample::window::WindowResizer,
    tiled::{TileRows, blend_window},
};

pub use layer::{Crop, LayerMask, LayerWindow};

/// Bytes that must be read from the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Piece {
    /// Of what.
    pub of: Origin,
    /// Which bytes of it.
    pub range: Range<u64>,
}

/// An object of the store that pixels come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A band of a decoded picture.
    Band {
        /// The picture file.
        picture: Digest,
        /// Which band.
        index: u32,
    },
    /// What a task made.
    Result(ResultKey),
    /// What somebody uploaded.
    Artifact(Digest),
}

impl Origin {
    /// Where it lies in the store.
    pub fn key(&self) -> String {
        match self {
            Self::Band { picture, index } => layout::raster_band(*picture, *index),
            Self::Result(key) => key.path(),
            Self::Artifact(digest) => layout::artifact(*digest),
        }
    }
}

impl Piece {
    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Its bytes as `f32` samples. One that is infinite or not a number is refused.
    pub fn samples(&self, bytes: &[u8]) -> Result<Vec<f32>, PixelError> {
        let samples = from_le(bytes);
        match samples.iter().find(|sample| !sample.is_finite()) {
            Some(&sample) => Err(PixelError::NotFinite { key: self.of.key(), sample }),
            None => Ok(samples),
        }
    }
}

/// Refuses bytes that are not those of `pieces`, in their order.
fn check_bytes(pieces: &[Piece], bytes: &[impl AsRef<[u8]>]) -> Result<(), PixelError> {
    if pieces.len() != bytes.len() {
        return Err(PixelError::Pieces { want: pieces.len(), got: bytes.len() });
    }
    let mut pairs = pieces.iter().zip(bytes);
    match pairs.find(|(piece, bytes)| piece.len() != bytes.as_ref().len() as u64) {
        Some((piece, bytes)) => {
            let (want, got) = (piece.len(), bytes.as_ref().len() as u64);
            Err(PixelError::PieceLength { key: piece.of.key(), want, got })
        }
        None => Ok(()),
    }
}

/// A region of a base: what it is made of, and how.
#[derive(Debug, Clone)]
pub struct BaseWindow {
    region: Region,
    /// The pixels that it is made of, of what is resampled.
    source: Region,
    parts: Parts,
    /// How the source becomes the base, where it does not equal it: sizes in turn.
    enlarged: Option<(Enlarged, Vec<Size>)>,
    pieces: Vec<Piece>,
}

/// What the source's pixels are made of.
#[derive(Debug, Clone)]
enum Parts {
    /// A decoded picture.
    Raster(RasterInfo),
    /// Tiles: their rows, in the order of the pieces.
    Tiles(TileGrid, Vec<TileRows>),
}

impl BaseWindow {
    /// Finds out what the pixels of `region` are made of; `raster` is the shape of the decoded picture.
    pub fn new(base: &Base, raster: &RasterInfo, region: Region) -> Result<Self, PixelError> {
        let size = Size::new(raster.width, raster.height);
        if size != base.size {
            return Err(PixelError::SizeMismatch { operation: "a decoded picture", want: base.size, got: size });
        }
        if !region.is_within(base.size()) {
            return Err(PixelError::PastTheEnd { tile: region, picture: base.size() });
        }
        let source = base.window(region);
        let (parts, pieces) = match base.enlarged.as_ref().and_then(|enlarged| enlarged.tiles) {
            Some(tiles) => tile_pieces(base.size, &tiles, source)?,
            None => (Parts::Raster(*raster), raster_pieces(base.picture, raster, source)),
        };
        let enlarged = base.enlarged.clone().map(|enlarged| {
            let between = enlarged.to.scaled(8).filter(|_| enlarged.supersample);
            let sizes = [Some(base.source_size()), between, Some(enlarged.to)];
            (enlarged, sizes.into_iter().flatten().collect())
        });
        Ok(Self { region, source, parts, enlarged, pieces })
    }

    /// The region of the base.
    pub fn region(&self) -> Region {
        self.region
    }

    /// What must be read, in the order in which [`BaseWindow::compose`] takes it.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How much the samples take up that are held while it is composed, in bytes, without what is read.
    pub fn working_bytes(&self) -> u64 {
        (self.region.size().pixels() + self.source.size().pixels()) * 3 * size_of::<f32>() as u64
    }

    /// Makes the RGB pixels of the region out of the bytes of its pieces.
    pub fn compose(&self, bytes: &[impl AsRef<[u8]>]) -> Result<Frames, PixelError> {
        check_bytes(&self.pieces, bytes)?;
        let (region, source) = (self.region, self.source);
        let pixels = match &self.parts {
            Parts::Raster(raster) => raster.cut(window(source), bytes)?.rgb,
            Parts::Tiles(grid, rows) => {
                let tiles = rows.iter().copied().zip(&self.pieces).zip(bytes);
                let tiles = tiles.map(|((rows, piece), bytes)| Ok((rows, piece.samples(bytes.as_ref())?)));
                blend_window(grid, source, tiles)?
            }
        };
        let pixels = match &self.enlarged {
            None => pixels,
            Some((Enlarged { resampling_method, .. }, sizes)) => {
                let resizer = WindowResizer::new((*resampling_method).into(), sizes, 3, region)?;
                dequantise(&resizer.window(&quantise(&pixels), source))
            }
        };
        Frames::new(1, region.size(), 3, pixels)
    }
}

/// The pieces of a decoded picture that hold `source`.
fn raster_pieces(picture: Digest, raster: &RasterInfo, source: Region) -> Vec<Piece> {
    let ranges = raster.band_ranges(window(source)).into_iter();
    ranges.map(|part| Piece { of: Origin::Band { picture, index: part.band }, range: part.start..part.end }).collect()
}

/// The rows of tiles that hold `source`, a region of what the tiles make of a picture of `size`.
fn tile_pieces(size: Size, tiles: &Tiles, source: Region) -> Result<(Parts, Vec<Piece>), PixelError> {
    let grid = TileGrid::new(size, tiles.tiling, tiles.scale)?;
    let touching = grid.touching(source).map(|index| grid.tile(index));
    let rows: Vec<_> = touching.filter_map(|tile| TileRows::touching(tile, source.y..source.bottom())).collect();
    let piece = |rows: &TileRows| Piece {
        of: Origin::Result(ResultKey::new(tiles.context, rows.tile.input)),
        range: rows.bytes(),
    };
    let pieces = rows.iter().map(piece).collect();
    Ok((Parts::Tiles(grid, rows), pieces))
}

fn window(Region { x, y, width, height }: Region) -> Window {
    Window { x, y, width, height }
}

#[cfg(test)]
mod tests;

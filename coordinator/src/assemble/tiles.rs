//! The picture of a network's tiles: they are blended in the grid's order, then resampled where another size was asked
//! for. Only rows that a band needs are read.

use std::ops::Range;

use bytes::Bytes;
use domain::{
    digest::Digest,
    region::{Region, Size},
    resize::Resampling,
    task::{Encoding, ResultKey},
    tiles::{TileGrid, Tiling},
};
use imaging::{
    base::{Origin, Piece},
    bytes::from_le,
    raster::{RasterInfo, Window},
    tiled::{TileRows, blend_window},
};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use super::{
    AssembleError, Assembler, BAND_BYTES,
    file::{bands, hand_over, options},
    finish::Finisher,
};

/// What is to be put together, out of an assembling task.
pub(super) struct TiledPicture {
    pub picture: Digest,
    pub size: Size,
    pub tiling: Tiling,
    pub scale: u32,
    pub encoding: Encoding,
    pub resize: Option<Resampling>,
    /// The results of the tiles.
    pub tiles: Vec<ResultKey>,
}

impl TiledPicture {
    /// The size of the result.
    pub fn result(&self) -> Size {
        let Size { width, height } = self.size;
        self.resize.map_or(Size::new(width * self.scale, height * self.scale), |resize| resize.to)
    }
}

/// One band: its rows of the enlarged picture, the rows of each tile that touch it, and the rows of the picture's alpha
/// that become them.
struct Band {
    rows: Range<u32>,
    tiles: Vec<(TileRows, Bytes)>,
    alpha: Vec<f32>,
}

impl Assembler {
    /// Makes the file of a picture out of its tiles.
    pub(super) async fn tiled(&self, order: &TiledPicture) -> Result<NamedTempFile, AssembleError> {
        let grid = TileGrid::new(order.size, order.tiling, order.scale)?;
        let (record, result) = (self.raster(order.picture).await?, order.result());
        let (picture, size) = (order.picture, (result.width, result.height));
        let options = self.with_metadata(options(&order.encoding), picture, &record, size).await?;
        let Encoding { color, sample, .. } = order.encoding;
        let mut finisher = Finisher::new(order.size, grid.output(), order.resize, color, sample)?;
        let (bands, ready) = bands();
        let read = self.read_tiles(order, &grid, &record.raster, bands);
        let blended = grid.clone();
        let make = move |Band { rows, tiles, alpha }: Band| -> Result<_, AssembleError> {
            let window = Region::new(0, rows.start, blended.output().width, rows.end - rows.start);
            let tiles = tiles.into_iter().map(|(rows, bytes)| Ok((rows, from_le(&bytes))));
            Ok(finisher.take(blend_window(&blended, window, tiles)?, &alpha))
        };
        self.write(result, options, ready, make, read).await
    }

    /// Reads what each band needs, from the top.
    async fn read_tiles(
        &self,
        order: &TiledPicture,
        grid: &TileGrid,
        raster: &RasterInfo,
        bands: mpsc::Sender<Band>,
    ) -> Result<(), AssembleError> {
        let output = grid.output();
        let step = band_rows(output, order.result(), order.tiling);
        let mut top = 0;
        while top < output.height {
            let rows = top..(top.saturating_add(step)).min(output.height);
            let touching = grid.touching_rows(rows.clone()).filter_map(|index| {
                let rows = TileRows::touching(grid.tile(index), rows.clone())?;
                Some((rows, Piece { of: Origin::Result(order.tiles[index as usize]), range: rows.bytes() }))
            });
            let (tiles, pieces): (Vec<_>, Vec<_>) = touching.unzip();
            let tiles = tiles.into_iter().zip(self.read(&pieces).await?).collect();
            let alpha = match order.encoding.color.has_alpha() {
                // Of the picture's own rows, each comes once.
                true => {
                    let from = rows.start.div_ceil(order.scale)..rows.end.div_ceil(order.scale);
                    self.read_alpha(order.picture, raster, from).await?
                }
                false => Vec::new(),
            };
            top = rows.end;
            hand_over(&bands, Band { rows, tiles, alpha }).await?;
        }
        Ok(())
    }

    /// Reads rows of the input's alpha.
    async fn read_alpha(
        &self,
        picture: Digest,
        raster: &RasterInfo,
        rows: Range<u32>,
    ) -> Result<Vec<f32>, AssembleError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let window = Window { x: 0, y: rows.start, width: raster.width, height: rows.end - rows.start };
        let parts = raster.band_ranges(window).into_iter();
        let piece = |index, range| Piece { of: Origin::Band { picture, index }, range };
        let pieces: Vec<_> = parts.map(|part| piece(part.band, part.start..part.end)).collect();
        let parts = self.read(&pieces).await?;
        let cut = raster.cut(window, &parts).map_err(|_| AssembleError::MissingRaster(picture))?;
        cut.alpha.ok_or(AssembleError::MissingRaster(picture))
    }
}

/// Rows of the enlarged picture in a band: as many as [`BAND_BYTES`] allow, of these rows and of those of the result that
/// they become, at least one.
fn band_rows(enlarged: Size, result: Size, tiling: Tiling) -> u32 {
    // 12 bytes a pixel for every tile that it lies in; blending and encoding take about as much again.
    let density = u64::from(tiling.side.div_ceil(tiling.side - tiling.overlap)).pow(2);
    let resized = u64::from(result.width) * u64::from(result.height.div_ceil(enlarged.height));
    let rows = BAND_BYTES / (12 * resized.max(u64::from(enlarged.width) * density));
    u32::try_from(rows.clamp(1, 1024)).expect("at most 1024")
}

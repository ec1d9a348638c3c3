//! Pictures whose pixels lie in the store as they are: results of workers, what somebody brought, crops of a base.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use domain::{
    picture::{Color, Format, Sample},
    region::{Region, Size},
    task::Base,
};
use imaging::{
    base::{BaseWindow, Origin, Piece},
    bytes::are_bytes,
    encode::EncodeOptions,
    pack::pack,
    raster::RasterInfo,
};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use super::{
    AssembleError, Assembler, BAND_BYTES,
    file::{bands, hand_over},
};

/// Where the RGB pixels of an image lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Image {
    /// Rows of `f32`, from byte `start` of an object on.
    Rows { of: Origin, start: u64, size: Size },
    /// A region of the base.
    Base(Region),
}

/// A band of an image.
enum Band {
    Rows(Piece, Bytes),
    Base(BaseWindow, Vec<Bytes>),
}

impl Image {
    pub fn size(&self) -> Size {
        match self {
            Self::Rows { size, .. } => *size,
            Self::Base(region) => region.size(),
        }
    }
}

impl Band {
    fn samples(self) -> Result<Vec<f32>, AssembleError> {
        Ok(match self {
            Self::Rows(piece, bytes) => piece.samples(&bytes)?,
            Self::Base(window, bytes) => window.compose(&bytes)?.data,
        })
    }
}

impl Assembler {
    /// Makes the file of an image; `base` is what regions of it are cut from.
    pub(super) async fn image(
        &self,
        image: Image,
        base: Option<(&Base, &RasterInfo)>,
        options: EncodeOptions,
    ) -> Result<NamedTempFile, AssembleError> {
        let (color, sample) = (options.color, options.sample);
        let make = move |band: Band| -> Result<_, AssembleError> { Ok(pack(&band.samples()?, None, color, sample)) };
        let (bands, ready) = bands();
        let read = self.read_image(image, base, bands);
        self.write(image.size(), options, ready, make, read).await
    }

    /// Makes the PNG of an image, of 8 bits where these are all that it has, else of 16.
    pub(super) async fn png(
        &self,
        image: Image,
        base: Option<(&Base, &RasterInfo)>,
    ) -> Result<NamedTempFile, AssembleError> {
        let is_finer = Arc::new(AtomicBool::new(false));
        let finer = Arc::clone(&is_finer);
        let make = move |band: Band| {
            let samples = band.samples()?;
            if !are_bytes(&samples) {
                finer.store(true, Ordering::Relaxed);
                return Err(AssembleError::Internal("the image has more than 8 bits"));
            }
            Ok(pack(&samples, None, Color::Rgb, Sample::U8))
        };
        let (bands, ready) = bands();
        let read = self.read_image(image, base, bands);
        let options = EncodeOptions::new(Format::Png, Color::Rgb, Sample::U8);
        match self.write(image.size(), options, ready, make, read).await {
            Err(_) if is_finer.load(Ordering::Relaxed) => {
                self.image(image, base, EncodeOptions::new(Format::Png, Color::Rgb, Sample::U16)).await
            }
            outcome => outcome,
        }
    }

    /// Reads an image band by band.
    async fn read_image(
        &self,
        image: Image,
        base: Option<(&Base, &RasterInfo)>,
        bands: mpsc::Sender<Band>,
    ) -> Result<(), AssembleError> {
        let Size { width, height } = image.size();
        let step = (BAND_BYTES / (12 * u64::from(width.max(1)))).clamp(1, 1024) as u32;
        let mut top = 0;
        while top < height {
            let rows = top..top.saturating_add(step).min(height);
            top = rows.end;
            hand_over(&bands, self.read_rows(image, base, rows).await?).await?;
        }
        Ok(())
    }

    async fn read_rows(
        &self,
        image: Image,
        base: Option<(&Base, &RasterInfo)>,
        rows: Range<u32>,
    ) -> Result<Band, AssembleError> {
        match (image, base) {
            (Image::Rows { of, start, size }, _) => {
                let row = 12 * u64::from(size.width);
                let range = start + u64::from(rows.start) * row..start + u64::from(rows.end) * row;
                let piece = Piece { of, range };
                let bytes = self.read(std::slice::from_ref(&piece)).await?;
                let bytes = bytes.into_iter().next().ok_or(AssembleError::Internal("a piece has bytes"))?;
                Ok(Band::Rows(piece, bytes))
            }
            (Image::Base(region), Some((base, raster))) => {
                let region = Region { y: region.y + rows.start, height: rows.end - rows.start, ..region };
                let window = BaseWindow::new(base, raster, region)?;
                let bytes = self.read(window.pieces()).await?;
                Ok(Band::Base(window, bytes))
            }
            (Image::Base(_), None) => Err(AssembleError::Internal("there is no base to cut from")),
        }
    }
}

//! Results in, picture out: blends tiles, resamples, and encodes, in row bands of bounded memory.
//!
//! Three stages run side by side: the rows of the next band are read from the store while this one is blended, and
//! the one before is encoded. Only rows that a band needs are read, so memory does not grow with the picture (JPEG and
//! WebP encoders hold the whole picture all the same). The file is made in the scratch folder and then stored under
//! its digest, so that a crash leaves nothing half-written in the store.

mod finish;

use std::{io, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use domain::{
    digest::Digest,
    job::{Artifact, Job, JobOutput, OutputFormat},
    layout,
    picture::{Color, Format, Sample},
    plan::{Plan, Task},
    region::Size,
    resize::Resampling,
    task::{Context, ResultKey},
    tiles::{BadTiling, Tile, TileGrid, Tiling},
};
use futures::{StreamExt as _, TryStreamExt as _};
use imaging::{
    encode::{EncodeError, EncodeOptions, Encoder},
    frames::PixelError,
    picture::Limits,
    raster::{RasterInfo, Window},
    tiled::{BandBlender, Placement},
};
use store::{Key, Store, StoreError};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    intake::RasterRecord,
    records::{get_json, put_json},
};
use finish::Finisher;

/// Bytes that the tiles' rows of one band may take; three bands are in memory at once.
const BAND_BYTES: u64 = 12 << 20;

/// How many reads from the store are under way at once.
const CONCURRENT_READS: usize = 8;

/// Why a picture could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// Results vanished from the store: they must be rendered again.
    #[error("{} results are missing from the store", .0.len())]
    Missing(Vec<ResultKey>),
    /// The job was cancelled.
    #[error("the job was cancelled")]
    Cancelled,
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The decoded picture is not where intake put it.
    #[error(
        "the decoded picture {0} is missing from the store: retry the job, or upload the picture and submit it again"
    )]
    MissingRaster(Digest),
    /// The picture cannot be encoded.
    #[error("the picture cannot be encoded")]
    Encode(#[from] EncodeError),
    /// The scratch folder failed.
    #[error("the scratch folder {} failed", folder.display())]
    Scratch {
        /// The folder.
        folder: PathBuf,
        /// Why; a full disk, for one.
        source: io::Error,
    },
    /// Tiles that do not make a picture.
    #[error("the tiles do not make up the picture")]
    Pixels(#[from] PixelError),
    /// A tiling that could not have been planned.
    #[error("the tiles cannot be laid")]
    Tiling(#[from] BadTiling),
    /// A result has another size than its task asks for.
    #[error("result {key} has other than the {expected} bytes of its rows")]
    WrongSize {
        /// Which.
        key: ResultKey,
        /// How many there should be.
        expected: u64,
    },
    /// A fault of ours.
    #[error("{0}")]
    Internal(&'static str),
}

impl AssembleError {
    /// Whether the same attempt may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Missing(_)
            | Self::Cancelled
            | Self::MissingRaster(_)
            | Self::Encode(_)
            | Self::Scratch { .. }
            | Self::Pixels(_)
            | Self::Tiling(_)
            | Self::WrongSize { .. }
            | Self::Internal(_) => false,
        }
    }
}

/// Puts pictures together.
#[derive(Debug, Clone)]
pub struct Assembler {
    /// Where results lie and pictures go.
    pub store: Arc<dyn Store>,
    /// Where files are made.
    pub scratch: PathBuf,
    /// What encoders that hold a picture whole may take.
    pub limits: Limits,
}

/// What is to be put together, out of an assembling task.
struct Order {
    picture: Digest,
    size: Size,
    tiling: Tiling,
    scale: u32,
    format: Format,
    color: Color,
    sample: Sample,
    quality: u8,
    resize: Option<Resampling>,
}

impl Order {
    /// The size of the result.
    fn result(&self, enlarged: Size) -> Size {
        self.resize.map_or(enlarged, |resize| resize.to)
    }
}

/// One band: its rows of the enlarged picture, the rows of each tile that touch it, and the rows of the picture's alpha
/// that become them.
struct BandInput {
    rows: Range<u32>,
    tiles: Vec<(Tile, u32, Bytes)>,
    alpha: Vec<f32>,
}

impl Assembler {
    /// Puts together the picture of an assembling task, and stores it and its record.
    pub async fn assemble(
        &self,
        job: &Job,
        plan: &Plan,
        task: &Task,
        cancelled: &CancellationToken,
    ) -> Result<JobOutput, AssembleError> {
        let planned = plan.context_of(task);
        let Context::Assemble { picture, size, tiling, scale, format, color, sample, quality, resize, .. } =
            planned.context
        else {
            return Err(AssembleError::Internal("the task assembles nothing"));
        };
        let order = Order { picture, size, tiling, scale, format, color, sample, quality, resize };
        let tiles: Vec<ResultKey> = task.needs.iter().map(|need| plan.key_of(&plan.tasks()[need as usize])).collect();

        let file = tokio::select! {
            file = self.encode(&order, &tiles) => file?,
            () = cancelled.cancelled() => return Err(AssembleError::Cancelled),
        };
        let (digest, size_bytes) = store::put_digested(&*self.store, "artifacts", file.path()).await?;
        let digest: Digest = digest.parse().map_err(|_| AssembleError::Internal("a digest is not well formed"))?;
        let output = JobOutput {
            name: job.kind.picture_name(planned.picture).to_owned(),
            artifact: Artifact { key: layout::artifact(digest), digest, size_bytes },
            format: OutputFormat::Picture(format),
            size: order.result(Size::new(size.width * scale, size.height * scale)),
        };
        put_json(&*self.store, &plan.key_of(task).path(), &output).await?;
        Ok(output)
    }

    /// Makes the file in the scratch folder.
    async fn encode(&self, order: &Order, tiles: &[ResultKey]) -> Result<NamedTempFile, AssembleError> {
        let scratch_failed = |source| AssembleError::Scratch { folder: self.scratch.clone(), source };
        let grid = TileGrid::new(order.size, order.tiling, order.scale)?;
        let record: RasterRecord = get_json(&*self.store, &layout::raster_info(order.picture))
            .await?
            .ok_or(AssembleError::MissingRaster(order.picture))?;
        let side = async |there: bool, key: String| match there {
            true => self.store.get(&Key::new(key)?).await.map(|bytes| Some(bytes.to_vec())),
            false => Ok(None),
        };
        let options = EncodeOptions {
            icc: side(record.has_icc, layout::raster_icc(order.picture)).await?,
            exif: side(record.has_exif, layout::raster_exif(order.picture)).await?,
            jpeg_quality: order.quality,
            ..EncodeOptions::new(order.format, order.color, order.sample)
        };
        let options = without_what_does_not_fit(options, order.result(grid.output()), &self.limits);
        let file = NamedTempFile::new_in(&self.scratch).map_err(scratch_failed)?;
        let handle = file.reopen().map_err(scratch_failed)?;

        // Capacity 1: one band waits, one is read, one is blended and encoded.
        let (bands, mut ready) = mpsc::channel::<BandInput>(1);
        let (limits, enlarged, whole) = (self.limits, grid.output(), grid.is_whole());
        let result = order.result(enlarged);
        let mut finisher = Finisher::new(order.size, enlarged, order.resize, order.color, order.sample)?;
        let span = tracing::Span::current();
        let encoding = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            let mut encoder = Encoder::new(handle, result.width, result.height, options, &limits)?;
            while let Some(band) = ready.blocking_recv() {
                let blended = blend(enlarged, whole, &band)?;
                encoder.write_rows(&finisher.take(blended, &band.alpha))?;
            }
            encoder.finish()?;
            Ok::<_, AssembleError>(())
        });
        let read = self.read_bands(order, &grid, tiles, &record.raster, bands).await;
        let encoded = encoding.await.map_err(|_| AssembleError::Internal("the encoder stopped"))?;
        // When reading failed the encoder only complains of missing rows; when encoding failed, reading was cut off.
        match (read, encoded) {
            (Err(AssembleError::Internal(_)), Err(error)) | (Err(error), _) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(())) => Ok(file),
        }
    }

    /// Reads what each band needs, from the top.
    async fn read_bands(
        &self,
        order: &Order,
        grid: &TileGrid,
        tiles: &[ResultKey],
        raster: &RasterInfo,
        bands: mpsc::Sender<BandInput>,
    ) -> Result<(), AssembleError> {
        let output = grid.output();
        let step = band_rows(output, order.result(output), order.tiling);
        let mut top = 0;
        while top < output.height {
            let rows = top..(top.saturating_add(step)).min(output.height);
            let touching = grid.touching_rows(rows.clone());
            let reads = touching.map(|index| self.read_tile(grid.tile(index), tiles[index as usize], rows.clone()));
            let reads: Vec<_> = futures::stream::iter(reads).buffered(CONCURRENT_READS).collect().await;
            let missing: Vec<_> = reads
                .iter()
                .filter_map(|read| if let Err(AssembleError::Missing(keys)) = read { Some(keys.clone()) } else { None })
                .flatten()
                .collect();
            if !missing.is_empty() {
                return Err(AssembleError::Missing(missing));
            }
            let tiles = reads.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
            let alpha = match order.color.has_alpha() {
                // Of the picture's own rows, each comes once.
                true => {
                    let from = rows.start.div_ceil(order.scale)..rows.end.div_ceil(order.scale);
                    self.read_alpha(order.picture, raster, from).await?
                }
                false => Vec::new(),
            };
            top = rows.end;
            if bands.send(BandInput { rows, tiles, alpha }).await.is_err() {
                return Err(AssembleError::Internal("the encoder stopped early"));
            }
        }
        Ok(())
    }

    /// Reads the rows of a tile that touch the output rows `rows`; `None` where none do.
    async fn read_tile(
        &self,
        tile: Tile,
        key: ResultKey,
        rows: Range<u32>,
    ) -> Result<Option<(Tile, u32, Bytes)>, AssembleError> {
        let region = tile.output;
        let (from, to) = (rows.start.max(region.y), rows.end.min(region.bottom()));
        if from >= to {
            return Ok(None);
        }
        let first = from - region.y;
        let row_bytes = u64::from(region.width) * 3 * 4;
        let range = u64::from(first) * row_bytes..u64::from(to - region.y) * row_bytes;
        let expected = range.end - range.start;
        match self.store.get_range(&Key::new(key.path())?, range).await {
            Ok(bytes) if bytes.len() as u64 == expected => Ok(Some((tile, first, bytes))),
            Ok(_) | Err(StoreError::OutOfRange { .. }) => Err(AssembleError::WrongSize { key, expected }),
            Err(StoreError::NotFound { .. }) => Err(AssembleError::Missing(vec![key])),
            Err(error) => Err(error.into()),
        }
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
        let reads = raster.band_ranges(window).into_iter().map(|part| async move {
            self.store.get_range(&Key::new(layout::raster_band(picture, part.band))?, part.start..part.end).await
        });
        let parts: Vec<Bytes> = futures::stream::iter(reads).buffered(CONCURRENT_READS).try_collect().await?;
        let cut = raster.cut(window, &parts).map_err(|_| AssembleError::MissingRaster(picture))?;
        cut.alpha.ok_or(AssembleError::MissingRaster(picture))
    }
}

/// Leaves out an EXIF block or a colour profile for which the format has no room: the picture matters more.
fn without_what_does_not_fit(options: EncodeOptions, size: Size, limits: &Limits) -> EncodeOptions {
    match options.check(size.width, size.height, limits) {
        Err(error @ EncodeError::Metadata { .. }) => {
            tracing::warn!(%error, "left metadata out");
            EncodeOptions { exif: None, icc: None, ..options }
        }
        _ => options,
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

/// Blends the tiles of a band into RGB rows, clamped to 0..1.
fn blend(output: Size, whole: bool, band: &BandInput) -> Result<Vec<f32>, PixelError> {
    let floats = |bytes: &Bytes| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|&sample| f32::from_le_bytes(sample)).collect()
    };
    let mut blended = match &band.tiles[..] {
        // A picture of a single tile is copied as it is.
        [(_, _, rows)] if whole => floats(rows),
        tiles => {
            let mut blender = BandBlender::new(output, 3, band.rows.clone());
            for (tile, first, rows) in tiles {
                blender.add(&Placement::from(tile), *first, &floats(rows))?;
            }
            blender.finish()?
        }
    };
    blended.iter_mut().for_each(|sample| *sample = sample.clamp(0.0, 1.0));
    Ok(blended)
}

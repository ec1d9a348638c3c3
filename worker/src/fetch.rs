//! Brings what a task needs from the store to this machine: the window of the picture, and the model.

mod disk;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use domain::{
    digest::Digest,
    layout,
    pipe::{BasicPipe, ControlNet, MaskRef, PixelsRef},
    region::Region,
    task::{Base, Context, LatentFrom, LatentSteps, LatentTask, LatentWork, Layer, Part, Redraw, ResultKey, SegTask},
};
use futures::{StreamExt, TryStreamExt, stream};
use imaging::{
    base::{Crop, Origin, Piece},
    frames::{Frames, PixelError},
    mask::Mask,
    raster::{BandRange, RasterError, RasterInfo, Window},
};
use proto::farm::Order;
use store::{Key, Store, StoreError};
use tokio::task::{JoinError, spawn_blocking};

pub use disk::DiskCache;

use crate::{
    engine::{self, Inputs, LatentInput, RedrawWork, UpscaleWork, Verdict, Work},
    metrics::Metrics,
};

/// How many pieces of a window are on their way at once.
const PIECES_AT_ONCE: usize = 4;
/// How many rasters' shapes are remembered.
const RASTERS_REMEMBERED: usize = 256;

/// Why a task's inputs could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store did not give them.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the store has as the shape of a picture is none.
    #[error("the raster of picture {} has no readable shape", picture.short())]
    RasterInfo {
        /// The picture.
        picture: Digest,
        /// Why.
        source: serde_json::Error,
    },
    /// The task does not fit the picture.
    #[error("the raster of picture {} does not hold {region}", picture.short())]
    Raster {
        /// The picture.
        picture: Digest,
        /// What was asked for.
        region: Region,
        /// Why.
        source: RasterError,
    },
    /// The result of another task, of which this one's pixels are made, is gone.
    #[error("result {key} is gone from the store")]
    Lost {
        /// Which.
        key: ResultKey,
    },
    /// What intake put into the store, a decoded picture or a mask, is gone.
    #[error("`{key}` is gone from the store: submit the job again, which puts it there anew")]
    Gone {
        /// Where it lay.
        key: String,
    },
    /// The pixels of a region cannot be composed.
    #[error("{region} of a picture under work cannot be composed")]
    Pixels {
        /// The region.
        region: Region,
        /// Why.
        source: PixelError,
    },
    /// What the store has is not as long as it should be.
    #[error("{key} has {got} bytes instead of {want}")]
    Length {
        /// Where it lies.
        key: String,
        /// How long it should be.
        want: u64,
        /// How long it is.
        got: u64,
    },
    /// What the store has are not the numbers of a picture or a mask.
    #[error("{key} does not hold the numbers that it should")]
    Numbers {
        /// Where it lies.
        key: String,
        /// Why.
        source: PixelError,
    },
    /// The thread that composed pixels died.
    #[error("composing pixels broke off")]
    Died(#[source] JoinError),
    /// The weights in the store are not those that the name stands for.
    #[error("the store has a file of digest {found} as model {model}")]
    WrongModel {
        /// The name.
        model: Digest,
        /// What is there.
        found: Digest,
    },
    /// The model cache on this machine cannot be used.
    #[error("the model cache at {} cannot be used", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FetchError {
    /// What becomes of the task.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Store(error) => store_verdict(error),
            Self::Gone { .. }
            | Self::RasterInfo { .. }
            | Self::Raster { .. }
            | Self::WrongModel { .. }
            | Self::Pixels { .. }
            | Self::Length { .. }
            | Self::Numbers { .. } => Verdict::Fail,
            Self::Lost { key } => Verdict::Lost(*key),
            Self::Disk { .. } | Self::Died(_) => Verdict::Retry,
        }
    }

    /// Whether it is the store that is away, so that waiting helps.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::RasterInfo { .. }
            | Self::Raster { .. }
            | Self::WrongModel { .. }
            | Self::Disk { .. }
            | Self::Gone { .. }
            | Self::Lost { .. }
            | Self::Pixels { .. }
            | Self::Length { .. }
            | Self::Numbers { .. }
            | Self::Died(_) => false,
        }
    }
}

/// What becomes of a task that met this error: it fails only for what every worker would find alike.
pub fn store_verdict(error: &StoreError) -> Verdict {
    match error {
        StoreError::NotFound { .. }
        | StoreError::OutOfRange { .. }
        | StoreError::InvalidKey { .. }
        | StoreError::InvalidUrl { .. } => Verdict::Fail,
        StoreError::MissingBucket { .. }
        | StoreError::Forbidden { .. }
        | StoreError::Unavailable { .. }
        | StoreError::Full { .. }
        | StoreError::Refused { .. }
        | StoreError::Damaged { .. }
        | StoreError::LocalFile { .. } => Verdict::Retry,
    }
}

/// Fetches inputs, and remembers what never changes.
#[derive(Debug)]
pub struct Fetcher {
    store: Arc<dyn Store>,
    models: DiskCache,
    rasters: Mutex<HashMap<Digest, RasterInfo>>,
    metrics: Metrics,
}

impl Fetcher {
    /// A fetcher that keeps models in `models`.
    pub fn new(store: Arc<dyn Store>, models: DiskCache, metrics: Metrics) -> Self {
        Self { store, models, rasters: Mutex::default(), metrics }
    }

    /// Fetches what `order` needs.
    pub async fn fetch(&self, order: &Order) -> Result<Work, FetchError> {
        match (&order.context, &order.part) {
            (Context::Upscale { picture, upscale_model, scale, .. }, Part::Region(region)) => {
                let weights = self.models.weights(&*self.store, *upscale_model);
                let (rgb, weights) = tokio::try_join!(self.window(*picture, *region), weights)?;
                let (region, scale, model) = (*region, *scale, *upscale_model);
                Ok(Work::Upscale(UpscaleWork { region, rgb, scale, model, weights }))
            }
            (Context::Redraw(redraw), Part::Seg(seg)) => self.segment(redraw, seg).await,
            (Context::Latent(steps), Part::Latent(link)) => self.link(steps, link).await,
            _ => unreachable!("an order of the coordinator's own work cannot be decoded"),
        }
    }

    async fn segment(&self, context: &Redraw, seg: &SegTask) -> Result<Work, FetchError> {
        let mut named = Named::default();
        named.pipe(&context.basic_pipe);
        if let Some(refiner) = &context.refiner {
            named.pipe(&refiner.basic_pipe);
        }
        named.nets(&seg.control_nets);
        let crop = async {
            match seg.pixels {
                Some(pixels) => self.picture(pixels).await,
                None => self.under_work(&context.base, seg.region, &seg.below, context.feather).await,
            }
        };
        let (crop, mask, inputs) = tokio::try_join!(crop, self.mask_if_any(seg.mask), self.named(named))?;
        let (context, seg) = (context.clone(), seg.clone());
        Ok(Work::Redraw(Box::new(RedrawWork { context, seg, crop, mask, inputs })))
    }

    async fn link(&self, context: &LatentSteps, link: &LatentTask) -> Result<Work, FetchError> {
        let mut named = Named::default();
        named.files.insert(context.vae);
        named.files.extend(context.upscale_model);
        let mut mask = None;
        if let LatentWork::Step { runs, mask: of_runs, .. } = &link.work {
            runs.iter().for_each(|run| named.pipe(&run.basic_pipe));
            mask = *of_runs;
        }
        let from = async {
            let values = link.size.pixels().saturating_mul(4);
            match &link.from {
                LatentFrom::Picture(base) => {
                    let whole = Region::new(0, 0, base.size().width, base.size().height);
                    Ok(LatentInput::Picture(self.under_work(base, whole, &[], 0).await?))
                }
                LatentFrom::Given(digest) => {
                    Ok(LatentInput::Latent(self.numbers(Origin::Artifact(*digest), values).await?))
                }
                LatentFrom::Result(key) => Ok(LatentInput::Latent(self.numbers(Origin::Result(*key), values).await?)),
            }
        };
        let (from, mask, inputs) = tokio::try_join!(from, self.mask_if_any(mask), self.named(named))?;
        let (context, link) = (context.clone(), link.clone());
        Ok(Work::Latent(Box::new(engine::LatentWork { context, link, from, mask, inputs })))
    }

    /// A region of a picture under work, with all that lies below it.
    async fn under_work(
        &self,
        base: &Base,
        region: Region,
        layers: &[Layer],
        feather: u32,
    ) -> Result<Frames, FetchError> {
        let raster = self.raster(base.picture).await?;
        let composed = |source| FetchError::Pixels { region, source };
        let crop = Crop::new(base, &raster, region, layers).map_err(composed)?;
        let reads = stream::iter(crop.pieces().to_vec()).map(|piece| self.piece(piece));
        let pieces: Vec<Bytes> = reads.buffered(PIECES_AT_ONCE).try_collect().await?;
        // Eight times the picture, and feathered masks: too much for a thread that serves others.
        let span = tracing::Span::current();
        let composing = spawn_blocking(move || span.in_scope(|| crop.compose(&pieces, feather, u8::MAX)));
        composing.await.map_err(FetchError::Died)?.map_err(composed)
    }

    /// Reads a piece. One of a result that is gone says whose it is, so that it is rendered again.
    async fn piece(&self, piece: Piece) -> Result<Bytes, FetchError> {
        let bytes = self.store.get_range(&Key::new(piece.of.key())?, piece.range.clone()).await;
        match (bytes, piece.of) {
            (Ok(bytes), _) => {
                self.metrics.fetched(bytes.len() as u64);
                Ok(bytes)
            }
            (Err(StoreError::NotFound { .. } | StoreError::OutOfRange { .. }), Origin::Result(key)) => {
                Err(FetchError::Lost { key })
            }
            (Err(StoreError::NotFound { .. }), of) => Err(FetchError::Gone { key: of.key() }),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// So many `f32` numbers.
    async fn numbers(&self, of: Origin, count: u64) -> Result<Vec<f32>, FetchError> {
        let piece = Piece { of, range: 0..count.saturating_mul(size_of::<f32>() as u64) };
        let bytes = self.piece(piece.clone()).await?;
        if bytes.len() as u64 != piece.len() {
            return Err(FetchError::Length { key: of.key(), want: piece.len(), got: bytes.len() as u64 });
        }
        let refused = |source| FetchError::Numbers { key: of.key(), source };
        piece.samples(&bytes).map_err(refused)
    }

    async fn mask(&self, mask: MaskRef) -> Result<Mask, FetchError> {
        let of = Origin::Artifact(mask.digest);
        let values = self.numbers(of, mask.size.pixels()).await?;
        Mask::new(1, mask.size, values).map_err(|source| FetchError::Numbers { key: of.key(), source })
    }

    async fn mask_if_any(&self, mask: Option<MaskRef>) -> Result<Option<Mask>, FetchError> {
        match mask {
            Some(mask) => self.mask(mask).await.map(Some),
            None => Ok(None),
        }
    }

    async fn picture(&self, pixels: PixelsRef) -> Result<Frames, FetchError> {
        let of = Origin::Artifact(pixels.digest);
        let values = self.numbers(of, pixels.size.pixels().saturating_mul(3)).await?;
        Frames::new(1, pixels.size, 3, values).map_err(|source| FetchError::Numbers { key: of.key(), source })
    }

    /// Brings everything that pipes name.
    async fn named(&self, named: Named) -> Result<Inputs, FetchError> {
        let mut inputs = Inputs::default();
        // One after the other: they share a disk and a line, and most are here already.
        for digest in named.files {
            inputs.files.insert(digest, self.models.weights(&*self.store, digest).await?);
        }
        for mask in named.masks {
            inputs.masks.insert(mask.digest, self.mask(mask).await?);
        }
        for picture in named.pictures {
            inputs.pictures.insert(picture.digest, self.picture(picture).await?);
        }
        Ok(inputs)
    }

    /// The pixels of `region`, `[y][x][3]`, reading no more of each band than the blocks that it touches.
    async fn window(&self, picture: Digest, region: Region) -> Result<Vec<f32>, FetchError> {
        let misfit = |source| FetchError::Raster { picture, region, source };
        let raster = self.raster(picture).await?;
        let Region { x, y, width, height } = region;
        let window = Window { x, y, width, height };
        let ranges = raster.band_ranges(window); // empty for a window that `cut` refuses
        let piece = |range: BandRange| {
            self.piece(Piece { of: Origin::Band { picture, index: range.band }, range: range.start..range.end })
        };
        let parts: Vec<_> = stream::iter(ranges).map(piece).buffered(PIECES_AT_ONCE).try_collect().await?;
        Ok(raster.cut(window, &parts).map_err(misfit)?.rgb)
    }

    /// The shape of a decoded picture.
    async fn raster(&self, picture: Digest) -> Result<RasterInfo, FetchError> {
        let rasters = || self.rasters.lock().unwrap_or_else(PoisonError::into_inner);
        let known = rasters().get(&picture).copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let json = self.store.get(&Key::new(layout::raster_info(picture))?).await?;
        let raster = serde_json::from_slice(&json).map_err(|source| FetchError::RasterInfo { picture, source })?;
        let mut rasters = rasters();
        if rasters.len() >= RASTERS_REMEMBERED {
            rasters.clear(); // they are small and cheap to read again
        }
        rasters.insert(picture, raster);
        Ok(raster)
    }
}

/// What pipes name, each once.
#[derive(Debug, Default)]
struct Named {
    files: BTreeSet<Digest>,
    masks: Vec<MaskRef>,
    pictures: Vec<PixelsRef>,
}

impl Named {
    fn pipe(&mut self, pipe: &BasicPipe) {
        let weights = [&pipe.checkpoint.weights].into_iter().chain(&pipe.vae).chain(&pipe.embeddings);
        self.files.extend(weights.map(|weights| weights.digest));
        self.files.extend(pipe.loras.iter().map(|lora| lora.weights.digest));
        for prompt in pipe.positive.iter().chain(&pipe.negative) {
            let mask = prompt.mask.as_ref().map(|mask| mask.mask);
            self.masks.extend(mask.filter(|mask| !self.masks.contains(mask)));
        }
        self.nets(&pipe.control_nets);
    }

    fn nets(&mut self, nets: &[ControlNet]) {
        for net in nets {
            self.files.insert(net.weights.digest);
            self.pictures.extend(net.image.filter(|image| !self.pictures.contains(image)));
        }
    }
}

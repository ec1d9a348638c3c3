//! Brings what a task needs from the store to this machine: the window of the picture, and the model.

mod disk;

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use domain::{digest::Digest, layout, region::Region, task::Context};
use futures::{StreamExt, TryStreamExt, stream};
use imaging::raster::{RasterError, RasterInfo, Window};
use proto::farm::Order;
use store::{Key, Store, StoreError};

pub use disk::DiskCache;

use crate::{
    engine::{UpscaleWork, Verdict, Work},
    metrics::Metrics,
};

/// How many bands of a window are on their way at once.
const BANDS_AT_ONCE: usize = 4;
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
            Self::RasterInfo { .. } | Self::Raster { .. } | Self::WrongModel { .. } => Verdict::Fail,
            Self::Disk { .. } => Verdict::Retry,
        }
    }

    /// Whether it is the store that is away, so that waiting helps.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::RasterInfo { .. } | Self::Raster { .. } | Self::WrongModel { .. } | Self::Disk { .. } => false,
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
        let Context::Upscale { picture, upscale_model, scale, .. } = &order.context else {
            unreachable!("an order of assembly cannot be decoded");
        };
        let region = order.part.region();
        let (rgb, weights) =
            tokio::try_join!(self.window(*picture, region), self.models.weights(&*self.store, *upscale_model),)?;
        Ok(Work::Upscale(UpscaleWork { region, rgb, scale: *scale, model: *upscale_model, weights }))
    }

    /// The pixels of `region`, `[y][x][3]`, reading no more of each band than the blocks that it touches.
    async fn window(&self, picture: Digest, region: Region) -> Result<Vec<f32>, FetchError> {
        let misfit = |source| FetchError::Raster { picture, region, source };
        let raster = self.raster(picture).await?;
        let Region { x, y, width, height } = region;
        let window = Window { x, y, width, height };
        let ranges = raster.band_ranges(window); // empty for a window that `cut` refuses
        let parts: Vec<_> = stream::iter(ranges)
            .map(|range| async move {
                let key = Key::new(layout::raster_band(picture, range.band))?;
                self.store.get_range(&key, range.start..range.end).await
            })
            .buffered(BANDS_AT_ONCE)
            .try_collect()
            .await?;
        self.metrics.fetched(parts.iter().map(|part| part.len() as u64).sum());
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

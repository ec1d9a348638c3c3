//! Results in, picture out: blends tiles, pastes segments, resamples, and encodes, in row bands of bounded memory.
//!
//! Three stages run side by side: what the next band is made of is read from the store while this one is composed, and
//! the one before is encoded. Only rows that a band needs are read, so memory does not grow with the picture (JPEG and
//! WebP encoders hold the whole picture all the same). The file is made in the scratch folder and then stored under
//! its digest, so that a crash leaves nothing half-written in the store.
//!
//! [`tiles`] makes pictures of a network's tiles, [`paste`] those of a base and layers over it, [`image`] those that
//! only need to be encoded, and [`deliver`] SEGS and latents.

mod deliver;
mod file;
mod finish;
mod image;
mod paste;
mod read;
mod tiles;

use std::{io, path::PathBuf, sync::Arc};

use domain::{
    digest::Digest,
    job::{Job, JobKind, JobOutput, OutputFormat},
    plan::{Plan, Task},
    region::Size,
    task::{Context, Encoding, ResultKey},
    tiles::BadTiling,
};
use imaging::{base::Origin, encode::EncodeError, frames::PixelError, picture::Limits};
use store::{Store, StoreError};
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

use crate::records::put_json;
use image::Image;
use tiles::TiledPicture;

/// Bytes that the samples of one band may take; three bands are in memory at once.
const BAND_BYTES: u64 = 12 << 20;

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
    /// A mask or a picture that came with the job is gone.
    #[error("artifact {0}, which the job names, is missing from the store: upload it and submit the job again")]
    MissingArtifact(Digest),
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
    /// Pixels that do not make a picture.
    #[error("what was read does not make up the picture")]
    Pixels(#[from] PixelError),
    /// A tiling that could not have been planned.
    #[error("the tiles cannot be laid")]
    Tiling(#[from] BadTiling),
    /// Something in the store is shorter than it must be.
    #[error("`{key}` ends before byte {end}")]
    WrongSize {
        /// Where it lies.
        key: String,
        /// How far it was to be read.
        end: u64,
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
            | Self::MissingArtifact(_)
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

impl Assembler {
    /// Puts together what one of the coordinator's own tasks makes, and stores it and its record.
    pub async fn assemble(
        &self,
        job: &Job,
        plan: &Plan,
        task: &Task,
        cancelled: &CancellationToken,
    ) -> Result<JobOutput, AssembleError> {
        let output = tokio::select! {
            output = self.make(job, plan, task) => output?,
            () = cancelled.cancelled() => return Err(AssembleError::Cancelled),
        };
        put_json(&*self.store, &plan.key_of(task).path(), &output).await?;
        Ok(output)
    }

    async fn make(&self, job: &Job, plan: &Plan, task: &Task) -> Result<JobOutput, AssembleError> {
        let planned = plan.context_of(task);
        let needs = || task.needs.iter().map(|need| plan.key_of(&plan.tasks()[need as usize]));
        let (artifact, format, size) = match &planned.context {
            &Context::Assemble { picture, size, tiling, scale, format, color, sample, quality, resize, .. } => {
                let encoding = Encoding { format, color, sample, quality };
                let tiles = needs().collect();
                let order = TiledPicture { picture, size, tiling, scale, encoding, resize, tiles };
                let artifact = self.put_file(&self.tiled(&order).await?).await?;
                (artifact, OutputFormat::Picture(format), order.result())
            }
            Context::Paste(paste) => {
                let artifact = self.put_file(&self.pasted(paste, BAND_BYTES).await?).await?;
                (artifact, OutputFormat::Picture(paste.encoding.format), paste.base.size())
            }
            Context::Encode { pixels, size, encoding, .. } => {
                let artifact = self.put_file(&self.encoded(job, *pixels, *size, encoding).await?).await?;
                (artifact, OutputFormat::Picture(encoding.format), *size)
            }
            Context::Deliver { .. } => match &job.kind {
                JobKind::SegsDetail(job) => {
                    (self.deliver_segs(job, plan.contexts()[0].digest).await?, OutputFormat::Segs, job.picture.size)
                }
                JobKind::LatentUpscale(job) => {
                    (self.deliver_latent(job, needs().last()).await?, OutputFormat::Latent, job.result())
                }
                JobKind::Upscale(_) | JobKind::SegsUpscale(_) => {
                    return Err(AssembleError::Internal("the job delivers nothing"));
                }
            },
            Context::Upscale { .. } | Context::Redraw(_) | Context::Latent(_) => {
                return Err(AssembleError::Internal("the task is a worker's"));
            }
        };
        let name = job.kind.picture_name(planned.picture).to_owned();
        Ok(JobOutput { name, artifact, format, size })
    }

    /// Makes the file of a picture that a worker decoded. Profile and EXIF are those of the picture that it was made from.
    async fn encoded(
        &self,
        job: &Job,
        pixels: ResultKey,
        size: Size,
        encoding: &Encoding,
    ) -> Result<NamedTempFile, AssembleError> {
        let options = file::options(encoding);
        let options = match job.kind.pictures().first() {
            Some(picture) => {
                let record = self.raster(picture.digest).await?;
                self.with_metadata(options, picture.digest, &record, (size.width, size.height)).await?
            }
            None => options,
        };
        self.image(Image::Rows { of: Origin::Result(pixels), start: 0, size }, None, options).await
    }
}

#[cfg(test)]
mod tests;

//! Where things lie in the store: the one list of its keys.
//!
//! A key is made from content, or has one writer (the coordinator, for jobs and model names), so that writing again
//! writes the same. A result's key is [`crate::task::ResultKey::path`].

use crate::{digest::Digest, job::JobId, task::DECODE_REVISION};

/// An uploaded file or a finished picture, by its content.
pub fn artifact(digest: Digest) -> String {
    format!("artifacts/{digest}")
}

/// The weights file of a model.
pub fn model(digest: Digest) -> String {
    format!("models/{digest}")
}

/// What is known about a model.
pub fn model_record(digest: Digest) -> String {
    format!("model-records/{digest}.json")
}

/// The digest of the model that a name stands for.
pub fn model_name(name: &str) -> String {
    format!("{MODEL_NAMES}{name}")
}

/// Where all names of models lie.
pub const MODEL_NAMES: &str = "model-names/";

/// Where a decoded picture lies; other decoders make another one.
fn raster(picture: Digest) -> String {
    format!("rasters/{picture}-{DECODE_REVISION}/")
}

/// The shape of a decoded picture; written last, so that where it is, the bands are too.
pub fn raster_info(picture: Digest) -> String {
    format!("{}info.json", raster(picture))
}

/// Band `index` of a decoded picture.
pub fn raster_band(picture: Digest, index: u32) -> String {
    format!("{}band-{index:06}", raster(picture))
}

/// The ICC profile of a decoded picture, where it has one.
pub fn raster_icc(picture: Digest) -> String {
    format!("{}icc", raster(picture))
}

/// The EXIF block of a decoded picture, where it has one.
pub fn raster_exif(picture: Digest) -> String {
    format!("{}exif", raster(picture))
}

/// Where all jobs lie; `namespace` keeps the jobs of farms apart that share a store.
pub fn jobs(namespace: &str) -> String {
    format!("jobs/{namespace}/")
}

/// A job as intake resolved it.
pub fn job(namespace: &str, job: &JobId) -> String {
    format!("jobs/{namespace}/{job}/job.json")
}

/// How a job ended; absent while it runs.
pub fn job_ending(namespace: &str, job: &JobId) -> String {
    format!("jobs/{namespace}/{job}/ending.json")
}

//! Reading from the store what pictures are made of.

use bytes::Bytes;
use domain::{digest::Digest, layout};
use futures::StreamExt as _;
use imaging::{
    base::{Origin, Piece},
    encode::{EncodeError, EncodeOptions},
};
use store::{Key, StoreError};

use super::{AssembleError, Assembler};
use crate::{intake::RasterRecord, records::get_json};

/// How many reads from the store are under way at once.
pub(super) const CONCURRENT_READS: usize = 8;

impl Assembler {
    /// What intake knows of a decoded picture.
    pub(super) async fn raster(&self, picture: Digest) -> Result<RasterRecord, AssembleError> {
        let record = get_json(&*self.store, &layout::raster_info(picture)).await?;
        record.ok_or(AssembleError::MissingRaster(picture))
    }

    /// `options` with the colour profile and the EXIF block of a decoded picture, as far as the format has room for them.
    pub(super) async fn with_metadata(
        &self,
        options: EncodeOptions,
        picture: Digest,
        record: &RasterRecord,
        (width, height): (u32, u32),
    ) -> Result<EncodeOptions, AssembleError> {
        let side = async |there: bool, key: String| match there {
            true => self.store.get(&Key::new(key)?).await.map(|bytes| Some(bytes.to_vec())),
            false => Ok(None),
        };
        let icc = side(record.has_icc, layout::raster_icc(picture)).await?;
        let exif = side(record.has_exif, layout::raster_exif(picture)).await?;
        let options = EncodeOptions { icc, exif, ..options };
        // The picture matters more than what is said about it.
        Ok(match options.check(width, height, &self.limits) {
            Err(error @ EncodeError::Metadata { .. }) => {
                tracing::warn!(%error, "left metadata out");
                EncodeOptions { exif: None, icc: None, ..options }
            }
            _ => options,
        })
    }

    /// Reads pieces, several at once, and gives their bytes in the same order.
    pub(super) async fn read(&self, pieces: &[Piece]) -> Result<Vec<Bytes>, AssembleError> {
        let reads: Vec<_> = pieces.iter().map(|piece| self.read_one(piece)).collect();
        all(futures::stream::iter(reads).buffered(CONCURRENT_READS).collect().await)
    }

    async fn read_one(&self, piece: &Piece) -> Result<Bytes, AssembleError> {
        let expected = piece.len();
        match (self.store.get_range(&Key::new(piece.of.key())?, piece.range.clone()).await, piece.of) {
            (Ok(bytes), _) if bytes.len() as u64 == expected => Ok(bytes),
            (Ok(_) | Err(StoreError::OutOfRange { .. }), origin) => {
                Err(AssembleError::WrongSize { key: origin.key(), end: piece.range.end })
            }
            (Err(StoreError::NotFound { .. }), Origin::Result(key)) => Err(AssembleError::Missing(vec![key])),
            (Err(StoreError::NotFound { .. }), Origin::Band { picture, .. }) => {
                Err(AssembleError::MissingRaster(picture))
            }
            (Err(StoreError::NotFound { .. }), Origin::Artifact(digest)) => Err(AssembleError::MissingArtifact(digest)),
            (Err(error), _) => Err(error.into()),
        }
    }
}

/// All that was made, or why not: results that are missing are named together, so that they are rendered together.
pub(super) fn all<T>(outcomes: Vec<Result<T, AssembleError>>) -> Result<Vec<T>, AssembleError> {
    let mut made = Vec::with_capacity(outcomes.len());
    let (mut missing, mut failed) = (Vec::new(), None);
    for outcome in outcomes {
        match outcome {
            Ok(value) => made.push(value),
            Err(AssembleError::Missing(keys)) => missing.extend(keys),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    missing.sort_unstable();
    missing.dedup();
    match failed {
        _ if !missing.is_empty() => Err(AssembleError::Missing(missing)),
        Some(error) => Err(error),
        None => Ok(made),
    }
}

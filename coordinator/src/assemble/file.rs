//! The file of a picture, made in the scratch folder while its rows are still being read.

use std::future::Future;

use bytes::Bytes;
use domain::{digest::Digest, job::Artifact, layout, region::Size, task::Encoding};
use imaging::encode::{EncodeOptions, Encoder};
use store::Key;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use super::{AssembleError, Assembler};

/// Where bands go that are read, to be made into rows. One waits, one is read, and one is made into rows and encoded.
pub(super) fn bands<B>() -> (mpsc::Sender<B>, mpsc::Receiver<B>) {
    mpsc::channel(1)
}

/// Hands over a band, or says that nobody takes it: why, the encoder will say.
pub(super) async fn hand_over<B>(bands: &mpsc::Sender<B>, band: B) -> Result<(), AssembleError> {
    bands.send(band).await.map_err(|_| AssembleError::Internal("the encoder stopped early"))
}

/// How a picture is written, but for what is said about it.
pub(super) fn options(encoding: &Encoding) -> EncodeOptions {
    let Encoding { format, color, sample, quality } = *encoding;
    EncodeOptions { jpeg_quality: quality, ..EncodeOptions::new(format, color, sample) }
}

impl Assembler {
    /// Makes a picture file: `read` hands over bands from the top, which come out of `ready`, and `make` turns each into
    /// samples in the native layout.
    pub(super) async fn write<B: Send + 'static>(
        &self,
        size: Size,
        options: EncodeOptions,
        mut ready: mpsc::Receiver<B>,
        mut make: impl FnMut(B) -> Result<Vec<u8>, AssembleError> + Send + 'static,
        read: impl Future<Output = Result<(), AssembleError>>,
    ) -> Result<NamedTempFile, AssembleError> {
        let scratch_failed = |source| AssembleError::Scratch { folder: self.scratch.clone(), source };
        let file = NamedTempFile::new_in(&self.scratch).map_err(scratch_failed)?;
        let handle = file.reopen().map_err(scratch_failed)?;
        let limits = self.limits;
        let span = tracing::Span::current();
        let encoding = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            let mut encoder = Encoder::new(handle, size.width, size.height, options, &limits)?;
            while let Some(band) = ready.blocking_recv() {
                encoder.write_rows(&make(band)?)?;
            }
            encoder.finish()?;
            Ok::<_, AssembleError>(())
        });
        let read = read.await;
        let encoded = encoding.await.map_err(|_| AssembleError::Internal("the encoder stopped"))?;
        // When reading failed the encoder only complains of missing rows; when encoding failed, reading was cut off.
        match (read, encoded) {
            (Err(AssembleError::Internal(_)), Err(error)) | (Err(error), _) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(())) => Ok(file),
        }
    }

    /// Stores a file under its digest.
    pub(super) async fn put_file(&self, file: &NamedTempFile) -> Result<Artifact, AssembleError> {
        let (digest, size_bytes) = store::put_digested(&*self.store, "artifacts", file.path()).await?;
        let digest: Digest = digest.parse().map_err(|_| AssembleError::Internal("a digest is not well formed"))?;
        Ok(Artifact { key: layout::artifact(digest), digest, size_bytes })
    }

    /// Stores bytes under their digest.
    pub(super) async fn put_bytes(&self, bytes: Vec<u8>) -> Result<Artifact, AssembleError> {
        let (digest, size_bytes) = (Digest::of(&bytes), bytes.len() as u64);
        let key = layout::artifact(digest);
        self.store.put(&Key::new(key.clone())?, Bytes::from(bytes)).await?;
        Ok(Artifact { key, digest, size_bytes })
    }
}

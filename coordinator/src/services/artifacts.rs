//! The service `Artifacts`.

use std::{io::Write as _, pin::Pin, sync::Arc, time::Duration};

use domain::{digest::Digest, job::Artifact, layout};
use futures::{Stream, StreamExt as _};
use proto::{
    convert::{InvalidField, artifact_to_wire, timestamp_to_wire},
    v1::{self, artifacts_server::Artifacts, upload_artifact_request::Part},
};
use store::{Key, Store};
use tempfile::NamedTempFile;
use tonic::{Request, Response, Status, Streaming};

use crate::{desk::now, intake::scratch_refusal, refusal::Refusal};

/// How long a presigned URL works.
const URL_LIFETIME: Duration = Duration::from_secs(3600);

/// The most bytes in one message of a download.
const PIECE_BYTES: u64 = 1 << 20;

/// Brings bytes into the store and out of it.
#[derive(Debug)]
pub struct ArtifactsService {
    /// Where they lie.
    pub store: Arc<dyn Store>,
    /// Where uploads wait until they are whole.
    pub scratch: std::path::PathBuf,
    /// The largest upload.
    pub max_upload_bytes: u64,
}

fn parse(digest: &str) -> Result<Digest, Refusal> {
    Ok(digest.parse().map_err(InvalidField::at("digest"))?)
}

impl ArtifactsService {
    fn check_size(&self, bytes: u64) -> Result<(), Refusal> {
        if bytes > self.max_upload_bytes {
            let why = format!(
                "{bytes} bytes are more than the {} that may be uploaded (`max_upload_bytes`)",
                self.max_upload_bytes
            );
            return Err(Refusal::field("size_bytes", why));
        }
        Ok(())
    }

    async fn find(&self, digest: &str) -> Result<Artifact, Refusal> {
        let digest = parse(digest)?;
        let key = layout::artifact(digest);
        let meta = self.store.head(&Key::new(&key)?).await?;
        let missing = || Refusal::NotFound { field: "digest".to_owned(), what: format!("artifact {digest}") };
        let size_bytes = meta.ok_or_else(missing)?.size_bytes;
        Ok(Artifact { key, digest, size_bytes })
    }

    async fn receive(&self, mut parts: Streaming<v1::UploadArtifactRequest>) -> Result<Artifact, Status> {
        let failed = |source| scratch_refusal(&self.scratch, source);
        let wanted = match parts.message().await?.and_then(|message| message.part) {
            Some(Part::Digest(digest)) => parse(&digest)?,
            _ => return Err(Refusal::field("digest", "must be the first message").into()),
        };
        let mut file = NamedTempFile::new_in(&self.scratch).map_err(failed)?;
        let mut digester = store::Digester::default();
        let mut size_bytes = 0;
        while let Some(message) = parts.message().await? {
            let Some(Part::Data(data)) = message.part else {
                return Err(Refusal::field("data", "must follow the digest").into());
            };
            size_bytes += data.len() as u64;
            self.check_size(size_bytes)?;
            digester.update(&data);
            file.write_all(&data).map_err(failed)?;
        }
        let seen = digester.finish();
        if seen != wanted.to_string() {
            return Err(Refusal::field("digest", format!("is {wanted}, but the bytes have {seen}")).into());
        }
        let key = layout::artifact(wanted);
        let stored = self.store.put_file(&Key::new(&key).map_err(Refusal::from)?, file.path()).await;
        stored.map_err(Refusal::from)?;
        Ok(Artifact { key, digest: wanted, size_bytes })
    }
}

#[tonic::async_trait]
impl Artifacts for ArtifactsService {
    async fn prepare_upload(
        &self,
        request: Request<v1::PrepareUploadRequest>,
    ) -> Result<Response<v1::PrepareUploadResponse>, Status> {
        let v1::PrepareUploadRequest { digest, size_bytes } = request.into_inner();
        let key = Key::new(layout::artifact(parse(&digest)?)).map_err(Refusal::from)?;
        self.check_size(size_bytes)?;
        let meta = self.store.head(&key).await.map_err(Refusal::from)?;
        if meta.is_some_and(|meta| meta.size_bytes == size_bytes) {
            return Ok(Response::new(v1::PrepareUploadResponse { present: true, ..Default::default() }));
        }
        // What lies there under another size is for UploadArtifact to judge, which looks at the bytes.
        let url = match meta {
            Some(_) => None,
            None => self.store.presign_put(&key, URL_LIFETIME).await.map_err(Refusal::from)?,
        };
        Ok(Response::new(v1::PrepareUploadResponse {
            present: false,
            expires_at: url.as_ref().map(|_| expiry()),
            upload_url: url.unwrap_or_default(),
        }))
    }

    async fn upload_artifact(
        &self,
        request: Request<Streaming<v1::UploadArtifactRequest>>,
    ) -> Result<Response<v1::UploadArtifactResponse>, Status> {
        let artifact = self.receive(request.into_inner()).await?;
        Ok(Response::new(v1::UploadArtifactResponse { artifact: Some(artifact_to_wire(&artifact)) }))
    }

    async fn prepare_download(
        &self,
        request: Request<v1::PrepareDownloadRequest>,
    ) -> Result<Response<v1::PrepareDownloadResponse>, Status> {
        let artifact = self.find(&request.into_inner().digest).await?;
        let key = Key::new(&artifact.key).map_err(Refusal::from)?;
        let url = self.store.presign_get(&key, URL_LIFETIME).await.map_err(Refusal::from)?;
        Ok(Response::new(v1::PrepareDownloadResponse {
            artifact: Some(artifact_to_wire(&artifact)),
            expires_at: url.as_ref().map(|_| expiry()),
            download_url: url.unwrap_or_default(),
        }))
    }

    type DownloadArtifactStream = Pin<Box<dyn Stream<Item = Result<v1::DownloadArtifactResponse, Status>> + Send>>;

    async fn download_artifact(
        &self,
        request: Request<v1::DownloadArtifactRequest>,
    ) -> Result<Response<Self::DownloadArtifactStream>, Status> {
        let v1::DownloadArtifactRequest { digest, offset } = request.into_inner();
        let artifact = self.find(&digest).await?;
        if offset > artifact.size_bytes {
            let message = format!("offset {offset} lies behind the artifact's {} bytes", artifact.size_bytes);
            return Err(Status::out_of_range(message));
        }
        let key = Key::new(&artifact.key).map_err(Refusal::from)?;
        let (store, size) = (self.store.clone(), artifact.size_bytes);
        // Ranges rather than one stream: a slow reader then holds no connection to the store.
        let pieces = futures::stream::iter((offset..size).step_by(PIECE_BYTES as usize)).then(move |start| {
            let (store, key) = (store.clone(), key.clone());
            async move {
                let data = store.get_range(&key, start..(start + PIECE_BYTES).min(size)).await;
                let data = data.map_err(|error| Status::from(Refusal::from(error)))?;
                Ok(v1::DownloadArtifactResponse { data })
            }
        });
        Ok(Response::new(pieces.boxed()))
    }
}

fn expiry() -> prost_types::Timestamp {
    let now = now();
    timestamp_to_wire(domain::job::Timestamp(now.0 + URL_LIFETIME.as_millis() as u64))
}

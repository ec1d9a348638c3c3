//! Files to the farm and back, by digest: what the farm has is not sent, and nothing half-written is ever seen.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use proto::v1::{self, upload_artifact_request::Part};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Farm, call, is_passing, refused};

/// How many bytes travel at once; the contract allows 1 MiB.
const PIECE_BYTES: usize = 512 << 10;
/// How long the store's own address is knocked at: a firewall may let nothing through and say nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Uploads the file at `path` unless the farm has its bytes; returns their digest.
pub async fn upload(farm: &Farm, path: &Path) -> anyhow::Result<String> {
    let (digest, size_bytes) = {
        let path = path.to_owned();
        spawn_blocking(move || digest_of(&path)).await??
    };
    let prepared = call("PrepareUpload", || {
        let (mut artifacts, digest) = (farm.artifacts.clone(), digest.clone());
        async move { artifacts.prepare_upload(v1::PrepareUploadRequest { digest, size_bytes }).await }
    });
    let prepared = prepared.await.with_context(|| format!("cannot upload `{}`", path.display()))?;
    if prepared.present {
        return Ok(digest);
    }
    if !prepared.upload_url.is_empty() {
        let (url, file) = (prepared.upload_url, path.to_owned());
        match spawn_blocking(move || put(&url, &file, size_bytes)).await? {
            Ok(()) => return Ok(digest),
            // The store's own address need not be reachable from here; the coordinator is.
            Err(error) => tracing::info!(error = format!("{error:#}"), "uploading through the coordinator"),
        }
    }
    stream_up(farm, path, &digest).await.with_context(|| format!("cannot upload `{}`", path.display()))?;
    Ok(digest)
}

/// The lower-case SHA-256 of a file, and its size in bytes.
pub fn digest_of(path: &Path) -> anyhow::Result<(String, u64)> {
    let context = || format!("cannot read `{}`", path.display());
    let mut file = File::open(path).with_context(context)?;
    let (mut hasher, mut size_bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut buffer).with_context(context)? {
            0 => return Ok((hex(hasher), size_bytes)),
            n => {
                hasher.update(&buffer[..n]);
                size_bytes += n as u64;
            }
        }
    }
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn put(url: &str, path: &Path, size_bytes: u64) -> anyhow::Result<()> {
    let file = File::open(path)?;
    let request = ureq::put(url).config().timeout_connect(Some(CONNECT_TIMEOUT)).build();
    request.header("content-length", size_bytes.to_string()).send(ureq::SendBody::from_owned_reader(file))?;
    Ok(())
}

async fn stream_up(farm: &Farm, path: &Path, digest: &str) -> anyhow::Result<()> {
    let answer = call("UploadArtifact", || {
        let (mut artifacts, digest, path) = (farm.artifacts.clone(), digest.to_owned(), path.to_owned());
        async move {
            let (sender, receiver) = mpsc::channel(4);
            let reading = spawn_blocking(move || send_pieces(&path, digest, &sender));
            let answer = artifacts.upload_artifact(ReceiverStream::new(receiver)).await;
            match reading.await {
                Ok(Err(error)) => Err(tonic::Status::internal(format!("cannot read the file: {error}"))),
                _ => answer,
            }
        }
    });
    answer.await?;
    Ok(())
}

fn send_pieces(path: &Path, digest: String, sender: &mpsc::Sender<v1::UploadArtifactRequest>) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let mut part = Part::Digest(digest);
    // A closed channel means that the call ended; its answer says why.
    while sender.blocking_send(v1::UploadArtifactRequest { part: Some(part) }).is_ok() {
        let mut piece = vec![0; PIECE_BYTES];
        let n = file.read(&mut piece)?;
        if n == 0 {
            break;
        }
        piece.truncate(n);
        part = Part::Data(Bytes::from(piece));
    }
    Ok(())
}

/// Downloads `artifact` to the file `output`, which appears whole or not at all. Its folder is made if need be.
pub async fn download(farm: &Farm, artifact: &v1::Artifact, output: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot write `{}`", output.display());
    let folder = match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    std::fs::create_dir_all(&folder).with_context(context)?;
    let mut target = Target::new(&folder).with_context(context)?;
    let prepared = call("PrepareDownload", || {
        let (mut artifacts, digest) = (farm.artifacts.clone(), artifact.digest.clone());
        async move { artifacts.prepare_download(v1::PrepareDownloadRequest { digest }).await }
    });
    let url = prepared.await.with_context(|| format!("cannot download `{}`", output.display()))?.download_url;
    let mut fetched = false;
    if !url.is_empty() {
        let (back, result) = spawn_blocking(move || {
            let result = get(&url, &mut target);
            (target, result)
        })
        .await?;
        target = back;
        match result {
            Ok(()) => fetched = true,
            Err(error) => {
                tracing::info!(error = format!("{error:#}"), "downloading through the coordinator");
                target = Target::new(&folder).with_context(context)?;
            }
        }
    }
    if !fetched {
        stream_down(farm, &artifact.digest, &mut target).await.with_context(context)?;
    }
    let digest = hex(target.hasher);
    if digest != artifact.digest {
        bail!("the bytes of `{}` have the digest {digest}, but {} was asked for", output.display(), artifact.digest);
    }
    target.file.persist(output).map_err(|error| error.error).with_context(context)?;
    Ok(())
}

/// A file that has no name yet.
struct Target {
    file: tempfile::NamedTempFile,
    hasher: Sha256,
    size_bytes: u64,
}

/// Makes a file in `folder` that has no name yet.
pub fn unnamed(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tessera-");
    #[cfg(unix)]
    {
        // As any new file: the process's mask decides.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        builder.permissions(mode);
    }
    builder.tempfile_in(folder)
}

impl Target {
    fn new(folder: &Path) -> std::io::Result<Self> {
        Ok(Self { file: unnamed(folder)?, hasher: Sha256::new(), size_bytes: 0 })
    }

    fn write(&mut self, piece: &[u8]) -> std::io::Result<()> {
        self.file.write_all(piece)?;
        self.hasher.update(piece);
        self.size_bytes += piece.len() as u64;
        Ok(())
    }
}

fn get(url: &str, target: &mut Target) -> anyhow::Result<()> {
    let request = ureq::get(url).config().timeout_connect(Some(CONNECT_TIMEOUT)).build();
    let mut body = request.call()?.into_body();
    let mut reader = body.as_reader();
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(()),
            n => target.write(&buffer[..n])?,
        }
    }
}

async fn stream_down(farm: &Farm, digest: &str, target: &mut Target) -> anyhow::Result<()> {
    // A broken stream goes on from where it broke, as long as each attempt brings something.
    loop {
        let before = target.size_bytes;
        let mut pieces = call("DownloadArtifact", || {
            let (mut artifacts, digest, offset) = (farm.artifacts.clone(), digest.to_owned(), before);
            async move { artifacts.download_artifact(v1::DownloadArtifactRequest { digest, offset }).await }
        })
        .await?;
        loop {
            match pieces.message().await {
                Ok(Some(piece)) => target.write(&piece.data)?,
                Ok(None) => return Ok(()),
                Err(status) if is_passing(&status) && target.size_bytes > before => break,
                Err(status) => return Err(refused(&status)),
            }
        }
    }
}

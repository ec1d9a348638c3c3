//! Bytes in S3, or in what speaks like it: MinIO, Garage, Ceph, R2.
//!
//! [`S3`] is a connection; [`S3Store`] is one bucket, or one prefix of it, as a [`Store`]. Nothing here needs more of
//! the service than plain reads, writes, listings and multipart uploads. A cut connection never hangs: requests have
//! time limits and are sent again, and a download goes on where it broke off. A process that is killed while it
//! uploads leaves an unfinished upload, which costs space until a lifecycle rule of the bucket aborts it
//! (`AbortIncompleteMultipartUpload`).

mod download;
mod failure;
mod upload;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::DateTime;
use aws_smithy_http_client::tls;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use url::Url;

use self::download::download;
use self::failure::failure;
use self::upload::Upload;
use crate::error::{Result, StoreError};
use crate::key::Key;
use crate::store::{ByteStream, Entry, EntryStream, Meta, Store, Writer};

/// The region that is signed for where none is given; what only speaks like S3 seldom minds.
const DEFAULT_REGION: &str = "us-east-1";

/// A connection to S3. Its clones share one pool of connections.
#[derive(Clone)]
pub struct S3 {
    client: Client,
    endpoint: Option<String>,
}

/// An artifact outside of our store, from [`S3::object`].
pub struct ForeignObject {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its bytes; the stream ends with an error if it cannot give that many.
    pub bytes: ByteStream,
}

impl S3 {
    /// Connects as the standard environment says; nothing is sent before the first request.
    ///
    /// - who: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE` and its files, web identity (EKS),
    ///   the container's or the machine's role;
    /// - where: `AWS_REGION` or the profile's, else `us-east-1`; `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` for what
    ///   is not Amazon, which is then addressed by path (`http://host/bucket/key`).
    pub async fn from_env() -> Self {
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(DEFAULT_REGION);
        Self::connect(aws_config::defaults(BehaviorVersion::v2026_01_12()).region(region)).await
    }

    /// Connects to the service at the URL `endpoint` with these keys, whatever the environment says; for tests and
    /// tools that start a service of their own.
    pub async fn at(endpoint: &str, access_key: &str, secret_key: &str) -> Self {
        let keys = Credentials::new(access_key, secret_key, None, None, "given");
        let config = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(Region::new(DEFAULT_REGION))
            .credentials_provider(keys)
            .endpoint_url(endpoint);
        Self::connect(config).await
    }

    async fn connect(config: ConfigLoader) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring));
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            .read_timeout(Duration::from_secs(30)) // from the request to the answer's first byte
            .build();
        let shared = config
            .http_client(http.build_https())
            .retry_config(RetryConfig::standard().with_max_attempts(4))
            .timeout_config(timeouts)
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled().grace_period(Duration::from_secs(20)).build(),
            )
            .load()
            .await;
        // The client looks up the first of these by itself, but does not tell.
        let endpoint = std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|url| !url.is_empty());
        let given = shared.get_origin("endpoint_url").is_client_config();
        let endpoint = endpoint.filter(|_| !given).or_else(|| shared.endpoint_url().map(str::to_owned));

        let mut config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(endpoint.is_some());
        // Look-alikes differ in the newer checksums; the signature covers the body anyway.
        if shared.request_checksum_calculation().is_none() {
            config = config.request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
        }
        if shared.response_checksum_validation().is_none() {
            config = config.response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        }
        Self { client: Client::from_conf(config.build()), endpoint: endpoint.map(without_secrets) }
    }

    /// The store in `bucket`, all of whose keys begin with `prefix` and a slash; `""` is the whole bucket.
    pub fn store(&self, bucket: &str, prefix: &str) -> Result<S3Store> {
        let prefix = match prefix.trim_end_matches('/') {
            "" => String::new(),
            prefix => format!("{}/", Key::new(prefix)?),
        };
        Ok(S3Store { s3: self.clone(), bucket: bucket.into(), prefix })
    }

    /// Opens any artifact by its URI, `s3://bucket/key`, whatever its key looks like.
    ///
    /// [`StoreError::NotFound`] or [`StoreError::MissingBucket`] if it is not there, [`StoreError::Forbidden`] if it
    /// is not ours to read. Amazon calls forbidden what does not exist in a bucket that we may not list.
    pub async fn object(&self, uri: &str) -> Result<ForeignObject> {
        let (bucket, key) = split_uri(uri)?;
        if key.is_empty() {
            return Err(StoreError::InvalidUrl { url: uri.into(), reason: "it names a bucket, but no key in it" });
        }
        let (size_bytes, bytes) = download(self.client.clone(), Object::new(bucket, key, uri), None).await?;
        Ok(ForeignObject { size_bytes, bytes })
    }
}

/// Opens any artifact by its URI, `s3://bucket/key`, as the environment says; see [`S3::from_env`], [`S3::object`].
pub async fn s3_object(uri: &str) -> Result<ForeignObject> {
    S3::from_env().await.object(uri).await
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl fmt::Debug for ForeignObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignObject").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

/// Splits `s3://bucket/rest` into bucket and rest, which may be empty. S3 URIs know no escapes.
pub(crate) fn split_uri(uri: &str) -> Result<(&str, &str)> {
    let invalid = |reason| StoreError::InvalidUrl { url: uri.into(), reason };
    let rest = uri.strip_prefix("s3://").ok_or_else(|| invalid("it does not begin with `s3://`"))?;
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    if bucket.is_empty() || !bucket.bytes().all(allowed) {
        return Err(invalid("a bucket's name has letters, digits, `.`, `_` and `-`"));
    }
    Ok((bucket, key))
}

/// The endpoint as it may be shown.
fn without_secrets(endpoint: String) -> String {
    match Url::parse(&endpoint) {
        Ok(url) => url.origin().ascii_serialization(),
        Err(_) => "an endpoint that is no URL".into(),
    }
}

/// Where an object is, and what we call it in errors.
#[derive(Debug, Clone)]
struct Object {
    bucket: String,
    key: String,
    name: String,
}

impl Object {
    fn new(bucket: &str, key: &str, name: &str) -> Self {
        Self { bucket: bucket.into(), key: key.into(), name: name.into() }
    }
}

/// One bucket, or one prefix of it, as a store. Its clones share the connection.
#[derive(Debug, Clone)]
pub struct S3Store {
    s3: S3,
    bucket: String,
    /// Empty, or ends with a slash.
    prefix: String,
}

impl S3Store {
    fn object(&self, key: &Key) -> Object {
        Object::new(&self.bucket, &format!("{}{key}", self.prefix), key.as_str())
    }

    fn failed<E>(&self, name: impl ToString) -> impl FnOnce(failure::SdkError<E>) -> StoreError
    where
        E: failure::ServiceError,
    {
        let object = Object::new(&self.bucket, "", &name.to_string());
        move |error| failure(&object, error)
    }

    fn upload(&self, key: &Key, part_bytes: usize) -> Upload {
        Upload::new(self.s3.client.clone(), self.object(key), part_bytes)
    }
}

#[async_trait]
impl Store for S3Store {
    async fn put(&self, key: &Key, body: Bytes) -> Result<()> {
        let mut upload = self.upload(key, upload::part_bytes(body.len() as u64));
        upload.write(body).await?;
        upload.complete().await?;
        Ok(())
    }

    async fn put_file(&self, key: &Key, path: &Path) -> Result<()> {
        use tokio::io::AsyncReadExt as _;
        let unreadable = |source| StoreError::LocalFile { path: path.to_owned(), source };
        let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        let size_bytes = file.metadata().await.map_err(unreadable)?.len();
        let mut upload = self.upload(key, upload::part_bytes(size_bytes));
        let mut piece = BytesMut::new();
        loop {
            piece.reserve(1024 * 1024);
            if file.read_buf(&mut piece).await.map_err(unreadable)? == 0 {
                break;
            }
            upload.write(piece.split().freeze()).await?;
        }
        upload.complete().await?;
        Ok(())
    }

    async fn writer(&self, key: &Key) -> Result<Box<dyn Writer>> {
        Ok(Box::new(self.upload(key, upload::PART_BYTES)))
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        let (size_bytes, pieces) = self.get_stream(key).await?;
        collect(size_bytes, pieces).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            // HTTP has no word for no bytes.
            let Range { start, end } = range;
            let meta = self.head(key).await?.ok_or_else(|| StoreError::NotFound { key: key.to_string() })?;
            if start > end || end > meta.size_bytes {
                let size_bytes = meta.size_bytes;
                return Err(StoreError::OutOfRange { key: key.to_string(), start, end, size_bytes });
            }
            return Ok(Bytes::new());
        }
        let (size_bytes, pieces) = download(self.s3.client.clone(), self.object(key), Some(range)).await?;
        collect(size_bytes, pieces).await
    }

    async fn get_stream(&self, key: &Key) -> Result<(u64, ByteStream)> {
        download(self.s3.client.clone(), self.object(key), None).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Meta>> {
        let object = self.object(key);
        let head = self.s3.client.head_object().bucket(object.bucket).key(object.key).send().await;
        match head.map_err(self.failed(key)) {
            Ok(head) => Ok(Some(meta(head.content_length(), head.last_modified()))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let object = self.object(key);
        let deleted = self.s3.client.delete_object().bucket(object.bucket).key(object.key).send().await;
        match deleted.map_err(self.failed(key)) {
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn list(&self, prefix: &str) -> EntryStream {
        let request = self.s3.client.list_objects_v2().bucket(&self.bucket).prefix(format!("{}{prefix}", self.prefix));
        let pages = request.into_paginator().send();
        let state = (self.clone(), prefix.to_owned(), pages, VecDeque::new());
        stream::try_unfold(state, |(store, prefix, mut pages, mut entries)| async move {
            while entries.is_empty() {
                let Some(page) = pages.next().await else {
                    return Ok(None);
                };
                let page = page.map_err(store.failed(&prefix))?;
                entries.extend(page.contents().iter().filter_map(|object| {
                    // A name that cannot be a key was not written by us.
                    let key = Key::new(object.key()?.strip_prefix(&store.prefix)?).ok()?;
                    Some(Entry { key, meta: meta(object.size(), object.last_modified()) })
                }));
            }
            let entry = entries.pop_front().expect("the loop ends when there is one");
            Ok(Some((entry, (store, prefix, pages, entries))))
        })
        .boxed()
    }

    async fn presign_get(&self, key: &Key, valid: Duration) -> Result<Option<String>> {
        let object = self.object(key);
        let request = self.s3.client.get_object().bucket(object.bucket).key(object.key);
        let url = request.presigned(presigning(key, valid)?).await.map_err(self.failed(key))?;
        Ok(Some(url.uri().to_owned()))
    }

    async fn presign_put(&self, key: &Key, valid: Duration) -> Result<Option<String>> {
        let object = self.object(key);
        let request = self.s3.client.put_object().bucket(object.bucket).key(object.key);
        let url = request.presigned(presigning(key, valid)?).await.map_err(self.failed(key))?;
        Ok(Some(url.uri().to_owned()))
    }

    fn describe(&self) -> String {
        let prefix = self.prefix.trim_end_matches('/');
        let slash = if prefix.is_empty() { "" } else { "/" };
        let place = self.s3.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
        format!("s3://{}{slash}{prefix}{place}", self.bucket)
    }
}

fn presigning(key: &Key, valid: Duration) -> Result<PresigningConfig> {
    PresigningConfig::expires_in(valid).map_err(|e| StoreError::Refused { key: key.to_string(), source: e.into() })
}

fn meta(size_bytes: Option<i64>, modified: Option<&DateTime>) -> Meta {
    // Some services tell more than whole seconds in listings, but not elsewhere.
    let seconds = modified.map_or(0, DateTime::secs).max(0).unsigned_abs();
    Meta {
        size_bytes: size_bytes.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        modified: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
    }
}

/// Joins the pieces of a body of `size_bytes`, without a copy if there is only one.
async fn collect(size_bytes: u64, mut pieces: ByteStream) -> Result<Bytes> {
    let first = pieces.try_next().await?.unwrap_or_default();
    if first.len() as u64 == size_bytes {
        return Ok(first);
    }
    let mut body = BytesMut::with_capacity(size_bytes as usize);
    body.extend_from_slice(&first);
    while let Some(piece) = pieces.try_next().await? {
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_names_its_place_and_no_secret() {
        let s3 = S3::at("http://me:hush@127.0.0.1:9000/", "access", "hush").await;
        let store = s3.store("farm", "a/b/").unwrap();
        assert_eq!(store.describe(), "s3://farm/a/b at http://127.0.0.1:9000");
        assert_eq!(s3.store("farm", "").unwrap().describe(), "s3://farm at http://127.0.0.1:9000");
        assert!(!format!("{store:?}").contains("hush"));
    }

    #[tokio::test]
    async fn a_service_that_is_down_is_told_apart_from_a_wrong_address() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let s3 = S3::at(&format!("http://{free}"), "a", "b").await;
        let error = s3.store("farm", "").unwrap().check().await.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
        for bad in ["s3://farm", "s3://", "http://farm/key", "s3://fa rm/key"] {
            assert!(matches!(s3.object(bad).await, Err(StoreError::InvalidUrl { .. })), "{bad}");
        }
    }
}

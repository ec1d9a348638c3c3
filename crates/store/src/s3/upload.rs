//! A body on its way into S3: in one request if it is small, else in parts.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::primitives::ByteStream as Body;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use aws_sdk_s3::{Client, config};
use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::Object;
use super::failure::{broken, failure};
use crate::error::{Result, StoreError};
use crate::store::Writer;

/// The size of a part in bytes, where the size of the body is not known: 10,000 of them are 156 GiB. All parts but the
/// last are equal, because some services want it so.
pub(super) const PART_BYTES: usize = 16 * 1024 * 1024;

/// S3's limit.
const MAX_PARTS: u64 = 10_000;

/// How many parts are on their way at once, beside the one that fills up.
const PARTS_IN_FLIGHT: usize = 2;

/// The slowest line, in bytes a second, on which a part still arrives in time.
const SLOWEST_LINE: u64 = 256 * 1024;

/// How long the service may take to join the parts.
const JOIN_TIMEOUT: Duration = Duration::from_secs(300);

/// The configuration of a request whose answer may take as long as `timeout`.
fn patient(timeout: Duration) -> config::Builder {
    config::Config::builder().timeout_config(TimeoutConfig::builder().read_timeout(timeout).build())
}

/// The configuration of a request that sends `bytes`, the time for which counts as waiting for the answer.
fn patient_with(bytes: usize) -> config::Builder {
    patient(Duration::from_secs(30 + bytes as u64 / SLOWEST_LINE))
}

/// The size of a part for a body of `size_bytes`.
pub(super) fn part_bytes(size_bytes: u64) -> usize {
    (size_bytes.div_ceil(MAX_PARTS) as usize).max(PART_BYTES)
}

/// A body on its way. Holds up to three parts in memory.
#[derive(Debug)]
pub(super) struct Upload {
    client: Client,
    object: Object,
    part_bytes: usize,
    buffer: BytesMut,
    size_bytes: u64,
    parts: Option<Parts>,
}

/// A multipart upload that is neither completed nor aborted; dropping it aborts it.
#[derive(Debug)]
struct Parts {
    client: Client,
    object: Object,
    /// Empty once the upload is completed.
    id: String,
    count: u64,
    in_flight: JoinSet<Result<CompletedPart>>,
    done: Vec<CompletedPart>,
}

impl Upload {
    pub(super) fn new(client: Client, object: Object, part_bytes: usize) -> Self {
        Self { client, object, part_bytes, buffer: BytesMut::new(), size_bytes: 0, parts: None }
    }

    /// Sends what is left, makes the body visible, and returns its size.
    pub(super) async fn complete(mut self) -> Result<u64> {
        let rest = self.buffer.split().freeze();
        match self.parts.take() {
            None => {
                let Object { bucket, key, .. } = &self.object;
                let patience = patient_with(rest.len());
                let request = self.client.put_object().bucket(bucket).key(key).body(Body::from(rest));
                request.customize().config_override(patience).send().await.map_err(|e| failure(&self.object, e))?;
            }
            Some(mut parts) => {
                if !rest.is_empty() {
                    parts.send(rest).await?;
                }
                parts.complete().await?;
            }
        }
        Ok(self.size_bytes)
    }
}

#[async_trait]
impl Writer for Upload {
    async fn write(&mut self, mut piece: Bytes) -> Result<()> {
        self.size_bytes += piece.len() as u64;
        // A part is sent when a byte more than it is there, so that a body of one part needs no multipart upload.
        while self.buffer.len() + piece.len() > self.part_bytes {
            let room = self.part_bytes - self.buffer.len();
            let part = match self.buffer.is_empty() {
                true => piece.split_to(room),
                false => {
                    self.buffer.extend_from_slice(&piece.split_to(room));
                    self.buffer.split().freeze()
                }
            };
            let parts = match &mut self.parts {
                Some(parts) => parts,
                none => none.insert(Parts::begin(self.client.clone(), self.object.clone()).await?),
            };
            parts.send(part).await?;
        }
        self.buffer.extend_from_slice(&piece);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<u64> {
        self.complete().await
    }
}

impl Parts {
    async fn begin(client: Client, object: Object) -> Result<Self> {
        let request = client.create_multipart_upload().bucket(&object.bucket).key(&object.key);
        let begun = request.send().await.map_err(|e| failure(&object, e))?;
        let id = begun.upload_id.ok_or_else(|| broken(&object, "the service gave no upload id"))?;
        Ok(Self { client, object, id, count: 0, in_flight: JoinSet::new(), done: Vec::new() })
    }

    /// Sends the next part, as soon as few enough others are on their way.
    async fn send(&mut self, part: Bytes) -> Result<()> {
        if self.count == MAX_PARTS {
            let source = format!("it is larger than {MAX_PARTS} parts").into();
            return Err(StoreError::Refused { key: self.object.name.clone(), source });
        }
        while self.in_flight.len() >= PARTS_IN_FLIGHT {
            self.wait().await?;
        }
        self.count += 1;
        let number = self.count as i32; // at most MAX_PARTS
        let Object { bucket, key, .. } = &self.object;
        let request = self.client.upload_part().bucket(bucket).key(key).upload_id(&self.id).part_number(number);
        let object = self.object.clone();
        self.in_flight.spawn(async move {
            let patience = patient_with(part.len());
            let request = request.body(Body::from(part)).customize().config_override(patience);
            let sent = request.send().await.map_err(|e| failure(&object, e))?;
            Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build())
        });
        Ok(())
    }

    /// Waits until one of the parts has arrived.
    async fn wait(&mut self) -> Result<()> {
        if let Some(arrived) = self.in_flight.join_next().await {
            self.done.push(arrived.map_err(|e| broken(&self.object, e))??);
        }
        Ok(())
    }

    async fn complete(mut self) -> Result<()> {
        while !self.in_flight.is_empty() {
            self.wait().await?;
        }
        let mut done = std::mem::take(&mut self.done);
        done.sort_by_key(CompletedPart::part_number);
        let Object { bucket, key, .. } = &self.object;
        let request = self.client.complete_multipart_upload().bucket(bucket).key(key).upload_id(&self.id);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(done)).build();
        let request = request.multipart_upload(parts).customize();
        request.config_override(patient(JOIN_TIMEOUT)).send().await.map_err(|e| failure(&self.object, e))?;
        self.id.clear();
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if self.id.is_empty() {
            return;
        }
        let Object { bucket, key, name } = &self.object;
        let abort = self.client.abort_multipart_upload().bucket(bucket).key(key).upload_id(&self.id);
        let name = name.clone();
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut in_flight = std::mem::take(&mut self.in_flight);
        runtime.spawn(async move {
            // A part that arrives after the upload was aborted stays for ever.
            while in_flight.join_next().await.is_some() {}
            if let Err(error) = abort.send().await {
                tracing::warn!(key = name, %error, "could not abort an unfinished upload");
            }
        });
    }
}

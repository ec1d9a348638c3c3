//! A body on its way out of S3, which goes on where the connection broke off.

use std::ops::Range;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream as Body;
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use super::Object;
use super::failure::{broken, failure};
use crate::error::{Result, StoreError};
use crate::store::ByteStream;

/// How often in a row a download may break off without one more byte.
const MAX_BREAKS: u32 = 3;

/// Asks for `range` of `object`, not empty, or for all of it. Returns the number of bytes, and the bytes.
pub(super) async fn download(client: Client, object: Object, range: Option<Range<u64>>) -> Result<(u64, ByteStream)> {
    let answer = get(&client, &object, range.as_ref()).await?;
    let got = answer.content_length().and_then(|n| u64::try_from(n).ok());
    let got = got.ok_or_else(|| broken(&object, "the answer does not tell its length"))?;
    let Range { start, end } = range.unwrap_or(0..got);
    if start + got != end {
        let size_bytes = start + got; // a range is cut short only by the end of the body
        return Err(StoreError::OutOfRange { key: object.name, start, end, size_bytes });
    }
    let etag = answer.e_tag().map(str::to_owned);
    let download = Download { client, object, etag, next: start, end, body: Some(answer.body), breaks: 0 };
    let pieces = stream::try_unfold(download, |mut download| async move {
        Ok(download.piece().await?.map(|piece| (piece, download)))
    });
    Ok((got, pieces.boxed()))
}

async fn get(client: &Client, object: &Object, range: Option<&Range<u64>>) -> Result<GetObjectOutput> {
    let http_range = range.map(|range| format!("bytes={}-{}", range.start, range.end - 1));
    let request = client.get_object().bucket(&object.bucket).key(&object.key).set_range(http_range);
    match (request.send().await, range) {
        (Ok(answer), _) => Ok(answer),
        (Err(error), Some(range)) if error.raw_response().is_some_and(|answer| answer.status().as_u16() == 416) => {
            let size_bytes = size_bytes(client, object).await?;
            let Range { start, end } = *range;
            Err(StoreError::OutOfRange { key: object.name.clone(), start, end, size_bytes })
        }
        (Err(error), _) => Err(failure(object, error)),
    }
}

async fn size_bytes(client: &Client, object: &Object) -> Result<u64> {
    let head = client.head_object().bucket(&object.bucket).key(&object.key).send().await;
    let size_bytes = head.map_err(|e| failure(object, e))?.content_length();
    Ok(size_bytes.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
}

struct Download {
    client: Client,
    object: Object,
    etag: Option<String>,
    /// The next byte to come, and one past the last.
    next: u64,
    end: u64,
    body: Option<Body>,
    breaks: u32,
}

impl Download {
    /// The next piece of the body, or `None` after the last.
    async fn piece(&mut self) -> Result<Option<Bytes>> {
        while self.next < self.end {
            let cause = match self.body().await?.next().await {
                Some(Ok(piece)) if piece.is_empty() => continue,
                Some(Ok(piece)) if piece.len() as u64 <= self.end - self.next => {
                    self.next += piece.len() as u64;
                    self.breaks = 0;
                    return Ok(Some(piece));
                }
                Some(Ok(_)) => {
                    return Err(broken(&self.object, "the answer is longer than it told"));
                }
                Some(Err(error)) => error.to_string(),
                None => "the answer ended early".to_owned(),
            };
            self.body = None;
            self.breaks += 1;
            let (key, byte) = (&self.object.name, self.next);
            tracing::debug!(key, byte, cause, "download broke off");
            if self.breaks > MAX_BREAKS {
                return Err(broken(&self.object, format!("the download broke off at byte {byte}: {cause}")));
            }
            tokio::time::sleep(Duration::from_millis(50) * 4_u32.pow(self.breaks)).await;
        }
        Ok(None)
    }

    /// The answer that is being read, or a new one from the next byte on.
    async fn body(&mut self) -> Result<&mut Body> {
        if self.body.is_none() {
            let answer = get(&self.client, &self.object, Some(&(self.next..self.end))).await?;
            if answer.e_tag() != self.etag.as_deref() {
                return Err(broken(&self.object, "it was replaced while it was read"));
            }
            self.body = Some(answer.body);
        }
        Ok(self.body.as_mut().expect("it was just set"))
    }
}

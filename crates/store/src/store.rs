//! The trait that every adapter keeps, and what it hands out.

use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::error::{Result, StoreError};
use crate::key::Key;

/// The bytes of one artifact, in order, in pieces of the adapter's choosing.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// Artifacts in the byte order of their keys.
pub type EntryStream = BoxStream<'static, Result<Entry>>;

/// Bytes by key.
///
/// A body is seen whole or not at all, the last write wins, and a finished write is seen by everyone. Every call may
/// be repeated safely. No key may also be a folder of other keys (`a` beside `a/b`): a folder store cannot hold both.
#[async_trait]
pub trait Store: Send + Sync + Debug {
    /// Stores `body` under `key`, replacing what was there.
    async fn put(&self, key: &Key, body: Bytes) -> Result<()>;

    /// Stores the local file at `path` under `key`, replacing what was there, in bounded memory.
    ///
    /// [`StoreError::LocalFile`] if the file cannot be read.
    async fn put_file(&self, key: &Key, path: &Path) -> Result<()>;

    /// Begins to store a body whose size is not known yet, in bounded memory (on S3, up to 156 GiB).
    ///
    /// Nothing is seen under `key` before [`Writer::finish`], or ever, if the writer is dropped before it.
    async fn writer(&self, key: &Key) -> Result<Box<dyn Writer>>;

    /// Returns the whole body; for what is known to be small.
    async fn get(&self, key: &Key) -> Result<Bytes>;

    /// Returns the bytes `range.start..range.end`, all of them; an empty range gives no bytes.
    ///
    /// [`StoreError::OutOfRange`] if the body ends before the range does.
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes>;

    /// Returns the size of the body in bytes, and the body as a stream that ends with an error if it cannot give
    /// that many.
    async fn get_stream(&self, key: &Key) -> Result<(u64, ByteStream)>;

    /// Says what is stored under `key`, or `None` if nothing is.
    async fn head(&self, key: &Key) -> Result<Option<Meta>>;

    /// Removes `key`; it is no error if it is not there.
    async fn delete(&self, key: &Key) -> Result<()>;

    /// Lists the keys that begin with `prefix`, any string, in byte order; pages are fetched as the stream is read.
    ///
    /// Keys written or deleted meanwhile may or may not be listed.
    fn list(&self, prefix: &str) -> EntryStream;

    /// Returns a URL from which anyone may read `key` for the next `valid` (S3: at most a week).
    ///
    /// `None` where the adapter has no such thing. The key need not exist.
    async fn presign_get(&self, key: &Key, valid: Duration) -> Result<Option<String>>;

    /// Returns a URL to which anyone may PUT the body of `key` for the next `valid` (S3: at most a week and 5 GiB).
    ///
    /// `None` where the adapter has no such thing.
    async fn presign_put(&self, key: &Key, valid: Duration) -> Result<Option<String>>;

    /// Names the store for people: its kind and place, never a secret.
    fn describe(&self) -> String;

    /// Writes, reads back and deletes a small key under `health/`: for health checks and for `doctor`.
    async fn check(&self) -> Result<()> {
        let name = uuid::Uuid::new_v4().to_string();
        let key = Key::new(format!("health/{name}"))?;
        let body = Bytes::from(name);
        self.put(&key, body.clone()).await?;
        let read = self.get(&key).await?;
        self.delete(&key).await?;
        if read == body { Ok(()) } else { Err(StoreError::Damaged { key: key.to_string() }) }
    }
}

/// A body on its way into a [`Store`]. Dropped before [`finish`](Writer::finish), it leaves nothing behind.
#[async_trait]
pub trait Writer: Send + Debug {
    /// Appends `piece`; waits while the store takes it in more slowly than it comes.
    ///
    /// After an error the body is lost: drop the writer and begin anew.
    async fn write(&mut self, piece: Bytes) -> Result<()>;

    /// Makes the whole body visible under its key, and returns its size in bytes.
    async fn finish(self: Box<Self>) -> Result<u64>;
}

/// What a store knows of a body without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// The size of the body in bytes.
    pub size_bytes: u64,
    /// When the body was stored, by the store's own clock; S3 knows whole seconds.
    pub modified: SystemTime,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// What is stored under it.
    pub meta: Meta,
}

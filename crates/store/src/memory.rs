//! Bytes in this process: for tests, and for a farm that lives as long as one command.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};

use crate::error::{Result, StoreError};
use crate::key::Key;
use crate::store::{ByteStream, Entry, EntryStream, Meta, Store, Writer};

/// A store in memory. Its clones hold the same bytes.
#[derive(Clone, Default)]
pub struct MemoryStore {
    bodies: Arc<Mutex<BTreeMap<Key, (Bytes, SystemTime)>>>,
}

impl MemoryStore {
    /// Makes an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn bodies(&self) -> MutexGuard<'_, BTreeMap<Key, (Bytes, SystemTime)>> {
        self.bodies.lock().expect("no one panics while holding the bodies")
    }

    fn body(&self, key: &Key) -> Result<Bytes> {
        let found = self.bodies().get(key).map(|(body, _)| body.clone());
        found.ok_or_else(|| StoreError::NotFound { key: key.to_string() })
    }

    fn insert(&self, key: Key, body: Bytes) {
        self.bodies().insert(key, (body, SystemTime::now()));
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").field("keys", &self.bodies().len()).finish()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn put(&self, key: &Key, body: Bytes) -> Result<()> {
        self.insert(key.clone(), body);
        Ok(())
    }

    async fn put_file(&self, key: &Key, path: &Path) -> Result<()> {
        let body = tokio::fs::read(path).await;
        let body = body.map_err(|source| StoreError::LocalFile { path: path.to_owned(), source })?;
        self.put(key, body.into()).await
    }

    async fn writer(&self, key: &Key) -> Result<Box<dyn Writer>> {
        Ok(Box::new(MemoryWriter { store: self.clone(), key: key.clone(), body: BytesMut::new() }))
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.body(key)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let body = self.body(key)?;
        let size_bytes = body.len() as u64;
        if range.start > range.end || range.end > size_bytes {
            let Range { start, end } = range;
            return Err(StoreError::OutOfRange { key: key.to_string(), start, end, size_bytes });
        }
        Ok(body.slice(range.start as usize..range.end as usize))
    }

    async fn get_stream(&self, key: &Key) -> Result<(u64, ByteStream)> {
        let body = self.body(key)?;
        Ok((body.len() as u64, stream::once(async { Ok(body) }).boxed()))
    }

    async fn head(&self, key: &Key) -> Result<Option<Meta>> {
        Ok(self.bodies().get(key).map(meta))
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.bodies().remove(key);
        Ok(())
    }

    fn list(&self, prefix: &str) -> EntryStream {
        let bodies = self.bodies();
        let entries: Vec<_> = bodies
            .iter()
            .skip_while(|(key, _)| key.as_str() < prefix)
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .map(|(key, body)| Ok(Entry { key: key.clone(), meta: meta(body) }))
            .collect();
        stream::iter(entries).boxed()
    }

    async fn presign_get(&self, _: &Key, _: Duration) -> Result<Option<String>> {
        Ok(None)
    }

    async fn presign_put(&self, _: &Key, _: Duration) -> Result<Option<String>> {
        Ok(None)
    }

    fn describe(&self) -> String {
        "memory of this process".into()
    }
}

fn meta((body, modified): &(Bytes, SystemTime)) -> Meta {
    Meta { size_bytes: body.len() as u64, modified: *modified }
}

#[derive(Debug)]
struct MemoryWriter {
    store: MemoryStore,
    key: Key,
    body: BytesMut,
}

#[async_trait]
impl Writer for MemoryWriter {
    async fn write(&mut self, piece: Bytes) -> Result<()> {
        self.body.extend_from_slice(&piece);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<u64> {
        let size_bytes = self.body.len() as u64;
        self.store.insert(self.key, self.body.freeze());
        Ok(size_bytes)
    }
}

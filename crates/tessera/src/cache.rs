//! The cache folder: the store of the embedded farm, and keeping it within its limit.

use std::{
    fs::{File, TryLockError},
    path::PathBuf,
};

use anyhow::Context as _;
use futures::TryStreamExt as _;
use service::{config::Client, report::Hinted as _};
use store::{Evicted, FolderStore, Key, Store as _, Usage};
use tokio::task::spawn_blocking;

/// Where decoded pictures lie: many keys each, of which the first says that all are there.
const RASTERS: &str = "rasters/";

/// The folder of the embedded farm's store.
pub fn folder(client: &Client) -> PathBuf {
    client.cache.join("store")
}

/// Opens the embedded farm's store.
pub fn open(client: &Client) -> anyhow::Result<FolderStore> {
    usable(client, FolderStore::open(folder(client)))
}

fn usable<T, E: Into<anyhow::Error>>(client: &Client, result: Result<T, E>) -> anyhow::Result<T> {
    result
        .map_err(|error| error.into().context(format!("cannot use the cache folder {}", client.cache.display())))
        .hint("choose another folder with --cache or TESSERA_CACHE")
}

/// A farm at work over the cache folder: while it lives, in whatever process, nothing is deleted there.
#[derive(Debug)]
pub struct AtWork {
    /// Locked shared; the lock ends with the file.
    _lock: File,
}

/// Announces a farm over the cache folder; waits while the folder is being [shrunk](shrink).
pub async fn at_work(client: &Client) -> anyhow::Result<AtWork> {
    let lock = lock_file(client)?;
    let locked = spawn_blocking(move || lock.lock_shared().map(|()| AtWork { _lock: lock })).await?;
    usable(client, locked)
}

/// The file whose lock says who works in the cache folder: shared by farms, exclusive for whoever deletes.
fn lock_file(client: &Client) -> anyhow::Result<File> {
    let open = || {
        std::fs::create_dir_all(&client.cache)?;
        File::options().create(true).truncate(false).write(true).open(client.cache.join("cache.lock"))
    };
    usable(client, open())
}

/// Shrinks the store in the cache folder to its limit, unless a farm is [at work](at_work); a failure is only a warning.
pub async fn keep_small(client: &Client) {
    match shrink(client, client.cache_limit_bytes).await {
        Ok(Some(_)) => {}
        Ok(None) => tracing::debug!("left the cache as it is, because other runs use it"),
        Err(error) => tracing::warn!(error = format!("{error:#}"), "could not shrink the cache"),
    }
}

/// Deletes what was used least recently until at most `limit_bytes` are left: first artifacts and results, each on its
/// own, then decoded pictures, the oldest first and each as a whole. Models and jobs stay.
///
/// `None`: nothing was done, because a farm is [at work](at_work) over the folder.
pub async fn shrink(client: &Client, limit_bytes: u64) -> anyhow::Result<Option<Evicted>> {
    let lock = lock_file(client)?;
    match lock.try_lock() {
        Ok(()) => evict(&open(client)?, limit_bytes).await.map(Some),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => usable(client, Err(error)),
    }
}

async fn evict(store: &FolderStore, limit_bytes: u64) -> anyhow::Result<Evicted> {
    let keep = |key: &Key| !["artifacts/", "results/"].iter().any(|prefix| key.as_str().starts_with(prefix));
    let mut evicted = store.evict(limit_bytes, keep).await.context("cannot shrink the cache folder")?;
    if evicted.left.bytes > limit_bytes {
        let mut rasters = rasters(store).await?;
        rasters.sort_by_key(|raster| raster.stored);
        for raster in rasters {
            if evicted.left.bytes <= limit_bytes {
                break;
            }
            // The info first: a raster without its info is not there, one without a band would be broken.
            let (info, bands): (Vec<_>, Vec<_>) =
                raster.keys.into_iter().partition(|(key, _)| key.as_str().ends_with("/info.json"));
            for (key, size_bytes) in info.into_iter().chain(bands) {
                store.delete(&key).await.context("cannot shrink the cache folder")?;
                move_over(&mut evicted, size_bytes);
            }
        }
    }
    if evicted.deleted.keys > 0 {
        tracing::info!(deleted_bytes = evicted.deleted.bytes, left_bytes = evicted.left.bytes, "shrank the cache");
    }
    Ok(evicted)
}

fn move_over(evicted: &mut Evicted, size_bytes: u64) {
    let Usage { keys, bytes } = evicted.left;
    evicted.left = Usage { keys: keys.saturating_sub(1), bytes: bytes.saturating_sub(size_bytes) };
    evicted.deleted = Usage { keys: evicted.deleted.keys + 1, bytes: evicted.deleted.bytes + size_bytes };
}

/// A decoded picture.
struct Raster {
    stored: std::time::SystemTime,
    keys: Vec<(Key, u64)>,
}

async fn rasters(store: &FolderStore) -> anyhow::Result<Vec<Raster>> {
    let mut rasters = std::collections::BTreeMap::new();
    let mut entries = store.list(RASTERS);
    while let Some(entry) = entries.try_next().await.context("cannot read the cache folder")? {
        let name = entry.key.as_str().split('/').nth(1).unwrap_or_default().to_owned();
        let raster = rasters.entry(name).or_insert(Raster { stored: entry.meta.modified, keys: Vec::new() });
        raster.stored = raster.stored.max(entry.meta.modified);
        raster.keys.push((entry.key, entry.meta.size_bytes));
    }
    Ok(rasters.into_values().collect())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn nothing_is_deleted_while_a_farm_is_at_work() {
        let root = tempfile::tempdir().unwrap();
        let client = Client { server: None, cache: root.path().to_owned(), cache_limit_bytes: 0 };
        let store = open(&client).unwrap();
        store.put(&Key::new("results/c/1").unwrap(), Bytes::from_static(b"a tile")).await.unwrap();
        let farms = (at_work(&client).await.unwrap(), at_work(&client).await.unwrap());
        keep_small(&client).await;
        drop(farms.0);
        assert_eq!(shrink(&client, 0).await.unwrap(), None);
        assert_eq!(store.usage().await.unwrap().keys, 1);
        drop(farms.1);
        keep_small(&client).await;
        assert_eq!(store.usage().await.unwrap().keys, 0);
        at_work(&client).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_cache_loses_results_before_whole_pictures_and_never_models() {
        let root = tempfile::tempdir().unwrap();
        let store = FolderStore::open(root.path()).unwrap();
        let kib = Bytes::from(vec![0; 1024]);
        let names = ["artifacts/a", "jobs/f/1/job.json", "models/m", "rasters/p/band-000000", "rasters/p/info.json"];
        for name in names.into_iter().chain(["results/c/1", "results/c/2"]) {
            store.put(&Key::new(name).unwrap(), kib.clone()).await.unwrap();
        }
        let left = async |limit| {
            let evicted = evict(&store, limit).await.unwrap();
            let keys: Vec<_> = store.list("").map_ok(|entry| entry.key.to_string()).try_collect().await.unwrap();
            assert_eq!(evicted.left, store.usage().await.unwrap());
            keys
        };
        assert_eq!(left(7 * 1024).await.len(), 7);
        assert_eq!(left(4 * 1024).await, names[1..]);
        assert_eq!(left(3 * 1024).await, ["jobs/f/1/job.json", "models/m"]);
        assert_eq!(left(0).await, ["jobs/f/1/job.json", "models/m"]);
    }
}

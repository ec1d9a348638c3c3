//! The models on this machine's disk, each under its digest.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use domain::{digest::Digest, layout};
use futures::StreamExt;
use store::{Digester, Key, Store};
use tempfile::NamedTempFile;
use tokio::{io::AsyncWriteExt, sync::Mutex, task::spawn_blocking};
use tracing::{info, warn};

use super::FetchError;

/// How often the time stamp of a model in use is renewed.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);

/// Files in one folder, named by their digests. Several workers may share the folder.
///
/// A file is believed only after its digest was computed once in this process. The files used least recently are
/// removed when all of them together grow over the limit, but never the newest.
#[derive(Debug)]
pub struct DiskCache {
    folder: PathBuf,
    limit_bytes: u64,
    /// When each model that was verified was last touched. Held while one is fetched, so that none is fetched twice.
    verified: Mutex<HashMap<Digest, Instant>>,
}

impl DiskCache {
    /// A cache in `folder`, which is made if it is not there, of at most `limit_bytes`.
    pub fn open(folder: &Path, limit_bytes: u64) -> Result<Self, FetchError> {
        fs::create_dir_all(folder).map_err(unusable(folder))?;
        Ok(Self { folder: folder.to_owned(), limit_bytes, verified: Mutex::default() })
    }

    /// The file of `model`, fetched from `store` if it is not here.
    pub async fn weights(&self, store: &dyn Store, model: Digest) -> Result<PathBuf, FetchError> {
        let path = self.folder.join(model.to_string());
        let mut verified = self.verified.lock().await;
        let here = tokio::fs::try_exists(&path).await.unwrap_or(false);
        match verified.get(&model) {
            Some(touched) if here && touched.elapsed() < TOUCH_INTERVAL => return Ok(path),
            Some(_) if here => touch(&path),
            _ if here && is_intact(&path, model).await? => touch(&path),
            _ => self.download(store, model, &path).await?,
        }
        verified.insert(model, Instant::now());
        Ok(path)
    }

    async fn download(&self, store: &dyn Store, model: Digest, path: &Path) -> Result<(), FetchError> {
        let unusable = || unusable(path);
        let temporary = NamedTempFile::new_in(&self.folder).map_err(unusable())?;
        let mut file = tokio::fs::File::from_std(temporary.reopen().map_err(unusable())?);
        let (size_bytes, mut pieces) = store.get_stream(&Key::new(layout::model(model))?).await?;
        let mut digester = Digester::default();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            digester.update(&piece);
            file.write_all(&piece).await.map_err(unusable())?;
        }
        file.flush().await.map_err(unusable())?;
        let found = digester.finish();
        if found != model.to_string() {
            let found = found.parse().expect("a digest is a digest");
            return Err(FetchError::WrongModel { model, found });
        }
        temporary.persist(path).map_err(|error| unusable()(error.error))?;
        info!(model = %model, size_bytes, "fetched a model");
        self.evict(path).await;
        Ok(())
    }

    /// Removes the files used least recently until the rest, with `newest`, is within the limit.
    async fn evict(&self, newest: &Path) {
        let (folder, limit_bytes, newest) = (self.folder.clone(), self.limit_bytes, newest.to_owned());
        let evicted = spawn_blocking(move || evict(&folder, limit_bytes, &newest)).await;
        match evicted {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => info!(model.count = count, "removed models from the cache"),
            Ok(Err(error)) => warn!(%error, "the model cache cannot be kept within its limit"),
            Err(panicked) => warn!(%panicked, "the model cache cannot be kept within its limit"),
        }
    }
}

/// Whether the file at `path` is `model`; it is removed if not.
async fn is_intact(path: &Path, model: Digest) -> Result<bool, FetchError> {
    let file = path.to_owned();
    let found = spawn_blocking(move || weights::digest::sha256_file(&file)).await.map_err(io::Error::other);
    let found = found.flatten().map_err(unusable(path))?;
    let intact = found == model.to_string();
    if !intact {
        warn!(model = %model, %found, "removed a damaged model from the cache");
        fs::remove_file(path).map_err(unusable(path))?;
    }
    Ok(intact)
}

/// Marks the file as used now; only the order of eviction depends on it.
fn touch(path: &Path) {
    let touched = fs::File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        warn!(path = %path.display(), %error, "cannot mark a model as used");
    }
}

fn evict(folder: &Path, limit_bytes: u64, newest: &Path) -> io::Result<usize> {
    let mut models = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_model = entry.file_name().to_str().is_some_and(|name| name.parse::<Digest>().is_ok());
        if let (true, Ok(facts)) = (is_model, entry.metadata()) {
            models.push((facts.modified()?, facts.len(), entry.path()));
        }
    }
    models.sort();
    let mut total: u64 = models.iter().map(|(_, size_bytes, _)| size_bytes).sum();
    let mut evicted = 0;
    for (_, size_bytes, path) in models {
        if total <= limit_bytes {
            break;
        }
        if path != newest {
            fs::remove_file(&path)?;
            total -= size_bytes;
            evicted += 1;
        }
    }
    Ok(evicted)
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Disk { path, source }
}

#[cfg(test)]
mod tests {
    use store::MemoryStore;
    use tempfile::TempDir;

    use super::*;

    async fn put(store: &MemoryStore, model: Digest, bytes: &'static [u8]) {
        store.put(&Key::new(layout::model(model)).unwrap(), bytes.into()).await.unwrap();
    }

    #[tokio::test]
    async fn a_model_is_fetched_once_and_again_when_its_file_was_damaged() {
        let (store, folder) = (MemoryStore::new(), TempDir::new().unwrap());
        let model = Digest::of(b"weights");
        put(&store, model, b"weights").await;
        let path = DiskCache::open(folder.path(), 100).unwrap().weights(&store, model).await.unwrap();
        store.delete(&Key::new(layout::model(model)).unwrap()).await.unwrap();
        let cache = DiskCache::open(folder.path(), 100).unwrap();
        assert_eq!(cache.weights(&store, model).await.unwrap(), path);

        fs::write(&path, b"wei?hts").unwrap();
        let cache = DiskCache::open(folder.path(), 100).unwrap();
        let error = cache.weights(&store, model).await.unwrap_err();
        assert!(matches!(error, FetchError::Store(store::StoreError::NotFound { .. })), "{error}");
        assert!(!path.exists());
        put(&store, model, b"weights").await;
        assert_eq!(fs::read(cache.weights(&store, model).await.unwrap()).unwrap(), b"weights");
    }

    #[tokio::test]
    async fn a_model_that_is_not_what_its_name_says_is_refused_and_not_kept() {
        let (store, folder) = (MemoryStore::new(), TempDir::new().unwrap());
        let model = Digest::of(b"weights");
        put(&store, model, b"other weights").await;
        let error = DiskCache::open(folder.path(), 100).unwrap().weights(&store, model).await.unwrap_err();
        assert!(matches!(&error, FetchError::WrongModel { found, .. } if *found == Digest::of(b"other weights")));
        assert_eq!(error.verdict(), crate::engine::Verdict::Fail);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn the_model_used_least_recently_makes_room() {
        let (store, folder) = (MemoryStore::new(), TempDir::new().unwrap());
        let cache = DiskCache::open(folder.path(), 20).unwrap();
        let models = [b"weights 1", b"weights 2", b"weights 3"].map(|bytes| (Digest::of(bytes), bytes));
        let mut paths = Vec::new();
        for (age_s, (model, bytes)) in [30, 60, 0].into_iter().zip(models) {
            put(&store, model, bytes).await;
            paths.push(cache.weights(&store, model).await.unwrap());
            let file = fs::File::options().append(true).open(&paths[paths.len() - 1]).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
        }
        assert_eq!(paths.iter().map(|path| path.exists()).collect::<Vec<_>>(), [true, false, true]);
        assert!(cache.weights(&store, models[1].0).await.unwrap().exists()); // it is fetched again when it is wanted
    }
}

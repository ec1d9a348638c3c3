//! Bytes in a folder: the embedded farm's cache, or a disk that several machines share.
//!
//! A key is a path below the root. A body is written to a temporary file first and renamed, so it is seen whole or not
//! at all, also by other processes on the same folder. The temporary files of a process lie in a folder of their own
//! under `.tmp`, which it keeps locked; whoever opens the store next clears away what a dead process left.

mod walk;

use std::fs::{self, File, FileTimes, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tempfile::TempPath;
use tokio::io::AsyncWriteExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::ReaderStream;

use self::walk::walk;
use crate::error::{Result, StoreError};
use crate::key::Key;
use crate::store::{ByteStream, Entry, EntryStream, Meta, Store, Writer};

/// The folder under the root for files that are not whole yet; no key can name it.
const TEMP: &str = ".tmp";

/// How exactly the time of the last use is kept, so that reading seldom writes.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

/// How many bytes a stream reads at once.
const READ_BYTES: usize = 256 * 1024;

/// A store in a folder. Its clones share the folder.
#[derive(Debug, Clone)]
pub struct FolderStore {
    folder: Arc<Folder>,
    fsync: bool,
}

/// How much a [`FolderStore`] holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many keys.
    pub keys: u64,
    /// The sum of their bodies' sizes, in bytes.
    pub bytes: u64,
}

/// What [`FolderStore::evict`] deleted, and what is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    /// What was deleted.
    pub deleted: Usage,
    /// What is left; above the limit only if the rest had to be kept.
    pub left: Usage,
}

impl FolderStore {
    /// Opens the store in the folder `root`, made if it is not there, and clears away what dead processes left half
    /// written. Blocks for a few file operations.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let folder = Folder::open(&root).map_err(|e| StoreError::from_io(root.display(), e))?;
        Ok(Self { folder: Arc::new(folder), fsync: false })
    }

    /// Sets whether every write waits until the disk has it. Without (the default), a body outlives the process, but
    /// a power cut may lose or empty the last ones written.
    pub fn with_fsync(mut self, fsync: bool) -> Self {
        self.fsync = fsync;
        self
    }

    /// Counts what the store holds; reads the whole folder.
    pub async fn usage(&self) -> Result<Usage> {
        let folder = self.folder.clone();
        blocking(move || {
            let mut usage = Usage::default();
            for found in walk(&folder.root, "") {
                let (_, metadata) = found.map_err(|e| folder.failure(e))?;
                usage.add(metadata.len());
            }
            Ok(usage)
        })
        .await
    }

    /// Deletes the least recently used bodies, those not to `keep`, until at most `limit_bytes` are left.
    ///
    /// A body counts as used when it is stored or read, to the minute. Who is reading one meanwhile reads on.
    pub async fn evict(&self, limit_bytes: u64, keep: impl Fn(&Key) -> bool + Send + 'static) -> Result<Evicted> {
        let folder = self.folder.clone();
        blocking(move || {
            let mut evicted = Evicted::default();
            let mut candidates = Vec::new();
            for found in walk(&folder.root, "") {
                let (key, metadata) = found.map_err(|e| folder.failure(e))?;
                evicted.left.add(metadata.len());
                if !keep(&key) {
                    candidates.push((last_used(&metadata), key, metadata.len()));
                }
            }
            candidates.sort();
            for (_, key, size_bytes) in candidates {
                if evicted.left.bytes <= limit_bytes {
                    break;
                }
                folder.delete(&key)?;
                evicted.left.subtract(size_bytes);
                evicted.deleted.add(size_bytes);
            }
            Ok(evicted)
        })
        .await
    }

    /// Runs `work` on the folder where it may block.
    async fn on_disk<T: Send + 'static>(
        &self,
        key: &Key,
        work: impl FnOnce(&Folder, &Key) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (folder, key) = (self.folder.clone(), key.clone());
        blocking(move || work(&folder, &key)).await
    }
}

#[async_trait]
impl Store for FolderStore {
    async fn put(&self, key: &Key, body: Bytes) -> Result<()> {
        let fsync = self.fsync;
        self.on_disk(key, move |folder, key| {
            let temp = folder.temp_path(key)?;
            fs::write(&temp, &body).map_err(|e| folder.write_failure(key, e))?;
            folder.publish(temp, key, fsync)
        })
        .await
    }

    async fn put_file(&self, key: &Key, path: &Path) -> Result<()> {
        let (fsync, path) = (self.fsync, path.to_owned());
        self.on_disk(key, move |folder, key| {
            let file = File::open(&path).and_then(|file| Ok((file.metadata()?.is_file(), file)));
            let mut source = match file {
                Ok((true, file)) => file,
                Ok((false, _)) => {
                    return Err(StoreError::LocalFile { path, source: io::ErrorKind::IsADirectory.into() });
                }
                Err(source) => return Err(StoreError::LocalFile { path, source }),
            };
            let temp = folder.temp_path(key)?;
            let copied = File::create(&temp).and_then(|mut target| io::copy(&mut source, &mut target));
            copied.map_err(|e| folder.write_failure(key, e))?;
            folder.publish(temp, key, fsync)
        })
        .await
    }

    async fn writer(&self, key: &Key) -> Result<Box<dyn Writer>> {
        let (temp, file) = self
            .on_disk(key, |folder, key| {
                let temp = folder.temp_path(key)?;
                let file = File::create(&temp).map_err(|e| folder.write_failure(key, e))?;
                Ok((temp, file))
            })
            .await?;
        Ok(Box::new(FolderWriter { store: self.clone(), key: key.clone(), file: file.into(), temp, size_bytes: 0 }))
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.on_disk(key, |folder, key| {
            let (mut file, metadata) = folder.read(key)?;
            let mut body = Vec::with_capacity(metadata.len() as usize);
            file.read_to_end(&mut body).map_err(|e| StoreError::from_io(key, e))?;
            Ok(body.into())
        })
        .await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.on_disk(key, move |folder, key| {
            let (mut file, metadata) = folder.read(key)?;
            let Range { start, end } = range;
            if start > end || end > metadata.len() {
                let size_bytes = metadata.len();
                return Err(StoreError::OutOfRange { key: key.to_string(), start, end, size_bytes });
            }
            let mut body = vec![0; (end - start) as usize];
            let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut body));
            read.map_err(|e| StoreError::from_io(key, e))?;
            Ok(body.into())
        })
        .await
    }

    async fn get_stream(&self, key: &Key) -> Result<(u64, ByteStream)> {
        let (file, metadata) = self.on_disk(key, Folder::read).await?;
        let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ_BYTES);
        let key = key.clone();
        Ok((metadata.len(), pieces.map_err(move |e| StoreError::from_io(&key, e)).boxed()))
    }

    async fn head(&self, key: &Key) -> Result<Option<Meta>> {
        self.on_disk(key, |folder, key| match fs::metadata(folder.path(key)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(meta(&metadata))),
            Ok(_) => Ok(None),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(StoreError::from_io(key, e)),
        })
        .await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.on_disk(key, Folder::delete).await
    }

    fn list(&self, prefix: &str) -> EntryStream {
        let (folder, prefix) = (self.folder.clone(), prefix.to_owned());
        let (entries, receiver) = tokio::sync::mpsc::channel(256);
        tokio::task::spawn_blocking(move || {
            for found in walk(&folder.root, &prefix) {
                let entry = found.map(|(key, metadata)| Entry { key, meta: meta(&metadata) });
                if entries.blocking_send(entry.map_err(|e| folder.failure(e))).is_err() {
                    return; // nobody listens any more
                }
            }
        });
        ReceiverStream::new(receiver).boxed()
    }

    async fn presign_get(&self, _: &Key, _: Duration) -> Result<Option<String>> {
        Ok(None)
    }

    async fn presign_put(&self, _: &Key, _: Duration) -> Result<Option<String>> {
        Ok(None)
    }

    fn describe(&self) -> String {
        format!("folder {}", self.folder.root.display())
    }
}

#[derive(Debug)]
struct FolderWriter {
    store: FolderStore,
    key: Key,
    file: tokio::fs::File,
    temp: TempPath, // deletes the file when dropped
    size_bytes: u64,
}

#[async_trait]
impl Writer for FolderWriter {
    async fn write(&mut self, piece: Bytes) -> Result<()> {
        let written = self.file.write_all(&piece).await;
        written.map_err(|e| self.store.folder.write_failure(&self.key, e))?;
        self.size_bytes += piece.len() as u64;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<u64> {
        let flushed = self.file.flush().await;
        flushed.map_err(|e| self.store.folder.write_failure(&self.key, e))?;
        let Self { store, key, file, temp, size_bytes } = *self;
        drop(file);
        let fsync = store.fsync;
        store.on_disk(&key, move |folder, key| folder.publish(temp, key, fsync)).await?;
        Ok(size_bytes)
    }
}

/// The folder itself: everything here blocks.
#[derive(Debug)]
struct Folder {
    root: PathBuf,
    /// This process's own folder for temporary files, ours as long as `_lock` is held.
    temp: PathBuf,
    temp_count: AtomicU64,
    _lock: File,
}

impl Folder {
    fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let root = root.canonicalize()?;
        let all_temps = root.join(TEMP);
        fs::create_dir_all(&all_temps)?;
        // One at a time: a folder that was just made and is not locked yet must not look abandoned.
        let door = File::create(all_temps.join("lock"))?;
        door.lock()?;
        clear_abandoned(&all_temps)?;
        let temp = tempfile::Builder::new().prefix("").tempdir_in(&all_temps)?.keep();
        let lock = File::create(temp.join("lock"))?;
        lock.lock()?;
        Ok(Self { root, temp, temp_count: AtomicU64::new(0), _lock: lock })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// Names a new temporary file, which is deleted when the name is dropped.
    fn temp_path(&self, key: &Key) -> Result<TempPath> {
        let name = self.temp_count.fetch_add(1, Ordering::Relaxed).to_string();
        TempPath::try_from_path(self.temp.join(name)).map_err(|e| self.write_failure(key, e))
    }

    /// Makes the whole temporary file visible as `key`.
    fn publish(&self, mut temp: TempPath, key: &Key, fsync: bool) -> Result<()> {
        let failure = |e| self.write_failure(key, e);
        if fsync {
            File::open(&temp).and_then(|file| file.sync_all()).map_err(failure)?;
        }
        let path = self.path(key);
        let parent = path.parent().expect("a key lies below the root");
        let mut tries_left = 10;
        loop {
            let renamed = match fs::create_dir_all(parent) {
                Ok(()) => temp.persist(&path).map_err(|e| (e.error, e.path)),
                Err(e) => Err((e, temp)),
            };
            match renamed {
                Ok(()) => break,
                // Someone who deleted the last key of this folder may have deleted the folder between the two steps.
                Err((e, back)) if e.kind() == io::ErrorKind::NotFound && tries_left > 0 => {
                    temp = back;
                    tries_left -= 1;
                }
                Err((e, _)) => return Err(failure(e)),
            }
        }
        if fsync {
            File::open(parent).and_then(|folder| folder.sync_all()).map_err(failure)?;
        }
        Ok(())
    }

    /// Opens the body of `key`, and notes that it was used.
    fn read(&self, key: &Key) -> Result<(File, Metadata)> {
        let not_found = || StoreError::NotFound { key: key.to_string() };
        let opened = File::open(self.path(key)).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((metadata, file)) if metadata.is_file() => {
                touch(&file, &metadata);
                Ok((file, metadata))
            }
            Ok(_) => Err(not_found()),
            Err(e) if is_absent(&e) => Err(not_found()),
            Err(e) => Err(StoreError::from_io(key, e)),
        }
    }

    /// Deletes the body of `key`, and the folders that this leaves empty.
    fn delete(&self, key: &Key) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if is_absent(&e) || path.is_dir() => return Ok(()),
            Err(e) => return Err(StoreError::from_io(key, e)),
        }
        let parents = path.ancestors().skip(1).take_while(|parent| *parent != self.root);
        for parent in parents {
            if fs::remove_dir(parent).is_err() {
                break; // not empty, or gone already
            }
        }
        Ok(())
    }

    /// Sorts an error of the folder as a whole.
    fn failure(&self, source: io::Error) -> StoreError {
        StoreError::from_io(self.root.display(), source)
    }

    /// Sorts an error of writing `key`: what is not found then is not the key, but the store under our feet.
    fn write_failure(&self, key: &Key, source: io::Error) -> StoreError {
        match source.kind() {
            io::ErrorKind::NotFound => StoreError::Unavailable { key: key.to_string(), source: source.into() },
            _ => StoreError::from_io(key, source),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A writer keeps its store alive, so nothing of ours is in use; the lock file may go while it is held.
        let _ = fs::remove_dir_all(&self.temp);
    }
}

impl Usage {
    fn add(&mut self, bytes: u64) {
        self.keys += 1;
        self.bytes += bytes;
    }

    fn subtract(&mut self, bytes: u64) {
        self.keys -= 1;
        self.bytes -= bytes;
    }
}

/// Deletes the temporary folders whose owner no longer holds its lock.
fn clear_abandoned(all_temps: &Path) -> io::Result<()> {
    for entry in fs::read_dir(all_temps)? {
        let folder = entry?.path();
        if !folder.is_dir() {
            continue;
        }
        let in_use = File::open(folder.join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
        if !in_use && let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "left files of a dead process in place");
        }
    }
    Ok(())
}

/// Notes that a body was used, as its time of access: the file system does not do so reliably by itself.
fn touch(file: &File, metadata: &Metadata) {
    let stale = last_used(metadata).elapsed().is_ok_and(|age| age > TOUCH_EVERY);
    if stale {
        // Another user's file may be readable, but not ours to touch; then it only looks older than it is.
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
    }
}

fn last_used(metadata: &Metadata) -> SystemTime {
    let modified = modified(metadata);
    metadata.accessed().map_or(modified, |accessed| accessed.max(modified))
}

fn modified(metadata: &Metadata) -> SystemTime {
    metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH) // no platform that we know lacks it
}

fn meta(metadata: &Metadata) -> Meta {
    Meta { size_bytes: metadata.len(), modified: modified(metadata) }
}

/// Whether the path is not there: either its last segment, or one before it is a file and no folder.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(stopped) => Err(StoreError::Unavailable { key: "disk".into(), source: stopped.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    /// Sets when the body of `name` was last used, `hours` ago.
    fn used(store: &FolderStore, name: &str, hours: u64) {
        let at = SystemTime::now() - Duration::from_secs(hours * 3600);
        let file = File::options().write(true).open(store.folder.path(&key(name))).unwrap();
        file.set_times(FileTimes::new().set_accessed(at).set_modified(at)).unwrap();
    }

    async fn names(store: &FolderStore) -> Vec<String> {
        store.list("").map_ok(|entry| entry.key.to_string()).try_collect().await.unwrap()
    }

    #[tokio::test]
    async fn the_least_recently_used_bodies_go_first() {
        let root = tempfile::tempdir().unwrap();
        let store = FolderStore::open(root.path()).unwrap();
        for (name, hours) in [("a/oldest", 4), ("a/read-again", 3), ("b/kept", 2), ("b/old", 1), ("c", 0)] {
            store.put(&key(name), Bytes::from(vec![0; 1000])).await.unwrap();
            used(&store, name, hours);
        }
        assert_eq!(store.usage().await.unwrap(), Usage { keys: 5, bytes: 5000 });
        let stored = store.head(&key("a/read-again")).await.unwrap();
        store.get_range(&key("a/read-again"), 0..1).await.unwrap();
        assert_eq!(store.head(&key("a/read-again")).await.unwrap(), stored, "reading is not storing");

        let evicted = store.evict(3500, |key| key.as_str() == "b/kept").await.unwrap();
        assert_eq!(evicted.deleted, Usage { keys: 2, bytes: 2000 });
        assert_eq!(evicted.left, store.usage().await.unwrap());
        assert_eq!(names(&store).await, ["a/read-again", "b/kept", "c"]);

        let evicted = store.evict(0, |key| key.as_str() == "b/kept").await.unwrap();
        assert_eq!(evicted.left, Usage { keys: 1, bytes: 1000 });
        assert!(!root.path().join("a").exists(), "an empty folder is left");
    }

    #[tokio::test]
    async fn what_a_dead_process_left_is_cleared_and_what_a_living_one_writes_is_not() {
        let root = tempfile::tempdir().unwrap();
        let living = FolderStore::open(root.path()).unwrap();
        let mut writer = living.writer(&key("a")).await.unwrap();
        writer.write(Bytes::from_static(b"half ")).await.unwrap();

        let abandoned = root.path().join(TEMP).join("abandoned");
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join("lock"), "").unwrap();
        fs::write(abandoned.join("0"), "half a body").unwrap();

        let second = FolderStore::open(root.path()).unwrap();
        assert!(!abandoned.exists());
        writer.write(Bytes::from_static(b"and whole")).await.unwrap();
        writer.finish().await.unwrap();
        assert_eq!(second.get(&key("a")).await.unwrap(), "half and whole");

        drop((living, second));
        let left: Vec<_> = fs::read_dir(root.path().join(TEMP)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"], "a store that was closed leaves no files");
    }

    #[tokio::test]
    async fn a_key_that_is_also_a_folder_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let store = FolderStore::open(root.path()).unwrap();
        store.put(&key("a/b"), Bytes::from_static(b"x")).await.unwrap();
        for name in ["a", "a/b/c"] {
            let error = store.put(&key(name), Bytes::new()).await.unwrap_err();
            assert!(!error.is_retryable(), "{name} gave {error:?}");
            assert_eq!(store.head(&key(name)).await.unwrap(), None);
            assert!(matches!(store.get(&key(name)).await, Err(StoreError::NotFound { .. })));
            store.delete(&key(name)).await.unwrap();
        }
        assert_eq!(names(&store).await, ["a/b"]);
    }
}

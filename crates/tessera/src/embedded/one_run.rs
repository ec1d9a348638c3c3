//! A store whose jobs live as long as the process, over a folder that keeps everything else.

use std::{ops::Range, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use store::{ByteStream, EntryStream, FolderStore, Key, MemoryStore, Meta, Result, Store, Writer};

/// Where the coordinator keeps its jobs.
const JOBS: &str = "jobs/";

/// A folder store for a farm that lives for one command.
///
/// What is named by its content may be shared with other processes over the same folder, but a job has one writer: a
/// farm that took up another one's jobs would render them twice. So jobs stay in memory.
#[derive(Debug)]
pub struct OneRun {
    jobs: MemoryStore,
    rest: Arc<FolderStore>,
}

impl OneRun {
    /// A store over `folder`, without any job.
    pub fn over(folder: FolderStore) -> Self {
        Self { jobs: MemoryStore::new(), rest: Arc::new(folder) }
    }

    fn home(&self, name: &str) -> &dyn Store {
        if name.starts_with(JOBS) { &self.jobs } else { &*self.rest }
    }
}

#[async_trait]
impl Store for OneRun {
    async fn put(&self, key: &Key, body: Bytes) -> Result<()> {
        self.home(key.as_str()).put(key, body).await
    }

    async fn put_file(&self, key: &Key, path: &Path) -> Result<()> {
        self.home(key.as_str()).put_file(key, path).await
    }

    async fn writer(&self, key: &Key) -> Result<Box<dyn Writer>> {
        self.home(key.as_str()).writer(key).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.home(key.as_str()).get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.home(key.as_str()).get_range(key, range).await
    }

    async fn get_stream(&self, key: &Key) -> Result<(u64, ByteStream)> {
        self.home(key.as_str()).get_stream(key).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Meta>> {
        self.home(key.as_str()).head(key).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.home(key.as_str()).delete(key).await
    }

    /// Lists jobs or everything else: a prefix shorter than `jobs/` lists the folder.
    fn list(&self, prefix: &str) -> EntryStream {
        self.home(prefix).list(prefix)
    }

    async fn presign_get(&self, key: &Key, valid: Duration) -> Result<Option<String>> {
        self.home(key.as_str()).presign_get(key, valid).await
    }

    async fn presign_put(&self, key: &Key, valid: Duration) -> Result<Option<String>> {
        self.home(key.as_str()).presign_put(key, valid).await
    }

    fn describe(&self) -> String {
        self.rest.describe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_end_with_the_run_and_everything_else_stays() {
        let root = tempfile::tempdir().unwrap();
        let key = |name: &str| Key::new(name).unwrap();
        let (job, result) = (key("jobs/farm/1/job.json"), key("results/a/1"));
        let open = || OneRun::over(FolderStore::open(root.path()).unwrap());
        let first = open();
        first.put(&job, Bytes::from_static(b"job")).await.unwrap();
        first.put(&result, Bytes::from_static(b"result")).await.unwrap();
        assert_eq!(first.get(&job).await.unwrap(), "job");
        let second = open();
        assert_eq!(second.head(&job).await.unwrap(), None);
        assert_eq!(second.get(&result).await.unwrap(), "result");
    }
}

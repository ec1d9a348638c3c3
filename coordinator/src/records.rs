//! Job records in the store: what a new coordinator needs to go on where the last one stopped.

use std::sync::Arc;

use domain::{
    job::{Job, JobId},
    layout,
};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Serialize, de::DeserializeOwned};
use store::{Key, Store, StoreError};

use crate::ledger::Ending;

/// How many records are read at once at start.
const CONCURRENT_READS: usize = 32;

/// Reads and writes job records.
#[derive(Debug, Clone)]
pub struct Records {
    store: Arc<dyn Store>,
    namespace: String,
}

impl Records {
    /// The records of the farm called `namespace` in `store`.
    pub fn new(store: Arc<dyn Store>, namespace: &str) -> Self {
        Self { store, namespace: namespace.to_owned() }
    }

    /// Stores a job.
    pub async fn put_job(&self, job: &Job) -> Result<(), StoreError> {
        put_json(&*self.store, &layout::job(&self.namespace, &job.id), job).await
    }

    /// Stores how a job ended.
    pub async fn put_ending(&self, job: &JobId, ending: &Ending) -> Result<(), StoreError> {
        put_json(&*self.store, &layout::job_ending(&self.namespace, job), ending).await
    }

    /// Forgets how a job ended: it runs again.
    pub async fn delete_ending(&self, job: &JobId) -> Result<(), StoreError> {
        self.store.delete(&Key::new(layout::job_ending(&self.namespace, job))?).await
    }

    /// Reads a job, if there is such a one.
    pub async fn job(&self, id: &JobId) -> Result<Option<Job>, StoreError> {
        get_json(&*self.store, &layout::job(&self.namespace, id)).await
    }

    /// Reads all jobs and how they ended.
    pub async fn all(&self) -> Result<Vec<(Job, Option<Ending>)>, StoreError> {
        let listed: Vec<_> = self.store.list(&layout::jobs(&self.namespace)).try_collect().await?;
        let keys = listed.into_iter().map(|entry| entry.key).filter(|key| key.as_str().ends_with("/job.json"));
        let read = keys.map(|key| async move {
            let job: Option<Job> = get_json(&*self.store, key.as_str()).await?;
            let Some(job) = job else { return Ok(None) };
            let ending = get_json(&*self.store, &layout::job_ending(&self.namespace, &job.id)).await?;
            Ok::<_, StoreError>(Some((job, ending)))
        });
        let read = futures::stream::iter(read).buffer_unordered(CONCURRENT_READS);
        read.try_filter_map(async |job| Ok(job)).try_collect().await
    }
}

/// Stores `value` as JSON.
pub async fn put_json(store: &dyn Store, key: &str, value: &impl Serialize) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value).expect("plain structs always serialise");
    store.put(&Key::new(key)?, bytes.into()).await
}

/// Reads JSON; `None` where there is nothing, or nothing that this version can read.
///
/// One bad record (of another version, or cut short by a power cut) must not keep everything else waiting: it is
/// logged, and what it said is found out anew where that is possible.
pub async fn get_json<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<T>, StoreError> {
    let bytes = match store.get(&Key::new(key)?).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::error!(key, %error, "passed over a record that cannot be read");
            Ok(None)
        }
    }
}

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

/// A record that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error("the record could not be reached")]
    Store(#[from] StoreError),
    /// The bytes are no such record.
    #[error("`{key}` is not a record of this version")]
    Unreadable {
        /// Where it lies.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl Records {
    /// The records of the farm called `namespace` in `store`.
    pub fn new(store: Arc<dyn Store>, namespace: &str) -> Self {
        Self { store, namespace: namespace.to_owned() }
    }

    /// Stores a job.
    pub async fn put_job(&self, job: &Job) -> Result<(), RecordError> {
        put_json(&*self.store, &layout::job(&self.namespace, &job.id), job).await
    }

    /// Stores how a job ended.
    pub async fn put_ending(&self, job: &JobId, ending: &Ending) -> Result<(), RecordError> {
        put_json(&*self.store, &layout::job_ending(&self.namespace, job), ending).await
    }

    /// Forgets how a job ended: it runs again.
    pub async fn delete_ending(&self, job: &JobId) -> Result<(), RecordError> {
        Ok(self.store.delete(&Key::new(layout::job_ending(&self.namespace, job))?).await?)
    }

    /// Reads a job, if there is such a one.
    pub async fn job(&self, id: &JobId) -> Result<Option<Job>, RecordError> {
        get_json(&*self.store, &layout::job(&self.namespace, id)).await
    }

    /// Reads all jobs and how they ended. A record that cannot be read is logged and passed over: one bad record must
    /// not keep all other jobs waiting.
    pub async fn all(&self) -> Result<Vec<(Job, Option<Ending>)>, RecordError> {
        let listed: Vec<_> = self.store.list(&layout::jobs(&self.namespace)).try_collect().await?;
        let keys = listed.into_iter().map(|entry| entry.key).filter(|key| key.as_str().ends_with("/job.json"));
        let read = keys.map(|key| async move {
            let job: Option<Job> = match get_json(&*self.store, key.as_str()).await {
                Err(error @ RecordError::Unreadable { .. }) => {
                    tracing::error!(error = crate::refusal::chain(&error), "passed over a job record");
                    None
                }
                other => other?,
            };
            let Some(job) = job else { return Ok(None) };
            let ending = get_json(&*self.store, &layout::job_ending(&self.namespace, &job.id)).await?;
            Ok::<_, RecordError>(Some((job, ending)))
        });
        let read = futures::stream::iter(read).buffer_unordered(CONCURRENT_READS);
        read.try_filter_map(async |job| Ok(job)).try_collect().await
    }
}

/// Stores `value` as JSON.
pub async fn put_json(store: &dyn Store, key: &str, value: &impl Serialize) -> Result<(), RecordError> {
    let bytes = serde_json::to_vec(value).expect("plain structs always serialise");
    Ok(store.put(&Key::new(key)?, bytes.into()).await?)
}

/// Reads JSON; `None` where there is nothing.
pub async fn get_json<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<T>, RecordError> {
    let bytes = match store.get(&Key::new(key)?).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let unreadable = |source| RecordError::Unreadable { key: key.to_owned(), source };
    serde_json::from_slice(&bytes).map(Some).map_err(unreadable)
}

//! From the address in the configuration to a store.

use std::sync::Arc;

use url::Url;

use crate::error::{Result, StoreError};
use crate::folder::{FolderStore, blocking};
use crate::memory::MemoryStore;
use crate::s3::{S3, split_uri};
use crate::store::Store;

/// Opens the store at `url`, without asking yet whether it answers: [`Store::check`] does.
///
/// - `memory:` is a new, empty store in this process.
/// - `file:///folder` is a folder on this machine, made if it is not there; `file:///folder?fsync=true` waits for the
///   disk on every write, so that a power cut loses nothing.
/// - `s3://bucket/prefix` is S3 or what speaks like it; the prefix may be left out. Who we are and where it stands come
///   from the `AWS_*` environment, see [`S3::from_env`].
pub async fn open(url: &str) -> Result<Arc<dyn Store>> {
    let invalid = |reason| StoreError::InvalidUrl { url: url.into(), reason };
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("memory") => match url {
            "memory:" | "memory://" => Ok(Arc::new(MemoryStore::new())),
            _ => Err(invalid("`memory:` stands alone")),
        },
        Some("file") => {
            let parsed = Url::parse(url).map_err(|_| invalid("it is no URL"))?;
            let fsync = match parsed.query() {
                None | Some("fsync=false") => false,
                Some("fsync=true") => true,
                Some(_) => return Err(invalid("the only option is `?fsync=true`")),
            };
            let folder = parsed.to_file_path().map_err(|()| invalid("a folder is given as `file:///folder`"))?;
            let store = blocking(move || FolderStore::open(folder)).await?;
            Ok(Arc::new(store.with_fsync(fsync)))
        }
        Some("s3") => {
            let (bucket, prefix) = split_uri(url)?;
            Ok(Arc::new(S3::from_env().await.store(bucket, prefix)?))
        }
        _ => Err(invalid("it begins with none of `memory:`, `file:///` and `s3://`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_says_which_store_it_means() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b");
        let url = Url::from_file_path(&path).unwrap();
        assert!(url.as_str().contains("a%20b"));
        let store = open(url.as_str()).await.unwrap();
        assert_eq!(store.describe(), format!("folder {}", path.display()));
        open(&format!("{url}?fsync=true")).await.unwrap().check().await.unwrap();
        open("memory:").await.unwrap().check().await.unwrap();
    }

    #[tokio::test]
    async fn an_address_that_means_nothing_is_refused() {
        for bad in
            ["", "/tmp", "http://a/b", "memory:x", "file://host/tmp", "file:///tmp?x", "s3://", "s3:///a", "s3://b/a b"]
        {
            let error = open(bad).await.unwrap_err();
            let told = matches!(error, StoreError::InvalidUrl { .. } | StoreError::InvalidKey { .. });
            assert!(told, "{bad:?} gave {error:?}");
        }
    }
}

//! What can go wrong with a store, sorted by what the caller can do about it.

use std::error::Error;
use std::io;
use std::path::PathBuf;

/// What lies under an error: the operating system's or the S3 client's own account of it.
pub type Cause = Box<dyn Error + Send + Sync>;

/// A result of this crate.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why a store did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing is stored under this key or URI.
    #[error("nothing is stored under `{key}`")]
    NotFound {
        /// The key or URI.
        key: String,
    },
    /// The bucket itself does not exist.
    #[error("bucket `{bucket}` does not exist")]
    MissingBucket {
        /// The bucket's name.
        bucket: String,
    },
    /// The store knows us, or does not, and says no.
    #[error("access to `{key}` is forbidden")]
    Forbidden {
        /// The key, URI or place.
        key: String,
        /// The refusal.
        source: Cause,
    },
    /// More bytes were asked for than there are.
    #[error("`{key}` holds {size_bytes} bytes, but bytes {start} to {end} were asked for")]
    OutOfRange {
        /// The key.
        key: String,
        /// The first byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// The size of the body in bytes.
        size_bytes: u64,
    },
    /// The store cannot be reached, is overloaded or broke off; a retry can help.
    #[error("the store is unavailable for `{key}`")]
    Unavailable {
        /// The key, URI or place.
        key: String,
        /// What happened.
        source: Cause,
    },
    /// There is no space left.
    #[error("the store is full: `{key}` could not be written")]
    Full {
        /// The key or place.
        key: String,
        /// The operating system's or the service's word for it.
        source: Cause,
    },
    /// The store cannot do this, now or later.
    #[error("the store refused `{key}`")]
    Refused {
        /// The key, URI or place.
        key: String,
        /// Why.
        source: Cause,
    },
    /// What was read is not what was written.
    #[error("`{key}` was read back with other bytes than were written")]
    Damaged {
        /// The key.
        key: String,
    },
    /// A file on this machine, which was to be stored, cannot be read.
    #[error("cannot read the file {}", path.display())]
    LocalFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name that cannot be a key.
    #[error("`{key}` is not a key: {reason}")]
    InvalidKey {
        /// The name.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An address of a store or an artifact that cannot be understood.
    #[error("`{url}` is not the address of a store: {reason}")]
    InvalidUrl {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl StoreError {
    /// Whether the same call may succeed later with nothing changed by us.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::NotFound { .. }
            | Self::MissingBucket { .. }
            | Self::Forbidden { .. }
            | Self::OutOfRange { .. }
            | Self::Full { .. }
            | Self::Refused { .. }
            | Self::Damaged { .. }
            | Self::LocalFile { .. }
            | Self::InvalidKey { .. }
            | Self::InvalidUrl { .. } => false,
        }
    }

    /// Sorts an error of the file system that holds `key`.
    pub(crate) fn from_io(key: impl ToString, source: io::Error) -> Self {
        use io::ErrorKind as Kind;
        let key = key.to_string();
        match source.kind() {
            Kind::NotFound => Self::NotFound { key },
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::Forbidden { key, source: source.into() },
            Kind::StorageFull | Kind::QuotaExceeded => Self::Full { key, source: source.into() },
            Kind::AlreadyExists
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::DirectoryNotEmpty
            | Kind::InvalidFilename => Self::Refused { key, source: source.into() },
            _ => Self::Unavailable { key, source: source.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_from_a_passing_trouble() {
        let sorted = |kind: io::ErrorKind| StoreError::from_io("k", kind.into());
        assert!(matches!(sorted(io::ErrorKind::StorageFull), StoreError::Full { .. }));
        assert!(matches!(sorted(io::ErrorKind::QuotaExceeded), StoreError::Full { .. }));
        assert!(matches!(sorted(io::ErrorKind::PermissionDenied), StoreError::Forbidden { .. }));
        assert!(matches!(sorted(io::ErrorKind::NotFound), StoreError::NotFound { .. }));
        assert!(sorted(io::ErrorKind::TimedOut).is_retryable());
        assert!(!sorted(io::ErrorKind::StorageFull).is_retryable());
    }
}

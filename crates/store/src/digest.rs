//! Keys made from content: SHA-256, in lower-case hexadecimal.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::error::{Result, StoreError};
use crate::folder::blocking;
use crate::key::Key;
use crate::store::Store;

/// Returns the SHA-256 of `bytes` as 64 lower-case hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    let mut digester = Digester::default();
    digester.update(bytes);
    digester.finish()
}

/// Computes a [`digest`] piece by piece.
#[derive(Debug, Clone, Default)]
pub struct Digester(Sha256);

impl Digester {
    /// Appends `piece`.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// Returns the digest of all pieces, as [`digest`] would of the whole.
    pub fn finish(self) -> String {
        let mut text = String::with_capacity(64);
        for byte in self.0.finalize() {
            write!(text, "{byte:02x}").expect("a string takes any text");
        }
        text
    }
}

/// Stores the local file at `path` as `prefix/DIGEST`, and returns its digest and its size in bytes.
///
/// Nothing is sent if the key is there already with that size. The file must not change meanwhile.
pub async fn put_digested(store: &dyn Store, prefix: &str, path: &Path) -> Result<(String, u64)> {
    let (digest, size_bytes) = digest_file(path.to_owned()).await?;
    let key = Key::new(format!("{prefix}/{digest}"))?;
    if store.head(&key).await?.is_none_or(|meta| meta.size_bytes != size_bytes) {
        store.put_file(&key, path).await?;
    }
    Ok((digest, size_bytes))
}

async fn digest_file(path: PathBuf) -> Result<(String, u64)> {
    blocking(move || {
        let unreadable = |source| StoreError::LocalFile { path: path.clone(), source };
        let mut file = File::open(&path).map_err(unreadable)?;
        let (mut digester, mut size_bytes) = (Digester::default(), 0);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match file.read(&mut buffer).map_err(unreadable)? {
                0 => return Ok((digester.finish(), size_bytes)),
                n => {
                    digester.update(&buffer[..n]);
                    size_bytes += n as u64;
                }
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_what_sha256sum_prints() {
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}

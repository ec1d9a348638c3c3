//! The names of artifacts.

use std::fmt;
use std::str::FromStr;

use crate::error::StoreError;

/// A name in a store: segments of `A-Z a-z 0-9 . _ -`, joined by `/`.
///
/// Such a name means the same as a path, as an S3 object and in a URL, without any escaping. It is at most
/// [`Key::MAX_BYTES`] long, each segment at most [`Key::MAX_SEGMENT_BYTES`]; no segment is empty or begins with a dot,
/// so no key can leave its folder or name a hidden file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// The longest key, in bytes; S3 allows 1024, prefix included.
    pub const MAX_BYTES: usize = 900;
    /// The longest segment, in bytes; file systems allow 255.
    pub const MAX_SEGMENT_BYTES: usize = 200;

    /// Checks `name` and makes it a key; [`StoreError::InvalidKey`] says what is wrong with it.
    pub fn new(name: impl Into<String>) -> Result<Self, StoreError> {
        let name = name.into();
        match fault(&name) {
            None => Ok(Self(name)),
            Some(reason) => Err(StoreError::InvalidKey { key: name, reason }),
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Says why `name` is no key, or `None` if it is one.
fn fault(name: &str) -> Option<&'static str> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-' | b'/');
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > Key::MAX_BYTES {
        Some("it is longer than 900 bytes")
    } else if !name.bytes().all(allowed) {
        Some("only A-Z a-z 0-9 . _ - and / are allowed")
    } else if name.split('/').any(str::is_empty) {
        Some("a segment is empty")
    } else if name.split('/').any(|segment| segment.starts_with('.')) {
        Some("a segment begins with a dot")
    } else if name.split('/').any(|segment| segment.len() > Key::MAX_SEGMENT_BYTES) {
        Some("a segment is longer than 200 bytes")
    } else {
        None
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = StoreError;

    fn from_str(name: &str) -> Result<Self, StoreError> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_means_the_same_as_path_object_and_url() {
        for good in ["a", "jobs/1/state.json", "models/00ff", "A-b_c.d/e..f"] {
            assert_eq!(Key::new(good).unwrap().as_str(), good);
        }
        let long_segment = "x".repeat(201);
        let long = vec!["x".repeat(100); 10].join("/");
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/../b",
            "a/.hidden",
            "a b",
            "a\\b",
            "a%2fb",
            "ä",
            "a\0",
            &long_segment,
            &long,
        ] {
            let error = Key::new(bad).unwrap_err();
            assert!(matches!(error, StoreError::InvalidKey { .. }), "{bad:?} gave {error:?}");
        }
    }
}

//! A folder's keys in byte order, without reading more of the tree than the prefix and the reader need.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use crate::key::Key;

/// Yields the keys below `root` that begin with `prefix`, in byte order. What vanishes meanwhile is passed over, and so
/// is what cannot be a key.
pub(super) fn walk(root: &Path, prefix: &str) -> impl Iterator<Item = io::Result<(Key, Metadata)>> {
    // `results/ab` can only lie in `results/`, so the walk begins there.
    let folder = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    let mut walk = Walk { root: root.to_owned(), prefix: prefix.to_owned(), open: Vec::new(), failed: None };
    // A folder that no key could name may lead out of the root.
    if folder.is_empty()
        || Key::new(folder.trim_end_matches('/')).is_ok_and(|key| folder.len() == key.as_str().len() + 1)
    {
        walk.enter(folder);
    }
    walk
}

struct Walk {
    root: PathBuf,
    prefix: String,
    /// The folders on the way down, each with the names it has left, last first.
    open: Vec<Vec<String>>,
    failed: Option<io::Error>,
}

impl Walk {
    /// Reads `folder` (`""`, or a key and a slash), to be walked next.
    fn enter(&mut self, folder: &str) {
        match self.names(folder) {
            Ok(names) => self.open.push(names),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => self.failed = Some(e),
        }
    }

    /// The full names of what lies in `folder`, in descending order. A folder's name ends with a slash, so that names
    /// are in the order of the keys that begin with them: `a-b`, then `a/c`.
    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(folder))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
            let name = format!("{folder}{name}{slash}");
            if name.starts_with(&self.prefix) && Key::new(name.trim_end_matches('/')).is_ok() {
                names.push(name);
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }
}

impl Iterator for Walk {
    type Item = io::Result<(Key, Metadata)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(error) = self.failed.take() {
                self.open.clear();
                return Some(Err(error));
            }
            let Some(name) = self.open.last_mut()?.pop() else {
                self.open.pop();
                continue;
            };
            if name.ends_with('/') {
                self.enter(&name);
                continue;
            }
            match fs::metadata(self.root.join(&name)) {
                Ok(metadata) if metadata.is_file() => {
                    let key = Key::new(name).expect("names that are no keys were left out");
                    return Some(Ok((key, metadata)));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => self.failed = Some(e),
            }
        }
    }
}

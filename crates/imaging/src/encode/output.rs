//! The file under an encoder.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// A buffered file that a codec may own, and that is had back once the codec is gone.
///
/// It remembers the first failure, because codecs that write their last bytes when they are dropped cannot tell of it.
#[derive(Clone, Debug)]
pub(super) struct Output(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    file: BufWriter<File>,
    failed: Option<io::Error>,
}

impl Output {
    pub(super) fn new(file: File) -> Self {
        Self(Arc::new(Mutex::new(State { file: BufWriter::with_capacity(1 << 18, file), failed: None })))
    }

    /// The file, with everything written; or the first thing that went wrong.
    pub(super) fn finish(self) -> io::Result<File> {
        self.with(|file| file.flush())?;
        let state = Arc::into_inner(self.0).expect("the codec, the only other owner, is gone");
        let State { file, failed } = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        match failed {
            Some(error) => Err(error),
            None => file.into_inner().map_err(io::IntoInnerError::into_error),
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut state.file);
        if let Err(error) = &result {
            let copy = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            state.failed.get_or_insert(copy);
        }
        result
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with(BufWriter::flush)
    }
}

impl Seek for Output {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.with(|file| file.seek(position))
    }
}

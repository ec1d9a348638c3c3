//! The bytes of a checkpoint, wherever they lie.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a checkpoint is read from: a file, or bytes in memory.
pub(super) trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

/// A file of known length that may be read from several threads.
pub(super) struct Source {
    input: Mutex<Box<dyn ReadSeek>>,
    len: u64,
}

impl Source {
    pub(super) fn new(mut input: impl ReadSeek + 'static) -> io::Result<Self> {
        let len = input.seek(SeekFrom::End(0))?;
        Ok(Self { input: Mutex::new(Box::new(input)), len })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The input itself, standing at byte `offset`.
    pub(super) fn input_at(&mut self, offset: u64) -> io::Result<&mut Box<dyn ReadSeek>> {
        let input = self.input.get_mut().unwrap_or_else(PoisonError::into_inner);
        input.seek(SeekFrom::Start(offset))?;
        Ok(input)
    }

    /// Reads `count` bytes from `offset` on. Nothing is allocated for bytes that the file does not have.
    pub(super) fn read_at(&self, offset: u64, count: u64) -> io::Result<Vec<u8>> {
        if offset.checked_add(count).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut input: MutexGuard<'_, _> = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; count as usize];
        input.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("len", &self.len).finish_non_exhaustive()
    }
}

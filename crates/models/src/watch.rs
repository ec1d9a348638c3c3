//! Following a computation, and interrupting it.

use crate::error::{ModelError, Result};

/// Someone who follows a computation, whichever threads it runs on. A closure `Fn(f64) -> bool` will do.
pub trait Watch: Sync {
    /// Hears that the fraction `done` of the work, from 0 to 1, is behind us, and says whether to go on.
    ///
    /// It is called between the parts of a network, many times for a tile, so it should return at once.
    fn goes_on(&self, done: f64) -> bool;
}

impl<F: Fn(f64) -> bool + Sync> Watch for F {
    fn goes_on(&self, done: f64) -> bool {
        self(done)
    }
}

/// Nobody follows; the computation runs to its end.
#[derive(Debug, Clone, Copy)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn goes_on(&self, _done: f64) -> bool {
        true
    }
}

/// A part of a computation, as whoever follows the whole hears of it.
pub struct Share<'a> {
    /// Who follows the whole.
    pub watch: &'a dyn Watch,
    /// The fraction of the whole that is behind us when the part begins.
    pub from: f64,
    /// The fraction of the whole that the part is.
    pub part: f64,
}

impl Watch for Share<'_> {
    fn goes_on(&self, done: f64) -> bool {
        self.watch.goes_on((self.from + done * self.part).min(1.0))
    }
}

/// The work of one run, counted in multiplications per pixel of the input.
pub(crate) struct Progress<'a> {
    watch: &'a dyn Watch,
    done: f64,
    total: f64,
}

impl<'a> Progress<'a> {
    /// Begins a run of `total` work.
    pub(crate) fn begin(watch: &'a dyn Watch, total: f64) -> Result<Self> {
        let mut progress = Self { watch, done: 0.0, total };
        progress.advance(0.0)?;
        Ok(progress)
    }

    /// Says that `work` more is done.
    pub(crate) fn advance(&mut self, work: f64) -> Result<()> {
        self.done += work;
        if self.watch.goes_on((self.done / self.total).min(1.0)) { Ok(()) } else { Err(ModelError::Interrupted) }
    }
}

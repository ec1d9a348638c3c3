//! Calls of one network by several runs, made as one batch.
//!
//! Runs that redraw segments of one size ask the same network about latents of the same shape, step by step. Each takes a [`Seat`];
//! its call waits until everybody who still sits has made one, and calls that fit together are answered at once. What a run does
//! besides, samplers and control nets among it, stays its own, so that no two runs need the same sampler, prompts or seed.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use candle_core::Tensor;

use super::{
    controlnet::Residuals,
    unet::{Inputs, Unet},
};
use crate::{
    error::{ModelError, Result},
    watch::Watch,
};

/// How often whoever waits for others asks whether to go on waiting.
const PATIENCE: Duration = Duration::from_millis(100);

/// A place among runs that go along with one another, until it is dropped.
#[derive(Debug)]
pub struct Seat {
    table: Arc<Table>,
    number: usize,
    /// Whether nobody waits for its calls any more.
    has_left: AtomicBool,
}

/// Seats for `count` runs. As long as one of them makes no call, and keeps its seat, the others wait.
pub fn seats(count: usize) -> Vec<Seat> {
    let table = Arc::new(Table::default());
    table.lock().seated = count;
    (0..count).map(|number| Seat { table: table.clone(), number, has_left: AtomicBool::new(false) }).collect()
}

#[derive(Debug, Default)]
struct Table {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many have a seat.
    seated: usize,
    /// The calls that wait for others, by seat.
    waiting: Vec<(usize, Call)>,
    /// What those are to do whose call waits no longer, by seat.
    words: HashMap<usize, Word>,
}

/// What becomes of a call.
#[derive(Debug)]
enum Word {
    /// Nobody goes along.
    Alone,
    /// It goes along with these, and whoever hears this makes them all; its own is the first.
    Lead(Vec<(usize, Call)>),
    /// It was made by another.
    Made(Tensor),
}

/// One call of a network.
#[derive(Debug, Clone)]
struct Call {
    /// The address of the network.
    unet: usize,
    x: Tensor,
    timesteps: Vec<f32>,
    context: Tensor,
    y: Option<Tensor>,
    control: Option<Residuals>,
}

impl Seat {
    /// Calls the network as [`Unet::forward`] does, together with whoever else asks it something of the same shape.
    ///
    /// What others ask changes an answer no more than the size of a batch does.
    ///
    /// # Errors
    /// As [`Unet::forward`]. A batch that fails is made again call by call, so that no run fails for another.
    pub fn forward(
        &self,
        unet: &Unet,
        inputs: Inputs<'_>,
        control: Option<&Residuals>,
        watch: &dyn Watch,
    ) -> Result<Tensor> {
        if self.has_left.load(Ordering::Relaxed) {
            return unet.forward(inputs, control, watch);
        }
        match self.word(Call::of(unet, inputs, control), watch)? {
            Word::Made(answer) => Ok(answer),
            Word::Alone => unet.forward(inputs, control, watch),
            Word::Lead(calls) => {
                let mut led = Led { table: &self.table, seats: calls.iter().skip(1).map(|(seat, _)| *seat).collect() };
                match together(unet, calls, watch) {
                    Ok(mut answers) => {
                        let own = answers.remove(0);
                        led.tell(answers);
                        Ok(own)
                    }
                    Err(_) => {
                        drop(led);
                        unet.forward(inputs, control, watch)
                    }
                }
            }
        }
    }

    /// Leaves: others wait for its calls no longer, and those that come are made alone.
    pub fn leave(&self) {
        if self.has_left.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut state = self.table.lock();
        state.seated -= 1;
        state.gather();
        self.table.changed.notify_all();
    }

    /// Waits until everybody has made a call, and says what becomes of this one.
    fn word(&self, call: Call, watch: &dyn Watch) -> Result<Word> {
        let mut state = self.table.lock();
        state.waiting.push((self.number, call));
        loop {
            if state.gather() {
                self.table.changed.notify_all();
            }
            if let Some(word) = state.words.remove(&self.number) {
                return Ok(word);
            }
            if !watch.goes_on(0.0) && state.waiting.iter().any(|(seat, _)| *seat == self.number) {
                state.waiting.retain(|(seat, _)| *seat != self.number);
                return Err(ModelError::Interrupted);
            }
            let waited = self.table.changed.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives everybody their word once all that sit wait.
    fn gather(&mut self) -> bool {
        if self.waiting.is_empty() || self.waiting.len() < self.seated {
            return false;
        }
        let mut left = mem::take(&mut self.waiting);
        while let Some((seat, first)) = left.first().cloned() {
            let (group, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|(_, other)| first.goes_with(other));
            left = rest;
            self.words.insert(seat, if group.len() == 1 { Word::Alone } else { Word::Lead(group) });
        }
        true
    }
}

/// The others of a batch, who are told to make their calls alone unless it gets an answer.
struct Led<'a> {
    table: &'a Table,
    seats: Vec<usize>,
}

impl Led<'_> {
    fn tell(&mut self, answers: Vec<Tensor>) {
        let words = self.seats.drain(..).zip(answers.into_iter().map(Word::Made));
        self.table.lock().words.extend(words);
        self.table.changed.notify_all();
    }
}

impl Drop for Led<'_> {
    fn drop(&mut self) {
        let words = self.seats.drain(..).map(|seat| (seat, Word::Alone));
        self.table.lock().words.extend(words);
        self.table.changed.notify_all();
    }
}

impl Call {
    fn of(unet: &Unet, Inputs { x, timesteps, context, y }: Inputs<'_>, control: Option<&Residuals>) -> Self {
        Self {
            unet: std::ptr::from_ref(unet).addr(),
            x: x.clone(),
            timesteps: timesteps.to_vec(),
            context: context.clone(),
            y: y.cloned(),
            control: control.cloned(),
        }
    }

    /// All that goes into the network with its shape, but for the timesteps.
    fn parts(&self) -> impl Iterator<Item = &Tensor> {
        let control = self.control.iter().flat_map(|Residuals { output, middle }| output.iter().chain([middle]));
        [&self.x, &self.context].into_iter().chain(&self.y).chain(control)
    }

    /// Whether both can be one call: they differ in nothing but their numbers, and how many there are.
    fn goes_with(&self, other: &Self) -> bool {
        let shape = |call: &Self| call.parts().map(|part| part.dims()[1..].to_vec()).collect::<Vec<_>>();
        self.unet == other.unet
            && (self.y.is_some(), self.control.is_some()) == (other.y.is_some(), other.control.is_some())
            && shape(self) == shape(other)
    }
}

/// Makes calls that go with one another as one; gives the answer of each.
fn together(unet: &Unet, calls: Vec<(usize, Call)>, watch: &dyn Watch) -> Result<Vec<Tensor>> {
    let calls: Vec<Call> = calls.into_iter().map(|(_, call)| call).collect();
    let joined = |part: &dyn Fn(&Call) -> Option<&Tensor>| -> Result<Option<Tensor>> {
        let parts: Option<Vec<&Tensor>> = calls.iter().map(part).collect();
        Ok(parts.map(|parts| Tensor::cat(&parts, 0)).transpose()?)
    };
    let x = joined(&|call| Some(&call.x))?.expect("every call has latents");
    let context = joined(&|call| Some(&call.context))?.expect("every call has encoded text");
    let y = joined(&|call| call.y.as_ref())?;
    let timesteps: Vec<f32> = calls.iter().flat_map(|call| &call.timesteps).copied().collect();
    let middle = joined(&|call| call.control.as_ref().map(|control| &control.middle))?;
    let count = calls[0].control.as_ref().map_or(0, |control| control.output.len());
    let output = (0..count).filter_map(|i| joined(&|call| Some(&call.control.as_ref()?.output[i])).transpose());
    let output = output.collect::<Result<_>>()?;
    let control = middle.map(|middle| Residuals { output, middle });
    let inputs = Inputs { x: &x, timesteps: &timesteps, context: &context, y: y.as_ref() };
    let answers = unet.forward(inputs, control.as_ref(), watch)?;
    let mut from = 0;
    let answer = |call: &Call| {
        let (at, count) = (from, call.timesteps.len());
        from += count;
        Ok(answers.narrow(0, at, count)?.contiguous()?)
    };
    calls.iter().map(answer).collect()
}

//! The engine on the device that the configuration names: its classes, its memory, and the networks it has loaded.
//!
//! What it renders with them is in [`super::upscale`] and [`super::redraw`].

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::Context as _;
use domain::{digest::Digest, region::Size, task::ComputeClass};
use models::{
    diffusion::batch::{self, Seat},
    processor::{CpuLevel, Kind, Mode, Precision, Processor},
};
use service::{config, report::Hinted as _};
use tracing::{Span, warn};

use super::{
    DeviceFacts, Done, Engine, RenderError, Verdict, Watch, Work,
    cache::Cache,
    panic_message,
    room::{Promise, Room},
};
use crate::memory::{self, Memory};

/// How many bytes of encoded prompts are kept.
const PROMPT_BYTES: u64 = 64 << 20;

/// Runs the networks of `models`, and keeps those used last in memory.
#[derive(Debug)]
pub struct DeviceEngine {
    name: String,
    /// One for each of the processor's modes, in their order.
    classes: Vec<ComputeClass>,
    pub(super) processor: Processor,
    /// Networks of all kinds.
    pub(super) loaded: Cache<Key>,
    /// Encoded prompts, by text and all that changes what it is encoded to.
    pub(super) prompts: Cache<(Digest, Precision)>,
    room: Room,
}

/// What a loaded network goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// The weights files that it is made of.
    pub files: Vec<Digest>,
    /// How they are put together, where that is not all.
    pub recipe: Option<Digest>,
    /// How exactly it computes.
    pub precision: Precision,
}

impl DeviceEngine {
    /// Opens `device`, with room for `model_memory_bytes` of loaded models. A CPU computes at the level that `cpu` names,
    /// or at the most capable that it has.
    ///
    /// # Errors
    /// If the device is not there, this program was built without support for it, or there is no such level here.
    pub fn open(device: config::Device, cpu: Option<&str>, model_memory_bytes: u64) -> anyhow::Result<Self> {
        let processor = open_processor(device, cpu)?;
        let kind_name = match device {
            config::Device::Cpu => "cpu",
            config::Device::Cuda(_) => "cuda",
            config::Device::Metal(_) => "metal",
        };
        let class = |mode: &Mode| ComputeClass::new(kind_name, &mode.level.replace('.', "-"), mode.dtype);
        let classes = processor.modes().iter().map(class).collect::<Result<_, _>>()?;
        let name = match processor.cpu_level() {
            Some(level) => format!("cpu {level}, {} threads", threads()),
            None => device.to_string(),
        };
        let (loaded, prompts) = (Cache::new(model_memory_bytes), Cache::new(PROMPT_BYTES));
        Ok(Self { processor, name, classes, loaded, prompts, room: Room::default() })
    }

    /// The device and the ways in which it computes, for people.
    pub fn describe(&self) -> String {
        let has = match self.processor.cpu_level() {
            Some(_) => format!(" of a processor that has {}", cpu_levels()),
            None => String::new(),
        };
        let modes = self.processor.modes().iter().zip(&self.classes);
        let word = |precision| match precision {
            Precision::Exact if self.classes.len() == 1 => "exact and fast",
            Precision::Exact => "exact",
            Precision::Fast => "fast",
        };
        let modes = modes.map(|(mode, class)| format!("{} as {class}", word(mode.precision)));
        format!("{}{has}; renders {}", self.name, modes.collect::<Vec<_>>().join(", "))
    }

    /// The precision with which tasks of `class` are computed.
    fn precision_of(&self, class: &ComputeClass) -> Precision {
        let place = self.classes.iter().position(|own| own == class).expect("callers name one of `classes`");
        self.processor.modes()[place].precision
    }

    /// The memory of a device that shares it with everything else.
    fn memory(&self) -> Option<Memory> {
        self.processor.is_cpu().then(memory::of_this_machine).flatten()
    }

    /// Waits for room for a task on pixels of `size`, which needs `needs_bytes`; refuses one that never fits. The room is taken until
    /// what is returned is dropped.
    ///
    /// A processor that runs out of memory ends the process instead of the call; other devices say so themselves.
    pub(super) fn take_room(
        &self,
        size: Size,
        needs_bytes: u64,
        watch: &Watch,
    ) -> Result<Option<Promise<'_>>, RenderError> {
        let waits = || watch.stop().is_none();
        self.room_while(waits, size, needs_bytes)?.ok_or(RenderError::Interrupted)
    }

    /// As [`Self::take_room`], for who has a seat in a batch, and keeps it only where there is room beside the others: whoever waited
    /// for them to end would have them wait for it.
    pub(super) fn take_room_beside(
        &self,
        seat: Option<Seat>,
        size: Size,
        needs_bytes: u64,
        watch: &Watch,
    ) -> Result<(Option<Promise<'_>>, Option<Seat>), RenderError> {
        if let Some(seat) = seat
            && let Some(room) = self.room_while(|| false, size, needs_bytes)?
        {
            return Ok((room, Some(seat)));
        }
        Ok((self.take_room(size, needs_bytes, watch)?, None))
    }

    /// Waits for room as long as `waits`; `None` when there was none.
    fn room_while(
        &self,
        waits: impl Fn() -> bool,
        size: Size,
        needs_bytes: u64,
    ) -> Result<Option<Option<Promise<'_>>>, RenderError> {
        let Some(memory) = self.memory() else { return Ok(Some(None)) };
        let Some(promise) = self.room.take(needs_bytes, memory.free_bytes, waits) else { return Ok(None) };
        check_room(size, needs_bytes, self.memory().unwrap_or(memory))?;
        Ok(Some(Some(promise)))
    }
}

/// Opens `device`. A CPU computes at the level that `cpu` names, or at the most capable that it has.
///
/// # Errors
/// If the device is not there, this program was built without support for it, or there is no such level here.
pub fn open_processor(device: config::Device, cpu: Option<&str>) -> anyhow::Result<Processor> {
    let kind = match device {
        config::Device::Cpu => Kind::Cpu,
        config::Device::Cuda(ordinal) => Kind::Cuda(ordinal),
        config::Device::Metal(ordinal) => Kind::Metal(ordinal),
    };
    let cpu = if kind == Kind::Cpu { cpu.map(cpu_level).transpose()? } else { None };
    Processor::open(kind, cpu).with_context(|| format!("cannot open device `{device}`"))
}

/// Reads the name of a level that this processor has.
fn cpu_level(text: &str) -> anyhow::Result<CpuLevel> {
    let level = text.parse::<CpuLevel>().and_then(CpuLevel::checked);
    level.with_context(|| format!("`cpu` is `{text}`")).hint(format!(
        "leave `cpu` (TESSERA_CPU) out for the most capable level, or name one that this processor has: {}",
        cpu_levels()
    ))
}

/// The levels that this processor has, for people.
fn cpu_levels() -> String {
    CpuLevel::available().map(CpuLevel::name).collect::<Vec<_>>().join(", ")
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Refuses pixels of `size`, which need `needs_bytes`, if they do not fit into what is free of `memory`.
fn check_room(size: Size, needs_bytes: u64, memory: Memory) -> Result<(), RenderError> {
    let Memory { total_bytes, free_bytes } = memory;
    if needs_bytes > total_bytes {
        Err(RenderError::TooLarge { size, needs_bytes, total_bytes })
    } else if needs_bytes > free_bytes {
        Err(RenderError::Crowded { size, needs_bytes, free_bytes })
    } else {
        Ok(())
    }
}

impl Engine for DeviceEngine {
    fn classes(&self) -> &[ComputeClass] {
        &self.classes
    }

    fn device(&self) -> DeviceFacts {
        let memory = self.memory();
        let mut models: Vec<Digest> = Vec::new();
        for model in self.loaded.keys().into_iter().flat_map(|key| key.files) {
            if !models.contains(&model) {
                models.push(model); // it may be loaded for each precision, and with different LoRAs
            }
        }
        DeviceFacts {
            name: self.name.clone(),
            memory_bytes: memory.map_or(0, |memory| memory.total_bytes),
            memory_free_bytes: memory.map_or(0, |memory| memory.free_bytes),
            models,
        }
    }

    fn guess(&self, class: &ComputeClass) -> Option<f64> {
        let guess = models::speed::guess(&self.processor.backend(self.precision_of(class)));
        guess.inspect_err(|error| warn!(%class, %error, "cannot guess how fast the device is")).ok()
    }

    fn render(&self, class: &ComputeClass, work: &Work, watch: &Watch) -> Result<Vec<f32>, RenderError> {
        match work {
            Work::Upscale(work) => self.upscale(self.precision_of(class), work, watch),
            Work::Redraw(work) => self.redraw(self.precision_of(class), work, watch, None),
            Work::Latent(work) => self.latent(self.precision_of(class), work, watch),
        }
    }

    fn render_batch(&self, class: &ComputeClass, tasks: &[(&Work, &Watch)], done: &Done<'_>) {
        // Each has a thread and a seat: what they have in common is that they ask one network about as many pixels.
        let each = |(work, watch): (&Work, &Watch), seat: Seat| match work {
            Work::Redraw(work) => self.redraw(self.precision_of(class), work, watch, Some(seat)),
            _ => self.render(class, work, watch),
        };
        let (span, too_large) = (Span::current(), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for ((index, task), seat) in tasks.iter().enumerate().zip(batch::seats(tasks.len())) {
                let (each, span, too_large) = (&each, &span, &too_large);
                scope.spawn(move || {
                    let rendered = catch_unwind(AssertUnwindSafe(|| span.in_scope(|| each(*task, seat))));
                    let panicked =
                        |panic: Box<dyn Any + Send>| Err(RenderError::Panicked { message: panic_message(&*panic) });
                    match rendered.unwrap_or_else(panicked) {
                        Err(error) if error.verdict() == Verdict::Replan => {
                            too_large.lock().unwrap_or_else(PoisonError::into_inner).push(index);
                        }
                        rendered => done(index, rendered),
                    }
                });
            }
        });
        // What had too little room beside the others may have enough alone.
        for index in too_large.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let (work, watch) = tasks[index];
            done(index, self.render(class, work, watch));
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::region::Region;

    use super::*;

    #[test]
    fn a_job_is_planned_anew_for_what_the_machine_has_and_not_for_what_is_free_at_the_moment() {
        let memory = Memory { total_bytes: 8, free_bytes: 3 };
        let verdict = |needs| check_room(Region::new(0, 0, 1, 1).size(), needs, memory).map_err(|e| e.verdict());
        assert_eq!(
            [3, 4, 8, 9].map(verdict),
            [Ok(()), Err(Verdict::RetryOrReplan), Err(Verdict::RetryOrReplan), Err(Verdict::Replan)]
        );
    }

    #[test]
    fn a_device_that_is_not_there_is_told_at_start() {
        let error = DeviceEngine::open(config::Device::Cuda(99), None, 0).unwrap_err();
        assert_eq!(error.to_string(), "cannot open device `cuda:99`");
    }

    #[test]
    fn a_cpu_level_that_cannot_be_is_told_at_start_with_those_that_can() {
        let open = |cpu: &str| DeviceEngine::open(config::Device::Cpu, Some(cpu), 0);
        let refused = CpuLevel::ALL.into_iter().filter(|level| !level.is_available()).map(CpuLevel::name);
        for cpu in refused.chain(["sse9", "AVX2", ""]) {
            let error = open(cpu).unwrap_err();
            assert_eq!(error.to_string(), format!("`cpu` is `{cpu}`"));
            let why = if CpuLevel::ALL.iter().any(|level| level.name() == cpu) {
                format!("this processor cannot compute at level `{cpu}`")
            } else {
                format!("`{cpu}` is not a level of CPU instructions")
            };
            assert!(format!("{error:#}").starts_with(&format!("`cpu` is `{cpu}`: {why}")), "{error:#}");
            let hint = service::report::hint_of(&error).unwrap();
            assert!(hint.contains("TESSERA_CPU") && hint.ends_with(&cpu_levels()), "{hint}");
        }
        // What is forced is what is shown.
        let told = open("portable").unwrap().describe();
        let words = format!("cpu portable, {} threads of a processor that has portable", threads());
        assert!(told.starts_with(&words), "{told}");
        assert!(told.ends_with("; renders exact and fast as cpu.portable-1.f32"), "{told}");
    }
}

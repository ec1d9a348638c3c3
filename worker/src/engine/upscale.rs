//! Tiles through super-resolution networks, on the device that the configuration names.

use std::path::Path;

use anyhow::Context as _;
use domain::{digest::Digest, region::Size, task::ComputeClass};
use models::{
    error::ModelError,
    processor::{CpuLevel, Kind, Mode, Precision, Processor},
    upscale::Upscaler,
};
use service::{config, report::Hinted as _};
use weights::checkpoint::Checkpoint;

use super::{DeviceFacts, Engine, RenderError, UpscaleWork, Watch, Work, cache::Cache, room::Room};
use crate::memory::{self, Memory};

/// Runs the networks of `models`, and keeps those used last in memory.
#[derive(Debug)]
pub struct UpscaleEngine {
    processor: Processor,
    name: String,
    /// One for each of the processor's modes, in their order.
    classes: Vec<ComputeClass>,
    loaded: Cache<(Digest, Precision), Upscaler>,
    room: Room,
}

impl UpscaleEngine {
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
        Ok(Self { processor, name, classes, loaded: Cache::new(model_memory_bytes), room: Room::default() })
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

    fn load(&self, model: Digest, precision: Precision, weights: &Path) -> Result<(Upscaler, u64), RenderError> {
        let unreadable = |source| RenderError::Weights { model, source };
        let checkpoint = Checkpoint::open(weights).map_err(unreadable)?;
        let upscaler = self.processor.load(&checkpoint, precision).map_err(|source| match source {
            ModelError::Checkpoint(source) => RenderError::Weights { model, source },
            ModelError::Detect(source) => RenderError::Network { model, source },
            source => RenderError::Model { model, source },
        })?;
        let (inputs, outputs) = (upscaler.facts().input_channels, upscaler.facts().output_channels);
        if (inputs, outputs) != (3, 3) {
            return Err(RenderError::Channels { model, inputs, outputs });
        }
        let size_bytes = upscaler.facts().parameters * self.processor.number_bytes(precision);
        Ok((upscaler, size_bytes))
    }

    fn upscale(&self, precision: Precision, work: &UpscaleWork, watch: &Watch) -> Result<Vec<f32>, RenderError> {
        let UpscaleWork { region, ref rgb, scale: planned, model, ref weights } = *work;
        let upscaler = self.loaded.get_or_make((model, precision), || self.load(model, precision, weights))?;
        let found = upscaler.facts().scale;
        if found != planned {
            return Err(RenderError::Scale { model, found, planned });
        }
        let (h, w) = (region.height as usize, region.width as usize);
        let mut promise = None; // until the tile is done
        if let Some(memory) = self.memory() {
            // A processor that runs out of memory ends the process instead of the call.
            let needs_bytes = upscaler.memory_estimate(h, w);
            let waits = || watch.stop().is_none();
            promise = Some(self.room.take(needs_bytes, memory.free_bytes, waits).ok_or(RenderError::Interrupted)?);
            check_room(region.size(), needs_bytes, self.memory().unwrap_or(memory))?;
        }
        let samples =
            upscaler.run_pixels(rgb, h, w, &|done: f64| watch.tell(done as f32)).map_err(|source| match source {
                ModelError::Interrupted => RenderError::Interrupted,
                ModelError::OutOfMemory(_) => RenderError::OutOfMemory { size: region.size(), source },
                ModelError::Device(_) => RenderError::Device { source },
                source => RenderError::Model { model, source },
            })?;
        drop(promise);
        // Clamping to 0 and 1 leaves nothing else that could be wrong with a sample.
        if samples.iter().any(|sample| sample.is_nan()) {
            return Err(RenderError::NotANumber { model });
        }
        Ok(samples)
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

/// Refuses a tile of `size`, which needs `needs_bytes`, if it does not fit into what is free of `memory`.
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

impl Engine for UpscaleEngine {
    fn classes(&self) -> &[ComputeClass] {
        &self.classes
    }

    fn device(&self) -> DeviceFacts {
        let memory = self.memory();
        let mut models: Vec<Digest> = Vec::new();
        for (model, _) in self.loaded.keys() {
            if !models.contains(&model) {
                models.push(model); // it may be loaded for each precision
            }
        }
        DeviceFacts {
            name: self.name.clone(),
            memory_bytes: memory.map_or(0, |memory| memory.total_bytes),
            memory_free_bytes: memory.map_or(0, |memory| memory.free_bytes),
            models,
        }
    }

    fn render(&self, class: &ComputeClass, work: &Work, watch: &Watch) -> Result<Vec<f32>, RenderError> {
        match work {
            Work::Upscale(work) => self.upscale(self.precision_of(class), work, watch),
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::region::Region;
    use tempfile::NamedTempFile;
    use tokio_util::sync::CancellationToken;
    use weights::synthetic;

    use super::*;
    use crate::engine::Verdict;

    /// The tensors of a Compact network of 4 features and one convolution in between.
    fn compact(input_channels: usize, scale: usize) -> Vec<(String, Vec<usize>)> {
        let tensor = |name: &str, shape: &[usize]| (format!("body.{name}"), shape.to_vec());
        let outputs = input_channels * scale * scale;
        vec![
            tensor("0.weight", &[4, input_channels, 3, 3]),
            tensor("0.bias", &[4]),
            tensor("1.weight", &[4]),
            tensor("2.weight", &[4, 4, 3, 3]),
            tensor("2.bias", &[4]),
            tensor("3.weight", &[4]),
            tensor("4.weight", &[outputs, 4, 3, 3]),
            tensor("4.bias", &[outputs]),
        ]
    }

    struct Case {
        engine: UpscaleEngine,
        work: UpscaleWork,
        _file: NamedTempFile,
    }

    fn case(weights: &[u8], scale: u32) -> Case {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), weights).unwrap();
        let rgb = (0..7 * 5 * 3).map(|i| i as f32 / 105.0).collect();
        let (model, path) = (Digest::of(weights), file.path().to_owned());
        let work = UpscaleWork { region: Region::new(3, 2, 7, 5), rgb, scale, model, weights: path };
        Case { engine: UpscaleEngine::open(config::Device::Cpu, None, 1 << 20).unwrap(), work, _file: file }
    }

    impl Case {
        fn render(&self, watch: &Watch) -> Result<Vec<f32>, RenderError> {
            self.engine.render(&self.engine.classes()[0], &Work::Upscale(self.work.clone()), watch)
        }

        fn refusal(&self) -> (String, Verdict) {
            let error = self.render(&Watch::default()).unwrap_err();
            (error.to_string(), error.verdict())
        }
    }

    #[test]
    fn a_tile_comes_out_larger_and_keeps_its_places() {
        let case = case(&synthetic::network(&compact(3, 2)), 2);
        let watch = Watch::default();
        let pixels = case.render(&watch).unwrap();
        assert_eq!(pixels.len(), Work::Upscale(case.work.clone()).output_values());
        assert!(pixels.iter().all(|sample| (0.0..=1.0).contains(sample)));
        assert_eq!(watch.fraction(), 1.0);
        assert_eq!(case.engine.device().models, [case.work.model]);
    }

    #[test]
    fn a_model_that_does_not_fit_the_task_is_refused() {
        let (message, verdict) = case(&synthetic::network(&compact(3, 2)), 4).refusal();
        assert!(message.ends_with("enlarges 2 times, but the task was planned for 4 times"), "{message}");
        assert_eq!(verdict, Verdict::Fail);
        let (message, verdict) = case(&synthetic::network(&compact(1, 2)), 2).refusal();
        assert!(message.ends_with("takes 1 channels and gives 1, where 3 and 3 are needed"), "{message}");
        assert_eq!(verdict, Verdict::Fail);
        assert_eq!(case(b"no weights at all", 2).refusal().1, Verdict::Fail);
    }

    #[test]
    fn a_lost_weights_file_is_no_fault_of_the_task() {
        let mut case = case(&synthetic::network(&compact(3, 2)), 2);
        case.work.weights = "/nowhere/weights".into();
        assert_eq!(case.refusal().1, Verdict::Retry);
    }

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
    fn rendering_stops_when_the_watch_says_so() {
        let case = case(&synthetic::network(&compact(3, 2)), 2);
        let leaving = CancellationToken::new();
        leaving.cancel();
        let revoked = Watch::default();
        revoked.revoke();
        for watch in [Watch::new(leaving), revoked] {
            assert!(matches!(case.render(&watch), Err(RenderError::Interrupted)));
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_told_at_start() {
        let error = UpscaleEngine::open(config::Device::Cuda(99), None, 0).unwrap_err();
        assert_eq!(error.to_string(), "cannot open device `cuda:99`");
    }

    #[test]
    fn a_cpu_level_that_cannot_be_is_told_at_start_with_those_that_can() {
        let open = |cpu: &str| UpscaleEngine::open(config::Device::Cpu, Some(cpu), 0);
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

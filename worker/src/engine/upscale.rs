//! Tiles through super-resolution networks, on the device that the configuration names.

use std::path::Path;

use anyhow::Context as _;
use domain::{digest::Digest, region::Size, task::ComputeClass};
use models::{
    error::ModelError,
    processor::{Kind, Processor},
    upscale::Upscaler,
};
use service::config;
use weights::checkpoint::Checkpoint;

use super::{DeviceFacts, Engine, RenderError, UpscaleWork, Watch, Work, cache::Cache};
use crate::memory::{self, Memory};

/// Runs the networks of `models`, and keeps those used last in memory.
#[derive(Debug)]
pub struct UpscaleEngine {
    processor: Processor,
    name: String,
    class: ComputeClass,
    loaded: Cache<Upscaler>,
}

impl UpscaleEngine {
    /// Opens `device`, with room for `model_memory_bytes` of loaded models.
    ///
    /// # Errors
    /// If the device is not there, or this program was built without support for it.
    pub fn open(device: config::Device, model_memory_bytes: u64) -> anyhow::Result<Self> {
        let (kind, kind_name) = match device {
            config::Device::Cpu => (Kind::Cpu, "cpu"),
            config::Device::Cuda(ordinal) => (Kind::Cuda(ordinal), "cuda"),
            config::Device::Metal(ordinal) => (Kind::Metal(ordinal), "metal"),
        };
        let processor = Processor::open(kind).with_context(|| format!("cannot open device `{device}`"))?;
        let class = ComputeClass::new(kind_name, &processor.level().replace('.', "-"), processor.dtype())?;
        let name = match device {
            config::Device::Cpu => {
                format!("cpu, {} threads", std::thread::available_parallelism().map_or(1, usize::from))
            }
            config::Device::Cuda(_) | config::Device::Metal(_) => device.to_string(),
        };
        Ok(Self { processor, name, class, loaded: Cache::new(model_memory_bytes) })
    }

    fn load(&self, model: Digest, weights: &Path) -> Result<(Upscaler, u64), RenderError> {
        let unreadable = |source| RenderError::Weights { model, source };
        let checkpoint = Checkpoint::open(weights).map_err(unreadable)?;
        let upscaler = self.processor.load(&checkpoint).map_err(|source| match source {
            ModelError::Checkpoint(source) => RenderError::Weights { model, source },
            ModelError::Detect(source) => RenderError::Network { model, source },
            source => RenderError::Model { model, source },
        })?;
        let (inputs, outputs) = (upscaler.facts().input_channels, upscaler.facts().output_channels);
        if (inputs, outputs) != (3, 3) {
            return Err(RenderError::Channels { model, inputs, outputs });
        }
        let size_bytes = upscaler.facts().parameters * self.processor.number_bytes();
        Ok((upscaler, size_bytes))
    }

    fn upscale(&self, work: &UpscaleWork, watch: &Watch) -> Result<Vec<f32>, RenderError> {
        let UpscaleWork { region, ref rgb, scale: planned, model, ref weights } = *work;
        let upscaler = self.loaded.get_or_make(model, || self.load(model, weights))?;
        let found = upscaler.facts().scale;
        if found != planned {
            return Err(RenderError::Scale { model, found, planned });
        }
        let (h, w) = (region.height as usize, region.width as usize);
        if let Some(memory) = self.processor.is_cpu().then(memory::of_this_machine).flatten() {
            // A processor that runs out of memory ends the process instead of the call.
            check_room(region.size(), upscaler.memory_estimate(h, w), memory)?;
        }
        let samples =
            upscaler.run_pixels(rgb, h, w, &|done: f64| watch.tell(done as f32)).map_err(|source| match source {
                ModelError::Interrupted => RenderError::Interrupted,
                ModelError::OutOfMemory(_) => RenderError::OutOfMemory { size: region.size(), source },
                ModelError::Device(_) => RenderError::Device { source },
                source => RenderError::Model { model, source },
            })?;
        // Clamping to 0 and 1 leaves nothing else that could be wrong with a sample.
        if samples.iter().any(|sample| sample.is_nan()) {
            return Err(RenderError::NotANumber { model });
        }
        Ok(samples)
    }
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
    fn class(&self) -> &ComputeClass {
        &self.class
    }

    fn device(&self) -> DeviceFacts {
        let memory = self.processor.is_cpu().then(memory::of_this_machine).flatten();
        DeviceFacts {
            name: self.name.clone(),
            memory_bytes: memory.map_or(0, |memory| memory.total_bytes),
            memory_free_bytes: memory.map_or(0, |memory| memory.free_bytes),
            models: self.loaded.digests(),
        }
    }

    fn render(&self, work: &Work, watch: &Watch) -> Result<Vec<f32>, RenderError> {
        match work {
            Work::Upscale(work) => self.upscale(work, watch),
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
        Case { engine: UpscaleEngine::open(config::Device::Cpu, 1 << 20).unwrap(), work, _file: file }
    }

    impl Case {
        fn render(&self, watch: &Watch) -> Result<Vec<f32>, RenderError> {
            self.engine.render(&Work::Upscale(self.work.clone()), watch)
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
        let error = UpscaleEngine::open(config::Device::Cuda(99), 0).unwrap_err();
        assert_eq!(error.to_string(), "cannot open device `cuda:99`");
    }
}

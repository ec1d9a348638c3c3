//! Tiles through super-resolution networks.

use std::{path::Path, sync::Arc};

use domain::digest::Digest;
use models::{error::ModelError, processor::Precision, upscale::Upscaler};
use weights::checkpoint::Checkpoint;

use super::{
    RenderError, UpscaleWork, Watch,
    device::{DeviceEngine, Key},
};

impl DeviceEngine {
    /// The network of the weights file `weights`, which is `model`.
    pub(super) fn upscaler(
        &self,
        model: Digest,
        precision: Precision,
        weights: &Path,
    ) -> Result<Arc<Upscaler>, RenderError> {
        let key = Key { files: vec![model], recipe: None, precision };
        self.loaded.get_or_make(&key, || self.load_upscaler(model, precision, weights))
    }

    fn load_upscaler(
        &self,
        model: Digest,
        precision: Precision,
        weights: &Path,
    ) -> Result<(Upscaler, u64), RenderError> {
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

    pub(super) fn upscale(
        &self,
        precision: Precision,
        work: &UpscaleWork,
        watch: &Watch,
    ) -> Result<Vec<f32>, RenderError> {
        let UpscaleWork { region, ref rgb, scale: planned, model, ref weights } = *work;
        let upscaler = self.upscaler(model, precision, weights)?;
        let found = upscaler.facts().scale;
        if found != planned {
            return Err(RenderError::Scale { model, found, planned });
        }
        let (h, w) = (region.height as usize, region.width as usize);
        let promise = self.take_room(region.size(), upscaler.memory_estimate(h, w), watch)?;
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

#[cfg(test)]
mod tests {
    use domain::region::Region;
    use service::config;
    use tempfile::NamedTempFile;
    use tokio_util::sync::CancellationToken;
    use weights::synthetic;

    use super::*;
    use crate::engine::{Engine as _, Verdict, Work};

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
        engine: DeviceEngine,
        work: UpscaleWork,
        _file: NamedTempFile,
    }

    fn case(weights: &[u8], scale: u32) -> Case {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), weights).unwrap();
        let rgb = (0..7 * 5 * 3).map(|i| i as f32 / 105.0).collect();
        let (model, path) = (Digest::of(weights), file.path().to_owned());
        let work = UpscaleWork { region: Region::new(3, 2, 7, 5), rgb, scale, model, weights: path };
        Case { engine: DeviceEngine::open(config::Device::Cpu, None, 1 << 20).unwrap(), work, _file: file }
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
    fn rendering_stops_when_the_watch_says_so() {
        let case = case(&synthetic::network(&compact(3, 2)), 2);
        let leaving = CancellationToken::new();
        leaving.cancel();
        let revoked = Watch::default();
        revoked.revoke();
        for watch in [Watch::new(leaving, Arc::default()), revoked] {
            assert!(matches!(case.render(&watch), Err(RenderError::Interrupted)));
        }
    }
}

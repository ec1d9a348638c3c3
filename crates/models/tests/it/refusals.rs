use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use models::error::ModelError;
use models::upscale::Upscaler;
use models::watch::Unwatched;
use weights::checkpoint::Checkpoint;
use weights::synthetic::{self, Fill};

use crate::{COMPACT, ESRGAN, cpu, goldens::layered, load, tile};

fn all() -> Vec<(String, Upscaler)> {
    let chained = [("COMPACT", COMPACT), ("ESRGAN", ESRGAN)].map(|(name, layout)| (name.to_owned(), load(layout)));
    chained.into_iter().chain(layered()).collect()
}

#[test]
fn progress_runs_from_nothing_to_all() {
    for (name, upscaler) in all() {
        let heard = Mutex::new(Vec::new());
        let watch = |done| {
            heard.lock().unwrap().push(done);
            true
        };
        upscaler.run(&tile(6, 5), &watch).unwrap();
        let heard = heard.into_inner().unwrap();
        assert!(heard.is_sorted() && heard.len() >= 3, "{name}: {heard:?}");
        assert_eq!(heard[0], 0.0, "{name}");
        assert!((heard[heard.len() - 1] - 1.0).abs() < 1e-9, "{name}: {heard:?}");
    }
}

#[test]
fn a_run_ends_as_soon_as_its_watch_says_so() {
    for (name, upscaler) in all() {
        for limit in [0.0, 0.5] {
            let asked_in_vain = AtomicUsize::new(0);
            let watch = |done| {
                asked_in_vain.fetch_add(usize::from(done >= limit), Ordering::Relaxed);
                done < limit
            };
            let outcome = upscaler.run(&tile(6, 5), &watch);
            assert!(matches!(outcome, Err(ModelError::Interrupted)), "{outcome:?}");
            assert_eq!(asked_in_vain.into_inner(), 1, "{name}");
        }
    }
}

#[test]
fn results_stay_within_0_and_1() {
    let upscaler = load(COMPACT);
    let raw = upscaler.forward_raw(&tile(9, 7), &Unwatched).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let clamped = upscaler.run(&tile(9, 7), &Unwatched).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(raw.iter().any(|value| !(0.0..=1.0).contains(value)));
    assert_eq!(clamped, raw.iter().map(|value| value.clamp(0.0, 1.0)).collect::<Vec<_>>());
}

#[test]
fn a_weight_that_is_no_number_is_refused_by_name() {
    for poison in [f32::NAN, f32::INFINITY] {
        let fill = |(name, shape): (String, Vec<usize>)| {
            let fill = if name == "body.2.bias" { Fill::Given(vec![poison; 8]) } else { Fill::Synthetic };
            (name, shape, fill)
        };
        let entries: Vec<_> = COMPACT.tensors().into_iter().map(fill).collect();
        let checkpoint = Checkpoint::from_bytes(synthetic::safetensors(&entries)).unwrap();
        let error = Upscaler::load_on_cpu(&checkpoint, cpu()).unwrap_err();
        assert_eq!(error.to_string(), "tensor `body.2.bias` holds a value that is infinite or no number");
    }
}

#[test]
fn a_cpu_computes_with_f32_alone() {
    let checkpoint = Checkpoint::from_bytes(synthetic::network(&COMPACT.tensors())).unwrap();
    let error = Upscaler::load(&checkpoint, &Device::Cpu, DType::BF16).unwrap_err();
    assert_eq!(error.to_string(), "a cpu device cannot compute with bf16 numbers");
}

#[test]
fn a_tile_of_other_channels_is_refused() {
    let four = Tensor::zeros((1, 4, 8, 8), DType::F32, &Device::Cpu).unwrap();
    let error = load(COMPACT).run(&four, &Unwatched).unwrap_err();
    assert_eq!(error.to_string(), "the model takes tiles of shape [1, 3, height, width], but got [1, 4, 8, 8]");
}

#[test]
fn larger_tiles_and_networks_are_expected_to_need_more_memory() {
    let (compact, esrgan) = (load(COMPACT), load(ESRGAN));
    assert!(compact.memory_estimate(64, 64) < compact.memory_estimate(64, 128));
    assert!(compact.memory_estimate(64, 64) < esrgan.memory_estimate(64, 64));
}

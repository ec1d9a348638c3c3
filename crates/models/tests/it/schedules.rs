//! Noise levels to the last bit, and what is no schedule.

use std::path::Path;

use candle_core::{Device, safetensors};
use models::diffusion::samplers::sampler;
use models::diffusion::schedule::{
    ModelSampling, Prediction, SCHEDULERS, ScheduleError, for_run, optimal_steps, scheduler, tables, whole,
};
use serde_json::Value;

fn model(name: &str) -> ModelSampling {
    match name {
        "sdxl_zsnr" => ModelSampling::discrete(Prediction::Velocity, true),
        _ => ModelSampling::discrete(Prediction::Epsilon, false),
    }
}

/// The noise of the SDE samplers depends on the last bits of the levels.
#[test]
fn nearly_all_levels_are_the_reference_s_to_the_last_bit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/diffusion");
    let cases: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let recorded = safetensors::load(folder.join("sigmas.safetensors"), &Device::Cpu).unwrap();
    let (mut levels, mut equal) = (0, 0);
    for case in cases["cases"].as_array().unwrap() {
        let params = &case["params"];
        let text = |key: &str| params[key].as_str().unwrap_or_default();
        let (scheduler, sampler) = match case["op"].as_str() {
            Some("ksampler_sigmas" | "impact_sigmas") => (scheduler(text("scheduler")), sampler(text("sampler"))),
            _ => continue,
        };
        let (model, steps) = (model(case["model"].as_str().unwrap()), params["steps"].as_u64().unwrap() as usize);
        let drops = sampler.unwrap().drops_penultimate;
        let got = match params["denoise"].as_f64() {
            Some(denoise) => for_run(&model, scheduler.unwrap(), steps, denoise, drops),
            None => whole(&model, scheduler.unwrap(), steps, drops),
        };
        let Ok(got) = got else { continue }; // where the reference gives no numbers
        let want = recorded[case["outputs"]["sigmas"].as_str().unwrap()].to_vec1::<f32>().unwrap();
        assert_eq!(got.len(), want.len(), "{}", case["name"]);
        for (got, want) in got.iter().zip(&want) {
            levels += 1;
            equal += usize::from(got == want);
            assert!(got.to_bits().abs_diff(want.to_bits()) <= 1, "{}: {got} for {want}", case["name"]);
        }
    }
    assert!(levels > 8000 && equal * 100 >= levels * 99, "{equal} of {levels} are equal");
}

#[test]
fn what_is_no_schedule_is_refused() {
    let error = scheduler("karas").unwrap_err().to_string();
    assert!(error.starts_with("unknown scheduler `karas`; known are simple, sgm_uniform, karras, "), "{error}");

    let model = model("sd1");
    let simple = scheduler("simple").unwrap();
    for scheduler in SCHEDULERS {
        assert!(matches!(scheduler.sigmas(&model, 0), Err(ScheduleError::Steps { least: 1.., .. })));
    }
    let kl_optimal = scheduler("kl_optimal").unwrap().sigmas(&model, 1).unwrap_err();
    assert_eq!(kl_optimal.to_string(), "kl_optimal takes 2 to 100000 steps, but 1 are asked for");
    for denoise in [f64::NAN, 1e-9] {
        assert!(matches!(for_run(&model, simple, 20, denoise, false), Err(ScheduleError::Denoise { .. })), "{denoise}");
    }
    assert!(optimal_steps(&tables::OSS_FLUX, 4, f64::NAN).is_err());
    for (low, high) in [(0.0, 1.0), (2.0, 1.0), (f32::NAN, 1.0), (1.0, f32::INFINITY)] {
        assert!(ModelSampling::continuous(Prediction::Velocity, low, high).is_err(), "{low} to {high}");
    }
}

#[test]
fn denoise_keeps_the_end_of_a_longer_schedule() {
    let (model, karras) = (model("sd1"), scheduler("karras").unwrap());
    let run = |steps, denoise| for_run(&model, karras, steps, denoise, false).unwrap();
    assert_eq!(run(4, 0.5), karras.sigmas(&model, 8).unwrap()[4..]);
    assert_eq!(run(4, 0.9), karras.sigmas(&model, 4).unwrap());
    assert_eq!(run(7, 0.35), karras.sigmas(&model, 20).unwrap()[13..]); // 7/0.35 is 20 in float64, but 19.99 in float32
    assert!(run(4, 0.0).is_empty() && run(4, -1.0).is_empty());
}

#[test]
fn levels_without_steps_between_go_to_timesteps_and_back() {
    let model = ModelSampling::continuous(Prediction::Velocity, 0.002, 120.0).unwrap();
    for sigma in [0.002, 0.3, 1.0, 120.0] {
        assert!((model.sigma(model.timestep(sigma)) / sigma - 1.0).abs() < 1e-5, "{sigma}");
    }
    let normal = scheduler("normal").unwrap().sigmas(&model, 3).unwrap();
    let want = [120.0, 0.24f32.sqrt(), 0.002, 0.0]; // the middle of the logarithms
    normal.iter().zip(want).for_each(|(got, want)| assert!((got - want).abs() <= 1e-4 * want, "{normal:?}"));
    assert!((model.percent_to_sigma(0.5) - 0.24f64.sqrt()).abs() < 1e-4);
}

/// With the noise in the prediction and the whole of the output, both predictions give the clean latent back.
#[test]
fn predictions_are_turned_into_the_clean_latent() {
    let (clean, noise, sigma) = (0.8, -1.3, 2.5f32);
    let x = clean + f64::from(sigma) * noise;
    let scale = ModelSampling::discrete(Prediction::Epsilon, false).input_scale(sigma);
    // α and σ of the diffusion that preserves variance: x·scale = α clean + s noise; v = α noise − s clean.
    let (alpha, s) = (scale, f64::from(sigma) * scale);
    for (prediction, out) in [(Prediction::Epsilon, noise), (Prediction::Velocity, alpha * noise - s * clean)] {
        let (of_x, of_out) = ModelSampling::discrete(prediction, false).denoised_factors(sigma);
        assert!((of_x * x + of_out * out - clean).abs() < 1e-12, "{prediction:?}");
    }
}

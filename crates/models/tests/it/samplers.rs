//! The samplers against the reference's runs of a tiny network, and what they promise of any.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use models::diffusion::conditioning::Conditioning;
use models::diffusion::guidance::{Network, Prompts};
use models::diffusion::random::initial_noise;
use models::diffusion::samplers::{Both, Denoiser, SAMPLERS, SampleError, Sampled, Settings, Step, sample, sampler};
use models::diffusion::sampling::{self, Latent, Noise, Task};
use models::diffusion::schedule::{ModelSampling, Prediction, scheduler};
use models::diffusion::unet::Unet;
use models::error::ModelError;
use models::ops::Backend;
use models::watch::{Unwatched, Watch};
use serde_json::Value;
use weights::checkpoint::Checkpoint;
use weights::synthetic::{self, Fill};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/diffusion")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

/// The tensors of a recorded file.
fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(folder().join(name), &Device::Cpu).unwrap().into_iter().collect()
}

pub fn unet() -> Unet {
    let models = json("models.json");
    let shapes: BTreeMap<String, Vec<usize>> =
        serde_json::from_value(models["models"]["sd1"]["tensors"].clone()).unwrap();
    let entries: Vec<_> = shapes.into_iter().map(|(name, shape)| (name, shape, Fill::Synthetic)).collect();
    let checkpoint = Checkpoint::from_bytes(synthetic::safetensors(&entries)).unwrap();
    Unet::load(&checkpoint.part("model.diffusion_model."), &Backend::Kernels(crate::cpu())).unwrap()
}

#[test]
fn samplers_give_the_latents_of_the_reference() {
    let cases = json("cases.json");
    let recorded = tensors("samplers.safetensors");
    let (unet, model) = (unet(), ModelSampling::discrete(Prediction::Epsilon, false));
    let network = Network { unet: &unet, sampling: &model, latent_scale: 0.18215, seat: None }; // SD 1.x
    let (mut failures, mut seen) = (Vec::new(), BTreeSet::new());
    let cases = cases["cases"].as_array().unwrap();
    for case in cases.iter().filter(|case| case["op"] == "ksampler" && case["file"] == "samplers.safetensors") {
        // One case of each sampler, with all its steps, and the mask whose noise is another. The others are the goldens program's.
        let name = case["name"].as_str().unwrap();
        if !name.ends_with("/karras/plain") && name != "samplers/ddim/normal/mask" {
            continue;
        }
        let params = &case["params"];
        let sampler = sampler(params["sampler"].as_str().unwrap()).unwrap();
        seen.insert(sampler.name);
        let input = |name: &str| case["inputs"][name].as_str().map(|tensor| recorded[tensor].clone());
        let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let [positive, negative] = ["positive", "negative"].map(|name| [Conditioning::new(input(name).unwrap(), None)]);
        let task = Task {
            network,
            prompts: Prompts { positive: &positive, negative: &negative, cfg: params["cfg"].as_f64().unwrap() },
            sampler,
            seed: params["seed"].as_u64().unwrap(),
            differential: None,
            watch: &Unwatched,
        };
        let latent = Latent { noise_mask: input("noise_mask"), ..Latent::new(input("latent").unwrap()) };
        let sigmas = numbers(&input("sigmas").unwrap());
        let mut got = BTreeMap::new();
        let mut index = 0;
        let mut keep = |step: &Step<'_>| {
            got.insert(format!("x.{index}"), step.x.to_vec());
            got.insert(format!("denoised.{index}"), step.denoised.to_vec());
            index += 1;
        };
        let sampled = sampling::run(&task, &sigmas, None, Noise::Seed, &latent, &mut keep).unwrap();
        assert!(sampled.last_denoised.is_some());
        got.insert("samples".to_owned(), numbers(&sampled.samples));

        let tolerance = case["atol"].as_f64().unwrap() as f32;
        for (output, tensor) in case["outputs"].as_object().unwrap() {
            let want = numbers(&recorded[tensor.as_str().unwrap()]);
            let Some(got) = got.get(output) else {
                failures.push(format!("{name}: no {output}"));
                continue;
            };
            assert_eq!(got.len(), want.len(), "{name} {output}");
            let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
            if worst > tolerance || got.iter().any(|x| x.is_nan()) {
                failures.push(format!("{name}: {output} is off by {worst}, {tolerance} allowed"));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    assert_eq!(seen.len(), SAMPLERS.len(), "every sampler has a case");
}

/// A network that knows its pictures: independent numbers of the normal distribution with this deviation.
struct Normal {
    deviation: f64,
    /// The call that gives no numbers, if any.
    broken: Option<usize>,
    calls: usize,
}

impl Normal {
    const fn new() -> Self {
        Self { deviation: 0.7, broken: None, calls: 0 }
    }
}

impl Denoiser for Normal {
    fn denoise(&mut self, x: &[f32], sigma: f32) -> Result<Vec<f32>, ModelError> {
        self.calls += 1;
        let (variance, noise) = (self.deviation.powi(2), f64::from(sigma).powi(2));
        let mut denoised: Vec<f32> = x.iter().map(|&x| (f64::from(x) * variance / (variance + noise)) as f32).collect();
        if self.broken == Some(self.calls) {
            denoised[0] = f32::NAN;
        }
        Ok(denoised)
    }

    fn denoise_both(&mut self, x: &[f32], sigma: f32) -> Result<Both, ModelError> {
        let denoised = self.denoise(x, sigma)?;
        Ok(Both { negative: denoised.clone(), denoised })
    }
}

/// Runs a sampler from noise down the levels of `karras`.
fn run(name: &str, steps: usize, network: &mut Normal, watch: &dyn Watch) -> Result<(Vec<f32>, usize), SampleError> {
    let model = ModelSampling::discrete(Prediction::Epsilon, false);
    let sigmas = scheduler("karras").unwrap().sigmas(&model, steps).unwrap();
    let scale = model.noise_scale(sigmas[0]) as f32;
    let x = initial_noise(5, 1, 4096).iter().map(|noise| scale * noise).collect();
    let settings = Settings { model: &model, sigmas: &sigmas, seed: 6, brownian_range: None, watch };
    let mut shown = 0;
    let sampled = sample(sampler(name).unwrap(), network, x, &settings, &mut |_| shown += 1)?;
    Ok((sampled.latent, shown))
}

#[test]
fn with_many_steps_samplers_draw_from_the_distribution_of_the_network() {
    // One forgets at each step what it has drawn, and one mixes predictions of different levels: no step is short enough.
    let is_exact = |name: &str| !["lcm", "dpmpp_2s_ancestral_cfg_pp"].contains(&name);
    let mut failures = Vec::new();
    for sampler in SAMPLERS.iter().filter(|sampler| is_exact(sampler.name)) {
        let (latent, _) = run(sampler.name, 60, &mut Normal::new(), &Unwatched).unwrap();
        let variance = latent.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / latent.len() as f64;
        if (variance.sqrt() / 0.7 - 1.0).abs() > 0.06 {
            failures.push(format!("{} gives {}", sampler.name, variance.sqrt()));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn few_steps_are_taken_too_and_each_is_shown() {
    for sampler in SAMPLERS {
        for steps in 1..=4 {
            let (latent, shown) = run(sampler.name, steps, &mut Normal::new(), &Unwatched).unwrap();
            assert!(latent.iter().all(|x| x.is_finite()), "{} with {steps} steps", sampler.name);
            match sampler.name {
                "dpm_fast" => assert_eq!(shown, steps / 3 + 1),
                "dpm_adaptive" => assert_eq!(shown > 0, steps > 1),
                name => assert_eq!(shown, steps, "{name}"),
            }
        }
    }
}

#[test]
fn every_call_of_the_network_can_be_the_last() {
    for sampler in SAMPLERS {
        let mut network = Normal::new();
        run(sampler.name, 4, &mut network, &Unwatched).unwrap();
        for last in 0..network.calls {
            let heard = std::sync::Mutex::new(Vec::new());
            let watch = |done: f64| {
                let mut heard = heard.lock().unwrap();
                heard.push(done);
                heard.len() <= last
            };
            let mut network = Normal::new();
            let stopped = run(sampler.name, 4, &mut network, &watch);
            assert!(matches!(stopped, Err(SampleError::Model(ModelError::Interrupted))), "{}", sampler.name);
            assert_eq!(network.calls, last, "{}", sampler.name);
            let heard = heard.into_inner().unwrap();
            assert!(heard.is_sorted() && heard.iter().all(|done| (0.0..1.0).contains(done)), "{heard:?}");
        }
    }
}

#[test]
fn a_prediction_without_numbers_stops_the_run_and_names_the_step() {
    let mut network = Normal { broken: Some(4), ..Normal::new() };
    let error = run("heun", 4, &mut network, &Unwatched).unwrap_err().to_string();
    assert!(error.starts_with("the latent of step 2 of 4, at sigma "), "{error}");
    assert!(error.ends_with("holds a value that is infinite or no number"), "{error}");
}

#[test]
fn what_is_no_sampler_and_no_way_down_is_refused() {
    let error = sampler("eulr").unwrap_err().to_string();
    assert!(error.starts_with("unknown sampler `eulr`; known are euler, euler_cfg_pp, "), "{error}");

    let model = ModelSampling::discrete(Prediction::Epsilon, false);
    let euler = sampler("euler").unwrap();
    for (sigmas, at) in [(&[1.0, 2.0][..], 1), (&[1.0, 0.0, 0.0], 1), (&[f32::NAN, 0.0], 0), (&[0.0], 0)] {
        let settings = Settings { model: &model, sigmas, seed: 0, brownian_range: None, watch: &Unwatched };
        let error = sample(euler, &mut Normal::new(), vec![1.0; 4], &settings, &mut |_| ()).unwrap_err();
        assert!(matches!(error, SampleError::Levels { at: found, .. } if found == at), "{sigmas:?}: {error}");
    }
    for sigmas in [&[][..], &[1.0]] {
        let settings = Settings { model: &model, sigmas, seed: 0, brownian_range: None, watch: &Unwatched };
        let same = sample(euler, &mut Normal::new(), vec![1.0; 4], &settings, &mut |_| ()).unwrap();
        assert_eq!(same, Sampled { latent: vec![1.0; 4], last_denoised: None });
    }
}

#[test]
fn a_brownian_path_may_span_more_than_the_run() {
    let model = ModelSampling::discrete(Prediction::Epsilon, false);
    let sigmas = [3.0, 1.0, 0.2, 0.0];
    let latent = |sampler_name: &str, brownian_range| {
        let settings = Settings { model: &model, sigmas: &sigmas, seed: 1, brownian_range, watch: &Unwatched };
        sample(sampler(sampler_name).unwrap(), &mut Normal::new(), vec![1.0; 16], &settings, &mut |_| ())
            .unwrap()
            .latent
    };
    assert_eq!(latent("dpmpp_2m_sde", None), latent("dpmpp_2m_sde", Some((0.2, 3.0))));
    assert_ne!(latent("dpmpp_2m_sde", None), latent("dpmpp_2m_sde", Some((0.03, 14.6))));
    assert_eq!(latent("euler_ancestral", None), latent("euler_ancestral", Some((0.03, 14.6))));
}

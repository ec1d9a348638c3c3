//! What a run promises of prompts, masks and parts of schedules, whatever the numbers of its network.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicUsize, Ordering},
};

use candle_core::{Device, Tensor};
use models::diffusion::conditioning::{Area, Conditioning, ConditioningMask, Control};
use models::diffusion::controlnet::ControlNet;
use models::diffusion::detail::{self, Levels, Part, Recovery, RecoveryMode, Way};
use models::diffusion::guidance::{DifferentialDiffusion, Network, Prompts};
use models::diffusion::samplers::{SampleError, Step, sampler};
use models::diffusion::sampling::{self, KSampler, Latent, Noise, Sampled, Task};
use models::diffusion::schedule::{ModelSampling, Prediction, scheduler};
use models::diffusion::unet::Unet;
use models::error::ModelError;
use models::watch::{Unwatched, Watch};
use weights::synthetic;

pub static UNET: LazyLock<Unet> = LazyLock::new(crate::samplers::unet);
static MODEL: LazyLock<ModelSampling> = LazyLock::new(|| ModelSampling::discrete(Prediction::Epsilon, false));

/// Any numbers of this shape, near 1.
pub fn numbers(name: &str, shape: &[usize]) -> Tensor {
    let values = synthetic::tensor(&format!("{name}.bias"), &[shape.iter().product()]);
    Tensor::from_vec(values.into_iter().map(|value| value * 50.0).collect(), shape, &Device::Cpu).unwrap()
}

pub fn prompt(name: &str) -> Conditioning {
    Conditioning::new(numbers(name, &[1, 77, UNET.layout().context_dim]), None)
}

pub fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

pub fn task<'a>(positive: &'a [Conditioning], negative: &'a [Conditioning], cfg: f64) -> Task<'a> {
    Task {
        network: Network { unet: &UNET, sampling: &MODEL, latent_scale: 0.18215, seat: None },
        prompts: Prompts { positive, negative, cfg },
        sampler: sampler("euler").unwrap(),
        seed: 3,
        differential: None,
        watch: &Unwatched,
    }
}

pub fn run(task: &Task<'_>, latent: &Latent) -> Result<Sampled, SampleError> {
    sampling::run(task, &[3.0, 0.8, 0.0], None, Noise::Seed, latent, &mut |_| ())
}

fn latent() -> Latent {
    Latent::new(numbers("latent", &[2, 4, 10, 12]))
}

#[test]
fn at_cfg_1_nobody_asks_the_negative_prompt() {
    let positive = [prompt("p")];
    let samples = |negative: &str| flat(&run(&task(&positive, &[prompt(negative)], 1.0), &latent()).unwrap().samples);
    assert_eq!(samples("n"), samples("other"));
    let guided = |negative: &str| flat(&run(&task(&positive, &[prompt(negative)], 1.5), &latent()).unwrap().samples);
    assert_ne!(guided("n"), guided("other"));
}

#[test]
fn what_the_mask_does_not_hold_stays() {
    let (positive, negative) = ([prompt("p")], [prompt("n")]);
    let mask: Vec<f32> = (0..10 * 12).map(|i| if i % 12 < 6 { 0.0 } else { 1.0 }).collect();
    let mask = Tensor::from_vec(mask, (1, 10, 12), &Device::Cpu).unwrap();
    let latent = Latent { noise_mask: Some(mask), ..latent() };
    let samples = flat(&run(&task(&positive, &negative, 4.0), &latent).unwrap().samples);
    let before = flat(&latent.samples);
    let kept = |i: usize| i % 12 < 6;
    let is_same = |i: usize| (samples[i] - before[i]).abs() < 1e-4;
    assert!((0..samples.len()).filter(|&i| kept(i)).all(is_same));
    assert!((0..samples.len()).filter(|&i| !kept(i)).filter(|&i| is_same(i)).count() < 10);
}

#[test]
fn a_grey_mask_of_differential_diffusion_begins_late_and_hard() {
    let (positive, negative) = ([prompt("p")], [prompt("n")]);
    let grey = Tensor::from_vec(vec![0.4f32; 120], (1, 10, 12), &Device::Cpu).unwrap();
    let latent = Latent { noise_mask: Some(grey), ..latent() };
    let differential = Some(DifferentialDiffusion::default());
    let mut denoised = Vec::new();
    let mut keep = |step: &Step<'_>| denoised.push(step.denoised.to_vec());
    let task = Task { differential, ..task(&positive, &negative, 4.0) };
    let sigmas = [8.0, 4.0, 0.03, 0.0]; // thresholds of 1, some 0.8 and 0
    sampling::run(&task, &sigmas, None, Noise::Seed, &latent, &mut keep).unwrap();
    let before: Vec<f32> = flat(&latent.samples).iter().map(|x| x * 0.18215).collect();
    assert!(denoised[0] == before && denoised[1] == before && denoised[2] != before);
}

#[test]
fn prompts_of_areas_share_the_latent_and_what_none_is_for_is_empty() {
    let area = |y, x| Some(Area::Cells { height: 10, width: 6, y, x });
    let halves = [Conditioning { area: area(0, 0), ..prompt("p") }, Conditioning { area: area(0, 6), ..prompt("q") }];
    let one = |halves: &[Conditioning]| {
        let mut seen = Vec::new();
        let negative = [prompt("n")];
        let mut keep = |step: &Step<'_>| seen.push(step.denoised.to_vec());
        sampling::run(&task(halves, &negative, 1.0), &[3.0, 0.0], None, Noise::Seed, &latent(), &mut keep).unwrap();
        seen.remove(0)
    };
    let (both, left) = (one(&halves), one(&halves[..1]));
    let at_left = |i: usize| i % 12 < 4; // the edge between them fades
    assert!((0..both.len()).filter(|&i| at_left(i)).all(|i| both[i] == left[i] && left[i] != 0.0));
    assert!((0..both.len()).filter(|&i| i % 12 >= 6).all(|i| both[i] != 0.0 && left[i] == 0.0));
    let outside = Conditioning { area: area(99, 99), ..prompt("p") };
    assert!(one(&[outside]).iter().all(|&value| value == 0.0));
}

#[test]
fn a_mask_of_a_prompt_weighs_it_against_the_others() {
    let with = |value: f32| {
        let mask = Tensor::from_vec(vec![value; 6], (1, 2, 3), &Device::Cpu).unwrap();
        let mask = ConditioningMask { mask, strength: 1.0, set_area_to_bounds: false };
        let positive = [Conditioning { mask: Some(mask), ..prompt("p") }, prompt("q")];
        flat(&run(&task(&positive, &[prompt("n")], 1.0), &latent()).unwrap().samples)
    };
    let alone = flat(&run(&task(&[prompt("q")], &[prompt("n")], 1.0), &latent()).unwrap().samples);
    assert_eq!(with(0.0), alone);
    assert_ne!(with(1.0), alone);
}

#[test]
fn a_control_has_a_picture_for_each_latent_whichever_prompts_share_a_call() {
    let net = crate::diffusion::checkpoint("control_sd1", "control_model.", |_| false);
    let net = Arc::new(ControlNet::load(&net, &crate::diffusion::backends()[0]).unwrap());
    let samples = |hint: Tensor| {
        let control = Control { net: net.clone(), hint, strength: 1.0, start_percent: 0.0, end_percent: 1.0 };
        let [positive, negative] =
            ["p", "n"].map(|name| [Conditioning { controls: vec![control.clone()], ..prompt(name) }]);
        flat(&run(&task(&positive, &negative, 4.0), &latent()).unwrap().samples)
    };
    let hints = numbers("hint", &[3, 80, 96, 3]);
    let first = samples(hints.narrow(0, 0, 1).unwrap());
    let two = samples(hints.narrow(0, 0, 2).unwrap());
    let half = two.len() / 2;
    assert!(two[..half] == first[..half] && two[half..] != first[half..]);
    assert_eq!(samples(hints), two, "of more pictures than latents the first are taken");
}

#[test]
fn a_run_stops_within_a_call_of_the_network() {
    let calls = AtomicUsize::new(0);
    let watch = |_: f64| calls.fetch_add(1, Ordering::Relaxed) < 10;
    let (positive, negative) = ([prompt("p")], [prompt("n")]);
    let task = Task { watch: &watch as &dyn Watch, ..task(&positive, &negative, 4.0) };
    let stopped = run(&task, &latent());
    assert!(matches!(stopped, Err(SampleError::Model(ModelError::Interrupted))));
    assert_eq!(calls.into_inner(), 11, "it is asked no more");
}

#[test]
fn what_does_not_fit_is_refused_before_any_work() {
    let negative = [prompt("n")];
    let error = |positive: &[Conditioning], latent: &Latent| run(&task(positive, &negative, 4.0), latent).unwrap_err();
    let wide = Latent::new(numbers("latent", &[1, 16, 8, 8]));
    assert_eq!(
        error(&[prompt("p")], &wide).to_string(),
        "`latent` should have shape [any, 4, any, any], but has [1, 16, 8, 8]"
    );
    let flat_mask = Latent { noise_mask: Some(numbers("mask", &[3])), ..latent() };
    assert!(error(&[prompt("p")], &flat_mask).to_string().starts_with("`mask` should have shape"));
    let foreign = Conditioning::new(numbers("p", &[1, 77, 5]), None);
    assert!(error(&[foreign], &latent()).to_string().starts_with("`context` should have shape"));
    let few = sampling::run(
        &task(&[prompt("p")], &negative, 4.0),
        &[1.0, 0.0],
        None,
        Noise::Given(&[0.0; 3]),
        &latent(),
        &mut |_| (),
    );
    assert!(matches!(few, Err(SampleError::Size { predicted: 3, .. })));
}

#[test]
fn without_a_way_to_go_the_latent_stays() {
    let (positive, negative) = ([prompt("p")], [prompt("n")]);
    let task = task(&positive, &negative, 4.0);
    let before = flat(&latent().samples);
    for sigmas in [&[][..], &[0.0]] {
        let same = sampling::run(&task, sigmas, None, Noise::Seed, &latent(), &mut |_| ()).unwrap();
        assert!(flat(&same.samples) == before && same.last_denoised.is_none());
    }
    let settings = KSampler { scheduler: scheduler("karras").unwrap(), steps: 4, denoise: 0.0 };
    assert_eq!(flat(&sampling::ksampler(&task, settings, &latent(), &mut |_| ()).unwrap()), before);
    let late = sampling::Part { start_at_step: 4, end_at_step: 9, return_with_leftover_noise: false };
    let settings = KSampler { denoise: 1.0, ..settings };
    let same = sampling::ksampler_advanced(&task, settings, late, Noise::Seed, &latent(), &mut |_| ()).unwrap();
    assert_eq!(flat(&same), before);
    let not_a_number = KSampler { denoise: f64::NAN, ..settings };
    assert!(matches!(sampling::ksampler(&task, not_a_number, &latent(), &mut |_| ()), Err(SampleError::Schedule(_))));
}

#[test]
fn a_detailer_counts_its_steps_from_the_end_of_a_longer_schedule() {
    let way = |steps, denoise| Way::new(steps, denoise).map(|way| (way.start_at_step, way.total)).ok();
    assert_eq!(way(20, 0.5), Some((20, 40)));
    assert_eq!(way(7, 0.35), Some((13, 20)), "7 / 0.35 is a little more than 20 in f64, and less in f32");
    assert_eq!(way(4, 1.0), Some((0, 4)));
    for (steps, denoise) in [(0, 0.5), (4, 0.0), (4, f64::NAN), (4, -1.0), (4, 1e-9), (4, 2.0)] {
        assert_eq!(way(steps, denoise), None, "{steps} steps at {denoise}");
    }
    assert!(detail::leaves_refiner_without_noise(10, 0.9) && !detail::leaves_refiner_without_noise(10, 0.8));
}

#[test]
fn a_recovery_needs_to_know_what_was_to_change() {
    let (positive, negative) = ([prompt("p")], [prompt("n")]);
    let task = Task { sampler: sampler("uni_pc").unwrap(), ..task(&positive, &negative, 4.0) };
    let levels = Levels::Scheduler(scheduler("karras").unwrap());
    let part = Part {
        noise: Noise::Seed,
        total: 2,
        start_at_step: Some(0),
        end_at_step: Some(2),
        return_with_leftover_noise: false,
        sigma_ratio: 1.0,
    };
    let recovery = Recovery { mode: RecoveryMode::RatioBetween, sampler: None, sigma_ratio: 0.5 };
    let refused = detail::advanced(&task, &levels, part, recovery, &latent(), &mut |_| ());
    assert!(matches!(refused, Err(SampleError::NoMask)));
}

#[test]
fn prompts_are_averaged_and_joined() {
    let (a, b) = (prompt("a"), Conditioning::new(numbers("b", &[1, 154, UNET.layout().context_dim]), None));
    let mean = a.average(&b, 0.25).unwrap();
    let (first, second) = (flat(&a.cond), flat(&b.cond));
    assert!(flat(&mean.cond).iter().enumerate().all(|(i, x)| (x - (0.25 * first[i] + 0.75 * second[i])).abs() < 1e-5));
    let longer = b.average(&a, 0.25).unwrap();
    assert!(
        flat(&longer.cond)[first.len()..].iter().zip(&second[first.len()..]).all(|(x, b)| (x - 0.25 * b).abs() < 1e-5)
    );
    assert_eq!(a.concat_tokens(&b).unwrap().cond.dims()[1], 77 + 154);
    assert!(flat(&a.zeroed().unwrap().cond).iter().all(|&x| x == 0.0));
}

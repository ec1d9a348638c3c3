//! Runs that go along with one another: what each makes is what it makes alone.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::thread;

use models::diffusion::batch::{Seat, seats};
use models::diffusion::conditioning::{Conditioning, Control};
use models::diffusion::controlnet::ControlNet;
use models::diffusion::guidance::Network;
use models::diffusion::samplers::{SampleError, sampler};
use models::diffusion::sampling::{Latent, Task};
use models::error::ModelError;

use crate::guidance::{UNET, flat, numbers, prompt, run, task};

/// What sets a run apart.
struct Run {
    sampler: &'static str,
    seed: u64,
    positive: Conditioning,
    latent: Latent,
}

fn one(name: &str) -> Run {
    let latent = Latent::new(numbers(name, &[1, 4, 10, 12]));
    Run { sampler: "euler", seed: name.len() as u64, positive: prompt(name), latent }
}

/// Makes a run; `calls` counts how often its network asked whether to go on, and the run stops after `most` of them.
fn make(run_of: &Run, seat: Option<&Seat>, calls: &AtomicUsize, most: usize) -> Result<Vec<f32>, SampleError> {
    let (positive, negative) = ([run_of.positive.clone()], [prompt("n")]);
    let watch = |_: f64| calls.fetch_add(1, Ordering::Relaxed) < most;
    let task = task(&positive, &negative, 4.0);
    let network = Network { seat, ..task.network };
    let sampler = sampler(run_of.sampler).unwrap();
    let task = Task { network, sampler, seed: run_of.seed, watch: &watch, ..task };
    Ok(flat(&run(&task, &run_of.latent)?.samples))
}

/// Makes `runs` at once, the first of which stops after `most` calls.
fn make_together(runs: &[Run], calls: &AtomicUsize, most: usize) -> Vec<Result<Vec<f32>, SampleError>> {
    thread::scope(|scope| {
        let start = |((index, run), seat): ((usize, _), Seat)| {
            let most = if index == 0 { most } else { usize::MAX };
            scope.spawn(move || make(run, Some(&seat), calls, most))
        };
        let runs: Vec<_> = runs.iter().enumerate().zip(seats(runs.len())).map(start).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

#[test]
fn each_gets_what_it_gets_alone_and_the_network_is_asked_less_often() {
    let (alone, together) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let runs = [one("a"), one("bb"), one("ccc")];
    let expected = runs.iter().map(|run| make(run, None, &alone, usize::MAX).unwrap());
    let expected: Vec<_> = expected.collect();
    let found: Vec<_> = make_together(&runs, &together, usize::MAX).into_iter().map(Result::unwrap).collect();
    assert!(found == expected && found[0] != found[1]);
    let [alone, together] = [alone, together].map(AtomicUsize::into_inner);
    assert!(together * 2 < alone, "asked {together} times instead of {alone}");
}

#[test]
fn runs_of_other_lengths_samplers_and_shapes_go_along_where_they_can() {
    let net = crate::diffusion::checkpoint("control_sd1", "control_model.", |_| false);
    let net = Arc::new(ControlNet::load(&net, &crate::diffusion::backends()[0]).unwrap());
    let controlled = |name: &str| {
        let hint = numbers(name, &[1, 80, 96, 3]);
        let control = Control { net: net.clone(), hint, strength: 0.7, start_percent: 0.0, end_percent: 1.0 };
        let run = one(name);
        Run { positive: Conditioning { controls: vec![control], ..run.positive }, ..run }
    };
    let dim = UNET.layout().context_dim;
    let runs = [
        one("a"),
        Run { sampler: "heun", ..one("bb") }, // asks about each level twice
        Run { sampler: "dpmpp_2m_sde", ..one("ccc") },
        Run { positive: Conditioning::new(numbers("long", &[1, 154, dim]), None), ..one("dddd") },
        Run { latent: Latent::new(numbers("small", &[1, 4, 8, 8])), ..one("eeeee") },
        controlled("f"),
        controlled("gg"),
    ];
    let calls = AtomicUsize::new(0);
    let found = make_together(&runs, &calls, usize::MAX);
    for (run, found) in runs.iter().zip(found) {
        assert_eq!(found.unwrap(), make(run, None, &calls, usize::MAX).unwrap(), "{}", run.sampler);
    }
}

#[test]
fn who_stops_holds_nobody_up() {
    let runs = [one("a"), one("bb"), one("ccc")];
    for most in [0, 1, 10, 40] {
        let calls = AtomicUsize::new(0);
        let mut found = make_together(&runs, &calls, most).into_iter();
        let stopped = found.next().unwrap();
        assert!(matches!(stopped, Err(SampleError::Model(ModelError::Interrupted))), "{most}");
        for (run, found) in runs[1..].iter().zip(found) {
            assert_eq!(found.unwrap(), make(run, None, &calls, usize::MAX).unwrap());
        }
    }
}

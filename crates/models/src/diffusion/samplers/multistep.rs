//! Samplers that remember slopes of steps before.

use std::collections::VecDeque;

use super::arithmetic::{lagrange, mix, slope};
use super::{Result, Run};

/// The last few slopes, newest first.
struct Slopes {
    slopes: VecDeque<Vec<f32>>,
    most: usize,
}

impl Slopes {
    fn new(most: usize) -> Self {
        Self { slopes: VecDeque::new(), most }
    }

    fn push(&mut self, slope: Vec<f32>) {
        self.slopes.truncate(self.most - 1);
        self.slopes.push_front(slope);
    }

    fn len(&self) -> usize {
        self.slopes.len()
    }

    /// Adds to x the slopes, newest first, each times its factor.
    fn add_to(&self, x: &[f32], factors: &[f64]) -> Vec<f32> {
        let terms = factors.iter().zip(&self.slopes).map(|(&factor, slope)| (factor, slope.as_slice()));
        mix(&[(1.0, x)].into_iter().chain(terms).collect::<Vec<_>>())
    }
}

/// Which latent previews see.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// The one before the step.
    Now,
    /// The one before the run, as in the reference's samplers of this kind.
    Start,
}

/// A run whose steps are sums of up to `order` slopes, with the factors that `factors` gives for step i and so many slopes.
/// The last step, to 0, takes the prediction.
fn of_slopes(
    run: &mut Run<'_>,
    mut x: Vec<f32>,
    order: usize,
    shown: Shown,
    factors: impl Fn(&Run<'_>, usize, usize) -> Vec<f64>,
) -> Result<Vec<f32>> {
    let start = (shown == Shown::Start).then(|| x.clone());
    let mut slopes = Slopes::new(order);
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict_showing(i, &x, start.as_ref().unwrap_or(&x))?;
        slopes.push(slope(&x, &denoised, sigma));
        x = match next {
            0.0 => denoised,
            _ => slopes.add_to(&x, &factors(run, i, slopes.len())),
        };
    }
    Ok(x)
}

/// Linear multistep of order 4: the integral of the polynomial through the slopes.
pub(super) fn lms(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    of_slopes(run, x, 4, Shown::Now, |run, i, order| {
        let (sigma, next) = run.pair(i);
        let nodes: Vec<f64> = (0..order).map(|j| run.sigma(i - j)).collect();
        let integral = |j: usize| {
            // Simpson's rule, exact for the cubic that it is at most.
            let at = |sigma: f64| lagrange(&nodes, j, sigma);
            (next - sigma) / 6.0 * (at(sigma) + 4.0 * at((sigma + next) / 2.0) + at(next))
        };
        (0..order).map(integral).collect()
    })
}

/// Adams and Bashforth's multistep of order 4, as for equal steps (Zhang and Chen 2022).
pub(super) fn ipndm(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    const FACTORS: [&[f64]; 4] = [
        &[1.0],
        &[3.0 / 2.0, -1.0 / 2.0],
        &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    ];
    of_slopes(run, x, 4, Shown::Start, |run, i, order| {
        let (sigma, next) = run.pair(i);
        FACTORS[order - 1].iter().map(|factor| (next - sigma) * factor).collect()
    })
}

/// Adams and Bashforth's multistep of order 4 for steps of any length.
///
/// The first of the two terms that the higher orders add is not the textbook's; it is what the reference computes.
pub(super) fn ipndm_v(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    of_slopes(run, x, 4, Shown::Start, |run, i, order| {
        // The length of this step, and of the ones before it.
        let h: Vec<f64> = (0..order).map(|j| run.sigma(i + 1 - j) - run.sigma(i - j)).collect();
        let second = |h: &[f64]| h[0] / h[1];
        let third = |h: &[f64]| {
            let factor = h[0] / (3.0 * (h[0] + h[1])) * (h[0] * (h[0] + h[1])) / (h[1] * (h[1] + h[2]));
            (1.0 - factor) / 2.0
        };
        let factors = match order {
            1 => vec![1.0],
            2 => vec![(2.0 + second(&h)) / 2.0, -second(&h) / 2.0],
            3 => {
                let (r, t1, q) = (second(&h), third(&h), h[1] / h[2]);
                vec![(2.0 + r) / 2.0 + t1, -r / 2.0 - (1.0 + q) * t1, t1 * q]
            }
            _ => {
                let (r, t1, q) = (second(&h), third(&h), h[1] / h[2]);
                let (two, three, four) = (h[0] + h[1], h[0] + h[1] + h[2], h[1] + h[2] + h[3]);
                let t2 = ((1.0 - h[0] / (3.0 * two)) / 2.0 + (1.0 - h[0] / (2.0 * two)) * h[0] / (6.0 * three))
                    * (h[0] * two * three)
                    / (h[1] * (h[1] + h[2]) * four);
                let p = h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]));
                vec![
                    (2.0 + r) / 2.0 + t1 + t2,
                    -r / 2.0 - (1.0 + q) * t1 - (1.0 + q + p) * t2,
                    t1 * q + (q + p * (1.0 + h[2] / h[3])) * t2,
                    -t2 * p * q,
                ]
            }
        };
        factors.into_iter().map(|factor| h[0] * factor).collect()
    })
}

/// The exponential integrator with polynomials in the time of the diffusion (Zhang and Chen 2022), up to order 3.
pub(super) fn deis(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    /// The parts that an integral is summed over.
    const PARTS: usize = 10_000;
    let time = VpTime::new();
    of_slopes(run, x, 3, Shown::Start, |run, i, order| {
        let (sigma, next) = run.pair(i);
        if order == 1 {
            return vec![next - sigma];
        }
        let nodes: Vec<f64> = (0..order).map(|j| time.of(run.sigma(i - j))).collect();
        let (start, end) = (nodes[0], time.of(next));
        let mut sums = vec![0.0; order];
        for k in 0..PARTS {
            let t = start + (end - start) * k as f64 / (PARTS - 1) as f64;
            let weight = time.weight(t) * (end - start) / PARTS as f64;
            sums.iter_mut().enumerate().for_each(|(j, sum)| *sum += weight * lagrange(&nodes, j, t));
        }
        sums
    })
}

/// The time of a diffusion that preserves variance, with β rising evenly (Song et al. 2021).
struct VpTime {
    /// How fast β rises.
    slope: f64,
    /// β at time 0.
    start: f64,
}

impl VpTime {
    /// Times from 1e-3 to 1 for levels from 0.002 to 80.
    fn new() -> Self {
        const FIRST: f64 = 1e-3;
        let (low, high) = (Self::log_variance(0.002), Self::log_variance(80.0));
        let slope = 2.0 * (low / FIRST - high) / (FIRST - 1.0);
        Self { slope, start: high - slope / 2.0 }
    }

    fn log_variance(sigma: f64) -> f64 {
        libm::log(sigma * sigma + 1.0)
    }

    fn of(&self, sigma: f64) -> f64 {
        let root = (self.start * self.start + 2.0 * self.slope * Self::log_variance(sigma)).sqrt();
        (root - self.start) / self.slope
    }

    /// dσ/dt, by which slopes over levels become slopes over times.
    fn weight(&self, t: f64) -> f64 {
        let left = libm::exp(-0.5 * t * t * self.slope - t * self.start);
        0.5 * (t * self.slope + self.start) / (left * (1.0 - left)).sqrt()
    }
}

/// How far [`gradient_estimation`] goes beyond the change of the slope.
const GAMMA: f64 = 2.0;

/// Euler steps corrected by the change of the slope (Permenter and Yuan 2023).
pub(super) fn gradient_estimation(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    let mut before: Option<Vec<f32>> = None;
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        let d = slope(&x, &denoised, sigma);
        if next == 0.0 {
            x = denoised;
            continue;
        }
        let step = next - sigma;
        x = match &before {
            None => mix(&[(1.0, &x), (step, &d)]),
            Some(before) => mix(&[(1.0, &x), (step * GAMMA, &d), (-step * (GAMMA - 1.0), before)]),
        };
        before = Some(d);
    }
    Ok(x)
}

/// As [`gradient_estimation`], from the guided prediction along the slope of the negative one.
pub(super) fn gradient_estimation_cfg_pp(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    let mut before: Option<Vec<f32>> = None;
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let (denoised, negative) = run.predict_both(i, &x)?;
        let d = slope(&x, &negative, sigma);
        if next == 0.0 {
            x = denoised;
            continue;
        }
        let correction = (GAMMA - 1.0) * (next - sigma);
        x = match &before {
            None => mix(&[(1.0, &denoised), (next, &d)]),
            Some(before) => mix(&[(1.0, &denoised), (next + correction, &d), (-correction, before)]),
        };
        before = Some(d);
    }
    Ok(x)
}

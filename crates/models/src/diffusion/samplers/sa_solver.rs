//! SA-Solver (Xue et al. 2023): predictor and corrector with the predictions of up to four steps, and noise in the middle of
//! the way.

use std::collections::VecDeque;

use super::arithmetic::{exp, expm1, lambda, mix};
use super::{Result, Run};
use crate::diffusion::equations::solve;

/// The most predictions that a predictor sums up, and a corrector.
const PREDICTOR: usize = 3;
const CORRECTOR: usize = 4;

/// With one call a step.
pub(super) fn sa_solver(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    solver(run, x, false)
}

/// With a second call after each correction.
pub(super) fn sa_solver_pece(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    solver(run, x, true)
}

/// A step from one level to the next, as it was predicted.
struct Predicted {
    /// The share of the SDE's noise in it.
    tau: f64,
    /// The noise, times its factor.
    noise: Option<Vec<f32>>,
}

fn solver(run: &mut Run<'_>, mut x: Vec<f32>, evaluates_twice: bool) -> Result<Vec<f32>> {
    let steps = run.steps();
    let ends_at_zero = run.sigma(steps) == 0.0;
    let noisy = (run.settings.model.percent_to_sigma(0.2), run.settings.model.percent_to_sigma(0.8));
    let tau = |sigma: f64| if noisy.0 >= sigma && sigma >= noisy.1 { 1.0 } else { 0.0 };
    // Predictions, newest last, and the λ of each.
    let mut seen: VecDeque<(Vec<f32>, f64)> = VecDeque::new();
    let mut last: Option<Predicted> = None;
    let mut predicted = x.clone();
    for i in 0..steps {
        let (sigma, next) = run.pair(i);
        let is_last = next == 0.0;
        let denoised = run.predict(i, &predicted)?;
        if seen.len() == CORRECTOR {
            seen.pop_front();
        }
        seen.push_back((denoised, lambda(sigma)));

        let left = if ends_at_zero { steps - i } else { usize::MAX };
        x = match &last {
            Some(step) if !is_last || evaluates_twice => {
                let order = CORRECTOR.min(seen.len()).min(left);
                let corrected = advance(&x, (run.sigma(i - 1), sigma), &seen, order, step);
                if evaluates_twice {
                    let again = run.denoise(&corrected, run.sigmas()[i])?;
                    seen.back_mut().expect("a prediction was just added").0 = again;
                }
                corrected
            }
            _ => predicted,
        };

        if is_last {
            return Ok(seen.pop_back().expect("a prediction was just added").0);
        }
        let order = PREDICTOR.min(seen.len()).min(left.saturating_sub(1));
        let tau = tau(next);
        let noise = (tau > 0.0).then(|| {
            let h = lambda(next) - lambda(sigma);
            let factor = next * (-expm1(-2.0 * tau * tau * h)).sqrt();
            mix(&[(factor, &run.noise_of(i))])
        });
        let step = Predicted { tau, noise };
        predicted = advance(&x, (sigma, next), &seen, order, &step);
        last = Some(step);
    }
    Ok(predicted)
}

/// Takes x from one level to another along the last `order` predictions.
fn advance(
    x: &[f32],
    (sigma, next): (f64, f64),
    seen: &VecDeque<(Vec<f32>, f64)>,
    order: usize,
    step: &Predicted,
) -> Vec<f32> {
    let seen: Vec<_> = seen.iter().skip(seen.len() - order).collect();
    let lambdas: Vec<f64> = seen.iter().map(|(_, lambda)| *lambda).collect();
    let factors = coefficients(&lambdas, lambda(sigma), lambda(next), step.tau);
    let keep = next / sigma * exp(-step.tau * step.tau * (lambda(next) - lambda(sigma)));
    let mut terms = vec![(keep, x)];
    terms.extend(factors.into_iter().zip(&seen).map(|(factor, (denoised, _))| (factor, denoised.as_slice())));
    terms.extend(step.noise.as_deref().map(|noise| (1.0, noise)));
    mix(&terms)
}

/// The integrals from a to b of the polynomials that are 1 at one of `lambdas` and 0 at the others, under an exponential weight.
fn coefficients(lambdas: &[f64], a: f64, b: f64, tau: f64) -> Vec<f64> {
    let c = 1.0 + tau * tau;
    let count = lambdas.len() as i32;
    let mut integral = 0.0; // of u^p times c e^(c (u - b))
    let integrals = (0..count).map(|p| {
        integral = b.powi(p) - a.powi(p) * exp(-c * (b - a)) - f64::from(p) / c * integral;
        integral
    });
    let integrals: Vec<f64> = integrals.collect();
    let powers = (0..count).flat_map(|p| lambdas.iter().map(move |lambda| lambda.powi(p)));
    solve(powers.collect(), integrals, lambdas.len())
}

//! DPM-Solver++ (Lu et al. 2022) and its SDE forms, which follow the predictions in λ.

use super::arithmetic::{ancestral, exp, expm1, lambda, mix, slope};
use super::{Result, Run};
use crate::diffusion::schedule::{exp as exp32, ln as ln32};

/// Two predictions a step, to a level below the next, and noise up to it.
pub(super) fn dpmpp_2s_ancestral(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let (down, up) = ancestral(run.sigmas()[i], run.sigmas()[i + 1]);
        let denoised = run.predict(i, &x)?;
        if down == 0.0 {
            x = mix(&[(1.0, &x), (-sigma, &slope(&x, &denoised, sigma))]);
        } else {
            let (t, h) = (lambda(sigma), lambda(f64::from(down)) - lambda(sigma));
            let x2 = mix(&[(exp(-h / 2.0), &x), (-expm1(-h / 2.0), &denoised)]);
            let denoised2 = run.denoise(&x2, exp(-t - h / 2.0) as f32)?;
            x = mix(&[(exp(-h), &x), (-expm1(-h), &denoised2)]);
        }
        if next > 0.0 {
            let noise = run.noise_of(i);
            x = mix(&[(1.0, &x), (f64::from(up), &noise)]);
        }
    }
    Ok(x)
}

/// As [`dpmpp_2s_ancestral`], from the guided predictions along the negative ones.
pub(super) fn dpmpp_2s_ancestral_cfg_pp(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let (down, up) = ancestral(run.sigmas()[i], run.sigmas()[i + 1]);
        let (denoised, negative) = run.predict_both(i, &x)?;
        if down == 0.0 {
            x = denoised;
        } else {
            let (t, h) = (lambda(sigma), lambda(f64::from(down)) - lambda(sigma));
            let keep = exp(-h / 2.0);
            let x2 = mix(&[(keep, &x), (keep - expm1(-h / 2.0), &denoised), (-keep, &negative)]);
            let (denoised2, negative2) = run.denoise_both(&x2, exp(-t - h / 2.0) as f32)?;
            let keep = exp(-h);
            x = mix(&[(keep, &x), (keep, &denoised), (-keep, &negative2), (-expm1(-h), &denoised2)]);
        }
        if next > 0.0 {
            let noise = run.noise_of(i);
            x = mix(&[(1.0, &x), (f64::from(up), &noise)]);
        }
    }
    Ok(x)
}

/// Two predictions a step, each followed by noise.
pub(super) fn dpmpp_sde(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let (from, to) = (run.sigmas()[i], run.sigmas()[i + 1]);
        let denoised = run.predict(i, &x)?;
        if to == 0.0 {
            x = denoised;
            continue;
        }
        // In float32, as the noise is asked for at this level.
        let (start, end) = (-ln32(from), -ln32(to));
        let middle = exp32(-(start + 0.5 * (end - start)));

        let x2 = noisy_step(run, &x, &denoised, from, middle);
        let denoised2 = run.denoise(&x2, middle)?;
        x = noisy_step(run, &x, &denoised2, from, to);
    }
    Ok(x)
}

/// A step of order 1 to a level below `to`, and noise up to it.
fn noisy_step(run: &mut Run<'_>, x: &[f32], denoised: &[f32], from: f32, to: f32) -> Vec<f32> {
    let (down, up) = ancestral(from, to);
    let keep = f64::from(down) / f64::from(from); // e^-h
    let noise = run.noise(from, to);
    mix(&[(keep, x), (1.0 - keep, denoised), (f64::from(up), &noise)])
}

/// One prediction a step, and that of the step before.
pub(super) fn dpmpp_2m(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    let mut before: Option<(Vec<f32>, f64)> = None;
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        if next == 0.0 {
            return Ok(denoised);
        }
        let h = lambda(next) - lambda(sigma);
        let (keep, new) = (next / sigma, -expm1(-h));
        x = match &before {
            None => mix(&[(keep, &x), (new, &denoised)]),
            Some((before, h_before)) => {
                let share = 0.5 * h / h_before;
                mix(&[(keep, &x), (new * (1.0 + share), &denoised), (-new * share, before)])
            }
        };
        before = Some((denoised, h));
    }
    Ok(x)
}

/// As [`dpmpp_2m`], from the guided predictions along the negative ones.
pub(super) fn dpmpp_2m_cfg_pp(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    let mut before: Option<(Vec<f32>, f64)> = None;
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let (denoised, negative) = run.predict_both(i, &x)?;
        if next == 0.0 {
            return Ok(denoised);
        }
        let h = lambda(next) - lambda(sigma);
        let keep = exp(-h);
        x = match &before {
            None => mix(&[(keep, &x), (1.0, &denoised), (-keep, &negative)]),
            Some((before, h_before)) => {
                let share = -expm1(-h) * 0.5 * h / h_before;
                mix(&[(keep, &x), (1.0 + share, &denoised), (-keep, &negative), (-share, before)])
            }
        };
        before = Some((negative, h));
    }
    Ok(x)
}

/// The SDE form of [`dpmpp_2m`], with the midpoint's correction.
pub(super) fn dpmpp_2m_sde(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    dpmpp_2m_sde_with(run, x, |h| -expm1(-h) / 2.0)
}

/// The SDE form of [`dpmpp_2m`], with Heun's correction.
pub(super) fn dpmpp_2m_sde_heun(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    dpmpp_2m_sde_with(run, x, |h| expm1(-h) / h + 1.0)
}

/// `correction` is the factor of the change of the predictions, for twice a step of λ.
fn dpmpp_2m_sde_with(run: &mut Run<'_>, mut x: Vec<f32>, correction: fn(f64) -> f64) -> Result<Vec<f32>> {
    let mut before: Option<(Vec<f32>, f64)> = None;
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        if next == 0.0 {
            return Ok(denoised);
        }
        let h = lambda(next) - lambda(sigma);
        let noise = run.noise_of(i);
        let mut terms = sde_terms(&x, &denoised, &noise, (sigma, next), h).to_vec();
        if let Some((before, h_before)) = &before {
            let change = correction(2.0 * h) * h / h_before;
            terms.extend([(change, denoised.as_slice()), (-change, before.as_slice())]);
        }
        x = mix(&terms);
        before = Some((denoised, h));
    }
    Ok(x)
}

/// A step of order 1 of the SDE with η = 1.
fn sde_terms<'a>(
    x: &'a [f32],
    denoised: &'a [f32],
    noise: &'a [f32],
    (sigma, next): (f64, f64),
    h: f64,
) -> [(f64, &'a [f32]); 3] {
    let new = -expm1(-2.0 * h);
    [(next / sigma * exp(-h), x), (new, denoised), (next * new.sqrt(), noise)]
}

/// The SDE form with the predictions of two steps before.
pub(super) fn dpmpp_3m_sde(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    type Before = Option<(Vec<f32>, f64)>; // a step's prediction and length
    // The last step's, and those of the one before.
    let (mut first, mut second): (Before, Before) = (None, None);
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        if next == 0.0 {
            return Ok(denoised);
        }
        let h = lambda(next) - lambda(sigma);
        let noise = run.noise_of(i);
        let mut terms = sde_terms(&x, &denoised, &noise, (sigma, next), h).to_vec();
        let phi2 = expm1(-2.0 * h) / (2.0 * h) + 1.0;
        match (&first, &second) {
            (Some((d1, h1)), Some((d2, h2))) => {
                let phi3 = phi2 / (2.0 * h) - 0.5;
                let (r0, r1) = (h1 / h, h2 / h);
                // With a = (D - D1)/r0 and b = (D1 - D2)/r1: the factors of a and of b.
                let of_a = phi2 * (1.0 + r0 / (r0 + r1)) - phi3 / (r0 + r1);
                let of_b = -phi2 * r0 / (r0 + r1) + phi3 / (r0 + r1);
                terms.extend([
                    (of_a / r0, denoised.as_slice()),
                    (of_b / r1 - of_a / r0, d1.as_slice()),
                    (-of_b / r1, d2.as_slice()),
                ]);
            }
            (Some((d1, h1)), None) => {
                let change = phi2 * h / h1;
                terms.extend([(change, denoised.as_slice()), (-change, d1.as_slice())]);
            }
            (None, _) => {}
        }
        x = mix(&terms);
        second = first.replace((denoised, h));
    }
    Ok(x)
}

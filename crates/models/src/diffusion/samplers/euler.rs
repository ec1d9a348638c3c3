//! Samplers that follow the slope at one level or two, with noise or without.

use super::arithmetic::{along, ancestral, mix, slope};
use super::{Result, Run};
use crate::diffusion::schedule::between;

/// Euler steps (Karras et al. 2022, algorithm 2 without churn). `ddim` is the same.
pub(super) fn euler(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        let d = slope(&x, &denoised, sigma);
        x = along(&x, &d, next - sigma);
    }
    Ok(x)
}

/// Euler steps to a level below the next, and noise up to it.
pub(super) fn euler_ancestral(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let sigma = run.sigma(i);
        let (down, up) = ancestral(run.sigmas()[i], run.sigmas()[i + 1]);
        let denoised = run.predict(i, &x)?;
        if down == 0.0 {
            x = denoised;
            continue;
        }
        let d = slope(&x, &denoised, sigma);
        let noise = run.noise_of(i);
        x = along(&along(&x, &d, f64::from(down) - sigma), &noise, f64::from(up));
    }
    Ok(x)
}

/// Euler steps from the guided prediction along the slope of the negative one (Chung et al. 2024).
pub(super) fn euler_cfg_pp(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let (denoised, negative) = run.predict_both(i, &x)?;
        let d = slope(&x, &negative, sigma);
        x = along(&denoised, &d, next);
    }
    Ok(x)
}

/// As [`euler_cfg_pp`], to a level below the next, and noise up to it.
pub(super) fn euler_ancestral_cfg_pp(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let (down, up) = ancestral(run.sigmas()[i], run.sigmas()[i + 1]);
        let (denoised, negative) = run.predict_both(i, &x)?;
        if next == 0.0 {
            x = denoised;
            continue;
        }
        let d = slope(&x, &negative, sigma);
        let noise = run.noise_of(i);
        x = along(&along(&denoised, &d, f64::from(down)), &noise, f64::from(up));
    }
    Ok(x)
}

/// Heun's steps: the mean of the slopes at both ends (Karras et al. 2022, algorithm 2).
pub(super) fn heun(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        let d = slope(&x, &denoised, sigma);
        let step = next - sigma;
        let x2 = along(&x, &d, step);
        if next == 0.0 {
            x = x2;
            continue;
        }
        let d2 = slope(&x2, &run.denoise(&x2, run.sigmas()[i + 1])?, next);
        x = mix(&[(1.0, &x), (step / 2.0, &d), (step / 2.0, &d2)]);
    }
    Ok(x)
}

/// Heun's steps with up to three slopes, weighed by their levels.
pub(super) fn heunpp2(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    let sigmas = run.sigmas();
    let (highest, last) = (run.sigma(0), run.sigma(run.steps()));
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        let d = slope(&x, &denoised, sigma);
        let step = next - sigma;
        let x2 = along(&x, &d, step);
        if next == last {
            x = x2;
            continue;
        }
        let d2 = slope(&x2, &run.denoise(&x2, sigmas[i + 1])?, next);
        let after = run.sigma(i + 2);
        if after == last {
            let w2 = next / (2.0 * highest);
            x = mix(&[(1.0, &x), (step * (1.0 - w2), &d), (step * w2, &d2)]);
            continue;
        }
        let x3 = along(&x2, &d2, after - next);
        let d3 = slope(&x3, &run.denoise(&x3, sigmas[i + 2])?, after);
        let (w2, w3) = (next / (3.0 * highest), after / (3.0 * highest));
        x = mix(&[(1.0, &x), (step * (1.0 - w2 - w3), &d), (step * w2, &d2), (step * w3, &d3)]);
    }
    Ok(x)
}

/// Midpoint steps (Karras et al. 2022, algorithm 2 with the middle of the logarithms).
pub(super) fn dpm_2(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        x = midpoint(run, i, x, run.sigmas()[i + 1])?;
    }
    Ok(x)
}

/// As [`dpm_2`], to a level below the next, and noise up to it.
pub(super) fn dpm_2_ancestral(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let (down, up) = ancestral(run.sigmas()[i], run.sigmas()[i + 1]);
        x = midpoint(run, i, x, down)?;
        if down > 0.0 {
            let noise = run.noise_of(i);
            x = along(&x, &noise, f64::from(up));
        }
    }
    Ok(x)
}

/// One step of step i to level `next` by the slope in the middle.
fn midpoint(run: &mut Run<'_>, i: usize, x: Vec<f32>, next: f32) -> Result<Vec<f32>> {
    let sigma = run.sigma(i);
    let denoised = run.predict(i, &x)?;
    let d = slope(&x, &denoised, sigma);
    let step = f64::from(next) - sigma;
    if next == 0.0 {
        return Ok(along(&x, &d, step));
    }
    let middle = between(run.sigmas()[i], next);
    let x2 = along(&x, &d, f64::from(middle) - sigma);
    let d2 = slope(&x2, &run.denoise(&x2, middle)?, f64::from(middle));
    Ok(along(&x, &d2, step))
}

/// Steps of the posterior of the diffusion (Ho et al. 2020), in latents of constant variance.
pub(super) fn ddpm(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        let d = slope(&x, &denoised, sigma);
        let (left, left_next) = (1.0 / (1.0 + sigma * sigma), 1.0 / (1.0 + next * next));
        let alpha = left / left_next;
        let scale = (1.0 / alpha).sqrt();
        let from_x = scale / (1.0 + sigma * sigma).sqrt();
        let from_d = -scale * (1.0 - alpha) / (1.0 - left).sqrt();
        if next == 0.0 {
            x = mix(&[(from_x, &x), (from_d, &d)]);
            continue;
        }
        let deviation = ((1.0 - alpha) * (1.0 - left_next) / (1.0 - left)).sqrt();
        let back = (1.0 + next * next).sqrt();
        let noise = run.noise_of(i);
        x = mix(&[(from_x * back, &x), (from_d * back, &d), (deviation * back, &noise)]);
    }
    Ok(x)
}

/// Predicts and noises again (Luo et al. 2023).
pub(super) fn lcm(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    for i in 0..run.steps() {
        let next = run.sigma(i + 1);
        x = run.predict(i, &x)?;
        if next > 0.0 {
            let noise = run.noise_of(i);
            x = along(&x, &noise, next);
        }
    }
    Ok(x)
}

//! Exponential integrators in λ, and solvers of the extended reverse SDE.

use super::arithmetic::{ancestral, exp, expm1, lambda, mix, slope};
use super::{Result, Run};

/// Two predictions, of this step and the one before (RES, Zhang et al. 2023).
pub(super) fn res_multistep(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    res(run, x, false)
}

/// As [`res_multistep`], to a level below the next, and noise up to it.
pub(super) fn res_multistep_ancestral(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    res(run, x, true)
}

/// As [`res_multistep`], from the guided predictions along the negative ones.
pub(super) fn res_multistep_cfg_pp(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    res_cfg_pp(run, x, false)
}

/// As [`res_multistep_ancestral`], from the guided predictions along the negative ones.
pub(super) fn res_multistep_ancestral_cfg_pp(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    res_cfg_pp(run, x, true)
}

/// The level that step i goes down to, and the noise above it.
fn parted(run: &Run<'_>, i: usize, is_ancestral: bool) -> (f64, f64) {
    let (from, to) = (run.sigmas()[i], run.sigmas()[i + 1]);
    let (down, up) = if is_ancestral { ancestral(from, to) } else { (to, 0.0) };
    (f64::from(down), f64::from(up))
}

/// The factors of the latent, the prediction and the one before, for step i to level `down`, after a step to `down_before`.
fn res_factors(run: &Run<'_>, i: usize, down: f64, down_before: f64) -> [f64; 3] {
    let t = lambda(run.sigma(i));
    let h = lambda(down) - t;
    let c2 = (lambda(run.sigma(i - 1)) - lambda(down_before)) / h;
    let phi1 = expm1(-h) / -h;
    let phi2 = (phi1 - 1.0) / -h;
    let finite = |b: f64| if b.is_nan() { 0.0 } else { b };
    let (b1, b2) = (finite(phi1 - phi2 / c2), finite(phi2 / c2));
    [exp(-h), h * b1, h * b2]
}

fn res(run: &mut Run<'_>, mut x: Vec<f32>, is_ancestral: bool) -> Result<Vec<f32>> {
    let mut before: Option<(Vec<f32>, f64)> = None;
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let (down, up) = parted(run, i, is_ancestral);
        let denoised = run.predict(i, &x)?;
        x = match &before {
            Some((before, down_before)) if down > 0.0 => {
                let [keep, new, old] = res_factors(run, i, down, *down_before);
                mix(&[(keep, &x), (new, &denoised), (old, before)])
            }
            _ => mix(&[(1.0, &x), (down - sigma, &slope(&x, &denoised, sigma))]),
        };
        if next > 0.0 && up > 0.0 {
            let noise = run.noise_of(i);
            x = mix(&[(1.0, &x), (up, &noise)]);
        }
        before = Some((denoised, down));
    }
    Ok(x)
}

fn res_cfg_pp(run: &mut Run<'_>, mut x: Vec<f32>, is_ancestral: bool) -> Result<Vec<f32>> {
    let mut before: Option<(Vec<f32>, f64)> = None;
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let (down, up) = parted(run, i, is_ancestral);
        let (denoised, negative) = run.predict_both(i, &x)?;
        x = match &before {
            Some((before, down_before)) if down > 0.0 => {
                let [keep, new, old] = res_factors(run, i, down, *down_before);
                mix(&[(keep, &x), (keep, &denoised), (new - keep, &negative), (old, before)])
            }
            _ => mix(&[(1.0, &denoised), (down, &slope(&x, &negative, sigma))]),
        };
        if next > 0.0 && up > 0.0 {
            let noise = run.noise_of(i);
            x = mix(&[(1.0, &x), (up, &noise)]);
        }
        before = Some((negative, down));
    }
    Ok(x)
}

/// The extended reverse SDE (Cui et al. 2023) with three stages.
pub(super) fn er_sde(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    /// The points that an integral is summed over.
    const POINTS: i32 = 200;
    let noise_scale = |level: f64| level * (exp(libm::pow(level, 0.3)) + 10.0);
    // The prediction before, and its change over the level.
    let mut before: Option<(Vec<f32>, Option<Vec<f32>>)> = None;
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        if next == 0.0 {
            return Ok(denoised);
        }
        let r = noise_scale(next) / noise_scale(sigma);
        let delta = next - sigma;
        let step = -delta / f64::from(POINTS);
        let points = || (0..POINTS).map(|k| next + f64::from(k) * step);

        let mut change = None;
        let mut terms = vec![(r, x.as_slice()), (1.0 - r, denoised.as_slice())];
        let (first, second);
        if let Some((before, change_before)) = &before {
            let width = sigma - run.sigma(i - 1);
            first = mix(&[(1.0 / width, &denoised), (-1.0 / width, before)]);
            let integral: f64 = points().map(|level| step / noise_scale(level)).sum();
            terms.push((delta + integral * noise_scale(next), &first));
            if let Some(change_before) = change_before {
                let width = (sigma - run.sigma(i - 2)) / 2.0;
                second = mix(&[(1.0 / width, &first), (-1.0 / width, change_before)]);
                let integral: f64 = points().map(|level| (level - sigma) / noise_scale(level) * step).sum();
                terms.push((delta * delta / 2.0 + integral * noise_scale(next), &second));
            }
            change = Some(first.clone());
        }
        let variance = next * next - sigma * sigma * r * r;
        let noise = run.noise_of(i);
        terms.push((if variance > 0.0 { variance.sqrt() } else { 0.0 }, &noise));
        x = mix(&terms);
        before = Some((denoised, change));
    }
    Ok(x)
}

/// The deviation of the noise that a part `h` of a step gathers.
fn deviation(h: f64) -> f64 {
    (-expm1(-2.0 * h)).sqrt()
}

/// SEEDS of two stages (Gonzalez et al. 2023), with η = 1.
pub(super) fn seeds_2(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    const R: f64 = 0.5;
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        if next == 0.0 {
            return Ok(denoised);
        }
        let h = lambda(next) - lambda(sigma);
        let middle = exp(-lambda(sigma) - R * h);
        let noise1 = run.noise(run.sigmas()[i], middle as f32);
        let x2 = mix(&[
            (middle / sigma * exp(-R * h), &x),
            (-expm1(-R * 2.0 * h), &denoised),
            (middle * deviation(R * h), &noise1),
        ]);
        let denoised2 = run.denoise(&x2, middle as f32)?;
        let noise2 = run.noise(middle as f32, run.sigmas()[i + 1]);
        x = mix(&[
            (next / sigma * exp(-h), &x),
            (-expm1(-2.0 * h), &denoised2),
            (next * deviation(R * h) * exp((R - 1.0) * h), &noise1),
            (next * deviation((1.0 - R) * h), &noise2),
        ]);
    }
    Ok(x)
}

/// SEEDS of three stages (Gonzalez et al. 2023), with η = 1.
pub(super) fn seeds_3(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    const R1: f64 = 1.0 / 3.0;
    const R2: f64 = 2.0 / 3.0;
    let phi = |z: f64| (expm1(z) - z) / z;
    for i in 0..run.steps() {
        let (sigma, next) = run.pair(i);
        let denoised = run.predict(i, &x)?;
        if next == 0.0 {
            return Ok(denoised);
        }
        let h = lambda(next) - lambda(sigma);
        let (sigma1, sigma2) = (exp(-lambda(sigma) - R1 * h), exp(-lambda(sigma) - R2 * h));

        let noise1 = run.noise(run.sigmas()[i], sigma1 as f32);
        let x2 = mix(&[
            (sigma1 / sigma * exp(-R1 * h), &x),
            (-expm1(-R1 * 2.0 * h), &denoised),
            (sigma1 * deviation(R1 * h), &noise1),
        ]);
        let denoised2 = run.denoise(&x2, sigma1 as f32)?;

        let noise2 = run.noise(sigma1 as f32, sigma2 as f32);
        // The noise at the second stage, of variance 1 - e^(-2 r2 h), in its two parts.
        let second = [deviation(R1 * h) * exp((R1 - R2) * h), deviation((R2 - R1) * h)];
        let a2 = R2 / R1 * phi(-2.0 * R2 * h);
        let a1 = expm1(-2.0 * R2 * h) - a2;
        let x3 = mix(&[
            (sigma2 / sigma * exp(-R2 * h), &x),
            (-a1, &denoised),
            (-a2, &denoised2),
            (sigma2 * second[0], &noise1),
            (sigma2 * second[1], &noise2),
        ]);
        let denoised3 = run.denoise(&x3, sigma2 as f32)?;

        let noise3 = run.noise(sigma2 as f32, run.sigmas()[i + 1]);
        let b3 = phi(-2.0 * h) / R2;
        let b1 = expm1(-2.0 * h) - b3;
        let fade = exp((R2 - 1.0) * h);
        x = mix(&[
            (next / sigma * exp(-h), &x),
            (-b1, &denoised),
            (-b3, &denoised3),
            (next * second[0] * fade, &noise1),
            (next * second[1] * fade, &noise2),
            (next * deviation((1.0 - R2) * h), &noise3),
        ]);
    }
    Ok(x)
}

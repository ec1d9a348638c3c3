//! DPM-Solver (Lu et al. 2022): single steps of order 1 to 3 in λ, of fixed or of adapted length.
//!
//! Both samplers stop at the lowest level above 0, so that its noise is left.

use super::arithmetic::{exp, expm1, lambda, mix};
use super::{Result, Run};

/// The latent at a λ, and ε there: the noise that it is predicted to hold.
struct Point<'a> {
    x: &'a [f32],
    lambda: f64,
    noise: &'a [f32],
}

/// The noise level of a λ, at which the network is asked.
fn level(lambda: f64) -> f32 {
    exp(-lambda) as f32
}

/// ε of a latent and its clean prediction at a λ.
fn noise_in(x: &[f32], denoised: &[f32], lambda: f64) -> Vec<f32> {
    let sigma = exp(-lambda);
    mix(&[(1.0 / sigma, x), (-1.0 / sigma, denoised)])
}

impl Point<'_> {
    fn predict(run: &mut Run<'_>, x: &[f32], lambda: f64) -> Result<Vec<f32>> {
        let denoised = run.denoise(x, level(lambda))?;
        Ok(noise_in(x, &denoised, lambda))
    }

    /// The latent after a step of length h, of order 1.
    fn first(&self, h: f64) -> Vec<f32> {
        mix(&[(1.0, self.x), (-exp(-self.lambda - h) * expm1(h), self.noise)])
    }

    /// The latent after a step of length h, of order 2, with the noise after a part r of it.
    fn second(&self, h: f64, r: f64, noise: &[f32]) -> Vec<f32> {
        let whole = exp(-self.lambda - h) * expm1(h);
        let change = whole / (2.0 * r);
        mix(&[(1.0, self.x), (change - whole, self.noise), (-change, noise)])
    }

    /// The noise after a part r of a step of length h.
    fn noise_after(&self, run: &mut Run<'_>, h: f64, r: f64) -> Result<Vec<f32>> {
        Self::predict(run, &self.first(r * h), self.lambda + r * h)
    }

    /// The latent after a step of length h, of order 3, with the noise after a third of it.
    fn third(&self, run: &mut Run<'_>, h: f64, noise: &[f32]) -> Result<Vec<f32>> {
        let (r1, r2) = (1.0 / 3.0, 2.0 / 3.0);
        let (sigma2, sigma) = (exp(-self.lambda - r2 * h), exp(-self.lambda - h));
        let change = sigma2 * (r2 / r1) * (expm1(r2 * h) / (r2 * h) - 1.0);
        let x2 = mix(&[(1.0, self.x), (change - sigma2 * expm1(r2 * h), self.noise), (-change, noise)]);
        let noise2 = Self::predict(run, &x2, self.lambda + r2 * h)?;
        let change = sigma / r2 * (expm1(h) / h - 1.0);
        Ok(mix(&[(1.0, self.x), (change - sigma * expm1(h), self.noise), (-change, &noise2)]))
    }
}

/// λ of the first level, and of the last above 0.
fn ends(run: &Run<'_>) -> (f64, f64) {
    let last = run.steps();
    let lowest = if run.sigma(last) == 0.0 { run.sigma(last - 1) } else { run.sigma(last) };
    (lambda(run.sigma(0)), lambda(lowest))
}

/// Steps of equal length and order 3, and lower ones at the end, with as many calls as there are steps in the schedule.
pub(super) fn dpm_fast(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    let (start, end) = ends(run);
    let calls = run.steps();
    let steps = calls / 3 + 1;
    let mut orders = vec![3; steps];
    match calls % 3 {
        0 => orders[steps - 2..].copy_from_slice(&[2, 1]),
        rest => orders[steps - 1] = rest,
    }
    let node = |i: usize| start + (end - start) * i as f64 / steps as f64;
    for (i, order) in orders.into_iter().enumerate() {
        let (at, h) = (node(i), node(i + 1) - node(i));
        run.arrive(i, i as f64 / steps as f64);
        let denoised = run.denoise(&x, level(at))?;
        run.show(&x, &denoised);
        let noise = noise_in(&x, &denoised, at);
        let point = Point { x: &x, lambda: at, noise: &noise };
        x = match order {
            1 => point.first(h),
            2 => point.second(h, 0.5, &point.noise_after(run, h, 0.5)?),
            _ => {
                let noise = point.noise_after(run, h, 1.0 / 3.0)?;
                point.third(run, h, &noise)?
            }
        };
    }
    Ok(x)
}

/// Steps of order 3 as long as their difference from order 2 allows, in the mean over the whole batch.
///
/// Of the schedule only the ends count.
pub(super) fn dpm_adaptive(run: &mut Run<'_>, mut x: Vec<f32>) -> Result<Vec<f32>> {
    /// Differences that do not matter, and those that do not beside a number.
    const ABSOLUTE: f64 = 0.0078;
    const RELATIVE: f64 = 0.05;
    /// The length of the first step.
    const FIRST: f64 = 0.05;
    /// The least factor of the length with which a step still counts.
    const SAFETY: f64 = 0.81;

    let (start, end) = ends(run);
    let (mut at, mut h) = (start, FIRST);
    let mut before = x.clone();
    let mut index = 0;
    while at < end - 1e-5 {
        let to = end.min(at + h);
        let step = to - at;
        run.arrive(index, (at - start) / (end - start));
        let denoised = run.denoise(&x, level(at))?;
        let noise = noise_in(&x, &denoised, at);
        let point = Point { x: &x, lambda: at, noise: &noise };
        let noise = point.noise_after(run, step, 1.0 / 3.0)?;
        let low = point.second(step, 1.0 / 3.0, &noise);
        let high = point.third(run, step, &noise)?;

        let off = |((&low, &high), &before): ((&f32, &f32), &f32)| {
            let allowed = ABSOLUTE.max(RELATIVE * f64::from(low.abs().max(before.abs())));
            ((f64::from(low) - f64::from(high)) / allowed).powi(2)
        };
        let squares: f64 = low.iter().zip(&high).zip(&before).map(off).sum();
        let error = (squares / x.len() as f64).sqrt();
        let factor = 1.0 + libm::atan(libm::cbrt(1.0 / (error + 1e-8)) - 1.0);
        if factor >= SAFETY {
            (before, x, at) = (low, high, to);
        }
        h *= factor;
        run.show(&x, &denoised);
        index += 1;
    }
    Ok(x)
}

//! UniPC (Zhao et al. 2023): predictor and corrector of order 3 in a diffusion that preserves variance.
//!
//! The final level 0 becomes 0.001. There the reference's float32 loses most of the digits of its scalars, so they are float32
//! here too. With a single step the latent is only rescaled, as in the reference.

use std::collections::VecDeque;

use super::arithmetic::{expm1, mix};
use super::{Result, Run};
use crate::diffusion::equations::solve;
use crate::diffusion::schedule::{exp, ln};

/// The highest order.
const ORDER: usize = 3;

/// With B(h) = h.
pub(super) fn uni_pc(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    solver(run, x, |h| h)
}

/// With B(h) = e^h − 1.
pub(super) fn uni_pc_bh2(run: &mut Run<'_>, x: Vec<f32>) -> Result<Vec<f32>> {
    solver(run, x, expm1)
}

/// What a noise level is in a diffusion that preserves variance.
#[derive(Debug, Clone, Copy)]
struct Level {
    sigma: f32,
    /// The factor of the clean latent, and of the noise.
    alpha: f32,
    std: f32,
    /// The logarithm of their quotient.
    lambda: f32,
}

impl Level {
    fn new(sigma: f32) -> Self {
        let log_alpha = 0.5 * ln(1.0 / (sigma * sigma + 1.0));
        let variance = 1.0 - exp(2.0 * log_alpha);
        let lambda = log_alpha - 0.5 * ln(variance);
        Self { sigma, alpha: exp(log_alpha), std: variance.sqrt(), lambda }
    }
}

/// Predictions of the clean latent and their levels, newest first.
type History = VecDeque<(Vec<f32>, Level)>;

fn solver(run: &mut Run<'_>, x: Vec<f32>, b: fn(f64) -> f64) -> Result<Vec<f32>> {
    let steps = run.steps();
    let level = |&sigma: &f32| Level::new(if sigma == 0.0 { 0.001 } else { sigma });
    let levels: Vec<Level> = run.sigmas().iter().map(level).collect();
    let order = ORDER.min(steps - 1);
    let first = run.sigma(0);
    let mut y = mix(&[(1.0 / (1.0 + first * first).sqrt(), &x)]);
    let mut history = History::new();
    for k in 0..steps {
        run.arrive(k, k as f64 / steps as f64);
        if k == 0 {
            history.push_front((predict(run, &y, levels[0])?, levels[0]));
        } else {
            let order = if k < order { k } else { order.min(steps + 1 - k) };
            let step = Step::new(&history, levels[k], order, b);
            let guess = step.predicted(&y);
            let denoised = predict(run, &guess, levels[k])?;
            y = step.corrected(&y, &denoised);
            history.truncate(ORDER - 1);
            history.push_front((denoised, levels[k]));
            if k + 1 == steps {
                y = Step::new(&history, levels[steps], 1, b).predicted(&y);
            }
        }
        run.show(&y, &history[0].0);
    }
    Ok(mix(&[(1.0 / f64::from(levels[steps].alpha), &y)]))
}

/// The clean latent of y at a level.
fn predict(run: &mut Run<'_>, y: &[f32], level: Level) -> Result<Vec<f32>> {
    let (sigma, alpha, std) = (f64::from(level.sigma), f64::from(level.alpha), f64::from(level.std));
    let scale = (sigma * sigma + 1.0).sqrt();
    let denoised = run.denoise(&mix(&[(scale, y)]), level.sigma)?;
    // (y - std ε)/α with ε = (scale y - D)/σ: nearly D, but for what the scalars have lost.
    Ok(mix(&[((1.0 - std * scale / sigma) / alpha, y), (std / sigma / alpha, &denoised)]))
}

/// A step from the newest level of a history to another.
struct Step<'a> {
    history: &'a History,
    to: Level,
    /// h, its sign turned.
    h: f64,
    b: f64,
    /// Where the older levels lie, in steps, and 1 for the new one.
    r: Vec<f64>,
    /// The right sides of the conditions on the factors.
    conditions: Vec<f64>,
}

impl<'a> Step<'a> {
    fn new(history: &'a History, to: Level, order: usize, b: fn(f64) -> f64) -> Self {
        let newest = history[0].1.lambda;
        let h = f64::from(to.lambda - newest);
        let older = (1..order).map(|j| f64::from(history[j].1.lambda - newest) / h);
        let b = b(-h);
        let mut phi = expm1(-h) / -h - 1.0;
        let mut factorial = 1.0;
        let mut conditions = Vec::with_capacity(order);
        for i in 1..=order {
            conditions.push(phi * factorial / b);
            factorial *= (i + 1) as f64;
            phi = phi / -h - 1.0 / factorial;
        }
        Self { history, to, h: -h, b, r: older.chain([1.0]).collect(), conditions }
    }

    /// The factors of the first `count` levels' differences.
    fn factors(&self, count: usize) -> Vec<f64> {
        let powers = (0..count as i32).flat_map(|i| self.r[..count].iter().map(move |r| r.powi(i)));
        solve(powers.collect(), self.conditions[..count].to_vec(), count)
    }

    /// The latent at the new level, by the history alone.
    fn predicted(&self, y: &[f32]) -> Vec<f32> {
        let factors = match self.r.len() {
            1 => vec![],
            2 => vec![0.5],
            order => self.factors(order - 1),
        };
        self.sum(y, &factors, None)
    }

    /// The latent at the new level, with the prediction there.
    fn corrected(&self, y: &[f32], denoised: &[f32]) -> Vec<f32> {
        let mut factors = match self.r.len() {
            1 => vec![0.5],
            order => self.factors(order),
        };
        let last = factors.pop().expect("a corrector has a factor for the new level");
        self.sum(y, &factors, Some((last, denoised)))
    }

    fn sum(&self, y: &[f32], factors: &[f64], new: Option<(f64, &[f32])>) -> Vec<f32> {
        let (newest, from) = &self.history[0];
        let (alpha, scale) = (f64::from(self.to.alpha), f64::from(self.to.alpha) * self.b);
        let mut of_newest = -alpha * expm1(self.h);
        let mut terms = vec![(f64::from(self.to.std) / f64::from(from.std), y)];
        for ((factor, r), (denoised, _)) in factors.iter().zip(&self.r).zip(self.history.iter().skip(1)) {
            terms.push((-scale * factor / r, denoised));
            of_newest += scale * factor / r;
        }
        if let Some((factor, denoised)) = new {
            terms.push((-scale * factor, denoised));
            of_newest += scale * factor;
        }
        terms.push((of_newest, newest));
        mix(&terms)
    }
}

//! What samplers do with latents and noise levels.

/// Adds up latents, each times its factor.
///
/// # Panics
/// If they differ in size.
pub(super) fn mix(terms: &[(f64, &[f32])]) -> Vec<f32> {
    let count = terms.first().map_or(0, |(_, latent)| latent.len());
    assert!(terms.iter().all(|(_, latent)| latent.len() == count), "latents of one batch have one size");
    let mut sums = vec![0.0f64; count];
    for (factor, latent) in terms {
        sums.iter_mut().zip(*latent).for_each(|(sum, &value)| *sum += factor * f64::from(value));
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// d: the slope of the latent over the noise level, where the clean one is predicted.
///
/// In float32, as [`along`]: at the thousands of a level of nearly no signal what is rounded here is larger than what differs
/// between two processors, so only the reference's own order gives the reference's picture.
pub(super) fn slope(x: &[f32], denoised: &[f32], sigma: f64) -> Vec<f32> {
    x.iter().zip(denoised).map(|(x, denoised)| (x - denoised) / sigma as f32).collect()
}

/// x, and `step` times a slope or noise, in float32.
pub(super) fn along(x: &[f32], d: &[f32], step: f64) -> Vec<f32> {
    x.iter().zip(d).map(|(x, d)| x + d * step as f32).collect()
}

/// Takes a step to noise level `to` and parts it: down to the first level without noise, and noise of the second (η = 1).
///
/// In float32 and in this order: where `to` is far below `from`, the difference cancels to a wrong level or to 0.
pub(super) fn ancestral(from: f32, to: f32) -> (f32, f32) {
    let up = to.min((to * to * (from * from - to * to) / (from * from)).sqrt());
    ((to * to - up * up).sqrt(), up)
}

/// λ of a noise level.
pub(super) fn lambda(sigma: f64) -> f64 {
    -libm::log(sigma)
}

/// `e^x − 1`, exact near 0.
pub(super) fn expm1(x: f64) -> f64 {
    libm::expm1(x)
}

/// `e^x`.
pub(super) fn exp(x: f64) -> f64 {
    libm::exp(x)
}

/// The polynomial through 1 at `nodes[j]` and 0 at the others, at t (Lagrange).
pub(super) fn lagrange(nodes: &[f64], j: usize, t: f64) -> f64 {
    let others = nodes.iter().enumerate().filter(|(k, _)| *k != j);
    others.map(|(_, node)| (t - node) / (nodes[j] - node)).product()
}

/// Whether no number is infinite or none at all.
pub(super) fn all_finite(numbers: &[f32]) -> bool {
    numbers.iter().all(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ancestral_step_keeps_the_variance() {
        let (down, up) = ancestral(10.0, 4.0);
        assert!((down.hypot(up) - 4.0).abs() < 1e-6);
        assert_eq!(ancestral(10.0, 0.0), (0.0, 0.0));
        assert_eq!(ancestral(14.6, 1e-4).0, 0.0, "the reference's rounding leaves nothing");
    }
}

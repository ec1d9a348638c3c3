//! The beta distribution, of which a scheduler takes quantiles.

/// The `p`-quantile of the beta distribution with both shapes `a`, for p from 0 to 1: where its integral reaches p.
pub(super) fn symmetric_quantile(p: f64, a: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - symmetric_quantile(1.0 - p, a);
    }
    if p == 0.5 {
        return 0.5; // exactly, as the reference rounds its products to whole timesteps
    }
    let half = integral(0.5, a); // half of all, as the density is symmetric
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if integral(middle, a) < 2.0 * half * p { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// The integral of `(t (1 − t))^(a − 1)` from 0 to x, for x up to 1/2, by the series of the second factor.
fn integral(x: f64, a: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let (mut power, mut sum) = (1.0, 0.0);
    for k in 0..64 {
        sum += power / (a + f64::from(k));
        power *= x * (1.0 - a + f64::from(k)) / f64::from(k + 1);
    }
    libm::pow(x, a) * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_known_distributions_are_found() {
        for p in [0.0, 0.01, 0.3, 0.5, 0.77, 1.0] {
            assert!((symmetric_quantile(p, 1.0) - p).abs() < 1e-12, "even at {p}");
            let arcsine = libm::pow(libm::sin(std::f64::consts::FRAC_PI_2 * p), 2.0);
            assert!((symmetric_quantile(p, 0.5) - arcsine).abs() < 1e-12, "arcsine at {p}");
        }
    }
}

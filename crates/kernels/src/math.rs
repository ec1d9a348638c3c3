//! Functions of single numbers, sixteen at a time.

use crate::{
    level::Level,
    simd::{Kernel, LANES, Simd, dispatch, lanes, lanes_mut},
    threads,
};

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    /// x where it is positive, else 0.
    Relu,
    /// x where it is positive, else the factor times x.
    LeakyRelu(f32),
    /// e^x, within 2 units in the last place.
    Exp,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// x times its sigmoid, also called swish.
    Silu,
    /// x Φ(x), with the normal distribution Φ: the form with the error function. Within 1e-6.
    Gelu,
    /// The form of [`Self::Gelu`] with tanh: `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`.
    GeluTanh,
    /// x times the sigmoid of 1.702 x, which the text encoder of CLIP ViT-L takes for GELU.
    QuickGelu,
    /// x tanh(ln(1 + e^x)).
    Mish,
}

/// Numbers that a thread takes at least.
const PART: usize = 16 * 1024;

impl Function {
    /// Replaces each of `numbers` by its value.
    ///
    /// # Panics
    /// If this processor lacks `level`.
    pub fn apply(self, level: Level, numbers: &mut [f32]) {
        let shares = threads::shares(numbers.len().div_ceil(PART));
        let mut jobs = Vec::with_capacity(shares.len());
        let mut rest = numbers;
        for share in shares {
            let (part, others) = rest.split_at_mut(rest.len().min(share.len() * PART));
            jobs.push(part);
            rest = others;
        }
        threads::each(jobs, |numbers| dispatch(level, Apply { function: self, numbers }));
    }

    #[inline(always)]
    pub(crate) fn of<S: Simd>(self, s: S, x: S::V) -> S::V {
        match self {
            Self::Relu => s.max(s.splat(0.0), x), // in this order NaN is kept
            Self::LeakyRelu(factor) => s.select_nonneg(x, x, s.mul(x, s.splat(factor))),
            Self::Exp => exp(s, x),
            Self::Sigmoid => sigmoid(s, x),
            Self::Silu => silu(s, x),
            Self::Gelu => gelu(s, x),
            Self::GeluTanh => gelu_tanh(s, x),
            Self::QuickGelu => s.mul(x, sigmoid(s, s.mul(x, s.splat(1.702)))),
            Self::Mish => mish(s, x),
        }
    }
}

struct Apply<'a> {
    function: Function,
    numbers: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.numbers.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let y = self.function.of(s, s.load(lanes(self.numbers, at)));
            s.store(y, lanes_mut(self.numbers, at));
        }
        let rest = &mut self.numbers[whole..];
        if !rest.is_empty() {
            s.store_part(self.function.of(s, s.load_part(rest, 0.0)), rest);
        }
    }
}

/// The upper bits of ln 2, so that a product with a whole number below 2^9 is exact, and what they lack.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// e^r for |r| up to ln 2 / 2, by the best polynomial of degree 6 (relative error below 1e-8 before rounding).
#[inline(always)]
fn exp_small<S: Simd>(s: S, r: S::V) -> S::V {
    const TERMS: [f32; 4] = [0.008_368_78, 0.041_668_394, 0.166_665_2, 0.499_999_93];
    let mut p = s.splat(0.001_381_446_7);
    for term in TERMS {
        p = s.mul_add(p, r, s.splat(term));
    }
    s.mul_add(s.mul(r, r), p, s.add(r, s.splat(1.0)))
}

/// x = n ln 2 + r with a whole n: gives n and r.
#[inline(always)]
fn reduce<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    (n, s.neg_mul_add(n, s.splat(LN_2_LOW), s.neg_mul_add(n, s.splat(LN_2_HIGH), x)))
}

/// e^x: infinite from 88.73 on, and gradually 0 below -87.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.min(s.splat(89.5), s.max(s.splat(-104.5), x)); // in this order NaN is kept
    let (n, r) = reduce(s, x);
    // In two factors, since one may be beyond what a number can hold.
    let part = s.round(s.mul(n, s.splat(0.5)));
    let y = s.mul(exp_small(s, r), s.exp2_whole(part));
    s.mul(y, s.exp2_whole(s.sub(n, part)))
}

/// e^x for x that are cut off at ±87.
#[inline(always)]
fn exp_cut<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.min(s.splat(87.0), s.max(s.splat(-87.0), x)); // in this order NaN is kept
    let (n, r) = reduce(s, x);
    s.mul(exp_small(s, r), s.exp2_whole(n))
}

/// 2^x for x up to 127; 0 from -126.5 down.
#[inline(always)]
pub(crate) fn exp2_falling<S: Simd>(s: S, x: S::V) -> S::V {
    // The best polynomial of degree 5 for |r| up to 1/2 (relative error 1e-7 before rounding), with 1 as its last term.
    const TERMS: [f32; 5] = [0.009_671_513, 0.055_507_337, 0.240_222_42, std::f32::consts::LN_2 - 2e-7, 1.0];
    let x = s.max(s.splat(-127.0), x); // in this order NaN is kept
    let n = s.round(x);
    let r = s.sub(x, n);
    let mut p = s.splat(0.001_326_472_7);
    for term in TERMS {
        p = s.mul_add(p, r, s.splat(term));
    }
    s.mul(p, s.exp2_whole(n)) // the bits of 2^-127 are those of 0
}

/// 1 / (1 + e^-x), at least 1e-38.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp_cut(s, s.sub(s.splat(0.0), x))))
}

/// x / (1 + e^-x).
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(x, s.add(s.splat(1.0), exp_cut(s, s.sub(s.splat(0.0), x))))
}

/// x tanh(ln(1 + e^x)): with e = e^x the second factor is e (e + 2) / (e (e + 2) + 2), and 1 from 20 on.
#[inline(always)]
fn mish<S: Simd>(s: S, x: S::V) -> S::V {
    let two = s.splat(2.0);
    let e = exp_cut(s, s.min(s.splat(20.0), x));
    let product = s.mul(e, s.add(e, two));
    s.mul(x, s.div(product, s.add(product, two)))
}

/// x Φ(x).
///
/// With u = |x|, this is max(x, 0) - u Φ(-u), and Φ(-u) is e^(-u²/2) times a polynomial of 1 / (1 + 0.2316419 u)
/// (Abramowitz and Stegun 26.2.17, within 7.5e-8).
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    // The published terms over √(2π).
    const TERMS: [f32; 4] = [-0.726_576, 0.710_706_9, -0.142_248_37, 0.127_414_8];
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let u = s.min(s.splat(30.0), s.max(s.sub(zero, x), x)); // beyond, the tail is 0, and infinity times 0 would be NaN
    let t = s.div(one, s.mul_add(s.splat(0.231_641_9), u, one));
    let mut p = s.splat(0.530_702_7);
    for term in TERMS {
        p = s.mul_add(p, t, s.splat(term));
    }
    let falling = exp_cut(s, s.mul(s.mul(u, s.splat(-0.5)), u));
    let tail = s.mul(s.mul(p, t), falling);
    s.neg_mul_add(u, tail, s.max(zero, x))
}

/// [`Function::GeluTanh`]: since (1 + tanh z) / 2 is the sigmoid of 2 z.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let twice = s.splat(2.0 * 0.797_884_6); // 2 √(2/π)
    let cubic = s.mul_add(s.mul(s.splat(0.044_715), x), s.mul(x, x), x);
    s.mul(x, sigmoid(s, s.mul(twice, cubic)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value by another way, in f64.
    fn plain(function: Function, x: f64) -> f64 {
        match function {
            Function::Relu => x.max(0.0),
            Function::LeakyRelu(factor) => {
                if x < 0.0 {
                    x * f64::from(factor)
                } else {
                    x
                }
            }
            Function::Exp => x.exp(),
            Function::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Function::Silu => x / (1.0 + (-x).exp()),
            Function::Gelu => x * normal(x),
            Function::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Function::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Function::Mish => x * x.exp().ln_1p().min(1e3).tanh(),
        }
    }

    /// Φ by its series, or its continued fraction where that is better.
    fn normal(x: f64) -> f64 {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        if x.abs() > 3.0 {
            let tail = (1..200).rev().fold(x.abs(), |rest, n| x.abs() + f64::from(n) / rest);
            return if x > 0.0 { 1.0 - density / tail } else { density / tail };
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 + density * sum
    }

    fn numbers() -> Vec<f32> {
        let fine = (-4000..=4000).map(|i| i as f32 * 0.003_7);
        let wide = (-200..=200).map(|i| i as f32 * 0.43);
        fine.chain(wide).chain([0.0, -0.0, 1e-30, -1e-30, 88.7, -103.0, 1e4, -1e4]).collect()
    }

    const ALL: [Function; 9] = {
        use Function::{Exp, Gelu, GeluTanh, LeakyRelu, Mish, QuickGelu, Relu, Sigmoid, Silu};
        [Relu, LeakyRelu(0.2), Exp, Sigmoid, Silu, Gelu, GeluTanh, QuickGelu, Mish]
    };

    #[test]
    fn functions_are_those_of_f64() {
        use Function::{Exp, Gelu, GeluTanh, LeakyRelu, Mish, QuickGelu, Relu, Sigmoid, Silu};
        for level in Level::available() {
            for function in ALL {
                let x = numbers();
                let mut y = x.clone();
                function.apply(level, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    let want = plain(function, f64::from(x));
                    let close = match function {
                        _ if want > f64::from(f32::MAX) => y == f32::INFINITY,
                        Exp => (f64::from(y) - want).abs() <= 2.4e-7 * want + 1.5e-45,
                        Gelu | GeluTanh => (f64::from(y) - want).abs() <= 5e-7 * want.abs().max(1.0),
                        // The product with 1.702 is rounded before its exponential is taken.
                        QuickGelu => (f64::from(y) - want).abs() <= 4e-6 * want.abs() + 1e-30,
                        Sigmoid | Silu => (f64::from(y) - want).abs() <= 6e-7 * want.abs() + 1e-30,
                        Mish => (f64::from(y) - want).abs() <= 8e-7 * want.abs() + 1e-30,
                        Relu | LeakyRelu(_) => y == want as f32,
                    };
                    assert!(close, "{level} {function:?} of {x} is {y}, not {want}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_so_and_the_ends_are_right() {
        use Function::{Exp, Sigmoid};
        for level in Level::available() {
            for function in ALL {
                let mut ends = [f32::NAN, f32::INFINITY];
                function.apply(level, &mut ends);
                assert!(ends[0].is_nan(), "{level} {function:?}");
                assert_eq!(ends[1], if function == Sigmoid { 1.0 } else { f32::INFINITY }, "{level} {function:?}");
            }
            let mut ends = [f32::NEG_INFINITY, -150.0, 89.0];
            Exp.apply(level, &mut ends);
            assert_eq!(ends, [0.0, 0.0, f32::INFINITY], "{level}");
        }
    }

    #[test]
    fn falling_powers_of_two_end_in_zero() {
        struct Powers<'a>(&'a mut [f32; LANES]);
        impl Kernel for Powers<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                s.store(exp2_falling(s, s.load(self.0)), self.0);
            }
        }
        let x = [
            0.0,
            -0.25,
            -1.0,
            -1.5,
            -7.3,
            -20.9,
            -60.1,
            -126.0,
            -127.0,
            -128.0,
            -1e30,
            f32::NEG_INFINITY,
            3.4,
            1.0,
            0.5,
            0.1,
        ];
        for level in Level::available() {
            let mut y = x;
            dispatch(level, Powers(&mut y));
            for (x, y) in x.into_iter().zip(y) {
                let want = if x < -126.5 { 0.0 } else { f64::from(x).exp2() };
                assert!((f64::from(y) - want).abs() <= 3e-7 * want, "{level}: 2^{x} is {y}, not {want}");
            }
        }
    }
}

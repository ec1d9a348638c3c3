//! Weights that are kept as short as they were: those of a checkpoint of f16 or bf16 take half of the memory, and half of the
//! time to be read.
//!
//! Widening is exact, so no result depends on how weights are kept.

use std::ops::Range;

use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::{
    line::Line,
    simd::{LANES, Simd},
};

/// Lines of f32, as f16 or bf16 where that loses nothing.
#[derive(Debug, Clone)]
pub(crate) enum Kept {
    F32(Vec<Line>),
    F16(Vec<ShortLine<f16>>),
    Bf16(Vec<ShortLine<bf16>>),
}

/// Sixteen short numbers that start half a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct ShortLine<T>([T; LANES]);

/// A line that can be used as one of f32.
pub(crate) trait Widen {
    fn widen<S: Simd>(&self, s: S) -> S::V;
}

impl Widen for Line {
    #[inline(always)]
    fn widen<S: Simd>(&self, s: S) -> S::V {
        s.load(&self.0)
    }
}

impl Widen for ShortLine<f16> {
    #[inline(always)]
    fn widen<S: Simd>(&self, s: S) -> S::V {
        s.load_f16(&self.0)
    }
}

impl Widen for ShortLine<bf16> {
    #[inline(always)]
    fn widen<S: Simd>(&self, s: S) -> S::V {
        s.load_bf16(&self.0)
    }
}

impl Kept {
    /// Keeps `lines`, as short as they can be.
    pub(crate) fn new(lines: Vec<Line>) -> Self {
        if let Some(short) = shortened(&lines, f16::ZERO) {
            Self::F16(short)
        } else if let Some(short) = shortened(&lines, bf16::ZERO) {
            Self::Bf16(short)
        } else {
            Self::F32(lines)
        }
    }

    /// Asks the processor to bring those of these lines closer that there are.
    #[inline(always)]
    pub(crate) fn prefetch<S: Simd>(&self, s: S, which: Range<usize>) {
        match self {
            Self::F32(lines) => lines.get(which).into_iter().flatten().for_each(|line| s.prefetch(line)),
            // Two of these lie in a line of the cache.
            Self::F16(lines) => lines.get(which).into_iter().flatten().step_by(2).for_each(|line| s.prefetch(line)),
            Self::Bf16(lines) => lines.get(which).into_iter().flatten().step_by(2).for_each(|line| s.prefetch(line)),
        }
    }
}

/// As many lines of the kind of `zero`, unless a number would become another.
fn shortened<T: Copy>(lines: &[Line], zero: T) -> Option<Vec<ShortLine<T>>>
where
    [T]: HalfFloatSliceExt,
{
    let shorten = |line: &Line| {
        let (mut short, mut wide) = (ShortLine([zero; LANES]), [0.0; LANES]);
        short.0.convert_from_f32_slice(&line.0);
        short.0.convert_to_f32_slice(&mut wide);
        (wide.map(f32::to_bits) == line.0.map(f32::to_bits)).then_some(short)
    };
    let mut all =
        Vec::with_capacity(if lines.first().is_some_and(|line| shorten(line).is_some()) { lines.len() } else { 0 });
    for line in lines {
        all.push(shorten(line)?);
    }
    Some(all)
}

/// `lines` as lines of f32: themselves, or widened into `to`.
#[inline(always)]
pub(crate) fn widened<'a, S: Simd, W: Widen>(s: S, lines: &[W], to: &'a mut Vec<Line>) -> &'a [Line] {
    to.resize(lines.len(), Line::ZERO);
    for (line, to) in lines.iter().zip(&mut *to) {
        s.store(line.widen(s), &mut to.0);
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        level::Level,
        simd::{Kernel, dispatch},
    };

    struct WidenAll<'a>(&'a Kept);

    impl Kernel for WidenAll<'_> {
        type Output = Vec<Line>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<Line> {
            let mut to = Vec::new();
            match self.0 {
                Kept::F32(lines) => lines.clone(),
                Kept::F16(lines) => widened(s, lines, &mut to).to_vec(),
                Kept::Bf16(lines) => widened(s, lines, &mut to).to_vec(),
            }
        }
    }

    #[test]
    fn what_is_kept_short_is_the_same_number_at_every_level() {
        let short = |bits: u16| f16::from_bits(bits).to_f32();
        let halves: Vec<Line> = (0..1 << 16)
            .filter(|bits| f16::from_bits(*bits as u16).is_finite())
            .map(|bits| Line([short(bits as u16); LANES]))
            .collect();
        let wide = Line(std::array::from_fn(|i| if i == 3 { 2f32.powi(100) } else { -0.0 }));
        let exact = Line(std::array::from_fn(|i| if i == 15 { 0.1 } else { 1.0 }));
        for (lines, kind) in [(halves.clone(), "F16"), (vec![wide; 3], "Bf16"), ([halves, vec![exact]].concat(), "F32")]
        {
            let kept = Kept::new(lines.clone());
            let found = match kept {
                Kept::F32(_) => "F32",
                Kept::F16(_) => "F16",
                Kept::Bf16(_) => "Bf16",
            };
            assert_eq!(found, kind);
            for level in Level::available() {
                let bits = |lines: &[Line]| lines.iter().map(|line| line.0.map(f32::to_bits)).collect::<Vec<_>>();
                assert_eq!(bits(&dispatch(level, WidenAll(&kept))), bits(&lines), "{kind} at {level}");
            }
        }
    }
}

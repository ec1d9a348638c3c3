//! The weights of a convolution, as the products want them.

use crate::{
    line::{Line, zeroed},
    picture::BLOCK,
    product::{F32, Products as _},
    simd::{Kernel, LANES, Simd},
    winograd::{self, POINTS},
};

/// The weights of one group of outputs: `[point][line of inputs][input][vector]`.
#[derive(Debug)]
pub(super) struct Group {
    /// Vectors of outputs.
    pub(super) vectors: usize,
    lines: Vec<Line>,
}

impl Group {
    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// The weights at a point.
    #[inline(always)]
    pub(super) fn at(&self, point: usize) -> &[Line] {
        let lines = self.lines.len() / POINTS;
        &self.lines[point * lines..][..lines]
    }
}

/// Packs weights `[outputs][inputs][3][3]` for maps of these numbers of channels.
pub(super) struct Pack<'a> {
    pub(super) weight: &'a [f32],
    pub(super) channels: &'a [usize],
    pub(super) outputs: usize,
}

impl Kernel for Pack<'_> {
    type Output = Vec<Group>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<Group> {
        pack(&self, F32(s).group() / LANES)
    }
}

fn pack(weights: &Pack<'_>, most: usize) -> Vec<Group> {
    let &Pack { weight, channels, outputs } = weights;
    let inputs: usize = channels.iter().sum();
    // Where each input lies among the lines: each map begins a new one.
    let mut places = Vec::with_capacity(inputs);
    let mut line = 0;
    for &count in channels {
        places.extend((0..count).map(|channel| (line + channel / BLOCK, channel % BLOCK)));
        line += count.div_ceil(BLOCK);
    }
    let blocks = outputs.div_ceil(LANES);
    let mut groups = Vec::new();
    let mut block = 0;
    while block < blocks {
        let vectors = most.min(blocks - block);
        let mut lines = zeroed(POINTS * line * BLOCK * vectors);
        for output in block * LANES..outputs.min((block + vectors) * LANES) {
            let (vector, lane) = (output / LANES - block, output % LANES);
            for (input, (of_line, k)) in places.iter().enumerate() {
                let taps = &weight[(output * inputs + input) * 9..][..9];
                let points = winograd::kernel(taps.try_into().expect("nine taps"));
                for (point, value) in points.into_iter().enumerate() {
                    lines[((point * line + of_line) * BLOCK + k) * vectors + vector].0[lane] = value;
                }
            }
        }
        groups.push(Group { vectors, lines });
        block += vectors;
    }
    groups
}

//! The noise of the SDE samplers: the increments of a Brownian path over the noise levels.
//!
//! The path is a binary tree: each interval of it is halved by a bridge whose noise depends on the seed and the place in the tree
//! alone. So the increment between two noise levels does not depend on what was asked before, and any worker gets the same
//! (the reference's `BrownianTreeNoiseSampler`, over torchsde's `BrownianTree`).

use std::collections::HashMap;

use super::{Generator, seed_sequence::generate_state};

/// A Brownian path over noise levels, for a whole batch of latents.
#[derive(Debug)]
pub struct BrownianTree {
    seed: u64,
    start: f64,
    end: f64,
    /// The increment over all of it.
    root: Vec<f32>,
    /// The halves of the intervals on the way to the last query, which the next one mostly shares.
    halves: HashMap<Node, [Vec<f32>; 2]>,
}

/// A place in the tree: how deep it is, and which of the intervals there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    key: u64,
    depth: u64,
}

impl Node {
    fn child(self, right: bool) -> Self {
        Self { key: 2 * self.key + u64::from(right), depth: self.depth + 1 }
    }
}

impl BrownianTree {
    /// A path from `sigma_min` to `sigma_max` for `count` numbers. All 64 bits of the seed count.
    pub fn new(seed: u64, sigma_min: f32, sigma_max: f32, count: usize) -> Self {
        let (start, end) = (f64::from(sigma_min), f64::from(sigma_max));
        let mut root = normals(seed, &[], count);
        let scale = (end - start).sqrt() as f32;
        root.iter_mut().for_each(|value| *value *= scale);
        Self { seed, start: rounded(start), end: rounded(end), root, halves: HashMap::new() }
    }

    /// The noise of a step between two noise levels, of variance 1 (0 if they are the same).
    pub fn noise(&mut self, from: f32, to: f32) -> Vec<f32> {
        let (low, high) = (f64::from(from.min(to)), f64::from(from.max(to)));
        let sign = if to < from { -1.0 } else { 1.0 };
        let scale = sign / (high - low).sqrt();
        let mut noise = self.increment(low, high);
        if low < high {
            noise.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
        }
        noise
    }

    /// The increment of the path from `a` to `b`, which is not below it. Beyond its ends the path stands still.
    fn increment(&mut self, a: f64, b: f64) -> Vec<f32> {
        let within = |t: f64| rounded(t).clamp(self.start, self.end);
        let (a, b) = (within(a), within(b));
        let mut sum = vec![0.0; self.root.len()];
        if a < b {
            let mut known = std::mem::take(&mut self.halves);
            let root = std::mem::take(&mut self.root);
            let mut walk = Walk { seed: self.seed, a, b, known: &mut known, seen: &mut self.halves, sum: &mut sum };
            walk.descend(Node { key: 0, depth: 0 }, self.start, self.end, &root);
            self.root = root;
        }
        sum
    }
}

/// A query on its way down.
struct Walk<'a> {
    seed: u64,
    a: f64,
    b: f64,
    /// The halves that the query before this one passed.
    known: &'a mut HashMap<Node, [Vec<f32>; 2]>,
    /// Those that this one passes.
    seen: &'a mut HashMap<Node, [Vec<f32>; 2]>,
    sum: &'a mut [f32],
}

impl Walk<'_> {
    /// Adds what the interval from `start` to `end`, with the increment `w`, has in common with `a` to `b`.
    fn descend(&mut self, node: Node, start: f64, end: f64, w: &[f32]) {
        if self.a <= start && end <= self.b {
            self.sum.iter_mut().zip(w).for_each(|(sum, w)| *sum += w);
            return;
        }
        let middle = rounded((start + end) / 2.0);
        let halves = self.known.remove(&node).unwrap_or_else(|| bridge(self.seed, node, start, middle, end, w));
        // The ends lie on a grid of 6 decimals, so an interval that they cut is wider than its step and has a middle.
        if self.a < middle {
            self.descend(node.child(false), start, middle, &halves[0]);
        }
        if middle < self.b {
            self.descend(node.child(true), middle, end, &halves[1]);
        }
        self.seen.insert(node, halves);
    }
}

/// Parts the increment `w` over an interval at its middle.
fn bridge(seed: u64, node: Node, start: f64, middle: f64, end: f64, w: &[f32]) -> [Vec<f32>; 2] {
    let z = normals(seed, &[node.key, node.depth], w.len());
    let (left, right, share) = (middle - start, end - middle, 1.0 / (end - start));
    let (mean, deviation) = (left * share, (left * right * share).sqrt());
    let value = |(&w, z): (&f32, f32)| (mean * f64::from(w) + deviation * f64::from(z)) as f32;
    let left: Vec<f32> = w.iter().zip(z).map(value).collect();
    let right = w.iter().zip(&left).map(|(w, left)| w - left).collect();
    [left, right]
}

fn normals(seed: u64, spawn_key: &[u64], count: usize) -> Vec<f32> {
    Generator::new(u64::from(generate_state(seed, spawn_key, 1)[0])).normals(count)
}

/// Rounds to 6 decimals, ties to even, as Python does.
fn rounded(t: f64) -> f64 {
    format!("{t:.6}").parse().expect("a number that was just written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_are_rounded_to_even() {
        let pairs = [(0.0078125, 0.007812), (0.0234375, 0.023438), (14.6146421432, 14.614642), (2.5e-7, 0.0)];
        pairs.iter().for_each(|&(t, want)| assert_eq!(rounded(t), want));
    }

    #[test]
    fn increments_add_up_and_do_not_depend_on_what_was_asked_before() {
        let mut tree = BrownianTree::new(7, 0.03, 14.6, 20);
        let levels = [0.03, 0.031, 0.7, 0.700_001, 6.0, 14.6];
        let mut sum = [0.0; 20];
        for pair in levels.windows(2) {
            let part = tree.increment(pair[0], pair[1]);
            assert_eq!(part, BrownianTree::new(7, 0.03, 14.6, 20).increment(pair[0], pair[1]));
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        let whole = tree.increment(0.03, 14.6);
        sum.iter().zip(&whole).for_each(|(sum, whole)| assert!((sum - whole).abs() < 1e-5, "{sum} {whole}"));
    }

    #[test]
    fn a_step_down_has_the_opposite_noise_of_a_step_up_and_no_step_has_none() {
        let mut tree = BrownianTree::new(7, 0.03, 14.6, 20);
        let (down, up) = (tree.noise(3.0, 1.0), tree.noise(1.0, 3.0));
        assert!(down.iter().zip(up).all(|(down, up)| *down == -up));
        assert_eq!(tree.noise(2.0, 2.0), [0.0; 20]);
    }
}

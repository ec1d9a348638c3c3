//! The reference's random numbers, bit for bit, and the noise that is made of them.
//!
//! [`Generator`] is PyTorch's generator of a CPU: MT19937 with two ways to normal numbers. [`initial_noise`] is what a latent is
//! noised with; [`brownian`] is the noise of the SDE samplers. All noise is drawn on the CPU, for the whole batch at once,
//! so that every worker and every device gets the same.

pub mod brownian;
pub mod seed_sequence;

use std::f32::consts::PI;

/// The length of the state of MT19937.
const STATE: usize = 624;
/// The distance of the words that its recurrence mixes.
const SHIFT: usize = 397;
/// How many normal numbers PyTorch makes at once; fewer than these are made one by one.
const BLOCK: usize = 16;

/// PyTorch's generator of random numbers on a CPU.
#[derive(Debug, Clone)]
pub struct Generator {
    state: [u32; STATE],
    /// How many words of `state` have been given out.
    used: usize,
    /// The second of a pair of normal numbers, kept for the next small draw.
    spare: Option<f64>,
}

impl Generator {
    /// Begins the sequence of a seed, of which the low 32 bits count.
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; STATE];
        for j in 1..STATE {
            let last = state[j - 1];
            state[j] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(j as u32);
        }
        Self { state, used: STATE, spare: None }
    }

    /// Gives the next word of the sequence.
    fn word(&mut self) -> u32 {
        if self.used == STATE {
            for j in 0..STATE {
                let both = (self.state[j] & 0x8000_0000) | (self.state[(j + 1) % STATE] & 0x7fff_ffff);
                let twist = if both & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[j] = self.state[(j + SHIFT) % STATE] ^ (both >> 1) ^ twist;
            }
            self.used = 0;
        }
        let mut word = self.state[self.used];
        self.used += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// A number from 0 to 1 in steps of 2⁻²⁴.
    fn uniform(&mut self) -> f32 {
        const STEP: f32 = 1.0 / (1 << 24) as f32;
        (self.word() & 0xff_ffff) as f32 * STEP
    }

    /// A number from 0 to 1 in steps of 2⁻⁵³.
    fn fine_uniform(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1u64 << 53) as f64;
        let words = (u64::from(self.word()) << 32) | u64::from(self.word());
        (words & ((1 << 53) - 1)) as f64 * STEP
    }

    /// Draws `count` numbers that are spread evenly from 0 to 1, which is not reached (`torch.rand`).
    pub fn uniforms(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.uniform()).collect()
    }

    /// Draws `count` numbers of the standard normal distribution (`torch.randn` of a contiguous float32 tensor).
    ///
    /// Draws of 16 and more and draws of fewer use the sequence differently: one draw of 20 is no two draws of 10.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| self.normal() as f32).collect();
        }
        let mut numbers = self.uniforms(count);
        let (blocks, rest) = numbers.as_chunks_mut();
        blocks.iter_mut().for_each(to_normals);
        if !rest.is_empty() {
            let last: &mut [f32; BLOCK] = numbers.last_chunk_mut().expect("the draw is as large as a block");
            last.fill_with(|| self.uniform());
            to_normals(last);
        }
        numbers
    }

    /// One normal number out of a pair (Box and Muller).
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (a, b) = (self.fine_uniform(), self.fine_uniform());
        let radius = (-2.0 * libm::log1p(-b)).sqrt();
        let angle = 2.0 * std::f64::consts::PI * a;
        self.spare = Some(radius * libm::sin(angle));
        radius * libm::cos(angle)
    }
}

/// Turns even numbers into normal ones, number `j` and number `j + 8` together (Box and Muller).
fn to_normals(block: &mut [f32; BLOCK]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * libm::log(f64::from(1.0 - *a)) as f32).sqrt();
        let angle = f64::from(2.0 * PI * *b);
        *a = radius * libm::cos(angle) as f32;
        *b = radius * libm::sin(angle) as f32;
    }
}

/// Draws the noise of a batch of `items` latents with `numbers` numbers each, at once.
pub fn initial_noise(seed: u64, items: usize, numbers: usize) -> Vec<f32> {
    Generator::new(seed).normals(items * numbers)
}

/// Draws the noise of the items `index` of a larger batch whose items are drawn one after another.
///
/// An item gets other noise than in [`initial_noise`] where `numbers` is no multiple of 16, as in the reference.
pub fn noise_of_items(seed: u64, index: &[usize], numbers: usize) -> Vec<f32> {
    let mut generator = Generator::new(seed);
    let mut drawn: Vec<Vec<f32>> = Vec::new();
    let mut noise = Vec::with_capacity(index.len() * numbers);
    for &item in index {
        while drawn.len() <= item {
            drawn.push(generator.normals(numbers));
        }
        noise.extend_from_slice(&drawn[item]);
    }
    noise
}

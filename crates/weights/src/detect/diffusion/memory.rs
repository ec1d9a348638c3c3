//! How much memory a call of a network takes beside its weights, reckoned from its sizes before anything is loaded.
//!
//! The reckoning goes through a network block by block as the call does, and counts the numbers that are alive at once: what is
//! kept for the way up, what goes into the block, and what the block makes on its way. The largest sum counts. It leaves out what
//! does not grow with the picture, and knows nothing of what an allocator adds. The VAE of Stable Diffusion takes what is reckoned
//! for it to 1 % (f32 on a CPU, 256 to 512 pixels a side, the growth of the peak from one to the other).

use super::{ControlNet, InputBlock, Unet, Vae};

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The kernels of a CPU, in f32. Attention holds no matrix of scores.
    Kernels,
    /// A tensor library, in numbers of so many bytes. Convolutions write out what each of their results is made of, and attention
    /// its scores.
    Library {
        /// The size of a number.
        number_bytes: u64,
    },
}

impl Engine {
    /// The bytes of so many numbers that are alive at once, of each of `batch`.
    fn bytes(self, numbers: u64, batch: usize) -> u64 {
        batch as u64
            * match self {
                // Kernels have a tenth more in hand, as measured: parts of maps in the order in which they multiply.
                Self::Kernels => 4 * (numbers + numbers / 10),
                Self::Library { number_bytes } => number_bytes * numbers,
            }
    }

    /// The numbers that a convolution of `channels` channels with kernels of 3 x 3 needs beside what goes in and comes out.
    fn conv(self, channels: u64, pixels: u64) -> u64 {
        match self {
            Self::Kernels => 0,
            Self::Library { .. } => 9 * channels * pixels,
        }
    }

    /// The numbers that attention of `queries` to `keys` needs beside what goes in and comes out.
    fn attention(self, heads: u64, queries: u64, keys: u64) -> u64 {
        match self {
            Self::Kernels => 0,
            Self::Library { .. } => 2 * heads * queries * keys,
        }
    }

    /// The numbers of a residual block, with what goes in.
    fn res(self, inputs: u64, outputs: u64, pixels: u64) -> u64 {
        let first = (2 * inputs + outputs) * pixels + self.conv(inputs, pixels);
        let skip = if inputs == outputs { 0 } else { outputs };
        let second = (inputs + 4 * outputs + skip) * pixels + self.conv(outputs, pixels);
        first.max(second)
    }

    /// The numbers of a transformer of `channels`, with what goes in.
    fn transformer(self, channels: u64, pixels: u64, tokens: u64, heads: u64) -> u64 {
        // Beside what goes in: tokens before and behind a projection, the normalized ones, and two attentions' results.
        let kept = 5 * channels * pixels;
        let attention = 5 * channels * pixels + self.attention(heads, pixels, pixels.max(tokens));
        let wide = match self {
            Self::Kernels => 4,
            Self::Library { .. } => 8 + 4 + 4, // both halves, the gate and the product
        };
        kept + channels * pixels + attention.max((wide + 2) * channels * pixels)
    }
}

/// The tokens that a text encoder sees at once.
const CHUNK: u64 = 77;

/// Returns the bytes that encoding `chunks` chunks of a prompt takes beside the weights of a text encoder of `width` channels and
/// `heads` heads.
pub fn text_bytes(engine: Engine, width: usize, heads: usize, chunks: usize) -> u64 {
    // What goes in, the normalized, three projections, what attention finds, the result; and four times the width between.
    let a_token = 12 * width as u64;
    let scores = engine.attention(heads as u64, CHUNK, CHUNK);
    engine.bytes(a_token * CHUNK + scores, chunks)
}

/// Sides that halve and double.
#[derive(Clone, Copy)]
struct Sides(u64, u64);

impl Sides {
    fn new(h: usize, w: usize) -> Self {
        Self(h as u64, w as u64)
    }

    fn pixels(self) -> u64 {
        self.0 * self.1
    }

    /// Half of the sides, rounded up.
    fn halved(self) -> Self {
        Self(self.0.div_ceil(2), self.1.div_ceil(2))
    }

    fn doubled(self) -> Self {
        Self(2 * self.0, 2 * self.1)
    }
}

impl Unet {
    /// Returns the bytes that a call takes beside the weights, for latents of `h` x `w` and `tokens` tokens of text, `batch` of
    /// each. That of a conditioned and an unconditioned prediction together is of a batch twice as large.
    pub fn call_bytes(&self, engine: Engine, batch: usize, h: usize, w: usize, tokens: usize) -> u64 {
        let (mut peak, kept) = self.go_down(engine, Sides::new(h, w), tokens as u64);
        let mut kept = kept;
        let mut held: u64 = kept.iter().map(|(channels, sides)| channels * sides.pixels()).sum();
        for block in &self.output {
            let Some((channels, sides)) = kept.pop() else { break };
            let pixels = sides.pixels();
            let (inputs, outputs) = (block.inputs as u64, block.outputs as u64);
            // The skip, what came from below, and both side by side.
            let before = inputs.saturating_sub(channels) * pixels;
            peak = peak.max(held + before + engine.res(inputs, outputs, pixels));
            held -= channels * pixels;
            peak = peak.max(held + self.attend(engine, block.outputs, block.depth, pixels, tokens as u64));
            if block.is_up {
                let next = kept.last().map_or(sides, |(_, sides)| *sides).pixels();
                peak = peak.max(held + outputs * (pixels + 2 * next) + engine.conv(outputs, next));
            }
        }
        engine.bytes(peak, batch)
    }

    /// The numbers of the way down and the middle at their most, and the channels and sides of what is kept.
    fn go_down(&self, engine: Engine, mut sides: Sides, tokens: u64) -> (u64, Vec<(u64, Sides)>) {
        let first = self.model_channels as u64;
        let mut kept = vec![(first, sides)];
        let mut held = first * sides.pixels();
        let mut peak = held + engine.conv(self.in_channels as u64, sides.pixels());
        for block in &self.input {
            let pixels = sides.pixels();
            let made = match *block {
                InputBlock::Res { inputs, outputs, depth } => {
                    let res = engine.res(inputs as u64, outputs as u64, pixels);
                    res.max(self.attend(engine, outputs, depth, pixels, tokens))
                }
                InputBlock::Down { channels } => {
                    sides = sides.halved();
                    channels as u64 * sides.pixels() + engine.conv(channels as u64, sides.pixels())
                }
            };
            peak = peak.max(held + made);
            let channels = block.outputs() as u64;
            held += channels * sides.pixels();
            kept.push((channels, sides));
        }
        if let Some(depth) = self.middle {
            let (channels, pixels) = (self.deepest(), sides.pixels());
            let res = engine.res(channels as u64, channels as u64, pixels);
            peak = peak.max(held + res.max(self.attend(engine, channels, depth, pixels, tokens)));
        }
        (peak, kept)
    }

    fn attend(&self, engine: Engine, channels: usize, depth: usize, pixels: u64, tokens: u64) -> u64 {
        match depth {
            0 => 0,
            _ => {
                let heads = self.heads.of(channels).unwrap_or(1) as u64;
                engine.transformer(channels as u64, pixels, tokens, heads)
            }
        }
    }
}

impl ControlNet {
    /// Returns the bytes that a call takes beside the weights, with what it says; see [`Unet::call_bytes`].
    pub fn call_bytes(&self, engine: Engine, batch: usize, h: usize, w: usize, tokens: usize) -> u64 {
        let (peak, kept) = self.unet.go_down(engine, Sides::new(h, w), tokens as u64);
        let said: u64 = kept.iter().map(|(channels, sides)| channels * sides.pixels()).sum();
        let mut pixels = (h * w * 64) as u64;
        let mut hint = 0;
        for (i, pair) in self.hint.windows(2).enumerate() {
            let stride = Self::hint_stride(i) as u64;
            let (before, after) = (pair[0] as u64 * pixels, pair[1] as u64 * pixels / (stride * stride));
            pixels /= stride * stride;
            hint = hint.max(before + after + engine.conv(pair[0] as u64, pixels));
        }
        engine.bytes(peak.max(2 * said).max(hint), batch)
    }
}

impl Vae {
    /// Returns the bytes that encoding `batch` pictures of `h` x `w` pixels takes beside the weights, with the pictures.
    pub fn encode_bytes(&self, engine: Engine, batch: usize, h: usize, w: usize) -> u64 {
        let mut sides = Sides::new(h, w);
        let picture = self.in_channels as u64 * sides.pixels();
        let mut peak = (2 * self.in_channels + self.ch) as u64 * sides.pixels();
        let mut inputs = self.ch as u64;
        for (level, outputs) in self.levels.iter().enumerate() {
            let outputs = *outputs as u64;
            peak = peak.max(engine.vae_res(inputs, outputs, sides.pixels()));
            peak = peak.max(engine.vae_res(outputs, outputs, sides.pixels()));
            if level + 1 < self.levels.len() {
                let half = sides.halved();
                let padded = 3 * outputs * sides.pixels() + outputs * half.pixels();
                peak = peak.max(padded + engine.conv(outputs, half.pixels()));
                sides = half;
            }
            inputs = outputs;
        }
        peak = peak.max(self.middle(engine, sides.pixels()));
        engine.bytes(peak + 2 * picture, batch)
    }

    /// Returns the bytes that decoding `batch` latents of `h` x `w` takes beside the weights, with the pictures.
    pub fn decode_bytes(&self, engine: Engine, batch: usize, h: usize, w: usize) -> u64 {
        let mut sides = Sides::new(h, w);
        let mut peak = self.middle(engine, sides.pixels());
        let mut inputs = self.deepest() as u64;
        for (level, outputs) in self.levels.iter().enumerate().rev() {
            let outputs = *outputs as u64;
            peak = peak.max(engine.vae_res(inputs, outputs, sides.pixels()));
            peak = peak.max(engine.vae_res(outputs, outputs, sides.pixels()));
            if level > 0 {
                let twice = sides.doubled();
                let doubled = outputs * sides.pixels() + 2 * outputs * twice.pixels();
                peak = peak.max(doubled + engine.conv(outputs, twice.pixels()));
                sides = twice;
            }
            inputs = outputs;
        }
        let pictures = self.in_channels as u64 * sides.pixels();
        peak = peak.max(2 * inputs * sides.pixels() + pictures + engine.conv(inputs, sides.pixels()));
        engine.bytes(peak + 2 * pictures, batch)
    }

    fn middle(&self, engine: Engine, pixels: u64) -> u64 {
        let channels = self.deepest() as u64;
        let attention = 7 * channels * pixels + engine.attention(1, pixels, pixels);
        engine.vae_res(channels, channels, pixels).max(attention)
    }
}

impl Engine {
    /// The numbers of a residual block of an autoencoder, with what goes in.
    fn vae_res(self, inputs: u64, outputs: u64, pixels: u64) -> u64 {
        let first = (2 * inputs + outputs) * pixels + self.conv(inputs, pixels);
        let skip = if inputs == outputs { 0 } else { outputs };
        first.max((inputs + 3 * outputs + skip) * pixels + self.conv(outputs, pixels))
    }
}

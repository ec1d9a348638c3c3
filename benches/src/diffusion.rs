//! The networks of latent diffusion on weights from a file, a call at a time: each is shared by all threads.
//!
//! What goes in is computed from names, as in `diffusion.py`, which also writes the files.

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use candle_core::{Device, Tensor};
use models::{
    diffusion::{
        text::{Options, TextEncoder},
        unet::{Inputs, Unet},
        vae::Vae,
    },
    ops::Backend,
    upscale::Cpu,
    watch::Unwatched,
};
use weights::{checkpoint::Checkpoint, synthetic};

use crate::{
    figure::{Clock, Figure},
    op::signal,
};

/// A call of a network.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    /// The UNet, on latents of h x w.
    Unet,
    /// The VAE's encoder, on pictures of h x w pixels.
    VaeEncode,
    /// The VAE's decoder, on latents of h x w.
    VaeDecode,
    /// The text encoder, on a chunk of 77 tokens.
    Text,
}

/// How noisy the latents are, as the UNet is told.
const TIMESTEP: f32 = 500.0;
/// Tokens of a chunk.
const TOKENS: usize = 77;

/// Calls the network in `file` on `[b, h, w]` so many times, after one call to warm up. Gives what a call took and the last
/// output.
///
/// # Errors
/// If the file holds no such network, and what that fails with.
pub fn run(call: Call, file: &Path, sizes: [usize; 3], passes: usize, cpu: Cpu) -> Result<(Figure, Vec<f32>)> {
    let [b, h, w] = sizes;
    ensure!(b * h * w > 0, "{b} of {h} x {w} are nothing");
    let started = Instant::now();
    let network =
        load(call, &Checkpoint::open(file)?, sizes, cpu).with_context(|| format!("failed to load {file:?}"))?;
    eprintln!("loaded in {:.2} s", started.elapsed().as_secs_f64());
    let mut output = network()?;
    let mut times = Vec::with_capacity(passes);
    for _ in 0..passes {
        drop(output); // not held beside the next
        let clock = Clock::start();
        output = network()?;
        times.push(clock.stop());
    }
    let name = match call {
        Call::Unet => "unet",
        Call::VaeEncode => "vae-encode",
        Call::VaeDecode => "vae-decode",
        Call::Text => "text",
    };
    Ok((Figure::new(format!("{name} {b}x{h}x{w}"), passes, times, None), output.flatten_all()?.to_vec1()?))
}

/// A network, and what it is called with.
type Network = Box<dyn Fn() -> Result<Tensor>>;

fn load(call: Call, checkpoint: &Checkpoint, [b, h, w]: [usize; 3], cpu: Cpu) -> Result<Network> {
    let backend = Backend::Kernels(cpu);
    let input = |name: &str, shape: &[usize]| -> Result<Tensor> {
        Ok(Tensor::from_vec(signal(name, shape.iter().product()), shape, &Device::Cpu)?)
    };
    Ok(match call {
        Call::Unet => {
            let unet = Unet::load(checkpoint, &backend)?;
            let layout = unet.layout();
            let x = input("x.", &[b, layout.in_channels, h, w])?;
            let context = input("context.", &[b, TOKENS, layout.context_dim])?;
            let y = layout.adm_in_channels.map(|channels| input("y.", &[b, channels])).transpose()?;
            Box::new(move || {
                let inputs = Inputs { x: &x, timesteps: &vec![TIMESTEP; b], context: &context, y: y.as_ref() };
                Ok(unet.forward(inputs, None, &Unwatched)?)
            })
        }
        Call::VaeEncode => {
            let vae = Vae::load(checkpoint, &backend)?;
            let shape = [b, vae.layout().in_channels, h, w];
            let numbers: Vec<f32> = synthetic::tensor("input.", &shape).iter().map(|value| value * 0.5 + 0.5).collect();
            let pictures = Tensor::from_vec(numbers, &shape, &Device::Cpu)?;
            Box::new(move || Ok(vae.encode_moments(&pictures, &Unwatched)?))
        }
        Call::VaeDecode => {
            let vae = Vae::load(checkpoint, &backend)?;
            let latents = input("x.", &[b, vae.layout().embed_dim, h, w])?;
            Box::new(move || Ok(vae.decode_raw(&latents, &Unwatched)?))
        }
        Call::Text => {
            let text = TextEncoder::load(&[checkpoint], &backend)?;
            Box::new(move || Ok(text.encode("", &Options::default())?.cond))
        }
    })
}

//! `tessera-bench`: what one pass of a network, or of a single operation, costs on this machine's CPU.
//!
//! It runs one work on synthetic weights and says what a pass took. It compares nothing and judges nothing: that is for
//! `side_by_side.py`, which runs it in turn with other programs, and for `cargo bench -p benches`, which prints a table of its
//! own. Start at [`network`], [`op`] and [`diffusion`].

#![allow(clippy::print_stdout)] // a benchmark prints its figures

mod diffusion;
mod figure;
mod network;
mod op;

use std::{fs::File, io::Write as _, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use models::{
    processor::{CpuLevel, Precision},
    upscale::Cpu,
};

use diffusion::Call;
use figure::{Figure, Machine};
use network::Network;

/// Times passes of a network or an operation on this machine's CPU, on synthetic weights.
///
/// With several threads, passes of a network run one on each, as tiles do on a worker; passes of an operation run one after
/// another, each shared by all threads, and so do calls of the networks of latent diffusion.
#[derive(Debug, Parser)]
#[command(name = "tessera-bench")]
struct Arguments {
    /// What runs.
    work: Work,
    /// Height of the tile in pixels, or of latents; operations and text have sizes of their own.
    h: usize,
    /// Width of the tile in pixels, or of latents; operations and text have sizes of their own.
    w: usize,
    /// How many passes are timed, after one on each thread to warm up.
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// Where the last output goes, as raw little-endian f32 [1, c, h, w], not clamped; outputs of operations one after another.
    out: Option<PathBuf>,
    /// How exactly it is computed: `fast` with bf16 products where this CPU gains from them.
    #[arg(long, value_enum, default_value = "fast")]
    precision: How,
    /// How many threads compute.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// The kernels to use, such as `avx2`; the most capable that this CPU has by default.
    #[arg(long, env = "TESSERA_CPU")]
    cpu: Option<CpuLevel>,
    /// The one operation to run, by its name; all by default.
    #[arg(long)]
    only: Option<String>,
    /// The weights file of the work `model`, and of the networks of latent diffusion.
    #[arg(long)]
    model: Option<PathBuf>,
    /// How many pictures or latents a call of a network of latent diffusion takes.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Prints the figures as one JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Work {
    /// RRDBNet x4 of Real-ESRGAN: 64 features, 23 blocks.
    Rrdb,
    /// SRVGGNetCompact x4: 64 features, 16 convolutions between the first and the last.
    Compact,
    /// The network of the weights file `--model`.
    Model,
    /// Single operations of RRDBNet and of Stable Diffusion 1.5.
    Ops,
    /// The UNet of the weights file `--model`, on latents.
    Unet,
    /// The encoder of the VAE of the weights file `--model`, on pictures.
    VaeEncode,
    /// The decoder of the VAE of the weights file `--model`, on latents.
    VaeDecode,
    /// The text encoder of the weights file `--model`, on a chunk of tokens.
    Text,
}

impl Work {
    /// Whether it is made of single operations, and not of chains.
    fn is_of_operations(self) -> bool {
        !matches!(self, Self::Rrdb | Self::Compact | Self::Model)
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum How {
    Fast,
    Exact,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let threads = usize::from(arguments.threads);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("failed to start the threads")?;
    let level = arguments.cpu.map_or_else(|| Ok(CpuLevel::detect()), CpuLevel::checked)?;
    let precision = match arguments.precision {
        How::Fast => Precision::Fast,
        How::Exact => Precision::Exact,
    };
    let machine = Machine::new(level, precision, threads, arguments.work.is_of_operations());
    let out =
        arguments.out.as_ref().map(|path| File::create(path).with_context(|| format!("failed to create {path:?}")));
    let mut out = out.transpose()?;

    let (h, w, passes) = (arguments.h, arguments.w, arguments.n as usize);
    let cpu = Cpu { level, precision };
    let mut tell = |figure: Figure, output: &[f32]| {
        println!("{}", if arguments.json { machine.json(&figure)? } else { machine.line(&figure) });
        out.as_mut().map_or(Ok(()), |out| write(out, output))
    };
    let model = || arguments.model.as_deref().context("this work takes the weights file `--model`");
    let mut call = |call: Call| -> Result<()> {
        let (figure, output) = diffusion::run(call, model()?, [arguments.batch, h, w], passes, cpu)?;
        tell(figure, &output)
    };
    let network = match arguments.work {
        Work::Rrdb => Network::known("rrdb", &network::RRDB, cpu)?,
        Work::Compact => Network::known("compact", &network::COMPACT, cpu)?,
        Work::Model => Network::of_file(model()?, cpu)?,
        Work::Ops => return op::run(arguments.only.as_deref(), passes, cpu, tell),
        Work::Unet => return call(Call::Unet),
        Work::VaeEncode => return call(Call::VaeEncode),
        Work::VaeDecode => return call(Call::VaeDecode),
        Work::Text => return call(Call::Text),
    };
    ensure!(h > 0 && w > 0, "a tile of {h} x {w} has no pixels");
    let (figure, output) = network::run(&network, h, w, passes, threads)?;
    tell(figure, &output)
}

fn write(out: &mut File, values: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    out.write_all(&bytes).context("failed to write the output")
}

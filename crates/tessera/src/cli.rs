//! The command line: every command, every flag, with its default and its unit.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use domain::{
    picture::Format,
    resize::{Factor, MAX_SIDE, ResizeMethod, Target},
};
use service::config::{Flags, keys, units};
use weights::synthetic::diffusion::Model;

/// The keys that are flags of a command that asks a farm.
const CLIENT: u8 = keys::PROCESS | keys::CLIENT;

/// Upscales pictures on a farm of workers, or right here.
#[derive(Debug, Parser)]
#[command(name = "tessera", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Data goes to stdout, everything else to stderr.
Exit codes: 0 done, 1 the job failed, 2 could not ask.";

const UPSCALE_EXAMPLES: &str = "\
Examples:
  tessera upscale photo.jpg -o photo@2x.png
  tessera upscale photos/ -o larger/ --scale 1.5
  tessera upscale *.png -o out/ --model 4x.pth --width 3840
  tessera upscale *.png -o out/ --server http://farm:7000 --priority high

A folder means the pictures below it, and its results lie in --output as it does. What has a result already is
skipped, so that the same command goes on where the last one stopped.

Without --server a farm embedded in this process does the work. Its results stay in the cache folder, so that
an interrupted run goes on where it was.";

const SAMPLE_EXAMPLES: &str = "\
Examples:
  tessera sample sd15.safetensors 'a lighthouse at dusk' -o lighthouse.png
  tessera sample sdxl.safetensors 'a lighthouse' --width 1024 --height 1024 --sampler-name dpmpp_2m --scheduler karras
  tessera sample sd15.safetensors 'a red door' --init house.png --mask door.png --denoise 0.8
  tessera sample sd15.safetensors 'a cat' --lora ink.safetensors:0.8 --controlnet canny.pth --control-image edges.png:1:0:0.6

It asks no farm and keeps nothing. Names and defaults are those of ComfyUI's KSampler, and so is the picture, on a CPU.
Without a checkpoint at hand, `tessera models synthesize sd1 -o tiny.safetensors` makes one whose pictures mean nothing.";

const SUBMIT_EXAMPLES: &str = "\
JOB.json is a CreateJobRequest as protobuf writes JSON; field names are those of tessera/v1/jobs.proto:
  {
    \"request_id\": \"holiday-1\",
    \"labels\": {\"album\": \"holiday\"},
    \"priority\": \"PRIORITY_HIGH\",
    \"upscale\": {
      \"pictures\": [{\"path\": \"photo.jpg\"}, {\"uri\": \"s3://bucket/photo.png\"}],
      \"upscale_model\": \"tessera-2x\",
      \"resize\": {\"width\": 3840, \"method\": \"RESIZE_METHOD_LANCZOS\"},
      \"tile\": {\"side\": 512, \"overlap\": 32},
      \"output\": {\"format\": \"png\"}
    }
  }
A picture's `path` is a local file, uploaded first; {\"path\": \"4x.pth\"} may also stand for `upscale_model`.
`resize` asks for a `factor`, a `width` or a `height`; without `upscale_model` it chooses the built-in model too.
`\"tile\": {\"auto\": true}` lets the farm choose the side.
Paths are relative to the folder of JOB.json.";

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enlarges pictures and writes the results
    #[command(after_help = UPSCALE_EXAMPLES)]
    Upscale(Box<Upscale>),
    /// Makes a picture of words with a Stable Diffusion checkpoint, right here
    #[command(after_help = SAMPLE_EXAMPLES)]
    Sample(Box<Sample>),
    /// Runs a whole farm in this process and serves it over gRPC
    Serve(Box<Serve>),
    /// Runs a coordinator: takes jobs, plans them, puts the results together
    Coordinator(Box<Part<{ keys::PROCESS | keys::FARM | keys::COORDINATOR }>>),
    /// Runs a worker: renders the tasks of a farm
    Worker(Box<Part<{ keys::PROCESS | keys::FARM | keys::WORKER }>>),
    /// Submits a job described by a JSON document; prints its id
    #[command(after_help = SUBMIT_EXAMPLES)]
    Submit(Submit),
    /// Shows and steers jobs
    Jobs(Jobs),
    /// Lists the workers of a farm
    Workers(Ask),
    /// Shows and adds models
    Models(Models),
    /// Shows what the cache folder holds, and makes it smaller
    Cache(Cache),
    /// Checks cache and scratch folder, store, broker, models, device and server, one by one
    Doctor(Box<Doctor>),
    /// Prints the configuration in effect, passwords hidden
    Config(Box<Config>),
}

/// What every command has that asks a farm.
#[derive(Debug, Args)]
pub struct Ask {
    /// Write JSON on stdout, for programs [default: text for people]
    #[arg(long)]
    pub json: bool,
    /// Configuration.
    #[command(flatten)]
    pub config: Flags<CLIENT>,
}

/// `tessera upscale`.
#[derive(Debug, Args)]
pub struct Upscale {
    /// Pictures: PNG, JPEG, TIFF or WebP files, and folders of these
    #[arg(required = true, value_name = "PICTURE|DIR")]
    pub pictures: Vec<PathBuf>,
    /// Where the result goes: a file, or a folder (with several pictures, a folder of them, or a `/` at the end) in which
    /// results are called as their pictures are [default: beside the picture, as NAME@2x.EXT]
    #[arg(short, long, value_name = "FILE|DIR")]
    pub output: Option<PathBuf>,
    /// The network: a weights file (.safetensors, .pth), or the name or digest of a model that the farm has
    /// [default: the built-in model with the smallest scale that is enough for the size that is asked for]
    #[arg(short, long, value_name = "FILE|NAME")]
    pub model: Option<String>,
    /// How many times larger a side gets, 0.01 to 64, such as 1.5; what the model makes is resampled to it [default: the
    /// scale of the model, which is 2 if none is named]
    #[arg(short, long, value_name = "TIMES", value_parser = factor, group = "size")]
    pub scale: Option<Factor>,
    /// The width of the results in pixels; the height follows [default: what --scale says]
    #[arg(long, value_name = "PIXELS", value_parser = side(), group = "size")]
    pub width: Option<u32>,
    /// The height of the results in pixels; the width follows [default: what --scale says]
    #[arg(long, value_name = "PIXELS", value_parser = side(), group = "size")]
    pub height: Option<u32>,
    /// How results are resampled to the size that is asked for: nearest-exact, bilinear, area, bicubic or lanczos
    /// [default: lanczos]
    #[arg(long, value_name = "METHOD", requires = "size")]
    pub method: Option<ResizeMethod>,
    /// The longest side of a tile in pixels, 16 to 65536; `auto` lets the farm choose 128, 256, 512 or 1024 by the model's
    /// needs and the least memory of a device of the compute class
    #[arg(long, value_name = "PIXELS|auto", default_value = "512", value_parser = tile_side)]
    pub tile: TileSide,
    /// Pixels that neighbouring tiles share, less than the tile's side
    #[arg(long, value_name = "PIXELS", default_value_t = 32)]
    pub overlap: u32,
    /// The format of the results: png, jpeg, tiff or webp [default: that of --output's extension, else the input's]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Bits per sample of the results, 8 or 16 [default: those of the input]
    #[arg(long, value_name = "BITS", value_parser = bits)]
    pub bits: Option<u32>,
    /// Quality of JPEG results, 1 to 100
    #[arg(long, value_name = "PERCENT", default_value_t = 95, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub quality: u32,
    /// How exactly to compute: `fast` is bf16 products with f32 sums where the device gains from it, at least 50 dB PSNR
    /// against exact; `exact` is f32 and equals the reference
    #[arg(long, value_enum, default_value_t = Precision::Fast)]
    pub precision: Precision,
    /// Whether one class of device renders it all, so that the bytes never depend on who did, or any may help (with
    /// --precision exact; fast jobs stay on one class)
    #[arg(long, value_enum, default_value_t = Reproducibility::SameClass)]
    pub reproducibility: Reproducibility,
    /// The compute class that renders it, as `tessera workers` shows it [default: the farm's choice]
    #[arg(long, value_name = "CLASS")]
    pub class: Option<String>,
    /// Which jobs go first
    #[arg(long, value_enum, default_value_t = Priority::Normal)]
    pub priority: Priority,
    /// A note on the job; may be given several times [default: none]
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Workers of the embedded farm; each renders `--slots` tiles at a time
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    /// Write results over files that exist [default: such pictures are skipped]
    #[arg(short, long)]
    pub force: bool,
    /// Write events on stdout as JSON, one a line [default: the results' paths]
    #[arg(long)]
    pub json: bool,
    /// Configuration.
    #[command(flatten)]
    pub config: Flags<{ CLIENT | keys::EMBEDDED }>,
}

impl Upscale {
    /// The size that is asked for.
    pub fn target(&self) -> Option<Target> {
        let (width, height) = (self.width.map(Target::Width), self.height.map(Target::Height));
        self.scale.map(Target::Factor).or(width).or(height)
    }
}

/// `tessera sample`.
#[derive(Debug, Args)]
pub struct Sample {
    /// A checkpoint: a .safetensors or PyTorch file, or a folder of diffusers
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,
    /// What the picture is to show; `(words:1.2)` weigh more
    #[arg(value_name = "PROMPT")]
    pub prompt: String,
    /// What it is not to show [default: nothing]
    #[arg(short, long, value_name = "PROMPT", default_value = "", hide_default_value = true)]
    pub negative: String,
    /// Where the picture goes; its extension tells the format
    #[arg(short, long, value_name = "FILE", default_value = "sample.png")]
    pub output: PathBuf,
    /// An autoencoder of its own [default: that of the checkpoint]
    #[arg(long, value_name = "FILE")]
    pub vae: Option<PathBuf>,
    /// A text encoder of its own; may be given several times [default: those of the checkpoint]
    #[arg(long, value_name = "FILE")]
    pub clip: Vec<PathBuf>,
    /// A folder in which `embedding:NAME` of a prompt is looked up [default: such words are plain words]
    #[arg(long, value_name = "DIR")]
    pub embeddings: Option<PathBuf>,
    /// A LoRA, with what its changes of network and text encoders are multiplied by; may be given several times
    /// [strengths by default: 1, and that of the network]
    #[arg(long = "lora", value_name = "FILE[:MODEL[:CLIP]]", value_parser = lora)]
    pub loras: Vec<(PathBuf, f64, f64)>,
    /// A ControlNet; may be given several times, each with its --control-image [default: none]
    #[arg(long = "controlnet", value_name = "FILE", requires = "control_images")]
    pub controlnets: Vec<PathBuf>,
    /// What the ControlNet sees, how strongly it steers, and from and to which share of the way [by default: 1, 0 and 1]
    #[arg(long = "control-image", value_name = "PICTURE[:STRENGTH[:START[:END]]]", value_parser = control_image)]
    pub control_images: Vec<ControlImage>,
    /// A picture to begin with [default: noise]
    #[arg(long, value_name = "PICTURE", conflicts_with_all = ["width", "height"])]
    pub init: Option<PathBuf>,
    /// What of the picture may change: what is white in this one, of the same size [default: everything]
    #[arg(long, value_name = "PICTURE", requires = "init")]
    pub mask: Option<PathBuf>,
    /// The width in pixels, cut to a multiple of 8
    #[arg(long, value_name = "PIXELS", default_value_t = 512)]
    pub width: usize,
    /// The height in pixels, cut to a multiple of 8
    #[arg(long, value_name = "PIXELS", default_value_t = 512)]
    pub height: usize,
    /// How much of the way from noise to picture is gone, above 0 to 1: less keeps more of --init
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, allow_negative_numbers = true)]
    pub denoise: f64,
    /// Steps of the sampler
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub steps: usize,
    /// How strongly the prompt is obeyed; 1 ignores the negative one
    #[arg(long, value_name = "SCALE", default_value_t = 8.0, allow_negative_numbers = true)]
    pub cfg: f64,
    /// The sampler, by its name in ComfyUI; a wrong one lists them all
    #[arg(long, value_name = "NAME", default_value = "euler")]
    pub sampler_name: String,
    /// The scheduler of noise levels, by its name in ComfyUI; a wrong one lists them all
    #[arg(long, value_name = "NAME", default_value = "normal")]
    pub scheduler: String,
    /// The seed from which all noise follows
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
    /// The layer of the text encoders at which to stop, -1 to -24 (clip skip 2 is -2) [default: the model's own]
    #[arg(long, value_name = "LAYER", allow_negative_numbers = true)]
    pub stop_at_clip_layer: Option<i32>,
    /// Side of the tiles in which the autoencoder goes over the picture, which takes less memory and changes it a little
    /// [default: all at once]
    #[arg(long, value_name = "PIXELS")]
    pub vae_tile: Option<usize>,
    /// How exactly to compute: `exact` is f32 and equals the reference, `fast` is bf16 where the device gains from it
    #[arg(long, value_enum, default_value_t = Precision::Exact)]
    pub precision: Precision,
    /// Write over a file that exists [default: refuse]
    #[arg(short, long)]
    pub force: bool,
    /// Write JSON on stdout, for programs [default: the picture's path]
    #[arg(long)]
    pub json: bool,
    /// Configuration.
    #[command(flatten)]
    pub config: Flags<{ keys::PROCESS | keys::LOCAL }>,
}

/// What a ControlNet sees, and when and how strongly it steers.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlImage {
    /// The picture.
    pub picture: PathBuf,
    /// A factor of what the network says.
    pub strength: f64,
    /// The share of the way at which it begins.
    pub start_percent: f64,
    /// The share of the way at which it ends.
    pub end_percent: f64,
}

/// `tessera serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Workers in this process; each renders `--slots` tiles at a time
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub workers: u32,
    /// Configuration.
    #[command(flatten)]
    pub config: Flags<{ keys::PROCESS | keys::FARM | keys::COORDINATOR | keys::WORKER }>,
}

/// A part of a farm as a process of its own.
#[derive(Debug, Args)]
pub struct Part<const PARTS: u8> {
    /// Configuration.
    #[command(flatten)]
    pub config: Flags<PARTS>,
}

/// `tessera submit`.
#[derive(Debug, Args)]
pub struct Submit {
    /// The document; `-` reads stdin, and paths in it are then relative to the current folder
    #[arg(value_name = "JOB.json")]
    pub document: PathBuf,
    /// Wait until the job ends, showing its progress [default: return once it is planned]
    #[arg(short, long)]
    pub watch: bool,
    /// Server and output.
    #[command(flatten)]
    pub ask: Ask,
}

/// `tessera jobs`.
#[derive(Debug, Args)]
pub struct Jobs {
    /// What to do.
    #[command(subcommand)]
    pub command: JobsCommand,
}

/// `tessera jobs …`.
#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// Lists jobs, the newest first
    List {
        /// Only jobs in this state; may be given several times [default: all]
        #[arg(long = "state", value_enum)]
        states: Vec<State>,
        /// The most jobs to list
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        limit: usize,
        /// Server and output.
        #[command(flatten)]
        ask: Ask,
    },
    /// Shows a job
    Get(OneJob),
    /// Shows a job's progress until it ends
    Watch(OneJob),
    /// Cancels a job; what is rendered stays in the store
    Cancel(OneJob),
    /// Runs again what failed in a failed or cancelled job
    Retry(OneJob),
    /// Downloads what a job made; prints the files' paths
    Fetch {
        /// Which job.
        #[command(flatten)]
        job: OneJob,
        /// The folder that the results go to
        #[arg(short, long, value_name = "DIR", default_value = ".")]
        output: PathBuf,
        /// Write results over files that exist [default: such results are skipped]
        #[arg(short, long)]
        force: bool,
    },
}

/// Which job.
#[derive(Debug, Args)]
pub struct OneJob {
    /// The job's id
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Server and output.
    #[command(flatten)]
    pub ask: Ask,
}

/// `tessera models`.
#[derive(Debug, Args)]
pub struct Models {
    /// What to do.
    #[command(subcommand)]
    pub command: ModelsCommand,
}

/// `tessera models …`.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Lists the models of the farm; without a server, those that are built in
    List(Ask),
    /// Says what a weights file holds: an upscaler, a checkpoint or a part of one, a LoRA; asks no farm
    Inspect {
        /// A .safetensors or PyTorch file, or a folder of diffusers
        #[arg(value_name = "FILE|FOLDER")]
        file: PathBuf,
        /// Write JSON on stdout, for programs [default: text for people]
        #[arg(long)]
        json: bool,
    },
    /// Writes a network as .safetensors, its tensors called as its architecture calls them; asks no farm
    Convert {
        /// A .safetensors or PyTorch file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The file to write [default: beside FILE, as NAME.safetensors]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// The numbers that weights are written as [default: as they are]
        #[arg(long, value_enum)]
        dtype: Option<Dtype>,
        /// Write over a file that exists [default: refuse]
        #[arg(short, long)]
        force: bool,
    },
    /// Writes a Stable Diffusion checkpoint of synthetic weights, to try things out; its pictures mean nothing
    Synthesize {
        /// What it is of: sd1, sd1-inpaint, sd2, sdxl, sdxl-inpaint, sdxl-refiner, control-sd1 or control-sdxl
        #[arg(value_name = "MODEL", value_parser = synthetic)]
        model: Model,
        /// The file to write [default: MODEL.safetensors]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Make its networks as large as the real ones, which takes gigabytes [default: tiny ones of the same structure]
        #[arg(long)]
        full: bool,
        /// The numbers that weights are written as
        #[arg(long, value_enum, default_value_t = Dtype::F16)]
        dtype: Dtype,
        /// Write over a file that exists [default: refuse]
        #[arg(short, long)]
        force: bool,
    },
    /// Uploads a weights file and makes it a model of the farm
    Add {
        /// A .safetensors or PyTorch file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// What to call it [default: the file's name without its extension]
        #[arg(long)]
        name: Option<String>,
        /// Server and output.
        #[command(flatten)]
        ask: Ask,
    },
}

/// `tessera cache`.
#[derive(Debug, Args)]
pub struct Cache {
    /// Delete what was used least recently until so much is left, such as `20GB`; 0 empties it [default: only show]
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    pub limit: Option<u64>,
    /// Output.
    #[command(flatten)]
    pub ask: Ask,
}

/// `tessera doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Write JSON on stdout, for programs [default: text for people]
    #[arg(long)]
    pub json: bool,
    /// Configuration.
    #[command(flatten)]
    pub config: Flags<{ keys::PROCESS | keys::FARM | keys::CLIENT | keys::WORKER }>,
}

/// `tessera config`.
#[derive(Debug, Args)]
pub struct Config {
    /// List every key instead: what it is for, its flag, its variable, its unit and its default
    #[arg(long)]
    pub keys: bool,
    /// Write JSON on stdout, for programs [default: TOML, with where each value came from]
    #[arg(long)]
    pub json: bool,
    /// Configuration.
    #[command(flatten)]
    pub config: Flags<255>,
}

/// The numbers that weights are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits, of which 10 behind the point.
    F16,
    /// 16 bits, of which 7 behind the point, with the range of 32 bits.
    Bf16,
}

/// The side of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileSide {
    /// So many pixels.
    Pixels(u32),
    /// The farm's choice.
    Auto,
}

/// How exactly to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// f32, which equals the reference.
    Exact,
    /// bf16 products with f32 sums where the device gains from it.
    Fast,
}

/// Which devices may share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Reproducibility {
    /// Those of one class.
    SameClass,
    /// Any.
    Mixed,
}

/// Which jobs go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Priority {
    /// When nothing else waits.
    Low,
    /// In order of arrival.
    Normal,
    /// Before everything else.
    High,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Nothing is rendered yet.
    Queued,
    /// Being rendered or put together.
    Running,
    /// All results are there.
    Succeeded,
    /// A task failed for good.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// What a synthetic checkpoint is of.
fn synthetic(text: &str) -> Result<Model, String> {
    let known = || Model::ALL.map(Model::id).join(", ");
    Model::ALL.into_iter().find(|model| model.id() == text).ok_or_else(|| format!("known are {}", known()))
}

/// Splits off numbers that follow a path, each after a colon, at most `most`.
fn path_and_numbers(text: &str, most: usize) -> (PathBuf, Vec<f64>) {
    let (mut path, mut numbers) = (text, Vec::new());
    while numbers.len() < most
        && let Some((rest, last)) = path.rsplit_once(':')
        && let Ok(number) = last.parse()
        && !rest.is_empty()
    {
        (path, _) = (rest, numbers.insert(0, number));
    }
    (path.into(), numbers)
}

fn lora(text: &str) -> Result<(PathBuf, f64, f64), String> {
    let (path, numbers) = path_and_numbers(text, 2);
    let model = numbers.first().copied().unwrap_or(1.0);
    Ok((path, model, numbers.get(1).copied().unwrap_or(model)))
}

fn control_image(text: &str) -> Result<ControlImage, String> {
    let (picture, numbers) = path_and_numbers(text, 3);
    let number = |at: usize, default: f64| numbers.get(at).copied().unwrap_or(default);
    Ok(ControlImage { picture, strength: number(0, 1.0), start_percent: number(1, 0.0), end_percent: number(2, 1.0) })
}

fn tile_side(text: &str) -> Result<TileSide, String> {
    match text {
        "auto" => Ok(TileSide::Auto),
        text => match text.parse() {
            Ok(side @ 16..=65_536) => Ok(TileSide::Pixels(side)),
            _ => Err("16 to 65536 pixels or `auto` is wanted".to_owned()),
        },
    }
}

fn factor(text: &str) -> Result<Factor, String> {
    let number: f64 = text.parse().map_err(|_| "a number is wanted, such as 1.5".to_owned())?;
    Factor::new(number).map_err(|error| error.to_string())
}

fn side() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_SIDE))
}

fn bits(text: &str) -> Result<u32, String> {
    match text {
        "8" => Ok(8),
        "16" => Ok(16),
        _ => Err("8 or 16 is wanted".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is wanted".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn numbers_behind_a_path_are_split_off() {
        assert_eq!(lora("a/b.safetensors"), Ok(("a/b.safetensors".into(), 1.0, 1.0)));
        assert_eq!(lora("b.safetensors:0.5"), Ok(("b.safetensors".into(), 0.5, 0.5)));
        assert_eq!(lora("c:\\b.pt:-1:0.25"), Ok(("c:\\b.pt".into(), -1.0, 0.25)));
        assert_eq!(lora("b:1:2:3"), Ok(("b:1".into(), 2.0, 3.0)));
        let image = control_image("edges.png:0.5:0.1").unwrap();
        assert_eq!((image.strength, image.start_percent, image.end_percent), (0.5, 0.1, 1.0));
    }

    fn parse(line: &str) -> Result<Command, String> {
        let words = std::iter::once("tessera").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    fn upscale(line: &str) -> Box<Upscale> {
        match parse(line).unwrap() {
            Command::Upscale(upscale) => upscale,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let upscale = upscale("upscale photo.jpg -o photo@2x.png");
        assert_eq!((upscale.tile, upscale.overlap, upscale.quality), (TileSide::Pixels(512), 32, 95));
        assert_eq!((upscale.precision, upscale.reproducibility), (Precision::Fast, Reproducibility::SameClass));
        assert_eq!((upscale.priority, upscale.workers, upscale.force), (Priority::Normal, 1, false));
        assert_eq!((upscale.target(), upscale.method), (None, None));
        assert_eq!((upscale.model, upscale.format, upscale.bits), (None, None, None));
    }

    #[test]
    fn every_flag_of_upscale_is_taken() {
        let upscale = upscale(
            "upscale a.png b.png -o out/ --model 4x.pth --scale 1.5 --method area --tile auto --overlap 8 --format jpg --bits 8 --quality 80 \
             --precision exact --reproducibility mixed --class cpu/candle/f32 --priority high --label a=b --label c= \
             --workers 3 --force --json --device cuda:0 --cache /tmp/c --log debug",
        );
        assert_eq!(upscale.pictures.len(), 2);
        assert_eq!(upscale.target(), Some(Target::Factor(Factor::new(1.5).unwrap())));
        assert_eq!(upscale.method, Some(ResizeMethod::Area));
        assert_eq!((upscale.tile, upscale.format), (TileSide::Auto, Some(Format::Jpeg)));
        assert_eq!((upscale.precision, upscale.reproducibility), (Precision::Exact, Reproducibility::Mixed));
        assert_eq!(upscale.labels, [("a".into(), "b".into()), ("c".into(), String::new())]);
        let given = upscale.config.given().values;
        assert_eq!((given["device"].as_str(), given["cache"].as_str()), ("cuda:0", "/tmp/c"));
    }

    #[test]
    fn a_wrong_value_is_named_with_its_flag() {
        let check = |line: &str, flag: &str| {
            let error = parse(line).unwrap_err();
            assert!(error.contains(flag), "{error}");
        };
        check("upscale a.png --tile 8", "--tile");
        check("upscale a.png --bits 12", "--bits");
        check("upscale a.png --quality 0", "--quality");
        check("upscale a.png --format bmp", "--format");
        check("upscale a.png --label x", "--label");
        check("upscale a.png --scale 2 --width 3", "--width");
        check("upscale a.png --width 3 --height 3", "--height");
        check("upscale a.png --scale 0", "0.01 to 64");
        check("upscale a.png --scale much", "--scale");
        check("upscale a.png --width 0", "--width");
        check("upscale a.png --method area", "--scale");
        check("upscale a.png --scale 2 --method bislerp", "--method");
        check("upscale", "PICTURE");
        check("cache --limit much", "--limit");
    }

    #[test]
    fn every_flag_says_its_default_or_is_required() {
        fn walk(command: &clap::Command) {
            for arg in command.get_opts().filter(|arg| arg.get_action().takes_values() && !arg.is_required_set()) {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                let told =
                    help.contains("[default") || help.contains("default:") || !arg.get_default_values().is_empty();
                assert!(told, "{} --{}: {help}", command.get_name(), arg.get_long().unwrap_or_default());
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }
}

//! The command line: every command, every flag, with its default and its unit.

pub mod flags;
pub mod redraw;
pub mod segs;
pub mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use domain::resize::{Factor, ResizeMethod, Target};
use service::config::{Flags, keys, units};
use weights::synthetic::diffusion::Model;

use flags::{CLIENT, JobFlags, RenderFlags, SamplerFlags, TilingFlags};
use redraw::{LatentUpscale, SegsDetail, SegsUpscale};
use segs::Segs;
use values::{ControlNet, Dtype, Lora, Precision, State, control_net, factor, lora, side, synthetic};

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
  tessera sample sd15.safetensors 'a cat' --lora ink.safetensors:0.8 --controlnet canny.pth:1:0:0.6 --control-image edges.png

It asks no farm and keeps nothing. Names and defaults are those of ComfyUI's KSampler, and so is the picture, on a CPU.
Without a checkpoint at hand, `tessera models synthesize sd1 -o tiny.safetensors` makes one whose pictures mean nothing.";

const SUBMIT_EXAMPLES: &str = r#"JOB.json is a CreateJobRequest as protobuf writes JSON; field names are those of tessera/v1/jobs.proto:
  {
    "request_id": "holiday-1",
    "labels": {"album": "holiday"},
    "priority": "PRIORITY_HIGH",
    "upscale": {
      "pictures": [{"path": "photo.jpg"}, {"uri": "s3://bucket/photo.png"}],
      "upscale_model": "tessera-2x",
      "resize": {"width": 3840, "method": "RESIZE_METHOD_LANCZOS"},
      "tile": {"side": 512, "overlap": 32},
      "output": {"format": "png"}
    }
  }
`resize` asks for a `factor`, a `width` or a `height`; without `upscale_model` it chooses the built-in model too.
`"tile": {"auto": true}` lets the farm choose the side.

Or, instead of `upscale`, one of these; what is left out has the default of the node in ComfyUI (nodes.proto):
    "segs_detail": {
      "picture": {"path": "photo.jpg"},
      "segs": {"document": "faces.json"},
      "overrides": [{"label": "face", "positive": "a smile"}, {"index": 3, "seed": 7}],
      "basic_pipe": {
        "checkpoint": {"path": "sd15.safetensors"},
        "loras": [{"lora": "ink", "strength_model": 0.8}],
        "positive": [{"text": "a face"}, {"text": "a hat", "mask": {"mask": {"path": "top.png"}}}],
        "negative": [{"text": "blurry"}],
        "control_nets": [{"control_net": {"path": "canny.pth"}, "image": {"path": "edges.png"}}]
      },
      "sampler": {"seed": 1, "steps": 30, "cfg": 7, "denoise": 0.4},
      "paste": {"feather": 8}
    }
    "segs_upscale": {
      "picture": {"path": "photo.jpg"},
      "segs": {"tiles": {"bbox_size": 512}},
      "basic_pipe": {"checkpoint": "sd15", "positive": [{"text": "a photograph"}]},
      "rescale_factor": 3, "upscale_model": "tessera-2x", "sampler": {"denoise": 0.3}
    }
    "latent_upscale": {
      "picture": {"path": "photo.jpg"},
      "upscale_factor": 2, "steps": 4,
      "base_sampler": {"sampler": {"denoise": 0.4}, "basic_pipe": {"checkpoint": "sd15"}, "hooks": [{"denoise": 0.2}]},
      "mask_sampler": {"sampler": {"denoise": 0.2}, "basic_pipe": {"checkpoint": "sd15"}},
      "mask": {"path": "face.png"}
    }

Where a picture, a mask or a latent is wanted, {"path": "photo.jpg"} is a local file, uploaded first; where a model is
wanted, {"path": "4x.pth"} is one too. {"document": "faces.json"} is a file of SEGS (docs/segs.md); segments may also be made of a
mask, {"mask": {"mask": {"path": "mask.png"}}}. Paths are relative to the folder of JOB.json."#;

const PLAN_EXAMPLES: &str = "\
Examples:
  tessera plan JOB.json
  tessera plan JOB.json --workers 4,16,64 --json
  tessera plan JOB.json --dot | dot -Tsvg -o plan.svg
  tessera plan 0194b3c2-… --server http://farm:7000

A document's local files are uploaded, so that the plan is of the very job; nothing is rendered. Without --server a farm
embedded in this process makes the plan, out of the cache folder's results.

The time is that of rendering alone, on the workers that are there while they have nothing else to do; fetching, storing and
pasting are not counted. Workers measure how fast they are while they render; until then it is a first guess.";

const PREVIEW_EXAMPLES: &str = "\
Examples:
  tessera preview 0194b3c2-…
  tessera preview 0194b3c2-… --task 3 -o previews/ --json
  tessera preview 0194b3c2-… --once

Workers draw previews only while somebody looks, and results are the same with and without. A preview is a rough
picture of what a step is on its way to, with a pixel for every 8 by 8 of the result. Jobs that redraw have them
(segs-detail, segs-upscale, latent-upscale); a task's number is its index in the plan.";

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enlarges pictures and writes the results
    #[command(after_help = UPSCALE_EXAMPLES)]
    Upscale(Box<Upscale>),
    /// Makes a picture of words with a Stable Diffusion checkpoint, right here
    #[command(after_help = SAMPLE_EXAMPLES)]
    Sample(Box<Sample>),
    /// Redraws segments of a picture, each by itself, and pastes them
    #[command(after_help = redraw::SEGS_DETAIL_EXAMPLES)]
    SegsDetail(Box<SegsDetail>),
    /// Enlarges a picture and redraws its segments, each seeing those before
    #[command(after_help = redraw::SEGS_UPSCALE_EXAMPLES)]
    SegsUpscale(Box<SegsUpscale>),
    /// Enlarges a picture in steps, redrawing it at each
    #[command(after_help = redraw::LATENT_UPSCALE_EXAMPLES)]
    LatentUpscale(Box<LatentUpscale>),
    /// Makes, checks and shows SEGS documents
    #[command(after_help = segs::SEGS_EXAMPLES)]
    Segs(Box<Segs>),
    /// Runs a whole farm in this process and serves it over gRPC
    Serve(Box<Serve>),
    /// Runs a coordinator: takes jobs, plans them, puts the results together
    Coordinator(Box<Part<{ keys::PROCESS | keys::FARM | keys::COORDINATOR }>>),
    /// Runs a worker: renders the tasks of a farm
    Worker(Box<Part<{ keys::PROCESS | keys::FARM | keys::WORKER }>>),
    /// Submits a job described by a JSON document; prints its id
    #[command(after_help = SUBMIT_EXAMPLES)]
    Submit(Submit),
    /// Says what a job would take: its tasks, what is found already, its time and memory, and what more workers make of it
    #[command(after_help = PLAN_EXAMPLES)]
    Plan(Box<Plan>),
    /// Shows and steers jobs
    Jobs(Jobs),
    /// Shows what a job is redrawing, while it does; prints the files' paths
    #[command(after_help = PREVIEW_EXAMPLES)]
    Preview(Preview),
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
    /// How pictures are cut.
    #[command(flatten)]
    pub tiling: TilingFlags,
    /// How exactly to compute: `fast` is bf16 products with f32 sums where the device gains from it, at least 50 dB PSNR
    /// against exact; `exact` is f32 and equals the reference
    #[arg(long, value_enum, default_value_t = Precision::Fast)]
    pub precision: Precision,
    /// Who renders it.
    #[command(flatten)]
    pub render: RenderFlags,
    /// The job.
    #[command(flatten)]
    pub job: JobFlags,
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
    pub loras: Vec<Lora>,
    /// A ControlNet, how strongly it steers, and from and to which share of the way; may be given several times [by default:
    /// 1, 0 and 1]
    #[arg(long = "controlnet", value_name = "FILE[:STRENGTH[:START[:END]]]", requires = "control_images", value_parser = control_net)]
    pub controlnets: Vec<ControlNet>,
    /// What the ControlNet sees; one for each --controlnet, in their order [default: none]
    #[arg(long = "control-image", value_name = "PICTURE", requires = "controlnets")]
    pub control_images: Vec<PathBuf>,
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
    /// The sampler.
    #[command(flatten)]
    pub sampler: SamplerFlags,
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

/// `tessera plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// A document as `tessera submit` takes it, `-` for stdin, or the id of a job
    #[arg(value_name = "JOB.json|JOB")]
    pub job: String,
    /// Write the graph of tasks in the language of Graphviz, at most 20000 of them [default: numbers and words]
    #[arg(long)]
    pub dot: bool,
    /// Numbers of workers for which speed-up and time are worked out, 1 to 1000000 [default: 1,2,4,8,16]
    #[arg(long, value_name = "COUNT,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub workers: Vec<u32>,
    /// Write JSON on stdout, for programs [default: text for people]
    #[arg(long)]
    pub json: bool,
    /// Configuration.
    #[command(flatten)]
    pub config: Flags<{ CLIENT | keys::EMBEDDED }>,
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

/// `tessera preview`.
#[derive(Debug, Args)]
pub struct Preview {
    /// Which job.
    #[command(flatten)]
    pub job: OneJob,
    /// Only this task, by its index in the plan; may be given several times [default: all]
    #[arg(long = "task", value_name = "INDEX")]
    pub tasks: Vec<u64>,
    /// The folder that the newest preview of each task goes to, as task-INDEX.png [default: one called as the job]
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Stop after one round: when a task comes for the second time, or each --task has come [default: at the job's end]
    #[arg(long)]
    pub once: bool,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use domain::picture::Format;

    use super::{
        segs::SegsCommand,
        values::{Masks, Priority, Reproducibility, TileSide},
        *,
    };

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
        assert_eq!(
            (upscale.tiling.tile, upscale.tiling.overlap, upscale.render.quality),
            (TileSide::Pixels(512), 32, 95)
        );
        assert_eq!((upscale.precision, upscale.render.reproducibility), (Precision::Fast, Reproducibility::SameClass));
        assert_eq!((upscale.job.priority, upscale.job.workers, upscale.job.force), (Priority::Normal, 1, false));
        assert_eq!((upscale.target(), upscale.method), (None, None));
        assert_eq!((upscale.model, upscale.render.format, upscale.render.bits), (None, None, None));
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
        assert_eq!((upscale.tiling.tile, upscale.render.format), (TileSide::Auto, Some(Format::Jpeg)));
        assert_eq!((upscale.precision, upscale.render.reproducibility), (Precision::Exact, Reproducibility::Mixed));
        assert_eq!(upscale.job.labels, [("a".into(), "b".into()), ("c".into(), String::new())]);
        let given = upscale.job.config.given().values;
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
    fn the_documents_shown_are_jobs() {
        let objects = SUBMIT_EXAMPLES.split("\n    \"").skip(1).filter_map(|part| {
            let (kind, job) = part.split_once("\": {\n")?;
            Some((kind, job.split("\n    }").next()?))
        });
        let mut kinds = Vec::new();
        for (kind, job) in objects {
            let mut value: serde_json::Value = serde_json::from_str(&format!("{{ \"{kind}\": {{ {job} }} }}")).unwrap();
            if let Some(segs) = value[kind].get_mut("segs")
                && segs.get("document").is_some()
            {
                *segs = serde_json::json!({ "segs": {} }); // there is no such file here
            }
            let mut document = crate::document::Document::new(value, std::path::Path::new("")).unwrap();
            for file in document.files().unwrap() {
                document.replace(&file, "d".to_owned()).unwrap();
            }
            assert!(document.request().unwrap().kind.is_some());
            kinds.push(kind);
        }
        assert_eq!(kinds, ["upscale", "segs_detail", "segs_upscale", "latent_upscale"]);
    }

    #[test]
    fn segs_plans_and_previews_take_their_flags() {
        let segs = |line: &str| match parse(line).unwrap() {
            Command::Segs(segs) => segs.command,
            other => panic!("{other:?}"),
        };
        let SegsCommand::FromMask { parts, crop, output, .. } = segs("segs from-mask m.png -o a.json --combined")
        else {
            panic!("no mask")
        };
        assert_eq!((parts.combined, parts.drop_size, crop.crop_factor), (true, 10, 3.0));
        assert_eq!((output.masks, output.force), (Masks::Rle, false));
        let SegsCommand::Tiles { tiles, .. } = segs("segs tiles 640x480 -o tiles/ --bbox-size 128 --masks png") else {
            panic!("no tiles")
        };
        assert_eq!((tiles.bbox_size, tiles.min_overlap, tiles.filter_segs_dilation), (128, 5, 20));
        assert!(parse("segs convert a.json").is_err());
        for wrong in ["--bbox-size 0", "--min-overlap 513", "--crop-factor 0.5", "--mask-irregularity NaN"] {
            let error = parse(&format!("segs tiles 64x64 -o a.json {wrong}")).unwrap_err();
            assert!(error.contains(wrong.split_once(' ').unwrap().0), "{error}");
        }
        let Command::Preview(preview) = parse("preview job-1 --task 3 --task 5 --once --json").unwrap() else {
            panic!("no preview")
        };
        assert_eq!((&*preview.job.job, &preview.tasks[..], preview.output), ("job-1", &[3, 5][..], None));
        assert!(preview.once && preview.job.ask.json);
        assert!(parse("preview").is_err() && parse("preview job-1 --task x").unwrap_err().contains("--task"));
        let Command::Plan(plan) = parse("plan JOB.json --workers 2,8 --dot").unwrap() else { panic!("no plan") };
        assert_eq!((plan.workers, plan.dot, plan.json), (vec![2, 8], true, false));
        assert!(parse("plan JOB.json --workers 0").is_err());
    }

    #[test]
    fn the_help_of_redrawing_shows_the_references_defaults() {
        let mut command = Cli::command();
        let help = |command: &mut clap::Command, name: &str| {
            let help = command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
            help.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let shows = |help: &str, flag: &str, default: &str| {
            let told = help.split(" --").find(|part| part.starts_with(&format!("{flag} ")));
            let told = told.unwrap_or_else(|| panic!("no --{flag}"));
            assert!(told.contains(&format!("[default: {default}]")), "--{told}");
        };
        let detail = help(&mut command, "segs-detail");
        let defaults = [
            ("guide-size", "512"),
            ("guide-size-for", "bbox"),
            ("max-size", "768"),
            ("seed", "0"),
            ("steps", "20"),
            ("cfg", "8"),
            ("sampler-name", "euler"),
            ("scheduler", "normal"),
            ("denoise", "0.5"),
            ("noise-mask", "true"),
            ("force-inpaint", "true"),
            ("refiner-ratio", "0.2"),
            ("batch-size", "1"),
            ("cycle", "1"),
            ("noise-mask-feather", "20"),
            ("feather", "5"),
            ("alpha", "255"),
            ("crop-factor", "3"),
            ("drop-size", "10"),
            ("bbox-size", "512"),
            ("min-overlap", "5"),
            ("filter-segs-dilation", "20"),
            ("precision", "exact"),
        ];
        defaults.iter().for_each(|(flag, default)| shows(&detail, flag, default));
        let upscale = help(&mut command, "segs-upscale");
        let defaults = [("rescale-factor", "2"), ("supersample", "true"), ("rounding-modulus", "8"), ("feather", "5")];
        defaults.iter().for_each(|(flag, default)| shows(&upscale, flag, default));
        let latent = help(&mut command, "latent-upscale");
        let defaults = [
            ("upscale-factor", "1.5"),
            ("upscale-steps", "3"),
            ("step-mode", "simple"),
            ("scale-method", "nearest-exact"),
            ("tile-size", "512"),
            ("full-sample-schedule", "none"),
        ];
        defaults.iter().for_each(|(flag, default)| shows(&latent, flag, default));
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

//! Flags that several commands have, each written once.

use std::path::PathBuf;

use clap::{ArgAction, ArgGroup, Args};
use domain::{
    nodes::Rendering,
    picture::Format,
    sampling::{KSampler, SchedulerFunc},
    segs::Select,
};
use service::config::{Flags, keys};

use super::values::{
    ControlNet, Lora, Precision, Priority, Reproducibility, TileSide, bits, control_net, crop_factor, for_segs, label,
    lora, scheduler_func, seed_for_segs, share, tile_side,
};

/// The keys that are flags of a command that asks a farm.
pub const CLIENT: u8 = keys::PROCESS | keys::CLIENT;

/// How a command asks a farm for a job, and waits for it.
#[derive(Debug, Args)]
pub struct JobFlags {
    /// Which jobs go first
    #[arg(long, value_enum, default_value_t = Priority::Normal)]
    pub priority: Priority,
    /// A note on the job; may be given several times [default: none]
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Workers of the embedded farm; each renders `--slots` tasks at a time
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

/// Who renders a job, and how what it makes is written.
#[derive(Debug, Args)]
pub struct RenderFlags {
    /// The format of the results: png, jpeg, tiff or webp [default: that of --output's extension, else the input's]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Bits per sample of the results, 8 or 16 [default: those of the input]
    #[arg(long, value_name = "BITS", value_parser = bits)]
    pub bits: Option<u32>,
    /// Quality of JPEG results, 1 to 100
    #[arg(long, value_name = "PERCENT", default_value_t = 95, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub quality: u32,
    /// Whether one class of device renders it all, so that the bytes never depend on who did, or any may help (with
    /// --precision exact; fast jobs stay on one class)
    #[arg(long, value_enum, default_value_t = Reproducibility::SameClass)]
    pub reproducibility: Reproducibility,
    /// The compute class that renders it, as `tessera workers` shows it [default: the farm's choice]
    #[arg(long, value_name = "CLASS")]
    pub class: Option<String>,
}

/// How pictures are cut for a super-resolution network.
#[derive(Debug, Args)]
pub struct TilingFlags {
    /// The longest side of a tile in pixels, 16 to 65536; `auto` lets the farm choose 128, 256, 512 or 1024 by the
    /// model's needs and the least memory of a device of the compute class
    #[arg(long, value_name = "PIXELS|auto", default_value = "512", value_parser = tile_side)]
    pub tile: TileSide,
    /// Pixels that neighbouring tiles share, less than the tile's side
    #[arg(long, value_name = "PIXELS", default_value_t = 32)]
    pub overlap: u32,
}

/// How a command asks for a job that redraws a picture.
#[derive(Debug, Args)]
pub struct RedrawFlags {
    /// How exactly to compute: `exact` is f32 and equals the reference, `fast` is bf16 where the device gains from it
    #[arg(long, value_enum, default_value_t = exactly())]
    pub precision: Precision,
    /// Do what the reference does also where it is a mistake: regions of SEGS of another aspect, masks of conditionings
    /// and of single masks for two samplers
    #[arg(long)]
    pub reference_quirks: bool,
    /// Print the job's plan, as `tessera plan` does, and do not run it
    #[arg(long)]
    pub plan: bool,
    /// Who renders it.
    #[command(flatten)]
    pub render: RenderFlags,
    /// The job.
    #[command(flatten)]
    pub job: JobFlags,
}

/// The precision of jobs that redraw pictures when nobody says one.
fn exactly() -> Precision {
    match Rendering::PRECISION {
        domain::job::Precision::Exact => Precision::Exact,
        domain::job::Precision::Fast => Precision::Fast,
    }
}

/// How one sampling run goes, but for how much it redraws.
#[derive(Debug, Args)]
pub struct SamplerFlags {
    /// The seed from which all noise follows
    #[arg(long, value_name = "NUMBER", default_value_t = KSampler::default().seed)]
    pub seed: u64,
    /// Steps of the sampler
    #[arg(long, value_name = "COUNT", default_value_t = KSampler::default().steps)]
    pub steps: u32,
    /// How strongly the prompt is obeyed; 1 ignores the negative one
    #[arg(long, value_name = "SCALE", default_value_t = KSampler::default().cfg, allow_negative_numbers = true)]
    pub cfg: f64,
    /// The sampler, by its name in ComfyUI; a wrong one lists them all
    #[arg(long, value_name = "NAME", default_value_t = KSampler::default().sampler_name)]
    pub sampler_name: String,
    /// The scheduler of noise levels, by its name in ComfyUI; a wrong one lists them all
    #[arg(long, value_name = "NAME", default_value_t = KSampler::default().scheduler)]
    pub scheduler: String,
}

/// How a picture is redrawn in one sampling run.
#[derive(Debug, Args)]
pub struct RedrawSamplerFlags {
    /// The sampler.
    #[command(flatten)]
    pub sampler: SamplerFlags,
    /// How much is redrawn, 0.0001 to 1
    #[arg(long, value_name = "SHARE", default_value_t = KSampler::default().denoise, allow_negative_numbers = true)]
    pub denoise: f64,
    /// What replaces the scheduler: the GITS table, or noise levels from the highest, such as 14.6,2,0 [default:
    /// nothing; of the table by default: 1.2 and 1]
    #[arg(long, value_name = "gits[:COEFF[:DENOISE]]|LEVEL,LEVEL,…", value_parser = scheduler_func)]
    pub scheduler_func: Option<SchedulerFunc>,
}

/// What pictures are redrawn with: the reference's BASIC_PIPE.
#[derive(Debug, Args)]
pub struct PipeFlags {
    /// A checkpoint of Stable Diffusion: a file, or the name or digest of a model that the farm has
    #[arg(long, value_name = "FILE|NAME")]
    pub checkpoint: PathBuf,
    /// An autoencoder of its own [default: that of the checkpoint]
    #[arg(long, value_name = "FILE|NAME")]
    pub vae: Option<PathBuf>,
    /// A LoRA, with what its changes of network and text encoders are multiplied by; may be given several times
    /// [strengths by default: 1, and that of the network]
    #[arg(long = "lora", value_name = "FILE|NAME[:MODEL[:CLIP]]", value_parser = lora)]
    pub loras: Vec<Lora>,
    /// An embedding that prompts may name as `embedding:NAME`; may be given several times [default: such words are
    /// plain words]
    #[arg(long = "embedding", value_name = "FILE|NAME")]
    pub embeddings: Vec<PathBuf>,
    /// The layer of the text encoders at which to stop, -1 to -24 (clip skip 2 is -2) [default: the model's own]
    #[arg(long, value_name = "LAYER", allow_negative_numbers = true)]
    pub stop_at_clip_layer: Option<i32>,
    /// What is wanted; `(words:1.2)` weigh more [default: nothing]
    #[arg(long, value_name = "PROMPT", default_value = "", hide_default_value = true)]
    pub positive: String,
    /// What is not wanted [default: nothing]
    #[arg(long, value_name = "PROMPT", default_value = "", hide_default_value = true)]
    pub negative: String,
    /// A ControlNet, how strongly it steers, and from and to which share of the way; may be given several times [by
    /// default: 1, 0 and 1]
    #[arg(long = "controlnet", value_name = "FILE|NAME[:STRENGTH[:START[:END]]]", value_parser = control_net)]
    pub controlnets: Vec<ControlNet>,
    /// What the ControlNet sees, of the whole picture; one for each --controlnet, in their order [default: the picture
    /// that is redrawn]
    #[arg(long = "control-image", value_name = "PICTURE", requires = "controlnets")]
    pub control_images: Vec<PathBuf>,
    /// Steer the negative prompt with a control of its own, as the advanced node does
    #[arg(long, requires = "controlnets")]
    pub control_advanced: bool,
}

/// How many times as large as its thing a crop region is.
#[derive(Debug, Args)]
pub struct CropFlags {
    /// How many times as large as the part of the mask, or the tile, its crop region is, 1 to 100 (of a tile to 10)
    #[arg(long, value_name = "TIMES", default_value_t = 3.0, value_parser = crop_factor)]
    pub crop_factor: f64,
}

/// How segments are made of a mask: `MaskToSEGS`.
#[derive(Debug, Args)]
pub struct MaskFlags {
    /// Make one segment of all that is not black [default: one for each connected part]
    #[arg(long)]
    pub combined: bool,
    /// Set the whole of the bounding box in the mask
    #[arg(long)]
    pub bbox_fill: bool,
    /// Drop parts that are not wider and taller than this, in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 10)]
    pub drop_size: u32,
    /// Fill each part and leave no greys [default: keep the mask's own values]
    #[arg(long)]
    pub contour_fill: bool,
}

/// How a picture is covered with tiles: `MakeTileSEGS`.
#[derive(Debug, Args)]
pub struct TileSegsFlags {
    /// The side of a tile in pixels, 64 to 4096
    #[arg(long, value_name = "PIXELS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..=4096))]
    pub bbox_size: u32,
    /// What neighbouring tiles share at least, in pixels, 0 to 512
    #[arg(long, value_name = "PIXELS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=512))]
    pub min_overlap: u32,
    /// Keep to what the segments of this document hold [default: the whole picture]
    #[arg(long, value_name = "FILE.json")]
    pub filter_in_segs: Option<PathBuf>,
    /// Leave out what the segments of this document hold [default: nothing]
    #[arg(long, value_name = "FILE.json")]
    pub filter_out_segs: Option<PathBuf>,
    /// Grow or shrink the masks of these documents, in pixels, -255 to 255
    #[arg(
        long,
        value_name = "PIXELS",
        default_value_t = 20,
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-255..=255)
    )]
    pub filter_segs_dilation: i32,
    /// How ragged the edges of tiles are, 0 (straight) to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub mask_irregularity: f64,
    /// How ragged masks are drawn: `Reuse fast`, `Reuse quality`, `All random fast` or `All random quality`
    #[arg(long, value_name = "MODE", default_value = "Reuse fast")]
    pub irregular_mask_mode: String,
    /// The seed from which ragged masks are drawn
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub irregular_mask_seed: u64,
}

/// Which parts of a picture are redrawn, and what is different about some of them.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("segments").required(true))]
pub struct SegsFlags {
    /// Redraw the segments of a SEGS document; docs/segs.md describes it [default: --mask or --grid]
    #[arg(
        long,
        value_name = "FILE.json",
        group = "segments",
        conflicts_with_all = ["CropFlags", "MaskFlags", "TileSegsFlags"]
    )]
    pub segs: Option<PathBuf>,
    /// Redraw the parts of a mask, a picture as large as the one to redraw: what is not black in it [default: --segs or
    /// --grid]
    #[arg(long, value_name = "PICTURE", group = "segments", conflicts_with = "TileSegsFlags")]
    pub mask: Option<PathBuf>,
    /// Redraw everything in tiles
    #[arg(long, group = "segments", conflicts_with = "MaskFlags")]
    pub grid: bool,
    /// How large crops are.
    #[command(flatten)]
    pub crop: CropFlags,
    /// With a mask.
    #[command(flatten)]
    pub parts: MaskFlags,
    /// With a grid.
    #[command(flatten)]
    pub tiles: TileSegsFlags,
    /// What is wanted in some segments instead, chosen by label or by place from 0; may be given several times
    /// [default:
    /// --positive]
    #[arg(long = "prompt-for", value_name = "LABEL|INDEX=PROMPT", value_parser = for_segs)]
    pub prompts_for: Vec<(Select, String)>,
    /// What is not wanted in some segments instead; may be given several times [default: --negative]
    #[arg(long = "negative-for", value_name = "LABEL|INDEX=PROMPT", value_parser = for_segs)]
    pub negatives_for: Vec<(Select, String)>,
    /// Redraw some segments with another seed, and only these anew; may be given several times [default: --seed]
    #[arg(long = "reseed", value_name = "LABEL|INDEX=SEED", value_parser = seed_for_segs)]
    pub reseeded: Vec<(Select, u64)>,
}

/// How segments are redrawn, for an inpainting checkpoint and at their edges.
#[derive(Debug, Args)]
pub struct InpaintFlags {
    /// Hide what is redrawn from an inpainting checkpoint
    #[arg(long)]
    pub inpaint_model: bool,
    /// Soften the edges of what is redrawn, in pixels of the crop, 0 to 100
    #[arg(long, value_name = "PIXELS", default_value_t = 20)]
    pub noise_mask_feather: u32,
}

/// Softening of what is pasted.
#[derive(Debug, Args)]
pub struct FeatherFlags {
    /// Soften the edges of what is pasted, in pixels, 0 to 100
    #[arg(long, value_name = "PIXELS", default_value_t = 5)]
    pub feather: u32,
}

/// How a switch that is on by default is given: `--noise-mask false`.
pub const SET: ArgAction = ArgAction::Set;

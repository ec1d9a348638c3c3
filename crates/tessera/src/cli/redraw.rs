//! The commands that redraw pictures: their flags bear the reference's names and have its defaults.

use std::path::PathBuf;

use clap::Args;
use domain::nodes::{FullSamplerSchedule, PkHook, SegsDetailer, SegsPaste, SegsUpscaler};

use super::{
    flags::{FeatherFlags, InpaintFlags, PipeFlags, RedrawFlags, RedrawSamplerFlags, SET, SegsFlags, TilingFlags},
    values::{GuideSizeFor, SamplerChange, StepMode, Which, hook, sampler_change},
};

/// Examples of `tessera segs-detail`.
pub const SEGS_DETAIL_EXAMPLES: &str = "\
Examples:
  tessera segs-detail photo.jpg --mask faces.png --checkpoint sd15.safetensors --positive 'a face' -o better.png
  tessera segs-detail photo.jpg --segs faces.json --checkpoint sd15.safetensors --denoise 0.4 --reseed 2=7
  tessera segs-detail photo.jpg --grid --bbox-size 256 --checkpoint sd15.safetensors --plan
  tessera segs-detail photo.jpg --segs faces.json --checkpoint sd15.safetensors --no-paste --segs-output redrawn/

Each segment is redrawn by itself, on as many workers as there are. What was redrawn before with the same parameters is
found, so that after a change of one segment only that one is redrawn. `tessera segs` makes and checks SEGS documents.
Conditionings with masks and areas, and ControlNets of single segments, are for `tessera submit`.";

/// Examples of `tessera segs-upscale`.
pub const SEGS_UPSCALE_EXAMPLES: &str = "\
Examples:
  tessera segs-upscale photo.jpg --grid --checkpoint sd15.safetensors --denoise 0.3 -o larger.png
  tessera segs-upscale photo.jpg --segs faces.json --checkpoint sd15.safetensors --upscale-model 4x.pth --rescale-factor 3
  tessera segs-upscale photo.jpg --grid --checkpoint sd15.safetensors --prompt-for 3='a red door' --plan

The picture is enlarged, then its segments are redrawn in it. A segment that sees pixels of an earlier one waits for it; all
others are redrawn at once. Segments are those of the picture as it is, and enlarged with it; a grid covers the picture as it
is, too.";

/// Examples of `tessera latent-upscale`.
pub const LATENT_UPSCALE_EXAMPLES: &str = "\
Examples:
  tessera latent-upscale photo.jpg --checkpoint sd15.safetensors --upscale-factor 2 --denoise 0.3 -o larger.png
  tessera latent-upscale photo.jpg --checkpoint sd15.safetensors --mask face.png --mask-sampler denoise=0.2
  tessera latent-upscale start.latent --checkpoint sd15.safetensors --latent-output -o end.latent --hook base.denoise=0.2

The steps follow one another; each is stored, so that a lost worker costs one step. With --mask two samplers share each step,
without it one redraws everything.";

/// `tessera segs-detail`.
#[derive(Debug, Args)]
pub struct SegsDetail {
    /// A picture: PNG, JPEG, TIFF or WebP
    #[arg(value_name = "PICTURE")]
    pub picture: PathBuf,
    /// Where the picture with all segments pasted goes: a file, or a folder with a `/` at the end [default: beside the
    /// picture, as NAME@detail.EXT]
    #[arg(short, long, value_name = "FILE|DIR", conflicts_with = "no_paste")]
    pub output: Option<PathBuf>,
    /// The folder for the redrawn segments: a SEGS document `segs.json`, its pictures and its masks [default: they are
    /// not fetched]
    #[arg(long, value_name = "DIR", required_if_eq("no_paste", "true"))]
    pub segs_output: Option<PathBuf>,
    /// Paste nothing onto the picture, and make the segments only
    #[arg(long)]
    pub no_paste: bool,
    /// What is redrawn.
    #[command(flatten)]
    pub segs: SegsFlags,
    /// What it is redrawn with.
    #[command(flatten)]
    pub pipe: PipeFlags,
    /// A checkpoint that takes the last steps, such as the refiner of SDXL [default: none does]
    #[arg(long, value_name = "FILE|NAME")]
    pub refiner_checkpoint: Option<PathBuf>,
    /// An autoencoder of the refiner's own [default: that of its checkpoint]
    #[arg(long, value_name = "FILE|NAME", requires = "refiner_checkpoint")]
    pub refiner_vae: Option<PathBuf>,
    /// What the refiner is told is wanted [default: --positive]
    #[arg(long, value_name = "PROMPT", requires = "refiner_checkpoint")]
    pub refiner_positive: Option<String>,
    /// What the refiner is told is not wanted [default: --negative]
    #[arg(long, value_name = "PROMPT", requires = "refiner_checkpoint")]
    pub refiner_negative: Option<String>,
    /// How much of the steps the refiner takes, 0 to 1
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = SegsDetailer::default().refiner_ratio,
        requires = "refiner_checkpoint"
    )]
    pub refiner_ratio: f64,
    /// What the shorter side of a segment is enlarged to, in pixels, 64 to 16384
    #[arg(long, value_name = "PIXELS", default_value_t = SegsDetailer::default().guide_size)]
    pub guide_size: f64,
    /// Which side that is: of its bounding box or of its crop region
    #[arg(long, value_enum, default_value_t = GuideSizeFor::Bbox)]
    pub guide_size_for: GuideSizeFor,
    /// What the longer side of a crop may become, in pixels, 64 to 16384
    #[arg(long, value_name = "PIXELS", default_value_t = SegsDetailer::default().max_size)]
    pub max_size: f64,
    /// How it is redrawn.
    #[command(flatten)]
    pub sampler: RedrawSamplerFlags,
    /// Redraw only what a segment's mask holds
    #[arg(long, value_name = "true|false", default_value_t = SegsDetailer::default().noise_mask, action = SET)]
    pub noise_mask: bool,
    /// Redraw segments that are large enough already, too
    #[arg(long, value_name = "true|false", default_value_t = SegsDetailer::default().force_inpaint, action = SET)]
    pub force_inpaint: bool,
    /// How many times all segments are redrawn, each time from the original and with the next seed, 1 to 100
    #[arg(long, value_name = "COUNT", default_value_t = SegsDetailer::default().batch_size)]
    pub batch_size: u32,
    /// How many times a segment is redrawn from its own result, 1 to 10
    #[arg(long, value_name = "COUNT", default_value_t = SegsDetailer::default().cycle)]
    pub cycle: u32,
    /// Edges.
    #[command(flatten)]
    pub inpaint: InpaintFlags,
    /// Softening.
    #[command(flatten)]
    pub feather: FeatherFlags,
    /// How much what is pasted covers, 0 to 255
    #[arg(long, value_name = "VALUE", default_value_t = SegsPaste::default().alpha)]
    pub alpha: u8,
    /// The job.
    #[command(flatten)]
    pub redraw: RedrawFlags,
}

/// `tessera segs-upscale`.
#[derive(Debug, Args)]
pub struct SegsUpscale {
    /// A picture: PNG, JPEG, TIFF or WebP
    #[arg(value_name = "PICTURE")]
    pub picture: PathBuf,
    /// Where the result goes: a file, or a folder with a `/` at the end [default: beside the picture, as NAME@2x.EXT]
    #[arg(short, long, value_name = "FILE|DIR")]
    pub output: Option<PathBuf>,
    /// What is redrawn.
    #[command(flatten)]
    pub segs: SegsFlags,
    /// What it is redrawn with.
    #[command(flatten)]
    pub pipe: PipeFlags,
    /// How many times as large the picture becomes, 0.01 to 100
    #[arg(long, value_name = "TIMES", default_value_t = SegsUpscaler::default().rescale_factor)]
    pub rescale_factor: f64,
    /// How it is resized: nearest, bilinear, bicubic or lanczos [default: bicubic, which is what the reference does
    /// whatever is chosen]
    #[arg(long, value_name = "METHOD")]
    pub resampling_method: Option<String>,
    /// Resize to 8 times the target first
    #[arg(long, value_name = "true|false", default_value_t = SegsUpscaler::default().supersample, action = SET)]
    pub supersample: bool,
    /// Without effect, as in the reference, 8 to 1024
    #[arg(long, value_name = "PIXELS", default_value_t = SegsUpscaler::default().rounding_modulus)]
    pub rounding_modulus: u32,
    /// A network that enlarges the picture first, tile by tile: a weights file, or a model that the farm has [default:
    /// none]
    #[arg(long, value_name = "FILE|NAME")]
    pub upscale_model: Option<PathBuf>,
    /// How it is cut for that.
    #[command(flatten)]
    pub tiling: TilingFlags,
    /// How it is redrawn.
    #[command(flatten)]
    pub sampler: RedrawSamplerFlags,
    /// Edges.
    #[command(flatten)]
    pub inpaint: InpaintFlags,
    /// Softening.
    #[command(flatten)]
    pub feather: FeatherFlags,
    /// The job.
    #[command(flatten)]
    pub redraw: RedrawFlags,
}

/// `tessera latent-upscale`.
#[derive(Debug, Args)]
pub struct LatentUpscale {
    /// A picture, PNG, JPEG, TIFF or WebP; or a latent as ComfyUI saves one, .latent or .safetensors
    #[arg(value_name = "PICTURE|LATENT")]
    pub source: PathBuf,
    /// Where the result goes: a file, or a folder with a `/` at the end [default: beside the source, as NAME@1.5x.EXT]
    #[arg(short, long, value_name = "FILE|DIR")]
    pub output: Option<PathBuf>,
    /// Make the last latent instead of a picture
    #[arg(long, conflicts_with_all = ["format", "bits"])]
    pub latent_output: bool,
    /// How many times as large it becomes, 1 to 100
    #[arg(long, value_name = "TIMES", default_value_t = 1.5)]
    pub upscale_factor: f64,
    /// In how many steps it grows, 1 to 1000: the node's `steps`
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    pub upscale_steps: u32,
    /// How the sizes between grow
    #[arg(long, value_enum, default_value_t = StepMode::Simple)]
    pub step_mode: StepMode,
    /// How pixels are resized: nearest-exact, bilinear, area or lanczos
    #[arg(long, value_name = "METHOD", default_value = "nearest-exact")]
    pub scale_method: String,
    /// Encode and decode in tiles, which takes less memory and changes the picture a little
    #[arg(long)]
    pub use_tiled_vae: bool,
    /// The side of those tiles in pixels, 130 to 4096
    #[arg(long, value_name = "PIXELS", default_value_t = 512)]
    pub tile_size: u32,
    /// A network that enlarges the pixels first: a weights file, or a model that the farm has [default: none]
    #[arg(long, value_name = "FILE|NAME")]
    pub upscale_model: Option<PathBuf>,
    /// What it is redrawn with.
    #[command(flatten)]
    pub pipe: PipeFlags,
    /// How it is redrawn: the base sampler.
    #[command(flatten)]
    pub sampler: RedrawSamplerFlags,
    /// What a sampler of its own redraws: what is white in this picture, of any size [default: one sampler redraws
    /// everything]
    #[arg(long, value_name = "PICTURE")]
    pub mask: Option<PathBuf>,
    /// What is different about the sampler for what the mask holds: any of seed, steps, cfg, sampler_name, scheduler
    /// and denoise [default: nothing]
    #[arg(long, value_name = "NAME=VALUE,…", value_parser = sampler_change, requires = "mask")]
    pub mask_sampler: Option<SamplerChange>,
    /// What is wanted in what the mask holds [default: --positive]
    #[arg(long, value_name = "PROMPT", requires = "mask")]
    pub mask_positive: Option<String>,
    /// What is not wanted in what the mask holds [default: --negative]
    #[arg(long, value_name = "PROMPT", requires = "mask")]
    pub mask_negative: Option<String>,
    /// When one sampler redraws everything instead: none, interleave1 to interleave3, last1, last2, or
    /// interleave1+last1 to interleave3+last1
    #[arg(long, value_name = "SCHEDULE", default_value_t = FullSamplerSchedule::None, requires = "mask")]
    pub full_sample_schedule: FullSamplerSchedule,
    /// What is different about that sampler, as in --mask-sampler [default: nothing]
    #[arg(long, value_name = "NAME=VALUE,…", value_parser = sampler_change, requires = "full_sample_schedule")]
    pub full_sampler: Option<SamplerChange>,
    /// What is wanted where it redraws everything [default: --positive]
    #[arg(long, value_name = "PROMPT", requires = "full_sample_schedule")]
    pub full_positive: Option<String>,
    /// What is not wanted where it redraws everything [default: --negative]
    #[arg(long, value_name = "PROMPT", requires = "full_sample_schedule")]
    pub full_negative: Option<String>,
    /// What a parameter of a sampler becomes until the last step, such as base.denoise=0.3 or mask.cfg=5; may be given
    /// several times [default: what it is]
    #[arg(long = "hook", value_name = "base|mask|full.cfg|denoise|steps=TARGET", value_parser = hook)]
    pub hooks: Vec<(Which, PkHook)>,
    /// The job.
    #[command(flatten)]
    pub redraw: RedrawFlags,
}

//! What one worker renders in one go, and the key under which its result is kept.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    job::Precision,
    nodes::ResamplingMethod,
    picture::{Color, Format, Sample},
    pipe::{BasicPipe, ControlNet, MaskRef, PixelsRef},
    region::{Region, Size},
    resize::{Resampling, ResizeMethod, window},
    sampling::KSampler,
    segs::Prompts,
    tiles::Tiling,
    working::{LATENT_PIXELS, latent_size},
};

/// The revision of the tile-upscaling operation: raised whenever its pixels change, so that stale results are never
/// taken for new ones.
pub const UPSCALE_REVISION: u32 = 1;

/// The revision of the decoders: raised whenever they give other pixels for a file.
pub const DECODE_REVISION: u32 = 2;

/// The revision of blending, resampling and encoding.
pub const ASSEMBLE_REVISION: u32 = 2;

/// The revision of redrawing segments.
pub const REDRAW_REVISION: u32 = 1;

/// The revision of the steps of a latent upscale.
pub const LATENT_REVISION: u32 = 1;

/// The revision of pasting segments and encoding the picture.
pub const PASTE_REVISION: u32 = 1;

/// The revision of the documents that SEGS and latents are delivered as.
pub const DELIVER_REVISION: u32 = 1;

/// Everything about a device and a way of computing on it that can change bytes: its kind, the level of its kernels, and
/// the type of the numbers that are multiplied. A device that can compute in several ways is of several classes.
///
/// Shown as `kind.kernels.dtype`, such as `cpu.fma-1.f32`; the text also names the class's queues.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ComputeClass {
    kind: String,
    kernels: String,
    dtype: String,
}

impl ComputeClass {
    /// A class from its three parts, each of lower-case letters, digits and hyphens.
    pub fn new(kind: &str, kernels: &str, dtype: &str) -> Result<Self, NotAClass> {
        let fits = |part: &str| {
            (1..=40).contains(&part.len())
                && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        };
        if [kind, kernels, dtype].into_iter().all(fits) {
            Ok(Self { kind: kind.to_owned(), kernels: kernels.to_owned(), dtype: dtype.to_owned() })
        } else {
            Err(NotAClass(format!("{kind}.{kernels}.{dtype}")))
        }
    }

    /// The kind of device: `cpu`, `cuda` or `metal`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The numbers that are multiplied, such as `f32`.
    pub fn dtype(&self) -> &str {
        &self.dtype
    }

    /// Whether it computes as exactly as `precision` asks. Every class is fast enough for [`Precision::Fast`].
    pub fn offers(&self, precision: Precision) -> bool {
        match precision {
            Precision::Exact => self.dtype == "f32",
            Precision::Fast => true,
        }
    }
}

impl fmt::Display for ComputeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.kind, self.kernels, self.dtype)
    }
}

/// A text that is not a compute class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a compute class: kind.kernels.dtype is wanted, such as cpu.fma-1.f32")]
pub struct NotAClass(String);

impl FromStr for ComputeClass {
    type Err = NotAClass;

    fn from_str(text: &str) -> Result<Self, NotAClass> {
        let mut parts = text.split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(kind), Some(kernels), Some(dtype), None) => Self::new(kind, kernels, dtype),
            _ => Err(NotAClass(text.chars().take(200).collect())),
        }
    }
}

impl TryFrom<String> for ComputeClass {
    type Error = NotAClass;

    fn try_from(text: String) -> Result<Self, NotAClass> {
        text.parse()
    }
}

impl From<ComputeClass> for String {
    fn from(class: ComputeClass) -> Self {
        class.to_string()
    }
}

/// Who may render a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Workers of this class.
    Class(ComputeClass),
    /// Any worker.
    AnyWorker,
    /// The coordinator itself.
    Coordinator,
}

/// How long tasks take, as far as it matters to who takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pace {
    /// Moments: a worker takes one more than it renders, so that its inputs come in the meantime.
    Short,
    /// So long that a task is taken only by whoever can begin it: what waits in the hands of a busy worker would hold up
    /// all that need it.
    Long,
}

impl Pace {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Short, Self::Long];
}

/// What a group of tasks has in common: all that fixes their results but the one thing in which they differ.
///
/// Its digest is the first half of their result keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum Context {
    /// Tiles of one picture through one network.
    Upscale {
        /// [`UPSCALE_REVISION`] when it was planned.
        revision: u32,
        /// The picture file.
        picture: Digest,
        /// [`DECODE_REVISION`] when it was decoded.
        decode: u32,
        /// The weights.
        upscale_model: Digest,
        /// Output pixels a side per input pixel.
        scale: u32,
        /// How exactly.
        precision: Precision,
        /// Where.
        place: Place,
    },
    /// The finished picture out of its tiles.
    Assemble {
        /// [`ASSEMBLE_REVISION`] when it was planned.
        revision: u32,
        /// The [`Context::Upscale`] of the tiles, as a digest.
        tiles: Digest,
        /// The picture file, from which alpha, colour profile and EXIF come.
        picture: Digest,
        /// The size of the picture.
        size: Size,
        /// How it was cut.
        tiling: Tiling,
        /// Output pixels a side per input pixel.
        scale: u32,
        /// The output's file format.
        format: Format,
        /// The output's channels.
        color: Color,
        /// The output's samples.
        sample: Sample,
        /// Quality of lossy formats.
        quality: u8,
        /// How it is resampled in the end, where it is.
        resize: Option<Resampling>,
    },
    /// Segments of one picture, redrawn.
    Redraw(Box<Redraw>),
    /// Steps of an iterative latent upscale.
    Latent(Box<LatentSteps>),
    /// The finished picture out of a base and what is pasted over it.
    Paste(Box<Paste>),
    /// The finished picture of what a worker decoded.
    Encode {
        /// [`PASTE_REVISION`] when it was planned.
        revision: u32,
        /// Its pixels: rows of `f32` RGB.
        pixels: ResultKey,
        /// Its size.
        size: Size,
        /// How it is written.
        encoding: Encoding,
    },
    /// What is handed over as it is: SEGS with their pictures, or a latent.
    Deliver {
        /// [`DELIVER_REVISION`] when it was planned.
        revision: u32,
        /// Everything that it is made of, as a digest.
        content: Digest,
    },
}

/// The pixels that segments lie on, before any of them is pasted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// The picture file.
    pub picture: Digest,
    /// [`DECODE_REVISION`] when it was decoded.
    pub decode: u32,
    /// The size of the picture.
    pub size: Size,
    /// How the picture becomes the base; `None`: it is the base.
    pub enlarged: Option<Enlarged>,
}

/// How `SEGSUpscalerPipe` enlarges a picture: by a network where there is one, then by the 8-bit resampler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Enlarged {
    /// The tiles of the network's result.
    pub tiles: Option<Tiles>,
    /// The size of the base.
    pub to: Size,
    /// The kernel.
    pub resampling_method: ResamplingMethod,
    /// Resizes to 8 times the target first.
    pub supersample: bool,
}

/// A picture enlarged tile by tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// Their [`Context::Upscale`], as a digest.
    pub context: Digest,
    /// How the picture was cut.
    pub tiling: Tiling,
    /// Output pixels a side per input pixel.
    pub scale: u32,
}

impl Base {
    /// Its size.
    pub fn size(&self) -> Size {
        self.enlarged.as_ref().map_or(self.size, |enlarged| enlarged.to)
    }

    /// The size of what is resampled: the picture, or what the network made of it.
    ///
    /// # Panics
    /// When a side of that does not fit 32 bits, which no plan has.
    pub fn source_size(&self) -> Size {
        let scale = self.enlarged.as_ref().and_then(|enlarged| enlarged.tiles).map_or(1, |tiles| tiles.scale);
        self.size.scaled(scale).expect("a plan has no sides that do not fit 32 bits")
    }

    /// The pixels of [`Base::source_size`] that the pixels of `region` of the base are made of.
    ///
    /// # Panics
    /// When `region` has no pixels or does not lie within the base.
    pub fn window(&self, region: Region) -> Region {
        assert!(region.is_within(self.size()), "{region} of a {} base", self.size());
        let Some(Enlarged { to, resampling_method, supersample, .. }) = self.enlarged else { return region };
        let (support, from) = (resampling_method.support(), self.source_size());
        match to.scaled(8).filter(|_| supersample) {
            Some(between) => window(support, from, between, window(support, between, to, region)),
            None => window(support, from, to, region),
        }
    }
}

/// What the segments of a job have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Redraw {
    /// [`REDRAW_REVISION`] when it was planned.
    pub revision: u32,
    /// What they are cut from.
    pub base: Base,
    /// How many pixels what lies below a segment is feathered by; only where segments see each other.
    pub feather: u32,
    /// What they are redrawn with. Files go by their digests, without names.
    pub basic_pipe: BasicPipe,
    /// What takes the last steps.
    pub refiner: Option<Refiner>,
    /// How. Its seed is 0: each segment has its own.
    pub sampler: KSampler,
    /// How many times a segment is redrawn from its own result, each time with the next seed.
    pub cycle: u32,
    /// Softens the edges of what is redrawn, in pixels of the crop.
    pub noise_mask_feather: u32,
    /// Hides what is redrawn from an inpainting checkpoint.
    pub inpaint_model: bool,
    /// For whom.
    pub node: SegsNode,
    /// Does what the reference does also where it is a mistake.
    pub reference_quirks: bool,
    /// How exactly.
    pub precision: Precision,
    /// Where.
    pub place: Place,
}

/// The node that redraws segments: each has its own way with crops, masks and control pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegsNode {
    /// `SEGSDetailer`: what it gives was cut to bytes, masks of conditionings are cropped to the segment, and control
    /// pictures are kept behind the redrawn pixels.
    Detailer,
    /// `SEGSUpscalerPipe`: pixels are cut to bytes only where they must be resized, masks of conditionings are stretched
    /// over each segment (Q9), and control pictures are not kept.
    Upscaler,
}

/// A second pipe for the last steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refiner {
    /// The pipe. Files go by their digests, without names.
    pub basic_pipe: BasicPipe,
    /// How much of the steps it takes, 0 to 1.
    pub ratio: f64,
}

/// One segment to be redrawn.
///
/// Its result is the redrawn crop as rows of `f32` RGB, little-endian; behind it, where they are kept, the control
/// pictures in the order of its nets, each of the size of its own picture where a net brings one, else `size`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegTask {
    /// Its crop, on the base.
    pub region: Region,
    /// The size at which it is redrawn.
    pub size: Size,
    /// What is redrawn; `None`: all of it.
    pub mask: Option<MaskRef>,
    /// Pixels instead of the crop.
    pub pixels: Option<PixelsRef>,
    /// Prompts instead of the pipe's.
    pub prompts: Prompts,
    /// ControlNets. Files go by their digests, without names.
    pub control_nets: Vec<ControlNet>,
    /// The seed of its first cycle.
    pub seed: u64,
    /// What was pasted before within its crop, the lowest first.
    pub below: Vec<Layer>,
}

/// An earlier segment's result, as it lies over the base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Its pixels.
    pub pixels: LayerPixels,
    /// Where it lies, as large as its pixels; pixels that a segment brought may hang over the base.
    pub region: Region,
    /// Its mask, before it is feathered.
    pub mask: MaskRef,
}

/// The pixels of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerPixels {
    /// The result of a [`SegTask`].
    Result(ResultKey),
    /// The base's own: a segment that kept its pixels.
    Base,
    /// Those that a segment brought.
    Given(PixelsRef),
}

/// What the steps of a latent upscale have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatentSteps {
    /// [`LATENT_REVISION`] when it was planned.
    pub revision: u32,
    /// The weights of the VAE.
    pub vae: Digest,
    /// The side of the tiles in which it encodes and decodes; `None`: whole.
    pub tile_size: Option<u32>,
    /// How pixels are resized.
    pub scale_method: ResizeMethod,
    /// The weights of a network that enlarges the pixels.
    pub upscale_model: Option<Digest>,
    /// Does what the reference does also where it is a mistake.
    pub reference_quirks: bool,
    /// How exactly.
    pub precision: Precision,
    /// Where.
    pub place: Place,
}

/// One link of the chain of a latent upscale.
///
/// Its result is a latent, 4 channels of `f32` rows, little-endian; of [`LatentWork::Decode`] rows of `f32` RGB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatentTask {
    /// What it begins with.
    pub from: LatentFrom,
    /// The size of the latent that it begins with; of [`LatentWork::Encode`], the one that it makes.
    pub size: Size,
    /// What it does.
    pub work: LatentWork,
}

/// What a link begins with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatentFrom {
    /// A picture.
    Picture(Base),
    /// A latent that somebody uploaded, as the results of links are.
    Given(Digest),
    /// The result of the link before.
    Result(ResultKey),
}

/// What a link does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatentWork {
    /// Makes the latent of a picture.
    Encode,
    /// Enlarges the pixels and redraws the latent.
    Step {
        /// The size of the pixels, in pixels; the latent's is an eighth, cut off.
        to: Size,
        /// What redraws it, one after the other.
        runs: Vec<LatentRun>,
        /// The mask of the runs that have one, of any size.
        mask: Option<MaskRef>,
    },
    /// Makes a picture of the latent.
    Decode,
}

/// One run of a sampler in a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatentRun {
    /// How.
    pub sampler: KSampler,
    /// With what. Files go by their digests, without names.
    pub basic_pipe: BasicPipe,
    /// Where.
    pub part: LatentPart,
}

/// Which part of a latent is redrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatentPart {
    /// All of it.
    Whole,
    /// Wherever the mask is not exactly 1.
    NotMasked,
    /// As much as the mask says.
    Masked,
}

/// A picture of a base and layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paste {
    /// [`PASTE_REVISION`] when it was planned.
    pub revision: u32,
    /// What lies below.
    pub base: Base,
    /// What lies over it, the lowest first.
    pub layers: Vec<Layer>,
    /// Softens the edges of the layers, in pixels.
    pub feather: u32,
    /// How much they cover, 0 to 255.
    pub alpha: u8,
    /// How it is written.
    pub encoding: Encoding,
}

/// How a picture is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoding {
    /// The file format.
    pub format: Format,
    /// The channels.
    pub color: Color,
    /// The samples.
    pub sample: Sample,
    /// Quality of lossy formats, 1 to 100.
    pub quality: u8,
}

/// What sets a task apart within its context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// A region: the input of a tile; the whole picture for the coordinator's own tasks.
    Region(Region),
    /// A segment.
    Seg(Box<SegTask>),
    /// A link of a chain.
    Latent(Box<LatentTask>),
}

impl Part {
    /// The region of pixels that it is about: the input of a tile, a segment's crop, the pixels that a link makes.
    pub fn region(&self) -> Region {
        match self {
            Self::Region(region) => *region,
            Self::Seg(seg) => seg.region,
            Self::Latent(link) => {
                let size = link.pixels();
                Region::new(0, 0, size.width, size.height)
            }
        }
    }
}

impl SegTask {
    /// The size of its pixels before and after.
    pub fn crop(&self) -> Size {
        self.pixels.map_or(self.region.size(), |pixels| pixels.size)
    }

    /// The sizes of the control pictures that its nets see, in their order.
    pub fn control_sizes(&self) -> impl Iterator<Item = Size> + '_ {
        self.control_nets.iter().map(|net| net.image.map_or(self.size, |image| image.size))
    }
}

impl LatentTask {
    /// The size of the latent that it makes, or, of [`LatentWork::Decode`], that it makes a picture of.
    pub fn latent(&self) -> Size {
        match &self.work {
            LatentWork::Encode | LatentWork::Decode => self.size,
            LatentWork::Step { to, .. } => latent_size(*to),
        }
    }

    /// The size in pixels of what it makes.
    pub fn pixels(&self) -> Size {
        let Size { width, height } = self.latent();
        Size::new(width.saturating_mul(LATENT_PIXELS), height.saturating_mul(LATENT_PIXELS))
    }
}

/// How many bytes the pixels of a picture take.
fn rgb_bytes(size: Size) -> u64 {
    size.pixels().saturating_mul(3 * size_of::<f32>() as u64)
}

impl Redraw {
    /// How many bytes the result of a segment has.
    pub fn result_bytes(&self, seg: &SegTask) -> u64 {
        let controls = seg.control_sizes().filter(|_| self.node == SegsNode::Detailer);
        controls.map(rgb_bytes).fold(rgb_bytes(seg.crop()), u64::saturating_add)
    }
}

impl LatentTask {
    /// How many bytes its result has.
    pub fn result_bytes(&self) -> u64 {
        match self.work {
            LatentWork::Encode | LatentWork::Step { .. } => {
                self.latent().pixels().saturating_mul(4 * size_of::<f32>() as u64)
            }
            LatentWork::Decode => rgb_bytes(self.pixels()),
        }
    }
}

impl Context {
    /// How many bytes the result of `part` has; `None` where that does not follow from the work.
    pub fn result_bytes(&self, part: &Part) -> Option<u64> {
        match (self, part) {
            (Self::Upscale { scale, .. }, part) => {
                let scale = u64::from(*scale);
                Some(rgb_bytes(part.region().size()).saturating_mul(scale.saturating_mul(scale)))
            }
            (Self::Redraw(redraw), Part::Seg(seg)) => Some(redraw.result_bytes(seg)),
            (Self::Latent(_), Part::Latent(link)) => Some(link.result_bytes()),
            (Self::Assemble { .. } | Self::Paste(_) | Self::Encode { .. } | Self::Deliver { .. }, _) => None,
            (Self::Redraw(_) | Self::Latent(_), _) => None, // no such task is planned
        }
    }

    /// The digest under which results of this context lie together in the store.
    pub fn digest(&self) -> Digest {
        Digest::of_json(&("tessera context 1", self))
    }

    /// The operation's name, for logs and people.
    pub const fn operation(&self) -> &'static str {
        match self {
            Self::Upscale { .. } => "upscale",
            Self::Assemble { .. } => "assemble",
            Self::Redraw(_) => "redraw",
            Self::Latent(_) => "latent",
            Self::Paste(_) => "paste",
            Self::Encode { .. } => "encode",
            Self::Deliver { .. } => "deliver",
        }
    }

    /// How long its tasks take.
    pub const fn pace(&self) -> Pace {
        match self {
            Self::Redraw(_) | Self::Latent(_) => Pace::Long,
            Self::Upscale { .. }
            | Self::Assemble { .. }
            | Self::Paste(_)
            | Self::Encode { .. }
            | Self::Deliver { .. } => Pace::Short,
        }
    }

    /// Who may render tasks of this context.
    pub const fn place(&self) -> &Place {
        match self {
            Self::Upscale { place, .. } => place,
            Self::Redraw(redraw) => &redraw.place,
            Self::Latent(steps) => &steps.place,
            Self::Assemble { .. } | Self::Paste(_) | Self::Encode { .. } | Self::Deliver { .. } => &Place::Coordinator,
        }
    }
}

/// Names a task's result, and so the task: known before anything runs, and equal for equal work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResultKey {
    /// The digest of the task's [`Context`].
    pub context: Digest,
    /// The digest of the context and of what sets the task apart within it.
    pub task: Digest,
}

impl ResultKey {
    /// The key of the task that renders `region` within the context of this digest.
    pub fn new(context: Digest, region: Region) -> Self {
        let Region { x, y, width, height } = region;
        let mut place = [0; 16];
        for (bytes, number) in place.chunks_exact_mut(4).zip([x, y, width, height]) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        Self { context, task: Digest::of_parts(&[&context.0, &place]) }
    }

    /// The key of the task that renders `part` within the context of this digest.
    ///
    /// Of a segment that is its crop, mask, prompts and seed, and the keys of what lies below: change one, and it and
    /// whatever sees its pixels have other keys, and nothing else has.
    pub fn of(context: Digest, part: &Part) -> Self {
        match part {
            Part::Region(region) => Self::new(context, *region),
            Part::Seg(_) | Part::Latent(_) => {
                Self { context, task: Digest::of_json(&("tessera part 1", context, part)) }
            }
        }
    }

    /// Where the result lies in the store.
    pub fn path(&self) -> String {
        format!("{}{}", Self::folder(self.context), self.task)
    }

    /// Where all results of one context lie in the store, with a slash at the end.
    pub fn folder(context: Digest) -> String {
        format!("results/{context}/")
    }
}

impl fmt::Display for ResultKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.context, self.task)
    }
}

/// A text that is not a result key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a result key: two digests with a slash between them are wanted")]
pub struct NotAResultKey(String);

impl FromStr for ResultKey {
    type Err = NotAResultKey;

    fn from_str(text: &str) -> Result<Self, NotAResultKey> {
        let refuse = || NotAResultKey(text.chars().take(200).collect());
        let (context, task) = text.split_once('/').ok_or_else(refuse)?;
        Ok(Self { context: context.parse().map_err(|_| refuse())?, task: task.parse().map_err(|_| refuse())? })
    }
}

impl TryFrom<String> for ResultKey {
    type Error = NotAResultKey;

    fn try_from(text: String) -> Result<Self, NotAResultKey> {
        text.parse()
    }
}

impl From<ResultKey> for String {
    fn from(key: ResultKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(revision: u32, class: &str) -> Context {
        Context::Upscale {
            revision,
            picture: Digest::of(b"picture"),
            decode: 1,
            upscale_model: Digest::of(b"model"),
            scale: 2,
            precision: Precision::Exact,
            place: Place::Class(class.parse().unwrap()),
        }
    }

    #[test]
    fn a_result_key_changes_with_everything_that_can_change_pixels() {
        let key = |revision, class, x| {
            ResultKey::new(context(revision, class).digest(), Region::new(x, 0, 512, 512)).to_string()
        };
        let keys = [
            key(1, "cpu.candle.f32", 0),
            key(2, "cpu.candle.f32", 0),
            key(1, "cpu.candle.bf16", 0),
            key(1, "cpu.candle.f32", 480),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(keys[0], key(1, "cpu.candle.f32", 0));
        assert_eq!(keys[0].parse::<ResultKey>().unwrap().to_string(), keys[0]);
    }

    #[test]
    fn result_keys_stay_what_they_were() {
        // A change here makes every stored result unreachable: raise a revision instead, and only when pixels change.
        let key = ResultKey::new(context(1, "cpu.candle.f32").digest(), Region::new(0, 0, 512, 512));
        assert_eq!((key.context.short(), key.task.short()), (CONTEXT.to_owned(), TASK.to_owned()));
    }
    const CONTEXT: &str = "b5147b7c1e52";
    const TASK: &str = "04fd66fa5c81";

    #[test]
    fn a_class_is_read_as_it_is_shown() {
        let class: ComputeClass = "cpu.fma-1.f32".parse().unwrap();
        assert_eq!(class.to_string(), "cpu.fma-1.f32");
        assert_eq!((class.kind(), class.dtype()), ("cpu", "f32"));
        assert!(class.offers(Precision::Exact) && class.offers(Precision::Fast));
        let fast: ComputeClass = "cpu.amx-1.bf16".parse().unwrap();
        assert!(!fast.offers(Precision::Exact) && fast.offers(Precision::Fast));
        for wrong in ["cpu", "cpu..f32", "CPU.candle.f32", "a.b.c.d", "a.b c.d"] {
            assert!(wrong.parse::<ComputeClass>().is_err(), "{wrong}");
        }
    }
}

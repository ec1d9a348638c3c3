//! What a user submits: the resolved job, which fixes everything that a plan needs.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    nodes::{LatentSource, LatentUpscale, SegsDetail, SegsUpscale},
    picture::{Color, Format, Sample},
    region::Size,
    resize::{Resampling, Resize},
    task::ComputeClass,
    tiles::Tiling,
};

/// Names a job; opaque to users.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(String);

/// A text that cannot name a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a job id: 1 to 64 letters, digits or hyphens are wanted")]
pub struct NotAJobId(String);

impl FromStr for JobId {
    type Err = NotAJobId;

    fn from_str(text: &str) -> Result<Self, NotAJobId> {
        let fits = (1..=64).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        if fits { Ok(Self(text.to_owned())) } else { Err(NotAJobId(text.chars().take(80).collect())) }
    }
}

impl JobId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which jobs go first. Tasks of a higher priority are rendered before those of a lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// When nothing else waits.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before everything else.
    High,
}

impl Priority {
    /// Every priority, the highest first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds from `earlier` to this moment; 0 when that lies in the future.
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A job as the farm keeps it: all that intake fixed, and nothing that changes while it runs but the tiling, which is
/// halved (and recorded) when a device runs out of memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// The caller's own name for this submission; the same one always names the same job.
    pub request_id: String,
    /// When intake accepted it.
    pub created: Timestamp,
    /// Free notes of the submitter's.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
    /// When it is no longer worth finishing: a job still unfinished then fails.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
    /// The W3C `traceparent` of the submission, so that a restarted coordinator continues the same trace.
    #[serde(default)]
    pub traceparent: Option<String>,
    /// Things worth knowing that happened to it, such as tiles that had to become smaller.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What is to be done.
    pub kind: JobKind,
}

/// The kinds of job.
#[allow(clippy::large_enum_variant)] // jobs are few, and what is small of them is the rest
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// `ImageUpscaleWithModel`.
    Upscale(Upscale),
    /// `SEGSDetailer`, and `SEGSPaste` of what it makes.
    SegsDetail(Box<SegsDetail>),
    /// `SEGSUpscalerPipe`.
    SegsUpscale(Box<SegsUpscale>),
    /// An iterative latent upscale.
    LatentUpscale(Box<LatentUpscale>),
}

impl JobKind {
    /// The pictures that it is about, in its order. A latent upscale that begins with a latent has none.
    pub fn pictures(&self) -> &[Picture] {
        match self {
            Self::Upscale(job) => &job.pictures,
            Self::SegsDetail(job) => std::slice::from_ref(&job.picture),
            Self::SegsUpscale(job) => std::slice::from_ref(&job.picture),
            Self::LatentUpscale(job) => match &job.source {
                LatentSource::Picture(picture) => std::slice::from_ref(picture),
                LatentSource::Latent(_) => &[],
            },
        }
    }

    /// What the picture at `index` is called.
    pub fn picture_name(&self, index: usize) -> &str {
        self.pictures().get(index).map_or("latent", |picture| &picture.name)
    }
}

/// `ImageUpscaleWithModel`, resolved: each picture is enlarged by a super-resolution network, tile by tile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Upscale {
    /// The pictures, each enlarged on its own.
    pub pictures: Vec<Picture>,
    /// The network.
    pub upscale_model: Model,
    /// How the pictures are cut.
    pub tiling: Tiling,
    /// How exactly it is computed; [`Upscale::PRECISION`] when the submitter does not say.
    pub precision: Precision,
    /// Which devices may share the work.
    pub reproducibility: Reproducibility,
    /// The class of device that renders the tiles (with [`Reproducibility::Mixed`], the class first thought of).
    pub class: ComputeClass,
    /// How the results are written.
    pub output: Output,
    /// How large the results are; `None`: as the network makes them.
    #[serde(default)]
    pub resize: Option<Resize>,
}

impl Upscale {
    /// How exactly it is computed when the submitter does not say: nobody sees the difference, and everybody the time.
    pub const PRECISION: Precision = Precision::Fast;

    /// The last step of `picture`, if it takes one: a size that the network makes by itself is not resampled.
    ///
    /// `Err` is a picture whose result would have a side that does not fit 32 bits.
    pub fn resampling(&self, picture: &Picture) -> Result<Option<Resampling>, NoSize> {
        let Some(Resize { target, method }) = self.resize else { return Ok(None) };
        let to = target.size_of(picture.size).ok_or(NoSize)?;
        let fits = picture.size.scaled(self.upscale_model.scale) == Some(to);
        Ok((!fits).then_some(Resampling { to, method }))
    }

    /// The size of what is made of `picture`.
    pub fn result_size(&self, picture: &Picture) -> Result<Size, NoSize> {
        match self.resampling(picture)? {
            Some(resampling) => Ok(resampling.to),
            None => picture.size.scaled(self.upscale_model.scale).ok_or(NoSize),
        }
    }
}

/// A side would no longer fit 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a side of the result would have more than 4294967295 pixels")]
pub struct NoSize;

/// A picture as intake found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// What the submitter calls it, such as a file name; used in messages and never as a path.
    pub name: String,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Its size after the EXIF orientation was applied.
    pub size: Size,
    /// Its channels.
    pub color: Color,
    /// Its samples.
    pub sample: Sample,
    /// The file's format.
    pub format: Format,
}

/// The facts about a network that a plan needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// SHA-256 of the weights file.
    pub digest: Digest,
    /// What people call it.
    pub name: String,
    /// The architecture, such as `ESRGAN`.
    pub architecture: String,
    /// How many output pixels a side one input pixel becomes.
    pub scale: u32,
}

/// How exactly a job is computed. The kind of job says which is its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point throughout: equals the reference to float tolerance.
    Exact,
    /// Products of bf16 numbers with f32 sums where the device gains from it: at least 50 dB PSNR against
    /// [`Precision::Exact`]. Where it gains nothing, the same as that.
    Fast,
}

impl Precision {
    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Fast => "fast",
        }
    }
}

/// Whether the same job must give the same bytes wherever it is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reproducibility {
    /// One compute class renders all tasks: the same bytes whoever does it.
    #[default]
    SameClass,
    /// Any device may take any task; bytes may differ in the last digits, and the result keys say so.
    Mixed,
}

/// How results are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The file format; `None` keeps each picture's own.
    pub format: Option<Format>,
    /// The sample type; `None` keeps each picture's own (floating point becomes 16 bits where the format lacks it).
    pub sample: Option<Sample>,
    /// Quality of lossy formats, 1 to 100.
    pub quality: u8,
}

impl Default for Output {
    fn default() -> Self {
        Self { format: None, sample: None, quality: 95 }
    }
}

impl Output {
    /// The format, channels and samples in which `picture` is written.
    pub fn resolve(&self, picture: &Picture) -> (Format, Color, Sample) {
        let format = self.format.unwrap_or(picture.format);
        let color = if format == Format::Jpeg { picture.color.with_alpha(false) } else { picture.color };
        let sample = match (self.sample.unwrap_or(picture.sample), format) {
            (_, Format::Jpeg | Format::Webp) => Sample::U8,
            (Sample::F32, Format::Png) => Sample::U16,
            (sample, _) => sample,
        };
        (format, color, sample)
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Planned; nothing has been rendered yet.
    Queued,
    /// Tasks are being rendered or results put together.
    Running,
    /// All outputs are in the store.
    Succeeded,
    /// A task failed for good; the failures say why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen unless somebody asks for a retry.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Queued | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }

    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Bytes in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Where they lie.
    pub key: String,
    /// Their SHA-256.
    pub digest: Digest,
    /// How many there are.
    pub size_bytes: u64,
}

/// Something that a job made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOutput {
    /// The name of the picture that it was made from.
    pub name: String,
    /// The file.
    pub artifact: Artifact,
    /// Its format.
    pub format: OutputFormat,
    /// Its size, in pixels.
    pub size: Size,
}

/// What the file of an output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OutputFormat {
    /// A picture.
    Picture(Format),
    /// A SEGS document, whose masks and pictures are artifacts that it names.
    Segs,
    /// A latent as ComfyUI saves one.
    Latent,
}

impl OutputFormat {
    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Picture(format) => format.name(),
            Self::Segs => "segs",
            Self::Latent => "latent",
        }
    }
}

impl TryFrom<String> for OutputFormat {
    type Error = <Format as FromStr>::Err;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        match name.as_str() {
            "segs" => Ok(Self::Segs),
            "latent" => Ok(Self::Latent),
            format => format.parse().map(Self::Picture),
        }
    }
}

impl From<OutputFormat> for String {
    fn from(format: OutputFormat) -> Self {
        format.name().to_owned()
    }
}

//! Wire values become domain values here, or say which field is wrong.

pub mod pipe;
pub mod redraw;
pub mod segs;

use domain::{
    check::Invalid,
    digest::Digest,
    job::{
        Artifact, Job, JobKind, JobOutput, JobState, Output, Picture, Precision, Priority, Reproducibility, Timestamp,
        Upscale,
    },
    nodes::{LatentSource, Rendering},
    picture::{Format, Sample},
    pipe::BasicPipe,
    region::Size,
    resize::{Factor, MAX_SIDE, Resize, ResizeMethod, Target},
    task::ComputeClass,
    tiles::Tiling,
};

use crate::v1;

/// A field of a message that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", if field.is_empty() { "message" } else { field })]
pub struct InvalidField {
    /// The field's path, such as `upscale.tile.side`; empty for the message as a whole.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

impl InvalidField {
    /// The field at `path` is wrong because of `why`.
    pub fn new(path: impl Into<String>, why: String) -> Self {
        Self { field: path.into(), why }
    }

    /// Turns an error about the value of the field at `path` into one that names the field.
    pub fn at<E: std::fmt::Display>(path: &str) -> impl Fn(E) -> Self + '_ {
        move |error| Self::new(path, error.to_string())
    }
}

impl From<Invalid> for InvalidField {
    fn from(invalid: Invalid) -> Self {
        let why = invalid.to_string();
        Self { field: invalid.field, why }
    }
}

/// The value of a message field that must be there.
pub fn required<T>(path: &str, value: Option<T>) -> Result<T, InvalidField> {
    value.ok_or_else(|| InvalidField::new(path, "is missing".to_owned()))
}

/// Where a picture comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An uploaded artifact.
    Digest(Digest),
    /// An `s3://` object.
    Uri(String),
}

/// The longest name of a picture, or label of a segment, in bytes.
pub const LONGEST_NAME: usize = 1024;

/// A picture as submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureRequest {
    /// What to call it.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
}

impl PictureRequest {
    /// Reads the picture at `at`; one without a name is called `nameless`.
    fn read(at: &str, nameless: &str, picture: v1::PictureSource) -> Result<Self, InvalidField> {
        let path = |field: &str| format!("{at}.{field}");
        let source = match required(&path("source"), picture.source)? {
            v1::picture_source::Source::Digest(digest) => {
                Source::Digest(digest.parse().map_err(InvalidField::at(&path("digest")))?)
            }
            v1::picture_source::Source::Uri(uri) if uri.starts_with("s3://") => Source::Uri(uri),
            v1::picture_source::Source::Uri(uri) => {
                return Err(InvalidField::new(path("uri"), format!("`{uri}` is not an s3:// URI")));
            }
        };
        if picture.name.len() > LONGEST_NAME {
            return Err(InvalidField::new(path("name"), format!("is longer than {LONGEST_NAME} bytes")));
        }
        let name = if picture.name.is_empty() { nameless.to_owned() } else { picture.name };
        Ok(Self { name, source })
    }
}

/// An upscale job as submitted, checked field by field and not yet resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct UpscaleRequest {
    /// The pictures.
    pub pictures: Vec<PictureRequest>,
    /// Name or digest of the model; `None`: a built-in one.
    pub upscale_model: Option<String>,
    /// How pictures are cut.
    pub tiling: TilingRequest,
    /// How exactly.
    pub precision: Precision,
    /// Which devices may share the work.
    pub reproducibility: Reproducibility,
    /// The class asked for, if any.
    pub class: Option<ComputeClass>,
    /// How results are written.
    pub output: Output,
    /// How large results are; `None`: as the network makes them.
    pub resize: Option<Resize>,
}

/// The tiling asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TilingRequest {
    /// Exactly this one.
    Fixed(Tiling),
    /// A side of the server's choice with this overlap.
    Auto {
        /// In pixels.
        overlap: u32,
    },
}

/// The reference's tile: 512 pixels.
pub const DEFAULT_TILE_SIDE: u32 = 512;
/// The reference's overlap: 32 pixels.
pub const DEFAULT_TILE_OVERLAP: u32 = 32;

impl TryFrom<v1::UpscaleJob> for UpscaleRequest {
    type Error = InvalidField;

    fn try_from(job: v1::UpscaleJob) -> Result<Self, InvalidField> {
        if job.pictures.is_empty() {
            return Err(InvalidField::new("upscale.pictures", "names no picture".to_owned()));
        }
        let pictures = job.pictures.into_iter().enumerate().map(|(index, picture)| {
            PictureRequest::read(&format!("upscale.pictures[{index}]"), &format!("picture {}", index + 1), picture)
        });
        let pictures = pictures.collect::<Result<_, InvalidField>>()?;
        Ok(Self {
            pictures,
            upscale_model: Some(job.upscale_model).filter(|model| !model.is_empty()),
            tiling: tiling_from_wire("upscale.tile", job.tile.unwrap_or_default())?,
            precision: precision_from_wire("upscale.precision", job.precision)?.unwrap_or(Upscale::PRECISION),
            reproducibility: reproducibility_from_wire("upscale.reproducibility", job.reproducibility)?,
            class: class_from_wire("upscale.compute_class", &job.compute_class)?,
            output: output_from_wire("upscale.output", job.output.unwrap_or_default())?,
            resize: job.resize.map(TryInto::try_into).transpose()?,
        })
    }
}

/// Reads the compute class that is asked for, if one is.
fn class_from_wire(path: &str, class: &str) -> Result<Option<ComputeClass>, InvalidField> {
    match class {
        "" => Ok(None),
        class => class.parse().map(Some).map_err(InvalidField::at(path)),
    }
}

/// Reads the tiling at `at`.
fn tiling_from_wire(at: &str, tile: v1::TileOptions) -> Result<TilingRequest, InvalidField> {
    let refuse = |field: &str, why: String| Err(InvalidField::new(format!("{at}.{field}"), why));
    let overlap = tile.overlap.unwrap_or(DEFAULT_TILE_OVERLAP);
    let side = if tile.side == 0 { DEFAULT_TILE_SIDE } else { tile.side };
    if tile.auto {
        return match overlap {
            0..128 => Ok(TilingRequest::Auto { overlap }),
            _ => refuse("overlap", format!("is {overlap}, and 127 is the most with auto")),
        };
    }
    if !(16..=65_536).contains(&side) {
        return refuse("side", format!("is {side}, and 16 to 65536 is wanted"));
    }
    if overlap >= side {
        return refuse("overlap", format!("is {overlap}, and must be less than the tile's side, {side}"));
    }
    Ok(TilingRequest::Fixed(Tiling { side, overlap }))
}

/// Reads at `at` how pictures are written.
fn output_from_wire(at: &str, output: v1::OutputOptions) -> Result<Output, InvalidField> {
    let path = |field: &str| format!("{at}.{field}");
    let refuse = |field: &str, why: String| Err(InvalidField::new(path(field), why));
    let format = match output.format.as_str() {
        "" => None,
        format => Some(format.parse::<Format>().map_err(InvalidField::at(&path("format")))?),
    };
    let sample = match output.bits {
        0 => None,
        8 => Some(Sample::U8),
        16 => Some(Sample::U16),
        bits => return refuse("bits", format!("is {bits}, and 8 or 16 is wanted")),
    };
    let quality = match output.quality {
        0 => Output::default().quality,
        quality @ 1..=100 => quality as u8,
        quality => return refuse("quality", format!("is {quality}, and 1 to 100 is wanted")),
    };
    if sample == Some(Sample::U16) && matches!(format, Some(Format::Jpeg | Format::Webp)) {
        return refuse("bits", format!("is 16, and {} has 8 bits only", output.format));
    }
    Ok(Output { format, sample, quality })
}

impl TryFrom<v1::ResizeOptions> for Resize {
    type Error = InvalidField;

    fn try_from(resize: v1::ResizeOptions) -> Result<Self, InvalidField> {
        use v1::resize_options::Target as Wire;
        let side = |path: &str, side| match side {
            1..=MAX_SIDE => Ok(side),
            _ => Err(InvalidField::new(path, format!("is {side}, and 1 to {MAX_SIDE} is wanted"))),
        };
        let target = match required("upscale.resize.target", resize.target)? {
            Wire::Factor(factor) => {
                Target::Factor(Factor::new(factor).map_err(InvalidField::at("upscale.resize.factor"))?)
            }
            Wire::Width(width) => Target::Width(side("upscale.resize.width", width)?),
            Wire::Height(height) => Target::Height(side("upscale.resize.height", height)?),
        };
        let method = match known("upscale.resize.method", resize.method)? {
            v1::ResizeMethod::Unspecified => ResizeMethod::default(),
            v1::ResizeMethod::NearestExact => ResizeMethod::NearestExact,
            v1::ResizeMethod::Bilinear => ResizeMethod::Bilinear,
            v1::ResizeMethod::Area => ResizeMethod::Area,
            v1::ResizeMethod::Bicubic => ResizeMethod::Bicubic,
            v1::ResizeMethod::Lanczos => ResizeMethod::Lanczos,
        };
        Ok(Self { target, method })
    }
}

/// Writes the size that is asked for.
pub fn resize_to_wire(resize: Resize) -> v1::ResizeOptions {
    use v1::resize_options::Target as Wire;
    let target = match resize.target {
        Target::Factor(factor) => Wire::Factor(factor.get()),
        Target::Width(width) => Wire::Width(width),
        Target::Height(height) => Wire::Height(height),
    };
    let method = match resize.method {
        ResizeMethod::NearestExact => v1::ResizeMethod::NearestExact,
        ResizeMethod::Bilinear => v1::ResizeMethod::Bilinear,
        ResizeMethod::Area => v1::ResizeMethod::Area,
        ResizeMethod::Bicubic => v1::ResizeMethod::Bicubic,
        ResizeMethod::Lanczos => v1::ResizeMethod::Lanczos,
    };
    v1::ResizeOptions { target: Some(target), method: method.into() }
}

/// Reads an enumeration value; a number that this version does not know is an error that names the field.
fn known<E: TryFrom<i32>>(path: &str, value: i32) -> Result<E, InvalidField> {
    E::try_from(value).map_err(|_| InvalidField::new(path, format!("{value} is not a known value")))
}

/// Reads a precision; `None` when it is unspecified.
pub fn precision_from_wire(path: &str, value: i32) -> Result<Option<Precision>, InvalidField> {
    Ok(match known(path, value)? {
        v1::Precision::Unspecified => None,
        v1::Precision::Exact => Some(Precision::Exact),
        v1::Precision::Fast => Some(Precision::Fast),
    })
}

/// Writes a precision.
pub fn precision_to_wire(precision: Precision) -> v1::Precision {
    match precision {
        Precision::Exact => v1::Precision::Exact,
        Precision::Fast => v1::Precision::Fast,
    }
}

fn reproducibility_from_wire(path: &str, value: i32) -> Result<Reproducibility, InvalidField> {
    Ok(match known(path, value)? {
        v1::Reproducibility::Unspecified | v1::Reproducibility::SameClass => Reproducibility::SameClass,
        v1::Reproducibility::Mixed => Reproducibility::Mixed,
    })
}

/// Reads a priority; unspecified is normal.
pub fn priority_from_wire(path: &str, value: i32) -> Result<Priority, InvalidField> {
    Ok(match known(path, value)? {
        v1::Priority::Unspecified | v1::Priority::Normal => Priority::Normal,
        v1::Priority::Low => Priority::Low,
        v1::Priority::High => Priority::High,
    })
}

fn priority_to_wire(priority: Priority) -> v1::Priority {
    match priority {
        Priority::Low => v1::Priority::Low,
        Priority::Normal => v1::Priority::Normal,
        Priority::High => v1::Priority::High,
    }
}

/// Reads a job state; unspecified is an error.
pub fn state_from_wire(path: &str, value: i32) -> Result<JobState, InvalidField> {
    Ok(match known(path, value)? {
        v1::JobState::Unspecified => return Err(InvalidField::new(path, "is not specified".to_owned())),
        v1::JobState::Queued => JobState::Queued,
        v1::JobState::Running => JobState::Running,
        v1::JobState::Succeeded => JobState::Succeeded,
        v1::JobState::Failed => JobState::Failed,
        v1::JobState::Cancelled => JobState::Cancelled,
    })
}

/// Writes a job state.
pub fn state_to_wire(state: JobState) -> v1::JobState {
    match state {
        JobState::Queued => v1::JobState::Queued,
        JobState::Running => v1::JobState::Running,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
    }
}

/// Reads a moment; one before 1970 counts as 1970.
pub fn timestamp_from_wire(time: prost_types::Timestamp) -> Timestamp {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    let millis = u64::try_from(time.nanos / 1_000_000).unwrap_or(0);
    Timestamp(seconds.saturating_mul(1000).saturating_add(millis))
}

/// Writes a moment.
pub fn timestamp_to_wire(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(time.0 / 1000).unwrap_or(i64::MAX),
        nanos: (time.0 % 1000) as i32 * 1_000_000,
    }
}

/// Writes a span of milliseconds.
pub fn millis_to_wire(millis: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: (millis % 1000) as i32 * 1_000_000,
    }
}

/// Writes what is known of a job from the start; state, progress and results are the caller's to add.
pub fn job_to_wire(job: &Job) -> v1::Job {
    let kind = match &job.kind {
        JobKind::Upscale(upscale) => v1::job::Kind::Upscale(upscale_to_wire(upscale)),
        JobKind::SegsDetail(job) => {
            let facts = (&job.basic_pipe, &job.rendering, job.segs.len());
            v1::job::Kind::SegsDetail(redraw_to_wire(Some(&job.picture), facts, job.picture.size))
        }
        JobKind::SegsUpscale(job) => {
            let facts = (&job.basic_pipe, &job.rendering, job.segs.len());
            v1::job::Kind::SegsUpscale(redraw_to_wire(
                Some(&job.picture),
                facts,
                job.size().unwrap_or(job.picture.size),
            ))
        }
        JobKind::LatentUpscale(job) => {
            let facts = (job.samplers.basic_pipe(), &job.rendering, 0);
            v1::job::Kind::LatentUpscale(redraw_to_wire(job_picture(&job.source), facts, job.result()))
        }
    };
    v1::Job {
        id: job.id.to_string(),
        request_id: job.request_id.clone(),
        labels: job.labels.clone().into_iter().collect(),
        priority: priority_to_wire(job.priority).into(),
        created_at: Some(timestamp_to_wire(job.created)),
        deadline: job.deadline.map(timestamp_to_wire),
        // 00-<trace id>-<span id>-<flags>
        trace_id: job.traceparent.as_deref().and_then(|parent| parent.split('-').nth(1)).unwrap_or_default().to_owned(),
        kind: Some(kind),
        ..v1::Job::default()
    }
}

fn picture_to_wire(picture: &Picture) -> v1::ResolvedPicture {
    v1::ResolvedPicture {
        name: picture.name.clone(),
        digest: picture.digest.to_string(),
        width: picture.size.width,
        height: picture.size.height,
    }
}

fn reproducibility_to_wire(reproducibility: Reproducibility) -> v1::Reproducibility {
    match reproducibility {
        Reproducibility::SameClass => v1::Reproducibility::SameClass,
        Reproducibility::Mixed => v1::Reproducibility::Mixed,
    }
}

fn job_picture(source: &LatentSource) -> Option<&Picture> {
    match source {
        LatentSource::Picture(picture) => Some(picture),
        LatentSource::Latent(_) => None,
    }
}

/// What a job that redraws pictures was resolved to: `facts` are its pipe, how it is rendered and how many segments it has.
fn redraw_to_wire(
    picture: Option<&Picture>,
    (pipe, rendering, segs): (&BasicPipe, &Rendering, usize),
    size: Size,
) -> v1::ResolvedRedraw {
    let checkpoint = &pipe.checkpoint;
    v1::ResolvedRedraw {
        picture: picture.map(picture_to_wire),
        checkpoint: checkpoint.weights.name.clone(),
        checkpoint_digest: checkpoint.weights.digest.to_string(),
        family: checkpoint.family.name().to_owned(),
        segs: u32::try_from(segs).unwrap_or(u32::MAX),
        precision: precision_to_wire(rendering.precision).into(),
        reproducibility: reproducibility_to_wire(rendering.reproducibility).into(),
        compute_class: rendering.class.to_string(),
        width: size.width,
        height: size.height,
    }
}

fn upscale_to_wire(upscale: &Upscale) -> v1::ResolvedUpscale {
    v1::ResolvedUpscale {
        pictures: upscale.pictures.iter().map(picture_to_wire).collect(),
        upscale_model: upscale.upscale_model.name.clone(),
        model_digest: upscale.upscale_model.digest.to_string(),
        scale: upscale.upscale_model.scale,
        tile_side: upscale.tiling.side,
        tile_overlap: upscale.tiling.overlap,
        precision: precision_to_wire(upscale.precision).into(),
        reproducibility: reproducibility_to_wire(upscale.reproducibility).into(),
        compute_class: upscale.class.to_string(),
        resize: upscale.resize.map(resize_to_wire),
    }
}

/// Writes an artifact.
pub fn artifact_to_wire(artifact: &Artifact) -> v1::Artifact {
    v1::Artifact { key: artifact.key.clone(), digest: artifact.digest.to_string(), size_bytes: artifact.size_bytes }
}

/// Writes what a job made.
pub fn output_to_wire(output: &JobOutput) -> v1::JobOutput {
    v1::JobOutput {
        name: output.name.clone(),
        artifact: Some(artifact_to_wire(&output.artifact)),
        format: output.format.name().to_owned(),
        width: output.size.width,
        height: output.size.height,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> v1::UpscaleJob {
        let source = v1::picture_source::Source::Digest(Digest::of(b"").to_string());
        v1::UpscaleJob {
            pictures: vec![v1::PictureSource { name: String::new(), source: Some(source) }],
            upscale_model: "m".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let request = UpscaleRequest::try_from(job()).unwrap();
        assert_eq!(request.tiling, TilingRequest::Fixed(Tiling { side: 512, overlap: 32 }));
        assert_eq!(request.precision, Precision::Fast);
        assert_eq!(request.output, Output::default());
        assert_eq!(request.pictures[0].name, "picture 1");
        assert_eq!((request.upscale_model.as_deref(), request.resize), (Some("m"), None));
        let unnamed = v1::UpscaleJob { upscale_model: String::new(), ..job() };
        assert_eq!(UpscaleRequest::try_from(unnamed).unwrap().upscale_model, None);
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut v1::UpscaleJob), field: &str) {
        let mut job = job();
        change(&mut job);
        assert_eq!(UpscaleRequest::try_from(job).unwrap_err().field, field);
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path() {
        check(|job| job.pictures.clear(), "upscale.pictures");
        check(|job| job.pictures[0].source = None, "upscale.pictures[0].source");
        let uri = |uri: &str| Some(v1::picture_source::Source::Uri(uri.to_owned()));
        check(|job| job.pictures[0].source = uri("file:///etc/passwd"), "upscale.pictures[0].uri");
        check(|job| job.precision = 99, "upscale.precision");
        check(|job| job.compute_class = "gpu".to_owned(), "upscale.compute_class");
        let tile = |side, overlap| Some(v1::TileOptions { side, overlap: Some(overlap), auto: false });
        check(|job| job.tile = tile(64, 64), "upscale.tile.overlap");
        check(|job| job.tile = tile(8, 0), "upscale.tile.side");
        let output = |format: &str, bits, quality| Some(v1::OutputOptions { format: format.to_owned(), bits, quality });
        check(|job| job.output = output("bmp", 0, 0), "upscale.output.format");
        check(|job| job.output = output("jpeg", 16, 0), "upscale.output.bits");
        check(|job| job.output = output("", 0, 101), "upscale.output.quality");
        use v1::resize_options::Target as Wire;
        let resize = |target| Some(v1::ResizeOptions { target, method: 0 });
        check(|job| job.resize = resize(None), "upscale.resize.target");
        check(|job| job.resize = resize(Some(Wire::Factor(0.0))), "upscale.resize.factor");
        check(|job| job.resize = resize(Some(Wire::Factor(f64::NAN))), "upscale.resize.factor");
        check(|job| job.resize = resize(Some(Wire::Width(0))), "upscale.resize.width");
        check(|job| job.resize = resize(Some(Wire::Height(1_000_001))), "upscale.resize.height");
        let of_method = |method| Some(v1::ResizeOptions { target: Some(Wire::Width(9)), method });
        check(|job| job.resize = of_method(9), "upscale.resize.method");
    }

    #[test]
    fn a_size_that_is_asked_for_is_shown_as_it_was_asked() {
        for target in [Target::Factor(Factor::new(1.5).unwrap()), Target::Width(640), Target::Height(1)] {
            for method in ResizeMethod::ALL {
                let resize = Resize { target, method };
                assert_eq!(Resize::try_from(resize_to_wire(resize)), Ok(resize));
            }
        }
        let wire = v1::ResizeOptions { target: Some(v1::resize_options::Target::Factor(3.0)), method: 0 };
        assert_eq!(Resize::try_from(wire).unwrap().method, ResizeMethod::Lanczos);
    }
}

//! Intake: what a user asks for becomes a resolved job, or is refused with the field that is to blame.
//!
//! Pictures are decoded here, once, into row bands in the store, so that a damaged file is refused at the door and a
//! worker reads only its window. Models are identified here. Everything is stored before the job is.
//!
//! What jobs have in common is here, and upscale jobs are; `redraw` has the others, `pipe` their networks, `segs` what
//! they redraw, and `whole` the masks and small pictures that they bring.

mod pipe;
mod redraw;
mod segs;
mod whole;

use std::{
    collections::HashMap,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use domain::{
    digest::Digest,
    job::{Job, JobId, JobKind, JobOutput, Output, Picture, Precision, Upscale},
    layout,
    picture::Format,
    plan::{Plan, plan},
    region::Size,
    resize::Resize,
    task::{ComputeClass, Place, ResultKey},
};
use futures::{StreamExt as _, TryStreamExt as _};
use imaging::{
    decode::{DecodeError, decode_rows, probe},
    encode::check_encodable,
    picture::Limits,
    raster::{Band, BandWriter, RasterInfo},
};
use proto::{
    convert::{PictureRequest, Source, TilingRequest, UpscaleRequest, priority_from_wire, timestamp_from_wire},
    v1,
};
use serde::{Deserialize, Serialize};
use store::{ByteStream, Key, Store};
use tempfile::NamedTempFile;
use tokio::sync::Semaphore;
use tracing::{Instrument as _, info_span};
use uuid::Uuid;

use pipe::Network;

use crate::{
    auto_tile,
    catalog::{Catalog, builtin_for},
    desk::now,
    records::{get_json, put_json},
    refusal::{Refusal, chain},
    roster::Roster,
};

/// How long a job that names no class waits for a first worker to be heard of.
const WORKERS_HEARD_WITHIN: Duration = Duration::from_secs(5);

/// How many bands are on their way to the store while the next is decoded.
const BANDS_IN_TRANSFER: usize = 4;

/// What is kept of a decoded picture beside its bands. A reader of bands needs only the flattened [`RasterInfo`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RasterRecord {
    /// The shape of the bands.
    #[serde(flatten)]
    pub raster: RasterInfo,
    /// The file's format.
    pub format: Format,
    /// Whether an ICC profile is stored beside it.
    pub has_icc: bool,
    /// Whether an EXIF block is stored beside it.
    pub has_exif: bool,
}

/// Turns requests into jobs.
#[derive(Debug)]
pub struct Intake {
    /// Where pictures, models and results lie.
    pub store: Arc<dyn Store>,
    /// What the farm knows about models.
    pub catalog: Arc<Catalog>,
    /// Who renders.
    pub roster: Arc<Roster>,
    /// How large pictures may be.
    pub limits: Limits,
    /// Where temporary files lie.
    pub scratch: PathBuf,
    /// The class of jobs when no worker is there yet.
    pub default_class: Option<ComputeClass>,
    /// The largest file that is fetched.
    pub max_upload_bytes: u64,
    /// Pictures that are fetched and decoded at once.
    pub decoding: Semaphore,
}

/// A job with its plan and what of it is done already.
#[derive(Debug)]
pub struct Planned {
    /// The job.
    pub job: Job,
    /// Its plan.
    pub plan: Arc<Plan>,
    /// Tasks whose results are in the store.
    pub found: Vec<u32>,
    /// The finished pictures among these.
    pub outputs: Vec<(u32, JobOutput)>,
}

/// The id of the job that a request names. An empty request id names a new job each time.
pub fn job_id(namespace: &str, request_id: &str) -> JobId {
    let uuid = if request_id.is_empty() {
        Uuid::new_v4()
    } else {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("tessera {namespace} {request_id}").as_bytes())
    };
    uuid.to_string().parse().expect("a UUID is a job id")
}

impl Intake {
    /// Resolves a request into the job `id`.
    pub async fn resolve(
        &self,
        id: JobId,
        request: v1::CreateJobRequest,
        traceparent: Option<String>,
    ) -> Result<Job, Refusal> {
        check_labels(&request)?;
        let priority = priority_from_wire("priority", request.priority)?;
        let deadline = request.deadline.map(timestamp_from_wire);
        if deadline.is_some_and(|deadline| deadline <= now()) {
            return Err(Refusal::field("deadline", "lies in the past"));
        }
        use v1::create_job_request::Kind;
        let (kind, warnings) = match request.kind {
            None => return Err(Refusal::field("kind", "is missing: say what to do, such as `upscale`")),
            Some(Kind::Upscale(job)) => (JobKind::Upscale(self.resolve_upscale(job.try_into()?).await?), Vec::new()),
            Some(Kind::SegsDetail(job)) => self.segs_detail(job.try_into()?).await?,
            Some(Kind::SegsUpscale(job)) => self.segs_upscale(job.try_into()?).await?,
            Some(Kind::LatentUpscale(job)) => self.latent_upscale(job.try_into()?).await?,
        };
        Ok(Job {
            id,
            request_id: request.request_id,
            created: now(),
            labels: request.labels.into_iter().collect(),
            priority,
            deadline,
            traceparent,
            warnings,
            kind,
        })
    }

    async fn resolve_upscale(&self, request: UpscaleRequest) -> Result<Upscale, Refusal> {
        // A named model first: it is quickly looked up, and decoding pictures for a job that cannot be is a waste.
        let field = "upscale.upscale_model";
        let named = match &request.upscale_model {
            Some(name) => Some(self.network(field, name).await?),
            None => None,
        };
        let class = self.class_for("upscale.compute_class", request.class.clone(), request.precision).await?;
        let mut pictures = Vec::with_capacity(request.pictures.len());
        for (index, PictureRequest { name, source }) in request.pictures.into_iter().enumerate() {
            let span = info_span!("decode", picture = %name);
            let field = format!("upscale.pictures[{index}]");
            pictures.push(self.picture(&field, name, source).instrument(span).await?);
        }
        let Network { model, facts, .. } = match named {
            Some(network) => network,
            None => self.network(field, builtin_for(scale_needed(request.resize, &pictures)).name).await?,
        };
        for (index, picture) in pictures.iter().enumerate() {
            let field = format!("upscale.pictures[{index}]");
            self.check_output(&field, picture, model.scale, &request.output, request.resize)?;
        }
        let tiling = match request.tiling {
            TilingRequest::Fixed(tiling) => tiling,
            TilingRequest::Auto { overlap } => auto_tile::tiling(&facts, self.roster.memory_of(&class, now()), overlap),
        };
        Ok(Upscale {
            pictures,
            upscale_model: model,
            tiling,
            precision: request.precision,
            reproducibility: request.reproducibility,
            class,
            output: request.output,
            resize: request.resize,
        })
    }

    /// Refuses an output that could not be written, before work is spent on it.
    fn check_output(
        &self,
        field: &str,
        picture: &Picture,
        scale: u32,
        output: &Output,
        resize: Option<Resize>,
    ) -> Result<(), Refusal> {
        // What does not even fit 32 bits is the planner's to refuse.
        let Some(enlarged) = picture.size.scaled(scale) else { return Ok(()) };
        let Some(size) = resize.map_or(Some(enlarged), |resize| resize.target.size_of(picture.size)) else {
            return Ok(());
        };
        self.limits
            .check_size(enlarged.width, enlarged.height)
            .map_err(|error| Refusal::field(field, format!("enlarged {scale} times it is {enlarged}: {error}")))?;
        self.limits
            .check_size(size.width, size.height)
            .map_err(|error| Refusal::field("upscale.resize", format!("makes it {size}: {error}")))?;
        let (format, color, sample) = output.resolve(picture);
        check_encodable(format, size.width, size.height, color, sample, &self.limits)
            .map_err(|error| Refusal::field("upscale.output.format", chain(&error)))
    }

    /// The class that renders a job of `precision`: the one that `field` names, or the best.
    async fn class_for(
        &self,
        field: &str,
        class: Option<ComputeClass>,
        precision: Precision,
    ) -> Result<ComputeClass, Refusal> {
        if let Some(class) = class {
            return if class.offers(precision) {
                Ok(class)
            } else {
                let why = format!("`{class}` does not compute as exactly as the precision asks");
                Err(Refusal::field(field, why))
            };
        }
        let default = self.default_class.clone().filter(|class| class.offers(precision));
        if let Some(class) = self.roster.best_class(precision, now()).or(default) {
            return Ok(class);
        }
        // A coordinator that has just started has not heard its workers yet.
        let heard = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if let Some(class) = self.roster.best_class(precision, now()) {
                    return class;
                }
            }
        };
        tokio::time::timeout(WORKERS_HEARD_WITHIN, heard).await.map_err(|_| Refusal::Precondition {
            why: "no worker is there that computes as exactly as the job asks; start one, name a `compute_class` to \
                  wait for, or configure `default_class`"
                .to_owned(),
        })
    }

    /// Finds a picture's facts, decoding it into the store unless that was done before.
    async fn picture(&self, field: &str, name: String, source: Source) -> Result<Picture, Refusal> {
        let _turn = self.decoding.acquire().await; // only closed when the process ends
        let (digest, file) = match source {
            Source::Digest(digest) => (digest, None),
            source @ Source::Uri(_) => {
                let (digest, file) = self.file(field, source).await?;
                (digest, Some(file))
            }
        };
        let record = match self.decoded(digest).await? {
            Some(record) => {
                let RasterInfo { width, height, .. } = record.raster;
                self.limits.check_size(width, height).map_err(|error| Refusal::field(field, error.to_string()))?;
                record
            }
            None => {
                let file = match file {
                    Some(file) => file,
                    None => self.fetch_artifact(&format!("{field}.digest"), digest).await?,
                };
                self.decode(field, &name, digest, file.path()).await?
            }
        };
        let RasterInfo { width, height, color, sample, .. } = record.raster;
        Ok(Picture { name, digest, size: Size { width, height }, color, sample, format: record.format })
    }

    /// Brings a submitted file into a temporary one.
    async fn file(&self, field: &str, source: Source) -> Result<(Digest, NamedTempFile), Refusal> {
        match source {
            Source::Digest(digest) => Ok((digest, self.fetch_artifact(&format!("{field}.digest"), digest).await?)),
            Source::Uri(uri) => {
                let field = format!("{field}.uri");
                let object = store::s3_object(&uri).await.map_err(Refusal::of_store(&field, &format!("`{uri}`")))?;
                self.check_file(&field, object.size_bytes)?;
                let (file, digest) = self.fetch(object.bytes).await?;
                Ok((digest, file))
            }
        }
    }

    /// What is known of a decoded picture, if it is still there: the last band is looked for, since a rule of the
    /// store's may have removed old ones.
    async fn decoded(&self, digest: Digest) -> Result<Option<RasterRecord>, Refusal> {
        let Some(record) = get_json::<RasterRecord>(&*self.store, &layout::raster_info(digest)).await? else {
            return Ok(None);
        };
        for band in [0, record.raster.bands - 1] {
            let meta = self.store.head(&Key::new(layout::raster_band(digest, band))?).await?;
            if meta.is_none_or(|meta| meta.size_bytes != record.raster.band_len(band)) {
                return Ok(None);
            }
        }
        Ok(Some(record))
    }

    /// Decodes the pictures of a job anew whose bands have vanished, as far as their files are still there.
    pub async fn restore(&self, job: &Job) -> Result<(), Refusal> {
        for (index, picture) in job.kind.pictures().iter().enumerate() {
            let field = format!("pictures[{index}]");
            let restored = self.picture(&field, picture.name.clone(), Source::Digest(picture.digest)).await;
            if let Err(error @ (Refusal::NotFound { .. } | Refusal::Field(_))) = restored {
                // The results may all be there, or the task that needs the picture says that it is gone.
                tracing::warn!(job.id = %job.id, error = chain(&error), "a picture cannot be decoded anew");
            } else {
                restored?;
            }
        }
        Ok(())
    }

    /// Brings an uploaded artifact into a temporary file, and makes sure that its bytes are those it is named by.
    pub async fn fetch_artifact(&self, field: &str, digest: Digest) -> Result<NamedTempFile, Refusal> {
        let what = format!("artifact {digest}");
        let missing = Refusal::of_store(field, &what);
        let (size_bytes, bytes) = self.store.get_stream(&Key::new(layout::artifact(digest))?).await.map_err(missing)?;
        self.check_file(field, size_bytes)?;
        let (file, seen) = self.fetch(bytes).await?;
        if seen != digest {
            // A presigned upload is not checked on its way in.
            let _ = self.store.delete(&Key::new(layout::artifact(digest))?).await;
            let why =
                format!("the uploaded bytes have digest {seen}, not {digest}; they were removed: upload them again");
            return Err(Refusal::field(field, why));
        }
        Ok(file)
    }

    fn check_file(&self, field: &str, size_bytes: u64) -> Result<(), Refusal> {
        if size_bytes > self.max_upload_bytes {
            let why = format!("{size_bytes} bytes are more than `max_upload_bytes` allows, {}", self.max_upload_bytes);
            return Err(Refusal::field(field, why));
        }
        Ok(())
    }

    async fn fetch(&self, mut bytes: ByteStream) -> Result<(NamedTempFile, Digest), Refusal> {
        let scratch_failed = |source: std::io::Error| scratch_refusal(&self.scratch, source);
        let mut file = NamedTempFile::new_in(&self.scratch).map_err(scratch_failed)?;
        let mut hasher = store::Digester::default();
        while let Some(piece) = bytes.try_next().await? {
            hasher.update(&piece);
            // Pieces are small and the page cache takes them: blocking for so short a time is cheaper than a hop.
            file.write_all(&piece).map_err(scratch_failed)?;
        }
        file.flush().map_err(scratch_failed)?;
        let digest = hasher.finish().parse().expect("a digest is well formed");
        Ok((file, digest))
    }

    /// Decodes a picture file into bands in the store.
    async fn decode(&self, field: &str, name: &str, digest: Digest, path: &Path) -> Result<RasterRecord, Refusal> {
        let (limits, path) = (self.limits, path.to_owned());
        let (bands, mut decoded) = tokio::sync::mpsc::channel::<Band>(BANDS_IN_TRANSFER);
        let span = tracing::Span::current();
        let decoding = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            let info = probe(&path, &limits)?;
            let raster = RasterInfo::of(&info);
            let mut writer = BandWriter::new(raster);
            decode_rows(&path, &limits, &mut |rows| {
                writer.push(rows.bytes, |band| bands.blocking_send(band)).map_err(|_| "the store failed".into())
            })?;
            Ok::<_, DecodeError>((info, raster))
        });
        let arriving = futures::stream::poll_fn(move |context| decoded.poll_recv(context));
        let stored = arriving
            .map(|band| async move {
                let key = Key::new(layout::raster_band(digest, band.index))?;
                self.store.put(&key, band.bytes.into()).await
            })
            .buffer_unordered(BANDS_IN_TRANSFER)
            .try_for_each(|()| async { Ok(()) })
            .await;
        let decoded = decoding.await.map_err(|error| Refusal::Internal {
            what: format!("the decoder stopped on picture `{name}`"),
            source: error.into(),
        })?;
        stored?; // when the store fails the decoder only says that it was cut off
        let (info, raster) = decoded.map_err(|error| Self::not_decoded(field, name, error))?;
        let (has_icc, has_exif) = (info.icc.is_some(), info.exif.is_some());
        for (bytes, key) in [(info.icc, layout::raster_icc(digest)), (info.exif, layout::raster_exif(digest))] {
            if let Some(bytes) = bytes {
                self.store.put(&Key::new(key)?, bytes.into()).await?;
            }
        }
        let record = RasterRecord { raster, format: info.format, has_icc, has_exif };
        put_json(&*self.store, &layout::raster_info(digest), &record).await?;
        Ok(record)
    }

    /// What is told when the picture that `field` names cannot be decoded.
    fn not_decoded(field: &str, name: &str, error: DecodeError) -> Refusal {
        if error.is_the_pictures_fault() {
            Refusal::field(field, format!("picture `{name}` cannot be used: {}", chain(&error)))
        } else {
            Refusal::Internal { what: format!("picture `{name}` could not be read"), source: error.into() }
        }
    }

    /// Plans a job and looks up which of its results are in the store already.
    pub async fn plan(&self, job: Job) -> Result<Planned, Refusal> {
        // A million tasks take a good part of a second.
        let planning = tokio::task::spawn_blocking(move || plan(&job).map(|plan| (job, plan))).await;
        let planned = planning
            .map_err(|error| Refusal::Internal { what: "the planner stopped".to_owned(), source: error.into() })?;
        let (job, plan) = planned.map_err(|error| Refusal::field(error.field(), chain(&error)))?;
        let (found, outputs) = self.found(&job, &plan).await?;
        Ok(Planned { job, plan: Arc::new(plan), found, outputs })
    }

    /// The tasks of a plan whose results are in the store, and the finished outputs among these.
    pub async fn found(&self, job: &Job, plan: &Plan) -> Result<(Vec<u32>, Vec<(u32, JobOutput)>), Refusal> {
        let mut found = Vec::new();
        let mut outputs = Vec::new();
        for (index, context) in (0..).zip(plan.contexts()) {
            let prefix = ResultKey::folder(context.digest);
            let mut stored: HashMap<Digest, u64> = HashMap::new();
            let mut entries = self.store.list(&prefix);
            while let Some(entry) = entries.try_next().await? {
                if let Ok(task) = entry.key.as_str()[prefix.len()..].parse() {
                    stored.insert(task, entry.meta.size_bytes);
                }
            }
            if stored.is_empty() {
                continue;
            }
            for (task_index, task) in (0..).zip(plan.tasks()).filter(|(_, task)| task.context == index) {
                let Some(&size) = stored.get(&task.digest) else { continue };
                match context.context.place() {
                    Place::Class(_) | Place::AnyWorker => {
                        if context.context.result_bytes(&task.part) == Some(size) {
                            found.push(task_index);
                        }
                    }
                    Place::Coordinator => {
                        if let Some(output) = self.finished(&plan.key_of(task)).await? {
                            let name = job.kind.picture_name(context.picture).to_owned();
                            found.push(task_index);
                            outputs.push((task_index, JobOutput { name, ..output }));
                        }
                    }
                }
            }
        }
        Ok((found, outputs))
    }

    /// The finished picture under a result key, if its bytes are still there too.
    async fn finished(&self, key: &ResultKey) -> Result<Option<JobOutput>, Refusal> {
        let Some(output) = get_json::<JobOutput>(&*self.store, &key.path()).await? else { return Ok(None) };
        let meta = self.store.head(&Key::new(output.artifact.key.clone())?).await?;
        Ok(meta.filter(|meta| meta.size_bytes == output.artifact.size_bytes).map(|_| output))
    }
}

/// How many times a side of `pictures` must grow at least; `None` where nobody says.
fn scale_needed(resize: Option<Resize>, pictures: &[Picture]) -> Option<f64> {
    let target = resize?.target;
    pictures.iter().map(|picture| target.factor_for(picture.size)).max_by(f64::total_cmp)
}

fn check_labels(request: &v1::CreateJobRequest) -> Result<(), Refusal> {
    if request.request_id.len() > 128 {
        return Err(Refusal::field("request_id", "is longer than 128 bytes"));
    }
    if request.labels.len() > 64 {
        return Err(Refusal::field("labels", format!("has {} entries, and 64 is the most", request.labels.len())));
    }
    if request.labels.iter().any(|(key, value)| key.len().max(value.len()) > 256) {
        return Err(Refusal::field("labels", "has an entry longer than 256 bytes"));
    }
    Ok(())
}

/// What is told when the coordinator's own disk fails.
pub fn scratch_refusal(scratch: &Path, source: std::io::Error) -> Refusal {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Refusal::Exhausted { why: format!("the coordinator's scratch folder {} is full", scratch.display()) }
        }
        _ => Refusal::Internal {
            what: format!("the coordinator's scratch folder {} failed", scratch.display()),
            source: source.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use domain::{
        picture::{Color, Sample},
        resize::{Factor, ResizeMethod, Target},
    };

    use super::*;

    #[test]
    fn the_same_request_names_the_same_job_and_no_request_a_new_one() {
        assert_eq!(job_id("farm", "a"), job_id("farm", "a"));
        assert_ne!(job_id("farm", "a"), job_id("farm", "b"));
        assert_ne!(job_id("farm", "a"), job_id("other", "a"));
        assert_ne!(job_id("farm", ""), job_id("farm", ""));
    }

    #[test]
    fn the_picture_that_must_grow_most_says_which_model_is_taken() {
        let picture = |width, height| Picture {
            name: String::new(),
            digest: Digest::of(b""),
            size: Size { width, height },
            color: Color::Rgb,
            sample: Sample::U8,
            format: Format::Png,
        };
        let needed = |target| {
            let resize = Resize { target, method: ResizeMethod::Lanczos };
            scale_needed(Some(resize), &[picture(100, 50), picture(40, 80)])
        };
        assert_eq!(needed(Target::Width(120)), Some(3.0));
        assert_eq!(needed(Target::Height(120)), Some(2.4));
        assert_eq!(needed(Target::Factor(Factor::new(1.5).unwrap())), Some(1.5));
        assert_eq!(scale_needed(None, &[picture(1, 1)]), None);
    }
}

//! The planner: a resolved job becomes a graph of tasks.

use std::ops::Range;

use crate::{
    digest::Digest,
    job::{Job, JobKind, NoSize, Picture, Precision, Reproducibility, Upscale},
    picture::NotEncodable,
    region::{Region, Size},
    resize::Resampling,
    task::{ASSEMBLE_REVISION, Context, DECODE_REVISION, Place, ResultKey, UPSCALE_REVISION},
    tiles::{BadTiling, TileGrid},
};

/// The most tasks that one job may have.
pub const MAX_TASKS: u64 = 4_000_000;

/// A job as a graph of tasks. A pure function of the job: planning it again gives the same graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    contexts: Vec<PlannedContext>,
    tasks: Vec<Task>,
}

/// A context with its digest, which is worked out once.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedContext {
    /// What its tasks have in common.
    pub context: Context,
    /// [`Context::digest`].
    pub digest: Digest,
    /// Which of the job's pictures it belongs to.
    pub picture: usize,
}

/// A node of the graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Index of its context.
    pub context: u32,
    /// What sets it apart within its context: the input region of a tile; the whole picture of an assembly.
    pub region: Region,
    /// The second half of its result key.
    pub digest: Digest,
    /// The tasks whose results it needs. They all stand before it.
    pub needs: Range<u32>,
}

/// Why a job cannot be planned. `field` is the path of the job's field that is to blame.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The tiling cannot be used.
    #[error("the tiles cannot be laid")]
    Tiling(#[from] BadTiling),
    /// The output cannot be written.
    #[error("picture `{name}` cannot be written")]
    Output {
        /// The picture.
        name: String,
        /// Why not.
        source: NotEncodable,
    },
    /// A side of the output would not fit 32 bits.
    #[error("picture `{name}` is {size}: {scale} times that is too large")]
    TooLarge {
        /// The picture.
        name: String,
        /// Its size.
        size: Size,
        /// The model's scale.
        scale: u32,
    },
    /// A side of the resized output would not fit 32 bits.
    #[error("picture `{name}` is {size}")]
    Resize {
        /// The picture.
        name: String,
        /// Its size.
        size: Size,
        /// What is wrong.
        source: NoSize,
    },
    /// There is nothing to do.
    #[error("the job names no picture")]
    NoPicture,
    /// The graph would be larger than the farm wants to hold.
    #[error("the job would have {tasks} tasks, and the most is {MAX_TASKS}")]
    TooManyTasks {
        /// How many there would be.
        tasks: u64,
    },
}

impl PlanError {
    /// The path of the field to blame, as in `upscale.tile`.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Tiling(_) | Self::TooManyTasks { .. } => "upscale.tile",
            Self::Output { .. } => "upscale.output.format",
            Self::Resize { .. } => "upscale.resize",
            Self::TooLarge { .. } | Self::NoPicture => "upscale.pictures",
        }
    }
}

impl Plan {
    /// The tasks; each stands after those that it needs.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The contexts that tasks refer to.
    pub fn contexts(&self) -> &[PlannedContext] {
        &self.contexts
    }

    /// The context of `task`.
    pub fn context_of(&self, task: &Task) -> &PlannedContext {
        &self.contexts[task.context as usize]
    }

    /// The result key of `task`.
    pub fn key_of(&self, task: &Task) -> ResultKey {
        ResultKey { context: self.context_of(task).digest, task: task.digest }
    }
}

/// Plans `job`.
///
/// An upscaled picture becomes a task per tile, row by row, and then one that assembles them. Pictures come in the
/// job's order.
pub fn plan(job: &Job) -> Result<Plan, PlanError> {
    match &job.kind {
        JobKind::Upscale(upscale) => plan_upscale(upscale),
    }
}

fn plan_upscale(upscale: &Upscale) -> Result<Plan, PlanError> {
    let scale = upscale.upscale_model.scale;
    let grids = upscale.pictures.iter().map(|picture| grid(upscale, picture)).collect::<Result<Vec<_>, _>>()?;
    let tasks = grids.iter().map(|grid| grid.count() + 1).sum();
    if grids.is_empty() {
        return Err(PlanError::NoPicture);
    }
    if tasks > MAX_TASKS {
        return Err(PlanError::TooManyTasks { tasks });
    }

    // Short numbers differ too visibly between kinds of device to be mixed in one picture.
    let place = match (upscale.reproducibility, upscale.precision) {
        (Reproducibility::Mixed, Precision::Exact) => Place::AnyWorker,
        (Reproducibility::SameClass, _) | (Reproducibility::Mixed, Precision::Fast) => {
            Place::Class(upscale.class.clone())
        }
    };
    let mut plan = Plan { contexts: Vec::with_capacity(2 * grids.len()), tasks: Vec::with_capacity(tasks as usize) };
    for (index, (picture, grid)) in upscale.pictures.iter().zip(&grids).enumerate() {
        let tiles = Context::Upscale {
            revision: UPSCALE_REVISION,
            picture: picture.digest,
            decode: DECODE_REVISION,
            upscale_model: upscale.upscale_model.digest,
            scale,
            precision: upscale.precision,
            place: place.clone(),
        };
        let tiles_digest = tiles.digest();
        let (format, color, sample) = upscale.output.resolve(picture);
        let assemble = Context::Assemble {
            revision: ASSEMBLE_REVISION,
            tiles: tiles_digest,
            picture: picture.digest,
            size: picture.size,
            tiling: upscale.tiling,
            scale,
            format,
            color,
            sample,
            quality: upscale.output.quality,
            resize: last_step(upscale, picture)?,
        };
        let assemble_digest = assemble.digest();
        let context = plan.contexts.len() as u32;
        plan.contexts.push(PlannedContext { context: tiles, digest: tiles_digest, picture: index });
        plan.contexts.push(PlannedContext { context: assemble, digest: assemble_digest, picture: index });

        let first = plan.tasks.len() as u32;
        plan.tasks.extend(grid.tiles().map(|tile| Task {
            context,
            region: tile.input,
            digest: ResultKey::new(tiles_digest, tile.input).task,
            needs: 0..0,
        }));
        let region = Region::new(0, 0, picture.size.width, picture.size.height);
        plan.tasks.push(Task {
            context: context + 1,
            region,
            digest: ResultKey::new(assemble_digest, region).task,
            needs: first..plan.tasks.len() as u32,
        });
    }
    Ok(plan)
}

/// The tiles of `picture`, once it is clear that its output can be written.
pub fn grid(upscale: &Upscale, picture: &Picture) -> Result<TileGrid, PlanError> {
    let (scale, name) = (upscale.upscale_model.scale, &picture.name);
    let enlarged = picture.size.scaled(scale).ok_or_else(|| PlanError::TooLarge {
        name: name.clone(),
        size: picture.size,
        scale,
    })?;
    let size = last_step(upscale, picture)?.map_or(enlarged, |resampling| resampling.to);
    let (format, color, sample) = upscale.output.resolve(picture);
    format.check(size, color, sample).map_err(|source| PlanError::Output { name: name.clone(), source })?;
    Ok(TileGrid::new(picture.size, upscale.tiling, scale)?)
}

/// How `picture` is resampled after it was enlarged, if it is.
fn last_step(upscale: &Upscale, picture: &Picture) -> Result<Option<Resampling>, PlanError> {
    let too_large = |source| PlanError::Resize { name: picture.name.clone(), size: picture.size, source };
    upscale.resampling(picture).map_err(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Model, Output, Priority, Timestamp},
        picture::{Color, Format, Sample},
        resize::{Factor, Resize, ResizeMethod, Target},
        tiles::Tiling,
    };

    fn job(sizes: &[(u32, u32)], format: Format) -> Job {
        let picture = |&(width, height): &(u32, u32)| Picture {
            name: format!("{width}x{height}.png"),
            digest: Digest::of(format!("{width}x{height}").as_bytes()),
            size: Size::new(width, height),
            color: Color::Rgb,
            sample: Sample::U8,
            format: Format::Png,
        };
        Job {
            id: "job-1".parse().unwrap(),
            request_id: String::new(),
            created: Timestamp(0),
            labels: Default::default(),
            priority: Priority::Normal,
            deadline: None,
            traceparent: None,
            warnings: Vec::new(),
            kind: JobKind::Upscale(Upscale {
                pictures: sizes.iter().map(picture).collect(),
                upscale_model: Model {
                    digest: Digest::of(b"weights"),
                    name: "m".to_owned(),
                    architecture: "Compact".to_owned(),
                    scale: 2,
                },
                tiling: Tiling { side: 512, overlap: 32 },
                precision: Precision::Exact,
                reproducibility: Reproducibility::SameClass,
                class: "cpu.candle.f32".parse().unwrap(),
                output: Output { format: Some(format), ..Output::default() },
                resize: None,
            }),
        }
    }

    #[track_caller]
    fn check(sizes: &[(u32, u32)], want: &str) {
        let plan = plan(&job(sizes, Format::Png)).unwrap();
        let tasks = plan.tasks().iter().map(|task| {
            let operation = plan.context_of(task).context.operation();
            let needs = if task.needs.is_empty() { String::new() } else { format!("<-{:?}", task.needs) };
            format!("{operation} {}{needs}", task.region)
        });
        assert_eq!(tasks.collect::<Vec<_>>().join(", "), want);
    }

    #[test]
    fn a_picture_becomes_its_tiles_and_an_assembly_that_needs_them() {
        check(&[(100, 80)], "upscale 100x80+0+0, assemble 100x80+0+0<-0..1");
        check(
            &[(600, 80), (9, 9)],
            "upscale 512x80+0+0, upscale 120x80+480+0, assemble 600x80+0+0<-0..2, \
             upscale 9x9+0+0, assemble 9x9+0+0<-3..4",
        );
    }

    #[test]
    fn the_same_job_is_planned_the_same_and_the_format_changes_only_the_assembly() {
        let png = plan(&job(&[(600, 600)], Format::Png)).unwrap();
        assert_eq!(png, plan(&job(&[(600, 600)], Format::Png)).unwrap());
        let tiff = plan(&job(&[(600, 600)], Format::Tiff)).unwrap();
        let keys = |plan: &Plan| plan.tasks().iter().map(|task| plan.key_of(task)).collect::<Vec<_>>();
        let (png, tiff) = (keys(&png), keys(&tiff));
        assert_eq!(png[..4], tiff[..4]);
        assert_ne!(png[4], tiff[4]);
    }

    #[test]
    fn only_a_size_that_the_network_does_not_make_needs_another_assembly() {
        let keys = |target: Option<Target>| {
            let mut job = job(&[(600, 600)], Format::Png);
            let JobKind::Upscale(upscale) = &mut job.kind;
            upscale.resize = target.map(|target| Resize { target, method: ResizeMethod::Lanczos });
            let plan = plan(&job).unwrap();
            plan.tasks().iter().map(|task| plan.key_of(task)).collect::<Vec<_>>()
        };
        let factor = |factor| Some(Target::Factor(Factor::new(factor).unwrap()));
        let plain = keys(None);
        assert_eq!(keys(factor(2.0)), plain);
        assert_eq!(keys(Some(Target::Width(1200))), plain);
        let half = keys(factor(1.5));
        assert_eq!(half[..4], plain[..4], "its tiles are the same");
        assert_ne!(half[4], plain[4]);
        assert_eq!(keys(Some(Target::Height(900))), half, "however the size was said");
    }

    #[test]
    fn it_is_the_size_of_the_result_that_its_format_must_hold() {
        let with = |width, target| {
            let mut job = job(&[(width, 10)], Format::Jpeg);
            let JobKind::Upscale(upscale) = &mut job.kind;
            upscale.resize = Some(Resize { target, method: ResizeMethod::Lanczos });
            plan(&job).map(drop).map_err(|error| error.field())
        };
        assert_eq!(with(40_000, Target::Width(60_000)), Ok(()));
        assert_eq!(with(40_000, Target::Width(66_000)), Err("upscale.output.format"));
        assert_eq!(with(1, Target::Height(1_000_000)), Err("upscale.output.format"));
        let mut tall = job(&[(1, 10_000)], Format::Png);
        let JobKind::Upscale(upscale) = &mut tall.kind;
        upscale.resize = Some(Resize { target: Target::Width(1_000_000), method: ResizeMethod::Lanczos });
        assert_eq!(plan(&tall).unwrap_err().field(), "upscale.resize");
    }

    #[test]
    fn a_job_that_cannot_be_done_is_refused_with_its_field() {
        let field = |job: &Job| plan(job).unwrap_err().field();
        assert_eq!(field(&job(&[], Format::Png)), "upscale.pictures");
        assert_eq!(field(&job(&[(40_000, 1)], Format::Jpeg)), "upscale.output.format");
        assert_eq!(field(&job(&[(0, 1)], Format::Png)), "upscale.output.format");
        assert_eq!(field(&job(&[(u32::MAX, 1)], Format::Png)), "upscale.pictures");
        let mut tiny = job(&[(60_000, 60_000)], Format::Png);
        let JobKind::Upscale(upscale) = &mut tiny.kind;
        upscale.tiling = Tiling { side: 16, overlap: 1 };
        assert_eq!(field(&tiny), "upscale.tile");
    }
}

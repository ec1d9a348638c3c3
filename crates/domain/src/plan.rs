//! The planner: a resolved job becomes a graph of tasks.
//!
//! A task needs the results of tasks that stand before it, and nothing else orders them. How the graph of a job of
//! segments comes about is told in [`segs`], that of a latent upscale in [`latent`].

pub mod latent;
pub mod segs;

use std::ops::Range;

use crate::{
    check::Invalid,
    digest::Digest,
    job::{Job, JobKind, NoSize, Output, Picture, Precision, Reproducibility, Upscale},
    picture::NotEncodable,
    region::{Region, Size},
    resize::Resampling,
    task::{
        ASSEMBLE_REVISION, ComputeClass, Context, DECODE_REVISION, Encoding, Part, Place, ResultKey, UPSCALE_REVISION,
    },
    tiles::{BadTiling, TileGrid},
};

/// The most tasks that one job may have.
pub const MAX_TASKS: u64 = 4_000_000;

/// The most needs between the segments of one job.
pub const MAX_LAYERS: u64 = 200_000;

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
    /// What sets it apart within its context.
    pub part: Part,
    /// The second half of its result key.
    pub digest: Digest,
    /// The tasks whose results it needs. They all stand before it.
    pub needs: Needs,
}

/// Indices of tasks, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needs {
    /// All of a range.
    Range(Range<u32>),
    /// Each of a list, without repetition.
    List(Box<[u32]>),
}

impl Needs {
    /// No task.
    pub const NONE: Self = Self::Range(0..0);

    /// The tasks of `indices`, in any order.
    pub fn of(indices: impl IntoIterator<Item = u32>) -> Self {
        let mut indices: Vec<u32> = indices.into_iter().collect();
        indices.sort_unstable();
        indices.dedup();
        match indices[..] {
            [] => Self::NONE,
            [first, .., last] | [first @ last] if (last - first) as usize + 1 == indices.len() => {
                Self::Range(first..last + 1)
            }
            _ => Self::List(indices.into()),
        }
    }

    /// The indices.
    pub fn iter(&self) -> impl Iterator<Item = u32> + Clone + '_ {
        let (range, list) = match self {
            Self::Range(range) => (range.clone(), &[][..]),
            Self::List(list) => (0..0, &list[..]),
        };
        range.chain(list.iter().copied())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Range(range) => range.len(),
            Self::List(list) => list.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `task` is among them.
    pub fn contains(&self, task: u32) -> bool {
        match self {
            Self::Range(range) => range.contains(&task),
            Self::List(list) => list.binary_search(&task).is_ok(),
        }
    }
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
    /// A field cannot be used.
    #[error(transparent)]
    Invalid(#[from] Invalid),
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
    pub fn field(&self) -> &str {
        match self {
            Self::Invalid(invalid) => &invalid.field,
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

    /// Which tasks are still to be done, if `found` says whose results are there.
    ///
    /// What only finished tasks need is not needed at all; a task that none needs is itself wanted.
    pub fn wanted(&self, found: impl Fn(u32) -> bool) -> Vec<bool> {
        let mut needed: Vec<Option<bool>> = vec![None; self.tasks.len()];
        let mut wanted = vec![false; self.tasks.len()];
        // Tasks stand after those they need, so one pass backwards settles chains too.
        for (index, task) in self.tasks.iter().enumerate().rev() {
            wanted[index] = !found(index as u32) && needed[index].unwrap_or(true);
            for need in task.needs.iter() {
                let slot = &mut needed[need as usize];
                *slot = Some(slot.unwrap_or(false) || wanted[index]);
            }
        }
        wanted
    }

    fn empty() -> Self {
        Self { contexts: Vec::new(), tasks: Vec::new() }
    }

    /// Adds a context, and gives its index and its digest.
    fn context(&mut self, context: Context, picture: usize) -> (u32, Digest) {
        let digest = context.digest();
        self.contexts.push(PlannedContext { context, digest, picture });
        (self.contexts.len() as u32 - 1, digest)
    }

    /// Adds a task, and gives its index and its key.
    fn task(&mut self, context: u32, part: Part, needs: Needs) -> (u32, ResultKey) {
        let key = ResultKey::of(self.contexts[context as usize].digest, &part);
        self.tasks.push(Task { context, part, digest: key.task, needs });
        (self.tasks.len() as u32 - 1, key)
    }
}

/// Plans `job`.
///
/// An upscaled picture becomes a task per tile, row by row, and then one that assembles them. Pictures come in the
/// job's order.
pub fn plan(job: &Job) -> Result<Plan, PlanError> {
    match &job.kind {
        JobKind::Upscale(upscale) => plan_upscale(upscale),
        JobKind::SegsDetail(job) => segs::plan_segs_detail(job),
        JobKind::SegsUpscale(job) => segs::plan_segs_upscale(job),
        JobKind::LatentUpscale(job) => latent::plan_latent_upscale(job),
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

    let mut plan = Plan { contexts: Vec::with_capacity(2 * grids.len()), tasks: Vec::with_capacity(tasks as usize) };
    for (index, (picture, grid)) in upscale.pictures.iter().zip(&grids).enumerate() {
        let place = place(upscale.reproducibility, upscale.precision, &upscale.class);
        let (tiles_digest, tiles) = plan_tiles(
            &mut plan,
            index,
            picture,
            grid,
            &TilesOf { upscale_model: upscale.upscale_model.digest, scale, precision: upscale.precision, place },
        );
        let Encoding { format, color, sample, quality } = encoding(&upscale.output, picture);
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
            quality,
            resize: last_step(upscale, picture)?,
        };
        let (context, _) = plan.context(assemble, index);
        plan.task(context, whole(picture.size), Needs::Range(tiles));
    }
    Ok(plan)
}

/// What a picture's tiles are rendered with.
struct TilesOf {
    upscale_model: Digest,
    scale: u32,
    precision: Precision,
    place: Place,
}

/// Adds the tiles of a picture, row by row, and gives the digest of their context and their indices.
fn plan_tiles(plan: &mut Plan, index: usize, picture: &Picture, grid: &TileGrid, of: &TilesOf) -> (Digest, Range<u32>) {
    let tiles = Context::Upscale {
        revision: UPSCALE_REVISION,
        picture: picture.digest,
        decode: DECODE_REVISION,
        upscale_model: of.upscale_model,
        scale: of.scale,
        precision: of.precision,
        place: of.place.clone(),
    };
    let (context, digest) = plan.context(tiles, index);
    let first = plan.tasks.len() as u32;
    for tile in grid.tiles() {
        plan.task(context, Part::Region(tile.input), Needs::NONE);
    }
    (digest, first..plan.tasks.len() as u32)
}

/// Who may render what is computed so.
fn place(reproducibility: Reproducibility, precision: Precision, class: &ComputeClass) -> Place {
    match (reproducibility, precision) {
        (Reproducibility::Mixed, Precision::Exact) => Place::AnyWorker,
        // Short numbers differ too visibly between kinds of device to be mixed in one picture.
        (Reproducibility::SameClass, _) | (Reproducibility::Mixed, Precision::Fast) => Place::Class(class.clone()),
    }
}

/// How the result of `picture` is written.
fn encoding(output: &Output, picture: &Picture) -> Encoding {
    let (format, color, sample) = output.resolve(picture);
    Encoding { format, color, sample, quality: output.quality }
}

/// All of a picture.
fn whole(size: Size) -> Part {
    Part::Region(Region::new(0, 0, size.width, size.height))
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

    fn needs(needs: &Needs) -> String {
        match needs {
            Needs::Range(range) => format!("{range:?}"),
            Needs::List(list) => format!("{list:?}"),
        }
    }

    #[track_caller]
    fn check(sizes: &[(u32, u32)], want: &str) {
        let plan = plan(&job(sizes, Format::Png)).unwrap();
        let tasks = plan.tasks().iter().map(|task| {
            let operation = plan.context_of(task).context.operation();
            let needs = if task.needs.is_empty() { String::new() } else { format!("<-{}", needs(&task.needs)) };
            format!("{operation} {}{needs}", task.part.region())
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
            let JobKind::Upscale(upscale) = &mut job.kind else { unreachable!() };
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
            let JobKind::Upscale(upscale) = &mut job.kind else { unreachable!() };
            upscale.resize = Some(Resize { target, method: ResizeMethod::Lanczos });
            plan(&job).map(drop).map_err(|error| error.field().to_owned())
        };
        assert_eq!(with(40_000, Target::Width(60_000)), Ok(()));
        assert_eq!(with(40_000, Target::Width(66_000)), Err("upscale.output.format".to_owned()));
        assert_eq!(with(1, Target::Height(1_000_000)), Err("upscale.output.format".to_owned()));
        let mut tall = job(&[(1, 10_000)], Format::Png);
        let JobKind::Upscale(upscale) = &mut tall.kind else { unreachable!() };
        upscale.resize = Some(Resize { target: Target::Width(1_000_000), method: ResizeMethod::Lanczos });
        assert_eq!(plan(&tall).unwrap_err().field(), "upscale.resize");
    }

    #[test]
    fn a_job_that_cannot_be_done_is_refused_with_its_field() {
        let field = |job: &Job| plan(job).unwrap_err().field().to_owned();
        assert_eq!(field(&job(&[], Format::Png)), "upscale.pictures");
        assert_eq!(field(&job(&[(40_000, 1)], Format::Jpeg)), "upscale.output.format");
        assert_eq!(field(&job(&[(0, 1)], Format::Png)), "upscale.output.format");
        assert_eq!(field(&job(&[(u32::MAX, 1)], Format::Png)), "upscale.pictures");
        let mut tiny = job(&[(60_000, 60_000)], Format::Png);
        let JobKind::Upscale(upscale) = &mut tiny.kind else { unreachable!() };
        upscale.tiling = Tiling { side: 16, overlap: 1 };
        assert_eq!(field(&tiny), "upscale.tile");
    }
}

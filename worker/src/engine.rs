//! Where rendering happens: plain blocking code, one task and its inputs in, pixels out.

mod cache;
pub mod device;
pub mod pipe;
pub mod preview;
pub mod redraw;
mod room;
mod upscale;

use std::{
    any::Any,
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use domain::{
    digest::Digest,
    region::{Region, Size},
    task::{ComputeClass, LatentSteps, LatentTask, Redraw, ResultKey, SegTask},
};
use imaging::{frames::Frames, mask::Mask};
use models::error::ModelError;
use preview::Previews;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use weights::{checkpoint::CheckpointError, detect::DetectError};

/// Renders tasks on one device. It knows no broker and no store, and may be called from several threads at once.
pub trait Engine: Send + Sync {
    /// The compute classes of the device: one for each way in which it computes, the exact one first.
    fn classes(&self) -> &[ComputeClass];

    /// The device as it stands at this moment. Called every few seconds, so it must be quick.
    fn device(&self) -> DeviceFacts;

    /// A first guess at how many million multiply-adds of a network the device gets done in a second as `class` computes, which
    /// is one of [`Engine::classes`]; `None`: it has none. Called once, before the first task, and may take a moment.
    fn guess(&self, _class: &ComputeClass) -> Option<f64> {
        None
    }

    /// Renders `work` as `class` computes, which is one of [`Engine::classes`]: [`Work::output_values`] numbers. Of pictures these are
    /// samples between 0 and 1, row by row, channels interleaved; of latents, rows of one channel after the other.
    ///
    /// Tells `watch` how far it is and, as soon as that says stop, gives up with [`RenderError::Interrupted`]. Where it
    /// can, it shows what it is at ([`Previews::show`]), which changes no number of the result.
    fn render(&self, class: &ComputeClass, work: &Work, watch: &Watch) -> Result<Vec<f32>, RenderError>;

    /// Renders tasks that go with one another ([`Work::goes_with`]), at once where the device gains from that, and tells `done` of
    /// each as soon as it is over: its index, and what [`Engine::render`] would return of it, up to rounding.
    fn render_batch(&self, class: &ComputeClass, tasks: &[(&Work, &Watch)], done: &Done<'_>) {
        for (index, (work, watch)) in tasks.iter().enumerate() {
            done(index, self.render(class, work, watch));
        }
    }
}

/// Hears how each task of a batch ended.
pub type Done<'a> = dyn Fn(usize, Result<Vec<f32>, RenderError>) + Sync + 'a;

/// What a panic says.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// The names of `classes`, for people.
pub(crate) fn list(classes: &[ComputeClass]) -> String {
    classes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What the farm shows of a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceFacts {
    /// The device in words.
    pub name: String,
    /// Its memory in bytes; 0 when unknown.
    pub memory_bytes: u64,
    /// Of that, memory that is free; 0 when unknown.
    pub memory_free_bytes: u64,
    /// The models that are loaded, the one used last first.
    pub models: Vec<Digest>,
}

/// One task with everything it needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// A tile through a super-resolution network.
    Upscale(UpscaleWork),
    /// A segment, redrawn.
    Redraw(Box<RedrawWork>),
    /// A link of a latent's chain.
    Latent(Box<LatentWork>),
}

impl Work {
    /// How many samples the result has.
    pub fn output_values(&self) -> usize {
        match self {
            Self::Upscale(work) => work.rgb.len() * work.scale as usize * work.scale as usize,
            Self::Redraw(work) => values(work.context.result_bytes(&work.seg)),
            Self::Latent(work) => values(work.link.result_bytes()),
        }
    }

    /// The weights files that it needs, each once.
    pub fn models(&self) -> impl Iterator<Item = &Digest> {
        let (one, several) = match self {
            Self::Upscale(work) => (Some(&work.model), None),
            Self::Redraw(work) => (None, Some(work.inputs.files.keys())),
            Self::Latent(work) => (None, Some(work.inputs.files.keys())),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    /// Whether it and `other` can be a batch: segments that have all in common with others of their job, redrawn at one size.
    pub fn goes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Redraw(own), Self::Redraw(other)) => own.seg.size == other.seg.size && own.context == other.context,
            _ => false,
        }
    }
}

/// A tile and the network that enlarges it.
#[derive(Debug, Clone, PartialEq)]
pub struct UpscaleWork {
    /// Where the tile lies in its picture.
    pub region: Region,
    /// Its pixels, `[y][x][3]`, 0 to 1.
    pub rgb: Vec<f32>,
    /// Output pixels a side per input pixel.
    pub scale: u32,
    /// The network's name: the SHA-256 of its weights.
    pub model: Digest,
    /// The weights as a local file, which is what its name says.
    pub weights: PathBuf,
}

/// What pipes name, on this machine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inputs {
    /// Weights files, which are what their names say.
    pub files: HashMap<Digest, PathBuf>,
    /// Masks of prompts.
    pub masks: HashMap<Digest, Mask>,
    /// Control pictures.
    pub pictures: HashMap<Digest, Frames>,
}

/// A segment and what redraws it.
#[derive(Debug, Clone, PartialEq)]
pub struct RedrawWork {
    /// What it has in common with others of its job.
    pub context: Redraw,
    /// What sets it apart.
    pub seg: SegTask,
    /// Its pixels, with all that lies below it pasted.
    pub crop: Frames,
    /// What is redrawn; `None`: all of it.
    pub mask: Option<Mask>,
    /// What its pipes name.
    pub inputs: Inputs,
}

/// A link of a latent's chain and what makes it.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentWork {
    /// What it has in common with others of its job.
    pub context: LatentSteps,
    /// What sets it apart.
    pub link: LatentTask,
    /// What it begins with.
    pub from: LatentInput,
    /// Where the runs that have a mask redraw.
    pub mask: Option<Mask>,
    /// What its pipes name.
    pub inputs: Inputs,
}

/// What a link begins with.
#[derive(Debug, Clone, PartialEq)]
pub enum LatentInput {
    /// A picture.
    Picture(Frames),
    /// A latent, rows of one channel after the other.
    Latent(Vec<f32>),
}

/// How many `f32` there are in so many bytes.
fn values(bytes: u64) -> usize {
    usize::try_from(bytes / size_of::<f32>() as u64).unwrap_or(usize::MAX)
}

/// The thread between an engine and those who wait for it: progress and previews go out, the wish to stop comes in.
#[derive(Debug, Default)]
pub struct Watch {
    /// Bits of an `f32`.
    fraction: AtomicU32,
    /// Who looks at the task, and what there is to see.
    pub previews: Previews,
    revoked: CancellationToken,
    leaving: CancellationToken,
}

/// Why a task in hand is to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Nobody wants it any more.
    Revoked,
    /// The worker leaves, and somebody else shall do it.
    Leaving,
}

impl Watch {
    /// A watch that also stops when `leaving` is cancelled, and tells `shown` when there is a preview to take.
    pub fn new(leaving: CancellationToken, shown: Arc<Notify>) -> Self {
        Self { leaving, previews: Previews::new(shown), ..Self::default() }
    }

    /// Takes note that the task is done to `fraction`, 0 to 1, and says whether to go on.
    pub fn tell(&self, fraction: f32) -> bool {
        self.fraction.store(fraction.clamp(0.0, 1.0).to_bits(), Ordering::Relaxed);
        self.stop().is_none()
    }

    /// How far the task is, 0 to 1.
    pub fn fraction(&self) -> f32 {
        f32::from_bits(self.fraction.load(Ordering::Relaxed))
    }

    /// Why the task is to be dropped, if it is.
    pub fn stop(&self) -> Option<Stop> {
        if self.revoked.is_cancelled() {
            Some(Stop::Revoked)
        } else if self.leaving.is_cancelled() {
            Some(Stop::Leaving)
        } else {
            None
        }
    }

    /// Waits until the task is to be dropped.
    pub async fn stopped(&self) -> Stop {
        tokio::select! {
            biased;
            () = self.revoked.cancelled() => Stop::Revoked,
            () = self.leaving.cancelled() => Stop::Leaving,
        }
    }

    /// Says that nobody wants the task any more.
    pub fn revoke(&self) {
        self.revoked.cancel();
    }
}

/// What becomes of a task that could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It can never be done; the job hears why.
    Fail,
    /// It may be done another time or elsewhere.
    Retry,
    /// It may be done another time or elsewhere. If that goes on until its last attempt, [`Verdict::Replan`].
    RetryOrReplan,
    /// The job must be planned anew with smaller tiles: pixels never depend on whose memory is how large.
    Replan,
    /// It must wait until this result, which it needs, was made again.
    Lost(ResultKey),
    /// It was dropped on request.
    Cancelled,
}

/// Why a task could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The weights cannot be read.
    #[error("weights {} cannot be read", model.short())]
    Weights {
        /// The weights.
        model: Digest,
        /// Why.
        source: CheckpointError,
    },
    /// The weights belong to no network that can be run.
    #[error("weights {} are no network that can be run", model.short())]
    Network {
        /// The weights.
        model: Digest,
        /// Why.
        source: DetectError,
    },
    /// The network could not be built or refused its input.
    #[error("model {} could not be run", model.short())]
    Model {
        /// The weights.
        model: Digest,
        /// Why.
        source: ModelError,
    },
    /// The network does not turn colours into colours.
    #[error("model {} takes {inputs} channels and gives {outputs}, where 3 and 3 are needed", model.short())]
    Channels {
        /// The weights.
        model: Digest,
        /// The channels that it takes.
        inputs: u32,
        /// The channels that it gives.
        outputs: u32,
    },
    /// The network enlarges by another factor than was planned.
    #[error("model {} enlarges {found} times, but the task was planned for {planned} times", model.short())]
    Scale {
        /// The weights.
        model: Digest,
        /// What the network does.
        found: u32,
        /// What the plan says.
        planned: u32,
    },
    /// The device ran out of memory.
    #[error("the device ran out of memory on {size} pixels")]
    OutOfMemory {
        /// The tile.
        size: Size,
        /// What the device said.
        source: ModelError,
    },
    /// The device has too little memory to even begin.
    #[error("{size} pixels need about {needs_bytes} bytes of memory, and the device has {total_bytes}")]
    TooLarge {
        /// The tile.
        size: Size,
        /// What it would need.
        needs_bytes: u64,
        /// What there is.
        total_bytes: u64,
    },
    /// The device has memory enough, but too much of it is taken at the moment.
    #[error("{size} pixels need about {needs_bytes} bytes of memory, and the device has {free_bytes} free")]
    Crowded {
        /// The tile.
        size: Size,
        /// What it would need.
        needs_bytes: u64,
        /// What is free.
        free_bytes: u64,
    },
    /// Something was not redrawn.
    #[error("{size} pixels cannot be redrawn")]
    Detail {
        /// Their size.
        size: Size,
        /// Why.
        source: redraw::DetailError,
    },
    /// The result holds something that is no number.
    #[error("what was made of {size} pixels holds a value that is infinite or no number")]
    NotFinite {
        /// Their size.
        size: Size,
    },
    /// The device failed in another way.
    #[error("the device failed")]
    Device {
        /// What it said.
        source: ModelError,
    },
    /// The network gave something that is no number.
    #[error("model {} gave a sample that is not a number", model.short())]
    NotANumber {
        /// The weights.
        model: Digest,
    },
    /// The result is not as large as the task says.
    #[error("the result has {found} samples instead of {expected}")]
    WrongLength {
        /// What the task says.
        expected: usize,
        /// What was rendered.
        found: usize,
    },
    /// The engine panicked, which is a bug in it.
    #[error("the engine panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// The watch said stop.
    #[error("rendering was interrupted")]
    Interrupted,
}

impl RenderError {
    /// What becomes of the task: the one place where a failure to render turns into a decision.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Weights { source: CheckpointError::Io(_), .. } => Verdict::Retry, // this machine's disk
            Self::Weights { .. }
            | Self::Network { .. }
            | Self::Model { .. }
            | Self::Channels { .. }
            | Self::Scale { .. }
            | Self::NotANumber { .. }
            | Self::NotFinite { .. }
            | Self::WrongLength { .. } => Verdict::Fail,
            Self::Detail { source, .. } => source.verdict(),
            Self::OutOfMemory { .. } | Self::TooLarge { .. } => Verdict::Replan,
            Self::Crowded { .. } => Verdict::RetryOrReplan,
            Self::Device { .. } | Self::Panicked { .. } => Verdict::Retry,
            Self::Interrupted => Verdict::Cancelled,
        }
    }
}

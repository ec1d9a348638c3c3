//! What coordinator and workers tell each other through the broker, and on which queues and topics.
//!
//! [`Order`] goes to workers, [`Report`] comes back, [`Beat`] says who is alive, and [`Revocation`] takes orders back.
//! [`Wish`] asks to see tasks while they are rendered, and [`Preview`] shows one.
//! Each has `encode` and `decode`; what cannot be decoded is not ours.

use std::time::Duration;

use domain::{
    job::{JobId, Precision, Priority, Timestamp},
    region::Region,
    task::{ComputeClass, Context, Pace, Part, Place, ResultKey},
};
use prost::{Message as _, bytes::Bytes};

use crate::{
    convert::{InvalidField, precision_from_wire, precision_to_wire, required, timestamp_from_wire, timestamp_to_wire},
    v1,
};

/// The names of one farm's queues and topics. Farms of different names share a broker without meeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    farm: String,
}

impl Names {
    /// The names of the farm `farm`: 1 to 40 lower-case letters, digits or hyphens.
    pub fn new(farm: &str) -> Result<Self, InvalidField> {
        let fits = (1..=40).contains(&farm.len())
            && farm.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
        if fits {
            Ok(Self { farm: farm.to_owned() })
        } else {
            Err(InvalidField::new("farm", format!("`{farm}` is not 1 to 40 lower-case letters, digits or hyphens")))
        }
    }

    /// The queue of tasks of `pace` for `place` at `priority`; the coordinator's own tasks are on none.
    pub fn tasks(&self, place: &Place, pace: Pace, priority: Priority) -> Option<String> {
        let place = match place {
            Place::Class(class) => class.to_string(),
            Place::AnyWorker => "any".to_owned(),
            Place::Coordinator => return None,
        };
        let pace = match pace {
            Pace::Short => "",
            Pace::Long => "long.",
        };
        Some(format!("{}.tasks.{place}.{pace}{}", self.farm, priority.name()))
    }

    /// The queues from which a worker of `classes` takes tasks, the most urgent first.
    pub fn served_by(&self, classes: &[ComputeClass]) -> Vec<String> {
        let places = places_of(classes);
        let of = |priority| {
            let paced = places.iter().flat_map(|place| Pace::ALL.map(|pace| (place, pace)));
            paced.filter_map(move |(place, pace)| self.tasks(place, pace, priority))
        };
        Priority::ALL.into_iter().flat_map(of).collect()
    }

    /// The queue of [`Report`]s.
    pub fn reports(&self) -> String {
        format!("{}.reports", self.farm)
    }

    /// The queue where messages go that were delivered too often, or that no worker can read.
    pub fn dead(&self) -> String {
        format!("{}.dead", self.farm)
    }

    /// The queue where the coordinator parks what it cannot read either, for people to look at.
    pub fn parked(&self) -> String {
        format!("{}.parked", self.farm)
    }

    /// The topic of [`Revocation`]s.
    pub fn revoked(&self) -> String {
        format!("{}.revoked", self.farm)
    }

    /// The topic of [`Beat`]s.
    pub fn beats(&self) -> String {
        format!("{}.beats", self.farm)
    }

    /// The topic of [`Wish`]es.
    pub fn wishes(&self) -> String {
        format!("{}.wishes", self.farm)
    }

    /// The topic of [`Preview`]s.
    pub fn previews(&self) -> String {
        format!("{}.previews", self.farm)
    }
}

/// The places whose tasks a worker of `classes` takes.
///
/// A worker without a class that offers [`Precision::Exact`] takes none of [`Place::AnyWorker`]: exact tasks are on those
/// queues, and each that it refused would have lost a delivery.
pub fn places_of(classes: &[ComputeClass]) -> Vec<Place> {
    let any = classes.iter().any(|class| class.offers(Precision::Exact)).then_some(Place::AnyWorker);
    classes.iter().cloned().map(Place::Class).chain(any).collect()
}

/// Which of `classes` renders a worker's tasks of `place`; `None` where it takes none of them.
pub fn class_for<'a>(classes: &'a [ComputeClass], place: &Place) -> Option<&'a ComputeClass> {
    match place {
        Place::Class(class) => classes.iter().find(|own| *own == class),
        Place::AnyWorker => classes.iter().find(|class| class.offers(Precision::Exact)),
        Place::Coordinator => None,
    }
}

fn decode<M: prost::Message + Default>(bytes: &[u8]) -> Result<M, InvalidField> {
    M::decode(bytes).map_err(|error| InvalidField::new("", format!("not a message of this farm: {error}")))
}

/// A task for a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// Grows with every publication: a [`Revocation`] names what it takes back by it.
    pub dispatch: u64,
    /// One of the jobs that want it, for logs and traces.
    pub job: JobId,
    /// The task's index in that job's plan.
    pub task: u64,
    /// What the task has in common with others; never a context of the coordinator's own.
    pub context: Context,
    /// What sets it apart.
    pub part: Part,
}

impl Order {
    /// The key of the result, which follows from the work itself.
    pub fn result_key(&self) -> ResultKey {
        ResultKey::of(self.context.digest(), &self.part)
    }

    /// The order in words, for people: `upscale 512x512+0+480`.
    pub fn describe(&self) -> String {
        format!("{} {}", self.context.operation(), self.part.region())
    }

    /// The order as bytes; `None` for a task that is the coordinator's own.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let operation = match (&self.context, &self.part) {
            (
                Context::Upscale { revision, picture, decode, upscale_model, scale, precision, place },
                Part::Region(Region { x, y, width, height }),
            ) => {
                let compute_class = match place {
                    Place::Class(class) => class.to_string(),
                    Place::AnyWorker => String::new(),
                    Place::Coordinator => return None,
                };
                v1::task_order::Operation::Upscale(v1::UpscaleTile {
                    revision: *revision,
                    picture: picture.to_string(),
                    decode_revision: *decode,
                    upscale_model: upscale_model.to_string(),
                    scale: *scale,
                    precision: precision_to_wire(*precision).into(),
                    compute_class,
                    region: Some(v1::PixelRegion { x: *x, y: *y, width: *width, height: *height }),
                })
            }
            (Context::Redraw(_), Part::Seg(_)) | (Context::Latent(_), Part::Latent(_)) => {
                let json = |document: serde_json::Result<Vec<u8>>| document.expect("plain structs always serialise");
                v1::task_order::Operation::Redraw(v1::RedrawTask {
                    context: json(serde_json::to_vec(&self.context)).into(),
                    part: json(serde_json::to_vec(&self.part)).into(),
                })
            }
            _ => return None,
        };
        let order = v1::TaskOrder {
            dispatch: self.dispatch,
            job_id: self.job.to_string(),
            task: self.task,
            operation: Some(operation),
        };
        Some(order.encode_to_vec())
    }

    /// Reads an order.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidField> {
        let order: v1::TaskOrder = decode(bytes)?;
        let (context, part) = match required("operation", order.operation)? {
            v1::task_order::Operation::Upscale(tile) => read_tile(tile)?,
            v1::task_order::Operation::Redraw(task) => read_redraw(&task)?,
        };
        let job = order.job_id.parse().map_err(InvalidField::at("job_id"))?;
        Ok(Self { dispatch: order.dispatch, job, task: order.task, context, part })
    }
}

fn read_tile(tile: v1::UpscaleTile) -> Result<(Context, Part), InvalidField> {
    let v1::PixelRegion { x, y, width, height } = required("upscale.region", tile.region)?;
    let place = match tile.compute_class.as_str() {
        "" => Place::AnyWorker,
        class => Place::Class(class.parse().map_err(InvalidField::at("upscale.compute_class"))?),
    };
    if tile.scale == 0 || width == 0 || height == 0 {
        return Err(InvalidField::new("upscale.region", "a tile needs pixels and a scale".to_owned()));
    }
    let context = Context::Upscale {
        revision: tile.revision,
        picture: tile.picture.parse().map_err(InvalidField::at("upscale.picture"))?,
        decode: tile.decode_revision,
        upscale_model: tile.upscale_model.parse().map_err(InvalidField::at("upscale.upscale_model"))?,
        scale: tile.scale,
        precision: required("upscale.precision", precision_from_wire("upscale.precision", tile.precision)?)?,
        place,
    };
    Ok((context, Part::Region(Region { x, y, width, height })))
}

fn read_redraw(task: &v1::RedrawTask) -> Result<(Context, Part), InvalidField> {
    let context = serde_json::from_slice(&task.context).map_err(InvalidField::at("redraw.context"))?;
    let part = serde_json::from_slice(&task.part).map_err(InvalidField::at("redraw.part"))?;
    match (&context, &part) {
        (Context::Redraw(_), Part::Seg(_)) | (Context::Latent(_), Part::Latent(_)) => Ok((context, part)),
        _ => Err(InvalidField::new("redraw.part", format!("is no part of {}", context.operation()))),
    }
}

/// What became of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The task's result key.
    pub key: ResultKey,
    /// The worker's id.
    pub worker: String,
    /// The try, counted from 1.
    pub attempt: u32,
    /// One of the jobs that want it.
    pub job: JobId,
    /// What happened.
    pub outcome: Outcome,
}

/// How a task ended in a worker's hands.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The result is in the store.
    Done {
        /// Whether it was there already.
        found: bool,
        /// How long it was rendered.
        elapsed: Duration,
    },
    /// It cannot be rendered; trying again will not help.
    Failed {
        /// The error with its causes.
        message: String,
    },
    /// The device ran out of memory: the job must be planned anew with smaller tiles.
    OutOfMemory {
        /// The error with its causes.
        message: String,
    },
    /// It failed and was put back on the queue.
    Retrying {
        /// The error with its causes.
        message: String,
    },
    /// Results that it needs are not in the store any more, and its order was acknowledged: they must be made again first.
    Missing {
        /// Some of them, at least one.
        keys: Vec<ResultKey>,
    },
}

impl Report {
    /// The report as bytes.
    pub fn encode(&self) -> Vec<u8> {
        use v1::task_report as wire;
        let outcome = match self.outcome.clone() {
            Outcome::Done { found, elapsed } => {
                wire::Outcome::Done(wire::Done { found, elapsed: elapsed.try_into().ok() })
            }
            Outcome::Failed { message } => wire::Outcome::Failed(wire::Failed { message }),
            Outcome::OutOfMemory { message } => wire::Outcome::OutOfMemory(wire::OutOfMemory { message }),
            Outcome::Retrying { message } => wire::Outcome::Retrying(wire::Retrying { message }),
            Outcome::Missing { keys } => wire::Outcome::Missing(wire::Missing { result_keys: write_keys(&keys) }),
        };
        let report = v1::TaskReport {
            result_key: self.key.to_string(),
            worker: self.worker.clone(),
            attempt: self.attempt,
            job_id: self.job.to_string(),
            outcome: Some(outcome),
        };
        report.encode_to_vec()
    }

    /// Reads a report.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidField> {
        use v1::task_report as wire;
        let report: v1::TaskReport = decode(bytes)?;
        let outcome = match required("outcome", report.outcome)? {
            wire::Outcome::Done(wire::Done { found, elapsed }) => Outcome::Done {
                found,
                elapsed: elapsed.and_then(|elapsed| elapsed.try_into().ok()).unwrap_or_default(),
            },
            wire::Outcome::Failed(wire::Failed { message }) => Outcome::Failed { message },
            wire::Outcome::OutOfMemory(wire::OutOfMemory { message }) => Outcome::OutOfMemory { message },
            wire::Outcome::Retrying(wire::Retrying { message }) => Outcome::Retrying { message },
            wire::Outcome::Missing(wire::Missing { result_keys }) => {
                Outcome::Missing { keys: read_keys("missing.result_keys", &result_keys)? }
            }
        };
        Ok(Self {
            key: report.result_key.parse().map_err(InvalidField::at("result_key"))?,
            worker: report.worker,
            attempt: report.attempt,
            job: report.job_id.parse().map_err(InvalidField::at("job_id"))?,
            outcome,
        })
    }
}

fn write_keys(keys: &[ResultKey]) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}

fn read_keys(path: &str, keys: &[String]) -> Result<Vec<ResultKey>, InvalidField> {
    keys.iter().map(|key| key.parse().map_err(InvalidField::at(path))).collect()
}

/// Orders that are void.
#[derive(Debug, Clone, PartialEq)]
pub struct Revocation {
    /// Their result keys.
    pub keys: Vec<ResultKey>,
    /// Only orders up to this dispatch number: the same work may be ordered again later.
    pub up_to_dispatch: u64,
}

impl Revocation {
    /// The revocation as bytes.
    pub fn encode(&self) -> Vec<u8> {
        v1::Revocation { result_keys: write_keys(&self.keys), up_to_dispatch: self.up_to_dispatch }.encode_to_vec()
    }

    /// Reads a revocation.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidField> {
        let revocation: v1::Revocation = decode(bytes)?;
        let keys = read_keys("result_keys", &revocation.result_keys)?;
        Ok(Self { keys, up_to_dispatch: revocation.up_to_dispatch })
    }
}

/// Somebody looks at tasks that workers have in hand.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// Their result keys: who else wants the same work does not matter.
    pub keys: Vec<ResultKey>,
    /// How long it holds from when it is heard. It is told again before that.
    pub valid: Duration,
}

impl Wish {
    /// The wish as bytes.
    pub fn encode(&self) -> Vec<u8> {
        v1::PreviewWish { result_keys: write_keys(&self.keys), valid: self.valid.try_into().ok() }.encode_to_vec()
    }

    /// Reads a wish.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidField> {
        let wish: v1::PreviewWish = decode(bytes)?;
        let valid = required("valid", wish.valid)?.try_into().map_err(InvalidField::at("valid"))?;
        Ok(Self { keys: read_keys("result_keys", &wish.result_keys)?, valid })
    }
}

/// What a task looks like at this moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Preview {
    /// Its result key.
    pub key: ResultKey,
    /// The worker's id.
    pub worker: String,
    /// The step that it shows, from 1 in each run of a sampler.
    pub step: u32,
    /// Steps of that run, as far as is known before.
    pub steps: u32,
    /// How far the whole task is, from 0 to 1.
    pub fraction: f32,
    /// The picture as a PNG file.
    pub png: Bytes,
}

impl Preview {
    /// The preview as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let preview = v1::TaskPreview {
            result_key: self.key.to_string(),
            worker: self.worker.clone(),
            step: self.step,
            steps: self.steps,
            fraction: self.fraction,
            png: self.png.clone(),
        };
        preview.encode_to_vec()
    }

    /// Reads a preview.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidField> {
        let v1::TaskPreview { result_key, worker, step, steps, fraction, png } = decode(bytes)?;
        let key = result_key.parse().map_err(InvalidField::at("result_key"))?;
        Ok(Self { key, worker, step, steps, fraction, png })
    }
}

/// A worker as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Its name, unique on the farm.
    pub id: String,
    /// The compute classes of its device, the exact one first.
    pub classes: Vec<ComputeClass>,
    /// The device in words.
    pub device: String,
    /// Memory of the device in bytes; 0 when unknown.
    pub memory_bytes: u64,
    /// Of that, memory that is free; 0 when unknown.
    pub memory_free_bytes: u64,
    /// What it renders now.
    pub tasks: Vec<WorkerTask>,
    /// The digests of the models in memory.
    pub models: Vec<String>,
    /// Tasks rendered since it started.
    pub tasks_done: u64,
    /// When it started.
    pub started: Timestamp,
    /// Whether it takes no new tasks.
    pub draining: bool,
    /// The version of its program.
    pub version: String,
    /// How fast it renders.
    pub speeds: Vec<Speed>,
}

/// How fast a worker's device renders, with all its slots together.
#[derive(Debug, Clone, PartialEq)]
pub struct Speed {
    /// As what it computes.
    pub class: ComputeClass,
    /// The operation of which this was measured; `None`: what is expected of those that it has not rendered yet.
    pub operation: Option<String>,
    /// By what [`domain::cost`] says of tasks; above 0.
    pub mega_multiply_adds_per_second: f64,
}

impl Speed {
    fn to_wire(&self) -> v1::Speed {
        v1::Speed {
            compute_class: self.class.to_string(),
            operation: self.operation.clone().unwrap_or_default(),
            mega_multiply_adds_per_second: self.mega_multiply_adds_per_second,
        }
    }

    fn from_wire(speed: v1::Speed) -> Result<Self, InvalidField> {
        let mega_multiply_adds_per_second = speed.mega_multiply_adds_per_second;
        if !(mega_multiply_adds_per_second.is_finite() && mega_multiply_adds_per_second > 0.0) {
            let why = format!("is {mega_multiply_adds_per_second}, and a number above 0 is wanted");
            return Err(InvalidField::new("worker.speeds.mega_multiply_adds_per_second", why));
        }
        Ok(Self {
            class: speed.compute_class.parse().map_err(InvalidField::at("worker.speeds.compute_class"))?,
            operation: Some(speed.operation).filter(|operation| !operation.is_empty()),
            mega_multiply_adds_per_second,
        })
    }
}

/// A task in a worker's hands.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerTask {
    /// Its result key.
    pub key: ResultKey,
    /// The order in words.
    pub description: String,
    /// How far it is, from 0 to 1.
    pub fraction: f32,
}

impl Worker {
    /// The worker as the public services show it, last heard of at `seen`.
    pub fn to_wire(&self, seen: Option<Timestamp>) -> v1::Worker {
        let task = |task: &WorkerTask| v1::WorkerTask {
            result_key: task.key.to_string(),
            description: task.description.clone(),
            fraction: task.fraction,
        };
        v1::Worker {
            id: self.id.clone(),
            compute_classes: self.classes.iter().map(ToString::to_string).collect(),
            device: self.device.clone(),
            memory_bytes: self.memory_bytes,
            memory_free_bytes: self.memory_free_bytes,
            tasks: self.tasks.iter().map(task).collect(),
            models: self.models.clone(),
            tasks_done: self.tasks_done,
            started_at: Some(timestamp_to_wire(self.started)),
            seen_at: seen.map(timestamp_to_wire),
            draining: self.draining,
            version: self.version.clone(),
            speeds: self.speeds.iter().map(Speed::to_wire).collect(),
        }
    }
}

/// A sign of life.
#[derive(Debug, Clone, PartialEq)]
pub struct Beat {
    /// Whose.
    pub worker: Worker,
    /// Whether it is the last.
    pub leaving: bool,
}

impl Beat {
    /// The beat as bytes.
    pub fn encode(&self) -> Vec<u8> {
        v1::WorkerBeat { worker: Some(self.worker.to_wire(None)), leaving: self.leaving }.encode_to_vec()
    }

    /// Reads a beat.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidField> {
        let beat: v1::WorkerBeat = decode(bytes)?;
        let worker = required("worker", beat.worker)?;
        let task = |task: v1::WorkerTask| {
            Ok(WorkerTask {
                key: task.result_key.parse().map_err(InvalidField::at("worker.tasks.result_key"))?,
                description: task.description,
                fraction: task.fraction,
            })
        };
        let class = |class: &String| class.parse().map_err(InvalidField::at("worker.compute_classes"));
        Ok(Self {
            worker: Worker {
                id: worker.id,
                classes: worker.compute_classes.iter().map(class).collect::<Result<_, InvalidField>>()?,
                device: worker.device,
                memory_bytes: worker.memory_bytes,
                memory_free_bytes: worker.memory_free_bytes,
                tasks: worker.tasks.into_iter().map(task).collect::<Result<_, InvalidField>>()?,
                models: worker.models,
                tasks_done: worker.tasks_done,
                started: timestamp_from_wire(worker.started_at.unwrap_or_default()),
                draining: worker.draining,
                version: worker.version,
                speeds: worker.speeds.into_iter().map(Speed::from_wire).collect::<Result<_, _>>()?,
            },
            leaving: beat.leaving,
        })
    }
}

#[cfg(test)]
mod tests {
    use domain::digest::Digest;

    use super::*;

    fn order(place: Place) -> Order {
        Order {
            dispatch: 7,
            job: "job-1".parse().unwrap(),
            task: 3,
            context: Context::Upscale {
                revision: 1,
                picture: Digest::of(b"picture"),
                decode: 1,
                upscale_model: Digest::of(b"weights"),
                scale: 2,
                precision: Precision::Exact,
                place,
            },
            part: Part::Region(Region::new(480, 0, 512, 512)),
        }
    }

    #[test]
    fn what_is_sent_is_what_arrives() {
        let class: ComputeClass = "cpu.candle.f32".parse().unwrap();
        for place in [Place::Class(class.clone()), Place::AnyWorker] {
            let order = order(place);
            let arrived = Order::decode(&order.encode().unwrap()).unwrap();
            assert_eq!((arrived.result_key(), &arrived), (order.result_key(), &order));
        }
        let speed = |operation: Option<&str>, mega_multiply_adds_per_second| Speed {
            class: class.clone(),
            operation: operation.map(str::to_owned),
            mega_multiply_adds_per_second,
        };
        let key = order(Place::AnyWorker).result_key();
        let message = "why".to_owned();
        let outcomes = [
            Outcome::Done { found: true, elapsed: Duration::from_millis(1500) },
            Outcome::Failed { message: message.clone() },
            Outcome::OutOfMemory { message: message.clone() },
            Outcome::Retrying { message },
            Outcome::Missing { keys: vec![key] },
        ];
        for outcome in outcomes {
            let report = Report { key, worker: "w".to_owned(), attempt: 2, job: "job-1".parse().unwrap(), outcome };
            assert_eq!(Report::decode(&report.encode()).unwrap(), report);
        }
        let revocation = Revocation { keys: vec![key], up_to_dispatch: 9 };
        assert_eq!(Revocation::decode(&revocation.encode()).unwrap(), revocation);
        let wish = Wish { keys: vec![key], valid: Duration::from_millis(2500) };
        assert_eq!(Wish::decode(&wish.encode()).unwrap(), wish);
        let png = Bytes::from_static(b"\x89PNG");
        let preview = Preview { key, worker: "w".to_owned(), step: 3, steps: 20, fraction: 0.25, png };
        assert_eq!(Preview::decode(&preview.encode()).unwrap(), preview);
        let worker = Worker {
            id: "w".to_owned(),
            classes: vec![class.clone(), "cpu.amx-1.bf16".parse().unwrap()],
            device: "d".to_owned(),
            memory_bytes: 2,
            memory_free_bytes: 1,
            tasks: vec![WorkerTask { key, description: "upscale 1x1+0+0".to_owned(), fraction: 0.5 }],
            models: vec![],
            tasks_done: 4,
            started: Timestamp(1_700_000_000_123),
            draining: false,
            version: "1".to_owned(),
            speeds: vec![speed(Some("redraw"), 1.5e5), speed(None, 2.0)],
        };
        let mut beat = Beat { worker, leaving: true };
        assert_eq!(Beat::decode(&beat.encode()).unwrap(), beat);
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            beat.worker.speeds[1].mega_multiply_adds_per_second = wrong;
            let refused = Beat::decode(&beat.encode()).unwrap_err();
            assert_eq!(refused.field, "worker.speeds.mega_multiply_adds_per_second", "{wrong}");
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        assert!(Order::decode(b"not ours").is_err());
        assert!(Order::decode(b"").is_err());
        let empty = Order { part: Part::Region(Region::new(0, 0, 0, 1)), ..order(Place::AnyWorker) };
        assert_eq!(Order::decode(&empty.encode().unwrap()).unwrap_err().field, "upscale.region");
        assert!(Report::decode(b"").is_err());
        assert_eq!(Wish::decode(b"").unwrap_err().field, "valid");
        assert_eq!(Preview::decode(b"").unwrap_err().field, "result_key");
    }

    fn served_by(classes: &str) -> String {
        let classes: Vec<_> = classes.split(' ').map(|class| class.parse().unwrap()).collect();
        Names::new("tessera").unwrap().served_by(&classes).join(" ")
    }

    #[test]
    fn a_worker_that_computes_in_two_ways_serves_both_and_any_once() {
        assert_eq!(
            served_by("cpu.fma-1.f32 cpu.amx-1.bf16"),
            "tessera.tasks.cpu.fma-1.f32.high tessera.tasks.cpu.fma-1.f32.long.high \
             tessera.tasks.cpu.amx-1.bf16.high tessera.tasks.cpu.amx-1.bf16.long.high tessera.tasks.any.high \
             tessera.tasks.any.long.high tessera.tasks.cpu.fma-1.f32.normal \
             tessera.tasks.cpu.fma-1.f32.long.normal tessera.tasks.cpu.amx-1.bf16.normal \
             tessera.tasks.cpu.amx-1.bf16.long.normal tessera.tasks.any.normal tessera.tasks.any.long.normal \
             tessera.tasks.cpu.fma-1.f32.low tessera.tasks.cpu.fma-1.f32.long.low \
             tessera.tasks.cpu.amx-1.bf16.low tessera.tasks.cpu.amx-1.bf16.long.low tessera.tasks.any.low \
             tessera.tasks.any.long.low"
        );
    }

    #[test]
    fn a_worker_serves_the_most_urgent_queue_first() {
        assert_eq!(
            served_by("cpu.candle.f32"),
            "tessera.tasks.cpu.candle.f32.high tessera.tasks.cpu.candle.f32.long.high tessera.tasks.any.high \
             tessera.tasks.any.long.high tessera.tasks.cpu.candle.f32.normal \
             tessera.tasks.cpu.candle.f32.long.normal tessera.tasks.any.normal tessera.tasks.any.long.normal \
             tessera.tasks.cpu.candle.f32.low tessera.tasks.cpu.candle.f32.long.low tessera.tasks.any.low \
             tessera.tasks.any.long.low"
        );
        assert!(Names::new("No Farm").is_err());
    }

    #[test]
    fn a_worker_that_is_not_exact_leaves_the_tasks_for_any_worker_to_others() {
        assert_eq!(
            served_by("cuda.candle.f16"),
            "tessera.tasks.cuda.candle.f16.high tessera.tasks.cuda.candle.f16.long.high \
             tessera.tasks.cuda.candle.f16.normal tessera.tasks.cuda.candle.f16.long.normal \
             tessera.tasks.cuda.candle.f16.low tessera.tasks.cuda.candle.f16.long.low"
        );
    }
}

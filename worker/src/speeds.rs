//! How fast the device renders, by what it rendered: what plans reckon time with.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::{
    cost,
    task::{ComputeClass, Context, Part},
};
use proto::farm::Speed;

/// After so much device time, what was rendered before counts half: long enough for loading weights to even out, short enough
/// to follow when another network is asked for.
const HALF_LIFE: Duration = Duration::from_secs(120);

/// What was measured, and what is guessed until then. Nothing is kept: a worker that starts anew guesses anew.
#[derive(Debug, Default)]
pub struct Speeds {
    /// Million multiply-adds per second by class.
    guesses: BTreeMap<ComputeClass, f64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    device: DeviceTime,
    rendered: BTreeMap<(ComputeClass, &'static str), Rendered>,
}

/// What was rendered of an operation.
#[derive(Debug, Default)]
struct Rendered {
    mean: Mean,
    /// [`cost::is_telling`].
    is_telling: bool,
}

impl Speeds {
    /// Nothing measured yet.
    pub fn new(guesses: BTreeMap<ComputeClass, f64>) -> Self {
        Self { guesses, state: Mutex::default() }
    }

    /// Begins to count device time for a task.
    pub fn begin(self: &Arc<Self>) -> Stay {
        let begun = self.state().device.begin(Instant::now());
        Stay { speeds: self.clone(), begun }
    }

    /// Takes note that the task of `part` within `context` was rendered as `class` computes, in so much device time.
    pub fn note(&self, class: &ComputeClass, context: &Context, part: &Part, device_time: Duration) {
        let mut state = self.state();
        let rendered = state.rendered.entry((class.clone(), context.operation())).or_default();
        rendered.mean.note(cost::of(context, part), device_time);
        rendered.is_telling = cost::is_telling(context);
    }

    /// What is known now: of each class what was measured, by operation, then what is expected of other operations. That is what
    /// those showed whose cost tells, or the first guess.
    pub fn show(&self) -> Vec<Speed> {
        let state = self.state();
        let speed = |class: &ComputeClass, operation: Option<&str>, mega_multiply_adds_per_second| Speed {
            class: class.clone(),
            operation: operation.map(str::to_owned),
            mega_multiply_adds_per_second,
        };
        let mut expected = self.guesses.clone();
        let mut telling: BTreeMap<&ComputeClass, Mean> = BTreeMap::new();
        let mut speeds = Vec::new();
        for ((class, operation), Rendered { mean, is_telling }) in &state.rendered {
            speeds.extend(mean.per_second().map(|per_second| speed(class, Some(operation), per_second)));
            if *is_telling {
                telling.entry(class).or_default().add(*mean);
            }
        }
        for (class, mean) in telling {
            expected.extend(mean.per_second().map(|per_second| (class.clone(), per_second)));
        }
        speeds.extend(expected.iter().map(|(class, per_second)| speed(class, None, *per_second)));
        speeds
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task on the device, until it is dropped.
#[derive(Debug)]
pub struct Stay {
    speeds: Arc<Speeds>,
    begun: f64,
}

impl Stay {
    /// How much device time the task took so far: all of it while it was alone, else its part.
    pub fn device_time(&self) -> Duration {
        let each = self.speeds.state().device.each(Instant::now());
        Duration::from_secs_f64((each - self.begun).max(0.0))
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.speeds.state().device.end(Instant::now());
    }
}

/// The device's time, shared equally by the tasks that are on it at once: so the slots of a worker together show how fast its
/// device is, however many of them are taken.
#[derive(Debug, Default)]
struct DeviceTime {
    /// The seconds that a task would have had that was there from the beginning.
    each: f64,
    /// Tasks on the device.
    tasks: u32,
    /// When `each` was reckoned last.
    at: Option<Instant>,
}

impl DeviceTime {
    /// [`Self::each`] as a task comes.
    fn begin(&mut self, now: Instant) -> f64 {
        let each = self.each(now);
        self.tasks += 1;
        each
    }

    /// Takes note that a task is gone.
    fn end(&mut self, now: Instant) {
        self.each(now);
        self.tasks -= 1;
    }

    fn each(&mut self, now: Instant) -> f64 {
        if let (Some(at), 1..) = (self.at, self.tasks) {
            self.each += now.saturating_duration_since(at).as_secs_f64() / f64::from(self.tasks);
        }
        self.at = Some(now);
        self.each
    }
}

/// An exponential mean of speeds, in which a task weighs as much as the device time that it took.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    /// Million multiply-adds.
    cost: f64,
    seconds: f64,
}

impl Mean {
    fn note(&mut self, cost: u64, device_time: Duration) {
        let seconds = device_time.as_secs_f64();
        let kept = 0.5_f64.powf(seconds / HALF_LIFE.as_secs_f64());
        *self = Self { cost: self.cost * kept, seconds: self.seconds * kept };
        self.add(Self { cost: cost as f64, seconds });
    }

    fn add(&mut self, other: Self) {
        self.cost += other.cost;
        self.seconds += other.seconds;
    }

    /// `None` where that cannot be told.
    fn per_second(&self) -> Option<f64> {
        let per_second = self.cost / self.seconds;
        (per_second.is_finite() && per_second > 0.0).then_some(per_second)
    }
}

#[cfg(test)]
mod tests {
    use domain::{
        digest::Digest,
        job::Precision,
        region::{Region, Size},
        task::{DECODE_REVISION, LatentFrom, LatentSteps, LatentTask, LatentWork, Place, UPSCALE_REVISION},
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn mean(noted: &[(u64, Duration)]) -> Option<f64> {
        let mut mean = Mean::default();
        noted.iter().for_each(|&(cost, time)| mean.note(cost, time));
        mean.per_second()
    }

    #[test]
    fn a_mean_weighs_tasks_by_the_time_that_they_took_and_forgets_by_halves() {
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[(0, SECOND)]), None, "what costs nothing says nothing");
        assert_eq!(mean(&[(5, Duration::ZERO)]), None);
        assert_eq!(mean(&[(600, 2 * SECOND)]), Some(300.0));
        // 1000 a second for the time in which it comes to count half, then 100 for as long.
        let two = mean(&[(120_000, HALF_LIFE), (12_000, HALF_LIFE)]).unwrap();
        assert!((two - 400.0).abs() < 1e-6, "{two}");
        // Many small ones weigh as much as a large one.
        let small = mean(&vec![(1_000, SECOND); 600]).unwrap();
        assert!((small - 1_000.0).abs() < 1e-6, "{small}");
        // One that is slow for a moment does not count for much.
        let hiccup = mean(&[(120_000, HALF_LIFE), (1, SECOND)]).unwrap();
        assert!((980.0..1_000.0).contains(&hiccup), "{hiccup}");
    }

    #[test]
    fn tasks_that_are_on_the_device_at_once_share_its_time() {
        let (mut device, start) = (DeviceTime::default(), Instant::now());
        let at = |seconds: u32| start + seconds * SECOND;
        // a: 0 to 4, alone for a second and once more at the end; b: 1 to 3; nobody from 4 to 9; c: 9 to 10.
        let a = device.begin(at(0));
        let b = device.begin(at(1));
        assert_eq!(device.each(at(3)) - b, 1.0);
        device.end(at(3));
        assert_eq!(device.each(at(4)) - a, 3.0);
        device.end(at(4));
        let c = device.begin(at(9));
        assert_eq!(device.each(at(10)) - c, 1.0);
    }

    #[test]
    fn a_stay_that_is_over_leaves_the_device_to_others() {
        let speeds = Arc::new(Speeds::default());
        drop(speeds.begin());
        let stay = speeds.begin();
        assert_eq!(speeds.state().device.tasks, 1);
        assert!(stay.device_time() <= stay.device_time());
    }

    fn class(text: &str) -> ComputeClass {
        text.parse().unwrap()
    }

    /// A tile of 10 x 10 pixels.
    fn upscale() -> (Context, Part) {
        let context = Context::Upscale {
            revision: UPSCALE_REVISION,
            picture: Digest::of(b"picture"),
            decode: DECODE_REVISION,
            upscale_model: Digest::of(b"weights"),
            scale: 2,
            precision: Precision::Exact,
            place: Place::AnyWorker,
        };
        (context, Part::Region(Region::new(0, 0, 10, 10)))
    }

    /// A latent of 8 x 8, decoded.
    fn latent() -> (Context, Part) {
        let steps = LatentSteps {
            revision: 1,
            vae: Digest::of(b"vae"),
            tile_size: None,
            scale_method: domain::resize::ResizeMethod::Bilinear,
            upscale_model: None,
            reference_quirks: false,
            precision: Precision::Exact,
            place: Place::AnyWorker,
        };
        let from = LatentFrom::Given(Digest::of(b"latent"));
        let link = LatentTask { from, size: Size::new(8, 8), work: LatentWork::Decode };
        (Context::Latent(Box::new(steps)), Part::Latent(Box::new(link)))
    }

    fn shown(speeds: &Speeds) -> String {
        let words = |Speed { class, operation, mega_multiply_adds_per_second }: Speed| {
            format!("{class} {} {mega_multiply_adds_per_second}", operation.as_deref().unwrap_or("other"))
        };
        speeds.show().into_iter().map(words).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn what_was_not_rendered_yet_is_expected_to_be_as_fast_as_what_tells_and_else_guessed() {
        let (exact, fast) = (class("cpu.x.f32"), class("cpu.x.bf16"));
        let speeds = Speeds::new(BTreeMap::from([(exact.clone(), 50.0), (fast, 90.0)]));
        assert_eq!(shown(&speeds), "cpu.x.bf16 other 90, cpu.x.f32 other 50");
        let note = |(context, part): (Context, Part)| {
            speeds.note(&exact, &context, &part, SECOND);
            cost::of(&context, &part)
        };
        // Of super-resolution nothing follows for other operations.
        assert_eq!(note(upscale()), 1_000);
        assert_eq!(shown(&speeds), "cpu.x.f32 upscale 1000, cpu.x.bf16 other 90, cpu.x.f32 other 50");
        assert_eq!(note(latent()), 20_480);
        let want = "cpu.x.f32 latent 20480, cpu.x.f32 upscale 1000, cpu.x.bf16 other 90, cpu.x.f32 other 20480";
        assert_eq!(shown(&speeds), want);
        // Whoever has no guess says nothing of what it has not rendered.
        let speeds = Speeds::default();
        assert_eq!(shown(&speeds), "");
        let (context, part) = upscale();
        speeds.note(&exact, &context, &part, SECOND);
        assert_eq!(shown(&speeds), "cpu.x.f32 upscale 1000");
    }
}

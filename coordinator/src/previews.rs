//! Who looks at a job while it is rendered: wishes go out to the workers, and what they show comes in.
//!
//! Nothing is kept: a wish that nobody tells again runs out, and a preview that is lost is followed by another.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use broker::{Broker, Listener, Message};
use domain::{job::JobId, region::Region, task::ResultKey};
use futures::stream::{self, StreamExt as _};
use proto::{
    farm::{Names, Preview, Wish},
    v1,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    desk::Desk,
    ledger::InHand,
    refusal::{Refusal, chain},
};

/// How often somebody who looks learns which tasks are in hand now.
const LOOK: Duration = Duration::from_millis(250);

/// How often a wish is told again.
const RENEWAL: Duration = Duration::from_secs(2);

/// How long a wish holds: long enough that one may be lost.
const VALID: Duration = Duration::from_secs(5);

/// Shows jobs while they are rendered.
#[derive(Debug, Clone)]
pub struct Previews {
    /// Where wishes go and previews come from.
    pub broker: Arc<dyn Broker>,
    /// The topics' names.
    pub names: Names,
    /// Who knows which tasks are in hand.
    pub desk: Arc<Desk>,
    /// When streams end.
    pub shutdown: CancellationToken,
}

/// What comes of a look at a job.
type Shown = Result<v1::WatchPreviewsResponse, Status>;

impl Previews {
    /// Shows job `id`, or only `tasks` of it if there are any, until it ends or the receiver is dropped. Of a task whose
    /// previews wait to be received the newest is kept.
    ///
    /// # Errors
    /// If the broker cannot be reached.
    pub async fn watch(self, id: JobId, tasks: BTreeSet<u64>) -> Result<mpsc::Receiver<Shown>, Refusal> {
        let lost = |source| Refusal::Unavailable { what: "the broker", source: Box::new(source) };
        let heard = self.broker.listen(&self.names.previews()).await.map_err(lost)?;
        // A listener that has lost its broker and begins anew does not start over each time that something else comes first.
        let next = |mut heard: Box<dyn Listener>| async move { Some((heard.next().await, heard)) };
        let mut heard = stream::unfold(heard, next).boxed();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut looks = interval(LOOK);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut look = Look { tasks, ..Look::default() };
            let mut told = Instant::now();
            loop {
                tokio::select! {
                    _ = looks.tick() => {
                        let Some(in_hand) = self.desk.read(|ledger| ledger.in_hand(&id)) else { return };
                        let is_news = look.update(in_hand);
                        if !look.in_hand.is_empty() && (is_news || told.elapsed() >= RENEWAL) {
                            self.tell(look.in_hand.keys().copied().collect()).await;
                            told = Instant::now();
                        }
                    }
                    Some(message) = heard.next() => match message {
                        Ok(message) => match Preview::decode(&message.body) {
                            Ok(preview) => look.note(&preview),
                            Err(error) => tracing::warn!(error = chain(&error), "heard what is no preview of ours"),
                        },
                        Err(error) => {
                            let _ = sender.send(Err(lost(error).into())).await;
                            return;
                        }
                    },
                    permit = sender.reserve(), if !look.waiting.is_empty() => {
                        let Ok(permit) = permit else { return };
                        if let Some((_, shown)) = look.waiting.pop_first() {
                            permit.send(Ok(shown));
                        }
                    }
                    () = sender.closed() => return,
                    () = self.shutdown.cancelled() => {
                        let leaving = Status::unavailable("the coordinator is shutting down; watch again");
                        let _ = sender.send(Err(leaving)).await;
                        return;
                    }
                }
            }
        });
        Ok(receiver)
    }

    async fn tell(&self, keys: Vec<ResultKey>) {
        let message = Message::new("wish", Wish { keys, valid: VALID }.encode());
        if let Err(error) = self.broker.broadcast(&self.names.wishes(), message).await {
            tracing::debug!(error = chain(&error), "a wish was lost");
        }
    }
}

/// What somebody who looks at a job knows, and has not seen yet.
#[derive(Debug, Default)]
struct Look {
    /// Only these tasks; none: all.
    tasks: BTreeSet<u64>,
    /// The tasks in hand. A job may want the same work more than once.
    in_hand: BTreeMap<ResultKey, Vec<InHand>>,
    /// The newest previews that wait to be received.
    waiting: BTreeMap<u64, v1::WatchPreviewsResponse>,
}

impl Look {
    /// Takes note of the tasks in hand, and says whether some are new.
    fn update(&mut self, in_hand: Vec<InHand>) -> bool {
        let mut now: BTreeMap<ResultKey, Vec<InHand>> = BTreeMap::new();
        for task in in_hand {
            if self.tasks.is_empty() || self.tasks.contains(&task.task) {
                now.entry(task.key).or_default().push(task);
            }
        }
        let is_news = now.keys().any(|key| !self.in_hand.contains_key(key));
        self.in_hand = now;
        is_news
    }

    /// Takes note of a preview, if it is of a task in hand.
    fn note(&mut self, preview: &Preview) {
        for InHand { task, description, region, .. } in self.in_hand.get(&preview.key).into_iter().flatten() {
            let Region { x, y, width, height } = *region;
            let shown = v1::WatchPreviewsResponse {
                task: *task,
                description: description.clone(),
                region: Some(v1::PixelRegion { x, y, width, height }),
                step: preview.step,
                steps: preview.steps,
                fraction: preview.fraction,
                png: preview.png.clone(),
                worker: preview.worker.clone(),
            };
            self.waiting.insert(*task, shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use broker::MemoryBroker;
    use domain::{job::Timestamp, plan::plan};

    use super::*;
    use crate::ledger::{
        Event, Ledger, Rules,
        tests::{CHAIN, beat, segs_job},
    };

    /// Waits for what must come soon.
    async fn within<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(30), work).await.expect("it comes within half a minute")
    }

    #[tokio::test]
    async fn whoever_looks_at_a_job_sees_its_tasks_whichever_job_they_were_ordered_for() {
        let rules = Rules { dispatch_window: 100, stuck_task: Duration::from_secs(60) };
        let (desk, _errands) = Desk::new(Ledger::new(rules, Timestamp(1)));
        let (desk, broker, names) = (Arc::new(desk), Arc::new(MemoryBroker::new()), Names::new("test").unwrap());
        let first = segs_job("a", &CHAIN, None);
        let plan = Arc::new(plan(&first).unwrap());
        let key = plan.key_of(&plan.tasks()[0]);
        for job in [first, segs_job("b", &CHAIN, None)] {
            let (job, plan) = (Box::new(job), plan.clone());
            desk.apply(Event::Admitted { job, plan, found: Vec::new(), outputs: Vec::new() });
        }
        let shutdown = CancellationToken::new();
        let previews = Previews { broker: broker.clone(), names: names.clone(), desk: desk.clone(), shutdown };
        let mut wishes = broker.listen(&names.wishes()).await.unwrap();
        let mut seen = previews.clone().watch("b".parse().unwrap(), BTreeSet::new()).await.unwrap();
        let mut others = previews.watch("b".parse().unwrap(), BTreeSet::from([1, 2])).await.unwrap();

        desk.apply(beat(key));
        let wish = Wish::decode(&within(wishes.next()).await.unwrap().body).unwrap();
        assert_eq!((wish.keys, wish.valid), (vec![key], VALID));
        let preview =
            Preview { key, worker: "w".to_owned(), step: 3, steps: 20, fraction: 0.25, png: b"png".to_vec().into() };
        let stray = Preview { key: plan.key_of(&plan.tasks()[1]), ..preview.clone() };
        for preview in [stray, preview] {
            broker.broadcast(&names.previews(), Message::new("w", preview.encode())).await.unwrap();
        }
        let shown = within(seen.recv()).await.unwrap().unwrap();
        assert_eq!((shown.task, &*shown.description), (0, "redraw 64x64+0+0 of p.png"));
        assert_eq!(shown.region, Some(v1::PixelRegion { x: 0, y: 0, width: 64, height: 64 }));
        assert_eq!((shown.step, shown.steps, &*shown.worker, &*shown.png), (3, 20, "w", &b"png"[..]));

        desk.apply(Event::Cancelled("b".parse().unwrap()));
        assert!(within(seen.recv()).await.is_none(), "the job has ended");
        assert!(within(others.recv()).await.is_none(), "what was not asked for is not shown");
    }

    #[test]
    fn of_a_task_that_waits_to_be_received_the_newest_preview_is_kept() {
        let key = |n: u32| ResultKey::new(domain::digest::Digest::of(b"context"), Region::new(n, 0, 8, 8));
        let task =
            |n: u32, task| InHand { key: key(n), task, description: String::new(), region: Region::new(n, 0, 8, 8) };
        let preview = |n: u32, step| Preview {
            key: key(n),
            worker: String::new(),
            step,
            steps: 9,
            fraction: 0.0,
            png: Vec::new().into(),
        };
        let mut look = Look::default();
        assert!(look.update(vec![task(0, 4), task(0, 7), task(1, 5)]));
        assert!(!look.update(vec![task(0, 4), task(0, 7)]), "one less is no news");
        for (n, step) in [(0, 1), (1, 1), (0, 2)] {
            look.note(&preview(n, step));
        }
        let waiting: Vec<_> = look.waiting.values().map(|shown| (shown.task, shown.step)).collect();
        assert_eq!(waiting, [(4, 2), (7, 2)], "the same work twice is shown twice");
    }
}

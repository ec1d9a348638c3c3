//! A broker inside one process: for the embedded farm and for tests.
//!
//! It keeps every promise of the trait except one: a queue lives as long as somebody holds the broker.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use crate::error::{BrokerError, Result};
use crate::queue::{Broker, Consumer, Delivery, Listener, Message, Outcome, QueueSpec, Settle};

/// How many messages a slow listener may lie behind before it misses the oldest.
const TOPIC_BACKLOG: usize = 4096;

/// The brokers that have a name, for as long as somebody holds them.
static NAMED: LazyLock<Mutex<HashMap<String, Weak<Core>>>> = LazyLock::new(Mutex::default);

/// One client of a broker in memory.
#[derive(Debug)]
pub struct MemoryBroker {
    core: Arc<Core>,
    closed: CancellationToken,
}

impl MemoryBroker {
    /// Makes a broker of its own.
    pub fn new() -> Self {
        Self::client_of(Arc::default())
    }

    /// Joins the broker of this name, or makes it.
    pub fn named(name: &str) -> Self {
        let mut named = lock(&NAMED);
        named.retain(|_, core| core.strong_count() > 0);
        let core = named.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let core = Arc::new(Core { name: name.to_owned(), ..Core::default() });
            named.insert(name.to_owned(), Arc::downgrade(&core));
            core
        });
        Self::client_of(core)
    }

    /// Makes another client of the same broker, which is closed on its own.
    pub fn another(&self) -> Self {
        Self::client_of(self.core.clone())
    }

    fn client_of(core: Arc<Core>) -> Self {
        Self { core, closed: CancellationToken::new() }
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.is_cancelled() {
            return Err(self.core.closed());
        }
        Ok(())
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn declare(&self, spec: &QueueSpec) -> Result<()> {
        self.check_open()?;
        let mut state = self.core.state();
        let queue = state.queues.entry(spec.name.clone()).or_default();
        match &queue.spec {
            Some(existing) if existing != spec => Err(BrokerError::Mismatch {
                queue: spec.name.clone(),
                reason: format!("it is {existing:?}, asked for {spec:?}"),
            }),
            Some(_) => Ok(()),
            None => {
                queue.spec = Some(spec.clone());
                Ok(())
            }
        }
    }

    async fn publish_many(&self, queue: &str, messages: Vec<Message>) -> Result<()> {
        self.check_open()?;
        let mut state = self.core.state();
        let queue = state.declared(queue)?;
        queue.ready.extend(messages.into_iter().map(|message| Entry { message, deliveries: 0 }));
        queue.changed.notify_waiters();
        Ok(())
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>> {
        self.check_open()?;
        let mut state = self.core.state();
        let changed = state.declared(queue)?.changed.clone();
        state.consumers += 1;
        Ok(Box::new(MemoryConsumer {
            core: self.core.clone(),
            closed: self.closed.clone(),
            queue: queue.to_owned(),
            id: state.consumers,
            limit: if prefetch == 0 { usize::MAX } else { prefetch.into() },
            changed,
        }))
    }

    async fn broadcast(&self, topic: &str, message: Message) -> Result<()> {
        self.check_open()?;
        let mut state = self.core.state();
        // An error means that nobody listens, which is no error here; but then the topic can be forgotten.
        if state.topics.get(topic).is_some_and(|topic| topic.send(message).is_err()) {
            state.topics.remove(topic);
        }
        Ok(())
    }

    async fn listen(&self, topic: &str) -> Result<Box<dyn Listener>> {
        self.check_open()?;
        let mut state = self.core.state();
        let sender = state.topics.entry(topic.to_owned()).or_insert_with(|| broadcast::channel(TOPIC_BACKLOG).0);
        Ok(Box::new(MemoryListener {
            messages: sender.subscribe(),
            core: self.core.clone(),
            closed: self.closed.clone(),
        }))
    }

    async fn depth(&self, queue: &str) -> Result<u64> {
        self.check_open()?;
        Ok(self.core.state().declared(queue)?.ready.len() as u64)
    }

    async fn check(&self) -> Result<()> {
        self.check_open()
    }

    fn delivery_warning(&self, _longest: Duration) -> Option<String> {
        None
    }

    fn describe(&self) -> String {
        self.core.describe()
    }

    async fn close(&self) {
        self.closed.cancel();
    }
}

/// What all clients share.
#[derive(Debug, Default)]
struct Core {
    name: String,
    state: Mutex<State>,
}

impl Core {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn describe(&self) -> String {
        match self.name.as_str() {
            "" => "the broker in memory".into(),
            name => format!("the broker in memory `{name}`"),
        }
    }

    fn closed(&self) -> BrokerError {
        BrokerError::Closed { broker: self.describe() }
    }
}

#[derive(Debug, Default)]
struct State {
    queues: BTreeMap<String, Queue>,
    topics: HashMap<String, broadcast::Sender<Message>>,
    /// How many consumers there have ever been; the last one's id.
    consumers: u64,
    /// How many deliveries there have ever been; the last one's tag.
    deliveries: u64,
}

impl State {
    /// Finds a queue that somebody declared, not one that only holds dead letters so far.
    fn declared(&mut self, name: &str) -> Result<&mut Queue> {
        self.queues
            .get_mut(name)
            .filter(|queue| queue.spec.is_some())
            .ok_or_else(|| BrokerError::UnknownQueue { queue: name.to_owned() })
    }

    /// Puts a returned message first in its queue, or to the dead letters if it was delivered too often.
    fn requeue(&mut self, name: &str, entry: Entry) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let limit = queue.spec.as_ref().and_then(|spec| spec.delivery_limit);
        if limit.is_some_and(|limit| entry.deliveries >= limit) {
            self.dead_letter(name, entry);
        } else {
            queue.ready.push_front(entry);
            queue.changed.notify_waiters();
        }
    }

    /// Moves a message to the dead-letter queue of `name`, which keeps it even before anybody has declared it.
    fn dead_letter(&mut self, name: &str, entry: Entry) {
        let spec = self.queues.get(name).and_then(|queue| queue.spec.as_ref());
        let Some(target) = spec.and_then(|spec| spec.dead_letter_to.clone()) else {
            tracing::warn!(
                queue = name,
                message.id = entry.message.id,
                "dropped a message that has no dead-letter queue"
            );
            return;
        };
        let target = self.queues.entry(target).or_default();
        target.ready.push_back(Entry { message: entry.message, deliveries: 0 });
        target.changed.notify_waiters();
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// None as long as the queue is only known as the target of dead letters.
    spec: Option<QueueSpec>,
    ready: VecDeque<Entry>,
    /// By tag: who holds it, and what. Ordered, so that returned messages keep their order.
    unsettled: BTreeMap<u64, (u64, Entry)>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Entry {
    message: Message,
    /// How many deliveries have begun and count.
    deliveries: u32,
}

#[derive(Debug)]
struct MemoryConsumer {
    core: Arc<Core>,
    closed: CancellationToken,
    queue: String,
    id: u64,
    limit: usize,
    changed: Arc<Notify>,
}

impl MemoryConsumer {
    /// Takes a message if there is one and if this consumer's hands are not full.
    fn take(&self) -> Result<Option<Delivery>> {
        let mut state = self.core.state();
        let tag = state.deliveries + 1;
        let queue = state.declared(&self.queue)?;
        let held = queue.unsettled.values().filter(|(holder, _)| *holder == self.id).count();
        if held >= self.limit {
            return Ok(None);
        }
        let Some(mut entry) = queue.ready.pop_front() else {
            return Ok(None);
        };
        entry.deliveries += 1;
        let message = entry.message.clone();
        let attempt = entry.deliveries;
        queue.unsettled.insert(tag, (self.id, entry));
        state.deliveries = tag;
        let held = Held { core: self.core.clone(), queue: self.queue.clone(), id: message.id.clone(), tag };
        Ok(Some(Delivery::new(message, attempt, Box::new(held))))
    }

    /// Gives everything that is not settled back.
    fn release(&self) {
        let mut state = self.core.state();
        let Some(queue) = state.queues.get_mut(&self.queue) else { return };
        let mine: Vec<u64> =
            queue.unsettled.iter().filter(|(_, (holder, _))| *holder == self.id).map(|(tag, _)| *tag).collect();
        let entries: Vec<Entry> =
            mine.iter().filter_map(|tag| queue.unsettled.remove(tag)).map(|(_, entry)| entry).collect();
        for entry in entries.into_iter().rev() {
            state.requeue(&self.queue, entry);
        }
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Result<Delivery> {
        loop {
            let changed = self.changed.clone();
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable(); // before looking, so that no change is missed between looking and waiting
            if self.closed.is_cancelled() {
                self.release();
                return Err(self.core.closed());
            }
            if let Some(delivery) = self.take()? {
                return Ok(delivery);
            }
            tokio::select! {
                () = changed => {}
                () = self.closed.cancelled() => {}
            }
        }
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.release();
    }
}

/// One unsettled message.
struct Held {
    core: Arc<Core>,
    queue: String,
    id: String,
    tag: u64,
}

impl Held {
    fn apply(&self, outcome: Outcome) -> Result<()> {
        let mut state = self.core.state();
        let (_, mut entry) = state
            .queues
            .get_mut(&self.queue)
            .and_then(|queue| {
                queue.changed.notify_waiters(); // its holder may take another
                queue.unsettled.remove(&self.tag)
            })
            .ok_or_else(|| BrokerError::Stale { id: self.id.clone() })?;
        match outcome {
            Outcome::Done => {}
            Outcome::Retry => state.requeue(&self.queue, entry),
            Outcome::GiveBack => {
                entry.deliveries -= 1;
                state.requeue(&self.queue, entry);
            }
            Outcome::DeadLetter => state.dead_letter(&self.queue, entry),
        }
        Ok(())
    }
}

#[async_trait]
impl Settle for Held {
    async fn settle(self: Box<Self>, outcome: Outcome) -> Result<()> {
        self.apply(outcome)
    }

    fn abandon(self: Box<Self>) {
        // Stale is well: then it has gone back already.
        let _ = self.apply(Outcome::Retry);
    }
}

#[derive(Debug)]
struct MemoryListener {
    messages: broadcast::Receiver<Message>,
    core: Arc<Core>,
    closed: CancellationToken,
}

#[async_trait]
impl Listener for MemoryListener {
    async fn next(&mut self) -> Result<Message> {
        loop {
            tokio::select! {
                biased;
                () = self.closed.cancelled() => return Err(self.core.closed()),
                heard = self.messages.recv() => match heard {
                    Ok(message) => return Ok(message),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "listened too slowly and missed messages");
                    }
                    // The topic was forgotten while nobody was thought to listen, which cannot be: we do.
                    Err(broadcast::error::RecvError::Closed) => return Err(self.core.closed()),
                },
            }
        }
    }
}

/// Locks, also after a panic elsewhere: every change here is made whole before anything can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

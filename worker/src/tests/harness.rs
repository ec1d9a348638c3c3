//! A farm of one worker, and hands to pull its strings.

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use broker::{Broker, Delivery, MemoryBroker, Message, Settle};
use bytes::Bytes;
use domain::{
    digest::Digest,
    job::{Precision, Priority},
    layout,
    region::Region,
    task::{ComputeClass, Context, DECODE_REVISION, Part, Place, UPSCALE_REVISION},
};
use futures::FutureExt as _;
use imaging::{
    picture::{Color, Sample},
    raster::{Band, BandWriter, RasterInfo},
};
use proto::farm::{Beat, Names, Order, Preview, Report, Revocation, Wish};
use service::config;
use store::{ByteStream, EntryStream, Key, MemoryStore, Meta, Result, Store, StoreError, Writer};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    attempt::Bench,
    engine::{DeviceFacts, Engine, RenderError, Watch, Work},
    fetch::{DiskCache, Fetcher},
    metrics::Metrics,
    patience::Pauses,
    run_with,
    speeds::Speeds,
    topology::topology,
    turns::Turns,
};

/// Attempts per task.
pub const DELIVERY_LIMIT: u32 = 3;
/// The classes of scripted engines, the exact one first.
const CLASSES: [&str; 2] = ["cpu.scripted.f32", "cpu.scripted.bf16"];
const WIDTH: u32 = 300;
const HEIGHT: u32 = 200;

/// Waits for what must come soon: a guard, so that a test that fails does not hang.
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("it comes within half a minute")
}

/// A result of the right size.
pub fn black(work: &Work) -> Vec<f32> {
    vec![0.0; work.output_values()]
}

type Script = dyn Fn(&ComputeClass, &Work, &Watch) -> std::result::Result<Vec<f32>, RenderError> + Send + Sync;

/// An engine that does as the test says.
pub struct ScriptedEngine {
    classes: Vec<ComputeClass>,
    script: Box<Script>,
    calls: AtomicUsize,
}

impl ScriptedEngine {
    pub fn new(
        script: impl Fn(&Work, &Watch) -> std::result::Result<Vec<f32>, RenderError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Self::by_class(move |_, work, watch| script(work, watch))
    }

    /// One that is told the class of each task, too.
    pub fn by_class(
        script: impl Fn(&ComputeClass, &Work, &Watch) -> std::result::Result<Vec<f32>, RenderError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let classes = CLASSES.iter().map(|class| class.parse().unwrap()).collect();
        Arc::new(Self { classes, script: Box::new(script), calls: AtomicUsize::new(0) })
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Engine for ScriptedEngine {
    fn classes(&self) -> &[ComputeClass] {
        &self.classes
    }

    fn device(&self) -> DeviceFacts {
        DeviceFacts { name: "scripted".to_owned(), ..DeviceFacts::default() }
    }

    fn render(&self, class: &ComputeClass, work: &Work, watch: &Watch) -> std::result::Result<Vec<f32>, RenderError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        (self.script)(class, work, watch)
    }
}

/// The picture that every order is about: no two neighbours alike.
fn sample(x: u32, y: u32, c: u32) -> u8 {
    ((x * 7 + y * 13 + c * 31) % 251) as u8
}

fn picture() -> Digest {
    Digest::of(b"picture")
}

/// The pixels of `region`, as an engine gets them.
pub fn cut(region: Region) -> Vec<f32> {
    let pixels = (region.y..region.bottom()).flat_map(|y| (region.x..region.right()).map(move |x| (x, y)));
    pixels.flat_map(|(x, y)| [0, 1, 2].map(|c| f32::from(sample(x, y, c)) / 255.0)).collect()
}

/// An order for a tile of the picture.
pub fn order_at(region: Region, place: Place) -> Order {
    let context = Context::Upscale {
        revision: UPSCALE_REVISION,
        picture: picture(),
        decode: DECODE_REVISION,
        upscale_model: Digest::of(WEIGHTS),
        scale: 2,
        precision: Precision::Exact,
        place,
    };
    Order { dispatch: 1, job: "job-1".parse().unwrap(), task: 0, context, part: Part::Region(region) }
}

/// Weights that no engine looks into.
const WEIGHTS: &[u8] = b"weights";

/// Makes an order one that need not be exact.
pub fn set_fast(order: &mut Order) {
    let Context::Upscale { precision, .. } = &mut order.context else { unreachable!() };
    *precision = Precision::Fast;
}

pub fn set_model(order: &mut Order, model: Digest) {
    let Context::Upscale { upscale_model, .. } = &mut order.context else { unreachable!() };
    *upscale_model = model;
}

/// A farm without a coordinator, but for the test.
pub struct Farm {
    pub store: Arc<FlakyStore>,
    pub broker: Arc<MemoryBroker>,
    pub config: config::Worker,
    names: Names,
    beats: Mutex<Box<dyn broker::Listener>>,
    previews: Mutex<Box<dyn broker::Listener>>,
    models: TempDir,
}

/// A worker at work.
pub struct Running {
    pub shutdown: CancellationToken,
    handle: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Tells it to stop, and waits until it has left.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        within(self.handle).await.unwrap()
    }
}

impl Farm {
    /// A farm with a picture and a model in its store.
    pub async fn new() -> Self {
        let (store, broker) = (Arc::new(FlakyStore::default()), Arc::new(MemoryBroker::new()));
        let (names, models) = (Names::new("test").unwrap(), TempDir::new().unwrap());
        put(&*store, layout::model(Digest::of(WEIGHTS)), WEIGHTS).await;
        let raster = RasterInfo::new(WIDTH, HEIGHT, Color::Rgb, Sample::U8);
        let pixels = (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| (x, y)));
        let pixels: Vec<u8> = pixels.flat_map(|(x, y)| [0, 1, 2].map(|c| sample(x, y, c))).collect();
        let mut bands = Vec::new();
        let keep = |band: Band| {
            bands.push(band);
            Ok::<_, std::convert::Infallible>(())
        };
        BandWriter::new(raster).push(&pixels, keep).unwrap();
        for band in bands {
            put(&*store, layout::raster_band(picture(), band.index), band.bytes).await;
        }
        put(&*store, layout::raster_info(picture()), serde_json::to_vec(&raster).unwrap()).await;
        // The coordinator's queues.
        for queue in [names.reports(), names.dead()] {
            broker.declare(&broker::QueueSpec::new(queue)).await.unwrap();
        }
        let config = config::Worker {
            farm: "test".to_owned(),
            id: "worker-1".to_owned(),
            device: config::Device::Cpu,
            cpu: None,
            slots: 1,
            batch: 1,
            model_cache: models.path().to_owned(),
            model_cache_bytes: 1 << 20,
            model_memory_bytes: 1 << 20,
            beat_interval: Duration::from_secs(1),
            longest_task: Duration::from_secs(60),
            grace: Duration::from_secs(60),
            delivery_limit: DELIVERY_LIMIT,
            scratch: models.path().to_owned(),
        };
        let beats = Mutex::new(broker.listen(&names.beats()).await.unwrap());
        let previews = Mutex::new(broker.listen(&names.previews()).await.unwrap());
        Self { store, broker, config, names, beats, previews, models }
    }

    /// Takes a band of the picture out of the store.
    pub async fn lose_band(&self, index: u32) -> String {
        let key = layout::raster_band(picture(), index);
        self.store.delete(&Key::new(key.clone()).unwrap()).await.unwrap();
        key
    }

    /// Starts the worker.
    pub fn start(&self, engine: Arc<dyn Engine>) -> Running {
        let context = service::Context::default();
        let shutdown = context.shutdown.clone();
        let work = run_with(self.config.clone(), engine, self.store.clone(), self.broker.clone(), context);
        Running { shutdown, handle: tokio::spawn(work) }
    }

    /// What serves deliveries, without a worker around it.
    pub async fn bench(&self, engine: Arc<ScriptedEngine>) -> Bench {
        for queue in topology(&self.names, engine.classes(), DELIVERY_LIMIT) {
            self.broker.declare(&queue).await.unwrap();
        }
        let models = DiskCache::open(self.models.path(), 1 << 20).unwrap();
        let speeds: Arc<Speeds> = Arc::default();
        Bench {
            worker: "worker-1".to_owned(),
            turns: Turns::new(engine.clone(), speeds.clone(), 1, 1),
            engine,
            store: self.store.clone(),
            broker: self.broker.clone(),
            names: self.names.clone(),
            board: Arc::default(),
            fetcher: Fetcher::new(self.store.clone(), models, Metrics::new()),
            delivery_limit: DELIVERY_LIMIT,
            pauses: Pauses::new(Duration::from_millis(1)),
            shutdown: CancellationToken::new(),
            leaving: CancellationToken::new(),
            metrics: Metrics::new(),
            speeds,
        }
    }

    /// Where scripted engines are, and exact.
    pub fn place(&self) -> Place {
        Place::Class(CLASSES[0].parse().unwrap())
    }

    /// Where scripted engines are, and fast.
    pub fn fast_place(&self) -> Place {
        Place::Class(CLASSES[1].parse().unwrap())
    }

    /// An order for a scripted engine, for the 8x8 tile at column `x`.
    pub fn order(&self, x: u32) -> Order {
        order_at(Region::new(x, 0, 8, 8), self.place())
    }

    /// The queue for `order`.
    pub fn queue(&self, order: &Order) -> String {
        self.names.tasks(order.context.place(), order.context.pace(), Priority::Normal).unwrap()
    }

    pub async fn publish(&self, order: &Order) {
        self.broker.publish(&self.queue(order), Message::new("order", order.encode().unwrap())).await.unwrap();
    }

    /// Publishes as soon as the worker has made the queue.
    pub async fn publish_when_declared(&self, order: &Order) {
        self.until_declared(&self.queue(order)).await;
        self.publish(order).await;
    }

    /// A worker says that it is alive once it has its queues.
    pub async fn until_declared(&self, queue: &str) {
        self.until_beat(|_| true).await;
        self.broker.depth(queue).await.unwrap();
    }

    /// Waits for a beat like this.
    pub async fn until_beat(&self, is_it: impl Fn(&Beat) -> bool) {
        let mut beats = self.beats.lock().await;
        while !is_it(&Beat::decode(&within(beats.next()).await.unwrap().body).unwrap()) {}
    }

    pub async fn revoke(&self, revocation: Revocation) {
        self.broker.broadcast(&self.names.revoked(), Message::new("revocation", revocation.encode())).await.unwrap();
    }

    pub async fn wish(&self, wish: Wish) {
        self.broker.broadcast(&self.names.wishes(), Message::new("wish", wish.encode())).await.unwrap();
    }

    /// The next preview.
    pub async fn preview(&self) -> Preview {
        Preview::decode(&within(self.previews.lock().await.next()).await.unwrap().body).unwrap()
    }

    /// A preview that has come already, if there is one.
    pub async fn preview_now(&self) -> Option<Preview> {
        let message = self.previews.lock().await.next().now_or_never()?;
        Some(Preview::decode(&message.unwrap().body).unwrap())
    }

    /// The next report.
    pub async fn report(&self) -> Report {
        Report::decode(&self.next(&self.names.reports()).await.body).unwrap()
    }

    /// The next message that was given up.
    pub async fn dead(&self) -> Message {
        self.next(&self.names.dead()).await
    }

    async fn next(&self, queue: &str) -> Message {
        let mut consumer = self.broker.consume(queue, 1).await.unwrap();
        let delivery = within(consumer.next()).await.unwrap();
        let message = delivery.message.clone();
        delivery.ack().await.unwrap();
        message
    }

    pub async fn reports_left(&self) -> u64 {
        self.broker.depth(&self.names.reports()).await.unwrap()
    }

    pub async fn depth(&self, order: &Order) -> u64 {
        self.broker.depth(&self.queue(order)).await.unwrap()
    }

    /// What is stored as the result of `order`.
    pub async fn result(&self, order: &Order) -> Option<Bytes> {
        self.store.get(&Key::new(order.result_key().path()).unwrap()).await.ok()
    }

    pub async fn put_result(&self, order: &Order, size_bytes: usize) {
        put(&*self.store, order.result_key().path(), vec![0; size_bytes]).await;
    }

    /// Stores a small network that enlarges `scale` times.
    pub async fn put_model(&self, scale: usize) -> Digest {
        let tensor = |name: &str, shape: &[usize]| (format!("body.{name}"), shape.to_vec());
        let outputs = 3 * scale * scale;
        let bytes = weights::synthetic::network(&[
            tensor("0.weight", &[4, 3, 3, 3]),
            tensor("0.bias", &[4]),
            tensor("1.weight", &[4]),
            tensor("2.weight", &[outputs, 4, 3, 3]),
            tensor("2.bias", &[outputs]),
        ]);
        let model = Digest::of(&bytes);
        put(&*self.store, layout::model(model), bytes).await;
        model
    }

    /// A delivery of `order`, and what the world is like when it is settled.
    pub fn watched_delivery(&self, order: &Order) -> (Delivery, oneshot::Receiver<Seen>) {
        let (tell, seen) = oneshot::channel();
        let watcher = Watcher {
            store: self.store.clone(),
            broker: self.broker.clone(),
            result: Key::new(order.result_key().path()).unwrap(),
            reports: self.names.reports(),
            tell,
        };
        (Delivery::new(Message::new("order", order.encode().unwrap()), 1, Box::new(watcher)), seen)
    }
}

/// What the world was like when a delivery was settled.
#[derive(Debug)]
pub struct Seen {
    pub outcome: broker::Outcome,
    pub is_stored: bool,
    pub reports: u64,
}

struct Watcher {
    store: Arc<FlakyStore>,
    broker: Arc<MemoryBroker>,
    result: Key,
    reports: String,
    tell: oneshot::Sender<Seen>,
}

#[async_trait]
impl Settle for Watcher {
    async fn settle(self: Box<Self>, outcome: broker::Outcome) -> broker::Result<()> {
        let is_stored = self.store.head(&self.result).await.unwrap().is_some();
        let reports = self.broker.depth(&self.reports).await?;
        self.tell.send(Seen { outcome, is_stored, reports }).unwrap();
        Ok(())
    }

    fn abandon(self: Box<Self>) {
        panic!("the delivery was dropped");
    }
}

async fn put(store: &dyn Store, key: String, body: impl Into<Bytes>) {
    store.put(&Key::new(key).unwrap(), body.into()).await.unwrap();
}

/// A store in memory that is away when told so.
#[derive(Debug, Default)]
pub struct FlakyStore {
    within: MemoryStore,
    failures: AtomicUsize,
}

impl FlakyStore {
    /// Is away for the next `count` calls.
    pub fn fail_next(&self, count: usize) {
        self.failures.store(count, Ordering::SeqCst);
    }

    pub fn failures_left(&self) -> usize {
        self.failures.load(Ordering::SeqCst)
    }

    fn answer(&self, key: &Key) -> Result<&MemoryStore> {
        let fails = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match fails {
            Ok(_) => Err(StoreError::Unavailable { key: key.to_string(), source: "connection refused".into() }),
            Err(_) => Ok(&self.within),
        }
    }
}

#[async_trait]
impl Store for FlakyStore {
    async fn put(&self, key: &Key, body: Bytes) -> Result<()> {
        self.answer(key)?.put(key, body).await
    }

    async fn put_file(&self, key: &Key, path: &Path) -> Result<()> {
        self.answer(key)?.put_file(key, path).await
    }

    async fn writer(&self, key: &Key) -> Result<Box<dyn Writer>> {
        self.answer(key)?.writer(key).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.answer(key)?.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.answer(key)?.get_range(key, range).await
    }

    async fn get_stream(&self, key: &Key) -> Result<(u64, ByteStream)> {
        self.answer(key)?.get_stream(key).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Meta>> {
        self.answer(key)?.head(key).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.answer(key)?.delete(key).await
    }

    fn list(&self, prefix: &str) -> EntryStream {
        self.within.list(prefix)
    }

    async fn presign_get(&self, key: &Key, valid: Duration) -> Result<Option<String>> {
        self.answer(key)?.presign_get(key, valid).await
    }

    async fn presign_put(&self, key: &Key, valid: Duration) -> Result<Option<String>> {
        self.answer(key)?.presign_put(key, valid).await
    }

    fn describe(&self) -> String {
        "a store that comes and goes".to_owned()
    }
}

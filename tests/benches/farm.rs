//! What the farm itself costs: `cargo bench -p tests` prints one table; `cargo bench -p tests -- NAME…` a part of it.
//!
//! - `plan`: planning one million tiles.
//! - `tasks`: tasks per second through the coordinator and the broker, with an engine that does nothing.
//! - `graphs`: how much faster 16 workers are than one on graphs of different shapes, beside what their longest chains allow, with an
//!   engine that sleeps.
//! - `overhead`: a picture on a farm of one worker beside the same tiles through the same engine without a farm.
//! - `memory`: peak memory while a 20,000 x 20,000 picture is put together, as PNG and as TIFF.
//!
//! `tasks`, `graphs` and `overhead` use the RabbitMQ and S3 of `TESSERA_TEST_AMQP` and `TESSERA_TEST_S3` (see `with-services`)
//! where these are set, and memory otherwise; the table says which.

#![allow(clippy::print_stdout)] // a benchmark prints its table

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use broker::Broker;
use coordinator::{assemble::Assembler, intake::RasterRecord};
use domain::{
    digest::Digest,
    job::{Job, JobKind, Model, Output, Picture, Precision, Priority, Reproducibility, Timestamp, Upscale},
    layout,
    picture::{Color, Format, Sample},
    plan::{grid, plan},
    region::Size,
    task::{ComputeClass, ResultKey},
    tiles::Tiling,
};
use imaging::{picture::Limits, raster::RasterInfo};
use proto::v1::{self, create_job_request::Kind};
use service::config::{Config, Given};
use store::{FolderStore, Key, Store};
use tests::{
    farm::{services, within},
    pictures::{checkpoint, compact, png},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use worker::engine::{DeviceFacts, Engine, RenderError, UpscaleWork, Watch, Work, device::DeviceEngine};

/// How often farm and bare engine are timed in turn.
const ROUNDS: u32 = 3;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let [child, format, folder] = &arguments[..]
        && child == "memory-child"
    {
        return assemble_here(format.parse()?, Path::new(folder));
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == name);
    println!("| benchmark | figure | note |\n|---|---|---|");
    if wanted("plan") {
        bench_plan()?;
    }
    let runtime = tokio::runtime::Runtime::new()?;
    if wanted("tasks") {
        runtime.block_on(bench_tasks())?;
    }
    if wanted("graphs") {
        runtime.block_on(bench_graphs())?;
    }
    if wanted("overhead") {
        runtime.block_on(bench_overhead())?;
    }
    if wanted("memory") {
        bench_memory()?;
    }
    Ok(())
}

fn job(side: u32, scale: u32, tiling: Tiling, format: Format) -> Job {
    let picture = Picture {
        name: "picture.png".to_owned(),
        digest: Digest::of(b"picture"),
        size: Size::new(side, side),
        color: Color::Rgb,
        sample: Sample::U8,
        format: Format::Png,
    };
    let upscale_model =
        Model { digest: Digest::of(b"model"), name: "m".to_owned(), architecture: "Compact".to_owned(), scale };
    Job {
        id: "bench".parse().expect("an id"),
        request_id: String::new(),
        created: Timestamp(0),
        labels: Default::default(),
        priority: Priority::Normal,
        deadline: None,
        traceparent: None,
        warnings: Vec::new(),
        kind: JobKind::Upscale(Upscale {
            pictures: vec![picture],
            upscale_model,
            tiling,
            precision: Precision::Exact,
            reproducibility: Reproducibility::SameClass,
            class: "cpu.bench.f32".parse().expect("a class"),
            output: Output { format: Some(format), ..Output::default() },
            resize: None,
        }),
    }
}

fn bench_plan() -> Result<()> {
    let job = job(16 * 1000, 2, Tiling { side: 32, overlap: 16 }, Format::Tiff);
    let started = Instant::now();
    let plan = plan(&job)?;
    let elapsed = started.elapsed();
    println!("| plan | {:.2} s | {} tasks |", elapsed.as_secs_f64(), plan.tasks().len());
    Ok(())
}

/// An engine that answers at once with black.
struct Nothing(ComputeClass);

impl Engine for Nothing {
    fn classes(&self) -> &[ComputeClass] {
        std::slice::from_ref(&self.0)
    }

    fn device(&self) -> DeviceFacts {
        DeviceFacts { name: "nothing".to_owned(), ..DeviceFacts::default() }
    }

    fn render(&self, _: &ComputeClass, work: &Work, _: &Watch) -> Result<Vec<f32>, RenderError> {
        Ok(vec![0.0; work.output_values()])
    }
}

/// How many farms there were in this process: each has queues of its own.
static FARMS: AtomicU32 = AtomicU32::new(0);

/// How many workers there were in this process: each has a name of its own.
static WORKERS: AtomicU32 = AtomicU32::new(0);

/// A farm in this process, on the services that are there or in memory.
struct InProcess {
    store: Arc<dyn Store>,
    broker: Arc<dyn Broker>,
    address: std::net::SocketAddr,
    context: service::Context,
    config: Config,
    what: &'static str,
}

impl InProcess {
    async fn start(use_s3: bool, folder: &Path) -> Result<Self> {
        let mut config = Config::load(Given::default(), &[])?;
        let number = FARMS.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench-{}-{number}", std::process::id());
        (config.coordinator.farm, config.worker.farm) = (name.clone(), name.clone());
        config.coordinator.scratch = folder.to_owned();
        config.worker.scratch = folder.to_owned();
        config.worker.model_cache = folder.join("models");
        let services = services();
        let store = match services.as_ref().filter(|_| use_s3) {
            Some(services) => store::open(&format!("{}/{name}", services.store)).await?,
            None => store::open("memory:").await?,
        };
        let broker_url = services.as_ref().map_or("memory:", |services| &services.broker);
        let what = match (&services, use_s3) {
            (Some(_), true) => "RabbitMQ, S3",
            (Some(_), false) => "RabbitMQ, store in memory",
            (None, _) => "all in memory",
        };
        let broker = broker::open(broker_url, &broker::Options::default()).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let context = service::Context::default();
        let (coordinating, its_store, its_broker) = (config.coordinator.clone(), store.clone(), broker.clone());
        let its_context = context.clone();
        tokio::spawn(async move {
            coordinator::run(&coordinating, its_store, its_broker, listener, its_context).await.expect("it runs")
        });
        Ok(Self { store, broker, address, context, config, what })
    }

    fn add_worker(&self, engine: Arc<dyn Engine>, slots: usize) {
        let mut config = self.config.worker.clone();
        config.slots = slots;
        config.id = format!("worker-{}", WORKERS.fetch_add(1, Ordering::Relaxed));
        let (store, broker, context) = (self.store.clone(), self.broker.clone(), self.context.clone());
        tokio::spawn(async move { worker::run_with(config, engine, store, broker, context).await.expect("it runs") });
    }

    /// A channel to the coordinator, once it knows `workers` workers.
    async fn channel(&self, workers: usize) -> Result<Channel> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address))?;
        let channel = within("the coordinator", async {
            loop {
                if let Ok(channel) = endpoint.connect().await {
                    return Ok(channel);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await?;
        let mut client = v1::workers_client::WorkersClient::new(channel.clone());
        while client.list_workers(v1::ListWorkersRequest {}).await?.into_inner().workers.len() < workers {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(channel)
    }

    /// Uploads bytes, and gives their place as pictures are named.
    async fn upload(&self, bytes: &[u8]) -> Result<v1::PictureSource> {
        let digest = Digest::of(bytes);
        self.store.put(&Key::new(layout::artifact(digest))?, bytes.to_vec().into()).await?;
        let source = Some(v1::picture_source::Source::Digest(digest.to_string()));
        Ok(v1::PictureSource { name: "p.png".to_owned(), source })
    }

    /// Makes bytes the model `bench`.
    async fn add_model(&self, channel: &Channel, bytes: &[u8]) -> Result<()> {
        self.upload(bytes).await?;
        let add = v1::AddModelRequest { digest: Digest::of(bytes).to_string(), name: "bench".to_owned() };
        v1::models_client::ModelsClient::new(channel.clone()).add_model(add).await?;
        Ok(())
    }

    /// Submits a job and waits for its end; returns it and how long that took.
    async fn finish(&self, channel: &Channel, kind: Kind) -> Result<(v1::Job, Duration)> {
        let request = v1::CreateJobRequest { kind: Some(kind), ..v1::CreateJobRequest::default() };
        let mut jobs = v1::jobs_client::JobsClient::new(channel.clone());
        let started = Instant::now();
        let job = jobs.create_job(request).await?.into_inner().job.context("a job")?;
        let watch = v1::WatchJobRequest { job_id: job.id.clone(), after_sequence: 0 };
        let mut events = jobs.watch_job(watch).await?.into_inner();
        while events.message().await?.is_some() {}
        let elapsed = started.elapsed();
        let job = jobs.get_job(v1::GetJobRequest { job_id: job.id }).await?.into_inner().job.context("a job")?;
        anyhow::ensure!(job.state() == v1::JobState::Succeeded, "{:?}", job.failures);
        Ok((job, elapsed))
    }

    /// Enlarges a picture; returns the job and how long that took, uploading excluded.
    async fn upscale(&self, model: &[u8], picture: &[u8], side: u32, overlap: u32) -> Result<(v1::Job, Duration)> {
        let channel = self.channel(1).await?;
        self.add_model(&channel, model).await?;
        let job = v1::UpscaleJob {
            pictures: vec![self.upload(picture).await?],
            upscale_model: "bench".to_owned(),
            tile: Some(v1::TileOptions { side, overlap: Some(overlap), auto: false }),
            ..v1::UpscaleJob::default()
        };
        self.finish(&channel, Kind::Upscale(job)).await
    }
}

/// An engine that takes its time, and answers with black.
struct Sleeps(ComputeClass);

/// How long a task takes: long beside what the farm itself costs, as real ones are, which take seconds on the fastest cards.
const NAP: Duration = Duration::from_secs(1);

impl Engine for Sleeps {
    fn classes(&self) -> &[ComputeClass] {
        std::slice::from_ref(&self.0)
    }

    fn device(&self) -> DeviceFacts {
        DeviceFacts { name: "sleeps".to_owned(), ..DeviceFacts::default() }
    }

    fn render(&self, _: &ComputeClass, work: &Work, _: &Watch) -> Result<Vec<f32>, RenderError> {
        std::thread::sleep(NAP);
        Ok(vec![0.0; work.output_values()])
    }
}

/// Segments of 64x64 pixels in `columns` and `rows`, so many pixels apart, of which each hangs over the next where that is less.
fn segments((columns, rows): (u32, u32), (across, down): (u32, u32)) -> Option<v1::SegsSource> {
    let seg = |column: u32, row: u32| {
        let (x, y) = (i64::from(column * across), i64::from(row * down));
        v1::Seg { crop_region: vec![x, y, x + 64, y + 64], ..v1::Seg::default() }
    };
    let segs = (0..rows).flat_map(|row| (0..columns).map(move |column| seg(column, row))).collect();
    let (width, height) = (64 + (columns - 1) * across, 64 + (rows - 1) * down);
    Some(v1::SegsSource { source: Some(v1::segs_source::Source::Segs(v1::Segs { width, height, segs })) })
}

/// The graphs by their shapes: what they are of, and the jobs.
fn graphs(picture: &v1::PictureSource) -> Vec<(&'static str, Kind)> {
    let basic_pipe = Some(v1::BasicPipe { checkpoint: "bench".to_owned(), ..v1::BasicPipe::default() });
    let redraw = |segs| {
        Kind::SegsUpscale(v1::SegsUpscaleJob {
            picture: Some(picture.clone()),
            segs,
            basic_pipe: basic_pipe.clone(),
            rescale_factor: Some(1.0),
            supersample: Some(false),
            ..v1::SegsUpscaleJob::default()
        })
    };
    let chain = v1::LatentUpscaleJob {
        source: Some(v1::latent_upscale_job::Source::Picture(picture.clone())),
        upscale_factor: Some(1.1),
        steps: 10,
        base_sampler: Some(v1::PipedSampler { basic_pipe: basic_pipe.clone(), ..v1::PipedSampler::default() }),
        ..v1::LatentUpscaleJob::default()
    };
    vec![
        ("apart", redraw(segments((8, 6), (64, 64)))),
        ("rows", redraw(segments((6, 8), (48, 64)))),
        ("grid", redraw(segments((8, 6), (48, 48)))),
        ("chain", Kind::LatentUpscale(chain)),
    ]
}

/// What `workers` workers take for each graph, with the longest chain and the number of tasks that they work on.
async fn time_graphs(workers: usize) -> Result<Vec<(&'static str, Duration, u64, u64)>> {
    let folder = tempfile::TempDir::new()?;
    let farm = InProcess::start(false, folder.path()).await?;
    let class: ComputeClass = "cpu.sleeps.f32".parse()?;
    for _ in 0..workers {
        farm.add_worker(Arc::new(Sleeps(class.clone())), 1);
    }
    let channel = farm.channel(workers).await?;
    farm.add_model(&channel, &checkpoint()).await?;
    // Every worker fetches and checks the model once.
    let warm = farm.upload(&png(16, 16)).await?;
    let segs = segments((workers as u32, 1), (64, 64));
    let basic_pipe = Some(v1::BasicPipe { checkpoint: "bench".to_owned(), ..v1::BasicPipe::default() });
    let warm = v1::SegsDetailJob { picture: Some(warm), segs, basic_pipe, ..v1::SegsDetailJob::default() };
    farm.finish(&channel, Kind::SegsDetail(warm)).await?;

    let picture = farm.upload(&png(512, 512)).await?;
    let mut times = Vec::new();
    for (shape, kind) in graphs(&picture) {
        let request = v1::CreateJobRequest { kind: Some(kind.clone()), ..v1::CreateJobRequest::default() };
        let job = Some(v1::plan_job_request::Job::Request(request));
        let plan = v1::PlanJobRequest { job, ..v1::PlanJobRequest::default() };
        let plan = v1::jobs_client::JobsClient::new(channel.clone()).plan_job(plan).await?.into_inner();
        let of_workers = |counted: &&v1::PlannedOperation| matches!(&*counted.operation, "redraw" | "latent");
        let tasks = plan.operations.iter().filter(of_workers).map(|counted| counted.total).sum();
        let (_, elapsed) = farm.finish(&channel, kind).await?;
        times.push((shape, elapsed, plan.critical_path.len() as u64, tasks));
    }
    farm.context.shutdown.cancel();
    Ok(times)
}

async fn bench_graphs() -> Result<()> {
    const WORKERS: usize = 16;
    let alone = time_graphs(1).await?;
    let together = time_graphs(WORKERS).await?;
    for ((shape, one, chain, tasks), (_, many, ..)) in alone.into_iter().zip(together) {
        // All tasks take equally long.
        let least = chain.max(tasks.div_ceil(WORKERS as u64));
        let (bound, got) = (tasks as f64 / least as f64, one.as_secs_f64() / many.as_secs_f64());
        println!(
            "| graphs: {shape} | {got:.2}x of {bound:.2}x ({:.1} %) | {tasks} tasks, longest chain {chain}; 1 worker {:.2} s, {WORKERS} \
             workers {:.2} s |",
            100.0 * got / bound,
            one.as_secs_f64(),
            many.as_secs_f64()
        );
    }
    Ok(())
}

async fn bench_tasks() -> Result<()> {
    let folder = tempfile::TempDir::new()?;
    let farm = InProcess::start(false, folder.path()).await?;
    let class: ComputeClass = "cpu.nothing.f32".parse()?;
    for _ in 0..2 {
        farm.add_worker(Arc::new(Nothing(class.clone())), 16);
    }
    let (job, elapsed) = farm.upscale(&compact(4, 1, 2), &png(1600, 1600), 16, 0).await?;
    let tasks = job.progress.unwrap_or_default().tasks_total;
    let per_second = tasks as f64 / elapsed.as_secs_f64();
    println!("| tasks | {per_second:.0} tasks/s | {tasks} tasks, no-op engine, 2 workers; {} |", farm.what);
    farm.context.shutdown.cancel();
    Ok(())
}

async fn bench_overhead() -> Result<()> {
    let folder = tempfile::TempDir::new()?;
    let weights = compact(24, 8, 2);
    let path = folder.path().join("bench.safetensors");
    std::fs::write(&path, &weights)?;
    let engine = DeviceEngine::open(service::config::Device::Cpu, None, 1 << 30)?;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let farm = InProcess::start(true, folder.path()).await?;
    farm.add_worker(engine.clone(), 1);
    let (side, overlap, length) = (256, 32, 1376);
    farm.upscale(&weights, &png(64, 64), side, overlap).await?; // warms the model cache

    // In turn, so that a machine whose speed drifts does not favour one of them.
    let mut overheads = Vec::new();
    for round in 0..ROUNDS {
        let (_, on_farm) = farm.upscale(&weights, &png(length + round, length), side, overlap).await?;
        let JobKind::Upscale(mut upscale) = self::job(length, 2, Tiling { side, overlap }, Format::Png).kind else {
            unreachable!("the benchmark upscales")
        };
        upscale.pictures[0].size.width += round;
        let grid = grid(&upscale, &upscale.pictures[0])?;
        let (engine, model, path) = (engine.clone(), Digest::of(&weights), path.clone());
        let bare = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            for tile in grid.tiles() {
                let work = Work::Upscale(UpscaleWork {
                    region: tile.input,
                    rgb: vec![0.5; tile.input.size().pixels() as usize * 3],
                    scale: 2,
                    model,
                    weights: path.clone(),
                });
                engine.render(&engine.classes()[0], &work, &Watch::default())?;
            }
            Ok::<_, RenderError>(started.elapsed())
        });
        overheads.push(100.0 * (on_farm.as_secs_f64() / bare.await??.as_secs_f64() - 1.0));
    }
    overheads.sort_by(f64::total_cmp);
    println!(
        "| overhead | {:.1} % | {:.1} to {:.1} % in {ROUNDS} rounds; 1 worker, decoding, blending and encoding included; {} |",
        overheads[overheads.len() / 2],
        overheads[0],
        overheads[overheads.len() - 1],
        farm.what
    );
    farm.context.shutdown.cancel();
    Ok(())
}

fn bench_memory() -> Result<()> {
    for format in [Format::Png, Format::Tiff] {
        let folder = tempfile::TempDir::new()?;
        let status = Command::new(std::env::current_exe()?)
            .args(["memory-child".as_ref(), format.name().as_ref(), folder.path().as_os_str()])
            .status()?;
        anyhow::ensure!(status.success(), "the child failed");
    }
    Ok(())
}

/// Puts together a 20,000 x 20,000 picture out of tiles that are hard links to a few files, and prints the peak memory
/// of this process.
fn assemble_here(format: Format, folder: &Path) -> Result<()> {
    let scale = 4;
    let job = job(5000, scale, Tiling { side: 512, overlap: 32 }, format);
    let plan = plan(&job)?;
    let root = folder.join("store");
    let store: Arc<dyn Store> = Arc::new(FolderStore::open(&root)?);
    let runtime = tokio::runtime::Runtime::new()?;
    let JobKind::Upscale(upscale) = &job.kind else { unreachable!("the benchmark upscales") };
    let picture = &upscale.pictures[0];
    let raster = RasterInfo::new(picture.size.width, picture.size.height, picture.color, picture.sample);
    let record = RasterRecord { raster, format: Format::Png, has_icc: false, has_exif: false };
    runtime.block_on(coordinator::records::put_json(&*store, &layout::raster_info(picture.digest), &record))?;
    for task in plan.tasks() {
        let context = plan.context_of(task);
        if let Some(size) = context.context.result_bytes(&task.part) {
            let model = folder.join(format!("tile-{size}"));
            if !model.exists() {
                let ramp: Vec<u8> = (0..size / 4).flat_map(|i| ((i % 6144) as f32 / 6144.0).to_le_bytes()).collect();
                std::fs::write(&model, ramp)?;
            }
            let path = root.join(ResultKey { context: context.digest, task: task.digest }.path());
            std::fs::create_dir_all(path.parent().context("a folder")?)?;
            std::fs::hard_link(&model, path)?;
        }
    }
    reset_peak();
    let assembling = plan.tasks().last().context("a plan has tasks")?;
    let limits = Limits { max_pixels: 1 << 32, ..Limits::default() };
    let assembler = Assembler { store, scratch: folder.to_owned(), limits };
    let started = Instant::now();
    let output = runtime.block_on(assembler.assemble(&job, &plan, assembling, &CancellationToken::new()))?;
    let (elapsed, peak) = (started.elapsed(), peak_mib()?);
    println!(
        "| memory | {peak} MiB | {} {format}, {} MB, {:.1} s; tiles in a folder |",
        output.size,
        output.artifact.size_bytes / 1_000_000,
        elapsed.as_secs_f64()
    );
    Ok(())
}

/// The most memory that this process has had since the last reset, in MiB.
fn peak_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? / 1024)
}

/// Forgets the peak so far; where that is not allowed the figure includes the preparation.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

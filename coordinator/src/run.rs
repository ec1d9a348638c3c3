//! The coordinator as a process.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use broker::Broker;
use domain::task::ComputeClass;
use imaging::picture::Limits;
use proto::{
    farm::Names,
    v1::{
        self, artifacts_server::ArtifactsServer, jobs_server::JobsServer, models_server::ModelsServer,
        workers_server::WorkersServer,
    },
};
use service::{Backoff, config, report::Hinted as _, retry};
use store::{Store, StoreError};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::TaskTracker;

use crate::{
    assemble::Assembler,
    catalog::Catalog,
    desk::{Desk, now},
    dispatch::Dispatch,
    inbox::Inbox,
    intake::{Intake, Planned},
    ledger::{Ending, Event, Failure, Ledger, Rules},
    metrics::Metrics,
    previews::Previews,
    records::Records,
    refusal::chain,
    roster::Roster,
    services::{
        artifacts::ArtifactsService,
        jobs::{JobsService, Turns},
        models::ModelsService,
        workers::WorkersService,
    },
};

/// Pictures that are fetched and decoded at once: each may take `limits.max_whole_picture_bytes`.
const DECODING: usize = 2;

/// How long calls under way may take when the process is told to stop.
const FAREWELL: Duration = Duration::from_secs(5);

/// How large pictures may be that are decoded.
pub fn picture_limits(limits: &config::Limits) -> Limits {
    let config::Limits { max_side, max_pixels, max_whole_picture_bytes } = *limits;
    Limits { max_width: max_side, max_height: max_side, max_pixels, max_whole_picture_bytes }
}

/// Runs a coordinator on `listener` until it is told to stop, or the store or the broker refuses for good.
pub async fn run(
    config: &config::Coordinator,
    store: Arc<dyn Store>,
    broker: Arc<dyn Broker>,
    listener: TcpListener,
    context: service::Context,
) -> anyhow::Result<()> {
    let shutdown = context.shutdown.clone();
    let names = Names::new(&config.farm)?;
    let default_class = config.default_class.as_deref().map(str::parse::<ComputeClass>).transpose();
    let default_class = default_class.context("configuration key `default_class` is wrong")?;
    let limits = picture_limits(&config.limits);
    std::fs::create_dir_all(&config.scratch)
        .with_context(|| format!("cannot make the scratch folder {}", config.scratch.display()))?;

    let catalog = Arc::new(Catalog::new(store.clone()));
    catalog.add_builtin().await.context("cannot store the built-in models")?;
    let roster = Arc::new(Roster::new(config.worker_silence));
    let records = Records::new(store.clone(), &config.farm);
    let metrics = Arc::new(Metrics::new());
    let rules = Rules { dispatch_window: config.dispatch_window, stuck_task: config.stuck_task };
    let (desk, errands) = Desk::new(Ledger::new(rules, now()));
    let desk = Arc::new(desk);
    let intake = Arc::new(Intake {
        store: store.clone(),
        catalog: catalog.clone(),
        roster: roster.clone(),
        limits,
        scratch: config.scratch.clone(),
        default_class,
        max_upload_bytes: config.max_upload_bytes,
        decoding: Semaphore::new(DECODING),
    });

    let inbox = Inbox {
        broker: broker.clone(),
        names: names.clone(),
        delivery_limit: config.delivery_limit,
        desk: desk.clone(),
        roster: roster.clone(),
    };
    inbox.declare().await.context("cannot declare the farm's queues")?;
    let assemblies = TaskTracker::new();
    let previews =
        Previews { broker: broker.clone(), names: names.clone(), desk: desk.clone(), shutdown: shutdown.clone() };
    let dispatch = Dispatch {
        broker: broker.clone(),
        names,
        delivery_limit: config.delivery_limit,
        records: records.clone(),
        assembler: Assembler { store: store.clone(), scratch: config.scratch.clone(), limits },
        intake: intake.clone(),
        desk: desk.clone(),
        slots: Arc::new(Semaphore::new(config.assemble_jobs)),
        assemblies: assemblies.clone(),
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
    };
    let mut dispatching = tokio::spawn(dispatch.run(errands));
    resume(&records, &intake, &desk).await.context("cannot take up the jobs in the store")?;

    let jobs = JobsService {
        desk: desk.clone(),
        intake: intake.clone(),
        previews,
        records,
        farm: config.farm.clone(),
        max_active_jobs: config.max_active_jobs,
        metrics,
        shutdown: shutdown.clone(),
        turns: Turns::default(),
    };
    let artifacts =
        ArtifactsService { store, scratch: config.scratch.clone(), max_upload_bytes: config.max_upload_bytes };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<JobsServer<JobsService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("cannot describe the services")?;
    let address = listener.local_addr().context("cannot tell the address served")?;
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(JobsServer::new(jobs))
        .add_service(ArtifactsServer::new(artifacts))
        .add_service(ModelsServer::new(ModelsService { catalog, intake }))
        .add_service(WorkersServer::new(WorkersService { roster }))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.clone().cancelled_owned());
    let mut serving = tokio::spawn(serving);
    context.health.ready("coordinator");
    tracing::info!(%address, farm = config.farm, "coordinator is ready");

    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        error = inbox.take_reports() => Err(error).context("cannot take reports"),
        error = inbox.take_dead() => Err(error).context("cannot take dead-lettered tasks"),
        error = inbox.take_beats() => Err(error).context("cannot hear the workers"),
        () = inbox.tick() => Ok(()),
        ended = &mut dispatching => match ended {
            Ok(result) => result.context("cannot publish tasks"),
            Err(error) => Err(error).context("dispatch stopped"),
        },
        ended = &mut serving => match ended {
            Ok(result) => result.context("cannot serve gRPC"),
            Err(error) => Err(error).context("the gRPC server stopped"),
        },
    };
    context.health.not_ready("coordinator", "is leaving");
    // What is cut off here is taken up by the next coordinator.
    shutdown.cancel();
    assemblies.close();
    let farewell = async {
        if !serving.is_finished() {
            let _ = serving.await;
        }
        assemblies.wait().await;
        if !dispatching.is_finished() {
            let _ = dispatching.await;
        }
    };
    if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
        tracing::warn!("left calls unanswered");
    }
    outcome
}

/// The coordinator as a program of its own: opens the store and the broker that the configuration names, and runs.
pub async fn process(config: config::Config, context: service::Context) -> anyhow::Result<()> {
    config.require_shared().map_err(|error| {
        let hint = error.hint();
        service::report::with_hint(error, hint)
    })?;
    let (store, broker) = connect(&config, format!("coordinator of {}", config.coordinator.farm)).await?;
    let address = config.coordinator.listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
        .hint("`listen` (TESSERA_LISTEN) chooses another address")?;
    let result = run(&config.coordinator, store, broker.clone(), listener, context).await;
    broker.close().await;
    result
}

/// Opens the store and the broker that the configuration names, and waits until both answer. `name` is what an operator
/// of the broker sees.
pub async fn connect(config: &config::Config, name: String) -> anyhow::Result<(Arc<dyn Store>, Arc<dyn Broker>)> {
    let hint = "`store` (TESSERA_STORE) says where it is; `tessera doctor` tries it";
    let store = store::open(&config.store).await.context("cannot open the store").hint(hint)?;
    let backoff = Backoff::until(config.start_timeout);
    let answer = retry("the store", backoff, StoreError::is_retryable, async || store.check().await).await;
    answer.with_context(|| format!("{} does not answer", store.describe())).hint(hint)?;
    let options = broker::Options {
        name,
        patience: config.start_timeout.max(config.broker_patience),
        consumer_timeout: config.broker_consumer_timeout,
    };
    let broker = broker::open(config.broker.expose(), &options)
        .await
        .context("cannot open the broker")
        .hint("`broker` (TESSERA_BROKER) says where it is; `tessera doctor` tries it")?;
    Ok((store, broker))
}

/// Takes up every job that the store holds.
async fn resume(records: &Records, intake: &Intake, desk: &Desk) -> anyhow::Result<()> {
    let mut active = Vec::new();
    for (job, ending) in records.all().await? {
        match ending {
            Some(ending) => desk.apply(Event::Remembered { job: Box::new(job), ending }),
            None => active.push(job),
        }
    }
    active.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    for job in active {
        let (id, kept) = (job.id.clone(), job.clone());
        intake.restore(&job).await?;
        match intake.plan(job).await {
            Ok(Planned { job, plan, found, outputs }) => {
                tracing::info!(job.id = %id, task.count = plan.tasks().len(), task.found = found.len(), "took up job");
                desk.apply(Event::Admitted { job: Box::new(job), plan, found, outputs });
            }
            Err(crate::refusal::Refusal::Field(error)) => {
                // Planned by another version, perhaps: say so on the job and go on with the others.
                let failure = Failure {
                    task: 0,
                    description: "plan".to_owned(),
                    message: format!("the job cannot be taken up: {}", chain(&error)),
                    attempt: 0,
                    worker: String::new(),
                };
                let ending = Ending {
                    state: domain::job::JobState::Failed,
                    finished: now(),
                    outputs: Vec::new(),
                    failures: vec![failure],
                    warnings: Vec::new(),
                    counts: (0, 0, 0),
                };
                desk.apply(Event::Remembered { job: Box::new(kept), ending });
            }
            Err(other) => return Err(other.into()),
        }
    }
    Ok(())
}

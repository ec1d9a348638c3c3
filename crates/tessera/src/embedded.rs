//! The whole farm in one process: the same coordinator and the same workers, over a broker in memory and a folder.

mod one_run;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use broker::{Broker, MemoryBroker};
use service::{
    Secret,
    config::{self, Config},
};
use store::Store;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    cache::{self, AtWork},
    client::{Farm, call},
    exit::{Failure, Outcome},
};
use one_run::OneRun;

/// How often a new farm is asked whether its workers are there.
const READY_INTERVAL: Duration = Duration::from_millis(20);
/// How often workers in this process say that they are there, where there is no network to spare: the coordinator
/// begins to listen a moment after they begin to speak, and nobody should wait for their second word.
const BEAT_INTERVAL: Duration = Duration::from_millis(200);

/// A farm that runs in this process until it is [stopped](Parts::stop).
#[derive(Debug)]
pub struct Parts {
    running: JoinSet<(String, anyhow::Result<()>)>,
    stop: CancellationToken,
}

impl Parts {
    /// Starts a coordinator on `listener` and `workers` workers.
    pub fn start(
        config: &Config,
        workers: u32,
        store: Arc<dyn Store>,
        broker: Arc<dyn Broker>,
        listener: TcpListener,
        context: service::Context,
    ) -> Self {
        let mut running = JoinSet::new();
        let stop = context.shutdown.clone();
        let in_memory = config.broker.expose().starts_with("memory:");
        {
            let (config, store, broker) = (config.coordinator.clone(), store.clone(), broker.clone());
            let context = context.clone();
            running.spawn(async move {
                ("coordinator".to_owned(), coordinator::run(&config, store, broker, listener, context).await)
            });
        }
        for number in 1..=workers {
            let mut config = config.worker.clone();
            config.id = format!("{}-{number}", config.id);
            if in_memory {
                config.beat_interval = config.beat_interval.min(BEAT_INTERVAL);
            }
            let (store, broker, context) = (store.clone(), broker.clone(), context.clone());
            running.spawn(async move {
                let name = format!("worker {}", config.id);
                (name, worker::run(config, store, broker, context).await)
            });
        }
        Self { running, stop }
    }

    /// Waits until a part ends, which none does by itself unless something is wrong or it was told to.
    ///
    /// # Errors
    /// Why the part ended, if it was not told to.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        match self.running.join_next().await {
            None => Ok(()),
            Some(Ok((_, Ok(())))) if self.stop.is_cancelled() => Ok(()),
            Some(Ok((name, Ok(())))) => Err(anyhow!("the {name} of the embedded farm ended")),
            Some(Ok((name, Err(error)))) => Err(error.context(format!("the {name} of the embedded farm stopped"))),
            Some(Err(panic)) => Err(anyhow::Error::new(panic).context("a part of the embedded farm crashed")),
        }
    }

    /// Stops every part and waits for it.
    ///
    /// # Errors
    /// The first error of a part.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let mut result = Ok(());
        while !self.running.is_empty() {
            result = result.and(self.ended().await);
        }
        result
    }
}

/// Does `work` on the farm that the configuration names, or on one of `workers` workers embedded in this process.
pub async fn on_farm(config: &Config, workers: u32, work: impl AsyncFnOnce(&Farm) -> Outcome) -> Outcome {
    if let Some(server) = &config.client.server {
        return work(&Farm::connect(server).await?).await;
    }
    let mut embedded = Embedded::start(config, workers).await?;
    let server = embedded.server();
    let outcome = tokio::select! {
        outcome = async { work(&connect(&server).await?).await } => outcome,
        error = embedded.failed() => Err(error.into()),
    };
    let ended = embedded.stop().await;
    outcome.and(ended.map_err(Failure::from))
}

/// The farm of one command.
///
/// Its results go to the folder `store` in the cache folder, so that the next run finds them; its jobs end with it, so
/// that several may run at once over one folder.
#[derive(Debug)]
pub struct Embedded {
    parts: Parts,
    at_work: AtWork,
    client: config::Client,
    address: SocketAddr,
}

impl Embedded {
    /// Starts the farm.
    pub async fn start(config: &Config, workers: u32) -> anyhow::Result<Self> {
        let at_work = cache::at_work(&config.client).await?;
        let folder = cache::open(&config.client)?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("cannot listen on this machine's loopback")?;
        let address = listener.local_addr().context("cannot tell the address served")?;
        let mut config = config.clone();
        config.broker = Secret::new("memory:");
        // Not the process's own: the client cancels its jobs before the farm stops.
        let context = service::Context::default();
        let store = Arc::new(OneRun::over(folder));
        let broker = Arc::new(MemoryBroker::new());
        let parts = Parts::start(&config, workers, store, broker, listener, context);
        Ok(Self { parts, at_work, client: config.client, address })
    }

    /// Where it serves.
    pub fn server(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until the farm fails.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.parts.ended().await {
            Ok(()) => anyhow!("the embedded farm ended"),
            Err(error) => error,
        }
    }

    /// Stops the farm, and keeps its folder within its limit if no other farm uses it.
    pub async fn stop(self) -> anyhow::Result<()> {
        let result = self.parts.stop().await;
        drop(self.at_work);
        cache::keep_small(&self.client).await;
        result
    }
}

/// Connects to the embedded farm at `server` as any program would, once its first worker is there.
pub async fn connect(server: &str) -> anyhow::Result<Farm> {
    let farm = Farm::connect(server).await?;
    loop {
        let answer = call("ListWorkers", || {
            let mut workers = farm.workers.clone();
            async move { workers.list_workers(proto::v1::ListWorkersRequest {}).await }
        });
        if !answer.await?.workers.is_empty() {
            return Ok(farm);
        }
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

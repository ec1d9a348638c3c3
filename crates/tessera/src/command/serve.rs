//! `tessera serve`: the whole farm in one process, for other programs.

use std::{fs::File, time::Duration};

use anyhow::Context as _;
use proto::v1::{self, JobState};
use service::{
    config::Config,
    report::{Hinted as _, with_hint},
};
use tokio::net::TcpListener;

use crate::{
    cache::{self, AtWork},
    client::{Farm, call},
    embedded::Parts,
};

/// How often the store in the cache folder is kept within its limit.
const SHRINK_INTERVAL: Duration = Duration::from_secs(600);

/// Runs a coordinator and `workers` workers until told to stop.
///
/// By default the broker is in memory and the store is the one in the cache folder, jobs included, so that a restart
/// takes them up again.
pub async fn run(workers: u32, config: Config, context: service::Context) -> anyhow::Result<()> {
    let in_cache = config.store == service::config::folder_url(&cache::folder(&config.client)).unwrap_or_default();
    let _lock = if in_cache { Some(lock(&config)?) } else { None };
    let mut at_work = if in_cache { Some(cache::at_work(&config.client).await?) } else { None };
    let (store, broker) = coordinator::run::connect(&config, format!("farm {}", config.coordinator.farm)).await?;
    let address = config.coordinator.listen;
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"));
    let listener = listener.hint("`listen` (TESSERA_LISTEN) chooses another address")?;
    let server = format!("http://{}", listener.local_addr().context("cannot tell the address served")?);
    eprintln!("serving on {server}; `tessera upscale … --server {server}` uses it");

    let stopped = context.shutdown.clone();
    let mut parts = Parts::start(&config, workers, store, broker.clone(), listener, context);
    let result = tokio::select! {
        result = parts.ended() => result,
        () = stopped.cancelled() => Ok(()),
        result = keep_small(&config, &server, &mut at_work), if in_cache => result,
    };
    let ended = parts.stop().await;
    broker.close().await;
    result.and(ended)
}

/// Makes sure that no other `tessera serve` keeps its jobs in the same folder; the lock ends with the file.
fn lock(config: &Config) -> anyhow::Result<File> {
    let path = config.client.cache.join("serve.lock");
    let context = || format!("cannot use the cache folder {}", config.client.cache.display());
    std::fs::create_dir_all(&config.client.cache).with_context(context)?;
    let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(context)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let error = anyhow::anyhow!("another `tessera serve` keeps its jobs in {}", config.client.cache.display());
            Err(with_hint(error, "choose another folder with --cache or another store with --store"))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error).with_context(context),
    }
}

/// Keeps the store in the cache folder within its limit, whenever no job needs what is in it.
async fn keep_small(config: &Config, server: &str, at_work: &mut Option<AtWork>) -> anyhow::Result<()> {
    let farm = Farm::connect(server).await?;
    loop {
        let answer = call("ListJobs", || {
            let states = [JobState::Queued, JobState::Running].map(i32::from).to_vec();
            let mut jobs = farm.jobs.clone();
            async move { jobs.list_jobs(v1::ListJobsRequest { page_size: 1, states, ..Default::default() }).await }
        });
        if answer.await?.jobs.is_empty() {
            *at_work = None;
            cache::keep_small(&config.client).await;
            *at_work = Some(cache::at_work(&config.client).await?);
        }
        tokio::time::sleep(SHRINK_INTERVAL).await;
    }
}

//! `tessera doctor`: tries everything a farm stands on, one by one, and names cause and cure.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use proto::v1;
use serde_json::json;
use service::{
    config::{self, Config, units::show_bytes},
    hide_password,
    report::{self, Hinted as _, with_hint},
};
use tokio::task::spawn_blocking;
use weights::{builtin::BUILTIN, checkpoint::Checkpoint, detect::detect};
use worker::engine::device::DeviceEngine;

use crate::{
    cache,
    client::{Farm, call},
    exit::{Failure, Outcome},
    output,
};

/// How long one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// One check: what was tried, and what came of it.
struct Finding {
    name: &'static str,
    result: Result<String, anyhow::Error>,
}

/// Runs every check; one that fails makes the command fail.
pub async fn run(json: bool, config: Config) -> Outcome {
    let mut findings = Vec::new();
    let mut note = async |name, check: std::pin::Pin<Box<dyn Future<Output = anyhow::Result<String>>>>| {
        let result = match tokio::time::timeout(CHECK_TIMEOUT, check).await {
            Ok(result) => result,
            Err(_) => Err(anyhow!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
        };
        let finding = Finding { name, result };
        if !json {
            show(&finding);
        }
        findings.push(finding);
    };
    note("cache folder", Box::pin(check_cache(config.clone()))).await;
    note("scratch", Box::pin(check_scratch(config.coordinator.scratch.clone()))).await;
    note("store", Box::pin(check_store(config.clone()))).await;
    note("broker", Box::pin(check_broker(config.clone()))).await;
    note("models", Box::pin(check_models())).await;
    note("device", Box::pin(check_device(config.worker.clone()))).await;
    note("server", Box::pin(check_server(config.clone()))).await;
    if json {
        output::json(&findings.iter().map(to_json).collect());
    }
    if findings.iter().all(|finding| finding.result.is_ok()) { Ok(()) } else { Err(Failure::Job) }
}

fn show(finding: &Finding) {
    match &finding.result {
        Ok(words) => output::line(&format!("ok      {:13} {words}", finding.name)),
        Err(error) => {
            let mut causes = report::causes(error).into_iter();
            output::line(&format!("failed  {:13} {}", finding.name, causes.next().unwrap_or_default()));
            for cause in causes {
                output::line(&format!("          cause: {cause}"));
            }
            if let Some(hint) = report::hint_of(error) {
                output::line(&format!("          cure: {hint}"));
            }
        }
    }
}

fn to_json(finding: &Finding) -> serde_json::Value {
    match &finding.result {
        Ok(words) => json!({ "check": finding.name, "ok": true, "found": words }),
        Err(error) => json!({
            "check": finding.name,
            "ok": false,
            "causes": report::causes(error),
            "cure": report::hint_of(error),
        }),
    }
}

async fn check_cache(config: Config) -> anyhow::Result<String> {
    let store = cache::open(&config.client)?;
    store::Store::check(&store).await.context("cannot write to the cache folder")?;
    let usage = store.usage().await?;
    let (holds, limit) = (show_bytes(usage.bytes), show_bytes(config.client.cache_limit_bytes));
    let (folder, free) = (cache::folder(&config.client), free_space(&config.client.cache)?);
    Ok(format!("{} holds {holds} of {limit}, and {free} are free", folder.display()))
}

async fn check_scratch(folder: PathBuf) -> anyhow::Result<String> {
    let tried = std::fs::create_dir_all(&folder).and_then(|()| tempfile::tempfile_in(&folder));
    tried
        .with_context(|| format!("cannot write to the scratch folder {}", folder.display()))
        .hint("choose another folder with --scratch or TESSERA_SCRATCH")?;
    Ok(format!("{} can be written to, and {} are free", folder.display(), free_space(&folder)?))
}

/// How much may still be written to the file system of `folder`.
fn free_space(folder: &Path) -> anyhow::Result<String> {
    let bytes = fs4::available_space(folder);
    Ok(show_bytes(bytes.with_context(|| format!("cannot tell how much space is free in {}", folder.display()))?))
}

async fn check_store(config: Config) -> anyhow::Result<String> {
    let store = store::open(&config.store).await.map_err(|error| {
        let cure = match &error {
            store::StoreError::InvalidUrl { .. } | store::StoreError::InvalidKey { .. } => {
                "TESSERA_STORE wants s3://bucket/prefix, file:///folder or memory:"
            }
            _ => "name another place in TESSERA_STORE, or make this one usable",
        };
        with_hint(anyhow::Error::new(error).context(format!("cannot open {}", hide_password(&config.store))), cure)
    })?;
    store.check().await.map_err(|error| {
        let cure = match &error {
            store::StoreError::MissingBucket { .. } => "make the bucket, or name another in TESSERA_STORE",
            store::StoreError::Forbidden { .. } => {
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do"
            }
            store::StoreError::Full { .. } => "make space, or name another place in TESSERA_STORE",
            store::StoreError::Refused { .. } => "check the names in TESSERA_STORE",
            _ => "is it up? TESSERA_STORE says which, AWS_ENDPOINT_URL where",
        };
        with_hint(anyhow::Error::new(error).context(format!("{} does not work", store.describe())), cure)
    })?;
    Ok(format!("{} writes, reads and deletes", store.describe()))
}

async fn check_broker(config: Config) -> anyhow::Result<String> {
    let options = broker::Options {
        name: "tessera doctor".to_owned(),
        patience: CHECK_TIMEOUT / 4,
        consumer_timeout: config.broker_consumer_timeout,
    };
    let cure = |error: broker::BrokerError| {
        let cure = match &error {
            broker::BrokerError::Refused { .. } => {
                "check the user, the password and the virtual host in TESSERA_BROKER"
            }
            broker::BrokerError::Address { .. } => "TESSERA_BROKER wants amqp://user:password@host/vhost or memory:",
            _ => "is RabbitMQ up? TESSERA_BROKER says where it is",
        };
        with_hint(anyhow::Error::new(error).context(format!("{} does not work", config.broker)), cure)
    };
    let broker = broker::open(config.broker.expose(), &options).await.map_err(cure)?;
    broker.check().await.map_err(cure)?;
    let warning = broker.delivery_warning(config.worker.longest_task);
    broker.close().await;
    match warning {
        Some(warning) => {
            Err(with_hint(anyhow!("{warning}"), "raise RabbitMQ's `consumer_timeout`, or lower `longest_task`"))
        }
        None => Ok(format!("{} answers", broker.describe())),
    }
}

async fn check_models() -> anyhow::Result<String> {
    let mut names = Vec::new();
    for builtin in BUILTIN {
        let context = || format!("the built-in model `{}` is damaged", builtin.name);
        let network = Checkpoint::from_bytes(builtin.bytes).with_context(context)?;
        let facts = detect(&network).with_context(context)?.facts;
        names.push(format!("{} ({} {}x)", builtin.name, facts.architecture, facts.scale));
    }
    Ok(format!("built in: {}", names.join(", ")))
}

async fn check_device(worker: config::Worker) -> anyhow::Result<String> {
    let (device, cpu) = (worker.device, worker.cpu);
    let opened = spawn_blocking(move || DeviceEngine::open(device, cpu.as_deref(), 0)).await?;
    let engine = opened.map_err(|error| {
        let error = error.context(format!("the device `{device}` cannot be used"));
        if report::hint_of(&error).is_some() {
            return error;
        }
        with_hint(
            error,
            "TESSERA_DEVICE=cpu always works; `cuda` and `metal` need a build with that feature and a driver",
        )
    })?;
    Ok(format!("{}, {} tiles at once", engine.describe(), worker.slots))
}

async fn check_server(config: Config) -> anyhow::Result<String> {
    let Some(server) = &config.client.server else {
        return Ok("none is named: `tessera upscale` embeds its own farm".to_owned());
    };
    let farm = Farm::connect(server).await?;
    let answer = call("ListWorkers", || {
        let mut workers = farm.workers.clone();
        async move { workers.list_workers(v1::ListWorkersRequest {}).await }
    });
    match answer.await?.workers.len() {
        0 => Err(with_hint(
            anyhow!("{server} answers, but no worker is there"),
            "start one with `tessera worker`, with the store, the broker and the farm's name of its coordinator",
        )),
        count => Ok(format!("{server} answers, with {count} workers")),
    }
}

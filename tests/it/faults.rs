//! Any process may die at any moment, and any connection be cut: it costs time, never a tile, and not a byte.

use std::time::{Duration, Instant};

use anyhow::Result;
use domain::digest::Digest;
use proto::v1;
use tests::{
    farm::{Farm, Finished, binary, services},
    pictures::{compact, png},
    proxy::Proxy,
    rabbitmq::RabbitMq,
};

use crate::job;

/// A network that takes a good part of a second for a tile of 96 pixels: long enough to die in the middle of it.
fn slow_model() -> Vec<u8> {
    compact(128, 32, 2)
}

const SIDE: u32 = 96;

/// 9 tiles of up to 96 pixels that overlap by 16.
fn picture() -> Vec<u8> {
    png(250, 240)
}

/// What one undisturbed worker makes of the picture.
async fn undisturbed(services: &tests::farm::Services) -> Result<Digest> {
    static ONCE: tokio::sync::OnceCell<Digest> = tokio::sync::OnceCell::const_new();
    let digest = ONCE.get_or_try_init(async || {
        let farm = Farm::with_workers(services, 1).start().await?;
        farm.add_model("slow", &slow_model()).await?;
        let job = farm.submit(&picture(), job("slow", SIDE)).await?;
        Ok::<_, anyhow::Error>(farm.finished(&job.id).await?.digest())
    });
    Ok(*digest.await?)
}

async fn submitted(farm: &Farm) -> Result<v1::Job> {
    farm.add_model("slow", &slow_model()).await?;
    farm.submit(&picture(), job("slow", SIDE)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_workers_make_the_same_bytes_as_one() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let want = undisturbed(&services).await?;
    let farm = Farm::with_workers(&services, 3).start().await?;
    let job = submitted(&farm).await?;
    let done = farm.finished(&job.id).await?;
    assert_eq!(done.digest(), want);
    let renderers: std::collections::BTreeSet<_> = done.events.iter().filter_map(renderer).collect();
    assert!(renderers.len() > 1, "the work was spread: {renderers:?}");
    Ok(())
}

fn renderer(event: &v1::JobEvent) -> Option<&str> {
    match &event.event {
        Some(v1::job_event::Event::TaskFinished(done)) if !done.worker.is_empty() => Some(&done.worker),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_worker_costs_time_but_no_tile() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let want = undisturbed(&services).await?;
    let mut farm = Farm::with_workers(&services, 2).start().await?;
    let job = submitted(&farm).await?;
    let (worker, task) = farm.rendering(&job.id).await?;
    farm.kill_worker(&worker)?;
    let done = farm.finished(&job.id).await?;
    assert_eq!(done.digest(), want);
    assert_eq!(done.attempts(task), Some(2), "{}", farm.logs());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_while_it_publishes_is_replaced() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let want = undisturbed(&services).await?;
    // A window of 2 keeps it publishing for as long as the job lasts.
    let mut farm = Farm::with_workers(&services, 2).set("TESSERA_DISPATCH_WINDOW", "2").start().await?;
    let job = submitted(&farm).await?;
    farm.watch(&job.id, |event| done_in(event) >= 2).await?;
    farm.kill_coordinator()?;
    farm.start_coordinator().await?;
    let done = farm.finished(&job.id).await?;
    assert_eq!(done.digest(), want);
    assert!(done.job.progress.unwrap_or_default().tasks_found >= 2, "what was done stayed done");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_while_it_assembles_is_replaced() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    // Quick to render and slow to put together: 140 MB of tiles are read from the store, and 70 MB encoded.
    let (picture, model, tiles) = (png(2000, 1500), compact(4, 1, 2), 12);
    let deep = || v1::UpscaleJob {
        output: Some(v1::OutputOptions { bits: 16, ..v1::OutputOptions::default() }),
        ..job("quick", 512)
    };
    let undisturbed = Farm::with_workers(&services, 1).start().await?;
    undisturbed.add_model("quick", &model).await?;
    let want = undisturbed.submit(&picture, deep()).await?;
    let want = undisturbed.finished(&want.id).await?.digest();

    let mut farm = Farm::with_workers(&services, 1).start().await?;
    farm.add_model("quick", &model).await?;
    let job = farm.submit(&picture, deep()).await?;
    farm.watch(&job.id, |event| done_in(event) == tiles).await?; // all but the assembling
    farm.kill_coordinator()?;
    farm.start_coordinator().await?;
    let done = farm.finished(&job.id).await?;
    assert_eq!(done.digest(), want);
    assert_eq!(done.job.progress.unwrap_or_default().tasks_found, tiles, "no tile was rendered again");
    Ok(())
}

fn done_in(event: &v1::JobEvent) -> u64 {
    event.progress.as_ref().map_or(0, |progress| progress.tasks_done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_restarts_loses_nothing() -> Result<()> {
    let Some(mut services) = services() else { return Ok(()) };
    let want = undisturbed(&services).await?;
    let mut rabbit = RabbitMq::start().await?;
    services.broker = rabbit.url();
    let farm = Farm::with_workers(&services, 2).start().await?;
    let job = submitted(&farm).await?;
    farm.rendering(&job.id).await?;
    rabbit.kill().await?;
    rabbit.start_again().await?;
    assert_eq!(farm.finished(&job.id).await?.digest(), want);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_again_and_again_loses_nothing() -> Result<()> {
    let Some(mut services) = services() else { return Ok(()) };
    let want = undisturbed(&services).await?;
    let address = services.broker.split('@').nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let proxy = Proxy::start(address.parse()?).await?;
    services.broker = services.broker.replace(address, &proxy.address().to_string());
    let farm = Farm::with_workers(&services, 2).set("TESSERA_DELIVERY_LIMIT", "20").start().await?;
    let job = submitted(&farm).await?;
    let mut cuts = 0;
    farm.watch(&job.id, |event| {
        if done_in(event) > cuts && cuts < 4 {
            cuts = done_in(event);
            proxy.cut();
        }
        false
    })
    .await?;
    assert!(cuts > 0, "the connection was cut");
    let done = Finished { job: farm.job(&job.id).await?, events: Vec::new() };
    assert_eq!(done.digest(), want);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_kills_its_workers_is_parked_and_the_job_says_so() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = Farm::with_workers(&services, 1).set("TESSERA_DELIVERY_LIMIT", "2");
    let mut farm = farm.set("TESSERA_WORKER_SILENCE", "1s").start().await?;
    farm.add_model("slow", &compact(128, 64, 2)).await?;
    // One tile of several seconds, so that there is no doubt which task it is.
    let job = farm.submit(&png(250, 250), job("slow", 256)).await?;
    for _ in 0..2 {
        let holding = |worker: &v1::Worker| !worker.tasks.is_empty();
        let workers = farm.until("the task in a worker's hands", |workers| workers.iter().any(holding)).await?;
        let holder = workers.iter().find(|worker| holding(worker)).expect("one holds it").id.clone();
        farm.kill_worker(&holder)?;
        farm.add_worker()?;
        // The dead one's last word stands until its silence is noticed.
        farm.until("its absence", |workers| workers.iter().all(|worker| worker.id != holder)).await?;
    }
    let done = farm.finished(&job.id).await?;
    assert_eq!(done.job.state(), v1::JobState::Failed);
    let why = &done.job.failures[0].message;
    assert!(why.contains("given up after 2 attempts"), "{why}");

    // The farm is as good as before.
    farm.wait_for_workers().await?;
    let other = farm.submit(&png(40, 40), crate::job("slow", 256)).await?;
    assert_eq!(farm.finished(&other.id).await?.job.state(), v1::JobState::Succeeded);
    // And the job can be tried again.
    let retried = farm.jobs()?.retry_job(v1::RetryJobRequest { job_id: job.id.clone() }).await?.into_inner().job;
    assert!(retried.is_some_and(|job| job.failures.is_empty()));
    assert_eq!(farm.finished(&job.id).await?.job.state(), v1::JobState::Succeeded, "{}", farm.logs());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_job_frees_its_workers_within_seconds() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = Farm::with_workers(&services, 2).start().await?;
    farm.add_model("very-slow", &compact(128, 64, 2)).await?;
    let job = farm.submit(&png(700, 700), job("very-slow", 256)).await?;
    farm.rendering(&job.id).await?;
    let cancelled = farm.jobs()?.cancel_job(v1::CancelJobRequest { job_id: job.id.clone() }).await?.into_inner();
    let asked = Instant::now();
    assert_eq!(cancelled.job.unwrap_or_default().state(), v1::JobState::Cancelled);
    farm.until("idle workers", |workers| workers.iter().all(|worker| worker.tasks.is_empty())).await?;
    assert!(asked.elapsed() < Duration::from_secs(20), "it took {:?}", asked.elapsed());
    farm.add_model("quick", &compact(4, 1, 2)).await?;
    let next = farm.submit(&png(64, 64), crate::job("quick", 64)).await?;
    assert_eq!(farm.finished(&next.id).await?.job.state(), v1::JobState::Succeeded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_told_to_stop_finishes_or_gives_back_and_leaves() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let want = undisturbed(&services).await?;
    let mut farm = Farm::with_workers(&services, 2).start().await?;
    let job = submitted(&farm).await?;
    let (worker, _) = farm.rendering(&job.id).await?;
    assert!(farm.stop_worker(&worker).await?, "it left in peace\n{}", farm.log(&worker));
    let left = farm.workers_now().await?;
    assert!(left.iter().all(|other| other.id != worker), "it said farewell");
    assert_eq!(farm.finished(&job.id).await?.digest(), want);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_waits_does_not_notice_that_the_coordinator_was_replaced() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let want = undisturbed(&services).await?;
    let mut farm = Farm::with_workers(&services, 2).start().await?;
    farm.add_model("slow", &slow_model()).await?;
    let folder = tempfile::TempDir::new()?;
    let (input, output) = (folder.path().join("in.png"), folder.path().join("out.png"));
    std::fs::write(&input, picture())?;
    let mut command = std::process::Command::new(binary("tessera"));
    command.args(["upscale".as_ref(), input.as_os_str(), "-o".as_ref(), output.as_os_str()]);
    command.args(["--model", "slow", "--tile", "96", "--overlap", "16", "--server", &farm.url()]);
    let waiting = tokio::task::spawn_blocking(move || command.output());
    farm.until("work", |workers| workers.iter().any(|worker| !worker.tasks.is_empty())).await?;
    farm.kill_coordinator()?;
    farm.start_coordinator().await?;
    let told = waiting.await??;
    assert!(told.status.success(), "{}\n{}", String::from_utf8_lossy(&told.stderr), farm.logs());
    assert_eq!(Digest::of(&std::fs::read(&output)?), want);
    Ok(())
}

//! Equal work is found again instead of redone, within a job and across jobs.

use anyhow::Result;
use proto::v1;
use tests::{
    farm::{Farm, services},
    pictures::{compact, png},
};

use crate::job;

/// Tasks that the farm's workers have rendered.
async fn rendered(farm: &Farm) -> Result<u64> {
    Ok(farm.workers_now().await?.iter().map(|worker| worker.tasks_done).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_job_twice_renders_nothing_the_second_time() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = Farm::with_workers(&services, 1).start().await?;
    farm.add_model("quick", &compact(8, 2, 2)).await?;
    let picture = png(150, 100);
    let first = farm.submit(&picture, job("quick", 64)).await?;
    let first = farm.finished(&first.id).await?;
    let second = farm.submit(&picture, job("quick", 64)).await?;
    assert_ne!(first.job.id, second.id);
    assert_eq!(second.state(), v1::JobState::Succeeded, "it was done before it was asked for");
    let progress = second.progress.unwrap_or_default();
    assert_eq!(progress.tasks_found, progress.tasks_total);
    assert_eq!(second.outputs, first.job.outputs);

    // Another format needs the picture put together anew, and no tile rendered.
    let tiff = v1::UpscaleJob {
        output: Some(v1::OutputOptions { format: "tiff".to_owned(), ..v1::OutputOptions::default() }),
        ..job("quick", 64)
    };
    let third = farm.submit(&picture, tiff).await?;
    let third = farm.finished(&third.id).await?;
    let progress = third.job.progress.unwrap_or_default();
    assert_eq!((progress.tasks_found, progress.tasks_done), (progress.tasks_total - 1, progress.tasks_total));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_id_names_the_same_job() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = Farm::with_workers(&services, 1).start().await?;
    farm.add_model("quick", &compact(8, 2, 2)).await?;
    let digest = farm.upload(&png(50, 50)).await?;
    let request = |side| v1::CreateJobRequest {
        request_id: "nightly-7".to_owned(),
        kind: Some(v1::create_job_request::Kind::Upscale(v1::UpscaleJob {
            pictures: vec![v1::PictureSource {
                name: "p.png".to_owned(),
                source: Some(v1::picture_source::Source::Digest(digest.clone())),
            }],
            ..job("quick", side)
        })),
        ..v1::CreateJobRequest::default()
    };
    let first = farm.jobs()?.create_job(request(64)).await?.into_inner().job.unwrap_or_default();
    let again = farm.jobs()?.create_job(request(32)).await?.into_inner().job.unwrap_or_default();
    assert_eq!(first.id, again.id);
    assert_eq!(first.kind, again.kind, "the first call's parameters stand");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_wanted_by_two_jobs_runs_once_and_survives_the_cancelling_of_one() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = Farm::with_workers(&services, 1).start().await?;
    farm.add_model("slow", &compact(128, 32, 2)).await?;
    let picture = png(170, 90); // 2 tiles of up to 96 pixels, and a sliver
    let first = farm.submit(&picture, job("slow", 96)).await?;
    let as_tiff = v1::UpscaleJob {
        output: Some(v1::OutputOptions { format: "tiff".to_owned(), ..v1::OutputOptions::default() }),
        ..job("slow", 96)
    };
    let second = farm.submit(&picture, as_tiff).await?;
    farm.rendering(&second.id).await?;
    farm.jobs()?.cancel_job(v1::CancelJobRequest { job_id: first.id.clone() }).await?;
    let done = farm.finished(&second.id).await?;
    assert_eq!(done.job.state(), v1::JobState::Succeeded);
    let tiles = done.job.progress.unwrap_or_default().tasks_total - 1;
    farm.until("the count of rendered tasks", |workers| {
        workers.iter().map(|worker| worker.tasks_done).sum::<u64>() >= tiles
    })
    .await?;
    assert_eq!(rendered(&farm).await?, tiles, "each tile was rendered once\n{}", farm.logs());
    assert_eq!(farm.job(&first.id).await?.state(), v1::JobState::Cancelled);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_listed_newest_first_page_by_page() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let mut farm = Farm::with_workers(&services, 1).start().await?;
    farm.add_model("quick", &compact(4, 1, 2)).await?;
    let mut ids = Vec::new();
    for side in [20, 21, 22, 23, 24] {
        let job = farm.submit(&png(side, side), job("quick", 64)).await?;
        farm.finished(&job.id).await?;
        ids.insert(0, job.id);
    }
    // A restarted coordinator remembers.
    farm.kill_coordinator()?;
    farm.start_coordinator().await?;
    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListJobsRequest { page_size: 2, page_token, states: vec![v1::JobState::Succeeded.into()] };
        let page = farm.jobs()?.list_jobs(request).await?.into_inner();
        assert!(page.jobs.len() <= 2);
        listed.extend(page.jobs.into_iter().map(|job| job.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, ids);
    let failed = v1::ListJobsRequest { states: vec![v1::JobState::Failed.into()], ..v1::ListJobsRequest::default() };
    assert!(farm.jobs()?.list_jobs(failed).await?.into_inner().jobs.is_empty());
    Ok(())
}

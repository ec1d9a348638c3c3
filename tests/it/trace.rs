//! One trace follows a job from submit to the last put, across processes.

use std::{collections::BTreeSet, process::Command, time::Duration};

use anyhow::Result;
use tests::{
    collector::{Collector, Span, census, orphans},
    farm::{Farm, binary, services, within},
    pictures::{compact, png},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connected_trace_follows_a_job_from_submit_to_the_last_put() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let collector = Collector::start().await?;
    let endpoint = collector.endpoint();
    let traced = |farm: Farm| farm.set("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).set("OTEL_BSP_SCHEDULE_DELAY", "100");
    let farm = traced(Farm::with_workers(&services, 2)).start().await?;
    farm.add_model("quick", &compact(8, 2, 2)).await?;
    let folder = tempfile::TempDir::new()?;
    let (input, output) = (folder.path().join("in.png"), folder.path().join("out.png"));
    std::fs::write(&input, png(150, 100))?;

    let mut command = Command::new(binary("tessera"));
    command.args(["upscale".as_ref(), input.as_os_str(), "-o".as_ref(), output.as_os_str()]);
    command.args(["--model", "quick", "--tile", "64", "--overlap", "16", "--server", &farm.url()]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    let status = tokio::task::spawn_blocking(move || command.status()).await??;
    assert!(status.success());

    let jobs = farm.jobs()?.list_jobs(proto::v1::ListJobsRequest::default()).await?.into_inner().jobs;
    let job = &jobs[0];
    let tiles = job.progress.unwrap_or_default().tasks_total as usize - 1;
    let count = |spans: &[Span], name: &str| spans.iter().filter(|span| span.name == name).count();
    let spans = within("all spans", async {
        loop {
            let spans = collector.spans_of(&job.trace_id);
            let programs: BTreeSet<_> = spans.iter().map(|span| span.service.as_str()).collect();
            if count(&spans, "put") >= tiles && count(&spans, "assemble") >= 1 && programs.contains("tessera") {
                return Ok(spans);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await?;

    let told = format!("{:#?}", census(&spans));
    let first = orphans(&spans);
    assert_eq!(first.len(), 1, "one trace without loose ends: {first:#?}\n{told}");
    assert_eq!(first[0].service, "tessera", "it begins where the user is: {told}");
    for name in ["create_job", "plan", "publish", "task", "fetch", "render", "put", "assemble"] {
        assert!(count(&spans, name) > 0, "no span `{name}`: {told}");
    }
    assert_eq!(count(&spans, "render"), tiles, "{told}");
    let programs: BTreeSet<_> = spans.iter().map(|span| span.service.clone()).collect();
    assert_eq!(programs.len(), 3, "the command, the coordinator and the workers: {programs:?}");
    assert!(spans.iter().all(|span| span.start <= span.end));
    Ok(())
}

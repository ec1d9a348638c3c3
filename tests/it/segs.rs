//! Segments and latents on a real farm: the same bytes from one worker or three, whatever dies, and only what changed again.

use anyhow::{Context as _, Result};
use domain::{digest::Digest, document::Document};
use imaging::{decode::decode_rows, picture::Limits};
use proto::v1::{self, create_job_request::Kind, job_event::Event, picture_source, seg_mask, segs_source};
use tests::{
    farm::{Farm, Finished, Services, services, within},
    pictures::{checkpoint, compact, png},
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Steps enough that somebody sees them.
const STEPS: u32 = 120;

/// The side of the tiles that segments are cut in.
const SIDE: u32 = 64;

/// A farm with everything that the jobs here name.
async fn farm(services: &Services, workers: usize) -> Result<Farm> {
    let farm = Farm::with_workers(services, workers).start().await?;
    farm.add_model("tiny", &checkpoint()).await?;
    farm.add_model("double", &compact(4, 1, 2)).await?;
    Ok(farm)
}

async fn source(farm: &Farm, name: &str, bytes: &[u8]) -> Result<Option<v1::PictureSource>> {
    let digest = farm.upload(bytes).await?;
    Ok(Some(v1::PictureSource { name: name.to_owned(), source: Some(picture_source::Source::Digest(digest)) }))
}

fn pipe(positive: &str) -> Option<v1::BasicPipe> {
    let prompt = |text: &str| vec![v1::Conditioning { text: text.to_owned(), ..Default::default() }];
    let (positive, negative) = (prompt(positive), prompt("blurry"));
    Some(v1::BasicPipe { checkpoint: "tiny".to_owned(), positive, negative, ..Default::default() })
}

fn sampler(steps: u32) -> Option<v1::Sampler> {
    Some(v1::Sampler { seed: 7, steps, cfg: Some(4.0), ..Default::default() })
}

/// A grid of tiles that overlap, so that each sees those before it.
fn grid() -> Option<v1::SegsSource> {
    let tiles =
        v1::MakeTileSegs { bbox_size: SIDE, crop_factor: Some(1.5), min_overlap: Some(8), ..Default::default() };
    Some(v1::SegsSource { source: Some(segs_source::Source::Tiles(tiles)) })
}

/// A picture of 96x80 enlarged twice, and then a grid of segments redrawn over it.
async fn segs_upscale(farm: &Farm, steps: u32) -> Result<v1::SegsUpscaleJob> {
    Ok(v1::SegsUpscaleJob {
        picture: source(farm, "photo.png", &png(96, 80)).await?,
        segs: grid(),
        basic_pipe: pipe("a red lantern"),
        upscale_model: "double".to_owned(),
        tile: Some(v1::TileOptions { side: SIDE, overlap: Some(16), auto: false }),
        sampler: sampler(steps),
        ..Default::default()
    })
}

/// Two segments of a picture of 96x80, of which one lies over the other.
async fn segs_detail(farm: &Farm, steps: u32) -> Result<v1::SegsDetailJob> {
    let seg = |label: &str, crop_region: [i64; 4]| v1::Seg {
        crop_region: crop_region.to_vec(),
        label: label.to_owned(),
        cropped_mask: Some(v1::SegMask {
            source: Some(seg_mask::Source::Rle(v1::RunLengths {
                width: (crop_region[2] - crop_region[0]) as u32,
                height: (crop_region[3] - crop_region[1]) as u32,
                counts: vec![400, ((crop_region[2] - crop_region[0]) * (crop_region[3] - crop_region[1]) - 400) as u32],
            })),
        }),
        ..Default::default()
    };
    let segs = vec![seg("face", [8, 8, 56, 56]), seg("hand", [40, 24, 88, 72])];
    Ok(v1::SegsDetailJob {
        picture: source(farm, "photo.png", &png(96, 80)).await?,
        segs: Some(v1::SegsSource {
            source: Some(segs_source::Source::Segs(v1::Segs { width: 96, height: 80, segs })),
        }),
        basic_pipe: pipe("a red lantern"),
        guide_size: Some(64.0),
        max_size: Some(96.0),
        sampler: sampler(steps),
        batch_size: 2,
        paste: Some(v1::SegsPaste::default()),
        ..Default::default()
    })
}

/// A picture of 48x40 enlarged to twice its size in three steps, a mask's part with a sampler of its own.
async fn latent_upscale(farm: &Farm, steps: u32) -> Result<v1::LatentUpscaleJob> {
    let piped =
        |prompt: &str| Some(v1::PipedSampler { sampler: sampler(steps), basic_pipe: pipe(prompt), hooks: Vec::new() });
    let picture = source(farm, "photo.png", &png(48, 40)).await?.context("a source")?;
    Ok(v1::LatentUpscaleJob {
        source: Some(v1::latent_upscale_job::Source::Picture(picture)),
        upscale_factor: Some(2.0),
        base_sampler: piped("a green field"),
        mask_sampler: piped("a red lantern"),
        full_sample_schedule: "last2".to_owned(),
        mask: source(farm, "mask.png", &png(30, 20)).await?,
        ..Default::default()
    })
}

async fn submit(farm: &Farm, kind: Kind) -> Result<v1::Job> {
    let request = v1::CreateJobRequest { kind: Some(kind), ..Default::default() };
    farm.jobs()?.create_job(request).await?.into_inner().job.context("the answer holds a job")
}

async fn done(farm: &Farm, kind: Kind) -> Result<Finished> {
    let job = submit(farm, kind).await?;
    farm.finished(&job.id).await
}

/// The digests of all that a job made.
fn digests(done: &Finished) -> Vec<String> {
    assert_eq!(done.job.state(), v1::JobState::Succeeded, "{:?}", done.job.failures);
    done.job.outputs.iter().map(|output| output.artifact.clone().unwrap_or_default().digest).collect()
}

/// What one undisturbed worker makes of each job, all of it quick.
async fn undisturbed(services: &Services, steps: u32) -> Result<[Vec<String>; 3]> {
    let farm = farm(services, 1).await?;
    Ok([
        digests(&done(&farm, Kind::SegsUpscale(segs_upscale(&farm, steps).await?)).await?),
        digests(&done(&farm, Kind::SegsDetail(segs_detail(&farm, steps).await?)).await?),
        digests(&done(&farm, Kind::LatentUpscale(latent_upscale(&farm, steps).await?)).await?),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_workers_redraw_the_same_bytes_as_one() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let want = undisturbed(&services, 2).await?;
    let farm = farm(&services, 3).await?;
    // All at once, so that their tasks come in any order.
    let jobs = [
        submit(&farm, Kind::SegsUpscale(segs_upscale(&farm, 2).await?)).await?,
        submit(&farm, Kind::SegsDetail(segs_detail(&farm, 2).await?)).await?,
        submit(&farm, Kind::LatentUpscale(latent_upscale(&farm, 2).await?)).await?,
    ];
    for (job, want) in jobs.iter().zip(&want) {
        let done = farm.finished(&job.id).await?;
        assert_eq!(digests(&done), *want, "{:?}", job.kind);
    }
    // A detailer gives a document with its segments, whose pictures can be fetched, and the picture.
    let detailed = farm.job(&jobs[1].id).await?;
    let formats: Vec<&str> = detailed.outputs.iter().map(|output| output.format.as_str()).collect();
    assert_eq!(formats, ["segs", "png"]);
    let document = farm.download(want[1][0].parse::<Digest>()?).await?;
    let document: Document = serde_json::from_slice(&document)?;
    let labels: Vec<&str> = document.segs.iter().map(|seg| seg.label.as_str()).collect();
    assert_eq!(labels, ["face", "hand", "face", "hand"], "two rounds");
    for seg in &document.segs {
        let Some(domain::document::Source::Digest(digest)) = seg.cropped_image else { panic!("{seg:?}") };
        assert!(farm.download(digest).await?.starts_with(b"\x89PNG"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_of_one_size_are_redrawn_as_batches_to_the_same_bytes() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let redraw = async |farm: Farm| -> Result<(Vec<String>, String)> {
        farm.add_model("tiny", &checkpoint()).await?;
        let seg = |n: i64| {
            let (x, y) = (n % 3 * 32, n / 3 * 32);
            v1::Seg { crop_region: vec![x, y, x + 32, y + 32], label: format!("part {n}"), ..Default::default() }
        };
        let segs = v1::Segs { width: 96, height: 80, segs: (0..6).map(seg).collect() };
        let job = v1::SegsDetailJob {
            segs: Some(v1::SegsSource { source: Some(segs_source::Source::Segs(segs)) }),
            batch_size: 1,
            ..segs_detail(&farm, 12).await?
        };
        let want = digests(&done(&farm, Kind::SegsDetail(job)).await?);
        Ok((want, farm.logs()))
    };
    let single = Farm::with_workers(&services, 1).start().await?;
    let batched = Farm::with_workers(&services, 1).set("TESSERA_SLOTS", "1").set("TESSERA_BATCH", "4");
    let (want, _) = redraw(single).await?;
    let (found, logs) = redraw(batched.start().await?).await?;
    assert_eq!(found, want);
    assert!(logs.contains("rendering tasks as a batch"), "{logs}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_lost_in_the_middle_of_a_chain_costs_a_step() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let quick = farm(&services, 1).await?;
    let want = digests(&done(&quick, Kind::LatentUpscale(latent_upscale(&quick, 30).await?)).await?);
    let mut farm = farm(&services, 2).await?;
    let job = submit(&farm, Kind::LatentUpscale(latent_upscale(&farm, 30).await?)).await?;
    // Whoever holds the only task that is ready.
    farm.watch(&job.id, |event| tasks_done(event) >= 1).await?;
    let (worker, task) = farm.rendering(&job.id).await?;
    farm.kill_worker(&worker)?;
    let done = farm.finished(&job.id).await?;
    assert_eq!(digests(&done), want);
    assert!(done.attempts(task).is_some_and(|attempts| attempts >= 1), "{}", farm.logs());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_between_a_paste_and_the_next_crop_is_replaced() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let quick = farm(&services, 1).await?;
    let want = digests(&done(&quick, Kind::SegsUpscale(segs_upscale(&quick, 12).await?)).await?);
    let mut farm = farm(&services, 2).await?;
    let job = submit(&farm, Kind::SegsUpscale(segs_upscale(&farm, 12).await?)).await?;
    let redrawn = |event: &v1::JobEvent| match &event.event {
        Some(Event::TaskFinished(done)) => done.description.starts_with("redraw"),
        _ => false,
    };
    farm.watch(&job.id, redrawn).await?;
    farm.kill_coordinator()?;
    farm.start_coordinator().await?;
    let done = farm.finished(&job.id).await?;
    assert_eq!(digests(&done), want);
    assert!(done.job.progress.unwrap_or_default().tasks_found >= 1, "what was done stayed done");
    Ok(())
}

fn tasks_done(event: &v1::JobEvent) -> u64 {
    event.progress.as_ref().map_or(0, |progress| progress.tasks_done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_prompt_for_one_segment_runs_that_and_what_sees_it() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = farm(&services, 2).await?;
    let first = segs_upscale(&farm, 2).await?;
    let all = done(&farm, Kind::SegsUpscale(first.clone())).await?;
    let total = all.job.progress.unwrap_or_default().tasks_total;

    // The last segment is seen by nobody.
    let redrawn = all.job.kind.clone();
    let Some(v1::job::Kind::SegsUpscale(resolved)) = redrawn else { panic!("{redrawn:?}") };
    let last = resolved.segs - 1;
    let rule = v1::SegOverride {
        select: Some(v1::seg_override::Select::Index(last)),
        positive: Some("a blue lantern".to_owned()),
        ..Default::default()
    };
    let changed = v1::SegsUpscaleJob { overrides: vec![rule.clone()], ..first.clone() };
    let planned = planned(&farm, Kind::SegsUpscale(changed.clone())).await?;
    assert_eq!((planned.tasks_total, planned.tasks_wanted), (total, 2), "the segment, and the picture");
    let again = done(&farm, Kind::SegsUpscale(changed)).await?;
    assert_eq!(again.job.progress.unwrap_or_default().tasks_found, total - 2);
    assert_ne!(digests(&again), digests(&all));

    // The first one is seen by its neighbours, those by theirs, and so on; the tiles of the network below are all found.
    let rule = v1::SegOverride { select: Some(v1::seg_override::Select::Index(0)), ..rule };
    let changed = v1::SegsUpscaleJob { overrides: vec![rule], ..first.clone() };
    let planned = self::planned(&farm, Kind::SegsUpscale(changed)).await?;
    let of = |operation: &str| {
        let found = planned.operations.iter().find(|counted| counted.operation == operation);
        found.map(|counted| (counted.total, counted.wanted)).unwrap_or_default()
    };
    assert_eq!(of("upscale").1, 0);
    assert_eq!(
        of("redraw"),
        (u64::from(resolved.segs), u64::from(resolved.segs)),
        "a grid that overlaps hangs together"
    );

    // The same job once more has nothing to do at all.
    let same = done(&farm, Kind::SegsUpscale(first)).await?;
    assert_eq!(same.job.progress.unwrap_or_default().tasks_found, total);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_looks_sees_what_is_redrawn_and_changes_no_byte_of_it() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let unseen = farm(&services, 1).await?;
    let want = digests(&done(&unseen, Kind::SegsDetail(segs_detail(&unseen, STEPS).await?)).await?);
    let farm = farm(&services, 1).await?;
    let job = submit(&farm, Kind::SegsDetail(segs_detail(&farm, STEPS).await?)).await?;
    let look = async |job_id: &str, tasks: Vec<u64>| {
        farm.jobs()?
            .watch_previews(v1::WatchPreviewsRequest { job_id: job_id.to_owned(), tasks })
            .await
            .map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))
    };
    let mut previews = look(&job.id, Vec::new()).await?.into_inner();
    let seen = within("a preview", async { previews.message().await?.context("the job ended unseen") }).await?;
    assert!(seen.description.starts_with("redraw 48x48+"), "{}", seen.description);
    assert!(seen.region.is_some_and(|region| (region.width, region.height) == (48, 48)), "{:?}", seen.region);
    assert!((1..=STEPS).contains(&seen.step) && seen.steps == STEPS, "step {} of {}", seen.step, seen.steps);
    assert_eq!(seen.worker, "worker-0");
    // A segment of 48x48 is redrawn at 64x64, which is 8x8 in the latent.
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &seen.png)?;
    let mut bytes = 0;
    let info = decode_rows(file.path(), &Limits::default(), &mut |rows| {
        bytes += rows.bytes.len();
        Ok(())
    })?;
    assert_eq!((info.width, info.height, bytes), (8, 8, 8 * 8 * 3));

    let refused = look(&job.id, vec![99]).await.expect_err("there is no such task").to_string();
    assert!(refused.starts_with("InvalidArgument: tasks: holds 99"), "{refused}");
    assert_eq!(digests(&farm.finished(&job.id).await?), want, "looking changes nothing");
    within("the end of the stream", async {
        while previews.message().await?.is_some() {}
        Ok(())
    })
    .await?;
    let mut ended = look(&job.id, Vec::new()).await?.into_inner();
    assert_eq!(within("the end of the stream", async { Ok(ended.message().await?) }).await?, None);

    let tiles = farm.submit(&png(16, 16), v1::UpscaleJob::default()).await?;
    let refused = look(&tiles.id, Vec::new()).await.expect_err("tiles cannot be seen").to_string();
    assert!(refused.starts_with("FailedPrecondition: ") && refused.contains("in tiles"), "{refused}");
    let refused = look("none", Vec::new()).await.expect_err("there is no such job").to_string();
    assert!(refused.starts_with("NotFound: "), "{refused}");
    Ok(())
}

async fn planned(farm: &Farm, kind: Kind) -> Result<v1::PlanJobResponse> {
    let request = v1::CreateJobRequest { kind: Some(kind), ..Default::default() };
    let request =
        v1::PlanJobRequest { job: Some(v1::plan_job_request::Job::Request(request)), workers: vec![4], dot: true };
    Ok(farm.jobs()?.plan_job(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_what_a_job_would_take() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = farm(&services, 1).await?;
    let chain = planned(&farm, Kind::LatentUpscale(latent_upscale(&farm, 2).await?)).await?;
    assert_eq!(chain.cost, chain.critical_path_cost, "a chain gains nothing from more workers");
    assert!(chain.speed_ups.iter().all(|planned| planned.speed_up == 1.0), "{:?}", chain.speed_ups);
    let apart = planned(&farm, Kind::SegsDetail(segs_detail(&farm, 2).await?)).await?;
    assert!(apart.speed_ups[0].speed_up > 3.9, "{:?}", apart.speed_ups);
    assert!(apart.dot.starts_with("digraph") && apart.largest_task_bytes > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_how_long_a_job_takes_by_what_workers_rendered_before() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = farm(&services, 1).await?;
    let first = segs_detail(&farm, 2).await?;
    let guessed = planned(&farm, Kind::SegsDetail(first.clone())).await?;
    assert_eq!((guessed.workers, guessed.is_measured), (1, false));
    assert!(millis(&guessed.duration) > 0, "{:?}", guessed.duration);
    done(&farm, Kind::SegsDetail(first.clone())).await?;
    farm.until("a measured speed", |workers| {
        workers.iter().flat_map(|worker| &worker.speeds).any(|speed| speed.operation == "redraw")
    })
    .await?;

    let prompt = Some(v1::seg_override::Select::Index(0));
    let rule = v1::SegOverride { select: prompt, positive: Some("a blue lantern".to_owned()), ..Default::default() };
    let like = v1::SegsDetailJob { overrides: vec![rule], ..first.clone() };
    let measured = planned(&farm, Kind::SegsDetail(like)).await?;
    assert_eq!((measured.workers, measured.is_measured), (1, true));
    assert!(millis(&measured.duration) > 0, "{:?}", measured.duration);
    assert!(millis(&measured.speed_ups[0].duration) > 0 && measured.results_bytes > 0);
    let again = planned(&farm, Kind::SegsDetail(first)).await?;
    assert_eq!((millis(&again.duration), again.results_bytes), (0, 0), "everything is found");
    Ok(())
}

fn millis(duration: &Option<prost_types::Duration>) -> i64 {
    let duration = duration.expect("it is known how long it takes");
    duration.seconds * 1000 + i64::from(duration.nanos) / 1_000_000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_segments_that_cannot_be_done_is_refused_with_its_field() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = farm(&services, 1).await?;
    let good = segs_detail(&farm, 2).await?;
    let check = async |job: v1::SegsDetailJob, field: &str, words: &str| -> Result<()> {
        let request = v1::CreateJobRequest { kind: Some(Kind::SegsDetail(job)), ..Default::default() };
        let status: Status = farm.jobs()?.create_job(request).await.expect_err("it is refused");
        let details = status.get_error_details();
        let violation = details.bad_request().and_then(|request| request.field_violations.first());
        let path = violation.map(|violation| violation.field.clone()).unwrap_or_default();
        assert_eq!(path, field, "{status:?}");
        assert!(matches!(status.code(), Code::InvalidArgument | Code::NotFound), "{status:?}");
        assert!(status.message().contains(words), "`{words}` is not in: {}", status.message());
        Ok(())
    };
    let sampler = |change: fn(&mut v1::Sampler)| {
        let mut job = good.clone();
        change(job.sampler.get_or_insert_default());
        job
    };
    check(sampler(|sampler| sampler.sampler_name = "oiler".into()), "segs_detail.sampler.sampler_name", "euler")
        .await?;
    check(sampler(|sampler| sampler.denoise = Some(0.0)), "segs_detail.sampler.denoise", "0.0001").await?;
    check(sampler(|sampler| sampler.cfg = Some(f64::NAN)), "segs_detail.sampler.cfg", "NaN").await?;
    check(sampler(|sampler| sampler.seed = u64::MAX), "segs_detail.sampler.seed", "64 bits").await?;
    let pipe = v1::BasicPipe { checkpoint: "none".into(), ..pipe("").unwrap_or_default() };
    let job = v1::SegsDetailJob { basic_pipe: Some(pipe), ..good.clone() };
    check(job, "segs_detail.basic_pipe.checkpoint", "none").await?;
    let with_segs = |change: fn(&mut v1::Seg)| {
        let mut job = good.clone();
        let Some(segs_source::Source::Segs(segs)) = job.segs.as_mut().and_then(|segs| segs.source.as_mut()) else {
            unreachable!("they are given")
        };
        change(&mut segs.segs[1]);
        job
    };
    let outside = with_segs(|seg| seg.crop_region = vec![200, 200, 240, 240]);
    check(outside, "segs_detail.segs.segs[1].crop_region", "outside").await?;
    let flat = with_segs(|seg| seg.bbox = vec![40.0, 24.0, 40.0, 72.0]);
    check(flat, "segs_detail.segs.segs[1].bbox", "no width").await?;
    let mask = source(&farm, "mask.png", &png(30, 20)).await?;
    let from_mask =
        v1::SegsSource { source: Some(segs_source::Source::Mask(v1::MaskToSegs { mask, ..Default::default() })) };
    let job = v1::SegsDetailJob { segs: Some(from_mask), ..good.clone() };
    check(job, "segs_detail.segs.mask.mask", "30x20").await?;
    let huge = v1::SegsDetailJob { guide_size: Some(16384.0), max_size: Some(16384.0), ..good.clone() };
    check(huge, "segs_detail.segs.segs[0].crop_region", "would fit").await?;

    // Nothing to do is no mistake.
    let none = v1::SegsSource { source: Some(segs_source::Source::Segs(v1::Segs::default())) };
    let done = done(&farm, Kind::SegsDetail(v1::SegsDetailJob { segs: Some(none), ..good })).await?;
    assert_eq!(done.job.state(), v1::JobState::Succeeded);
    assert!(done.job.warnings.iter().any(|warning| warning.contains("no segment")), "{:?}", done.job.warnings);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_lost_below_others_is_made_again() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = farm(&services, 1).await?;
    let job = segs_upscale(&farm, 2).await?;
    let first = done(&farm, Kind::SegsUpscale(job.clone())).await?;
    let store = store::open(farm.store_url()).await?;
    // Every result goes but the segments' own, and the picture: so the last segments lack what lies below them.
    let mut kept = 0;
    let listed: Vec<_> = futures::TryStreamExt::try_collect(store.list("results/")).await?;
    for entry in listed {
        let is_picture = entry.meta.size_bytes < 2000;
        kept += u64::from(!is_picture);
        if is_picture || kept.is_multiple_of(2) {
            store.delete(&entry.key).await?;
        }
    }
    let again = done(&farm, Kind::SegsUpscale(job)).await?;
    assert_eq!(digests(&again), digests(&first));
    let progress = again.job.progress.unwrap_or_default();
    assert!(progress.tasks_found > 0 && progress.tasks_found < progress.tasks_total, "{progress:?}");
    Ok(())
}

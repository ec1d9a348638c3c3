//! What a worker promises, seen from its queues: with a broker and a store in memory, and engines that do as the test
//! wants.

mod harness;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use broker::Broker as _;
use domain::{
    digest::Digest,
    job::Priority,
    layout,
    region::{Region, Size},
    task::Place,
};
use proto::farm::{Order, Outcome, Revocation, Wish};
use service::config;
use store::{Key, Store as _};
use tokio::{runtime::Handle, sync::mpsc::unbounded_channel};
use tokio_util::sync::CancellationToken;

use crate::{
    board::Board,
    engine::{Engine as _, RenderError, UpscaleWork, Verdict, Watch, Work, device::DeviceEngine, preview::Preview},
    patience::Pauses,
};
use harness::{Farm, ScriptedEngine, black, order_at, within};

#[tokio::test]
async fn a_tile_is_rendered_stored_reported_and_acknowledged() {
    let farm = Farm::new().await;
    let engine = DeviceEngine::open(config::Device::Cpu, None, 1 << 20).unwrap();
    let class = engine.classes()[0].clone();
    let model = farm.put_model(2).await;
    let region = Region::new(100, 90, 150, 100); // crosses two bands and two columns of blocks
    let mut order = order_at(region, Place::Class(class.clone()));
    harness::set_model(&mut order, model);
    let worker = farm.start(Arc::new(engine));
    farm.publish_when_declared(&order).await;

    let report = farm.report().await;
    assert_eq!((report.key, report.attempt, &*report.worker), (order.result_key(), 1, "worker-1"));
    assert!(matches!(report.outcome, Outcome::Done { found: false, .. }), "{report:?}");
    let stored = farm.result(&order).await.expect("the result is there before the report");
    worker.stop().await.unwrap();
    assert_eq!(farm.depth(&order).await, 0);

    // The same as the network gives for the same pixels, cut out by hand.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), farm.store.get(&Key::new(layout::model(model)).unwrap()).await.unwrap()).unwrap();
    let (rgb, weights) = (harness::cut(region), file.path().to_owned());
    let work = Work::Upscale(UpscaleWork { region, rgb, scale: 2, model, weights });
    let engine = DeviceEngine::open(config::Device::Cpu, None, 1 << 20).unwrap();
    let expected = engine.render(&class, &work, &Watch::default()).unwrap();
    assert_eq!(stored.len(), 300 * 200 * 3 * 4);
    assert!(stored.chunks_exact(4).zip(&expected).all(|(bytes, sample)| bytes == sample.to_le_bytes()));
}

#[tokio::test]
async fn a_worker_tells_a_guess_of_its_speed_and_then_what_it_measured_of_what_it_rendered() {
    let farm = Farm::new().await;
    let engine = DeviceEngine::open(config::Device::Cpu, None, 1 << 20).unwrap();
    let classes = engine.classes().to_vec();
    let worker = farm.start(Arc::new(engine));
    farm.until_beat(|beat| {
        let guessed = beat.worker.speeds.iter().filter(|speed| speed.operation.is_none());
        let mut guessed: Vec<_> = guessed.map(|speed| &speed.class).collect();
        guessed.sort_by_key(|class| classes.iter().position(|own| own == *class));
        guessed.into_iter().eq(&classes) && beat.worker.speeds.len() == classes.len()
    })
    .await;
    worker.stop().await.unwrap();

    // An engine without a guess says nothing, until it has rendered something. What is found does not count.
    let farm = Farm::new().await;
    let worker = farm.start(ScriptedEngine::new(|work, _| Ok(black(work))));
    let (found, rendered) = (order_at(Region::new(0, 0, 8, 8), farm.fast_place()), farm.order(8));
    farm.put_result(&found, 8 * 8 * 4 * 12).await;
    farm.until_beat(|beat| beat.worker.speeds.is_empty()).await;
    for order in [&found, &rendered] {
        farm.publish(order).await;
        assert_eq!(farm.report().await.key, order.result_key());
    }
    farm.until_beat(|beat| {
        let told =
            beat.worker.speeds.iter().map(|speed| (Place::Class(speed.class.clone()), speed.operation.as_deref()));
        told.eq([(farm.place(), Some("upscale"))]) && beat.worker.tasks.is_empty()
    })
    .await;
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_task_is_rendered_as_the_class_computes_that_it_was_planned_for() {
    let farm = Farm::new().await;
    let engine = ScriptedEngine::by_class(|class, work, _| {
        let shade = if class.dtype() == "f32" { 1.0 } else { 0.5 };
        Ok(vec![shade; work.output_values()])
    });
    let worker = farm.start(engine);
    let region = Region::new(0, 0, 8, 8);
    let (exact, any) = (order_at(region, farm.place()), order_at(region, Place::AnyWorker));
    // Fast is what needs not be exact, and not a class: where nothing is faster, the exact class renders such tasks.
    let [mut fast, mut fast_at_exact] = [farm.fast_place(), farm.place()].map(|place| order_at(region, place));
    harness::set_fast(&mut fast);
    harness::set_fast(&mut fast_at_exact);
    farm.until_beat(|beat| {
        let classes: Vec<_> = beat.worker.classes.iter().cloned().map(Place::Class).collect();
        classes == [farm.place(), farm.fast_place()]
    })
    .await;
    for (order, shade) in [(exact, 1.0_f32), (fast, 0.5), (any, 1.0), (fast_at_exact, 1.0)] {
        farm.publish(&order).await;
        let report = farm.report().await;
        assert_eq!(report.key, order.result_key());
        assert!(matches!(report.outcome, Outcome::Done { found: false, .. }), "{report:?}");
        let stored = farm.result(&order).await.unwrap();
        assert_eq!(stored.len(), 16 * 16 * 3 * 4);
        assert!(stored.chunks_exact(4).all(|bytes| bytes == shade.to_le_bytes()), "{:?}", order.context.place());
    }

    // An exact task that strayed to the fast class is refused, and not rendered as something else.
    let strayed = order_at(Region::new(8, 0, 8, 8), farm.fast_place());
    farm.publish(&strayed).await;
    let report = farm.report().await;
    let Outcome::Retrying { message } = &report.outcome else { panic!("{report:?}") };
    assert_eq!(message, "class cpu.scripted.bf16 is not exact enough for the task");
    worker.stop().await.unwrap();
    assert!(farm.result(&strayed).await.is_none());
}

#[tokio::test]
async fn an_order_is_settled_only_when_result_and_report_are_safe() {
    let farm = Farm::new().await;
    let bench = farm.bench(ScriptedEngine::new(|work, _| Ok(black(work)))).await;
    let order = farm.order(0);
    let (delivery, seen) = farm.watched_delivery(&order);
    bench.serve(delivery, Priority::Normal).await;
    let seen = seen.await.unwrap();
    assert_eq!(seen.outcome, broker::Outcome::Done);
    assert!(seen.is_stored, "the result comes before the acknowledgement");
    assert_eq!(seen.reports, 1, "the report comes before the acknowledgement");
}

#[tokio::test]
async fn a_result_that_is_there_is_found_and_one_that_is_cut_short_is_not() {
    let farm = Farm::new().await;
    let (whole, short) = (farm.order(0), farm.order(8));
    farm.put_result(&whole, 16 * 16 * 3 * 4).await;
    farm.put_result(&short, 16 * 16 * 3 * 4 - 1).await;
    let engine = ScriptedEngine::new(|work, _| Ok(black(work)));
    let worker = farm.start(engine.clone());
    farm.publish_when_declared(&whole).await;
    assert!(matches!(farm.report().await.outcome, Outcome::Done { found: true, .. }));
    assert_eq!(engine.calls(), 0);
    farm.publish(&short).await;
    assert!(matches!(farm.report().await.outcome, Outcome::Done { found: false, .. }));
    assert_eq!(farm.result(&short).await.unwrap().len(), 16 * 16 * 3 * 4);
    worker.stop().await.unwrap();
    assert_eq!(farm.depth(&whole).await, 0);
}

#[tokio::test]
async fn messages_that_are_not_ours_are_dead_lettered_and_the_next_one_is_served() {
    let farm = Farm::new().await;
    let worker = farm.start(ScriptedEngine::new(|work, _| Ok(black(work))));
    let order = farm.order(0);
    let queue = farm.queue(&order);
    farm.until_declared(&queue).await;
    farm.broker.publish(&queue, broker::Message::new("foreign", "not an order")).await.unwrap();
    let elsewhere = order_at(Region::new(0, 0, 8, 8), Place::Class("cuda.other.f32".parse().unwrap()));
    farm.broker.publish(&queue, broker::Message::new("stray", elsewhere.encode().unwrap())).await.unwrap();
    farm.publish(&order).await;
    let report = farm.report().await;
    assert_eq!(report.key, order.result_key());
    worker.stop().await.unwrap();
    let mut dead = [farm.dead().await.id, farm.dead().await.id];
    dead.sort();
    assert_eq!(dead, ["foreign", "stray"]);
    assert_eq!(farm.depth(&order).await, 0);
}

#[tokio::test]
async fn revoked_tasks_are_dropped_wherever_they_are_and_ordered_again_they_are_rendered() {
    let farm = Farm::new().await;
    let (began, mut begun) = unbounded_channel();
    let calls = AtomicUsize::new(0);
    let engine = ScriptedEngine::new(move |work, watch| {
        began.send(()).unwrap();
        if calls.fetch_add(1, Ordering::Relaxed) > 0 {
            return Ok(black(work));
        }
        Handle::current().block_on(watch.stopped());
        Err(RenderError::Interrupted)
    });
    let worker = farm.start(engine.clone());
    let (rendering, waiting) = (farm.order(0), farm.order(8));
    farm.publish_when_declared(&rendering).await;
    within(begun.recv()).await.unwrap();
    farm.publish(&waiting).await;
    farm.until_beat(|beat| beat.worker.tasks.len() == 2).await;

    // Both hands are full, so this one is taken only when the revocation was heard.
    let again = Order { dispatch: 8, ..rendering.clone() };
    farm.publish(&again).await;
    farm.revoke(Revocation { keys: vec![rendering.result_key(), waiting.result_key()], up_to_dispatch: 7 }).await;
    let report = farm.report().await;
    assert_eq!(report.key, again.result_key());
    assert!(matches!(report.outcome, Outcome::Done { found: false, .. }));

    farm.publish(&waiting).await; // void, though it comes after the revocation
    farm.publish(&farm.order(16)).await;
    assert_eq!(farm.report().await.key, farm.order(16).result_key());
    worker.stop().await.unwrap();
    assert_eq!((engine.calls(), farm.reports_left().await, farm.depth(&rendering).await), (3, 0, 0));
}

/// A preview of one grey pixel.
fn grey(step: u32) -> Preview {
    Preview { step, steps: 9, size: Size::new(1, 1), rgb: vec![128; 3] }
}

#[tokio::test]
async fn a_task_that_somebody_looks_at_is_seen_and_no_other_is_drawn_at_all() {
    let mut farm = Farm::new().await;
    farm.config.slots = 2;
    let (began, mut begun) = unbounded_channel();
    let (enough, drawn) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let engine = {
        let (enough, drawn, start) = (enough.clone(), drawn.clone(), Instant::now());
        ScriptedEngine::new(move |work, watch| {
            let Work::Upscale(UpscaleWork { region, .. }) = work else { unreachable!("only tiles are ordered here") };
            began.send(()).unwrap();
            for step in 1.. {
                // A step a second, on a clock of its own.
                watch.previews.show(start + Duration::from_secs(step.into()), || {
                    drawn.fetch_add(usize::from(region.x != 0), Ordering::Relaxed);
                    Some(grey(step))
                });
                if enough.is_cancelled() {
                    break;
                }
                std::thread::yield_now();
            }
            Ok(black(work))
        })
    };
    let worker = farm.start(engine);
    let (looked_at, other) = (farm.order(0), farm.order(8));
    farm.publish_when_declared(&looked_at).await;
    farm.publish(&other).await;
    for _ in 0..2 {
        within(begun.recv()).await.unwrap();
    }
    assert_eq!(farm.preview_now().await, None);
    farm.wish(Wish { keys: vec![looked_at.result_key()], valid: Duration::from_secs(1 << 40) }).await;
    let seen = farm.preview().await;
    assert_eq!((seen.key, &*seen.worker, seen.steps), (looked_at.result_key(), "worker-1", 9));
    assert!(seen.step >= 1 && seen.png.starts_with(b"\x89PNG"), "{seen:?}");
    assert!(farm.preview().await.step > seen.step);

    enough.cancel();
    for _ in 0..2 {
        assert!(matches!(farm.report().await.outcome, Outcome::Done { found: false, .. }));
    }
    worker.stop().await.unwrap();
    while let Some(seen) = farm.preview_now().await {
        assert_eq!(seen.key, looked_at.result_key());
    }
    assert_eq!(drawn.load(Ordering::Relaxed), 0, "nobody looked at the other");
    assert_eq!(farm.result(&looked_at).await, farm.result(&other).await, "looking changes no byte");
}

#[tokio::test]
async fn a_wish_holds_for_the_tasks_in_hand_that_it_names_and_for_as_long_as_it_says() {
    let farm = Farm::new().await;
    let (board, leaving, start) = (Arc::new(Board::default()), CancellationToken::new(), Instant::now());
    let held = [0, 8].map(|x| board.take(&farm.order(x), &leaving).unwrap());
    let at = |ms| start + Duration::from_millis(ms);
    let seen = |ms| {
        held.iter().for_each(|held| held.watch.previews.show(at(ms), || Some(grey(1))));
        let taken = board.take_previews(at(ms));
        taken.into_iter().map(|(task, preview)| (task.key, preview.step)).collect::<Vec<_>>()
    };
    let key = farm.order(8).result_key();
    assert_eq!(seen(0), []);
    board.wish(&Wish { keys: vec![key], valid: Duration::from_secs(5) }, at(1_000));
    within(async {
        assert_eq!(seen(1_000), [(key, 1)]);
        board.previewed().await;
    })
    .await;
    assert_eq!(seen(5_999), [(key, 1)]);
    assert_eq!(seen(7_000), []);
}

#[tokio::test]
async fn a_task_that_fails_again_and_again_ends_in_the_dead_queue() {
    let farm = Farm::new().await;
    let bench = farm.bench(ScriptedEngine::new(|_, _| panic!("the card is on fire"))).await;
    let order = farm.order(0);
    farm.publish(&order).await;
    let mut consumer = farm.broker.consume(&farm.queue(&order), 1).await.unwrap();
    for attempt in 1..=harness::DELIVERY_LIMIT {
        bench.serve(within(consumer.next()).await.unwrap(), Priority::Normal).await;
        let report = farm.report().await;
        let Outcome::Retrying { message } = report.outcome else { panic!("{report:?}") };
        assert_eq!((report.attempt, &*message), (attempt, "the engine panicked: the card is on fire"));
    }
    assert_eq!(Order::decode(&farm.dead().await.body).unwrap(), order);
}

#[tokio::test]
async fn a_pause_after_a_failure_ends_when_the_worker_stops() {
    let farm = Farm::new().await;
    let mut bench = farm.bench(ScriptedEngine::new(|_, _| panic!("the disk is full"))).await;
    bench.pauses = Pauses::new(Duration::MAX);
    let (delivery, mut seen) = farm.watched_delivery(&farm.order(0));
    let shutdown = bench.shutdown.clone();
    let serving = tokio::spawn(async move { bench.serve(delivery, Priority::Normal).await });
    assert!(matches!(farm.report().await.outcome, Outcome::Retrying { .. }));
    assert!(seen.try_recv().is_err(), "it is still in hand");
    shutdown.cancel();
    within(serving).await.unwrap();
    assert_eq!(seen.await.unwrap().outcome, broker::Outcome::GiveBack);
}

#[tokio::test]
async fn a_task_without_room_is_tried_again_and_after_the_last_attempt_the_job_is_planned_anew() {
    let farm = Farm::new().await;
    let engine = ScriptedEngine::new(|work, _| {
        let Work::Upscale(UpscaleWork { region, .. }) = work else { unreachable!("only tiles are ordered here") };
        Err(RenderError::Crowded { size: region.size(), needs_bytes: 2, free_bytes: 1 })
    });
    let bench = farm.bench(engine).await;
    let order = farm.order(0);
    farm.publish(&order).await;
    let mut consumer = farm.broker.consume(&farm.queue(&order), 1).await.unwrap();
    let mut replanned = Vec::new();
    for _ in 0..harness::DELIVERY_LIMIT {
        bench.serve(within(consumer.next()).await.unwrap(), Priority::Normal).await;
        replanned.push(matches!(farm.report().await.outcome, Outcome::OutOfMemory { .. }));
    }
    assert_eq!(replanned, [false, false, true]);
    assert_eq!(farm.depth(&order).await, 0);
}

#[tokio::test]
async fn what_cannot_be_rendered_is_reported_and_not_tried_again() {
    let farm = Farm::new().await;
    let worker = farm.start(ScriptedEngine::new(|work, _| {
        let Work::Upscale(UpscaleWork { region, .. }) = work else { unreachable!("only tiles are ordered here") };
        match region.x {
            0 => Err(RenderError::TooLarge { size: region.size(), needs_bytes: 2, total_bytes: 1 }),
            _ => Ok(vec![0.5]),
        }
    }));
    farm.publish_when_declared(&farm.order(0)).await;
    let report = farm.report().await;
    let Outcome::OutOfMemory { message } = &report.outcome else { panic!("{report:?}") };
    assert_eq!(message, "8x8 pixels need about 2 bytes of memory, and the device has 1");

    farm.publish(&farm.order(8)).await;
    let report = farm.report().await;
    let Outcome::Failed { message } = &report.outcome else { panic!("{report:?}") };
    assert_eq!(message, "the result has 1 samples instead of 768");

    farm.publish(&order_at(Region::new(296, 0, 8, 8), farm.place())).await;
    let report = farm.report().await;
    let Outcome::Failed { message } = &report.outcome else { panic!("{report:?}") };
    assert!(
        message.ends_with("does not hold 8x8+296+0: window 8x8+296+0 does not lie inside the 300x200 raster"),
        "{message}"
    );
    worker.stop().await.unwrap();
    assert_eq!((farm.depth(&farm.order(0)).await, farm.reports_left().await), (0, 0));
}

#[tokio::test]
async fn a_picture_that_is_gone_is_told_with_the_way_out() {
    let farm = Farm::new().await;
    let lost = farm.lose_band(0).await;
    let worker = farm.start(ScriptedEngine::new(|work, _| Ok(black(work))));
    farm.publish_when_declared(&farm.order(0)).await;
    let Outcome::Failed { message } = farm.report().await.outcome else { panic!("it cannot be rendered") };
    assert_eq!(message, format!("`{lost}` is gone from the store: submit the job again, which puts it there anew"));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_model_of_the_wrong_digest_is_refused() {
    let farm = Farm::new().await;
    let model = Digest::of(b"promised");
    farm.store.put(&Key::new(layout::model(model)).unwrap(), "delivered".into()).await.unwrap();
    let engine = ScriptedEngine::new(|work, _| Ok(black(work)));
    let worker = farm.start(engine.clone());
    let mut order = farm.order(0);
    harness::set_model(&mut order, model);
    farm.publish_when_declared(&order).await;
    let report = farm.report().await;
    let Outcome::Failed { message } = &report.outcome else { panic!("{report:?}") };
    assert_eq!(*message, format!("the store has a file of digest {} as model {model}", Digest::of(b"delivered")));
    worker.stop().await.unwrap();
    assert_eq!(engine.calls(), 0);
}

#[tokio::test]
async fn a_store_that_is_away_is_waited_for() {
    let farm = Farm::new().await;
    let worker = farm.start(ScriptedEngine::new(|work, _| Ok(black(work))));
    farm.store.fail_next(3);
    farm.publish_when_declared(&farm.order(0)).await;
    let report = farm.report().await;
    assert!(matches!(report.outcome, Outcome::Done { found: false, .. }), "{report:?}");
    assert_eq!(farm.store.failures_left(), 0);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_finishes_what_it_renders_and_gives_back_the_rest() {
    let farm = Farm::new().await;
    let (began, mut begun) = unbounded_channel();
    let (go_on, may_go_on) = mpsc::channel();
    let may_go_on = std::sync::Mutex::new(may_go_on);
    let engine = ScriptedEngine::new(move |work, _| {
        began.send(()).unwrap();
        may_go_on.lock().unwrap().recv().unwrap();
        Ok(black(work))
    });
    let worker = farm.start(engine);
    let (rendering, waiting) = (farm.order(0), farm.order(8));
    farm.publish_when_declared(&rendering).await;
    within(begun.recv()).await.unwrap();
    farm.publish(&waiting).await;
    farm.until_beat(|beat| beat.worker.tasks.len() == 2).await;
    worker.shutdown.cancel();
    farm.until_beat(|beat| beat.worker.draining && beat.worker.tasks.len() == 1).await;
    go_on.send(()).unwrap();
    farm.until_beat(|beat| beat.leaving && beat.worker.tasks_done == 1).await;
    worker.stop().await.unwrap();

    assert_eq!(farm.report().await.key, rendering.result_key());
    assert_eq!(farm.reports_left().await, 0);
    let mut consumer = farm.broker.consume(&farm.queue(&waiting), 1).await.unwrap();
    let delivery = within(consumer.next()).await.unwrap();
    assert_eq!(Order::decode(&delivery.message.body).unwrap(), waiting);
    assert_eq!(delivery.attempt, 1, "giving back is no failure");
}

#[tokio::test]
async fn what_does_not_finish_within_the_grace_is_interrupted_and_given_back() {
    let mut farm = Farm::new().await;
    farm.config.grace = Duration::ZERO;
    let (began, mut begun) = unbounded_channel();
    let worker = farm.start(ScriptedEngine::new(move |_, watch| {
        began.send(()).unwrap();
        Handle::current().block_on(watch.stopped());
        Err(RenderError::Interrupted)
    }));
    let order = farm.order(0);
    farm.publish_when_declared(&order).await;
    within(begun.recv()).await.unwrap();
    worker.stop().await.unwrap();
    assert_eq!((farm.depth(&order).await, farm.reports_left().await), (1, 0));
}

#[test]
fn only_what_every_worker_would_find_alike_makes_a_task_fail() {
    let model = Digest::of(b"model");
    let check = |error: RenderError, verdict| assert_eq!(error.verdict(), verdict, "{error}");
    check(RenderError::Channels { model, inputs: 1, outputs: 1 }, Verdict::Fail);
    check(RenderError::NotANumber { model }, Verdict::Fail);
    check(RenderError::Panicked { message: String::new() }, Verdict::Retry);
    check(RenderError::Interrupted, Verdict::Cancelled);
    let forbidden = store::StoreError::Forbidden { key: "k".into(), source: "no".into() };
    assert_eq!(crate::fetch::store_verdict(&forbidden), Verdict::Retry);
    assert_eq!(crate::fetch::store_verdict(&store::StoreError::NotFound { key: "k".into() }), Verdict::Fail);
}

//! The promise of [`Broker`] as tests: every adapter runs the same ones.
//!
//! It panics with the broken sentence. It waits only for what must come, and proves that something does not come by
//! something else that comes first or goes elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::error::{BrokerError, Result};
use crate::queue::{Broker, Consumer, Delivery, Message, QueueSpec};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs every test, each on queues of its own. Each call of `connect` makes another client of the same broker.
pub async fn run<C, F>(connect: C)
where
    C: Fn() -> F,
    F: Future<Output = Arc<dyn Broker>>,
{
    let broker = connect().await;
    let other = connect().await;
    within("check", broker.check()).await;
    assert!(!broker.describe().is_empty(), "a broker can be named");

    messages_come_in_order_and_unchanged(&*broker).await;
    a_queue_is_declared_twice_alike_but_not_otherwise(&*broker).await;
    an_unknown_queue_is_an_error(&*broker).await;
    impossible_names_are_refused_or_work(&*broker).await;
    prefetch_leaves_the_rest_to_others(&*broker, &*other).await;
    a_dropped_consumer_gives_back_what_it_held(&*broker).await;
    a_dropped_delivery_is_a_failed_one(&*broker).await;
    retries_count_up_to_the_limit_and_end_in_the_dead_letter_queue(&*broker).await;
    a_hopeless_message_is_dead_lettered_at_once(&*broker).await;
    what_is_given_back_comes_again(&*broker).await;
    a_stale_delivery_says_so(&*broker).await;
    depth_counts_what_waits(&*broker).await;
    everybody_who_listens_hears(&*broker, &*other).await;
    waiting_for_a_message_may_be_given_up(&*broker).await;
    thousands_pass_at_once_and_none_is_lost(&*broker, &*other).await;
    many_publish_at_a_time(&*broker).await;
    a_closed_broker_says_so(connect().await, &*broker).await;
    broker.close().await;
    other.close().await;
}

async fn messages_come_in_order_and_unchanged(broker: &dyn Broker) {
    let queue = declared(broker, "order").await;
    let mut with_headers = Message::new("headers", "text");
    with_headers.headers = BTreeMap::from([
        ("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        ("empty".into(), String::new()),
        ("umlaut".into(), "ü ∑".into()),
    ]);
    let sent = [
        with_headers,
        Message::new("", ""),
        Message::new("not text", Bytes::from_static(&[0xff, 0x00, 0xfe, b'\n'])),
        Message::new("large", vec![0x5a_u8; 300_000]),
    ];
    for message in &sent {
        within("publish", broker.publish(&queue, message.clone())).await;
    }
    let mut consumer = within("consume", broker.consume(&queue, 1)).await;
    for message in &sent {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.message.id, message.id, "messages come in the order they were published");
        assert_eq!(&delivery.message, message, "a message comes as it was published");
        assert_eq!(delivery.attempt, 1, "the first delivery is attempt 1");
        within("ack", delivery.ack()).await;
    }
}

async fn a_queue_is_declared_twice_alike_but_not_otherwise(broker: &dyn Broker) {
    let name = unique("declare");
    let spec = QueueSpec::new(&name).dead_letter_after(3, unique("declare-dead"));
    within("declare", broker.declare(&spec)).await;
    within("declare again", broker.declare(&spec)).await;
    let otherwise = QueueSpec { delivery_limit: Some(4), ..spec };
    match fails("declare otherwise", broker.declare(&otherwise)).await {
        BrokerError::Mismatch { queue, .. } => assert_eq!(queue, name),
        other => panic!("declaring a queue otherwise is a mismatch, not: {other}"),
    }
}

async fn an_unknown_queue_is_an_error(broker: &dyn Broker) {
    let known = declared(broker, "known").await;
    let unknown = unique("unknown");
    let is_unknown = |error: BrokerError| match error {
        BrokerError::UnknownQueue { queue } => assert_eq!(queue, unknown),
        other => panic!("a queue that nobody declared is unknown, not: {other}"),
    };
    is_unknown(fails("publish", broker.publish(&unknown, Message::new("lost", ""))).await);
    let many = (0..10).map(|n| Message::new(n.to_string(), "")).collect();
    is_unknown(fails("publish", broker.publish_many(&unknown, many)).await);
    is_unknown(fails("depth", broker.depth(&unknown)).await);
    is_unknown(fails("consume", broker.consume(&unknown, 1)).await);

    // Told to whoever published there, and to nobody else who publishes at the same time.
    let lost = (0..50).map(|n| broker.publish(&unknown, Message::new(n.to_string(), "")));
    let kept = (0..50).map(|n| broker.publish(&known, Message::new(n.to_string(), "")));
    let (lost, kept) = futures::future::join(futures::future::join_all(lost), futures::future::join_all(kept)).await;
    assert!(lost.iter().all(Result::is_err), "no message for an unknown queue counts as published");
    assert!(kept.iter().all(Result::is_ok), "messages for a known queue are published beside lost ones");
}

async fn impossible_names_are_refused_or_work(broker: &dyn Broker) {
    let long = "n".repeat(300);
    match tokio::time::timeout(LIMIT, broker.declare(&QueueSpec::new(&long))).await {
        Ok(Ok(()) | Err(BrokerError::Invalid { .. })) => {}
        Ok(Err(other)) => panic!("a name of 300 bytes works or is invalid, not: {other}"),
        Err(_) => panic!("a name of 300 bytes must not keep anybody waiting"),
    }
    let queue = declared(broker, "names").await;
    match tokio::time::timeout(LIMIT, broker.publish(&queue, Message::new(&long, ""))).await {
        Ok(Ok(()) | Err(BrokerError::Invalid { .. })) => {}
        Ok(Err(other)) => panic!("an id of 300 bytes works or is invalid, not: {other}"),
        Err(_) => panic!("an id of 300 bytes must not keep anybody waiting"),
    }
}

async fn prefetch_leaves_the_rest_to_others(broker: &dyn Broker, other: &dyn Broker) {
    let queue = declared(broker, "prefetch").await;
    publish_numbered(broker, &queue, 3).await;
    let mut full = within("consume", broker.consume(&queue, 2)).await;
    let first = next(&mut full).await;
    let second = next(&mut full).await;
    // Only the third is left, and only because the first consumer may not have it.
    let mut free = within("consume", other.consume(&queue, 2)).await;
    let third = next(&mut free).await;
    assert_eq!(ids([&first, &second, &third]), ["0", "1", "2"], "prefetch leaves the rest to others");
    drop(free);
    drop(third);
    // Settling one makes room for what came back.
    within("ack", first.ack()).await;
    let again = next(&mut full).await;
    assert_eq!(again.message.id, "2", "settling makes room for another message");
    within("ack", again.ack()).await;
    within("ack", second.ack()).await;
}

async fn a_dropped_consumer_gives_back_what_it_held(broker: &dyn Broker) {
    let queue = declared(broker, "drop").await;
    publish_numbered(broker, &queue, 3).await;
    let mut consumer = within("consume", broker.consume(&queue, 10)).await;
    let held = [next(&mut consumer).await, next(&mut consumer).await];
    drop(consumer);
    let mut consumer = within("consume", broker.consume(&queue, 10)).await;
    let mut seen = BTreeMap::new();
    for _ in 0..3 {
        let delivery = next(&mut consumer).await;
        seen.insert(delivery.message.id.clone(), delivery.attempt);
        within("ack", delivery.ack()).await;
    }
    let mut came = seen.keys().map(String::as_str);
    assert!(came.by_ref().eq(["0", "1", "2"]), "a dropped consumer gives back all it held, got {seen:?}");
    assert_eq!((seen["0"], seen["1"]), (2, 2), "what was in its hands counts as delivered");
    drop(held);
}

async fn a_dropped_delivery_is_a_failed_one(broker: &dyn Broker) {
    let queue = declared(broker, "abandon").await;
    publish_numbered(broker, &queue, 1).await;
    let mut consumer = within("consume", broker.consume(&queue, 1)).await;
    drop(next(&mut consumer).await);
    let again = next(&mut consumer).await;
    assert_eq!(again.attempt, 2, "a dropped delivery comes again, counted");
    within("ack", again.ack()).await;
}

async fn retries_count_up_to_the_limit_and_end_in_the_dead_letter_queue(broker: &dyn Broker) {
    let dead = declared(broker, "limit-dead").await;
    let queue = unique("limit");
    within("declare", broker.declare(&QueueSpec::new(&queue).dead_letter_after(3, &dead))).await;
    let mut poison = Message::new("poison", Bytes::from_static(&[0xff, 0xfe]));
    poison.headers.insert("traceparent".into(), "00-aa".into());
    within("publish", broker.publish(&queue, poison.clone())).await;
    let mut consumer = within("consume", broker.consume(&queue, 1)).await;
    for attempt in 1..=3 {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.attempt, attempt, "each retry counts");
        within("retry", delivery.retry()).await;
    }
    let mut parked = within("consume", broker.consume(&dead, 1)).await;
    let delivery = next(&mut parked).await;
    assert_eq!(delivery.message, poison, "a dead letter comes as it was published");
    assert_eq!(delivery.attempt, 1, "in the dead-letter queue, counting begins anew");
    within("ack", delivery.ack()).await;
    // Had the poison stayed in its queue, it would come before this one.
    within("publish", broker.publish(&queue, Message::new("next", ""))).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.message.id, "next", "a dead-lettered message is gone from its queue");
    within("ack", delivery.ack()).await;

    // Lost with its consumer counts as well.
    let queue = unique("limit-lost");
    within("declare", broker.declare(&QueueSpec::new(&queue).dead_letter_after(1, &dead))).await;
    within("publish", broker.publish(&queue, Message::new("crash", ""))).await;
    let mut consumer = within("consume", broker.consume(&queue, 1)).await;
    let held = next(&mut consumer).await;
    drop(consumer);
    let delivery = next(&mut parked).await;
    assert_eq!(delivery.message.id, "crash", "a message that kills its consumers is dead-lettered too");
    within("ack", delivery.ack()).await;
    drop(held);
}

async fn a_hopeless_message_is_dead_lettered_at_once(broker: &dyn Broker) {
    let dead = declared(broker, "hopeless-dead").await;
    let queue = unique("hopeless");
    within("declare", broker.declare(&QueueSpec::new(&queue).dead_letter_after(5, &dead))).await;
    within("publish", broker.publish(&queue, Message::new("foreign", "?"))).await;
    let mut consumer = within("consume", broker.consume(&queue, 1)).await;
    within("dead-letter", next(&mut consumer).await.dead_letter()).await;
    let mut parked = within("consume", broker.consume(&dead, 1)).await;
    let delivery = next(&mut parked).await;
    assert_eq!(delivery.message.id, "foreign", "a hopeless message goes to the dead-letter queue at once");
    within("ack", delivery.ack()).await;

    // Without a dead-letter queue it is dropped.
    let queue = declared(broker, "hopeless-dropped").await;
    publish_numbered(broker, &queue, 2).await;
    let mut consumer = within("consume", broker.consume(&queue, 1)).await;
    within("dead-letter", next(&mut consumer).await.dead_letter()).await;
    let delivery = next(&mut consumer).await;
    assert_eq!((delivery.message.id.as_str(), delivery.attempt), ("1", 1), "without one it is dropped");
    within("ack", delivery.ack()).await;
}

async fn what_is_given_back_comes_again(broker: &dyn Broker) {
    let queue = declared(broker, "give-back").await;
    publish_numbered(broker, &queue, 1).await;
    let mut consumer = within("consume", broker.consume(&queue, 1)).await;
    within("give back", next(&mut consumer).await.give_back()).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.message.id, "0", "what is given back comes again");
    assert!((1..=2).contains(&delivery.attempt), "giving back counts once or not, got {}", delivery.attempt);
    within("ack", delivery.ack()).await;
}

async fn a_stale_delivery_says_so(broker: &dyn Broker) {
    let queue = declared(broker, "stale").await;
    publish_numbered(broker, &queue, 4).await;
    let mut consumer = within("consume", broker.consume(&queue, 4)).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(next(&mut consumer).await);
    }
    drop(consumer);
    // Meanwhile somebody else holds them, on whatever channel the broker gives out now.
    let mut consumer = within("consume", broker.consume(&queue, 4)).await;
    let mut fresh = Vec::new();
    for _ in 0..4 {
        fresh.push(next(&mut consumer).await);
    }
    let [ack, retry, give_back, dead_letter] = <[Delivery; 4]>::try_from(held).expect("four were taken");
    for error in [
        fails("a stale ack", ack.ack()).await,
        fails("a stale retry", retry.retry()).await,
        fails("a stale give-back", give_back.give_back()).await,
        fails("a stale dead letter", dead_letter.dead_letter()).await,
    ] {
        assert!(matches!(error, BrokerError::Stale { .. }), "a stale delivery is stale, not: {error}");
    }
    for delivery in fresh {
        assert_eq!(delivery.attempt, 2, "stale words change nothing");
        within("ack", delivery.ack()).await;
    }
}

async fn depth_counts_what_waits(broker: &dyn Broker) {
    let queue = declared(broker, "depth").await;
    publish_numbered(broker, &queue, 7).await;
    becomes(broker, &queue, 7).await;
    let mut consumer = within("consume", broker.consume(&queue, 1)).await;
    let held = next(&mut consumer).await;
    becomes(broker, &queue, 6).await; // what is in somebody's hands does not wait
    within("ack", held.ack()).await;
    for _ in 0..6 {
        within("ack", next(&mut consumer).await.ack()).await;
    }
    becomes(broker, &queue, 0).await;
}

async fn everybody_who_listens_hears(broker: &dyn Broker, other: &dyn Broker) {
    let topic = unique("topic");
    within("broadcast to nobody", broker.broadcast(&topic, Message::new("unheard", ""))).await;
    let mut listeners = vec![
        within("listen", broker.listen(&topic)).await,
        within("listen", broker.listen(&topic)).await,
        within("listen", other.listen(&topic)).await,
    ];
    within("broadcast elsewhere", broker.broadcast(&unique("topic"), Message::new("elsewhere", ""))).await;
    let mut sent = Message::new("cancel", Bytes::from_static(&[0xff, 7]));
    sent.headers.insert("traceparent".into(), "00-bb".into());
    within("broadcast", broker.broadcast(&topic, sent.clone())).await;
    within("broadcast", broker.broadcast(&topic, Message::new("second", ""))).await;
    for listener in &mut listeners {
        assert_eq!(within("hear", listener.next()).await, sent, "everybody who listens hears what was said");
        assert_eq!(within("hear", listener.next()).await.id, "second", "in the order it was said");
    }
    // One who left is no hindrance, and a listener hears more than fit its window.
    listeners.truncate(1);
    for n in 0..1000 {
        within("broadcast", other.broadcast(&topic, Message::new(n.to_string(), ""))).await;
    }
    for n in 0..1000 {
        assert_eq!(within("hear", listeners[0].next()).await.id, n.to_string());
    }
}

async fn waiting_for_a_message_may_be_given_up(broker: &dyn Broker) {
    let queue = declared(broker, "give-up").await;
    let mut consumer = within("consume", broker.consume(&queue, 1)).await;
    for n in 0..20 {
        // Looks once and lets go, whether a message is there or on its way or not.
        let look = futures::FutureExt::now_or_never(consumer.next());
        assert!(look.is_none(), "nothing was published yet");
        within("publish", broker.publish(&queue, Message::new(n.to_string(), ""))).await;
        let delivery = match futures::FutureExt::now_or_never(consumer.next()) {
            Some(delivery) => delivery.expect("a message or none"),
            None => next(&mut consumer).await,
        };
        assert_eq!(delivery.message.id, n.to_string(), "giving up loses no message");
        assert_eq!(delivery.attempt, 1, "giving up gives nothing back");
        within("ack", delivery.ack()).await;
    }
}

async fn thousands_pass_at_once_and_none_is_lost(broker: &dyn Broker, other: &dyn Broker) {
    const COUNT: usize = 10_000;
    let queue = declared(broker, "thousands").await;
    let messages = (0..COUNT).map(|n| Message::new(n.to_string(), vec![b'x'; 200])).collect();
    let seen = AtomicU32::new(0);
    let take = async |broker: &dyn Broker| {
        let mut mine = BTreeSet::new();
        let mut consumer = within("consume", broker.consume(&queue, 200)).await;
        while (seen.load(Ordering::Relaxed) as usize) < COUNT {
            // The other may take the last one while this one waits for it.
            let Ok(delivery) = tokio::time::timeout(Duration::from_millis(200), consumer.next()).await else {
                continue;
            };
            let delivery = delivery.expect("a message");
            seen.fetch_add(1, Ordering::Relaxed);
            mine.insert(delivery.message.id.clone());
            within("ack", delivery.ack()).await;
        }
        mine
    };
    let publish = within("publish thousands", broker.publish_many(&queue, messages));
    let all = async { futures::join!(publish, take(broker), take(other)) };
    let ((), mut mine, theirs) = tokio::time::timeout(LIMIT, all).await.expect("thousands pass in a minute");
    assert_eq!(mine.len() + theirs.len(), COUNT, "nobody gets what another has");
    mine.extend(theirs);
    assert_eq!(mine.len(), COUNT, "all messages come");
    becomes(broker, &queue, 0).await;
}

async fn many_publish_at_a_time(broker: &dyn Broker) {
    let queue = declared(broker, "at-a-time").await;
    let all = (0..500).map(|n| broker.publish(&queue, Message::new(n.to_string(), "")));
    for outcome in within("publish", async { Ok(futures::future::join_all(all).await) }).await {
        outcome.expect("everybody may publish at the same time");
    }
    becomes(broker, &queue, 500).await;
}

async fn a_closed_broker_says_so(closing: Arc<dyn Broker>, broker: &dyn Broker) {
    let queue = declared(broker, "close").await;
    publish_numbered(broker, &queue, 1).await;
    let mut consumer = within("consume", closing.consume(&queue, 1)).await;
    let mut listener = within("listen", closing.listen(&unique("close"))).await;
    let held = next(&mut consumer).await;
    closing.close().await;
    for error in [
        fails("next", consumer.next()).await,
        fails("listen", listener.next()).await,
        fails("publish", closing.publish(&queue, Message::new("late", ""))).await,
        fails("check", closing.check()).await,
    ] {
        assert!(matches!(error, BrokerError::Closed { .. }), "a closed broker is closed, not: {error}");
    }
    let mut consumer = within("consume", broker.consume(&queue, 1)).await;
    let again = next(&mut consumer).await;
    assert_eq!((again.message.id.as_str(), again.attempt), ("0", 2), "closing gives unsettled messages back");
    assert!(matches!(fails("a stale ack", held.ack()).await, BrokerError::Stale { .. }));
    within("ack", again.ack()).await;
}

/// Waits for what must come, and names it if it does not.
async fn within<T>(what: &str, work: impl Future<Output = Result<T>>) -> T {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => panic!("{what}: {error}"),
        Err(_) => panic!("{what}: nothing came within {LIMIT:?}"),
    }
}

/// Waits for an error that must come.
async fn fails<T>(what: &str, work: impl Future<Output = Result<T>>) -> BrokerError {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(Ok(_)) => panic!("{what}: should have failed"),
        Ok(Err(error)) => error,
        Err(_) => panic!("{what}: no error came within {LIMIT:?}"),
    }
}

async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    within("the next message", consumer.next()).await
}

async fn declared(broker: &dyn Broker, about: &str) -> String {
    let name = unique(about);
    within("declare", broker.declare(&QueueSpec::new(&name))).await;
    name
}

async fn publish_numbered(broker: &dyn Broker, queue: &str, count: usize) {
    let messages = (0..count).map(|n| Message::new(n.to_string(), "")).collect();
    within("publish", broker.publish_many(queue, messages)).await;
}

/// Waits until the queue has this depth: a broker may count a moment late.
async fn becomes(broker: &dyn Broker, queue: &str, depth: u64) {
    let mut seen = None;
    let reached = async {
        while seen != Some(depth) {
            seen = Some(within("depth", broker.depth(queue)).await);
            tokio::task::yield_now().await;
        }
    };
    let outcome = tokio::time::timeout(LIMIT, reached).await;
    assert!(outcome.is_ok(), "the depth of `{queue}` becomes {depth}, but is {seen:?}");
}

fn ids<const N: usize>(deliveries: [&Delivery; N]) -> [&str; N] {
    deliveries.map(|delivery| delivery.message.id.as_str())
}

/// Makes a name that no other test and no other run has used.
fn unique(about: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("suite.{about}.{since_1970:x}.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

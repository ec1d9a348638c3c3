//! What the broker survives: cut connections, a dead network, restarts, power cuts, a lost disk.

use std::time::Duration;

use anyhow::Result;
use broker::{Broker, BrokerError, Listener, Message, Options, QueueSpec};
use tests::proxy::Proxy;
use tests::rabbitmq::RabbitMq;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(90);

/// Says aloud that there is nothing to test with.
fn skipped() -> bool {
    let skipped = !RabbitMq::is_installed();
    if skipped {
        eprintln!("SKIPPED: the package rabbitmq-server is not installed, so nothing was tested against RabbitMQ");
    }
    skipped
}

async fn within<T, E>(what: &str, work: impl Future<Output = Result<T, E>>) -> Result<T>
where
    anyhow::Error: From<E>,
{
    match tokio::time::timeout(LIMIT, work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => anyhow::bail!("{what}: nothing came within {LIMIT:?}"),
    }
}

/// Says something again and again until it is heard: a topic may lose what is said while a listener is away.
async fn heard(broker: &dyn Broker, topic: &str, listener: &mut dyn Listener) -> Result<Message> {
    let say = async {
        loop {
            broker.broadcast(topic, Message::new("hello", "")).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        message = within("hearing", listener.next()) => message,
        failed = say => failed,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_keeps_the_promise() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let rabbit = RabbitMq::start().await?;
    let url = rabbit.url();
    broker::suite::run(async || broker::open(&url, &Options::default()).await.expect("the server answers")).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_network_costs_time_but_no_message() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let rabbit = RabbitMq::start().await?;
    let proxy = Proxy::start(rabbit.address()).await?;
    let options = Options { patience: Duration::from_secs(20), ..Options::default() };
    let broker = broker::open(&rabbit.url_through(proxy.address()), &options).await?;
    broker.declare(&QueueSpec::new("tasks")).await?;
    broker.publish("tasks", Message::new("held", "")).await?;
    let mut consumer = broker.consume("tasks", 1).await?;
    let mut listener = broker.listen("cancel").await?;
    let held = within("the first delivery", consumer.next()).await?;

    // Cut while a delivery is held: it comes again, and the old one is stale.
    proxy.cut();
    let again = within("the message of the lost delivery", consumer.next()).await?;
    assert_eq!((again.message.id.as_str(), again.attempt), ("held", 2));
    assert!(matches!(held.ack().await, Err(BrokerError::Stale { .. })));
    within("ack", again.ack()).await?;

    // Cut while thousands are being published: all arrive, and are taken over the cut connection too.
    let count = 3000;
    let messages: Vec<_> = (0..count).map(|n| Message::new(n.to_string(), vec![7; 500])).collect();
    let mut arrived = std::collections::BTreeSet::new();
    let take = async {
        while arrived.len() < count {
            let delivery = consumer.next().await?;
            if arrived.len() % 500 == 250 {
                proxy.cut();
            }
            arrived.insert(delivery.message.id.clone());
            match delivery.ack().await {
                Ok(()) | Err(BrokerError::Stale { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    let both = async { tokio::try_join!(broker.publish_many("tasks", messages), take) };
    within("thousands through a cut connection", both).await?;

    // The listener has found its way back as well.
    assert_eq!(heard(&*broker, "cancel", &mut *listener).await?.id, "hello");

    // A network that carries nothing is told to whoever loses patience, and forgotten when it carries again.
    let impatient = Options { patience: Duration::from_secs(1), ..options };
    let hasty = broker::open(&rabbit.url_through(proxy.address()), &impatient).await?;
    proxy.pause();
    let error = hasty.publish("tasks", Message::new("late", "")).await.expect_err("nothing is carried");
    assert!(error.is_transient(), "{error}");
    proxy.resume();
    within("publishing again", hasty.publish("tasks", Message::new("after", ""))).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_back_is_found_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut rabbit = RabbitMq::start().await?;
    let options = Options { patience: LIMIT, ..Options::default() };
    let broker = broker::open(&rabbit.url(), &options).await?;
    broker.declare(&QueueSpec::new("tasks").dead_letter_after(5, "parked")).await?;
    broker.declare(&QueueSpec::new("parked")).await?;
    let mut consumer = broker.consume("tasks", 1).await?;
    let mut listener = broker.listen("cancel").await?;

    // Restarted in good order, while a delivery is held and another message waits.
    broker.publish("tasks", Message::new("held", "")).await?;
    broker.publish("tasks", Message::new("waiting", "")).await?;
    let held = within("a delivery", consumer.next()).await?;
    rabbit.restart().await?;
    let mut came = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let delivery = within("what was there before the restart", consumer.next()).await?;
        came.insert(delivery.message.id.clone());
        within("ack", delivery.ack()).await?;
    }
    assert!(came.iter().eq(["held", "waiting"]), "{came:?}");
    assert!(matches!(held.ack().await, Err(BrokerError::Stale { .. })));
    assert_eq!(heard(&*broker, "cancel", &mut *listener).await?.id, "hello");

    // Power cut: what was confirmed is there; what is published meanwhile waits for the broker.
    let confirmed: Vec<_> = (0..500).map(|n| Message::new(format!("confirmed {n}"), "")).collect();
    drop(consumer);
    within("publish", broker.publish_many("tasks", confirmed)).await?;
    rabbit.kill().await?;
    let meanwhile = broker.publish("tasks", Message::new("meanwhile", ""));
    let (published, started) = tokio::join!(meanwhile, rabbit.start_again());
    started?;
    published?;
    let mut consumer = within("consume", broker.consume("tasks", 100)).await?;
    let mut came = std::collections::BTreeSet::new();
    while came.len() < 501 {
        let delivery = within("what was confirmed before the power cut", consumer.next()).await?;
        came.insert(delivery.message.id.clone());
        within("ack", delivery.ack()).await?;
    }
    assert!(came.contains("meanwhile"));

    // Lost disk: the queues are declared again, so that work can go on.
    rabbit.kill().await?;
    rabbit.lose_everything()?;
    rabbit.start_again().await?;
    within("publish", broker.publish("tasks", Message::new("new life", ""))).await?;
    let delivery = within("a message of the new life", consumer.next()).await?;
    assert_eq!(delivery.message.id, "new life");
    within("dead-letter", delivery.dead_letter()).await?;
    let mut parked = within("consume", broker.consume("parked", 1)).await?;
    let parked = within("the dead letter", parked.next()).await?;
    assert_eq!(parked.message.id, "new life");
    within("ack", parked.ack()).await?;
    Ok(())
}

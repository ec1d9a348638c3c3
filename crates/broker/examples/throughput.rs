//! Measures a broker: `throughput ADDRESS [MESSAGES] [CONSUMERS] [BODY_BYTES]`.
//!
//! Publishes with `publish_many`, while consumers take and acknowledge, and prints messages per second.
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use broker::{Message, Options, QueueSpec};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "memory:throughput".into());
    let mut number = |default| arguments.next().map_or(Ok(default), |text| text.parse::<usize>());
    let (messages, consumers, body_bytes) = (number(20_000)?, number(2)?, number(1024)?);

    let options = Options::default();
    let broker = broker::open(&address, &options).await?;
    let queue = format!("throughput.{}", std::process::id());
    broker.declare(&QueueSpec::new(&queue)).await?;

    let batch = (0..messages).map(|n| Message::new(n.to_string(), vec![0_u8; body_bytes])).collect();
    let start = Instant::now();
    broker.publish_many(&queue, batch).await?;
    let publish = start.elapsed();

    // One at a time, as a coordinator that reports each message would.
    let start = Instant::now();
    let single = 200;
    for n in 0..single {
        broker.publish(&queue, Message::new(n.to_string(), vec![0_u8; body_bytes])).await?;
    }
    let one_by_one = start.elapsed();

    let taken = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut takers = tokio::task::JoinSet::new();
    for _ in 0..consumers {
        let (broker, queue, taken) = (broker::open(&address, &options).await?, queue.clone(), taken.clone());
        takers.spawn(async move {
            let mut consumer = broker.consume(&queue, 100).await?;
            loop {
                consumer.next().await?.ack().await?;
                if taken.fetch_add(1, Ordering::Relaxed) + 1 == messages + single {
                    return anyhow::Ok(());
                }
            }
        });
    }
    takers.join_next().await.expect("there is a consumer")??;
    let consume = start.elapsed();
    takers.shutdown().await;

    // Both at once.
    let queue = format!("{queue}.both");
    broker.declare(&QueueSpec::new(&queue)).await?;
    let taken = Arc::new(AtomicUsize::new(0));
    let mut takers = tokio::task::JoinSet::new();
    for _ in 0..consumers {
        let (broker, queue, taken) = (broker::open(&address, &options).await?, queue.clone(), taken.clone());
        takers.spawn(async move {
            let mut consumer = broker.consume(&queue, 100).await?;
            loop {
                consumer.next().await?.ack().await?;
                if taken.fetch_add(1, Ordering::Relaxed) + 1 == messages {
                    return anyhow::Ok(());
                }
            }
        });
    }
    let batch = (0..messages).map(|n| Message::new(n.to_string(), vec![0_u8; body_bytes])).collect();
    let start = Instant::now();
    broker.publish_many(&queue, batch).await?;
    takers.join_next().await.expect("there is a consumer")??;
    let both = start.elapsed();
    takers.shutdown().await;

    let rate = |count: usize, took: std::time::Duration| count as f64 / took.as_secs_f64();
    println!("{} · {messages} messages of {body_bytes} bytes · {consumers} consumers", broker.describe());
    println!("publish_many          {:>9.0} messages/s", rate(messages, publish));
    println!("publish, one by one   {:>9.0} messages/s", rate(single, one_by_one));
    println!("take and acknowledge  {:>9.0} messages/s", rate(messages + single, consume));
    println!("all at the same time  {:>9.0} messages/s", rate(messages, both));
    Ok(())
}

//! The broker in memory keeps the promise.

use std::sync::Arc;

use broker::{Broker, BrokerError, MemoryBroker, Message, Options, QueueSpec};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_in_memory_keeps_the_promise() {
    let broker = MemoryBroker::new();
    broker::suite::run(async || Arc::new(broker.another()) as Arc<dyn Broker>).await;
}

#[tokio::test]
async fn a_named_broker_is_shared_and_an_unnamed_one_is_not() {
    let open = async |address| broker::open(address, &Options::default()).await.unwrap();
    let (first, second, other) = (open("memory:shared").await, open("memory:shared").await, open("memory:").await);
    first.declare(&QueueSpec::new("tasks")).await.unwrap();
    second.publish("tasks", Message::new("one", "")).await.unwrap();
    assert_eq!(first.depth("tasks").await.unwrap(), 1);
    assert!(matches!(other.depth("tasks").await, Err(BrokerError::UnknownQueue { .. })));
}

#[tokio::test]
async fn giving_back_does_not_count_in_memory() {
    let broker = MemoryBroker::new();
    broker.declare(&QueueSpec::new("tasks").dead_letter_after(1, "dead")).await.unwrap();
    broker.publish("tasks", Message::new("one", "")).await.unwrap();
    let mut consumer = broker.consume("tasks", 1).await.unwrap();
    for _ in 0..5 {
        let delivery = consumer.next().await.unwrap();
        assert_eq!(delivery.attempt, 1);
        delivery.give_back().await.unwrap();
    }
}

#[tokio::test]
async fn dead_letters_wait_for_a_queue_that_is_declared_later() {
    let broker = MemoryBroker::new();
    broker.declare(&QueueSpec::new("tasks").dead_letter_after(1, "dead")).await.unwrap();
    broker.publish("tasks", Message::new("one", "")).await.unwrap();
    broker.consume("tasks", 1).await.unwrap().next().await.unwrap().retry().await.unwrap();
    assert!(matches!(broker.depth("dead").await, Err(BrokerError::UnknownQueue { .. })));
    broker.declare(&QueueSpec::new("dead")).await.unwrap();
    assert_eq!(broker.depth("dead").await.unwrap(), 1);
}

#[tokio::test]
async fn an_address_of_another_kind_is_refused_without_repeating_it() {
    for address in ["kafka://me:s3cret@host", "s3cret", "amqp://me:s3cret@host:port"] {
        let error = broker::open(address, &Options::default()).await.unwrap_err();
        assert!(matches!(error, BrokerError::Address { .. }));
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

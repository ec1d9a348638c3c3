//! RabbitMQ keeps the promise, where `TESSERA_TEST_AMQP` gives the address of one.

use std::time::Duration;

use broker::{BrokerError, Options};

/// The address of the broker to test with; says aloud when there is none.
fn address() -> Option<String> {
    let address = std::env::var("TESSERA_TEST_AMQP").ok();
    if address.is_none() {
        eprintln!("SKIPPED: TESSERA_TEST_AMQP is not set, so nothing was tested against RabbitMQ");
    }
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_keeps_the_promise() {
    let Some(address) = address() else { return };
    broker::suite::run(async || broker::open(&address, &Options::default()).await.expect("the broker answers")).await;
}

#[tokio::test]
async fn wrong_credentials_are_refused_at_once() {
    let Some(address) = address() else { return };
    let host = address.rsplit('@').next().expect("a split has a last part").trim_start_matches("amqp://");
    let wrong = format!("amqp://nobody:s3cret@{host}");
    let error = broker::open(&wrong, &Options::default()).await.expect_err("nobody is not let in");
    assert!(matches!(error, BrokerError::Refused { .. }), "{error}");
    assert!(!error.to_string().contains("s3cret"), "{error}");
}

#[tokio::test]
async fn a_missing_virtual_host_is_refused_at_once() {
    let Some(address) = address() else { return };
    let base = address.trim_end_matches("/%2f").trim_end_matches('/');
    let error = broker::open(&format!("{base}/nowhere"), &Options::default()).await.expect_err("it does not exist");
    assert!(matches!(error, BrokerError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_unreachable_within_the_callers_patience() {
    let options = Options { patience: Duration::from_millis(500), ..Options::default() };
    // Port 1 (tcpmux) is nobody's here.
    let error = broker::open("amqp://127.0.0.1:1", &options).await.expect_err("nobody is there");
    assert!(matches!(error, BrokerError::Unreachable { source: Some(_), .. }), "{error:?}");
    assert!(error.is_transient());
}

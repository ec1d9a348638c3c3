//! What our values are in AMQP: addresses, properties, queue arguments.

use std::collections::BTreeMap;
use std::str::FromStr;

use bytes::Bytes;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel};

use crate::error::{BrokerError, Result};
use crate::queue::{Message, QueueSpec};

/// The longest short string of AMQP, in bytes.
const SHORT: usize = 255;
/// RabbitMQ's default `max_message_size`, in bytes.
const LARGEST_BODY: usize = 128 << 20;
/// How often, in seconds, both ends show that they live; two missed ones end the connection.
const HEARTBEAT: u16 = 15;

/// Whether a message outlives the broker's process.
#[derive(Clone, Copy)]
pub(super) enum Durability {
    Transient,
    Persistent,
}

/// Reads an address, and adds our heartbeat where it names none.
pub(super) fn uri(address: &str) -> Result<AMQPUri> {
    // The parser's own words may repeat the password, so they stay here.
    let mut uri = AMQPUri::from_str(address).map_err(|_| BrokerError::Address {
        reason: "expected `amqp://USER:PASSWORD@HOST:PORT/VHOST`, with special characters percent-encoded".into(),
    })?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    Ok(uri)
}

/// Names the broker for people.
pub(super) fn describe(uri: &AMQPUri) -> String {
    let (host, port, vhost) = (&uri.authority.host, uri.authority.port, &uri.vhost);
    format!("RabbitMQ at {host}:{port}, virtual host `{vhost}`")
}

/// Checks that a queue or topic can have this name.
pub(super) fn name(name: &str) -> Result<()> {
    let reason = match name.len() {
        0 => "the name is empty".into(),
        1..=SHORT => return Ok(()),
        long => format!("the name has {long} bytes, and at most {SHORT} are possible"),
    };
    Err(BrokerError::Invalid { name: name.to_owned(), reason })
}

/// Checks that AMQP can say what the message says.
pub(super) fn check_message(message: &Message) -> Result<()> {
    let reason = if message.id.len() > SHORT {
        format!("the id has {} bytes, and at most {SHORT} are possible", message.id.len())
    } else if let Some(name) = message.headers.keys().find(|name| name.is_empty() || name.len() > SHORT) {
        format!("the header name `{name}` has {} bytes, and 1 to {SHORT} are possible", name.len())
    } else if message.body.len() > LARGEST_BODY {
        format!("the body has {} bytes, and at most {LARGEST_BODY} are possible", message.body.len())
    } else {
        return Ok(());
    };
    Err(BrokerError::Invalid { name: message.id.clone(), reason })
}

/// Checks that the queue can be declared.
pub(super) fn check_spec(spec: &QueueSpec) -> Result<()> {
    name(&spec.name)?;
    spec.dead_letter_to.as_deref().map_or(Ok(()), name)?;
    if spec.delivery_limit == Some(0) {
        return Err(BrokerError::Invalid {
            name: spec.name.clone(),
            reason: "a delivery limit of 0 delivers nothing".into(),
        });
    }
    Ok(())
}

/// Declares the queue as a durable quorum queue.
pub(super) async fn declare(channel: &Channel, spec: &QueueSpec) -> lapin::Result<()> {
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    if let Some(limit) = spec.delivery_limit {
        // RabbitMQ counts how often a message came back, we count how often it went out.
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(i64::from(limit) - 1));
    }
    if let Some(target) = &spec.dead_letter_to {
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(target));
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        arguments.insert("x-overflow".into(), text("reject-publish"));
    }
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(spec.name.as_str().into(), options, arguments).await?;
    Ok(())
}

/// Puts everything but the body into AMQP's words. The message must have passed [`check_message`].
pub(super) fn properties(message: &Message, durability: Durability) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        headers.insert(name.as_str().into(), AMQPValue::LongString(value.as_str().into()));
    }
    let properties = BasicProperties::default().with_message_id(message.id.as_str().into()).with_headers(headers);
    match durability {
        Durability::Transient => properties.with_delivery_mode(1),
        Durability::Persistent => properties.with_delivery_mode(2),
    }
}

/// Makes a message of what came. Whatever others put in it that is no text of ours is left out.
pub(super) fn message(properties: &BasicProperties, body: Vec<u8>) -> Message {
    let mut headers = BTreeMap::new();
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        if let AMQPValue::LongString(value) = value
            && !name.as_str().starts_with("x-")
            && let Ok(value) = std::str::from_utf8(value.as_bytes())
        {
            headers.insert(name.as_str().to_owned(), value.to_owned());
        }
    }
    Message {
        id: properties.message_id().as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
        headers,
        body: Bytes::from(body),
    }
}

/// Reads which delivery this is, from 1: quorum queues count the earlier ones in a header.
pub(super) fn attempt(properties: &BasicProperties) -> u32 {
    let count = properties.headers().as_ref().and_then(|table| table.inner().get("x-delivery-count"));
    let earlier = count.and_then(AMQPValue::as_long_long_int).unwrap_or(0);
    u32::try_from(earlier).unwrap_or(0).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_described_without_its_password() {
        let uri = uri("amqp://farm:s3cret@broker.example:5673/tess%2fera").unwrap();
        assert_eq!(describe(&uri), "RabbitMQ at broker.example:5673, virtual host `tess/era`");
        assert_eq!(uri.query.heartbeat, Some(HEARTBEAT));
    }

    #[test]
    fn a_broken_address_does_not_show_its_password() {
        let error = uri("amqp://farm:s3cret@broker:port/").unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn names_and_messages_that_amqp_cannot_carry_are_refused() {
        assert!(name("").is_err());
        assert!(name(&"q".repeat(256)).is_err());
        assert!(name(&"q".repeat(255)).is_ok());
        assert!(check_message(&Message::new("i".repeat(256), "")).is_err());
        let mut message = Message::new("id", "");
        message.headers.insert("h".repeat(256), String::new());
        assert!(check_message(&message).is_err());
    }

    #[test]
    fn a_message_keeps_its_words_and_foreign_ones_are_left_out() {
        let mut sent = Message::new("id", "body");
        sent.headers.insert("traceparent".into(), "00-aa-bb-01".into());
        let mut table = properties(&sent, Durability::Persistent).headers().clone().unwrap();
        table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(2));
        table.insert("priority".into(), AMQPValue::Boolean(true));
        let properties = BasicProperties::default().with_message_id("id".into()).with_headers(table);
        assert_eq!(message(&properties, b"body".to_vec()), sent);
        assert_eq!(attempt(&properties), 3);
        assert_eq!(attempt(&BasicProperties::default()), 1);
    }
}

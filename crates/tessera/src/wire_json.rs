//! Messages of the contract as JSON, the way protobuf writes it, with the field names of the proto files.

use std::sync::LazyLock;

use anyhow::Context as _;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use proto::v1;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(v1::DESCRIPTORS).expect("the contract was compiled with the program"));

/// The message `name` of the contract, such as `Job`.
pub fn descriptor(name: &str) -> MessageDescriptor {
    let name = format!("tessera.v1.{name}");
    POOL.get_message_by_name(&name).expect("callers name messages of the contract")
}

/// Writes the message `name`, such as `Job`, with every field, also those at their defaults; 64-bit numbers are
/// numbers.
pub fn show(name: &str, message: &impl prost::Message) -> serde_json::Value {
    let message = DynamicMessage::decode(descriptor(name), message.encode_to_vec().as_slice())
        .expect("a message of the contract has its own encoding");
    let options =
        SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false).stringify_64_bit_integers(false);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("a message of the contract has a JSON form")
}

/// Reads the message `name`.
///
/// # Errors
/// Names an unknown field, or what is wrong with the value of a known one.
pub fn read<M: prost::Message + Default>(name: &str, value: serde_json::Value) -> anyhow::Result<M> {
    let message = DynamicMessage::deserialize(descriptor(name), value)?;
    M::decode(message.encode_to_vec().as_slice()).context("the message cannot be read")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_read_as_protobuf_writes_it() {
        let request: v1::CreateJobRequest = read(
            "CreateJobRequest",
            json!({
                "request_id": "r",
                "priority": "PRIORITY_HIGH",
                "deadline": "2026-11-21T10:00:00Z",
                "upscale": { "pictures": [{ "uri": "s3://b/k" }], "upscale_model": "m", "tile": { "side": 64, "overlap": 0 } },
            }),
        )
        .unwrap();
        assert_eq!((request.request_id.as_str(), request.priority()), ("r", v1::Priority::High));
        assert_eq!(request.deadline.unwrap().seconds, 1_795_255_200);
        let Some(v1::create_job_request::Kind::Upscale(upscale)) = request.kind else { panic!("no kind") };
        assert_eq!(upscale.tile.unwrap().overlap, Some(0));
    }

    #[test]
    fn an_unknown_field_is_refused_by_its_name() {
        let error = |value| format!("{:#}", read::<v1::CreateJobRequest>("CreateJobRequest", value).unwrap_err());
        assert!(error(json!({ "upscale": { "picturs": [] } })).contains("picturs"));
        assert!(error(json!({ "priority": "URGENT" })).contains("URGENT"));
    }

    #[test]
    fn what_is_shown_has_all_fields_and_plain_numbers() {
        let progress = v1::JobProgress { tasks_total: 5, ..Default::default() };
        let shown = show("JobProgress", &progress);
        assert_eq!((&shown["tasks_total"], &shown["tasks_done"]), (&json!(5), &json!(0)));
        let job = show("Job", &v1::Job { state: v1::JobState::Running.into(), ..Default::default() });
        assert_eq!(job["state"], json!("JOB_STATE_RUNNING"));
    }
}

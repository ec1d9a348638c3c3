//! The contract: what the farm's processes and its users say to each other, and how it becomes domain values.
//!
//! `tessera/v1/*.proto` is the contract itself, written for someone who has no access to the code. [`v1`] is the code
//! made from it. [`convert`] is where wire values become domain values or name the field that is wrong: past that door
//! there is no half-valid job. Nothing else in the house knows the wire format.

pub mod convert;
pub mod farm;

/// The messages, clients and servers made from `tessera/v1/*.proto`.
#[allow(missing_docs, clippy::all)] // documented where it is written: in the proto files
pub mod v1 {
    tonic::include_proto!("tessera.v1");

    /// The compiled contract, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

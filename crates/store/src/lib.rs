//! Bytes by key: one trait, and three places where the bytes may lie.
//!
//! A [`Store`] holds what the farm must not forget: pictures, models, results, the state of jobs. [`open`] turns
//! an address from the configuration into one: `memory:`, `file:///folder` or `s3://bucket/prefix`.
//!
//! What a store promises is little, so that every S3 look-alike can keep it: a key holds all of a body or nothing,
//! the last write wins, and what has been written is seen by everyone from then on. There is no locking and no
//! conditional write: a key is made from what its bytes are, or has one writer.
//!
//! What this crate is not: it knows nothing of jobs, tiles or pictures, and chooses no keys. Start reading at
//! [`Store`]; [`suite`] says in tests what each adapter must do.

mod digest;
mod error;
mod folder;
mod key;
mod memory;
mod open;
mod s3;
mod store;
pub mod suite;

pub use digest::{Digester, digest, put_digested};
pub use error::{Cause, Result, StoreError};
pub use folder::{Evicted, FolderStore, Usage};
pub use key::Key;
pub use memory::MemoryStore;
pub use open::open;
pub use s3::{ForeignObject, S3, S3Store, s3_object};
pub use store::{ByteStream, Entry, EntryStream, Meta, Store, Writer};

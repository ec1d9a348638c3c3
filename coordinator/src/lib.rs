//! Takes jobs, plans them, publishes their tasks, and puts the results together.
//!
//! The coordinator links no candle and no GPU library: it reads headers, cuts, blends and encodes with `imaging`, in
//! row bands, so that its memory does not grow with the picture. It has no database: the store holds every fact, the
//! broker says only what to do next, and a new coordinator resumes each job from what the store holds.
//!
//! The stair, from the top: [`services`] is gRPC in; [`intake`] resolves a request into a job and decodes its pictures;
//! [`ledger`] decides, as a pure value; [`dispatch`] does what it decides; [`inbox`] brings in what workers say;
//! [`previews`] shows tasks while they are rendered; [`assemble`] puts pictures together. [`run`] ties them into a
//! process. Start reading at the ledger.

pub mod assemble;
pub mod auto_tile;
pub mod catalog;
pub mod desk;
pub mod dispatch;
mod forecast;
pub mod inbox;
pub mod intake;
pub mod ledger;
pub mod metrics;
pub mod previews;
pub mod records;
pub mod refusal;
pub mod roster;
pub mod run;
pub mod services;

pub use run::run;

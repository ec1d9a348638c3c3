//! Takes one task, renders it, stores the result, acknowledges it.
//!
//! A worker talks only to the broker and the store. It keeps nothing that matters: whatever it has in hand when it dies
//! is delivered to somebody else, and since a result's key follows from the work alone, doing it twice writes the same
//! bytes twice.
//!
//! What it is not: it plans nothing and knows no job beyond its name. How a network computes is the business of
//! `models`; what a task is, of `domain` and `proto`.
//!
//! Start reading at [`run`], the life of a worker. `attempt` is the life of one delivery, and [`engine::Engine`] the
//! place where `async` ends and rendering begins.

mod attempt;
mod board;
pub mod engine;
mod fetch;
mod memory;
mod metrics;
mod patience;
mod revoked;
pub mod run;
mod speeds;
#[cfg(test)]
mod tests;
pub mod topology;
mod turns;

pub use run::{run, run_with};

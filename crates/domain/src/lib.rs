//! Jobs, tasks, regions and the planner: values and functions only.
//!
//! There is no I/O here, no `async`, no candle, and no clock or dice: the time and the seed are arguments. Whatever
//! the farm decides about *what* is to be rendered is decided in this crate, so that the same job is planned alike on
//! every machine and after every restart.
//!
//! Start with [`job::Job`], the resolved job: everything a plan needs, fixed at intake. [`plan::plan`] turns it into a
//! graph of [`plan::Task`]s, each of which knows the key of its result before anything runs, and [`schedule::Schedule`] says
//! how long that takes.

pub mod check;
pub mod cost;
pub mod digest;
pub mod document;
pub mod job;
pub mod layout;
pub mod nodes;
pub mod picture;
pub mod pipe;
pub mod plan;
pub mod region;
pub mod resize;
pub mod sampling;
pub mod schedule;
pub mod segs;
pub mod task;
pub mod tiles;
pub mod touched;
pub mod working;

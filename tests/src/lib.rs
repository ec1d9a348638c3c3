//! What the end-to-end tests and benchmarks stand on: a farm of real processes on real services, and the goldens
//! runner.
//!
//! Nothing here is part of the farm. The tests themselves are in `it/`, in one binary; [`farm`] is their vocabulary.

pub mod collector;
pub mod farm;
pub mod goldens;
pub mod pictures;
pub mod proxy;
pub mod rabbitmq;
pub mod s3_server;

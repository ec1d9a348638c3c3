//! The farm, in the words of its user: real processes on a real RabbitMQ and a real S3 server.
//!
//! `scripts/test` starts the services and sets `TESSERA_TEST_AMQP` and `TESSERA_TEST_S3`; without them the tests that
//! need them say aloud that they were skipped.

mod broker_faults;
mod door;
mod faults;
mod folders;
mod goldens;
mod newcomer;
mod sample;
mod segs;
mod sharing;
mod sizes;
mod tidy;
mod trace;

use proto::v1;

/// A job for the model `name` with tiles of `side` pixels that overlap by 16.
fn job(name: &str, side: u32) -> v1::UpscaleJob {
    v1::UpscaleJob {
        upscale_model: name.to_owned(),
        tile: Some(v1::TileOptions { side, overlap: Some(16), auto: false }),
        ..v1::UpscaleJob::default()
    }
}

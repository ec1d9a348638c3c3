//! The edge of every process: configuration, telemetry, health, shutdown.
//!
//! [`main`] is what a binary calls: it reads the configuration, starts telemetry and the health server, runs the body
//! with a [`Context`], and turns what comes back into an exit code. [`run`] is the same for a program that has read
//! its own command line. [`config`] knows every key there is; past it nobody reads the environment. [`retry`](retry())
//! waits for an outside service that is down; [`report`] tells people about errors, with the way out.
//!
//! What this crate is not: it knows no job, no store and no broker, only how a process is operated.

pub mod config;
pub mod health;
mod process;
pub mod report;
mod retry;
mod secret;
mod shutdown;
pub mod telemetry;

pub use process::{Context, main, run};
pub use retry::{Backoff, retry};
pub use secret::{Secret, hide_password};

//! `tessera-worker`: a worker of a farm whose store and broker are shared.

use std::process::ExitCode;

use service::config::keys;

const PARTS: u8 = keys::PROCESS | keys::FARM | keys::WORKER;

fn main() -> ExitCode {
    service::main::<PARTS>("tessera-worker", "Renders the tasks of a Tessera farm", worker::run::process)
}

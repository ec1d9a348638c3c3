//! `tessera-coordinator`: the coordinator of a farm whose store and broker are shared.

use std::process::ExitCode;

use service::config::keys;

const PARTS: u8 = keys::PROCESS | keys::FARM | keys::COORDINATOR;

fn main() -> ExitCode {
    let about = "Takes the jobs of a Tessera farm, plans them, and puts the results together";
    service::main::<PARTS>("tessera-coordinator", about, coordinator::run::process)
}

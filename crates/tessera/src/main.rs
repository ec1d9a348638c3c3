//! The `tessera` command, and the whole farm embedded in one process.
//!
//! Every command that renders a job talks to a farm over gRPC, also when that farm is [`embedded`] in the same process:
//! there is no second way to do the work. [`command::sample`] is for trying a checkpoint without any. [`cli`] is the
//! command line, [`command`] what each command does; [`client`] is the farm as a program sees it, [`pictures`] and
//! [`naming`] say which files a command line means, [`document`] is a job as JSON, [`segs_file`] SEGS as files,
//! [`local`] pictures on this machine; [`transfer`] brings files there and back, [`watch`] follows a job and
//! [`progress`] shows it.
//!
//! What it is not: it renders and plans nothing itself. Start reading at [`command::upscale`].

mod cache;
mod cli;
mod client;
mod command;
mod document;
mod embedded;
mod exit;
mod local;
mod naming;
mod output;
mod pictures;
mod progress;
mod segs_file;
mod transfer;
mod watch;
mod wire_json;

use std::process::ExitCode;

use clap::Parser as _;
use cli::{Cli, Command, JobsCommand, ModelsCommand};
use exit::{Failure, Outcome};
use service::{
    config::{Config, ConfigError, Flags},
    report::with_hint,
};

/// What a command logs that answers a person: what is wrong, and nothing else.
const QUIET: &[(&str, &str)] = &[("log", "warn")];
/// What `doctor` logs: what it finds is its own to tell.
const SILENT: &[(&str, &str)] = &[("log", "error")];
/// What a process logs that serves.
const SERVING: &[(&str, &str)] = &[];

fn main() -> ExitCode {
    exit::code(run(Cli::parse().command))
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Upscale(mut args) => {
            let config = load(std::mem::take(&mut args.job.config), QUIET)?;
            service::run("tessera", config, async |config, context| {
                command::upscale::run(*args, config, context).await
            })?
        }
        Command::Sample(mut args) => {
            let config = load(std::mem::take(&mut args.config), QUIET)?;
            service::run("tessera", config, async |config, context| command::sample::run(*args, config, context).await)?
        }
        Command::SegsDetail(mut args) => {
            let config = load(std::mem::take(&mut args.redraw.job.config), QUIET)?;
            service::run("tessera", config, async |config, context| {
                command::redraw::segs_detail(*args, config, context).await
            })?
        }
        Command::SegsUpscale(mut args) => {
            let config = load(std::mem::take(&mut args.redraw.job.config), QUIET)?;
            service::run("tessera", config, async |config, context| {
                command::redraw::segs_upscale(*args, config, context).await
            })?
        }
        Command::LatentUpscale(mut args) => {
            let config = load(std::mem::take(&mut args.redraw.job.config), QUIET)?;
            service::run("tessera", config, async |config, context| {
                command::redraw::latent_upscale(*args, config, context).await
            })?
        }
        Command::Segs(args) => command::segs::run(args.command),
        Command::Serve(mut args) => {
            let config = load(std::mem::take(&mut args.config), SERVING)?;
            let workers = args.workers;
            part("tessera-serve", config, async |config, context| command::serve::run(workers, config, context).await)
        }
        Command::Coordinator(args) => {
            part("tessera-coordinator", load(args.config, SERVING)?, coordinator::run::process)
        }
        Command::Worker(args) => part("tessera-worker", load(args.config, SERVING)?, worker::run::process),
        Command::Submit(mut args) => {
            ask(std::mem::take(&mut args.ask.config), async |config| command::submit::run(args, config).await)
        }
        Command::Plan(mut args) => {
            ask(std::mem::take(&mut args.config), async |config| command::plan::run(*args, config).await)
        }
        Command::Jobs(args) => match args.command {
            JobsCommand::List { states, limit, ask: flags } => {
                ask(flags.config, async |config| command::jobs::list(&states, limit, flags.json, config).await)
            }
            JobsCommand::Get(job) => {
                ask(job.ask.config, async |config| command::jobs::get(&job.job, job.ask.json, config).await)
            }
            JobsCommand::Watch(job) => {
                ask(job.ask.config, async |config| command::jobs::watch(&job.job, job.ask.json, config).await)
            }
            JobsCommand::Cancel(job) => {
                ask(job.ask.config, async |config| command::jobs::cancel(&job.job, job.ask.json, config).await)
            }
            JobsCommand::Retry(job) => {
                ask(job.ask.config, async |config| command::jobs::retry(&job.job, job.ask.json, config).await)
            }
            JobsCommand::Fetch { job, output, force } => ask(job.ask.config, async |config| {
                command::jobs::fetch(&job.job, &output, force, job.ask.json, config).await
            }),
        },
        Command::Preview(mut args) => {
            ask(std::mem::take(&mut args.job.ask.config), async |config| command::preview::run(args, config).await)
        }
        Command::Workers(args) => ask(args.config, async |config| command::workers::run(args.json, config).await),
        Command::Models(args) => match args.command {
            ModelsCommand::List(flags) => {
                ask(flags.config, async |config| command::models::list(flags.json, config).await)
            }
            ModelsCommand::Inspect { file, json } => command::models::inspect(&file, json),
            ModelsCommand::Convert { file, output, dtype, force } => {
                command::models::convert(&file, output, dtype, force)
            }
            ModelsCommand::Synthesize { model, output, full, dtype, force } => {
                command::models::synthesize(model, output, full, dtype, force)
            }
            ModelsCommand::Add { file, name, ask: flags } => {
                ask(flags.config, async |config| command::models::add(&file, name, flags.json, config).await)
            }
        },
        Command::Cache(args) => {
            let (limit, json) = (args.limit, args.ask.json);
            ask(args.ask.config, async |config| command::cache::run(limit, json, config).await)
        }
        Command::Doctor(args) => {
            let json = args.json;
            briefly(load(args.config, SILENT)?, async |config| command::doctor::run(json, config).await)
        }
        Command::Config(args) => command::config::run(*args),
    }
}

/// Loads the configuration; an error says what to do about it.
fn load<const PARTS: u8>(flags: Flags<PARTS>, defaults: &[(&'static str, &str)]) -> anyhow::Result<Config> {
    Config::load(flags.given(), defaults).map_err(|error: ConfigError| {
        let hint = error.hint();
        with_hint(error, hint)
    })
}

/// Runs a command that asks a farm and is done.
fn ask<const PARTS: u8>(flags: Flags<PARTS>, body: impl AsyncFnOnce(Config) -> Outcome) -> Outcome {
    briefly(load(flags, QUIET)?, body)
}

/// Runs a command that is done soon; ctrl-c ends it where it stands.
fn briefly(config: Config, body: impl AsyncFnOnce(Config) -> Outcome) -> Outcome {
    service::run("tessera", config, async |config, context| {
        tokio::select! {
            outcome = body(config) => outcome,
            () = context.shutdown.cancelled() => Err(Failure::Job),
        }
    })?
}

/// Runs a part of a farm until it is told to stop.
fn part(
    name: &'static str,
    config: Config,
    body: impl AsyncFnOnce(Config, service::Context) -> anyhow::Result<()>,
) -> Outcome {
    match service::run(name, config, body)? {
        Ok(()) => Ok(()),
        Err(error) => {
            eprint!("{}", service::report::text(&error));
            Err(Failure::Job)
        }
    }
}

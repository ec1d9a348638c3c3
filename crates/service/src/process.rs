//! From the command line to an exit code.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::FromArgMatches as _;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, ConfigError, Flags},
    health::{self, Health},
    report, shutdown,
    telemetry::Telemetry,
};

/// What the edge gives to the body of a process.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Cancelled when the process should stop: at SIGTERM or ctrl-c.
    pub shutdown: CancellationToken,
    /// What the process says of itself at `/readyz`.
    pub health: Health,
}

/// The `main` of a process that serves: reads the configuration from the command line, the environment and the file,
/// and runs `body` until it returns.
///
/// `PARTS` says which keys are flags, see [`keys`](crate::config::keys). An error is reported on stderr; the exit code
/// is then 1, or 2 when the process could not start.
pub fn main<const PARTS: u8>(
    name: &'static str,
    about: &'static str,
    body: impl AsyncFnOnce(Config, Context) -> anyhow::Result<()>,
) -> ExitCode {
    let command = clap::Command::new(name).about(about).version(env!("CARGO_PKG_VERSION"));
    let matches = <Flags<PARTS> as clap::Args>::augment_args(command).get_matches();
    let config =
        Flags::<PARTS>::from_arg_matches(&matches).map_err(anyhow::Error::from).and_then(|flags| load(flags, &[]));
    match config.and_then(|config| run(name, config, body)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(&error, 1),
        Err(error) => fail(&error, 2),
    }
}

fn load<const PARTS: u8>(flags: Flags<PARTS>, defaults: &[(&'static str, &str)]) -> anyhow::Result<Config> {
    Config::load(flags.given(), defaults).map_err(|error: ConfigError| {
        let hint = error.hint();
        report::with_hint(error, hint)
    })
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprint!("{}", report::text(error));
    code.into()
}

/// Runs `body` as the program `name`: with a runtime, telemetry, the health server and signals, all of which end with
/// it. Returns what `body` returns.
///
/// # Errors
/// When the process cannot start: the health address is taken, or an exporter cannot be built.
pub fn run<T>(name: &'static str, config: Config, body: impl AsyncFnOnce(Config, Context) -> T) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let value = runtime.block_on(async {
        let telemetry = Telemetry::start(name, &config.telemetry)?;
        let context = Context::default();
        shutdown::on_signals(context.shutdown.clone()).context("cannot listen to signals")?;
        let stop_health = CancellationToken::new();
        if let Some(address) = config.health_listen {
            let address = health::serve(address, context.health.clone(), stop_health.clone())
                .await
                .with_context(|| format!("cannot serve health on {address}"))?;
            tracing::info!(%address, "serving /livez and /readyz");
        }
        let value = body(config, context).await;
        stop_health.cancel();
        telemetry.stop().await;
        Ok(value)
    });
    // What still blocks, such as a tile being rendered after an interrupt, is not waited for.
    runtime.shutdown_background();
    value
}

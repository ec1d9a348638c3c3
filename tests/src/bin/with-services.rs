//! `with-services COMMAND [ARG…]`: runs a command with a private RabbitMQ and a real S3 server at hand, and takes both
//! away again.
//!
//! The command finds them in `TESSERA_TEST_AMQP` (an AMQP address), `TESSERA_TEST_S3` (a bucket) and the standard
//! `AWS_*` variables. With `--print` the variables are printed for a shell, and the services stay until interrupted.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use tests::{rabbitmq::RabbitMq, s3_server};

const ACCESS_KEY: &str = "tessera";
const SECRET_KEY: &str = "tessera-secret";
const BUCKET: &str = "tessera";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else { bail!("usage: with-services COMMAND [ARG…] | --print") };

    let rabbit = RabbitMq::start().await?;
    let folder = tempfile::TempDir::with_prefix("tessera-s3-")?;
    let s3 = s3_server::start(folder.path(), ([127, 0, 0, 1], 0).into(), ACCESS_KEY, SECRET_KEY).await?;
    s3.create_bucket(BUCKET)?;
    let variables = [
        ("TESSERA_TEST_AMQP", rabbit.url()),
        ("TESSERA_TEST_S3", format!("s3://{BUCKET}")),
        ("AWS_ENDPOINT_URL", s3.endpoint()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ];
    eprintln!("with-services: RabbitMQ at {}, S3 at {}", rabbit.address(), s3.endpoint());
    let serving = tokio::spawn(s3.serve());
    if program == "--print" {
        for (name, value) in &variables {
            #[allow(clippy::print_stdout)] // this is what it is for
            {
                println!("export {name}='{value}'");
            }
        }
        tokio::signal::ctrl_c().await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = Command::new(&program);
    command.args(arguments).envs(variables);
    let status = tokio::task::spawn_blocking(move || command.status()).await?;
    let status = status.with_context(|| format!("cannot run {}", program.display()))?;
    serving.abort();
    drop(rabbit);
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

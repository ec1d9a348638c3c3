//! `tessera submit`: a job as a document.

use std::{io::Read as _, path::Path};

use anyhow::Context as _;
use service::{config::Config, report::Hinted as _};
use tracing::Instrument as _;

use crate::{
    cli::Submit,
    client::Farm,
    command::{jobs, models},
    document::Document,
    exit::Outcome,
    output, transfer, wire_json,
};

/// Uploads the local files that the document names, and creates the job.
pub async fn run(args: Submit, config: Config) -> Outcome {
    let path = &args.document;
    let from_stdin = path == Path::new("-");
    let text = if from_stdin {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text).context("cannot read stdin")?
    } else {
        std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?
    };
    let folder = if from_stdin { Path::new("") } else { path.parent().unwrap_or(Path::new("")) };
    let mut document = Document::parse(&text, folder).hint("`tessera submit --help` shows a document")?;
    let farm = Farm::configured(&config).await?;
    let job = async {
        for file in document.pictures()? {
            let digest = transfer::upload(&farm, &file.path).await?;
            document.uploaded(&file, digest)?;
        }
        if let Some(file) = document.model()? {
            let model = models::add_file(&farm, &file.path, None).await?;
            document.added(&file, model.digest)?;
        }
        let request = document.request().hint("`tessera submit --help` shows a document")?;
        farm.create(request).await.context("cannot submit the job")
    };
    let job = job.instrument(tracing::info_span!("submit")).await?;
    if args.watch {
        return jobs::follow(&farm, &job.id, args.ask.json).await;
    }
    match args.ask.json {
        true => output::json(&wire_json::show("Job", &job)),
        false => output::line(&job.id),
    }
    Ok(())
}

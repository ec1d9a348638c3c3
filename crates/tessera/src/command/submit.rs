//! `tessera submit`: a job as a document.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use proto::v1;
use service::{config::Config, report::Hinted as _};
use tracing::Instrument as _;

use crate::{
    cli::Submit,
    client::Farm,
    command::{jobs, models},
    document::{Document, StandsFor},
    exit::Outcome,
    output, transfer, wire_json,
};

/// Where a document is shown.
const HELP: &str = "`tessera submit --help` shows a document of each kind";

/// Uploads the local files that the document names, and creates the job.
pub async fn run(args: Submit, config: Config) -> Outcome {
    let document = read(&args.document)?;
    let farm = Farm::configured(&config).await?;
    let job = async { farm.create(upload(&farm, document).await?).await.context("cannot submit the job") };
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

/// Reads the document at `path`; `-` is stdin.
pub fn read(path: &Path) -> anyhow::Result<Document> {
    let from_stdin = path == Path::new("-");
    let text = if from_stdin {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text).context("cannot read stdin")?
    } else {
        std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?
    };
    let folder = if from_stdin { Path::new("") } else { path.parent().unwrap_or(Path::new("")) };
    Document::parse(&text, folder).hint(HELP)
}

/// Uploads the local files that a document names, each once, and says what the document asks for.
pub async fn upload(farm: &Farm, mut document: Document) -> anyhow::Result<v1::CreateJobRequest> {
    let (mut pictures, mut added) = (BTreeMap::<PathBuf, String>::new(), BTreeMap::<PathBuf, String>::new());
    for file in document.files().hint(HELP)? {
        let known = match file.stands_for {
            StandsFor::Picture => &mut pictures,
            StandsFor::Model => &mut added,
        };
        let by = match known.get(&file.path) {
            Some(by) => by.clone(),
            None => {
                let by = match file.stands_for {
                    StandsFor::Picture => transfer::upload(farm, &file.path).await?,
                    StandsFor::Model => models::add_file(farm, &file.path, None).await?.digest,
                };
                known.insert(file.path.clone(), by.clone());
                by
            }
        };
        document.replace(&file, by)?;
    }
    document.request().hint(HELP)
}

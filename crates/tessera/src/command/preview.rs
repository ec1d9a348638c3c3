//! `tessera preview`: what a job is redrawing, while it does.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use proto::v1;
use serde_json::json;
use service::config::Config;

use crate::{cli::Preview, client::Farm, exit::Outcome, output, transfer, watch, wire_json};

/// Writes the newest preview of each task, until the job ends or, with `--once`, a task comes for the second time.
pub async fn run(args: Preview, config: Config) -> Outcome {
    let Preview { job: crate::cli::OneJob { job: id, ask }, tasks, output, once } = args;
    let folder = output.unwrap_or_else(|| PathBuf::from(&id));
    let farm = Farm::configured(&config).await?;
    let mut seen = BTreeSet::new();
    let ended = watch::previews(&farm, &id, &tasks, |preview| {
        if !seen.insert(preview.task) && once {
            return Ok(ControlFlow::Break(()));
        }
        let path = folder.join(format!("task-{}.png", preview.task));
        write(&folder, &path, &preview.png).with_context(|| format!("cannot write `{}`", path.display()))?;
        if ask.json {
            output::json_line(&line(&path, preview));
        } else {
            output::line(&words(&path, &preview));
        }
        let all = once && !tasks.is_empty() && tasks.iter().all(|task| seen.contains(task));
        Ok(if all { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    if let Some(job) = ended.await?
        && seen.is_empty()
    {
        let state = watch::word(job.state());
        eprintln!("there was nothing to see: job {id} is {state}; `tessera jobs get {id}` shows what became of it");
    }
    Ok(())
}

/// Writes a preview over the one before it; whoever looks at the file never sees half of one.
fn write(folder: &Path, path: &Path, png: &[u8]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let file = transfer::unnamed(folder)?;
    std::fs::write(file.path(), png)?;
    file.persist(path)?;
    Ok(())
}

/// `previews/task-3.png  redraw 48x48+8+8 of photo.jpg, step 7 of 20, on worker-1`.
fn words(path: &Path, preview: &v1::WatchPreviewsResponse) -> String {
    let v1::WatchPreviewsResponse { description, step, steps, worker, .. } = preview;
    format!("{}  {description}, step {step} of {steps}, on {worker}", path.display())
}

/// The same for programs: the message with the file instead of its bytes.
fn line(path: &Path, preview: v1::WatchPreviewsResponse) -> serde_json::Value {
    let preview = v1::WatchPreviewsResponse { png: Vec::new().into(), ..preview };
    let mut shown = wire_json::show("WatchPreviewsResponse", &preview);
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("png");
    }
    json!({ "output": path.display().to_string(), "preview": shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_is_told_in_words_and_as_json_without_its_bytes() {
        let preview = v1::WatchPreviewsResponse {
            task: 3,
            description: "redraw 48x40+8+16 of photo.jpg".to_owned(),
            region: Some(v1::PixelRegion { x: 8, y: 16, width: 48, height: 40 }),
            step: 7,
            steps: 20,
            fraction: 0.5,
            png: b"png".to_vec().into(),
            worker: "worker-1".to_owned(),
        };
        let path = Path::new("out/task-3.png");
        assert_eq!(words(path, &preview), "out/task-3.png  redraw 48x40+8+16 of photo.jpg, step 7 of 20, on worker-1");
        let want = json!({
            "output": "out/task-3.png",
            "preview": {
                "task": 3,
                "description": "redraw 48x40+8+16 of photo.jpg",
                "region": { "x": 8, "y": 16, "width": 48, "height": 40 },
                "step": 7,
                "steps": 20,
                "fraction": 0.5,
                "worker": "worker-1",
            },
        });
        assert_eq!(line(path, preview), want);
    }

    #[test]
    fn a_preview_replaces_the_one_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("job");
        let path = folder.join("task-0.png");
        for png in [&b"first"[..], b"2nd"] {
            write(&folder, &path, png).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), png);
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left behind");
    }
}

//! A job from its request to its end, as the commands see it that wait for one.

use anyhow::anyhow;
use proto::v1::{self, JobState};
use serde_json::json;
use service::report;
use tokio_util::sync::CancellationToken;

use crate::{client::Farm, progress::Progress, watch};

/// Creates the job that makes something of `name`, and follows it until it has succeeded. `None`: it failed, or was
/// cancelled because this process is told to stop; what there is to say has been said.
///
/// # Errors
/// If the farm cannot be asked, or refuses.
pub async fn to_its_end(
    farm: &Farm,
    name: &str,
    request: v1::CreateJobRequest,
    progress: &Progress,
    stopped: &CancellationToken,
) -> anyhow::Result<Option<v1::Job>> {
    let job = farm.create(request).await?;
    let mut shown = progress.job(name, &job.id);
    let followed = tokio::select! {
        job = watch::follow(farm, &job.id, |event| shown.see(event)) => Some(job?),
        () = stopped.cancelled() => None,
    };
    drop(shown);
    let Some(job) = followed else {
        farm.cancel(&job.id).await?;
        progress.say(&format!("{name}: cancelled; the same command goes on with what is rendered already"));
        return Ok(None);
    };
    for line in watch::afterwords(&job) {
        progress.say(&format!("{name}: {}", line.trim_start()));
    }
    if job.state() != JobState::Succeeded {
        let error = anyhow!("job {} {}", job.id, watch::word(job.state())).context(format!("no result for `{name}`"));
        tell(progress, name, &error);
        return Ok(None);
    }
    Ok(Some(job))
}

/// Says on stderr why there is no result for `name`, and on stdout too where a program listens.
pub fn tell(progress: &Progress, name: &str, error: &anyhow::Error) {
    progress.say(report::text(error).trim_end());
    if let Progress::Json = progress {
        let error = report::causes(error).join(": ");
        progress.give("", &json!({ "name": name, "error": error }));
    }
}

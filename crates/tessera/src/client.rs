//! A farm as a program sees it: over gRPC, wherever it runs.

use std::{error::Error as _, future::Future, time::Duration};

use anyhow::{Context as _, anyhow};
use proto::v1::{
    self, artifacts_client::ArtifactsClient, jobs_client::JobsClient, models_client::ModelsClient,
    workers_client::WorkersClient,
};
use service::{
    Backoff,
    report::{Hinted as _, with_hint},
    retry, telemetry,
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{MetadataKey, MetadataValue},
    service::interceptor::InterceptedService,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tonic_types::StatusExt as _;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call is tried again while the coordinator, or something behind it, is away.
const PATIENCE: Duration = Duration::from_secs(60);
/// The largest answer: a full page of jobs.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A channel whose calls carry the trace of the span in which they are made.
pub type Traced = InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>;

/// The services of a farm. Its clones share a connection.
#[derive(Debug, Clone)]
pub struct Farm {
    /// Jobs.
    pub jobs: JobsClient<Traced>,
    /// Bytes.
    pub artifacts: ArtifactsClient<Traced>,
    /// Networks.
    pub models: ModelsClient<Traced>,
    /// Who renders.
    pub workers: WorkersClient<Traced>,
}

impl Farm {
    /// Connects to the coordinator at `server`, such as `http://farm:7000`.
    pub async fn connect(server: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(server.to_owned()).with_context(|| format!("`{server}` is no address"))?;
        let mut endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        if server.starts_with("https://") {
            endpoint = endpoint
                .tls_config(ClientTlsConfig::new().with_webpki_roots())
                .with_context(|| format!("cannot speak TLS with {server}"))?;
        }
        let channel = endpoint.connect().await.map_err(|error| {
            // The transport wraps what happened in words that say nothing.
            let mut deepest: &dyn std::error::Error = &error;
            while let Some(source) = deepest.source() {
                deepest = source;
            }
            let hint = "is the farm up? --server (or TESSERA_SERVER) says where it is; `tessera doctor` tries it";
            with_hint(anyhow!("{deepest}").context(format!("cannot reach the farm at {server}")), hint)
        })?;
        let traced = || InterceptedService::new(channel.clone(), carry_trace as fn(_) -> _);
        Ok(Self {
            jobs: JobsClient::new(traced()).max_decoding_message_size(MAX_ANSWER_BYTES),
            artifacts: ArtifactsClient::new(traced()).max_decoding_message_size(MAX_ANSWER_BYTES),
            models: ModelsClient::new(traced()).max_decoding_message_size(MAX_ANSWER_BYTES),
            workers: WorkersClient::new(traced()).max_decoding_message_size(MAX_ANSWER_BYTES),
        })
    }

    /// Connects to the server that the configuration names.
    ///
    /// # Errors
    /// If it names none.
    pub async fn configured(config: &service::config::Config) -> anyhow::Result<Self> {
        let server = config.client.server.as_deref();
        let server = server
            .context("no server is named")
            .hint("pass --server http://HOST:7000 or set TESSERA_SERVER; `tessera serve` starts one")?;
        Self::connect(server).await
    }

    /// The job called `id`, as it stands.
    pub async fn job(&self, id: &str) -> anyhow::Result<v1::Job> {
        let answer = call("GetJob", || {
            let (mut jobs, job_id) = (self.jobs.clone(), id.to_owned());
            async move { jobs.get_job(v1::GetJobRequest { job_id }).await }
        });
        answer.await?.job.context("the server sent no job")
    }

    /// Cancels the job called `id`.
    pub async fn cancel(&self, id: &str) -> anyhow::Result<v1::Job> {
        let answer = call("CancelJob", || {
            let (mut jobs, job_id) = (self.jobs.clone(), id.to_owned());
            async move { jobs.cancel_job(v1::CancelJobRequest { job_id }).await }
        });
        answer.await?.job.context("the server sent no job")
    }

    /// Creates a job; gives it a name of its own if it has none, so that trying again creates no second one.
    pub async fn create(&self, mut request: v1::CreateJobRequest) -> anyhow::Result<v1::Job> {
        if request.request_id.is_empty() {
            request.request_id = uuid::Uuid::new_v4().to_string();
        }
        let answer = call("CreateJob", || {
            let (mut jobs, request) = (self.jobs.clone(), request.clone());
            async move { jobs.create_job(request).await }
        });
        answer.await?.job.context("the server sent no job")
    }

    /// Plans a job without running it.
    pub async fn plan(&self, request: v1::PlanJobRequest) -> anyhow::Result<v1::PlanJobResponse> {
        call("PlanJob", || {
            let (mut jobs, request) = (self.jobs.clone(), request.clone());
            async move { jobs.plan_job(request).await }
        })
        .await
    }

    /// The model of a name or a digest.
    pub async fn model(&self, model: &str) -> anyhow::Result<v1::Model> {
        let answer = call("GetModel", || {
            let (mut models, model) = (self.models.clone(), model.to_owned());
            async move { models.get_model(v1::GetModelRequest { model }).await }
        });
        let answer = answer.await.hint("`tessera models list` shows which there are; a file is named by its path");
        answer?.model.context("the server sent no model")
    }
}

/// Puts the current trace into a call's metadata.
fn carry_trace(mut request: Request<()>) -> Result<Request<()>, Status> {
    for (name, value) in telemetry::inject(&tracing::Span::current()) {
        if let (Ok(name), Ok(value)) = (MetadataKey::from_bytes(name.as_bytes()), MetadataValue::try_from(value)) {
            request.metadata_mut().insert(name, value);
        }
    }
    Ok(request)
}

/// Makes a call that is safe to retry, trying again while the farm is away for a moment.
pub async fn call<T, F>(name: &'static str, attempt: impl Fn() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let answer = retry(name, Backoff::until(PATIENCE), is_passing, async || attempt().await).await;
    answer.map(Response::into_inner).map_err(|status| refused(&status))
}

/// Whether the farm is only away for a moment: it says so, or the connection to it broke, which tonic gives any code,
/// but unlike a server's answer a source.
pub fn is_passing(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.source().is_some()
}

/// Says why a call was refused, as people read it.
pub fn refused(status: &Status) -> anyhow::Error {
    let violations = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
    let message = match (status.message(), status.source()) {
        ("", Some(source)) => source.to_string(),
        ("", None) => status.code().description().to_owned(),
        (message, _) => message.to_owned(),
    };
    let named = violations.iter().filter(|violation| !violation.field.is_empty());
    let named: Vec<_> = named.map(|violation| format!("{}: {}", violation.field, violation.description)).collect();
    let error = if named.is_empty() { anyhow!("{message}") } else { anyhow!("{}", named.join("; ")) };
    let told = match status.code() {
        Code::InvalidArgument => error.context("the farm cannot take this request"),
        Code::NotFound => error.context("the farm does not have what the request names"),
        Code::PermissionDenied => error.context("the farm may not read what the request names"),
        Code::FailedPrecondition => error.context("the farm cannot do this now"),
        Code::ResourceExhausted => error.context("the farm is full"),
        Code::Unavailable => error.context("the farm cannot be reached"),
        Code::DeadlineExceeded => error.context("the farm did not answer in time"),
        Code::Unimplemented => error.context("the server is no Tessera farm, or another version"),
        _ => error.context("the farm failed"),
    };
    match status.get_details_retry_info().and_then(|info| info.retry_delay) {
        Some(delay) => with_hint(told, format!("try again in {} s", delay.as_secs().max(1))),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_refusal_names_the_field() {
        let details = ErrorDetails::with_bad_request_violation("upscale.tile.overlap", "is 64, and must be less");
        let status = Status::with_error_details(Code::InvalidArgument, "upscale.tile.overlap: is 64", details);
        let text = service::report::text(&refused(&status));
        let lines =
            "error: the farm cannot take this request\n  cause: upscale.tile.overlap: is 64, and must be less\n";
        assert_eq!(text, lines);
    }

    #[test]
    fn a_full_farm_says_when_to_come_back() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(10)));
        let status = Status::with_error_details(Code::ResourceExhausted, "1000 jobs are active", details);
        let text = service::report::text(&refused(&status));
        assert_eq!(text, "error: the farm is full\n  cause: 1000 jobs are active\nhint: try again in 10 s\n");
    }

    #[tokio::test]
    async fn a_broken_connection_is_passing_and_a_refusal_is_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let (farm, accepted) = tokio::join!(Farm::connect(&server), listener.accept());
        let (mut jobs, (mut connection, _)) = (farm.unwrap().jobs, accepted.unwrap());
        let mut buffer = [0; 4096];
        let _ = connection.read(&mut buffer).await.unwrap(); // the greeting
        let dying = async {
            let _ = connection.read(&mut buffer).await.unwrap(); // the call
            drop((connection, listener));
        };
        let (answer, ()) = tokio::join!(jobs.get_job(v1::GetJobRequest::default()), dying);
        let broken = answer.unwrap_err();
        assert!(is_passing(&broken), "{broken:?}");
        assert!(is_passing(&Status::unavailable("the coordinator is leaving")));
        assert!(!is_passing(&Status::unknown("no such thing")));
    }

    #[tokio::test]
    async fn a_farm_that_is_not_there_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = Farm::connect(&server).await.unwrap_err();
        let text = service::report::text(&error);
        assert!(text.starts_with(&format!("error: cannot reach the farm at {server}\n  cause: ")), "{text}");
        assert!(text.contains("hint: is the farm up?"), "{text}");
    }
}

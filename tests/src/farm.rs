//! A farm of real processes for tests and benchmarks: `tessera-coordinator` and `tessera-worker` on real services.
//!
//! [`Farm::with_workers`] begins, [`Farm::start`] starts. Every farm has a name, a store prefix and ports of its own, so
//! farms do not meet. Whatever it started dies with it.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use domain::digest::Digest;
use proto::v1::{
    self, artifacts_client::ArtifactsClient, jobs_client::JobsClient, models_client::ModelsClient,
    upload_artifact_request::Part, workers_client::WorkersClient,
};
use tempfile::TempDir;
use tonic::transport::Channel;

/// How long anything may take before a test gives up. A guard, never a wait.
pub const LIMIT: Duration = Duration::from_secs(300);

/// How often a state is looked at while a test waits for it.
const LOOK: Duration = Duration::from_millis(20);

static FARMS: AtomicU32 = AtomicU32::new(0);

/// The services that the tests were given, or nothing, said aloud.
pub fn services() -> Option<Services> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let found = variable("TESSERA_TEST_AMQP").zip(variable("TESSERA_TEST_S3"));
    if found.is_none() {
        eprintln!("SKIPPED: TESSERA_TEST_AMQP and TESSERA_TEST_S3 are not set; scripts/test sets them");
    }
    found.map(|(broker, store)| Services { broker, store })
}

/// Where a farm's broker and store are.
#[derive(Debug, Clone)]
pub struct Services {
    /// An AMQP address.
    pub broker: String,
    /// An S3 bucket.
    pub store: String,
}

/// A farm.
#[derive(Debug)]
pub struct Farm {
    name: String,
    services: Services,
    folder: TempDir,
    address: SocketAddr,
    variables: Vec<(String, String)>,
    coordinator: Option<Child>,
    workers: Vec<(String, Child)>,
    wanted: usize,
    channel: Option<Channel>,
    next_worker: usize,
}

/// A finished job.
#[derive(Debug)]
pub struct Finished {
    /// As it ended.
    pub job: v1::Job,
    /// Everything that was told of it.
    pub events: Vec<v1::JobEvent>,
}

impl Finished {
    /// How often task `task` was tried until it was done; `None` if it never was.
    pub fn attempts(&self, task: u64) -> Option<u32> {
        self.events.iter().find_map(|event| match &event.event {
            Some(v1::job_event::Event::TaskFinished(done)) if done.task == task => Some(done.attempt),
            _ => None,
        })
    }

    /// The digest of its only output.
    pub fn digest(&self) -> Digest {
        assert_eq!(self.job.state(), v1::JobState::Succeeded, "{:?}", self.job.failures);
        let [output] = &self.job.outputs[..] else { panic!("one output is wanted: {:?}", self.job.outputs) };
        output.artifact.as_ref().expect("an output has an artifact").digest.parse().expect("a digest")
    }
}

impl Farm {
    /// A farm of `count` workers, not started yet.
    pub fn with_workers(services: &Services, count: usize) -> Self {
        let number = FARMS.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        Self {
            services: Services { store: format!("{}/{name}", services.store), ..services.clone() },
            folder: TempDir::with_prefix("tessera-farm-").expect("a temporary folder"),
            name,
            address: free_address(),
            variables: Vec::new(),
            coordinator: None,
            workers: Vec::new(),
            wanted: count,
            channel: None,
            next_worker: 0,
        }
    }

    /// Sets a configuration variable for all processes of this farm.
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// The farm's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The coordinator's address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The store's address.
    pub fn store_url(&self) -> &str {
        &self.services.store
    }

    /// Starts the coordinator and the workers, and waits until all are there.
    pub async fn start(mut self) -> Result<Self> {
        while self.start_coordinator().await.is_err() {
            // Somebody took the port in the moment between finding and using it.
            if !self.log("coordinator").contains("cannot listen") {
                bail!("the coordinator does not start\n{}", self.log("coordinator"));
            }
            std::fs::remove_file(self.log_path("coordinator"))?;
            self.address = free_address();
        }
        for _ in 0..self.wanted {
            self.add_worker()?;
        }
        self.wait_for_workers().await?;
        Ok(self)
    }

    /// Starts the coordinator, for the first time or again, and waits until it answers.
    pub async fn start_coordinator(&mut self) -> Result<()> {
        let mut command = self.command("tessera-coordinator");
        command.args(["--listen", &self.address.to_string()]);
        let child = self.coordinator.insert(spawn(&self.folder, command, "coordinator")?);
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address))?.timeout(LIMIT);
        let channel = within("the coordinator's answer", async {
            loop {
                if let Ok(channel) = endpoint.connect().await {
                    return Ok(channel);
                }
                if let Some(status) = child.try_wait()? {
                    bail!("the coordinator ended with {status}");
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        self.channel = Some(channel.await?);
        Ok(())
    }

    /// Starts one more worker; returns its id.
    pub fn add_worker(&mut self) -> Result<String> {
        let id = format!("worker-{}", self.next_worker);
        self.next_worker += 1;
        let mut command = self.command("tessera-worker");
        command.args(["--worker-id", &id]);
        command.args(["--model-cache".as_ref(), self.folder.path().join(format!("{id}-models")).as_os_str()]);
        let child = spawn(&self.folder, command, &id)?;
        self.workers.push((id.clone(), child));
        Ok(id)
    }

    /// Waits until every worker that was started is known to the coordinator.
    pub async fn wait_for_workers(&self) -> Result<()> {
        let want = self.workers.len();
        self.until(&format!("{want} workers"), |workers| workers.len() >= want).await.map(drop)
    }

    /// Waits until the workers are as `done` wants them, and returns them.
    pub async fn until(&self, what: &str, done: impl Fn(&[v1::Worker]) -> bool) -> Result<Vec<v1::Worker>> {
        within(what, async {
            loop {
                let workers = self.workers_now().await?;
                if done(&workers) {
                    return Ok(workers);
                }
                tokio::time::sleep(LOOK).await;
            }
        })
        .await
    }

    /// The workers as the coordinator knows them.
    pub async fn workers_now(&self) -> Result<Vec<v1::Worker>> {
        let mut client = WorkersClient::new(self.channel()?);
        Ok(client.list_workers(v1::ListWorkersRequest {}).await?.into_inner().workers)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binary(program));
        command
            .env("TESSERA_FARM", &self.name)
            .env("TESSERA_BROKER", &self.services.broker)
            .env("TESSERA_STORE", &self.services.store)
            .env("TESSERA_SCRATCH", self.folder.path())
            .env("TESSERA_CACHE", self.folder.path().join("cache"))
            .env("TESSERA_BEAT_INTERVAL", "200ms")
            .env("TESSERA_LOG", "info")
            .env("TESSERA_SLOTS", "1") // whatever the machine, so that it is known who holds how many tasks
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn log_path(&self, name: &str) -> PathBuf {
        log_path(&self.folder, name)
    }

    /// What a process wrote on stderr.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.log_path(name)).unwrap_or_default()
    }

    fn channel(&self) -> Result<Channel> {
        self.channel.clone().context("the farm is not started")
    }

    /// The service `Jobs`.
    pub fn jobs(&self) -> Result<JobsClient<Channel>> {
        Ok(JobsClient::new(self.channel()?))
    }

    /// Uploads bytes; returns their digest.
    pub async fn upload(&self, bytes: &[u8]) -> Result<String> {
        let digest = Digest::of(bytes).to_string();
        let mut parts = vec![v1::UploadArtifactRequest { part: Some(Part::Digest(digest.clone())) }];
        let pieces = bytes.chunks(1 << 20).map(|piece| piece.to_vec().into());
        parts.extend(pieces.map(|data| v1::UploadArtifactRequest { part: Some(Part::Data(data)) }));
        ArtifactsClient::new(self.channel()?).upload_artifact(tokio_stream::iter(parts)).await?;
        Ok(digest)
    }

    /// Downloads an artifact.
    pub async fn download(&self, digest: Digest) -> Result<Vec<u8>> {
        let request = v1::DownloadArtifactRequest { digest: digest.to_string(), offset: 0 };
        let mut pieces = ArtifactsClient::new(self.channel()?).download_artifact(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.message().await? {
            bytes.extend_from_slice(&piece.data);
        }
        Ok(bytes)
    }

    /// Makes a file a model called `name`.
    pub async fn add_model(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let digest = self.upload(bytes).await?;
        ModelsClient::new(self.channel()?).add_model(v1::AddModelRequest { digest, name: name.to_owned() }).await?;
        Ok(())
    }

    /// Uploads a picture and asks for it to be enlarged.
    pub async fn submit(&self, picture: &[u8], mut job: v1::UpscaleJob) -> Result<v1::Job> {
        let digest = self.upload(picture).await?;
        let source = Some(v1::picture_source::Source::Digest(digest));
        job.pictures = vec![v1::PictureSource { name: "picture.png".to_owned(), source }];
        let request = v1::CreateJobRequest {
            kind: Some(v1::create_job_request::Kind::Upscale(job)),
            ..v1::CreateJobRequest::default()
        };
        let job = self.jobs()?.create_job(request).await?.into_inner().job;
        job.context("the answer holds a job")
    }

    /// The job as it stands.
    pub async fn job(&self, id: &str) -> Result<v1::Job> {
        let job = self.jobs()?.get_job(v1::GetJobRequest { job_id: id.to_owned() }).await?.into_inner().job;
        job.context("the answer holds a job")
    }

    /// Watches a job until `done` says so or the job ends; goes on watching when the coordinator was away.
    pub async fn watch(&self, id: &str, mut done: impl FnMut(&v1::JobEvent) -> bool) -> Result<Vec<v1::JobEvent>> {
        within("the job's events", async {
            let mut events: Vec<v1::JobEvent> = Vec::new();
            loop {
                let after_sequence = events.last().map_or(0, |event| event.sequence);
                let request = v1::WatchJobRequest { job_id: id.to_owned(), after_sequence };
                let stream = self.jobs()?.watch_job(request).await;
                let Ok(stream) = stream else {
                    tokio::time::sleep(LOOK).await;
                    continue;
                };
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(response)) => {
                            let event = response.event.context("a response holds an event")?;
                            let over = done(&event);
                            events.push(event);
                            if over {
                                return Ok(events);
                            }
                        }
                        Ok(None) => return Ok(events),
                        Err(_) => break, // the coordinator is gone: watch again from here
                    }
                }
            }
        })
        .await
    }

    /// Waits until a job has ended.
    pub async fn finished(&self, id: &str) -> Result<Finished> {
        let events = self.watch(id, |_| false).await.with_context(|| self.logs())?;
        Ok(Finished { job: self.job(id).await?, events })
    }

    /// Waits until a worker is known to render a task of the job; returns worker and task.
    pub async fn rendering(&self, id: &str) -> Result<(String, u64)> {
        let mut seen = None;
        self.watch(id, |event| match &event.event {
            Some(v1::job_event::Event::TaskProgressed(progress)) => {
                seen = Some((progress.worker.clone(), progress.task));
                true
            }
            _ => false,
        })
        .await?;
        seen.with_context(|| format!("the job ended before a task was seen in a worker's hands\n{}", self.logs()))
    }

    /// Kills a worker at once, as a power cut would.
    pub fn kill_worker(&mut self, id: &str) -> Result<()> {
        let index = self.workers.iter().position(|(other, _)| other == id).context("no such worker")?;
        let (_, mut child) = self.workers.remove(index);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Kills the coordinator at once, as a power cut would.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        let mut child = self.coordinator.take().context("no coordinator runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Tells a process to stop, as Kubernetes does, and waits until it has; returns whether it ended well.
    pub async fn stop_worker(&mut self, id: &str) -> Result<bool> {
        let index = self.workers.iter().position(|(other, _)| other == id).context("no such worker")?;
        let (_, mut child) = self.workers.remove(index);
        let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
        if !killed.success() {
            bail!("kill failed");
        }
        within("the worker's end", async {
            loop {
                if let Some(status) = child.try_wait()? {
                    return Ok(status.success());
                }
                tokio::time::sleep(LOOK).await;
            }
        })
        .await
    }

    /// The logs of all processes, for a failing test.
    pub fn logs(&self) -> String {
        let names =
            std::iter::once("coordinator".to_owned()).chain((0..self.next_worker).map(|n| format!("worker-{n}")));
        names.map(|name| format!("===== {name}\n{}", self.log(&name))).collect()
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().map(|(_, child)| child).chain(self.coordinator.as_mut()) {
            let _ = child.kill(); // it may be gone already
            let _ = child.wait();
        }
    }
}

fn log_path(folder: &TempDir, name: &str) -> PathBuf {
    folder.path().join(format!("{name}.log"))
}

fn spawn(folder: &TempDir, mut command: Command, name: &str) -> Result<Child> {
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log_path(folder, name))?;
    writeln!(log, "--- start")?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().with_context(|| format!("cannot start {command:?}; `cargo build --release --workspace` makes it"))
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound address")
}

/// The program `name` as built beside this one.
pub fn binary(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("this program has a path");
    let folder = this.parent().expect("it lies in a folder");
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(Path::new(".")) } else { folder };
    folder.join(name)
}

/// Waits for `work`, but not for ever.
pub async fn within<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(result) => result,
        Err(_) => bail!("waited {LIMIT:?} for {what}"),
    }
}

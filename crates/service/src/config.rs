//! The configuration: flags, then environment, then file, then defaults, checked once.
//!
//! [`keys`] is the table of all keys. [`Raw`] is their texts as gathered; [`Raw::check`] turns them into the [`Config`]
//! that a process is built from, or names the first key that is wrong. Credentials and exporters follow the standard
//! `AWS_*` and `OTEL_*` variables, which their libraries read.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

pub mod keys;
mod raw;
pub mod units;

pub use raw::{Flags, Given, Origin, Raw};

use crate::secret::Secret;

/// What a process is built from.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where bytes lie: `s3://bucket/prefix`, `file:///folder` or `memory:`.
    pub store: String,
    /// Where messages go: `amqp://…`, `amqps://…` or `memory:`.
    pub broker: Secret,
    /// How long to wait for a store or a broker that is down at the start.
    pub start_timeout: Duration,
    /// How long a call waits for a broker that is away.
    pub broker_patience: Duration,
    /// The broker's own limit for unsettled deliveries.
    pub broker_consumer_timeout: Duration,
    /// Where `/livez` and `/readyz` are served.
    pub health_listen: Option<SocketAddr>,
    /// Logs and exporters.
    pub telemetry: Telemetry,
    /// What a coordinator needs.
    pub coordinator: Coordinator,
    /// What a worker needs.
    pub worker: Worker,
    /// What a program needs that asks a farm to do something.
    pub client: Client,
}

/// What is told about a process while it runs.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// What is logged: a filter such as `info` or `warn,coordinator=debug`.
    pub log: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Names this process among its like: `service.instance.id`.
    pub instance: String,
    /// Whether spans are exported over OTLP.
    pub traces: bool,
    /// Whether measurements are exported over OTLP.
    pub metrics: bool,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a coordinator needs.
#[derive(Debug, Clone)]
pub struct Coordinator {
    /// The farm's name: 1 to 40 lower-case letters, digits or hyphens.
    pub farm: String,
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// What pictures may be like.
    pub limits: Limits,
    /// The largest artifact that may be uploaded.
    pub max_upload_bytes: u64,
    /// Jobs that may wait or run at once.
    pub max_active_jobs: usize,
    /// Attempts per task, from 1.
    pub delivery_limit: u32,
    /// Tasks that are on one queue at once, from 1.
    pub dispatch_window: usize,
    /// Pictures that are put together at once, from 1.
    pub assemble_jobs: usize,
    /// How long a worker may be silent before it counts as gone.
    pub worker_silence: Duration,
    /// How long a task may make no progress before it is published again.
    pub stuck_task: Duration,
    /// The compute class of jobs that name none; `None`: the best that workers have.
    pub default_class: Option<String>,
    /// Where large temporary files lie.
    pub scratch: PathBuf,
}

/// What pictures may be like, checked from their headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most pixels.
    pub max_pixels: u64,
    /// The longest side in pixels.
    pub max_side: u32,
    /// The most memory for a format that cannot be read or written in bands.
    pub max_whole_picture_bytes: u64,
}

/// What a worker needs.
#[derive(Debug, Clone)]
pub struct Worker {
    /// The farm's name: 1 to 40 lower-case letters, digits or hyphens.
    pub farm: String,
    /// Its name, unique on the farm.
    pub id: String,
    /// The device that renders.
    pub device: Device,
    /// The instructions that a CPU computes with, by the name of their level; `None`: the most capable that it has.
    pub cpu: Option<String>,
    /// Tasks that are rendered at once, from 1.
    pub slots: usize,
    /// Segments of one size and job that are redrawn at once by a slot, from 1.
    pub batch: usize,
    /// Where models are kept on disk.
    pub model_cache: PathBuf,
    /// The most that the models on disk may take, in bytes.
    pub model_cache_bytes: u64,
    /// The most memory that loaded models may take, in bytes; one is always kept.
    pub model_memory_bytes: u64,
    /// How often it says that it is alive.
    pub beat_interval: Duration,
    /// The longest that a task is expected to take.
    pub longest_task: Duration,
    /// How long it may take to finish what it renders when it is told to stop.
    pub grace: Duration,
    /// Attempts per task, from 1; the coordinator's own figure.
    pub delivery_limit: u32,
    /// Where large temporary files lie.
    pub scratch: PathBuf,
}

/// What a program needs that asks a farm to do something.
#[derive(Debug, Clone)]
pub struct Client {
    /// The coordinator to ask; `None`: a farm embedded in this process.
    pub server: Option<String>,
    /// The cache folder.
    pub cache: PathBuf,
    /// The most that the embedded farm's store may keep, in bytes.
    pub cache_limit_bytes: u64,
}

/// A device that renders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA card, by its ordinal.
    Cuda(usize),
    /// An Apple device, by its ordinal.
    Metal(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, ordinal) = text.split_once(':').unwrap_or((text, "0"));
        let ordinal = ordinal.parse();
        match (kind, ordinal) {
            ("cpu", _) if text == "cpu" => Ok(Self::Cpu),
            ("cuda", Ok(ordinal)) => Ok(Self::Cuda(ordinal)),
            ("metal", Ok(ordinal)) => Ok(Self::Metal(ordinal)),
            _ => Err("`cpu`, `cuda:0` or `metal:0` is wanted".to_owned()),
        }
    }
}

impl Device {
    /// Tasks that are rendered at once when nobody says: one per core of a CPU, where each takes a core, and otherwise
    /// one, which takes the whole device.
    fn default_slots(self) -> usize {
        match self {
            Self::Cpu => std::thread::available_parallelism().map_or(1, usize::from),
            Self::Cuda(_) | Self::Metal(_) => 1,
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal(ordinal) => write!(f, "metal:{ordinal}"),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value cannot be used.
    #[error("`{key}` is `{text}` ({origin}), and {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value, passwords hidden.
        text: String,
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file has a key that is none of ours.
    #[error("{} has the key `{key}`, which is none of Tessera's", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration in {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not TOML", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A variable's value is not Unicode.
    #[error("the variable {variable} is not valid Unicode")]
    NotText {
        /// Its name.
        variable: String,
    },
    /// Processes cannot meet in the memory of one of them.
    #[error("`{key}` is `memory:`, where other processes cannot reach it")]
    NotShared {
        /// The key.
        key: &'static str,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Value { .. } | Self::Unknown { .. } | Self::Toml { .. } | Self::NotText { .. } => {
                "`tessera config --keys` lists every key with its unit and default"
            }
            Self::File { .. } => "pass another file with `--config`, or unset TESSERA_CONFIG",
            Self::NotShared { .. } => {
                "give coordinator and workers the same place, such as TESSERA_BROKER=amqp://rabbitmq and \
                 TESSERA_STORE=s3://bucket/prefix; or run `tessera serve`, which is a whole farm in one process"
            }
        }
    }
}

impl Config {
    /// Gathers the configuration from `given`, the process's environment and the file, and checks it.
    pub fn load(given: Given, defaults: &[(&'static str, &str)]) -> Result<Self, ConfigError> {
        Raw::gather(given, &|name| std::env::var_os(name), defaults)?.check()
    }

    /// Refuses a store or a broker that lies in this process, where the farm's other processes cannot reach it.
    pub fn require_shared(&self) -> Result<(), ConfigError> {
        let in_memory = |address: &str| address.starts_with("memory:");
        if in_memory(self.broker.expose()) {
            Err(ConfigError::NotShared { key: "broker" })
        } else if in_memory(&self.store) {
            Err(ConfigError::NotShared { key: "store" })
        } else {
            Ok(())
        }
    }
}

impl Raw {
    /// Checks every key: the one place where a text becomes a value.
    pub fn check(&self) -> Result<Config, ConfigError> {
        let farm = self.read("farm", farm)?;
        let cache = self.read("cache", folder)?;
        let scratch = self.read("scratch", folder)?;
        let delivery_limit = self.read("delivery_limit", at_least_one)?;
        let worker_id = self.read("worker_id", worker_id)?;
        let device: Device = self.read("device", str::parse)?;
        let config = Config {
            store: self.read("store", |text| match text {
                "" => folder_url(&cache.join("store")),
                text => one_of(text, &["s3://", "file:///", "memory:"]).map(str::to_owned),
            })?,
            broker: self.read("broker", |text| one_of(text, &["amqp://", "amqps://", "memory:"]).map(Secret::new))?,
            start_timeout: self.read("start_timeout", units::duration)?,
            broker_patience: self.read("broker_patience", some_time)?,
            broker_consumer_timeout: self.read("broker_consumer_timeout", some_time)?,
            health_listen: self.read("health_listen", optional(address))?,
            telemetry: Telemetry {
                log: self.read("log", log_filter)?,
                log_format: self.read("log_format", |text| match text {
                    "text" => Ok(LogFormat::Text),
                    "json" => Ok(LogFormat::Json),
                    _ => Err("`text` or `json` is wanted".to_owned()),
                })?,
                instance: worker_id.clone(),
                traces: self.traces,
                metrics: self.metrics,
            },
            coordinator: Coordinator {
                farm: farm.clone(),
                listen: self.read("listen", address)?,
                limits: Limits {
                    max_pixels: self.read("limits.max_pixels", at_least_one)?,
                    max_side: self.read("limits.max_side", at_least_one)?,
                    max_whole_picture_bytes: self.read("limits.max_whole_picture_bytes", units::bytes)?,
                },
                max_upload_bytes: self.read("max_upload_bytes", units::bytes)?,
                max_active_jobs: self.read("max_active_jobs", at_least_one)?,
                delivery_limit,
                dispatch_window: self.read("dispatch_window", at_least_one)?,
                assemble_jobs: self.read("assemble_jobs", at_least_one)?,
                worker_silence: self.read("worker_silence", some_time)?,
                stuck_task: self.read("stuck_task", some_time)?,
                default_class: self.read("default_class", optional(|text| Ok(text.to_owned())))?,
                scratch: scratch.clone(),
            },
            worker: Worker {
                farm,
                id: worker_id,
                device,
                cpu: self.read("cpu", optional(|text| Ok(text.to_owned())))?,
                slots: self.read("slots", |text| match text {
                    "" => Ok(device.default_slots()),
                    text => at_least_one(text),
                })?,
                batch: self.read("batch", at_least_one)?,
                model_cache: self.read("model_cache", |text| match text {
                    "" => Ok(cache.join("models")),
                    text => folder(text),
                })?,
                model_cache_bytes: self.read("model_cache_bytes", units::bytes)?,
                model_memory_bytes: self.read("model_memory_bytes", units::bytes)?,
                beat_interval: self.read("beat_interval", some_time)?,
                longest_task: self.read("longest_task", some_time)?,
                grace: self.read("grace", units::duration)?,
                delivery_limit,
                scratch,
            },
            client: Client {
                server: self
                    .read("server", optional(|text| one_of(text, &["http://", "https://"]).map(str::to_owned)))?,
                cache,
                cache_limit_bytes: self.read("cache_limit_bytes", units::bytes)?,
            },
        };
        let (silence, beat) = (config.coordinator.worker_silence, config.worker.beat_interval);
        self.read("worker_silence", |_| match silence > beat {
            true => Ok(config),
            false => Err(format!("it must be longer than `beat_interval`, which is {beat:?}")),
        })
    }
}

fn optional<T>(read: impl FnOnce(&str) -> Result<T, String>) -> impl FnOnce(&str) -> Result<Option<T>, String> {
    move |text| if text.is_empty() { Ok(None) } else { read(text).map(Some) }
}

/// Reads a whole number from 1; `_` may part its digits.
fn at_least_one<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let number = text.replace('_', "").parse::<u64>().ok().filter(|number| *number > 0);
    let number = number.ok_or("a whole number from 1 is wanted")?;
    T::try_from(number).map_err(|_| "it is too large".to_owned())
}

fn some_time(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        Duration::ZERO => Err("a time longer than 0 is wanted".to_owned()),
        time => Ok(time),
    }
}

fn folder(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("a folder is wanted".to_owned());
    }
    std::path::absolute(text).map_err(|error| format!("it is no path: {error}"))
}

/// Writes a folder as the address of a store.
pub fn folder_url(path: &std::path::Path) -> Result<String, String> {
    let text = path.to_str().ok_or("its folder has a name that is not Unicode; set `store`")?;
    let escape = |byte: u8| match byte {
        b'/' | b'-' | b'_' | b'.' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => (byte as char).to_string(),
        byte => format!("%{byte:02X}"),
    };
    Ok(format!("file://{}", text.bytes().map(escape).collect::<String>()))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address and a port such as `127.0.0.1:7000` or `[::]:7000` are wanted".to_owned())
}

fn farm(text: &str) -> Result<String, String> {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    match (1..=40).contains(&text.len()) && text.bytes().all(fits) {
        true => Ok(text.to_owned()),
        false => Err("1 to 40 lower-case letters, digits or hyphens are wanted".to_owned()),
    }
}

fn worker_id(text: &str) -> Result<String, String> {
    match (1..=128).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("1 to 128 printable ASCII characters without spaces are wanted".to_owned()),
    }
}

fn one_of<'a>(text: &'a str, beginnings: &[&str]) -> Result<&'a str, String> {
    match beginnings.iter().any(|beginning| text.starts_with(beginning)) {
        true => Ok(text),
        false => Err(format!("it must begin with `{}`", beginnings.join("` or `"))),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("it is no filter: {error}")),
    }
}

#[cfg(test)]
mod tests;

//! Every key of the configuration, in one table: what it is called, what it is for, its unit and its default.
//!
//! A key `limits.max_side` is the flag `--limits-max-side`, the variable `TESSERA_LIMITS_MAX_SIDE`, and `max_side` in
//! the table `[limits]` of the file.

use std::path::PathBuf;

use etcetera::BaseStrategy as _;

/// What every process has.
pub const PROCESS: u8 = 1;
/// What a process has that belongs to a farm.
pub const FARM: u8 = 2;
/// What a coordinator has.
pub const COORDINATOR: u8 = 4;
/// What a worker has.
pub const WORKER: u8 = 8;
/// What a program has that asks a farm to do something.
pub const CLIENT: u8 = 16;
/// What the farm embedded in `tessera upscale` has.
pub const EMBEDDED: u8 = 32;
/// What a command has that renders in its own process, without a farm.
pub const LOCAL: u8 = 64;

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file; the flag and the variable follow from it.
    pub name: &'static str,
    /// Whose it is: a union of the constants above.
    pub parts: u8,
    /// What a value looks like, for help texts: a unit, or the choices.
    pub unit: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// What it is when nobody says.
    pub default: Fallback,
    /// Whether a value may hold a password.
    pub secret: bool,
}

/// What a key is when nobody says.
#[derive(Debug)]
pub enum Fallback {
    /// This.
    Is(&'static str),
    /// It stays empty, which means what the text says.
    Unset(&'static str),
    /// This, which depends on the machine.
    Computed(&'static str, fn() -> String),
}

impl Key {
    /// The flag, without its dashes.
    pub fn flag(&self) -> String {
        self.name.replace(['_', '.'], "-")
    }

    /// The variable.
    pub fn variable(&self) -> String {
        format!("TESSERA_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// The default as help texts show it.
    pub fn default_text(&self) -> &'static str {
        match self.default {
            Fallback::Is(text) | Fallback::Unset(text) | Fallback::Computed(text, _) => text,
        }
    }

    /// The default as a value; empty when there is none.
    pub fn default_value(&self) -> String {
        match self.default {
            Fallback::Is(text) => text.to_owned(),
            Fallback::Unset(_) => String::new(),
            Fallback::Computed(_, compute) => compute(),
        }
    }
}

/// The key of this name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

const fn key(name: &'static str, parts: u8, unit: &'static str, default: Fallback, help: &'static str) -> Key {
    Key { name, parts, unit, help, default, secret: false }
}

use Fallback::{Computed, Is, Unset};

/// All of them, in the order in which `tessera config` lists them.
pub const KEYS: &[Key] = &[
    key("log", PROCESS, "filter", Is("info"), "What is logged on stderr: a level, or `target=level,…`"),
    key("log_format", PROCESS, "text|json", Is("text"), "How log lines are written"),
    key(
        "store",
        FARM,
        "URL",
        Unset("the folder `store` in the cache folder"),
        "Where bytes lie: `s3://bucket/prefix`, `file:///folder` or `memory:`",
    ),
    Key {
        secret: true,
        ..key(
            "broker",
            FARM,
            "URL",
            Is("memory:"),
            "Where messages go: `amqp://user:password@host/vhost`, `amqps://…`, or `memory:` within one process",
        )
    },
    key(
        "farm",
        FARM,
        "name",
        Is("tessera"),
        "The farm's name: farms of different names share a broker without meeting",
    ),
    key("start_timeout", FARM, "time", Is("60s"), "How long to wait for a store or a broker that is down at the start"),
    key("broker_patience", FARM, "time", Is("60s"), "How long a call waits for a broker that is away"),
    key(
        "broker_consumer_timeout",
        FARM,
        "time",
        Is("30m"),
        "The broker's own `consumer_timeout`, which cannot be asked for; tasks must be shorter",
    ),
    key(
        "delivery_limit",
        FARM,
        "count",
        Is("6"),
        "Attempts per task before it is parked as failed; the same for coordinator and workers",
    ),
    key(
        "health_listen",
        FARM,
        "address",
        Unset("off"),
        "Where /livez and /readyz are served over HTTP, such as `0.0.0.0:8080`",
    ),
    key(
        "scratch",
        FARM | EMBEDDED,
        "folder",
        Computed("the system's temporary folder", default_scratch),
        "Where large temporary files lie",
    ),
    key("listen", COORDINATOR, "address", Is("127.0.0.1:7000"), "Where gRPC is served"),
    key(
        "limits.max_pixels",
        COORDINATOR | EMBEDDED | LOCAL,
        "pixels",
        Is("1000000000"),
        "The most pixels that a picture may have, input or output",
    ),
    key(
        "limits.max_side",
        COORDINATOR | EMBEDDED | LOCAL,
        "pixels",
        Is("200000"),
        "The longest side that a picture may have, input or output",
    ),
    key(
        "limits.max_whole_picture_bytes",
        COORDINATOR | EMBEDDED | LOCAL,
        "bytes",
        Is("2GiB"),
        "The most memory that a format may take that cannot be read or written in bands, such as WebP",
    ),
    key("max_upload_bytes", COORDINATOR, "bytes", Is("8GiB"), "The largest artifact that may be uploaded"),
    key("max_active_jobs", COORDINATOR, "count", Is("1000"), "Jobs that may wait or run at once"),
    key("dispatch_window", COORDINATOR, "count", Is("1024"), "Tasks that are on one queue at once"),
    key("assemble_jobs", COORDINATOR | EMBEDDED, "count", Is("2"), "Pictures that are put together at once"),
    key("worker_silence", COORDINATOR, "time", Is("15s"), "How long a worker may be silent before it counts as gone"),
    key(
        "stuck_task",
        COORDINATOR,
        "time",
        Is("600s"),
        "How long a task may make no progress before it is published again",
    ),
    key(
        "default_class",
        COORDINATOR,
        "class",
        Unset("accelerators before CPUs, then the fastest for the job, then the one with the most workers"),
        "The compute class of jobs that name none",
    ),
    key("device", WORKER | EMBEDDED | LOCAL, "cpu|cuda:N|metal:N", Is("cpu"), "The device that renders"),
    key(
        "cpu",
        WORKER | EMBEDDED | LOCAL,
        "portable|avx2|avx512|avx512-bf16|amx",
        Unset("the most capable that the processor has"),
        "The instructions that a CPU computes with; `tessera doctor` shows which there are",
    ),
    key(
        "worker_id",
        WORKER,
        "name",
        Computed("host name and process id", default_worker_id),
        "The worker's name, unique on the farm",
    ),
    key(
        "slots",
        WORKER | EMBEDDED,
        "count",
        Unset("one per core on a CPU, else 1"),
        "Tasks that are rendered at once, memory permitting",
    ),
    key(
        "batch",
        WORKER | EMBEDDED,
        "count",
        Is("1"),
        "Segments of one size and job that a slot redraws at once; above 1, a worker holds twice as many",
    ),
    key(
        "model_cache",
        WORKER,
        "folder",
        Unset("the folder `models` in the cache folder"),
        "Where models are kept on disk",
    ),
    key("model_cache_bytes", WORKER, "bytes", Is("20GB"), "The most that the models on disk may take"),
    key(
        "model_memory_bytes",
        WORKER | EMBEDDED,
        "bytes",
        Is("4GiB"),
        "The most memory that loaded models may take; one is always kept",
    ),
    key("beat_interval", WORKER, "time", Is("2s"), "How often a worker says that it is alive"),
    key("longest_task", WORKER, "time", Is("1200s"), "The longest that a task is expected to take"),
    key(
        "grace",
        WORKER,
        "time",
        Is("30s"),
        "How long a worker that is told to stop may take to finish what it renders",
    ),
    key(
        "server",
        CLIENT,
        "URL",
        Unset("a farm embedded in this process"),
        "The coordinator to ask, such as `http://farm:7000`",
    ),
    key(
        "cache",
        CLIENT | FARM,
        "folder",
        Computed("`tessera` in the platform's cache folder", default_cache),
        "The cache folder: the embedded farm's store, and models",
    ),
    key("cache_limit_bytes", CLIENT | FARM, "bytes", Is("20GB"), "The most that the embedded farm's store may keep"),
];

/// The platform's cache folder for this program; a temporary folder where there is no home.
fn default_cache() -> String {
    let cache = etcetera::choose_base_strategy().map(|base| base.cache_dir());
    cache.unwrap_or_else(|_| std::env::temp_dir()).join("tessera").display().to_string()
}

fn default_scratch() -> String {
    std::env::temp_dir().display().to_string()
}

fn default_worker_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").map(PathBuf::from);
    let host = host.ok().or_else(|| std::env::var_os("HOSTNAME").map(PathBuf::from));
    let host = host.map(|host| host.to_string_lossy().trim().to_owned()).filter(|host| !host.is_empty());
    format!("{}-{}", host.as_deref().unwrap_or("worker"), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_spelled_alike_everywhere() {
        let key = find("limits.max_side").unwrap();
        assert_eq!(key.flag(), "limits-max-side");
        assert_eq!(key.variable(), "TESSERA_LIMITS_MAX_SIDE");
    }

    #[test]
    fn no_two_keys_share_a_spelling() {
        let flags: std::collections::BTreeSet<_> = KEYS.iter().map(Key::flag).collect();
        let variables: std::collections::BTreeSet<_> = KEYS.iter().map(Key::variable).collect();
        assert_eq!((flags.len(), variables.len()), (KEYS.len(), KEYS.len()));
    }
}

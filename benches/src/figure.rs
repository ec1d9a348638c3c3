//! What is measured, and how it is told.

use std::{fs, time::Instant};

use anyhow::Result;
use models::processor::{CpuLevel, Precision};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Seconds that something took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Times {
    /// On all cores together.
    pub cpu_s: f64,
    /// On the wall.
    pub wall_s: f64,
}

/// What a pass of one work took.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What ran, such as `rrdb 64x64`.
    work: String,
    /// How many passes were timed.
    passes: usize,
    /// The least that a pass took.
    least: Times,
    /// What the median pass took.
    median: Times,
    /// Additions and multiplications of a pass, in 10^9, where they are counted.
    gflop: Option<f64>,
}

impl Figure {
    /// Sums up the `times` of passes, of which each takes `flop` operations, if they are counted. There is at least one.
    pub fn new(work: String, passes: usize, times: Vec<Times>, flop: Option<f64>) -> Self {
        let sorted = |of: fn(&Times) -> f64| {
            let mut seconds: Vec<f64> = times.iter().map(of).collect();
            seconds.sort_by(f64::total_cmp);
            seconds
        };
        let (cpu_s, wall_s) = (sorted(|times| times.cpu_s), sorted(|times| times.wall_s));
        let at = |index: usize| Times { cpu_s: cpu_s[index], wall_s: wall_s[index] };
        Self { work, passes, least: at(0), median: at(times.len() / 2), gflop: flop.map(|flop| flop / 1e9) }
    }
}

/// On what it ran.
#[derive(Debug, Serialize)]
pub struct Machine {
    cpu: String,
    level: &'static str,
    /// What the level computes at this precision: equal names give equal bytes.
    bytes: &'static str,
    precision: &'static str,
    threads: usize,
}

impl Machine {
    /// Describes this machine, which computes as said: `operations`, or chains of convolutions.
    pub fn new(level: CpuLevel, precision: Precision, threads: usize, operations: bool) -> Self {
        let bytes = if operations { level.product_bytes(precision) } else { level.chain_bytes(precision) };
        let level = level.name();
        let precision = match precision {
            Precision::Exact => "exact",
            Precision::Fast => "fast",
        };
        Self { cpu: cpu_name(), level, bytes, precision, threads }
    }

    /// Tells `figure`, and the peak memory of this process so far, in a line for people.
    pub fn line(&self, figure: &Figure) -> String {
        let Self { cpu, level, bytes, precision, threads } = self;
        let Figure { work, passes, least, median, gflop } = figure;
        let ms = |seconds: f64| format!("{:9.2}", 1e3 * seconds);
        let peak = peak_bytes().map_or_else(|| "unknown".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        let speed = gflop.map_or_else(|| "not counted".to_owned(), |gflop| format!("{:7.1}", gflop / median.cpu_s));
        format!(
            "{work:34} n={passes:3} wall min {} med {} ms | cpu min {} med {} ms | {speed} GFLOP/cpu-s | peak {peak} | \
             {cpu}, {level} ({bytes}), {precision}, {threads} thread(s)",
            ms(least.wall_s),
            ms(median.wall_s),
            ms(least.cpu_s),
            ms(median.cpu_s),
        )
    }

    /// Tells the same as [`Self::line`] as a JSON object.
    pub fn json(&self, figure: &Figure) -> Result<String> {
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(flatten)]
            figure: &'a Figure,
            #[serde(flatten)]
            machine: &'a Machine,
            peak_bytes: Option<u64>,
        }
        Ok(serde_json::to_string(&Line { figure, machine: self, peak_bytes: peak_bytes() })?)
    }
}

/// Time since a moment, on the wall and on all cores.
#[derive(Debug)]
pub struct Clock {
    wall: Instant,
    cpu_s: f64,
}

impl Clock {
    /// Starts to measure.
    pub fn start() -> Self {
        Self { wall: Instant::now(), cpu_s: cpu_seconds() }
    }

    /// Returns what went by since.
    pub fn stop(&self) -> Times {
        Times { cpu_s: cpu_seconds() - self.cpu_s, wall_s: self.wall.elapsed().as_secs_f64() }
    }
}

/// CPU seconds that this process has used.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The most memory that this process has held, where the system says so.
fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// The processor's own name and model numbers, where the system says so: virtual machines often hide half of the name.
fn cpu_name() -> String {
    let facts = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let fact = |key: &str| {
        let facts = facts.lines().filter_map(|line| line.split_once(':'));
        facts.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    match (fact("model name"), fact("cpu family"), fact("model")) {
        (Some(name), Some(family), Some(model)) => format!("{name} (family {family} model {model})"),
        (Some(name), ..) => name.to_owned(),
        _ => std::env::consts::ARCH.to_owned(),
    }
}

//! What networks and operations cost on this CPU: `cargo bench -p benches` prints a table for every level that it has.
//!
//! `cargo bench -p benches -- --python PATH` runs `side_by_side.py` with that Python instead, and what stands behind goes to it.

#![allow(clippy::print_stdout)] // a benchmark prints its table

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use models::processor::{CpuLevel, Precision};
use serde::Deserialize;

const BENCH: &str = env!("CARGO_BIN_EXE_tessera-bench");
const SIDE_BY_SIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/side_by_side.py");
const WORKS: [[&str; 3]; 4] =
    [["rrdb", "64", "64"], ["rrdb", "128", "128"], ["compact", "256", "256"], ["ops", "1", "1"]];
/// CPU seconds that the passes of a network take together.
const SPAN_S: f64 = 4.0;
/// Passes of an operation.
const OP_PASSES: u32 = 5;

#[derive(Debug, Parser)]
struct Arguments {
    /// A Python with the peers' packages.
    #[arg(long)]
    python: Option<PathBuf>,
    /// How many threads compute.
    #[arg(long, default_value_t = 1)]
    threads: u16,
    /// What `cargo bench` itself passes.
    #[arg(long, hide = true)]
    bench: bool,
    /// What is passed on to `side_by_side.py`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// What `tessera-bench --json` tells.
#[derive(Debug, Deserialize)]
struct Line {
    work: String,
    passes: u32,
    median: Times,
    gflop: Option<f64>,
    cpu: String,
    bytes: String,
    peak_bytes: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Times {
    cpu_s: f64,
    wall_s: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let threads = arguments.threads.to_string();
    if let Some(python) = arguments.python {
        let mut command = Command::new(&python);
        command.args([SIDE_BY_SIDE, "--ours", BENCH, "--threads", &threads]).args(&arguments.rest);
        let status = command.status().with_context(|| format!("failed to run {python:?}"))?;
        ensure!(status.success(), "side_by_side.py ended with {status}");
        return Ok(());
    }
    let mut told = false;
    for level in CpuLevel::available() {
        for precision in ["exact", "fast"] {
            for work in WORKS {
                let bytes = if work[0] == "ops" { CpuLevel::product_bytes } else { CpuLevel::chain_bytes };
                if precision == "fast" && bytes(level, Precision::Fast) == bytes(level, Precision::Exact) {
                    continue; // computed alike
                }
                let run = |passes| run(work, passes, level, precision, &threads);
                let mut lines = run(if work[0] == "ops" { OP_PASSES } else { 1 })?;
                if let [line] = &lines[..] {
                    let passes = (SPAN_S / line.median.cpu_s).round().clamp(1.0, 100.0) as u32;
                    lines = run(passes.next_multiple_of(arguments.threads.into()))?;
                }
                if !told {
                    println!("{}, {threads} thread(s)\n", lines[0].cpu);
                    println!("| work | level | precision | passes | CPU ms | wall ms | GFLOP/CPU-s | peak MiB |");
                    println!("|---|---|---|---|---|---|---|---|");
                    told = true;
                }
                for line in &lines {
                    print(line, level, precision, lines.len() == 1);
                }
            }
        }
    }
    Ok(())
}

fn run(work: [&str; 3], passes: u32, level: CpuLevel, precision: &str, threads: &str) -> Result<Vec<Line>> {
    let mut command = Command::new(BENCH);
    command.args(work).arg(passes.to_string());
    command.args(["--json", "--cpu", level.name(), "--precision", precision, "--threads", threads]);
    let output = command.output().with_context(|| format!("failed to run {BENCH}"))?;
    ensure!(output.status.success(), "{work:?} at {level}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("the figures are no text")?;
    let lines = text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no figures: {line}")));
    let lines = lines.collect::<Result<Vec<_>>>()?;
    ensure!(!lines.is_empty(), "{work:?} at {level} told no figures");
    Ok(lines)
}

/// Prints a row. The memory of a process that ran `alone` is that of this work.
fn print(line: &Line, level: CpuLevel, precision: &str, alone: bool) {
    let Line { work, passes, median, gflop, bytes, peak_bytes, .. } = line;
    let peak = peak_bytes.filter(|_| alone).map_or_else(|| "-".to_owned(), |bytes| (bytes >> 20).to_string());
    println!(
        "| {work} | {level} ({bytes}) | {precision} | {passes} | {:.2} | {:.2} | {:.0} | {peak} |",
        1e3 * median.cpu_s,
        1e3 * median.wall_s,
        gflop.unwrap_or_default() / median.cpu_s,
    );
}

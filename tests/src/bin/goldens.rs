//! Replays recorded cases of the reference programs: one line per operation, exit code 1 if any case disagrees.
#![allow(clippy::print_stdout)] // this program's purpose is to print

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// Replays golden cases and compares.
#[derive(Parser)]
struct Arguments {
    /// A folder with a `cases.json`, or a folder of such folders
    dir: PathBuf,
    /// Only these operations or nodes
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Also names every case that disagrees, below the line of its operation
    #[arg(long)]
    verbose: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { dir, only, verbose } = Arguments::parse();
    let groups = tests::goldens::run(&dir, &only)?;
    for group in &groups {
        println!("{group}");
        if verbose {
            group.failed.iter().for_each(|(case, reason)| println!("        {case}: {reason}"));
            group.not_built.iter().for_each(|(case, what)| println!("        {case}: {what} is not built yet"));
        }
    }
    let failed = groups.iter().filter(|group| !group.is_passed()).count();
    println!("{} of {} operations passed", groups.len() - failed, groups.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

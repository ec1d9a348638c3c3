//! `tessera plan`: what a job would take.

use std::path::Path;

use proto::v1::{self, PlanJobResponse, plan_job_request::Job};
use service::config::{Config, units::show_bytes};

use crate::{cli::Plan, command::submit, embedded, exit::Outcome, output, wire_json};

/// Shows the plan of the job that is named, or that a document describes.
pub async fn run(args: Plan, config: Config) -> Outcome {
    let document = is_document(&args.job).then(|| submit::read(Path::new(&args.job))).transpose()?;
    embedded::on_farm(&config, 1, async |farm| {
        let job = match document {
            Some(document) => Job::Request(submit::upload(farm, document).await?),
            None => Job::JobId(args.job.clone()),
        };
        let asked = v1::PlanJobRequest { job: Some(job), workers: args.workers.clone(), dot: args.dot };
        let plan = farm.plan(asked).await?;
        match args.dot && !args.json {
            true => {
                plan.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
                output::line(plan.dot.trim_end());
            }
            false => show(&plan, args.json),
        }
        Ok(())
    })
    .await
}

/// Whether a word names a document, not a job.
fn is_document(word: &str) -> bool {
    let path = Path::new(word);
    word == "-" || path.exists() || path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

/// Shows a plan.
pub fn show(plan: &PlanJobResponse, json: bool) {
    if json {
        return output::json(&wire_json::show("PlanJobResponse", plan));
    }
    lines(plan).iter().for_each(|line| output::line(line));
}

fn lines(plan: &PlanJobResponse) -> Vec<String> {
    let PlanJobResponse { tasks_total, tasks_found, tasks_wanted, cost, critical_path_cost, .. } = plan;
    let share = |part: u64| match *cost {
        0 => String::new(),
        cost => format!(", {:.0}% of all", part as f64 / cost as f64 * 100.0),
    };
    let mut lines = vec![
        format!("tasks          {tasks_total}, {tasks_found} found, {tasks_wanted} to run"),
        format!("cost           {} million multiplications", grouped(*cost)),
        format!(
            "critical path  {} million multiplications{}",
            grouped(*critical_path_cost),
            share(*critical_path_cost)
        ),
        format!("largest task   {} without the weights", show_bytes(plan.largest_task_bytes)),
        String::new(),
    ];
    let rows: Vec<_> = plan
        .operations
        .iter()
        .map(|operation| {
            let v1::PlannedOperation { total, found, wanted, .. } = operation;
            [operation.operation.clone(), total.to_string(), found.to_string(), wanted.to_string()]
        })
        .collect();
    lines.extend(output::columns(["OPERATION", "TASKS", "FOUND", "TO RUN"], &rows));
    if !plan.speed_ups.is_empty() {
        let speed_up =
            |speed_up: &v1::PlannedSpeedUp| [speed_up.workers.to_string(), format!("{:.2}x", speed_up.speed_up)];
        let rows: Vec<_> = plan.speed_ups.iter().map(speed_up).collect();
        lines.push(String::new());
        lines.extend(output::columns(["WORKERS", "SPEED-UP"], &rows));
    }
    if !plan.critical_path.is_empty() {
        lines.extend([String::new(), "one after the other at least:".to_owned()]);
        lines.extend(shortened(&plan.critical_path).into_iter().map(|task| format!("  {task}")));
    }
    if !plan.warnings.is_empty() {
        lines.push(String::new());
        lines.extend(plan.warnings.iter().map(|warning| format!("warning: {warning}")));
    }
    lines
}

/// How many tasks of a long chain are told, at either end.
const TOLD: usize = 8;

/// A chain of tasks, its middle left out where it is long.
fn shortened(chain: &[String]) -> Vec<String> {
    if chain.len() <= 2 * TOLD {
        return chain.to_vec();
    }
    let between = format!("… {} more …", chain.len() - 2 * TOLD);
    chain[..TOLD].iter().cloned().chain([between]).chain(chain[chain.len() - TOLD..].iter().cloned()).collect()
}

/// `12 345 678`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_told_in_numbers_and_words() {
        let operation = |operation: &str, total, found, wanted| v1::PlannedOperation {
            operation: operation.to_owned(),
            total,
            found,
            wanted,
        };
        let plan = PlanJobResponse {
            tasks_total: 5,
            tasks_found: 2,
            tasks_wanted: 3,
            operations: vec![operation("redraw", 4, 2, 2), operation("paste", 1, 0, 1)],
            cost: 1_234_567,
            critical_path_cost: 617_283,
            critical_path: vec!["redraw 64x64+0+0".to_owned(), "paste".to_owned()],
            speed_ups: vec![v1::PlannedSpeedUp { workers: 4, speed_up: 1.5 }],
            largest_task_bytes: 1 << 30,
            warnings: vec!["segs[1]: its mask is empty".to_owned()],
            ..PlanJobResponse::default()
        };
        let want = "tasks          5, 2 found, 3 to run
cost           1 234 567 million multiplications
critical path  617 283 million multiplications, 50% of all
largest task   1.1 GB without the weights

OPERATION  TASKS  FOUND  TO RUN
redraw     4      2      2
paste      1      0      1

WORKERS  SPEED-UP
4        1.50x

one after the other at least:
  redraw 64x64+0+0
  paste

warning: segs[1]: its mask is empty";
        assert_eq!(lines(&plan).join("\n"), want);
    }

    #[test]
    fn a_long_chain_is_told_by_its_ends() {
        let chain: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        let told = shortened(&chain);
        assert_eq!((told.len(), told[7].as_str(), told[8].as_str(), told[9].as_str()), (17, "7", "… 4 more …", "12"));
        assert_eq!(shortened(&chain[..16]).len(), 16);
    }

    #[test]
    fn a_document_is_told_from_a_job() {
        assert!(is_document("-") && is_document("missing.JSON"));
        assert!(!is_document("0194b3c2-7d4e-7b2a-9d7e-1f2a3b4c5d6e"));
    }
}

//! `tessera plan`: what a job would take.

use std::path::Path;

use proto::v1::{self, PlanJobResponse, job::Kind, plan_job_request::Job};
use service::config::{Config, units::show_bytes};

use crate::{cli::Plan, command::submit, embedded, exit::Outcome, output, progress::span, wire_json};

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
        format!("time           {}", time(plan)),
        format!("largest task   {} without the weights", show_bytes(plan.largest_task_bytes)),
        format!("results        {} in the store, without what is made of them", show_bytes(plan.results_bytes)),
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
        let speed_up = |speed_up: &v1::PlannedSpeedUp| {
            let time = speed_up.duration.as_ref().map(about).unwrap_or_default();
            [speed_up.workers.to_string(), format!("{:.2}x", speed_up.speed_up), time]
        };
        let rows: Vec<_> = plan.speed_ups.iter().map(speed_up).collect();
        let time = if rows.iter().all(|[.., time]| time.is_empty()) { "" } else { "TIME" };
        lines.push(String::new());
        lines.extend(output::columns(["WORKERS", "SPEED-UP", time], &rows));
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

/// How long the workers that are there take, or why that is not known and what helps.
fn time(plan: &PlanJobResponse) -> String {
    let there = match plan.workers {
        1 => "the worker that is there".to_owned(),
        workers => format!("the {workers} workers that are there"),
    };
    match &plan.duration {
        _ if plan.cost == 0 => "none, there is nothing to render".to_owned(),
        Some(duration) if plan.is_measured => format!("about {} on {there}", about(duration)),
        Some(duration) => format!("at a first guess {} on {there}", about(duration)),
        None if plan.workers == 0 => {
            let class = plan.job.as_ref().map(class).unwrap_or_default();
            format!("not known: no worker of class {class} is there; start one with `tessera worker`")
        }
        None => format!("not known until {there} has rendered something"),
    }
}

/// The compute class that renders a job.
fn class(job: &v1::Job) -> &str {
    match &job.kind {
        Some(Kind::Upscale(upscale)) => &upscale.compute_class,
        Some(Kind::SegsDetail(redraw) | Kind::SegsUpscale(redraw) | Kind::LatentUpscale(redraw)) => {
            &redraw.compute_class
        }
        None => "",
    }
}

/// A span of time for people, to the second.
fn about(duration: &prost_types::Duration) -> String {
    match u64::try_from(duration.seconds).unwrap_or(0) + u64::from(duration.nanos >= 500_000_000) {
        0 => "less than 1 s".to_owned(),
        seconds => span(seconds),
    }
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
            speed_ups: vec![
                v1::PlannedSpeedUp { workers: 1, speed_up: 1.0, duration: seconds(300, 0) },
                v1::PlannedSpeedUp { workers: 4, speed_up: 1.5, duration: seconds(7200, 0) },
            ],
            workers: 2,
            duration: seconds(200, 500_000_000),
            is_measured: true,
            largest_task_bytes: 1 << 30,
            results_bytes: 2_500_000,
            warnings: vec!["segs[1]: its mask is empty".to_owned()],
            ..PlanJobResponse::default()
        };
        let want = "tasks          5, 2 found, 3 to run
cost           1 234 567 million multiplications
critical path  617 283 million multiplications, 50% of all
time           about 3 min on the 2 workers that are there
largest task   1.1 GB without the weights
results        2.5 MB in the store, without what is made of them

OPERATION  TASKS  FOUND  TO RUN
redraw     4      2      2
paste      1      0      1

WORKERS  SPEED-UP  TIME
1        1.00x     5 min
4        1.50x     2 h 00 min

one after the other at least:
  redraw 64x64+0+0
  paste

warning: segs[1]: its mask is empty";
        assert_eq!(lines(&plan).join("\n"), want);
    }

    fn seconds(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos })
    }

    #[test]
    fn a_plan_says_how_long_it_takes_or_why_nobody_knows() {
        let kind = v1::ResolvedUpscale { compute_class: "cpu.fma-1.f32".to_owned(), ..Default::default() };
        let job = v1::Job { kind: Some(Kind::Upscale(kind)), ..Default::default() };
        let told = |workers, duration, is_measured, cost| {
            time(&PlanJobResponse {
                job: Some(job.clone()),
                workers,
                duration,
                is_measured,
                cost,
                ..Default::default()
            })
        };
        let check = |told: String, want: &str| assert_eq!(told, want);
        check(told(1, seconds(41, 499_000_000), true, 1), "about 41 s on the worker that is there");
        check(told(2, seconds(119, 500_000_000), true, 1), "about 2 min on the 2 workers that are there");
        check(
            told(2, seconds(0, 20_000_000), false, 1),
            "at a first guess less than 1 s on the 2 workers that are there",
        );
        check(told(1, None, false, 1), "not known until the worker that is there has rendered something");
        let want = "not known: no worker of class cpu.fma-1.f32 is there; start one with `tessera worker`";
        check(told(0, None, false, 1), want);
        check(told(2, seconds(0, 0), true, 0), "none, there is nothing to render");
        // Without times, their column is left out.
        let speed_ups = vec![v1::PlannedSpeedUp { workers: 1, speed_up: 1.0, duration: None }];
        let plan = PlanJobResponse { speed_ups, ..Default::default() };
        assert!(lines(&plan).contains(&"WORKERS  SPEED-UP".to_owned()), "{:?}", lines(&plan));
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

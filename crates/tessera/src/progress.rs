//! How far things are: bars on a terminal, plain lines elsewhere, JSON lines for programs.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::v1::{self, job_event::Event};
use serde_json::json;

use crate::{output, watch, wire_json};

/// How often a job's progress is told in plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows the progress of several jobs.
#[derive(Debug, Clone)]
pub enum Progress {
    /// For a terminal.
    Bars(MultiProgress),
    /// For a file or a pipe.
    Lines,
    /// For a program.
    Json,
}

impl Progress {
    /// What suits stderr, or JSON on stdout.
    pub fn new(json: bool) -> Self {
        match json {
            true => Self::Json,
            false if std::io::stderr().is_terminal() => Self::Bars(MultiProgress::new()),
            false => Self::Lines,
        }
    }

    /// Begins to show the job `id`, called `name` for people.
    pub fn job(&self, name: &str, id: &str) -> JobProgress {
        let bar = match self {
            Self::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(0));
                let template = "{prefix:24!} [{bar:30}] {pos}/{len} {msg}";
                let style = ProgressStyle::with_template(template).expect("the template is a fixed text");
                bar.set_style(style.progress_chars("=> "));
                bar.set_prefix(name.to_owned());
                Some(bar)
            }
            Self::Lines | Self::Json => None,
        };
        JobProgress { all: self.clone(), name: name.to_owned(), id: id.to_owned(), bar, told: None, unit: "tiles" }
    }

    /// Says something to people, on stderr.
    pub fn say(&self, text: &str) {
        match self {
            Self::Bars(bars) => bars.suspend(|| eprintln!("{text}")),
            Self::Lines | Self::Json => eprintln!("{text}"),
        }
    }

    /// Gives a result on stdout: `value` to programs, `text` to people.
    pub fn give(&self, text: &str, value: &serde_json::Value) {
        match self {
            Self::Bars(bars) => bars.suspend(|| output::line(text)),
            Self::Lines => output::line(text),
            Self::Json => output::json_line(value),
        }
    }
}

/// Shows the progress of one job.
#[derive(Debug)]
pub struct JobProgress {
    all: Progress,
    name: String,
    id: String,
    bar: Option<ProgressBar>,
    told: Option<Instant>,
    /// What its tasks are called.
    unit: &'static str,
}

impl JobProgress {
    /// Shows what an event says.
    pub fn see(&mut self, event: &v1::JobEvent) {
        if let Some(Event::Snapshot(job)) = &event.event {
            self.unit = unit(job);
        }
        if matches!(self.all, Progress::Json) {
            let event = wire_json::show("JobEvent", event);
            return output::json_line(&json!({ "name": self.name, "job": self.id, "event": event }));
        }
        if let Some(words) = watch::words(event) {
            self.all.say(&format!("{}: {words}", self.name));
        }
        let Some(progress) = &event.progress else { return };
        match &self.bar {
            Some(bar) => {
                bar.set_length(progress.tasks_total);
                bar.set_position(progress.tasks_done);
                bar.set_message(beside(event, progress, self.unit));
            }
            None => {
                let is_told = matches!(event.event, Some(Event::Snapshot(_)));
                if is_told || self.told.is_none_or(|told| told.elapsed() >= LINE_INTERVAL) {
                    self.told = Some(Instant::now());
                    eprintln!("{}: {}", self.name, sentence(event, progress, self.unit));
                }
            }
        }
    }
}

impl Drop for JobProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What people call the tasks of a job.
pub fn unit(job: &v1::Job) -> &'static str {
    match &job.kind {
        Some(v1::job::Kind::SegsDetail(_) | v1::job::Kind::SegsUpscale(_) | v1::job::Kind::LatentUpscale(_)) => "tasks",
        Some(v1::job::Kind::Upscale(_)) | None => "tiles",
    }
}

/// What stands beside a bar: `tiles  3.1 tiles/s, 9 s left`.
fn beside(event: &v1::JobEvent, progress: &v1::JobProgress, unit: &str) -> String {
    let words = [step(event), pace(progress, unit)].into_iter().filter(|words| !words.is_empty());
    format!("{unit}  {}", words.collect::<Vec<_>>().join(", ")).trim_end().to_owned()
}

/// `task 3 45%`, where an event says how far a task is.
fn step(event: &v1::JobEvent) -> String {
    match &event.event {
        Some(Event::TaskProgressed(task)) => format!("task {} {:.0}%", task.task, task.fraction * 100.0),
        _ => String::new(),
    }
}

/// `running, 12/40 tiles, 3.1 tiles/s, 9 s left`.
fn sentence(event: &v1::JobEvent, progress: &v1::JobProgress, unit: &str) -> String {
    let mut words = Vec::new();
    if let Some(Event::Snapshot(job)) = &event.event {
        words.push(watch::word(job.state()).to_owned());
    }
    words.push(format!("{}/{} {unit}", progress.tasks_done, progress.tasks_total));
    if progress.tasks_found > 0 {
        words.push(format!("{} found", progress.tasks_found));
    }
    words.extend([step(event), pace(progress, unit)].into_iter().filter(|words| !words.is_empty()));
    words.join(", ")
}

/// `3.1 tiles/s, 9 s left`; empty when neither is known.
fn pace(progress: &v1::JobProgress, unit: &str) -> String {
    let mut words = Vec::new();
    if progress.tasks_per_second > 0.0 {
        let digits = if progress.tasks_per_second < 10.0 { 1 } else { 0 };
        words.push(format!("{:.digits$} {unit}/s", progress.tasks_per_second));
    }
    if let Some(remaining) = &progress.remaining {
        words.push(format!("{} left", span(u64::try_from(remaining.seconds).unwrap_or(0))));
    }
    words.join(", ")
}

/// A span of time for people: `9 s`, `3 min`, `2 h 05 min`.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_a_job_is_and_how_fast() {
        let mut progress = v1::JobProgress { tasks_total: 40, tasks_done: 12, ..Default::default() };
        let mut event = v1::JobEvent::default();
        assert_eq!(sentence(&event, &progress, "tiles"), "12/40 tiles");
        progress.tasks_found = 2;
        progress.tasks_per_second = 3.12;
        progress.remaining = Some(prost_types::Duration { seconds: 9, nanos: 0 });
        let job = v1::Job { state: v1::JobState::Running.into(), ..Default::default() };
        event.event = Some(Event::Snapshot(job));
        assert_eq!(sentence(&event, &progress, "tiles"), "running, 12/40 tiles, 2 found, 3.1 tiles/s, 9 s left");
        let task = v1::TaskProgressed { task: 3, fraction: 0.451, ..Default::default() };
        event.event = Some(Event::TaskProgressed(task));
        assert_eq!(sentence(&event, &progress, "tasks"), "12/40 tasks, 2 found, task 3 45%, 3.1 tasks/s, 9 s left");
        assert_eq!(beside(&event, &progress, "tasks"), "tasks  task 3 45%, 3.1 tasks/s, 9 s left");
    }

    #[test]
    fn times_are_told_for_people() {
        assert_eq!([0, 119, 120, 7199, 7500].map(span), ["0 s", "119 s", "2 min", "119 min", "2 h 05 min"]);
    }
}

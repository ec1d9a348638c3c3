//! The command as its user meets it: real processes, files, exit codes.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStderr, Command, Output, Stdio},
};

use serde_json::Value;

/// Runs `tessera` with these words in `folder`, whose cache is its own.
fn tessera(folder: &Path, line: &str) -> Output {
    command(folder, line).output().unwrap()
}

fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TESSERA_") || name.to_string_lossy().starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command.args(line.split_whitespace()).current_dir(folder).env("TESSERA_CACHE", folder.join("cache"));
    command
}

/// A folder with a picture of 20 by 12 pixels called `photo.png`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut encoder = png::Encoder::new(File::create(folder.path().join("photo.png")).unwrap(), 20, 12);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = (0..20 * 12 * 3).map(|i| (i * 7 % 251) as u8).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    folder
}

fn size(path: &Path) -> (u32, u32) {
    let reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    reader.info().size()
}

#[track_caller]
fn check(output: &Output, code: i32, stdout: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{stderr}");
}

#[track_caller]
fn says(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
}

#[test]
fn a_picture_is_upscaled_with_nothing_else_installed_and_the_second_time_nothing_is_rendered() {
    let folder = folder();
    let output = tessera(folder.path(), "upscale photo.png -o photo@2x.png --tile 16 --overlap 4");
    check(&output, 0, "photo@2x.png\n");
    assert_eq!(size(&folder.path().join("photo@2x.png")), (40, 24));

    let output = tessera(folder.path(), "upscale photo.png -o again.png --tile 16 --overlap 4 --json");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, events) = lines.split_last().unwrap();
    assert_eq!(last["output"], "again.png");
    assert_eq!(last["precision"], "PRECISION_FAST");
    let class = last["compute_class"].as_str().unwrap();
    assert!(class.starts_with("cpu."), "{class}");
    let progress = &events.last().unwrap()["event"]["progress"];
    assert!(progress["tasks_total"].as_u64().unwrap() > 1, "{progress}");
    assert_eq!(progress["tasks_found"], progress["tasks_total"], "{progress}");
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes("photo@2x.png"), bytes("again.png"));
}

#[test]
fn the_instructions_of_the_cpu_can_be_chosen_and_the_doctor_tells_what_they_give() {
    let folder = folder();
    let found = |line: &str| {
        let findings: Value = serde_json::from_slice(&tessera(folder.path(), line).stdout).unwrap();
        let device = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "device").unwrap().clone();
        (device["ok"].as_bool().unwrap(), device.to_string())
    };
    let (ok, words) = found("doctor --json --cpu portable --slots 3");
    assert!(ok && words.contains("exact and fast as cpu.portable-1.f32, 3 tiles at once"), "{words}");
    let (ok, words) = found("doctor --json --cpu sse9");
    assert!(!ok && words.contains("TESSERA_CPU"), "{words}");
    check(&tessera(folder.path(), "upscale photo.png -o slow.png --cpu portable --precision exact"), 0, "slow.png\n");
}

#[test]
fn a_result_is_not_written_over_unless_that_is_asked_for() {
    let folder = folder();
    std::fs::write(folder.path().join("photo@2x.png"), "mine").unwrap();
    let output = tessera(folder.path(), "upscale photo.png");
    check(&output, 0, "");
    says(&output, 0, &["skipped, because `photo@2x.png` exists"]);
    assert_eq!(std::fs::read(folder.path().join("photo@2x.png")).unwrap(), b"mine");
    check(&tessera(folder.path(), "upscale photo.png --force"), 0, "photo@2x.png\n");
    assert_eq!(size(&folder.path().join("photo@2x.png")), (40, 24));
    says(&tessera(folder.path(), "upscale photo.png -o photo.png --force"), 2, &["written over a picture"]);
}

#[test]
fn what_could_not_be_asked_is_said_with_cause_and_way_out() {
    let folder = folder();
    std::fs::write(folder.path().join("text.png"), "no picture").unwrap();
    let says = |line: &str, words: &[&str]| says(&tessera(folder.path(), line), 2, words);
    says("upscale missing.png", &["error: cannot read `missing.png`", "cause: "]);
    says("upscale photo.png --scale 64000", &["--scale", "is 64000, and 0.01 to 64 is wanted"]);
    says("upscale photo.png --model nobody", &["there is no model `nobody`"]);
    says("upscale photo.png --tile 64 --overlap 64", &["upscale.tile.overlap: "]);
    says("upscale photo.png --cpu sse9", &["`cpu` is `sse9`", "cause: `sse9` is not a level", "hint: leave `cpu`"]);
    says("upscale photo.png --device tpu", &["`device` is `tpu` (flag --device)"]);
    says("upscale photo.png --server http://127.0.0.1:1", &["cannot reach the farm", "hint: is the farm up?"]);
    says("jobs list", &["no server is named", "hint: pass --server"]);
    // One bad picture does not keep the others from being done.
    says("upscale text.png photo.png -o out", &["cannot upscale `text.png`", "1 of 2 pictures have no result"]);
    assert_eq!(size(&folder.path().join("out/photo.png")), (40, 24));
}

/// A farm in a process of its own, ended with the test.
struct Farm {
    process: Child,
    server: String,
    _stderr: BufReader<ChildStderr>,
}

impl Farm {
    fn start(folder: &Path) -> Self {
        let mut serving = command(folder, "serve --listen 127.0.0.1:0 --workers 2 --log warn");
        let mut process = serving.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        // serving on http://127.0.0.1:7000; …
        let server = line.split(' ').nth(2).unwrap().trim_end_matches(';').to_owned();
        Self { process, server, _stderr: stderr }
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn a_farm_that_serves_takes_jobs_from_other_programs() {
    let folder = folder();
    let farm = Farm::start(folder.path());
    let ask = |line: &str| tessera(folder.path(), &format!("{line} --server {}", farm.server));

    let document = r#"{ "request_id": "one", "labels": { "album": "holiday" }, "upscale": {
        "pictures": [{ "path": "photo.png" }], "upscale_model": "tessera-2x", "compute_class": "cpu.absent.f32" } }"#;
    std::fs::write(folder.path().join("job.json"), document).unwrap();
    let submitted = ask("submit job.json");
    let id = String::from_utf8(submitted.stdout).unwrap().trim().to_owned();
    assert!(!id.is_empty(), "{}", String::from_utf8_lossy(&submitted.stderr));
    check(&ask("submit job.json"), 0, &format!("{id}\n")); // the same request is the same job

    // Nobody renders that class, so that the job waits until it is cancelled.
    let jobs: Value = serde_json::from_slice(&ask("jobs list --state queued --json").stdout).unwrap();
    assert_eq!((&jobs[0]["id"], &jobs[0]["labels"]["album"]), (&Value::from(id.as_str()), &"holiday".into()));
    let job: Value = serde_json::from_slice(&ask(&format!("jobs cancel {id} --json")).stdout).unwrap();
    assert_eq!(job["state"], "JOB_STATE_CANCELLED");
    check(&ask(&format!("jobs watch {id}")), 1, &format!("{id} cancelled\n"));
    says(&ask(&format!("jobs fetch {id}")), 1, &["is cancelled and has no results"]);

    std::fs::write(folder.path().join("two.json"), document.replace("one", "two").replace("cpu.absent.f32", ""))
        .unwrap();
    let watched = ask("submit two.json --watch");
    let words = String::from_utf8(watched.stdout).unwrap();
    let (id, state) = words.trim().split_once(' ').unwrap();
    assert_eq!(state, "succeeded");
    check(&ask(&format!("jobs fetch {id} -o results")), 0, "results/photo.png\n");
    assert_eq!(size(&folder.path().join("results/photo.png")), (40, 24));
    check(&ask("upscale photo.png -o direct.png"), 0, "direct.png\n");
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes("results/photo.png"), bytes("direct.png"));
    let models: Value = serde_json::from_slice(&ask("models list --json").stdout).unwrap();
    assert_eq!(models[0]["name"], "tessera-2x");
    says(&tessera(folder.path(), "serve --listen 127.0.0.1:0"), 1, &["another `tessera serve` keeps its jobs"]);
    says(&tessera(folder.path(), "cache --limit 1GB"), 2, &["other runs use the cache folder"]);
}

#[test]
fn segs_are_made_checked_shown_and_converted_without_a_farm() {
    let folder = folder();
    let run = |line: &str| tessera(folder.path(), line);
    let shown = |line: &str| -> Value { serde_json::from_slice(&run(line).stdout).unwrap() };
    check(&run("segs tiles 200x100 --bbox-size 64 --crop-factor 1.5 -o tiles.json"), 0, "tiles.json\n");
    let found = shown("segs check tiles.json --json");
    assert_eq!((&found["ok"], found["warnings"].as_array().unwrap().len()), (&Value::Bool(true), 0));
    let table = shown("segs show tiles.json --json");
    assert_eq!((table["width"].as_u64(), table["height"].as_u64()), (Some(200), Some(100)));
    assert_eq!(table["segs"].as_array().unwrap().len() as u64, found["segs"].as_u64().unwrap());
    check(&run("segs convert tiles.json -o tiles/ --masks png"), 0, "tiles/segs.json\n");
    assert!(folder.path().join("tiles/0-mask.png").is_file());
    check(&run("segs convert tiles/segs.json -o back.json"), 0, "back.json\n");
    let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(text("tiles.json"), text("back.json"));

    // A picture of greys is one part.
    check(&run("segs from-mask photo.png --drop-size 1 -o parts/"), 0, "parts/segs.json\n");
    check(&run("segs tiles photo.png --bbox-size 64 --filter-in-segs parts/segs.json -o in.json"), 0, "in.json\n");
    says(&run("segs tiles photo.png -o in.json"), 2, &["`in.json` exists", "hint: --force"]);
    std::fs::remove_file(folder.path().join("tiles/0-mask.png")).unwrap();
    let wrong = run("segs check tiles/segs.json");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stdout).starts_with("error: segs[0].cropped_mask: "));
    says(&run("segs show photo.png"), 2, &["cannot read SEGS from `photo.png`"]);
}

#[test]
fn what_cannot_be_redrawn_is_said_before_a_farm_is_asked() {
    let folder = folder();
    let says = |line: &str, words: &[&str]| says(&tessera(folder.path(), line), 2, words);
    says("segs-detail photo.png --checkpoint a/b.pt --grid", &["there is no file `a/b.pt`", "hint: "]);
    says("segs-detail photo.png --checkpoint sd15 --segs no.json", &["cannot read SEGS from `no.json`"]);
    says("segs-upscale none.png --checkpoint sd15 --grid", &["there is no file `none.png`"]);
    says("latent-upscale photo.png --checkpoint sd15 -o a.gif", &["the extension of `a.gif` names no format"]);
    says("plan none.json", &["cannot read `none.json`"]);
}

//! A result never depends on how many threads computed it. The number is fixed once per process, so each takes a process.

use std::process::Command;

use candle_core::{DType, Device};
use models::fingerprint;
use models::upscale::Upscaler;
use models::watch::Unwatched;
use weights::digest::sha256;

use crate::{COMPACT, ESRGAN, goldens::layered, load, text, tile};

const MARK: &str = "digests of this process:";

/// On its own this checks that equal work gives equal bytes within one process, and prints them for the test below.
#[test]
fn the_same_work_gives_the_same_bytes() {
    let digests = || {
        let of_values =
            |values: &[f32]| sha256(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
        let digest = |upscaler: &Upscaler, (h, w)| {
            let y = upscaler.run(&tile(h, w), &Unwatched).unwrap();
            of_values(&y.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let chained = [COMPACT, ESRGAN].map(|layout| digest(&load(layout), (70, 211)));
        let layered = layered().into_iter().map(|(_, upscaler)| digest(&upscaler, (37, 59)));
        let texts = text::conditioning().map(|values| of_values(&values));
        let all: Vec<_> = chained.into_iter().chain(layered).chain(texts).collect();
        format!("{} {}", all.join(" "), fingerprint::level(&Device::Cpu, DType::F32).unwrap())
    };
    let first = digests();
    assert_eq!(first, digests());
    assert!(first.contains(fingerprint::KERNEL_LEVEL));
    eprintln!("{MARK} {first}");
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let run = |threads: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "threads::the_same_work_gives_the_same_bytes", "--nocapture"])
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text.lines().find_map(|line| line.split_once(MARK));
        line.unwrap_or_else(|| panic!("no digests from the process: {text}")).1.to_owned()
    };
    let one = run("1");
    for threads in ["2", "3", "7"] {
        assert_eq!(run(threads), one, "{threads} threads");
    }
}

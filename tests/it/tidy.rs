//! House rules that a machine can check.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Who may import whom: the plan of the house. An arrow that is missing here needs a reason before it is drawn.
const PLAN: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("weights", &[]),
    ("kernels", &[]),
    ("broker", &[]),
    ("store", &[]),
    ("service", &[]),
    ("models", &["kernels", "weights"]),
    ("proto", &["domain"]),
    ("imaging", &["domain"]),
    ("coordinator", &["broker", "domain", "imaging", "proto", "service", "store", "weights"]),
    ("worker", &["broker", "domain", "imaging", "models", "proto", "service", "store", "weights"]),
    (
        "tessera",
        &["broker", "coordinator", "domain", "imaging", "models", "proto", "service", "store", "weights", "worker"],
    ),
];

/// Libraries that only some rooms may name, and why.
const RESERVED: &[(&str, &[&str], &str)] = &[
    ("candle-core", &["models"], "only `models` knows how a network runs"),
    ("candle-nn", &["models"], "only `models` knows how a network runs"),
    ("lapin", &["broker"], "only `broker` knows RabbitMQ"),
    ("aws-sdk-s3", &["store"], "only `store` knows S3"),
    ("tonic", &["proto", "coordinator", "tessera"], "only the wire and its two ends speak gRPC"),
    ("prost", &["proto", "tessera"], "only the wire, and the documents of `tessera submit`, know protobuf"),
];

#[test]
fn every_arrow_between_crates_is_in_the_plan() {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo describes the workspace");
    let plan: BTreeMap<_, BTreeSet<_>> = PLAN.iter().map(|(from, to)| (*from, to.iter().copied().collect())).collect();
    let ours: BTreeSet<&str> = metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    let mut wrong = Vec::new();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        if name == "tests" || name == "benches" {
            continue; // these stand above everything
        }
        let Some(allowed) = plan.get(name) else {
            wrong.push(format!("`{name}` has no place in the plan"));
            continue;
        };
        let folder = package.manifest_path.parent().and_then(|folder| folder.file_name());
        if folder != Some(name) {
            wrong.push(format!("the folder of `{name}` is called {folder:?}"));
        }
        for dependency in package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal) {
            let to = dependency.name.as_str();
            if ours.contains(to) && !allowed.contains(to) {
                wrong.push(format!("`{name}` imports `{to}`, and the plan has no such arrow"));
            }
            for (library, rooms, why) in RESERVED {
                if to == *library && !rooms.contains(&name) {
                    wrong.push(format!("`{name}` names `{library}`: {why}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_coordinator_links_no_candle() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "-p", "coordinator", "--edges", "normal", "--prefix", "none", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo shows the tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8_lossy(&output.stdout);
    let gpu = ["candle", "cudarc", "metal "];
    let found: Vec<_> = tree.lines().filter(|line| gpu.iter().any(|name| line.starts_with(name))).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_domain_names_the_samplers_and_schedulers_that_workers_have() {
    let known: Vec<&str> = domain::sampling::SAMPLERS.iter().map(|sampler| sampler.name).collect();
    let have: Vec<&str> = models::diffusion::samplers::SAMPLERS.iter().map(|sampler| sampler.name).collect();
    assert_eq!(known, have);
    let have: Vec<&str> = models::diffusion::schedule::SCHEDULERS.iter().map(|scheduler| scheduler.name).collect();
    assert_eq!(domain::sampling::SCHEDULERS, have);
}

#[test]
fn the_domain_has_no_clock_no_dice_and_no_async() {
    let mut folders = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/domain/src"))];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the sources are there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    assert!(files.len() > 20, "only {} sources", files.len());
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a source file");
        for word in ["SystemTime", "Instant::now", "rand::", "async fn", "std::fs", "std::net", "tokio"] {
            assert!(!text.contains(word), "{} names `{word}`", path.display());
        }
    }
}

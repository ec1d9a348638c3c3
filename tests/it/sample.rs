//! `tessera sample`, on checkpoints that the command makes itself.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::{farm::binary, pictures::png};

use crate::newcomer::{Home, size, told};

/// A home with a tiny checkpoint, `sd1.safetensors`.
fn home() -> Result<Home> {
    let home = Home::new()?;
    let output = home.run(&["models", "synthesize", "sd1"])?;
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    Ok(home)
}

/// What is small enough for a test.
const SMALL: [&str; 6] = ["--width", "40", "--height", "32", "--steps", "2"];

#[test]
fn a_newcomer_makes_a_picture_without_any_download() -> Result<()> {
    let home = home()?;
    let sample = |more: &[&str]| home.run(&[&["sample", "sd1.safetensors", "a lighthouse"], &SMALL[..], more].concat());
    let output = sample(&["-o", "a.png", "--seed", "7"])?;
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(String::from_utf8(output.stdout.clone())?, "a.png\n");
    assert_eq!(size(&home.path("a.png"))?, (40, 32));
    let told_of = told(&output);
    assert!(told_of.contains("step 1 of 2, ") && told_of.contains(" left\nstep 2 of 2\n"), "{told_of}");

    // The same again is the same picture; for a program, with all that there is to know.
    let output = sample(&["-o", "b.png", "--seed", "7", "--json"])?;
    let value: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((&value["family"], &value["dtype"], &value["seed"]), (&"sd1".into(), &"f32".into(), &7.into()));
    assert!(value["memory_bytes"].as_u64() > Some(0) && value["seconds"].as_f64() > Some(0.0), "{value}");
    assert_eq!(std::fs::read(home.path("a.png"))?, std::fs::read(home.path("b.png"))?);

    let output = sample(&["-o", "a.png"])?;
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("`a.png` exists") && told(&output).contains("--force"), "{}", told(&output));
    Ok(())
}

#[test]
fn a_picture_is_changed_where_the_mask_is_white_and_as_a_control_net_says() -> Result<()> {
    let home = home()?;
    let output = home.run(&["models", "synthesize", "control-sd1", "-o", "control.safetensors", "--dtype", "f32"])?;
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    std::fs::write(home.path("photo.png"), png(44, 32))?;
    std::fs::write(home.path("small.png"), png(20, 20))?;
    let sample = |output: &str, more: &[&str]| {
        let all = ["sample", "sd1.safetensors", "a door", "--init", "photo.png", "--denoise", "0.6", "-o", output];
        home.run(&[&all, &["--steps", "2"][..], more].concat())
    };
    let output = sample("plain.png", &[])?;
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert!(told(&output).contains("note: 44x32 was cut to 40x32"), "{}", told(&output));
    assert_eq!(size(&home.path("plain.png"))?, (40, 32));

    let control = ["--controlnet", "control.safetensors:0.8:0:0.9", "--control-image", "small.png"];
    for (name, more) in
        [("masked.png", &["--mask", "photo.png"][..]), ("steered.png", &control), ("tiled.png", &["--vae-tile", "64"])]
    {
        let output = sample(name, more)?;
        assert_eq!(output.status.code(), Some(0), "{name}: {}", told(&output));
    }
    let bytes = |name: &str| std::fs::read(home.path(name));
    assert_ne!(bytes("plain.png")?, bytes("masked.png")?);
    assert_ne!(bytes("plain.png")?, bytes("steered.png")?);

    let output = sample("no.png", &["--mask", "small.png"])?;
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("the mask is 20x20, but the picture is 44x32"), "{}", told(&output));
    let output = sample("no.png", &control[..2])?;
    assert_eq!(output.status.code(), Some(2), "a control net without a picture");
    Ok(())
}

#[test]
fn what_cannot_be_sampled_is_refused_by_name() -> Result<()> {
    let home = home()?;
    std::fs::write(home.path("cut.safetensors"), &std::fs::read(home.path("sd1.safetensors"))?[..1_000_000])?;
    std::fs::write(home.path("photo.png"), png(16, 16))?;
    let refused = |checkpoint: &str, more: &[&str]| -> Result<String> {
        let output = home.run(&[&["sample", checkpoint, "a cat", "-o", "no.png"], &SMALL[..4], more].concat())?;
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", told(&output));
        assert!(!home.path("no.png").exists());
        Ok(told(&output))
    };
    let cases: [(&[&str], &str); 8] = [
        (&["--sampler-name", "eular"], "unknown sampler `eular`; known are euler, "),
        (&["--scheduler", "carras"], "unknown scheduler `carras`; known are "),
        (&["--steps", "0"], "steps is 0, but must be at least 1"),
        (&["--denoise", "0"], "denoise is 0, but must be above 0 and at most 1"),
        (&["--denoise", "nan"], "denoise is NaN, but must be above 0 and at most 1"),
        (&["--cfg", "nan"], "cfg is NaN, but must be a finite number"),
        (&["--vae", "photo.png"], "cannot read `photo.png`"),
        (&["--lora", "sd1.safetensors"], "is no LoRA"),
    ];
    for (more, words) in cases {
        let told = refused("sd1.safetensors", more)?;
        assert!(told.contains(words), "{more:?}: {told}");
    }
    let told = refused("cut.safetensors", &[])?;
    assert!(told.contains("cannot read `cut.safetensors`") && told.contains("incomplete"), "{told}");
    let told = refused("photo.png", &[])?;
    assert!(told.contains("neither safetensors nor a PyTorch checkpoint"), "{told}");
    Ok(())
}

#[test]
#[cfg(unix)]
fn ctrl_c_stops_between_the_parts_of_a_network_and_leaves_nothing() -> Result<()> {
    let home = home()?;
    let mut child = Command::new(binary("tessera"))
        .args(["sample", "sd1.safetensors", "a cat", "--steps", "10000", "-o", "no.png"])
        .current_dir(home.path("."))
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("stderr is piped")?).lines();
    while let Some(line) = lines.next().transpose()? {
        if line.starts_with("step 1 of") {
            Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
            break;
        }
    }
    let rest = lines.collect::<std::io::Result<Vec<_>>>()?.join("\n");
    assert_eq!(child.wait()?.code(), Some(1), "{rest}");
    assert!(rest.contains("stopped; nothing was written"), "{rest}");
    assert!(!home.path("no.png").exists());
    Ok(())
}

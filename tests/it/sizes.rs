//! The size of results and of tiles: asked for or left to the farm, and recorded with the job.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};
use domain::region::Size;
use imaging::{
    bytes::{quantise, to_u8},
    decode::decode_rows,
    frames::Frames,
    picture::Limits,
    resample::{Crop, common_upscale},
};
use proto::v1;
use serde_json::Value;
use tests::{
    farm::{Farm, binary, services},
    pictures::{compact, png},
};

use crate::{
    job,
    newcomer::{Home, size, told},
};

/// The bytes of an 8-bit RGB picture, row by row.
fn pixels(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    decode_rows(path, &Limits::default(), &mut |rows| {
        bytes.extend_from_slice(rows.bytes);
        Ok(())
    })?;
    Ok(bytes)
}

#[test]
fn a_result_has_the_size_that_was_asked_for() -> Result<()> {
    let home = Home::new()?;
    std::fs::write(home.path("photo.png"), png(60, 41))?;
    std::fs::write(home.path("model.safetensors"), compact(4, 1, 3))?;
    let upscale = |name: &str, arguments: &[&str]| {
        let output = home.run(&[&["upscale", "photo.png", "-o", name], arguments].concat())?;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", told(&output));
        size(&home.path(name))
    };
    assert_eq!(upscale("plain.png", &[])?, (120, 82));
    assert_eq!(upscale("more.png", &["--scale", "1.5"])?, (90, 62)); // 61.5, half to even
    assert_eq!(upscale("wide.png", &["--width", "100", "--method", "area"])?, (100, 68));
    assert_eq!(upscale("low.png", &["--height", "20", "--method", "bilinear"])?, (29, 20));
    assert_eq!(upscale("large.png", &["--scale", "7", "--method", "bicubic"])?, (420, 287));
    assert_eq!(upscale("own.png", &["--model", "model.safetensors", "--scale", "2.5"])?, (150, 102));

    // What fits already is not resampled, and what does not is what the resampler makes of it.
    assert_eq!(upscale("twice.png", &["--scale", "2", "--method", "nearest-exact"])?, (120, 82));
    assert_eq!(std::fs::read(home.path("twice.png"))?, std::fs::read(home.path("plain.png"))?);
    let plain = pixels(&home.path("plain.png"))?;
    let data = plain.iter().map(|&byte| f32::from(byte) / 255.0).collect();
    let frames = Frames::new(1, Size::new(120, 82), 3, data)?;
    let resampled = common_upscale(&frames, Size::new(90, 62), "lanczos".parse()?, Crop::Disabled)?;
    assert_eq!(quantise(&resampled.data), pixels(&home.path("more.png"))?);
    assert!(plain.iter().any(|&byte| byte > to_u8(0.5)), "there is a picture");

    // Beside its picture a result is called after its size.
    let output = home.run(&["upscale", "photo.png", "--width", "33"])?;
    assert_eq!(output.stdout, b"photo@33w.png\n", "{}", told(&output));
    Ok(())
}

#[test]
fn a_tile_that_the_farm_chose_is_told_and_stays() -> Result<()> {
    let home = Home::new()?;
    std::fs::write(home.path("photo.png"), png(30, 20))?;
    let side = |name: &str| -> Result<u64> {
        let output = home.run(&["upscale", "photo.png", "-o", name, "--tile", "auto", "--overlap", "16", "--json"])?;
        assert_eq!(output.status.code(), Some(0), "{}", told(&output));
        let last: Value = serde_json::from_str(std::str::from_utf8(&output.stdout)?.lines().last().context("a line")?)?;
        assert_eq!((&last["upscale_model"], &last["tile_overlap"]), (&"tessera-2x".into(), &16.into()));
        last["tile_side"].as_u64().context("a side")
    };
    let first = side("a.png")?;
    assert!([128, 256, 512, 1024].contains(&first), "{first}");
    assert_eq!(side("b.png")?, first);
    Ok(())
}

fn resolved(job: &v1::Job) -> &v1::ResolvedUpscale {
    let Some(v1::job::Kind::Upscale(upscale)) = &job.kind else { panic!("no upscaling: {job:?}") };
    upscale
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_asks_for_a_size_and_the_job_keeps_what_was_chosen() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let mut farm = Farm::with_workers(&services, 1).start().await?;
    let home = Home::new()?;
    std::fs::write(home.path("photo.png"), png(60, 40))?;
    let document = r#"{ "upscale": { "pictures": [{ "path": "photo.png" }], "tile": { "auto": true },
        "resize": { "height": 50, "method": "RESIZE_METHOD_AREA" } } }"#;
    std::fs::write(home.path("job.json"), document)?;
    let mut submit = Command::new(binary("tessera"));
    submit.args(["submit", "job.json", "--watch", "--server", &farm.url()]);
    submit.current_dir(home.path("")).env("TESSERA_CACHE", home.path("cache"));
    let output = tokio::task::spawn_blocking(move || submit.output()).await??;
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let id = std::str::from_utf8(&output.stdout)?.split(' ').next().context("an id")?.to_owned();

    let done = farm.job(&id).await?;
    assert_eq!((done.outputs[0].width, done.outputs[0].height), (75, 50));
    let chosen = resolved(&done).clone();
    assert_eq!((chosen.upscale_model.as_str(), chosen.scale), ("tessera-2x", 2));
    let target = Some(v1::resize_options::Target::Height(50));
    assert_eq!(chosen.resize, Some(v1::ResizeOptions { target, method: v1::ResizeMethod::Area.into() }));
    assert!([128, 256, 512, 1024].contains(&chosen.tile_side), "{}", chosen.tile_side);

    // The same class and the same model have the same tiles, and the job remembers both.
    let auto = v1::UpscaleJob {
        tile: Some(v1::TileOptions { auto: true, ..v1::TileOptions::default() }),
        ..job("tessera-2x", 0)
    };
    let again = farm.submit(&png(300, 30), auto).await?;
    let again = farm.finished(&again.id).await?.job;
    assert_eq!(resolved(&again).compute_class, chosen.compute_class);
    assert_eq!(resolved(&again).tile_side, chosen.tile_side);
    farm.kill_coordinator()?;
    farm.start_coordinator().await?;
    assert_eq!(resolved(&farm.job(&id).await?), &chosen);
    Ok(())
}

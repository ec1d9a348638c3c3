//! The command as a newcomer runs it: the whole farm embedded, nothing else installed.

use std::{
    path::Path,
    process::{Command, Output},
};

use anyhow::Result;
use imaging::{decode::probe, picture::Limits};
use tempfile::TempDir;
use tests::{farm::binary, pictures::png};

/// A folder in which commands run, with a cache of its own.
pub struct Home(TempDir);

impl Home {
    /// An empty one.
    pub fn new() -> Result<Self> {
        Ok(Self(TempDir::with_prefix("tessera-newcomer-")?))
    }

    /// Where the file `name` is.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// Runs `tessera`, with nothing configured, until it ends.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary("tessera"));
        command.args(arguments).current_dir(self.0.path()).env("TESSERA_CACHE", self.path("cache"));
        for variable in ["TESSERA_STORE", "TESSERA_BROKER", "TESSERA_SERVER", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
            command.env_remove(variable);
        }
        Ok(command.output()?)
    }
}

/// What a command wrote on stderr.
pub fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The width and the height of a picture.
pub fn size(path: &Path) -> Result<(u32, u32)> {
    let info = probe(path, &Limits::default())?;
    Ok((info.width, info.height))
}

#[test]
fn the_first_command_doubles_a_picture() -> Result<()> {
    let home = Home::new()?;
    std::fs::write(home.path("photo.png"), png(60, 40))?;
    let output = home.run(&["upscale", "photo.png", "-o", "photo@2x.png"])?;
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(size(&home.path("photo@2x.png"))?, (120, 80));
    let first = std::fs::read(home.path("photo@2x.png"))?;

    // Run again: nothing is rendered, the bytes are the same.
    let output = home.run(&["upscale", "photo.png", "-o", "again.png", "--json"])?;
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(std::fs::read(home.path("again.png"))?, first);
    for line in String::from_utf8(output.stdout)?.lines() {
        serde_json::from_str::<serde_json::Value>(line)?;
    }
    Ok(())
}

#[test]
fn several_pictures_go_into_a_folder() -> Result<()> {
    let home = Home::new()?;
    std::fs::write(home.path("a.png"), png(20, 10))?;
    std::fs::write(home.path("b.png"), png(11, 9))?;
    let output = home.run(&["upscale", "a.png", "b.png", "-o", "out/"])?;
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(size(&home.path("out/a.png"))?, (40, 20));
    assert_eq!(size(&home.path("out/b.png"))?, (22, 18));
    Ok(())
}

#[test]
fn what_cannot_be_asked_exits_with_2_and_says_what_helps() -> Result<()> {
    let home = Home::new()?;
    std::fs::write(home.path("photo.png"), png(20, 10))?;
    std::fs::write(home.path("cut.png"), &png(20, 10)[..60])?;
    std::fs::write(home.path("words.png"), "no picture")?;
    let refused: [(&[&str], &str); 5] = [
        (&["upscale", "missing.png", "-o", "out.png"], "missing.png"),
        (&["upscale", "cut.png", "-o", "out.png"], "truncated"),
        (&["upscale", "words.png", "-o", "out.png"], "not a PNG"),
        (&["upscale", "photo.png", "-o", "out.png", "--tile", "32", "--overlap", "32"], "overlap"),
        (&["upscale", "photo.png", "-o", "out.png", "--server", "http://127.0.0.1:1"], "127.0.0.1:1"),
    ];
    for (arguments, words) in refused {
        let output = home.run(arguments)?;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", told(&output));
        assert!(told(&output).contains(words), "`{words}` is not in: {}", told(&output));
        assert!(!home.path("out.png").exists(), "nothing is left behind");
    }
    Ok(())
}

#[test]
fn a_model_is_inspected_and_converted() -> Result<()> {
    let home = Home::new()?;
    std::fs::write(home.path("photo.png"), png(40, 30))?;
    std::fs::write(home.path("model.bin"), tests::pictures::compact(8, 2, 2))?;
    let ok = |arguments: &[&str]| {
        let output = home.run(arguments)?;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", told(&output));
        anyhow::Ok(String::from_utf8(output.stdout)?)
    };
    let inspected = |file: &str| -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&ok(&["models", "inspect", file, "--json"])?)?)
    };
    let refused = |arguments: &[&str], words: &str| {
        let output = home.run(arguments)?;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", told(&output));
        assert!(told(&output).contains(words), "`{words}` is not in: {}", told(&output));
        anyhow::Ok(())
    };
    let first = inspected("model.bin")?;
    assert_eq!((&first["facts"]["architecture"], &first["facts"]["scale"]), (&"Compact".into(), &2.into()));
    let (bytes, pixels) = (first["tile_512_bytes"].as_u64().expect("a number"), 512 * 512);
    assert!((pixels..pixels << 10).contains(&bytes), "{bytes} bytes for a tile of {pixels} pixels");
    let text = ok(&["models", "inspect", "model.bin"])?;
    for word in ["architecture", "scale", "sizes", "parameters", "f32", "memory", "digest", "num_feat"] {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }

    // As it is: the same network. In half precision: half the size.
    assert_eq!(ok(&["models", "convert", "model.bin"])?, "model.safetensors\n");
    ok(&["models", "convert", "model.bin", "-o", "half.safetensors", "--dtype", "f16"])?;
    let half = inspected("half.safetensors")?;
    assert_eq!(half["facts"], first["facts"]);
    assert_eq!(half["dtypes"].as_object().expect("a table").keys().collect::<Vec<_>>(), ["f16"]);
    for model in ["model.bin", "model.safetensors", "half.safetensors"] {
        ok(&["upscale", "photo.png", "-o", &format!("{model}.png"), "--model", model])?;
    }
    let picture = |model: &str| std::fs::read(home.path(&format!("{model}.png")));
    assert_eq!(picture("model.bin")?, picture("model.safetensors")?);
    assert_eq!(size(&home.path("half.safetensors.png"))?, (80, 60));

    refused(&["models", "convert", "model.bin"], "`model.safetensors` exists")?;
    refused(&["models", "convert", "half.safetensors", "--force"], "written over itself")?;
    refused(&["models", "convert", "photo.png", "-o", "x.safetensors"], "cannot read `photo.png`")?;
    assert!(!home.path("x.safetensors").exists(), "nothing is left behind");
    ok(&["models", "convert", "model.bin", "--dtype", "bf16", "--force"])?;
    assert_eq!(inspected("model.safetensors")?["dtypes"]["f32"], serde_json::Value::Null);
    Ok(())
}

#[test]
fn parts_of_diffusion_models_are_told_by_their_tensors() -> Result<()> {
    let home = Home::new()?;
    let file = |name: &str, tensors: &[(&str, &[usize])]| {
        let tensors: Vec<_> = tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        std::fs::write(home.path(name), weights::synthetic::network(&tensors))
    };
    let key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
    let (up, down) = (format!("{key}.lora_up.weight"), format!("{key}.lora_down.weight"));
    file("lora.safetensors", &[(&up, &[1280, 8]), (&down, &[8, 768])])?;
    file("words.safetensors", &[("emb_params", &[3, 1024])])?;
    file("nothing.safetensors", &[("conv_first.weight", &[3, 3, 3, 3])])?;
    let answer = |arguments: &[&str]| {
        let output = home.run(arguments)?;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", told(&output));
        anyhow::Ok(String::from_utf8(output.stdout)?)
    };
    let lora: serde_json::Value = serde_json::from_str(&answer(&["models", "inspect", "lora.safetensors", "--json"])?)?;
    assert_eq!((&lora["kind"], &lora["facts"]["family"]), (&"lora".into(), &"sd1".into()));
    assert_eq!((&lora["facts"]["ranks"][0], &lora["parameters"]), (&"8".into(), &(8 * (1280 + 768)).into()));
    let text = answer(&["models", "inspect", "words.safetensors"])?;
    assert!(text.contains("embedding") && text.contains("sd2") && text.contains("3 of 1024"), "{text}");
    let output = home.run(&["models", "inspect", "nothing.safetensors"])?;
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("nearest is"), "{}", told(&output));
    Ok(())
}

#[test]
fn models_cache_config_and_doctor_answer() -> Result<()> {
    let home = Home::new()?;
    std::fs::write(home.path("photo.png"), png(20, 10))?;
    std::fs::write(home.path("model.safetensors"), tests::pictures::compact(8, 2, 2))?;
    let answers: [(&[&str], &str); 6] = [
        (&["models", "inspect", "model.safetensors", "--json"], "\"Compact\""),
        (&["upscale", "photo.png", "-o", "own.png", "--model", "model.safetensors"], ""),
        (&["models", "list", "--json"], "tessera-2x"),
        (&["cache", "--json"], ""),
        (&["config"], "dispatch_window"),
        (&["doctor", "--json"], ""),
    ];
    for (arguments, words) in answers {
        let output = home.run(arguments)?;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", told(&output));
        let answer = String::from_utf8(output.stdout)?;
        assert!(answer.contains(words), "`{words}` is not in the answer to {arguments:?}: {answer}");
    }
    Ok(())
}

//! `tessera models`: the networks that a farm has, and what a weights file holds.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use models::processor::{Kind, Precision, Processor};
use proto::v1;
use serde_json::{Map, Value, json};
use service::{
    config::{Config, units::show_bytes},
    report::{Hinted as _, with_hint},
};
use weights::{
    builtin::{BUILTIN, Builtin},
    checkpoint::{Checkpoint, Float},
    contents::{Contents, Fact},
    detect::{DetectError, SizeRequirements, detect},
    synthetic::diffusion::{Model, Size},
};

use crate::{
    cli::Dtype,
    client::{Farm, call},
    exit::Outcome,
    output, transfer, wire_json,
};

/// Lists the models of the farm; without a server, those that are built in.
pub async fn list(json: bool, config: Config) -> Outcome {
    let models = match config.client.server {
        Some(server) => {
            let farm = Farm::connect(&server).await?;
            let answer = call("ListModels", || {
                let mut models = farm.models.clone();
                async move { models.list_models(v1::ListModelsRequest {}).await }
            });
            answer.await?.models
        }
        None => BUILTIN.iter().map(built_in).collect::<anyhow::Result<_>>()?,
    };
    if json {
        output::json(&models.iter().map(|model| wire_json::show("Model", model)).collect());
        return Ok(());
    }
    let rows: Vec<_> = models.iter().map(row).collect();
    output::table(["MODEL", "SCALE", "ARCHITECTURE", "PARAMETERS", "SIZE", "DIGEST"], &rows);
    Ok(())
}

/// A built-in model as a farm shows it.
fn built_in(builtin: &Builtin) -> anyhow::Result<v1::Model> {
    let context = || format!("the built-in model `{}` is damaged", builtin.name);
    let checkpoint = Checkpoint::from_bytes(builtin.bytes).with_context(context)?;
    let facts = detect(&checkpoint).with_context(context)?.facts;
    Ok(v1::Model {
        name: builtin.name.to_owned(),
        digest: domain::digest::Digest::of(builtin.bytes).to_string(),
        architecture: facts.architecture,
        scale: facts.scale,
        input_channels: facts.input_channels,
        output_channels: facts.output_channels,
        parameters: facts.parameters,
        size_bytes: builtin.bytes.len() as u64,
        builtin: true,
        tags: facts.tags,
        kind: "upscale_model".to_owned(),
        family: String::new(),
    })
}

fn row(model: &v1::Model) -> [String; 6] {
    let name = if model.builtin { format!("{} (built in)", model.name) } else { model.name.clone() };
    let architecture = format!("{} {}", model.architecture, model.tags.join(" "));
    [
        name,
        format!("{}x", model.scale),
        architecture.trim_end().to_owned(),
        model.parameters.to_string(),
        show_bytes(model.size_bytes),
        model.digest.chars().take(12).collect(),
    ]
}

/// Uploads a weights file and makes it a model of the farm.
pub async fn add(file: &Path, name: Option<String>, json: bool, config: Config) -> Outcome {
    let farm = Farm::configured(&config).await?;
    let model = add_file(&farm, file, name).await?;
    match json {
        true => output::json(&wire_json::show("Model", &model)),
        false => output::line(&model.name),
    }
    Ok(())
}

/// Makes the weights file at `path` a model of `farm`, called `name` or as the file is.
pub async fn add_file(farm: &Farm, path: &Path, name: Option<String>) -> anyhow::Result<v1::Model> {
    let digest = transfer::upload(farm, path).await?;
    let name = name.unwrap_or_else(|| model_name(path));
    let answer = call("AddModel", || {
        let (mut models, digest, name) = (farm.models.clone(), digest.clone(), name.clone());
        async move { models.add_model(v1::AddModelRequest { digest, name }).await }
    });
    let answer = answer.await.with_context(|| format!("`{}` cannot become a model", path.display()));
    let hint = format!("`tessera models inspect {}` says what the file holds", path.display());
    answer.hint(hint)?.model.context("the server sent no model")
}

/// A name that a model may have, made from its file's.
fn model_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = stem.chars().map(|c| if fits(c) { c } else { '-' }).take(128).collect();
    if name.is_empty() { "model".to_owned() } else { name }
}

/// The model that a command line asks for: a file, which is uploaded first, a name or a digest.
pub async fn resolve(farm: &Farm, model: &str) -> anyhow::Result<v1::Model> {
    if Path::new(model).is_file() {
        return add_file(farm, Path::new(model), None).await;
    }
    farm.model(model).await.with_context(|| format!("there is no model `{model}`, and no such file"))
}

/// The side of the tile whose memory is told, in pixels.
const TOLD_TILE: usize = 512;

/// Says what a weights file, or a folder of diffusers, holds.
pub fn inspect(file: &Path, json: bool) -> Outcome {
    let checkpoint = open(file)?;
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in checkpoint.tensors().values() {
        *dtypes.entry(format!("{:?}", tensor.dtype).to_lowercase()).or_default() += 1;
    }
    let unfit = || format!("`{}` holds no network that runs here", file.display());
    let network = match detect(&checkpoint) {
        Err(DetectError::Unknown { .. }) if let Some(contents) = Contents::of(&checkpoint).with_context(unfit)? => {
            return inspect_diffusion(file, json, &checkpoint, &dtypes, &contents);
        }
        found => found.with_context(unfit)?,
    };
    let (digest, size_bytes) = transfer::digest_of(file)?;
    let facts = &network.facts;
    let tile_bytes = tile_bytes(&checkpoint);
    if json {
        output::json(&json!({
            "file": file.display().to_string(),
            "digest": digest,
            "size_bytes": size_bytes,
            "tensors": checkpoint.tensors().len(),
            "dtypes": dtypes,
            "kind": "upscaler",
            "facts": facts,
            "tile_512_bytes": tile_bytes.as_ref().ok(),
        }));
        return Ok(());
    }
    let memory = match tile_bytes {
        Ok(bytes) => format!("{} for a tile of {TOLD_TILE} pixels on this CPU", show_bytes(bytes)),
        Err(error) => format!("unknown: {error:#}"),
    };
    let mut lines = vec![
        ("architecture", facts.architecture.clone()),
        ("scale", format!("{}x", facts.scale)),
        ("channels", format!("{} in, {} out", facts.input_channels, facts.output_channels)),
        ("sizes", sizes(&facts.size_requirements)),
        ("parameters", facts.parameters.to_string()),
        ("tensors", counts(&dtypes)),
        ("size", format!("{} ({size_bytes} bytes)", show_bytes(size_bytes))),
        ("memory", memory),
        ("digest", digest),
    ];
    if !facts.tags.is_empty() {
        lines.push(("tags", facts.tags.join(" ")));
    }
    for (name, value) in lines {
        output::line(&format!("{name:13} {value}"));
    }
    for (name, value) in &facts.hyperparameters {
        output::line(&format!("  {name:24} {value}"));
    }
    Ok(())
}

/// Says what a part of a diffusion model is.
fn inspect_diffusion(
    file: &Path,
    json: bool,
    checkpoint: &Checkpoint,
    dtypes: &BTreeMap<String, usize>,
    contents: &Contents,
) -> Outcome {
    // A folder has a digest for each of its files.
    let whole = file.is_file().then(|| transfer::digest_of(file)).transpose()?;
    let parameters: u64 = checkpoint.tensors().values().map(|tensor| tensor.elements() as u64).sum();
    if json {
        let fact = |fact: &Fact| match fact {
            Fact::Text(text) => json!(text),
            Fact::Number(number) if number.fract() == 0.0 => json!(*number as u64),
            Fact::Number(number) => json!(number),
            Fact::List(words) => json!(words),
        };
        let facts: Map<String, Value> =
            contents.facts.iter().map(|(name, value)| ((*name).to_owned(), fact(value))).collect();
        output::json(&json!({
            "file": file.display().to_string(),
            "digest": whole.as_ref().map(|(digest, _)| digest),
            "size_bytes": whole.as_ref().map(|(_, size)| size),
            "tensors": checkpoint.tensors().len(),
            "dtypes": dtypes,
            "parameters": parameters,
            "kind": contents.kind.id(),
            "facts": facts,
        }));
        return Ok(());
    }
    let mut lines = vec![("kind", contents.kind.to_string())];
    lines.extend(contents.facts.iter().map(|(name, fact)| match fact {
        Fact::Text(text) => (*name, text.clone()),
        Fact::Number(number) => (*name, number.to_string()),
        Fact::List(words) if words.is_empty() => (*name, "none".to_owned()),
        Fact::List(words) => (*name, words.join("; ")),
    }));
    lines.extend([("parameters", parameters.to_string()), ("tensors", counts(dtypes))]);
    if let Some((digest, size)) = whole {
        lines.extend([("size", format!("{} ({size} bytes)", show_bytes(size))), ("digest", digest)]);
    }
    for (name, value) in lines {
        output::line(&format!("{:20} {value}", name.replace('_', " ")));
    }
    Ok(())
}

/// How many tensors there are of each type of number, in words.
fn counts(dtypes: &BTreeMap<String, usize>) -> String {
    dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect::<Vec<_>>().join(", ")
}

/// Writes the network in `file` as `.safetensors`, to `output` or beside it, and says where.
pub fn convert(file: &Path, output: Option<PathBuf>, dtype: Option<Dtype>, force: bool) -> Outcome {
    let output = output.unwrap_or_else(|| file.with_extension("safetensors"));
    let (from, to) = (file.display(), output.display());
    if output.exists() && output.canonicalize().ok() == file.canonicalize().ok() {
        let error = anyhow!("`{from}` would be written over itself");
        return Err(with_hint(error, "name another file with --output").into());
    }
    refuse_existing(&output, force)?;
    let (digest, _) = transfer::digest_of(file)?;
    weights::convert::convert(&open(file)?, &digest, &output, dtype.map(float))
        .with_context(|| format!("cannot write `{from}` as `{to}`"))?;
    output::line(&to.to_string());
    Ok(())
}

/// Writes a checkpoint of synthetic weights, and says where.
pub fn synthesize(model: Model, output: Option<PathBuf>, full: bool, dtype: Dtype, force: bool) -> Outcome {
    let output = output.unwrap_or_else(|| format!("{}.safetensors", model.id()).into());
    refuse_existing(&output, force)?;
    let size = if full { Size::Full } else { Size::Tiny };
    let to = output.display();
    model.save(size, float(dtype), &output).with_context(|| format!("cannot write `{to}`"))?;
    output::line(&to.to_string());
    Ok(())
}

/// Refuses to write over a file without being told to.
pub fn refuse_existing(output: &Path, force: bool) -> anyhow::Result<()> {
    match output.exists() && !force {
        true => Err(with_hint(
            anyhow!("`{}` exists", output.display()),
            "--force writes over it, --output names another file",
        )),
        false => Ok(()),
    }
}

fn float(dtype: Dtype) -> Float {
    match dtype {
        Dtype::F32 => Float::F32,
        Dtype::F16 => Float::F16,
        Dtype::Bf16 => Float::Bf16,
    }
}

fn open(path: &Path) -> anyhow::Result<Checkpoint> {
    Ok(weights::diffusers::open(path)?) // it says which file cannot be read
}

/// The memory that a tile takes on this machine's processor, network included, in bytes.
fn tile_bytes(checkpoint: &Checkpoint) -> anyhow::Result<u64> {
    let network = Processor::open(Kind::Cpu, None)?.load(checkpoint, Precision::Fast)?;
    Ok(network.memory_estimate(TOLD_TILE, TOLD_TILE))
}

/// The sizes that a network takes, in words.
fn sizes(requirements: &SizeRequirements) -> String {
    let SizeRequirements { minimum, multiple_of, square } = *requirements;
    let mut words = Vec::new();
    if minimum > 1 {
        words.push(format!("at least {minimum} pixels a side"));
    }
    if multiple_of > 1 {
        words.push(format!("multiples of {multiple_of}"));
    }
    if square {
        words.push("square".to_owned());
    }
    if words.is_empty() { "any".to_owned() } else { format!("{}; others are padded", words.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_as_its_file_is() {
        assert_eq!(model_name(Path::new("x/4x_Ultra-Sharp.v2.pth")), "4x_Ultra-Sharp.v2");
        assert_eq!(model_name(Path::new("größe 4x.pth")), "gr--e-4x");
    }

    #[test]
    fn sizes_are_told_in_words() {
        let check = |minimum, multiple_of, square, words| {
            assert_eq!(sizes(&SizeRequirements { minimum, multiple_of, square }), words);
        };
        check(0, 1, false, "any");
        check(2, 4, false, "at least 2 pixels a side, multiples of 4; others are padded");
        check(16, 1, true, "at least 16 pixels a side, square; others are padded");
    }
}

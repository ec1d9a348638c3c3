//! `tessera models`: the networks that a farm has, and what a weights file holds.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, anyhow};
use proto::v1;
use serde_json::json;
use service::{
    config::{Config, units::show_bytes},
    report::{Hinted as _, with_hint},
};
use weights::{
    builtin::{BUILTIN, Builtin},
    checkpoint::Checkpoint,
    detect::detect,
};

use crate::{
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

/// The model that a command line asks for: a file, which is uploaded first, a name or a digest, or the built-in model
/// of a scale.
pub async fn resolve(farm: &Farm, model: Option<&str>, scale: Option<u32>) -> anyhow::Result<v1::Model> {
    match (model, scale) {
        (Some(file), _) if Path::new(file).is_file() => add_file(farm, Path::new(file), None).await,
        (Some(name), _) => {
            farm.model(name).await.with_context(|| format!("there is no model `{name}`, and no such file"))
        }
        (None, None) => {
            let builtin = BUILTIN.first().context("no model is built in")?;
            farm.model(builtin.name).await
        }
        (None, Some(scale)) => match BUILTIN.iter().find(|builtin| builtin.scale == scale) {
            Some(builtin) => farm.model(builtin.name).await,
            None => {
                let scales: Vec<_> = BUILTIN.iter().map(|builtin| format!("{}x", builtin.scale)).collect();
                let error = anyhow!("no built-in model enlarges {scale} times, only {}", scales.join(", "));
                Err(with_hint(error, "pass a weights file with --model"))
            }
        },
    }
}

/// Says what a weights file holds.
pub fn inspect(file: &Path, json: bool) -> Outcome {
    let (digest, size_bytes) = transfer::digest_of(file)?;
    let checkpoint = Checkpoint::open(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in checkpoint.tensors().values() {
        *dtypes.entry(format!("{:?}", tensor.dtype)).or_default() += 1;
    }
    let network =
        detect(&checkpoint).with_context(|| format!("`{}` holds no network that Tessera knows", file.display()))?;
    let facts = &network.facts;
    if json {
        output::json(&json!({
            "file": file.display().to_string(),
            "digest": digest,
            "size_bytes": size_bytes,
            "tensors": checkpoint.tensors().len(),
            "dtypes": dtypes,
            "facts": facts,
        }));
        return Ok(());
    }
    let dtypes: Vec<_> = dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    let mut lines = vec![
        ("architecture", facts.architecture.clone()),
        ("scale", format!("{}x", facts.scale)),
        ("channels", format!("{} in, {} out", facts.input_channels, facts.output_channels)),
        ("parameters", facts.parameters.to_string()),
        ("tensors", dtypes.join(", ")),
        ("size", format!("{} ({size_bytes} bytes)", show_bytes(size_bytes))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_as_its_file_is() {
        assert_eq!(model_name(Path::new("x/4x_Ultra-Sharp.v2.pth")), "4x_Ultra-Sharp.v2");
        assert_eq!(model_name(Path::new("größe 4x.pth")), "gr--e-4x");
    }
}

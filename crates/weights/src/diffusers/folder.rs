//! A folder as diffusers save a model: a subfolder for each network, with its weights and its `config.json`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{unet_as_ldm, vae_as_ldm};
use crate::checkpoint::{Checkpoint, CheckpointError};

/// Configurations are short; a longer one is not believed.
const CONFIG_LIMIT: u64 = 1 << 20;

/// The header's words for what the folder's scheduler says: what the network predicts, and whether the last noise level is shifted.
pub(crate) const PREDICTION: &str = "scheduler.prediction_type";
pub(crate) const ZERO_TERMINAL_SNR: &str = "scheduler.rescale_betas_zero_snr";

/// Why a file or folder holds no weights that can be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// A weights file cannot be read.
    #[error("cannot read `{}`", .path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CheckpointError,
    },
    /// A part of the folder cannot be read.
    #[error("cannot read `{}`", .path.display())]
    Io {
        /// The part.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A configuration is no JSON.
    #[error("`{}` is not valid", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A configuration is longer than any honest one.
    #[error("`{}` is longer than {CONFIG_LIMIT} bytes", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The folder has no weights.
    #[error("folder `{}` holds no model: it has neither weights nor a folder `unet`, `vae` or `text_encoder` with some", .path.display())]
    NoModel {
        /// The folder.
        path: PathBuf,
    },
}

type Result<T> = std::result::Result<T, FolderError>;

/// Opens a weights file, or a folder of diffusers as if it were a checkpoint in one file.
///
/// The network of a folder comes below `model.diffusion_model.` and the autoencoder below `first_stage_model.`, both by LDM's names;
/// text encoders come below the names of their folders. What configurations say and tensors do not, such as the number of
/// attention heads, is in the metadata by the names that Tessera's checkpoints have for it.
///
/// # Errors
/// If a file cannot be read, or the folder holds no weights.
pub fn open(path: &Path) -> Result<Checkpoint> {
    if !path.is_dir() {
        return open_file(path);
    }
    let part = |name: &str| open_part(&path.join(name));
    let below = |part: Checkpoint, prefix: &str| part.renamed(|name| Some(format!("{prefix}{name}")));
    let mut parts = Vec::new();
    if let Some(unet) = part("unet")? {
        parts.push(below(unet_as_ldm(unet), "model.diffusion_model."));
    }
    if let Some(vae) = part("vae")? {
        parts.push(below(vae_as_ldm(vae), "first_stage_model."));
    }
    for name in ["text_encoder", "text_encoder_2"] {
        if let Some(text) = part(name)? {
            parts.push(below(text, &format!("{name}.")));
        }
    }
    let whole = match parts.is_empty() {
        true => open_part(path)?.ok_or_else(|| FolderError::NoModel { path: path.to_owned() })?,
        false => {
            Checkpoint::joined(parts).map_err(|source| FolderError::Checkpoint { path: path.to_owned(), source })?
        }
    };
    Ok(whole.with_metadata(scheduler(&path.join("scheduler/scheduler_config.json"))?))
}

fn open_file(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open(path).map_err(|source| FolderError::Checkpoint { path: path.to_owned(), source })
}

/// Opens the weights of one network, which may be split among several files, with what its configuration says.
fn open_part(folder: &Path) -> Result<Option<Checkpoint>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let failed = |source| FolderError::Io { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    let mut files = weights_among(&names).into_iter().map(|name| open_file(&folder.join(name)));
    let Some(first) = files.next() else { return Ok(None) };
    let all = [first].into_iter().chain(files).collect::<Result<Vec<_>>>()?;
    let joined =
        Checkpoint::joined(all).map_err(|source| FolderError::Checkpoint { path: folder.to_owned(), source })?;
    let is_second = folder.file_name().is_some_and(|name| name == "text_encoder_2");
    let says = config(&folder.join("config.json"))?.map(|config| facts(&config, is_second));
    Ok(Some(joined.with_metadata(says.unwrap_or_default())))
}

/// Chooses the files of a network among those of its folder: safetensors before pickles, full precision before halves, one
/// file before several.
fn weights_among(names: &[String]) -> Vec<&str> {
    const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
    let find = |name: String| names.iter().find(|found| **found == name).map(|name| vec![name.as_str()]);
    for end in [".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin"] {
        let (variant, extension) = end.rsplit_once('.').expect("an extension begins with a dot");
        for stem in STEMS.iter().chain(&["pytorch_model"]) {
            if let Some(file) = find(format!("{stem}{end}")) {
                return file;
            }
            let start = format!("{stem}{variant}-");
            let is_shard = |name: &&String| {
                let middle = name.strip_prefix(&start).and_then(|rest| rest.strip_suffix(&format!(".{extension}")));
                middle.is_some_and(|middle| middle.contains("-of-"))
            };
            let shards: Vec<&str> = names.iter().filter(is_shard).map(String::as_str).collect();
            if !shards.is_empty() {
                return shards;
            }
        }
    }
    Vec::new()
}

/// Reads a configuration, if there is one.
fn config(path: &Path) -> Result<Option<Value>> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FolderError::Io { path: path.to_owned(), source }),
    };
    if length > CONFIG_LIMIT {
        return Err(FolderError::TooLong { path: path.to_owned() });
    }
    let bytes = fs::read(path).map_err(|source| FolderError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map(Some).map_err(|source| FolderError::Config { path: path.to_owned(), source })
}

/// What the configuration of a network says of its heads.
fn facts(config: &Value, is_second_text_encoder: bool) -> BTreeMap<String, String> {
    let number = |key: &str| config[key].as_u64();
    let mut facts = BTreeMap::new();
    let mut say = |key: &str, value: u64| facts.insert(key.to_owned(), value.to_string());
    if let Some(heads) = number("num_attention_heads").filter(|_| config["hidden_act"].is_string()) {
        let clip = match config["hidden_act"].as_str() {
            _ if is_second_text_encoder => "clip_g",
            Some("quick_gelu") => "clip_l",
            _ if number("num_hidden_layers") > Some(24) => "clip_g",
            _ => "clip_h",
        };
        say(&format!("{clip}.num_heads"), heads);
    } else if config["cross_attention_dim"].is_number() {
        // What diffusers call the dimension of a head is the number of heads.
        let heads = if config["num_attention_heads"].is_null() { "attention_head_dim" } else { "num_attention_heads" };
        match &config[heads] {
            Value::Number(count) => count.as_u64().map(|count| say("unet.num_heads", count)),
            Value::Array(counts) => {
                let channels = config["block_out_channels"].as_array();
                let width = |(count, channels): (&Value, &Value)| channels.as_u64()?.checked_div(count.as_u64()?);
                let widths: Option<Vec<u64>> =
                    channels.and_then(|channels| counts.iter().zip(channels).map(width).collect());
                let width = widths.and_then(|widths| {
                    let first = *widths.first()?;
                    widths.iter().all(|width| *width == first).then_some(first)
                });
                width.map(|width| say("unet.num_head_channels", width))
            }
            _ => None,
        };
    }
    facts
}

fn scheduler(path: &Path) -> Result<BTreeMap<String, String>> {
    let Some(config) = config(path)? else { return Ok(BTreeMap::new()) };
    let prediction = config["prediction_type"].as_str().map(|kind| (PREDICTION.to_owned(), kind.to_owned()));
    let shifted = config["rescale_betas_zero_snr"].as_bool().map(|is| (ZERO_TERMINAL_SNR.to_owned(), is.to_string()));
    Ok(prediction.into_iter().chain(shifted).collect())
}

//! A network of any format as a `.safetensors` file that says what it is.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{Checkpoint, CheckpointError, Float};
use crate::detect::{DetectError, Network, detect};

/// Why a file could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// It is no network that is known.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// It could not be read, or the other not be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Writes the network that `checkpoint` holds to the `.safetensors` file at `path`, and returns it.
///
/// Its tensors have their plain names, and their numbers become `float` or stay as they are: see
/// [`Checkpoint::save_safetensors`]. The header says under `tessera.architecture`, `tessera.scale` and `tessera.source_sha256`
/// what it is and from which file it came, whose digest is `source`.
///
/// # Errors
/// If the network is not known, or the file cannot be read or written.
pub fn convert(
    checkpoint: &Checkpoint,
    source: &str,
    path: &Path,
    float: Option<Float>,
) -> Result<Network, ConvertError> {
    let network = detect(checkpoint)?;
    let metadata = BTreeMap::from([
        ("tessera.architecture".to_owned(), network.facts.architecture.clone()),
        ("tessera.scale".to_owned(), network.facts.scale.to_string()),
        ("tessera.source_sha256".to_owned(), source.to_owned()),
    ]);
    let names = checkpoint.tensors().keys().map(String::as_str).filter(|name| !network.layout.ignores(name));
    checkpoint.save_safetensors(path, names, float, &metadata)?;
    Ok(network)
}

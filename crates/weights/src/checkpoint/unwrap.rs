//! From nested dictionaries to plain tensor names.

use std::collections::BTreeMap;

use super::pickle::{Heap, Ref, Value};
use super::{CheckpointError, Result, TensorInfo};

/// The keys under which training code keeps the weights; the first one present wins, so averaged weights come before plain ones.
const WRAPPERS: [&str; 8] =
    ["model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net", "string_to_param"];

/// If this key exists, the prefix `module.` is dropped wherever it stands, even if some keys lack it.
const PARALLEL_SWINIR: &str = "module.layers.0.residual_group.blocks.0.norm1.weight";

/// The entries of the dictionary that holds the weights.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) tensors: Vec<(String, TensorInfo)>,
    /// The names of entries that are no tensors.
    pub(super) others: Vec<String>,
    /// What a header says beside the tensors.
    pub(super) metadata: BTreeMap<String, String>,
}

/// Finds the dictionary of weights inside the object that a PyTorch file holds.
pub(super) fn weights(heap: &Heap, root: Ref) -> Result<&[(Ref, Ref)]> {
    let mut entries = dictionary(heap, root)?;
    if let Some(wrapped) = get(heap, entries, "state_dict") {
        entries = dictionary(heap, wrapped)?;
    } else if let Some(only) = only_dictionary(heap, entries) {
        entries = only;
    }
    let wrapped = WRAPPERS.iter().find_map(|key| dictionary(heap, get(heap, entries, key)?).ok());
    entries = wrapped.unwrap_or(entries);
    Ok(only_dictionary(heap, entries).unwrap_or(entries))
}

fn dictionary(heap: &Heap, at: Ref) -> Result<&[(Ref, Ref)]> {
    match &heap[at] {
        Value::Dictionary(entries) => Ok(entries),
        other => Err(CheckpointError::NotADictionary { found: other.kind() }),
    }
}

fn only_dictionary<'a>(heap: &'a Heap, entries: &[(Ref, Ref)]) -> Option<&'a [(Ref, Ref)]> {
    match entries {
        [(_, value)] => dictionary(heap, *value).ok(),
        _ => None,
    }
}

/// Finds the value of `key`; of several, the last, as in Python.
fn get(heap: &Heap, entries: &[(Ref, Ref)], key: &str) -> Option<Ref> {
    let is_key = |at: Ref| matches!(&heap[at], Value::Text(text) if **text == *key);
    entries.iter().rev().find(|(at, _)| is_key(*at)).map(|(_, value)| *value)
}

/// Drops the prefixes that wrappers for several devices put before every name.
pub(super) fn drop_prefixes(mut found: Found) -> Result<(BTreeMap<String, TensorInfo>, Vec<String>)> {
    let drop = |found: &mut Found, prefix: &str| {
        let tensors = found.tensors.iter_mut().map(|(name, _)| name);
        for name in tensors.chain(&mut found.others) {
            if let Some(rest) = name.strip_prefix(prefix) {
                *name = rest.to_owned();
            }
        }
    };
    if found.tensors.iter().any(|(name, _)| name == PARALLEL_SWINIR) {
        drop(&mut found, "module.");
    }
    for prefix in ["module.", "netG."] {
        let names = found.tensors.iter().map(|(name, _)| name);
        if names.chain(&found.others).all(|name| name.starts_with(prefix)) {
            drop(&mut found, prefix);
        }
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in found.tensors {
        if let Some(_earlier) = tensors.insert(name.clone(), info) {
            return Err(CheckpointError::Duplicate { tensor: name });
        }
    }
    Ok((tensors, found.others))
}

//! `tessera cache`: what the embedded farm keeps.

use anyhow::Context as _;
use serde_json::json;
use service::{
    config::{Config, units::show_bytes},
    report::Hinted as _,
};

use crate::{cache, exit::Outcome, output};

/// Shows what the cache folder holds; with `limit`, deletes what was used least recently until so much is left.
pub async fn run(limit: Option<u64>, json: bool, config: Config) -> Outcome {
    let folder = cache::folder(&config.client);
    let store = cache::open(&config.client)?;
    let deleted = match limit {
        Some(limit) => {
            let evicted = cache::shrink(&config.client, limit).await?;
            let evicted = evicted.with_context(|| format!("other runs use the cache folder {}", folder.display()));
            evicted.hint("try again when they have ended; each then keeps it within `cache_limit_bytes`")?.deleted
        }
        None => store::Usage::default(),
    };
    let usage = store.usage().await?;
    let limit_bytes = config.client.cache_limit_bytes;
    if json {
        output::json(&json!({
            "folder": folder.display().to_string(),
            "keys": usage.keys,
            "bytes": usage.bytes,
            "limit_bytes": limit_bytes,
            "deleted_keys": deleted.keys,
            "deleted_bytes": deleted.bytes,
        }));
        return Ok(());
    }
    if limit.is_some() {
        output::line(&format!("deleted  {} in {} files", show_bytes(deleted.bytes), deleted.keys));
    }
    output::line(&format!("holds    {} in {} files", show_bytes(usage.bytes), usage.keys));
    output::line(&format!("limit    {} after each embedded run (`cache_limit_bytes`)", show_bytes(limit_bytes)));
    output::line(&format!("folder   {}", folder.display()));
    Ok(())
}

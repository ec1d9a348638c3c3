//! The catalog: which models the farm has, and what is known about each.

use std::{path::Path, sync::Arc};

use domain::{digest::Digest, layout};
use futures::TryStreamExt as _;
use proto::{convert::InvalidField, v1};
use serde::{Deserialize, Serialize};
use store::{Key, Store};
use weights::{
    builtin::{BUILTIN, Builtin},
    checkpoint::Checkpoint,
    detect::{ModelFacts, detect},
};

use crate::{
    records::{get_json, put_json},
    refusal::{Refusal, chain},
};

/// What is known about a model. Stored beside its weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelRecord {
    /// What people call it.
    pub name: String,
    /// The SHA-256 of its file.
    pub digest: Digest,
    /// The size of its file.
    pub size_bytes: u64,
    /// Whether it ships with Tessera.
    pub builtin: bool,
    /// What network it is.
    pub facts: ModelFacts,
}

impl ModelRecord {
    /// The model as the public service shows it.
    pub fn to_wire(&self) -> v1::Model {
        v1::Model {
            name: self.name.clone(),
            digest: self.digest.to_string(),
            architecture: self.facts.architecture.clone(),
            scale: self.facts.scale,
            input_channels: self.facts.input_channels,
            output_channels: self.facts.output_channels,
            parameters: self.facts.parameters,
            size_bytes: self.size_bytes,
            builtin: self.builtin,
            tags: self.facts.tags.clone(),
        }
    }
}

/// The models in a store.
#[derive(Debug)]
pub struct Catalog {
    store: Arc<dyn Store>,
}

impl Catalog {
    /// The catalog of `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Puts the models that ship with Tessera into the store, unless they are there.
    pub async fn add_builtin(&self) -> Result<(), Refusal> {
        for builtin in BUILTIN {
            let digest = Digest::of(builtin.bytes);
            let known: Option<ModelRecord> = get_json(&*self.store, &layout::model_record(digest)).await?;
            if known.is_none() {
                let facts = Checkpoint::from_bytes(builtin.bytes)
                    .map_err(|error| chain(&error))
                    .and_then(|checkpoint| detect(&checkpoint).map_err(|error| chain(&error)))
                    .map_err(|why| Refusal::Internal {
                        what: format!("the built-in model `{}` cannot be read", builtin.name),
                        source: why.into(),
                    })?
                    .facts;
                let size_bytes = builtin.bytes.len() as u64;
                self.store.put(&Key::new(layout::model(digest))?, builtin.bytes.into()).await?;
                let record = ModelRecord { name: builtin.name.to_owned(), digest, size_bytes, builtin: true, facts };
                put_json(&*self.store, &layout::model_record(digest), &record).await?;
            }
            // Written at every start: a newer version's model takes the name over.
            put_json(&*self.store, &layout::model_name(builtin.name), &digest).await?;
        }
        Ok(())
    }

    /// The model of a name or a digest. It is called what was asked for: a model can have several names.
    pub async fn find(&self, model: &str) -> Result<Option<ModelRecord>, Refusal> {
        let (digest, name) = match model.parse::<Digest>() {
            Ok(digest) => (Some(digest), None),
            Err(_) if is_name(model) => (get_json(&*self.store, &layout::model_name(model)).await?, Some(model)),
            Err(_) => (None, None),
        };
        let Some(digest) = digest else { return Ok(None) };
        let record: Option<ModelRecord> = get_json(&*self.store, &layout::model_record(digest)).await?;
        Ok(record.map(|record| match name {
            Some(name) => ModelRecord { name: name.to_owned(), ..record },
            None => record,
        }))
    }

    /// All models, by name; one with several names comes several times.
    pub async fn all(&self) -> Result<Vec<ModelRecord>, Refusal> {
        let listed: Vec<_> = self.store.list(layout::MODEL_NAMES).try_collect().await?;
        let mut records = Vec::with_capacity(listed.len());
        for entry in listed {
            records.extend(self.find(&entry.key.as_str()[layout::MODEL_NAMES.len()..]).await?);
        }
        Ok(records)
    }

    /// Makes the weights file at `path`, which has `digest`, a model called `name`.
    pub async fn add(&self, name: &str, digest: Digest, path: &Path) -> Result<ModelRecord, Refusal> {
        if !is_name(name) {
            let why =
                format!("`{name}` is not 1 to 128 letters, digits, `.`, `_` or `-`, beginning with a letter or digit");
            return Err(Refusal::field("name", why));
        }
        let read = path.to_owned();
        let inspected = tokio::task::spawn_blocking(move || {
            let refuse = |error: &dyn std::error::Error| InvalidField::new("digest", chain(error));
            let checkpoint = Checkpoint::open(&read).map_err(|error| refuse(&error))?;
            Ok::<_, InvalidField>(detect(&checkpoint).map_err(|error| refuse(&error))?.facts)
        });
        let facts = inspected.await.map_err(|error| Refusal::Internal {
            what: format!("the reader of model `{name}` stopped"),
            source: error.into(),
        })??;
        let size_bytes = std::fs::metadata(path)
            .map_err(|error| Refusal::Internal { what: "the model's file vanished".to_owned(), source: error.into() })?
            .len();
        self.store.put_file(&Key::new(layout::model(digest))?, path).await?;
        let builtin = BUILTIN.iter().any(|builtin| Digest::of(builtin.bytes) == digest);
        let record = ModelRecord { name: name.to_owned(), digest, size_bytes, builtin, facts };
        put_json(&*self.store, &layout::model_record(digest), &record).await?;
        put_json(&*self.store, &layout::model_name(name), &digest).await?;
        Ok(record)
    }
}

/// The built-in model for pictures that must grow `needed` times: the one with the smallest scale that is enough, or the
/// largest where none is. Where nobody says, the first.
pub fn builtin_for(needed: Option<f64>) -> &'static Builtin {
    let models = || BUILTIN.iter();
    let chosen = match needed {
        None => BUILTIN.first(),
        Some(needed) => {
            let enough = models().filter(|model| f64::from(model.scale) >= needed).min_by_key(|model| model.scale);
            enough.or_else(|| models().max_by_key(|model| model.scale))
        }
    };
    chosen.expect("a model is built in")
}

/// Whether `name` can name a model: it becomes part of a key.
fn is_name(name: &str) -> bool {
    let fits = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    (1..=128).contains(&name.len())
        && name.bytes().all(fits)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_built_in_models_are_found_by_name_and_by_digest() {
        let catalog = Catalog::new(Arc::new(store::MemoryStore::new()));
        catalog.add_builtin().await.unwrap();
        catalog.add_builtin().await.unwrap();
        let models = catalog.all().await.unwrap();
        assert_eq!(models.len(), BUILTIN.len());
        let first = &models[0];
        assert!(first.builtin && first.facts.scale >= 2);
        assert_eq!(catalog.find(&first.name).await.unwrap().unwrap().digest, first.digest);
        assert_eq!(catalog.find(&first.digest.to_string()).await.unwrap().unwrap().name, first.name);
        assert!(catalog.find("no-such-model").await.unwrap().is_none());
        assert!(catalog.find("../secret").await.unwrap().is_none());
    }

    #[test]
    fn a_built_in_model_is_chosen_by_how_much_pictures_must_grow() {
        let scale = |needed| builtin_for(needed).scale;
        let largest = BUILTIN.iter().map(|model| model.scale).max().unwrap();
        assert_eq!(scale(None), 2);
        assert_eq!([0.5, 1.0, 1.5, 2.0].map(|needed| scale(Some(needed))), [2; 4]);
        assert_eq!([f64::from(largest), 64.0].map(|needed| scale(Some(needed))), [largest; 2]);
    }

    #[tokio::test]
    async fn a_file_that_is_no_model_is_refused_with_its_field() {
        let catalog = Catalog::new(Arc::new(store::MemoryStore::new()));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"not a checkpoint").unwrap();
        let refusal = catalog.add("m", Digest::of(b""), file.path()).await.unwrap_err();
        assert!(matches!(&refusal, Refusal::Field(field) if field.field == "digest"), "{refusal:?}");
        let refusal = catalog.add("a/b", Digest::of(b""), file.path()).await.unwrap_err();
        assert!(matches!(&refusal, Refusal::Field(field) if field.field == "name"), "{refusal:?}");
        assert!(catalog.all().await.unwrap().is_empty());
    }
}

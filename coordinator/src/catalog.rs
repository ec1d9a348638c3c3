//! The catalog: which models the farm has, and what is known about each.

use std::{path::Path, sync::Arc};

use domain::{digest::Digest, layout, pipe::Family};
use futures::TryStreamExt as _;
use proto::v1;
use serde::{Deserialize, Serialize};
use store::{Key, Store};
use weights::{
    builtin::{BUILTIN, Builtin},
    checkpoint::Checkpoint,
    contents::{Contents, Kind},
    detect::{self, DetectError, ModelFacts, detect},
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
    /// What it is.
    pub facts: Facts,
}

/// What a model is.
///
/// In JSON one does not say which of these it is: records that are older than diffusion models do not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Facts {
    /// A part of a diffusion model.
    Diffusion(DiffusionFacts),
    /// A super-resolution network.
    Upscale(ModelFacts),
}

/// What a plan must know of a file of diffusion models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffusionFacts {
    /// The kind of file.
    pub kind: Kind,
    /// The family that it belongs to, where the file tells.
    #[serde(default)]
    pub family: Option<Family>,
    /// The channels that its UNet takes.
    #[serde(default)]
    pub in_channels: Option<u32>,
    /// Whether it holds an autoencoder.
    #[serde(default)]
    pub has_vae: bool,
    /// Whether it holds text encoders.
    #[serde(default)]
    pub has_text_encoders: bool,
    /// What its tensors take in the file, in bytes.
    #[serde(default)]
    pub tensor_bytes: u64,
    /// How many numbers its tensors hold.
    #[serde(default)]
    pub parameters: u64,
    /// The widths of an embedding's vectors.
    #[serde(default)]
    pub widths: Vec<u32>,
}

impl DiffusionFacts {
    /// Reads them out of a file; `None` where it holds nothing of a diffusion model. The error says why it is not taken.
    fn of(checkpoint: &Checkpoint) -> Result<Option<Self>, String> {
        let Some(contents) = Contents::of(checkpoint).map_err(|error| chain(&error))? else { return Ok(None) };
        let family = match contents.family {
            None => None,
            Some(family) => Some(family_of(family).ok_or_else(|| {
                format!("the {} is of the family {family}, with which no job redraws pictures", contents.kind)
            })?),
        };
        match contents.kind {
            Kind::Checkpoint | Kind::Vae | Kind::Lora | Kind::ControlNet | Kind::Embedding => {}
            kind @ (Kind::Unet | Kind::TextEncoder | Kind::MotionModule | Kind::MotionLora) => {
                return Err(format!(
                    "this is a {kind} by itself, which no job uses: a checkpoint with all its parts, a VAE, a LoRA, a \
                     ControlNet or an embedding is wanted"
                ));
            }
        }
        let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let tensors = || checkpoint.tensors().values();
        Ok(Some(Self {
            kind: contents.kind,
            family,
            in_channels: contents.in_channels.map(narrow),
            has_vae: contents.has_vae,
            has_text_encoders: contents.has_text_encoders,
            tensor_bytes: tensors().map(|info| info.elements() as u64 * info.dtype.bytes() as u64).sum(),
            parameters: tensors().map(|info| info.elements() as u64).sum(),
            widths: contents.widths.into_iter().map(narrow).collect(),
        }))
    }
}

/// The family as jobs know it; `None` where none works with it.
fn family_of(family: detect::diffusion::Family) -> Option<Family> {
    use detect::diffusion::Family as Found;
    match family {
        Found::Sd1 => Some(Family::Sd1),
        Found::Sd2 => Some(Family::Sd2),
        Found::Sdxl => Some(Family::Sdxl),
        Found::SdxlRefiner => Some(Family::SdxlRefiner),
        Found::Sd2Unclip => None,
    }
}

impl Facts {
    /// Reads what the weights file at `path` holds.
    fn read(path: &Path) -> Result<Self, String> {
        let checkpoint = Checkpoint::open(path).map_err(|error| chain(&error))?;
        match detect(&checkpoint) {
            Ok(network) => Ok(Self::Upscale(network.facts)),
            Err(error @ DetectError::Unknown { .. }) => {
                DiffusionFacts::of(&checkpoint)?.map(Self::Diffusion).ok_or_else(|| chain(&error))
            }
            Err(error) => Err(chain(&error)),
        }
    }

    /// The kind of file, as the contract names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Diffusion(facts) => facts.kind.id(),
            Self::Upscale(_) => "upscale_model",
        }
    }
}

impl ModelRecord {
    /// The model as the public service shows it.
    pub fn to_wire(&self) -> v1::Model {
        let Self { name, digest, size_bytes, builtin, facts } = self;
        let model = v1::Model {
            name: name.clone(),
            digest: digest.to_string(),
            size_bytes: *size_bytes,
            builtin: *builtin,
            kind: facts.kind().to_owned(),
            ..v1::Model::default()
        };
        match facts {
            Facts::Diffusion(facts) => v1::Model {
                architecture: facts.kind.to_string(),
                family: facts.family.map_or("", Family::name).to_owned(),
                parameters: facts.parameters,
                ..model
            },
            Facts::Upscale(facts) => v1::Model {
                architecture: facts.architecture.clone(),
                scale: facts.scale,
                input_channels: facts.input_channels,
                output_channels: facts.output_channels,
                parameters: facts.parameters,
                tags: facts.tags.clone(),
                ..model
            },
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
                let facts = Facts::Upscale(facts);
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
        let inspected = tokio::task::spawn_blocking(move || Facts::read(&read)).await;
        let facts = inspected
            .map_err(|error| Refusal::Internal {
                what: format!("the reader of model `{name}` stopped"),
                source: error.into(),
            })?
            .map_err(|why| Refusal::field("digest", why))?;
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
        let Facts::Upscale(facts) = &first.facts else { panic!("{first:?}") };
        assert!(first.builtin && facts.scale >= 2);
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

    /// Adds a synthetic file to an empty catalog.
    async fn add(model: weights::synthetic::diffusion::Model) -> Result<ModelRecord, Refusal> {
        use weights::{checkpoint::Float, synthetic::diffusion::Size};
        let catalog = Catalog::new(Arc::new(store::MemoryStore::new()));
        let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
        model.save(Size::Tiny, Float::F32, file.path()).unwrap();
        let digest = Digest::of(&std::fs::read(file.path()).unwrap());
        catalog.add("m", digest, file.path()).await?;
        Ok(catalog.find("m").await?.expect("it was added"))
    }

    #[tokio::test]
    async fn a_checkpoint_tells_its_family_and_its_parts() {
        let record = add(weights::synthetic::diffusion::Model::Sd1).await.unwrap();
        let Facts::Diffusion(facts) = &record.facts else { panic!("{record:?}") };
        assert_eq!((facts.kind, facts.family, facts.in_channels), (Kind::Checkpoint, Some(Family::Sd1), Some(4)));
        assert!(facts.has_vae && facts.has_text_encoders && facts.tensor_bytes >= 4 * facts.parameters / 2);
        let wire = record.to_wire();
        assert_eq!((wire.kind.as_str(), wire.family.as_str(), wire.scale), ("checkpoint", "sd1", 0));
    }

    #[test]
    fn records_from_before_diffusion_models_are_still_read() {
        let old = r#"{"name":"m","digest":"0000000000000000000000000000000000000000000000000000000000000000",
            "size_bytes":1,"builtin":false,"facts":{"architecture":"Compact","scale":2,"input_channels":3,
            "output_channels":3,"size_requirements":{"minimum":0,"multiple_of":1,"square":false},"parameters":1,
            "tags":["64nf"],"hyperparameters":{"num_feat":64}}}"#;
        let record: ModelRecord = serde_json::from_str(old).unwrap();
        assert_eq!((record.to_wire().kind.as_str(), record.to_wire().scale), ("upscale_model", 2));
        let again: ModelRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!(again.facts, record.facts);
    }
}

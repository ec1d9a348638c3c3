//! A model: a network with the autoencoder and the text encoders that belong to it, from whatever files they come.

use std::{fmt, sync::Arc};

use weights::{
    checkpoint::Checkpoint,
    detect::{
        DetectError,
        diffusion::{Family, Purpose, Training, network, vae},
    },
};

use super::{
    schedule::{ModelSampling, Prediction, ScheduleError},
    text::{TextEncoder, TextModel, embedding::Folder, error::TextError},
    unet::Unet,
    vae::Vae,
};
use crate::{error::ModelError, ops::Backend};

/// Why files make up no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Neither a checkpoint nor a network was given.
    #[error("there is no network: give a checkpoint, or the file of a UNet")]
    NoNetwork,
    /// A part cannot be loaded.
    #[error("cannot load the {part} from {file}")]
    Part {
        /// The part: `network`, `VAE`.
        part: &'static str,
        /// The file, as it was called.
        file: String,
        /// Why.
        source: ModelError,
    },
    /// A file lacks the part for which it was given.
    #[error("{file} holds no {part}")]
    Lacks {
        /// The part: `VAE`.
        part: &'static str,
        /// The file, as it was called.
        file: String,
    },
    /// The text encoders cannot be loaded.
    #[error("cannot load the text encoders from {files}")]
    Text {
        /// The files, as they were called.
        files: String,
        /// Why.
        source: TextError,
    },
    /// The text encoders are of another family than the network.
    #[error("the network is one of {family}, but the text encoders are those of {found:?}")]
    TextFamily {
        /// The family of the network.
        family: Family,
        /// Whose encoders they are.
        found: TextModel,
    },
    /// The noise levels that the checkpoint is marked with make no sense.
    #[error("cannot tell the noise levels that the network was trained on")]
    Levels(#[from] ScheduleError),
    /// The network was trained in a way that is not supported.
    #[error("the network is marked as trained for {training}, which is not supported")]
    Training {
        /// What it was trained for.
        training: Training,
    },
}

/// What functions of this module return.
pub type Result<T> = std::result::Result<T, LoadError>;

/// A weights file with the name by which messages call it.
#[derive(Debug, Clone)]
pub struct File {
    /// The name: a path, or what a job calls it.
    pub name: String,
    /// What it holds.
    pub checkpoint: Checkpoint,
}

impl File {
    /// Calls a file by a name.
    pub fn new(name: impl Into<String>, checkpoint: Checkpoint) -> Self {
        Self { name: name.into(), checkpoint }
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.name)
    }
}

/// The files that a model is made of. What has a file of its own is not looked for in the checkpoint.
#[derive(Debug, Clone, Default)]
pub struct ModelFiles {
    /// A whole model: a single file, or a folder of diffusers.
    pub checkpoint: Option<File>,
    /// A network by itself.
    pub unet: Option<File>,
    /// An autoencoder by itself.
    pub vae: Option<File>,
    /// Text encoders by themselves, in any order.
    pub clip: Vec<File>,
    /// Where `embedding:NAME` in a prompt is looked up.
    pub embeddings: Option<Folder>,
}

impl ModelFiles {
    /// A model that is all in one file, or in one folder of diffusers.
    pub fn single(checkpoint: File) -> Self {
        Self { checkpoint: Some(checkpoint), ..Self::default() }
    }
}

/// A loaded model. Its parts are shared, and any number of threads may use them.
#[derive(Debug, Clone)]
pub struct Model {
    /// Which models it goes with.
    pub family: Family,
    /// What its network takes beside the noised latent.
    pub purpose: Purpose,
    /// The network.
    pub unet: Arc<Unet>,
    /// How the network sees noise levels.
    pub sampling: Arc<ModelSampling>,
    /// By what a latent of the autoencoder is multiplied before the network sees it.
    pub latent_scale: f64,
    /// The text encoders, if a file holds them.
    pub text: Option<Arc<TextEncoder>>,
    /// The autoencoder, if a file holds it.
    pub vae: Option<Arc<Vae>>,
    /// Where `embedding:NAME` in a prompt is looked up.
    pub embeddings: Option<Folder>,
    /// Who computes, and with which numbers.
    pub backend: Backend,
}

impl Model {
    /// Loads a model to where `backend` computes.
    ///
    /// # Errors
    /// If a file lacks what it was given for, a tensor is missing, misshapen or holds a value that is no number, or the files do
    /// not go together.
    pub fn load(files: &ModelFiles, backend: &Backend) -> Result<Self> {
        let file = files.unet.as_ref().or(files.checkpoint.as_ref()).ok_or(LoadError::NoNetwork)?;
        let failed = |source: ModelError| LoadError::Part { part: "network", file: file.to_string(), source };
        let network = network(&file.checkpoint);
        let unet = Unet::load(&network, backend).map_err(failed)?;
        let family = Family::of(unet.layout()).map_err(|error: DetectError| failed(error.into()))?;
        let training = Training::of(family, &network, &file.checkpoint).map_err(|error| failed(error.into()))?;
        let text = load_text(files, backend)?;
        if let Some(found) = text.as_ref().map(TextEncoder::model).filter(|found| *found != text_model(family)) {
            return Err(LoadError::TextFamily { family, found });
        }
        Ok(Self {
            family,
            purpose: Purpose::of(unet.layout()),
            sampling: Arc::new(sampling(training)?),
            latent_scale: family.latent_scale(),
            text: text.map(Arc::new),
            vae: load_vae(files, backend)?.map(Arc::new),
            embeddings: files.embeddings.clone(),
            backend: backend.clone(),
            unet: Arc::new(unet),
        })
    }
}

/// Whose text encoders a family has.
fn text_model(family: Family) -> TextModel {
    match family {
        Family::Sd1 => TextModel::Sd1,
        Family::Sd2 | Family::Sd2Unclip => TextModel::Sd2,
        Family::Sdxl => TextModel::Sdxl,
        Family::SdxlRefiner => TextModel::Refiner,
    }
}

fn sampling(training: Training) -> Result<ModelSampling> {
    Ok(match training {
        Training::Epsilon => ModelSampling::discrete(Prediction::Epsilon, false),
        Training::Velocity { zero_terminal_snr } => ModelSampling::discrete(Prediction::Velocity, zero_terminal_snr),
        Training::ContinuousVelocity { sigma_min, sigma_max } => {
            ModelSampling::continuous(Prediction::Velocity, sigma_min, sigma_max)?
        }
        Training::Edm => return Err(LoadError::Training { training }),
    })
}

/// Loads the autoencoder of a file of its own, which must have one, or of the checkpoint, which may.
fn load_vae(files: &ModelFiles, backend: &Backend) -> Result<Option<Vae>> {
    let (file, is_wanted) = match (&files.vae, &files.checkpoint) {
        (Some(file), _) => (file, true),
        (None, Some(file)) => (file, false),
        (None, None) => return Ok(None),
    };
    let Some(part) = vae(&file.checkpoint) else {
        let lacks = LoadError::Lacks { part: "VAE", file: file.to_string() };
        return if is_wanted { Err(lacks) } else { Ok(None) };
    };
    let failed = |source| LoadError::Part { part: "VAE", file: file.to_string(), source };
    Vae::load(&part, backend).map(Some).map_err(failed)
}

/// Loads the text encoders of files of their own, which must have some, or of the checkpoint, which may.
fn load_text(files: &ModelFiles, backend: &Backend) -> Result<Option<TextEncoder>> {
    let from: Vec<&File> = match files.clip.is_empty() {
        true => files.checkpoint.iter().collect(),
        false => files.clip.iter().collect(),
    };
    let checkpoints: Vec<_> = from.iter().map(|file| &file.checkpoint).collect();
    match TextEncoder::load(&checkpoints, backend) {
        Ok(text) => Ok(Some(text)),
        Err(TextError::Encoders { found }) if found.is_empty() && files.clip.is_empty() => Ok(None),
        Err(source) => {
            let names: Vec<_> = from.iter().map(ToString::to_string).collect();
            Err(LoadError::Text { files: names.join(" and "), source })
        }
    }
}

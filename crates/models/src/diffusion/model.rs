//! A model: a network with the autoencoder and the text encoders that belong to it, from whatever files they come.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use weights::{
    checkpoint::Checkpoint,
    detect::diffusion::{Family, Purpose, Training, Unet as UnetLayout, network, vae},
    lora::targets::{Part, Targets},
};

pub use super::file::File;
use super::{
    guidance,
    lora::{LoraError, LoraFile, Patches, Unused},
    schedule::{ModelSampling, Prediction, ScheduleError},
    text::{Clip, TextEncoder, TextModel, embedding::Folder, error::TextError},
    unet::Unet,
    vae::Vae,
};
use crate::{
    error::ModelError,
    layers::{Layers, Patch},
    ops::Backend,
};

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
    /// A LoRA cannot be applied.
    #[error(transparent)]
    Lora(#[from] LoraError),
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
    /// What changes the weights of the network and of the text encoders, one after the other.
    pub loras: Vec<LoraFile>,
    /// Where `embedding:NAME` in a prompt is looked up.
    pub embeddings: Option<Folder>,
}

impl ModelFiles {
    /// A model that is all in one file, or in one folder of diffusers.
    pub fn single(checkpoint: File) -> Self {
        Self { checkpoint: Some(checkpoint), ..Self::default() }
    }

    /// Finds the network, and tells what it is.
    fn network(&self) -> Result<Found<'_>> {
        let file = self.unet.as_ref().or(self.checkpoint.as_ref()).ok_or(LoadError::NoNetwork)?;
        let checkpoint = network(&file.checkpoint);
        let detected = UnetLayout::infer(&checkpoint.shapes(), checkpoint.metadata())
            .and_then(|layout| Ok((Family::of(&layout)?, layout)));
        match detected {
            Ok((family, layout)) => Ok(Found { file, checkpoint, layout, family }),
            Err(error) => Err(LoadError::Part { part: "network", file: file.to_string(), source: error.into() }),
        }
    }
}

/// The network among files.
struct Found<'a> {
    file: &'a File,
    /// Its tensors, without a prefix.
    checkpoint: Checkpoint,
    layout: UnetLayout,
    family: Family,
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
    /// Tensors of LoRAs that change nothing.
    pub unused: Vec<Unused>,
    is_changed: bool,
}

impl Model {
    /// Loads a model to where `backend` computes.
    ///
    /// # Errors
    /// If a file lacks what it was given for, a tensor is missing, misshapen or holds a value that is no number, or the files do
    /// not go together.
    pub fn load(files: &ModelFiles, backend: &Backend) -> Result<Self> {
        Self::load_beside(files, backend, None)
    }

    /// Loads a weight of the network as LoRAs leave it, f32 in the memory of the CPU, by its name without a prefix.
    ///
    /// # Errors
    /// As [`Self::load`], of this weight alone.
    pub fn weight(files: &ModelFiles, tensor: &str) -> Result<Tensor> {
        let Found { file, checkpoint: network, layout, family } = files.network()?;
        let patches = Patches::new(&files.loras, &Targets::of(&layout, &TextFiles::of(files).parts()?), family)?;
        let of_unet = patches.of(Part::Unet);
        let backend = Backend::Candle(Device::Cpu, DType::F32);
        let layers = Layers { patches: Some(&of_unet), ..Layers::new(&network, &backend) };
        let failed = |source| LoadError::Part { part: "network", file: file.to_string(), source };
        layers.numbers(tensor).map_err(failed)
    }

    /// Loads the model with other LoRAs: those of `files`, which else must be the files that this one was loaded from.
    ///
    /// What they do not change is shared with this model if it has none itself; the rest is read anew.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn with_loras(&self, files: &ModelFiles) -> Result<Self> {
        Self::load_beside(files, &self.backend, Some(self).filter(|model| !model.is_changed))
    }

    fn load_beside(files: &ModelFiles, backend: &Backend, plain: Option<&Self>) -> Result<Self> {
        let Found { file, checkpoint: network, layout, family } = files.network()?;
        let failed = |source: ModelError| LoadError::Part { part: "network", file: file.to_string(), source };
        let training = Training::of(family, &network, &file.checkpoint).map_err(|error| failed(error.into()))?;
        let encoders = TextFiles::of(files);
        let patches = Patches::new(&files.loras, &Targets::of(&layout, &encoders.parts()?), family)?;
        let unet = match plain.filter(|_| !patches.change(&[Part::Unet])) {
            Some(plain) => plain.unet.clone(),
            None => {
                let of_unet = patches.of(Part::Unet);
                let layers = Layers { patches: Some(&of_unet), ..Layers::new(&network, backend) };
                Arc::new(Unet::load_layers(&layers).map_err(failed)?)
            }
        };
        let text = match plain.filter(|_| !patches.change(&[Part::ClipL, Part::ClipG, Part::ClipH])) {
            Some(plain) => plain.text.clone(),
            None => encoders.load(backend, &patches)?.map(Arc::new),
        };
        if let Some(found) = text.as_ref().map(|text| text.model()).filter(|found| *found != text_model(family)) {
            return Err(LoadError::TextFamily { family, found });
        }
        let vae = match plain {
            Some(plain) => plain.vae.clone(),
            None => load_vae(files, backend)?.map(Arc::new),
        };
        Ok(Self {
            family,
            purpose: Purpose::of(unet.layout()),
            sampling: Arc::new(sampling(training)?),
            latent_scale: family.latent_scale(),
            text,
            vae,
            embeddings: files.embeddings.clone(),
            backend: backend.clone(),
            unused: patches.unused,
            is_changed: !files.loras.is_empty(),
            unet,
        })
    }
}

impl Model {
    /// What sampling takes of it.
    pub fn network(&self) -> guidance::Network<'_> {
        guidance::Network { unet: &self.unet, sampling: &self.sampling, latent_scale: self.latent_scale, seat: None }
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

/// The files in which text encoders are looked for: files of their own, which must have some, or the checkpoint, which may.
struct TextFiles<'a> {
    files: Vec<&'a File>,
    checkpoints: Vec<&'a Checkpoint>,
    are_needed: bool,
}

impl<'a> TextFiles<'a> {
    fn of(files: &'a ModelFiles) -> Self {
        let are_needed = !files.clip.is_empty();
        let files: Vec<&File> =
            if are_needed { files.clip.iter().collect() } else { files.checkpoint.iter().collect() };
        Self { checkpoints: files.iter().map(|file| &file.checkpoint).collect(), files, are_needed }
    }

    fn failed(&self, source: TextError) -> LoadError {
        let names: Vec<_> = self.files.iter().map(ToString::to_string).collect();
        LoadError::Text { files: names.join(" and "), source }
    }

    /// The encoders, each with how many layers it has.
    fn parts(&self) -> Result<Vec<(Part, usize)>> {
        let layers = TextEncoder::layers(&self.checkpoints).map_err(|source| self.failed(source))?;
        Ok(layers.into_iter().map(|(clip, layers)| (part(clip), layers)).collect())
    }

    fn load(&self, backend: &Backend, patches: &Patches<'_>) -> Result<Option<TextEncoder>> {
        let of = [Clip::L, Clip::G, Clip::H].map(|clip| (clip, patches.of(part(clip))));
        let of_clip = |clip| of.iter().find(|(of, _)| *of == clip).map(|(_, patches)| patches as &dyn Patch);
        match TextEncoder::load_patched(&self.checkpoints, backend, of_clip) {
            Ok(text) => Ok(Some(text)),
            Err(TextError::Encoders { found }) if found.is_empty() && !self.are_needed => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }
}

fn part(clip: Clip) -> Part {
    match clip {
        Clip::L => Part::ClipL,
        Clip::G => Part::ClipG,
        Clip::H => Part::ClipH,
    }
}

//! Pipes ready to redraw with: networks loaded, prompts encoded.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use domain::{
    digest::Digest,
    pipe::{Area, BasicPipe, Conditioning, ConditioningMask, ControlNet, Lora},
    region::{Region, Size},
    segs::Prompts,
    working::LATENT_PIXELS,
};
use imaging::{
    frames::Frames,
    mask::{Mask, condition_mask_region},
};
use models::{
    diffusion::{
        conditioning::{self, Conditioning as Encoded},
        controlnet,
        generate::Pixels,
        lora::LoraFile,
        model::{File, Model, ModelFiles},
        redraw::{ControlPart, Pipe},
        text::{
            Clip, Options,
            embedding::{Embedding, Embeddings},
            error::Result as TextResult,
        },
        vae::Vae,
    },
    error::ModelError,
    processor::Precision,
};
use weights::{checkpoint::Checkpoint, detect::diffusion::vae};

use super::{
    Inputs,
    device::{DeviceEngine, Key},
    redraw::DetailError,
};

/// About how many bytes an encoded prompt takes.
const PROMPT_BYTES: u64 = 1 << 20;

/// The part of a picture that is redrawn, for masks of the whole picture.
#[derive(Debug, Clone, Copy)]
pub struct Crop {
    /// The part.
    pub region: Region,
    /// The picture's size.
    pub picture: Size,
    /// Swaps the factors of masks of another shape than the picture, as the reference does (Q2).
    pub reference_quirks: bool,
}

impl Crop {
    /// The part of a mask of the whole picture, of any size, that lies on the crop. Where that is less than a pixel, there is no
    /// part, and 0 everywhere is what is left of it.
    pub fn of(&self, mask: &Mask) -> Mask {
        let region = condition_mask_region(&self.region.into(), self.picture, mask.size(), self.reference_quirks);
        match region.size().pixels() {
            0 => Mask::zeros(Size::new(1, 1)),
            _ => mask.crop(&region.into()),
        }
    }
}

/// Frames as plain pixels.
pub fn pixels(frames: &Frames) -> Pixels {
    Pixels { frames: frames.frames, height: frames.height, width: frames.width, values: frames.data.clone() }
}

/// Masks as plain numbers.
pub fn mask_pixels(mask: &Mask) -> Pixels {
    Pixels { frames: mask.frames, height: mask.height, width: mask.width, values: mask.data.clone() }
}

impl Inputs {
    fn file(&self, digest: Digest) -> Result<&PathBuf, DetailError> {
        self.files.get(&digest).ok_or(DetailError::NotFetched { digest })
    }

    fn open(&self, digest: Digest) -> Result<Checkpoint, DetailError> {
        Checkpoint::open(self.file(digest)?).map_err(|source| DetailError::Weights { model: digest, source })
    }

    /// A weights file as messages call it.
    fn named(&self, digest: Digest) -> Result<File, DetailError> {
        Ok(File::new(digest.short(), self.open(digest)?))
    }

    /// What the networks of a pipe are loaded from, but for control nets.
    fn model_files(&self, pipe: &BasicPipe) -> Result<ModelFiles, DetailError> {
        let lora = |Lora { weights, strength_model, strength_clip }: &Lora| {
            let (file, strength_model, strength_clip) = (self.named(weights.digest)?, *strength_model, *strength_clip);
            Ok::<_, DetailError>(LoraFile { file, strength_model, strength_clip })
        };
        Ok(ModelFiles {
            vae: pipe.vae.as_ref().map(|vae| self.named(vae.digest)).transpose()?,
            loras: pipe.loras.iter().map(lora).collect::<Result<_, _>>()?,
            ..ModelFiles::single(self.named(pipe.checkpoint.weights.digest)?)
        })
    }

    /// The mask of this digest.
    pub(super) fn mask(&self, digest: Digest) -> Result<&Mask, DetailError> {
        self.masks.get(&digest).ok_or(DetailError::NotFetched { digest })
    }

    /// The picture of this digest.
    pub(super) fn picture(&self, digest: Digest) -> Result<&Frames, DetailError> {
        self.pictures.get(&digest).ok_or(DetailError::NotFetched { digest })
    }

    fn size_of(&self, digests: &[Digest]) -> Result<u64, DetailError> {
        digests.iter().try_fold(0, |sum: u64, &digest| {
            let unreadable = |error: std::io::Error| DetailError::Weights { model: digest, source: error.into() };
            Ok(sum.saturating_add(std::fs::metadata(self.file(digest)?).map_err(unreadable)?.len()))
        })
    }
}

/// The files that a pipe's networks are made of, but for control nets.
fn files(pipe: &BasicPipe) -> Vec<Digest> {
    let vae = pipe.vae.as_ref().map(|vae| vae.digest);
    std::iter::once(pipe.checkpoint.weights.digest)
        .chain(vae)
        .chain(pipe.loras.iter().map(|l| l.weights.digest))
        .collect()
}

impl DeviceEngine {
    /// The model of a pipe.
    pub(super) fn model(
        &self,
        precision: Precision,
        pipe: &BasicPipe,
        inputs: &Inputs,
    ) -> Result<Arc<Model>, DetailError> {
        let plain_pipe = BasicPipe { loras: Vec::new(), ..pipe.clone() };
        let key = Key { files: files(&plain_pipe), recipe: None, precision };
        let plain = self.loaded.get_or_make(&key, || {
            let model = Model::load(&inputs.model_files(&plain_pipe)?, &self.processor.backend(precision))?;
            Ok::<_, DetailError>((model, inputs.size_of(&key.files)?))
        })?;
        if pipe.loras.is_empty() {
            return Ok(plain);
        }
        let strengths: Vec<_> = pipe.loras.iter().map(|lora| (lora.strength_model, lora.strength_clip)).collect();
        let key = Key { files: files(pipe), recipe: Some(Digest::of_json(&strengths)), precision };
        self.loaded.get_or_make(&key, || {
            let model = plain.with_loras(&inputs.model_files(pipe)?)?;
            // What they do not change is shared with the plain one; who knows how little that is.
            Ok((model, inputs.size_of(&key.files)?))
        })
    }

    /// The VAE that a file holds, by itself or in a checkpoint.
    pub(super) fn vae(&self, precision: Precision, model: Digest, inputs: &Inputs) -> Result<Arc<Vae>, DetailError> {
        let key = Key { files: vec![model], recipe: None, precision };
        self.loaded.get_or_make(&key, || {
            let part = vae(&inputs.open(model)?).ok_or(DetailError::Lacks { part: "VAE" })?;
            let size_bytes = part.tensors().values().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
            let loaded = Vae::load(&part, &self.processor.backend(precision))?;
            Ok::<_, DetailError>((loaded, self.processor.number_bytes(precision).saturating_mul(size_bytes)))
        })
    }

    /// A pipe whose prompts hold in the whole picture, or, given a crop, in that part of it; `prompts` take the place of its own.
    pub(super) fn pipe(
        &self,
        precision: Precision,
        pipe: &BasicPipe,
        prompts: &Prompts,
        crop: Option<Crop>,
        inputs: &Inputs,
        watch: &dyn models::watch::Watch,
    ) -> Result<Pipe, DetailError> {
        let model = self.model(precision, pipe, inputs)?;
        let own = |text: &Option<String>| text.as_ref().map(|text| vec![Conditioning::everywhere(text)]);
        let side = |own: Option<Vec<Conditioning>>, all: &[Conditioning]| {
            let prompts = own.as_deref().unwrap_or(all);
            let encoded =
                prompts.iter().map(|prompt| self.prompt(&model, precision, pipe, prompt, crop, inputs, watch));
            encoded.collect::<Result<Vec<_>, _>>()
        };
        let positive = side(own(&prompts.positive), &pipe.positive)?;
        let negative = side(own(&prompts.negative), &pipe.negative)?;
        Ok(Pipe { model, positive, negative })
    }

    #[allow(clippy::too_many_arguments)] // a prompt, and all that it depends on
    fn prompt(
        &self,
        model: &Arc<Model>,
        precision: Precision,
        pipe: &BasicPipe,
        prompt: &Conditioning,
        crop: Option<Crop>,
        inputs: &Inputs,
        watch: &dyn models::watch::Watch,
    ) -> Result<Encoded, DetailError> {
        let recipe = (files(pipe), &pipe.loras, &pipe.embeddings, pipe.stop_at_clip_layer, &prompt.text);
        let key = (Digest::of_json(&recipe), precision);
        let encoded = self.prompts.get_or_make(&key, || {
            let text = model.text.as_deref().ok_or(DetailError::Lacks { part: "text encoder" })?;
            let open = |weights: &domain::pipe::Weights| Ok((weights.name.clone(), inputs.open(weights.digest)?));
            let named = Named(pipe.embeddings.iter().map(open).collect::<Result<_, DetailError>>()?);
            let options = Options { stop_at_clip_layer: pipe.stop_at_clip_layer, embeddings: Some(&named), watch };
            let encoded = text.encode(&prompt.text, &options)?;
            for warning in &encoded.warnings {
                tracing::warn!(%warning, "a part of a prompt was left out");
            }
            Ok::<_, DetailError>((Encoded::new(encoded.cond, Some(encoded.pooled)), PROMPT_BYTES))
        })?;
        let mut encoded =
            Encoded { strength: prompt.strength, area: prompt.area.as_ref().map(area), ..(*encoded).clone() };
        if let Some(ConditioningMask { mask, strength, set_area_to_bounds }) = &prompt.mask {
            let whole = inputs.mask(mask.digest)?;
            let mask = crop.map(|crop| crop.of(whole));
            encoded =
                encoded.with_mask(&mask_pixels(mask.as_ref().unwrap_or(whole)), *strength, *set_area_to_bounds)?;
        }
        Ok(encoded)
    }

    /// Control nets with the pictures that they see.
    pub(super) fn controls(
        &self,
        precision: Precision,
        nets: &[ControlNet],
        pipe: &BasicPipe,
        inputs: &Inputs,
    ) -> Result<Vec<ControlPart>, DetailError> {
        let part = |net: &ControlNet| {
            let digest = net.weights.digest;
            let base = pipe.checkpoint.weights.digest;
            // One that holds no more than a difference is loaded upon the checkpoint.
            let key = Key { files: vec![digest, base], recipe: None, precision };
            let loaded = self.loaded.get_or_make(&key, || {
                let (checkpoint, base) = (inputs.open(digest)?, inputs.open(base)?);
                let backend = self.processor.backend(precision);
                let load = controlnet::ControlNet::load_beside(&checkpoint, Some(&base), &backend);
                let net = load.map_err(|source| DetailError::ControlNet { model: digest, source })?;
                Ok::<_, DetailError>((net, inputs.size_of(&[digest])?))
            })?;
            Ok(ControlPart {
                net: loaded,
                image: net.image.map(|image| inputs.picture(image.digest).map(pixels)).transpose()?,
                strength: net.strength,
                start_percent: net.start_percent,
                end_percent: net.end_percent,
                is_advanced: net.advanced,
            })
        };
        nets.iter().map(part).collect()
    }
}

/// The rectangle of a prompt, in the latent's terms.
fn area(area: &Area) -> conditioning::Area {
    match *area {
        Area::Pixels { width, height, x, y } => {
            let cells = |pixels: u32| (pixels / LATENT_PIXELS) as usize;
            conditioning::Area::Cells { height: cells(height), width: cells(width), y: cells(y), x: cells(x) }
        }
        Area::Percentage { width, height, x, y } => conditioning::Area::Percentage { height, width, y, x },
    }
}

/// Embeddings by the names that prompts call them by.
struct Named(HashMap<String, Checkpoint>);

impl Embeddings for Named {
    fn find(&self, name: &str, clip: Clip) -> TextResult<Option<Arc<Embedding>>> {
        let Some(checkpoint) = self.0.get(name) else { return Ok(None) };
        Embedding::load(name, checkpoint, clip).map(|embedding| Some(Arc::new(embedding)))
    }
}

impl From<ModelError> for DetailError {
    fn from(error: ModelError) -> Self {
        Self::Redraw(error.into())
    }
}

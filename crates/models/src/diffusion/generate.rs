//! A picture made of words, and maybe of another picture: all that lies between plain pixels in and plain pixels out.
//!
//! [`generate`] does what the reference does with a checkpoint, two prompts, a KSampler and a VAE. Whoever needs more than that
//! (areas, several prompts, steps left out) calls the modules below.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{
    conditioning::{Concat, Conditioning, Control},
    controlnet::ControlNet,
    guidance::Prompts,
    model::{File, LoadError, Model, ModelFiles},
    redraw::{hidden_from_inpaint_model, maps, mask_tensor, memory_bytes},
    samplers::{self, SampleError, Sampler},
    sampling::{KSampler, Latent, Task, ksampler},
    schedule::{self, ScheduleError, Scheduler},
    text::{self, error::TextError},
    vae::{Tiling, Vae},
};
use crate::{
    error::{ModelError, Result as ModelResult},
    ops::Backend,
    watch::Watch,
};
use weights::detect::diffusion::Purpose;

/// Pictures of one size, or masks.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// How many there are.
    pub frames: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Values from 0 to 1, [frames, height, width, 3]; of masks [frames, height, width].
    pub values: Vec<f32>,
}

impl Pixels {
    /// The pictures as a tensor, [frames, height, width, 3].
    pub(super) fn picture(&self, name: &'static str) -> ModelResult<Tensor> {
        self.tensor(name, &[self.frames, self.height, self.width, 3])
    }

    pub(super) fn tensor(&self, name: &'static str, shape: &[usize]) -> ModelResult<Tensor> {
        let found = self.values.len();
        if found == 0 || found != shape.iter().product::<usize>() {
            return Err(ModelError::Tensor { name, wanted: shape.to_vec(), found: vec![found] });
        }
        Ok(Tensor::from_vec(self.values.clone(), shape, &Device::Cpu)?)
    }

    pub(super) fn of(picture: &Tensor) -> ModelResult<Self> {
        let (frames, _, height, width) = picture.dims4()?;
        let values = picture.to_device(&Device::Cpu)?.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1::<f32>()?;
        Ok(Self { frames, height, width, values })
    }
}

/// What sampling begins with.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// Noise alone, for a picture of this size. Sides are cut to multiples of 8.
    Noise {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// A picture. Sides are cut, around its middle, to multiples of 8.
    Picture(Pixels),
}

impl Start {
    /// Rows and columns that are asked for.
    pub fn size(&self) -> (usize, usize) {
        match self {
            Self::Noise { height, width } => (*height, *width),
            Self::Picture(picture) => (picture.height, picture.width),
        }
    }
}

/// A control net with the picture that it sees.
#[derive(Debug, Clone)]
pub struct ControlPicture {
    /// The file of the network.
    pub file: File,
    /// Whether it says the same of all places; see [`ControlNet::averaged`].
    pub is_averaged: bool,
    /// The picture.
    pub picture: Pixels,
    /// A factor of what it says.
    pub strength: f64,
    /// The share of the timesteps at which it begins, 0 to 1.
    pub start_percent: f64,
    /// The share of the timesteps at which it ends, 0 to 1.
    pub end_percent: f64,
}

/// What is to be made. Names are those of ComfyUI's nodes.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is wanted.
    pub positive: String,
    /// What is not wanted.
    pub negative: String,
    /// From which layer of the text encoders hidden states are taken, -1 to -24; `None` is the model's own.
    pub stop_at_clip_layer: Option<i32>,
    /// What sampling begins with.
    pub start: Start,
    /// What of a picture may change, [height, width] of its size.
    pub mask: Option<Pixels>,
    /// Networks that steer by pictures. What they say is added up.
    pub controls: Vec<ControlPicture>,
    /// The name of the sampler.
    pub sampler_name: String,
    /// The name of the scheduler.
    pub scheduler: String,
    /// Steps, from 1 on.
    pub steps: usize,
    /// How far predictions are moved from what is not wanted to what is wanted, and beyond.
    pub cfg: f64,
    /// How much of the way from noise to picture is gone, above 0 to 1.
    pub denoise: f64,
    /// From which all noise follows.
    pub seed: u64,
    /// The side of the tiles, in pixels, in which the autoencoder goes over a picture; `None` for all at once.
    pub vae_tile: Option<usize>,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A number of the request is out of its range.
    #[error("{field} is {found}, but must be {wanted}")]
    Field {
        /// The number's name.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// There is a mask but no picture for it.
    #[error("a mask says what of a picture may change, but no picture is given")]
    MaskAlone,
    /// The mask is of another picture.
    #[error("the mask is {}x{}, but the picture is {}x{}", .mask.1, .mask.0, .picture.1, .picture.0)]
    MaskSize {
        /// Rows and columns of the mask.
        mask: (usize, usize),
        /// Rows and columns of the picture.
        picture: (usize, usize),
    },
    /// The sampler, the scheduler or the steps are none.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The files are no model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model lacks a part.
    #[error("the checkpoint holds no {part}: give a file that does")]
    Lacks {
        /// The part.
        part: &'static str,
    },
    /// A control net cannot be loaded.
    #[error("cannot load the control net from {file}")]
    Control {
        /// Its file, as it was called.
        file: String,
        /// Why.
        source: ModelError,
    },
    /// A control net is for networks of another family.
    #[error(
        "the control net of {file} is for text of {found} numbers a token, but the model's has {wanted}: it is one for another family"
    )]
    ControlFamily {
        /// Its file, as it was called.
        file: String,
        /// The numbers that its text has.
        found: usize,
        /// The numbers that the model's text has.
        wanted: usize,
    },
    /// A prompt cannot be encoded.
    #[error("cannot encode the {side} prompt")]
    Text {
        /// Which.
        side: &'static str,
        /// Why.
        source: TextError,
    },
    /// The latent could not be sampled.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// A network cannot be run, or whoever watched asked to stop.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl GenerateError {
    /// Whether whoever watched asked to stop.
    pub fn is_interruption(&self) -> bool {
        let is_stop = |error: &ModelError| matches!(error, ModelError::Interrupted);
        match self {
            Self::Model(error) | Self::Sample(SampleError::Model(error)) => is_stop(error),
            Self::Text { source: TextError::Model(error), .. } => is_stop(error),
            _ => false,
        }
    }

    /// Whether numbers of 16 bits were too short for what was computed, so that those of 32 may do.
    fn is_overflow(&self) -> bool {
        matches!(self, Self::Sample(SampleError::NotFinite { .. }))
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stage {
    /// Weights are read.
    Loading,
    /// Prompts, and the picture if there is one, are encoded.
    Encoding {
        /// The bytes that the largest call is reckoned to take beside the weights.
        memory_bytes: u64,
    },
    /// So many steps are done.
    Sampling {
        /// Steps done.
        done: usize,
        /// Steps in all, as far as that is known before.
        steps: usize,
    },
    /// The latent is decoded.
    Decoding,
    /// A number was none: all begins anew, in f32.
    Retrying,
}

/// A picture, and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// The picture.
    pub picture: Pixels,
    /// The family of the model, for machines.
    pub family: &'static str,
    /// The numbers that were computed with, such as `f32`.
    pub dtype: &'static str,
    /// The bytes that the largest call was reckoned to take beside the weights.
    pub memory_bytes: u64,
    /// What was done in another way than it was asked for, in words.
    pub notes: Vec<String>,
}

/// Makes a picture with the model that `files` make up, on `backend`, and tells `stage` how far it is.
///
/// If a prediction is no number and `backend` computes with 16 bits, all of it is done once more with 32, and a note says so.
///
/// # Errors
/// If the request makes no sense, a file is not what it is given for, `watch` says to stop, or the device fails. A request is refused
/// before a file is read.
pub fn generate(
    files: &ModelFiles,
    backend: &Backend,
    request: &Request,
    watch: &dyn Watch,
    stage: &mut dyn FnMut(Stage),
) -> Result<Made, GenerateError> {
    let checked = request.check()?;
    match checked.generate(files, backend, watch, stage) {
        Err(error) if error.is_overflow() => {
            let Some(exact) = in_f32(backend) else { return Err(error) };
            stage(Stage::Retrying);
            let mut made = checked.generate(files, &exact, watch, stage)?;
            made.notes.push(format!("{error}; it was done again in f32"));
            Ok(made)
        }
        made => made,
    }
}

/// The same device with numbers of 32 bits, if it has shorter ones.
fn in_f32(backend: &Backend) -> Option<Backend> {
    match backend {
        Backend::Candle(device, dtype) if *dtype != DType::F32 => Some(Backend::Candle(device.clone(), DType::F32)),
        Backend::Candle(..) | Backend::Kernels(_) => None,
    }
}

/// A request that makes sense.
struct Checked<'a> {
    request: &'a Request,
    sampler: &'static Sampler,
    scheduler: &'static Scheduler,
}

impl Request {
    fn check(&self) -> Result<Checked<'_>, GenerateError> {
        let field = |field, found: String, wanted| Err(GenerateError::Field { field, found, wanted });
        let sampler = samplers::sampler(&self.sampler_name)?;
        let scheduler = schedule::scheduler(&self.scheduler)?;
        if self.steps == 0 {
            return field("steps", self.steps.to_string(), "at least 1");
        }
        if !(self.denoise > 0.0 && self.denoise <= 1.0) {
            return field("denoise", self.denoise.to_string(), "above 0 and at most 1");
        }
        if !self.cfg.is_finite() {
            return field("cfg", self.cfg.to_string(), "a finite number");
        }
        if let Some(stop) = self.stop_at_clip_layer.filter(|stop| !(-24..=-1).contains(stop)) {
            return field("stop_at_clip_layer", stop.to_string(), "-1 to -24");
        }
        let (height, width) = self.start.size();
        for (name, side) in [("height", height), ("width", width)] {
            if side < 8 {
                return field(name, side.to_string(), "at least 8 pixels");
            }
        }
        match (&self.mask, &self.start) {
            (Some(_), Start::Noise { .. }) => return Err(GenerateError::MaskAlone),
            (Some(mask), Start::Picture(_)) if (mask.height, mask.width) != (height, width) => {
                let mask = (mask.height, mask.width);
                return Err(GenerateError::MaskSize { mask, picture: (height, width) });
            }
            _ => {}
        }
        for ControlPicture { strength, start_percent, end_percent, .. } in &self.controls {
            if !strength.is_finite() {
                return field("the strength of a control net", strength.to_string(), "a finite number");
            }
            let percents = [("the start of a control net", *start_percent), ("the end of a control net", *end_percent)];
            for (name, percent) in percents {
                if !(0.0..=1.0).contains(&percent) {
                    return field(name, percent.to_string(), "0 to 1");
                }
            }
        }
        if let Some(tile) = self.vae_tile.filter(|tile| *tile < 64 || !tile.is_multiple_of(16)) {
            return field("vae_tile", tile.to_string(), "a multiple of 16, at least 64");
        }
        Ok(Checked { request: self, sampler, scheduler })
    }
}

impl Checked<'_> {
    fn generate(
        &self,
        files: &ModelFiles,
        backend: &Backend,
        watch: &dyn Watch,
        stage: &mut dyn FnMut(Stage),
    ) -> Result<Made, GenerateError> {
        let request = self.request;
        stage(Stage::Loading);
        let stopped = || if watch.goes_on(0.0) { Ok(()) } else { Err(ModelError::Interrupted) };
        stopped()?;
        let model = Model::load(files, backend)?;
        let vae = model.vae.as_deref().ok_or(GenerateError::Lacks { part: "VAE" })?;
        let load = |control| load(control, files, &model);
        let controls = request.controls.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let mut notes: Vec<String> = model.unused.iter().map(ToString::to_string).collect();
        stopped()?;

        let nets = controls.iter().map(|control: &Control| &*control.net);
        let encodes = matches!(request.start, Start::Picture(_));
        let memory_bytes = memory_bytes(&model, nets, request.start.size(), encodes, request.vae_tile);
        stage(Stage::Encoding { memory_bytes });
        let mut positive = encode(&model, &request.positive, "positive", request, watch, &mut notes)?;
        let mut negative = encode(&model, &request.negative, "negative", request, watch, &mut notes)?;
        for side in [&mut positive, &mut negative] {
            side.controls = controls.clone();
        }
        let (latent, concat) = self.start(&model, vae, watch, &mut notes)?;
        for side in [&mut positive, &mut negative] {
            side.concat = concat.clone();
        }

        let task = Task {
            network: model.network(),
            prompts: Prompts { positive: &[positive], negative: &[negative], cfg: request.cfg },
            sampler: self.sampler,
            seed: request.seed,
            differential: None,
            watch,
        };
        let settings = KSampler { scheduler: self.scheduler, steps: request.steps, denoise: request.denoise };
        stage(Stage::Sampling { done: 0, steps: request.steps });
        let samples = ksampler(&task, settings, &latent, &mut |step| {
            stage(Stage::Sampling { done: step.index + 1, steps: step.steps });
        })?;

        stage(Stage::Decoding);
        let picture = decode(vae, &samples, request.vae_tile, watch, &mut notes)?;
        Ok(Made {
            picture: Pixels::of(&picture)?,
            family: model.family.id(),
            dtype: backend.dtype_name(),
            memory_bytes,
            notes,
        })
    }

    /// The latent to begin with, and what an inpainting network sees of the picture.
    fn start(
        &self,
        model: &Model,
        vae: &Vae,
        watch: &dyn Watch,
        notes: &mut Vec<String>,
    ) -> Result<(Latent, Option<Concat>), GenerateError> {
        let request = self.request;
        let scale = vae.layout().scale();
        let (height, width) = request.start.size();
        if height % scale + width % scale > 0 {
            let (rows, columns) = (height / scale * scale, width / scale * scale);
            notes.push(format!("{width}x{height} was cut to {columns}x{rows}, sides that are multiples of {scale}"));
        }
        let picture = match &request.start {
            Start::Noise { .. } => {
                let shape = (1, vae.layout().embed_dim, height / scale, width / scale);
                let samples = Tensor::zeros(shape, DType::F32, &Device::Cpu).map_err(ModelError::from)?;
                return Ok((Latent::new(samples), None));
            }
            Start::Picture(picture) => maps(picture)?,
        };
        let Some(mask) = &request.mask else {
            return Ok((Latent::new(encode_picture(vae, &picture, request.vae_tile, watch)?), None));
        };
        let mask = mask_tensor(mask)?;
        if model.purpose == Purpose::Inpaint {
            let (latent, concat) = hidden_from_inpaint_model(vae, &picture, &mask, watch)?;
            return Ok((latent, Some(concat)));
        }
        // The whole mask is brought to the size of the latent, also where the picture was cut, as the reference does.
        let latent = Latent::new(encode_picture(vae, &picture, request.vae_tile, watch)?);
        Ok((Latent { noise_mask: Some(mask), ..latent }, None))
    }
}

/// Loads a control net for a model.
fn load(control: &ControlPicture, files: &ModelFiles, model: &Model) -> Result<Control, GenerateError> {
    let file = control.file.to_string();
    let base = files.unet.as_ref().or(files.checkpoint.as_ref()).map(|file| &file.checkpoint);
    let net = match ControlNet::load_beside(&control.file.checkpoint, base, &model.backend) {
        Ok(net) if control.is_averaged => net.averaged(),
        Ok(net) => net,
        Err(source) => return Err(GenerateError::Control { file, source }),
    };
    let (found, wanted) = (net.layout().unet.context_dim, model.unet.layout().context_dim);
    if found != wanted {
        return Err(GenerateError::ControlFamily { file, found, wanted });
    }
    Ok(Control {
        net: Arc::new(net),
        hint: control.picture.picture("control picture")?,
        strength: control.strength,
        start_percent: control.start_percent,
        end_percent: control.end_percent,
    })
}

fn encode(
    model: &Model,
    prompt: &str,
    side: &'static str,
    request: &Request,
    watch: &dyn Watch,
    notes: &mut Vec<String>,
) -> Result<Conditioning, GenerateError> {
    let text = model.text.as_deref().ok_or(GenerateError::Lacks { part: "text encoder" })?;
    let options = text::Options {
        stop_at_clip_layer: request.stop_at_clip_layer,
        embeddings: model.embeddings.as_ref().map(|folder| folder as _),
        watch,
    };
    let encoded = text.encode(prompt, &options).map_err(|source| GenerateError::Text { side, source })?;
    notes.extend(encoded.warnings.iter().map(|warning| format!("{side} prompt: {warning}")));
    Ok(Conditioning::new(encoded.cond, Some(encoded.pooled)))
}

/// How much tiles of so many pixels overlap: an eighth, in whole numbers of a latent.
fn overlap(tile: usize) -> usize {
    tile / 64 * 8
}

fn encode_picture(vae: &Vae, picture: &Tensor, tile: Option<usize>, watch: &dyn Watch) -> ModelResult<Tensor> {
    let picture = vae.crop(picture)?;
    match tile {
        Some(tile) => vae.encode_tiled(&picture, Tiling::of_encode_node(tile, overlap(tile)), watch),
        None => vae.encode(&picture, watch),
    }
}

/// Decodes; in tiles, if they are wanted or the memory does not suffice for all at once.
fn decode(
    vae: &Vae,
    latents: &Tensor,
    tile: Option<usize>,
    watch: &dyn Watch,
    notes: &mut Vec<String>,
) -> ModelResult<Tensor> {
    if let Some(tile) = tile {
        return vae.decode_tiled(latents, Tiling::of_decode_node(tile, overlap(tile), vae.layout().scale()), watch);
    }
    match vae.decode(latents, watch) {
        Err(ModelError::OutOfMemory(_)) => {
            notes.push("memory did not suffice to decode all at once; it was decoded in tiles".to_owned());
            vae.decode_tiled(latents, Tiling::OF_LATENTS, watch)
        }
        decoded => decoded,
    }
}

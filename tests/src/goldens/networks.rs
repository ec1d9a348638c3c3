//! Upscaling networks: which one a file holds, what it makes of a picture, and tiled scaling.
//!
//! Weights are computed from tensor names, so a case needs no checkpoint: a file is made in memory and opened as a
//! user's would be. An architecture that is known but cannot be run yet is named as not built.

use anyhow::{Context, anyhow};
use candle_core::{DType, Device, Tensor as DeviceTensor};
use imaging::{
    frames::Frames,
    tiled::{Upscaled, tiled_scale as scale_in_tiles, upscale_with_model},
};
use models::{error::ModelError, pad::pad, upscale::Upscaler, watch::Unwatched};
use serde::Deserialize;
use serde_json::{Value, json};
use weights::{
    checkpoint::Checkpoint,
    detect::{DetectError, ModelFacts, SizeRequirements, detect_shapes},
    synthetic::{self, Fill},
};

use super::{
    Answer, Failure, Got,
    cases::{Case, Tensor, Tensors},
    pixels::{channels_first, frames_tensor, from_channels_first, to_frames, to_size},
    segs::read_row,
};

/// Stands for a network: enlarges by nearest and adds a ramp of its own output's coordinates, so that a tile that is
/// wrong in place, order or weight shows at once.
pub struct Probe {
    scale: f64,
    /// Runs out of memory when a side of a tile is longer.
    memory: Option<usize>,
    /// Rows and columns of the tiles it was called with since memory last ran out.
    calls: Vec<[usize; 2]>,
}

const OUT_OF_MEMORY: &str = "out of memory";

fn is_out_of_memory(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(reason) if reason == OUT_OF_MEMORY)
}

impl Probe {
    /// A network that enlarges `scale` times and has all the memory it wants.
    pub fn new(scale: f64) -> Self {
        Self { scale, memory: None, calls: Vec::new() }
    }

    /// Enlarges one tile.
    fn tile(&mut self, tile: &Frames) -> Result<Frames, Failure> {
        let Frames { height, width, channels, .. } = *tile;
        if self.memory.is_some_and(|limit| height.max(width) > limit) {
            self.calls.clear();
            return Err(Failure::Refused(OUT_OF_MEMORY.to_owned()));
        }
        self.calls.push([height, width]);
        let side = |length: usize| (length as f64 * self.scale).round_ties_even() as usize;
        let (to_height, to_width) = (side(height), side(width));
        let mut data = Vec::with_capacity(to_height * to_width * channels);
        for y in 0..to_height {
            for x in 0..to_width {
                let from = (y * height / to_height * width + x * width / to_width) * channels;
                for c in 0..channels {
                    let nearest = 0.5 * tile.data[from + c];
                    data.push(nearest + 0.002 * y as f32 + 0.001 * x as f32 + 0.0625 * c as f32);
                }
            }
        }
        Ok(Frames::new(1, to_size([to_height, to_width]), channels, data)?)
    }

    /// Enlarges a picture as `ImageUpscaleWithModel` does.
    pub fn node(&mut self, picture: &Frames) -> Result<Frames, Failure> {
        Ok(self.upscale(picture)?.frames)
    }

    fn upscale(&mut self, frames: &Frames) -> Result<Upscaled, Failure> {
        upscale_with_model(frames, self.scale, |tile| self.tile(&tile), is_out_of_memory)
    }
}

/// The network whose weights a case describes, on the CPU in f32, or `None` if it has no weights.
fn network(case: &Case, tensors: &Tensors) -> Result<Option<Upscaler>, Failure> {
    let Some(list) = case.get("weights")["tensors"].as_array() else { return Ok(None) };
    let entry = |entry: &Value| {
        let (name, shape, kind): (String, Vec<usize>, String) = serde_json::from_value(entry.clone())?;
        let fill = match kind.as_str() {
            "synthetic" => Fill::Synthetic,
            "1+5*synthetic" => Fill::RunningVariance,
            "structural" => {
                // Small buffers are recorded; the others follow from the architecture, and their values are not read.
                let recorded = tensors.get(&format!("in.structural.{name}")).map(|tensor| tensor.data.clone());
                Fill::Given(recorded.unwrap_or_else(|_| vec![0.0; shape.iter().product()]))
            }
            other => return Err(anyhow!("weights of kind `{other}`")),
        };
        Ok((name, shape, fill))
    };
    let entries = list.iter().map(entry).collect::<anyhow::Result<Vec<_>>>()?;
    let checkpoint = Checkpoint::from_bytes(synthetic::safetensors(&entries)).map_err(ModelError::from)?;
    open(&checkpoint).map(Some)
}

/// The network in a checkpoint, on the CPU in f32.
pub fn open(checkpoint: &Checkpoint) -> Result<Upscaler, Failure> {
    Ok(Upscaler::load(checkpoint, &Device::Cpu, DType::F32)?)
}

/// Enlarges a picture by a network as `ImageUpscaleWithModel` does.
pub fn upscale(network: &Upscaler, picture: &Frames) -> Result<Frames, Failure> {
    let scale = f64::from(network.facts().scale);
    Ok(upscale_with_model(picture, scale, |tile| render(network, &tile), is_out_of_memory)?.frames)
}

/// The picture as the network takes it: `[1, channels, height, width]`.
fn to_device(picture: &Frames) -> Result<DeviceTensor, Failure> {
    let Tensor { shape, data, .. } = channels_first(picture);
    Ok(DeviceTensor::from_vec(data, shape, &Device::Cpu).map_err(ModelError::from)?)
}

/// What the network gave.
fn from_device(tensor: &DeviceTensor) -> Result<Tensor, Failure> {
    let data = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(ModelError::from)?;
    Ok(Tensor::floats(tensor.dims(), data))
}

/// Enlarges one tile by a network, clamped to 0..1.
fn render(network: &Upscaler, tile: &Frames) -> Result<Frames, Failure> {
    Ok(from_channels_first(&from_device(&network.run(&to_device(tile)?, &Unwatched)?)?)?)
}

impl From<DetectError> for Failure {
    fn from(error: DetectError) -> Self {
        match error {
            DetectError::NotSupported { architecture } => Self::NotBuilt(architecture.to_owned()),
            other => Self::Refused(other.to_string()),
        }
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Detect(error) => error.into(),
            refusal @ (ModelError::Input { .. } | ModelError::OutOfMemory(_)) => Self::Refused(refusal.to_string()),
            broken => anyhow!(broken).into(),
        }
    }
}

/// Adds what is known of a network.
fn put_facts(got: Got, facts: &ModelFacts) -> Got {
    got.value("architecture", facts.architecture.clone())
        .value("scale", facts.scale)
        .value("input_channels", facts.input_channels)
        .value("output_channels", facts.output_channels)
        .value("size_requirements", json!(facts.size_requirements))
        .value("hyperparameters", facts.hyperparameters.clone())
        .value("parameters", facts.parameters)
        .value("tags", facts.tags.clone())
}

pub fn sr_detect(case: &Case, _: &Tensors) -> Answer {
    let tensors: Vec<(String, Vec<usize>)> = case.param("tensors")?;
    let network = detect_shapes(&tensors.into_iter().collect())?;
    Ok(put_facts(Got::default(), &network.facts))
}

pub fn sr_model(case: &Case, tensors: &Tensors) -> Answer {
    let network = network(case, tensors)?.context("the case has no weights")?;
    let picture = to_device(&to_frames(case.input(tensors, "image")?)?)?;
    let raw = from_device(&network.forward_raw(&picture, &Unwatched)?)?;
    Ok(put_facts(Got::default().tensor("raw", raw), network.facts()))
}

pub fn size_requirements_row(row: &Value) -> Result<Value, Failure> {
    #[derive(Deserialize)]
    struct Row {
        #[serde(flatten)]
        requirements: SizeRequirements,
        width: usize,
        height: usize,
    }
    let Row { requirements, width, height } = read_row(row)?;
    Ok(json!({"pad_right_bottom": requirements.padding(width, height)}))
}

pub fn size_requirements_pad(case: &Case, tensors: &Tensors) -> Answer {
    #[derive(Deserialize)]
    struct Parameters {
        minimum: u32,
        multiple_of: u32,
    }
    let Parameters { minimum, multiple_of } = read_row(case.get("params"))?;
    let x = case.input(tensors, "x")?;
    let [n, c, height, width] = x.shape[..] else { return Err(anyhow!("`x` has shape {:?}", x.shape).into()) };
    let (right, bottom) = SizeRequirements { minimum, multiple_of, square: false }.padding(width, height);
    let padded = pad(&x.data, width, height, right, bottom);
    Ok(Got::default().tensor("x", Tensor::floats(&[n, c, height + bottom, width + right], padded)))
}

pub fn tiled_scale(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    let (tile, overlap) = (to_size(case.param("tile_hw")?), case.param("overlap")?);
    let scale: f64 = case.param("scale")?;
    if let Some(network) = network(case, tensors)? {
        let out = scale_in_tiles(&picture, tile, overlap, scale, |tile| render(&network, &tile))?;
        return Ok(Got::default().tensor("image", channels_first(&out)));
    }
    let mut probe = Probe::new(scale);
    let out = scale_in_tiles(&picture, tile, overlap, scale, |tile| probe.tile(&tile))?;
    Ok(Got::default()
        .tensor("image", channels_first(&out))
        .value("progress_updates", probe.calls.len())
        .value("tile_sizes_in_call_order_hw", json!(probe.calls)))
}

pub fn image_upscale_with_model(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    if let Some(network) = network(case, tensors)? {
        return Ok(Got::default().tensor("image", frames_tensor(&upscale(&network, &picture)?)));
    }
    let mut probe = Probe::new(case.param("scale")?);
    probe.memory = case.param_if_any("runs_out_of_memory_when_a_tile_side_exceeds")?;
    let Upscaled { frames, tile } = probe.upscale(&picture)?;
    Ok(Got::default()
        .tensor("image", frames_tensor(&frames))
        .value("tile_used", tile)
        .value("model_calls_hw_of_last_try", json!(probe.calls)))
}

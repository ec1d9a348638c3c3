//! The parts that all networks are made of, in candle and as chains of the CPU's kernels.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Conv2d, Conv2dConfig};
use kernels::{
    chain::{Activation, Chain, Conv, Interrupted, MapId, Output, Workspace},
    level::Level,
    picture::Picture,
    precision::Precision,
};
use weights::checkpoint::Checkpoint;

use crate::error::{ModelError, Result};
pub(super) use crate::layers::values;
use crate::watch::Progress;

/// A checkpoint whose tensors are wanted on a device.
pub(super) struct Parts<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) device: &'a Device,
    pub(super) dtype: DType,
}

impl Parts<'_> {
    /// Loads tensor `name`.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        let values = values(self.checkpoint, name)?;
        let shape = self.checkpoint.tensors()[name].shape.as_slice(); // it was just read
        Ok(Tensor::from_vec(values, shape, self.device)?.to_dtype(self.dtype)?)
    }

    /// Loads a 3 x 3 convolution with bias that keeps the size of its input.
    pub(super) fn conv3x3(&self, name: &str) -> Result<Conv2d> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        let bias = self.tensor(&format!("{name}.bias"))?;
        Ok(Conv2d::new(weight, Some(bias), Conv2dConfig { padding: 1, ..Default::default() }))
    }

    /// Loads a 1 x 1 convolution without bias.
    pub(super) fn conv1x1(&self, weight: &str) -> Result<Conv2d> {
        Ok(Conv2d::new(self.tensor(weight)?, None, Conv2dConfig::default()))
    }
}

/// The multiplications of a convolution for each pixel.
pub(super) fn work(conv: &Conv2d) -> f64 {
    conv.weight().elem_count() as f64
}

/// A checkpoint whose convolutions are wanted in chains.
pub(super) struct Links<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) cpu: Cpu,
}

/// How a CPU computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// With which instructions.
    pub level: Level,
    /// How exactly.
    pub precision: Precision,
}

/// What becomes of a convolution's sums in a chain.
pub(super) struct Then {
    pub(super) activation: Activation,
    pub(super) residuals: Vec<(f32, MapId)>,
    pub(super) doubled: bool,
}

impl Then {
    /// Nothing.
    pub(super) fn nothing() -> Self {
        Self { activation: Activation::None, residuals: Vec::new(), doubled: false }
    }

    /// An activation.
    pub(super) fn activation(activation: Activation) -> Self {
        Self { activation, ..Self::nothing() }
    }

    /// Each result is multiplied by the factor and added to the map, in turn.
    pub(super) fn residuals(residuals: impl Into<Vec<(f32, MapId)>>) -> Self {
        Self { residuals: residuals.into(), ..Self::nothing() }
    }

    /// The sides double if `doubled`.
    pub(super) fn doubled(self, doubled: bool) -> Self {
        Self { doubled, ..self }
    }
}

impl Links<'_> {
    /// An empty chain.
    pub(super) fn chain(&self) -> Chain {
        Chain::new(self.cpu.level, self.cpu.precision)
    }

    /// Adds the 3 x 3 convolution `name`, with bias, to a chain.
    pub(super) fn conv3x3(&self, chain: &mut Chain, name: &str, inputs: &[MapId], then: Then) -> Result<MapId> {
        let weight = values(self.checkpoint, &format!("{name}.weight"))?;
        let bias = values(self.checkpoint, &format!("{name}.bias"))?;
        let Then { activation, residuals, doubled } = then;
        Ok(chain.conv(inputs, Conv { weight: &weight, bias: &bias, activation, residuals, doubled }))
    }

    /// Adds the 1 x 1 convolution whose weight is `name`, without bias: the middle of a 3 x 3 one.
    pub(super) fn conv1x1(&self, chain: &mut Chain, name: &str, input: MapId) -> Result<MapId> {
        let outputs = self.checkpoint.tensors()[name].shape[0];
        let middle = |weight: f32| [0.0, 0.0, 0.0, 0.0, weight, 0.0, 0.0, 0.0, 0.0];
        let weight: Vec<f32> = values(self.checkpoint, name)?.into_iter().flat_map(middle).collect();
        let bias = vec![0.0; outputs];
        let Then { activation, residuals, doubled } = Then::nothing();
        Ok(chain.conv(&[input], Conv { weight: &weight, bias: &bias, activation, residuals, doubled }))
    }
}

/// Runs `chain` as a part of what `progress` follows.
pub(super) fn run(
    chain: &Chain,
    given: &[&Picture],
    output: Output<'_>,
    workspace: &mut Workspace,
    progress: &Mutex<Progress<'_>>,
) -> Result<()> {
    let goes_on = |work: f64| progress.lock().unwrap_or_else(PoisonError::into_inner).advance(work).is_ok();
    chain.run(given, output, workspace, &goes_on).map_err(|Interrupted| ModelError::Interrupted)
}

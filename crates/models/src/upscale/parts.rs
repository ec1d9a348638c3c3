//! The parts that all networks are made of.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Conv2d, Conv2dConfig};
use weights::checkpoint::Checkpoint;

use crate::error::{ModelError, Result};

/// A checkpoint whose tensors are wanted on a device.
pub(super) struct Parts<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) device: &'a Device,
    pub(super) dtype: DType,
}

impl Parts<'_> {
    /// Loads tensor `name`.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        let values = self.checkpoint.read_f32(name)?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(ModelError::NotFinite { tensor: name.to_owned() });
        }
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

//! Layers with their weights, as a checkpoint names them: what networks that are no chain are made of.

use candle_core::{DType, Device, Tensor};
use weights::{checkpoint::Checkpoint, detect::diffusion::memory::Engine};

use crate::{
    error::{ModelError, Result},
    ops::{Backend, Conv2d, Function, Linear, Norm, Then},
    processor,
};

/// A checkpoint whose layers are wanted for a backend.
#[derive(Clone, Copy)]
pub(crate) struct Layers<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) backend: &'a Backend,
    /// What changes weights before they are used.
    pub(crate) patches: Option<&'a dyn Patch>,
}

/// Changes weights as they are loaded, one by one, so that there is never a second copy of all.
pub(crate) trait Patch {
    /// Changes the tensor called `name`, f32 in the memory of the CPU, whose shape it keeps.
    fn patched(&self, name: &str, weight: Tensor) -> Result<Tensor>;
}

impl<'a> Layers<'a> {
    /// The layers of a checkpoint as they are.
    pub(crate) fn new(checkpoint: &'a Checkpoint, backend: &'a Backend) -> Self {
        Self { checkpoint, backend, patches: None }
    }

    /// Whether there is a tensor `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.tensors().contains_key(name)
    }

    /// Loads tensor `name` as f32 to the memory of the CPU.
    pub(crate) fn numbers(&self, name: &str) -> Result<Tensor> {
        let weight = tensor(self.checkpoint, name)?;
        match self.patches {
            Some(patches) => patches.patched(name, weight),
            None => Ok(weight),
        }
    }

    /// Loads tensor `name` to where the backend computes.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.backend.take(&self.numbers(name)?)?)
    }

    fn bias(&self, name: &str) -> Result<Option<Tensor>> {
        let name = format!("{name}.bias");
        if self.has(&name) { self.numbers(&name).map(Some) } else { Ok(None) }
    }

    /// Loads the convolution `name`, with bias if it has one, and zeros around so that the size is kept.
    pub(crate) fn conv(&self, name: &str) -> Result<Conv2d> {
        let weight = self.numbers(&format!("{name}.weight"))?;
        let padding = weight.dim(3)? / 2;
        Ok(Conv2d::new(self.backend, &weight, self.bias(name)?.as_ref(), 1, padding)?)
    }

    /// Loads the convolution `name` that takes steps of `stride` pixels, with `padding` zeros around.
    pub(crate) fn strided(&self, name: &str, stride: usize, padding: usize) -> Result<Conv2d> {
        let weight = self.numbers(&format!("{name}.weight"))?;
        Ok(Conv2d::new(self.backend, &weight, self.bias(name)?.as_ref(), stride, padding)?)
    }

    /// Loads the convolution `name` of each channel by itself.
    pub(crate) fn depthwise(&self, name: &str) -> Result<Conv2d> {
        let weight = self.numbers(&format!("{name}.weight"))?;
        Ok(Conv2d::depthwise(self.backend, &weight, self.bias(name)?.as_ref())?)
    }

    /// Loads the linear layer `name`, with bias if it has one. A 1 x 1 convolution is one, too.
    pub(crate) fn linear(&self, name: &str) -> Result<Linear> {
        let weight = self.numbers(&format!("{name}.weight"))?;
        let weight = weight.reshape((weight.dim(0)?, ()))?;
        Ok(Linear::new(self.backend, &weight, self.bias(name)?.as_ref())?)
    }

    /// Loads the linear layer `name`, of whose outputs the second half gates the first (GEGLU).
    pub(crate) fn geglu(&self, name: &str) -> Result<Linear> {
        let weight = self.numbers(&format!("{name}.weight"))?;
        Ok(Linear::geglu(self.backend, &weight, self.bias(name)?.as_ref())?)
    }

    /// Loads the norm `name`.
    pub(crate) fn norm(&self, name: &str, eps: f64) -> Result<Norm> {
        let [weight, bias] = ["weight", "bias"].map(|part| self.tensor(&format!("{name}.{part}")));
        Ok(Norm::new(weight?, bias?, eps)?)
    }
}

impl Backend {
    /// The name of the numbers that this multiplies, such as `f32`.
    pub fn dtype_name(&self) -> &'static str {
        match self {
            Self::Kernels(cpu) => processor::dtype(cpu.precision).as_str(),
            Self::Candle(_, dtype) => dtype.as_str(),
        }
    }

    /// Who computes, as far as it matters to the memory that is needed.
    pub fn engine(&self) -> Engine {
        match self {
            Self::Kernels(_) => Engine::Kernels,
            Self::Candle(_, dtype) => Engine::Library { number_bytes: dtype.size_in_bytes() as u64 },
        }
    }

    /// Brings a tensor to where this computes, as the numbers that it computes with.
    pub(crate) fn take(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Kernels(_) => x.to_device(&Device::Cpu)?.to_dtype(DType::F32),
            Self::Candle(device, dtype) => x.to_device(device)?.to_dtype(*dtype),
        }
    }
}

/// Nothing follows.
pub(crate) fn plain() -> Then<'static> {
    Then::default()
}

/// A function follows.
pub(crate) fn then(function: Function) -> Then<'static> {
    Then { function: Some(function), residual: None }
}

/// `residual` is added.
pub(crate) fn plus(residual: &Tensor) -> Then<'_> {
    Then { function: None, residual: Some(residual) }
}

/// Reads tensor `name`, whose values must be finite, as f32 to the memory of the CPU.
pub(crate) fn tensor(checkpoint: &Checkpoint, name: &str) -> Result<Tensor> {
    let values = values(checkpoint, name)?;
    let shape = checkpoint.tensors()[name].shape.as_slice(); // it was just read
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Reads the values of tensor `name`, which must be finite.
pub(crate) fn values(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let values = checkpoint.read_f32(name)?;
    if values.iter().all(|value| value.is_finite()) {
        Ok(values)
    } else {
        Err(ModelError::NotFinite { tensor: name.to_owned() })
    }
}

/// Refuses a tensor that is empty or has another shape than `wanted`, in which 0 stands for any length.
pub(crate) fn check_shape(name: &'static str, x: &Tensor, wanted: &[usize]) -> Result<()> {
    let fits = |(found, wanted): (&usize, &usize)| *wanted == 0 || found == wanted;
    match x.rank() == wanted.len() && x.elem_count() > 0 && x.dims().iter().zip(wanted).all(fits) {
        true => Ok(()),
        false => Err(ModelError::Tensor { name, wanted: wanted.to_vec(), found: x.dims().to_vec() }),
    }
}

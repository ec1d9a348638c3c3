//! The name of the code that computes on a graphics device, as far as it can change a result.
//!
//! Sums of floating-point numbers depend on their order, and the order on the kernel: how a device
//! cuts a matrix into blocks, which library it brings. (On a CPU the order is the program's own, see
//! [`Processor::modes`](crate::processor::Processor::modes).) The number of threads does not matter: each
//! number is summed by one thread, from front to back.

use candle_core::{DType, Device, Tensor};
use weights::{digest, synthetic};

use crate::error::Result;

/// The kernels that this crate is built with. It changes whenever a change of the code may change a result.
pub const KERNEL_LEVEL: &str = "candle-0.11.1";

/// Returns [`KERNEL_LEVEL`] and a fingerprint of what `device` makes of it, such as `candle-0.11.1-1b9e5a03`.
///
/// The fingerprint is of the bytes of one convolution with the longest sums that occur. Two machines whose results differ
/// will hardly agree in it; two that agree in it may share work.
pub fn level(device: &Device, dtype: DType) -> Result<String> {
    const CHANNELS: usize = 192; // the widest convolution of RRDBNet: 64 + 4 * 32
    let tensor = |name: &str, shape: [usize; 4]| {
        Tensor::from_vec(synthetic::tensor(name, &shape), &shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    };
    let x = tensor("x", [1, CHANNELS, 12, 12])?;
    let weight = tensor("weight", [64, CHANNELS, 3, 3])?;
    let y = x.conv2d(&weight, 1, 1, 1, 1)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let bytes: Vec<u8> = y.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(format!("{KERNEL_LEVEL}-{}", &digest::sha256(&bytes)[..8]))
}

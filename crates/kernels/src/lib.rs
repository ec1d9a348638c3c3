//! Fast kernels for networks on a CPU, and the only `unsafe` code of the house.

pub(crate) mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16;
pub mod chain;
pub mod conv;
pub mod level;
mod line;
pub mod linear;
pub mod math;
pub mod norm;
mod operand;
pub mod picture;
pub mod precision;
mod product;
pub mod rearrange;
mod simd;
pub mod threads;
mod winograd;

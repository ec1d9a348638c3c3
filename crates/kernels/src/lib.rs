//! Fast kernels for networks on a CPU, and the only `unsafe` code of the house.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx {
    pub(crate) fn is_available() -> bool {
        false
    }
}
pub mod chain;
pub mod level;
pub mod picture;
pub mod precision;
pub mod threads;
mod line;
mod product;
mod simd;
mod winograd;

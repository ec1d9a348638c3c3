//! Fast kernels for networks on a CPU, and the only `unsafe` code of the house.
//!
//! Plain slices go in and come out: this crate knows no tensor library, no network and no job. `models` calls it, and
//! compares it with the plain path of candle.
//!
//! - [`level`] says with which instructions kernels compute; [`precision`] how exactly.
//! - [`chain`] runs convolutions one behind the other, band by band: whole networks of super-resolution.
//! - [`conv`], [`depthwise`], [`linear`], [`attention`], [`norm`], [`math`] and [`rearrange`] are single operations, for all other networks.
//! - [`threads`] shares work among the threads of one pool.
//!
//! Every number is one sum in one order, with blocks of constant sizes. So bytes depend on neither caches nor threads, and
//! kernels written once over vectors of sixteen lanes (`simd`) give the same ones with AVX2 and AVX-512.
//!
//! Start reading at `product`: rows of cache lines, times weights, summed in registers. All else is about which lines, and
//! what becomes of the sums. Then `winograd`, and [`chain`].

pub(crate) mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16;
pub mod buffer;
pub mod chain;
pub mod conv;
pub mod depthwise;
mod kept;
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

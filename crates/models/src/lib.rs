//! The networks, and how they run on a device.
//!
//! [`upscale::Upscaler`] is loaded from a checkpoint and turns a tile into a larger one. [`watch::Watch`] follows and may
//! interrupt it. [`pad`] makes a tile of a size that the network takes, and [`fingerprint`] names what
//! a graphics device computes, as far as it can change a result.
//!
//! This crate knows no job and no file format: tensors in, tensors out. What a checkpoint holds, and which network that is,
//! `weights` says. Beside `kernels`, it is the only crate that names a tensor library.
//!
//! On a CPU networks run as chains of the kernels of `kernels`, or operation by operation ([`ops`]) with these kernels; on other
//! devices with candle, whose plain path on a CPU is what the tests compare with. The same input gives the same bytes whatever the number of threads, and in every mode of
//! a [`processor::Processor`] that bears the same name.
//!
//! Start reading at [`upscale`], then any file below it with the paper beside you.

pub mod diffusion;
pub mod error;
pub mod fingerprint;
mod layers;
pub mod ops;
pub mod pad;
pub mod processor;
pub mod speed;
pub mod upscale;
pub mod watch;

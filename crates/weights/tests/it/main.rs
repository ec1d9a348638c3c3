//! What the crate promises: every checkpoint is read as PyTorch reads it or refused by a typed error, every network is
//! recognised exactly, and what is written is what was read.

mod checkpoints;
mod conversion;
mod detection;
mod diffusion;
mod diffusion_files;
mod goldens;

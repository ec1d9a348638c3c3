//! What the crate promises: every checkpoint is read as PyTorch reads it or refused by a typed error, and every network is
//! recognised exactly.

mod checkpoints;
mod detection;
mod goldens;

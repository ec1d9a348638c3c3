//! Which tensors a weights file holds, and which network that is.
//!
//! [`checkpoint::Checkpoint`] opens a `.safetensors` or PyTorch file and lists its tensors; nothing in the file is
//! ever executed. [`detect::detect`] says which network they make up and what a plan must know of it: its scale, its
//! channels, the sizes it accepts. [`diffusers`] knows the names of the other naming of diffusion models, and their folders. [`lora`] says which weights a LoRA changes, and [`contents`] what a file of diffusion models holds. [`convert`] writes it anew as a `.safetensors` file. [`builtin`] holds the models
//! that come with the program, [`synthetic`] makes full-size weights out of names alone, for tests and benchmarks.
//!
//! This crate computes no pixel and names no tensor library, so that whoever plans a job can refuse a wrong model at
//! the door. How a network runs is the business of `models`.
//!
//! Start reading at [`checkpoint`], then [`detect`].

pub mod builtin;
pub mod checkpoint;
pub mod contents;
pub mod convert;
pub mod detect;
pub mod diffusers;
pub mod digest;
pub mod lora;
pub mod synthetic;

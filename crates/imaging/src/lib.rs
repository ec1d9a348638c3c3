//! Pixels on the CPU: pictures in and out of files, and everything that is done to them without a network.
//!
//! What it is: codecs whose memory is bounded by the configuration and not by the picture ([`decode`], [`encode`]),
//! the shape in which a decoded picture is stored so that a window of it can be read alone ([`raster`]), and resizing
//! and packing row by row what comes back from a network ([`resample::rows`], [`pack`]), and windows of a picture that
//! segments are pasted over ([`base`]).
//!
//! What it is not: it knows no job and no network, and opens no store; [`base`] names what must be read from one. It
//! reads and writes local files, and computes.
//!
//! Where to start: [`picture`] for the words, then [`decode::decode_rows`] and [`encode::Encoder`].

#[cfg(target_endian = "big")]
compile_error!("samples are kept little-endian in memory and in the store");

pub mod base;
pub mod bytes;
pub mod decode;
pub mod encode;
pub mod flows;
pub mod frames;
pub mod mask;
pub mod metadata;
pub mod pack;
pub mod paste;
pub mod picture;
pub mod raster;
pub mod resample;
pub mod segs;
pub mod tiled;
pub mod underpaint;

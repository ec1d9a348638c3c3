//! Pictures into files and out of them again, and what happens to files that are no pictures.

mod inks;
mod kinds;
mod metadata;
mod raster;
mod refusals;
mod round_trip;
mod several;
mod support;

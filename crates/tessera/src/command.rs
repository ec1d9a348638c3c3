//! The commands, one room each.

pub mod cache;
pub mod config;
pub mod doctor;
pub mod jobs;
pub mod models;
pub mod plan;
pub mod preview;
pub mod redraw;
pub mod run;
pub mod sample;
pub mod segs;
pub mod serve;
pub mod submit;
pub mod upscale;
pub mod workers;

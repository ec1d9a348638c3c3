//! WebP without loss: gathers the whole picture, then encodes it.

use image_webp::{ColorType, EncodingError, WebPEncoder};

use super::{EncodeError, Job, Output};
use crate::picture::{Color, Format};

#[derive(Debug)]
pub(super) struct Codec {
    output: Output,
    job: Job,
    pixels: Vec<u8>,
}

impl Codec {
    pub(super) fn new(output: Output, job: Job) -> Self {
        Self { output, job, pixels: Vec::new() }
    }

    pub(super) fn write_rows(&mut self, rows: &[u8]) -> Result<(), EncodeError> {
        self.pixels.extend_from_slice(rows);
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(), EncodeError> {
        let Job { width, height, options } = self.job;
        let mut encoder = WebPEncoder::new(self.output);
        if let Some(icc) = options.icc {
            encoder.set_icc_profile(icc);
        }
        if let Some(exif) = options.exif {
            encoder.set_exif_metadata(exif);
        }
        let color = match options.color {
            Color::Grey => ColorType::L8,
            Color::GreyAlpha => ColorType::La8,
            Color::Rgb => ColorType::Rgb8,
            Color::Rgba => ColorType::Rgba8,
        };
        encoder.encode(&self.pixels, width, height, color).map_err(|error| match error {
            EncodingError::IoError(source) => EncodeError::Write { format: Format::Webp, source },
            error => EncodeError::Codec { format: Format::Webp, source: error.into() },
        })
    }
}

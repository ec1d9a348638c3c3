//! JPEG: gathers the whole picture, then encodes it.

use jpeg_encoder::{ColorType, EncodingError};

use super::{EncodeError, Job, Output};
use crate::picture::Format;

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
        let [width, height] = [width, height].map(|side| u16::try_from(side).expect("the size was checked"));
        let mut encoder = jpeg_encoder::Encoder::new(self.output, options.jpeg_quality);
        if let Some(exif) = &options.exif {
            encoder.add_exif_metadata(exif).map_err(failed)?;
        }
        if let Some(icc) = &options.icc {
            encoder.add_icc_profile(icc).map_err(failed)?;
        }
        let color = if options.color.is_grey() { ColorType::Luma } else { ColorType::Rgb };
        encoder.encode(&self.pixels, width, height, color).map_err(failed)
    }
}

fn failed(error: EncodingError) -> EncodeError {
    let format = Format::Jpeg;
    match error {
        EncodingError::IoError(source) => EncodeError::Write { format, source },
        error => EncodeError::Codec { format, source: error.into() },
    }
}

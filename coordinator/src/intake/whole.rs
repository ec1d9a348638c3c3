//! Small pictures that are needed whole: masks, crops, control pictures. They are kept as raw `f32` artifacts.

use domain::{
    digest::Digest,
    document::RunLengths,
    layout,
    pipe::{MaskRef, PixelsRef},
    region::Size,
};
use imaging::{
    bytes::{from_u8, from_u16, to_le},
    decode::{DecodeError, decode_rows},
    frames::Frames,
    mask::Mask,
    picture::{Color, Limits, Sample},
};
use proto::convert::PictureRequest;
use store::Key;

use super::Intake;
use crate::refusal::{Refusal, chain};

/// Which samples of a pixel are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// The red one, or the only one.
    First,
    /// Red, green and blue; grey three times.
    Rgb,
}

impl Intake {
    /// Reads a mask: the red channel of a picture, or its only one.
    pub(super) async fn mask(&self, field: &str, request: PictureRequest) -> Result<Mask, Refusal> {
        let (size, values) = self.whole(field, request, Keep::First).await?;
        Mask::new(1, size, values).map_err(|error| Refusal::field(field, chain(&error)))
    }

    /// Reads the colours of a picture; alpha is left out.
    pub(super) async fn colours(&self, field: &str, request: PictureRequest) -> Result<Frames, Refusal> {
        let (size, values) = self.whole(field, request, Keep::Rgb).await?;
        Frames::new(1, size, 3, values).map_err(|error| Refusal::field(field, chain(&error)))
    }

    /// Reads a mask of runs.
    pub(super) fn runs(&self, field: &str, runs: &RunLengths) -> Result<Mask, Refusal> {
        let size = Size::new(runs.width, runs.height);
        self.check_mask(field, size)?;
        let values = runs.values().map_err(|error| Refusal::field(field, error.to_string()))?;
        Mask::new(1, size, values).map_err(|error| Refusal::field(field, chain(&error)))
    }

    /// Refuses a mask that is larger than pictures may be.
    pub(super) fn check_mask(&self, field: &str, size: Size) -> Result<(), Refusal> {
        self.limits
            .check_size(size.width, size.height)
            .and_then(|()| self.limits.check_whole("a mask", size.pixels() * size_of::<f32>() as u64))
            .map_err(|error| Refusal::field(field, error.to_string()))
    }

    async fn whole(&self, field: &str, request: PictureRequest, keep: Keep) -> Result<(Size, Vec<f32>), Refusal> {
        let _turn = self.decoding.acquire().await; // only closed when the process ends
        let PictureRequest { name, source } = request;
        let (_, file) = self.file(field, source).await?;
        let limits = self.limits;
        let decoding = tokio::task::spawn_blocking(move || decode(file.path(), &limits, keep));
        let decoded = decoding.await.map_err(|error| Refusal::Internal {
            what: format!("the decoder stopped on picture `{name}`"),
            source: error.into(),
        })?;
        let (size, values) = decoded.map_err(|error| Self::not_decoded(field, &name, error))?;
        if values.iter().any(|value| value.is_nan()) {
            return Err(Refusal::field(field, format!("picture `{name}` has a sample that is no number")));
        }
        Ok((size, values))
    }

    /// Keeps a mask in the store.
    pub(super) async fn keep_mask(&self, mask: &Mask) -> Result<MaskRef, Refusal> {
        Ok(MaskRef { digest: self.keep(&mask.data).await?, size: mask.size() })
    }

    /// Keeps pixels in the store.
    pub(super) async fn keep_pixels(&self, pixels: &Frames) -> Result<PixelsRef, Refusal> {
        Ok(PixelsRef { digest: self.keep(&pixels.data).await?, size: pixels.size() })
    }

    /// Keeps numbers in the store, under their digest.
    pub(super) async fn keep(&self, values: &[f32]) -> Result<Digest, Refusal> {
        let bytes = to_le(values);
        let digest = Digest::of(&bytes);
        self.store.put(&Key::new(layout::artifact(digest))?, bytes.into()).await?;
        Ok(digest)
    }
}

fn decode(path: &std::path::Path, limits: &Limits, keep: Keep) -> Result<(Size, Vec<f32>), DecodeError> {
    let info = imaging::decode::probe(path, limits)?;
    let channels = match keep {
        Keep::First => 1,
        Keep::Rgb => 3,
    };
    let size = Size::new(info.width, info.height);
    let bytes = size.pixels() * channels * size_of::<f32>() as u64;
    limits.check_whole("a picture that is needed whole", bytes).map_err(|error| DecodeError::Sink(error.into()))?;
    let mut values = Vec::with_capacity((size.pixels() * channels) as usize);
    decode_rows(path, limits, &mut |rows| {
        append(rows.bytes, info.color, info.sample, keep, &mut values);
        Ok(())
    })?;
    Ok((size, values))
}

/// Appends what is kept of pixels in the native layout, within 0..1.
fn append(bytes: &[u8], color: Color, sample: Sample, keep: Keep, values: &mut Vec<f32>) {
    let mut pixel = |value: &dyn Fn(usize) -> f32| {
        let value = |channel| value(channel).clamp(0.0, 1.0);
        match keep {
            Keep::First => values.push(value(0)),
            Keep::Rgb if color.is_grey() => values.extend([value(0); 3]),
            Keep::Rgb => values.extend([value(0), value(1), value(2)]),
        }
    };
    for samples in bytes.chunks_exact(color.channels() * sample.bytes()) {
        match sample {
            Sample::U8 => pixel(&|at| from_u8(samples[at])),
            Sample::U16 => pixel(&|at| from_u16(u16::from_le_bytes([samples[2 * at], samples[2 * at + 1]]))),
            Sample::F32 => {
                let (numbers, _) = samples.as_chunks::<4>();
                pixel(&|at| f32::from_le_bytes(numbers[at]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_the_red_channel_or_the_only_one() {
        let check = |bytes: &[u8], color, sample, keep, want: &[f32]| {
            let mut values = Vec::new();
            append(bytes, color, sample, keep, &mut values);
            assert_eq!(values, want, "{color:?} {sample:?} {keep:?}");
        };
        check(&[255, 0, 51, 9], Color::Rgba, Sample::U8, Keep::First, &[1.0]);
        check(&[255, 0, 51, 9], Color::Rgba, Sample::U8, Keep::Rgb, &[1.0, 0.0, 0.2]);
        check(&[51, 0, 0, 7], Color::GreyAlpha, Sample::U8, Keep::Rgb, &[0.2, 0.2, 0.2, 0.0, 0.0, 0.0]);
        check(&[0xff, 0xff, 0, 0], Color::Grey, Sample::U16, Keep::First, &[1.0, 0.0]);
        check(&2f32.to_le_bytes(), Color::Grey, Sample::F32, Keep::First, &[1.0]);
    }
}

//! Blended rows on their way to the encoder: resampled where another size was asked for, joined with alpha, packed.

use std::convert::Infallible;

use domain::{
    picture::{Color, Sample},
    region::Size,
    resize::{Resampling, ResizeMethod},
};
use imaging::{
    frames::PixelError,
    pack::pack,
    resample::{ScaleMethod, float::Interpolation, rows::RowResampler},
};

/// Takes blended rows and the picture's own alpha from the top, and gives encoded samples.
///
/// Colours and alpha grow from other sizes, so that one may be ahead of the other; what is ahead waits. That is never
/// more than one band and the few rows that a kernel reaches down.
#[derive(Debug)]
pub(super) struct Finisher {
    width: usize,
    color: Color,
    sample: Sample,
    /// From what the network made to the size of the result; `None` where that is the same.
    resampler: Option<RowResampler>,
    /// From the picture's alpha to that of the result.
    alpha: Option<RowResampler>,
    /// Rows of the result, `[y][x][3]`, from the first that is not given.
    colors_waiting: Vec<f32>,
    /// Alpha of the result, `[y][x]`, from the first row that is not given.
    alpha_waiting: Vec<f32>,
}

impl Finisher {
    /// Prepares for a `picture` that the network has `enlarged`, written as `color` and `sample`.
    pub fn new(
        picture: Size,
        enlarged: Size,
        resize: Option<Resampling>,
        color: Color,
        sample: Sample,
    ) -> Result<Self, PixelError> {
        let to = resize.map_or(enlarged, |resize| resize.to);
        let resampler = match resize {
            Some(resize) => Some(RowResampler::new(scale_method(resize.method), enlarged, to, 3, sample)?),
            None => None,
        };
        let alpha = match color.has_alpha() {
            true => {
                // The float methods of the reference leave out pixels when they shrink.
                let shrinks = to.width < picture.width || to.height < picture.height;
                let grow = ScaleMethod::Float(Interpolation::Bicubic);
                let method = if shrinks { ScaleMethod::Lanczos } else { grow };
                Some(RowResampler::new(method, picture, to, 1, sample)?)
            }
            false => None,
        };
        let (colors_waiting, alpha_waiting) = (Vec::new(), Vec::new());
        Ok(Self { width: to.width as usize, color, sample, resampler, alpha, colors_waiting, alpha_waiting })
    }

    /// Takes the next blended rows, `[y][x][3]`, and the next rows of the picture's alpha, `[y][x]`, of either any number;
    /// gives the samples of the rows that are then whole, in the native layout.
    ///
    /// # Panics
    /// If these are no whole rows, or more than the picture has.
    pub fn take(&mut self, blended: Vec<f32>, alpha: &[f32]) -> Vec<u8> {
        match &mut self.resampler {
            Some(resampler) => push(resampler, &blended, &mut self.colors_waiting),
            None if self.colors_waiting.is_empty() => self.colors_waiting = blended,
            None => self.colors_waiting.extend(blended),
        }
        let mut pixels = self.colors_waiting.len() / 3;
        if let Some(resampler) = &mut self.alpha {
            push(resampler, alpha, &mut self.alpha_waiting);
            pixels = pixels.min(self.alpha_waiting.len());
        }
        debug_assert!(pixels.is_multiple_of(self.width), "resamplers give whole rows");
        let colors = self.colors_waiting.drain(..pixels * 3);
        let alpha = self.alpha.as_ref().map(|_| self.alpha_waiting.drain(..pixels));
        let (colors, alpha) = (colors.as_slice(), alpha.as_ref().map(|alpha| alpha.as_slice()));
        pack(colors, alpha, self.color, self.sample)
    }
}

/// The resampler of the reference that is called so.
fn scale_method(method: ResizeMethod) -> ScaleMethod {
    match method {
        ResizeMethod::NearestExact => ScaleMethod::Float(Interpolation::NearestExact),
        ResizeMethod::Bilinear => ScaleMethod::Float(Interpolation::Bilinear),
        ResizeMethod::Area => ScaleMethod::Float(Interpolation::Area),
        ResizeMethod::Bicubic => ScaleMethod::Float(Interpolation::Bicubic),
        ResizeMethod::Lanczos => ScaleMethod::Lanczos,
    }
}

/// Appends the rows that `rows` complete to `out`, clamped to 0..1: a cubic may leave it.
fn push(resampler: &mut RowResampler, rows: &[f32], out: &mut Vec<f32>) {
    let mut give = |row: &[f32]| -> Result<(), Infallible> {
        out.extend(row.iter().map(|sample| sample.clamp(0.0, 1.0)));
        Ok(())
    };
    let Ok(()) = resampler.push(rows, &mut give);
}

#[cfg(test)]
mod tests {
    use imaging::{
        bytes::to_u8,
        frames::Frames,
        resample::{Crop, common_upscale},
    };

    use super::*;

    fn samples(count: u64) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.37).sin() * 0.5 + 0.5).collect()
    }

    /// Finishes a picture of 7 x 5 pixels that was enlarged twice, `at_once` enlarged rows at a time, each with the rows of
    /// alpha that begin in them.
    fn finished(resize: Option<Resampling>, color: Color, sample: Sample, at_once: usize) -> Vec<u8> {
        let (picture, enlarged) = (Size::new(7, 5), Size::new(14, 10));
        let (colors, alpha) = (samples(enlarged.pixels() * 3), samples(picture.pixels()));
        let mut finisher = Finisher::new(picture, enlarged, resize, color, sample).unwrap();
        let mut bytes = Vec::new();
        for top in (0..10).step_by(at_once) {
            let end = (top + at_once).min(10);
            let alpha = &alpha[top.div_ceil(2) * 7..end.div_ceil(2) * 7];
            bytes.extend(finisher.take(colors[top * 14 * 3..end * 14 * 3].to_vec(), alpha));
        }
        bytes
    }

    #[test]
    fn a_result_does_not_depend_on_its_bands() {
        let to = |width, height| Some(Resampling { to: Size::new(width, height), method: ResizeMethod::Lanczos });
        for color in Color::ALL {
            for (resize, pixels) in [(None, 140), (to(9, 7), 63), (to(3, 2), 6), (to(40, 61), 2440), (to(1, 1), 1)] {
                for sample in [Sample::U8, Sample::U16, Sample::F32] {
                    let whole = finished(resize, color, sample, 10);
                    assert_eq!(whole.len(), pixels * color.channels() * sample.bytes());
                    for at_once in [1, 3, 4] {
                        assert_eq!(finished(resize, color, sample, at_once), whole, "{resize:?} {color} {sample}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_method_is_the_reference_s() {
        let (enlarged, to) = (Size::new(14, 10), Size::new(9, 13));
        let frames = Frames::new(1, enlarged, 3, samples(enlarged.pixels() * 3)).unwrap();
        for method in ResizeMethod::ALL {
            let expected = common_upscale(&frames, to, method.name().parse().unwrap(), Crop::Disabled).unwrap();
            let expected: Vec<u8> = expected.data.iter().map(|&sample| to_u8(sample)).collect();
            assert_eq!(finished(Some(Resampling { to, method }), Color::Rgb, Sample::U8, 3), expected, "{method:?}");
        }
    }
}

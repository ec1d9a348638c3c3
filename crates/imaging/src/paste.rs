//! Pasting (reference: pixels.md, section 9). All in `f32`, nothing is clamped.

use domain::region::Corners;

use crate::{
    frames::{Frames, PixelError},
    mask::Mask,
    segs::Segs,
};

/// Lays `patch` over one frame at (`x`, `y`), weighted by `mask`: `(1 - m) * old + m * patch`.
///
/// A mask of another size than the patch is stretched to it. What lies beyond the picture is left out.
pub fn tensor_paste(picture: &mut Frames, patch: &Frames, (x, y): (i64, i64), mask: &Mask) -> Result<(), PixelError> {
    for (what, frames) in
        [("the picture of a paste", picture.frames), ("a patch", patch.frames), ("a paste's mask", mask.frames)]
    {
        if frames != 1 {
            return Err(PixelError::Frames { operation: what, want: 1, got: frames });
        }
    }
    let channels = picture.channels;
    if patch.channels != channels {
        let (operation, want) = ("pasting", "the picture's");
        return Err(PixelError::Channels { operation, want, got: patch.channels });
    }
    let stretched = if mask.size() == patch.size() { None } else { Some(mask.resize(patch.size())?) };
    let mask = stretched.as_ref().unwrap_or(mask);
    let place = Corners::new(x, y, x.saturating_add(patch.width as i64), y.saturating_add(patch.height as i64));
    let region = place.within(picture.size());
    let stride = picture.row_len();
    for row in 0..region.height as usize {
        let start = (region.y as usize + row) * stride + region.x as usize * channels;
        let old = &mut picture.data[start..][..region.width as usize * channels];
        lay(old, &patch.data[row * patch.row_len()..], &mask.data[row * mask.width..], channels);
    }
    Ok(())
}

/// Lays the pixels `new` over as many `old` ones, one weight each.
pub(crate) fn lay(old: &mut [f32], new: &[f32], weights: &[f32], channels: usize) {
    for ((old, new), &m) in old.chunks_exact_mut(channels).zip(new.chunks_exact(channels)).zip(weights) {
        old.iter_mut().zip(new).for_each(|(old, new)| *old = (1.0 - m) * *old + m * new);
    }
}

/// How much is covered at an `alpha` of 0..=255.
pub(crate) fn opacity(alpha: u8) -> f32 {
    (f64::from(alpha) / 255.0) as f32
}

/// `SEGSPaste`: lays every segment's image over every frame, in list order, so that later ones see earlier ones.
///
/// The pixels are those of `reference` where it is given, else the segment's own; a segment without either is skipped.
/// A mask with one frame per picture frame goes with it frame by frame; another number of frames is joined into one.
/// `feather` softens the masks' edges; `alpha` is 0..=255.
pub fn segs_paste(
    picture: &Frames,
    segs: &Segs,
    reference: Option<&Frames>,
    feather: i64,
    alpha: u8,
    reference_quirks: bool,
) -> Result<Frames, PixelError> {
    let segs = segs.scale_match(picture.size(), reference_quirks)?;
    let alpha = opacity(alpha);
    let mut index = 0;
    picture.try_map(|mut frame| {
        for seg in &segs.segs {
            let source = match (reference, &seg.cropped_image) {
                (Some(reference), _) => reference,
                (None, Some(image)) => image,
                (None, None) => continue,
            };
            if source.frames <= index {
                let operation = "the pixels pasted over a batch of pictures";
                return Err(PixelError::Frames { operation, want: picture.frames, got: source.frames });
            }
            let patch = match reference {
                Some(_) => source.single(index).crop(&seg.crop_region),
                None => source.single(index),
            };
            let mask = match &seg.cropped_mask {
                mask if mask.frames == picture.frames => mask.single(index),
                mask if mask.frames > 1 => mask.joined(),
                mask => mask.clone(),
            };
            let mask = mask.feather(feather).map(|m| m * alpha);
            tensor_paste(&mut frame, &patch, (seg.crop_region.x1, seg.crop_region.y1), &mask)?;
        }
        index += 1;
        Ok(frame)
    })
}

#[cfg(test)]
mod tests {
    use domain::region::Size;

    use super::*;

    fn flat(size: Size, value: f32) -> Frames {
        Frames::new(1, size, 3, vec![value; size.pixels() as usize * 3]).unwrap()
    }

    #[test]
    fn a_patch_beyond_the_picture_is_cut_off() {
        let mut picture = flat(Size::new(3, 3), 0.0);
        let half = Mask::zeros(Size::new(2, 2)).map(|_| 0.5);
        tensor_paste(&mut picture, &flat(Size::new(2, 2), 1.0), (2, 2), &half).unwrap();
        tensor_paste(&mut picture, &flat(Size::new(2, 2), 1.0), (3, 0), &half).unwrap();
        assert_eq!(picture.data.iter().filter(|&&x| x == 0.5).count(), 3);
        assert_eq!(picture.data[8 * 3..], [0.5; 3]);
    }

    #[test]
    fn a_patch_with_other_channels_is_refused() {
        let mut picture = flat(Size::new(3, 3), 0.0);
        let grey = Frames::new(1, Size::new(1, 1), 1, vec![1.0]).unwrap();
        let refused = tensor_paste(&mut picture, &grey, (0, 0), &Mask::zeros(Size::new(1, 1))).unwrap_err();
        assert_eq!(refused.to_string(), "pasting takes the picture's channels, not 1");
    }
}

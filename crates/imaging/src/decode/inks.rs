//! CMYK to sRGB, because no network here has seen inks.
//!
//! How inks look is in the profile of the file, and `moxcms` computes with it, by the perceptual intent. Where there
//! is none, what every ink leaves of white is multiplied.

use std::sync::Arc;

use moxcms::{ColorProfile, DataColorSpace, Layout, Transform8BitExecutor, TransformOptions};

use super::SinkError;

/// How a file stores the four components of a pixel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stored {
    /// As amounts of ink: 255 is all of it.
    Ink,
    /// As the light that the inks leave, which is how Adobe's programs write JPEG: 255 is no ink.
    Light,
    /// Cyan, magenta and yellow as JFIF stores red, green and blue: luminance and two differences. Black as light.
    Ycck,
}

impl Stored {
    /// Turns pixels into amounts of ink.
    pub(super) fn to_ink(self, pixels: &mut [u8]) {
        match self {
            Self::Ink => {}
            Self::Light => pixels.iter_mut().for_each(|component| *component = 255 - *component),
            Self::Ycck => {
                for [y, cb, cr, k] in pixels.as_chunks_mut::<4>().0 {
                    // ITU T.871, 7: its red is the amount of cyan here, and so on; 16 bits behind the point.
                    let (luminance, blue, red) = (i32::from(*y) << 16, i32::from(*cb) - 128, i32::from(*cr) - 128);
                    let byte = |sum: i32| ((sum + (1 << 15)) >> 16).clamp(0, 255) as u8;
                    *y = byte(luminance + 91_881 * red);
                    *cb = byte(luminance - 22_554 * blue - 46_802 * red);
                    *cr = byte(luminance + 116_130 * blue);
                    *k = 255 - *k;
                }
            }
        }
    }
}

/// What inks look like.
pub(super) struct Inks(Option<Arc<Transform8BitExecutor>>);

impl Inks {
    /// The inks of a profile; those of no profile, where it is missing or not one of inks.
    pub(super) fn new(icc: Option<&[u8]>) -> Result<Self, SinkError> {
        let Some(icc) = icc.filter(|icc| icc.get(16..20) == Some(b"CMYK")) else { return Ok(Self(None)) };
        let profile = ColorProfile::new_from_slice(icc)?;
        debug_assert_eq!(profile.color_space, DataColorSpace::Cmyk);
        let (srgb, options) = (ColorProfile::new_srgb(), TransformOptions::default());
        Ok(Self(Some(profile.create_transform_8bit(Layout::Rgba, &srgb, Layout::Rgb, options)?)))
    }

    /// The sRGB of amounts of ink, four to three bytes a pixel.
    pub(super) fn rgb(&self, inks: &[u8]) -> Vec<u8> {
        let (pixels, _) = inks.as_chunks::<4>();
        let mut rgb = vec![0; pixels.len() * 3];
        match &self.0 {
            Some(transform) => transform.transform(inks, &mut rgb).expect("both sides have as many pixels"),
            None => {
                for (rgb, [c, m, y, k]) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                    let left = |ink: &u8| {
                        let product = u32::from(255 - ink) * u32::from(255 - k) + 127;
                        (product / 255) as u8
                    };
                    *rgb = [c, m, y].map(left);
                }
            }
        }
        rgb
    }
}

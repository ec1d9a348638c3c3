//! ICC profiles for pixels that have none, but of which the file tells in another way what colours they are.

use moxcms::{
    Chromaticity, CicpProfile, ColorPrimaries, ColorProfile, LocalizableString, MatrixCoefficients, ProfileText,
    ToneReprCurve, XyY,
};
use png::{CodingIndependentCodePoints, Info, SourceChromaticities};

/// How far numbers may be from those of sRGB and still mean it: files give them rounded.
const SRGB_TOLERANCE: f32 = 0.005;

/// sRGB.
pub(super) fn srgb() -> Vec<u8> {
    let mut profile = ColorProfile::new_srgb();
    // The library's says that samples lie in the narrow range of video; the curves say all that is needed.
    profile.cicp = None;
    written(&profile).expect("a built-in profile can be written")
}

/// What the chunks of a PNG beside its profile say; `None` where they say sRGB, or nothing.
///
/// As the format asks, code points (`cICP`) go before `sRGB`, and that before gamma and chromaticities (PNG 3, 4.3).
pub(super) fn of_png(info: &Info<'_>, grey: bool) -> Option<Vec<u8>> {
    if let Some(points) = info.coding_independent_code_points.filter(|_| !grey) {
        return of_code_points(points);
    }
    if info.srgb.is_some() {
        return None;
    }
    let near = |a: f32, b: f32| (a - b).abs() < SRGB_TOLERANCE;
    let gamma = info.gama_chunk.map(|gamma| gamma.into_value()).filter(|&gamma| gamma > 0.0 && !near(gamma, 1.0 / 2.2));
    if grey {
        return gamma.and_then(|gamma| written(&ColorProfile::new_gray_with_gamma(1.0 / gamma)));
    }
    let is_srgb = |told: &[f32; 8]| told.iter().zip(SRGB).all(|(&a, b)| near(a, b));
    let primaries = info.chrm_chunk.map(points).filter(|told| spans_colours(told) && !is_srgb(told));
    if gamma.is_none() && primaries.is_none() {
        return None;
    }
    let mut profile = of_a_png();
    if let Some([white_x, white_y, red_x, red_y, green_x, green_y, blue_x, blue_y]) = primaries {
        let point = |x, y| Chromaticity { x, y };
        let (red, green, blue) = (point(red_x, red_y), point(green_x, green_y), point(blue_x, blue_y));
        let white = XyY { x: white_x.into(), y: white_y.into(), yb: 1.0 };
        profile.update_rgb_colorimetry(white, ColorPrimaries { red, green, blue });
    }
    if let Some(gamma) = gamma {
        let curve = Some(ToneReprCurve::Parametric(vec![1.0 / gamma]));
        (profile.red_trc, profile.green_trc, profile.blue_trc) = (curve.clone(), curve.clone(), curve);
    }
    written(&profile)
}

/// The white point and the primaries of sRGB, as [`points`] gives them.
const SRGB: [f32; 8] = [0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06];

fn points(told: SourceChromaticities) -> [f32; 8] {
    let SourceChromaticities { white, red, green, blue } = told;
    let mut points = [white, red, green, blue].into_iter().flat_map(|(x, y)| [x.into_value(), y.into_value()]);
    std::array::from_fn(|_| points.next().expect("four points have eight coordinates"))
}

/// Whether there is white, and the primaries do not lie on one line.
fn spans_colours(&[_, white_y, red_x, red_y, green_x, green_y, blue_x, blue_y]: &[f32; 8]) -> bool {
    let area = (green_x - red_x) * (blue_y - red_y) - (blue_x - red_x) * (green_y - red_y);
    area.abs() > 1e-3 && [white_y, red_y, green_y, blue_y].iter().all(|&y| y > 0.0)
}

fn of_code_points(points: CodingIndependentCodePoints) -> Option<Vec<u8>> {
    const BT709: u8 = 1;
    const SRGB_TRANSFER: u8 = 13;
    if (points.color_primaries, points.transfer_function) == (BT709, SRGB_TRANSFER) {
        return None;
    }
    let mut profile = of_a_png();
    profile.update_rgb_colorimetry_from_cicp(CicpProfile {
        color_primaries: points.color_primaries.try_into().ok()?,
        transfer_characteristics: points.transfer_function.try_into().ok()?,
        matrix_coefficients: MatrixCoefficients::Identity,
        full_range: true,
    });
    // The call says no whatever it did; points that it does not know it leaves out.
    if profile.cicp.is_some() { written(&profile) } else { None }
}

/// sRGB under another name, to be changed.
fn of_a_png() -> ColorProfile {
    let name = LocalizableString::new("en".into(), "US".into(), "As told by a PNG".into());
    let mut profile = ColorProfile::new_srgb();
    profile.cicp = None;
    profile.description = Some(ProfileText::Localizable(vec![name]));
    profile
}

/// The bytes of a profile, the same whenever it is made.
fn written(profile: &ColorProfile) -> Option<Vec<u8>> {
    let mut bytes = profile.encode().ok()?;
    // The time at which a profile was made says nothing of the picture (ICC.1:2022, 7.2.8).
    bytes[24..36].copy_from_slice(&[7, 230, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    Some(bytes)
}

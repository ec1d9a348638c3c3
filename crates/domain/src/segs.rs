//! SEGS as data: the things found in a picture, their masks by reference, and how they are laid on a picture
//! (reference: detailers.md, sections 1 and 12).

use serde::{Deserialize, Serialize};

use crate::{
    check::{Invalid, Warning, Wrong},
    pipe::{ControlNet, Family, MaskRef, PixelsRef},
    region::{Corners, Region, Size},
    touched::Touched,
    working::Bbox,
};

/// The most segments that one job may have.
pub const MAX_SEGS: u64 = 20_000;

/// The things found in a picture of `size`, in the order in which they are worked on and pasted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segs {
    /// The size of the picture that they were found in; 0x0: that of whatever picture they are laid on.
    pub size: Size,
    /// The segments.
    pub segs: Vec<Seg>,
}

/// One thing found in a picture. Field names are Impact Pack's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seg {
    /// The thing itself, in pixels of the picture.
    pub bbox: Bbox,
    /// The surroundings that are worked on, in pixels of the picture.
    pub crop_region: Corners,
    /// What it is.
    pub label: String,
    /// How sure the finder was, 0 to 1.
    pub confidence: f64,
    /// What belongs to the thing, usually as large as `crop_region`.
    pub cropped_mask: MaskRef,
    /// Pixels that stand for the crop of the picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cropped_image: Option<PixelsRef>,
    /// Prompts of its own instead of the pipe's.
    #[serde(default, skip_serializing_if = "Prompts::is_empty")]
    pub prompts: Prompts,
    /// ControlNets, in the order in which they are applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control_nets: Vec<ControlNet>,
}

/// Prompts that take the place of a pipe's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Prompts {
    /// Instead of the positive ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positive: Option<String>,
    /// Instead of the negative ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative: Option<String>,
}

impl Prompts {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.positive.is_none() && self.negative.is_none()
    }
}

/// A change of some segments of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Override {
    /// Which segments.
    pub select: Select,
    /// Prompts instead of the pipe's and the segments' own.
    #[serde(default, skip_serializing_if = "Prompts::is_empty")]
    pub prompts: Prompts,
    /// A seed instead of the job's; what is added to that is added to this too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// Which segments are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// Those of this label.
    Label(String),
    /// The one at this place in the list, from 0.
    Index(u32),
}

impl Select {
    /// Whether it means `seg`, the one at `index`.
    pub fn is(&self, index: usize, seg: &Seg) -> bool {
        match self {
            Self::Label(label) => *label == seg.label,
            Self::Index(wanted) => *wanted as usize == index,
        }
    }
}

/// The prompts and the seed of `seg`, the one at `index`: its own prompts, and over them whatever `overrides` say; of
/// several the last.
pub fn directions(index: usize, seg: &Seg, overrides: &[Override]) -> (Prompts, Option<u64>) {
    let (mut prompts, mut seed) = (seg.prompts.clone(), None);
    for change in overrides.iter().filter(|change| change.select.is(index, seg)) {
        let Override { prompts: Prompts { positive, negative }, seed: other, .. } = change.clone();
        prompts.positive = positive.or(prompts.positive);
        prompts.negative = negative.or(prompts.negative);
        seed = other.or(seed);
    }
    (prompts, seed)
}

/// Where a segment lies on a picture, and what must be done to its mask (and its own pixels) first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Its crop region, cut to the picture.
    pub region: Region,
    /// Its box, on that picture.
    pub bbox: Bbox,
    /// The size to which masks and pixels are resized first, where they must be.
    pub resize: Option<Size>,
    /// The part of them that lies on the picture, where some of it does not.
    pub cut: Option<Region>,
}

/// The corners of a picture of size `from` on one of size `to` (section 1.1).
///
/// Columns go by the ratio of the widths and rows by that of the heights. The reference scales the first corner by the
/// former and the second by the latter, which is the same where both are equal; `reference_quirks` does so too (Q1).
pub fn scaled(corners: [f64; 4], from: Size, to: Size, reference_quirks: bool) -> [f64; 4] {
    let by_width = f64::from(to.width) / f64::from(from.width);
    let by_height = f64::from(to.height) / f64::from(from.height);
    let [x1, y1, x2, y2] = corners;
    let (y1_by, x2_by) = if reference_quirks { (by_width, by_height) } else { (by_height, by_width) };
    [x1 * by_width, y1 * y1_by, x2 * x2_by, y2 * by_height].map(f64::trunc)
}

/// A region of a picture of size `from` on one of size `to`; see [`scaled`].
pub fn scaled_region(region: Corners, from: Size, to: Size, reference_quirks: bool) -> Corners {
    let corners = <[i64; 4]>::from(region).map(|at| at as f64);
    scaled(corners, from, to, reference_quirks).map(|at| at as i64).into()
}

impl Segs {
    /// Whether they must be scaled to lie on a picture of size `to`.
    pub fn is_scaled_to(&self, to: Size) -> bool {
        self.size != to && self.size.pixels() != 0
    }

    /// Lays segment `index` on a picture of size `to`.
    ///
    /// A region that hangs over is cut, and its mask with it; one that lies outside, or that scaling leaves empty, is
    /// refused. `at` is the path of the list.
    ///
    /// # Panics
    /// When there is no such segment.
    pub fn place(&self, at: &str, index: usize, to: Size, reference_quirks: bool) -> Result<Place, Invalid> {
        let seg = &self.segs[index];
        let is_scaled = self.is_scaled_to(to);
        let (crop_region, bbox) = if is_scaled {
            let bbox = scaled(seg.bbox.into(), self.size, to, reference_quirks).into();
            (scaled_region(seg.crop_region, self.size, to, reference_quirks), bbox)
        } else {
            (seg.crop_region, seg.bbox)
        };
        let refuse = |wrong: Wrong| wrong.at(format!("{at}[{index}].crop_region"));
        let size = crop_region.size().map_err(|empty| refuse(empty.into()))?;
        let region = crop_region.within(to);
        if region.size().pixels() == 0 {
            return Err(refuse(Wrong::Outside { region: crop_region, picture: to }));
        }
        let hangs_over = region.size() != size;
        let off = |start: u32, corner: i64| (i64::from(start) - corner) as u32;
        let cut = Region { x: off(region.x, crop_region.x1), y: off(region.y, crop_region.y1), ..region };
        let must_fit = is_scaled || hangs_over && seg.cropped_mask.size != size;
        Ok(Place { region, bbox, resize: must_fit.then_some(size), cut: hangs_over.then_some(cut) })
    }
}

/// A segment as it lies on a job's picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Placed {
    /// The segment: its regions, mask and pixels are those of the job's picture.
    pub seg: Seg,
    /// Whether its mask is 0 everywhere.
    pub is_empty: bool,
    /// The pixels that pasting it changes: those where its feathered mask is not 0.
    pub touched: Touched,
}

impl Placed {
    /// Its crop region on a picture of `size`.
    pub fn region(&self, size: Size) -> Region {
        self.seg.crop_region.within(size)
    }
}

/// Refuses segments that cannot be worked on, on a picture of `size` with networks of `family`; `at` is their path.
pub fn check(
    at: &str,
    segs: &[Placed],
    size: Size,
    family: Family,
    warnings: &mut Vec<Warning>,
) -> Result<(), Invalid> {
    if segs.len() as u64 > MAX_SEGS {
        return Err(Wrong::TooMany { what: "segments", count: segs.len() as u64, most: MAX_SEGS }.at(at));
    }
    if segs.is_empty() {
        warnings.push(Warning::NothingToDo);
    }
    for (index, Placed { seg, is_empty, touched }) in segs.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let region = seg.crop_region.within(size);
        let crop = seg.crop_region.size().map_err(|empty| Wrong::from(empty).at(format!("{at}.crop_region")))?;
        if region.size() != crop {
            let wrong = Wrong::Outside { region: seg.crop_region, picture: size };
            return Err(wrong.at(format!("{at}.crop_region")));
        }
        if !<[f64; 4]>::from(seg.bbox).iter().all(|corner| corner.is_finite()) {
            return Err(Wrong::NoBox(seg.bbox).at(format!("{at}.bbox")));
        }
        let mask = seg.cropped_mask.size;
        if mask.pixels() == 0 {
            return Err(Wrong::NoPixels(mask).at(format!("{at}.cropped_mask")));
        }
        if !touched.bounds().is_none_or(|bounds| bounds.intersection(&region) == Some(bounds)) {
            let conflict = Wrong::Conflict("the touched pixels reach beyond the crop region");
            return Err(conflict.at(format!("{at}.touched")));
        }
        if let Some(PixelsRef { size, .. }) = seg.cropped_image
            && size.pixels() == 0
        {
            return Err(Wrong::NoPixels(size).at(format!("{at}.cropped_image")));
        }
        for (i, net) in seg.control_nets.iter().enumerate() {
            net.check(&format!("{at}.control_nets[{i}]"), family)?;
        }
        if *is_empty {
            warnings.push(Warning::EmptyMask { seg: index });
        } else if mask != crop {
            warnings.push(Warning::Stretched { seg: index, mask, region: crop });
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::digest::Digest;

    pub(crate) fn seg(label: &str, crop_region: Corners) -> Seg {
        let size = crop_region.size().unwrap_or(Size::new(1, 1));
        Seg {
            bbox: crop_region.into(),
            crop_region,
            label: label.to_owned(),
            confidence: 1.0,
            cropped_mask: MaskRef { digest: Digest::of(format!("{label} {crop_region}").as_bytes()), size },
            cropped_image: None,
            prompts: Prompts::default(),
            control_nets: Vec::new(),
        }
    }

    /// The places of a segment of a 100x50 picture on another: region, resize and cut.
    #[track_caller]
    fn check(region: [i64; 4], to: (u32, u32), quirks: bool, want: &str) {
        let segs = Segs { size: Size::new(100, 50), segs: vec![seg("A", region.into())] };
        let got = match segs.place("segs", 0, Size::new(to.0, to.1), quirks) {
            Ok(Place { region, resize, cut, .. }) => {
                let resize = resize.map_or(String::new(), |size| format!(" from {size}"));
                let cut = cut.map_or(String::new(), |cut| format!(" cut {cut}"));
                format!("{region}{resize}{cut}")
            }
            Err(invalid) => format!("{}: {invalid}", invalid.field),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn segments_are_scaled_to_the_picture_and_cut_to_it() {
        check([10, 5, 30, 25], (100, 50), false, "20x20+10+5");
        check([10, 5, 30, 25], (200, 100), false, "40x40+20+10 from 40x40");
        check([10, 5, 30, 25], (200, 50), false, "40x20+20+5 from 40x20");
        check([10, 5, 30, 25], (200, 50), true, "10x15+20+10 from 10x15");
        check([-5, -6, 10, 10], (100, 50), false, "10x10+0+0 cut 10x10+5+6");
        check([90, 40, 120, 50], (100, 50), false, "10x10+90+40 cut 10x10+0+0");
    }

    #[test]
    fn a_region_without_pixels_on_the_picture_is_refused() {
        check(
            [10, 5, 10, 25],
            (100, 50),
            false,
            "segs[0].crop_region: the region (10, 5, 10, 25) of a segment is empty",
        );
        check(
            [100, 5, 120, 25],
            (100, 50),
            false,
            "segs[0].crop_region: the region (100, 5, 120, 25) lies outside of the 100x50 picture",
        );
        check(
            [50, 0, 60, 10],
            (200, 25),
            true,
            "segs[0].crop_region: the region (100, 0, 30, 5) of a segment is empty",
        );
    }

    #[test]
    fn the_last_rule_that_names_a_segment_wins() {
        let mut face = seg("face", Corners::new(0, 0, 8, 8));
        face.prompts.positive = Some("own".to_owned());
        let rule = |select, positive: Option<&str>, seed| Override {
            select,
            prompts: Prompts { positive: positive.map(str::to_owned), negative: None },
            seed,
        };
        let rules = [
            rule(Select::Label("face".to_owned()), Some("smiling"), Some(7)),
            rule(Select::Index(1), Some("sad"), None),
            rule(Select::Label("hand".to_owned()), None, Some(9)),
        ];
        let said = |index| {
            let (prompts, seed) = directions(index, &face, &rules);
            (prompts.positive.unwrap(), seed)
        };
        assert_eq!(said(0), ("smiling".to_owned(), Some(7)));
        assert_eq!(said(1), ("sad".to_owned(), Some(7)));
        assert_eq!(directions(0, &face, &[]).0.positive.unwrap(), "own");
    }
}

//! SEGS: what is redrawn.

use domain::{
    document::RunLengths,
    region::{Corners, Size},
    segs::{MAX_SEGS, Override, Prompts, Select},
    working::Bbox,
};

use super::{
    InvalidField, LONGEST_NAME, PictureRequest,
    pipe::{ControlNetRequest, control_nets},
    required,
};
use crate::v1;

/// Where SEGS come from, as submitted.
#[derive(Debug, Clone, PartialEq)]
pub enum SegsRequest {
    /// These.
    Given(GivenSegs),
    /// The parts of a mask.
    Mask(MaskToSegsRequest),
    /// Tiles that cover the picture.
    Tiles(MakeTileSegsRequest),
}

/// SEGS as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenSegs {
    /// The size of the picture that they were found in; 0x0: that of whatever picture they are laid on.
    pub size: Size,
    /// The segments.
    pub segs: Vec<SegRequest>,
}

/// A segment as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct SegRequest {
    /// The thing itself.
    pub bbox: Bbox,
    /// The surroundings that are worked on.
    pub crop_region: Corners,
    /// What it is.
    pub label: String,
    /// How sure the finder was.
    pub confidence: f64,
    /// What belongs to the thing.
    pub cropped_mask: MaskRequest,
    /// A picture that stands for the crop.
    pub cropped_image: Option<PictureRequest>,
    /// Prompts of its own.
    pub prompts: Prompts,
    /// ControlNets, in the order in which they are applied.
    pub control_nets: Vec<ControlNetRequest>,
}

/// A mask as submitted.
#[derive(Debug, Clone, PartialEq)]
pub enum MaskRequest {
    /// 1 everywhere.
    Full,
    /// The red channel of a picture, or its only one.
    Picture(PictureRequest),
    /// Runs of 0 and 1.
    Runs(RunLengths),
}

/// The parameters of `MaskToSEGS`.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskToSegsRequest {
    /// The mask, as large as the picture.
    pub mask: PictureRequest,
    /// One segment of all that is not 0.
    pub combined: bool,
    /// How many times as large as the part its crop region is.
    pub crop_factor: f64,
    /// Sets the whole of the bounding box in the mask.
    pub bbox_fill: bool,
    /// Parts that are not wider and taller than this are dropped.
    pub drop_size: u32,
    /// Fills the part and leaves no greys.
    pub contour_fill: bool,
}

/// The parameters of `MakeTileSEGS`.
#[derive(Debug, Clone, PartialEq)]
pub struct MakeTileSegsRequest {
    /// The side of a tile in pixels.
    pub bbox_size: u32,
    /// How many times as large as its tile a crop region is.
    pub crop_factor: f64,
    /// What neighbouring tiles share at least, in pixels.
    pub min_overlap: u32,
    /// Grows or shrinks the masks of the filters, in pixels.
    pub filter_segs_dilation: i32,
    /// 0 for tiles with straight edges, up to 1.
    pub mask_irregularity: f64,
    /// How irregular masks are drawn, by the reference's name.
    pub irregular_mask_mode: String,
    /// From which irregular masks are drawn.
    pub seed: u64,
    /// Keeps to what these hold.
    pub filter_in_segs: Option<GivenSegs>,
    /// Leaves out what these hold.
    pub filter_out_segs: Option<GivenSegs>,
}

/// How many times as large as what was found its surroundings are, where nobody says.
const CROP_FACTOR: f64 = 3.0;
/// The smallest part that is not dropped by default, in pixels.
const DROP_SIZE: u32 = 10;
/// The side of a tile when nobody says, in pixels.
const BBOX_SIZE: u32 = 512;
/// What tiles share when nobody says, in pixels.
const MIN_OVERLAP: u32 = 5;
/// What filters grow by when nobody says, in pixels.
const FILTER_SEGS_DILATION: i32 = 20;
/// How irregular masks are drawn when nobody says.
const IRREGULAR_MASK_MODE: &str = "Reuse fast";
/// How sure a finder is that does not say.
const CONFIDENCE: f64 = 1.0;

impl SegsRequest {
    /// Reads the source of SEGS at `at`.
    pub(super) fn read(at: &str, source: Option<v1::SegsSource>) -> Result<Self, InvalidField> {
        use v1::segs_source::Source;
        let source = source.and_then(|source| source.source);
        let Some(source) = source else {
            let why = "is missing: give `segs`, a `mask` or `tiles`".to_owned();
            return Err(InvalidField::new(at, why));
        };
        Ok(match source {
            Source::Segs(segs) => Self::Given(GivenSegs::read(&format!("{at}.segs"), segs)?),
            Source::Mask(mask) => Self::Mask(mask_to_segs(&format!("{at}.mask"), mask)?),
            Source::Tiles(tiles) => Self::Tiles(make_tile_segs(&format!("{at}.tiles"), tiles)?),
        })
    }
}

impl GivenSegs {
    /// Reads the SEGS whose segments are at `at`.
    fn read(at: &str, segs: v1::Segs) -> Result<Self, InvalidField> {
        let v1::Segs { width, height, segs } = segs;
        if (width == 0) != (height == 0) {
            let why = format!("is {width}x{height}: give both sides, or neither");
            return Err(InvalidField::new(at, why));
        }
        if segs.len() as u64 > MAX_SEGS {
            let why = format!("there are {} segments, and the most is {MAX_SEGS}", segs.len());
            return Err(InvalidField::new(at, why));
        }
        let seg = |(i, wire): (usize, v1::Seg)| seg(&format!("{at}[{i}]"), wire);
        Ok(Self {
            size: Size::new(width, height),
            segs: segs.into_iter().enumerate().map(seg).collect::<Result<_, InvalidField>>()?,
        })
    }
}

fn seg(at: &str, wire: v1::Seg) -> Result<SegRequest, InvalidField> {
    let [x1, y1, x2, y2] = <[i64; 4]>::try_from(wire.crop_region).map_err(|corners| {
        let why = format!("has {} numbers, and 4 are wanted: x1, y1, x2, y2", corners.len());
        InvalidField::new(format!("{at}.crop_region"), why)
    })?;
    let crop_region = Corners { x1, y1, x2, y2 };
    let bbox = match wire.bbox[..] {
        [] => crop_region.into(),
        [x1, y1, x2, y2] => Bbox { x1, y1, x2, y2 },
        _ => {
            let why = format!("has {} numbers, and 0 or 4 are wanted: x1, y1, x2, y2", wire.bbox.len());
            return Err(InvalidField::new(format!("{at}.bbox"), why));
        }
    };
    if let Some(corner) = <[f64; 4]>::from(bbox).into_iter().find(|corner| !corner.is_finite()) {
        return Err(InvalidField::new(format!("{at}.bbox"), format!("has a corner at {corner}, which is no place")));
    }
    let confidence = wire.confidence.unwrap_or(CONFIDENCE);
    domain::check::in_range(format!("{at}.confidence"), confidence, 0.0, 1.0)?;
    let image = |image| PictureRequest::read(&format!("{at}.cropped_image"), "cropped image", image);
    Ok(SegRequest {
        bbox,
        crop_region,
        label: label(format!("{at}.label"), wire.label)?,
        confidence,
        cropped_mask: mask(&format!("{at}.cropped_mask"), wire.cropped_mask)?,
        cropped_image: wire.cropped_image.map(image).transpose()?,
        prompts: Prompts { positive: wire.positive, negative: wire.negative },
        control_nets: control_nets(at, wire.control_nets)?,
    })
}

fn label(path: String, label: String) -> Result<String, InvalidField> {
    if label.len() > LONGEST_NAME {
        return Err(InvalidField::new(path, format!("is longer than {LONGEST_NAME} bytes")));
    }
    Ok(label)
}

fn mask(at: &str, mask: Option<v1::SegMask>) -> Result<MaskRequest, InvalidField> {
    use v1::seg_mask::Source;
    Ok(match mask.and_then(|mask| mask.source) {
        None => MaskRequest::Full,
        Some(Source::Picture(picture)) => {
            MaskRequest::Picture(PictureRequest::read(&format!("{at}.picture"), "mask", picture)?)
        }
        Some(Source::Rle(v1::RunLengths { width, height, counts })) => {
            let runs = RunLengths { width, height, counts };
            runs.check().map_err(InvalidField::at(&format!("{at}.rle")))?;
            MaskRequest::Runs(runs)
        }
    })
}

fn mask_to_segs(at: &str, wire: v1::MaskToSegs) -> Result<MaskToSegsRequest, InvalidField> {
    let crop_factor = wire.crop_factor.unwrap_or(CROP_FACTOR);
    domain::check::in_range(format!("{at}.crop_factor"), crop_factor, 1.0, 100.0)?;
    let path = format!("{at}.mask");
    Ok(MaskToSegsRequest {
        mask: PictureRequest::read(&path, "mask", required(&path, wire.mask)?)?,
        combined: wire.combined,
        crop_factor,
        bbox_fill: wire.bbox_fill,
        drop_size: wire.drop_size.unwrap_or(DROP_SIZE),
        contour_fill: wire.contour_fill,
    })
}

fn make_tile_segs(at: &str, wire: v1::MakeTileSegs) -> Result<MakeTileSegsRequest, InvalidField> {
    let path = |field: &str| format!("{at}.{field}");
    let filter = |field: &str, segs: Option<v1::Segs>| {
        segs.map(|segs| GivenSegs::read(&format!("{}.segs", path(field)), segs)).transpose()
    };
    let or = |given: String| if given.is_empty() { IRREGULAR_MASK_MODE.to_owned() } else { given };
    let tiles = MakeTileSegsRequest {
        bbox_size: if wire.bbox_size == 0 { BBOX_SIZE } else { wire.bbox_size },
        crop_factor: wire.crop_factor.unwrap_or(CROP_FACTOR),
        min_overlap: wire.min_overlap.unwrap_or(MIN_OVERLAP),
        filter_segs_dilation: wire.filter_segs_dilation.unwrap_or(FILTER_SEGS_DILATION),
        mask_irregularity: wire.mask_irregularity,
        irregular_mask_mode: or(wire.irregular_mask_mode),
        seed: wire.seed,
        filter_in_segs: filter("filter_in_segs", wire.filter_in_segs)?,
        filter_out_segs: filter("filter_out_segs", wire.filter_out_segs)?,
    };
    domain::check::in_range(path("bbox_size"), tiles.bbox_size, 64, 4096)?;
    domain::check::in_range(path("crop_factor"), tiles.crop_factor, 1.0, 10.0)?;
    domain::check::in_range(path("min_overlap"), tiles.min_overlap, 0, 512)?;
    domain::check::in_range(path("filter_segs_dilation"), tiles.filter_segs_dilation, -255, 255)?;
    domain::check::in_range(path("mask_irregularity"), tiles.mask_irregularity, 0.0, 1.0)?;
    Ok(tiles)
}

/// Reads the changes of segments at `at`.
pub(super) fn overrides(at: &str, overrides: Vec<v1::SegOverride>) -> Result<Vec<Override>, InvalidField> {
    let change = |(i, wire): (usize, v1::SegOverride)| {
        let at = format!("{at}[{i}]");
        let select = match required(&format!("{at}.select"), wire.select)? {
            v1::seg_override::Select::Label(name) => Select::Label(label(format!("{at}.label"), name)?),
            v1::seg_override::Select::Index(index) => Select::Index(index),
        };
        let prompts = Prompts { positive: wire.positive, negative: wire.negative };
        Ok(Override { select, prompts, seed: wire.seed })
    };
    overrides.into_iter().enumerate().map(change).collect()
}

//! What is wrong with a job's fields, and what is merely worth knowing (reference: detailers.md, section 12.1).

use std::fmt::Display;

use crate::{
    picture::NotEncodable,
    pipe::Family,
    region::{Corners, EmptyRegion, Size},
    tiles::BadTiling,
    working::{Bbox, EmptyBox},
};

/// A field that cannot be used, by its path, such as `segs_detail.segs[3].bbox`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{wrong}")]
pub struct Invalid {
    /// The path of the field.
    pub field: String,
    /// What is wrong with it.
    pub wrong: Wrong,
}

/// What is wrong with a field, and what would be right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Wrong {
    /// A number lies outside of its range, or is none.
    #[error("is {value}, and {least} to {most} is wanted")]
    Range {
        /// The number.
        value: String,
        /// The least that is possible.
        least: String,
        /// The most that is possible.
        most: String,
    },
    /// A name that is none of ours.
    #[error("`{name}` is not a {what}; there are {}", known.join(", "))]
    Unknown {
        /// The kind of thing named.
        what: &'static str,
        /// The name given.
        name: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// A seed that grows with segments, rounds and cycles leaves its range.
    #[error("is {seed}, and the job counts up to {step} more than that: at most {} fits 64 bits", u64::MAX - step)]
    SeedOverflow {
        /// The seed.
        seed: u64,
        /// What the job adds to it.
        step: u64,
    },
    /// A tiny denoise asks for a schedule that nobody can compute.
    #[error(
        "is {denoise}, so that {steps} steps are the end of {advanced}, and {most} is the most: at least {least} fits"
    )]
    Schedule {
        /// The denoise.
        denoise: f64,
        /// The steps to be done.
        steps: u32,
        /// The steps of the whole schedule.
        advanced: f64,
        /// The most that a schedule may have.
        most: u64,
        /// The least denoise that fits.
        least: f64,
    },
    /// A segment's region holds no pixels.
    #[error(transparent)]
    EmptyRegion(#[from] EmptyRegion),
    /// A segment's region lies wholly outside of the picture.
    #[error("the region {region} lies outside of the {picture} picture")]
    Outside {
        /// The region.
        region: Corners,
        /// The picture's size.
        picture: Size,
    },
    /// A segment's box has no side that its enlargement could be measured by.
    #[error("{0}; with guide_size_for crop_region it is not asked for")]
    EmptyBox(#[from] EmptyBox),
    /// A segment's box has a corner that is no number.
    #[error("the bbox {0} has a corner that is no number")]
    NoBox(Bbox),
    /// A segment would be redrawn at a size that has no latent.
    #[error("the segment would be redrawn at {size}, and a latent needs 8 pixels a side: a larger guide_size helps")]
    NoLatent {
        /// The size it comes to.
        size: Size,
    },
    /// Something would be redrawn at a size that no worker has room for.
    #[error(
        "redrawing {size} pixels takes about {needs_bytes} bytes of memory, and the largest worker has {has_bytes}: {fits} pixels would fit"
    )]
    NoRoom {
        /// The size it comes to.
        size: Size,
        /// What that takes.
        needs_bytes: u64,
        /// What there is.
        has_bytes: u64,
        /// The largest size of this shape that fits.
        fits: Size,
    },
    /// Two things of different sizes that must be of one.
    #[error("is {got}, and {want} is wanted")]
    Size {
        /// The size there is.
        got: Size,
        /// The size that is needed.
        want: Size,
    },
    /// A mask or picture without pixels.
    #[error("is {0} and has no pixels")]
    NoPixels(Size),
    /// The picture is grey, and the networks see colours.
    #[error("the picture is grey, and the networks see colours: save it as RGB")]
    Grey,
    /// A result would have no pixels, or too many for 32 bits a side.
    #[error("{factor} times {from} has a side that is nothing or does not fit 32 bits")]
    NoResult {
        /// The size of what is enlarged.
        from: Size,
        /// How many times.
        factor: f64,
    },
    /// A part of another family of networks.
    #[error("`{name}` is of family {got}, and the pipe is of {want}")]
    Family {
        /// The part.
        name: String,
        /// Its family.
        got: Family,
        /// The family that is needed.
        want: Family,
    },
    /// A network that must take pictures takes something else.
    #[error("`{name}` has scale {scale}, and at least 1 is wanted")]
    Scale {
        /// The network.
        name: String,
        /// Its scale.
        scale: u32,
    },
    /// The result cannot be written so.
    #[error(transparent)]
    Output(#[from] NotEncodable),
    /// The picture cannot be cut so for its network.
    #[error(transparent)]
    Tiling(#[from] BadTiling),
    /// Something that is needed is absent.
    #[error("is missing: {0}")]
    Missing(&'static str),
    /// Two rules that cannot both hold.
    #[error("{0}")]
    Conflict(&'static str),
    /// There are too many of them.
    #[error("there are {count} {what}, and the most is {most}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are, or more.
        count: u64,
        /// How many there may be.
        most: u64,
    },
}

impl Wrong {
    /// This as the fault of the field at `path`.
    pub fn at(self, path: impl Into<String>) -> Invalid {
        Invalid { field: path.into(), wrong: self }
    }
}

/// Refuses a number outside of `least..=most`, or that is none.
pub fn in_range<T: PartialOrd + Display>(field: impl Into<String>, value: T, least: T, most: T) -> Result<(), Invalid> {
    if (&least..=&most).contains(&&value) {
        return Ok(());
    }
    let wrong = Wrong::Range { value: value.to_string(), least: least.to_string(), most: most.to_string() };
    Err(wrong.at(field))
}

/// Refuses a name that is not among `known`.
pub fn known_name(
    field: impl Into<String>,
    what: &'static str,
    name: &str,
    known: impl Iterator<Item = &'static str> + Clone,
) -> Result<(), Invalid> {
    if known.clone().any(|one| one == name) {
        return Ok(());
    }
    let name = name.chars().take(80).collect();
    Err(Wrong::Unknown { what, name, known: known.collect() }.at(field))
}

/// Something about a job that its submitter should know, though it is done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Warning {
    /// There is nothing to do.
    #[error("there is no segment to work on: the picture stays as it is")]
    NothingToDo,
    /// A segment has nothing in its mask.
    #[error("the mask of segment {seg} is all zero: it stays as it is")]
    EmptyMask {
        /// The segment's index.
        seg: usize,
    },
    /// A segment is large enough already.
    #[error("segment {seg} is large enough already and keeps its pixels: force_inpaint redraws it")]
    Kept {
        /// The segment's index.
        seg: usize,
    },
    /// A segment's region hung over the picture's edge.
    #[error("the crop region {region} of segment {seg} was cut to the {picture} picture, and its mask with it")]
    Cut {
        /// The segment's index.
        seg: usize,
        /// The region.
        region: Corners,
        /// The picture's size.
        picture: Size,
    },
    /// A mask is not as large as its region.
    #[error("the mask of segment {seg} is {mask} and is stretched to its region of {region}")]
    Stretched {
        /// The segment's index.
        seg: usize,
        /// The mask's size.
        mask: Size,
        /// The region's size.
        region: Size,
    },
    /// The picture's alpha channel is not used.
    #[error("the picture's alpha channel is left out")]
    AlphaDropped,
    /// The first sampler does nothing, so that the refiner redraws a picture without noise (Q8).
    #[error(
        "with refiner_ratio {refiner_ratio} none of {steps} steps is left for the base, and the refiner gets a picture without noise"
    )]
    NoNoise {
        /// The ratio.
        refiner_ratio: f64,
        /// The steps.
        steps: u32,
    },
    /// The refiner leaves noise where the mask is soft (Q22).
    #[error("with a refiner, noise_mask_feather {0} leaves residual noise in the soft borders of masks")]
    ResidualNoise(u32),
    /// The flag has no effect on this checkpoint.
    #[error("inpaint_model is on, but `{0}` is not an inpainting checkpoint: the flag has no effect")]
    NotInpainting(String),
    /// The checkpoint gets its extra channels from elsewhere.
    #[error("`{0}` is an inpainting checkpoint, but inpaint_model is off: it sees the picture unmasked")]
    InpaintingUnused(String),
    /// A rule for segments fits none.
    #[error("overrides[{0}] names no segment of the job")]
    NoSuchSeg(usize),
    /// Rounding is taken from the reference, with regions that differ from what is meant (Q1).
    #[error(
        "the picture has another aspect than the SEGS were made for, and with reference_quirks regions are misplaced"
    )]
    Misplaced,
}

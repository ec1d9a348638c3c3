//! Pictures and masks in memory, as the pixel operations take them: `f32`, frame by frame, row by row, channels last.

use domain::{
    region::{Corners, EmptyRegion, Region, Size},
    tiles::BadTiling,
    working::EmptyBox,
};

use crate::raster::RasterError;

/// Why an operation on pixels was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PixelError {
    /// The samples do not fill the shape they are said to have.
    #[error("{got} samples do not fill {frames} frames of {size} with {channels} channels")]
    Length {
        /// Samples there are.
        got: usize,
        /// Frames asked for.
        frames: usize,
        /// Size of a frame.
        size: Size,
        /// Channels of a pixel.
        channels: usize,
    },
    /// A result would have no pixels.
    #[error("{operation} would make an empty {size} picture")]
    Empty {
        /// What was asked for.
        operation: &'static str,
        /// The size it leads to.
        size: Size,
    },
    /// The operation is not defined for this number of channels.
    #[error("{operation} takes {want} channels, not {got}")]
    Channels {
        /// What was asked for.
        operation: &'static str,
        /// The numbers that are possible.
        want: &'static str,
        /// The number there is.
        got: usize,
    },
    /// The operation is not defined for this number of frames.
    #[error("{operation} takes {want} frames, not {got}")]
    Frames {
        /// What was asked for.
        operation: &'static str,
        /// The frames that are needed.
        want: usize,
        /// The frames there are.
        got: usize,
    },
    /// A picture whose rows come one after the other ended before its last.
    #[error("{operation} takes {want} rows, but {got} came")]
    Rows {
        /// What was asked for.
        operation: &'static str,
        /// The height of the picture.
        want: usize,
        /// The rows that came.
        got: usize,
    },
    /// Two sizes that must be equal differ.
    #[error("{operation} takes a size of {want}, not {got}")]
    SizeMismatch {
        /// What was asked for.
        operation: &'static str,
        /// The size that is needed.
        want: Size,
        /// The size there is.
        got: Size,
    },
    /// Tiles would not advance.
    #[error("an overlap of {overlap} pixels needs tiles larger than {tile} pixels")]
    Overlap {
        /// The overlap asked for.
        overlap: usize,
        /// The tile's side asked for.
        tile: usize,
    },
    /// The tiles leave a hole: there is no value to give.
    #[error("no tile covers the output pixel at column {x}, row {y}")]
    Uncovered {
        /// Column of the first such pixel.
        x: u32,
        /// Its row.
        y: u32,
    },
    /// A tile lies partly outside of the picture it belongs to.
    #[error("the tile {tile} runs past the end of the {picture} output")]
    PastTheEnd {
        /// Where the tile would lie.
        tile: Region,
        /// The output's size.
        picture: Size,
    },
    /// A segment's region holds no pixels.
    #[error(transparent)]
    EmptyRegion(#[from] EmptyRegion),
    /// A segment's box has no side that its enlargement could be measured by.
    #[error(transparent)]
    EmptyBox(#[from] EmptyBox),
    /// Tiles made as segments would not advance.
    #[error("an overlap of {min_overlap} pixels leaves no step between tiles of {bbox_size} pixels")]
    NoStep {
        /// The overlap, after it was fitted to the picture.
        min_overlap: f64,
        /// The tile side, after it was fitted to the picture.
        bbox_size: i64,
    },
    /// A seed that grows by one per segment or round leaves its range.
    #[error("the seed {seed} plus {step} does not fit 64 bits")]
    SeedOverflow {
        /// The seed of the job.
        seed: u64,
        /// What was to be added.
        step: u64,
    },
    /// The tiles of a picture cannot be laid.
    #[error("the tiles cannot be laid")]
    Tiling(#[from] BadTiling),
    /// A window of a decoded picture cannot be cut.
    #[error("the decoded picture cannot be cut")]
    Raster(#[from] RasterError),
    /// What was read from the store is not what was asked for.
    #[error("{want} pieces of the store are wanted, not {got}")]
    Pieces {
        /// How many were asked for.
        want: usize,
        /// How many came.
        got: usize,
    },
    /// A piece of the store of the wrong length.
    #[error("{got} bytes came of `{key}` instead of {want}")]
    PieceLength {
        /// Where it lies.
        key: String,
        /// How many were asked for.
        want: u64,
        /// How many came.
        got: u64,
    },
    /// Numbers that no picture can be made of.
    #[error("`{key}` holds a sample that is {sample}")]
    NotFinite {
        /// Where it lies.
        key: String,
        /// The first such number: infinite, or none at all.
        sample: f32,
    },
    /// A name that is none of ours.
    #[error("`{name}` is not a {what}: {want} is wanted")]
    Unknown {
        /// The kind of thing named.
        what: &'static str,
        /// The name given.
        name: String,
        /// The names there are.
        want: &'static str,
    },
}

/// One or more pictures of one size: `[frames, height, width, channels]`, usually 0..1.
#[derive(Debug, Clone, PartialEq)]
pub struct Frames {
    /// Pictures.
    pub frames: usize,
    /// Rows of a picture.
    pub height: usize,
    /// Columns of a picture.
    pub width: usize,
    /// Samples of a pixel.
    pub channels: usize,
    /// The samples, `frames * height * width * channels` of them.
    pub data: Vec<f32>,
}

impl Frames {
    /// Takes samples as `frames` pictures of `size` with `channels` channels.
    pub fn new(frames: usize, size: Size, channels: usize, data: Vec<f32>) -> Result<Self, PixelError> {
        let (height, width) = (size.height as usize, size.width as usize);
        if frames * height * width * channels != data.len() {
            return Err(PixelError::Length { got: data.len(), frames, size, channels });
        }
        Ok(Self { frames, height, width, channels, data })
    }

    /// Width and height of a frame.
    pub fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }

    /// Samples of a row.
    pub fn row_len(&self) -> usize {
        self.width * self.channels
    }

    /// Samples of a frame.
    pub fn frame_len(&self) -> usize {
        self.height * self.row_len()
    }

    /// The samples of frame `index`.
    pub fn frame(&self, index: usize) -> &[f32] {
        &self.data[index * self.frame_len()..][..self.frame_len()]
    }

    /// Frame `index` as a picture of its own.
    pub fn single(&self, index: usize) -> Self {
        Self { frames: 1, data: self.frame(index).to_vec(), ..*self }
    }

    /// Each frame on its own, put together again by `f`, which may change size and channels but alike for all.
    pub fn try_map<E: From<PixelError>>(&self, mut f: impl FnMut(Frames) -> Result<Frames, E>) -> Result<Frames, E> {
        let mut out: Option<Self> = None;
        for index in 0..self.frames {
            let frame = f(self.single(index))?;
            match &mut out {
                None => out = Some(frame),
                Some(out) if out.size() == frame.size() && out.channels == frame.channels => {
                    out.frames += frame.frames;
                    out.data.extend(frame.data);
                }
                Some(out) => {
                    let (want, got) = (out.size(), frame.size());
                    return Err(PixelError::SizeMismatch { operation: "a batch of frames", want, got }.into());
                }
            }
        }
        let nothing = PixelError::Frames { operation: "a batch of frames", want: 1, got: 0 };
        out.ok_or_else(|| nothing.into())
    }

    /// The pixels of `region`, of every frame; what lies outside of the picture is left out.
    pub fn crop(&self, region: &Corners) -> Self {
        let cut = region.within(self.size());
        let data = crop_rows(&self.data, self.height, self.width, self.channels, cut);
        Self { height: cut.height as usize, width: cut.width as usize, data, ..*self }
    }

    /// Every sample through `f`.
    pub fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        self.data.iter_mut().for_each(|x| *x = f(*x));
        self
    }
}

/// Cuts `region` out of frames of `height` x `width` pixels that lie one after the other.
pub(crate) fn crop_rows<T: Copy>(data: &[T], height: usize, width: usize, channels: usize, region: Region) -> Vec<T> {
    let (from, len) = (region.x as usize * channels, region.width as usize * channels);
    let mut out = Vec::with_capacity(region.size().pixels() as usize * channels);
    for frame in data.chunks_exact((height * width * channels).max(1)) {
        for y in region.y..region.bottom() {
            out.extend_from_slice(&frame[y as usize * width * channels + from..][..len]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_that_do_not_fill_the_shape_are_refused() {
        let refused = Frames::new(1, Size::new(2, 2), 3, vec![0.0; 11]).unwrap_err();
        assert_eq!(refused.to_string(), "11 samples do not fill 1 frames of 2x2 with 3 channels");
    }

    #[test]
    fn a_crop_that_hangs_over_is_cut_off() {
        let picture = Frames::new(2, Size::new(3, 2), 1, (0..12).map(|i| i as f32).collect()).unwrap();
        let crop = picture.crop(&Corners::new(1, 1, 9, 9));
        assert_eq!((crop.size(), crop.data), (Size::new(2, 1), vec![4.0, 5.0, 10.0, 11.0]));
        assert!(picture.crop(&Corners::new(2, 0, 1, 2)).data.is_empty());
    }
}

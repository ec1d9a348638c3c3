//! Where the tiles of a picture lie, and how wide their seams are: the reference's tiled scaling (pixels.md, section 2)
//! for a whole-number scale.

use serde::{Deserialize, Serialize};

use crate::region::{Region, Size};

/// How a picture is cut: tiles of at most `side` pixels a side that overlap their neighbours by `overlap` pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tiling {
    /// The longest side of a tile, in pixels of the input.
    pub side: u32,
    /// What neighbouring tiles share, in pixels of the input; less than `side`.
    pub overlap: u32,
}

/// In how many tiles along one axis a pixel may lie at the most.
pub const MAX_DENSITY: u32 = 8;

/// Why a tiling cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadTiling {
    /// The tiles would not advance.
    #[error("an overlap of {overlap} pixels needs tiles larger than {side} pixels")]
    OverlapNotBelowSide {
        /// The overlap asked for.
        overlap: u32,
        /// The side asked for.
        side: u32,
    },
    /// Nearly every pixel would be rendered many times over.
    #[error(
        "an overlap of {overlap} pixels leaves tiles of {side} pixels too little to advance: each pixel would be in more than {MAX_DENSITY} of them along an axis"
    )]
    TooDense {
        /// The overlap asked for.
        overlap: u32,
        /// The side asked for.
        side: u32,
    },
    /// Larger than any picture: sums of positions must stay within 32 bits.
    #[error("a tile side of {0} pixels is more than 65536")]
    SideTooLarge(u32),
}

/// One tile: what it reads and what it gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// The pixels of the input that the network sees.
    pub input: Region,
    /// The pixels of the output that it makes: `input` times the scale.
    pub output: Region,
    /// Rows at the top and at the bottom of the output over which it fades; 0 is a hard edge.
    pub feather_rows: u32,
    /// Columns at the left and at the right of the output over which it fades; 0 is a hard edge.
    pub feather_columns: u32,
}

/// The tiles of one picture: a grid that is computed, never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileGrid {
    picture: Size,
    scale: u32,
    overlap: u32,
    whole: bool,
    columns: Axis,
    rows: Axis,
}

/// One axis of a grid: tile `i` starts at `i * step`, or a little earlier at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Axis {
    length: u32,
    side: u32,
    overlap: u32,
    count: u32,
}

impl Axis {
    fn new(length: u32, tiling: Tiling) -> Self {
        let Tiling { side, overlap } = tiling;
        // Positions 0, step, 2*step, ... below length - overlap, or a single one where the axis fits a tile.
        let count = if length <= side { 1 } else { (length - overlap).div_ceil(side - overlap) };
        Self { length, side, overlap, count }
    }

    /// Start and length of tile `index`.
    fn span(&self, index: u32) -> (u32, u32) {
        if self.count == 1 {
            return (0, self.length);
        }
        let start = (index * (self.side - self.overlap)).min(self.length - self.overlap);
        (start, self.side.min(self.length - start))
    }

    /// The feather of a tile `length` output pixels long; a tile no longer than the feather has none.
    fn feather(&self, length: u32, scale: u32) -> u32 {
        let feather = scale * self.overlap;
        if feather >= length { 0 } else { feather }
    }

    /// Indices of the tiles that touch the input positions `from..to`.
    fn touching(&self, from: u32, to: u32) -> std::ops::Range<u32> {
        if self.count == 1 {
            return 0..1;
        }
        let step = self.side - self.overlap;
        // Tile i covers i*step .. i*step + side, cut off at the end.
        let first = (from + 1).saturating_sub(self.side).div_ceil(step);
        let last = (to.saturating_sub(1)) / step;
        first.min(self.count - 1)..(last + 1).min(self.count)
    }
}

impl TileGrid {
    /// Cuts a picture that a network enlarges `scale` times.
    ///
    /// A picture that fits one tile is rendered whole. Otherwise an axis that fits gives one tile of its full length,
    /// and the last tile of a longer one is short, not moved back: its length is anywhere in `overlap + 1..=side`.
    pub fn new(picture: Size, tiling: Tiling, scale: u32) -> Result<Self, BadTiling> {
        let Tiling { side, overlap } = tiling;
        if side > 65_536 {
            return Err(BadTiling::SideTooLarge(side));
        }
        if overlap >= side {
            return Err(BadTiling::OverlapNotBelowSide { overlap, side });
        }
        if side.div_ceil(side - overlap) > MAX_DENSITY {
            return Err(BadTiling::TooDense { overlap, side });
        }
        Ok(Self {
            picture,
            scale,
            overlap,
            whole: picture.width <= side && picture.height <= side,
            columns: Axis::new(picture.width, tiling),
            rows: Axis::new(picture.height, tiling),
        })
    }

    /// How many tiles there are.
    pub fn count(&self) -> u64 {
        u64::from(self.columns.count) * u64::from(self.rows.count)
    }

    /// Whether the picture is a single tile, which is copied as it is: no feather, no division.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The size of the enlarged picture.
    pub fn output(&self) -> Size {
        Size { width: self.picture.width * self.scale, height: self.picture.height * self.scale }
    }

    /// Tile `index`, counted row by row from the top left, which is the order in which tiles are blended.
    ///
    /// # Panics
    /// When `index` is not below [`TileGrid::count`].
    pub fn tile(&self, index: u64) -> Tile {
        assert!(index < self.count(), "tile {index} of {}", self.count());
        let columns = u64::from(self.columns.count);
        let (x, width) = self.columns.span((index % columns) as u32);
        let (y, height) = self.rows.span((index / columns) as u32);
        let output = Region::new(x * self.scale, y * self.scale, width * self.scale, height * self.scale);
        let feather = |axis: &Axis, length| if self.whole { 0 } else { axis.feather(length, self.scale) };
        Tile {
            input: Region::new(x, y, width, height),
            output,
            feather_rows: feather(&self.rows, output.height),
            feather_columns: feather(&self.columns, output.width),
        }
    }

    /// The tiles in blending order.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> + '_ {
        (0..self.count()).map(|index| self.tile(index))
    }

    /// Indices of the tiles whose output touches the output rows `rows`, in blending order.
    pub fn touching_rows(&self, rows: std::ops::Range<u32>) -> std::ops::Range<u64> {
        let touched = self.rows.touching(rows.start / self.scale, rows.end.div_ceil(self.scale));
        let columns = u64::from(self.columns.count);
        u64::from(touched.start) * columns..u64::from(touched.end) * columns
    }

    /// Indices of the tiles whose output shares a pixel with the output region `region`, in blending order.
    pub fn touching(&self, region: Region) -> impl Iterator<Item = u64> + '_ {
        self.touching_rows(region.y..region.bottom())
            .filter(move |index| self.tile(*index).output.intersection(&region).is_some())
    }

    /// What neighbours share, in pixels of the input.
    pub fn overlap(&self) -> u32 {
        self.overlap
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(picture: (u32, u32), side: u32, overlap: u32, want: &str) {
        let grid = TileGrid::new(Size::new(picture.0, picture.1), Tiling { side, overlap }, 2).unwrap();
        let got: Vec<_> = grid.tiles().map(|tile| tile.input.to_string()).collect();
        assert_eq!(got.join(" "), want);
    }

    #[test]
    fn tiles_advance_by_side_less_overlap_and_the_last_is_short() {
        check((512, 512), 512, 32, "512x512+0+0");
        check((513, 512), 512, 32, "512x512+0+0 33x512+480+0");
        check((992, 100), 512, 32, "512x100+0+0 512x100+480+0");
        check((993, 20), 512, 32, "512x20+0+0 512x20+480+0 33x20+960+0");
        check((6, 5), 4, 1, "4x4+0+0 3x4+3+0 4x2+0+3 3x2+3+3");
        check((1, 1), 512, 32, "1x1+0+0");
    }

    #[test]
    fn a_short_tile_has_no_feather_and_a_whole_picture_neither() {
        let grid = |w, h| TileGrid::new(Size::new(w, h), Tiling { side: 16, overlap: 4 }, 2).unwrap();
        let tile = grid(20, 3).tile(0);
        assert_eq!((tile.feather_rows, tile.feather_columns), (0, 8));
        let tile = grid(16, 16).tile(0);
        assert_eq!((tile.feather_rows, tile.feather_columns), (0, 0));
    }

    #[test]
    fn an_overlap_that_stops_the_tiles_is_refused() {
        let tiling = |side, overlap| TileGrid::new(Size::new(9, 9), Tiling { side, overlap }, 1);
        assert_eq!(tiling(8, 8), Err(BadTiling::OverlapNotBelowSide { overlap: 8, side: 8 }));
        assert_eq!(tiling(512, 511), Err(BadTiling::TooDense { overlap: 511, side: 512 }));
        assert!(tiling(0, 0).is_err());
        assert!(tiling(70_000, 1).is_err());
    }

    proptest! {
        #[test]
        fn tiles_cover_every_pixel_and_rows_find_their_tiles(
            width in 1..200u32, height in 1..200u32, side in 1..64u32, overlap in 0..63u32, scale in 1..5u32, at in 0.0..1.0f64,
        ) {
            prop_assume!(overlap < side && side.div_ceil(side - overlap) <= MAX_DENSITY);
            let grid = TileGrid::new(Size::new(width, height), Tiling { side, overlap }, scale).unwrap();
            let mut seen = vec![false; (width * height) as usize];
            for tile in grid.tiles() {
                prop_assert!(tile.input.is_within(Size::new(width, height)));
                for y in tile.input.y..tile.input.bottom() {
                    for x in tile.input.x..tile.input.right() {
                        seen[(y * width + x) as usize] = true;
                    }
                }
            }
            prop_assert!(seen.into_iter().all(|pixel| pixel));

            let start = (at * f64::from(height * scale - 1)) as u32;
            let end = (start + 7).min(height * scale);
            let touched = grid.touching_rows(start..end);
            for (index, tile) in (0..).zip(grid.tiles()) {
                let touches = tile.output.y < end && tile.output.bottom() > start;
                prop_assert!(!touches || touched.contains(&index), "tile {index} is missing from {touched:?}");
            }
        }
    }
}

//! Which pixels of a picture a paste changes: the regions that the dependencies between segments follow from.

use serde::{Deserialize, Serialize};

use crate::region::{Region, Size};

/// The most runs that a row keeps; where there are more, the narrowest gaps between them count as touched.
pub const MOST_RUNS: usize = 64;

/// A set of pixels of a picture: those where a segment's paste mask is not 0.
///
/// Rows hold runs, and equal rows that follow one another are kept once. That is exact, as small as the outline of the
/// mask, and a question about a region costs the rows that it meets. (A bitmap of tiles would be a box at the scale that
/// matters: masks end within a feather of each other's crops.) Only a mask with more than [`MOST_RUNS`] runs in a row is
/// kept larger than it is, which costs waiting, never a pixel.
///
/// In JSON it is a list of bands, `[top, bottom, left, right, left, right, ...]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<u32>>", into = "Vec<Vec<u32>>")]
pub struct Touched {
    bands: Vec<Band>,
}

/// Rows `top..bottom`, which all have the same runs: columns `.0..*.1`, from the left, with gaps between them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Band {
    top: u32,
    bottom: u32,
    runs: Vec<(u32, u32)>,
}

/// Numbers that are no set of pixels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("band {band} of the touched pixels is not `top, bottom, left, right, ...` in ascending order")]
pub struct NotTouched {
    /// Which band it is, from 0.
    pub band: usize,
}

impl Touched {
    /// The pixels of `region` at which `weights`, the paste mask within it row by row, is not 0.
    ///
    /// # Panics
    /// When there is not one weight for each pixel of the region.
    pub fn of(region: Region, weights: &[f32]) -> Self {
        assert_eq!(weights.len() as u64, region.size().pixels(), "one weight for each pixel of {region}");
        let mut touched = Self::default();
        for (y, row) in (region.y..).zip(weights.chunks_exact(region.width.max(1) as usize)) {
            touched.push(y, runs(region.x, row));
        }
        touched
    }

    /// The same pixels `x` further to the right and `y` further down.
    pub fn moved(&self, x: u32, y: u32) -> Self {
        let band = |Band { top, bottom, runs }: &Band| Band {
            top: top + y,
            bottom: bottom + y,
            runs: runs.iter().map(|(left, right)| (left + x, right + x)).collect(),
        };
        Self { bands: self.bands.iter().map(band).collect() }
    }

    /// Adds row `y`, which lies below all others.
    fn push(&mut self, y: u32, runs: Vec<(u32, u32)>) {
        match self.bands.last_mut() {
            _ if runs.is_empty() => {}
            Some(band) if band.bottom == y && band.runs == runs => band.bottom = y + 1,
            _ => self.bands.push(Band { top: y, bottom: y + 1, runs }),
        }
    }

    /// Whether nothing is touched.
    pub fn is_empty(&self) -> bool {
        self.bands.is_empty()
    }

    /// Whether a pixel of `region` is touched.
    pub fn meets(&self, region: Region) -> bool {
        let (left, right) = (region.x, region.right());
        let first = self.bands.partition_point(|band| band.bottom <= region.y);
        let rows = self.bands[first..].iter().take_while(|band| band.top < region.bottom());
        left < right && rows.flat_map(|band| &band.runs).any(|run| run.0 < right && run.1 > left)
    }

    /// The smallest region that holds all of it.
    pub fn bounds(&self) -> Option<Region> {
        let (first, last) = (self.bands.first()?, self.bands.last()?);
        let runs = || self.bands.iter().flat_map(|band| &band.runs);
        let (left, right) = (runs().map(|run| run.0).min()?, runs().map(|run| run.1).max()?);
        Some(Region::new(left, first.top, right - left, last.bottom - first.top))
    }

    /// How many pixels are touched.
    pub fn pixels(&self) -> u64 {
        let wide = |band: &Band| band.runs.iter().map(|run| u64::from(run.1 - run.0)).sum::<u64>();
        self.bands.iter().map(|band| u64::from(band.bottom - band.top) * wide(band)).sum()
    }

    /// Whether all of it lies within a picture of `size`.
    pub fn is_within(&self, size: Size) -> bool {
        self.bounds().is_none_or(|bounds| bounds.is_within(size))
    }
}

/// The runs of a row of weights whose first is at column `x`.
fn runs(x: u32, row: &[f32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (x, _) in (x..).zip(row).filter(|(_, weight)| **weight != 0.0) {
        match runs.last_mut() {
            Some(run) if run.1 == x => run.1 = x + 1,
            _ => runs.push((x, x + 1)),
        }
    }
    if runs.len() > MOST_RUNS {
        let mut gaps: Vec<u32> = runs.windows(2).map(|pair| pair[1].0 - pair[0].1).collect();
        gaps.sort_unstable();
        let narrow = gaps[runs.len() - MOST_RUNS - 1];
        runs.dedup_by(|right, left| {
            let joins = right.0 - left.1 <= narrow;
            if joins {
                left.1 = right.1;
            }
            joins
        });
    }
    runs
}

impl From<Touched> for Vec<Vec<u32>> {
    fn from(touched: Touched) -> Self {
        let band = |Band { top, bottom, runs }: Band| {
            [top, bottom].into_iter().chain(runs.into_iter().flat_map(|(left, right)| [left, right])).collect()
        };
        touched.bands.into_iter().map(band).collect()
    }
}

impl TryFrom<Vec<Vec<u32>>> for Touched {
    type Error = NotTouched;

    fn try_from(bands: Vec<Vec<u32>>) -> Result<Self, NotTouched> {
        let mut touched = Self::default();
        for (index, numbers) in bands.iter().enumerate() {
            let above = touched.bands.last().map_or(0, |band| band.bottom);
            let ascends = |numbers: &[u32]| numbers.is_sorted_by(|a, b| a < b);
            match numbers.split_at_checked(2) {
                Some((&[top, bottom], runs))
                    if above <= top
                        && top < bottom
                        && !runs.is_empty()
                        && runs.len().is_multiple_of(2)
                        && ascends(runs) =>
                {
                    let runs = runs.chunks_exact(2).map(|run| (run[0], run[1])).collect();
                    touched.bands.push(Band { top, bottom, runs });
                }
                _ => return Err(NotTouched { band: index }),
            }
        }
        Ok(touched)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_rows_are_kept_once() {
        let weights = [0.0, 0.5, 0.0, 1.0, 0.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0];
        let touched = Touched::of(Region::new(10, 20, 4, 4), &weights);
        assert_eq!(serde_json::to_string(&touched).unwrap(), "[[20,22,11,12,13,14],[23,24,10,14]]");
        assert_eq!(touched.bounds(), Some(Region::new(10, 20, 4, 4)));
        assert_eq!(touched.pixels(), 8);
        assert!(!touched.meets(Region::new(12, 0, 1, 23)) && touched.meets(Region::new(12, 0, 1, 24)));
    }

    #[test]
    fn a_row_with_too_many_runs_is_kept_larger_than_it_is() {
        let weights: Vec<f32> = (0..1000).map(|x| if x % 3 == 0 { 1.0 } else { 0.0 }).collect();
        let touched = Touched::of(Region::new(0, 0, 1000, 1), &weights);
        assert!(touched.bands[0].runs.len() <= MOST_RUNS);
        assert!((0..1000).step_by(3).all(|x| touched.meets(Region::new(x, 0, 1, 1))));
    }

    #[test]
    fn what_is_no_set_of_pixels_is_refused() {
        for wrong in ["[[0]]", "[[0,0,1,2]]", "[[0,1]]", "[[0,1,2]]", "[[0,1,2,2]]", "[[0,2,0,1],[1,3,0,1]]"] {
            assert!(serde_json::from_str::<Touched>(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_region_is_met_just_where_a_pixel_of_it_is_touched(
            (width, height, weights) in (1..20u32, 1..20u32).prop_flat_map(|(width, height)| {
                let weight = prop_oneof![3 => Just(0.0f32), 1 => Just(0.25f32)];
                (Just(width), Just(height), prop::collection::vec(weight, (width * height) as usize))
            }),
            (x, y, w, h) in (0..24u32, 0..24u32, 0..9u32, 0..9u32),
        ) {
            let place = Region::new(2, 3, width, height);
            let touched = Touched::of(place, &weights);
            prop_assert_eq!(&Touched::of(Region::new(0, 0, width, height), &weights).moved(2, 3), &touched);
            let region = Region::new(x, y, w, h);
            let is_touched = |x: u32, y: u32| {
                Region::new(x, y, 1, 1).intersection(&place).is_some()
                    && weights[((y - 3) * width + x - 2) as usize] != 0.0
            };
            let met = (y..y + h).any(|y| (x..x + w).any(|x| is_touched(x, y)));
            prop_assert_eq!(touched.meets(region), met);
            prop_assert_eq!(touched.pixels(), weights.iter().filter(|weight| **weight != 0.0).count() as u64);
            let json = serde_json::to_string(&touched).unwrap();
            prop_assert_eq!(serde_json::from_str::<Touched>(&json).unwrap(), touched);
        }
    }
}

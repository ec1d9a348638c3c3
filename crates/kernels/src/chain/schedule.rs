//! In which order the bands of a chain are computed, and how many of each map must be kept.

use std::ops::Range;

use super::{
    Chain, Frame, Source, Stage, TILE,
    halves::{self, Method},
};
use crate::winograd::POINTS;

/// The steps of one thread.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Stage and band, in turn.
    pub(super) steps: Vec<(usize, usize)>,
    /// For each map.
    pub(super) maps: Vec<MapPlan>,
    /// Lines that all points take, or all bf16.
    pub(super) points: usize,
    /// The strips from left to right.
    pub(super) strips: Vec<Strip>,
}

/// The columns of tiles of a strip.
#[derive(Debug)]
pub(super) struct Strip {
    /// That each stage computes.
    pub(super) stages: Vec<Range<usize>>,
    /// Of which each map has points.
    pub(super) maps: Vec<Range<usize>>,
}

/// What must be kept of a map.
#[derive(Debug, Clone, Default)]
pub(super) struct MapPlan {
    /// Bands of rows; none of a map that is given, or is the result.
    pub(super) row_bands: usize,
    /// Bands of points, or of bf16; none where a single stage turns what it needs itself.
    pub(super) point_bands: usize,
    /// Where these begin.
    pub(super) points_at: usize,
    /// Lines from one point to the next: odd, so that the points of a tile do not share one set of the cache.
    pub(super) pitch: usize,
}

impl Schedule {
    /// How many rows are kept of a map: row y lies where row y + this many will.
    #[inline(always)]
    pub(super) fn kept_rows(&self, frame: &Frame, map: usize) -> usize {
        self.maps[map].row_bands * frame.band_tile_rows * TILE
    }
}

impl Chain {
    /// Plans the steps to the bands `wanted` (of a map that is not doubled) of the result.
    ///
    /// Of all stages whose inputs are there, the last one goes first: so the least is kept.
    pub(super) fn schedule(&self, frame: &Frame, wanted: Range<usize>) -> Schedule {
        let needed = self.needed(wanted, |doublings| frame.bands(doublings));
        let mut next: Vec<usize> = needed.iter().map(|bands| bands.start).collect();
        let mut points_done = vec![0; self.maps.len()];
        let mut maps = vec![MapPlan::default(); self.maps.len()];
        let mut steps = Vec::new();
        let result = self.stages.last().map(|stage| stage.output);
        while let Some(index) = (0..self.stages.len()).rev().find(|index| self.is_ready(frame, &needed, &next, *index))
        {
            let (stage, band) = (&self.stages[index], next[index]);
            for &map in &stage.inputs {
                points_done[map] = points_done[map].max(band + 1);
                if self.turns_alone(stage) {
                    continue;
                }
                let oldest = self.readers(map).map(|reader| next[reader]).min().expect("this stage reads it");
                let kept = &mut maps[map].point_bands;
                *kept = (*kept).max(band + 1 - oldest);
            }
            steps.push((index, band));
            next[index] += 1;
            let output = stage.output;
            if self.method != Method::Winograd && self.readers(output).next().is_some() {
                // Bands of bf16 are written by the convolution, and so are rows of those before and behind.
                let all = frame.bands(self.maps[output].doublings);
                let doubled = u32::from(stage.doubled);
                let written = (band << doubled).saturating_sub(1)..((next[index] << doubled) + 1).min(all);
                let oldest = self.readers(output).map(|reader| next[reader]).min().unwrap_or(written.start);
                let kept = &mut maps[output].point_bands;
                *kept = (*kept).max(written.end - oldest.min(written.start));
            }
            if Some(output) != result {
                let to_points =
                    points_done[output].max(self.readers(output).map(|r| needed[r].start).min().unwrap_or(0));
                let is_turned = self.method == Method::Winograd && self.readers(output).next().is_some();
                let to_points = is_turned.then(|| to_points.saturating_sub(1));
                let to_residuals = self.adders(output).map(|adder| next[adder]);
                let done = next[index] << u32::from(stage.doubled);
                let oldest = to_points.into_iter().chain(to_residuals).min().unwrap_or(done);
                let kept = &mut maps[output].row_bands;
                *kept = (*kept).max(done.saturating_sub(oldest));
            }
        }
        let strips: Vec<Strip> = (0..frame.strips).map(|strip| self.strip(frame, strip)).collect();
        let mut points = 0;
        for (index, (plan, map)) in maps.iter_mut().zip(&self.maps).enumerate() {
            plan.points_at = points;
            let widest = strips.iter().map(|strip| strip.maps[index].len()).max().unwrap_or(0);
            plan.pitch = (frame.band_tile_rows * widest) | 1;
            let of_a_band = match self.method {
                Method::Winograd => map.blocks() * POINTS * plan.pitch,
                _ => halves::band_lines(frame, map),
            };
            points += plan.point_bands * of_a_band;
        }
        Schedule { steps, maps, points, strips }
    }

    fn strip(&self, frame: &Frame, strip: usize) -> Strip {
        let all = frame.tiles(0);
        let wanted = all * strip / frame.strips..all * (strip + 1) / frame.strips;
        let stages = self.needed(wanted, |doublings| frame.tiles(doublings));
        let of_readers = |map: usize| {
            let readers = || self.readers(map).map(|reader| &stages[reader]);
            let start = readers().map(|columns| columns.start).min().unwrap_or(0);
            start..readers().map(|columns| columns.end).max().unwrap_or(0)
        };
        let maps = (0..self.maps.len()).map(of_readers).collect();
        Strip { stages, maps }
    }

    /// Whether `stage` alone reads its only input, so that it may turn a few tiles into points just before it sums them.
    pub(super) fn turns_alone(&self, stage: &Stage) -> bool {
        self.method == Method::Winograd && stage.inputs.len() == 1 && self.readers(stage.inputs[0]).count() == 1
    }

    /// The stages that convolve `map`.
    pub(super) fn readers(&self, map: usize) -> impl Iterator<Item = usize> {
        self.stages.iter().enumerate().filter(move |(_, stage)| stage.inputs.contains(&map)).map(|(index, _)| index)
    }

    /// The stages that add `map`.
    fn adders(&self, map: usize) -> impl Iterator<Item = usize> {
        let adds = move |residuals: &[(f32, usize)]| residuals.iter().any(|(_, added)| *added == map);
        self.stages.iter().enumerate().filter(move |(_, stage)| adds(&stage.residuals)).map(|(index, _)| index)
    }

    /// The bands, or columns of tiles, that each stage must compute for those `wanted` of the result. `all` says how many
    /// a map has.
    fn needed(&self, wanted: Range<usize>, all: impl Fn(u32) -> usize) -> Vec<Range<usize>> {
        let mut of_maps: Vec<Option<Range<usize>>> = vec![None; self.maps.len()];
        let mut of_stages = vec![0..0; self.stages.len()];
        let include = |of_map: &mut Option<Range<usize>>, bands: Range<usize>| {
            *of_map = Some(match of_map.take() {
                Some(old) => old.start.min(bands.start)..old.end.max(bands.end),
                None => bands,
            });
        };
        if let Some(last) = self.stages.last() {
            let doublings = self.maps[last.output].doublings;
            let end = (wanted.end << doublings).min(all(doublings));
            of_maps[last.output] = Some(wanted.start << doublings..end);
        }
        for (index, stage) in self.stages.iter().enumerate().rev() {
            let Some(bands) = of_maps[stage.output].clone() else { continue };
            let half = u32::from(stage.doubled);
            let bands = bands.start >> half..bands.end.div_ceil(1 << half);
            of_stages[index] = bands.clone();
            for &map in &stage.inputs {
                let all = all(self.maps[map].doublings);
                include(&mut of_maps[map], bands.start.saturating_sub(1)..(bands.end + 1).min(all));
            }
            for (_, map) in &stage.residuals {
                include(&mut of_maps[*map], bands.clone());
            }
        }
        of_stages
    }

    /// Whether all that the next band of a stage takes is there.
    fn is_ready(&self, frame: &Frame, needed: &[Range<usize>], next: &[usize], index: usize) -> bool {
        let (stage, band) = (&self.stages[index], next[index]);
        let is_there = |map: usize, band: usize| match self.maps[map].source {
            Source::Given(_) => true,
            Source::Stage(source) => {
                let all = frame.bands(self.maps[map].doublings);
                (next[source] << u32::from(self.stages[source].doubled)).min(all) > band
            }
        };
        let last = |map: usize| frame.bands(self.maps[map].doublings) - 1;
        band < needed[index].end
            && stage.inputs.iter().all(|map| is_there(*map, (band + 1).min(last(*map))))
            && stage.residuals.iter().all(|(_, map)| is_there(*map, band))
    }
}

const _: () = assert!(TILE == crate::winograd::OUT);

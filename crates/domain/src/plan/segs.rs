//! The graphs of jobs that redraw segments (reference: detailers.md, section 2).
//!
//! Segments of `SEGSDetailer` are cut from the picture as it is, so none needs another.
//!
//! `SEGSUpscalerPipe` cuts each from a picture into which those before were pasted. There is no such picture here: a
//! picture under work is a base that never changes, and layers over it in the order of the list. A segment names the
//! layers that touch its crop ([`SegTask::below`]), whose tasks it needs, and whoever renders it lays those, and no
//! others, over the base's window. So of the reference's two rules,
//!
//! - a segment is cut only after every earlier one that touches its crop was pasted, and
//! - a segment is pasted only after every earlier one whose crop it touches was cut,
//!
//! the first is what a task needs, and the second holds by itself: no later layer is ever in a crop.

use crate::{
    check::{Invalid, Wrong},
    digest::Digest,
    job::Picture,
    nodes::{Rendering, SegsDetail, SegsUpscale, TiledModel, Treatment},
    plan::{MAX_LAYERS, MAX_TASKS, Needs, Plan, PlanError, TilesOf, encoding, place, plan_tiles, whole},
    region::{Region, Size},
    sampling::KSampler,
    segs::{Placed, directions},
    task::{
        Base, Context, DECODE_REVISION, DELIVER_REVISION, Encoding, Enlarged, Layer, LayerPixels, PASTE_REVISION, Part,
        Paste, Place, REDRAW_REVISION, Redraw, Refiner, SegTask, SegsNode, Tiles,
    },
    tiles::TileGrid,
};

/// A segment of what a `SEGSDetailer` gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivered {
    /// Which segment of the job it was.
    pub seg: usize,
    /// What became of it.
    pub fate: Fate,
}

/// What becomes of a segment in a round of a `SEGSDetailer`.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// It is passed on as it is, with what it brought.
    PassedOn,
    /// It keeps its pixels: those that it brought, else its crop of the picture.
    Kept,
    /// It is redrawn by this task.
    Redrawn(Box<SegTask>),
}

/// What a job gives: rounds outside, segments inside.
pub fn delivered(job: &SegsDetail) -> impl Iterator<Item = Result<Delivered, Invalid>> + '_ {
    let rounds = 0..job.detailer.batch_size;
    rounds.flat_map(move |round| {
        job.segs.iter().enumerate().map(move |(index, placed)| {
            let fate = match job.treatment(index)? {
                Treatment::PassedOn => Fate::PassedOn,
                Treatment::Kept => Fate::Kept,
                Treatment::Redrawn(working) => Fate::Redrawn(Box::new(redrawn(job, round, index, placed, working))),
            };
            Ok(Delivered { seg: index, fate })
        })
    })
}

/// The task that redraws a segment in a round.
fn redrawn(job: &SegsDetail, round: u32, index: usize, placed: &Placed, working: Size) -> SegTask {
    let (node, seg) = (&job.detailer, &placed.seg);
    let (prompts, seed) = directions(index, seg, &job.overrides);
    SegTask {
        region: placed.region(job.picture.size),
        size: working,
        mask: node.noise_mask.then_some(seg.cropped_mask),
        pixels: seg.cropped_image,
        prompts,
        control_nets: seg.control_nets.iter().map(|net| net.nameless()).collect(),
        seed: SegsDetail::seed(seed.unwrap_or(node.sampler.seed), round),
        below: Vec::new(),
    }
}

/// What the segments of a job are cut from: its picture.
pub fn detail_base(job: &SegsDetail) -> Base {
    Base { picture: job.picture.digest, decode: DECODE_REVISION, size: job.picture.size, enlarged: None }
}

/// Plans the job of a `SEGSDetailer`.
///
/// There is a task per segment and round (rounds outside, segments inside) that is redrawn at all, one that delivers the
/// SEGS with their pictures, and one that pastes them, where that is wanted.
pub fn plan_segs_detail(job: &SegsDetail) -> Result<Plan, PlanError> {
    job.check()?;
    let node = &job.detailer;
    let tasks = u64::from(node.batch_size) * job.segs.len() as u64 + 2;
    check_tasks("segs_detail.batch_size", tasks)?;
    let mut plan = Plan::empty();
    let base = detail_base(job);
    let refiner = job.refiner_basic_pipe.as_ref().map(|pipe| (pipe, node.refiner_ratio));
    let redraw = Redraw {
        revision: REDRAW_REVISION,
        base: base.clone(),
        feather: 0, // nothing lies below a segment
        basic_pipe: job.basic_pipe.nameless(),
        refiner: refiner.map(|(pipe, ratio)| Refiner { basic_pipe: pipe.nameless(), ratio }),
        sampler: KSampler { seed: 0, ..node.sampler.clone() },
        cycle: node.cycle,
        noise_mask_feather: node.noise_mask_feather,
        inpaint_model: node.inpaint_model,
        node: SegsNode::Detailer,
        reference_quirks: job.rendering.reference_quirks,
        precision: job.rendering.precision,
        place: rendering_place(&job.rendering),
    };
    let (context, _) = plan.context(Context::Redraw(Box::new(redraw)), 0);

    let mut layers = Vec::new();
    let mut handed_over = Vec::new();
    let size = job.picture.size;
    for delivered in delivered(job) {
        let Delivered { seg, fate } = delivered?;
        let placed = &job.segs[seg];
        let (region, seg) = (placed.region(size), &placed.seg);
        let own = seg.cropped_image.map(LayerPixels::Given);
        let pixels = match fate {
            // Pasting it would change nothing.
            Fate::PassedOn => {
                handed_over.push(own);
                continue;
            }
            Fate::Kept => own.unwrap_or(LayerPixels::Base),
            Fate::Redrawn(task) => LayerPixels::Result(plan.task(context, Part::Seg(task), Needs::NONE).1),
        };
        handed_over.push(Some(pixels.clone()));
        // Pixels of a segment's own are pasted as large as they are.
        let Size { width, height } = seg.cropped_image.map_or(region.size(), |image| image.size);
        let region = Region { width, height, ..region };
        layers.push(Layer { pixels, region, mask: seg.cropped_mask });
    }
    let all = Needs::Range(0..plan.tasks().len() as u32);
    let content = Digest::of_json(&("segs", &base, &job.segs, &handed_over));
    let (context, _) = plan.context(Context::Deliver { revision: DELIVER_REVISION, content }, 0);
    plan.task(context, whole(size), all.clone());
    if let Some(paste) = job.paste {
        let encoding = picture_encoding("segs_detail", &job.rendering, &job.picture, size)?;
        let (feather, alpha) = (paste.feather, paste.alpha);
        let paste = Paste { revision: PASTE_REVISION, base, layers, feather, alpha, encoding };
        let (context, _) = plan.context(Context::Paste(Box::new(paste)), 0);
        plan.task(context, whole(size), all);
    }
    Ok(plan)
}

/// Plans the job of a `SEGSUpscalerPipe`.
///
/// There is a task per tile of the picture, where a network enlarges it, one per segment that changes a pixel, and one
/// that pastes them all. A segment needs the tiles under its crop and the segments that touch it.
pub fn plan_segs_upscale(job: &SegsUpscale) -> Result<Plan, PlanError> {
    job.check()?;
    let (node, size) = (&job.upscaler, job.size()?);
    let encoding = picture_encoding("segs_upscale", &job.rendering, &job.picture, size)?;
    let mut plan = Plan::empty();
    let grid = job.upscale_model.as_ref().map(|model| grid(job, model)).transpose()?;
    let tasks = grid.as_ref().map_or(0, TileGrid::count) + job.segs.len() as u64 + 1;
    check_tasks("segs_upscale.upscale_model.tiling", tasks)?;
    let tiles = job.upscale_model.as_ref().zip(grid.as_ref()).map(|(TiledModel { model, tiling, precision }, grid)| {
        let of = TilesOf {
            upscale_model: model.digest,
            scale: model.scale,
            precision: *precision,
            place: place(job.rendering.reproducibility, *precision, &job.rendering.class),
        };
        let (context, _) = plan_tiles(&mut plan, 0, &job.picture, grid, &of);
        Tiles { context, tiling: *tiling, scale: model.scale }
    });
    let base = Base {
        picture: job.picture.digest,
        decode: DECODE_REVISION,
        size: job.picture.size,
        enlarged: Some(Enlarged {
            tiles,
            to: size,
            resampling_method: job.resampling_method(),
            supersample: node.supersample,
        }),
    };
    let redraw = Redraw {
        revision: REDRAW_REVISION,
        base: base.clone(),
        feather: node.feather,
        basic_pipe: job.basic_pipe.nameless(),
        refiner: None,
        sampler: KSampler { seed: 0, ..node.sampler.clone() },
        cycle: 1,
        noise_mask_feather: node.noise_mask_feather,
        inpaint_model: node.inpaint_model,
        node: SegsNode::Upscaler,
        reference_quirks: job.rendering.reference_quirks,
        precision: job.rendering.precision,
        place: rendering_place(&job.rendering),
    };
    let (context, _) = plan.context(Context::Redraw(Box::new(redraw)), 0);

    let mut pasted: Vec<Pasted<'_>> = Vec::new();
    let mut below_all = 0;
    for (index, placed) in job.segs.iter().enumerate().filter(|(_, placed)| !placed.is_empty) {
        let Placed { seg, touched, .. } = placed;
        let Some(bounds) = touched.bounds() else { continue };
        let (region, mask) = (placed.region(size), seg.cropped_mask);
        let under = grid.iter().flat_map(|grid| grid.touching(base.window(region)).map(|tile| tile as u32));
        let below: Vec<&Pasted<'_>> = pasted.iter().filter(|earlier| earlier.touches(region)).collect();
        below_all += below.len() as u64;
        if below_all > MAX_LAYERS {
            let wrong = Wrong::TooMany { what: "overlaps of segments", count: below_all, most: MAX_LAYERS };
            return Err(wrong.at("segs_upscale.segs").into());
        }
        let needs = Needs::of(under.chain(below.iter().map(|earlier| earlier.task)));
        let (prompts, seed) = directions(index, seg, &job.overrides);
        let part = SegTask {
            region,
            size: SegsUpscale::working_size(region),
            mask: Some(mask),
            pixels: None,
            prompts,
            control_nets: seg.control_nets.iter().map(|net| net.nameless()).collect(),
            seed: SegsUpscale::seed(seed.unwrap_or(node.sampler.seed), index),
            below: below.iter().map(|earlier| earlier.layer.clone()).collect(),
        };
        let (task, key) = plan.task(context, Part::Seg(Box::new(part)), needs);
        let layer = Layer { pixels: LayerPixels::Result(key), region, mask };
        pasted.push(Pasted { placed, bounds, task, layer });
    }
    let layers = pasted.into_iter().map(|pasted| pasted.layer).collect();
    let all = Needs::Range(0..plan.tasks().len() as u32);
    let paste = Paste { revision: PASTE_REVISION, base, layers, feather: node.feather, alpha: 255, encoding };
    let (context, _) = plan.context(Context::Paste(Box::new(paste)), 0);
    plan.task(context, whole(size), all);
    Ok(plan)
}

/// A segment that is planned already.
struct Pasted<'a> {
    placed: &'a Placed,
    bounds: Region,
    task: u32,
    layer: Layer,
}

impl Pasted<'_> {
    /// Whether pasting it changes a pixel of `crop`.
    fn touches(&self, crop: Region) -> bool {
        self.bounds.intersection(&crop).is_some() && self.placed.touched.meets(crop)
    }
}

fn rendering_place(rendering: &Rendering) -> Place {
    place(rendering.reproducibility, rendering.precision, &rendering.class)
}

/// The tiles of the picture, once it is clear that what the network makes of it fits 32 bits a side.
fn grid(job: &SegsUpscale, TiledModel { model, tiling, .. }: &TiledModel) -> Result<TileGrid, PlanError> {
    let from = job.picture.size;
    if from.scaled(model.scale).is_none() {
        let wrong = Wrong::NoResult { from, factor: model.scale.into() };
        return Err(wrong.at("segs_upscale.upscale_model").into());
    }
    let grid = TileGrid::new(from, *tiling, model.scale);
    grid.map_err(|bad| Wrong::from(bad).at("segs_upscale.upscale_model.tiling").into())
}

/// How a picture of `size` is written: as the submitted one, but without alpha, which no sampler keeps.
///
/// `at` is the path of the job.
pub(super) fn picture_encoding(
    at: &str,
    rendering: &Rendering,
    picture: &Picture,
    size: Size,
) -> Result<Encoding, PlanError> {
    let opaque = Picture { color: picture.color.with_alpha(false), ..picture.clone() };
    let encoding = encoding(&rendering.output, &opaque);
    let check = encoding.format.check(size, encoding.color, encoding.sample);
    check.map_err(|wrong| Wrong::from(wrong).at(format!("{at}.output.format")))?;
    Ok(encoding)
}

fn check_tasks(field: &str, count: u64) -> Result<(), PlanError> {
    if count > MAX_TASKS {
        return Err(Wrong::TooMany { what: "tasks", count, most: MAX_TASKS }.at(field).into());
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;

//! A farm in small: pictures of one channel, an engine that makes noise of what it sees, and workers that take turns by dice.
//! Whatever they do must come to the bytes of the reference's loop, which draws on one canvas.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::{
    job::{Model, Output, Precision, Reproducibility},
    nodes::{SegsDetailer, SegsPaste, SegsUpscaler},
    picture::{Color, Format, Sample},
    pipe::{BasicPipe, Checkpoint, Conditioning, Family, Weights},
    plan::Task,
    region::Corners,
    resize::taps,
    schedule::Schedule,
    segs::{Override, Prompts, Select, tests::seg},
    task::ResultKey,
    tiles::Tiling,
    touched::Touched,
};

/// Dice (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: u32) -> u32 {
        (self.next() % u64::from(end)) as u32
    }

    /// One number in `of`.
    fn one_in(&mut self, of: u32) -> bool {
        self.below(of) == 0
    }

    fn pixel(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}

pub(crate) fn weights(name: &str) -> Weights {
    Weights { digest: Digest::of(name.as_bytes()), name: name.to_owned() }
}

pub(crate) fn pipe() -> BasicPipe {
    BasicPipe {
        checkpoint: Checkpoint { weights: weights("checkpoint"), family: Family::Sd1, in_channels: 4 },
        vae: None,
        loras: Vec::new(),
        embeddings: Vec::new(),
        stop_at_clip_layer: None,
        positive: vec![Conditioning::everywhere("a lantern")],
        negative: vec![Conditioning::everywhere("")],
        control_nets: Vec::new(),
    }
}

pub(crate) fn rendering() -> Rendering {
    Rendering {
        precision: Precision::Exact,
        reproducibility: Reproducibility::SameClass,
        class: "cpu.fma-1.f32".parse().unwrap(),
        output: Output::default(),
        reference_quirks: false,
    }
}

pub(crate) fn picture(size: Size) -> Picture {
    Picture {
        name: "lantern.png".to_owned(),
        digest: Digest::of(size.to_string().as_bytes()),
        size,
        color: Color::Rgb,
        sample: Sample::U8,
        format: Format::Png,
    }
}

/// A segment with this paste mask, which stands for its feathered mask.
fn placed(label: &str, region: Region, mask: &[f32]) -> Placed {
    let mut seg = seg(label, region.into());
    let bytes: Vec<u8> = mask.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    seg.cropped_mask.digest = Digest::of(&bytes);
    Placed { seg, is_empty: mask.iter().all(|&weight| weight == 0.0), touched: Touched::of(region, mask) }
}

fn upscale(size: Size, segs: Vec<Placed>) -> SegsUpscale {
    SegsUpscale {
        picture: picture(size),
        segs,
        overrides: Vec::new(),
        basic_pipe: pipe(),
        upscale_model: None,
        upscaler: SegsUpscaler { rescale_factor: 1.0, supersample: false, ..SegsUpscaler::default() },
        rendering: rendering(),
    }
}

/// A job and its pixels.
struct Scene {
    job: SegsUpscale,
    pixels: Vec<f32>,
    /// Paste masks by the digests of the masks.
    masks: HashMap<Digest, Vec<f32>>,
}

impl Scene {
    /// A scene of `count` segments: some apart, some over or within others, some at the borders, some empty.
    fn new(seed: u64, count: u32) -> Self {
        let mut dice = Dice(seed);
        let size = Size::new(2 + dice.below(30), 2 + dice.below(24));
        let mut job = upscale(size, Vec::new());
        job.upscaler.rescale_factor = [1.0, 0.7, 1.37, 2.0][dice.below(4) as usize];
        job.upscaler.supersample = dice.one_in(3) && size.pixels() < 100;
        job.upscale_model = dice.one_in(2).then(|| TiledModel {
            model: Model {
                digest: Digest::of(b"model"),
                name: "model".to_owned(),
                architecture: "ESRGAN".to_owned(),
                scale: 1 + dice.below(3),
            },
            tiling: Tiling { side: 8 + dice.below(8), overlap: dice.below(4) },
            precision: Precision::Exact,
        });
        let pixels = (0..size.pixels()).map(|_| dice.pixel()).collect();
        let canvas = job.size().unwrap();
        let mut masks = HashMap::new();
        for index in 0..count {
            let side = |dice: &mut Dice, length: u32| {
                let start = if dice.one_in(3) { 0 } else { dice.below(length) };
                (start, if dice.one_in(3) { length - start } else { 1 + dice.below(length - start) })
            };
            let ((x, width), (y, height)) = (side(&mut dice, canvas.width), side(&mut dice, canvas.height));
            let region = Region::new(x, y, width, height);
            let mask = mask(&mut dice, region.size());
            let placed = placed(&index.to_string(), region, &mask);
            masks.insert(placed.seg.cropped_mask.digest, mask);
            job.segs.push(placed);
        }
        Self { job, pixels, masks }
    }

    /// Pixel (`x`, `y`) of tile `tile`, as the network makes it.
    fn tile_pixel(&self, grid: &TileGrid, tile: u64, x: u32, y: u32) -> f32 {
        let (scale, width) = (self.job.upscale_model.as_ref().unwrap().model.scale, self.job.picture.size.width);
        let region = grid.tile(tile).output;
        let at = (region.y + y) / scale * width + (region.x + x) / scale;
        self.pixels[at as usize] * 0.5 + (tile as f32 + (x * 7 + y * 3) as f32).sin() * 0.01
    }

    /// The pixels of `region` of the base, out of those tiles that `is_there`.
    fn base(&self, base: &Base, region: Region, is_there: &dyn Fn(u64) -> bool) -> Vec<f32> {
        let enlarged = base.enlarged.as_ref().unwrap();
        let grid = self.job.upscale_model.as_ref().map(|model| super::grid(&self.job, model).unwrap());
        let from = base.source_size();
        let source = |x: u32, y: u32| match &grid {
            None => self.pixels[(y * from.width + x) as usize],
            Some(grid) => {
                let blended = grid.touching(Region::new(x, y, 1, 1)).map(|tile| {
                    assert!(is_there(tile), "tile {tile} is needed for {region} and not there");
                    let output = grid.tile(tile).output;
                    self.tile_pixel(grid, tile, x - output.x, y - output.y)
                });
                blended.sum()
            }
        };
        let support = enlarged.resampling_method.support();
        let between = enlarged.to.scaled(8).filter(|_| enlarged.supersample);
        let Some(between) = between else { return resample(support, from, enlarged.to, region, &source) };
        let window = crate::resize::window(support, between, enlarged.to, region);
        let enlarged_pixels = resample(support, from, between, window, &source);
        resample(support, between, enlarged.to, region, &|x, y| {
            enlarged_pixels[((y - window.y) * window.width + x - window.x) as usize]
        })
    }

    /// What the reference does: one canvas, one segment after the other.
    fn in_sequence(&self, base: &Base) -> Vec<f32> {
        let size = base.size();
        let all = Region::new(0, 0, size.width, size.height);
        let mut canvas = Canvas { region: all, pixels: self.base(base, all, &|_| true) };
        for (index, placed) in self.job.segs.iter().enumerate() {
            if placed.is_empty {
                continue;
            }
            let region = placed.region(size);
            let seed = self.job.upscaler.sampler.seed + index as u64;
            let patch = engine(&canvas.crop(region), seed);
            canvas.paste(region, &self.masks[&placed.seg.cropped_mask.digest], &patch);
        }
        canvas.pixels
    }
}

/// Weights between 0 and 1 of which most are at the ends, with a border of nothing, or nothing at all.
fn mask(dice: &mut Dice, size: Size) -> Vec<f32> {
    let kind = [0, 1, 2, 2, 2, 3, 4, 4][dice.below(8) as usize];
    let border = dice.below(4);
    let weight = |dice: &mut Dice, x: u32, y: u32| {
        let edge = x.min(size.width - 1 - x).min(y).min(size.height - 1 - y);
        match kind {
            0 => 0.0,
            1 => 1.0,
            2 if edge < border => 0.0,
            2 => 0.75,
            3 if dice.one_in(8) => dice.pixel(),
            3 => 0.0,
            _ if edge < border * 2 => 0.0,
            _ => ((edge - border * 2 + 1) as f32 / 4.0).min(1.0),
        }
    };
    (0..size.height).flat_map(|y| (0..size.width).map(move |x| (x, y))).map(|(x, y)| weight(dice, x, y)).collect()
}

/// The mean of everything that the resampler would look at.
fn resample(support: f64, from: Size, to: Size, region: Region, source: &dyn Fn(u32, u32) -> f32) -> Vec<f32> {
    let axis = |from: u32, to: u32, i: u32| {
        if from == to { i as usize..i as usize + 1 } else { taps(support, from as usize, to as usize, i as usize) }
    };
    let mut out = Vec::with_capacity(region.size().pixels() as usize);
    for y in region.y..region.bottom() {
        let rows = axis(from.height, to.height, y);
        for x in region.x..region.right() {
            let columns = axis(from.width, to.width, x);
            let pixels = rows.clone().flat_map(|y| columns.clone().map(move |x| (x as u32, y as u32)));
            let sum: f32 = pixels.map(|(x, y)| source(x, y)).sum();
            out.push(sum / (rows.len() * columns.len()) as f32);
        }
    }
    out
}

/// Redraws a crop: noise that depends on every bit of it and on the seed.
fn engine(crop: &[f32], seed: u64) -> Vec<f32> {
    let bytes: Vec<u8> = crop.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
    let digest = Digest::of_parts(&[&seed.to_le_bytes(), &bytes]);
    let mut dice = Dice(u64::from_le_bytes(digest.0[..8].try_into().unwrap()));
    crop.iter().map(|_| dice.pixel()).collect()
}

/// The pixels of a region.
struct Canvas {
    region: Region,
    pixels: Vec<f32>,
}

impl Canvas {
    fn crop(&self, region: Region) -> Vec<f32> {
        let row = |y: u32| {
            let start = ((y - self.region.y) * self.region.width + region.x - self.region.x) as usize;
            &self.pixels[start..start + region.width as usize]
        };
        (region.y..region.bottom()).flat_map(row).copied().collect()
    }

    /// Lays a patch over as much of the canvas as it meets.
    fn paste(&mut self, region: Region, mask: &[f32], patch: &[f32]) {
        let Some(common) = self.region.intersection(&region) else { return };
        for y in common.y..common.bottom() {
            for x in common.x..common.right() {
                let at = ((y - region.y) * region.width + x - region.x) as usize;
                let old = &mut self.pixels[((y - self.region.y) * self.region.width + x - self.region.x) as usize];
                *old = (1.0 - mask[at]) * *old + mask[at] * patch[at];
            }
        }
    }
}

/// A segment in a worker's hands.
struct Patch {
    key: ResultKey,
    region: Region,
    mask: Digest,
    pixels: Vec<f32>,
}

/// How the farm goes about it.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// As planned.
    Planned,
    /// Without the first rule: a segment waits for no other, and lies over whatever is there.
    WithoutTheFirstRule,
    /// With a canvas that is drawn on, and without the second rule: a segment is pasted as soon as it is done.
    MutableCanvas,
}

/// Lets `workers` do the tasks of a plan in an order that the dice choose, and gives the picture.
fn farm(scene: &Scene, plan: &Plan, workers: usize, dice: &mut Dice, way: Way) -> Vec<f32> {
    let Context::Paste(paste) = &plan.contexts().last().unwrap().context else { panic!("a paste comes last") };
    let (base, size) = (&paste.base, paste.base.size());
    let is_seg = |task: u32| matches!(plan.tasks()[task as usize].part, Part::Seg(_));
    let waits = |task: &Task, done: &[bool]| {
        let forgets =
            |need: &u32| way == Way::WithoutTheFirstRule && is_seg(*need) && task.needs.len() < done.len() - 1;
        task.needs.iter().filter(|need| !forgets(need)).any(|need| !done[need as usize])
    };
    let last = plan.tasks().len() - 1;
    let mut done = vec![false; plan.tasks().len()];
    let mut started = done.clone();
    let mut hands: Vec<(usize, Option<Patch>)> = Vec::new();
    let mut results: HashMap<ResultKey, Vec<f32>> = HashMap::new();
    let all = Region::new(0, 0, size.width, size.height);
    let mut canvas =
        (way == Way::MutableCanvas).then(|| Canvas { region: all, pixels: scene.base(base, all, &|_| true) });
    while !done[..last].iter().all(|done| *done) {
        let ready: Vec<usize> = (0..last).filter(|&i| !started[i] && !waits(&plan.tasks()[i], &done)).collect();
        if hands.len() < workers && !ready.is_empty() && (hands.is_empty() || dice.one_in(2)) {
            let index = ready[dice.below(ready.len() as u32) as usize];
            started[index] = true;
            let task = &plan.tasks()[index];
            let work = match &task.part {
                Part::Seg(seg) => {
                    let crop = match &canvas {
                        Some(canvas) => canvas.crop(seg.region),
                        None => {
                            let is_there = |tile: u64| done[tile as usize];
                            let pixels = scene.base(base, seg.region, &is_there);
                            let mut crop = Canvas { region: seg.region, pixels };
                            for Layer { pixels, region, mask } in &seg.below {
                                let LayerPixels::Result(key) = pixels else { panic!("below lie results") };
                                match results.get(key) {
                                    Some(patch) => crop.paste(*region, &scene.masks[&mask.digest], patch),
                                    None => assert!(way == Way::WithoutTheFirstRule, "{key} is needed and not there"),
                                }
                            }
                            crop.pixels
                        }
                    };
                    let mask = seg.mask.unwrap().digest;
                    let (key, pixels) = (plan.key_of(task), engine(&crop, seg.seed));
                    Some(Patch { key, region: seg.region, mask, pixels })
                }
                Part::Region(_) | Part::Latent(_) => None,
            };
            hands.push((index, work));
        } else {
            let (index, work) = hands.swap_remove(dice.below(hands.len() as u32) as usize);
            done[index] = true;
            if let Some(Patch { key, region, mask, pixels }) = work {
                if let Some(canvas) = &mut canvas {
                    canvas.paste(region, &scene.masks[&mask], &pixels);
                }
                results.insert(key, pixels);
            }
        }
    }
    let mut canvas = match canvas {
        Some(canvas) => return canvas.pixels,
        None => Canvas { region: all, pixels: scene.base(base, all, &|tile| done[tile as usize]) },
    };
    for Layer { pixels, region, mask } in &paste.layers {
        let LayerPixels::Result(key) = pixels else { panic!("only results are pasted here") };
        canvas.paste(*region, &scene.masks[&mask.digest], &results[key]);
    }
    canvas.pixels
}

fn bits(pixels: &[f32]) -> Vec<u32> {
    pixels.iter().map(|pixel| pixel.to_bits()).collect()
}

/// In how many of some hundred scenes `way` comes to other bytes than the reference.
fn wrong_pictures(way: Way) -> usize {
    let is_wrong = |seed: &u64| {
        let scene = Scene::new(*seed, 5);
        let plan = plan_segs_upscale(&scene.job).unwrap();
        let Context::Paste(paste) = &plan.contexts().last().unwrap().context else { panic!("a paste comes last") };
        let got = farm(&scene, &plan, 3, &mut Dice(*seed), way);
        bits(&got) != bits(&scene.in_sequence(&paste.base))
    };
    (0..200).filter(is_wrong).count()
}

#[test]
fn without_the_first_rule_pictures_come_out_wrong() {
    let wrong = wrong_pictures(Way::WithoutTheFirstRule);
    assert!(wrong > 20, "{wrong} of 200");
}

#[test]
fn on_a_mutable_canvas_without_the_second_rule_pictures_come_out_wrong() {
    let wrong = wrong_pictures(Way::MutableCanvas);
    assert!(wrong > 5, "{wrong} of 200");
}

#[test]
fn as_planned_none_comes_out_wrong() {
    assert_eq!(wrong_pictures(Way::Planned), 0);
}

/// The tasks of a plan in words: a segment by its label, with what it needs.
fn graph(job: &SegsUpscale) -> String {
    let plan = plan_segs_upscale(job).unwrap();
    let tasks = plan.tasks().iter().map(|task| {
        let needs: Vec<String> = task.needs.iter().map(|need| need.to_string()).collect();
        let needs = if needs.is_empty() { String::new() } else { format!("<-{}", needs.join(",")) };
        format!("{}{needs}", plan.context_of(task).context.operation())
    });
    tasks.collect::<Vec<_>>().join(" ")
}

/// A segment whose paste mask is 1 but for a border of nothing.
fn framed(label: &str, region: Region, border: u32) -> Placed {
    let weight = |x: u32, y: u32| {
        let edge = x.min(region.width - 1 - x).min(y).min(region.height - 1 - y);
        if edge < border { 0.0 } else { 1.0 }
    };
    let mask: Vec<f32> = (0..region.height).flat_map(|y| (0..region.width).map(move |x| weight(x, y))).collect();
    placed(label, region, &mask)
}

#[test]
fn a_segment_needs_those_that_touch_its_crop_and_no_other() {
    let seg = |label, x, border| framed(label, Region::new(x, 0, 32, 32), border);
    let job = |segs| upscale(Size::new(128, 32), segs);
    assert_eq!(graph(&job(vec![])), "paste");
    assert_eq!(graph(&job(vec![seg("a", 0, 0), seg("b", 32, 0)])), "redraw redraw paste<-0,1");
    assert_eq!(graph(&job(vec![seg("a", 0, 0), seg("b", 31, 0)])), "redraw redraw<-0 paste<-0,1");
    assert_eq!(graph(&job(vec![seg("a", 0, 4), seg("b", 28, 4)])), "redraw redraw paste<-0,1");
    assert_eq!(graph(&job(vec![seg("a", 0, 4), seg("b", 27, 4)])), "redraw redraw<-0 paste<-0,1");
    let nothing = framed("nothing", Region::new(0, 0, 32, 32), 32);
    assert_eq!(graph(&job(vec![nothing, seg("b", 0, 0)])), "redraw paste<-0");
}

#[test]
fn a_segment_needs_the_tiles_under_its_crop() {
    let mut job = upscale(Size::new(64, 16), vec![framed("left", Region::new(0, 0, 32, 16), 0)]);
    let seg = framed("right", Region::new(200, 0, 32, 16), 0);
    job.segs.push(seg);
    job.upscaler.rescale_factor = 4.0;
    let model = Model { digest: Digest::of(b"m"), name: "m".to_owned(), architecture: "Compact".to_owned(), scale: 4 };
    let tiling = Tiling { side: 16, overlap: 0 };
    job.upscale_model = Some(TiledModel { model, tiling, precision: Precision::Fast });
    assert_eq!(graph(&job), "upscale upscale upscale upscale redraw<-0 redraw<-3 paste<-0,1,2,3,4,5");
    // Twice the size out of four times: the resampler's kernel reaches over the edges of tiles.
    job.upscaler.rescale_factor = 2.0;
    job.segs = vec![framed("left", Region::new(0, 0, 32, 16), 0), framed("mid", Region::new(40, 0, 8, 8), 0)];
    assert_eq!(graph(&job), "upscale upscale upscale upscale redraw<-0,1 redraw<-1 paste<-0,1,2,3,4,5");
}

#[test]
fn the_tiles_of_a_segment_job_are_those_of_an_upscale_job() {
    let mut job = upscale(Size::new(64, 16), vec![]);
    let model = Model { digest: Digest::of(b"m"), name: "m".to_owned(), architecture: "Compact".to_owned(), scale: 2 };
    let tiling = Tiling { side: 32, overlap: 8 };
    job.upscale_model = Some(TiledModel { model: model.clone(), tiling, precision: Precision::Fast });
    let plan = plan_segs_upscale(&job).unwrap();
    let other = crate::plan::plan_upscale(&crate::job::Upscale {
        pictures: vec![job.picture.clone()],
        upscale_model: model,
        tiling,
        precision: Precision::Fast,
        reproducibility: job.rendering.reproducibility,
        class: job.rendering.class.clone(),
        output: Output::default(),
        resize: None,
    })
    .unwrap();
    let keys = |plan: &Plan| plan.tasks()[..2].iter().map(|task| plan.key_of(task)).collect::<Vec<_>>();
    assert_eq!(keys(&plan), keys(&other));
}

fn detail(segs: Vec<Placed>) -> SegsDetail {
    SegsDetail {
        picture: picture(Size::new(128, 96)),
        segs,
        overrides: Vec::new(),
        basic_pipe: pipe(),
        refiner_basic_pipe: None,
        detailer: SegsDetailer { guide_size: 64.0, ..SegsDetailer::default() },
        paste: Some(SegsPaste::default()),
        rendering: rendering(),
    }
}

fn detail_tasks(job: &SegsDetail) -> (Plan, String) {
    let plan = plan_segs_detail(job).unwrap();
    let words = plan.tasks().iter().map(|task| match &task.part {
        Part::Seg(seg) => format!("{}@{} seed {}", seg.region, seg.size, seg.seed),
        _ => format!("{}<-{}", plan.context_of(task).context.operation(), task.needs.len()),
    });
    let words = words.collect::<Vec<_>>().join(", ");
    (plan, words)
}

#[test]
fn detailed_segments_need_nothing_and_rounds_differ_by_seed() {
    let over = [Region::new(0, 0, 48, 32), Region::new(8, 8, 48, 32)];
    let mut job = detail(over.map(|region| framed("face", region, 0)).into());
    job.detailer.batch_size = 2;
    let (plan, words) = detail_tasks(&job);
    assert_eq!(
        words,
        "48x32+0+0@96x64 seed 1, 48x32+8+8@96x64 seed 1, 48x32+0+0@96x64 seed 2, 48x32+8+8@96x64 seed 2, \
         deliver<-4, paste<-4"
    );
    let Context::Paste(paste) = &plan.contexts().last().unwrap().context else { panic!("a paste comes last") };
    assert_eq!(paste.layers.len(), 4, "all rounds are pasted, one over the other");
}

#[test]
fn what_is_not_redrawn_is_no_task_but_lies_where_it_did() {
    let large = framed("large", Region::new(0, 0, 96, 80), 0);
    let empty = framed("empty", Region::new(0, 0, 32, 32), 32);
    let small = framed("small", Region::new(64, 64, 16, 16), 0);
    let mut job = detail(vec![large, empty, small]);
    job.detailer.force_inpaint = false;
    let (plan, words) = detail_tasks(&job);
    assert_eq!(words, "16x16+64+64@64x64 seed 1, deliver<-1, paste<-1");
    let Context::Paste(paste) = &plan.contexts().last().unwrap().context else { panic!("a paste comes last") };
    let kinds: Vec<bool> = paste.layers.iter().map(|layer| layer.pixels == LayerPixels::Base).collect();
    assert_eq!(kinds, [true, false], "the large one keeps its pixels, and covers what is below them");

    let (_, words) = detail_tasks(&detail(vec![]));
    assert_eq!(words, "deliver<-0, paste<-0", "nothing to do is done");
}

#[test]
fn pixels_of_a_segment_s_own_are_pasted_as_large_as_they_are() {
    let mut own = framed("own", Region::new(100, 64, 28, 32), 0);
    own.seg.cropped_image = Some(crate::pipe::PixelsRef { digest: Digest::of(b"own"), size: Size::new(64, 16) });
    let (plan, words) = detail_tasks(&detail(vec![own]));
    assert!(words.starts_with("28x32+100+64@"), "{words}");
    let Context::Paste(paste) = &plan.contexts().last().unwrap().context else { panic!("a paste comes last") };
    assert_eq!(paste.layers[0].region, Region::new(100, 64, 64, 16));
}

#[test]
fn segs_that_keep_the_pixels_of_another_picture_are_others() {
    let key = |digest: &[u8]| {
        let mut job = detail(vec![framed("large", Region::new(0, 0, 96, 80), 0)]);
        job.detailer.force_inpaint = false;
        job.picture.digest = Digest::of(digest);
        let plan = plan_segs_detail(&job).unwrap();
        plan.key_of(&plan.tasks()[0])
    };
    assert_ne!(key(b"one"), key(b"other"));
}

#[test]
fn what_files_are_called_changes_no_key() {
    let keys = |name: &str| {
        let mut job = detail(vec![framed("a", Region::new(0, 0, 32, 32), 0)]);
        job.basic_pipe.checkpoint.weights.name = name.to_owned();
        job.basic_pipe.vae = Some(Weights { name: name.to_owned(), ..weights("vae") });
        let plan = plan_segs_detail(&job).unwrap();
        plan.tasks().iter().map(|task| plan.key_of(task)).collect::<Vec<_>>()
    };
    assert_eq!(keys("this"), keys("that"));
}

#[test]
fn speed_is_bound_by_the_longest_chain() {
    let seg = |index: u32, step: u32| framed("a", Region::new(index * step, 0, 32, 32), 0);
    let apart = upscale(Size::new(256, 32), (0..8).map(|index| seg(index, 32)).collect());
    let chain = upscale(Size::new(256, 32), (0..8).map(|index| seg(index, 16)).collect());
    let speed_up = |job, workers| {
        let plan = plan_segs_upscale(job).unwrap();
        let costs = crate::cost::all(&plan);
        let schedule = Schedule::new(&plan, &costs);
        (schedule.speed_up(workers), schedule.critical_path().tasks.len())
    };
    assert_eq!(speed_up(&apart, 4), (4.0, 2), "one redrawing, one paste");
    assert_eq!(speed_up(&apart, 16), (8.0, 2));
    assert_eq!(speed_up(&chain, 16), (1.0, 9));
}

#[test]
fn a_graph_is_printed_with_its_critical_path() {
    let segs = vec![framed("a", Region::new(0, 0, 16, 16), 0), framed("b", Region::new(8, 0, 16, 16), 0)];
    let plan = plan_segs_upscale(&upscale(Size::new(64, 16), segs)).unwrap();
    let costs = crate::cost::all(&plan);
    let dot = Schedule::new(&plan, &costs).dot(|task| task == 0);
    assert_eq!(
        dot,
        "digraph plan {\n  rankdir=LR;\n  node [shape=box];\n  \
         t0 [label=\"0 redraw\\n16x16+0+0\", style=dashed];\n  \
         t1 [label=\"1 redraw\\n16x16+8+0\", style=bold];\n  \
         t2 [label=\"2 paste\\n64x16+0+0\", style=bold];\n  \
         t0 -> t1 [style=bold];\n  t0 -> t2;\n  t1 -> t2 [style=bold];\n}\n"
    );
}

/// The needs between segments by the letter of the rule, over all pixels.
fn rule(job: &SegsUpscale) -> Vec<(usize, BTreeSet<usize>)> {
    let size = job.size().unwrap();
    let acts: Vec<usize> = (0..job.segs.len()).filter(|&index| !job.segs[index].is_empty).collect();
    let needs = |j: usize| {
        let crop = job.segs[j].region(size);
        let touches = |i: &usize| {
            let mut pixels = (crop.y..crop.bottom()).flat_map(|y| (crop.x..crop.right()).map(move |x| (x, y)));
            *i < j && pixels.any(|(x, y)| job.segs[*i].touched.meets(Region::new(x, y, 1, 1)))
        };
        acts.iter().copied().filter(touches).collect()
    };
    acts.iter().map(|&j| (j, needs(j))).collect()
}

proptest! {
    #[test]
    fn any_order_on_any_number_of_workers_gives_the_bytes_of_the_sequence(
        seed in any::<u64>(), count in 0..9u32, workers in 1..7usize,
    ) {
        let scene = Scene::new(seed, count);
        let plan = plan_segs_upscale(&scene.job).unwrap();
        let Context::Paste(paste) = &plan.contexts().last().unwrap().context else { panic!("a paste comes last") };
        let got = farm(&scene, &plan, workers, &mut Dice(!seed), Way::Planned);
        prop_assert_eq!(bits(&got), bits(&scene.in_sequence(&paste.base)));
    }

    #[test]
    fn needs_are_those_of_the_rule(seed in any::<u64>(), count in 0..9u32) {
        let scene = Scene::new(seed, count);
        let plan = plan_segs_upscale(&scene.job).unwrap();
        let segs: Vec<u32> = (0..).zip(plan.tasks()).filter(|(_, task)| matches!(task.part, Part::Seg(_))).map(|(i, _)| i).collect();
        let rule = rule(&scene.job);
        prop_assert_eq!(segs.len(), rule.len());
        for (position, (_, needs)) in rule.iter().enumerate() {
            let task = &plan.tasks()[segs[position] as usize];
            let want: Vec<u32> = needs.iter().map(|i| segs[rule.iter().position(|(j, _)| j == i).unwrap()]).collect();
            let got: Vec<u32> = task.needs.iter().filter(|need| segs.contains(need)).collect();
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn another_prompt_changes_the_keys_of_its_segment_and_of_what_depends_on_it(
        seed in any::<u64>(), count in 1..9u32, which in 0..9u32,
    ) {
        let mut scene = Scene::new(seed, count);
        let before = plan_segs_upscale(&scene.job).unwrap();
        let prompts = Prompts { positive: Some("another".to_owned()), negative: None };
        let index = which % count;
        scene.job.overrides.push(Override { select: Select::Index(index), prompts, seed: None });
        let after = plan_segs_upscale(&scene.job).unwrap();
        let mut depends = BTreeSet::new();
        for (j, needs) in rule(&scene.job) {
            if j == index as usize || needs.iter().any(|need| depends.contains(need)) {
                depends.insert(j);
            }
        }
        let changed: Vec<&Task> = after
            .tasks()
            .iter()
            .zip(before.tasks())
            .filter(|(new, old)| after.key_of(new) != before.key_of(old))
            .map(|(new, _)| new)
            .collect();
        let redrawn = changed.iter().filter(|task| matches!(task.part, Part::Seg(_))).count();
        prop_assert_eq!(redrawn, depends.len());
        let paste = usize::from(!depends.is_empty());
        prop_assert_eq!(changed.len(), redrawn + paste, "and the picture, but no tile");

        // With all that did not change found, just that is to be done.
        let known: BTreeSet<ResultKey> = before.tasks().iter().map(|task| before.key_of(task)).collect();
        let wanted = after.wanted(|task| known.contains(&after.key_of(&after.tasks()[task as usize])));
        prop_assert_eq!(wanted.iter().filter(|wanted| **wanted).count(), changed.len());
    }

    #[test]
    fn workers_take_as_long_as_theory_says(
        seed in any::<u64>(), count in 0..12u32, workers in 1..7u32,
    ) {
        let scene = Scene::new(seed, count);
        let plan = plan_segs_upscale(&scene.job).unwrap();
        let costs = crate::cost::all(&plan);
        let schedule = Schedule::new(&plan, &costs);
        let (total, critical) = (schedule.total(), schedule.critical_path());
        prop_assert_eq!(schedule.makespan(1), total);
        let path: u64 = critical.tasks.iter().map(|&task| costs[task as usize]).sum();
        prop_assert_eq!(path, critical.cost);
        for pair in critical.tasks.windows(2) {
            prop_assert!(plan.tasks()[pair[1] as usize].needs.contains(pair[0]));
        }
        let time = schedule.makespan(workers);
        prop_assert!(time >= schedule.bound(workers));
        let greedy = (total - critical.cost) / u64::from(workers) + critical.cost;
        prop_assert!(time <= greedy + 1, "{time} of {greedy}: Graham's bound");
    }
}

#[test]
fn bad_jobs_are_refused_with_the_field() {
    let field = |change: &dyn Fn(&mut SegsDetail)| {
        let mut job = detail(vec![framed("a", Region::new(0, 0, 32, 32), 0)]);
        change(&mut job);
        plan_segs_detail(&job).map(|_| ()).map_err(|error| error.field().to_owned())
    };
    let err = |field: &str| Err(format!("segs_detail.{field}"));
    assert_eq!(field(&|_| {}), Ok(()));
    assert_eq!(field(&|job| job.detailer.guide_size = 8.0), err("guide_size"));
    assert_eq!(field(&|job| job.detailer.sampler.denoise = 0.0), err("sampler.denoise"));
    assert_eq!(field(&|job| job.detailer.batch_size = 101), err("batch_size"));
    assert_eq!(field(&|job| job.detailer.sampler.seed = u64::MAX), err("sampler.seed"));
    assert_eq!(field(&|job| job.picture.color = Color::Grey), err("picture"));
    assert_eq!(field(&|job| job.basic_pipe.positive.clear()), err("basic_pipe.positive"));
    assert_eq!(field(&|job| job.segs[0].seg.bbox = Corners::new(4, 4, 4, 9).into()), err("segs[0].bbox"));
    assert_eq!(field(&|job| job.segs[0].seg.bbox.x1 = f64::NAN), err("segs[0].bbox"));
    assert_eq!(field(&|job| job.segs[0].seg.crop_region = Corners::new(100, 0, 140, 32)), err("segs[0].crop_region"));
    assert_eq!(field(&|job| job.segs[0].seg.cropped_mask.size = Size::new(0, 3)), err("segs[0].cropped_mask"));
    assert_eq!(
        field(&|job| job.segs[0].touched = Touched::of(Region::new(31, 0, 2, 1), &[1.0, 1.0])),
        err("segs[0].touched")
    );
    let xl = |job: &mut SegsDetail| {
        let mut refiner = pipe();
        refiner.checkpoint.family = Family::SdxlRefiner;
        job.refiner_basic_pipe = Some(refiner);
    };
    assert_eq!(field(&xl), err("refiner_basic_pipe.checkpoint"));
    let net = |job: &mut SegsDetail| {
        job.segs[0].seg.control_nets.push(crate::pipe::ControlNet {
            weights: weights("net"),
            family: Family::Sdxl,
            strength: 1.0,
            start_percent: 0.0,
            end_percent: 1.0,
            advanced: false,
            image: None,
        });
    };
    assert_eq!(field(&net), err("segs[0].control_nets[0].control_net"));
    let seed = |job: &mut SegsDetail| {
        let select = Select::Label("a".to_owned());
        job.overrides.push(Override { select, prompts: Prompts::default(), seed: Some(u64::MAX) });
    };
    assert_eq!(field(&seed), err("overrides[0].seed"));
    let jpeg = |job: &mut SegsDetail| job.picture.size = Size::new(70_000, 64);
    assert_eq!(
        field(&|job| {
            jpeg(job);
            job.rendering.output.format = Some(Format::Jpeg);
        }),
        err("output.format")
    );
}

#[test]
fn what_is_worth_knowing_is_said() {
    let warnings = |change: &dyn Fn(&mut SegsDetail)| {
        let mut job = detail(vec![framed("a", Region::new(0, 0, 32, 32), 0)]);
        change(&mut job);
        let warnings = job.check().unwrap();
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(warnings(&|_| {}), "");
    assert_eq!(warnings(&|job| job.segs.clear()), "there is no segment to work on: the picture stays as it is");
    assert_eq!(warnings(&|job| job.picture.color = Color::Rgba), "the picture's alpha channel is left out");
    let refiner = |job: &mut SegsDetail| {
        job.refiner_basic_pipe = Some(pipe());
        job.detailer.sampler.steps = 10;
        job.detailer.refiner_ratio = 0.9;
        job.detailer.noise_mask_feather = 0;
    };
    assert_eq!(
        warnings(&refiner),
        "with refiner_ratio 0.9 none of 10 steps is left for the base, and the refiner gets a picture without noise"
    );
    let stretched = |job: &mut SegsDetail| job.segs[0].seg.cropped_mask.size = Size::new(16, 16);
    assert_eq!(warnings(&stretched), "the mask of segment 0 is 16x16 and is stretched to its region of 32x32");
    assert!(warnings(&|job| job.detailer.inpaint_model = true).starts_with("inpaint_model is on, but `checkpoint`"));
}

#[test]
fn a_crop_that_no_worker_has_room_for_is_refused_with_the_size_that_would_fit() {
    let mut job = detail(vec![framed("a", Region::new(0, 0, 128, 96), 0)]);
    job.detailer.guide_size = 2048.0;
    job.detailer.max_size = 4096.0;
    assert!(job.check_room(1 << 30, 64 << 30).is_ok());
    let refused = job.check_room(1 << 30, 8 << 30).unwrap_err();
    assert_eq!(refused.field, "segs_detail.segs[0].crop_region");
    let Wrong::NoRoom { size, fits, .. } = refused.wrong else { panic!("{refused}") };
    assert_eq!((size, fits), (Size::new(2730, 2048), Size::new(1560, 1168)));
}

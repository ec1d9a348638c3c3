//! One call of the denoiser: all prompts of both sides, their areas and masks, guidance, and what a mask keeps.
//!
//! [`Guidance`] is the [`Denoiser`] that samplers ask. Everything that does not depend on the noise level is worked out once, when
//! it is made.

use std::{
    collections::hash_map::{Entry as Known, HashMap},
    sync::Arc,
};

use candle_core::{Device, Tensor, TensorId};

use super::{
    batch::Seat,
    conditioning::{Area, Conditioning, Control, Side, told},
    controlnet::{ControlNet, Residuals, hint_for},
    samplers::{Both, Denoiser},
    schedule::ModelSampling,
    unet::{Inputs, Unet},
};
use crate::{
    error::{ModelError, Result},
    ops,
    watch::Watch,
};

/// A network as sampling needs it.
#[derive(Debug, Clone, Copy)]
pub struct Network<'a> {
    /// Says what is noise.
    pub unet: &'a Unet,
    /// How it sees noise levels.
    pub sampling: &'a ModelSampling,
    /// The factor from latents as an autoencoder makes them to those that the network knows.
    pub latent_scale: f64,
    /// Where the calls of other runs go along, if they do.
    pub seat: Option<&'a Seat>,
}

/// What a run is to show, and how much it is to obey.
#[derive(Debug, Clone, Copy)]
pub struct Prompts<'a> {
    /// What is wanted.
    pub positive: &'a [Conditioning],
    /// What is not wanted.
    pub negative: &'a [Conditioning],
    /// How far the prediction is moved from what is not wanted to what is wanted, and beyond; at 1, `negative` is not looked at.
    pub cfg: f64,
}

/// Makes a soft mask hard, call by call: the whiter a place, the earlier it begins to change (differential diffusion,
/// Levin and Fried 2023).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DifferentialDiffusion {
    /// How much of the hard mask is taken; the rest is the soft one. 0 and 1 take the hard mask alone.
    pub strength: f64,
    /// What is added to a mask before it is compared: a blurred 1 is a 1 only up to rounding, and the first threshold is 1.
    /// The reference has 0, so that its pictures depend on its processor.
    pub tolerance: f32,
}

impl Default for DifferentialDiffusion {
    fn default() -> Self {
        Self { strength: 1.0, tolerance: 1e-5 }
    }
}

/// What a run keeps of its latent.
#[derive(Debug)]
pub(super) struct Masking {
    /// How much each place may change, as many numbers as the latent.
    pub(super) mask: Vec<f32>,
    /// What it is kept as, scaled.
    pub(super) latent: Vec<f32>,
    /// The noise that is put over it.
    pub(super) noise: Vec<f32>,
    pub(super) differential: Option<DifferentialDiffusion>,
    /// The first and the last level of the run.
    pub(super) sigmas: (f32, f32),
}

impl Masking {
    /// The mask of a call at a level.
    fn at(&self, sigma: f32, sampling: &ModelSampling) -> std::borrow::Cow<'_, [f32]> {
        let Some(DifferentialDiffusion { strength, tolerance }) = self.differential else {
            return self.mask.as_slice().into();
        };
        let last = sampling.timestep(self.sigmas.1.max(sampling.sigma_min()));
        let threshold = (sampling.timestep(sigma) - last) / (sampling.timestep(self.sigmas.0) - last);
        let is_soft = strength != 0.0 && strength < 1.0;
        let (hard, soft) = if is_soft { (strength as f32, (1.0 - strength) as f32) } else { (1.0, 0.0) };
        let at = |&mask: &f32| {
            let on = if mask + tolerance >= threshold { 1.0 } else { 0.0 };
            if is_soft { hard * on + soft * mask } else { on }
        };
        self.mask.iter().map(at).collect()
    }
}

/// The parts of a latent batch, [b, c, h, w].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) b: usize,
    pub(super) c: usize,
    pub(super) h: usize,
    pub(super) w: usize,
}

impl Shape {
    pub(super) fn of(latent: &Tensor) -> Result<Self> {
        let (b, c, h, w) = latent.dims4()?;
        Ok(Self { b, c, h, w })
    }

    pub(super) fn count(self) -> usize {
        self.b * self.c * self.h * self.w
    }
}

/// A rectangle of cells of a latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Cells {
    h: usize,
    w: usize,
    y: usize,
    x: usize,
}

impl Cells {
    fn resolve(area: Area, shape: Shape) -> Self {
        match area {
            Area::Cells { height, width, y, x } => Self { h: height, w: width, y, x },
            Area::Percentage { height, width, y, x } => {
                let size = |share: f64, side: usize| (share * side as f64).round_ties_even().max(1.0) as usize;
                let place = |share: f64, side: usize| (share * side as f64).round_ties_even().max(0.0) as usize;
                Self { h: size(height, shape.h), w: size(width, shape.w), y: place(y, shape.h), x: place(x, shape.w) }
            }
        }
    }

    fn is_inside(self, other: Self) -> bool {
        self.y >= other.y
            && self.x >= other.x
            && self.y + self.h <= other.y + other.h
            && self.x + self.w <= other.x + other.w
    }

    /// What of it lies in the latent.
    fn clipped(self, shape: Shape) -> Self {
        let (y, x) = (self.y.min(shape.h), self.x.min(shape.w));
        Self { y, x, h: self.h.min(shape.h - y), w: self.w.min(shape.w - x) }
    }
}

/// The levels between which something counts, both included.
#[derive(Debug, Clone, Copy)]
struct Range {
    highest: f32,
    lowest: f32,
}

impl Range {
    fn of(sampling: &ModelSampling, start_percent: f64, end_percent: f64) -> Self {
        let level = |percent| sampling.percent_to_sigma(percent) as f32;
        Self { highest: level(start_percent), lowest: level(end_percent) }
    }

    fn holds(self, sigma: f32) -> bool {
        sigma <= self.highest && sigma >= self.lowest
    }
}

/// What of a prompt goes into the network.
#[derive(Debug, Clone)]
struct Fed {
    context: Tensor,
    y: Option<Tensor>,
    /// Channels behind those of the latent, [b, 5, h, w].
    concat: Option<Tensor>,
}

/// A prompt that was worked out for the latent of a run.
#[derive(Debug, Clone)]
struct Entry {
    fed: Fed,
    area: Option<Cells>,
    /// [n, h, w] of the whole latent, times its strength.
    mask: Option<Arc<(usize, Vec<f32>)>>,
    strength: f64,
    range: Range,
    controls: Vec<Control>,
    apply_to_uncond: bool,
}

/// A mask as wide and high as the latent, from one of any size, [.., h, w]: [n, h, w] as numbers, with n.
pub(super) fn mask_on_latent(mask: &Tensor, shape: Shape) -> Result<(usize, Vec<f32>)> {
    let refuse = || ModelError::Tensor { name: "mask", wanted: vec![0, 0, 0], found: mask.dims().to_vec() };
    let &[.., h, w] = mask.dims() else { return Err(refuse()) };
    if mask.elem_count() == 0 {
        return Err(refuse());
    }
    let mask = mask.reshape((1, (), h, w))?.to_dtype(candle_core::DType::F32)?.to_device(&Device::Cpu)?;
    let n = mask.dim(1)?;
    let mask = if (h, w) == (shape.h, shape.w) { mask } else { ops::resize_bilinear(&mask, (shape.h, shape.w))? };
    Ok((n, mask.flatten_all()?.to_vec1()?))
}

impl Entry {
    fn new(conditioning: &Conditioning, side: Side, run: &Setup<'_>) -> Result<Self> {
        let Setup { network, shape, .. } = *run;
        let dim = network.unet.layout().context_dim;
        match *conditioning.cond.dims() {
            [n, tokens, found] if n * tokens > 0 && found == dim => {}
            ref found => {
                return Err(ModelError::Tensor { name: "context", wanted: vec![0, 0, dim], found: found.to_vec() });
            }
        }
        let mut area = conditioning.area.map(|area| Cells::resolve(area, shape));
        let mask = match &conditioning.mask {
            None => None,
            Some(mask) => {
                let (n, mut numbers) = mask_on_latent(&mask.mask, shape)?;
                if mask.set_area_to_bounds {
                    area = Some(bounds(&numbers, shape));
                }
                numbers.iter_mut().for_each(|value| *value *= mask.strength as f32);
                Some(Arc::new((n, numbers)))
            }
        };
        Ok(Self {
            fed: Fed {
                context: conditioning.cond.clone(),
                y: told(conditioning, network.unet, (shape.h, shape.w), side)?,
                concat: run.concat(conditioning)?,
            },
            area,
            mask,
            strength: conditioning.strength,
            range: Range::of(network.sampling, conditioning.start_percent, conditioning.end_percent),
            controls: conditioning.controls.iter().filter(|control| control.strength != 0.0).cloned().collect(),
            apply_to_uncond: conditioning.control_apply_to_uncond,
        })
    }

    /// How much each place counts of the part that the network sees, for each item: [b, h, w] of `cells`.
    fn weights(&self, cells: Cells, shape: Shape) -> Vec<f32> {
        let mut weights = Vec::with_capacity(shape.b * cells.h * cells.w);
        for item in 0..shape.b {
            for y in cells.y..cells.y + cells.h {
                for x in cells.x..cells.x + cells.w {
                    let mask = self.mask.as_ref().map_or(1.0, |mask| {
                        let (n, numbers) = &**mask;
                        numbers[(item % n * shape.h + y) * shape.w + x]
                    });
                    weights.push(mask * self.strength as f32);
                }
            }
        }
        if self.area.is_some() && self.mask.is_none() {
            fade(&mut weights, cells, shape);
        }
        weights
    }
}

/// The smallest area of at least 8 x 8 cells that holds all of a mask that is not 0.
fn bounds(mask: &[f32], shape: Shape) -> Cells {
    const LEAST: usize = 8;
    let (mut top, mut left, mut bottom, mut right) = (usize::MAX, usize::MAX, 0, 0);
    for (at, _) in mask.iter().enumerate().filter(|(_, value)| **value != 0.0) {
        let (y, x) = (at / shape.w % shape.h, at % shape.w);
        (top, left, bottom, right) = (top.min(y), left.min(x), bottom.max(y), right.max(x));
    }
    if top == usize::MAX {
        return Cells { h: LEAST, w: LEAST, y: 0, x: 0 };
    }
    Cells { h: (bottom - top + 1).max(LEAST), w: (right - left + 1).max(LEAST), y: top, x: left }
}

/// Lets the edges of a part fade that do not lie on the border of the latent.
fn fade(weights: &mut [f32], cells: Cells, shape: Shape) {
    /// The widest that an edge fades.
    const WIDEST: usize = 8;
    let Cells { h, w, y, x } = cells;
    // The factor of row or column `at` of `side`, which begins at `from` of `whole`.
    let factor = |at: usize, side: usize, from: usize, whole: usize| {
        let ramp = (side / 4).min(WIDEST);
        let step = |from_edge: usize| (1.0 / ramp as f64 * (from_edge + 1) as f64) as f32;
        let before = if from != 0 && at < ramp { step(at) } else { 1.0 };
        let behind = if from + side < whole && side - 1 - at < ramp { step(side - 1 - at) } else { 1.0 };
        before * behind
    };
    let rows: Vec<f32> = (0..h).map(|row| factor(row, h, y, shape.h)).collect();
    let columns: Vec<f32> = (0..w).map(|column| factor(column, w, x, shape.w)).collect();
    for (i, value) in weights.iter_mut().enumerate() {
        *value *= rows[i / w % h] * columns[i % w];
    }
}

/// What entries are made for.
#[derive(Clone, Copy)]
pub(super) struct Setup<'a> {
    pub(super) network: Network<'a>,
    pub(super) shape: Shape,
    /// The latent of the run, scaled.
    pub(super) latent: &'a [f32],
    /// The noise mask of the run, [n, h, w] with n, at the size of the latent.
    pub(super) noise_mask: Option<&'a (usize, Vec<f32>)>,
}

impl Setup<'_> {
    /// What an inpainting network takes behind the latent, [b, 5, h, w]: what is to be painted (0 or 1), and the scaled latent
    /// of the picture without it.
    fn concat(&self, conditioning: &Conditioning) -> Result<Option<Tensor>> {
        /// What the reference gives where there is no mask at all: the latent of a grey picture, about.
        const BLANK: [f32; 4] = [0.8223, -0.6876, 0.6364, 0.1380];
        let Shape { b, c, h, w } = self.shape;
        match self.network.unet.layout().in_channels {
            found if found == c => return Ok(None),
            found if found == 2 * c + 1 => {}
            found => {
                let found = vec![b, found, h, w];
                return Err(ModelError::Tensor {
                    name: "input of the network",
                    wanted: vec![b, 2 * c + 1, h, w],
                    found,
                });
            }
        }
        let count = h * w;
        let painted = match (&conditioning.concat, self.noise_mask) {
            (Some(concat), _) => Some(fitted(&concat.mask, self.shape)?),
            (None, Some(mask)) => Some(mask.clone()),
            (None, None) => None,
        };
        let mut numbers = Vec::with_capacity(b * (c + 1) * count);
        let given = match (&conditioning.concat, &painted) {
            (Some(concat), _) => Some(on_grid(&concat.latent_image, self.shape, self.network.latent_scale)?),
            (None, Some(_)) => Some(self.latent.to_vec()),
            (None, None) => None,
        };
        for item in 0..b {
            match &painted {
                Some((n, mask)) => {
                    numbers.extend(mask[item % n * count..][..count].iter().map(|value| value.round_ties_even()));
                }
                None => numbers.extend(std::iter::repeat_n(1.0, count)),
            }
            match &given {
                Some(latent) => {
                    let items = latent.len() / (c * count);
                    numbers.extend_from_slice(&latent[item % items * c * count..][..c * count]);
                }
                None => numbers.extend((0..c).flat_map(|k| std::iter::repeat_n(BLANK[k % BLANK.len()], count))),
            }
        }
        Ok(Some(Tensor::from_vec(numbers, (b, c + 1, h, w), &Device::Cpu)?))
    }
}

/// A mask that is cut to the shape of the latent around its middle and brought to its size.
fn fitted(mask: &Tensor, shape: Shape) -> Result<(usize, Vec<f32>)> {
    let &[.., h, w] = mask.dims() else {
        return Err(ModelError::Tensor { name: "concat_mask", wanted: vec![0, 0, 0], found: mask.dims().to_vec() });
    };
    let mask = mask.reshape(((), h, w))?;
    let ((y, rows), (x, columns)) = super::controlnet::centred(h, w, shape.h, shape.w);
    mask_on_latent(&mask.narrow(1, y, rows)?.narrow(2, x, columns)?.contiguous()?, shape)
}

/// The numbers of a latent, scaled, which must be as large as that of the run.
fn on_grid(latent: &Tensor, shape: Shape, scale: f64) -> Result<Vec<f32>> {
    let Shape { c, h, w, .. } = shape;
    match *latent.dims() {
        [items, channels, height, width] if items > 0 && (channels, height, width) == (c, h, w) => {}
        ref found => {
            let (name, found) = ("concat_latent_image", found.to_vec());
            return Err(ModelError::Tensor { name, wanted: vec![0, c, h, w], found });
        }
    }
    let numbers: Vec<f32> = latent.flatten_all()?.to_vec1()?;
    Ok(numbers.into_iter().map(|value| value * scale as f32).collect())
}

/// A prompt with all that a call of the network takes of it.
struct Placed {
    fed: Fed,
    /// The part of the latent that the network sees.
    cells: Cells,
    /// How much each place of it counts, [b, h, w] of `cells`.
    weights: Vec<f32>,
    range: Range,
    steering: Vec<Steering>,
}

/// A control with what its picture means to its network at the size of the part.
struct Steering {
    control: Control,
    guide: Tensor,
    range: Range,
}

/// What pictures mean to networks, by both and the size of the part: prompts mostly share them.
type Guides = HashMap<(*const ControlNet, TensorId, usize, usize), Tensor>;

impl Placed {
    /// Places an entry; `None` if its area lies outside of the latent.
    fn new(entry: Entry, run: &Setup<'_>, guides: &mut Guides, watch: &dyn Watch) -> Result<Option<Self>> {
        let Setup { network, shape, .. } = *run;
        let whole = Cells { h: shape.h, w: shape.w, y: 0, x: 0 };
        let cells = entry.area.map_or(whole, |area| area.clipped(shape));
        if cells.h * cells.w == 0 {
            return Ok(None);
        }
        let weights = entry.weights(cells, shape);
        let steer = |control: Control| -> Result<Steering> {
            let guide = match guides.entry((Arc::as_ptr(&control.net), control.hint.id(), cells.h, cells.w)) {
                Known::Occupied(known) => known.get().clone(),
                Known::Vacant(place) => {
                    let hint = hint_for(&control.hint, cells.h, cells.w)?;
                    let hint = if hint.dim(0)? == 1 { hint } else { fitted_batch(&hint, shape.b)? };
                    place.insert(control.net.guide(&hint, watch)?).clone()
                }
            };
            let range = Range::of(network.sampling, control.start_percent, control.end_percent);
            Ok(Steering { control, guide, range })
        };
        let steering = entry.controls.into_iter().map(steer).collect::<Result<_>>()?;
        Ok(Some(Self { fed: entry.fed, cells, weights, range: entry.range, steering }))
    }
}

/// The denoiser of a run: a network with its prompts, guidance and masks.
pub(super) struct Guidance<'a> {
    network: Network<'a>,
    shape: Shape,
    /// Of the positive side, and of the negative one.
    sides: [Vec<Placed>; 2],
    cfg: f64,
    masking: Option<Masking>,
    watch: &'a dyn Watch,
}

/// The index of the negative side.
const NEGATIVE: usize = 1;

impl<'a> Guidance<'a> {
    pub(super) fn new(
        run: &Setup<'a>,
        prompts: &Prompts<'_>,
        masking: Option<Masking>,
        watch: &'a dyn Watch,
    ) -> Result<Self> {
        let entries = |side, prompts: &[Conditioning]| -> Result<Vec<Entry>> {
            prompts.iter().map(|prompt| Entry::new(prompt, side, run)).collect()
        };
        let mut positive = entries(Side::Positive, prompts.positive)?;
        let mut negative = entries(Side::Negative, prompts.negative)?;
        face_areas(&positive, &mut negative);
        face_areas(&negative, &mut positive);
        share_controls(&positive, &mut negative);
        let mut guides = Guides::new();
        let mut place = |entries: Vec<Entry>| -> Result<Vec<Placed>> {
            entries.into_iter().filter_map(|entry| Placed::new(entry, run, &mut guides, watch).transpose()).collect()
        };
        let sides = [place(positive)?, place(negative)?];
        let Setup { network, shape, .. } = *run;
        Ok(Self { network, shape, sides, cfg: prompts.cfg, masking, watch })
    }

    /// The predictions of both sides; that of the negative only where it is wanted.
    fn predict(&self, x: &[f32], sigma: f32, wants_negative: bool) -> Result<[Vec<f32>; 2]> {
        let shape = self.shape;
        let mut left: Vec<(usize, &Placed)> = Vec::new();
        for (side, prompts) in self.sides.iter().enumerate() {
            if side != NEGATIVE || wants_negative {
                left.extend(prompts.iter().filter(|prompt| prompt.range.holds(sigma)).map(|prompt| (side, prompt)));
            }
        }
        let count = shape.count();
        let mut sums = [vec![0.0f32; count], vec![0.0f32; count]];
        let mut counts = [vec![1e-37f32; count], vec![1e-37f32; count]];
        while let Some(&(_, first)) = left.first() {
            let (group, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|(_, other)| go_together(first, other));
            left = rest;
            let prompts: Vec<&Placed> = group.iter().map(|(_, prompt)| *prompt).collect();
            let cells = first.cells;
            let denoised = self.call(x, sigma, &prompts, cells)?;
            let size = shape.b * shape.c * cells.h * cells.w;
            for (&(side, prompt), denoised) in group.iter().zip(denoised.chunks_exact(size)) {
                let mut rows = denoised.chunks_exact(cells.w);
                for plane in 0..shape.b * shape.c {
                    for (y, row) in rows.by_ref().take(cells.h).enumerate() {
                        let to = (plane * shape.h + cells.y + y) * shape.w + cells.x;
                        let weights = &prompt.weights[(plane / shape.c * cells.h + y) * cells.w..][..cells.w];
                        let sums = &mut sums[side][to..][..cells.w];
                        let counts = &mut counts[side][to..][..cells.w];
                        for (((sum, count), weight), value) in sums.iter_mut().zip(counts).zip(weights).zip(row) {
                            *sum += value * weight;
                            *count += weight;
                        }
                    }
                }
            }
        }
        for (sums, counts) in sums.iter_mut().zip(&counts) {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum /= count);
        }
        Ok(sums)
    }

    /// What the network predicts of a part of the latent for each prompt of a group, one behind the other.
    fn call(&self, x: &[f32], sigma: f32, group: &[&Placed], cells: Cells) -> Result<Vec<f32>> {
        let Shape { b, c, h, w } = self.shape;
        let sampling = self.network.sampling;
        let scale = sampling.input_scale(sigma);
        let mut part = Vec::with_capacity(b * c * cells.h * cells.w);
        for plane in x.chunks_exact(h * w) {
            for y in cells.y..cells.y + cells.h {
                part.extend_from_slice(&plane[y * w + cells.x..][..cells.w]);
            }
        }
        let scaled: Vec<f32> = part.iter().map(|&x| (f64::from(x) * scale) as f32).collect();
        let scaled = Tensor::from_vec(scaled, (b, c, cells.h, cells.w), &Device::Cpu)?;
        let latents = Tensor::cat(&vec![&scaled; group.len()], 0)?;

        let batches = |of: &dyn Fn(&Fed) -> Result<Option<Tensor>>| -> Result<Option<Tensor>> {
            let all = group.iter().map(|prompt| of(&prompt.fed)).collect::<Result<Option<Vec<_>>>>()?;
            Ok(all.map(|all| Tensor::cat(&all, 0)).transpose()?)
        };
        let tokens = group
            .iter()
            .try_fold(1, |multiple, prompt| prompt.fed.context.dim(1).map(|n| least_multiple(multiple, n)))?;
        let context = batches(&|fed| {
            let context = fitted_batch(&fed.context, b)?;
            let times = tokens / context.dim(1)?;
            Ok(Some(if times == 1 { context } else { context.repeat((1, times, 1))? }))
        })?
        .expect("every prompt has tokens");
        let y = batches(&|fed| fed.y.as_ref().map(|y| fitted_batch(y, b)).transpose())?;
        let concat = batches(&|fed| {
            let part = |concat: &Tensor| -> Result<Tensor> {
                Ok(concat.narrow(2, cells.y, cells.h)?.narrow(3, cells.x, cells.w)?.contiguous()?)
            };
            fed.concat.as_ref().map(part).transpose()
        })?;
        let timesteps = vec![sampling.timestep(sigma); b * group.len()];

        let inputs = Inputs { x: &latents, timesteps: &timesteps, context: &context, y: y.as_ref() };
        let residuals = self.residuals(&group[0].steering, sigma, inputs)?;
        let x = concat.map(|concat| Tensor::cat(&[&latents, &concat], 1)).transpose()?;
        let inputs = Inputs { x: x.as_ref().unwrap_or(&latents), ..inputs };
        let Network { unet, seat, .. } = self.network;
        let out = match seat {
            Some(seat) => seat.forward(unet, inputs, residuals.as_ref(), self.watch)?,
            None => unet.forward(inputs, residuals.as_ref(), self.watch)?,
        };
        let out: Vec<f32> = out.flatten_all()?.to_vec1()?;
        let (of_x, of_out) = sampling.denoised_factors(sigma);
        let denoised = |(&x, &out): (&f32, &f32)| (of_x * f64::from(x) + of_out * f64::from(out)) as f32;
        Ok(part.iter().cycle().zip(&out).map(denoised).collect())
    }

    /// What the controls that are active at a level add to the network, in all.
    fn residuals(&self, steering: &[Steering], sigma: f32, inputs: Inputs<'_>) -> Result<Option<Residuals>> {
        let mut sum: Option<Residuals> = None;
        for Steering { control, guide, .. } in steering.iter().filter(|steering| steering.range.holds(sigma)) {
            let found = control.net.forward_guided(inputs, guide, self.watch)?.scaled(control.strength)?;
            sum = Some(match sum {
                None => found,
                Some(sum) => sum.plus(&found)?,
            });
        }
        Ok(sum)
    }

    fn guided(&self, x: &[f32], sigma: f32, wants_negative: bool) -> Result<Both> {
        let masking = self.masking.as_ref().map(|masking| (masking, masking.at(sigma, self.network.sampling)));
        let blended: Vec<f32>;
        let input = match &masking {
            None => x,
            Some((Masking { latent, noise, .. }, mask)) => {
                let blend = |i: usize| x[i] * mask[i] + (latent[i] + noise[i] * sigma) * (1.0 - mask[i]);
                blended = (0..x.len()).map(blend).collect();
                &blended
            }
        };
        let is_one = (self.cfg - 1.0).abs() <= 1e-9 * self.cfg.abs().max(1.0);
        let [positive, negative] = self.predict(input, sigma, wants_negative || !is_one)?;
        let mut denoised = if is_one && !wants_negative {
            positive
        } else {
            let cfg = self.cfg as f32;
            negative.iter().zip(&positive).map(|(n, p)| n + (p - n) * cfg).collect()
        };
        if let Some((Masking { latent, .. }, mask)) = &masking {
            for (i, value) in denoised.iter_mut().enumerate() {
                *value = *value * mask[i] + latent[i] * (1.0 - mask[i]);
            }
        }
        Ok(Both { denoised, negative })
    }
}

impl Denoiser for Guidance<'_> {
    fn denoise(&mut self, x: &[f32], sigma: f32) -> Result<Vec<f32>> {
        Ok(self.guided(x, sigma, false)?.denoised)
    }

    fn denoise_both(&mut self, x: &[f32], sigma: f32) -> Result<Both> {
        self.guided(x, sigma, true)
    }
}

/// Whether two prompts may share a call: they see the same part, what they feed has the same parts, and the same controls steer them.
fn go_together(a: &Placed, b: &Placed) -> bool {
    /// Repeating tokens to a common multiple costs more than a call of its own beyond this.
    const MOST_REPEATS: usize = 4;
    let tokens = |prompt: &Placed| prompt.fed.context.dims().get(1).copied().unwrap_or(1).max(1);
    let (first, second) = (tokens(a), tokens(b));
    let (shorter, longer) = (first.min(second), first.max(second));
    let same = |(Steering { control: a, .. }, Steering { control: b, .. }): (&Steering, &Steering)| {
        Arc::ptr_eq(&a.net, &b.net)
            && a.hint.id() == b.hint.id()
            && (a.strength, a.start_percent, a.end_percent) == (b.strength, b.start_percent, b.end_percent)
    };
    a.cells == b.cells
        // Of three lengths the multiple of all may still be long: only one that is a multiple of the other is safe.
        && longer % shorter == 0
        && longer / shorter <= MOST_REPEATS
        && a.fed.y.is_some() == b.fed.y.is_some()
        && a.fed.concat.is_some() == b.fed.concat.is_some()
        && a.steering.len() == b.steering.len()
        && a.steering.iter().zip(&b.steering).all(same)
}

fn least_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b.max(1));
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b.max(1)
}

/// A batch of `b` items from one of another size: its first ones, or itself again and again.
fn fitted_batch(x: &Tensor, b: usize) -> Result<Tensor> {
    let found = x.dim(0)?;
    if found == b {
        return Ok(x.clone());
    }
    if found > b {
        return Ok(x.narrow(0, 0, b)?.contiguous()?);
    }
    let whole = vec![x; b.div_ceil(found)];
    Ok(Tensor::cat(&whole, 0)?.narrow(0, 0, b)?.contiguous()?)
}

/// Gives every prompt of `side` that has an area a partner among `others`, so that guidance compares like with like: a copy
/// of it that feeds what the smallest prompt there feeds in whose area it lies.
fn face_areas(side: &[Entry], others: &mut Vec<Entry>) {
    for entry in side {
        let Some(area) = entry.area else { continue };
        let encloses = |other: &&Entry| other.area.is_none_or(|other| area.is_inside(other));
        // Any area is smaller than none; of equals, the first.
        let size = |other: &&Entry| other.area.map_or(usize::MAX, |area| area.h * area.w);
        let Some(smallest) = others.iter().filter(encloses).min_by_key(size) else { continue };
        if smallest.area != Some(area) {
            let partner = Entry { fed: smallest.fed.clone(), ..entry.clone() };
            others.push(partner);
        }
    }
}

/// Gives negative prompts without an area the controls of positive ones that are to be shared, if none there has any.
fn share_controls(positive: &[Entry], negative: &mut [Entry]) {
    let shared: Vec<Vec<Control>> = positive
        .iter()
        .filter(|entry| entry.area.is_none() && entry.apply_to_uncond && !entry.controls.is_empty())
        .map(|entry| entry.controls.clone())
        .collect();
    let mut others: Vec<&mut Entry> = negative.iter_mut().filter(|entry| entry.area.is_none()).collect();
    if others.is_empty() || others.iter().any(|entry| !entry.controls.is_empty()) {
        return;
    }
    let count = others.len();
    for (i, controls) in shared.into_iter().enumerate() {
        others[i % count].controls = controls;
    }
}

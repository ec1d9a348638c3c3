//! The jobs that redraw pictures, with the reference's parameter names and defaults (detailers.md, sections 5, 6 and 8).

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    check::{Invalid, Warning, Wrong, in_range},
    cost,
    job::{Model, Output, Picture, Precision, Reproducibility},
    picture::{Color, Format, Sample},
    pipe::{BasicPipe, MaskRef, PixelsRef, Weights},
    region::{Region, Size},
    resize::ResizeMethod,
    sampling::KSampler,
    segs::{self, Override, Placed},
    task::{ComputeClass, LatentPart},
    working::{DetailSize, LATENT_PIXELS, latent_size, rescaled, to_at_least_8},
};

/// Who renders a job, how exactly, and how what it makes is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rendering {
    /// How exactly it is computed.
    pub precision: Precision,
    /// Which devices may share the work.
    pub reproducibility: Reproducibility,
    /// The class of device that renders the tasks.
    pub class: ComputeClass,
    /// How pictures are written.
    pub output: Output,
    /// Does what the reference does also where it is a mistake (section 12.2).
    pub reference_quirks: bool,
}

impl Rendering {
    /// How exactly pictures are redrawn when the submitter does not say: as the reference does.
    pub const PRECISION: Precision = Precision::Exact;
}

/// Which side of a segment is enlarged to `guide_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuideSizeFor {
    /// The shorter side of its bounding box.
    #[default]
    Bbox,
    /// The shorter side of its crop region.
    CropRegion,
}

/// The parameters of `SEGSDetailer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SegsDetailer {
    /// What the shorter side of a segment is enlarged to, in pixels: 64 to 16384.
    pub guide_size: f64,
    /// Which side that is.
    pub guide_size_for: GuideSizeFor,
    /// What the longer side of a crop may become, in pixels: 64 to 16384.
    pub max_size: f64,
    /// How segments are redrawn.
    pub sampler: KSampler,
    /// Redraws only what a segment's mask holds.
    pub noise_mask: bool,
    /// Redraws segments that are large enough already, too.
    pub force_inpaint: bool,
    /// How much of the steps the refiner takes, 0 to 1.
    pub refiner_ratio: f64,
    /// How many times all segments are redrawn, each time from the original and with the next seed: 1 to 100.
    pub batch_size: u32,
    /// How many times a segment is redrawn from its own result: 1 to 10.
    pub cycle: u32,
    /// Hides what is redrawn from an inpainting checkpoint.
    pub inpaint_model: bool,
    /// Softens the edges of what is redrawn, in pixels of the crop: 0 to 100.
    pub noise_mask_feather: u32,
}

impl Default for SegsDetailer {
    fn default() -> Self {
        Self {
            guide_size: 512.0,
            guide_size_for: GuideSizeFor::Bbox,
            max_size: 768.0,
            sampler: KSampler::default(),
            noise_mask: true,
            force_inpaint: true,
            refiner_ratio: 0.2,
            batch_size: 1,
            cycle: 1,
            inpaint_model: false,
            noise_mask_feather: 20,
        }
    }
}

/// The parameters of `SEGSPaste`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SegsPaste {
    /// Softens the edges of what is pasted, in pixels: 0 to 100.
    pub feather: u32,
    /// How much it covers, 0 to 255.
    pub alpha: u8,
}

impl Default for SegsPaste {
    fn default() -> Self {
        Self { feather: 5, alpha: 255 }
    }
}

/// `SEGSDetailer`, resolved: every segment of a picture is redrawn by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegsDetail {
    /// The picture.
    pub picture: Picture,
    /// The segments, as they lie on it.
    pub segs: Vec<Placed>,
    /// Prompts and seeds of some of them.
    #[serde(default)]
    pub overrides: Vec<Override>,
    /// What they are redrawn with.
    pub basic_pipe: BasicPipe,
    /// What takes the last steps.
    #[serde(default)]
    pub refiner_basic_pipe: Option<BasicPipe>,
    /// How.
    pub detailer: SegsDetailer,
    /// Also pastes them onto the picture.
    #[serde(default)]
    pub paste: Option<SegsPaste>,
    /// By whom.
    pub rendering: Rendering,
}

/// What becomes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It is passed on as it is: its mask is empty.
    PassedOn,
    /// It keeps its pixels: it is large enough already.
    Kept,
    /// It is redrawn at this size.
    Redrawn(Size),
}

impl SegsDetail {
    /// What becomes of the segment at `index`.
    ///
    /// # Panics
    /// When there is no such segment.
    pub fn treatment(&self, index: usize) -> Result<Treatment, Invalid> {
        let Placed { seg, is_empty, .. } = &self.segs[index];
        if *is_empty {
            return Ok(Treatment::PassedOn);
        }
        let at = |field: &str| format!("segs_detail.segs[{index}].{field}");
        let crop = seg.cropped_image.map_or(self.segs[index].region(self.picture.size).size(), |image| image.size);
        let node = &self.detailer;
        let size = DetailSize {
            guide_size: node.guide_size,
            guide_size_for_bbox: node.guide_size_for == GuideSizeFor::Bbox,
            max_size: node.max_size,
            force_inpaint: node.force_inpaint,
        };
        match size.of(crop, seg.bbox).map_err(|empty| Wrong::from(empty).at(at("bbox")))? {
            None => Ok(Treatment::Kept),
            Some(size) if latent_size(size).pixels() == 0 => Err(Wrong::NoLatent { size }.at(at("crop_region"))),
            Some(size) => Ok(Treatment::Redrawn(size)),
        }
    }

    /// Refuses segments that would take more room than the largest worker has; `weights_bytes` is what the networks take.
    pub fn check_room(&self, weights_bytes: u64, has_bytes: u64) -> Result<(), Invalid> {
        (0..self.segs.len()).try_for_each(|index| match self.treatment(index)? {
            Treatment::PassedOn | Treatment::Kept => Ok(()),
            Treatment::Redrawn(size) => {
                check_room(format!("segs_detail.segs[{index}].crop_region"), size, weights_bytes, has_bytes)
            }
        })
    }

    /// The seed of a segment in a round, from 0; `seed` is its own or the job's.
    ///
    /// The node's first seed is one more than the job's (Q33), and is the same for all segments.
    pub fn seed(seed: u64, round: u32) -> u64 {
        seed.wrapping_add(1 + u64::from(round))
    }

    /// Refuses a job that cannot be done, and says what is worth knowing of one that can.
    pub fn check(&self) -> Result<Vec<Warning>, Invalid> {
        let at = "segs_detail";
        let node = &self.detailer;
        let mut warnings = Vec::new();
        check_picture(at, &self.picture, &mut warnings)?;
        in_range(format!("{at}.guide_size"), node.guide_size, 64.0, 16384.0)?;
        in_range(format!("{at}.max_size"), node.max_size, 64.0, 16384.0)?;
        in_range(format!("{at}.refiner_ratio"), node.refiner_ratio, 0.0, 1.0)?;
        in_range(format!("{at}.batch_size"), node.batch_size, 1, 100)?;
        in_range(format!("{at}.cycle"), node.cycle, 1, 10)?;
        in_range(format!("{at}.noise_mask_feather"), node.noise_mask_feather, 0, 100)?;
        if let Some(paste) = &self.paste {
            in_range(format!("{at}.paste.feather"), paste.feather, 0, 100)?;
        }
        node.sampler.check(&format!("{at}.sampler"))?;
        let step = u64::from(node.batch_size) + u64::from(node.cycle) - 1;
        check_pipe(at, &self.basic_pipe, node.inpaint_model, &mut warnings)?;
        if let Some(refiner) = &self.refiner_basic_pipe {
            check_refiner(at, &self.basic_pipe, refiner)?;
            let KSampler { steps, .. } = node.sampler;
            if node.refiner_ratio > 0.0 && node.sampler.base_steps(node.refiner_ratio) == 0 {
                warnings.push(Warning::NoNoise { refiner_ratio: node.refiner_ratio, steps });
            }
            if node.noise_mask && node.noise_mask_feather > 0 {
                warnings.push(Warning::ResidualNoise(node.noise_mask_feather));
            }
        }
        let family = self.basic_pipe.checkpoint.family;
        segs::check(&format!("{at}.segs"), &self.segs, self.picture.size, family, &mut warnings)?;
        let mut is_job_seed_used = self.segs.is_empty();
        for (index, placed) in self.segs.iter().enumerate() {
            if self.treatment(index)? == Treatment::Kept {
                warnings.push(Warning::Kept { seg: index });
            }
            is_job_seed_used |= segs::directions(index, &placed.seg, &self.overrides).1.is_none();
        }
        if is_job_seed_used {
            node.sampler.check_seed(&format!("{at}.sampler"), step)?;
        }
        check_overrides(at, &self.segs, &self.overrides, |_| step, &mut warnings)?;
        Ok(warnings)
    }
}

/// How a picture's pixels are resized by `SEGSUpscalerPipe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResamplingMethod {
    /// The pixel under the centre.
    Nearest,
    /// Two neighbours a side.
    Bilinear,
    /// Four neighbours a side.
    Bicubic,
    /// Six neighbours a side.
    Lanczos,
}

impl ResamplingMethod {
    /// Half the width of the kernel, in pixels of the coarser side. For the nearest pixel a whole one: where it lies is
    /// a running sum, which the formula for the others does not follow.
    pub fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }
}

/// The parameters of `SEGSUpscalerPipe`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SegsUpscaler {
    /// How many times as large the picture becomes, 0.01 to 100.
    pub rescale_factor: f64,
    /// How it is resized; `None`: bicubic, which is what the reference does whatever is chosen (Q34).
    pub resampling_method: Option<ResamplingMethod>,
    /// Resizes to 8 times the target first.
    pub supersample: bool,
    /// Kept from the node, where it has no effect either (Q6): 8 to 1024.
    pub rounding_modulus: u32,
    /// How segments are redrawn; each further one adds 1 to the seed, skipped ones too.
    pub sampler: KSampler,
    /// Softens the edges of what is pasted, in pixels: 0 to 100.
    pub feather: u32,
    /// Hides what is redrawn from an inpainting checkpoint.
    pub inpaint_model: bool,
    /// Softens the edges of what is redrawn, in pixels: 0 to 100.
    pub noise_mask_feather: u32,
}

impl Default for SegsUpscaler {
    fn default() -> Self {
        Self {
            rescale_factor: 2.0,
            resampling_method: None,
            supersample: true,
            rounding_modulus: 8,
            sampler: KSampler::default(),
            feather: 5,
            inpaint_model: false,
            noise_mask_feather: 20,
        }
    }
}

/// `SEGSUpscalerPipe`, resolved: a picture is enlarged, then its segments are redrawn in it one after the other, each seeing
/// the ones before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegsUpscale {
    /// The picture.
    pub picture: Picture,
    /// The segments, as they lie on the enlarged picture.
    pub segs: Vec<Placed>,
    /// Prompts and seeds of some of them.
    #[serde(default)]
    pub overrides: Vec<Override>,
    /// What they are redrawn with.
    pub basic_pipe: BasicPipe,
    /// A network that enlarges the picture first, and how the picture is cut for it.
    #[serde(default)]
    pub upscale_model: Option<TiledModel>,
    /// How.
    pub upscaler: SegsUpscaler,
    /// By whom.
    pub rendering: Rendering,
}

/// A super-resolution network and how pictures are cut for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TiledModel {
    /// The network.
    pub model: Model,
    /// How the picture is cut.
    pub tiling: crate::tiles::Tiling,
    /// How exactly it is computed.
    pub precision: Precision,
}

impl SegsUpscale {
    /// The size of the enlarged picture.
    pub fn size(&self) -> Result<Size, Invalid> {
        let (from, factor) = (self.picture.size, self.upscaler.rescale_factor);
        rescaled(from, factor).ok_or_else(|| Wrong::NoResult { from, factor }.at("segs_upscale.rescale_factor"))
    }

    /// How the picture is resized.
    pub fn resampling_method(&self) -> ResamplingMethod {
        match self.upscaler.resampling_method {
            Some(method) if !self.rendering.reference_quirks => method,
            _ => ResamplingMethod::Bicubic,
        }
    }

    /// The size at which a crop of `region` is redrawn.
    pub fn working_size(region: Region) -> Size {
        to_at_least_8(region.size())
    }

    /// Refuses segments that would take more room than the largest worker has; `weights_bytes` is what the networks take.
    pub fn check_room(&self, weights_bytes: u64, has_bytes: u64) -> Result<(), Invalid> {
        let size = self.size()?;
        self.segs.iter().enumerate().filter(|(_, placed)| !placed.is_empty).try_for_each(|(index, placed)| {
            let size = Self::working_size(placed.region(size));
            check_room(format!("segs_upscale.segs[{index}].crop_region"), size, weights_bytes, has_bytes)
        })
    }

    /// The seed of the segment at `index`; `seed` is its own or the job's.
    pub fn seed(seed: u64, index: usize) -> u64 {
        seed.wrapping_add(index as u64)
    }

    /// Refuses a job that cannot be done, and says what is worth knowing of one that can.
    pub fn check(&self) -> Result<Vec<Warning>, Invalid> {
        let at = "segs_upscale";
        let node = &self.upscaler;
        let mut warnings = Vec::new();
        check_picture(at, &self.picture, &mut warnings)?;
        in_range(format!("{at}.rescale_factor"), node.rescale_factor, 0.01, 100.0)?;
        in_range(format!("{at}.rounding_modulus"), node.rounding_modulus, 8, 1024)?;
        in_range(format!("{at}.feather"), node.feather, 0, 100)?;
        in_range(format!("{at}.noise_mask_feather"), node.noise_mask_feather, 0, 100)?;
        node.sampler.check(&format!("{at}.sampler"))?;
        check_pipe(at, &self.basic_pipe, node.inpaint_model, &mut warnings)?;
        if let Some(TiledModel { model, .. }) = &self.upscale_model {
            check_model(at, model)?;
        }
        let size = self.size()?;
        if node.supersample && size.scaled(8).is_none() {
            return Err(Wrong::NoResult { from: size, factor: 8.0 }.at(format!("{at}.supersample")));
        }
        let family = self.basic_pipe.checkpoint.family;
        segs::check(&format!("{at}.segs"), &self.segs, size, family, &mut warnings)?;
        let unchanged = |(index, placed): &(usize, &Placed)| {
            !placed.is_empty && segs::directions(*index, &placed.seg, &self.overrides).1.is_none()
        };
        if let Some((last, _)) = self.segs.iter().enumerate().rfind(unchanged) {
            node.sampler.check_seed(&format!("{at}.sampler"), last as u64)?;
        }
        check_overrides(at, &self.segs, &self.overrides, |index| index as u64, &mut warnings)?;
        Ok(warnings)
    }
}

/// How the sizes between the first and the last grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepMode {
    /// By equal differences.
    #[default]
    Simple,
    /// By equal ratios.
    Geometric,
}

/// A sampler with the pipe that it runs on, as a KSAMPLER object bundles them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipedSampler {
    /// How.
    pub sampler: KSampler,
    /// With what.
    pub basic_pipe: BasicPipe,
    /// What changes its parameters from step to step, applied one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<PkHook>,
}

/// A schedule of a parameter over the steps of an iterative upscale, from the sampler's own value to `target`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PkHook {
    /// Of the cfg, which is cut to a whole number but for a single step (Q25).
    Cfg {
        /// The last step's: 0 to 100.
        target: f64,
    },
    /// Of the denoise.
    Denoise {
        /// The last step's: 0.0001 to 1.
        target: f64,
    },
    /// Of the steps.
    Steps {
        /// The last step's: 1 to 10000.
        target: u32,
    },
}

impl PkHook {
    /// Changes the parameters for step `k` of `n`, from 0 (section 10.2).
    fn apply(self, sampler: &mut KSampler, k: u32, n: u32) {
        let part = (n > 1).then(|| f64::from(k) / f64::from(n - 1));
        let between = |from: f64, to: f64| part.map_or(to, |part| from + (to - from) * part);
        match self {
            Self::Cfg { target } if n > 1 => sampler.cfg = between(sampler.cfg, target).trunc(),
            Self::Cfg { target } => sampler.cfg = target,
            Self::Denoise { target } => sampler.denoise = between(sampler.denoise, target),
            Self::Steps { target } => sampler.steps = between(f64::from(sampler.steps), f64::from(target)) as u32,
        }
    }
}

impl PipedSampler {
    /// The parameters of step `k` of `n`, from 0.
    pub fn at_step(&self, k: u32, n: u32) -> KSampler {
        let mut sampler = self.sampler.clone();
        self.hooks.iter().for_each(|hook| hook.apply(&mut sampler, k, n));
        sampler
    }

    fn check(&self, at: &str, n: u32) -> Result<(), Invalid> {
        let sampler = format!("{at}.sampler");
        self.sampler.check(&sampler)?;
        self.basic_pipe.check(&format!("{at}.basic_pipe"))?;
        for (i, hook) in self.hooks.iter().enumerate() {
            let target = |name: &str| format!("{at}.hooks[{i}].{name}");
            match *hook {
                PkHook::Cfg { target: cfg } => in_range(target("cfg"), cfg, 0.0, 100.0)?,
                PkHook::Denoise { target: denoise } => in_range(target("denoise"), denoise, 0.0001, 1.0)?,
                PkHook::Steps { target: steps } => in_range(target("steps"), steps, 1, 10_000)?,
            }
        }
        // Between two good ends only the schedule's length can still be wrong, and that is worst at an end.
        [0, n.saturating_sub(1)].into_iter().try_for_each(|k| self.at_step(k, n).check(&sampler))
    }
}

/// At which steps the full sampler takes the place of the two masked ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FullSamplerSchedule {
    /// Never.
    #[default]
    None,
    /// At every `n + 1`-th step: 1 to 3.
    Interleave(u32),
    /// At the last `n` steps: 1 or 2.
    Last(u32),
    /// At every second step and the last two, whichever number the name bears: 1 to 3.
    Mixed(u32),
}

/// A name that is no schedule of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a full_sample_schedule: none, interleave1..3, last1, last2 or interleave1..3+last1 is wanted")]
pub struct NotASchedule(String);

impl FromStr for FullSamplerSchedule {
    type Err = NotASchedule;

    fn from_str(name: &str) -> Result<Self, NotASchedule> {
        Ok(match name {
            "none" => Self::None,
            "interleave1" => Self::Interleave(1),
            "interleave2" => Self::Interleave(2),
            "interleave3" => Self::Interleave(3),
            "last1" => Self::Last(1),
            "last2" => Self::Last(2),
            "interleave1+last1" => Self::Mixed(1),
            "interleave2+last1" => Self::Mixed(2),
            "interleave3+last1" => Self::Mixed(3),
            _ => return Err(NotASchedule(name.chars().take(80).collect())),
        })
    }
}

impl fmt::Display for FullSamplerSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Interleave(n) => write!(f, "interleave{n}"),
            Self::Last(n) => write!(f, "last{n}"),
            Self::Mixed(n) => write!(f, "interleave{n}+last1"),
        }
    }
}

impl TryFrom<String> for FullSamplerSchedule {
    type Error = NotASchedule;

    fn try_from(name: String) -> Result<Self, NotASchedule> {
        name.parse()
    }
}

impl From<FullSamplerSchedule> for String {
    fn from(schedule: FullSamplerSchedule) -> Self {
        schedule.to_string()
    }
}

impl FullSamplerSchedule {
    /// Whether the full sampler runs at `step` of `total_steps`, from 0. Steps are counted from 1 to one more than there are,
    /// so that "last1" never comes and "last2" is the last step (Q13).
    pub fn is_full(self, step: u32, total_steps: u32) -> bool {
        match self {
            Self::None => false,
            Self::Interleave(n) => (step + 1).is_multiple_of(n + 1),
            Self::Last(n) => step + n > total_steps,
            Self::Mixed(_) => {
                Self::Interleave(1).is_full(step, total_steps) || Self::Last(2).is_full(step, total_steps)
            }
        }
    }
}

/// Which samplers a step runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Samplers {
    /// `PixelKSampleUpscalerProvider`: one, over the whole latent.
    One(Box<PipedSampler>),
    /// `TwoSamplersForMaskUpscalerProvider`.
    Two(Box<TwoSamplers>),
}

/// Which of its samplers a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The only one, or that for what the mask does not hold.
    Base,
    /// That for what the mask holds.
    Mask,
    /// That for everything.
    Full,
}

impl Samplers {
    /// The sampler of a role; the base sampler stands in for a full one.
    pub fn of(&self, role: Role) -> &PipedSampler {
        match (self, role) {
            (Self::One(sampler), _) => sampler,
            (Self::Two(two), Role::Base) => &two.base_sampler,
            (Self::Two(two), Role::Mask) => &two.mask_sampler,
            (Self::Two(two), Role::Full) => two.full_sampler.as_ref().unwrap_or(&two.base_sampler),
        }
    }

    /// The samplers of step `k` of `n`, from 0, one after the other, and where each redraws.
    pub fn roles(&self, k: u32, n: u32) -> Vec<(Role, LatentPart)> {
        match self {
            Self::One(_) => vec![(Role::Base, LatentPart::Whole)],
            Self::Two(two) if two.full_sample_schedule.is_full(k, n) => {
                vec![(Role::Base, LatentPart::Whole), (Role::Full, LatentPart::Whole)]
            }
            Self::Two(_) => vec![(Role::Base, LatentPart::NotMasked), (Role::Mask, LatentPart::Masked)],
        }
    }

    /// What the sampler redraws with that runs at every step.
    pub fn basic_pipe(&self) -> &BasicPipe {
        match self {
            Self::One(sampler) => &sampler.basic_pipe,
            Self::Two(two) => &two.base_sampler.basic_pipe,
        }
    }
}

/// The samplers of `TwoSamplersForMaskUpscalerProvider`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TwoSamplers {
    /// Redraws what the mask does not hold.
    pub base_sampler: PipedSampler,
    /// Redraws what it holds.
    pub mask_sampler: PipedSampler,
    /// Redraws everything, at the steps of `full_sample_schedule`; `None`: the base sampler does.
    #[serde(default)]
    pub full_sampler: Option<PipedSampler>,
    /// When that is.
    #[serde(default)]
    pub full_sample_schedule: FullSamplerSchedule,
    /// The mask, of any size.
    pub mask: MaskRef,
}

/// What an iterative upscale begins with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatentSource {
    /// A picture, which is encoded first.
    Picture(Picture),
    /// A latent: 4 channels of `f32` each as large as `size` says.
    Latent(PixelsRef),
}

impl LatentSource {
    /// The picture; of a latent, one as it would be of, where nobody says how it is to be written.
    pub fn picture(&self) -> Cow<'_, Picture> {
        let latent = match self {
            Self::Picture(picture) => return Cow::Borrowed(picture),
            Self::Latent(latent) => latent,
        };
        let Size { width, height } = latent.size;
        Cow::Owned(Picture {
            name: "latent".to_owned(),
            digest: latent.digest,
            size: Size::new(width.saturating_mul(LATENT_PIXELS), height.saturating_mul(LATENT_PIXELS)),
            color: Color::Rgb,
            sample: Sample::U8,
            format: Format::Png,
        })
    }
}

/// An iterative latent upscale, resolved: a chain of steps, each of which enlarges the pixels and redraws the latent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatentUpscale {
    /// What is enlarged.
    pub source: LatentSource,
    /// How many times as large it becomes, 1 to 100.
    pub upscale_factor: f64,
    /// In how many steps, 1 to 1000.
    pub steps: u32,
    /// How they grow.
    pub step_mode: StepMode,
    /// How pixels are resized: all but bicubic.
    pub scale_method: ResizeMethod,
    /// The VAE between latents and pixels, or a checkpoint with one.
    pub vae: Weights,
    /// Encodes and decodes in tiles of `tile_size`; with `reference_quirks` only between the steps, and not the picture that it begins
    /// with or ends in.
    pub use_tiled_vae: bool,
    /// The side of those tiles in pixels, 130 to 4096.
    pub tile_size: u32,
    /// A network that enlarges the pixels, as often as it takes.
    #[serde(default)]
    pub upscale_model: Option<Model>,
    /// What redraws.
    pub samplers: Samplers,
    /// Decodes the last latent to a picture.
    pub decode: bool,
    /// By whom.
    pub rendering: Rendering,
}

impl LatentUpscale {
    /// The size of the latent that it begins with.
    pub fn latent(&self) -> Size {
        match &self.source {
            LatentSource::Picture(picture) => latent_size(picture.size),
            LatentSource::Latent(latent) => latent.size,
        }
    }

    /// The steps: each one's number in the schedule, from 0, and the size in pixels that it enlarges to (section 8.3).
    ///
    /// A factor of 1 has no last step, and in geometric mode rounding may leave it out (Q30).
    pub fn targets(&self) -> Vec<(u32, Size)> {
        let (latent, n, factor) = (self.latent(), self.steps, self.upscale_factor);
        let side = |length: u32, scale: f64| (f64::from(length * LATENT_PIXELS) * scale) as u32;
        let size = |scale: f64| Size::new(side(latent.width, scale), side(latent.height, scale));
        let unit = match self.step_mode {
            StepMode::Simple => ((factor - 1.0) / f64::from(n)).max(0.0),
            StepMode::Geometric => factor.powf(1.0 / f64::from(n)),
        };
        let mut scale = 1.0;
        let mut targets = Vec::with_capacity(n as usize);
        for k in 0..n.saturating_sub(1) {
            scale = match self.step_mode {
                StepMode::Simple => scale + unit,
                StepMode::Geometric => scale * unit,
            };
            targets.push((k, size(scale)));
        }
        if scale < factor {
            targets.push((n - 1, size(factor)));
        }
        targets
    }

    /// What step `k` runs, from 0, one after the other: whose turn it is, how, and where. Hooks are applied; of a full sampler that
    /// the base sampler stands in for, the full hook would be.
    pub fn runs(&self, k: u32) -> Vec<(Role, KSampler, LatentPart)> {
        let run = |(role, part)| (role, self.samplers.of(role).at_step(k, self.steps), part);
        self.samplers.roles(k, self.steps).into_iter().map(run).collect()
    }

    /// The size in pixels of what the chain ends with.
    pub fn result(&self) -> Size {
        let last = self.targets().last().map_or(self.latent(), |(_, to)| latent_size(*to));
        Size::new(last.width.saturating_mul(LATENT_PIXELS), last.height.saturating_mul(LATENT_PIXELS))
    }

    /// Refuses a chain that would take more room than the largest worker has; `weights_bytes` is what the networks take.
    pub fn check_room(&self, weights_bytes: u64, has_bytes: u64) -> Result<(), Invalid> {
        // A tiled VAE holds a tile at a time, twice as long as it is wide.
        let most = Size::new(self.tile_size, self.tile_size.saturating_mul(2));
        let tiled = |size: Size| if self.use_tiled_vae && size.pixels() > most.pixels() { most } else { size };
        let at = "latent_upscale.upscale_factor";
        self.targets()
            .into_iter()
            .try_for_each(|(_, size)| check_room(at.to_owned(), tiled(size), weights_bytes, has_bytes))
    }

    /// Refuses a job that cannot be done, and says what is worth knowing of one that can.
    pub fn check(&self) -> Result<Vec<Warning>, Invalid> {
        let at = "latent_upscale";
        let mut warnings = Vec::new();
        if let LatentSource::Picture(picture) = &self.source {
            check_picture(at, picture, &mut warnings)?;
        }
        in_range(format!("{at}.upscale_factor"), self.upscale_factor, 1.0, 100.0)?;
        in_range(format!("{at}.steps"), self.steps, 1, 1000)?;
        in_range(format!("{at}.tile_size"), self.tile_size, 130, 4096)?;
        if self.scale_method == ResizeMethod::Bicubic {
            let wrong = Wrong::Unknown {
                what: "scale_method",
                name: self.scale_method.name().to_owned(),
                known: vec!["nearest-exact", "bilinear", "area", "lanczos"],
            };
            return Err(wrong.at(format!("{at}.scale_method")));
        }
        let latent = self.latent();
        if latent.pixels() == 0 {
            return Err(Wrong::NoPixels(latent).at(format!("{at}.source")));
        }
        let most = f64::from(latent.width.max(latent.height)) * 8.0 * self.upscale_factor;
        if most > f64::from(u32::MAX) {
            let wrong = Wrong::NoResult { from: latent, factor: self.upscale_factor };
            return Err(wrong.at(format!("{at}.upscale_factor")));
        }
        if let Some(model) = &self.upscale_model {
            check_model(at, model)?;
        }
        match &self.samplers {
            Samplers::One(sampler) => sampler.check(&format!("{at}.base_sampler"), self.steps)?,
            Samplers::Two(two) => {
                two.base_sampler.check(&format!("{at}.base_sampler"), self.steps)?;
                two.mask_sampler.check(&format!("{at}.mask_sampler"), self.steps)?;
                check_family(&format!("{at}.mask_sampler.basic_pipe"), &two.base_sampler, &two.mask_sampler)?;
                if let Some(full) = &two.full_sampler {
                    full.check(&format!("{at}.full_sampler"), self.steps)?;
                    check_family(&format!("{at}.full_sampler.basic_pipe"), &two.base_sampler, full)?;
                }
                if two.mask.size.pixels() == 0 {
                    return Err(Wrong::NoPixels(two.mask.size).at(format!("{at}.mask")));
                }
            }
        }
        if self.targets().is_empty() {
            warnings.push(Warning::NothingToDo);
        }
        Ok(warnings)
    }
}

fn check_room(field: String, size: Size, weights_bytes: u64, has_bytes: u64) -> Result<(), Invalid> {
    let needs_bytes = cost::bytes(size).saturating_add(weights_bytes);
    if needs_bytes <= has_bytes {
        return Ok(());
    }
    let fits = cost::largest(size, has_bytes.saturating_sub(weights_bytes));
    Err(Wrong::NoRoom { size, needs_bytes, has_bytes, fits }.at(field))
}

fn check_picture(at: &str, picture: &Picture, warnings: &mut Vec<Warning>) -> Result<(), Invalid> {
    if picture.size.pixels() == 0 {
        return Err(Wrong::NoPixels(picture.size).at(format!("{at}.picture")));
    }
    if picture.color.is_grey() {
        return Err(Wrong::Grey.at(format!("{at}.picture")));
    }
    if picture.color.has_alpha() {
        warnings.push(Warning::AlphaDropped);
    }
    Ok(())
}

fn check_pipe(at: &str, pipe: &BasicPipe, inpaint_model: bool, warnings: &mut Vec<Warning>) -> Result<(), Invalid> {
    pipe.check(&format!("{at}.basic_pipe"))?;
    let name = || pipe.checkpoint.weights.name.clone();
    match (inpaint_model, pipe.checkpoint.is_inpainting()) {
        (true, false) => warnings.push(Warning::NotInpainting(name())),
        (false, true) => warnings.push(Warning::InpaintingUnused(name())),
        (true, true) | (false, false) => {}
    }
    Ok(())
}

fn check_refiner(at: &str, base: &BasicPipe, refiner: &BasicPipe) -> Result<(), Invalid> {
    let at = format!("{at}.refiner_basic_pipe");
    refiner.check(&at)?;
    check_latents(&at, base, refiner)
}

fn check_family(at: &str, base: &PipedSampler, other: &PipedSampler) -> Result<(), Invalid> {
    check_latents(at, &base.basic_pipe, &other.basic_pipe)
}

/// Refuses a pipe whose latents are not those of `base`.
fn check_latents(at: &str, base: &BasicPipe, other: &BasicPipe) -> Result<(), Invalid> {
    let (want, got) = (base.checkpoint.family, other.checkpoint.family);
    if got.shares_latents_with(want) {
        return Ok(());
    }
    Err(Wrong::Family { name: other.checkpoint.weights.name.clone(), got, want }.at(format!("{at}.checkpoint")))
}

fn check_model(at: &str, model: &Model) -> Result<(), Invalid> {
    match model.scale {
        0 => Err(Wrong::Scale { name: model.name.clone(), scale: 0 }.at(format!("{at}.upscale_model"))),
        _ => Ok(()),
    }
}

/// Refuses seeds of `overrides` that do not fit; `step` is the most that is added to the seed of a segment.
fn check_overrides(
    at: &str,
    segs: &[Placed],
    overrides: &[Override],
    step: impl Fn(usize) -> u64,
    warnings: &mut Vec<Warning>,
) -> Result<(), Invalid> {
    for (i, change) in overrides.iter().enumerate() {
        let meant = || segs.iter().enumerate().filter(|(index, placed)| change.select.is(*index, &placed.seg));
        let Some(most) = meant().map(|(index, _)| step(index)).max() else {
            warnings.push(Warning::NoSuchSeg(i));
            continue;
        };
        if let Some(seed) = change.seed
            && seed.checked_add(most).is_none()
        {
            return Err(Wrong::SeedOverflow { seed, step: most }.at(format!("{at}.overrides[{i}].seed")));
        }
    }
    Ok(())
}

//! What the values of flags are, and how they are read.

use std::path::PathBuf;

use clap::ValueEnum;
use domain::{
    nodes::PkHook,
    resize::{Factor, MAX_SIDE},
    sampling::SchedulerFunc,
    segs::Select,
};
use proto::v1;
use weights::synthetic::diffusion::Model;

/// The numbers that weights are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits, of which 10 behind the point.
    F16,
    /// 16 bits, of which 7 behind the point, with the range of 32 bits.
    Bf16,
}

/// The side of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileSide {
    /// So many pixels.
    Pixels(u32),
    /// The farm's choice.
    Auto,
}

/// How exactly to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// f32, which equals the reference.
    Exact,
    /// bf16 products with f32 sums where the device gains from it.
    Fast,
}

/// Which devices may share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Reproducibility {
    /// Those of one class.
    SameClass,
    /// Any.
    Mixed,
}

/// Which jobs go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Priority {
    /// When nothing else waits.
    Low,
    /// In order of arrival.
    Normal,
    /// Before everything else.
    High,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Nothing is rendered yet.
    Queued,
    /// Being rendered or put together.
    Running,
    /// All results are there.
    Succeeded,
    /// A task failed for good.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl From<Precision> for v1::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Exact => Self::Exact,
            Precision::Fast => Self::Fast,
        }
    }
}

impl From<Reproducibility> for v1::Reproducibility {
    fn from(reproducibility: Reproducibility) -> Self {
        match reproducibility {
            Reproducibility::SameClass => Self::SameClass,
            Reproducibility::Mixed => Self::Mixed,
        }
    }
}

impl From<Priority> for v1::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Low => Self::Low,
            Priority::Normal => Self::Normal,
            Priority::High => Self::High,
        }
    }
}

/// Which side of a segment is enlarged to `guide_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GuideSizeFor {
    /// The shorter side of its bounding box.
    Bbox,
    /// The shorter side of its crop region.
    #[value(name = "crop_region")]
    CropRegion,
}

/// How the sizes of an iterative upscale grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StepMode {
    /// By equal differences.
    Simple,
    /// By equal ratios.
    Geometric,
}

/// How masks of SEGS are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Masks {
    /// In the document, as runs; those with greys as PNG files.
    Rle,
    /// As PNG files.
    Png,
}

/// What a synthetic checkpoint is of.
pub fn synthetic(text: &str) -> Result<Model, String> {
    let known = || Model::ALL.map(Model::id).join(", ");
    Model::ALL.into_iter().find(|model| model.id() == text).ok_or_else(|| format!("known are {}", known()))
}

/// Splits off numbers that follow a path, each after a colon, at most `most`.
fn path_and_numbers(text: &str, most: usize) -> (PathBuf, Vec<f64>) {
    let (mut path, mut numbers) = (text, Vec::new());
    while numbers.len() < most
        && let Some((rest, last)) = path.rsplit_once(':')
        && let Ok(number) = last.parse()
        && !rest.is_empty()
    {
        (path, _) = (rest, numbers.insert(0, number));
    }
    (path.into(), numbers)
}

/// A LoRA, and how much of it is laid on.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// The file, or the name of a model.
    pub lora: PathBuf,
    /// How much of it goes into the UNet.
    pub strength_model: f64,
    /// How much of it goes into the text encoders.
    pub strength_clip: f64,
}

/// Reads `FILE[:MODEL[:CLIP]]`.
pub fn lora(text: &str) -> Result<Lora, String> {
    let (lora, numbers) = path_and_numbers(text, 2);
    let strength_model = numbers.first().copied().unwrap_or(1.0);
    Ok(Lora { lora, strength_model, strength_clip: numbers.get(1).copied().unwrap_or(strength_model) })
}

/// A ControlNet, how strongly it steers and when.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlNet {
    /// The file, or the name of a model.
    pub control_net: PathBuf,
    /// A factor of what the network says.
    pub strength: f64,
    /// The share of the way at which it begins.
    pub start_percent: f64,
    /// The share of the way at which it ends.
    pub end_percent: f64,
}

/// Reads `FILE[:STRENGTH[:START[:END]]]`.
pub fn control_net(text: &str) -> Result<ControlNet, String> {
    let (control_net, numbers) = path_and_numbers(text, 3);
    let number = |at: usize, default: f64| numbers.get(at).copied().unwrap_or(default);
    let (strength, start_percent, end_percent) = (number(0, 1.0), number(1, 0.0), number(2, 1.0));
    Ok(ControlNet { control_net, strength, start_percent, end_percent })
}

/// Reads a scheduler function: `gits[:COEFF[:DENOISE]]`, or noise levels from the highest.
pub fn scheduler_func(text: &str) -> Result<SchedulerFunc, String> {
    let number = |text: &str| text.trim().parse::<f64>().map_err(|_| format!("`{text}` is no number"));
    if let Some(rest) = text.strip_prefix("gits") {
        let mut numbers = rest.split(':').skip(1).map(number);
        let mut next = |default: f64| numbers.next().unwrap_or(Ok(default));
        let func = SchedulerFunc::Gits { coeff: next(1.2)?, denoise: next(1.0)? };
        return match (rest.is_empty() || rest.starts_with(':'), numbers.next()) {
            (true, None) => Ok(func),
            _ => Err("gits[:COEFF[:DENOISE]] is wanted".to_owned()),
        };
    }
    let sigmas: Vec<f64> = text.split(',').map(number).collect::<Result<_, _>>()?;
    match sigmas.len() {
        0 | 1 => Err("gits[:COEFF[:DENOISE]] or at least two noise levels are wanted".to_owned()),
        _ => Ok(SchedulerFunc::List { sigmas }),
    }
}

/// What is different about a further sampler.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplerChange {
    /// The seed of the initial noise.
    pub seed: Option<u64>,
    /// Steps.
    pub steps: Option<u32>,
    /// How much the positive prompt is preferred.
    pub cfg: Option<f64>,
    /// The sampler.
    pub sampler_name: Option<String>,
    /// The scheduler.
    pub scheduler: Option<String>,
    /// How much is redrawn.
    pub denoise: Option<f64>,
}

/// Reads `seed=5,steps=10,cfg=7,sampler_name=euler,scheduler=karras,denoise=0.4`, any of them.
pub fn sampler_change(text: &str) -> Result<SamplerChange, String> {
    fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<Option<T>, String> {
        value.parse().map(Some).map_err(|_| format!("{name}: `{value}` is no number that fits"))
    }
    let mut change = SamplerChange::default();
    for part in text.split(',') {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is no NAME=VALUE"))?;
        match name.trim().replace('-', "_").as_str() {
            "seed" => change.seed = number(name, value)?,
            "steps" => change.steps = number(name, value)?,
            "cfg" => change.cfg = number(name, value)?,
            "sampler_name" => change.sampler_name = Some(value.to_owned()),
            "scheduler" => change.scheduler = Some(value.to_owned()),
            "denoise" => change.denoise = number(name, value)?,
            _ => return Err(format!("`{name}`: seed, steps, cfg, sampler_name, scheduler or denoise is wanted")),
        }
    }
    Ok(change)
}

/// Which of the samplers of an iterative upscale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The base sampler.
    Base,
    /// The one for what the mask holds.
    Mask,
    /// The one for everything.
    Full,
}

/// Reads `base|mask|full.cfg|denoise|steps=TARGET`.
pub fn hook(text: &str) -> Result<(Which, PkHook), String> {
    let wanted = || "base|mask|full.cfg|denoise|steps=TARGET is wanted, such as base.denoise=0.3".to_owned();
    let (name, target) = text.split_once('=').ok_or_else(wanted)?;
    let (which, parameter) = name.split_once('.').ok_or_else(wanted)?;
    let which = match which {
        "base" => Which::Base,
        "mask" => Which::Mask,
        "full" => Which::Full,
        _ => return Err(wanted()),
    };
    let number = || target.parse().map_err(|_| format!("`{target}` is no number"));
    let hook = match parameter {
        "cfg" => PkHook::Cfg { target: number()? },
        "denoise" => PkHook::Denoise { target: number()? },
        "steps" => PkHook::Steps { target: target.parse().map_err(|_| format!("`{target}` is no count"))? },
        _ => return Err(wanted()),
    };
    Ok((which, hook))
}

/// Reads `LABEL|INDEX=TEXT`: which segments, and what is said of them. A number is the place in the list, from 0.
pub fn for_segs(text: &str) -> Result<(Select, String), String> {
    let (select, value) = text.split_once('=').ok_or("LABEL=VALUE or INDEX=VALUE is wanted")?;
    let select = match select.parse() {
        Ok(index) => Select::Index(index),
        Err(_) if select.is_empty() => return Err("LABEL=VALUE or INDEX=VALUE is wanted".to_owned()),
        Err(_) => Select::Label(select.to_owned()),
    };
    Ok((select, value.to_owned()))
}

/// Reads `LABEL|INDEX=SEED`.
pub fn seed_for_segs(text: &str) -> Result<(Select, u64), String> {
    let (select, seed) = for_segs(text)?;
    Ok((select, seed.parse().map_err(|_| format!("`{seed}` is no seed"))?))
}

/// Reads `WIDTHxHEIGHT`; `None` where it is none.
pub fn size(text: &str) -> Option<domain::region::Size> {
    let (width, height) = text.split_once('x')?;
    match (width.parse(), height.parse()) {
        (Ok(width @ 1..=MAX_SIDE), Ok(height @ 1..=MAX_SIDE)) => Some(domain::region::Size { width, height }),
        _ => None,
    }
}

fn between(text: &str, least: f64, most: f64) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{least} to {most} is wanted")),
    }
}

/// Reads how many times as large as its thing a crop region is.
pub fn crop_factor(text: &str) -> Result<f64, String> {
    between(text, 1.0, 100.0)
}

/// Reads a share.
pub fn share(text: &str) -> Result<f64, String> {
    between(text, 0.0, 1.0)
}

/// Reads the side of a tile.
pub fn tile_side(text: &str) -> Result<TileSide, String> {
    match text {
        "auto" => Ok(TileSide::Auto),
        text => match text.parse() {
            Ok(side @ 16..=65_536) => Ok(TileSide::Pixels(side)),
            _ => Err("16 to 65536 pixels or `auto` is wanted".to_owned()),
        },
    }
}

/// Reads a factor.
pub fn factor(text: &str) -> Result<Factor, String> {
    let number: f64 = text.parse().map_err(|_| "a number is wanted, such as 1.5".to_owned())?;
    Factor::new(number).map_err(|error| error.to_string())
}

/// Reads a side in pixels.
pub fn side() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_SIDE))
}

/// Reads bits per sample.
pub fn bits(text: &str) -> Result<u32, String> {
    match text {
        "8" => Ok(8),
        "16" => Ok(16),
        _ => Err("8 or 16 is wanted".to_owned()),
    }
}

/// Reads a note, `KEY=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is wanted".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_behind_a_path_are_split_off() {
        let check = |text: &str, path: &str, model: f64, clip: f64| {
            let want = Lora { lora: path.into(), strength_model: model, strength_clip: clip };
            assert_eq!(lora(text), Ok(want));
        };
        check("a/b.safetensors", "a/b.safetensors", 1.0, 1.0);
        check("b.safetensors:0.5", "b.safetensors", 0.5, 0.5);
        check("c:\\b.pt:-1:0.25", "c:\\b.pt", -1.0, 0.25);
        check("b:1:2:3", "b:1", 2.0, 3.0);
        let net = control_net("canny.pth:0.5:0.1").unwrap();
        assert_eq!(net.control_net, PathBuf::from("canny.pth"));
        assert_eq!((net.strength, net.start_percent, net.end_percent), (0.5, 0.1, 1.0));
    }

    #[test]
    fn a_scheduler_function_is_a_table_or_a_list() {
        assert_eq!(scheduler_func("gits"), Ok(SchedulerFunc::Gits { coeff: 1.2, denoise: 1.0 }));
        assert_eq!(scheduler_func("gits:1.3:0.5"), Ok(SchedulerFunc::Gits { coeff: 1.3, denoise: 0.5 }));
        assert_eq!(scheduler_func("14.6, 2, 0"), Ok(SchedulerFunc::List { sigmas: vec![14.6, 2.0, 0.0] }));
        for wrong in ["", "gitsy", "gits:1:1:1", "1", "karras"] {
            assert!(scheduler_func(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_further_sampler_says_what_is_different() {
        let change = sampler_change("seed=5,sampler-name=euler,denoise=0.4,scheduler=GITS[coeff=1.2]").unwrap();
        assert_eq!((change.seed, change.denoise, change.steps), (Some(5), Some(0.4), None));
        assert_eq!(change.sampler_name.as_deref(), Some("euler"));
        assert_eq!(change.scheduler.as_deref(), Some("GITS[coeff=1.2]"));
        assert_eq!(sampler_change("steps=-1").unwrap_err(), "steps: `-1` is no number that fits");
        assert!(sampler_change("noise=1").unwrap_err().contains("denoise is wanted"));
        assert!(sampler_change("").is_err());
    }

    #[test]
    fn a_hook_names_sampler_and_parameter() {
        assert_eq!(hook("base.denoise=0.3"), Ok((Which::Base, PkHook::Denoise { target: 0.3 })));
        assert_eq!(hook("full.steps=5"), Ok((Which::Full, PkHook::Steps { target: 5 })));
        assert_eq!(hook("mask.cfg=1"), Ok((Which::Mask, PkHook::Cfg { target: 1.0 })));
        for wrong in ["denoise=1", "base.seed=1", "other.cfg=1", "base.cfg", "base.steps=0.5"] {
            assert!(hook(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn segments_are_chosen_by_label_or_place() {
        assert_eq!(for_segs("face=a=b"), Ok((Select::Label("face".to_owned()), "a=b".to_owned())));
        assert_eq!(seed_for_segs("3=7"), Ok((Select::Index(3), 7)));
        assert!(for_segs("=a").is_err());
        assert!(seed_for_segs("face=x").is_err());
    }
}

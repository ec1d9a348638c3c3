//! The nodes of the `detailers` form: each unit is redrawn by what a worker calls.
//!
//! Their models are listed in `models.json`, names and shapes alone: [`checkpoint`] computes the weights. Prompts come encoded.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use anyhow::{Context, anyhow};
use domain::{
    nodes::{FullSamplerSchedule, LatentSource, LatentUpscale, PipedSampler, PkHook, Samplers, StepMode, TwoSamplers},
    pipe::{BasicPipe, MaskRef, PixelsRef},
    region::{Corners, Size},
    resize::ResizeMethod,
    sampling::{KSampler, SchedulerFunc},
    task::LatentPart,
    working::DetailSize,
};
use imaging::{
    flows::{Redrawing, SegsDetailer, SegsUpscaler, Unit, UpscaleModel},
    frames::{Frames, PixelError},
    mask::Mask,
    paste::segs_paste,
    resample::tensor_resize,
    segs::{Seg, Segs},
};
use models::{
    diffusion::{
        conditioning::Conditioning,
        controlnet::ControlNet,
        guidance::DifferentialDiffusion,
        model::{File, Model, ModelFiles},
        redraw::{ControlPart, LatentValues, Pipe, Redraw},
        samplers::Step,
        vae::Vae,
    },
    error::ModelError,
    upscale::Upscaler,
    watch::Unwatched,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use weights::{
    checkpoint::Checkpoint,
    synthetic::{self, Fill},
};
use worker::engine::{
    pipe::{Crop, mask_pixels, pixels},
    redraw::{DetailError, LatentStep, latent_step, redraw, redraw_with, upscale_picture},
};

use super::{
    Answer, Failure, Got,
    cases::{Case, Tensor, Tensors},
    diffusion::{backend, to_device},
    networks,
    pixels::{Op, frames_tensor, to_frames, to_size},
    segs::{mask_tensor, to_mask},
};

/// Every node that can be replayed.
pub const NODES: &[(&str, Op)] = &[
    ("ImageUpscaleWithModel", image_upscale_with_model),
    ("SEGSDetailer", segs_detailer),
    ("SEGSUpscalerPipe", segs_upscaler),
    ("TwoSamplersForMaskUpscalerProvider", two_samplers),
];

impl From<DetailError> for Failure {
    fn from(error: DetailError) -> Self {
        Self::Refused(format!("{:#}", anyhow!(error)))
    }
}

/// The checkpoint of a model that a case calls by `name`.
fn checkpoint(case: &Case, name: &str) -> Result<Checkpoint, Failure> {
    #[derive(Deserialize)]
    struct Listed {
        tensors: BTreeMap<String, Vec<usize>>,
        overrides: BTreeMap<String, Override>,
        #[serde(default)]
        metadata: BTreeMap<String, String>,
    }
    /// Makes `value * mul + add` of the synthetic values of a tensor.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Override {
        #[serde(default = "one")]
        mul: f32,
        #[serde(default)]
        add: f32,
    }
    fn one() -> f32 {
        1.0
    }
    let Listed { tensors, mut overrides, metadata } =
        Listed::deserialize(case.model_named(name)?).with_context(|| format!("the model `{name}`"))?;
    let entry = |(name, shape): (String, Vec<usize>)| {
        let fill = match overrides.remove(&name) {
            Some(Override { mul, add }) => {
                Fill::Given(synthetic::tensor(&name, &shape).iter().map(|value| value * mul + add).collect())
            }
            None => Fill::Synthetic,
        };
        (name, shape, fill)
    };
    let entries: Vec<_> = tensors.into_iter().map(entry).collect();
    if let Some(tensor) = overrides.keys().next() {
        return Err(Failure::Broken(format!("the model `{name}` has no tensor `{tensor}` to override")));
    }
    Ok(Checkpoint::from_bytes(synthetic::with_metadata(&entries, metadata)).map_err(ModelError::from)?)
}

/// A model of the set that a case belongs to, which is loaded once.
fn model(case: &Case, name: &str) -> Result<Arc<Model>, Failure> {
    static LOADED: LazyLock<Mutex<HashMap<String, Arc<Model>>>> = LazyLock::new(Mutex::default);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{} {name}", case.folder().display());
    if let Some(model) = loaded.get(&key) {
        return Ok(model.clone());
    }
    let model = Arc::new(Model::load(&ModelFiles::single(File::new(name, checkpoint(case, name)?)), &backend())?);
    loaded.insert(key, model.clone());
    Ok(model)
}

/// The network that enlarges pictures in a case, if it has one.
fn upscaler(case: &Case) -> Result<Option<Upscaler>, Failure> {
    let name = case.get("upscale_model").as_str();
    name.map(|name| networks::open(&checkpoint(case, name)?)).transpose()
}

fn image_upscale_with_model(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    let upscaler = upscaler(case)?.context("the case has no model")?;
    if picture.channels != 3 {
        let (operation, want) = ("ImageUpscaleWithModel", "3");
        return Err(PixelError::Channels { operation, want, got: picture.channels }.into());
    }
    Ok(Got::default().tensor("image", frames_tensor(&networks::upscale(&upscaler, &picture)?)))
}

/// A parameter of the node.
fn read<T: DeserializeOwned>(value: &Value) -> anyhow::Result<T> {
    serde_json::from_value(value.clone()).with_context(|| format!("cannot read {value}"))
}

/// How the sampler that `of` describes goes: a node's parameters, or a KSAMPLER's.
fn sampler(of: &Value, scheduler_func: &Value) -> anyhow::Result<KSampler> {
    #[derive(Deserialize)]
    struct Named {
        seed: u64,
        steps: u32,
        cfg: f64,
        sampler_name: String,
        scheduler: String,
        denoise: f64,
    }
    let Named { seed, steps, cfg, sampler_name, scheduler, denoise } = read(of)?;
    let scheduler_func: Option<SchedulerFunc> = read(scheduler_func)?;
    Ok(KSampler { seed, steps, cfg, sampler_name, scheduler, denoise, scheduler_func })
}

/// What a node redraws with.
struct Basic {
    model: Arc<Model>,
    positive: Vec<Prompt>,
    negative: Vec<Prompt>,
}

/// A prompt, and where it holds.
struct Prompt {
    encoded: Conditioning,
    mask: Option<(Mask, f64, bool)>,
}

impl Basic {
    fn read(case: &Case, tensors: &Tensors, pipe: &Value) -> Result<Self, Failure> {
        let encoded = |prompt: &Value| -> Result<Conditioning, Failure> {
            let name = prompt["tensor"].as_str().context("a prompt has no tensor")?;
            let pooled = case.cond(&format!("{name}.pooled")).ok().map(to_device).transpose()?;
            Ok(Conditioning::new(to_device(case.cond(&format!("{name}.tokens"))?)?, pooled))
        };
        let extra = pipe["positive_extra"].as_array().into_iter().flatten();
        let mut positive = Vec::new();
        for (index, prompt) in std::iter::once(&pipe["positive"]).chain(extra).enumerate() {
            let mask = match &pipe["positive_masks"][index.to_string()] {
                Value::Null => None,
                mask => Some((
                    to_mask(case.tensor(tensors, mask["mask"].as_str().context("a mask has no name")?)?)?,
                    read(&mask["strength"])?,
                    read(&mask["set_area_to_bounds"])?,
                )),
            };
            positive.push(Prompt { encoded: encoded(prompt)?, mask });
        }
        let negative = vec![Prompt { encoded: encoded(&pipe["negative"])?, mask: None }];
        let name = pipe["model"].as_str().context("a pipe has no model")?;
        Ok(Self { model: model(case, name)?, positive, negative })
    }

    /// The pipe whose masks are cut to `crop`, where there is one.
    fn pipe(&self, crop: Option<Crop>) -> Result<Pipe, Failure> {
        let side = |prompts: &[Prompt]| -> Result<Vec<Conditioning>, Failure> {
            let placed = |Prompt { encoded, mask }: &Prompt| match mask {
                None => Ok(encoded.clone()),
                Some((mask, strength, set_area_to_bounds)) => {
                    let mask = crop.map_or_else(|| mask.clone(), |crop| crop.of(mask));
                    Ok(encoded.clone().with_mask(&mask_pixels(&mask), *strength, *set_area_to_bounds)?)
                }
            };
            prompts.iter().map(placed).collect()
        };
        Ok(Pipe { model: self.model.clone(), positive: side(&self.positive)?, negative: side(&self.negative)? })
    }
}

/// A node's segments, and the control nets of each.
struct Given {
    segs: Segs,
    controls: Vec<Vec<ControlPart>>,
}

impl Given {
    fn read(case: &Case, tensors: &Tensors) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Item {
            label: String,
            confidence: f64,
            crop_region: [i64; 4],
            bbox: [i64; 4],
            cropped_mask: String,
            cropped_image: Option<String>,
            control_net: Vec<Value>,
        }
        let header = to_size(read(&case.get("segs")["shape"])?);
        let (mut segs, mut controls) = (Vec::new(), Vec::new());
        for item in read::<Vec<Item>>(&case.get("segs")["items"])? {
            let crop_region: Corners = item.crop_region.into();
            let image = |name: &String| to_frames(case.tensor(tensors, name)?);
            segs.push(Seg {
                cropped_image: item.cropped_image.as_ref().map(image).transpose()?,
                cropped_mask: to_mask(case.tensor(tensors, &item.cropped_mask)?)?,
                confidence: item.confidence,
                crop_region,
                bbox: item.bbox.into(),
                label: item.label,
            });
            let net = |apply: &Value| control(case, tensors, apply, header, &crop_region);
            controls.push(item.control_net.iter().map(net).collect::<Result<_, _>>()?);
        }
        Ok(Self { segs: Segs { header, segs }, controls })
    }
}

/// What a node that applies a control net to a segment adds to it.
fn control(
    case: &Case,
    tensors: &Tensors,
    apply: &Value,
    picture: Size,
    crop_region: &Corners,
) -> Result<ControlPart, Failure> {
    let net = apply["net"].as_str().context("a control net has no name")?;
    let image = match apply["image"].as_str() {
        Some(image) => {
            // Of the whole picture, brought to its size and cut.
            let image = to_frames(case.tensor(tensors, image)?)?;
            Some(pixels(&tensor_resize(&image, picture)?.crop(crop_region)))
        }
        None => None,
    };
    Ok(ControlPart {
        net: Arc::new(ControlNet::load(&checkpoint(case, net)?, &backend())?),
        image,
        strength: read(&apply["strength"])?,
        start_percent: apply["start_percent"].as_f64().unwrap_or(0.0),
        end_percent: apply["end_percent"].as_f64().unwrap_or(1.0),
        is_advanced: apply["node"] == "ControlNetApplyAdvancedSEGS",
    })
}

/// What previews saw, by the names of the recorded runs.
#[derive(Default)]
struct Seen {
    runs: usize,
    tensors: Vec<(String, Vec<f32>)>,
}

impl Seen {
    fn see(&mut self, step: &Step<'_>) {
        if step.index == 0 {
            self.runs += 1;
        }
        let run = self.runs - 1;
        self.tensors.push((format!("run{run}.x.{}", step.index), step.x.to_vec()));
        self.tensors.push((format!("run{run}.denoised.{}", step.index), step.denoised.to_vec()));
    }

    /// Adds what was recorded too.
    fn put(self, mut got: Got, case: &Case, tensors: &Tensors) -> Got {
        for (name, values) in self.tensors {
            if let Ok(recorded) = case.tensor(tensors, &name)
                && recorded.data.len() == values.len()
            {
                got = got.tensor(name, Tensor::floats(&recorded.shape, values));
            }
        }
        got
    }
}

/// What the nodes that redraw segments have in common.
struct Redrawer<'a> {
    case: &'a Case,
    tensors: &'a Tensors,
    basic: Basic,
    refiner: Option<(Pipe, f64)>,
    sampler: KSampler,
    inpaint_model: bool,
    controls: Vec<Vec<ControlPart>>,
    /// Cuts masks of prompts to the segment.
    cuts_masks: bool,
    seen: Seen,
    control_pictures: Vec<Frames>,
}

impl<'a> Redrawer<'a> {
    fn new(case: &'a Case, tensors: &'a Tensors, controls: Vec<Vec<ControlPart>>) -> Result<Self, Failure> {
        let params = case.get("params");
        let refiner = match case.get("refiner_basic_pipe") {
            Value::Null => None,
            pipe => Some((Basic::read(case, tensors, pipe)?.pipe(None)?, case.param("refiner_ratio")?)),
        };
        Ok(Self {
            case,
            tensors,
            basic: Basic::read(case, tensors, case.get("basic_pipe"))?,
            refiner,
            sampler: sampler(params, case.get("scheduler_func"))?,
            inpaint_model: case.param("inpaint_model")?,
            controls,
            cuts_masks: case.group == "SEGSDetailer",
            seen: Seen::default(),
            control_pictures: Vec::new(),
        })
    }

    fn redraw(&mut self, unit: Unit<'_>, picture: Size) -> Result<Frames, Failure> {
        let Unit { index, seg, crop, redrawing } = unit;
        let region = seg.crop_region.within(picture);
        let crop_of_masks = self.cuts_masks.then_some(Crop { region, picture, reference_quirks: true });
        let base = self.basic.pipe(crop_of_masks)?;
        let tolerance = match self.case.get("differential_rule").as_str() {
            Some("exact") => 0.0,
            _ => DifferentialDiffusion::default().tolerance,
        };
        let differential = DifferentialDiffusion { tolerance, ..DifferentialDiffusion::default() };
        let redraw_as = Redraw {
            refiner: self.refiner.as_ref().map(|(pipe, ratio)| (pipe, *ratio)),
            controls: &self.controls[index],
            differential: (redrawing.noise_mask_feather > 0).then_some(differential),
            inpaint_model: self.inpaint_model,
            ..redraw_with(&base, &self.sampler)?
        };
        let replayed = self.replayed_mask()?;
        let redrawing = match &replayed {
            Some(mask) => Redrawing { mask: Some(mask), noise_mask_feather: 0, ..redrawing },
            None => redrawing,
        };
        let seen = &mut self.seen;
        let (redrawn, control_pictures) = redraw(&redrawing, &redraw_as, crop, &Unwatched, &mut |step| seen.see(step))?;
        self.control_pictures.extend(control_pictures);
        Ok(redrawn)
    }

    /// The noise mask that the next run of a fragile case had, so that it does not depend on its last bits which places are on at
    /// the first call: those that were recorded as on are 1, and no others.
    fn replayed_mask(&self) -> Result<Option<Mask>, Failure> {
        if self.case.get("fragile").is_null() {
            return Ok(None);
        }
        let tensor = |name: &str| self.case.tensor(self.tensors, &format!("run{}.{name}", self.seen.runs));
        let (soft, hard) = (tensor("noise_mask_resized")?, tensor("binary_mask.0")?);
        let &[.., height, width] = &soft.shape[..] else { return Err(anyhow!("a mask has no sides").into()) };
        let cells = height * width;
        let values = soft.data.iter().take(cells).zip(&hard.data);
        let values = values.map(|(soft, hard)| if *hard == 1.0 { 1.0 } else { soft.min(1.0 - 1e-6) });
        Ok(Some(Mask::new(1, to_size([height, width]), values.collect())?))
    }
}

fn segs_detailer(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    let Given { segs, controls } = Given::read(case, tensors)?;
    let node = SegsDetailer {
        size: DetailSize {
            guide_size: case.param("guide_size")?,
            guide_size_for_bbox: case.param("guide_size_for")?,
            max_size: case.param("max_size")?,
            force_inpaint: case.param("force_inpaint")?,
        },
        noise_mask: case.param("noise_mask")?,
        noise_mask_feather: case.param("noise_mask_feather")?,
        batch_size: case.param("batch_size")?,
        cycle: case.param("cycle")?,
        seed: case.param("seed")?,
        reference_quirks: true,
    };
    let mut redrawer = Redrawer::new(case, tensors, controls)?;
    let redrawn = node.run_each(&picture, &segs, |unit| redrawer.redraw(unit, picture.size()))?;
    let mut got = put_segs(Got::default(), &redrawn);
    if let Some(feather) = case.get("paste").as_i64() {
        got = got.tensor("pasted", frames_tensor(&segs_paste(&picture, &redrawn, None, feather, 255, true)?));
    }
    if redrawer.control_pictures.is_empty() {
        got = got.value("cnet_images", json!(["black:64x64"]));
    }
    for (index, seen) in redrawer.control_pictures.iter().enumerate() {
        got = got.tensor(format!("cnet_images.{index}"), frames_tensor(seen));
    }
    Ok(redrawer.seen.put(got, case, tensors))
}

/// Adds segments as the outputs of nodes are written.
fn put_segs(mut got: Got, segs: &Segs) -> Got {
    let shape = json!([segs.header.height, segs.header.width]);
    if segs.segs.is_empty() {
        return got.value("segs", json!({"shape": shape, "items": []}));
    }
    got = got.value("segs.shape", shape);
    for (index, seg) in segs.segs.iter().enumerate() {
        let at = |field: &str| format!("segs.items.{index}.{field}");
        let region = |corners: &Corners| json!(<[i64; 4]>::from(*corners));
        got = got
            .value(&at("label"), json!(seg.label))
            .value(&at("confidence"), json!(seg.confidence))
            .value(&at("crop_region"), region(&seg.crop_region))
            .value(&at("bbox"), region(&seg.bbox))
            .value(&at("control_net"), Value::Null)
            .tensor(at("cropped_mask"), mask_tensor(&seg.cropped_mask));
        got = match &seg.cropped_image {
            Some(image) => got.tensor(at("cropped_image"), frames_tensor(image)),
            None => got.value(&at("cropped_image"), Value::Null),
        };
    }
    got
}

fn segs_upscaler(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    let Given { segs, controls } = Given::read(case, tensors)?;
    let supersample = case.param::<Value>("supersample")?;
    let node = SegsUpscaler {
        rescale_factor: case.param("rescale_factor")?,
        supersample: supersample == "true" || supersample == true,
        feather: case.param("feather")?,
        noise_mask_feather: case.param("noise_mask_feather")?,
        seed: case.param("seed")?,
        reference_quirks: true,
    };
    let mut redrawer = Redrawer::new(case, tensors, controls)?;
    let upscaler = upscaler(case)?;
    let mut model =
        upscaler.as_ref().map(|upscaler| |picture: &Frames| Ok(upscale_picture(upscaler, picture, &Unwatched)?));
    let model = model.as_mut().map(|model| model as &mut UpscaleModel<'_, Failure>);
    let size = node.size(picture.size())?;
    let out = node.run_each(&picture, &segs, model, |unit| redrawer.redraw(unit, size))?;
    Ok(redrawer.seen.put(Got::default().tensor("image", frames_tensor(&out)), case, tensors))
}

/// The samplers of a two-samplers node: how each goes, with what, and by which hooks it changes.
fn piped(case: &Case, sampler_key: &str, hook_key: &str) -> Result<Option<PipedSampler>, Failure> {
    fn hooks(hook: &Value, found: &mut Vec<PkHook>) -> anyhow::Result<()> {
        match hook["kind"].as_str() {
            None => {}
            Some("combine") => {
                hooks(&hook["first"], found)?;
                hooks(&hook["second"], found)?;
            }
            Some(_) => found.push(read(hook)?),
        }
        Ok(())
    }
    let of = case.get(sampler_key);
    if of.is_null() {
        return Ok(None);
    }
    let mut found = Vec::new();
    hooks(case.get(hook_key), &mut found)?;
    let basic_pipe = nameless_pipe();
    Ok(Some(PipedSampler { sampler: sampler(of, &of["scheduler_func"])?, basic_pipe, hooks: found }))
}

/// A pipe for jobs whose networks and prompts come from elsewhere.
fn nameless_pipe() -> BasicPipe {
    use domain::{
        digest::Digest,
        pipe::{Checkpoint, Conditioning, Family, Weights},
    };
    let weights = Weights { digest: Digest::of(b""), name: String::new() };
    BasicPipe {
        checkpoint: Checkpoint { weights, family: Family::Sd1, in_channels: 4 },
        vae: None,
        loras: Vec::new(),
        embeddings: Vec::new(),
        stop_at_clip_layer: None,
        positive: vec![Conditioning::everywhere("")],
        negative: vec![Conditioning::everywhere("")],
        control_nets: Vec::new(),
    }
}

fn two_samplers(case: &Case, tensors: &Tensors) -> Answer {
    let drive = case.get("drive");
    let mask = to_mask(case.input(tensors, "mask")?)?;
    let vae_model = model(case, case.get("vae").as_str().context("the case has no VAE")?)?;
    let vae = vae_model.vae.as_deref().context("the model has no VAE")?;
    let use_tiled_vae: bool = case.param("use_tiled_vae")?;
    let tile_size: u32 = case.param("tile_size")?;
    let picture = match case.get("image") {
        Value::Null => None,
        _ => Some(to_frames(case.input(tensors, "image")?)?),
    };
    let mut latent = match &picture {
        Some(picture) => LatentValues::encode(vae, &pixels(picture), None, &Unwatched)?,
        None => {
            let Tensor { shape, data, .. } = case.input(tensors, "latent")?;
            let &[batch, channels, height, width] = &shape[..] else { return Err(anyhow!("no latent").into()) };
            LatentValues { batch, channels, height, width, values: data.clone() }
        }
    };
    let two = TwoSamplers {
        base_sampler: piped(case, "base_sampler", "pk_hook_base_opt")?.context("there is no base sampler")?,
        mask_sampler: piped(case, "mask_sampler", "pk_hook_mask_opt")?.context("there is no mask sampler")?,
        full_sampler: piped(case, "full_sampler_opt", "pk_hook_full_opt")?,
        full_sample_schedule: case.param::<FullSamplerSchedule>("full_sample_schedule")?,
        mask: MaskRef { digest: domain::digest::Digest::of(b""), size: mask.size() },
    };
    let is_direct = drive["by"] == "upscale";
    let job = LatentUpscale {
        source: LatentSource::Latent(PixelsRef {
            digest: domain::digest::Digest::of(b""),
            size: Size::new(latent.width as u32, latent.height as u32),
        }),
        upscale_factor: read(&drive["upscale_factor"])?,
        steps: if is_direct { read(&drive["step_info"][1])? } else { read(&drive["steps"])? },
        step_mode: if is_direct { StepMode::Simple } else { read(&drive["step_mode"])? },
        scale_method: case.param::<String>("scale_method")?.parse::<ResizeMethod>().map_err(anyhow::Error::from)?,
        vae: nameless_pipe().checkpoint.weights,
        use_tiled_vae,
        tile_size,
        upscale_model: None,
        samplers: Samplers::Two(Box::new(two)),
        decode: false,
        rendering: domain::nodes::Rendering {
            precision: domain::job::Precision::Exact,
            reproducibility: domain::job::Reproducibility::SameClass,
            class: "cpu.fma-1.f32".parse().map_err(anyhow::Error::from)?,
            output: domain::job::Output::default(),
            reference_quirks: true,
        },
    };
    job.check().map_err(|invalid| Failure::Refused(format!("{}: {invalid}", invalid.field)))?;
    let pipes = ["base_sampler", "mask_sampler", "full_sampler_opt"].map(|key| match case.get(key) {
        Value::Null => Ok(None),
        sampler => Basic::read(case, tensors, &sampler["basic_pipe"])?.pipe(None).map(Some),
    });
    let [base, masked, full] = pipes;
    let (base, masked, full) = (base?.context("no base")?, masked?.context("no mask")?, full?);
    let targets = match is_direct {
        true => {
            let factor: f64 = read(&drive["upscale_factor"])?;
            let side = |cells: usize| ((cells * 8) as f64 * factor) as u32;
            vec![(read(&drive["step_info"][0])?, Size::new(side(latent.width), side(latent.height)))]
        }
        false => job.targets(),
    };
    let upscaler = upscaler(case)?;
    let mut seen = Seen::default();
    for (k, to) in targets {
        let runs = job.runs(k).into_iter().map(|(role, sampler, part)| {
            let pipe = match role {
                domain::nodes::Role::Base => &base,
                domain::nodes::Role::Mask => &masked,
                domain::nodes::Role::Full => full.as_ref().unwrap_or(&base),
            };
            Ok::<_, Failure>((redraw_with(pipe, &sampler)?, sampler.seed, part))
        });
        let runs = runs.collect::<Result<Vec<(Redraw<'_>, u64, LatentPart)>, _>>()?;
        latent = step(&job, to, vae, upscaler.as_ref(), &runs, &mask, &latent, &mut seen)?;
    }
    let got = match &picture {
        Some(_) => {
            let shown = latent.decode(vae, None, &Unwatched)?;
            let size = Size::new(shown.width as u32, shown.height as u32);
            Got::default().tensor("image", frames_tensor(&Frames::new(1, size, 3, shown.values)?))
        }
        None => {
            let LatentValues { batch, channels, height, width, values } = latent;
            Got::default()
                .tensor("latent", Tensor::floats(&[batch, channels, height, width], values))
                .value("latent_keys", json!(["samples"]))
        }
    };
    Ok(seen.put(got, case, tensors))
}

#[allow(clippy::too_many_arguments)] // a step, and who watches it
fn step(
    job: &LatentUpscale,
    to: Size,
    vae: &Vae,
    upscaler: Option<&Upscaler>,
    runs: &[(Redraw<'_>, u64, LatentPart)],
    mask: &Mask,
    latent: &LatentValues,
    seen: &mut Seen,
) -> Result<LatentValues, Failure> {
    let mut upscale = upscaler.map(|upscaler| |picture: &Frames| upscale_picture(upscaler, picture, &Unwatched));
    let step = LatentStep {
        to,
        scale_method: job.scale_method.into(),
        vae,
        tile_size: job.use_tiled_vae.then_some(job.tile_size as usize),
        upscale: upscale.as_mut().map(|upscale| upscale as _),
        runs,
        mask: runs.iter().any(|(_, _, part)| *part != LatentPart::Whole).then_some(mask),
        reference_quirks: true,
    };
    Ok(latent_step(step, latent, &Unwatched, &mut |step| seen.see(step))?)
}

//! The chain of an iterative latent upscale (reference: detailers.md, section 8).
//!
//! Each step is a task of its own, whose latent is stored: a worker that is lost costs a step. A step names what it does in
//! full, hooks applied, and the key of the step before; so a change of the third step leaves the first two where they are.

use crate::{
    digest::Digest,
    nodes::{LatentSource, LatentUpscale, Samplers},
    plan::{Needs, Plan, PlanError, place, segs::picture_encoding, whole},
    region::Size,
    task::{
        Base, Context, DECODE_REVISION, DELIVER_REVISION, LATENT_REVISION, LatentFrom, LatentPart, LatentRun,
        LatentSteps, LatentTask, LatentWork, PASTE_REVISION, Part,
    },
};

const AT: &str = "latent_upscale";

/// Plans an iterative latent upscale: the steps one after the other, before them the encoding of a picture and after them its
/// decoding, where there are such, and one task that delivers what came of it.
pub fn plan_latent_upscale(job: &LatentUpscale) -> Result<Plan, PlanError> {
    job.check()?;
    let rendering = &job.rendering;
    let mut plan = Plan::empty();
    let steps = LatentSteps {
        revision: LATENT_REVISION,
        vae: job.vae.digest,
        tile_size: job.use_tiled_vae.then_some(job.tile_size),
        scale_method: job.scale_method,
        upscale_model: job.upscale_model.as_ref().map(|model| model.digest),
        reference_quirks: rendering.reference_quirks,
        precision: rendering.precision,
        place: place(rendering.reproducibility, rendering.precision, &rendering.class),
    };
    let (context, _) = plan.context(Context::Latent(Box::new(steps)), 0);
    let mut chain = Chain { context, last: None, size: job.latent(), plan: &mut plan };

    let mut from = match &job.source {
        LatentSource::Picture(picture) => {
            let (picture, size) = (picture.digest, picture.size);
            let base = Base { picture, decode: DECODE_REVISION, size, enlarged: None };
            chain.link(LatentFrom::Picture(base), LatentWork::Encode)
        }
        LatentSource::Latent(latent) => LatentFrom::Given(latent.digest),
    };
    for (k, to) in job.targets() {
        from = chain.link(from, step(job, k, to));
    }
    if job.decode {
        from = chain.link(from, LatentWork::Decode);
    }

    let needs = Needs::of(chain.last);
    let (size, key) = (chain.size, chain.last.map(|last| plan.key_of(&plan.tasks()[last as usize])));
    let pixels = Size::new(size.width * 8, size.height * 8); // `check` saw to it that they fit
    let context = match (key, &job.source) {
        (Some(key), source) if job.decode => {
            let encoding = picture_encoding(AT, rendering, &source.picture(), pixels)?;
            Context::Encode { revision: PASTE_REVISION, pixels: key, size: pixels, encoding }
        }
        _ => Context::Deliver { revision: DELIVER_REVISION, content: Digest::of_json(&("latent", size, from)) },
    };
    let (context, _) = plan.context(context, 0);
    plan.task(context, whole(pixels), needs);
    Ok(plan)
}

/// A chain under construction.
struct Chain<'a> {
    plan: &'a mut Plan,
    context: u32,
    last: Option<u32>,
    /// The size of the latent that the last link makes.
    size: Size,
}

impl Chain<'_> {
    /// Adds a link, and gives what the next begins with.
    fn link(&mut self, from: LatentFrom, work: LatentWork) -> LatentFrom {
        let link = LatentTask { from, size: self.size, work };
        self.size = link.latent();
        let (task, key) = self.plan.task(self.context, Part::Latent(Box::new(link)), Needs::of(self.last));
        self.last = Some(task);
        LatentFrom::Result(key)
    }
}

/// What step `k` does.
fn step(job: &LatentUpscale, k: u32, to: Size) -> LatentWork {
    let run = |(role, sampler, part)| {
        let basic_pipe = job.samplers.of(role).basic_pipe.nameless();
        LatentRun { sampler, basic_pipe, part }
    };
    let runs: Vec<LatentRun> = job.runs(k).into_iter().map(run).collect();
    let has_mask = runs.iter().any(|run| run.part != LatentPart::Whole);
    let mask = match &job.samplers {
        Samplers::Two(two) if has_mask => Some(two.mask),
        Samplers::Two(_) | Samplers::One(_) => None,
    };
    LatentWork::Step { to, runs, mask }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nodes::{FullSamplerSchedule, PipedSampler, PkHook, StepMode, TwoSamplers},
        pipe::{MaskRef, PixelsRef},
        plan::segs::tests::{picture, pipe, rendering, weights},
        resize::ResizeMethod,
        sampling::KSampler,
    };

    fn sampler(seed: u64) -> PipedSampler {
        let sampler = KSampler { seed, cfg: 6.0, ..KSampler::default() };
        PipedSampler { sampler, basic_pipe: pipe(), hooks: Vec::new() }
    }

    fn job() -> LatentUpscale {
        LatentUpscale {
            source: LatentSource::Picture(picture(Size::new(100, 64))),
            upscale_factor: 2.0,
            steps: 3,
            step_mode: StepMode::Simple,
            scale_method: ResizeMethod::Bilinear,
            vae: weights("vae"),
            use_tiled_vae: false,
            tile_size: 512,
            upscale_model: None,
            samplers: Samplers::Two(Box::new(TwoSamplers {
                base_sampler: sampler(51),
                mask_sampler: sampler(52),
                full_sampler: Some(sampler(53)),
                full_sample_schedule: FullSamplerSchedule::Last(2),
                mask: MaskRef { digest: Digest::of(b"mask"), size: Size::new(64, 64) },
            })),
            decode: true,
            rendering: rendering(),
        }
    }

    /// The chain in words: what each link makes, with the seeds of its runs.
    fn words(job: &LatentUpscale) -> String {
        let plan = plan_latent_upscale(job).unwrap();
        let links = plan.tasks().iter().map(|task| {
            let needs: Vec<String> = task.needs.iter().map(|need| format!("<-{need}")).collect();
            let size = task.part.region().size();
            let what = match &task.part {
                Part::Latent(link) => match &link.work {
                    LatentWork::Encode => format!("encode {size}"),
                    LatentWork::Decode => format!("decode {size}"),
                    LatentWork::Step { to, runs, .. } => {
                        let seeds: Vec<String> = runs.iter().map(|run| run.sampler.seed.to_string()).collect();
                        format!("{to} {}", seeds.join("+"))
                    }
                },
                _ => format!("{} {size}", plan.context_of(task).context.operation()),
            };
            what + &needs.concat()
        });
        links.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_latent_upscale_is_a_chain() {
        assert_eq!(
            words(&job()),
            "encode 96x64, 128x85 51+52<-0, 160x106 51+52<-1, 192x128 51+53<-2, decode 192x128<-3, encode 192x128<-4"
        );
        let latent = PixelsRef { digest: Digest::of(b"latent"), size: Size::new(8, 8) };
        let plain = LatentUpscale { source: LatentSource::Latent(latent), decode: false, steps: 1, ..job() };
        assert_eq!(words(&plain), "128x128 51+53, deliver 128x128<-0");
        let nothing = LatentUpscale { upscale_factor: 1.0, ..plain };
        assert_eq!(words(&nothing), "deliver 64x64", "a factor of 1 in one step does nothing");
    }

    #[test]
    fn sizes_grow_by_differences_or_by_ratios() {
        let sides = |job: &LatentUpscale| job.targets().iter().map(|(_, size)| size.height).collect::<Vec<_>>();
        let geometric = LatentUpscale { step_mode: StepMode::Geometric, upscale_factor: 8.0, ..job() };
        assert_eq!(sides(&geometric), [128, 256, 512]);
        assert_eq!(sides(&LatentUpscale { upscale_factor: 1.0, ..job() }), [64, 64], "there is no last step");
    }

    #[test]
    fn another_full_sampler_leaves_the_steps_before_where_they_are() {
        let keys = |job: &LatentUpscale| {
            let plan = plan_latent_upscale(job).unwrap();
            plan.tasks().iter().map(|task| plan.key_of(task)).collect::<Vec<_>>()
        };
        let mut other = job();
        let Samplers::Two(two) = &mut other.samplers else { unreachable!() };
        two.full_sampler = Some(sampler(54));
        let (before, after) = (keys(&job()), keys(&other));
        let same: Vec<bool> = before.iter().zip(&after).map(|(before, after)| before == after).collect();
        assert_eq!(same, [true, true, true, false, false, false]);
    }

    #[test]
    fn hooks_take_parameters_from_their_own_value_to_the_target() {
        let mut hooked = sampler(0);
        hooked.hooks = vec![PkHook::Cfg { target: 2.5 }, PkHook::Denoise { target: 0.3 }, PkHook::Steps { target: 5 }];
        let at = |k, n| {
            let KSampler { cfg, denoise, steps, .. } = hooked.at_step(k, n);
            (cfg, denoise, steps)
        };
        assert_eq!(at(0, 3), (6.0, 0.5, 20));
        assert_eq!(at(1, 3), (4.0, 0.4, 12), "4.25 and 12.5 are cut off");
        assert_eq!(at(0, 1), (2.5, 0.3, 5), "a single step has the target");
    }

    #[test]
    fn the_full_sampler_runs_when_the_schedule_says() {
        let full = |name: &str| {
            let schedule: FullSamplerSchedule = name.parse().unwrap();
            assert_eq!(schedule.to_string(), name);
            (0..3).map(|k| if schedule.is_full(k, 3) { 'f' } else { '-' }).collect::<String>()
        };
        let names = ["none", "interleave1", "interleave2", "interleave3", "last1", "last2", "interleave3+last1"];
        assert_eq!(names.map(full), ["---", "-f-", "--f", "---", "---", "--f", "-ff"]);
        assert!("interleave4".parse::<FullSamplerSchedule>().is_err());
    }

    #[test]
    fn a_chain_that_cannot_be_is_refused_with_its_field() {
        let field = |change: &dyn Fn(&mut LatentUpscale)| {
            let mut job = job();
            change(&mut job);
            plan_latent_upscale(&job).map(drop).map_err(|error| error.field().to_owned())
        };
        let two = |change: fn(&mut TwoSamplers)| {
            field(&move |job| {
                let Samplers::Two(two) = &mut job.samplers else { unreachable!() };
                change(two);
            })
        };
        let err = |field: &str| Err(format!("latent_upscale.{field}"));
        assert_eq!(field(&|job| job.upscale_factor = 0.5), err("upscale_factor"));
        assert_eq!(field(&|job| job.steps = 0), err("steps"));
        assert_eq!(field(&|job| job.tile_size = 128), err("tile_size"));
        assert_eq!(field(&|job| job.scale_method = ResizeMethod::Bicubic), err("scale_method"));
        let tiny = LatentSource::Picture(picture(Size::new(7, 64)));
        assert_eq!(field(&|job| job.source = tiny.clone()), err("source"));
        assert_eq!(two(|two| two.base_sampler.sampler.denoise = 0.0), err("base_sampler.sampler.denoise"));
        let hook = PkHook::Denoise { target: 0.0 };
        assert_eq!(
            field(&|job| {
                let Samplers::Two(two) = &mut job.samplers else { unreachable!() };
                two.mask_sampler.hooks.push(hook);
            }),
            err("mask_sampler.hooks[0].denoise")
        );
        assert_eq!(two(|two| two.mask.size = Size::new(0, 0)), err("mask"));
        let xl = |two: &mut TwoSamplers| two.mask_sampler.basic_pipe.checkpoint.family = crate::pipe::Family::Sdxl;
        assert_eq!(two(xl), err("mask_sampler.basic_pipe.checkpoint"));
    }
}

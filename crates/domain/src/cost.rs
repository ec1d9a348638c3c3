//! What tasks cost in time and room: estimates for schedules and for refusals, never for pixels (detailers.md, section 2).

use crate::{
    pipe::{BasicPipe, Family},
    plan::Plan,
    region::Size,
    sampling::KSampler,
    task::{Context, LatentFrom, LatentTask, LatentWork, Part, Redraw, SegTask},
    working::latent_size,
};

/// Million multiply-adds that a VAE's encoder takes per pixel: 0.54 T for 512x512 pixels.
const ENCODE: u64 = 2;
/// Million multiply-adds that its decoder takes per pixel: 1.24 T for 512x512 pixels.
const DECODE: u64 = 5;
/// Million multiply-adds that a super-resolution network takes per pixel of its input: one figure for all, between those of
/// Compact and of ESRGAN. What a worker measures of a network makes up for that, and a farm that mixes networks gets a mean.
const UPSCALE: u64 = 10;
/// Bytes that a VAE's decoder holds per pixel at its widest: three maps of 256 channels of `f32`, and what comes and goes.
const BYTES_PER_PIXEL: u64 = 4096;

/// Million multiply-adds that one evaluation of a UNet takes per position of the latent.
fn unet(family: Family) -> u64 {
    match family {
        Family::Sd1 | Family::Sd2 => 98, // 0.40 T for 64x64
        Family::Sdxl => 183,             // 3.0 T for 128x128
        Family::SdxlRefiner => 150,
    }
}

/// What the task of `part` within `context` costs, in million multiply-adds; what the coordinator does itself is not counted.
pub fn of(context: &Context, part: &Part) -> u64 {
    match (context, part) {
        (Context::Upscale { .. }, part) => part.region().size().pixels().saturating_mul(UPSCALE),
        (Context::Redraw(redraw), Part::Seg(seg)) => redrawn(redraw, seg),
        (Context::Latent(steps), Part::Latent(link)) => linked(link, steps.upscale_model.is_some()),
        (Context::Redraw(_) | Context::Latent(_), _) => 0,
        (Context::Assemble { .. } | Context::Paste(_) | Context::Encode { .. } | Context::Deliver { .. }, _) => 0,
    }
}

/// What each task of `plan` costs, in its order.
pub fn all(plan: &Plan) -> Vec<u64> {
    plan.tasks().iter().map(|task| of(&plan.context_of(task).context, &task.part)).collect()
}

/// Whether the speed that a device shows at tasks of `context` tells what to expect of it at others: of one figure for
/// networks of all sizes it does not.
pub const fn is_telling(context: &Context) -> bool {
    !matches!(context, Context::Upscale { .. })
}

/// One sampling run over a latent of `size` with so many ControlNets, each of which takes about half a UNet.
fn sampled(sampler: &KSampler, pipe: &BasicPipe, size: Size, control_nets: usize) -> u64 {
    let nets = (control_nets + pipe.control_nets.len()) as u64;
    let each = size.pixels().saturating_mul(unet(pipe.checkpoint.family)).saturating_mul(2 + nets) / 2;
    each.saturating_mul(sampler.evaluations())
}

fn redrawn(redraw: &Redraw, seg: &SegTask) -> u64 {
    let (latent, pixels) = (latent_size(seg.size), seg.size.pixels());
    let part =
        |steps: u32, pipe: &BasicPipe, nets| sampled(&KSampler { steps, ..redraw.sampler.clone() }, pipe, latent, nets);
    let steps = redraw.sampler.steps;
    let base_steps = redraw.refiner.as_ref().map_or(steps, |refiner| redraw.sampler.base_steps(refiner.ratio));
    let base = part(base_steps, &redraw.basic_pipe, seg.control_nets.len());
    let refiner = redraw.refiner.as_ref().map_or(0, |refiner| part(steps - base_steps, &refiner.basic_pipe, 0));
    let cycles = base.saturating_add(refiner).saturating_mul(redraw.cycle.into());
    let encodings = if redraw.inpaint_model && redraw.basic_pipe.checkpoint.is_inpainting() { 2 } else { 1 };
    cycles.saturating_add(pixels.saturating_mul(encodings * ENCODE + DECODE))
}

fn linked(link: &LatentTask, has_model: bool) -> u64 {
    let decode = || link.size.pixels().saturating_mul(64 * DECODE);
    match &link.work {
        LatentWork::Encode => match &link.from {
            LatentFrom::Picture(base) => base.size().pixels().saturating_mul(ENCODE),
            LatentFrom::Given(_) | LatentFrom::Result(_) => 0,
        },
        LatentWork::Decode => decode(),
        LatentWork::Step { to, runs, .. } => {
            let sampled = runs.iter().map(|run| sampled(&run.sampler, &run.basic_pipe, link.latent(), 0));
            let upscaled = if has_model { link.size.pixels().saturating_mul(64 * UPSCALE) } else { 0 };
            let vae = decode().saturating_add(to.pixels().saturating_mul(ENCODE));
            sampled.fold(vae.saturating_add(upscaled), u64::saturating_add)
        }
    }
}

/// About how many bytes it takes to redraw pixels of `size`, besides the weights.
pub fn bytes(size: Size) -> u64 {
    size.pixels().saturating_mul(BYTES_PER_PIXEL)
}

/// The largest size of the shape of `size`, in whole latents, that takes no more than `room` bytes.
pub fn largest(size: Size, room: u64) -> Size {
    let factor = (room as f64 / bytes(size).max(1) as f64).sqrt().min(1.0);
    let side = |length: u32| (f64::from(length) * factor) as u32 / 8 * 8;
    Size::new(side(size.width), side(size.height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_size_that_fits_does_fit_and_keeps_its_shape() {
        let (size, room) = (Size::new(4096, 2048), 1 << 30);
        let fits = largest(size, room);
        assert_eq!(fits, Size::new(720, 360));
        assert!(bytes(fits) <= room && bytes(size) > room);
        assert_eq!(largest(Size::new(64, 64), room), Size::new(64, 64));
    }
}

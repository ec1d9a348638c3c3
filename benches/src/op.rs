//! Single operations of the kernels, in the sizes of RRDBNet and of Stable Diffusion 1.5.
//!
//! The names, the sizes and the synthetic values are those of `works.py`.

use anyhow::{Result, ensure};
use kernels::{
    attention::{Attention, Heads, Mask},
    conv::{Conv2d, Shape},
    linear::{Epilogue, Linear},
    norm::GroupNorm,
};
use models::upscale::Cpu;
use weights::synthetic;

use crate::figure::{Clock, Figure};

/// 3 x 3 convolutions: inputs, outputs, side.
const CONVOLUTIONS: [(usize, usize, usize); 11] = [
    (64, 32, 128),
    (96, 32, 128),
    (128, 32, 128),
    (160, 32, 128),
    (192, 64, 128),
    (64, 64, 256),
    (320, 320, 64),
    (640, 640, 32),
    (1280, 1280, 16),
    (512, 512, 64),
    (128, 128, 512),
];

/// An operation to be timed.
struct Op {
    name: String,
    /// Additions and multiplications, as the textbook counts them.
    flop: f64,
    /// How many numbers come out.
    outputs: usize,
    make: Box<dyn Fn(Cpu) -> Pass>,
}

/// Computes the output of an operation once.
type Pass = Box<dyn FnMut(&mut [f32])>;

/// Makes `passes` passes of every operation, or of the one called `only`, after one to warm up. Tells `report` what a pass took
/// and the output.
///
/// # Errors
/// If no operation has that name, and what `report` fails with.
pub fn run(
    only: Option<&str>,
    passes: usize,
    cpu: Cpu,
    mut report: impl FnMut(Figure, &[f32]) -> Result<()>,
) -> Result<()> {
    let all = ops();
    let names: Vec<_> = all.iter().map(|op| op.name.as_str()).collect();
    ensure!(only.is_none_or(|name| names.contains(&name)), "`{}` is none of: {}", only.unwrap_or(""), names.join(", "));
    for op in all.iter().filter(|op| only.is_none_or(|name| name == op.name)) {
        let mut pass = (op.make)(cpu);
        let mut out = vec![0.0; op.outputs];
        pass(&mut out);
        let times = (0..passes).map(|_| {
            let clock = Clock::start();
            pass(&mut out);
            clock.stop()
        });
        report(Figure::new(op.name.clone(), passes, times.collect(), Some(op.flop)), &out)?;
    }
    Ok(())
}

fn ops() -> Vec<Op> {
    let convolutions = CONVOLUTIONS.map(|(inputs, outputs, side)| convolution(inputs, outputs, side));
    convolutions.into_iter().chain([attention(), geglu(), norm()]).collect()
}

/// Values of variance 1.
pub fn signal(name: &str, count: usize) -> Vec<f32> {
    synthetic::tensor(name, &[count]).into_iter().map(|value| value * 86.60254).collect()
}

fn convolution(inputs: usize, outputs: usize, side: usize) -> Op {
    let make = move |cpu: Cpu| -> Pass {
        let weight = synthetic::tensor("weight", &[outputs, inputs, 3, 3]);
        let bias = synthetic::tensor("bias", &[outputs]);
        let shape = Shape { outputs, inputs, kernel: 3, stride: 1, padding: 1 };
        let conv = Conv2d::new(cpu.level, cpu.precision, shape, &weight, Some(&bias));
        let x = signal("x.", inputs * side * side);
        Box::new(move |out| conv.forward(&x, side, side, None, Epilogue::default(), out))
    };
    Op {
        name: format!("conv3x3 {inputs}->{outputs} @{side}"),
        flop: 18.0 * (inputs * outputs * side * side) as f64,
        outputs: outputs * side * side,
        make: Box::new(make),
    }
}

fn attention() -> Op {
    const HEADS: usize = 8;
    const ROWS: usize = 4096;
    const WIDTH: usize = 40;
    let make = |cpu: Cpu| -> Pass {
        let [q, k, v] = ["q.", "k.", "v."].map(|name| signal(name, HEADS * ROWS * WIDTH));
        Box::new(move |out| {
            let attention = Attention {
                level: cpu.level,
                precision: cpu.precision,
                heads: HEADS,
                queries: ROWS,
                keys: ROWS,
                width: WIDTH,
                scale: 1.0 / (WIDTH as f32).sqrt(),
                mask: Mask::None,
            };
            let [q, k, v] = [&q, &k, &v].map(|numbers| Heads::inside(numbers, HEADS, WIDTH));
            attention.run(q, k, v, out);
        })
    };
    Op {
        name: "attention 8x4096x40".to_owned(),
        flop: 4.0 * (HEADS * ROWS * ROWS * WIDTH) as f64,
        outputs: ROWS * HEADS * WIDTH,
        make: Box::new(make),
    }
}

fn geglu() -> Op {
    const INPUTS: usize = 320;
    const SUMS: usize = 2560;
    const ROWS: usize = 4096;
    let make = |cpu: Cpu| -> Pass {
        let (weight, bias) = (synthetic::tensor("weight", &[SUMS, INPUTS]), synthetic::tensor("bias", &[SUMS]));
        let linear = Linear::geglu(cpu.level, cpu.precision, INPUTS, &weight, Some(&bias));
        let x = signal("x.", ROWS * INPUTS);
        Box::new(move |out| linear.forward(&x, Epilogue::default(), out))
    };
    Op {
        name: "linear 320->2560 GEGLU @4096".to_owned(),
        flop: 2.0 * (ROWS * INPUTS * SUMS) as f64,
        outputs: ROWS * SUMS / 2,
        make: Box::new(make),
    }
}

fn norm() -> Op {
    const CHANNELS: usize = 320;
    const PIXELS: usize = 64 * 64;
    let make = |cpu: Cpu| -> Pass {
        let [weight, bias] = ["norm.weight", "norm.bias"].map(|name| synthetic::tensor(name, &[CHANNELS]));
        let x = signal("x.", CHANNELS * PIXELS);
        Box::new(move |out| {
            let norm = GroupNorm { level: cpu.level, groups: 32, weight: &weight, bias: &bias, eps: 1e-5, silu: true };
            norm.run(&x, out);
        })
    };
    Op {
        name: "groupnorm32+silu 320@64".to_owned(),
        flop: 10.0 * (CHANNELS * PIXELS) as f64,
        outputs: CHANNELS * PIXELS,
        make: Box::new(make),
    }
}

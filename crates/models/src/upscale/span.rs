//! SPAN (Wan et al. 2024): six blocks of three convolutions, whose outputs weigh themselves, without parameters.

use candle_core::{Device, Tensor};
use weights::detect;

use super::{
    layers::{Layers, Net, Range, plain, then},
    parts::values,
};
use crate::{
    error::Result,
    ops::{self, Backend, Conv2d, Function},
    watch::Progress,
};

/// How many blocks there are.
const BLOCKS: usize = 6;

/// The range of numbers that it computes in.
const IMG_RANGE: f64 = 255.0;

/// The whole network.
#[derive(Debug)]
pub(super) struct Span {
    layout: detect::Span,
    backend: Backend,
    range: Option<Range>,
    conv_1: Conv2d,
    blocks: Vec<[Conv2d; 3]>,
    conv_2: Conv2d,
    conv_cat: Conv2d,
    upsampler: Conv2d,
}

impl Span {
    pub(super) fn load(layout: &detect::Span, layers: &Layers<'_>) -> Result<Self> {
        let block = |b: usize| -> Result<_> {
            let unit = |i: usize| merged(layers, &format!("block_{b}.c{i}_r"));
            Ok([unit(1)?, unit(2)?, unit(3)?])
        };
        let range = layout.norm.then(|| Range::new(layers.backend, layout.num_in_ch, IMG_RANGE));
        Ok(Self {
            range: range.transpose()?,
            conv_1: merged(layers, "conv_1")?,
            blocks: (1..=BLOCKS).map(block).collect::<Result<_>>()?,
            conv_2: merged(layers, "conv_2")?,
            conv_cat: layers.conv("conv_cat")?,
            upsampler: layers.conv("upsampler.0")?,
            backend: layers.backend.clone(),
            layout: *layout,
        })
    }
}

/// Merges a unit of three convolutions in a row (1 x 1, 3 x 3 and 1 x 1) and a 1 x 1 convolution beside them, as they are
/// trained, into the one 3 x 3 convolution that computes the same, with all zeros around at once.
///
/// K[o, i, y, x] = sum over m and n of W2[o, m] W1[m, n, y, x] W0[n, i], plus the weight beside at the middle.
fn merged(layers: &Layers<'_>, name: &str) -> Result<Conv2d> {
    let numbers = |part: &str| -> Result<Vec<f64>> {
        Ok(values(layers.checkpoint, &format!("{name}.{part}"))?.into_iter().map(f64::from).collect())
    };
    let [w0, w1, w2] = [0, 1, 2].map(|i| numbers(&format!("conv.{i}.weight")));
    let [b0, b1, b2] = [0, 1, 2].map(|i| numbers(&format!("conv.{i}.bias")));
    let (w0, w1, w2, b0, b1, b2) = (w0?, w1?, w2?, b0?, b1?, b2?);
    let (skip, skip_bias) = (numbers("sk.weight")?, numbers("sk.bias")?);
    let (inner, middle, outputs) = (b0.len(), b1.len(), b2.len());
    let inputs = w0.len() / inner;

    // W1 over the inputs of W0, [middle, inputs, 9], and its bias for what b0 brings to every tap.
    let mut kernel = vec![0.0; middle * inputs * 9];
    let mut bias = b1;
    for m in 0..middle {
        for n in 0..inner {
            let taps = &w1[(m * inner + n) * 9..][..9];
            bias[m] += taps.iter().sum::<f64>() * b0[n];
            for i in 0..inputs {
                let weight = w0[n * inputs + i];
                for (sum, tap) in kernel[(m * inputs + i) * 9..][..9].iter_mut().zip(taps) {
                    *sum += tap * weight;
                }
            }
        }
    }
    let mut weights = vec![0.0; outputs * inputs * 9];
    let mut biases = vec![0.0; outputs];
    for o in 0..outputs {
        let row = &w2[o * middle..][..middle];
        biases[o] = row.iter().zip(&bias).map(|(weight, bias)| weight * bias).sum::<f64>() + b2[o] + skip_bias[o];
        for i in 0..inputs {
            let sums = &mut weights[(o * inputs + i) * 9..][..9];
            for (m, weight) in row.iter().enumerate() {
                for (sum, tap) in sums.iter_mut().zip(&kernel[(m * inputs + i) * 9..]) {
                    *sum += weight * tap;
                }
            }
            sums[4] += skip[o * inputs + i];
        }
    }
    let narrow = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<_>>();
    let weight = Tensor::from_vec(narrow(weights), (outputs, inputs, 3, 3), &Device::Cpu)?;
    let bias = Tensor::from_vec(narrow(biases), outputs, &Device::Cpu)?;
    Ok(Conv2d::new(layers.backend, &weight, Some(&bias), 1, 1)?)
}

impl Net for Span {
    fn work(&self) -> f64 {
        (BLOCKS + 2) as f64
    }

    fn values_per_pixel(&self) -> usize {
        let detect::Span { feature_channels, num_out_ch, upscale, .. } = self.layout;
        (12 * feature_channels).max(3 * feature_channels + 2 * num_out_ch * upscale * upscale)
    }

    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let backend = &self.backend;
        let x = match &self.range {
            Some(range) => range.enter(x)?,
            None => x.clone(),
        };
        let first = self.conv_1.forward(&x, plain())?; // [1, feature_channels, h, w], and so all but the last
        progress.advance(1.0)?;
        let (mut y, mut after_first, mut inside_last) = (first.clone(), None, None);
        for [c1, c2, c3] in &self.blocks {
            let a = c1.forward(&y, then(Function::Silu))?;
            let d = c3.forward(&c2.forward(&a, then(Function::Silu))?, plain())?;
            let weights = (ops::function(backend, Function::Sigmoid, &d)? - 0.5)?;
            y = ((d + y)? * weights)?;
            after_first.get_or_insert_with(|| y.clone());
            inside_last = Some(a);
            progress.advance(1.0)?;
        }
        let y = self.conv_2.forward(&y, plain())?;
        let kept = [Some(first), Some(y), after_first, inside_last];
        let kept: Vec<Tensor> = kept.into_iter().flatten().collect();
        let y = self.conv_cat.forward(&Tensor::cat(&kept, 1)?, plain())?;
        drop(kept);
        let y = ops::pixel_shuffle(backend, &self.upsampler.forward(&y, plain())?, self.layout.upscale)?;
        progress.advance(1.0)?;
        Ok(y)
    }
}

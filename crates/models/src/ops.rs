//! The operations of networks that are no chain: on a CPU with its kernels, on other devices with candle.
//!
//! Each operation takes and gives tensors, f32 on a CPU, and has both paths side by side. Candle's on a CPU is slow, and what
//! the tests compare with.

mod matrix;
mod places;

use candle_core::{CpuStorage, D, DType, Device, Module, Result, Storage, Tensor, bail};
use candle_nn::{Conv2dConfig, ops};
pub use kernels::math::Function;
use kernels::{
    attention::{Attention, Heads},
    buffer::zeros,
    conv::Shape,
    depthwise::Depthwise,
    linear::{Conv1x1, Epilogue},
    norm, rearrange,
};

use crate::upscale::Cpu;
pub use matrix::{Columns, WindowAttention, mean, product, product_of_rows, softmax, unit_rows};
pub use places::{
    NO_ROW, Rows, add_to_maps, gather_rows, max_pool, resize_bilinear, resize_nearest, resize_nearest_exact, sample,
    to_map, to_maps, to_rows, to_tokens, transpose,
};

/// Who computes.
#[derive(Debug, Clone)]
pub enum Backend {
    /// The kernels of a CPU.
    Kernels(Cpu),
    /// Candle, on a device and with numbers of a type.
    Candle(Device, DType),
}

/// What follows an operation, in this order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Then<'a> {
    /// A function of each number.
    pub function: Option<Function>,
    /// A tensor as large as the result, that is added.
    pub residual: Option<&'a Tensor>,
}

impl Then<'_> {
    fn plain(&self, y: Tensor) -> Result<Tensor> {
        let y = match self.function {
            Some(function) => plain_function(function, &y)?,
            None => y,
        };
        match self.residual {
            Some(residual) => y + residual,
            None => Ok(y),
        }
    }

    /// Gives `run` what follows in the form of the kernels, and as many zeros as `shape` says to write to.
    fn run(&self, shape: &[usize], run: impl FnOnce(Epilogue<'_>, &mut [f32])) -> Result<Tensor> {
        let mut out = zeros(shape.iter().product());
        match self.residual {
            Some(residual) if residual.dims() != shape => bail!("a residual {residual:?} for a result {shape:?}"),
            Some(residual) => with_numbers(residual, |residual| {
                run(Epilogue { function: self.function, residual: Some(residual) }, &mut out);
                Ok(())
            })?,
            None => run(Epilogue { function: self.function, residual: None }, &mut out),
        }
        Tensor::from_vec(out, shape, &Device::Cpu)
    }
}

/// Gives `run` the numbers of a tensor of f32 on a CPU, in row-major order.
fn with_numbers<T>(x: &Tensor, run: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(numbers)) = &*storage else {
        bail!(
            "the kernels of a CPU take f32 numbers of its own memory, not {:?} on {:?}",
            x.dtype(),
            x.device().location()
        )
    };
    run(&numbers[layout.start_offset()..][..x.elem_count()])
}

/// Applies a function to each number.
pub fn function(backend: &Backend, function: Function, x: &Tensor) -> Result<Tensor> {
    match backend {
        Backend::Candle(..) => plain_function(function, x),
        Backend::Kernels(cpu) => {
            let mut numbers = with_numbers(x, |numbers| Ok(numbers.to_vec()))?;
            function.apply(cpu.level, &mut numbers);
            Tensor::from_vec(numbers, x.shape(), &Device::Cpu)
        }
    }
}

fn plain_function(function: Function, x: &Tensor) -> Result<Tensor> {
    match function {
        Function::Relu => x.relu(),
        Function::LeakyRelu(factor) => ops::leaky_relu(x, f64::from(factor)),
        Function::Exp => x.exp(),
        Function::Sigmoid => ops::sigmoid(x),
        Function::Silu => x.silu(),
        Function::Gelu => x.gelu_erf(),
        Function::GeluTanh => x.gelu(),
        Function::QuickGelu => x * ops::sigmoid(&(x * 1.702)?)?,
        Function::Mish => x * (x.exp()? + 1.0)?.minimum(1e30f32)?.log()?.tanh()?,
    }
}

/// A convolution with its weights.
#[derive(Debug, Clone)]
pub struct Conv2d(Conv);

#[derive(Debug, Clone)]
enum Conv {
    Kernel(kernels::conv::Conv2d),
    Pixelwise(Conv1x1),
    Depthwise(Depthwise),
    Candle(candle_nn::Conv2d),
}

impl Conv2d {
    /// A convolution with square kernels `weight`, [o, i, k, k], and `bias`, [o].
    pub fn new(
        backend: &Backend,
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        let (outputs, inputs, kernel, across) = weight.dims4()?;
        if kernel != across || kernel == 0 || stride == 0 || outputs * inputs == 0 {
            bail!("a convolution needs square kernels and a stride, not {:?} and {stride}", weight.shape());
        }
        if bias.is_some_and(|bias| bias.dims() != [outputs]) {
            bail!("{outputs} outputs need as many biases, not {bias:?}");
        }
        let cpu = match backend {
            Backend::Kernels(cpu) => cpu,
            Backend::Candle(device, dtype) => {
                let convert = |x: &Tensor| x.to_device(device)?.to_dtype(*dtype);
                let config = Conv2dConfig { padding, stride, ..Default::default() };
                let bias = bias.map(convert).transpose()?;
                return Ok(Self(Conv::Candle(candle_nn::Conv2d::new(convert(weight)?, bias, config))));
            }
        };
        let bias = bias.map(Tensor::to_vec1::<f32>).transpose()?;
        with_numbers(weight, |weight| {
            let (cpu, bias) = (*cpu, bias.as_deref());
            Ok(Self(if (kernel, stride, padding) == (1, 1, 0) {
                Conv::Pixelwise(Conv1x1::new(cpu.level, cpu.precision, inputs, weight, bias))
            } else {
                let shape = Shape { outputs, inputs, kernel, stride, padding };
                Conv::Kernel(kernels::conv::Conv2d::new(cpu.level, cpu.precision, shape, weight, bias))
            }))
        })
    }

    /// A convolution of each channel by itself that keeps the size, with square kernels `weight`, [c, 1, k, k] with an odd
    /// k, and `bias`, [c].
    pub fn depthwise(backend: &Backend, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (channels, one, kernel, across) = weight.dims4()?;
        if one != 1 || kernel != across || kernel % 2 == 0 || channels == 0 {
            bail!("a convolution of single channels needs square kernels of an odd side, not {:?}", weight.shape());
        }
        if bias.is_some_and(|bias| bias.dims() != [channels]) {
            bail!("{channels} channels need as many biases, not {bias:?}");
        }
        match backend {
            Backend::Candle(device, dtype) => {
                let convert = |x: &Tensor| x.to_device(device)?.to_dtype(*dtype);
                let config = Conv2dConfig { padding: kernel / 2, groups: channels, ..Default::default() };
                let bias = bias.map(convert).transpose()?;
                Ok(Self(Conv::Candle(candle_nn::Conv2d::new(convert(weight)?, bias, config))))
            }
            Backend::Kernels(cpu) => {
                let bias = bias.map(Tensor::to_vec1::<f32>).transpose()?;
                with_numbers(weight, |weight| {
                    Ok(Self(Conv::Depthwise(Depthwise::new(cpu.level, kernel, weight, bias.as_deref()))))
                })
            }
        }
    }

    /// Convolves x, [b, i, h, w], to [b, o, h', w'].
    pub fn forward(&self, x: &Tensor, then: Then<'_>) -> Result<Tensor> {
        self.run(x, None, then)
    }

    /// Convolves x, [b, i, h, w], to [b, o, h', w'], and adds `shift`, [b, o], to every pixel before all that follows.
    pub fn forward_shifted(&self, x: &Tensor, shift: &Tensor, then: Then<'_>) -> Result<Tensor> {
        self.run(x, Some(shift), then)
    }

    fn run(&self, x: &Tensor, shift: Option<&Tensor>, then: Then<'_>) -> Result<Tensor> {
        let conv = match (&self.0, shift) {
            (Conv::Kernel(conv), _) => conv,
            (_, None) => return self.run_each(x, then),
            (_, Some(shift)) => {
                let y = self.run_each(x, Then::default())?;
                return then.plain(y.broadcast_add(&shift.unsqueeze(2)?.unsqueeze(3)?)?);
            }
        };
        let (b, i, h, w) = x.dims4()?;
        let kernels::conv::Shape { inputs, outputs, .. } = conv.shape();
        let (out_h, out_w) = conv.shape().output(h, w);
        if i != inputs || h * w == 0 || out_h * out_w == 0 {
            bail!("a convolution of {inputs} channels cannot take {:?}", x.shape());
        }
        if shift.is_some_and(|shift| shift.dims() != [b, outputs]) {
            bail!("{b} pictures of {outputs} channels cannot be shifted by {shift:?}");
        }
        let shift = shift.map(|shift| shift.flatten_all()?.to_vec1::<f32>()).transpose()?;
        with_numbers(x, |x| {
            then.run(&[b, outputs, out_h, out_w], |epilogue, out| {
                conv.forward(x, h, w, shift.as_deref(), epilogue, out);
            })
        })
    }

    /// Convolves pictures one after another.
    fn run_each(&self, x: &Tensor, then: Then<'_>) -> Result<Tensor> {
        if let Conv::Candle(conv) = &self.0 {
            return then.plain(conv.forward(x)?);
        }
        let (b, i, h, w) = x.dims4()?;
        let (inputs, outputs) = match &self.0 {
            Conv::Pixelwise(conv) => (conv.inputs(), conv.outputs()),
            Conv::Depthwise(conv) => (conv.channels(), conv.channels()),
            Conv::Kernel(_) | Conv::Candle(_) => unreachable!("computed above"),
        };
        if i != inputs || h * w == 0 {
            bail!("a convolution of {inputs} channels cannot take {:?}", x.shape());
        }
        let (from, to) = (i * h * w, outputs * h * w);
        with_numbers(x, |x| {
            then.run(&[b, outputs, h, w], |epilogue, out| {
                for (n, out) in out.chunks_exact_mut(to).enumerate() {
                    let residual = epilogue.residual.map(|residual| &residual[n * to..][..to]);
                    let (x, epilogue) = (&x[n * from..][..from], Epilogue { residual, ..epilogue });
                    match &self.0 {
                        Conv::Pixelwise(conv) => conv.forward(x, epilogue, out),
                        Conv::Depthwise(conv) => conv.forward(x, h, w, epilogue, out),
                        Conv::Kernel(_) | Conv::Candle(_) => unreachable!("computed above"),
                    }
                }
            })
        })
    }
}

/// A linear layer with its weights.
#[derive(Debug, Clone)]
pub struct Linear {
    layer: Layer,
    gated: bool,
}

#[derive(Debug, Clone)]
enum Layer {
    Kernel(kernels::linear::Linear),
    Candle(candle_nn::Linear),
}

impl Linear {
    /// A layer of `weight`, [o, i], and `bias`, [o].
    pub fn new(backend: &Backend, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Self::load(backend, weight, bias, false)
    }

    /// A layer whose outputs are half as many: the first half, multiplied by the GELU of the second (GEGLU).
    pub fn geglu(backend: &Backend, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Self::load(backend, weight, bias, true)
    }

    fn load(backend: &Backend, weight: &Tensor, bias: Option<&Tensor>, gated: bool) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        if outputs * inputs == 0 || (gated && outputs % 2 == 1) || bias.is_some_and(|bias| bias.dims() != [outputs]) {
            bail!("weights {:?} and biases {bias:?} make no layer", weight.shape());
        }
        let layer = match backend {
            Backend::Candle(device, dtype) => {
                let convert = |x: &Tensor| x.to_device(device)?.to_dtype(*dtype);
                Layer::Candle(candle_nn::Linear::new(convert(weight)?, bias.map(convert).transpose()?))
            }
            Backend::Kernels(Cpu { level, precision }) => {
                let bias = bias.map(Tensor::to_vec1::<f32>).transpose()?;
                let make = if gated { kernels::linear::Linear::geglu } else { kernels::linear::Linear::new };
                with_numbers(weight, |weight| {
                    Ok(Layer::Kernel(make(*level, *precision, inputs, weight, bias.as_deref())))
                })?
            }
        };
        Ok(Self { layer, gated })
    }

    /// Takes x, [.., i], to [.., o].
    pub fn forward(&self, x: &Tensor, then: Then<'_>) -> Result<Tensor> {
        let layer = match &self.layer {
            Layer::Kernel(layer) => layer,
            Layer::Candle(layer) => {
                let y = layer.forward(x)?;
                if !self.gated {
                    return then.plain(y);
                }
                let half = y.dim(D::Minus1)? / 2;
                let gate = y.narrow(D::Minus1, half, half)?.gelu_erf()?;
                return then.plain((y.narrow(D::Minus1, 0, half)? * gate)?);
            }
        };
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == layer.inputs() => *last = layer.outputs(),
            _ => bail!("a layer of {} inputs cannot take {:?}", layer.inputs(), x.shape()),
        }
        with_numbers(x, |x| then.run(&shape, |epilogue, out| layer.forward(x, epilogue, out)))
    }
}

/// Which keys a query attends to.
#[derive(Debug, Clone, Copy, Default)]
pub enum Mask<'a> {
    /// All.
    #[default]
    None,
    /// Those that are not behind it.
    Causal,
    /// [n, m], added to the scores of all heads.
    Added(&'a Tensor),
}

/// Attends with `heads` heads from q, [b, n, heads*d], to k and v, [b, m, heads*d]: softmax(q kᵀ scale + mask) v.
pub fn attention(
    backend: &Backend,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scale: f64,
    mask: Mask<'_>,
) -> Result<Tensor> {
    let ((b, n, c), (_, m, _)) = (q.dims3()?, k.dims3()?);
    if heads == 0 || c % heads != 0 || c == 0 || k.dims() != [b, m, c] || v.dims() != [b, m, c] || m == 0 {
        bail!("{heads} heads cannot attend from {:?} to {:?} and {:?}", q.shape(), k.shape(), v.shape());
    }
    let cpu = match backend {
        Backend::Kernels(cpu) => cpu,
        Backend::Candle(..) => {
            let by_head = |x: &Tensor| x.reshape((b, (), heads, c / heads))?.transpose(1, 2)?.contiguous();
            let scores = (by_head(q)?.matmul(&by_head(k)?.t()?)? * scale)?; // [b, heads, n, m]
            let scores = match mask {
                Mask::None => scores,
                Mask::Added(mask) => scores.broadcast_add(mask)?,
                Mask::Causal => {
                    let behind = |i| (0..m).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 });
                    let mask = Tensor::from_iter((0..n).flat_map(behind), scores.device())?.reshape((n, m))?;
                    scores.broadcast_add(&mask.to_dtype(scores.dtype())?)?
                }
            };
            let weights = ops::softmax_last_dim(&scores)?;
            return weights.matmul(&by_head(v)?)?.transpose(1, 2)?.reshape((b, n, c));
        }
    };
    let added = match mask {
        Mask::Added(mask) if mask.dims() == [n, m] => Some(mask.flatten_all()?.to_vec1::<f32>()?),
        Mask::Added(mask) => bail!("a mask {:?} for {n} queries and {m} keys", mask.shape()),
        Mask::None | Mask::Causal => None,
    };
    let attention = Attention {
        level: cpu.level,
        precision: cpu.precision,
        heads,
        queries: n,
        keys: m,
        width: c / heads,
        scale: scale as f32,
        mask: match (&added, mask) {
            (Some(added), _) => kernels::attention::Mask::Added(added),
            (None, Mask::Causal) => kernels::attention::Mask::Causal,
            (None, _) => kernels::attention::Mask::None,
        },
    };
    let mut out = zeros(b * n * c);
    with_numbers(q, |q| {
        with_numbers(k, |k| {
            with_numbers(v, |v| {
                for (i, out) in out.chunks_exact_mut((n * c).max(1)).enumerate() {
                    let rows = |x, count: usize| {
                        let x: &[f32] = x;
                        Heads::inside(&x[i * count * c..][..count * c], heads, c / heads)
                    };
                    attention.run(rows(q, n), rows(k, m), rows(v, m), out);
                }
                Ok(())
            })
        })
    })?;
    Tensor::from_vec(out, (b, n, c), &Device::Cpu)
}

/// The scale and shift of a norm, and what it adds to variances.
#[derive(Debug, Clone)]
pub struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    /// A norm with `weight` and `bias`, [c].
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Result<Self> {
        if weight.dims1()? == 0 || weight.dims() != bias.dims() {
            bail!("a norm needs weights and biases, not {:?} and {:?}", weight.shape(), bias.shape());
        }
        Ok(Self { weight, bias, eps })
    }

    /// Normalizes each of `groups` groups of channels of x, [b, c, ..], to mean 0 and variance 1, scales and shifts each
    /// channel, and applies SiLU if wanted.
    pub fn groups(&self, backend: &Backend, x: &Tensor, groups: usize, silu: bool) -> Result<Tensor> {
        let (b, c) = (x.dim(0)?, x.dim(1)?);
        if groups == 0 || c % groups != 0 || self.weight.dims() != [c] {
            bail!("{groups} groups and {:?} weights do not fit {:?}", self.weight.shape(), x.shape());
        }
        let cpu = match backend {
            Backend::Kernels(cpu) => cpu,
            Backend::Candle(..) => {
                let parts = x.reshape((b, groups, ()))?;
                let centred = parts.broadcast_sub(&parts.mean_keepdim(2)?)?;
                let variance = centred.sqr()?.mean_keepdim(2)?;
                let y = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?.reshape(x.shape())?;
                let mut channels = vec![1; x.rank()];
                channels[1] = c;
                let y = y.broadcast_mul(&self.weight.reshape(&*channels)?)?;
                let y = y.broadcast_add(&self.bias.reshape(&*channels)?)?;
                return if silu { y.silu() } else { Ok(y) };
            }
        };
        let (weight, bias) = (self.weight.to_vec1()?, self.bias.to_vec1()?);
        let (weight, bias, eps) = (&weight[..], &bias[..], self.eps as f32);
        let norm = norm::GroupNorm { level: cpu.level, groups, weight, bias, eps, silu };
        let of_picture = (x.elem_count() / b.max(1)).max(1);
        with_numbers(x, |numbers| {
            let mut out = zeros(numbers.len());
            for (x, out) in numbers.chunks_exact(of_picture).zip(out.chunks_exact_mut(of_picture)) {
                norm.run(x, out);
            }
            Tensor::from_vec(out, x.shape(), &Device::Cpu)
        })
    }

    /// Normalizes each row of x, [.., c], to mean 0 and variance 1, scales and shifts it.
    pub fn rows(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        if self.weight.dims() != [x.dim(D::Minus1)?] {
            bail!("{:?} weights do not fit {:?}", self.weight.shape(), x.shape());
        }
        match backend {
            Backend::Candle(..) => {
                let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
                let y = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
                y.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
            }
            Backend::Kernels(cpu) => {
                let (weight, bias) = (self.weight.to_vec1()?, self.bias.to_vec1()?);
                let (level, eps) = (cpu.level, self.eps as f32);
                let norm = norm::LayerNorm { level, weight: &weight, bias: &bias, eps };
                with_numbers(x, |numbers| {
                    let mut out = vec![0.0; numbers.len()];
                    norm.run(numbers, &mut out);
                    Tensor::from_vec(out, x.shape(), &Device::Cpu)
                })
            }
        }
    }
}

/// Makes r x r channels one of r times the sides, from [b, c*r*r, h, w] to [b, c, h*r, w*r].
pub fn pixel_shuffle(backend: &Backend, x: &Tensor, r: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if r == 0 || c % (r * r) != 0 || x.elem_count() == 0 {
        bail!("{:?} has no channels of {r} x {r} pixels", x.shape());
    }
    match backend {
        Backend::Candle(..) => ops::pixel_shuffle(x, r),
        Backend::Kernels(_) => with_numbers(x, |x| {
            let mut out = vec![0.0; x.len()];
            rearrange::pixel_shuffle(x, h, w, r, &mut out);
            Tensor::from_vec(out, (b, c / (r * r), h * r, w * r), &Device::Cpu)
        }),
    }
}

/// Repeats each pixel of x, [b, c, h, w], `times` times in both directions.
pub fn upsample_nearest(backend: &Backend, x: &Tensor, times: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if times == 0 || x.elem_count() == 0 {
        bail!("{:?} cannot be repeated {times} times", x.shape());
    }
    match backend {
        Backend::Candle(..) => x.upsample_nearest2d(h * times, w * times),
        Backend::Kernels(_) => with_numbers(x, |x| {
            let mut out = zeros(x.len() * times * times);
            rearrange::upsample_nearest(x, h, w, times, &mut out);
            Tensor::from_vec(out, (b, c, h * times, w * times), &Device::Cpu)
        }),
    }
}

//! The control net of Stable Diffusion 1, 2 and XL (Zhang et al. 2023): what a picture has to say to a UNet.

use candle_core::Tensor;
use weights::{
    checkpoint::Checkpoint,
    detect::diffusion::{self as layout, control_net, network},
};

use super::unet::{Checked, Inputs, Trunk};
use crate::{
    error::{ModelError, Result},
    layers::{Layers, Patch, check_shape, plain, tensor, then},
    ops::{self, Backend, Conv2d, Function},
    watch::{Progress, Watch},
};

/// How many pixels of a hint, each way, a number of a latent stands for.
const SCALE: usize = 8;

/// The whole network. The parts go by the names of the checkpoint.
#[derive(Debug)]
pub struct ControlNet {
    layout: layout::ControlNet,
    trunk: Trunk,
    input_hint_block: Vec<Conv2d>,
    zero_convs: Vec<Conv2d>,
    middle_block_out: Conv2d,
    is_averaged: bool,
}

/// What a UNet adds to its own.
#[derive(Debug, Clone)]
pub struct Residuals {
    /// For what the first convolution and each block on the way down keep for the way up, [b, c, h', w'].
    pub output: Vec<Tensor>,
    /// For what the middle gives, [b, c, h', w'].
    pub middle: Tensor,
}

impl ControlNet {
    /// Loads the network whose tensors `checkpoint` has: below `control_model.` or without a prefix, by their own names or those of
    /// diffusers.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or holds a value that is no number, or if the file holds no more than what
    /// differs from another network.
    pub fn load(checkpoint: &Checkpoint, backend: &Backend) -> Result<Self> {
        Self::load_beside(checkpoint, None, backend)
    }

    /// Loads what [`Self::load`] does, also where `checkpoint` holds no more than what differs from the network that the file `base`
    /// holds: by adding to its weights (a file with a tensor `difference`), or in matrices of low rank (`lora_controlnet`).
    ///
    /// # Errors
    /// As [`Self::load`], and if the two networks have other sizes.
    pub fn load_beside(checkpoint: &Checkpoint, base: Option<&Checkpoint>, backend: &Backend) -> Result<Self> {
        let base = |kind| base.map(network).ok_or(ModelError::NeedsBase { kind });
        let own = control_net(checkpoint);
        if checkpoint.has("lora_controlnet") {
            let base = base("control-LoRA")?;
            let rest = base.renamed(|name| (!own.tensors().contains_key(name)).then(|| name.to_owned()));
            let whole = Checkpoint::joined([own.clone(), rest])?;
            return Self::load_layers(&Layers { patches: Some(&LowRank(own)), ..Layers::new(&whole, backend) });
        }
        if checkpoint.has("difference") {
            let base = Difference(base("difference from another network")?);
            return Self::load_layers(&Layers { patches: Some(&base), ..Layers::new(&own, backend) });
        }
        Self::load_layers(&Layers::new(&own, backend))
    }

    fn load_layers(layers: &Layers<'_>) -> Result<Self> {
        let layout = layout::ControlNet::infer(&layers.checkpoint.shapes(), layers.checkpoint.metadata())?;
        let hint_conv =
            |i: usize| layers.strided(&layout::ControlNet::hint_conv(i), layout::ControlNet::hint_stride(i), 1);
        let zero_conv = |i: usize| layers.conv(&format!("zero_convs.{i}.0"));
        Ok(Self {
            input_hint_block: (0..layout::ControlNet::HINT_CONVS).map(hint_conv).collect::<Result<_>>()?,
            zero_convs: (0..=layout.unet.input.len()).map(zero_conv).collect::<Result<_>>()?,
            middle_block_out: layers.conv("middle_block_out.0")?,
            trunk: Trunk::load(layout.unet.clone(), layers)?,
            is_averaged: false,
            layout,
        })
    }

    /// Makes it say the same of all places, the mean of what it would say: how networks for the colours and the contents of a
    /// picture that was shuffled are used.
    pub fn averaged(self) -> Self {
        Self { is_averaged: true, ..self }
    }

    /// Whether a file of this name is to be used [`averaged`](Self::averaged): one that ends `_shuffle` or `_shuffle_fp16`
    /// before its extension.
    pub fn is_averaged_by_name(file: &std::path::Path) -> bool {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy());
        stem.is_some_and(|stem| ["_shuffle", "_shuffle_fp16"].iter().any(|end| stem.ends_with(end)))
    }

    /// The network's sizes.
    pub fn layout(&self) -> &layout::ControlNet {
        &self.layout
    }

    /// Says what a UNet should add to its own, of the inputs of that UNet and a hint, values from 0 to 1,
    /// [b, 3, 8 h, 8 w] for a latent of h x w.
    ///
    /// A hint may have fewer pictures, of which b is a multiple: they are used again and again.
    ///
    /// # Errors
    /// If the inputs do not fit the network or each other, `watch` says to stop, or the device fails.
    pub fn forward(&self, inputs: Inputs<'_>, hint: &Tensor, watch: &dyn Watch) -> Result<Residuals> {
        let checked = self.trunk.check(inputs)?;
        let (b, _, h, w) = inputs.x.dims4()?;
        let channels = self.layout.hint[0];
        check_shape("hint", hint, &[0, channels, SCALE * h, SCALE * w])?;
        let hints = hint.dim(0)?;
        if !b.is_multiple_of(hints) {
            let (name, wanted) = ("hint", vec![b, channels, SCALE * h, SCALE * w]);
            return Err(ModelError::Tensor { name, wanted, found: hint.dims().to_vec() });
        }

        let mut progress = Progress::begin(watch, (self.trunk.blocks() + 1) as f64)?;
        let guide = self.through_convs(hint)?;
        progress.advance(1.0)?;
        self.say(&checked, &guide, &mut progress)
    }

    /// Works out what a hint, [n, 3, 8 h, 8 w], means at a latent of h x w, [n, model_channels, h, w]: it is the same in every call.
    pub(super) fn guide(&self, hint: &Tensor, watch: &dyn Watch) -> Result<Tensor> {
        check_shape("hint", hint, &[0, self.layout.hint[0], 0, 0])?;
        let mut progress = Progress::begin(watch, 1.0)?;
        let guide = self.through_convs(hint)?;
        progress.advance(1.0)?;
        Ok(guide)
    }

    /// Says what [`Self::forward`] does, of a [`Self::guide`].
    pub(super) fn forward_guided(&self, inputs: Inputs<'_>, guide: &Tensor, watch: &dyn Watch) -> Result<Residuals> {
        let checked = self.trunk.check(inputs)?;
        let mut progress = Progress::begin(watch, self.trunk.blocks() as f64)?;
        self.say(&checked, guide, &mut progress)
    }

    fn through_convs(&self, hint: &Tensor) -> Result<Tensor> {
        let (last, convs) = self.input_hint_block.split_last().expect("a hint goes through 8 convolutions");
        let mut guide = self.trunk.backend.take(hint)?;
        for conv in convs {
            guide = conv.forward(&guide, then(Function::Silu))?;
        }
        Ok(last.forward(&guide, plain())?)
    }

    fn say(&self, checked: &Checked, guide: &Tensor, progress: &mut Progress<'_>) -> Result<Residuals> {
        let guide = guide.repeat((checked.batch() / guide.dim(0)?, 1, 1, 1))?;
        let (skips, middle) = self.trunk.forward(checked, Some(&guide), progress)?;
        let say = |(conv, x): (&Conv2d, &Tensor)| {
            let y = conv.forward(x, plain())?;
            Ok(if self.is_averaged { y.mean_keepdim((2, 3))?.broadcast_as(y.shape())?.contiguous()? } else { y })
        };
        Ok(Residuals {
            output: self.zero_convs.iter().zip(&skips).map(say).collect::<Result<_>>()?,
            middle: say((&self.middle_block_out, &middle))?,
        })
    }
}

/// What a control-LoRA changes of the network that it is for: a layer's weight by the product of its `up` and its `down`.
struct LowRank(Checkpoint);

impl Patch for LowRank {
    fn patched(&self, name: &str, weight: Tensor) -> Result<Tensor> {
        let layer = name.strip_suffix(".weight").unwrap_or(name);
        let [up, down] = ["up", "down"].map(|part| format!("{layer}.{part}"));
        if !self.0.tensors().contains_key(&up) {
            return Ok(weight);
        }
        let rows = |name: &str| -> Result<Tensor> {
            let tensor = tensor(&self.0, name)?;
            Ok(tensor.reshape((tensor.dims().first().copied().unwrap_or(1), ()))?)
        };
        let [up, down] = [up, down].map(|part| rows(&part));
        let (up, down) = (up?, down?);
        let (outputs, inputs) = (weight.dim(0)?, weight.elem_count() / weight.dim(0)?.max(1));
        check_shape("up of a control-LoRA", &up, &[outputs, down.dim(0)?])?;
        check_shape("down of a control-LoRA", &down, &[0, inputs])?;
        let change = up.matmul(&down)?.reshape(weight.shape())?;
        Ok((weight + change)?)
    }
}

/// The network to whose weights those of a file are added.
struct Difference(Checkpoint);

impl Patch for Difference {
    fn patched(&self, name: &str, weight: Tensor) -> Result<Tensor> {
        let Some(info) = self.0.tensors().get(name) else { return Ok(weight) };
        check_shape("weight of the control net's base", &weight, &info.shape)?;
        Ok((weight + tensor(&self.0, name)?)?)
    }
}

impl Residuals {
    /// All of it times `strength`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn scaled(&self, strength: f64) -> Result<Self> {
        let scaled = |x: &Tensor| Ok((x * strength)?);
        Ok(Self { output: self.output.iter().map(scaled).collect::<Result<_>>()?, middle: scaled(&self.middle)? })
    }

    /// What two control nets say together.
    ///
    /// # Errors
    /// If they are of networks of different sizes, or the device fails.
    pub fn plus(&self, other: &Self) -> Result<Self> {
        let mut output = self.output.clone();
        let middle = other.add_to(&mut output, &self.middle)?;
        Ok(Self { output, middle })
    }

    /// Adds this to what is kept of the way down, and to the middle, which it returns.
    pub(super) fn add_to(&self, skips: &mut [Tensor], middle: &Tensor) -> Result<Tensor> {
        if self.output.len() != skips.len() {
            let (wanted, found) = (vec![skips.len()], vec![self.output.len()]);
            return Err(ModelError::Tensor { name: "outputs of the control net", wanted, found });
        }
        let add = |x: &Tensor, said: &Tensor| -> Result<Tensor> {
            check_shape("output of the control net", said, x.dims())?;
            Ok((x + said)?)
        };
        for (skip, said) in skips.iter_mut().zip(&self.output) {
            *skip = add(skip, said)?;
        }
        add(middle, &self.middle)
    }
}

/// Makes a hint for a latent of h x w of pictures, [b, H, W, 3]: cuts them around their middle to the latent's proportions and
/// takes the nearest pixels, to [b, 3, 8 h, 8 w].
///
/// # Errors
/// If the pictures have no three channels, or are too narrow to have any pixel in such proportions.
pub fn hint_for(pictures: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    check_shape("hint", pictures, &[0, 0, 0, 3])?;
    let maps = pictures.permute((0, 3, 1, 2))?;
    let ((y, rows), (x, columns)) = centred(maps.dim(2)?, maps.dim(3)?, h, w);
    let maps = maps.narrow(2, y, rows)?.narrow(3, x, columns)?.contiguous()?;
    check_shape("hint, cut to the proportions of the latent", &maps, &[0, 3, 0, 0])?;
    Ok(ops::resize_nearest_exact(&maps, (SCALE * h, SCALE * w))?)
}

/// The rows and columns, each as first and count, that are left of a picture of `from_h` x `from_w` when it is cut around its
/// middle to the proportions of `to_h` x `to_w`.
///
/// What is cut off is the same on both sides, and rounded, halves to even, as the reference does. Of a picture that is too
/// narrow nothing may be left.
pub fn centred(from_h: usize, from_w: usize, to_h: usize, to_w: usize) -> ((usize, usize), (usize, usize)) {
    let (has, wants) = (from_w as f64 / from_h as f64, to_w as f64 / to_h as f64);
    let cut = |side: usize, share: f64| {
        let off = ((side as f64 - side as f64 * share) / 2.0).round_ties_even().max(0.0) as usize;
        (off, side.saturating_sub(2 * off))
    };
    if has > wants {
        ((0, from_h), cut(from_w, wants / has))
    } else {
        (cut(from_h, if has < wants { has / wants } else { 1.0 }), (0, from_w))
    }
}

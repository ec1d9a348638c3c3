//! The UNet of Stable Diffusion 1, 2 and XL (Rombach et al. 2022, Podell et al. 2023): what is noise in a latent.

use candle_core::{Device, Tensor};
use weights::{
    checkpoint::Checkpoint,
    detect::diffusion::{self as layout, InputBlock, OutputBlock},
};

use super::controlnet::Residuals;
use crate::{
    error::{ModelError, Result},
    layers::{Layers, check_shape, plain, plus, then},
    ops::{self, Backend, Conv2d, Function, Linear, Mask, Norm},
    watch::{Progress, Watch},
};

/// Groups of channels that are normalized together.
const GROUPS: usize = 32;
const EPS: f64 = 1e-5;
/// Transformers have another one in front.
const TRANSFORMER_EPS: f64 = 1e-6;

/// What a network is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Scaled latents, [b, in_channels, h, w], of any sides from 1 on.
    pub x: &'a Tensor,
    /// The timestep of each, 0 to 999, [b].
    pub timesteps: &'a [f32],
    /// Encoded text, [b, tokens, context_dim].
    pub context: &'a Tensor,
    /// What the network is told beside the text, [b, adm_in_channels], if it takes that.
    pub y: Option<&'a Tensor>,
}

/// The whole network. The parts go by the names of the checkpoint.
#[derive(Debug)]
pub struct Unet {
    trunk: Trunk,
    output_blocks: Vec<Up>,
    out_norm: Norm,
    out_conv: Conv2d,
}

/// The way down and the middle, of which a control net has a copy.
#[derive(Debug)]
pub(super) struct Trunk {
    layout: layout::Unet,
    pub(super) backend: Backend,
    time_embed: [Linear; 2],
    label_emb: Option<[Linear; 2]>,
    first: Conv2d,
    input_blocks: Vec<Down>,
    middle_block: Option<(ResBlock, Option<(Transformer, ResBlock)>)>,
}

/// Inputs that fit a network, where it computes.
pub(super) struct Checked {
    x: Tensor,
    context: Tensor,
    /// The embedding of timesteps and y as every block takes it, [b, embedding], behind SiLU.
    emb: Tensor,
}

impl Checked {
    /// How many latents there are.
    pub(super) fn batch(&self) -> usize {
        self.x.dims()[0]
    }
}

#[derive(Debug)]
enum Down {
    Res(Box<(ResBlock, Option<Transformer>)>),
    Halve(Conv2d),
}

#[derive(Debug)]
struct Up {
    res: ResBlock,
    transformer: Option<Transformer>,
    conv: Option<Conv2d>,
}

impl Unet {
    /// Loads the network whose tensors `checkpoint` has, without a prefix before their names.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or holds a value that is no number.
    pub fn load(checkpoint: &Checkpoint, backend: &Backend) -> Result<Self> {
        Self::load_layers(&Layers::new(checkpoint, backend))
    }

    pub(super) fn load_layers(layers: &Layers<'_>) -> Result<Self> {
        let layout = layout::Unet::infer(&layers.checkpoint.shapes(), layers.checkpoint.metadata())?;
        let up = |(number, block): (usize, &OutputBlock)| -> Result<_> {
            let name = format!("output_blocks.{number}");
            let conv = format!("{name}.{}.conv", 1 + usize::from(block.depth > 0));
            Ok(Up {
                res: ResBlock::load(layers, &format!("{name}.0"))?,
                transformer: Transformer::load(&layout, layers, &format!("{name}.1"), block.outputs, block.depth)?,
                conv: block.is_up.then(|| layers.conv(&conv)).transpose()?,
            })
        };
        Ok(Self {
            output_blocks: layout.output.iter().enumerate().map(up).collect::<Result<_>>()?,
            out_norm: layers.norm("out.0", EPS)?,
            out_conv: layers.conv("out.2")?,
            trunk: Trunk::load(layout, layers)?,
        })
    }

    /// The network's sizes.
    pub fn layout(&self) -> &layout::Unet {
        &self.trunk.layout
    }

    /// Says what of latents is noise, or what else the network was trained for: [b, out_channels, h, w], f32.
    ///
    /// `control` is what a control net, or several together, say of the same inputs.
    ///
    /// # Errors
    /// If the inputs do not fit the network or each other, `watch` says to stop, or the device fails.
    pub fn forward(&self, inputs: Inputs<'_>, control: Option<&Residuals>, watch: &dyn Watch) -> Result<Tensor> {
        let Self { trunk, output_blocks, .. } = self;
        let backend = &trunk.backend;
        let inputs = trunk.check(inputs)?;
        let Checked { context, emb, .. } = &inputs;
        let mut progress = Progress::begin(watch, (trunk.blocks() + output_blocks.len() + 1) as f64)?;
        let (mut skips, mut h) = trunk.forward(&inputs, None, &mut progress)?;
        if let Some(control) = control {
            h = control.add_to(&mut skips, &h)?;
        }
        for Up { res, transformer, conv } in output_blocks {
            let skip = skips.pop().expect("as many blocks up as down");
            h = res.forward(backend, &Tensor::cat(&[&h, &skip], 1)?, emb)?;
            h = attend(backend, transformer.as_ref(), h, context)?;
            if let Some(conv) = conv {
                // To the size of what comes next: halving an odd side rounded it up.
                let (_, _, rows, columns) = skips.last().unwrap_or(&skip).dims4()?;
                h = conv.forward(&ops::resize_nearest(backend, &h, (rows, columns))?, plain())?;
            }
            progress.advance(1.0)?;
        }
        let y = self.out_conv.forward(&self.out_norm.groups(backend, &h, GROUPS, true)?, plain())?;
        progress.advance(1.0)?;
        Ok(y.to_dtype(candle_core::DType::F32)?)
    }

    /// What the network makes of timesteps, [b, embedding].
    ///
    /// # Errors
    /// If the device fails.
    pub fn embed_time(&self, timesteps: &[f32]) -> Result<Tensor> {
        self.trunk.embed_time(timesteps)
    }

    /// What the network makes of y, [b, adm_in_channels]: [b, embedding], if it takes that.
    ///
    /// # Errors
    /// If y has another shape, or the device fails.
    pub fn embed_label(&self, y: &Tensor) -> Result<Option<Tensor>> {
        self.trunk.embed_label(y)
    }
}

impl Trunk {
    /// Loads the way down and the middle of a network of these sizes.
    pub(super) fn load(layout: layout::Unet, layers: &Layers<'_>) -> Result<Self> {
        let pair = |name: &str| -> Result<_> {
            Ok([layers.linear(&format!("{name}.0"))?, layers.linear(&format!("{name}.2"))?])
        };
        let transformer =
            |name: &str, channels: usize, depth: usize| Transformer::load(&layout, layers, name, channels, depth);
        let down = |(block, number): (&InputBlock, usize)| -> Result<_> {
            let name = format!("input_blocks.{number}");
            Ok(match *block {
                InputBlock::Down { .. } => Down::Halve(layers.strided(&format!("{name}.0.op"), 2, 1)?),
                InputBlock::Res { outputs, depth, .. } => {
                    let transformer = transformer(&format!("{name}.1"), outputs, depth)?;
                    Down::Res(Box::new((ResBlock::load(layers, &format!("{name}.0"))?, transformer)))
                }
            })
        };
        let middle = |depth: usize| -> Result<_> {
            let transformer = transformer("middle_block.1", layout.deepest(), depth)?;
            let last = |transformer| Ok::<_, ModelError>((transformer, ResBlock::load(layers, "middle_block.2")?));
            Ok((ResBlock::load(layers, "middle_block.0")?, transformer.map(last).transpose()?))
        };
        Ok(Self {
            time_embed: pair("time_embed")?,
            label_emb: layout.adm_in_channels.is_some().then(|| pair("label_emb.0")).transpose()?,
            first: layers.conv("input_blocks.0.0")?,
            input_blocks: layout.input.iter().zip(1..).map(down).collect::<Result<_>>()?,
            middle_block: layout.middle.map(middle).transpose()?,
            backend: layers.backend.clone(),
            layout,
        })
    }

    /// How many parts [`Self::forward`] tells the progress of.
    pub(super) fn blocks(&self) -> usize {
        self.input_blocks.len() + 1
    }

    /// Goes down: gives what the first convolution and each block gave, [b, c, h', w'], and what the middle made of it.
    /// `guide` is added to what the first convolution gives.
    pub(super) fn forward(
        &self,
        Checked { x, context, emb }: &Checked,
        guide: Option<&Tensor>,
        progress: &mut Progress<'_>,
    ) -> Result<(Vec<Tensor>, Tensor)> {
        let backend = &self.backend;
        let mut h = self.first.forward(x, guide.map_or_else(Default::default, plus))?;
        let mut skips = vec![h.clone()];
        for block in &self.input_blocks {
            h = match block {
                Down::Halve(conv) => conv.forward(&h, plain())?,
                Down::Res(block) => {
                    let (res, transformer) = &**block;
                    let h = res.forward(backend, &h, emb)?;
                    attend(backend, transformer.as_ref(), h, context)?
                }
            };
            skips.push(h.clone());
            progress.advance(1.0)?;
        }
        if let Some((first, rest)) = &self.middle_block {
            h = first.forward(backend, &h, emb)?;
            if let Some((transformer, last)) = rest {
                h = transformer.forward(backend, &h, context)?;
                h = last.forward(backend, &h, emb)?;
            }
        }
        progress.advance(1.0)?;
        Ok((skips, h))
    }

    /// Brings the inputs to where the network is, if they fit.
    pub(super) fn check(&self, Inputs { x, timesteps, context, y }: Inputs<'_>) -> Result<Checked> {
        let layout = &self.layout;
        let b = timesteps.len();
        let check = |name, x: &Tensor, wanted: &[usize]| -> Result<_> {
            check_shape(name, x, wanted)?;
            Ok(self.backend.take(x)?.contiguous()?)
        };
        let y = match (y, layout.adm_in_channels) {
            (_, None) => None,
            (Some(y), Some(channels)) => Some(check("y", y, &[b, channels])?),
            (None, Some(channels)) => {
                return Err(ModelError::Tensor { name: "y", wanted: vec![b, channels], found: Vec::new() });
            }
        };
        Ok(Checked {
            x: check("x", x, &[b, layout.in_channels, 0, 0])?,
            context: check("context", context, &[b, 0, layout.context_dim])?,
            emb: self.embed(timesteps, y.as_ref())?,
        })
    }

    /// The embedding of timesteps and of y, as every block takes it.
    fn embed(&self, timesteps: &[f32], y: Option<&Tensor>) -> Result<Tensor> {
        let mut emb = self.embed_time(timesteps)?;
        if let Some(label) = y.map(|y| self.embed_label(y)).transpose()?.flatten() {
            emb = (emb + label)?;
        }
        Ok(ops::function(&self.backend, Function::Silu, &emb)?)
    }

    fn embed_time(&self, timesteps: &[f32]) -> Result<Tensor> {
        let features = self.backend.take(&sinusoid(timesteps, self.layout.model_channels)?)?;
        two_layers(&self.time_embed, &features)
    }

    fn embed_label(&self, y: &Tensor) -> Result<Option<Tensor>> {
        self.label_emb.as_ref().map(|layers| two_layers(layers, &self.backend.take(y)?)).transpose()
    }
}

fn two_layers([first, second]: &[Linear; 2], x: &Tensor) -> Result<Tensor> {
    Ok(second.forward(&first.forward(x, then(Function::Silu))?, plain())?)
}

/// Features of numbers, [n], as [n, channels]: cosines, then sines, of ever longer waves (Vaswani et al. 2017).
///
/// # Errors
/// If there is no number.
pub fn sinusoid(numbers: &[f32], channels: usize) -> Result<Tensor> {
    let half = channels / 2;
    let frequency = |i: usize| (-(10_000f32.ln()) * i as f32 / half as f32).exp();
    let of = |number: &f32| {
        let angles: Vec<f32> = (0..half).map(|i| number * frequency(i)).collect();
        let cosines = angles.iter().map(|angle| angle.cos());
        let sines = angles.iter().map(|angle| angle.sin());
        let rest = std::iter::repeat_n(0.0, channels - 2 * half);
        cosines.chain(sines).chain(rest).collect::<Vec<f32>>()
    };
    let features: Vec<f32> = numbers.iter().flat_map(of).collect();
    Ok(Tensor::from_vec(features, (numbers.len(), channels), &Device::Cpu)?)
}

fn attend(backend: &Backend, transformer: Option<&Transformer>, h: Tensor, context: &Tensor) -> Result<Tensor> {
    match transformer {
        Some(transformer) => transformer.forward(backend, &h, context),
        None => Ok(h),
    }
}

/// Two convolutions that are told the timestep.
#[derive(Debug)]
struct ResBlock {
    in_norm: Norm,
    in_conv: Conv2d,
    emb_layer: Linear,
    out_norm: Norm,
    out_conv: Conv2d,
    skip_connection: Option<Conv2d>,
}

impl ResBlock {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let skip = part("skip_connection");
        Ok(Self {
            in_norm: layers.norm(&part("in_layers.0"), EPS)?,
            in_conv: layers.conv(&part("in_layers.2"))?,
            emb_layer: layers.linear(&part("emb_layers.1"))?,
            out_norm: layers.norm(&part("out_layers.0"), EPS)?,
            out_conv: layers.conv(&part("out_layers.3"))?,
            skip_connection: layers.has(&format!("{skip}.weight")).then(|| layers.conv(&skip)).transpose()?,
        })
    }

    /// From [b, inputs, h, w] to [b, outputs, h, w].
    fn forward(&self, backend: &Backend, x: &Tensor, emb: &Tensor) -> Result<Tensor> {
        let emb = self.emb_layer.forward(emb, plain())?; // [b, outputs]
        let mut h = self.in_conv.forward_shifted(&self.in_norm.groups(backend, x, GROUPS, true)?, &emb, plain())?;
        h = self.out_norm.groups(backend, &h, GROUPS, true)?;
        match &self.skip_connection {
            None => Ok(self.out_conv.forward(&h, plus(x))?),
            Some(skip) => Ok(self.out_conv.forward(&h, plus(&skip.forward(x, plain())?))?),
        }
    }
}

/// Attention of pixels to each other and to the text.
#[derive(Debug)]
struct Transformer {
    norm: Norm,
    proj_in: Linear,
    blocks: Vec<Block>,
    proj_out: Linear,
}

impl Transformer {
    /// Loads the transformer of `depth` blocks; 0 for none.
    fn load(
        layout: &layout::Unet,
        layers: &Layers<'_>,
        name: &str,
        channels: usize,
        depth: usize,
    ) -> Result<Option<Self>> {
        if depth == 0 {
            return Ok(None);
        }
        let heads = layout.heads.of(channels).expect("the layout was checked");
        let block = |i: usize| Block::load(layers, &format!("{name}.transformer_blocks.{i}"), heads);
        Ok(Some(Self {
            norm: layers.norm(&format!("{name}.norm"), TRANSFORMER_EPS)?,
            // Linear layers, also where a checkpoint calls them convolutions of 1 x 1.
            proj_in: layers.linear(&format!("{name}.proj_in"))?,
            blocks: (0..depth).map(block).collect::<Result<_>>()?,
            proj_out: layers.linear(&format!("{name}.proj_out"))?,
        }))
    }

    /// Keeps the shape of x, [b, c, h, w].
    fn forward(&self, backend: &Backend, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let tokens = ops::to_tokens(backend, &self.norm.groups(backend, x, GROUPS, false)?)?; // [b, h*w, c]
        let mut tokens = self.proj_in.forward(&tokens, plain())?;
        for block in &self.blocks {
            tokens = block.forward(backend, &tokens, context)?;
        }
        let tokens = self.proj_out.forward(&tokens, plain())?;
        Ok(ops::add_to_maps(backend, &tokens, x)?)
    }
}

#[derive(Debug)]
struct Block {
    norms: [Norm; 3],
    attn1: Attention,
    attn2: Attention,
    ff: [Linear; 2],
}

impl Block {
    fn load(layers: &Layers<'_>, name: &str, heads: usize) -> Result<Self> {
        let norm = |i: usize| layers.norm(&format!("{name}.norm{i}"), EPS);
        Ok(Self {
            norms: [norm(1)?, norm(2)?, norm(3)?],
            attn1: Attention::load(layers, &format!("{name}.attn1"), heads)?,
            attn2: Attention::load(layers, &format!("{name}.attn2"), heads)?,
            ff: [layers.geglu(&format!("{name}.ff.net.0.proj"))?, layers.linear(&format!("{name}.ff.net.2"))?],
        })
    }

    /// Keeps the shape of x, [b, n, c].
    fn forward(&self, backend: &Backend, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let [norm1, norm2, norm3] = &self.norms;
        let y = norm1.rows(backend, x)?;
        let x = self.attn1.forward(backend, &y, &y, x)?;
        let x = self.attn2.forward(backend, &norm2.rows(backend, &x)?, context, &x)?;
        let [widen, narrow] = &self.ff;
        Ok(narrow.forward(&widen.forward(&norm3.rows(backend, &x)?, plain())?, plus(&x))?)
    }
}

#[derive(Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl Attention {
    fn load(layers: &Layers<'_>, name: &str, heads: usize) -> Result<Self> {
        let layer = |part: &str| layers.linear(&format!("{name}.{part}"));
        Ok(Self { to_q: layer("to_q")?, to_k: layer("to_k")?, to_v: layer("to_v")?, to_out: layer("to_out.0")?, heads })
    }

    /// Adds what x, [b, n, c], finds in `context`, [b, m, c'], to `residual`.
    fn forward(&self, backend: &Backend, x: &Tensor, context: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (q, k) = (self.to_q.forward(x, plain())?, self.to_k.forward(context, plain())?);
        let v = self.to_v.forward(context, plain())?;
        let scale = ((q.dim(2)? / self.heads) as f64).powf(-0.5);
        let found = ops::attention(backend, &q, &k, &v, self.heads, scale, Mask::None)?;
        Ok(self.to_out.forward(&found, plus(residual))?)
    }
}

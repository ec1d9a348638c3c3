//! The autoencoder of Stable Diffusion (Rombach et al. 2022): pictures to latents and back.

mod inpaint;
mod tiled;

use candle_core::{DType, Tensor};
use weights::{checkpoint::Checkpoint, detect::diffusion as layout};

use crate::{
    error::{ModelError, Result},
    layers::{Layers, check_shape, plain, plus},
    ops::{self, Backend, Conv2d, Linear, Mask, Norm},
    watch::{Progress, Watch},
};

pub use inpaint::{Grey, Inpaint};
pub use tiled::Tiling;

/// Groups of channels that are normalized together.
const GROUPS: usize = 32;
const EPS: f64 = 1e-6;

/// Encoder and decoder. The parts go by the names of the checkpoint.
#[derive(Debug)]
pub struct Vae {
    layout: layout::Vae,
    backend: Backend,
    encoder: Encoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
    decoder: Decoder,
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down: Vec<(Vec<ResBlock>, Option<Conv2d>)>,
    mid: Middle,
    norm_out: Norm,
    conv_out: Conv2d,
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid: Middle,
    /// The smallest pictures first.
    up: Vec<(Vec<ResBlock>, Option<Conv2d>)>,
    norm_out: Norm,
    conv_out: Conv2d,
}

impl Vae {
    /// Loads the network whose tensors `checkpoint` has, without a prefix before their names.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or holds a value that is no number.
    pub fn load(checkpoint: &Checkpoint, backend: &Backend) -> Result<Self> {
        let layout = layout::Vae::infer(&checkpoint.shapes())?;
        let layers = &Layers::new(checkpoint, backend);
        let levels = layout.levels.len();
        let blocks = |name: &str, count: usize| -> Result<Vec<_>> {
            (0..count).map(|i| ResBlock::load(layers, &format!("{name}.block.{i}"))).collect()
        };
        let down = |level: usize| -> Result<_> {
            let name = format!("encoder.down.{level}");
            // A pixel of zeros is added at the right and at the bottom only, by whoever calls it.
            let halve = (level + 1 < levels).then(|| layers.strided(&format!("{name}.downsample.conv"), 2, 0));
            Ok((blocks(&name, layout.num_res_blocks)?, halve.transpose()?))
        };
        let up = |level: usize| -> Result<_> {
            let name = format!("decoder.up.{level}");
            let double = (level > 0).then(|| layers.conv(&format!("{name}.upsample.conv")));
            Ok((blocks(&name, layout.num_res_blocks + 1)?, double.transpose()?))
        };
        Ok(Self {
            encoder: Encoder {
                conv_in: layers.conv("encoder.conv_in")?,
                down: (0..levels).map(down).collect::<Result<_>>()?,
                mid: Middle::load(layers, "encoder.mid")?,
                norm_out: layers.norm("encoder.norm_out", EPS)?,
                conv_out: layers.conv("encoder.conv_out")?,
            },
            quant_conv: layers.conv("quant_conv")?,
            post_quant_conv: layers.conv("post_quant_conv")?,
            decoder: Decoder {
                conv_in: layers.conv("decoder.conv_in")?,
                mid: Middle::load(layers, "decoder.mid")?,
                up: (0..levels).rev().map(up).collect::<Result<_>>()?,
                norm_out: layers.norm("decoder.norm_out", EPS)?,
                conv_out: layers.conv("decoder.conv_out")?,
            },
            backend: backend.clone(),
            layout,
        })
    }

    /// The network's sizes.
    pub fn layout(&self) -> &layout::Vae {
        &self.layout
    }

    /// Cuts pictures, [b, c, h, w], around their middle to sides that are multiples of [`layout::Vae::scale`], as the reference
    /// does before it encodes.
    ///
    /// # Errors
    /// If a side is smaller than that.
    pub fn crop(&self, pictures: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = pictures.dims4()?;
        let scale = self.layout.scale();
        let cut = |side: usize| (side % scale / 2, side / scale * scale);
        let ((top, rows), (left, columns)) = (cut(h), cut(w));
        if rows * columns == 0 {
            let (name, found) = ("pictures", pictures.dims().to_vec());
            return Err(ModelError::Tensor { name, wanted: vec![0, self.layout.in_channels, scale, scale], found });
        }
        Ok(pictures.narrow(2, top, rows)?.narrow(3, left, columns)?.contiguous()?)
    }

    /// Encodes pictures of values from 0 to 1, [b, c, h, w], whose sides are multiples of [`layout::Vae::scale`], to the means and
    /// logarithms of the variances of latents: [b, 2 * embed_dim, h/scale, w/scale], f32, not scaled.
    ///
    /// # Errors
    /// If the pictures have other channels or sides, `watch` says to stop, or the device fails.
    pub fn encode_moments(&self, pictures: &Tensor, watch: &dyn Watch) -> Result<Tensor> {
        self.check_pictures(pictures)?;
        self.moments_of_any(pictures, watch)
    }

    /// Refuses pictures whose channels or sides are not the network's.
    fn check_pictures(&self, pictures: &Tensor) -> Result<()> {
        let (wanted, scale) = ([0, self.layout.in_channels, 0, 0], self.layout.scale());
        check_shape("pictures", pictures, &wanted)?;
        match pictures.dims()[2..].iter().all(|side| side.is_multiple_of(scale)) {
            true => Ok(()),
            false => {
                Err(ModelError::Tensor { name: "pictures", wanted: wanted.to_vec(), found: pictures.dims().to_vec() })
            }
        }
    }

    /// What [`Self::encode_moments`] does, of pictures of any sides: what is left over after a division by two is dropped.
    fn moments_of_any(&self, pictures: &Tensor, watch: &dyn Watch) -> Result<Tensor> {
        let backend = &self.backend;
        let encoder = &self.encoder;
        let mut progress = Progress::begin(watch, (encoder.down.len() + 1) as f64)?;
        let x = backend.take(&((pictures * 2.0)? - 1.0)?)?;
        let mut h = encoder.conv_in.forward(&x, plain())?;
        for (blocks, halve) in &encoder.down {
            for block in blocks {
                h = block.forward(backend, &h)?;
            }
            if let Some(conv) = halve {
                h = conv.forward(&h.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?, plain())?;
            }
            progress.advance(1.0)?;
        }
        let h = encoder.mid.forward(backend, &h)?;
        let h = encoder.conv_out.forward(&encoder.norm_out.groups(backend, &h, GROUPS, true)?, plain())?;
        progress.advance(1.0)?;
        Ok(self.quant_conv.forward(&h, plain())?.to_dtype(DType::F32)?)
    }

    /// Encodes pictures to the means of their latents, [b, embed_dim, h/scale, w/scale]. Nothing is drawn at random.
    ///
    /// # Errors
    /// As [`Self::encode_moments`].
    pub fn encode(&self, pictures: &Tensor, watch: &dyn Watch) -> Result<Tensor> {
        self.check_pictures(pictures)?;
        self.encode_any(pictures, watch)
    }

    /// What [`Self::encode`] does, of pictures of any sides.
    fn encode_any(&self, pictures: &Tensor, watch: &dyn Watch) -> Result<Tensor> {
        Ok(self.moments_of_any(pictures, watch)?.narrow(1, 0, self.layout.embed_dim)?.contiguous()?)
    }

    /// Decodes latents, [b, embed_dim, h, w], not scaled, to pictures, [b, c, h*scale, w*scale], f32, of values around -1 to 1.
    ///
    /// # Errors
    /// If the latents have other channels, `watch` says to stop, or the device fails.
    pub fn decode_raw(&self, latents: &Tensor, watch: &dyn Watch) -> Result<Tensor> {
        let backend = &self.backend;
        check_shape("latents", latents, &[0, self.layout.embed_dim, 0, 0])?;
        let decoder = &self.decoder;
        let mut progress = Progress::begin(watch, (decoder.up.len() + 2) as f64)?;
        let h = self.post_quant_conv.forward(&backend.take(latents)?, plain())?;
        let mut h = decoder.mid.forward(backend, &decoder.conv_in.forward(&h, plain())?)?;
        progress.advance(1.0)?;
        for (blocks, double) in &decoder.up {
            for block in blocks {
                h = block.forward(backend, &h)?;
            }
            if let Some(conv) = double {
                h = conv.forward(&ops::upsample_nearest(backend, &h, 2)?, plain())?;
            }
            progress.advance(1.0)?;
        }
        let y = decoder.conv_out.forward(&decoder.norm_out.groups(backend, &h, GROUPS, true)?, plain())?;
        progress.advance(1.0)?;
        Ok(y.to_dtype(DType::F32)?)
    }

    /// Decodes latents as [`Self::decode_raw`] does, to pictures of values from 0 to 1.
    ///
    /// # Errors
    /// As [`Self::decode_raw`].
    pub fn decode(&self, latents: &Tensor, watch: &dyn Watch) -> Result<Tensor> {
        to_unit(self.decode_raw(latents, watch)?)
    }
}

/// From values around -1 to 1 to values from 0 to 1.
fn to_unit(pictures: Tensor) -> Result<Tensor> {
    Ok(((pictures + 1.0)? / 2.0)?.clamp(0f32, 1f32)?)
}

/// Two convolutions.
#[derive(Debug)]
struct ResBlock {
    norms: [Norm; 2],
    convs: [Conv2d; 2],
    nin_shortcut: Option<Conv2d>,
}

impl ResBlock {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        let norm = |i: usize| layers.norm(&format!("{name}.norm{i}"), EPS);
        let conv = |i: usize| layers.conv(&format!("{name}.conv{i}"));
        let shortcut = format!("{name}.nin_shortcut");
        Ok(Self {
            norms: [norm(1)?, norm(2)?],
            convs: [conv(1)?, conv(2)?],
            nin_shortcut: layers.has(&format!("{shortcut}.weight")).then(|| layers.conv(&shortcut)).transpose()?,
        })
    }

    /// From [b, inputs, h, w] to [b, outputs, h, w].
    fn forward(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        let [norm1, norm2] = &self.norms;
        let mut h = self.convs[0].forward(&norm1.groups(backend, x, GROUPS, true)?, plain())?;
        h = norm2.groups(backend, &h, GROUPS, true)?; // nothing is held that is not needed: maps are large
        match &self.nin_shortcut {
            None => Ok(self.convs[1].forward(&h, plus(x))?),
            Some(shortcut) => Ok(self.convs[1].forward(&h, plus(&shortcut.forward(x, plain())?))?),
        }
    }
}

/// Two residual blocks with attention of all pixels between.
#[derive(Debug)]
struct Middle {
    block_1: ResBlock,
    norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    proj_out: Linear,
    block_2: ResBlock,
}

impl Middle {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        let layer = |part: &str| layers.linear(&format!("{name}.attn_1.{part}"));
        Ok(Self {
            block_1: ResBlock::load(layers, &format!("{name}.block_1"))?,
            norm: layers.norm(&format!("{name}.attn_1.norm"), EPS)?,
            q: layer("q")?,
            k: layer("k")?,
            v: layer("v")?,
            proj_out: layer("proj_out")?,
            block_2: ResBlock::load(layers, &format!("{name}.block_2"))?,
        })
    }

    /// Keeps the shape of x, [b, c, h, w].
    fn forward(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        let x = self.block_1.forward(backend, x)?;
        let c = x.dim(1)?;
        let tokens = ops::to_tokens(backend, &self.norm.groups(backend, &x, GROUPS, false)?)?; // [b, h*w, c]
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|layer| layer.forward(&tokens, plain()));
        let found = ops::attention(backend, &q?, &k?, &v?, 1, (c as f64).powf(-0.5), Mask::None)?;
        let found = self.proj_out.forward(&found, plain())?;
        let x = ops::add_to_maps(backend, &found, &x)?;
        self.block_2.forward(backend, &x)
    }
}

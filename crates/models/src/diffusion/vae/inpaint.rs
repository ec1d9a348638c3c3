//! Encoding pictures of which a part is to be made anew.

use candle_core::{Device, Tensor};

use super::Vae;
use crate::{
    error::{ModelError, Result},
    ops,
    watch::{Share, Watch},
};

/// A picture whose masked part was made grey, as latents.
#[derive(Debug, Clone)]
pub struct Grey {
    /// The latents, [b, embed_dim, h/scale, w/scale], not scaled.
    pub latents: Tensor,
    /// Where to sample: ones and zeros for each pixel, [n, 1, h, w].
    pub noise_mask: Tensor,
}

/// What a network that inpaints is told.
#[derive(Debug, Clone)]
pub struct Inpaint {
    /// The latents of the picture whose masked part was made grey, [b, embed_dim, h/scale, w/scale], not scaled.
    pub concat_latent_image: Tensor,
    /// The mask at the size of the picture, [n, 1, h, w]. It is also the noise mask, if one is wanted.
    pub concat_mask: Tensor,
    /// The latents of the whole picture, [b, embed_dim, h/scale, w/scale], not scaled.
    pub latents: Tensor,
}

impl Vae {
    /// Encodes pictures, [b, c, h, w], values from 0 to 1, after making grey what `mask`, [n, h', w'], n being 1 or b, covers by more
    /// than half (`VAEEncodeForInpaint`).
    ///
    /// The pictures are cut as [`Self::crop`] does, and the mask with them. Where to sample is the mask, rounded and grown: by
    /// `(grow - 1) / 2` pixels to the left and above, and by `grow / 2` to the right and below.
    ///
    /// # Errors
    /// If pictures and mask do not fit the network or each other, `watch` says to stop, or the device fails.
    pub fn encode_for_inpaint(&self, pictures: &Tensor, mask: &Tensor, grow: usize, watch: &dyn Watch) -> Result<Grey> {
        let (pictures, mask) = self.crop_with_mask(pictures, mask)?;
        let rounded = rounded(&mask)?;
        let latents = self.encode(&greyed(&pictures, &rounded)?, watch)?;
        Ok(Grey { latents, noise_mask: grown(&rounded, grow)? })
    }

    /// Encodes pictures, [b, c, h, w], values from 0 to 1, with and without what `mask`, [n, h', w'], n being 1 or b, covers by more than
    /// half (`InpaintModelConditioning`).
    ///
    /// The pictures are cut as [`Self::crop`] does, and the mask with them.
    ///
    /// # Errors
    /// If pictures and mask do not fit the network or each other, `watch` says to stop, or the device fails.
    pub fn encode_for_inpaint_model(&self, pictures: &Tensor, mask: &Tensor, watch: &dyn Watch) -> Result<Inpaint> {
        let (pictures, concat_mask) = self.crop_with_mask(pictures, mask)?;
        let grey = greyed(&pictures, &rounded(&concat_mask)?)?;
        let half = |from| Share { watch, from, part: 0.5 };
        let concat_latent_image = self.encode(&grey, &half(0.0))?;
        Ok(Inpaint { concat_latent_image, concat_mask, latents: self.encode(&pictures, &half(0.5))? })
    }

    /// Brings a mask, [n, h', w'], n being 1 or b, to the size of pictures, [b, c, h, w], and cuts both as [`Self::crop`] does: the
    /// mask becomes [n, 1, h, w].
    ///
    /// # Errors
    /// If pictures and mask do not fit each other, or the device fails.
    pub fn crop_with_mask(&self, pictures: &Tensor, mask: &Tensor) -> Result<(Tensor, Tensor)> {
        let (b, _, h, w) = pictures.dims4()?;
        let n = match *mask.dims() {
            [n, rows, columns] if (n == 1 || n == b) && rows * columns > 0 => n,
            ref found => return Err(ModelError::Tensor { name: "mask", wanted: vec![b, 0, 0], found: found.to_vec() }),
        };
        let mask = ops::resize_bilinear(&mask.unsqueeze(0)?, (h, w))?.reshape((n, 1, h, w))?;
        Ok((self.crop(pictures)?, self.crop(&mask)?))
    }
}

/// Makes a mask ones and zeros. A half becomes 0.
fn rounded(mask: &Tensor) -> Result<Tensor> {
    let numbers = mask.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let rounded: Vec<f32> = numbers.into_iter().map(f32::round_ties_even).collect();
    Ok(Tensor::from_vec(rounded, mask.shape(), &Device::Cpu)?)
}

/// Pictures, [b, c, h, w], with a mean grey where a rounded mask, [n, 1, h, w], is 1.
fn greyed(pictures: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let shown = (1.0 - mask)?.to_device(pictures.device())?;
    Ok(((pictures - 0.5)?.broadcast_mul(&shown)? + 0.5)?)
}

/// Grows a rounded mask, [n, 1, h, w]: a pixel is covered if any of the `grow` x `grow` pixels around it is.
fn grown(mask: &Tensor, grow: usize) -> Result<Tensor> {
    let (n, _, h, w) = mask.dims4()?;
    if grow == 0 {
        return Ok(mask.clone());
    }
    // The window of pixel i: from `before` pixels before it, `grow` pixels.
    let before = grow / 2;
    let window = |i: usize, length: usize| i.saturating_sub(before)..length.min(i + grow - before);
    let x = mask.flatten_all()?.to_vec1::<f32>()?;
    let mut across = vec![0f32; x.len()];
    let mut out = vec![0f32; x.len()];
    for n in 0..n {
        let (x, across, out) = (&x[n * h * w..], &mut across[n * h * w..], &mut out[n * h * w..]);
        for i in 0..h * w {
            across[i] = x[i / w * w..][window(i % w, w)].iter().sum();
        }
        for i in 0..h * w {
            let sum: f32 = window(i / w, h).map(|row| across[row * w + i % w]).sum();
            out[i] = sum.clamp(0.0, 1.0).round_ties_even();
        }
    }
    Ok(Tensor::from_vec(out, (n, 1, h, w), &Device::Cpu)?)
}

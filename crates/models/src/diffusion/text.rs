//! From a prompt to what the networks are conditioned with.
//!
//! [`prompt`] reads weights, [`bpe`] turns words into token ids, [`tokens`] places them in chunks of 77 beside the vectors of
//! [`embedding`], and [`TextEncoder`] makes of them the conditioning of a model. [`size`] is what SDXL is told beside the text.
//!
//! It must equal ComfyUI 0.3.64 on a CPU. What its users know is kept: names of files, `embedding:NAME`, `stop_at_clip_layer`.

pub mod bpe;
mod clip;
pub mod embedding;
pub mod error;
pub mod prompt;
pub mod size;
pub mod tokens;

use candle_core::{Device, Tensor};
use kernels::threads::Share;
pub use weights::detect::diffusion::Clip;
use weights::{
    checkpoint::Checkpoint,
    detect::diffusion::{TextLayout, text_encoders},
};

use crate::{
    layers::Patch,
    ops::Backend,
    watch::{Progress, Unwatched, Watch},
};
use clip::{Output, Transformer, Wanted};
use embedding::Embeddings;
use error::{Result, TextError, Warning};
use tokens::{CHUNK, Tokens, Weighted, empty_chunk, tokenize};

/// Chunks that are encoded together: more would only take more memory.
const BATCH: usize = 8;

/// The models that a set of text encoders belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextModel {
    /// SD 1.x: L, its last layer behind the final norm; the pooled output is not projected.
    Sd1,
    /// SD 2.x: H, its last layer but one behind the final norm.
    Sd2,
    /// SDXL: the last layers but one of L and G side by side; the pooled output is that of G.
    Sdxl,
    /// The refiner of SDXL: G alone, its last layer but one.
    Refiner,
}

impl TextModel {
    fn of(clips: &[Clip]) -> Result<Self> {
        match clips {
            [Clip::L] => Ok(Self::Sd1),
            [Clip::H] => Ok(Self::Sd2),
            [Clip::L, Clip::G] => Ok(Self::Sdxl),
            [Clip::G] => Ok(Self::Refiner),
            found => Err(TextError::Encoders { found: found.to_vec() }),
        }
    }

    /// The hidden state of an encoder of `layers` layers that is wanted.
    fn wanted(self, layers: usize, stop_at_clip_layer: Option<i32>) -> Result<Wanted> {
        if let Some(found) = stop_at_clip_layer.filter(|stop| !(-24..=-1).contains(stop)) {
            return Err(TextError::ClipLayer { found });
        }
        let default = if self == Self::Sd1 { None } else { Some(-2) };
        // Diffusers leave out the last of H's 24 layers, whose output no picture depends on.
        let all = if (self, layers) == (Self::Sd2, 23) { 24 } else { layers };
        let skipped = stop_at_clip_layer.or(default).map(|stop| stop.unsigned_abs() as usize - 1);
        Ok(match skipped.and_then(|skipped| all.checked_sub(skipped)) {
            Some(first) if first > 0 => {
                Wanted { layers: first.min(layers), is_normed: matches!(self, Self::Sd1 | Self::Sd2) }
            }
            _ => Wanted { layers, is_normed: true },
        })
    }
}

/// How a prompt is encoded.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// From which layer hidden states are taken, -1 to -24 counted from the last; `None` is the model's own. What is farther
    /// back than an encoder has layers is its last one, behind the final norm.
    pub stop_at_clip_layer: Option<i32>,
    /// Where `embedding:NAME` is looked up. Without, it is plain words.
    pub embeddings: Option<&'a dyn Embeddings>,
    /// Who follows, and may interrupt between layers.
    pub watch: &'a dyn Watch,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { stop_at_clip_layer: None, embeddings: None, watch: &Unwatched }
    }
}

/// What a prompt means to a model.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// A vector for each token, [1, 77*chunks, c], f32 on the CPU.
    pub cond: Tensor,
    /// A vector for the first chunk as a whole, [1, c], f32 on the CPU.
    pub pooled: Tensor,
    /// What of the prompt was left out.
    pub warnings: Vec<Warning>,
}

/// The text encoders of a model, ready to compute.
///
/// Weights are those of the file rounded to f16, as the reference keeps them; numbers between layers are the backend's.
#[derive(Debug)]
pub struct TextEncoder {
    model: TextModel,
    /// L before G.
    encoders: Vec<Transformer>,
}

impl TextEncoder {
    /// Loads the text encoders of a model from a whole checkpoint, or from files with one each.
    ///
    /// # Errors
    /// If the encoders make up no model, or a tensor is missing, misshapen or not finite.
    pub fn load(files: &[&Checkpoint], backend: &Backend) -> Result<Self> {
        Self::load_patched(files, backend, |_| None)
    }

    /// Loads the text encoders, each with what changes its weights by the names of transformers, without `text_model.`.
    pub(super) fn load_patched<'a>(
        files: &[&Checkpoint],
        backend: &Backend,
        patches: impl Fn(Clip) -> Option<&'a dyn Patch>,
    ) -> Result<Self> {
        let found = find(files)?;
        let model = TextModel::of(&found.iter().map(|(layout, _)| layout.clip).collect::<Vec<_>>())?;
        let load =
            |(layout, file): &(TextLayout, &Checkpoint)| Transformer::load(file, layout, backend, patches(layout.clip));
        Ok(Self { model, encoders: found.iter().map(load).collect::<Result<_>>()? })
    }

    /// The text encoders of files, each with how many layers it has.
    pub(super) fn layers(files: &[&Checkpoint]) -> Result<Vec<(Clip, usize)>> {
        Ok(find(files)?.into_iter().map(|(layout, _)| (layout.clip, layout.layers)).collect())
    }

    /// The model that these encoders belong to.
    pub fn model(&self) -> TextModel {
        self.model
    }

    /// The encoders, in the order of their features in a conditioning.
    pub fn clips(&self) -> Vec<Clip> {
        self.encoders.iter().map(Transformer::clip).collect()
    }

    /// Encodes a prompt of any length.
    ///
    /// # Errors
    /// If a weight in the prompt is not finite, an embedding cannot be read, or `options` makes no sense.
    pub fn encode(&self, prompt: &str, options: &Options<'_>) -> Result<Encoded> {
        let read = |encoder: &Transformer| tokenize(prompt, encoder.clip(), options.embeddings);
        self.encode_tokens(self.encoders.iter().map(read).collect::<Result<_>>()?, options)
    }

    /// Encodes a prompt for each encoder of SDXL. The shorter one is lengthened with empty chunks.
    ///
    /// # Errors
    /// As [`Self::encode`], and if this is not SDXL.
    pub fn encode_each(&self, text_l: &str, text_g: &str, options: &Options<'_>) -> Result<Encoded> {
        if self.model != TextModel::Sdxl {
            return Err(TextError::OnePrompt);
        }
        let mut l = tokenize(text_l, Clip::L, options.embeddings)?;
        let mut g = tokenize(text_g, Clip::G, options.embeddings)?;
        let longest = l.chunks.len().max(g.chunks.len());
        l.chunks.resize_with(longest, || empty_chunk(Clip::L));
        g.chunks.resize_with(longest, || empty_chunk(Clip::G));
        self.encode_tokens(vec![l, g], options)
    }

    fn encode_tokens(&self, prompts: Vec<Tokens>, options: &Options<'_>) -> Result<Encoded> {
        let _share = Share::take();
        let mut work = 0;
        for (encoder, tokens) in self.encoders.iter().zip(&prompts) {
            if let Some(token) = tokens.chunks.iter().flatten().find(|token| !token.weight.is_finite()) {
                return Err(TextError::Weight { weight: token.weight });
            }
            work += encoder.layers() * (tokens.chunks.len() + usize::from(tokens.is_weighted()));
        }
        let mut progress = Progress::begin(options.watch, work as f64)?;
        let (mut conds, mut pooled, mut warnings) = (Vec::new(), None, Vec::new());
        for (encoder, tokens) in self.encoders.iter().zip(prompts) {
            let wanted = self.model.wanted(encoder.layers(), options.stop_at_clip_layer)?;
            warnings.extend(tokens.warnings);
            let (cond, of_all) = encode_chunks(encoder, &tokens.chunks, wanted, &mut warnings, &mut progress)?;
            conds.push(cond);
            pooled = Some(of_all); // of the last one, which is G in SDXL
        }
        let pooled = pooled.expect("a model has an encoder");
        let shortest = conds.iter().map(|cond| cond.dims()[1]).min().expect("a model has an encoder");
        let conds = conds.iter().map(|cond| cond.narrow(1, 0, shortest)).collect::<candle_core::Result<Vec<_>>>()?;
        // Each encoder says the same.
        let mut distinct = Vec::new();
        warnings.into_iter().for_each(|warning| {
            if !distinct.contains(&warning) {
                distinct.push(warning);
            }
        });
        Ok(Encoded { cond: Tensor::cat(&conds, 2)?.contiguous()?, pooled, warnings: distinct })
    }
}

/// The encoders of all files, L before G.
fn find<'a>(files: &[&'a Checkpoint]) -> Result<Vec<(TextLayout, &'a Checkpoint)>> {
    let mut found = Vec::new();
    for file in files {
        found.extend(text_encoders(file)?.into_iter().map(|layout| (layout, *file)));
    }
    found.sort_by_key(|(layout, _)| layout.clip);
    Ok(found)
}

/// Encodes chunks one behind the other, to [1, 77*chunks, c] and the pooled output of the first, [1, c].
///
/// A token of weight w becomes e + w (z - e), where z is what it is without weight, and e what stands there without any prompt.
fn encode_chunks(
    encoder: &Transformer,
    chunks: &[Vec<Weighted>],
    wanted: Wanted,
    warnings: &mut Vec<Warning>,
    progress: &mut Progress<'_>,
) -> Result<(Tensor, Tensor)> {
    let is_weighted = chunks.iter().flatten().any(|token| token.weight != 1.0);
    let empty = is_weighted.then(|| empty_chunk(encoder.clip()));
    let all: Vec<&[Weighted]> = chunks.iter().chain(&empty).map(Vec::as_slice).collect();
    let (mut z, mut pooled) = (Vec::new(), None); // z is [chunks, 77, c]
    for batch in all.chunks(BATCH) {
        let output: Output = encoder.forward(batch, wanted, warnings, progress)?;
        z.extend(output.hidden.flatten_all()?.to_vec1::<f32>()?);
        pooled.get_or_insert(output.pooled);
    }
    let c = encoder.width();
    let (places, empty) = z.split_at_mut(chunks.len() * CHUNK * c);
    for (at, (z, token)) in places.chunks_exact_mut(c).zip(chunks.iter().flatten()).enumerate() {
        if token.weight != 1.0 {
            let weight = token.weight as f32;
            let e = &empty[at % CHUNK * c..][..c];
            z.iter_mut().zip(e).for_each(|(z, e)| *z = (*z - e) * weight + e);
        }
    }
    z.truncate(chunks.len() * CHUNK * c);
    let cond = Tensor::from_vec(z, (1, chunks.len() * CHUNK, c), &Device::Cpu)?;
    Ok((cond, pooled.expect("there is a chunk")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_from_the_last() {
        let check = |model: TextModel, stop: Option<i32>, layers: usize, is_normed: bool| {
            assert_eq!(model.wanted(12, stop).unwrap(), Wanted { layers, is_normed }, "{model:?} {stop:?}");
        };
        check(TextModel::Sd1, None, 12, true);
        check(TextModel::Sd1, Some(-2), 11, true);
        check(TextModel::Sd1, Some(-13), 12, true);
        check(TextModel::Sd2, None, 11, true);
        check(TextModel::Sdxl, None, 11, false);
        check(TextModel::Sdxl, Some(-1), 12, false);
        check(TextModel::Refiner, Some(-12), 1, false);
        check(TextModel::Sdxl, Some(-13), 12, true);
        assert_eq!(TextModel::Sd2.wanted(23, None).unwrap(), TextModel::Sd2.wanted(24, None).unwrap());
        assert!(TextModel::Sd1.wanted(12, Some(0)).is_err() && TextModel::Sd1.wanted(12, Some(-25)).is_err());
    }

    #[test]
    fn only_known_sets_of_encoders_make_up_a_model() {
        let refusal = |clips: &[Clip]| TextModel::of(clips).unwrap_err().to_string();
        assert!(refusal(&[]).starts_with("there is no text encoder: "));
        assert!(refusal(&[Clip::L, Clip::H]).starts_with("the text encoders are CLIP L and CLIP H: "));
    }
}

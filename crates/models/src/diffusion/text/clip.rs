//! The transformer of CLIP (Radford et al. 2021): tokens in, a vector for each of them out.
//!
//! Names are those of Hugging Face's transformers; OpenCLIP's are told apart where tensors are loaded.

use candle_core::{DType, Device, Tensor};
use weights::{
    checkpoint::Checkpoint,
    detect::diffusion::{Clip, Spelling, TextLayout},
};

use super::{
    bpe,
    error::{Result, TextError, Warning},
    tokens::{CHUNK, Token, Weighted},
};
use crate::{
    error::ModelError,
    layers::{Patch, plain, plus, then, values},
    ops::{self, Backend, Function, Linear, Mask, Norm},
    watch::Progress,
};

const EPS: f64 = 1e-5;

/// A text encoder with its weights.
#[derive(Debug)]
pub(super) struct Transformer {
    clip: Clip,
    backend: Backend,
    /// [tokens, c], f16 on the CPU.
    token_embedding: Tensor,
    /// [77, c], f32 on the CPU.
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: Norm,
    /// To the pooled output, for G and H.
    text_projection: Option<Linear>,
}

/// What an encoder makes of a batch of chunks.
pub(super) struct Output {
    /// The hidden state that was asked for, [b, 77, c], f32 on the CPU.
    pub(super) hidden: Tensor,
    /// The pooled output of the first chunk, [1, c], f32 on the CPU.
    pub(super) pooled: Tensor,
}

/// Which hidden state is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Behind how many layers.
    pub(super) layers: usize,
    /// Whether the final norm follows.
    pub(super) is_normed: bool,
}

impl Transformer {
    /// Loads what `layout` says from a file.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        layout: &TextLayout,
        backend: &Backend,
        patches: Option<&dyn Patch>,
    ) -> Result<Self> {
        let source = Source { checkpoint, layout, backend, patches };
        let c = layout.width;
        let (tokens, positions, norm) = match layout.spelling {
            Spelling::Transformers => {
                ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "final_layer_norm")
            }
            Spelling::OpenClip => ("token_embedding.weight", "positional_embedding", "ln_final"),
        };
        Ok(Self {
            clip: layout.clip,
            backend: backend.clone(),
            token_embedding: source.halves(tokens, &[layout.tokens, c])?,
            position_embedding: source.numbers(positions, &[CHUNK, c])?,
            layers: (0..layout.layers).map(|i| Layer::load(&source, i)).collect::<Result<_>>()?,
            final_layer_norm: source.norm(norm)?,
            text_projection: match layout.clip {
                Clip::L => None,
                Clip::G => Some(source.projection()?),
                // The pooled output of H conditions no picture, and diffusers leave its projection out.
                Clip::H => source.has_projection().then(|| source.projection()).transpose()?,
            },
        })
    }

    pub(super) fn clip(&self) -> Clip {
        self.clip
    }

    pub(super) fn width(&self) -> usize {
        self.token_embedding.dims()[1]
    }

    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Encodes chunks, each by itself. What is left out of them is added to `warnings`.
    pub(super) fn forward(
        &self,
        chunks: &[&[Weighted]],
        wanted: Wanted,
        warnings: &mut Vec<Warning>,
        progress: &mut Progress<'_>,
    ) -> Result<Output> {
        let inputs = chunks.iter().map(|chunk| self.embed(chunk, warnings)).collect::<Result<Vec<_>>>()?;
        let (inputs, ends): (Vec<_>, Vec<_>) = inputs.into_iter().unzip();
        let mut x = self.backend.take(&Tensor::stack(&inputs, 0)?)?; // [b, 77, c]
        let mut hidden = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&self.backend, &x)?;
            if i + 1 == wanted.layers {
                hidden = x.clone();
            }
            progress.advance(chunks.len() as f64)?;
        }
        if wanted.is_normed {
            hidden = self.final_layer_norm.rows(&self.backend, &hidden)?;
        }
        let last = x.narrow(0, 0, 1)?.narrow(1, ends[0], 1)?.squeeze(1)?.contiguous()?; // [1, c]
        let mut pooled = self.final_layer_norm.rows(&self.backend, &last)?;
        if let Some(projection) = &self.text_projection {
            pooled = projection.forward(&pooled, plain())?;
        }
        let to_cpu = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F32);
        Ok(Output { hidden: to_cpu(&hidden)?, pooled: to_cpu(&pooled)? })
    }

    /// Looks up the vectors of a chunk, [77, c], and the place of its first end.
    fn embed(&self, chunk: &[Weighted], warnings: &mut Vec<Warning>) -> Result<(Tensor, usize)> {
        let mut rows: Vec<Row<'_>> = Vec::with_capacity(CHUNK);
        for token in chunk {
            match &token.token {
                Token::Id(id) => rows.push(Row::Id(*id)),
                Token::Vector { embedding, row } if embedding.width() == self.width() => {
                    rows.push(Row::Vector(embedding, *row));
                }
                Token::Vector { embedding, .. } => {
                    let warning = Warning::EmbeddingWidth {
                        name: embedding.name.clone(),
                        clip: self.clip,
                        found: embedding.width(),
                        wants: self.width(),
                    };
                    if !warnings.contains(&warning) {
                        warnings.push(warning);
                    }
                }
            }
        }
        // What follows a vector that does not fit moves up, and padding fills the end.
        rows.resize(CHUNK, Row::Id(self.clip.padding()));
        let end = rows.iter().position(|row| matches!(row, Row::Id(bpe::END))).expect("a chunk has an end");
        let ids: Vec<u32> = rows.iter().map(|row| if let Row::Id(id) = row { *id } else { bpe::END }).collect();
        let ids = Tensor::from_vec(ids, CHUNK, &Device::Cpu)?;
        let mut vectors = self.token_embedding.index_select(&ids, 0)?.to_dtype(DType::F32)?;
        for (at, row) in rows.iter().enumerate() {
            if let Row::Vector(embedding, row) = row {
                vectors = vectors.slice_scatter0(&embedding.row(*row)?, at)?;
            }
        }
        Ok(((vectors + &self.position_embedding)?, end))
    }
}

/// The vector of one place in a chunk.
#[derive(Clone)]
enum Row<'a> {
    Id(u32),
    Vector(&'a super::embedding::Embedding, usize),
}

#[derive(Debug)]
struct Layer {
    layer_norm1: Norm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: Norm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    activation: Function,
}

impl Layer {
    fn load(source: &Source<'_>, i: usize) -> Result<Self> {
        let TextLayout { width: c, hidden, heads, clip, .. } = *source.layout;
        let activation = match clip {
            Clip::L => Function::QuickGelu,
            Clip::G | Clip::H => Function::Gelu,
        };
        Ok(match source.layout.spelling {
            Spelling::Transformers => {
                let name = |part: &str| format!("encoder.layers.{i}.{part}");
                let linear = |part: &str, outputs, inputs| source.linear(&name(part), &name(part), outputs, inputs);
                let projection = |part: &str| linear(&format!("self_attn.{part}"), c, c);
                Self {
                    layer_norm1: source.norm(&name("layer_norm1"))?,
                    q_proj: projection("q_proj")?,
                    k_proj: projection("k_proj")?,
                    v_proj: projection("v_proj")?,
                    out_proj: projection("out_proj")?,
                    layer_norm2: source.norm(&name("layer_norm2"))?,
                    fc1: linear("mlp.fc1", hidden, c)?,
                    fc2: linear("mlp.fc2", c, hidden)?,
                    heads,
                    activation,
                }
            }
            Spelling::OpenClip => {
                let name = |part: &str| format!("transformer.resblocks.{i}.{part}");
                let weight = source.numbers(&name("attn.in_proj_weight"), &[3 * c, c])?; // q over k over v
                let bias = source.numbers(&name("attn.in_proj_bias"), &[3 * c])?;
                let projection = |block: usize, plain: &str| -> Result<Linear> {
                    let part = |x: &Tensor| x.narrow(0, block * c, c)?.contiguous();
                    source.layer(&format!("encoder.layers.{i}.self_attn.{plain}"), part(&weight)?, part(&bias)?)
                };
                let linear = |part: &str, plain: &str, outputs, inputs| {
                    source.linear(&name(part), &format!("encoder.layers.{i}.{plain}"), outputs, inputs)
                };
                Self {
                    layer_norm1: source.norm(&name("ln_1"))?,
                    q_proj: projection(0, "q_proj")?,
                    k_proj: projection(1, "k_proj")?,
                    v_proj: projection(2, "v_proj")?,
                    out_proj: linear("attn.out_proj", "self_attn.out_proj", c, c)?,
                    layer_norm2: source.norm(&name("ln_2"))?,
                    fc1: linear("mlp.c_fc", "mlp.fc1", hidden, c)?,
                    fc2: linear("mlp.c_proj", "mlp.fc2", c, hidden)?,
                    heads,
                    activation,
                }
            }
        })
    }

    /// Takes x, [b, 77, c], and gives as much.
    fn forward(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        let normed = self.layer_norm1.rows(backend, x)?;
        let [q, k, v] = [&self.q_proj, &self.k_proj, &self.v_proj].map(|layer| layer.forward(&normed, plain()));
        let (q, k, v) = (q?, k?, v?);
        let scale = ((q.dim(2)? / self.heads) as f64).sqrt().recip();
        let attended = ops::attention(backend, &q, &k, &v, self.heads, scale, Mask::Causal)?;
        let x = self.out_proj.forward(&attended, plus(x))?;

        let normed = self.layer_norm2.rows(backend, &x)?;
        Ok(self.fc2.forward(&self.fc1.forward(&normed, then(self.activation))?, plus(&x))?)
    }
}

/// Where the tensors of an encoder come from.
///
/// The reference keeps them as f16 whatever the file holds and wherever it computes, so that every number is rounded here, and
/// once more where it was changed.
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    layout: &'a TextLayout,
    backend: &'a Backend,
    patches: Option<&'a dyn Patch>,
}

impl Source<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.layout.prefix)
    }

    /// Reads a tensor as f16.
    fn halves(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.halves_of(&self.name(name), shape)
    }

    fn halves_of(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let numbers = values(self.checkpoint, name)?;
        let found = &self.checkpoint.tensors()[name].shape; // it was just read
        if found != shape {
            let (tensor, wants) = (name.to_owned(), format!("{shape:?}"));
            return Err(TextError::Shape { tensor, clip: self.layout.clip, found: found.clone(), wants });
        }
        if numbers.iter().any(|number| number.abs() >= 65520.0) {
            return Err(ModelError::NotFinite { tensor: name.to_owned() }.into()); // as f16
        }
        Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?.to_dtype(DType::F16)?)
    }

    /// Reads a tensor as f32 that were rounded to f16.
    fn numbers(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.halves(name, shape)?.to_dtype(DType::F32)?)
    }

    /// Reads the layer `name`, which transformers call `plain`.
    fn linear(&self, name: &str, plain: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let weight = self.numbers(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = self.numbers(&format!("{name}.bias"), &[outputs])?;
        self.layer(plain, weight, bias)
    }

    /// Makes a layer of what was read for it.
    fn layer(&self, plain: &str, weight: Tensor, bias: Tensor) -> Result<Linear> {
        let weight = self.patched(&format!("{plain}.weight"), weight)?;
        let bias = self.patched(&format!("{plain}.bias"), bias)?;
        Ok(Linear::new(self.backend, &weight, Some(&bias))?)
    }

    /// Changes a tensor that transformers call `plain`.
    fn patched(&self, plain: &str, x: Tensor) -> Result<Tensor> {
        let Some(patches) = self.patches else { return Ok(x) };
        Ok(patches.patched(plain, x)?.to_dtype(DType::F16)?.to_dtype(DType::F32)?)
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        let c = [self.layout.width];
        let [weight, bias] = ["weight", "bias"].map(|part| self.numbers(&format!("{name}.{part}"), &c));
        Ok(Norm::new(self.backend.take(&weight?)?, self.backend.take(&bias?)?, EPS)?)
    }

    /// The names of the projection to the pooled output: as a layer, and as a bare matrix.
    fn projection_names(&self) -> [String; 2] {
        // Transformers have it beside `text_model`.
        let outside = self.layout.prefix.strip_suffix("text_model.").unwrap_or(self.layout.prefix);
        ["text_projection.weight", "text_projection"].map(|name| format!("{outside}{name}"))
    }

    fn has_projection(&self) -> bool {
        self.projection_names().iter().any(|name| self.checkpoint.tensors().contains_key(name))
    }

    /// Reads the projection to the pooled output. A bare matrix is that of a layer, transposed.
    fn projection(&self) -> Result<Linear> {
        let c = [self.layout.width; 2];
        let [layer, bare] = self.projection_names();
        let weight = if self.checkpoint.tensors().contains_key(&layer) {
            self.halves_of(&layer, &c)?
        } else {
            self.halves_of(&bare, &c)?.t()?.contiguous()?
        };
        let weight = self.patched("text_projection.weight", weight.to_dtype(DType::F32)?)?;
        Ok(Linear::new(self.backend, &weight, None)?)
    }
}

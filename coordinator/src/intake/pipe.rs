//! Pipes: names of models become digests, and what does not go together is refused.

use domain::{
    check::Wrong,
    job::Model,
    pipe::{BasicPipe, Checkpoint, Conditioning, ConditioningMask, ControlNet, Family, Lora, Weights},
};
use proto::convert::pipe::{ConditioningRequest, ControlNetRequest, PipeRequest};
use weights::{contents::Kind, detect::ModelFacts};

use super::Intake;
use crate::{
    catalog::{DiffusionFacts, Facts, ModelRecord},
    refusal::Refusal,
};

/// What a job takes from a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// All of it.
    All,
    /// All but its VAE: whoever uses it gets latents from elsewhere.
    NoVae,
}

/// A pipe, resolved.
#[derive(Debug)]
pub(super) struct Pipe {
    /// It.
    pub basic_pipe: BasicPipe,
    /// What the tensors of all its files take, in bytes.
    pub weights_bytes: u64,
    /// Its VAE, or the checkpoint that holds it, if it has one.
    pub vae: Option<Weights>,
}

/// A super-resolution network, resolved.
#[derive(Debug)]
pub(super) struct Network {
    /// It.
    pub model: Model,
    /// What is known of it.
    pub facts: ModelFacts,
    /// The size of its file.
    pub size_bytes: u64,
}

fn weights(record: &ModelRecord) -> Weights {
    Weights { digest: record.digest, name: record.name.clone() }
}

impl Intake {
    /// Finds the model that `field` names.
    async fn record(&self, field: &str, name: &str) -> Result<ModelRecord, Refusal> {
        self.catalog
            .find(name)
            .await?
            .ok_or_else(|| Refusal::NotFound { field: field.to_owned(), what: format!("a model called `{name}`") })
    }

    /// Finds a super-resolution network that takes and gives RGB pictures.
    pub(super) async fn network(&self, field: &str, name: &str) -> Result<Network, Refusal> {
        let ModelRecord { name, digest, size_bytes, facts, .. } = self.record(field, name).await?;
        let Facts::Upscale(facts) = facts else {
            let why = format!("`{name}` is a {}, and a super-resolution network is wanted", shown(&facts));
            return Err(Refusal::field(field, why));
        };
        if (facts.input_channels, facts.output_channels) != (3, 3) {
            let why = format!(
                "`{name}` takes {} channels and gives {}; a model for RGB pictures is wanted, 3 and 3",
                facts.input_channels, facts.output_channels
            );
            return Err(Refusal::field(field, why));
        }
        let model = Model { digest, name, architecture: facts.architecture.clone(), scale: facts.scale };
        Ok(Network { model, facts, size_bytes })
    }

    /// Finds a part of diffusion models that is one of `kinds`.
    async fn part(&self, field: &str, name: &str, kinds: &[Kind]) -> Result<(Weights, DiffusionFacts), Refusal> {
        let record = self.record(field, name).await?;
        match &record.facts {
            Facts::Diffusion(facts) if kinds.contains(&facts.kind) => Ok((weights(&record), facts.clone())),
            facts => {
                let wanted: Vec<_> = kinds.iter().map(ToString::to_string).collect();
                let why = format!("`{}` is a {}, and a {} is wanted", record.name, shown(facts), wanted.join(" or a "));
                Err(Refusal::field(field, why))
            }
        }
    }

    /// Finds a VAE, or a checkpoint that holds one.
    pub(super) async fn vae(&self, field: &str, name: &str) -> Result<(Weights, u64), Refusal> {
        let (weights, facts) = self.part(field, name, &[Kind::Vae, Kind::Checkpoint]).await?;
        if !facts.has_vae {
            return Err(Refusal::field(field, format!("checkpoint `{}` holds no VAE: name another", weights.name)));
        }
        Ok((weights, facts.tensor_bytes))
    }

    /// Resolves the pipe at `at`.
    pub(super) async fn pipe(&self, at: &str, request: PipeRequest, takes: Takes) -> Result<Pipe, Refusal> {
        let path = format!("{at}.checkpoint");
        let (file, facts) = self.part(&path, &request.checkpoint, &[Kind::Checkpoint]).await?;
        let mut weights_bytes = facts.tensor_bytes;
        let checkpoint = checkpoint(&path, file, &facts)?;
        let family = checkpoint.family;
        let vae = match &request.vae {
            Some(name) => {
                let (vae, bytes) = self.vae(&format!("{at}.vae"), name).await?;
                weights_bytes += bytes;
                Some(vae)
            }
            None if !facts.has_vae && takes == Takes::All => {
                let why = format!("checkpoint `{}` holds no VAE: name one with `vae`", checkpoint.weights.name);
                return Err(Refusal::field(path, why));
            }
            None => None,
        };
        let mut loras = Vec::with_capacity(request.loras.len());
        for (i, lora) in request.loras.into_iter().enumerate() {
            let path = format!("{at}.loras[{i}].lora");
            let (weights, facts) = self.part(&path, &lora.lora, &[Kind::Lora]).await?;
            check_family(&path, &weights, facts.family, family)?;
            weights_bytes += facts.tensor_bytes;
            let (strength_model, strength_clip) = (lora.strength_model, lora.strength_clip);
            loras.push(Lora { weights, strength_model, strength_clip });
        }
        let mut embeddings = Vec::with_capacity(request.embeddings.len());
        for (i, name) in request.embeddings.iter().enumerate() {
            let path = format!("{at}.embeddings[{i}]");
            let (weights, facts) = self.part(&path, name, &[Kind::Embedding]).await?;
            check_family(&path, &weights, facts.family, family)?;
            embeddings.push(weights);
        }
        let mut control_nets = Vec::with_capacity(request.control_nets.len());
        for (i, net) in request.control_nets.into_iter().enumerate() {
            let at = format!("{at}.control_nets[{i}]");
            let (mut resolved, bytes) = self.control_net(&at, &net, family).await?;
            weights_bytes += bytes;
            if let Some(image) = net.image {
                let pixels = self.colours(&format!("{at}.image"), image).await?;
                resolved.image = Some(self.keep_pixels(&pixels).await?);
            }
            control_nets.push(resolved);
        }
        let basic_pipe = BasicPipe {
            vae: vae.clone(),
            loras,
            embeddings,
            stop_at_clip_layer: request.stop_at_clip_layer,
            positive: self.prompts(&format!("{at}.positive"), request.positive).await?,
            negative: self.prompts(&format!("{at}.negative"), request.negative).await?,
            control_nets,
            checkpoint,
        };
        basic_pipe.check(at)?;
        let vae = vae.or_else(|| facts.has_vae.then(|| basic_pipe.checkpoint.weights.clone()));
        Ok(Pipe { basic_pipe, weights_bytes, vae })
    }

    /// Resolves the ControlNet at `at`, but for its picture; gives it with what its tensors take in bytes.
    pub(super) async fn control_net(
        &self,
        at: &str,
        net: &ControlNetRequest,
        family: Family,
    ) -> Result<(ControlNet, u64), Refusal> {
        let (weights, facts) = self.part(&format!("{at}.control_net"), &net.control_net, &[Kind::ControlNet]).await?;
        let resolved = ControlNet {
            weights,
            // One that does not tell has the sizes of whatever it steers.
            family: facts.family.unwrap_or(family),
            strength: net.strength,
            start_percent: net.start_percent,
            end_percent: net.end_percent,
            advanced: net.advanced,
            image: None,
        };
        resolved.check(at, family)?;
        Ok((resolved, facts.tensor_bytes))
    }

    async fn prompts(&self, at: &str, prompts: Vec<ConditioningRequest>) -> Result<Vec<Conditioning>, Refusal> {
        let mut resolved = Vec::with_capacity(prompts.len());
        for (i, ConditioningRequest { text, strength, mask, area }) in prompts.into_iter().enumerate() {
            let mask = match mask {
                None => None,
                Some(request) => {
                    let mask = self.mask(&format!("{at}[{i}].mask.mask"), request.mask).await?;
                    Some(ConditioningMask {
                        mask: self.keep_mask(&mask).await?,
                        strength: request.strength,
                        set_area_to_bounds: request.set_area_to_bounds,
                    })
                }
            };
            resolved.push(Conditioning { text, strength, mask, area });
        }
        Ok(resolved)
    }
}

/// What a file is, for messages.
fn shown(facts: &Facts) -> String {
    match facts {
        Facts::Diffusion(facts) => facts.kind.to_string(),
        Facts::Upscale(facts) => format!("super-resolution network ({})", facts.architecture),
    }
}

/// The checkpoint that `path` names, if pictures can be redrawn with it.
fn checkpoint(path: &str, weights: Weights, facts: &DiffusionFacts) -> Result<Checkpoint, Refusal> {
    let name = &weights.name;
    let (Some(family), Some(in_channels)) = (facts.family, facts.in_channels) else {
        return Err(Refusal::field(path, format!("checkpoint `{name}` does not tell its family: add it anew")));
    };
    if !matches!(in_channels, 4 | 9) {
        let why = format!(
            "the UNet of `{name}` takes {in_channels} channels, and 4 are wanted, or 9 of an inpainting checkpoint"
        );
        return Err(Refusal::field(path, why));
    }
    if !facts.has_text_encoders {
        return Err(Refusal::field(path, format!("checkpoint `{name}` holds no text encoders")));
    }
    Ok(Checkpoint { weights, family, in_channels })
}

/// Refuses a part that says that it is of another family.
fn check_family(path: &str, part: &Weights, got: Option<Family>, want: Family) -> Result<(), Refusal> {
    match got {
        Some(got) if got != want => Err(Wrong::Family { name: part.name.clone(), got, want }.at(path).into()),
        _ => Ok(()),
    }
}

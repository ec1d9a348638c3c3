//! Whose weights the modules of a LoRA are: every name that kohya, diffusers, PEFT and LyCORIS have for them.

use std::collections::{BTreeMap, HashMap};

use crate::{detect::diffusion::Unet, diffusers::UnetNames};

/// A network of a model that has weights to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The UNet.
    Unet,
    /// CLIP L.
    ClipL,
    /// CLIP G.
    ClipG,
    /// CLIP H.
    ClipH,
}

/// A weight of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Whose it is.
    pub part: Part,
    /// Its name there: LDM's in a UNet, that of transformers without `text_model.` in a text encoder.
    pub tensor: String,
}

/// The weights of a model by the names that a LoRA may have for their modules.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    by_module: HashMap<String, Target>,
    /// The shapes of the weights that are known: all of the UNet's.
    shapes: BTreeMap<Target, Vec<usize>>,
}

/// The layers of a text encoder that LoRAs change, by the names of transformers.
const TEXT_LAYERS: [&str; 6] =
    ["mlp.fc1", "mlp.fc2", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj"];

impl Targets {
    /// The weights of a UNet and of text encoders with so many layers each.
    pub fn of(unet: &Unet, texts: &[(Part, usize)]) -> Self {
        let mut to = Self::default();
        to.add_unet(unet);
        let has_l = texts.iter().any(|(part, _)| *part == Part::ClipL);
        for (part, layers) in texts {
            to.add_text(*part, *layers, has_l);
        }
        to
    }

    /// Finds the weight of a module.
    pub fn find(&self, module: &str) -> Option<&Target> {
        self.by_module.get(module)
    }

    /// The shape of a weight, if it is known.
    pub fn shape(&self, target: &Target) -> Option<&[usize]> {
        self.shapes.get(target).map(Vec::as_slice)
    }

    fn add(&mut self, module: String, target: &Target) {
        self.by_module.insert(module, target.clone());
    }

    fn add_unet(&mut self, unet: &Unet) {
        let names = UnetNames::of(unet);
        for (tensor, shape) in unet.tensors() {
            let target = Target { part: Part::Unet, tensor };
            let Some(ldm) = target.tensor.strip_suffix(".weight") else {
                // A bias that is changed by itself.
                self.add(format!("diffusion_model.{}", target.tensor), &target);
                continue;
            };
            self.add(format!("lora_unet_{}", ldm.replace('.', "_")), &target);
            self.add(format!("diffusion_model.{ldm}"), &target);
            if let Some(name) = names.to_diffusers(ldm) {
                for prefix in ["lora_unet_", "lycoris_"] {
                    self.add(format!("{prefix}{}", name.replace('.', "_")), &target);
                }
                // Older versions keep layers of attention in a processor, and have no list of outputs.
                let processor = name.replace(".to_", ".processor.to_");
                let processor =
                    processor.strip_suffix(".to_out.0").map(|name| format!("{name}.to_out")).unwrap_or(processor);
                for prefix in ["", "unet."] {
                    self.add(format!("{prefix}{name}"), &target);
                    self.add(format!("{prefix}{processor}"), &target);
                }
            }
            self.shapes.insert(target, shape);
        }
    }

    fn add_text(&mut self, part: Part, layers: usize, has_l: bool) {
        let (kohya, diffusers, generic): (&[&str], &str, &str) = match part {
            Part::Unet => return,
            Part::ClipL => (&["lora_te_", "lora_te1_"], "text_encoder.", "clip_l"),
            Part::ClipH => (&["lora_te_", "lora_te1_"], "text_encoder.", "clip_h"),
            Part::ClipG if has_l => (&["lora_te2_"], "text_encoder_2.", "clip_g"),
            Part::ClipG => (&["lora_te_", "lora_prior_te_"], "text_encoder.", "clip_g"),
        };
        let layers = (0..layers).flat_map(|i| TEXT_LAYERS.map(|layer| format!("encoder.layers.{i}.{layer}")));
        for layer in layers {
            let target = Target { part, tensor: format!("{layer}.weight") };
            for prefix in kohya {
                self.add(format!("{prefix}text_model_{}", layer.replace('.', "_")), &target);
            }
            self.add(format!("{diffusers}text_model.{layer}"), &target);
            self.add(format!("text_encoders.{generic}.transformer.text_model.{layer}"), &target);
        }
        let projection = Target { part, tensor: "text_projection.weight".to_owned() };
        for prefix in kohya.iter().chain(if part == Part::ClipG { &["lora_te2_", "lora_prior_te_"][..] } else { &[] }) {
            self.add(format!("{prefix}text_projection"), &projection);
        }
    }
}

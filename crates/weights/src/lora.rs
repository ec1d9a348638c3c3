//! What a LoRA file holds: small tensors, of which the changes of a model's weights are made.
//!
//! [`Lora::read`] sorts the tensors of a file by the module that they change and the way in which they do. A module is called
//! as whoever trained it called it; [`targets`] knows whose weights are meant. The arithmetic is the business of `models`.

pub mod targets;

use std::{collections::BTreeMap, fmt};

use crate::{
    checkpoint::{Checkpoint, TensorInfo},
    detect::diffusion::Family,
};

/// What a tensor of a module is to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // the names are those of the papers' code
pub enum Role {
    Up,
    Down,
    Mid,
    Alpha,
    DoraScale,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    GloraA1,
    GloraA2,
    GloraB1,
    GloraB2,
    OftBlocks,
    Rescale,
    NormWeight,
    NormBias,
    Diff,
    DiffBias,
    SetWeight,
}

/// What stands behind the name of a module, and what the tensor is. Longer endings come before those that they end in.
const ENDINGS: [(&str, Role); 39] = [
    (".lora_up.weight", Role::Up), // kohya
    (".lora_down.weight", Role::Down),
    (".lora_mid.weight", Role::Mid),
    (".lora_B.default.weight", Role::Up), // PEFT
    (".lora_A.default.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B", Role::Up),
    (".lora_A", Role::Down),
    ("_lora.up.weight", Role::Up), // diffusers
    ("_lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".alpha", Role::Alpha),
    (".dora_scale", Role::DoraScale),
    (".hada_w1_a", Role::HadaW1A),
    (".hada_w1_b", Role::HadaW1B),
    (".hada_w2_a", Role::HadaW2A),
    (".hada_w2_b", Role::HadaW2B),
    (".hada_t1", Role::HadaT1),
    (".hada_t2", Role::HadaT2),
    (".lokr_w1", Role::LokrW1),
    (".lokr_w1_a", Role::LokrW1A),
    (".lokr_w1_b", Role::LokrW1B),
    (".lokr_w2", Role::LokrW2),
    (".lokr_w2_a", Role::LokrW2A),
    (".lokr_w2_b", Role::LokrW2B),
    (".lokr_t2", Role::LokrT2),
    (".a1.weight", Role::GloraA1),
    (".a2.weight", Role::GloraA2),
    (".b1.weight", Role::GloraB1),
    (".b2.weight", Role::GloraB2),
    (".oft_blocks", Role::OftBlocks),
    (".rescale", Role::Rescale),
    (".w_norm", Role::NormWeight),
    (".b_norm", Role::NormBias),
    (".set_weight", Role::SetWeight),
];

/// Endings of tensors that are the change itself.
const DIFFERENCES: [(&str, Role); 2] = [(".diff_b", Role::DiffBias), (".diff", Role::Diff)];

/// How a module's weight is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// A product of two small matrices (Hu et al. 2021), or of convolutions.
    Lora,
    /// A product, number by number, of two such products (Hyeon-Woo et al. 2021).
    LoHa,
    /// A Kronecker product (Edalati et al. 2022).
    LoKr,
    /// The weight times such a product, and another one (Chavan et al. 2023).
    GLora,
    /// A turn of the outputs in blocks (Qiu et al. 2023).
    Oft,
    /// Turns of the outputs in blocks that cross like a butterfly's wings (Liu et al. 2023).
    Boft,
    /// The change as it is.
    Difference,
    /// The new weight as it is.
    Replacement,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lora => "LoRA",
            Self::LoHa => "LoHa",
            Self::LoKr => "LoKr",
            Self::GLora => "GLoRA",
            Self::Oft => "OFT",
            Self::Boft => "BOFT",
            Self::Difference => "difference",
            Self::Replacement => "replacement",
        })
    }
}

/// The tensors that change one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The tensors, by their full names in the file.
    pub tensors: BTreeMap<Role, String>,
    shapes: BTreeMap<Role, Vec<usize>>,
}

impl Module {
    fn new() -> Self {
        Self { tensors: BTreeMap::new(), shapes: BTreeMap::new() }
    }

    /// The shape of a tensor, if the module has it.
    pub fn shape(&self, role: Role) -> Option<&[usize]> {
        self.shapes.get(&role).map(Vec::as_slice)
    }

    fn has(&self, roles: &[Role]) -> bool {
        roles.iter().all(|role| self.tensors.contains_key(role))
    }

    /// How the module's weight is changed: of several ways that are there the last one that the reference looks for. None if the
    /// tensors of every way are incomplete, or only the bias is changed.
    pub fn method(&self) -> Option<Method> {
        let blocks = self.shape(Role::OftBlocks).map(<[usize]>::len);
        let any = |roles: [&[Role]; 2]| roles.iter().any(|roles| self.has(roles));
        if self.has(&[Role::SetWeight]) {
            Some(Method::Replacement)
        } else if any([&[Role::Diff], &[Role::NormWeight]]) {
            Some(Method::Difference)
        } else if self.has(&[Role::Up, Role::Down]) {
            Some(Method::Lora)
        } else if self.has(&[Role::HadaW1A, Role::HadaW1B, Role::HadaW2A, Role::HadaW2B]) {
            Some(Method::LoHa)
        } else if any([&[Role::LokrW1], &[Role::LokrW1A, Role::LokrW1B]])
            && any([&[Role::LokrW2], &[Role::LokrW2A, Role::LokrW2B]])
        {
            Some(Method::LoKr)
        } else if self.has(&[Role::GloraA1, Role::GloraA2, Role::GloraB1, Role::GloraB2]) {
            Some(Method::GLora)
        } else {
            match blocks {
                Some(3) => Some(Method::Oft),
                Some(4) => Some(Method::Boft),
                _ => None,
            }
        }
    }

    /// The tensor that changes the bias, if one does.
    pub fn bias(&self) -> Option<&str> {
        [Role::DiffBias, Role::NormBias].iter().find_map(|role| self.tensors.get(role)).map(String::as_str)
    }

    /// How many numbers each output is squeezed through, if the module has such a rank.
    pub fn rank(&self) -> Option<usize> {
        let side = |role: Role, side: usize| self.shape(role)?.get(side).copied();
        match self.method()? {
            Method::Lora => side(Role::Down, 0),
            Method::LoHa => side(Role::HadaW1B, 0),
            Method::LoKr => side(Role::LokrW2B, 0).or(side(Role::LokrW1B, 0)),
            Method::GLora => {
                [Role::GloraA1, Role::GloraA2].iter().filter_map(|role| self.shape(*role)?.iter().min()).min().copied()
            }
            Method::Oft | Method::Boft | Method::Difference | Method::Replacement => None,
        }
    }

    /// Says whether a weight of `shape` can be changed, as far as the shapes of the module's tensors tell.
    pub fn fits(&self, shape: &[usize]) -> bool {
        let Some([outputs, inputs]) = self.sides() else { return true };
        let (first, rest) = shape.split_first().map_or((1, &[][..]), |(first, rest)| (*first, rest));
        let has_inputs = |inputs: usize| rest.first() == Some(&inputs) || rest.iter().product::<usize>() == inputs;
        (outputs == 0 || outputs == first) && (inputs == 0 || has_inputs(inputs))
    }

    /// How many outputs and inputs, channels or with those of each place of a kernel, a weight must have to be changed; 0 stands
    /// for any number.
    pub fn sides(&self) -> Option<[usize; 2]> {
        let side = |role: Role, side: usize| self.shape(role).and_then(|shape| shape.get(side).copied()).unwrap_or(0);
        let has = |role: Role| self.tensors.contains_key(&role);
        Some(match self.method()? {
            Method::Lora => [side(Role::Up, 0), side(Role::Down, 1)],
            Method::LoHa if has(Role::HadaT1) => [side(Role::HadaW1A, 1), side(Role::HadaW1B, 1)],
            Method::LoHa => [side(Role::HadaW1A, 0), side(Role::HadaW1B, 1)],
            Method::LoKr => {
                let w1 = match has(Role::LokrW1) {
                    true => [side(Role::LokrW1, 0), side(Role::LokrW1, 1)],
                    false => [side(Role::LokrW1A, 0), side(Role::LokrW1B, 1)],
                };
                let w2 = if has(Role::LokrW2) {
                    [side(Role::LokrW2, 0), side(Role::LokrW2, 1)]
                } else if has(Role::LokrT2) {
                    [side(Role::LokrW2A, 1), side(Role::LokrW2B, 1)]
                } else {
                    [side(Role::LokrW2A, 0), side(Role::LokrW2B, 1)]
                };
                [w1[0].saturating_mul(w2[0]), w1[1].saturating_mul(w2[1])]
            }
            Method::Oft => [side(Role::OftBlocks, 0).saturating_mul(side(Role::OftBlocks, 1)), 0],
            Method::Boft => [side(Role::OftBlocks, 1).saturating_mul(side(Role::OftBlocks, 2)), 0],
            Method::Difference => {
                let role = if has(Role::Diff) { Role::Diff } else { Role::NormWeight };
                [side(role, 0), side(role, 1)]
            }
            Method::Replacement => [side(Role::SetWeight, 0), side(Role::SetWeight, 1)],
            Method::GLora => [0, 0],
        })
    }
}

/// The modules that a file changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lora {
    /// By the names that the file has for them.
    pub modules: BTreeMap<String, Module>,
    /// Tensors that belong to no module.
    pub others: Vec<String>,
}

impl Lora {
    /// Sorts the tensors of a file. Values are not read.
    pub fn read(checkpoint: &Checkpoint) -> Self {
        let mut modules: BTreeMap<String, Module> = BTreeMap::new();
        let mut others = Vec::new();
        for (name, TensorInfo { shape, .. }) in checkpoint.tensors() {
            let endings = ENDINGS.iter().chain(&DIFFERENCES);
            match endings.filter_map(|(ending, role)| Some((name.strip_suffix(ending)?, *role))).next() {
                Some((module, role)) => {
                    let module = modules.entry(module.to_owned()).or_insert_with(Module::new);
                    module.tensors.insert(role, name.clone());
                    module.shapes.insert(role, shape.clone());
                }
                None => others.push(name.clone()),
            }
        }
        // What changes nothing is no module: an `alpha` by itself.
        modules.retain(|_, module| {
            let is_module = module.method().is_some() || module.bias().is_some();
            if !is_module {
                others.extend(module.tensors.values().cloned());
            }
            is_module
        });
        Self { modules, others }
    }

    /// Tells the family of the model that the file was trained on, where its header says it, or its modules and their sizes do.
    pub fn family(&self, metadata: &BTreeMap<String, String>) -> Option<Family> {
        let says = |key: &str| metadata.get(key).map(|value| value.to_ascii_lowercase()).unwrap_or_default();
        let (base, architecture) = (says("ss_base_model_version"), says("modelspec.architecture"));
        let named = [
            (base.starts_with("sdxl") || architecture.starts_with("stable-diffusion-xl"), Family::Sdxl),
            (base.starts_with("sd_v1") || architecture.starts_with("stable-diffusion-v1"), Family::Sd1),
            (base.starts_with("sd_v2") || architecture.starts_with("stable-diffusion-v2"), Family::Sd2),
        ];
        let by_name = named.into_iter().find(|(is, _)| *is).map(|(_, family)| family);
        by_name.or_else(|| {
            let is_key = |name: &&String| {
                name.ends_with("attn2_to_k") || name.ends_with("attn2.to_k") || name.ends_with("attn2.processor.to_k")
            };
            let key = self.modules.iter().find(|(name, _)| is_key(name)).and_then(|(_, module)| module.sides());
            match key {
                Some([_, 768]) => Some(Family::Sd1),
                Some([_, 1024]) => Some(Family::Sd2),
                Some([_, 2048]) => Some(Family::Sdxl),
                Some([_, 1280]) => Some(Family::SdxlRefiner),
                _ => {
                    let is_second =
                        |name: &String| name.starts_with("lora_te2_") || name.starts_with("text_encoder_2.");
                    self.modules.keys().any(is_second).then_some(Family::Sdxl)
                }
            }
        })
    }

    /// How many modules each method changes.
    pub fn methods(&self) -> BTreeMap<Method, usize> {
        let mut counts = BTreeMap::new();
        self.modules.values().filter_map(Module::method).for_each(|method| *counts.entry(method).or_default() += 1);
        counts
    }

    /// The ranks of the modules, lowest first.
    pub fn ranks(&self) -> Vec<usize> {
        let mut ranks: Vec<usize> = self.modules.values().filter_map(Module::rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    /// Says whether the file changes weights of the network, and of the text encoders.
    pub fn parts(&self) -> (bool, bool) {
        let is_text = |name: &String| {
            name.starts_with("lora_te") || name.starts_with("lora_prior_te") || name.starts_with("text_encoder")
        };
        (self.modules.keys().any(|name| !is_text(name)), self.modules.keys().any(is_text))
    }
}

//! What files hold, in the words of `tessera models inspect`.

use std::path::Path;

use weights::{
    checkpoint::Checkpoint,
    contents::{Contents, Fact},
    synthetic::{self, Fill},
};

use crate::model::file;

/// The kind of a file and what is known of it, in one line.
fn told(checkpoint: &Checkpoint) -> String {
    let Some(Contents { kind, facts, .. }) = Contents::of(checkpoint).unwrap() else { return "nothing".to_owned() };
    let fact = |(name, fact): (&str, Fact)| match fact {
        Fact::Text(text) => format!(" {name}={text}"),
        Fact::Number(number) => format!(" {name}={number}"),
        Fact::List(words) => format!(" {name}=[{}]", words.join(", ")),
    };
    facts.into_iter().map(fact).fold(kind.id().to_owned(), |line, fact| line + &fact)
}

fn of(tensors: &[(&str, &[usize])]) -> String {
    let entries: Vec<_> =
        tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec(), Fill::Synthetic)).collect();
    told(&Checkpoint::from_bytes(synthetic::safetensors(&entries)).unwrap())
}

#[test]
fn checkpoints_and_their_parts_are_told_apart() {
    let sdxl = file("sdxl_zsnr").checkpoint;
    assert_eq!(
        told(&sdxl),
        "checkpoint family=sdxl purpose=generate prediction=v, zero terminal SNR latent_scale=0.13025 in_channels=4 \
         model_channels=32 context_dim=160 adm_in_channels=1632 text_encoders=[CLIP L, 3 layers, CLIP G, 3 layers] \
         vae_channels=32 vae_latent_channels=4 vae_scale=8"
    );
    let inpaint = file("sd1_inpaint").checkpoint;
    assert!(told(&inpaint).starts_with("checkpoint family=sd1 purpose=inpaint prediction=epsilon"));
    let unet = told(&inpaint.part("model.diffusion_model."));
    assert!(unet.starts_with("unet family=sd1 purpose=inpaint") && unet.ends_with("text_encoders=[]"), "{unet}");
    let vae = "vae vae_channels=32 vae_latent_channels=4 vae_scale=8";
    assert_eq!(told(&inpaint.part("first_stage_model.")), vae);
    assert_eq!(told(&inpaint.part("cond_stage_model.")), "text_encoder encoders=[CLIP L, 3 layers]");
    assert!(told(&file("control_sd1").checkpoint).starts_with("control_net family=sd1 form=LDM"));
    let diffusers = told(&file("control_sd1_diffusers").checkpoint);
    assert!(diffusers.starts_with("control_net family=sd1 form=diffusers"), "{diffusers}");
    assert!(diffusers.ends_with("hint_channels=3"), "{diffusers}");
    let low_rank =
        of(&[("lora_controlnet", &[]), ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.down", &[128, 2048])]);
    assert_eq!(low_rank, "control_net family=sdxl form=control-LoRA");
}

#[test]
fn loras_tell_their_methods_ranks_and_parts() {
    let path = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/diffusion").join(name);
    let kohya = told(&Checkpoint::open(&path("lora_sdxl_kohya.safetensors")).unwrap());
    assert!(kohya.starts_with("lora family=sdxl methods=[LoRA of "), "{kohya}");
    assert!(kohya.contains("parts=[network, text encoders]") && kohya.ends_with("unknown_tensors=0"), "{kohya}");
    let key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
    let mixed = of(&[
        (&format!("{key}.hada_w1_a"), &[1280, 8]),
        (&format!("{key}.hada_w1_b"), &[8, 768]),
        (&format!("{key}.hada_w2_a"), &[1280, 8]),
        (&format!("{key}.hada_w2_b"), &[8, 768]),
        ("lora_unet_a.lora_up.weight", &[4, 16]),
        ("lora_unet_a.lora_down.weight", &[16, 4]),
        ("stray", &[1]),
    ]);
    assert_eq!(
        mixed,
        "lora family=sd1 methods=[LoRA of 1 modules, LoHa of 1 modules] ranks=[8, 16] parts=[network] modules=2 \
         unknown_tensors=1"
    );
}

#[test]
fn motion_modules_tell_their_version_and_frames() {
    let module = |levels: usize, has_middle: bool, frames: usize| {
        let block = |name: String| {
            format!(
                "{name}.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
            )
        };
        let mut names: Vec<String> = (0..levels).map(|level| block(format!("down_blocks.{level}"))).collect();
        names.extend(has_middle.then(|| block("mid_block".to_owned())));
        let shape = [1, frames, 32];
        of(&names.iter().map(|name| (name.as_str(), &shape[..])).collect::<Vec<_>>())
    };
    assert_eq!(module(4, false, 24), "motion_module family=sd1 version=v1 frames=24");
    assert_eq!(module(4, true, 32), "motion_module family=sd1 version=v2 frames=32");
    assert_eq!(module(4, false, 32), "motion_module family=sd1 version=v3 frames=32");
    assert_eq!(module(3, false, 32), "motion_module family=sdxl version=v1 frames=32");
    let key = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora";
    let (down, up) = (format!("{key}.down.weight"), format!("{key}.up.weight"));
    assert_eq!(of(&[(&down, &[4, 320]), (&up, &[320, 4])]), "motion_lora");
}

#[test]
fn embeddings_tell_their_vectors_and_other_files_are_nothing() {
    assert_eq!(of(&[("emb_params", &[3, 768])]), "embedding family=sd1 vectors=[`emb_params`: 3 of 768]");
    let two = of(&[("clip_g", &[2, 1280]), ("clip_l", &[2, 768])]);
    assert_eq!(two, "embedding family=sdxl vectors=[`clip_g`: 2 of 1280, `clip_l`: 2 of 768]");
    assert_eq!(of(&[("x.weight", &[3, 3]), ("y.weight", &[3])]), "nothing");
}

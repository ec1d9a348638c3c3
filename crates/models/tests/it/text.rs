//! Text encoders at tiny sizes: the numbers of the reference, files of every naming, and prompts of any kind.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
    sync::Mutex,
};

use candle_core::{DType, Device, Tensor};
use models::{
    diffusion::text::{
        Clip, Encoded, Options, TextEncoder, TextModel,
        embedding::{Embeddings, Folder},
        error::{TextError, Warning},
        tokens::{Token, tokenize},
    },
    error::ModelError,
    ops::Backend,
};
use safetensors::SafeTensors;
use serde_json::Value;
use weights::{
    checkpoint::Checkpoint,
    synthetic::{self, Entry, Fill},
};

fn folder() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/diffusion").into()
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder().join(name)).unwrap()).unwrap()
}

type Metadata = BTreeMap<String, String>;

/// The text encoders of a model in `models.json`, and what tells its family.
fn parts(model: &str) -> (Vec<Entry>, Metadata) {
    let model = &json("models.json")["models"][model];
    let tensors: BTreeMap<String, Vec<usize>> = serde_json::from_value(model["tensors"].clone()).unwrap();
    let is_wanted = |name: &str| {
        ["cond_stage_model.", "conditioner.", "model.diffusion_model.label_emb.0.0."]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let entries =
        tensors.into_iter().filter(|(name, _)| is_wanted(name)).map(|(name, shape)| (name, shape, Fill::Synthetic));
    (entries.collect(), serde_json::from_value(model["metadata"].clone()).unwrap())
}

fn open((entries, metadata): &(Vec<Entry>, Metadata)) -> Checkpoint {
    Checkpoint::from_bytes(synthetic::with_metadata(entries, metadata.clone())).unwrap()
}

fn kernels() -> Backend {
    Backend::Kernels(crate::cpu())
}

fn encoder(model: &str) -> TextEncoder {
    TextEncoder::load(&[&open(&parts(model))], &kernels()).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// The numbers of both outputs.
fn both(encoded: &Encoded) -> [Vec<f32>; 2] {
    [numbers(&encoded.cond), numbers(&encoded.pooled)]
}

/// What tiny encoders of SDXL make of a weighted prompt of several chunks.
pub fn conditioning() -> [Vec<f32>; 2] {
    both(&encoder("sdxl").encode(&"a (weighted:1.2) prompt, ".repeat(40), &Options::default()).unwrap())
}

#[test]
fn encoders_give_the_numbers_of_the_reference() {
    let recorded = fs::read(folder().join("clip.safetensors")).unwrap();
    let recorded = SafeTensors::deserialize(&recorded).unwrap();
    let embeddings = Folder::new(folder().join("embeddings"));
    let (mut checkpoints, mut count) = (HashMap::new(), 0);
    for backend in [kernels(), Backend::Candle(Device::Cpu, DType::F32)] {
        let mut encoders = HashMap::new();
        for case in json("cases.json")["cases"].as_array().unwrap() {
            let is_pair = case["op"] == "clip_encode_sdxl";
            if !is_pair && case["op"] != "clip_encode" {
                continue;
            }
            let (name, model) = (case["name"].as_str().unwrap(), case["model"].as_str().unwrap());
            let file = &*checkpoints.entry(model.to_owned()).or_insert_with(|| open(&parts(model)));
            let encoder =
                encoders.entry(model.to_owned()).or_insert_with(|| TextEncoder::load(&[file], &backend).unwrap());
            let text = |key: &str| case["params"][key].as_str().unwrap();
            let stop_at_clip_layer = case["params"]["stop_at_clip_layer"].as_i64().map(|stop| stop as i32);
            let options = Options { stop_at_clip_layer, embeddings: Some(&embeddings), ..Options::default() };
            let encoded = if is_pair {
                encoder.encode_each(text("text_l"), text("text_g"), &options).unwrap()
            } else {
                encoder.encode(text("text"), &options).unwrap()
            };
            assert_eq!(encoded.warnings, [], "{name}");
            for (output, got) in [("cond", &encoded.cond), ("cond_pooled", &encoded.pooled)] {
                let want = recorded.tensor(case["outputs"][output].as_str().unwrap()).unwrap();
                assert_eq!(got.dims(), want.shape(), "{name} {output}");
                let want: Vec<f32> = want.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
                let off = numbers(got).iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
                assert!(
                    f64::from(off) <= case["atol"].as_f64().unwrap(),
                    "{name} {output} on {backend:?}: off by {off}"
                );
            }
            count += 1;
        }
    }
    assert_eq!(count, 2 * 39);
}

#[test]
fn a_prompt_of_ten_thousand_words_is_encoded() {
    let encoder = encoder("sd1");
    let words = |count| encoder.encode(&"word ".repeat(count), &Options::default()).unwrap();
    let (many, few) = (words(10_000), words(75));
    assert_eq!(many.cond.dims(), [1, 77 * 10_000usize.div_ceil(75), 64]);
    // A full chunk is the same wherever it stands, and whatever is computed beside it.
    let chunk = |at: usize| numbers(&many.cond.narrow(1, 77 * at, 77).unwrap());
    assert_eq!(chunk(0), numbers(&few.cond));
    assert_eq!(chunk(100), numbers(&few.cond));
    assert_eq!(numbers(&many.pooled), numbers(&few.pooled));
}

/// Names of transformers in place of those of OpenCLIP, with the tensors that this splits or turns.
fn respelt((name, shape, _): &Entry, prefix: &str) -> Vec<Entry> {
    let values = synthetic::tensor(name, shape);
    let name = name.strip_prefix(prefix).unwrap();
    if name == "text_projection" {
        let side = shape[0];
        let turned = (0..side * side).map(|i| values[i % side * side + i / side]).collect();
        return vec![("text_projection.weight".to_owned(), shape.clone(), Fill::Given(turned))];
    }
    let mut name = name.replace("transformer.resblocks.", "text_model.encoder.layers.");
    for (from, to) in [
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("ln_final.", "text_model.final_layer_norm."),
        (".ln_1.", ".layer_norm1."),
        (".ln_2.", ".layer_norm2."),
        (".c_fc.", ".fc1."),
        (".c_proj.", ".fc2."),
        (".attn.", ".self_attn."),
    ] {
        if let Some(at) = name.find(from) {
            name.replace_range(at..at + from.len(), to);
        }
    }
    let Some((layer, kind)) = name.split_once("in_proj_") else {
        return vec![(name, shape.clone(), Fill::Given(values))];
    };
    let blocks = values.chunks_exact(values.len() / 3).zip(["q", "k", "v"]);
    let shape = [&[shape[0] / 3], &shape[1..]].concat();
    blocks
        .map(|(block, part)| (format!("{layer}{part}_proj.{kind}"), shape.clone(), Fill::Given(block.to_vec())))
        .collect()
}

#[test]
fn every_naming_of_the_same_encoders_gives_the_same_bytes() {
    let (entries, metadata) = parts("sdxl");
    let whole = TextEncoder::load(&[&open(&(entries.clone(), metadata.clone()))], &kernels()).unwrap();
    assert_eq!((whole.model(), whole.clips()), (TextModel::Sdxl, vec![Clip::L, Clip::G]));
    let want = both(&whole.encode("a (red:1.3) cat", &Options::default()).unwrap());

    let (l, g) = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.");
    let moved = |prefix: &str, to: &str| -> Vec<Entry> {
        let rest = entries.iter().filter_map(|(name, shape, _)| Some((name, name.strip_prefix(prefix)?, shape)));
        rest.map(|(name, rest, shape)| {
            (format!("{to}{rest}"), shape.clone(), Fill::Given(synthetic::tensor(name, shape)))
        })
        .collect()
    };
    let only = |clip: &str| {
        metadata
            .iter()
            .filter(|(key, _)| key.starts_with(clip))
            .map(|(key, heads)| (key.clone(), heads.clone()))
            .collect::<Metadata>()
    };
    let file = |entries: Vec<Entry>, clip: &str| open(&(entries, only(clip)));
    let g_respelt =
        entries.iter().filter(|(name, ..)| name.starts_with(g)).flat_map(|entry| respelt(entry, g)).collect();
    let ls = [file(moved(l, ""), "clip_l"), file(moved(l, "transformer."), "clip_l")];
    let gs = [file(moved(g, ""), "clip_g"), file(moved(g, "model."), "clip_g"), file(g_respelt, "clip_g")];
    for (i, (l, g)) in ls.iter().flat_map(|l| gs.iter().map(move |g| (l, g))).enumerate() {
        let encoder = TextEncoder::load(&[g, l], &kernels()).unwrap();
        assert_eq!(encoder.model(), TextModel::Sdxl);
        assert_eq!(both(&encoder.encode("a (red:1.3) cat", &Options::default()).unwrap()), want, "{i}");
    }
    // By themselves they are those of other models; old files lack a part of the names.
    let old = moved("conditioner.embedders.0.transformer.text_model.", "cond_stage_model.transformer.");
    assert_eq!(TextEncoder::load(&[&file(old, "clip_l")], &kernels()).unwrap().model(), TextModel::Sd1);
    assert_eq!(TextEncoder::load(&[&gs[0]], &kernels()).unwrap().model(), TextModel::Refiner);
    let h = file(moved(g, "conditioner.embedders.0.model."), "clip_g");
    let error = TextEncoder::load(&[&h], &kernels()).unwrap_err().to_string();
    assert!(
        error.starts_with("CLIP H is 96 wide, which makes no heads of width 64, and `clip_h.num_heads`"),
        "{error}"
    );
}

#[test]
fn files_that_lack_something_are_refused_by_its_name() {
    let layer = "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.bias";
    let refusal = |change: &dyn Fn(&mut Vec<Entry>)| {
        let (mut entries, metadata) = parts("sd1");
        change(&mut entries);
        TextEncoder::load(&[&open(&(entries, metadata))], &kernels()).unwrap_err()
    };
    let of = |entries: &mut Vec<Entry>, fill: Fill, shape: &[usize]| {
        let entry = entries.iter_mut().find(|(name, ..)| name == layer).unwrap();
        (entry.1, entry.2) = (shape.to_vec(), fill);
    };
    let error = refusal(&|entries| entries.retain(|(name, ..)| name != layer));
    assert!(
        matches!(&error, TextError::Model(ModelError::Checkpoint(source)) if source.to_string().contains(layer)),
        "{error:?}"
    );
    let error = refusal(&|entries| of(entries, Fill::Synthetic, &[65])).to_string();
    assert_eq!(error, format!("tensor `{layer}` of CLIP L has shape [65] instead of [64]"));
    for wrong in [f32::NAN, 65520.0] {
        let error = refusal(&|entries| of(entries, Fill::Given(vec![wrong; 64]), &[64]));
        assert!(matches!(&error, TextError::Model(ModelError::NotFinite { tensor }) if tensor == layer), "{error:?}");
    }
    let without_projection = |model: &str| {
        let (mut entries, metadata) = parts(model);
        entries.retain(|(name, ..)| !name.ends_with("text_projection"));
        TextEncoder::load(&[&open(&(entries, metadata))], &kernels())
    };
    assert!(without_projection("sdxl_refiner").is_err());
    assert_eq!(without_projection("sd2").unwrap().model(), TextModel::Sd2); // it conditions nothing there
    let error = refusal(&|entries| entries.retain(|(name, ..)| !name.ends_with("token_embedding.weight"))).to_string();
    assert_eq!(error, "there is no text encoder: a model has one of CLIP L, G and H, or L and G");
}

#[test]
fn prompts_without_sense_are_refused() {
    let encoder = encoder("sd1");
    let refusal = |prompt: &str, options: Options<'_>| encoder.encode(prompt, &options).unwrap_err().to_string();
    assert_eq!(
        refusal("a (b:inf)", Options::default()),
        "a part of the prompt has weight inf, which is no finite number"
    );
    assert!(refusal("(b:nan)", Options::default()).contains("weight NaN"));
    for stop in [0, 1, -25] {
        let options = Options { stop_at_clip_layer: Some(stop), ..Options::default() };
        assert!(refusal("a", options).starts_with(&format!("stop_at_clip_layer is {stop}, ")));
    }
    assert!(matches!(encoder.encode_each("a", "b", &Options::default()), Err(TextError::OnePrompt)));
}

#[test]
fn encoding_is_followed_and_interrupted_between_layers() {
    let encoder = encoder("sd1");
    let heard = Mutex::new(Vec::new());
    let watch = |done: f64| {
        heard.lock().unwrap().push(done);
        done < 0.5
    };
    let error = encoder.encode("a", &Options { watch: &watch, ..Options::default() }).unwrap_err();
    assert!(matches!(error, TextError::Model(ModelError::Interrupted)));
    assert_eq!(*heard.lock().unwrap(), [0.0, 1.0 / 3.0, 2.0 / 3.0]);
}

/// The words of the tokens of a prompt: `+` for each vector of an embedding, and how many there are of others.
fn seen(prompt: &str, embeddings: &dyn Embeddings) -> (String, Vec<Warning>) {
    let tokens = tokenize(prompt, Clip::L, Some(embeddings)).unwrap();
    let words = tokens.chunks[0].iter().filter(|token| token.word > 0);
    let sign = |token: &Token| if matches!(token, Token::Vector { .. }) { '+' } else { '.' };
    (words.map(|token| sign(&token.token)).collect(), tokens.warnings)
}

#[test]
fn embeddings_are_found_below_their_folder_and_nowhere_else() {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(folder().join("embeddings/tiny_embed.safetensors"), path).unwrap();
    };
    for path in ["outside.safetensors", "in/plain.safetensors", "in/deep/er/sub.safetensors", "in/odd,.safetensors"] {
        put(path);
    }
    fs::write(root.path().join("in/broken.pt"), "nothing").unwrap();
    let embeddings = Folder::new(root.path().join("in"));

    let check = |prompt: &str, words: &str, missing: Option<&str>| {
        let warning = missing.map(|name| Warning::MissingEmbedding { name: name.to_owned() });
        assert_eq!(seen(prompt, &embeddings), (words.to_owned(), warning.into_iter().collect()), "{prompt}");
    };
    check("embedding:plain", "+++", None);
    check("embedding:plain.safetensors x", "+++.", None);
    check("embedding:sub, x", "+++..", None);
    check("embedding:deep/er/sub", "+++", None);
    check("embedding:odd, x", "+++.", None);
    check("embedding:other, x", "..", Some("other"));
    check("embedding:../outside", "", Some("../outside"));
    let absolute = root.path().join("outside").display().to_string();
    check(&format!("embedding:{absolute}"), "", Some(&absolute));
    assert_eq!(seen("a embedding: ", &embeddings), (".".to_owned(), vec![Warning::NamelessEmbedding]));
    let error = tokenize("embedding:broken", Clip::L, Some(&embeddings)).unwrap_err();
    assert_eq!(error.to_string(), "cannot read embedding `broken`");
}

#[test]
fn an_embedding_of_another_width_is_left_out_and_said() {
    // `tiny_one` is 64 wide, as L is; G is 96 wide.
    let embeddings = Folder::new(folder().join("embeddings"));
    let options = Options { embeddings: Some(&embeddings), ..Options::default() };
    let encoder = encoder("sdxl_refiner");
    let encoded = encoder.encode("a embedding:tiny_one b", &options).unwrap();
    let warning = Warning::EmbeddingWidth { name: "tiny_one".into(), clip: Clip::G, found: 64, wants: 96 };
    assert_eq!(encoded.warnings, [warning]);
    // What follows moves up.
    assert_eq!(both(&encoded), both(&encoder.encode("a b", &options).unwrap()));
}

#[test]
fn the_file_of_a_textual_inversion_is_read() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/tests/data");
    let embeddings = Folder::new(data);
    assert_eq!(seen("embedding:inversion x", &embeddings), ("++.".to_owned(), vec![]));
    let options = Options { embeddings: Some(&embeddings), ..Options::default() };
    assert_eq!(encoder("sd1").encode("embedding:inversion", &options).unwrap().warnings, []);
}

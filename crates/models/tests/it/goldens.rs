//! The networks against the reference's output. The full-size networks are left to the goldens program.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use models::upscale::Upscaler;
use models::watch::Unwatched;
use serde_json::Value;
use weights::checkpoint::Checkpoint;
use weights::synthetic::{self, Fill};

/// The folders of cases: those that came with the reference's numbers for most networks, and ours for the others.
fn folders() -> [PathBuf; 2] {
    ["pixels", "architectures"].map(|set| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(set))
}

/// The bytes and the shape of a tensor in a safetensors file.
fn read(file: &[u8], name: &str) -> (Vec<u8>, Vec<usize>) {
    let file = safetensors::SafeTensors::deserialize(file).unwrap();
    let view = file.tensor(name).unwrap();
    (view.data().to_vec(), view.shape().to_vec())
}

/// The checkpoint whose tensors a case lists: all are computed from their names, but for the few that are recorded.
fn checkpoint(case: &Value, recorded: &[u8]) -> Checkpoint {
    let entry = |entry: &Value| {
        let (name, shape, kind): (String, Vec<usize>, String) = serde_json::from_value(entry.clone()).unwrap();
        let fill = match kind.as_str() {
            "synthetic" => Fill::Synthetic,
            "1+5*synthetic" => Fill::RunningVariance,
            _ => Fill::Given(numbers(recorded, &format!("in.structural.{name}"), &shape)),
        };
        (name, shape, fill)
    };
    let entries: Vec<_> = case["weights"]["tensors"].as_array().unwrap().iter().map(entry).collect();
    Checkpoint::from_bytes(synthetic::safetensors(&entries)).unwrap()
}

/// The numbers of a recorded tensor, or zeros where it is not: then its values do not matter.
fn numbers(file: &[u8], name: &str, shape: &[usize]) -> Vec<f32> {
    let file = safetensors::SafeTensors::deserialize(file).unwrap();
    let Ok(view) = file.tensor(name) else { return vec![0.0; shape.iter().product()] };
    match view.dtype() {
        safetensors::Dtype::F32 => view.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        safetensors::Dtype::I64 => view.data().as_chunks().0.iter().map(|x| i64::from_le_bytes(*x) as f32).collect(),
        other => panic!("{name} is {other:?}"),
    }
}

/// The cases of networks, each with its file.
fn cases() -> impl Iterator<Item = (Value, Vec<u8>)> {
    folders().into_iter().flat_map(|folder| {
        let mut all: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        let cases: Vec<Value> = serde_json::from_value(all["cases"].take()).unwrap();
        let networks = cases.into_iter().filter(|case| case["op"] == "sr_model");
        networks.map(move |case| {
            let file = std::fs::read(folder.join(case["file"].as_str().unwrap())).unwrap();
            (case, file)
        })
    })
}

/// One small network of each architecture that is computed operation by operation.
pub fn layered() -> Vec<(String, Upscaler)> {
    let names = [
        "span_x4",
        "swinir_classical_x2",
        "hat_x2",
        "dat_x2",
        "omnisr",
        "plksr",
        "realplksr_dysample_ln",
        "rcan_x2",
        "mosr_ps_x2",
        "atd_light_x2",
    ];
    let chosen = |(case, file): (Value, Vec<u8>)| {
        let name = case["name"].as_str()?;
        let load = || Upscaler::load_on_cpu(&checkpoint(&case, &file), crate::cpu()).unwrap();
        names.contains(&name).then(|| (name.to_owned(), load()))
    };
    let networks: Vec<_> = cases().filter_map(chosen).collect();
    assert_eq!(networks.len(), names.len());
    networks
}

#[test]
fn networks_give_the_numbers_of_the_reference() {
    let mut architectures = BTreeSet::new();
    let mut failures = Vec::new();
    for (case, file) in cases() {
        let name = case["name"].as_str().unwrap();
        if name.ends_with("_full") {
            continue;
        }
        let checkpoint = checkpoint(&case, &file);
        let (bytes, shape) = read(&file, "in.image"); // [h, w, c]
        let image =
            Tensor::from_vec(bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect(), shape, &Device::Cpu).unwrap();
        let image = image.permute((2, 0, 1)).unwrap().unsqueeze(0).unwrap();
        let (bytes, shape) = read(&file, "out.raw"); // [c, h, w]
        let want: Vec<f32> = bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect();
        let tolerance = case["tolerance"]["raw"]["max_abs"].as_f64().unwrap();

        for on in ["kernels", "candle"] {
            let upscaler = match on {
                "kernels" => Upscaler::load_on_cpu(&checkpoint, crate::cpu()),
                _ => Upscaler::load(&checkpoint, &Device::Cpu, DType::F32),
            };
            let upscaler = match upscaler {
                Ok(upscaler) => upscaler,
                Err(error) => {
                    failures.push(format!("{name} on {on}: {error}"));
                    continue;
                }
            };
            assert_eq!(serde_json::to_value(upscaler.facts()).unwrap(), case["expect"], "{name}");
            let got =
                upscaler.forward_raw(&image, &Unwatched).unwrap_or_else(|error| panic!("{name} on {on}: {error:?}"));
            assert_eq!(got.dims()[1..], shape, "{name}");
            let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
            if f64::from(worst) > tolerance || got.iter().any(|x| x.is_nan()) {
                failures.push(format!("{name} on {on}: off by {worst}, {tolerance} allowed"));
            }
            architectures.insert(upscaler.facts().architecture.clone());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let all = ["ATD", "Compact", "DAT", "ESRGAN", "HAT", "MoSR", "OmniSR", "PLKSR", "RCAN", "SPAN", "SwinIR"];
    assert!(architectures.iter().eq(all), "{architectures:?}");
}

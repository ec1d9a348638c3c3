//! The networks against the reference's output. The full-size networks are left to the goldens program.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use models::upscale::Upscaler;
use models::watch::Unwatched;
use serde_json::Value;
use weights::checkpoint::Checkpoint;
use weights::synthetic;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pixels")
}

/// The bytes and the shape of a tensor in a safetensors file.
fn read(file: &[u8], name: &str) -> (Vec<u8>, Vec<usize>) {
    let file = safetensors::SafeTensors::deserialize(file).unwrap();
    let view = file.tensor(name).unwrap();
    (view.data().to_vec(), view.shape().to_vec())
}

#[test]
fn networks_give_the_numbers_of_the_reference() {
    let cases: Value = serde_json::from_slice(&std::fs::read(folder().join("cases.json")).unwrap()).unwrap();
    let mut passed = 0;
    for case in cases["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let is_ours = ["ESRGAN", "Compact"].contains(&case["expect"]["architecture"].as_str().unwrap_or_default());
        if case["op"] != "sr_model" || !is_ours || name.ends_with("_full") {
            continue;
        }
        let tensors: Vec<(String, Vec<usize>)> = case["weights"]["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| serde_json::from_value::<(String, Vec<usize>, String)>(entry.clone()).unwrap())
            .map(|(name, shape, _)| (name, shape))
            .collect();
        let checkpoint = Checkpoint::from_bytes(synthetic::network(&tensors)).unwrap();
        let upscaler = Upscaler::load_on_cpu(&checkpoint, crate::cpu()).unwrap();
        assert_eq!(serde_json::to_value(upscaler.facts()).unwrap(), case["expect"], "{name}");

        let file = std::fs::read(folder().join(case["file"].as_str().unwrap())).unwrap();
        let (bytes, shape) = read(&file, "in.image"); // [h, w, c]
        let image =
            Tensor::from_vec(bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect(), shape, &Device::Cpu).unwrap();
        let image = image.permute((2, 0, 1)).unwrap().unsqueeze(0).unwrap();
        let got = upscaler.forward_raw(&image, &Unwatched).unwrap();

        let (bytes, shape) = read(&file, "out.raw"); // [c, h, w]
        assert_eq!(got.dims()[1..], shape, "{name}");
        let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let want = bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value));
        let (worst, place) = got
            .iter()
            .zip(want)
            .map(|(got, want)| (got - want).abs())
            .zip(0..)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap();
        let tolerance = case["tolerance"]["raw"]["max_abs"].as_f64().unwrap();
        assert!(f64::from(worst) <= tolerance, "{name}: off by {worst} at {place}, {tolerance} allowed");
        passed += 1;
    }
    assert_eq!(passed, 17, "the number of small ESRGAN and Compact cases");
}

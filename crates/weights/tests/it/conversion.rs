use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype as Stored, TensorView};
use serde_json::Value;
use weights::checkpoint::{Checkpoint, Dtype, Float};
use weights::convert::convert;
use weights::detect::{Compact, Layout, OmniSr, detect};
use weights::synthetic::{self, Fill};

const COMPACT: Compact = Compact { num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_conv: 1, upscale: 2 };

fn data(name: &str) -> Checkpoint {
    Checkpoint::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

fn network(tensors: &[(String, Vec<usize>)]) -> Checkpoint {
    Checkpoint::from_bytes(synthetic::network(tensors)).unwrap()
}

/// A folder and a file in it that does not exist yet.
fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    (folder, path)
}

/// The header of a safetensors file, its length checked.
fn header(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(length % 8, 0, "the numbers begin where they are aligned");
    serde_json::from_slice(&bytes[8..8 + length as usize]).unwrap()
}

/// A safetensors file of one number per type, and one that is no fraction.
fn every_type() -> Checkpoint {
    let value = 0.123_456_789_f64;
    let tensors: [(&str, Stored, Vec<u8>); 6] = [
        ("f64", Stored::F64, value.to_le_bytes().into()),
        ("f32", Stored::F32, (value as f32).to_le_bytes().into()),
        ("f16", Stored::F16, f16::from_f64(value).to_le_bytes().into()),
        ("bf16", Stored::BF16, bf16::from_f64(value).to_le_bytes().into()),
        ("i64", Stored::I64, i64::MAX.to_le_bytes().into()),
        ("bool", Stored::BOOL, vec![1]),
    ];
    let view = |(name, dtype, bytes)| (name, TensorView::new(dtype, vec![1], bytes).unwrap());
    let views: Vec<_> = tensors.iter().map(|(name, dtype, bytes)| view((*name, *dtype, bytes.as_slice()))).collect();
    Checkpoint::from_bytes(safetensors::serialize(views, None).unwrap()).unwrap()
}

#[test]
fn every_type_of_a_safetensors_file_widens_to_f32() {
    let checkpoint = every_type();
    let read = |name| checkpoint.read_f32(name).unwrap()[0];
    assert_eq!(read("f64"), 0.123_456_79);
    assert_eq!(read("f32"), 0.123_456_79);
    assert_eq!(read("f16"), f16::from_f32(0.123_456_79).to_f32());
    assert_eq!(read("bf16"), bf16::from_f32(0.123_456_79).to_f32());
    assert_eq!((read("i64"), read("bool")), (i64::MAX as f32, 1.0));
}

#[test]
fn what_is_saved_as_it_is_stored_comes_back_unchanged() {
    let sources = ["zip.pth", "legacy.pth", "params_ema.pth", "types.pth", "views.pth"];
    for (name, checkpoint) in sources.map(|name| (name, data(name))).into_iter().chain([("types", every_type())]) {
        let (_folder, path) = place();
        let metadata = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "\"1\"".to_owned())]);
        let names = || checkpoint.tensors().keys().map(String::as_str);
        checkpoint.save_safetensors(&path, names(), None, &metadata).unwrap();
        let saved = Checkpoint::open(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), checkpoint.tensors().len(), "{name}");
        for (tensor, info) in checkpoint.tensors() {
            let found = &saved.tensors()[tensor];
            assert_eq!((&found.dtype, &found.shape), (&info.dtype, &info.shape), "{name} {tensor}");
            assert_eq!(saved.read_f32(tensor).unwrap(), checkpoint.read_f32(tensor).unwrap(), "{name} {tensor}");
        }
        assert_eq!(header(&path)["__metadata__"], serde_json::json!(metadata));
        checkpoint.save_safetensors(&path, names(), None, &metadata).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{name}: equal tensors make equal files");
    }
}

#[test]
fn fractions_are_rounded_to_the_nearest_and_whole_numbers_kept() {
    let checkpoint = every_type();
    for (float, dtype) in [(Float::F32, Dtype::F32), (Float::F16, Dtype::F16), (Float::Bf16, Dtype::Bf16)] {
        let (_folder, path) = place();
        let names = checkpoint.tensors().keys().map(String::as_str);
        checkpoint.save_safetensors(&path, names, Some(float), &BTreeMap::new()).unwrap();
        let saved = Checkpoint::open(&path).unwrap();
        for name in ["f64", "f32", "f16", "bf16"] {
            let value = checkpoint.read_f32(name).unwrap()[0];
            let nearest = match float {
                Float::F32 => value,
                Float::F16 => f16::from_f32(value).to_f32(),
                Float::Bf16 => bf16::from_f32(value).to_f32(),
            };
            assert_eq!(saved.tensors()[name].dtype, dtype, "{name}");
            assert_eq!(saved.read_f32(name).unwrap(), [nearest], "{name} as {float:?}");
        }
        assert_eq!(saved.tensors()["i64"].dtype, Dtype::I64);
        assert_eq!(saved.tensors()["bool"].dtype, Dtype::Bool);
    }
}

#[test]
fn a_network_is_converted_to_plain_names_and_says_what_it_is() {
    let (_folder, path) = place();
    let converted = convert(&data("params_ema.pth"), "c0ffee", &path, Some(Float::F16)).unwrap();
    let saved = Checkpoint::open(&path).unwrap();
    assert_eq!(detect(&saved).unwrap(), converted);
    let names: Vec<&String> = saved.tensors().keys().collect();
    assert_eq!(names, ["body.0.bias", "body.0.weight", "body.1.weight", "body.2.bias", "body.2.weight"]);
    let said = &header(&path)["__metadata__"];
    assert_eq!(said["tessera.architecture"], "Compact");
    assert_eq!(said["tessera.scale"], "2");
    assert_eq!(said["tessera.source_sha256"], "c0ffee");
}

#[test]
fn what_is_no_part_of_a_network_is_left_behind() {
    let net = OmniSr {
        num_in_ch: 3,
        num_out_ch: 3,
        num_feat: 16,
        res_num: 1,
        block_num: 1,
        pe: true,
        window_size: 4,
        up_scale: 2,
        bias: true,
    };
    let mut tensors = Layout::OmniSr(net).tensors();
    let whole = tensors.len();
    tensors.push(("residual_layer.0.total_ops".to_owned(), vec![1]));
    let (_folder, path) = place();
    convert(&network(&tensors), "", &path, None).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().tensors().len(), whole);
}

#[test]
fn a_failure_names_the_tensor_and_leaves_no_file() {
    let (folder, path) = place();
    let mut entries: Vec<_> =
        Layout::Compact(COMPACT).tensors().into_iter().map(|(name, shape)| (name, shape, Fill::Synthetic)).collect();
    let bias = entries.iter_mut().find(|(name, ..)| name == "body.2.bias").unwrap();
    bias.2 = Fill::Given([vec![70_000.0], vec![0.0; 7]].concat());
    let checkpoint = Checkpoint::from_bytes(synthetic::safetensors(&entries)).unwrap();
    let error = convert(&checkpoint, "", &path, Some(Float::F16)).unwrap_err();
    assert_eq!(error.to_string(), "tensor `body.2.bias` holds 70000, which is no finite number as F16");
    let error = convert(&network(&[("a".to_owned(), vec![1])]), "", &path, None).unwrap_err();
    assert!(error.to_string().starts_with("no known architecture"), "{error}");
    let error = checkpoint.save_safetensors(&path, ["nothing"], None, &BTreeMap::new()).unwrap_err();
    assert_eq!(error.to_string(), "the checkpoint has no tensor `nothing`");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    convert(&checkpoint, "", &path, Some(Float::Bf16)).unwrap();
}

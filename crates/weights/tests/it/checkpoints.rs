use std::error::Error;
use std::path::PathBuf;

use weights::checkpoint::{Checkpoint, CheckpointError};
use weights::detect::detect;
use weights::synthetic;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(data(name)).unwrap()
}

/// The same 2x Compact network as `make.py` writes it.
fn safetensors() -> Vec<u8> {
    let shapes: [(&str, &[usize]); 5] = [
        ("body.0.weight", &[4, 3, 3, 3]),
        ("body.0.bias", &[4]),
        ("body.1.weight", &[4]),
        ("body.2.weight", &[12, 4, 3, 3]),
        ("body.2.bias", &[12]),
    ];
    synthetic::network(&shapes.map(|(name, shape)| (name.to_owned(), shape.to_vec())))
}

/// Tells an error with all its causes.
fn story(error: &CheckpointError) -> String {
    let mut story = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        story += &format!(": {error}");
        cause = error.source();
    }
    story
}

#[test]
fn every_way_of_wrapping_a_network_gives_the_same_tensors() {
    for name in
        ["zip.pth", "name_of_21_characters.pth", "legacy.pth", "params_ema.pth", "training.pth", "only_entry.pth"]
    {
        let checkpoint = Checkpoint::open(&data(name)).unwrap_or_else(|error| panic!("{name}: {}", story(&error)));
        let names: Vec<&String> = checkpoint.tensors().keys().collect();
        assert_eq!(names, ["body.0.bias", "body.0.weight", "body.1.weight", "body.2.bias", "body.2.weight"], "{name}");
        let weight = checkpoint.read_f32("body.2.weight").unwrap();
        assert!(weight.iter().enumerate().all(|(i, value)| *value == i as f32), "{name}");
        assert_eq!(detect(&checkpoint).unwrap().facts.scale, 2, "{name}");
    }
}

#[test]
fn the_vectors_of_a_textual_inversion_are_found() {
    let checkpoint = Checkpoint::open(&data("inversion.pt")).unwrap();
    assert_eq!(checkpoint.tensors().keys().collect::<Vec<_>>(), ["*"]);
    assert_eq!(checkpoint.read_f32("*").unwrap().len(), 2 * 64);
}

#[test]
fn modules_and_parameters_are_read_too() {
    for name in ["module.pth", "parameters.pth"] {
        let checkpoint = Checkpoint::open(&data(name)).unwrap();
        assert_eq!(checkpoint.tensors()["0.weight"].shape, [4, 3, 3, 3], "{name}");
        assert_eq!(checkpoint.read_f32("1.weight").unwrap(), [0.0, 1.0, 2.0, 3.0], "{name}");
    }
}

#[test]
fn every_type_of_number_widens_to_f32() {
    let checkpoint = Checkpoint::open(&data("types.pth")).unwrap();
    for (name, info) in checkpoint.tensors() {
        let expected: &[f32] = match name.as_str() {
            "single" => &[7.0],
            "empty" => &[],
            "i64" | "i32" | "i16" | "i8" => &[0.0, -1.0],
            _ => &[0.0, 1.0],
        };
        assert_eq!(checkpoint.read_f32(name).unwrap(), expected, "{name} {info:?}");
    }
    assert_eq!(checkpoint.tensors().len(), 12);
    assert_eq!(checkpoint.others(), ["steps"]);
}

#[test]
fn views_are_read_by_their_strides() {
    for name in ["views.pth", "views_legacy.pth"] {
        let checkpoint = Checkpoint::open(&data(name)).unwrap();
        let read = |tensor| checkpoint.read_f32(tensor).unwrap();
        assert_eq!(read("base"), (0..24).map(|i| i as f32).collect::<Vec<_>>(), "{name}");
        assert_eq!(read("transposed")[..6], [0.0, 6.0, 12.0, 18.0, 1.0, 7.0], "{name}");
        assert_eq!(read("window"), [8.0, 9.0, 10.0, 14.0, 15.0, 16.0], "{name}");
        assert_eq!(read("every_second")[..4], [0.0, 2.0, 4.0, 6.0], "{name}");
        assert_eq!(read("last"), [18.0, 19.0, 20.0, 21.0, 22.0, 23.0], "{name}");
    }
}

#[test]
fn a_refusal_names_what_was_refused() {
    let check = |bytes: Vec<u8>, expected: &str| {
        let error = Checkpoint::from_bytes(bytes).expect_err(expected);
        assert_eq!(story(&error), expected);
    };
    let system =
        "the pickle asks for `posix.system`, which tensors do not need: it was refused and nothing was executed";
    check(bytes("malicious.pth"), system);
    check(bytes("malicious_legacy.pth"), system);
    check(bytes("repeated.pth"), "tensor `weight` repeats its stored values, as weights never do");
    check(bytes("tensor.pth"), "the checkpoint holds a tensor where a dictionary of tensors is expected");
    check(
        b"\x89PNG\r\n\x1a\n....".to_vec(),
        r"neither safetensors nor a PyTorch checkpoint: the file begins with `\x89PNG\r\n\x1a\n....`",
    );
    check(Vec::new(), "neither safetensors nor a PyTorch checkpoint: the file begins with ``");
    check(synthetic::safetensors(&[]), "the checkpoint holds no tensor");

    let mut endless = u64::MAX.to_le_bytes().to_vec();
    endless.extend(b"{}");
    check(endless, "the safetensors header is larger than the limit of 100000000");
    let mut long = 100u64.to_le_bytes().to_vec();
    long.extend(b"{}");
    check(long, "the safetensors header needs 108 bytes, but the file has 10: it is incomplete");

    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let mut overlapping = (header.len() as u64).to_le_bytes().to_vec();
    overlapping.extend(header.as_bytes());
    overlapping.extend([0; 12]);
    check(overlapping, "the safetensors header is not valid: invalid offset for tensor `b`");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for (name, whole) in [("zip", bytes("zip.pth")), ("legacy", bytes("legacy.pth")), ("safetensors", safetensors())] {
        Checkpoint::from_bytes(whole.clone()).unwrap();
        for end in 0..whole.len() {
            assert!(Checkpoint::from_bytes(whole[..end].to_vec()).is_err(), "{name} cut at {end}");
        }
    }
}

/// Whatever a damaged file is taken for, nothing may panic, and no tensor may be larger than the file it came from.
#[test]
fn a_damaged_byte_never_does_harm() {
    for (name, whole) in
        [("zip", bytes("params_ema.pth")), ("legacy", bytes("views_legacy.pth")), ("safetensors", safetensors())]
    {
        for at in 0..whole.len() {
            for damage in [0x00, 0xFF, b'R', b'(', b'.', b'}', whole[at] ^ 1, whole[at] ^ 0x80] {
                let mut damaged = whole.clone();
                damaged[at] = damage;
                let Ok(checkpoint) = Checkpoint::from_bytes(damaged) else { continue };
                for (tensor, info) in checkpoint.tensors() {
                    assert!(info.elements() <= whole.len(), "{name} damaged at {at}: {tensor} {info:?}");
                    let _either_way = checkpoint.read_f32(tensor);
                }
            }
        }
    }
}

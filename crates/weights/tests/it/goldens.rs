//! Detection against what the reference says of the same tensors.

use std::path::Path;

use serde_json::Value;
use weights::detect::{DetectError, SizeRequirements, detect_shapes};

fn cases() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pixels/cases.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    serde_json::from_value(file["cases"].take()).unwrap()
}

/// Checks that `got` has everything that `want` has, and the same.
fn assert_contains(got: &Value, want: &Value, name: &str) {
    match want {
        Value::Object(entries) => {
            entries.iter().for_each(|(key, want)| assert_contains(&got[key], want, &format!("{name}.{key}")))
        }
        _ => assert_eq!(got, want, "{name}"),
    }
}

#[test]
fn networks_are_told_as_the_reference_tells_them() {
    let (mut told, mut not_supported) = (0, 0);
    for case in cases() {
        let name = case["name"].as_str().unwrap();
        let tensors = match case["op"].as_str().unwrap() {
            "sr_detect" => &case["params"]["tensors"],
            "sr_model" => &case["weights"]["tensors"],
            _ => continue,
        };
        let shape = |entry: &Value| {
            let name = entry[0].as_str().unwrap().to_owned();
            (name, serde_json::from_value(entry[1].clone()).unwrap())
        };
        let shapes = tensors.as_array().unwrap().iter().map(shape).collect();
        match detect_shapes(&shapes) {
            Ok(network) => {
                assert_contains(&serde_json::to_value(&network.facts).unwrap(), &case["expect"], name);
                told += 1;
            }
            Err(DetectError::NotSupported { architecture }) => {
                assert_eq!(architecture, case["expect"]["architecture"], "{name}");
                not_supported += 1;
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
    assert_eq!((told, not_supported), (23, 17), "the numbers of cases");
}

#[test]
fn sizes_are_padded_as_the_reference_pads_them() {
    let case = cases().into_iter().find(|case| case["op"] == "size_requirements").unwrap();
    let rows = case["expect"]["rows"].as_array().unwrap();
    for row in rows {
        let requirements: SizeRequirements = serde_json::from_value(row.clone()).unwrap();
        let side = |name: &str| row[name].as_u64().unwrap() as usize;
        let (right, bottom) = requirements.padding(side("width"), side("height"));
        assert_eq!(serde_json::json!([right, bottom]), row["pad_right_bottom"], "{row}");
    }
    assert!(rows.len() > 20);
}

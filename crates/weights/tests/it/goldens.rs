//! Detection against what the reference says of the same tensors.

use std::path::Path;

use serde_json::Value;
use weights::detect::{ModelFacts, Network, Shapes, SizeRequirements, detect_shapes};

fn read(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn cases() -> Vec<Value> {
    serde_json::from_value(read("../../tests/golden/pixels/cases.json")["cases"].take()).unwrap()
}

/// The names and shapes of a list of tensors, each of which begins with them.
pub fn shapes(tensors: &Value) -> Shapes {
    let shape =
        |entry: &Value| (entry[0].as_str().unwrap().to_owned(), serde_json::from_value(entry[1].clone()).unwrap());
    tensors.as_array().unwrap().iter().map(shape).collect()
}

/// The networks of `data/networks.json`: name, shapes and what the reference says of them.
pub fn networks() -> Vec<(String, Shapes, Value)> {
    let network =
        |case: &Value| (case["name"].as_str().unwrap().to_owned(), shapes(&case["tensors"]), case["expect"].clone());
    read("tests/data/networks.json").as_array().unwrap().iter().map(network).collect()
}

/// Checks that `got` has everything that `want` has, and the same; 2 and 2.0 are.
fn assert_contains(got: &Value, want: &Value, name: &str) {
    match (got, want) {
        (_, Value::Object(entries)) => {
            entries.iter().for_each(|(key, want)| assert_contains(&got[key], want, &format!("{name}.{key}")));
        }
        (Value::Number(got), Value::Number(want)) => assert_eq!(got.as_f64(), want.as_f64(), "{name}"),
        _ => assert_eq!(got, want, "{name}"),
    }
}

/// Checks what is told of a network, and that nothing is told that the reference does not know.
fn check(name: &str, shapes: &Shapes, want: &Value) {
    let Network { layout, facts } = detect_shapes(shapes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let got = serde_json::to_value(&facts).unwrap();
    assert_contains(&got, want, name);
    assert_contains(&want["hyperparameters"], &got["hyperparameters"], name);
    assert_eq!(facts.architecture, layout.architecture(), "{name}");
    // The size of the pictures that it was trained on is left behind, all else is found again.
    let again = detect_shapes(&layout.tensors().into_iter().collect()).unwrap();
    let sizes = |mut facts: ModelFacts| {
        facts.hyperparameters.remove("img_size");
        facts.tags.retain(|tag| !tag.starts_with('s'));
        facts
    };
    assert_eq!(sizes(again.facts), sizes(facts), "{name}");
}

#[test]
fn networks_of_the_goldens_are_told_as_the_reference_tells_them() {
    let mut told = 0;
    for case in cases() {
        let tensors = match case["op"].as_str().unwrap() {
            "sr_detect" => &case["params"]["tensors"],
            "sr_model" => &case["weights"]["tensors"],
            _ => continue,
        };
        check(case["name"].as_str().unwrap(), &shapes(tensors), &case["expect"]);
        told += 1;
    }
    assert_eq!(told, 40, "the number of cases");
}

#[test]
fn networks_that_the_goldens_lack_are_told_as_the_reference_tells_them() {
    let networks = networks();
    networks.iter().for_each(|(name, shapes, want)| check(name, shapes, want));
    assert_eq!(networks.len(), 22, "the number of networks");
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

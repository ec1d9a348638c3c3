//! Random numbers and noise.

use models::diffusion::random::{
    Generator, brownian::BrownianTree, initial_noise, noise_of_items, seed_sequence::generate_state,
};
use serde_json::{Value, json};

use crate::goldens::{
    Answer, Got,
    cases::{Case, Tensor, Tensors},
};

pub fn randn(case: &Case, _: &Tensors) -> Answer {
    let shape: Vec<usize> = case.param("shape")?;
    let normals = Generator::new(case.param("seed")?).normals(shape.iter().product());
    Ok(Got::default().tensor("normals", Tensor::floats(&shape, normals)))
}

pub fn rand(case: &Case, _: &Tensors) -> Answer {
    let shape: Vec<usize> = case.param("shape")?;
    let uniforms = Generator::new(case.param("seed")?).uniforms(shape.iter().product());
    Ok(Got::default().tensor("uniforms", Tensor::floats(&shape, uniforms)))
}

pub fn randn_sequence(case: &Case, _: &Tensors) -> Answer {
    let shapes: Vec<Vec<usize>> = case.param("shapes")?;
    let mut generator = Generator::new(case.param("seed")?);
    let draw = |got: Got, (i, shape): (usize, Vec<usize>)| {
        let normals = generator.normals(shape.iter().product());
        got.tensor(i.to_string(), Tensor::floats(&shape, normals))
    };
    Ok(shapes.into_iter().enumerate().fold(Got::default(), draw))
}

pub fn seed_sequence(case: &Case, _: &Tensors) -> Answer {
    let words: usize = case.param("words")?;
    let answer = |(i, row): (usize, &Value)| {
        let (entropy, key) = (&row["entropy"], &row["spawn_key"]);
        let spawn_key: Vec<u64> = key.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let state = generate_state(entropy.as_u64().unwrap_or_default(), &spawn_key, words);
        (i.to_string(), json!({"entropy": entropy, "spawn_key": key, "state": state}))
    };
    let rows = case.get("expect").as_array().into_iter().flatten().enumerate();
    Ok(rows.map(answer).fold(Got::default(), |got, (name, row)| got.value(&name, row)))
}

pub fn prepare_noise(case: &Case, _: &Tensors) -> Answer {
    let shape: Vec<usize> = case.param("shape")?;
    let (seed, numbers) = (case.param("seed")?, shape[1..].iter().product());
    let noise = match case.param_if_any::<Vec<usize>>("batch_index")? {
        Some(index) => noise_of_items(seed, &index, numbers),
        None => initial_noise(seed, shape[0], numbers),
    };
    Ok(Got::default().tensor("noise", Tensor::floats(&shape, noise)))
}

pub fn brownian_noise(case: &Case, _: &Tensors) -> Answer {
    let shape: Vec<usize> = case.param("shape")?;
    let (low, high) = (case.param("sigma_min")?, case.param("sigma_max")?);
    let mut tree = BrownianTree::new(case.param("seed")?, low, high, shape.iter().product());
    let pairs: Vec<[f32; 2]> = case.param("pairs")?;
    let noise = |got: Got, (i, [from, to]): (usize, [f32; 2])| {
        got.tensor(i.to_string(), Tensor::floats(&shape, tree.noise(from, to)))
    };
    Ok(pairs.into_iter().enumerate().fold(Got::default(), noise))
}

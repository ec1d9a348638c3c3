//! Control nets at tiny sizes; their numbers are checked against the reference by the goldens program.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use models::{
    diffusion::{
        controlnet::{ControlNet, Residuals, centred, hint_for},
        unet::{Inputs, Unet},
    },
    watch::Unwatched,
};
use weights::{
    checkpoint::Checkpoint,
    synthetic::{self, Fill},
};

use crate::diffusion::{backends, check_close, checkpoint, tensor};

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn kernels_and_candle_agree_and_a_unet_takes_what_they_say() {
    let net = checkpoint("control_sd1", "control_model.", |_| false);
    let unet = checkpoint("sd1", "model.diffusion_model.", |_| false);
    let unet = Unet::load(&unet, &backends()[0]).unwrap();
    let (x, context) = (tensor("x", &[2, 4, 5, 9]), tensor("context", &[2, 7, 64]));
    let inputs = Inputs { x: &x, timesteps: &[999.0, 0.0], context: &context, y: None };
    let hint = tensor("hint", &[1, 3, 40, 72]);
    let said =
        backends().map(|backend| ControlNet::load(&net, &backend).unwrap().forward(inputs, &hint, &Unwatched).unwrap());
    let pairs = said[0].output.iter().zip(&said[1].output).chain([(&said[0].middle, &said[1].middle)]);
    pairs.for_each(|(kernels, candle)| check_close("control net", &[kernels.clone(), candle.clone()]));

    let run = |control: Option<&Residuals>| unet.forward(inputs, control, &Unwatched);
    let free = numbers(&run(None).unwrap());
    let [said, _] = &said;
    assert_ne!(numbers(&run(Some(said)).unwrap()), free);
    assert_eq!(numbers(&run(Some(&said.scaled(0.0).unwrap())).unwrap()), free);
    let cancelled = said.scaled(0.5).unwrap().plus(&said.scaled(-0.5).unwrap()).unwrap();
    assert_eq!(numbers(&run(Some(&cancelled)).unwrap()), free);

    let fewer = Residuals { output: said.output[1..].to_vec(), ..said.clone() };
    let error = run(Some(&fewer)).unwrap_err().to_string();
    assert_eq!(error, "`outputs of the control net` should have shape [12], but has [11]");
    let other = Inputs { x: &x.narrow(3, 0, 8).unwrap(), ..inputs };
    let error = unet.forward(other, Some(said), &Unwatched).unwrap_err().to_string();
    assert_eq!(error, "`output of the control net` should have shape [2, 32, 5, 8], but has [2, 32, 5, 9]");
}

/// A file of these tensors, and an empty one called `marker`.
fn file(mut tensors: Vec<(String, Vec<usize>, Vec<f32>)>, marker: &str) -> Checkpoint {
    tensors.push((marker.to_owned(), vec![0], vec![]));
    let entry = |(name, shape, values)| (name, shape, Fill::Given(values));
    let entries: Vec<_> = tensors.into_iter().map(entry).collect();
    let heads = BTreeMap::from([("unet.num_heads".to_owned(), "8".to_owned())]);
    Checkpoint::from_bytes(synthetic::with_metadata(&entries, heads)).unwrap()
}

#[test]
fn what_differs_from_another_network_is_added_to_it() {
    let net = checkpoint("control_sd1", "control_model.", |_| false);
    let base = checkpoint("sd1", "model.diffusion_model.", |_| false);
    let whole = |net: &Checkpoint, name: &String| (name.clone(), net.tensors()[name].shape.clone());
    let read = |file: &Checkpoint, name: &str| file.read_f32(name).unwrap();
    let (x, context) = (tensor("x", &[1, 4, 2, 2]), tensor("context", &[1, 7, 64]));
    let inputs = Inputs { x: &x, timesteps: &[500.0], context: &context, y: None };
    let hint = tensor("hint", &[1, 3, 16, 16]);
    let say = |net: ControlNet| numbers(&net.forward(inputs, &hint, &Unwatched).unwrap().middle);
    let close = |got: Vec<f32>, want: &[f32]| {
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-4), "{got:?} for {want:?}");
    };
    let backend = &backends()[0];
    let wanted = say(ControlNet::load(&net, backend).unwrap());

    let difference = |name: &String| {
        let mut values = read(&net, name);
        if base.tensors().contains_key(name) {
            values.iter_mut().zip(read(&base, name)).for_each(|(value, base)| *value -= base);
        }
        let (name, shape) = whole(&net, name);
        (name, shape, values)
    };
    let differences = file(net.tensors().keys().map(difference).collect(), "difference");
    close(say(ControlNet::load_beside(&differences, Some(&base), backend).unwrap()), &wanted);
    let error = ControlNet::load(&differences, backend).unwrap_err().to_string();
    assert!(error.contains("difference from another network") && error.contains("checkpoint of the model"), "{error}");

    // Layers of the way down as the base's and a change of rank 2; all else whole.
    let changed = |name: &str| name == "input_blocks.1.0.in_layers.2.weight" || name.ends_with("attn1.to_q.weight");
    let (mut whole_net, mut lora) = (Vec::new(), Vec::new());
    for name in net.tensors().keys() {
        let (name, shape) = whole(&net, name);
        if !changed(&name) {
            let values = if base.tensors().contains_key(&name) { read(&base, &name) } else { read(&net, &name) };
            if !base.tensors().contains_key(&name) {
                lora.push((name.clone(), shape.clone(), values.clone()));
            }
            whole_net.push((name, shape, values));
            continue;
        }
        let layer = name.strip_suffix(".weight").unwrap();
        let (o, rest) = (shape[0], &shape[1..]);
        let inputs: usize = rest.iter().product();
        let sides = |first: usize, rest: &[usize]| [&[first], rest].concat();
        let ones = vec![1; rest.len() - 1];
        let (up_shape, down_shape) = (sides(o, &sides(2, &ones)), sides(2, rest));
        let up = synthetic::tensor(&format!("{layer}.up"), &up_shape);
        let down = synthetic::tensor(&format!("{layer}.down"), &down_shape);
        let mut values = read(&base, &name);
        for (i, value) in values.iter_mut().enumerate() {
            *value += (0..2).map(|r| up[i / inputs * 2 + r] * down[r * inputs + i % inputs]).sum::<f32>();
        }
        lora.push((format!("{layer}.up"), up_shape, up));
        lora.push((format!("{layer}.down"), down_shape, down));
        whole_net.push((name, shape, values));
    }
    assert!(lora.len() < net.tensors().len() / 3);
    let lora = file(lora, "lora_controlnet");
    let wanted = say(ControlNet::load(&file(whole_net, "nothing"), backend).unwrap());
    close(say(ControlNet::load_beside(&lora, Some(&base), backend).unwrap()), &wanted);
    let error = ControlNet::load(&lora, backend).unwrap_err().to_string();
    assert!(error.contains("control-LoRA"), "{error}");
}

#[test]
fn a_hint_serves_as_many_latents_as_it_goes_into() {
    let net = ControlNet::load(&checkpoint("control_sd1", "control_model.", |_| false), &backends()[0]).unwrap();
    let (x, context) = (tensor("x", &[4, 4, 2, 2]), tensor("context", &[4, 7, 64]));
    let inputs = Inputs { x: &x, timesteps: &[500.0; 4], context: &context, y: None };
    let hint = tensor("hint", &[2, 3, 16, 16]);
    let say = |hint: &Tensor| net.forward(inputs, hint, &Unwatched).map(|said| numbers(&said.middle));
    let repeated = Tensor::cat(&[&hint, &hint], 0).unwrap();
    assert_eq!(say(&hint).unwrap(), say(&repeated).unwrap());
    let refusal = |shape: &[usize]| say(&tensor("hint", shape)).unwrap_err().to_string();
    assert_eq!(refusal(&[3, 3, 16, 16]), "`hint` should have shape [4, 3, 16, 16], but has [3, 3, 16, 16]");
    assert_eq!(refusal(&[1, 3, 16, 24]), "`hint` should have shape [any, 3, 16, 16], but has [1, 3, 16, 24]");
}

#[test]
fn an_averaged_net_says_the_same_everywhere() {
    let net = checkpoint("control_sd1", "control_model.", |_| false);
    let net = ControlNet::load(&net, &backends()[0]).unwrap();
    let (x, context) = (tensor("x", &[1, 4, 2, 3]), tensor("context", &[1, 7, 64]));
    let inputs = Inputs { x: &x, timesteps: &[500.0], context: &context, y: None };
    let hint = tensor("hint", &[1, 3, 16, 24]);
    let plain = numbers(&net.forward(inputs, &hint, &Unwatched).unwrap().output[0]);
    let averaged = numbers(&net.averaged().forward(inputs, &hint, &Unwatched).unwrap().output[0]);
    for (plain, averaged) in plain.chunks(6).zip(averaged.chunks(6)) {
        let mean = plain.iter().sum::<f32>() / 6.0;
        assert!(averaged.iter().all(|x| (x - mean).abs() < 1e-5), "{averaged:?} for {mean}");
    }
    for (file, is_averaged) in
        [("x/control_shuffle.pth", true), ("a_shuffle_fp16.safetensors", true), ("shuffle.pth", false)]
    {
        assert_eq!(ControlNet::is_averaged_by_name(file.as_ref()), is_averaged, "{file}");
    }
}

#[test]
fn a_missing_tensor_of_a_control_net_is_named() {
    let lacking = checkpoint("control_sd1", "control_model.", |name| name.ends_with("zero_convs.3.0.bias"));
    let error = ControlNet::load(&lacking, &backends()[0]).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "the ControlNet model lacks tensor `zero_convs.3.0.bias`");
}

#[test]
fn a_picture_is_cut_around_its_middle_to_other_proportions() {
    let check = |from: (usize, usize), to: (usize, usize), wanted| {
        assert_eq!(centred(from.0, from.1, to.0, to.1), wanted, "{from:?} to {to:?}");
    };
    check((64, 64), (8, 8), ((0, 64), (0, 64)));
    check((64, 100), (8, 8), ((0, 64), (18, 64)));
    check((101, 64), (8, 8), ((18, 65), (0, 64))); // 18.5 is rounded to even
    check((103, 64), (8, 8), ((20, 63), (0, 64))); // and so is 19.5
    check((48, 80), (9, 5), ((0, 48), (27, 26)));
    check((1000, 1), (1, 8), ((500, 0), (0, 1)));
}

#[test]
fn a_hint_takes_the_nearest_pixels_of_the_middle() {
    // A row of pixels of which each has its own number.
    let row = |width: usize| {
        let numbers = (0..width).flat_map(|x| [x as f32; 3]);
        Tensor::from_iter(numbers, &Device::Cpu).unwrap().reshape((1, 1, width, 3)).unwrap()
    };
    let hint = hint_for(&row(2), 1, 2).unwrap();
    assert_eq!(hint.dims(), [1, 3, 8, 16]);
    assert_eq!(numbers(&hint)[..16], [[0.0; 8], [1.0; 8]].concat()[..]);
    let shrunk = numbers(&hint_for(&row(48), 1, 48).unwrap());
    assert_eq!(shrunk[..384], (0..384).map(|i| (i / 8) as f32).collect::<Vec<_>>()[..]);
    // Of 40 pixels for 16 the middles lie at 1.25, 3.75 and so on.
    let tall = Tensor::cat(&vec![row(40); 20], 1).unwrap();
    assert_eq!(numbers(&hint_for(&tall, 1, 2).unwrap())[..4], [1.0, 3.0, 6.0, 8.0]);

    let error = hint_for(&tensor("hint", &[1, 1000, 1, 3]), 1, 8).unwrap_err().to_string();
    let wanted =
        "`hint, cut to the proportions of the latent` should have shape [any, 3, any, any], but has [1, 3, 0, 1]";
    assert_eq!(error, wanted);
    assert!(hint_for(&tensor("hint", &[1, 8, 8, 4]), 1, 1).unwrap_err().to_string().starts_with("`hint` should"));
}

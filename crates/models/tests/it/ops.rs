//! Each operation with the kernels of a CPU, at each level, against candle's.

use candle_core::{DType, Device, Result, Tensor};
use models::ops::{self, Backend, Columns, Conv2d, Function, Linear, Mask, NO_ROW, Norm, Rows, Then, WindowAttention};
use models::processor::{CpuLevel, Precision};
use models::upscale::Cpu;
use weights::synthetic;

fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let spread = (shape[1..].iter().product::<usize>() as f64 / 3.0).sqrt() as f32; // synthetic tensors are weights
    let values = synthetic::tensor(name, shape).into_iter().map(|x| if name == "weight" { x } else { x * spread });
    Tensor::from_iter(values, &Device::Cpu).unwrap().reshape(shape).unwrap()
}

fn vector(name: &str, length: usize) -> Tensor {
    Tensor::from_vec(synthetic::tensor(name, &[length]), length, &Device::Cpu).unwrap()
}

/// Compares what `run` gives with candle and with the kernels of each level and precision.
fn check(what: &str, run: impl Fn(&Backend) -> Result<Tensor>) {
    let numbers = |backend: &Backend| {
        let y = run(backend).unwrap_or_else(|error| panic!("{what}: {error}"));
        (y.dims().to_vec(), y.flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    let (shape, want) = numbers(&Backend::Candle(Device::Cpu, DType::F32));
    let scale = want.iter().fold(1.0, |most: f32, x| most.max(x.abs()));
    for level in CpuLevel::ALL {
        if !level.is_available() {
            eprintln!("skipped: this processor has no {level}");
            continue;
        }
        for (precision, tolerance) in [(Precision::Exact, 1e-5), (Precision::Fast, 2e-2)] {
            let (found, got) = numbers(&Backend::Kernels(Cpu { level, precision }));
            assert_eq!(found, shape, "{what} {level}");
            let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance * scale, "{what} {level} {precision:?}: off by {worst} of {scale}");
        }
    }
}

#[test]
fn convolutions() {
    for (outputs, inputs, kernel, stride) in
        [(5, 3, 3, 1), (33, 20, 3, 1), (7, 17, 3, 2), (40, 32, 1, 1), (3, 5, 1, 2), (4, 3, 4, 4)]
    {
        for (b, h, w) in [(1, 4, 4), (2, 9, 5), (1, 17, 34)] {
            let weight = tensor("weight", &[outputs, inputs, kernel, kernel]);
            let (bias, x) = (vector("bias", outputs), tensor("x", &[b, inputs, h, w]));
            check(&format!("{kernel}x{kernel} stride {stride}, {inputs} to {outputs}, {b} of {h}x{w}"), |backend| {
                let padding = if kernel == 3 { 1 } else { 0 };
                let conv = Conv2d::new(backend, &weight, Some(&bias), stride, padding)?;
                let y = conv.forward(&x, Then::default())?;
                let residual = tensor("residual", y.dims());
                let then = Then { function: Some(Function::Silu), residual: Some(&residual) };
                let shifted = conv.forward_shifted(&x, &tensor("shift", &[b, outputs]), then)?;
                Tensor::cat(&[y, conv.forward(&x, then)?, shifted], 0)
            });
        }
    }
}

#[test]
fn convolutions_of_single_channels() {
    for (channels, kernel, h, w) in [(1, 3, 1, 1), (5, 3, 9, 20), (3, 5, 7, 33)] {
        let weight = tensor("weight", &[channels, 1, kernel, kernel]);
        let (bias, x) = (vector("bias", channels), tensor("x", &[2, channels, h, w]));
        check(&format!("{kernel}x{kernel}, {channels} channels of {h}x{w}"), |backend| {
            let then = Then { function: Some(Function::Gelu), residual: Some(&x) };
            Conv2d::depthwise(backend, &weight, Some(&bias))?.forward(&x, then)
        });
    }
}

#[test]
fn linear_layers() {
    for (outputs, inputs, rows) in [(1, 1, 1), (48, 40, 7), (34, 77, 130)] {
        let (weight, bias) = (tensor("weight", &[outputs, inputs]), vector("bias", outputs));
        let x = tensor("x", &[rows, inputs]).reshape((1, rows, inputs)).unwrap();
        check(&format!("{inputs} to {outputs}, {rows} rows"), |backend| {
            let layer = Linear::new(backend, &weight, Some(&bias))?;
            let residual = tensor("residual", &[rows, outputs]).reshape((1, rows, outputs))?;
            let then = Then { function: Some(Function::Gelu), residual: Some(&residual) };
            Tensor::cat(&[layer.forward(&x, Then::default())?, layer.forward(&x, then)?], 1)
        });
        if outputs % 2 == 0 {
            check(&format!("GEGLU {inputs} to {outputs}, {rows} rows"), |backend| {
                Linear::geglu(backend, &weight, None)?.forward(&x, Then::default())
            });
        }
    }
}

#[test]
fn attentions() {
    for (heads, width, n, m) in [(1, 1, 1, 1), (3, 40, 33, 77), (8, 64, 20, 130), (1, 200, 70, 70)] {
        let of = |name: &str, rows: usize| {
            let x = tensor(name, &[2 * rows, heads * width]);
            x.reshape((2, rows, heads * width)).unwrap()
        };
        let (q, k, v, added) = (of("q", n), of("k", m), of("v", m), tensor("mask", &[n, m]));
        let scale = (width as f64).powf(-0.5);
        for (name, mask) in [("none", Mask::None), ("causal", Mask::Causal), ("added", Mask::Added(&added))] {
            check(&format!("{heads} heads of {width}, {n} to {m}, mask {name}"), |backend| {
                ops::attention(backend, &q, &k, &v, heads, scale, mask)
            });
        }
    }
}

#[test]
fn windows_attend_by_themselves() {
    let (heads, width) = (3, 10);
    for (windows, queries, keys) in [(1, 4, 4), (5, 64, 64), (3, 49, 100)] {
        let c = heads * width;
        let (q, kv) = (tensor("q", &[windows * queries, c]), tensor("kv", &[windows * keys, 2 * c + 3]));
        let table = |name: &str| tensor(name, &[heads * keys, queries]).reshape((heads, keys, queries)).unwrap();
        let (biases, kinds) = ([table("a"), table("b")], [0, 1, 1, 0, 1]);
        for biases in [&biases[..], &[]] {
            let kinds = &kinds[..windows];
            let scale = (width as f64).powf(-0.5);
            let attention = WindowAttention { heads, width, queries, keys, scale, biases, kinds };
            check(&format!("{windows} windows, {queries} to {keys}, {} biases", biases.len()), |backend| {
                let (k, v) = (Columns { x: &kv, first: 3 }, Columns { x: &kv, first: 3 + c });
                attention.run(backend, Columns { x: &q, first: 0 }, k, v)
            });
        }
    }
}

#[test]
fn matrices() {
    let (a, b) = (tensor("a", &[7, 300]), tensor("b", &[20, 300]));
    check("product of rows", |backend| ops::product_of_rows(backend, &a, &b));
    check("product", |backend| ops::product(backend, &a, &ops::transpose(backend, &b)?));
    check("softmax", |backend| ops::softmax(backend, &a));
    check("mean", |backend| ops::mean(backend, &a));
    check("unit rows", |backend| ops::unit_rows(backend, &b));
    let rows = Rows::new(vec![3, NO_ROW, 0, 6, 1]);
    check("rows", |backend| ops::gather_rows(backend, &a, &rows));
    check("rows and back", |backend| {
        let some = ops::gather_rows(backend, &a, &rows)?;
        ops::gather_rows(backend, &some, &rows.inverse(7))
    });
    let backend = Backend::Kernels(crate::cpu());
    assert!(ops::gather_rows(&backend, &a, &Rows::new(vec![7])).is_err());
    assert!(ops::product(&backend, &a, &b).is_err());
}

#[test]
fn pictures_change_their_size() {
    let x = Tensor::from_vec(vec![0f32, 1., 2., 3., 4., 5., 6., 7., 8.], (1, 1, 3, 3), &Device::Cpu).unwrap();
    let numbers = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(numbers(ops::max_pool(&x, 2, 1).unwrap()), [4., 5., 7., 8.]);
    assert_eq!(numbers(ops::max_pool(&x, 3, 2).unwrap()), [8.]);
    assert!(ops::max_pool(&x, 4, 1).is_err());
    assert_eq!(numbers(ops::resize_bilinear(&x, (1, 2)).unwrap()), [3.25, 4.75]);
    assert_eq!(numbers(ops::resize_bilinear(&x, (3, 3)).unwrap()), numbers(x.clone()));
    // Every place is a quarter to the right of its pixel's middle, and one pixel below.
    let places = Tensor::cat(
        &[
            Tensor::full(0.25f32, (1, 4, 3, 3), &Device::Cpu).unwrap(),
            Tensor::ones((1, 4, 3, 3), DType::F32, &Device::Cpu).unwrap(),
        ],
        1,
    )
    .unwrap();
    let sampled = numbers(ops::sample(&x, &places, 1, 2).unwrap());
    assert_eq!(sampled[..6], [3.25, 3.25, 4.25, 4.25, 5., 5.]);
    assert_eq!(sampled[30..], [6.25, 6.25, 7.25, 7.25, 8., 8.]);
}

#[test]
fn norms() {
    for (groups, channels, h, w) in [(1, 1, 2, 3), (4, 20, 5, 7), (32, 320, 8, 8)] {
        let x = tensor("x", &[2, channels, h, w]);
        let norm = Norm::new(vector("a.weight", channels), vector("bias", channels), 1e-5).unwrap();
        check(&format!("{groups} groups of {channels} channels"), |backend| {
            Tensor::cat(&[norm.groups(backend, &x, groups, false)?, norm.groups(backend, &x, groups, true)?], 0)
        });
        let rows = x.reshape((2, h * w, channels)).unwrap();
        check(&format!("rows of {channels}"), |backend| norm.rows(backend, &rows));
    }
}

#[test]
fn functions_and_places() {
    let x = (tensor("x", &[2, 12, 5, 3]) * 3.0).unwrap();
    for function in [
        Function::Relu,
        Function::LeakyRelu(0.1),
        Function::Exp,
        Function::Sigmoid,
        Function::Silu,
        Function::Gelu,
        Function::GeluTanh,
        Function::QuickGelu,
        Function::Mish,
    ] {
        check(&format!("{function:?}"), |backend| ops::function(backend, function, &x));
    }
    check("pixel shuffle", |backend| ops::pixel_shuffle(backend, &x, 2));
    check("tokens and maps", |backend| ops::add_to_maps(backend, &ops::to_tokens(backend, &(&x * 2.0)?)?, &x));
    check("nearest", |backend| ops::upsample_nearest(backend, &x, 3));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let backend = Backend::Kernels(crate::cpu());
    let weight = tensor("weight", &[4, 3, 3, 3]);
    let conv = Conv2d::new(&backend, &weight, None, 1, 1).unwrap();
    let shift = tensor("shift", &[1, 3]);
    assert!(conv.forward_shifted(&tensor("x", &[1, 3, 8, 8]), &shift, Then::default()).is_err());
    assert!(ops::add_to_maps(&backend, &tensor("x", &[1, 4, 3]), &tensor("x", &[1, 3, 2, 3])).is_err());
    let error = conv.forward(&tensor("x", &[1, 4, 8, 8]), Then::default()).unwrap_err().to_string();
    assert!(error.contains("a convolution of 3 channels cannot take [1, 4, 8, 8]"), "{error}");
    assert!(Conv2d::new(&backend, &weight, Some(&vector("bias", 3)), 1, 1).is_err());
    let layer = Linear::new(&backend, &tensor("weight", &[4, 3]), None).unwrap();
    assert!(layer.forward(&tensor("x", &[2, 4]), Then::default()).is_err());
    let x = tensor("x", &[1, 6]).reshape((1, 1, 6)).unwrap();
    assert!(ops::attention(&backend, &x, &x, &x, 4, 1.0, Mask::None).is_err());
    assert!(ops::pixel_shuffle(&backend, &tensor("x", &[1, 6, 2, 2]), 2).is_err());
}

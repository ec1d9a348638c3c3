//! The networks of latent diffusion at tiny sizes; their numbers are checked against the reference by the goldens program.

use candle_core::{DType, Device, Tensor};
use models::{
    diffusion::{
        unet::{Inputs, Unet},
        vae::Vae,
    },
    error::ModelError,
    ops::Backend,
    watch::Unwatched,
};
use serde_json::Value;
use weights::{checkpoint::Checkpoint, synthetic};

/// The tensors below `prefix` of a model in `models.json`, without those that `without` chooses.
pub fn checkpoint(model: &str, prefix: &str, without: impl Fn(&str) -> bool) -> Checkpoint {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/diffusion/models.json");
    let models: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tensors: Vec<(String, Vec<usize>)> = models["models"][model]["tensors"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| name.starts_with(prefix) && !without(name))
        .map(|(name, shape)| (name.clone(), serde_json::from_value(shape.clone()).unwrap()))
        .collect();
    Checkpoint::from_bytes(synthetic::network(&tensors)).unwrap().part(prefix)
}

pub fn backends() -> [Backend; 2] {
    [Backend::Kernels(crate::cpu()), Backend::Candle(Device::Cpu, DType::F32)]
}

pub fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let values = synthetic::tensor("x.bias", &[shape.iter().product()]).into_iter().map(|x| x * 50.0);
    Tensor::from_iter(values, &Device::Cpu).unwrap().reshape(shape).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub fn check_close(what: &str, outputs: &[Tensor]) {
    let numbers: Vec<Vec<f32>> = outputs.iter().map(|x| x.flatten_all().unwrap().to_vec1().unwrap()).collect();
    let scale = numbers[1].iter().fold(1.0, |most: f32, x| most.max(x.abs()));
    for (got, want) in numbers[0].iter().zip(&numbers[1]) {
        assert!((got - want).abs() <= 1e-4 * scale, "{what}: {got} and {want}");
    }
}

#[test]
fn kernels_and_candle_agree_on_odd_sizes() {
    let unet = checkpoint("sd1", "model.diffusion_model.", |_| false);
    let (x, context) = (tensor("x", &[2, 4, 5, 9]), tensor("context", &[2, 7, 64]));
    let inputs = Inputs { x: &x, timesteps: &[999.0, 0.0], context: &context, y: None };
    check_close(
        "unet",
        &backends().map(|backend| Unet::load(&unet, &backend).unwrap().forward(inputs, None, &Unwatched).unwrap()),
    );

    let vae = checkpoint("sd1", "first_stage_model.", |_| false);
    let (pictures, latents) = (tensor("pictures", &[1, 3, 24, 8]), tensor("latents", &[2, 4, 3, 1]));
    let vaes = backends().map(|backend| Vae::load(&vae, &backend).unwrap());
    check_close("encoder", &vaes.each_ref().map(|vae| vae.encode(&pictures, &Unwatched).unwrap()));
    check_close("decoder", &vaes.each_ref().map(|vae| vae.decode_raw(&latents, &Unwatched).unwrap()));
    assert_eq!(vaes[0].crop(&tensor("pictures", &[1, 3, 27, 15])).unwrap().dims(), [1, 3, 24, 8]);
    assert!(matches!(vaes[0].crop(&tensor("pictures", &[1, 3, 7, 15])), Err(ModelError::Tensor { .. })));
}

#[test]
fn a_missing_tensor_is_named() {
    let lacking = checkpoint("sd1", "model.diffusion_model.", |name| name.ends_with("input_blocks.5.1.proj_in.bias"));
    let error = Unet::load(&lacking, &backends()[0]).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "the UNet model lacks tensor `input_blocks.5.1.proj_in.bias`");
}

#[test]
fn what_does_not_fit_the_network_is_refused_by_name() {
    let unet = Unet::load(&checkpoint("sdxl", "model.diffusion_model.", |_| false), &backends()[0]).unwrap();
    let dim = unet.layout().context_dim;
    let (x, context) = (tensor("x", &[1, 4, 8, 8]), tensor("context", &[1, 7, dim]));
    let y = tensor("y", &[1, unet.layout().adm_in_channels.unwrap()]);
    let refusal = |x: &Tensor, context: &Tensor, y: Option<&Tensor>| {
        let inputs = Inputs { x, timesteps: &[1.0], context, y };
        unet.forward(inputs, None, &Unwatched).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(refusal(&x, &context, Some(&y)), Ok(()));
    let error = refusal(&tensor("x", &[1, 9, 8, 8]), &context, Some(&y)).unwrap_err();
    assert_eq!(error, "`x` should have shape [1, 4, any, any], but has [1, 9, 8, 8]");
    assert!(refusal(&x, &tensor("context", &[1, 7, dim + 1]), Some(&y)).unwrap_err().starts_with("`context`"));
    assert!(refusal(&x, &tensor("context", &[2, 7, dim]), Some(&y)).unwrap_err().starts_with("`context`"));
    assert!(refusal(&x, &context, None).unwrap_err().starts_with("`y`"));
}

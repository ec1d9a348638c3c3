//! Encoding and decoding in tiles, and around masks; the numbers are checked against the reference by the goldens program.

use std::sync::Mutex;

use candle_core::Tensor;
use models::{
    diffusion::vae::{Tiling, Vae},
    error::ModelError,
    watch::Unwatched,
};

use crate::diffusion::{backends, check_close, checkpoint, tensor};

fn vae() -> Vae {
    Vae::load(&checkpoint("sd1", "first_stage_model.", |_| false), &backends()[0]).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn what_fits_in_a_tile_is_the_whole() {
    let vae = vae();
    let (latents, pictures) = (tensor("latents", &[2, 4, 4, 3]), tensor("pictures", &[1, 3, 32, 24]));
    let tiling = Tiling { width: 8, height: 8, overlap: 2 };
    let tiled = vae.decode_tiled(&latents, tiling, &Unwatched).unwrap();
    check_close("decoder", &[tiled, vae.decode(&latents, &Unwatched).unwrap()]);
    let tiled = vae.encode_tiled(&pictures, Tiling::OF_PICTURES, &Unwatched).unwrap();
    check_close("encoder", &[tiled, vae.encode(&pictures, &Unwatched).unwrap()]);
}

#[test]
fn tiles_that_cannot_be_blended_are_refused() {
    let vae = vae();
    let latents = tensor("latents", &[1, 4, 9, 9]);
    let refusal = |width, height, overlap| {
        let tiling = Tiling { width, height, overlap };
        vae.decode_tiled(&latents, tiling, &Unwatched).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(refusal(6, 6, 2), Ok(()));
    for (width, height, overlap) in [(6, 6, 3), (7, 8, 3), (8, 7, 3), (1, 8, 0), (0, 0, 0)] {
        let error = refusal(width, height, overlap).unwrap_err();
        assert!(error.starts_with(&format!("tiles of {width} x {height} with an overlap of {overlap}")), "{error}");
    }
    // Tiles of 50 pixels begin 42 pixels apart, and of the last 22 only two latents remain.
    let odd = Tiling { width: 100, height: 100, overlap: 8 };
    let error = vae.encode_tiled(&tensor("pictures", &[1, 3, 64, 64]), odd, &Unwatched).unwrap_err();
    assert!(matches!(error, ModelError::Tiles { .. }), "{error}");
}

#[test]
fn the_nodes_count_in_pixels_and_the_decoder_limits_the_overlap() {
    let latents = |width, overlap| Tiling { width, height: width, overlap };
    assert_eq!(Tiling::of_decode_node(512, 64, 8), latents(64, 8));
    assert_eq!(Tiling::of_decode_node(64, 64, 8), latents(8, 2));
    assert_eq!(Tiling::of_decode_node(96, 24, 8), latents(12, 3));
    assert_eq!(Tiling::of_encode_node(512, 64), Tiling::OF_PICTURES);
}

#[test]
fn progress_rises_through_all_tiles_and_can_be_stopped() {
    let vae = vae();
    let latents = tensor("latents", &[1, 4, 9, 9]);
    let heard = Mutex::new(Vec::new());
    let watch = |done: f64| {
        heard.lock().unwrap().push(done);
        true
    };
    let tiling = Tiling { width: 6, height: 6, overlap: 2 };
    vae.decode_tiled(&latents, tiling, &watch).unwrap();
    let heard = heard.into_inner().unwrap();
    assert!(heard.is_sorted() && heard[0] == 0.0 && (heard.last().unwrap() - 1.0).abs() < 1e-9, "{heard:?}");
    let error = vae.decode_tiled(&latents, tiling, &|done: f64| done < 0.5).unwrap_err();
    assert!(matches!(error, ModelError::Interrupted));
}

#[test]
fn a_mask_grows_and_what_it_covers_becomes_grey() {
    let vae = vae();
    let picture = tensor("pictures", &[1, 3, 19, 16]);
    let mut mask = vec![0f32; 19 * 16];
    mask[9 * 16 + 8] = 0.6; // row 9, which is row 8 of what is left of 19 rows
    mask[3] = 0.5; // a half does not count
    let mask = Tensor::from_vec(mask, (1, 19, 16), picture.device()).unwrap();
    let covered = |grow: usize| {
        let grey = vae.encode_for_inpaint(&picture, &mask, grow, &Unwatched).unwrap();
        assert_eq!((grey.latents.dims(), grey.noise_mask.dims()), (&[1, 4, 2, 2][..], &[1, 1, 16, 16][..]));
        let numbers = numbers(&grey.noise_mask);
        let places = (0..256).filter(|i| numbers[*i] == 1.0).map(|i| (i / 16, i % 16)).collect::<Vec<_>>();
        assert_eq!(numbers.iter().filter(|number| **number != 0.0).count(), places.len());
        (places[0], places[places.len() - 1], places.len())
    };
    assert_eq!(covered(0), ((8, 8), (8, 8), 1));
    assert_eq!(covered(3), ((7, 7), (9, 9), 9));
    assert_eq!(covered(6), ((6, 6), (11, 11), 36));
    assert_eq!(covered(40), ((0, 0), (15, 15), 256));

    // Everything covered: the picture does not matter.
    let all = Tensor::ones((1, 4, 4), candle_core::DType::F32, picture.device()).unwrap();
    let one = vae.encode_for_inpaint_model(&picture, &all, &Unwatched).unwrap();
    let other = vae.encode_for_inpaint_model(&(&picture * 0.5).unwrap(), &all, &Unwatched).unwrap();
    assert_eq!(numbers(&one.concat_latent_image), numbers(&other.concat_latent_image));
    assert_ne!(numbers(&one.latents), numbers(&other.latents));
    assert_eq!(one.concat_mask.dims(), [1, 1, 16, 16]);

    let two = Tensor::cat(&[&all, &all], 0).unwrap();
    let error = vae.encode_for_inpaint(&picture, &two, 6, &Unwatched).unwrap_err().to_string();
    assert_eq!(error, "`mask` should have shape [1, any, any], but has [2, 4, 4]");
}

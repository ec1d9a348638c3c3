//! The operations of the `pixels` form: a table, pictures between a case and the types of `imaging`, and the
//! operations on numbers, sizes and whole pictures.

use anyhow::{Context, anyhow, bail};
use domain::region::Size;
use imaging::{
    bytes::{from_u8, quantise},
    flows::SegsUpscaler,
    frames::Frames,
    resample::{Crop, common_upscale as upscale, image_scale_by_size, image_scale_size, tensor_resize as resize},
    tiled::steps,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer, Failure, Got,
    cases::{Case, Tensor, Tensors},
    flows, networks, segs,
};

/// Replays a case.
pub type Op = fn(&Case, &Tensors) -> Answer;

/// Every operation that can be replayed.
pub const OPS: &[(&str, Op)] = &[
    ("image_to_u8", image_to_u8),
    ("u8_to_image", u8_to_image),
    ("flatten_mask", segs::flatten_mask),
    ("make_crop_region", |case, _| table(case, &["region"], segs::crop_region_row)),
    ("normalize_region", |case, _| table(case, &["out"], segs::normalize_region_row)),
    ("tiled_scale_steps", |case, _| table(case, &["steps"], steps_row)),
    ("crop_condition_mask", |case, _| table(case, &["out_hw", "first"], segs::condition_mask_row)),
    ("size_requirements", |case, _| table(case, &["pad_right_bottom"], networks::size_requirements_row)),
    ("size_requirements_pad", networks::size_requirements_pad),
    ("tiled_scale", networks::tiled_scale),
    ("image_upscale_with_model", networks::image_upscale_with_model),
    ("sr_model", networks::sr_model),
    ("sr_detect", networks::sr_detect),
    ("common_upscale", common_upscale),
    ("image_scale", |case, _| table(case, &["out_hw"], image_scale_row)),
    ("tensor_resize", tensor_resize),
    ("resize_mask", segs::resize_mask),
    ("gaussian_blur_mask", segs::gaussian_blur_mask),
    ("dilate_mask", segs::dilate_mask),
    ("mask_to_segs", segs::mask_to_segs),
    ("mask_to_segs_animated", segs::mask_to_segs_animated),
    ("make_tile_segs", segs::make_tile_segs),
    ("segs_scale_match", segs::segs_scale_match),
    ("segs_to_combined_mask", segs::segs_to_combined_mask),
    ("segs_to_mask_list", segs::segs_to_mask_list),
    ("segs_bitwise_and_mask", segs::segs_bitwise_and_mask),
    ("segs_bitwise_subtract_mask", segs::segs_bitwise_subtract_mask),
    ("segs_dilate", segs::segs_dilate),
    ("tensor_paste", segs::tensor_paste),
    ("segs_paste", segs::segs_paste),
    ("segs_upscaler_size", |case, _| table(case, &["out_hw"], upscaler_size_row)),
    ("segs_upscaler_enlarge", flows::segs_upscaler_enlarge),
    ("segs_upscaler_flow", flows::segs_upscaler_flow),
    ("detailer_size", |case, _| table(case, &["result_wh"], flows::detailer_size_row)),
    ("segs_detailer_flow", flows::segs_detailer_flow),
    ("segs_detailer_animated_flow", flows::segs_detailer_animated_flow),
    ("upscale_with_model_then_scale", flows::upscale_with_model_then_scale),
    ("two_samplers_schedule", |case, _| table(case, &["full_at_zero_based_steps"], flows::schedule_row)),
    ("two_samplers_masks", flows::two_samplers_masks),
];

/// A size out of (height, width), the order of the reference.
pub fn to_size([height, width]: [usize; 2]) -> Size {
    Size::new(width as u32, height as u32)
}

/// A picture with channels last, `[h, w, c]` or `[frames, h, w, c]`; bytes become `k / 255`.
pub fn to_frames(tensor: &Tensor) -> anyhow::Result<Frames> {
    let (frames, height, width, channels) = match tensor.shape[..] {
        [height, width, channels] => (1, height, width, channels),
        [frames, height, width, channels] => (frames, height, width, channels),
        _ => bail!("a picture has shape {:?}", tensor.shape),
    };
    let data = match tensor.is_bytes {
        true => tensor.data.iter().map(|&byte| from_u8(byte as u8)).collect(),
        false => tensor.data.clone(),
    };
    Ok(Frames::new(frames, to_size([height, width]), channels, data)?)
}

/// A picture as a tensor with channels last.
pub fn frames_tensor(frames: &Frames) -> Tensor {
    Tensor::floats(&[frames.frames, frames.height, frames.width, frames.channels], frames.data.clone())
}

/// A picture as a tensor with channels before rows.
pub fn channels_first(frames: &Frames) -> Tensor {
    let mut data = Vec::with_capacity(frames.data.len());
    for frame in frames.data.chunks_exact(frames.frame_len()) {
        (0..frames.channels).for_each(|c| data.extend(frame.iter().skip(c).step_by(frames.channels)));
    }
    Tensor::floats(&[frames.frames, frames.channels, frames.height, frames.width], data)
}

/// A picture whose tensor has channels before rows: `[n, c, h, w]`.
pub fn from_channels_first(tensor: &Tensor) -> anyhow::Result<Frames> {
    let [frames, channels, height, width] = tensor.shape[..] else {
        bail!("a batch of pictures has shape {:?}", tensor.shape)
    };
    let plane = height * width;
    let mut data = Vec::with_capacity(tensor.data.len());
    for frame in tensor.data.chunks_exact(plane * channels) {
        (0..plane).for_each(|i| data.extend(frame.iter().skip(i).step_by(plane)));
    }
    Ok(Frames::new(frames, to_size([height, width]), channels, data)?)
}

/// Computes the columns `computed` of every row of a table. A row that is refused has null in them.
fn table(case: &Case, computed: &[&str], compute: fn(&Value) -> Result<Value, Failure>) -> Answer {
    let rows = case.get("expect")["rows"].as_array().context("the case has no rows")?;
    let answer = |row: &Value| {
        let mut row = row.clone();
        let values = match compute(&row) {
            Ok(values) => values,
            Err(Failure::Refused(_)) => json!({}),
            Err(other) => return Err(other),
        };
        computed.iter().for_each(|key| row[*key] = values[*key].clone());
        Ok(row)
    };
    let rows = rows.iter().map(answer).collect::<Result<Vec<_>, Failure>>()?;
    Ok(Got::default().value("rows", rows))
}

fn image_to_u8(case: &Case, tensors: &Tensors) -> Answer {
    let image = case.input(tensors, "image")?;
    Ok(Got::default().tensor("u8", Tensor::bytes(&image.shape, &quantise(&image.data))))
}

fn u8_to_image(case: &Case, tensors: &Tensors) -> Answer {
    let frames = to_frames(case.input(tensors, "u8")?)?;
    Ok(Got::default().tensor("image", frames_tensor(&frames)))
}

fn steps_row(row: &Value) -> Result<Value, Failure> {
    #[derive(Deserialize)]
    struct Row {
        width: u32,
        height: u32,
        tile_x: u32,
        tile_y: u32,
        overlap: u32,
    }
    let Row { width, height, tile_x, tile_y, overlap } = segs::read_row(row)?;
    Ok(json!({"steps": steps(Size::new(width, height), Size::new(tile_x, tile_y), overlap)}))
}

fn image_scale_row(row: &Value) -> Result<Value, Failure> {
    #[derive(Deserialize)]
    struct Row {
        image_hw: [usize; 2],
        width: Option<u32>,
        height: Option<u32>,
        scale_by: Option<f64>,
    }
    let size = match segs::read_row(row)? {
        Row { image_hw, scale_by: Some(scale_by), .. } => image_scale_by_size(to_size(image_hw), scale_by)?,
        Row { image_hw, width: Some(width), height: Some(height), .. } => {
            image_scale_size(to_size(image_hw), width, height)
        }
        _ => return Err(anyhow!("row {row} names neither a size nor a factor").into()),
    };
    Ok(json!({"out_hw": [size.height, size.width]}))
}

fn upscaler_size_row(row: &Value) -> Result<Value, Failure> {
    #[derive(Deserialize)]
    struct Row {
        image_hw: [usize; 2],
        rescale_factor: f64,
    }
    let Row { image_hw, rescale_factor } = segs::read_row(row)?;
    let node = SegsUpscaler {
        rescale_factor,
        supersample: false,
        feather: 0,
        noise_mask_feather: 0,
        seed: 0,
        reference_quirks: true,
    };
    let size = node.size(to_size(image_hw))?;
    Ok(json!({"out_hw": [size.height, size.width]}))
}

fn common_upscale(case: &Case, tensors: &Tensors) -> Answer {
    let image = case.input(tensors, "image")?;
    let to = Size::new(case.param("width")?, case.param("height")?);
    let method = case.param::<String>("method")?.parse()?;
    let crop = match case.param::<String>("crop")?.as_str() {
        "center" => Crop::Center,
        "disabled" => Crop::Disabled,
        other => return Err(anyhow!("`{other}` is no way to crop").into()),
    };
    let out = match image.shape[..] {
        [_, _, _] => channels_first(&upscale(&to_frames(image)?, to, method, crop)?),
        // Frames of a video, [n, c, t, h, w], are resized one by one, as if each were channels of its own.
        [n, c, t, height, width] => {
            let planes = Tensor { shape: vec![n, c * t, height, width], ..image.clone() };
            let mut out = channels_first(&upscale(&from_channels_first(&planes)?, to, method, crop)?);
            out.shape = vec![n, c, t, to.height as usize, to.width as usize];
            out
        }
        _ => channels_first(&upscale(&from_channels_first(image)?, to, method, crop)?),
    };
    Ok(Got::default().tensor("image", out))
}

fn tensor_resize(case: &Case, tensors: &Tensors) -> Answer {
    let image = to_frames(case.input(tensors, "image")?)?;
    let to = Size::new(case.param("width")?, case.param("height")?);
    Ok(Got::default().tensor("image", frames_tensor(&resize(&image, to)?)))
}

//! Segments and masks between a case and the types of `imaging`, and the operations on them.

use anyhow::{Context, anyhow, bail};
use domain::region::{Corners, Size};
use imaging::{
    frames::Frames,
    mask::{Mask, condition_mask_region},
    paste::{segs_paste as paste, tensor_paste as paste_tensor},
    segs::{Seg, Segs, from_mask::MaskToSegs, make_crop_region, normalize_region, tiles::MakeTileSegs},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer, Failure, Got,
    cases::{Case, Tensor, Tensors},
    pixels::{frames_tensor, to_frames, to_size},
};

/// A mask of floats, or of bytes 0 and 1: `[h, w]` or `[frames, h, w]`, with or without a last side of 1.
pub fn to_mask(tensor: &Tensor) -> anyhow::Result<Mask> {
    let (frames, height, width) = match tensor.shape[..] {
        [height, width] => (1, height, width),
        [frames, height, width] | [frames, height, width, 1] => (frames, height, width),
        _ => bail!("a mask has shape {:?}", tensor.shape),
    };
    Ok(Mask::new(frames, to_size([height, width]), tensor.data.clone())?)
}

/// A mask as a tensor: `[h, w]`, or `[frames, h, w]` where there are several.
pub fn mask_tensor(mask: &Mask) -> Tensor {
    Tensor::floats(&[mask.frames, mask.height, mask.width], mask.data.clone())
}

#[derive(Deserialize)]
struct SegsParam {
    header: [usize; 2],
    segs: Vec<SegParam>,
}

#[derive(Deserialize)]
struct SegParam {
    crop_region: [i64; 4],
    bbox: [i64; 4],
    confidence: f64,
    label: String,
    mask: String,
    image: Option<String>,
}

fn corners([x1, y1, x2, y2]: [i64; 4]) -> Corners {
    Corners { x1, y1, x2, y2 }
}

fn listed(corners: &Corners) -> Value {
    json!([corners.x1, corners.y1, corners.x2, corners.y2])
}

/// The segments that the parameter `key` describes, or `None` where there is no such parameter.
fn segs_if_any(case: &Case, tensors: &Tensors, key: &str) -> anyhow::Result<Option<Segs>> {
    let Some(SegsParam { header, segs }) = case.param_if_any(key)? else { return Ok(None) };
    let seg = |seg: SegParam| {
        let image = |name: &String| to_frames(case.input(tensors, name)?);
        Ok(Seg {
            cropped_image: seg.image.as_ref().map(image).transpose()?,
            cropped_mask: to_mask(case.input(tensors, &seg.mask)?)?,
            confidence: seg.confidence,
            crop_region: corners(seg.crop_region),
            bbox: corners(seg.bbox),
            label: seg.label,
        })
    };
    let segs = segs.into_iter().map(seg).collect::<anyhow::Result<_>>()?;
    Ok(Some(Segs { header: to_size(header), segs }))
}

/// The segments of the parameter `segs`.
pub fn segs_param(case: &Case, tensors: &Tensors) -> anyhow::Result<Segs> {
    segs_if_any(case, tensors, "segs")?.context("the case has no parameter `segs`")
}

/// What a case may say of a mask in place of a tensor.
const ONLY_BBOX: &str = "1 inside the bbox, 0 elsewhere in the crop region";

/// Adds segments to an answer, their tensors under the names that the case has for them.
pub fn put_segs(mut got: Got, case: &Case, segs: &Segs) -> Got {
    let names = &case.get("expect")["segs"];
    let mut list = Vec::new();
    for (i, seg) in segs.segs.iter().enumerate() {
        let name = |key: &str| names[i][key].as_str().map_or_else(|| format!("seg{i}_{key}"), str::to_owned);
        let mut value = json!({
            "crop_region": listed(&seg.crop_region),
            "bbox": listed(&seg.bbox),
            "confidence": seg.confidence,
            "label": seg.label,
        });
        value["mask"] = match name("mask") {
            told if told == ONLY_BBOX && !is_only_bbox(seg) => json!("something else"),
            told => {
                got.tensors.insert(told.clone(), mask_tensor(&seg.cropped_mask));
                json!(told)
            }
        };
        if let Some(image) = &seg.cropped_image {
            value["image"] = json!(name("image"));
            got.tensors.insert(name("image"), frames_tensor(image));
        }
        list.push(value);
    }
    got.value("header", json!([segs.header.height, segs.header.width])).value("segs", list)
}

fn is_only_bbox(seg: &Seg) -> bool {
    let Corners { x1, y1, .. } = seg.crop_region;
    let inside = |i: usize| {
        let (x, y) = ((i % seg.cropped_mask.width) as i64 + x1, (i / seg.cropped_mask.width) as i64 + y1);
        (seg.bbox.x1..seg.bbox.x2).contains(&x) && (seg.bbox.y1..seg.bbox.y2).contains(&y)
    };
    seg.cropped_mask.data.iter().enumerate().all(|(i, &x)| x == f32::from(u8::from(inside(i))))
}

pub fn gaussian_blur_mask(case: &Case, tensors: &Tensors) -> Answer {
    let mask = to_mask(case.input(tensors, "mask")?)?;
    let blurred = mask.gaussian_blur(case.param("kernel_size")?, case.param("sigma")?);
    Ok(Got::default().tensor("mask", frames_tensor(&blurred.to_frames())))
}

pub fn dilate_mask(case: &Case, tensors: &Tensors) -> Answer {
    let mask = to_mask(case.input(tensors, "mask")?)?;
    Ok(Got::default().tensor("mask", mask_tensor(&mask.dilate(case.param("dilation")?))))
}

pub fn resize_mask(case: &Case, tensors: &Tensors) -> Answer {
    let mask = to_mask(case.input(tensors, "mask")?)?;
    let to = Size::new(case.param("width")?, case.param("height")?);
    Ok(Got::default().tensor("mask", mask_tensor(&mask.resize(to)?)))
}

pub fn crop_region_row(row: &Value) -> Result<Value, Failure> {
    #[derive(Deserialize)]
    struct Row {
        w: u32,
        h: u32,
        bbox: [i64; 4],
        crop_factor: f64,
        min_size: Option<f64>,
    }
    let Row { w, h, bbox, crop_factor, min_size } = read_row(row)?;
    let region = make_crop_region(Size::new(w, h), &corners(bbox), crop_factor, min_size);
    Ok(json!({"region": listed(&region)}))
}

pub fn normalize_region_row(row: &Value) -> Result<Value, Failure> {
    #[derive(Deserialize)]
    struct Row {
        limit: i64,
        start: i64,
        size: f64,
    }
    let Row { limit, start, size } = read_row(row)?;
    Ok(json!({"out": normalize_region(limit, start, size)}))
}

pub fn condition_mask_row(row: &Value) -> Result<Value, Failure> {
    #[derive(Deserialize)]
    struct Row {
        image_hw: [usize; 2],
        mask_hw: [usize; 2],
        region: [i64; 4],
    }
    let Row { image_hw, mask_hw, region } = read_row(row)?;
    let cut = condition_mask_region(&corners(region), to_size(image_hw), to_size(mask_hw), true);
    let first = (cut.size().pixels() > 0).then(|| u64::from(cut.y) * mask_hw[1] as u64 + u64::from(cut.x));
    Ok(json!({"out_hw": [cut.height, cut.width], "first": first}))
}

/// Reads a row of a table.
pub fn read_row<T: serde::de::DeserializeOwned>(row: &Value) -> Result<T, Failure> {
    serde_json::from_value(row.clone()).map_err(|error| anyhow!(error).context(format!("row {row}")).into())
}

fn mask_to_segs_node(case: &Case) -> anyhow::Result<MaskToSegs> {
    Ok(MaskToSegs {
        combined: case.param("combined")?,
        crop_factor: case.param("crop_factor")?,
        bbox_fill: case.param("bbox_fill")?,
        drop_size: case.param("drop_size")?,
        contour_fill: case.param("contour_fill")?,
        crop_min_size: case.param_if_any("crop_min_size")?,
    })
}

pub fn mask_to_segs(case: &Case, tensors: &Tensors) -> Answer {
    let mask = to_mask(case.input(tensors, "mask")?)?;
    Ok(put_segs(Got::default(), case, &mask_to_segs_node(case)?.run(&mask)))
}

pub fn mask_to_segs_animated(case: &Case, tensors: &Tensors) -> Answer {
    let mask = to_mask(case.input(tensors, "mask")?)?;
    Ok(put_segs(Got::default(), case, &mask_to_segs_node(case)?.run_animated(&mask)?))
}

pub fn make_tile_segs(case: &Case, tensors: &Tensors) -> Answer {
    let mode: String = case.param("irregular_mask_mode")?;
    let node = MakeTileSegs {
        bbox_size: case.param("bbox_size")?,
        crop_factor: case.param("crop_factor")?,
        min_overlap: case.param("min_overlap")?,
        filter_segs_dilation: case.param("filter_segs_dilation")?,
        mask_irregularity: case.param("mask_irregularity")?,
        irregular_mask_mode: mode.parse()?,
    };
    let filter = |key| segs_if_any(case, tensors, key);
    let (filter_in, filter_out) = (filter("filter_in")?, filter("filter_out")?);
    let drawn = if case.has_input("drawn") { Some(to_mask(case.input(tensors, "drawn")?)?) } else { None };
    let mut calls = Vec::new();
    let draw = |side: u32, irregularity: f64| {
        calls.push(json!([[side, side], [0, 0, side, side], irregularity]));
        match &drawn {
            Some(drawn) => enlarged(drawn, side as usize / drawn.width),
            None => Mask::zeros(Size::new(side, side)),
        }
    };
    let size = to_size(case.param("image_hw")?);
    let segs = node.run(size, filter_in.as_ref(), filter_out.as_ref(), draw)?;
    Ok(put_segs(Got::default(), case, &segs).value("drawing_calls", calls))
}

/// Every value repeated `times` x `times`.
fn enlarged(mask: &Mask, times: usize) -> Mask {
    let rows =
        mask.data.chunks_exact(mask.width).map(|row| row.iter().flat_map(|&x| vec![x; times]).collect::<Vec<_>>());
    let data = rows.flat_map(|row| row.repeat(times)).collect();
    Mask { frames: 1, height: mask.height * times, width: mask.width * times, data }
}

pub fn segs_scale_match(case: &Case, tensors: &Tensors) -> Answer {
    let target = to_size(case.param("target_hw")?);
    Ok(put_segs(Got::default(), case, &segs_param(case, tensors)?.scale_match(target, true)?))
}

pub fn segs_to_combined_mask(case: &Case, tensors: &Tensors) -> Answer {
    Ok(Got::default().tensor("mask", mask_tensor(&segs_param(case, tensors)?.combined_mask()?)))
}

pub fn segs_to_mask_list(case: &Case, tensors: &Tensors) -> Answer {
    Ok(Got::default().tensor("masks", mask_tensor(&segs_param(case, tensors)?.mask_list()?)))
}

pub fn segs_bitwise_and_mask(case: &Case, tensors: &Tensors) -> Answer {
    let mask = to_mask(case.input(tensors, "mask")?)?;
    Ok(put_segs(Got::default(), case, &segs_param(case, tensors)?.bitwise_and_mask(&mask)?))
}

pub fn segs_bitwise_subtract_mask(case: &Case, tensors: &Tensors) -> Answer {
    let mask = to_mask(case.input(tensors, "mask")?)?;
    Ok(put_segs(Got::default(), case, &segs_param(case, tensors)?.bitwise_subtract_mask(&mask)?))
}

pub fn segs_dilate(case: &Case, tensors: &Tensors) -> Answer {
    Ok(put_segs(Got::default(), case, &segs_param(case, tensors)?.dilate(case.param("dilation")?)))
}

pub fn tensor_paste(case: &Case, tensors: &Tensors) -> Answer {
    let mut picture = to_frames(case.input(tensors, "image")?)?;
    let patch = to_frames(case.input(tensors, "patch")?)?;
    let mask = to_mask(case.input(tensors, "mask")?)?;
    let [x, y]: [i64; 2] = case.param("left_top")?;
    paste_tensor(&mut picture, &patch, (x, y), &mask)?;
    Ok(Got::default().tensor("image", frames_tensor(&picture)))
}

pub fn segs_paste(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    let reference: Option<Frames> =
        if case.has_input("ref_image") { Some(to_frames(case.input(tensors, "ref_image")?)?) } else { None };
    let (segs, feather, alpha) = (segs_param(case, tensors)?, case.param("feather")?, case.param("alpha")?);
    Ok(Got::default()
        .tensor("image", frames_tensor(&paste(&picture, &segs, reference.as_ref(), feather, alpha, true)?)))
}

/// The bytes of two masks, joined.
pub fn flatten_mask(case: &Case, tensors: &Tensors) -> Answer {
    let (a, b) = (case.input(tensors, "a")?, case.input(tensors, "b")?);
    let mut joined = vec![0; a.data.len()];
    imaging::bytes::or_into(&mut joined, &a.data);
    imaging::bytes::or_into(&mut joined, &b.data);
    Ok(Got::default().tensor("u8", Tensor::bytes(&a.shape, &joined)))
}

//! Padding at the right and the bottom, for networks that do not take every size (the reference's size requirements).
//!
//! A line beyond the border mirrors the picture, without repeating the outermost line; where the picture is too small for
//! that, its first line is repeated, which is where the mirror ended.

use candle_core::Tensor;

/// Returns which of `length` lines stands at place `i`, inside or behind the picture.
fn source(i: usize, length: usize) -> usize {
    if i < length { i } else { (2 * (length - 1)).saturating_sub(i) }
}

/// Pads each channel of `planes`, which are `height` rows of `width` values, by `right` columns and `bottom` rows.
///
/// # Panics
/// If `planes` is no whole number of planes, or one side is 0.
pub fn pad(planes: &[f32], width: usize, height: usize, right: usize, bottom: usize) -> Vec<f32> {
    assert!(width > 0 && height > 0 && planes.len().is_multiple_of(width * height), "planes of {width}x{height}");
    let mut padded = Vec::with_capacity(planes.len() / (width * height) * (width + right) * (height + bottom));
    for plane in planes.chunks_exact(width * height) {
        for y in 0..height + bottom {
            let row = &plane[source(y, height) * width..][..width];
            padded.extend((0..width + right).map(|x| row[source(x, width)]));
        }
    }
    padded
}

/// Pads a tensor `[b, c, h, w]` by `right` columns and `bottom` rows, as [`pad`] does.
pub fn pad_tensor(x: &Tensor, right: usize, bottom: usize) -> candle_core::Result<Tensor> {
    let along = |x: &Tensor, axis: usize, more: usize| {
        if more == 0 {
            return Ok(x.clone());
        }
        let length = x.dim(axis)?;
        let lines: Vec<u32> = (0..length + more).map(|i| source(i, length) as u32).collect();
        x.index_select(&Tensor::new(lines, x.device())?, axis)
    };
    along(&along(x, 2, bottom)?, 3, right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn lines_are_mirrored_and_then_repeated() {
        let check = |row: &[f32], more, expected: &[f32]| {
            assert_eq!(pad(row, row.len(), 1, more, 0), expected, "as a row");
            assert_eq!(pad(row, 1, row.len(), 0, more), expected, "as a column");
        };
        check(&[1., 2., 3.], 0, &[1., 2., 3.]);
        check(&[1., 2., 3.], 2, &[1., 2., 3., 2., 1.]);
        check(&[1., 2., 3.], 4, &[1., 2., 3., 2., 1., 1., 1.]);
        check(&[1.], 2, &[1., 1., 1.]);
        check(&[1., 2.], 3, &[1., 2., 1., 1., 1.]);
    }

    #[test]
    fn tensors_are_padded_as_slices_are() {
        let values: Vec<f32> = (0..2 * 3 * 5).map(|i| i as f32).collect();
        let tensor = Tensor::from_slice(&values, (1, 2, 3, 5), &Device::Cpu).unwrap();
        let padded = pad_tensor(&tensor, 7, 4).unwrap();
        assert_eq!(padded.dims(), [1, 2, 7, 12]);
        assert_eq!(padded.flatten_all().unwrap().to_vec1::<f32>().unwrap(), pad(&values, 5, 3, 7, 4));
    }
}

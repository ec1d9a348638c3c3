//! Turning a picture as its EXIF orientation says.

use super::{DecodeError, Emit, Header};
use crate::picture::Rows;

/// Hands over the rows of a picture that is held whole, turned by `header.orientation`.
pub(super) fn rows(header: &Header, whole: &[u8], emit: Emit<'_>) -> Result<(), DecodeError> {
    let (stored_width, stored_height) = (header.width as usize, header.height as usize);
    let turned = header.orientation > 4;
    let (width, height) = if turned { (stored_height, stored_width) } else { (stored_width, stored_height) };
    let pixel = header.pixel_bytes();
    let group = ((1 << 20) / (width * pixel)).clamp(1, height);
    let mut bytes = vec![0; group * width * pixel];
    for y in (0..height).step_by(group) {
        let count = group.min(height - y);
        let rows = &mut bytes[..count * width * pixel];
        let mut place = |row: usize, x: usize| {
            let (from_x, from_y) = stored(header.orientation, x, y + row, stored_width, stored_height);
            let (to, from) = ((row * width + x) * pixel, (from_y * stored_width + from_x) * pixel);
            rows[to..to + pixel].copy_from_slice(&whole[from..from + pixel]);
        };
        // The inner loop runs along the stored rows, which are long, in both cases.
        if turned {
            (0..width).for_each(|x| (0..count).for_each(|row| place(row, x)));
        } else {
            (0..count).for_each(|row| (0..width).for_each(|x| place(row, x)));
        }
        emit(Rows { y: y as u32, count: count as u32, bytes: rows })?;
    }
    Ok(())
}

/// Where the pixel that is seen at (`x`, `y`) is stored (EXIF 2.32, tag 0x0112).
fn stored(orientation: u8, x: usize, y: usize, width: usize, height: usize) -> (usize, usize) {
    let (right, below) = (width - 1, height - 1);
    match orientation {
        2 => (right - x, y),
        3 => (right - x, below - y),
        4 => (x, below - y),
        5 => (y, x),
        6 => (y, below - x),
        7 => (right - y, below - x),
        8 => (right - y, x),
        _ => (x, y),
    }
}

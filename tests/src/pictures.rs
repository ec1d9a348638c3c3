//! Pictures and models for tests: made, not stored, and the same every time.

use imaging::{
    encode::{EncodeOptions, Encoder},
    picture::{Color, Format, Limits, Sample},
};
use weights::{checkpoint::Float, synthetic};

/// A PNG of `width` x `height` with enough in it that a misplaced tile shows.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    encoded(width, height, EncodeOptions::new(Format::Png, Color::Rgb, Sample::U8))
}

/// The same picture in any form.
pub fn encoded(width: u32, height: u32, options: EncodeOptions) -> Vec<u8> {
    let file = tempfile::tempfile().expect("a temporary file");
    let (color, sample) = (options.color, options.sample);
    let mut encoder = Encoder::new(file, width, height, options, &Limits::default()).expect("it can be written");
    for y in 0..height {
        encoder.write_rows(&row(width, y, color, sample)).expect("a row is written");
    }
    let mut file = encoder.finish().expect("the picture is whole");
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).expect("a file can be read from its start");
    std::io::Read::read_to_end(&mut file, &mut bytes).expect("a file can be read");
    bytes
}

/// One row: rings, a gradient and a grid, with a soft alpha where there is one.
fn row(width: u32, y: u32, color: Color, sample: Sample) -> Vec<u8> {
    let mut bytes = Vec::new();
    for x in 0..width {
        let (fx, fy) = (f64::from(x), f64::from(y));
        let rings = 0.5 + 0.5 * ((fx * fx + fy * fy) / 900.0).sin();
        let grid = if x.is_multiple_of(17) || y.is_multiple_of(13) { 1.0 } else { fx / f64::from(width) };
        let pixel = [rings, grid, 0.5 + 0.5 * (fx / 7.0 - fy / 5.0).cos(), 0.25 + 0.75 * fy / f64::from(y + 64)];
        let channels: &[usize] = match color {
            Color::Grey => &[0],
            Color::GreyAlpha => &[0, 3],
            Color::Rgb => &[0, 1, 2],
            Color::Rgba => &[0, 1, 2, 3],
        };
        for &channel in channels {
            match sample {
                Sample::U8 => bytes.push((pixel[channel] * 255.0) as u8),
                Sample::U16 => bytes.extend(((pixel[channel] * 65_535.0) as u16).to_le_bytes()),
                Sample::F32 => bytes.extend((pixel[channel] as f32).to_le_bytes()),
            }
        }
    }
    bytes
}

/// A Compact network with synthetic weights: `features` channels, `convs` convolutions between the first and the last.
pub fn compact(features: usize, convs: usize, scale: usize) -> Vec<u8> {
    let mut tensors = Vec::new();
    let mut input = 3;
    for layer in 0..=convs {
        tensors.push((format!("body.{}.weight", 2 * layer), vec![features, input, 3, 3]));
        tensors.push((format!("body.{}.bias", 2 * layer), vec![features]));
        tensors.push((format!("body.{}.weight", 2 * layer + 1), vec![features]));
        input = features;
    }
    let last = 2 * (convs + 1);
    tensors.push((format!("body.{last}.weight"), vec![3 * scale * scale, features, 3, 3]));
    tensors.push((format!("body.{last}.bias"), vec![3 * scale * scale]));
    synthetic::network(&tensors)
}

/// A tiny checkpoint in the structure of Stable Diffusion 1, with synthetic weights.
pub fn checkpoint() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tiny.safetensors");
    synthetic::diffusion::Model::Sd1.save(synthetic::diffusion::Size::Tiny, Float::F16, &path).expect("it is written");
    std::fs::read(path).expect("it is there")
}

use imaging::picture::{Color, Sample};
use imaging::raster::{BandWriter, RasterError, RasterInfo, Window};
use proptest::prelude::*;

use crate::support::noise;

fn bands(raster: RasterInfo, pixels: &[u8], rows_at_once: usize) -> Vec<Vec<u8>> {
    let row_bytes = raster.width as usize * raster.pixel_bytes();
    let mut bands = Vec::new();
    let mut writer = BandWriter::new(raster);
    for rows in pixels.chunks(row_bytes * rows_at_once) {
        let taken: Result<(), ()> = writer.push(rows, |band| {
            assert_eq!(band.index as usize, bands.len());
            bands.push(band.bytes);
            Ok(())
        });
        taken.unwrap();
    }
    assert!(writer.is_complete());
    bands
}

/// The window cut from the plain rows, with nothing clever in between.
fn plain(raster: RasterInfo, window: Window, pixels: &[u8]) -> (Vec<f32>, Vec<f32>) {
    let (mut rgb, mut alpha) = (Vec::new(), Vec::new());
    for y in window.y..window.y + window.height {
        for x in window.x..window.x + window.width {
            let at = (y as usize * raster.width as usize + x as usize) * raster.pixel_bytes();
            let samples: Vec<f32> = pixels[at..at + raster.pixel_bytes()]
                .chunks(raster.sample.bytes())
                .map(|bytes| match *bytes {
                    [byte] => f32::from(byte) / 255.0,
                    [low, high] => f32::from(u16::from_le_bytes([low, high])) / 65535.0,
                    _ => f32::from_le_bytes(bytes.try_into().unwrap()),
                })
                .collect();
            match samples[..] {
                [k] => rgb.extend([k; 3]),
                [k, a] => {
                    rgb.extend([k; 3]);
                    alpha.push(a);
                }
                _ => {
                    rgb.extend(&samples[..3]);
                    alpha.extend(samples.get(3));
                }
            }
        }
    }
    (rgb, alpha)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_window_cut_from_bands_is_the_window_cut_from_rows(
        (width, height) in (1u32..420, 1u32..420),
        color in prop::sample::select(Color::ALL.to_vec()),
        sample in prop::sample::select(vec![Sample::U8, Sample::U16, Sample::F32]),
        (left, top, right, below) in (0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0),
        rows_at_once in 1usize..300,
    ) {
        let raster = RasterInfo::new(width, height, color, sample);
        let mut pixels = noise(width, height, color, sample);
        if color.has_alpha() {
            // No alpha of 0: what is fully transparent changes.
            let alpha = raster.pixel_bytes() - sample.bytes();
            pixels.chunks_exact_mut(raster.pixel_bytes()).for_each(|pixel| pixel[alpha] |= 1);
        }
        let bands = bands(raster, &pixels, rows_at_once);
        prop_assert_eq!(bands.len(), raster.bands as usize);
        let lengths: Vec<u64> = (0..raster.bands).map(|i| raster.band_len(i)).collect();
        prop_assert_eq!(lengths.iter().sum::<u64>(), raster.total_bytes());
        prop_assert_eq!(bands.iter().map(|band| band.len() as u64).collect::<Vec<_>>(), lengths);

        let part = |share: f64, of: u32| (share * f64::from(of)) as u32;
        let (x, y) = (part(left, width), part(top, height));
        let window = Window { x, y, width: 1 + part(right, width - x), height: 1 + part(below, height - y) };
        let ranges = raster.band_ranges(window);
        let parts: Vec<&[u8]> =
            ranges.iter().map(|r| &bands[r.band as usize][r.start as usize..r.end as usize]).collect();
        let cut = raster.cut(window, &parts).unwrap();
        let (rgb, alpha) = plain(raster, window, &pixels);
        prop_assert!(cut.rgb == rgb);
        prop_assert_eq!(cut.alpha.is_some(), color.has_alpha());
        prop_assert!(cut.alpha.unwrap_or_default() == alpha);

        // No more is read than the blocks that the window touches.
        let read: u64 = ranges.iter().map(|r| r.end - r.start).sum();
        let rows: u64 = ranges.iter().map(|r| u64::from(raster.band_rows(r.band))).sum();
        prop_assert!(read <= rows * u64::from(window.width + 254) * raster.pixel_bytes() as u64);
    }
}

#[test]
fn a_window_shows_no_colour_of_what_is_transparent() {
    // A white disc whose surroundings are black and fully transparent, as programs that cut out write it.
    let raster = RasterInfo::new(200, 300, Color::Rgba, Sample::U8);
    let inside = |x: u32, y: u32| x.abs_diff(90).pow(2) + y.abs_diff(140).pow(2) < 60 * 60;
    let pixels = (0..300).flat_map(|y| (0..200).flat_map(move |x| [if inside(x, y) { 255 } else { 0 }; 4]));
    let pixels: Vec<u8> = pixels.collect();
    let bands = bands(raster, &pixels, 7);
    let window = Window { x: 20, y: 70, width: 140, height: 140 }; // corners are 99 - 60 pixels from the disc
    let ranges = raster.band_ranges(window);
    let parts: Vec<&[u8]> = ranges.iter().map(|r| &bands[r.band as usize][r.start as usize..r.end as usize]).collect();
    let cut = raster.cut(window, &parts).unwrap();
    let alpha = cut.alpha.unwrap();
    for (i, color) in cut.rgb.chunks_exact(3).enumerate() {
        let (x, y) = (20 + i as u32 % 140, 70 + i as u32 / 140);
        assert_eq!(alpha[i], if inside(x, y) { 1.0 } else { 0.0 });
        let away = f64::from(x.abs_diff(90).pow(2) + y.abs_diff(140).pow(2)).sqrt() - 60.0;
        if away < 14.0 {
            assert_eq!(color, [1.0; 3], "at {x}, {y}");
        }
    }
    assert_eq!(cut.rgb[..3], [0.0; 3]);
}

#[test]
fn windows_over_the_edge_and_parts_that_do_not_fit_are_refused() {
    let raster = RasterInfo::new(300, 200, Color::Rgb, Sample::U8);
    let outside = [(0, 0, 301, 1), (300, 0, 1, 1), (0, 0, 1, 0), (0, 199, 1, 2), (u32::MAX, 0, 2, 1)];
    for (x, y, width, height) in outside {
        let window = Window { x, y, width, height };
        assert!(raster.band_ranges(window).is_empty());
        assert!(matches!(raster.cut(window, &[vec![0; 9]]), Err(RasterError::Outside { .. })));
    }
    let window = Window { x: 0, y: 100, width: 1, height: 100 };
    let whole = raster.band_ranges(window).iter().map(|r| vec![0; (r.end - r.start) as usize]).collect::<Vec<_>>();
    assert!(raster.cut(window, &whole).is_ok());
    assert_eq!(raster.cut(window, &whole[..1]), Err(RasterError::Parts { expected: 2, found: 1 }));
    let short = [whole[0].clone(), whole[1][1..].to_vec()];
    let expected = 128 * 72 * 3;
    assert_eq!(raster.cut(window, &short), Err(RasterError::PartLength { band: 1, expected, found: expected - 1 }));
}

#[test]
fn a_raster_is_told_in_json() {
    let raster = RasterInfo::new(300, 200, Color::GreyAlpha, Sample::U16);
    let text = serde_json::to_string(&raster).unwrap();
    assert_eq!(text, r#"{"width":300,"height":200,"color":"grey_alpha","sample":"u16","block":128,"bands":2}"#);
    assert_eq!(serde_json::from_str::<RasterInfo>(&text).unwrap(), raster);
}

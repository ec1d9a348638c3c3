use std::collections::HashMap;

use domain::{
    nodes::ResamplingMethod,
    pipe::{MaskRef, PixelsRef},
    task::{Layer, LayerPixels},
    tiles::Tiling,
};
use proptest::prelude::*;

use super::*;
use crate::{
    bytes::to_le,
    flows::SegsUpscaler,
    mask::Mask,
    paste::{opacity, tensor_paste},
    picture::{Color, Sample},
    raster::BandWriter,
    resample::bytes8::{ByteResizer, Filter},
    tiled::{BandBlender, Placement},
};

const METHODS: [ResamplingMethod; 4] =
    [ResamplingMethod::Nearest, ResamplingMethod::Bilinear, ResamplingMethod::Bicubic, ResamplingMethod::Lanczos];

/// Samples from 0 to 1 that look random.
fn noise(seed: u64, count: u64) -> Vec<f32> {
    let sample = |i: u64| ((i ^ seed << 20).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 / (1u64 << 24) as f32;
    (0..count).map(sample).collect()
}

/// A region of a picture of `size`; all of `at` is 0 to 1.
fn region(size: Size, at: [f64; 4]) -> Region {
    let part = |side: u32, at: f64, length: f64| {
        let start = (f64::from(side) * at) as u32;
        (start, 1 + (f64::from(side - start - 1) * length).round() as u32)
    };
    let ((x, width), (y, height)) = (part(size.width, at[0], at[1]), part(size.height, at[2], at[3]));
    Region { x, y, width, height }
}

/// A store in memory, a base in it, and the whole picture that the base is.
struct Scene {
    objects: HashMap<String, Vec<u8>>,
    raster: RasterInfo,
    base: Base,
    whole: Frames,
}

impl Scene {
    /// A picture of `size`, in small blocks so that windows cross several, `enlarged` by tiles where it has any.
    fn new(seed: u64, size: Size, color: Color, enlarged: Option<Enlarged>) -> Self {
        let raster = RasterInfo {
            block: 7,
            bands: size.height.div_ceil(7),
            ..RasterInfo::new(size.width, size.height, color, Sample::U8)
        };
        let base = Base { picture: Digest::of(b"file"), decode: 1, size, enlarged };
        let rows: Vec<u8> =
            noise(seed, raster.total_bytes()).into_iter().map(|sample| (sample * 256.0) as u8).collect();
        let mut objects = HashMap::new();
        let mut writer = BandWriter::new(raster);
        let put = |band: crate::raster::Band| {
            objects.insert(layout::raster_band(base.picture, band.index), band.bytes);
            Ok::<_, std::convert::Infallible>(())
        };
        let Ok(()) = writer.push(&rows, put);
        let all = Window { x: 0, y: 0, width: size.width, height: size.height };
        let ranges = raster.band_ranges(all);
        let parts: Vec<_> = ranges.iter().map(|part| &objects[&layout::raster_band(base.picture, part.band)]).collect();
        let mut whole = Frames::new(1, size, 3, raster.cut(all, &parts).unwrap().rgb).unwrap();
        if let Some(Tiles { context, tiling, scale }) = base.enlarged.as_ref().and_then(|enlarged| enlarged.tiles) {
            let grid = TileGrid::new(size, tiling, scale).unwrap();
            let mut blender = BandBlender::new(grid.output(), 3, 0..grid.output().height);
            for (index, tile) in (0..).zip(grid.tiles()) {
                // A network may leave 0..1.
                let samples = noise(seed + index, tile.output.size().pixels() * 3);
                let samples: Vec<f32> = samples.into_iter().map(|sample| sample * 1.5 - 0.25).collect();
                blender.add(&Placement::from(&tile), 0, &samples).unwrap();
                objects.insert(ResultKey::new(context, tile.input).path(), to_le(&samples));
            }
            let pixels = blender.finish().unwrap().into_iter().map(|sample| sample.clamp(0.0, 1.0)).collect();
            whole = Frames::new(1, grid.output(), 3, pixels).unwrap();
        }
        if let Some(Enlarged { to, resampling_method, supersample, .. }) = &base.enlarged {
            let (mut bytes, mut size) = (quantise(&whole.data), whole.size());
            let between = to.scaled(8).filter(|_| *supersample);
            for to in between.into_iter().chain([*to]) {
                bytes = ByteResizer::new((*resampling_method).into(), size, to, 3).unwrap().picture(&bytes);
                size = to;
            }
            whole = Frames::new(1, size, 3, dequantise(&bytes)).unwrap();
        }
        Self { objects, raster, base, whole }
    }

    fn put(&mut self, origin: Origin, samples: &[f32]) {
        self.objects.insert(origin.key(), to_le(samples));
    }

    fn read(&self, pieces: &[Piece]) -> Vec<&[u8]> {
        let read = |piece: &Piece| &self.objects[&piece.of.key()][piece.range.start as usize..piece.range.end as usize];
        pieces.iter().map(read).collect()
    }

    /// The pixels of `region` by its window.
    fn window(&self, region: Region) -> Frames {
        let window = BaseWindow::new(&self.base, &self.raster, region).unwrap();
        window.compose(&self.read(window.pieces())).unwrap()
    }

    /// A layer of its own pixels at `place`, with a mask of size `mask`; `kind` says where the pixels lie.
    fn layer(&mut self, seed: u64, kind: u32, place: Region, mask: Size) -> Layer {
        let digest = |what: &str| Digest::of(format!("{what} {seed}").as_bytes());
        let key = ResultKey::new(digest("redraw"), place);
        let given = PixelsRef { digest: digest("pixels"), size: place.size() };
        let pixels = noise(seed, place.size().pixels() * 3);
        let (pixels, origin) = match kind {
            0 => (LayerPixels::Base, None),
            1 => (LayerPixels::Result(key), Some((Origin::Result(key), pixels))),
            _ => (LayerPixels::Given(given), Some((Origin::Artifact(given.digest), pixels))),
        };
        if let Some((origin, mut samples)) = origin {
            samples.extend([f32::NAN; 5]); // control pictures may lie behind
            self.put(origin, &samples);
        }
        let values: Vec<f32> = noise(seed + 1, mask.pixels()).into_iter().map(f32::round).collect();
        let mask = MaskRef { digest: digest("mask"), size: mask };
        self.put(Origin::Artifact(mask.digest), &values);
        Layer { pixels, region: place, mask }
    }

    /// Lays a layer over the whole picture.
    fn paste(&self, picture: &mut Frames, layer: &Layer, feather: u32, alpha: u8) {
        let (place, corner) = (layer.region, (layer.region.x.into(), layer.region.y.into()));
        let patch = match layer.pixels {
            LayerPixels::Base => self.whole.crop(&place.into()),
            LayerPixels::Result(key) => self.patch(Origin::Result(key), place.size()),
            LayerPixels::Given(PixelsRef { digest, size }) => self.patch(Origin::Artifact(digest), size),
        };
        let values = from_le(&self.objects[&Origin::Artifact(layer.mask.digest).key()]);
        let mask = Mask::new(1, layer.mask.size, values).unwrap().feather(feather.into());
        tensor_paste(picture, &patch, corner, &mask.map(|m| m * opacity(alpha))).unwrap();
    }

    fn patch(&self, origin: Origin, size: Size) -> Frames {
        let samples = from_le(&self.objects[&origin.key()]);
        Frames::new(1, size, 3, samples[..size.pixels() as usize * 3].to_vec()).unwrap()
    }
}

fn bits(frames: &Frames) -> Vec<u32> {
    frames.data.iter().map(|sample| sample.to_bits()).collect()
}

fn tiles(side: u32, scale: u32) -> Tiles {
    Tiles { context: Digest::of(b"context"), tiling: Tiling { side, overlap: side / 4 }, scale }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_window_has_the_pixels_of_the_whole_base(
        seed in 0..1000u64, width in 1..30u32, height in 1..30u32, color in prop::sample::select(Color::ALL.to_vec()),
        network in prop::option::of((4..40u32, 1..4u32)), to in prop::option::of((1..40u32, 1..40u32)),
        method in prop::sample::select(METHODS.to_vec()), supersample: bool,
        at in prop::collection::vec(prop::array::uniform4(0.0..1.0f64), 3),
    ) {
        let size = Size::new(width, height);
        let enlarged = to.map(|(width, height)| Enlarged {
            tiles: network.map(|(side, scale)| tiles(side, scale)),
            to: Size::new(width, height),
            resampling_method: method,
            supersample,
        });
        let scene = Scene::new(seed, size, color, enlarged);
        let size = scene.base.size();
        prop_assert_eq!(size, scene.whole.size());
        let all = Region::new(0, 0, size.width, size.height);
        for region in at.into_iter().map(|at| region(size, at)).chain([all]) {
            let want = scene.whole.crop(&region.into());
            prop_assert_eq!(bits(&scene.window(region)), bits(&want), "{}", region);
        }
    }

    #[test]
    fn layers_pasted_in_windows_are_pasted_as_over_the_whole(
        seed in 0..1000u64, width in 8..30u32, height in 8..30u32, is_enlarged: bool,
        layers in prop::collection::vec(
            (0..3u32, prop::array::uniform4(0.0..1.0f64), prop::option::of((1..20u32, 1..20u32)), 0..6u32), 1..5),
        feather in 0..6u32, alpha in prop::sample::select(vec![0u8, 100, 255]), bands in 1..9u32,
        at in prop::array::uniform4(0.0..1.0f64),
    ) {
        let (to, resampling_method) = (Size::new(27, 22), ResamplingMethod::Bicubic);
        let enlarged = is_enlarged.then_some(Enlarged { tiles: None, to, resampling_method, supersample: true });
        let mut scene = Scene::new(seed, Size::new(width, height), Color::Rgb, enlarged);
        let size = scene.base.size();
        let layers: Vec<Layer> = (seed..).step_by(7).zip(layers).map(|(seed, (kind, at, mask, more))| {
            let place = region(size, at);
            // Pixels that somebody brought may hang over the picture.
            let place = if kind == 0 { place } else { Region { width: place.width + more, ..place } };
            let mask = mask.map_or(place.size(), |(width, height)| Size::new(width, height));
            scene.layer(seed, kind, place, mask)
        }).collect();
        let mut whole = scene.whole.clone();
        layers.iter().for_each(|layer| scene.paste(&mut whole, layer, feather, alpha));

        let masks: Vec<LayerMask> = layers.iter().map(|layer| {
            let bytes = scene.read(&[LayerMask::piece(layer)])[0];
            LayerMask::new(layer, feather, alpha, bytes).unwrap()
        }).collect();
        let mut banded = Vec::new();
        for top in (0..size.height).step_by(bands as usize) {
            let window = Region::new(0, top, size.width, bands.min(size.height - top));
            let mut picture = scene.window(window);
            for (layer, mask) in layers.iter().zip(&masks) {
                if let Some(part) = LayerWindow::new(layer, &scene.base, &scene.raster, window).unwrap() {
                    part.paste(&mut picture, &scene.read(part.pieces()), mask).unwrap();
                }
            }
            banded.extend(bits(&picture));
        }
        prop_assert_eq!(banded, bits(&whole));

        let region = region(size, at);
        let crop = Crop::new(&scene.base, &scene.raster, region, &layers).unwrap();
        let crop = crop.compose(&scene.read(crop.pieces()), feather, alpha).unwrap();
        prop_assert_eq!(bits(&crop), bits(&whole.crop(&region.into())));
    }
}

#[test]
fn only_the_rows_that_a_window_needs_are_read() {
    let enlarged = Enlarged {
        tiles: Some(tiles(16, 2)),
        to: Size::new(80, 80),
        resampling_method: ResamplingMethod::Bicubic,
        supersample: true,
    };
    let scene = Scene::new(1, Size::new(40, 40), Color::Rgb, Some(enlarged));
    let window = BaseWindow::new(&scene.base, &scene.raster, Region::new(0, 0, 4, 4)).unwrap();
    // Of one tile, 32 pixels wide: four rows, and three that two kernels reach down to.
    let rows: Vec<u64> = window.pieces().iter().map(|piece| piece.range.end / (32 * 12)).collect();
    assert_eq!(rows, [7]);
}

#[test]
fn bytes_that_are_not_those_of_the_pieces_are_refused() {
    let scene = Scene::new(1, Size::new(8, 8), Color::Rgb, None);
    let window = BaseWindow::new(&scene.base, &scene.raster, Region::new(0, 0, 8, 2)).unwrap();
    let refused = |bytes: &[&[u8]]| window.compose(bytes).unwrap_err();
    assert!(matches!(refused(&[]), PixelError::Pieces { want: 1, got: 0 }));
    assert!(matches!(refused(&[&[0; 3]]), PixelError::PieceLength { got: 3, .. }));
    let other = RasterInfo::new(9, 8, Color::Rgb, Sample::U8);
    assert!(matches!(
        BaseWindow::new(&scene.base, &other, Region::new(0, 0, 8, 2)),
        Err(PixelError::SizeMismatch { .. })
    ));
    assert!(BaseWindow::new(&scene.base, &scene.raster, Region::new(0, 7, 8, 2)).is_err());
}

#[test]
fn a_layer_that_is_not_a_number_is_refused() {
    let mut scene = Scene::new(1, Size::new(8, 8), Color::Rgb, None);
    let layer = scene.layer(1, 1, Region::new(0, 0, 2, 1), Size::new(2, 1));
    let LayerPixels::Result(key) = layer.pixels else { unreachable!() };
    scene.put(Origin::Result(key), &[0.0, 0.0, f32::NAN, 0.0, 0.0, 0.0]);
    let crop = Crop::new(&scene.base, &scene.raster, Region::new(0, 0, 8, 8), &[layer]).unwrap();
    let refused = crop.compose(&scene.read(crop.pieces()), 0, 255).unwrap_err();
    assert_eq!(refused.to_string(), format!("`{}` holds a sample that is NaN", key.path()));
}

#[test]
fn an_enlarged_base_is_what_the_node_makes() {
    let (size, to) = (Size::new(13, 9), Size::new(19, 13));
    let enlarged =
        |supersample| Enlarged { tiles: None, to, resampling_method: ResamplingMethod::Bicubic, supersample };
    let picture = Scene::new(5, size, Color::Rgb, None).whole;
    for supersample in [false, true] {
        let node = SegsUpscaler {
            rescale_factor: 1.5,
            supersample,
            feather: 0,
            noise_mask_feather: 0,
            seed: 0,
            reference_quirks: false,
        };
        let want = node.enlarge::<PixelError>(&picture, None).unwrap();
        let scene = Scene::new(5, size, Color::Rgb, Some(enlarged(supersample)));
        assert_eq!(bits(&scene.window(Region::new(0, 0, to.width, to.height))), bits(&want));
    }
    assert_eq!(METHODS.map(Filter::from), [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos]);
}

//! Layers over a base, and a region of both together.

use domain::{
    pipe::PixelsRef,
    region::{Corners, Region, Size},
    task::{Base, Layer, LayerPixels},
};

use super::{BaseWindow, Origin, Piece, check_bytes};
use crate::{
    frames::{Frames, PixelError},
    mask::Mask,
    paste::{lay, opacity},
    raster::RasterInfo,
};

/// How much of a layer covers what lies below, pixel by pixel: its mask, feathered, times alpha, as large as its pixels.
///
/// To feather is the dear part of a paste: whoever pastes a layer window by window makes this once.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerMask(Mask);

impl LayerMask {
    /// What must be read: the mask of the layer.
    pub fn piece(layer: &Layer) -> Piece {
        let values = layer.mask.size.pixels();
        Piece { of: Origin::Artifact(layer.mask.digest), range: 0..values.saturating_mul(size_of::<f32>() as u64) }
    }

    /// Feathers the mask of a layer out of the bytes of its piece. `alpha` is 0 to 255.
    pub fn new(layer: &Layer, feather: u32, alpha: u8, bytes: impl AsRef<[u8]>) -> Result<Self, PixelError> {
        let piece = Self::piece(layer);
        check_bytes(std::slice::from_ref(&piece), &[&bytes])?;
        let mask = Mask::new(1, layer.mask.size, piece.samples(bytes.as_ref())?)?;
        let alpha = opacity(alpha);
        let mask = mask.feather(feather.into()).map(|m| m * alpha);
        let patch = patch(layer);
        Ok(Self(if mask.size() == patch { mask } else { mask.resize(patch)? }))
    }

    /// The size of the layer's pixels.
    pub fn size(&self) -> Size {
        self.0.size()
    }

    /// The weights of the patch's row `y` from column `x` on.
    fn row(&self, x: usize, y: usize) -> &[f32] {
        &self.0.data[y * self.0.width..][x..self.0.width]
    }
}

/// The size of a layer's pixels.
fn patch(layer: &Layer) -> Size {
    match &layer.pixels {
        LayerPixels::Result(_) | LayerPixels::Base => layer.region.size(),
        LayerPixels::Given(PixelsRef { size, .. }) => *size,
    }
}

/// The part of a layer that lies in a window of the picture.
#[derive(Debug, Clone)]
pub struct LayerWindow {
    /// The window.
    window: Region,
    /// The part of it, of the picture.
    shared: Region,
    /// The same part, from the layer's own corner.
    part: Region,
    pixels: Pixels,
}

/// Where a layer's pixels come from.
#[derive(Debug, Clone)]
enum Pixels {
    /// Rows of the layer, as wide as it is.
    Rows(Piece, Size),
    /// The base.
    Base(BaseWindow),
}

impl LayerWindow {
    /// Finds out what the pixels of `layer` in `window` are made of; `None` where there are none.
    ///
    /// `raster` is the shape of the decoded picture of `base`. What hangs over the picture is left out.
    pub fn new(layer: &Layer, base: &Base, raster: &RasterInfo, window: Region) -> Result<Option<Self>, PixelError> {
        let (patch, corner) = (patch(layer), layer.region);
        let (x, y) = (i64::from(corner.x), i64::from(corner.y));
        let place = Corners::new(x, y, x + i64::from(patch.width), y + i64::from(patch.height));
        let Some(shared) = place.within(base.size()).intersection(&window) else { return Ok(None) };
        let part = Region { x: shared.x - corner.x, y: shared.y - corner.y, ..shared };
        let rows = |of: Origin| {
            let row = u64::from(patch.width) * 3 * size_of::<f32>() as u64;
            let range = u64::from(part.y) * row..u64::from(part.bottom()) * row;
            Pixels::Rows(Piece { of, range }, Size::new(patch.width, part.height))
        };
        let pixels = match &layer.pixels {
            LayerPixels::Result(key) => rows(Origin::Result(*key)),
            LayerPixels::Given(pixels) => rows(Origin::Artifact(pixels.digest)),
            LayerPixels::Base => Pixels::Base(BaseWindow::new(base, raster, shared)?),
        };
        Ok(Some(Self { window, shared, part, pixels }))
    }

    /// What must be read, in the order in which [`LayerWindow::paste`] takes it. The mask is read apart, see
    /// [`LayerMask::piece`].
    pub fn pieces(&self) -> &[Piece] {
        match &self.pixels {
            Pixels::Rows(piece, _) => std::slice::from_ref(piece),
            Pixels::Base(base) => base.pieces(),
        }
    }

    /// How much its samples take up while it is pasted, in bytes, without what is read.
    pub fn working_bytes(&self) -> u64 {
        match &self.pixels {
            Pixels::Rows(piece, _) => piece.len(),
            Pixels::Base(base) => base.working_bytes(),
        }
    }

    /// Lays the layer over `picture`, the pixels of the window, out of the bytes of its pieces.
    pub fn paste(&self, picture: &mut Frames, bytes: &[impl AsRef<[u8]>], mask: &LayerMask) -> Result<(), PixelError> {
        if picture.size() != self.window.size() {
            let (want, got) = (self.window.size(), picture.size());
            return Err(PixelError::SizeMismatch { operation: "a paste", want, got });
        }
        // The rows that were read hold whole rows of the layer, the base just the part.
        let (patch, left) = match &self.pixels {
            Pixels::Rows(piece, size) => {
                check_bytes(std::slice::from_ref(piece), bytes)?;
                (Frames::new(1, *size, 3, piece.samples(bytes[0].as_ref())?)?, self.part.x as usize)
            }
            Pixels::Base(base) => (base.compose(bytes)?, 0),
        };
        let (window, shared, part) = (self.window, self.shared, self.part);
        let (x, stride) = ((shared.x - window.x) as usize * 3, picture.row_len());
        for row in 0..shared.height as usize {
            let start = ((shared.y - window.y) as usize + row) * stride + x;
            let old = &mut picture.data[start..][..shared.width as usize * 3];
            let new = &patch.data[row * patch.row_len() + left * 3..];
            lay(old, new, mask.row(part.x as usize, part.y as usize + row), 3);
        }
        Ok(())
    }
}

/// A region of a picture under work, read and composed in one go: what a segment is redrawn from.
#[derive(Debug, Clone)]
pub struct Crop {
    base: BaseWindow,
    /// The layers that lie in the region, the lowest first.
    layers: Vec<(Layer, LayerWindow)>,
    pieces: Vec<Piece>,
}

impl Crop {
    /// Finds out what the pixels of `region` are made of when `layers` lie over the base, the lowest first.
    pub fn new(base: &Base, raster: &RasterInfo, region: Region, layers: &[Layer]) -> Result<Self, PixelError> {
        let window = BaseWindow::new(base, raster, region)?;
        let mut pieces = window.pieces().to_vec();
        let mut over = Vec::new();
        for layer in layers {
            let Some(part) = LayerWindow::new(layer, base, raster, region)? else { continue };
            pieces.push(LayerMask::piece(layer));
            pieces.extend_from_slice(part.pieces());
            over.push((layer.clone(), part));
        }
        Ok(Self { base: window, layers: over, pieces })
    }

    /// What must be read, in the order in which [`Crop::compose`] takes it.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Makes the RGB pixels of the region out of the bytes of its pieces. Masks are feathered by `feather` pixels;
    /// `alpha` is how much they cover, 0 to 255.
    pub fn compose(&self, bytes: &[impl AsRef<[u8]>], feather: u32, alpha: u8) -> Result<Frames, PixelError> {
        check_bytes(&self.pieces, bytes)?;
        let (base, mut rest) = bytes.split_at(self.base.pieces().len());
        let mut picture = self.base.compose(base)?;
        for (layer, part) in &self.layers {
            let (mask, others) = rest.split_first().expect("there are as many bytes as pieces");
            let (pixels, others) = others.split_at(part.pieces().len());
            part.paste(&mut picture, pixels, &LayerMask::new(layer, feather, alpha, mask)?)?;
            rest = others;
        }
        Ok(picture)
    }
}

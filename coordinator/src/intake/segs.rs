//! SEGS: found or given, laid on a job's picture, their masks and pixels kept in the store.

use std::{collections::VecDeque, sync::Arc};

use domain::{
    check::{Invalid, Warning},
    digest::Digest,
    pipe::{ControlNet, Family, MaskRef},
    region::{Corners, Region, Size},
    segs::{MAX_SEGS, Place, Placed, Prompts, Seg, Segs},
    touched::Touched,
    working::Bbox,
};
use imaging::{
    bytes::to_le,
    frames::{Frames, PixelError},
    mask::Mask,
    resample::tensor_resize,
    segs::{
        self, CombinedMask,
        from_mask::MaskToSegs,
        tiles::{Drawing, MakeTileSegs},
    },
};
use proto::convert::{
    PictureRequest, Source,
    segs::{GivenSegs, MakeTileSegsRequest, MaskRequest, MaskToSegsRequest, SegRequest, SegsRequest},
};

use super::Intake;
use crate::refusal::{Refusal, chain};

/// The picture that SEGS are found in, and the one that they are laid on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ground {
    /// The size of the submitted picture.
    pub found_in: Size,
    /// The size of the picture under work.
    pub laid_on: Size,
    /// The family of the networks that redraw it.
    pub family: Family,
    /// Softens the edges of what is pasted, in pixels.
    pub feather: u32,
    /// Does what the reference does also where it is a mistake.
    pub reference_quirks: bool,
}

/// SEGS as they lie on a job's picture.
#[derive(Debug, Default)]
pub(super) struct Laid {
    /// The segments.
    pub segs: Vec<Placed>,
    /// What the tensors of their ControlNets take, in bytes.
    pub weights_bytes: u64,
    /// Things worth knowing.
    pub warnings: Vec<Warning>,
    /// Whether the segments were submitted as such, so that what is wrong with one has a field.
    are_given: bool,
    /// The masks that were laid last.
    masks: LaidMasks,
}

impl Laid {
    /// Names a field of a resolved job as whoever submitted it knows it: given segments lie a message deeper.
    pub(super) fn as_submitted(are_given: bool) -> impl Fn(Invalid) -> Invalid + Copy {
        move |invalid| match are_given {
            true => Invalid { field: invalid.field.replacen(".segs[", ".segs.segs[", 1), ..invalid },
            false => invalid,
        }
    }

    /// Whether the segments were submitted as such.
    pub(super) fn are_given(&self) -> bool {
        self.are_given
    }
}

/// A segment with its pixels, before it is laid on a picture.
struct Found {
    bbox: Bbox,
    crop_region: Corners,
    label: String,
    confidence: f64,
    /// `None`: 1 everywhere.
    mask: Option<Mask>,
    image: Option<Frames>,
    prompts: Prompts,
    control_nets: Vec<ControlNet>,
}

impl From<segs::Seg> for Found {
    fn from(seg: segs::Seg) -> Self {
        let segs::Seg { cropped_image, cropped_mask, confidence, crop_region, bbox, label } = seg;
        Self {
            bbox: bbox.into(),
            crop_region,
            label,
            confidence,
            mask: Some(cropped_mask),
            image: cropped_image,
            prompts: Prompts::default(),
            control_nets: Vec::new(),
        }
    }
}

/// What a mask as it lies on a picture is made of; where it lies makes no difference.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shape {
    /// The mask as it was found or given; `None`: 1 everywhere.
    mask: Option<MaskRef>,
    /// The size to which it is resized.
    resize: Option<Size>,
    /// The part of it that lies on the picture.
    cut: Option<Region>,
    /// The size of the region that it is stretched over when it is pasted.
    pasted: Size,
}

/// A mask as it lies on a picture.
#[derive(Debug, Clone)]
struct LaidMask {
    mask: MaskRef,
    is_empty: bool,
    /// The pixels that pasting it changes, as if its region began at the picture's first pixel.
    touched: Touched,
}

/// The masks that were laid last. Most tiles of a grid have the mask of a neighbour, and feathering it takes long.
#[derive(Debug, Default)]
struct LaidMasks {
    kept: VecDeque<(Shape, LaidMask)>,
}

/// How many laid masks are remembered: a scaled grid has several sizes of tiles, at each of its edges and within.
const LAID_MASKS: usize = 32;

impl LaidMasks {
    fn find(&self, shape: &Shape) -> Option<LaidMask> {
        self.kept.iter().find(|(kept, _)| kept == shape).map(|(_, laid)| laid.clone())
    }

    fn keep(&mut self, shape: Shape, laid: LaidMask) {
        if self.kept.len() == LAID_MASKS {
            self.kept.pop_front();
        }
        self.kept.push_back((shape, laid));
    }
}

/// Control pictures at the size of the SEGS. Segments tend to share one.
#[derive(Default)]
struct ControlPictures {
    kept: Vec<(Source, Arc<Frames>)>,
}

/// How many control pictures are held at once, however large they are; more are as long as they are no larger together
/// than a whole picture may be.
const CONTROL_PICTURES: u64 = 2;

/// Runs work that takes long on a thread of its own.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refusal::Internal { what: format!("{what} stopped"), source: error.into() })
}

fn pixel_fault(field: &str) -> impl Fn(PixelError) -> Refusal + '_ {
    move |error| Refusal::field(field, chain(&error))
}

impl Intake {
    /// Finds the SEGS at `at` and lays them on a job's picture.
    pub(super) async fn segs(&self, at: &str, request: SegsRequest, ground: Ground) -> Result<Laid, Refusal> {
        match request {
            SegsRequest::Given(given) => self.lay_given(&format!("{at}.segs"), given, ground).await,
            SegsRequest::Mask(request) => self.lay_mask(at, request, ground).await,
            SegsRequest::Tiles(request) => self.lay_tiles(at, request, ground).await,
        }
    }

    async fn lay_given(&self, at: &str, given: GivenSegs, ground: Ground) -> Result<Laid, Refusal> {
        let GivenSegs { size, segs } = given;
        let mut pictures = ControlPictures::default();
        let mut laid = Laid { are_given: true, ..Laid::default() };
        for (index, request) in segs.into_iter().enumerate() {
            let at_seg = format!("{at}[{index}]");
            let (found, weights_bytes) = self.bring_in(&at_seg, request, size, ground, &mut pictures).await?;
            laid.weights_bytes += weights_bytes;
            self.lay(at, index, size, found, ground, &mut laid).await?;
        }
        Ok(laid)
    }

    /// Lays SEGS of the submitted picture, each before the next is made: no more than one mask is held.
    async fn lay_found(
        &self,
        at: &str,
        mut found: impl Iterator<Item = Result<segs::Seg, PixelError>> + Send + 'static,
        ground: Ground,
    ) -> Result<Laid, Refusal> {
        let mut laid = Laid::default();
        loop {
            let next;
            (next, found) = blocking("making SEGS", move || (found.next(), found)).await?;
            let Some(seg) = next.transpose().map_err(pixel_fault(at))? else { return Ok(laid) };
            self.lay(at, laid.segs.len(), ground.found_in, seg.into(), ground, &mut laid).await?;
        }
    }

    /// Brings in what the segment at `at` names; gives it with what the tensors of its ControlNets take in bytes.
    async fn bring_in(
        &self,
        at: &str,
        request: SegRequest,
        size: Size,
        ground: Ground,
        pictures: &mut ControlPictures,
    ) -> Result<(Found, u64), Refusal> {
        let field = format!("{at}.cropped_mask");
        let mask = match request.cropped_mask {
            MaskRequest::Full => None,
            MaskRequest::Picture(picture) => Some(self.mask(&format!("{field}.picture"), picture).await?),
            MaskRequest::Runs(runs) => Some(self.runs(&format!("{field}.rle"), &runs)?),
        };
        let image = match request.cropped_image {
            None => None,
            Some(image) => Some(self.colours(&format!("{at}.cropped_image"), image).await?),
        };
        let size = if size.pixels() == 0 { ground.laid_on } else { size };
        let (mut control_nets, mut weights_bytes) = (Vec::new(), 0);
        for (i, net) in request.control_nets.into_iter().enumerate() {
            let at = format!("{at}.control_nets[{i}]");
            let (mut resolved, bytes) = self.control_net(&at, &net, ground.family).await?;
            weights_bytes += bytes;
            if let Some(image) = net.image {
                let field = format!("{at}.image");
                let whole = self.control_picture(&field, image, size, pictures).await?;
                // Cut where the SEGS lie, and not anew when they are scaled (Q21).
                let crop = whole.crop(&request.crop_region);
                if crop.size().pixels() == 0 {
                    let why = format!("has no pixels in the segment's crop region {}", request.crop_region);
                    return Err(Refusal::field(field, why));
                }
                resolved.image = Some(self.keep_pixels(&crop).await?);
            }
            control_nets.push(resolved);
        }
        let SegRequest { bbox, crop_region, label, confidence, prompts, .. } = request;
        Ok((Found { bbox, crop_region, label, confidence, mask, image, prompts, control_nets }, weights_bytes))
    }

    /// A control picture at the size of the SEGS, by 8-bit Lanczos.
    async fn control_picture(
        &self,
        field: &str,
        request: PictureRequest,
        size: Size,
        pictures: &mut ControlPictures,
    ) -> Result<Arc<Frames>, Refusal> {
        if let Some((_, picture)) = pictures.kept.iter().find(|(source, _)| *source == request.source) {
            return Ok(picture.clone());
        }
        self.check_whole(field, size)?;
        let source = request.source.clone();
        let picture = self.colours(field, request).await?;
        let resized = blocking("the resampler", move || tensor_resize(&picture, size)).await?;
        let resized = Arc::new(resized.map_err(pixel_fault(field))?);
        let most = self.limits.max_whole_picture_bytes / size_of_val(&resized.data[..]) as u64; // all have one size
        if pictures.kept.len() as u64 >= most.max(CONTROL_PICTURES) {
            pictures.kept.remove(0);
        }
        pictures.kept.push((source, resized.clone()));
        Ok(resized)
    }

    /// Refuses a picture of `size` that is larger than whole pictures may be.
    fn check_whole(&self, field: &str, size: Size) -> Result<(), Refusal> {
        self.limits
            .check_size(size.width, size.height)
            .and_then(|()| self.limits.check_whole("a picture", size.pixels() * 3 * size_of::<f32>() as u64))
            .map_err(|error| Refusal::field(field, error.to_string()))
    }

    /// Lays a segment of SEGS of `size` on the picture under work, and adds it to `laid`.
    async fn lay(
        &self,
        at: &str,
        index: usize,
        size: Size,
        found: Found,
        ground: Ground,
        laid: &mut Laid,
    ) -> Result<(), Refusal> {
        let Found { bbox, crop_region, label, confidence, mask, image, prompts, control_nets } = found;
        let field = format!("{at}[{index}].crop_region");
        let claimed = crop_region.size().map_err(|error| Refusal::field(&field, error.to_string()))?;
        let mut seg = Seg {
            bbox,
            crop_region,
            label,
            confidence,
            cropped_mask: MaskRef {
                digest: Digest::of(&[]), // until it is known
                size: mask.as_ref().map_or(claimed, Mask::size),
            },
            cropped_image: None,
            prompts,
            control_nets,
        };
        let to = ground.laid_on;
        let segs = Segs { size, segs: vec![seg] };
        let is_scaled = segs.is_scaled_to(to);
        let place = segs.place(at, 0, to, ground.reference_quirks);
        let place = place.map_err(|invalid| Refusal::field(&field, invalid.to_string()))?;
        seg = segs.segs.into_iter().next().expect("it holds the segment");
        if let Some(resized) = place.resize.filter(|_| mask.is_some() || image.is_some()) {
            self.check_whole(&field, resized)?;
        }
        if place.cut.is_some() {
            laid.warnings.push(Warning::Cut { seg: index, region: crop_region, picture: to });
        }
        let is_misplaced = ground.reference_quirks
            && is_scaled
            && u64::from(to.width) * u64::from(size.height) != u64::from(to.height) * u64::from(size.width);
        if is_misplaced && !laid.warnings.contains(&Warning::Misplaced) {
            laid.warnings.push(Warning::Misplaced);
        }
        let LaidMask { mask, is_empty, touched } =
            self.keep_laid(&format!("{at}[{index}]"), mask, place, ground.feather, &mut laid.masks).await?;
        seg.bbox = place.bbox;
        seg.crop_region = place.region.into();
        seg.cropped_mask = mask;
        if let Some(image) = image {
            let fitted = blocking("laying SEGS", move || fit_image(image, &place, claimed, is_scaled)).await?;
            let image = fitted.map_err(pixel_fault(&format!("{at}[{index}]")))?;
            seg.cropped_image = Some(self.keep_pixels(&image).await?);
        }
        let touched = touched.moved(place.region.x, place.region.y);
        laid.segs.push(Placed { seg, is_empty, touched });
        Ok(())
    }

    /// Lays the mask of a segment as `place` says and keeps it, unless one like it was `laid` before.
    async fn keep_laid(
        &self,
        at: &str,
        mask: Option<Mask>,
        place: Place,
        feather: u32,
        laid: &mut LaidMasks,
    ) -> Result<LaidMask, Refusal> {
        let named = move || {
            let named = mask.as_ref().map(|mask| MaskRef { digest: Digest::of(&to_le(&mask.data)), size: mask.size() });
            (mask, named)
        };
        let (mask, named) = blocking("laying SEGS", named).await?;
        let shape = Shape { mask: named, resize: place.resize, cut: place.cut, pasted: place.region.size() };
        if let Some(known) = laid.find(&shape) {
            return Ok(known);
        }
        let fitted = blocking("laying SEGS", move || {
            let mask = fit(mask, &place)?;
            let touched = touched(&mask, place.region.size(), feather)?;
            Ok::<_, PixelError>((mask, touched))
        });
        let (mask, touched) = fitted.await?.map_err(pixel_fault(at))?;
        let known = LaidMask { mask: self.keep_mask(&mask).await?, is_empty: mask.is_zero(), touched };
        laid.keep(shape, known.clone());
        Ok(known)
    }

    async fn lay_mask(&self, at: &str, request: MaskToSegsRequest, ground: Ground) -> Result<Laid, Refusal> {
        let field = format!("{at}.mask.mask");
        let mask = self.mask(&field, request.mask).await?;
        let size = ground.found_in;
        if mask.size() != size {
            let why =
                format!("is {}, and the picture is {size}: a mask as large as the picture is wanted", mask.size());
            return Err(Refusal::field(field, why));
        }
        let node = MaskToSegs {
            combined: request.combined,
            crop_factor: request.crop_factor,
            bbox_fill: request.bbox_fill,
            drop_size: request.drop_size.into(),
            contour_fill: request.contour_fill,
            crop_min_size: None,
        };
        let found = blocking("finding SEGS", move || node.find(mask)).await?;
        check_count(&field, found.len() as u64, "a larger `drop_size` leaves out small ones")?;
        self.lay_found(at, found.map(Ok), ground).await
    }

    async fn lay_tiles(&self, at: &str, request: MakeTileSegsRequest, ground: Ground) -> Result<Laid, Refusal> {
        let path = |field: &str| format!("{at}.tiles.{field}");
        let mode = request.irregular_mask_mode.parse();
        let node = MakeTileSegs {
            bbox_size: request.bbox_size.into(),
            crop_factor: request.crop_factor,
            min_overlap: request.min_overlap.into(),
            filter_segs_dilation: request.filter_segs_dilation.into(),
            mask_irregularity: request.mask_irregularity,
            irregular_mask_mode: mode.map_err(pixel_fault(&path("irregular_mask_mode")))?,
        };
        if request.filter_in_segs.is_some() || request.filter_out_segs.is_some() {
            self.check_mask(&path("filter_in_segs"), ground.found_in)?; // a filter becomes as large as the picture
        }
        let filter_in = self.filter(&path("filter_in_segs.segs"), request.filter_in_segs).await?;
        let filter_out = self.filter(&path("filter_out_segs.segs"), request.filter_out_segs).await?;
        let mut drawing = Drawing::new(request.seed);
        let draw = move |side, rough| drawing.draw(side, rough);
        let plan = move || node.plan(ground.found_in, filter_in, filter_out, draw);
        let tiles = blocking("planning tiles", plan).await?.map_err(pixel_fault(&path("min_overlap")))?;
        check_count(&path("bbox_size"), tiles.most().max(tiles.drawings()), "larger tiles are fewer")?;
        self.check_mask(&path("crop_factor"), tiles.largest())?;
        self.lay_found(at, tiles, ground).await
    }

    /// The mask of SEGS that filter tiles: only their places and masks count. One after the other is added to it.
    async fn filter(&self, at: &str, given: Option<GivenSegs>) -> Result<Option<Mask>, Refusal> {
        let Some(GivenSegs { size, segs }) = given else { return Ok(None) };
        if size.pixels() == 0 {
            return Err(Refusal::field(at, "have no size: filters need the size of their picture"));
        }
        self.check_mask(at, size)?;
        let mut combined = CombinedMask::new(size);
        for (index, SegRequest { crop_region, cropped_mask, .. }) in segs.into_iter().enumerate() {
            let at = format!("{at}[{index}]");
            let region = crop_region.within(size);
            if region.size().pixels() == 0 {
                let why = format!("{crop_region} lies outside of the {size} picture");
                return Err(Refusal::field(format!("{at}.crop_region"), why));
            }
            let field = format!("{at}.cropped_mask");
            let mask = match cropped_mask {
                MaskRequest::Full => None,
                MaskRequest::Picture(picture) => Some(self.mask(&format!("{field}.picture"), picture).await?),
                MaskRequest::Runs(runs) => Some(self.runs(&format!("{field}.rle"), &runs)?),
            };
            let add = move || {
                match mask {
                    None => combined.add_full(&region.into()),
                    Some(mask) if mask.size() == region.size() => combined.add(&region.into(), &mask)?,
                    Some(mask) => combined.add(&region.into(), &mask.resize(region.size())?)?,
                }
                Ok(combined)
            };
            combined = blocking("joining filters", add).await?.map_err(pixel_fault(&field))?;
        }
        let mask = blocking("joining filters", move || combined.finish()).await?;
        Ok(Some(mask.map_err(pixel_fault(at))?))
    }
}

/// Refuses more segments than a job may have, and names the `way_out`.
fn check_count(field: &str, count: u64, way_out: &str) -> Result<(), Refusal> {
    if count > MAX_SEGS {
        let why = format!("makes {count} segments, and the most is {MAX_SEGS}: {way_out}");
        return Err(Refusal::field(field, why));
    }
    Ok(())
}

/// Resizes and cuts the mask of a segment as `place` says.
fn fit(mask: Option<Mask>, place: &Place) -> Result<Mask, PixelError> {
    let Some(mask) = mask else { return Ok(Mask::zeros(place.region.size()).map(|_| 1.0)) };
    let mask = match place.resize {
        Some(resize) if resize != mask.size() => mask.resize(resize)?,
        _ => mask,
    };
    Ok(match place.cut {
        Some(cut) => mask.crop(&cut.into()),
        None => mask,
    })
}

/// Pixels are resized where the SEGS are scaled, and where they must be cut and are not as large as their `claimed`
/// region.
fn fit_image(image: Frames, place: &Place, claimed: Size, is_scaled: bool) -> Result<Frames, PixelError> {
    let whole = place.resize.unwrap_or(claimed);
    let image = match place.cut {
        _ if is_scaled => tensor_resize(&image, whole)?,
        Some(_) if image.size() != whole => tensor_resize(&image, whole)?,
        _ => image,
    };
    Ok(match place.cut {
        Some(cut) => image.crop(&cut.into()),
        None => image,
    })
}

/// The pixels of a region of size `pasted` at which the paste mask is not 0. A mask that is not as large as its region
/// is feathered, then stretched.
fn touched(mask: &Mask, pasted: Size, feather: u32) -> Result<Touched, PixelError> {
    if mask.is_zero() {
        return Ok(Touched::default());
    }
    let feathered = mask.feather(feather.into());
    let stretched = if mask.size() == pasted { feathered } else { feathered.resize(pasted)? };
    Ok(Touched::of(Region::new(0, 0, pasted.width, pasted.height), &stretched.data))
}

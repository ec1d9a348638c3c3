//! SEGS: found or given, laid on a job's picture, their masks and pixels kept in the store.

use std::sync::Arc;

use domain::{
    check::{Invalid, Warning},
    pipe::{ControlNet, Family},
    region::{Corners, Region, Size},
    segs::{MAX_SEGS, Place, Placed, Prompts, Seg, Segs},
    touched::Touched,
    working::Bbox,
};
use imaging::{
    frames::{Frames, PixelError},
    mask::Mask,
    resample::tensor_resize,
    segs::{
        self,
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

/// Control pictures at the size of the SEGS. Segments tend to share one.
#[derive(Default)]
struct ControlPictures {
    kept: Vec<(Source, Arc<Frames>)>,
}

/// How many control pictures are held at once.
const CONTROL_PICTURES: usize = 2;

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
            SegsRequest::Mask(request) => {
                let found = self.segs_of_mask(&format!("{at}.mask"), request, ground.found_in).await?;
                self.lay_found(at, found, ground).await
            }
            SegsRequest::Tiles(request) => {
                let found = self.segs_of_tiles(&format!("{at}.tiles"), request, ground.found_in).await?;
                self.lay_found(at, found, ground).await
            }
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

    async fn lay_found(&self, at: &str, found: segs::Segs, ground: Ground) -> Result<Laid, Refusal> {
        let count = found.segs.len() as u64;
        if count > MAX_SEGS {
            return Err(Refusal::field(at, format!("holds {count} segments, and the most is {MAX_SEGS}")));
        }
        let mut laid = Laid::default();
        for (index, seg) in found.segs.into_iter().enumerate() {
            self.lay(at, index, found.header, seg.into(), ground, &mut laid).await?;
        }
        Ok(laid)
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
        if pictures.kept.len() == CONTROL_PICTURES {
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
            cropped_mask: domain::pipe::MaskRef {
                digest: domain::digest::Digest::of(&[]), // until it is known
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
        let feather = ground.feather;
        let fitted =
            blocking("laying SEGS", move || fit(mask, image, &place, Shape { claimed, is_scaled }, feather)).await?;
        let Fitted { mask, image, is_empty, touched } = fitted.map_err(pixel_fault(&format!("{at}[{index}]")))?;
        seg.bbox = place.bbox;
        seg.crop_region = place.region.into();
        seg.cropped_mask = self.keep_mask(&mask).await?;
        seg.cropped_image = match image {
            Some(image) => Some(self.keep_pixels(&image).await?),
            None => None,
        };
        laid.segs.push(Placed { seg, is_empty, touched });
        Ok(())
    }

    async fn segs_of_mask(&self, at: &str, request: MaskToSegsRequest, size: Size) -> Result<segs::Segs, Refusal> {
        let field = format!("{at}.mask");
        let mask = self.mask(&field, request.mask).await?;
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
        blocking("finding SEGS", move || node.run(&mask)).await
    }

    async fn segs_of_tiles(&self, at: &str, request: MakeTileSegsRequest, size: Size) -> Result<segs::Segs, Refusal> {
        let path = |field: &str| format!("{at}.{field}");
        let mode = request.irregular_mask_mode.parse();
        let node = MakeTileSegs {
            bbox_size: request.bbox_size.into(),
            crop_factor: request.crop_factor,
            min_overlap: request.min_overlap.into(),
            filter_segs_dilation: request.filter_segs_dilation.into(),
            mask_irregularity: request.mask_irregularity,
            irregular_mask_mode: mode.map_err(pixel_fault(&path("irregular_mask_mode")))?,
        };
        // Every tile has a mask as large as its crop, and tiles share at most half of their side.
        let side = f64::from(request.bbox_size);
        let step = side - f64::from(request.min_overlap).min(side / 2.0);
        let held = size.pixels() as f64 * (node.crop_factor * side / step).powi(2) * size_of::<f32>() as f64;
        self.limits
            .check_whole("the masks of all tiles", held as u64)
            .map_err(|error| Refusal::field(path("crop_factor"), error.to_string()))?;
        let filter_in = self.filter(&path("filter_in_segs.segs"), request.filter_in_segs).await?;
        let filter_out = self.filter(&path("filter_out_segs.segs"), request.filter_out_segs).await?;
        let mut drawing = Drawing::new(request.seed);
        let run =
            move || node.run(size, filter_in.as_ref(), filter_out.as_ref(), |side, rough| drawing.draw(side, rough));
        blocking("making tiles", run).await?.map_err(pixel_fault(&path("min_overlap")))
    }

    /// SEGS that filter tiles: only their places and masks count.
    async fn filter(&self, at: &str, given: Option<GivenSegs>) -> Result<Option<segs::Segs>, Refusal> {
        let Some(GivenSegs { size, segs }) = given else { return Ok(None) };
        if size.pixels() == 0 {
            return Err(Refusal::field(at, "have no size: filters need the size of their picture"));
        }
        self.check_mask(at, size)?;
        let mut filter = segs::Segs { header: size, segs: Vec::with_capacity(segs.len()) };
        for (index, request) in segs.into_iter().enumerate() {
            let at = format!("{at}[{index}]");
            let SegRequest { crop_region, label, confidence, cropped_mask, .. } = request;
            let region = crop_region.within(size);
            if region.size().pixels() == 0 {
                let why = format!("{crop_region} lies outside of the {size} picture");
                return Err(Refusal::field(format!("{at}.crop_region"), why));
            }
            let field = format!("{at}.cropped_mask");
            let mask = match cropped_mask {
                MaskRequest::Full => Mask::zeros(region.size()).map(|_| 1.0),
                MaskRequest::Picture(picture) => self.mask(&format!("{field}.picture"), picture).await?,
                MaskRequest::Runs(runs) => self.runs(&format!("{field}.rle"), &runs)?,
            };
            let mask = if mask.size() == region.size() {
                mask
            } else {
                mask.resize(region.size()).map_err(pixel_fault(&field))?
            };
            let bbox = region.into();
            let (cropped_image, crop_region) = (None, region.into());
            filter.segs.push(segs::Seg { cropped_image, cropped_mask: mask, confidence, crop_region, bbox, label });
        }
        Ok(Some(filter))
    }
}

/// The mask and the pixels of a segment as they lie on a picture.
struct Fitted {
    mask: Mask,
    image: Option<Frames>,
    is_empty: bool,
    touched: Touched,
}

/// A segment before it was laid on a picture.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// The size of its crop region.
    claimed: Size,
    /// Whether its SEGS are of another size than the picture.
    is_scaled: bool,
}

/// Resizes and cuts the mask and the pixels of a segment as `place` says, and finds the pixels that pasting it changes.
fn fit(
    mask: Option<Mask>,
    image: Option<Frames>,
    place: &Place,
    shape: Shape,
    feather: u32,
) -> Result<Fitted, PixelError> {
    let mask = match mask {
        None => Mask::zeros(place.region.size()).map(|_| 1.0),
        Some(mask) => {
            let mask = match place.resize {
                Some(resize) if resize != mask.size() => mask.resize(resize)?,
                _ => mask,
            };
            match place.cut {
                Some(cut) => mask.crop(&cut.into()),
                None => mask,
            }
        }
    };
    let image = image.map(|image| fit_image(image, place, shape)).transpose()?;
    let is_empty = mask.is_zero();
    let touched = if is_empty { Touched::default() } else { touched(place.region, &mask, feather)? };
    Ok(Fitted { mask, image, is_empty, touched })
}

/// Pixels are resized where the SEGS are scaled, and where they must be cut and are not as large as their region.
fn fit_image(image: Frames, place: &Place, shape: Shape) -> Result<Frames, PixelError> {
    let whole = place.resize.unwrap_or(shape.claimed);
    let image = match place.cut {
        _ if shape.is_scaled => tensor_resize(&image, whole)?,
        Some(_) if image.size() != whole => tensor_resize(&image, whole)?,
        _ => image,
    };
    Ok(match place.cut {
        Some(cut) => image.crop(&cut.into()),
        None => image,
    })
}

/// The pixels at which the paste mask is not 0. A mask that is not as large as its region is feathered, then stretched.
fn touched(region: Region, mask: &Mask, feather: u32) -> Result<Touched, PixelError> {
    let feathered = mask.feather(feather.into());
    let stretched = if mask.size() == region.size() { feathered } else { feathered.resize(region.size())? };
    Ok(Touched::of(region, &stretched.data))
}

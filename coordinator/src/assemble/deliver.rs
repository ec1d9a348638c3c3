//! What is handed over as it is: SEGS as a document with their masks and pictures, or a latent.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

use domain::{
    digest::Digest,
    document::{Document, DocumentControl, DocumentSeg, MaskSource, RunLengths, Source},
    job::Artifact,
    nodes::{LatentSource, LatentUpscale, SegsDetail},
    picture::{Color, Format},
    pipe::{ControlNet, MaskRef, PixelsRef},
    plan::segs::{Delivered, Fate, delivered, detail_base},
    region::Size,
    segs::Seg,
    task::{Base, Part, ResultKey, SegTask},
};
use futures::StreamExt as _;
use imaging::{
    base::{Origin, Piece},
    encode::{EncodeOptions, Encoder},
    pack::pack_mask,
    raster::RasterInfo,
};
use safetensors::tensor::{Dtype, TensorView};
use tempfile::NamedTempFile;

use super::{AssembleError, Assembler, image::Image, read::all};

/// How many files are made at once.
const CONCURRENT_FILES: usize = 4;

impl Assembler {
    /// Stores the SEGS that a job gives; `redraw` is the context of the tasks that redrew them.
    pub(super) async fn deliver_segs(&self, job: &SegsDetail, redraw: Digest) -> Result<Artifact, AssembleError> {
        let delivered: Vec<Delivered> = delivered(job)
            .collect::<Result<_, _>>()
            .map_err(|_| AssembleError::Internal("a segment that was planned cannot be redrawn"))?;
        let pictures: Vec<Pictures> = delivered.iter().map(|delivered| Pictures::of(job, redraw, delivered)).collect();
        let masks = job.segs.iter().map(|placed| placed.seg.cropped_mask).map(|mask| ((mask.digest, mask.size), mask));
        let masks = each(masks, |mask| self.mask(mask)).await?;
        let base = detail_base(job);
        let raster = self.raster(base.picture).await?.raster;
        let images = pictures.iter().flat_map(Pictures::images).map(|image| (image, image));
        let images = each(images, |image| self.stored(image, &base, &raster)).await?;

        let segs = delivered.iter().zip(&pictures).map(|(Delivered { seg, fate }, pictures)| {
            let Seg { bbox, crop_region, label, confidence, cropped_mask, prompts, control_nets, .. } =
                &job.segs[*seg].seg;
            let source = |image: &Image| images[image].clone();
            // What was worked on was steered already.
            let control_nets = match fate {
                Fate::PassedOn => control_nets.iter().map(|net| control(net, source)).collect(),
                Fate::Kept | Fate::Redrawn(_) => Vec::new(),
            };
            DocumentSeg {
                bbox: Some(*bbox),
                crop_region: *crop_region,
                label: label.clone(),
                confidence: Some(*confidence),
                cropped_mask: Some(masks[&(cropped_mask.digest, cropped_mask.size)].clone()),
                cropped_image: pictures.cropped.as_ref().map(source),
                positive: prompts.positive.clone(),
                negative: prompts.negative.clone(),
                control_nets,
                control_images: pictures.controls.iter().map(source).collect(),
            }
        });
        let document = Document::new(job.picture.size, segs.collect());
        let mut json = serde_json::to_vec_pretty(&document).expect("plain structs always serialise");
        json.push(b'\n');
        self.put_bytes(json).await
    }

    /// Stores an image as a picture.
    async fn stored(&self, image: Image, base: &Base, raster: &RasterInfo) -> Result<Source, AssembleError> {
        let file = self.png(image, Some((base, raster))).await?;
        Ok(Source::Digest(self.put_file(&file).await?.digest))
    }

    /// Stores a mask where it is more than runs of 0 and 1.
    async fn mask(&self, mask: MaskRef) -> Result<MaskSource, AssembleError> {
        let piece = Piece { of: Origin::Artifact(mask.digest), range: 0..mask.size.pixels() * 4 };
        let bytes = self.read(std::slice::from_ref(&piece)).await?;
        let folder = self.scratch.clone();
        let limits = self.limits;
        let written = tokio::task::spawn_blocking(move || {
            let values = piece.samples(&bytes[0])?;
            if let Some(runs) = RunLengths::of(mask.size, &values) {
                return Ok(Err(runs));
            }
            let file = NamedTempFile::new_in(&folder);
            let file = file.map_err(|source| AssembleError::Scratch { folder: folder.clone(), source })?;
            let handle = file.reopen().map_err(|source| AssembleError::Scratch { folder, source })?;
            let (sample, rows) = pack_mask(&values);
            let options = EncodeOptions::new(Format::Png, Color::Grey, sample);
            let mut encoder = Encoder::new(handle, mask.size.width, mask.size.height, options, &limits)?;
            encoder.write_rows(&rows)?;
            encoder.finish()?;
            Ok::<_, AssembleError>(Ok(file))
        });
        match written.await.map_err(|_| AssembleError::Internal("the encoder of a mask stopped"))?? {
            Ok(file) => Ok(MaskSource::Digest(self.put_file(&file).await?.digest)),
            Err(runs) => Ok(MaskSource::Rle(runs)),
        }
    }

    /// Stores a latent as ComfyUI saves one; `result` is that of the last link, where there is one.
    pub(super) async fn deliver_latent(
        &self,
        job: &LatentUpscale,
        result: Option<ResultKey>,
    ) -> Result<Artifact, AssembleError> {
        let pixels = job.result();
        let size = Size::new(pixels.width / 8, pixels.height / 8);
        let of = match (result, &job.source) {
            (Some(key), _) => Origin::Result(key),
            (None, LatentSource::Latent(PixelsRef { digest, .. })) => Origin::Artifact(*digest),
            (None, LatentSource::Picture(_)) => return Err(AssembleError::Internal("a picture is encoded first")),
        };
        let piece = Piece { of, range: 0..size.pixels() * 4 * 4 };
        let bytes = self.read(std::slice::from_ref(&piece)).await?;
        piece.samples(&bytes[0])?; // a latent that is not a number is of no use to anyone
        let shape = vec![1, 4, size.height as usize, size.width as usize];
        let view = |shape, data| TensorView::new(Dtype::F32, shape, data);
        let tensors = [
            // Says that the numbers are not scaled; older files have none.
            ("latent_format_version_0", view(vec![0], &[])),
            ("latent_tensor", view(shape, &bytes[0])),
        ];
        let damaged = |_| AssembleError::Internal("a latent does not fit its size");
        let tensors = tensors.into_iter().map(|(name, view)| Ok((name, view.map_err(damaged)?)));
        let tensors: Vec<_> = tensors.collect::<Result<_, AssembleError>>()?;
        self.put_bytes(safetensors::serialize(tensors, None).map_err(damaged)?).await
    }
}

/// The pictures of a delivered segment.
struct Pictures {
    cropped: Option<Image>,
    controls: Vec<Image>,
    /// Those of its nets, where it keeps these.
    nets: Vec<Image>,
}

impl Pictures {
    fn of(job: &SegsDetail, redraw: Digest, Delivered { seg, fate }: &Delivered) -> Self {
        let placed = &job.segs[*seg];
        let own = placed.seg.cropped_image.map(given);
        let (controls, nets) = (Vec::new(), Vec::new());
        match fate {
            Fate::PassedOn => {
                let nets = placed.seg.control_nets.iter().filter_map(|net| net.image.map(given)).collect();
                Self { cropped: own, controls, nets }
            }
            Fate::Kept => {
                let cropped = own.unwrap_or(Image::Base(placed.region(job.picture.size)));
                Self { cropped: Some(cropped), controls, nets }
            }
            Fate::Redrawn(task) => {
                let (cropped, controls) = redrawn(redraw, task);
                Self { cropped: Some(cropped), controls, nets }
            }
        }
    }

    fn images(&self) -> impl Iterator<Item = Image> + '_ {
        self.cropped.iter().chain(&self.controls).chain(&self.nets).copied()
    }
}

/// The redrawn pixels of a segment, and the control pictures behind them.
fn redrawn(redraw: Digest, task: &SegTask) -> (Image, Vec<Image>) {
    let of = Origin::Result(ResultKey::of(redraw, &Part::Seg(Box::new(task.clone()))));
    let mut start = 0;
    let mut next = |size: Size| {
        let image = Image::Rows { of, start, size };
        start += size.pixels() * 12;
        image
    };
    (next(task.crop()), task.control_sizes().map(next).collect())
}

/// Pixels that somebody brought.
fn given(PixelsRef { digest, size }: PixelsRef) -> Image {
    Image::Rows { of: Origin::Artifact(digest), start: 0, size }
}

fn control(net: &ControlNet, source: impl Fn(&Image) -> Source) -> DocumentControl {
    DocumentControl {
        control_net: net.weights.digest.to_string(),
        strength: Some(net.strength),
        start_percent: Some(net.start_percent),
        end_percent: Some(net.end_percent),
        advanced: net.advanced,
        image: net.image.map(|image| source(&given(image))),
    }
}

/// What `make` makes of every item, once for each key.
async fn each<K: Hash + Eq + Copy, T, V, F: Future<Output = Result<V, AssembleError>>>(
    items: impl Iterator<Item = (K, T)>,
    make: impl Fn(T) -> F,
) -> Result<HashMap<K, V>, AssembleError> {
    let mut seen = HashSet::new();
    let (keys, making): (Vec<K>, Vec<F>) =
        items.filter(|(key, _)| seen.insert(*key)).map(|(key, item)| (key, make(item))).unzip();
    let made = all(futures::stream::iter(making).buffered(CONCURRENT_FILES).collect().await)?;
    Ok(keys.into_iter().zip(made).collect())
}

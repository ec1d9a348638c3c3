//! The picture of a base and the layers over it, row band by row band.
//!
//! Every band is composed anew out of the pieces of the store that it is made of; there is no canvas. A layer's mask is
//! feathered once, when the first band reaches it, and kept until the last band has left it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use domain::{region::Region, task::Paste};
use futures::StreamExt as _;
use imaging::{
    base::{BaseWindow, LayerMask, LayerWindow, Origin, Piece},
    pack::pack,
    raster::RasterInfo,
};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use super::{
    AssembleError, Assembler,
    file::{bands, hand_over, options},
    read::{CONCURRENT_READS, all},
};

/// What a band is made of.
struct Plan {
    region: Region,
    base: BaseWindow,
    /// The layers that reach into it, the lowest first, and which of all they are.
    layers: Vec<(usize, LayerWindow)>,
}

/// A band whose pieces are read: those of the base, then those of each layer.
struct Band {
    base: (BaseWindow, Vec<Bytes>),
    layers: Vec<(LayerWindow, Vec<Bytes>, Arc<LayerMask>)>,
}

impl Plan {
    fn new(paste: &Paste, raster: &RasterInfo, top: u32, rows: u32) -> Result<Self, AssembleError> {
        let size = paste.base.size();
        let region = Region::new(0, top, size.width, rows.min(size.height - top));
        let mut layers = Vec::new();
        for (index, layer) in paste.layers.iter().enumerate() {
            layers.extend(LayerWindow::new(layer, &paste.base, raster, region)?.map(|part| (index, part)));
        }
        Ok(Self { region, base: BaseWindow::new(&paste.base, raster, region)?, layers })
    }

    /// The next band from row `top` on: as high as `budget` bytes of samples allow, at least one row.
    fn within(budget: u64, paste: &Paste, raster: &RasterInfo, top: u32) -> Result<Self, AssembleError> {
        let mut rows = (budget / (12 * u64::from(paste.base.size().width))).clamp(1, 1024) as u32;
        loop {
            let plan = Self::new(paste, raster, top, rows)?;
            let layers: u64 = plan.layers.iter().map(|(_, layer)| layer.working_bytes()).sum();
            if rows == 1 || plan.base.working_bytes().saturating_add(layers) <= 2 * budget {
                return Ok(plan);
            }
            rows = rows.div_ceil(2);
        }
    }

    fn pieces(&self) -> Vec<Piece> {
        let layers = self.layers.iter().flat_map(|(_, layer)| layer.pieces());
        self.base.pieces().iter().chain(layers).cloned().collect()
    }
}

impl Band {
    /// Its pixels.
    fn compose(self) -> Result<Vec<f32>, AssembleError> {
        let (base, bytes) = self.base;
        let mut picture = base.compose(&bytes)?;
        for (layer, bytes, mask) in self.layers {
            layer.paste(&mut picture, &bytes, &mask)?;
        }
        Ok(picture.data)
    }
}

impl Assembler {
    /// Makes the file of a picture of layers over a base, in bands whose samples take about `budget` bytes.
    pub(super) async fn pasted(&self, paste: &Paste, budget: u64) -> Result<NamedTempFile, AssembleError> {
        let (picture, size) = (paste.base.picture, paste.base.size());
        let record = self.raster(picture).await?;
        let encoding = paste.encoding;
        let options = self.with_metadata(options(&encoding), picture, &record, (size.width, size.height)).await?;
        let (bands, ready) = bands();
        let make = move |band: Band| -> Result<_, AssembleError> {
            Ok(pack(&band.compose()?, None, encoding.color, encoding.sample))
        };
        let read = self.read_bands(paste, &record.raster, budget, bands);
        self.write(size, options, ready, make, read).await
    }

    /// Reads what each band is made of, from the top.
    async fn read_bands(
        &self,
        paste: &Paste,
        raster: &RasterInfo,
        budget: u64,
        bands: mpsc::Sender<Band>,
    ) -> Result<(), AssembleError> {
        let mut masks = BTreeMap::new();
        // What is read of the decoded picture is 128 rows high, and the next band often needs the same again.
        let mut decoded: HashMap<Piece, Bytes> = HashMap::new();
        let mut top = 0;
        while top < paste.base.size().height {
            let plan = Plan::within(budget, paste, raster, top)?;
            top = plan.region.bottom();
            let pieces = plan.pieces();
            let mut seen = HashSet::new();
            let is_new = |piece: &&Piece| !decoded.contains_key(*piece) && seen.insert((*piece).clone());
            let new: Vec<Piece> = pieces.iter().filter(is_new).cloned().collect();
            let mut read: HashMap<Piece, Bytes> = new.iter().cloned().zip(self.read(&new).await?).collect();
            read.extend(pieces.iter().filter_map(|piece| decoded.remove_entry(piece)));
            self.feather(paste, &plan, &mut masks).await?;
            let mut bytes = pieces.iter().map(|piece| read[piece].clone());
            let mut take = |pieces: &[Piece]| bytes.by_ref().take(pieces.len()).collect::<Vec<Bytes>>();
            let base_bytes = take(plan.base.pieces());
            let layers = plan.layers.into_iter().map(|(index, part)| {
                let bytes = take(part.pieces());
                (part, bytes, Arc::clone(&masks[&index]))
            });
            let band = Band { layers: layers.collect(), base: (plan.base, base_bytes) };
            hand_over(&bands, band).await?;
            decoded = read.into_iter().filter(|(piece, _)| matches!(piece.of, Origin::Band { .. })).collect();
            masks.retain(|index, mask: &mut Arc<LayerMask>| {
                u64::from(paste.layers[*index].region.y) + u64::from(mask.size().height) > u64::from(top)
            });
        }
        Ok(())
    }

    /// Adds the masks of the layers that begin in a band to `masks`.
    async fn feather(
        &self,
        paste: &Paste,
        plan: &Plan,
        masks: &mut BTreeMap<usize, Arc<LayerMask>>,
    ) -> Result<(), AssembleError> {
        let begin: Vec<usize> =
            plan.layers.iter().map(|(index, _)| *index).filter(|index| !masks.contains_key(index)).collect();
        let feathered: Vec<_> = begin.iter().map(|&index| self.feathered(paste, index)).collect();
        let feathered = all(futures::stream::iter(feathered).buffered(CONCURRENT_READS).collect().await)?;
        masks.extend(begin.into_iter().zip(feathered.into_iter().map(Arc::new)));
        Ok(())
    }

    async fn feathered(&self, paste: &Paste, index: usize) -> Result<LayerMask, AssembleError> {
        let layer = paste.layers[index].clone();
        let bytes = self.read(&[LayerMask::piece(&layer)]).await?;
        let (feather, alpha) = (paste.feather, paste.alpha);
        let feathering = tokio::task::spawn_blocking(move || LayerMask::new(&layer, feather, alpha, &bytes[0]));
        Ok(feathering.await.map_err(|_| AssembleError::Internal("the feathering of a mask stopped"))??)
    }
}

//! `tessera segs`: SEGS documents on this machine.

use std::path::Path;

use anyhow::Context as _;
use domain::{
    document::{Document, DocumentSeg, MaskSource, Source},
    region::Size,
};
use imaging::{
    frames::PixelError,
    mask::Mask,
    picture::Limits,
    segs::{
        Seg,
        from_mask::MaskToSegs,
        tiles::{Drawing, MakeTileSegs},
    },
};
use serde_json::{Value, json};

use crate::{
    cli::{
        flags::{CropFlags, MaskFlags, TileSegsFlags},
        segs::{SegsCommand, SegsOutput},
        values,
    },
    exit::{Failure, Outcome},
    local, output,
    segs_file::{self, Finding, Writing},
};

/// Runs the command.
pub fn run(command: SegsCommand) -> Outcome {
    let limits = Limits::default();
    let ((size, segs), output) = match command {
        SegsCommand::Check { file, json } => return check(&file, json, &limits),
        SegsCommand::Show { file, json } => return show(&file, json, &limits),
        SegsCommand::Convert { file, output } => {
            let document = segs_file::read(&file)?;
            let writing = Writing::to(&output.output, output.masks, output.force)?;
            output::line(&writing.copy(&document, segs_file::folder(&file))?.display().to_string());
            return Ok(());
        }
        SegsCommand::FromMask { mask, crop, parts, output } => (from_mask(&mask, &crop, &parts, &limits)?, output),
        SegsCommand::Tiles { picture, crop, tiles, output } => (cover(&picture, &crop, &tiles, &limits)?, output),
    };
    let SegsOutput { output, masks, force } = output;
    let writing = Writing::to(&output, masks, force)?;
    let mut segs = segs.peekable();
    if segs.peek().is_none() {
        eprintln!("warning: there is no segment");
    }
    output::line(&writing.segs(size, segs)?.display().to_string());
    Ok(())
}

/// The size of a picture, and its segments, made as they are written.
type Made = (Size, Box<dyn Iterator<Item = Result<Seg, PixelError>>>);

fn from_mask(mask: &Path, crop: &CropFlags, parts: &MaskFlags, limits: &Limits) -> anyhow::Result<Made> {
    let node = MaskToSegs {
        combined: parts.combined,
        crop_factor: crop.crop_factor,
        bbox_fill: parts.bbox_fill,
        drop_size: parts.drop_size.into(),
        contour_fill: parts.contour_fill,
        crop_min_size: None,
    };
    let mask = local::read_mask(mask, limits)?;
    Ok((mask.size(), Box::new(node.find(mask).map(Ok))))
}

fn cover(picture: &Path, crop: &CropFlags, tiles: &TileSegsFlags, limits: &Limits) -> anyhow::Result<Made> {
    let size = match picture.to_str().and_then(values::size) {
        Some(size) if !picture.exists() => size,
        _ => local::size(picture, limits)?,
    };
    let node = MakeTileSegs {
        bbox_size: tiles.bbox_size.into(),
        crop_factor: crop.crop_factor,
        min_overlap: tiles.min_overlap.into(),
        filter_segs_dilation: tiles.filter_segs_dilation.into(),
        mask_irregularity: tiles.mask_irregularity,
        irregular_mask_mode: tiles.irregular_mask_mode.parse()?,
    };
    let filter = |path: &Option<std::path::PathBuf>| path.as_deref().map(|path| filter(path, size, limits)).transpose();
    let (filter_in, filter_out) = (filter(&tiles.filter_in_segs)?, filter(&tiles.filter_out_segs)?);
    let mut drawing = Drawing::new(tiles.irregular_mask_seed);
    let draw = move |side, irregularity| drawing.draw(side, irregularity);
    Ok((size, Box::new(node.plan(size, filter_in, filter_out, draw)?)))
}

/// What the segments of a document hold, to which tiles of a picture of `size` keep, or which they leave out.
fn filter(path: &Path, size: Size, limits: &Limits) -> anyhow::Result<Mask> {
    let mut segs = segs_file::load(path, limits)?;
    if segs.header.pixels() == 0 {
        segs.header = size;
    }
    Ok(segs.combined_mask()?)
}

/// Says what is wrong with the document at `file`.
fn check(file: &Path, json: bool, limits: &Limits) -> Outcome {
    let document = segs_file::read(file)?;
    let findings = segs_file::check(&document, segs_file::folder(file), limits);
    let fails = !findings.errors.is_empty();
    if json {
        let show = |finding: &Finding| json!({ "field": finding.field, "what": finding.what });
        let all = |findings: &[Finding]| findings.iter().map(show).collect::<Vec<_>>();
        output::json(&json!({
            "file": file.display().to_string(),
            "ok": !fails,
            "segs": document.segs.len(),
            "errors": all(&findings.errors),
            "warnings": all(&findings.warnings),
        }));
    } else {
        findings.errors.iter().for_each(|finding| output::line(&format!("error: {finding}")));
        findings.warnings.iter().for_each(|finding| output::line(&format!("warning: {finding}")));
        if !fails {
            let of = match document.width {
                0 => String::new(),
                width => format!(" of a {} picture", Size::new(width, document.height)),
            };
            output::line(&format!("{}: {} segments{of}", file.display(), document.segs.len()));
        }
    }
    if fails { Err(Failure::Job) } else { Ok(()) }
}

/// Shows the document at `file`.
fn show(file: &Path, json: bool, limits: &Limits) -> Outcome {
    let document = segs_file::read(file)?;
    let folder = segs_file::folder(file);
    let shares: Vec<Option<f64>> = document
        .segs
        .iter()
        .enumerate()
        .map(|(index, seg)| share(seg, folder, limits).with_context(|| format!("segs[{index}].cropped_mask")))
        .collect::<anyhow::Result<_>>()?;
    if json {
        output::json(&shown(&document, &shares));
        return Ok(());
    }
    let rows: Vec<_> =
        document.segs.iter().zip(&shares).enumerate().map(|(i, (seg, share))| row(i, seg, *share)).collect();
    output::table(["INDEX", "LABEL", "CONFIDENCE", "BBOX", "CROP REGION", "MASK", "IMAGE", "PROMPT"], &rows);
    Ok(())
}

/// How much of its crop a segment's mask covers, 0 to 1; `None` where it is not on this machine.
fn share(seg: &DocumentSeg, folder: &Path, limits: &Limits) -> anyhow::Result<Option<f64>> {
    let mask = segs_file::mask(seg, folder, limits)?;
    Ok(mask.map(|mask| mask.data.iter().map(|&value| f64::from(value)).sum::<f64>() / mask.data.len().max(1) as f64))
}

fn shown(document: &Document, shares: &[Option<f64>]) -> Value {
    let mut value = json!(document);
    if let Some(segs) = value["segs"].as_array_mut() {
        for (index, (seg, share)) in segs.iter_mut().zip(shares).enumerate() {
            seg["index"] = json!(index);
            seg["mask_share"] = json!(share);
            if seg["cropped_mask"]["rle"].is_object() {
                seg["cropped_mask"] = json!("rle"); // its runs are for the document
            }
        }
    }
    value
}

fn row(index: usize, seg: &DocumentSeg, share: Option<f64>) -> [String; 8] {
    let kind = match &seg.cropped_mask {
        None => "all".to_owned(),
        Some(MaskSource::Rle(_)) => "rle".to_owned(),
        Some(MaskSource::Path(path)) => path.clone(),
        Some(MaskSource::Digest(digest)) => digest.to_string().chars().take(12).collect(),
        Some(MaskSource::Uri(uri)) => uri.clone(),
    };
    let mask = match share {
        Some(share) => format!("{kind} {:.0}%", share * 100.0),
        None => kind,
    };
    let image = match &seg.cropped_image {
        None => String::new(),
        Some(Source::Path(path)) => path.clone(),
        Some(Source::Digest(digest)) => digest.to_string().chars().take(12).collect(),
        Some(Source::Uri(uri)) => uri.clone(),
    };
    let prompt: String = seg.positive.clone().unwrap_or_default().chars().take(40).collect();
    [
        index.to_string(),
        seg.label.clone(),
        seg.confidence.unwrap_or(1.0).to_string(),
        seg.bbox.map(|bbox| bbox.to_string()).unwrap_or_default(),
        seg.crop_region.to_string(),
        mask,
        image,
        prompt,
    ]
}

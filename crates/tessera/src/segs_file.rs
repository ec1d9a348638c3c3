//! SEGS as files on this machine: read, checked, written, and fetched from a farm (`docs/segs.md`).

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use domain::{
    document::{Document, DocumentControl, DocumentSeg, FORMAT, MaskSource, RunLengths, Source},
    region::Size,
    segs::MAX_SEGS,
    working::Bbox,
};
use imaging::{frames::PixelError, mask::Mask, picture::Limits, segs::Segs};
use proto::v1;
use serde_json::{Value, json};

use crate::{cli::values::Masks, client::Farm, command::models::refuse_existing, local, transfer};

/// What a document is called in a folder of its own.
pub const NAME: &str = "segs.json";

/// Reads the document at `path`.
///
/// # Errors
/// If it is no document, or one of another version.
pub fn read(path: &Path) -> anyhow::Result<Document> {
    let context = || format!("cannot read SEGS from `{}`", path.display());
    let text = std::fs::read_to_string(path).with_context(context)?;
    parse(&text).with_context(context)
}

/// Reads a document.
pub fn parse(text: &str) -> anyhow::Result<Document> {
    let document: Document = serde_json::from_str(text)?;
    if document.format != FORMAT {
        bail!("`format` is `{}`, and `{FORMAT}` is wanted", document.format);
    }
    Ok(document)
}

/// The folder in which the files lie that the document at `path` names.
pub fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The message `Segs` of a document, in JSON. Paths are those of the document, which lies in the folder `below`; a
/// ControlNet is a file if there is one at `base`, `below` and its name.
pub fn wire(document: &Document, below: &Path, base: &Path) -> Value {
    let path = |path: &str| json!({ "path": below.join(path).to_string_lossy() });
    let picture = |source: &Source| match source {
        Source::Path(file) => path(file),
        Source::Digest(digest) => json!({ "digest": digest.to_string() }),
        Source::Uri(uri) => json!({ "uri": uri }),
    };
    let mask = |source: &MaskSource| match source {
        MaskSource::Path(file) => json!({ "picture": path(file) }),
        MaskSource::Digest(digest) => json!({ "picture": { "digest": digest.to_string() } }),
        MaskSource::Uri(uri) => json!({ "picture": { "uri": uri } }),
        MaskSource::Rle(RunLengths { width, height, counts }) => {
            json!({ "rle": { "width": width, "height": height, "counts": counts } })
        }
    };
    let control = |control: &DocumentControl| {
        let DocumentControl { control_net, strength, start_percent, end_percent, advanced, image } = control;
        let is_file = base.join(below).join(control_net).is_file();
        without_nulls(json!({
            "control_net": if is_file { path(control_net) } else { json!(control_net) },
            "strength": strength,
            "start_percent": start_percent,
            "end_percent": end_percent,
            "advanced": advanced,
            "image": image.as_ref().map(picture),
        }))
    };
    let seg = |seg: &DocumentSeg| {
        without_nulls(json!({
            "bbox": seg.bbox,
            "crop_region": seg.crop_region,
            "label": seg.label,
            "confidence": seg.confidence,
            "cropped_mask": seg.cropped_mask.as_ref().map(mask),
            "cropped_image": seg.cropped_image.as_ref().map(picture),
            "positive": seg.positive,
            "negative": seg.negative,
            "control_nets": seg.control_nets.iter().map(control).collect::<Vec<_>>(),
        }))
    };
    json!({
        "width": document.width,
        "height": document.height,
        "segs": document.segs.iter().map(seg).collect::<Vec<_>>(),
    })
}

/// An object without what is absent.
pub fn without_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    value
}

/// What there is to say of a document.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Why it cannot be used.
    pub errors: Vec<Finding>,
    /// What is worth knowing.
    pub warnings: Vec<Finding>,
}

/// Something about a field of a document.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// The field, such as `segs[0].bbox`.
    pub field: String,
    /// What about it.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.what)
    }
}

impl Findings {
    fn error(&mut self, field: impl Into<String>, what: impl Into<String>) {
        self.errors.push(Finding { field: field.into(), what: what.into() });
    }

    fn warning(&mut self, field: impl Into<String>, what: impl Into<String>) {
        self.warnings.push(Finding { field: field.into(), what: what.into() });
    }
}

/// Says what is wrong with a document whose files lie in `folder`, and what is worth knowing of it.
pub fn check(document: &Document, folder: &Path, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    let size = Size::new(document.width, document.height);
    if (size.width == 0) != (size.height == 0) {
        findings.error("width", "must be there with `height`, or both must be left out");
    }
    match document.segs.len() as u64 {
        0 => findings.warning("segs", "is empty: there is nothing to do"),
        count if count > MAX_SEGS => {
            findings.error("segs", format!("has {count} segments, and a job takes {MAX_SEGS} at most"));
        }
        _ => {}
    }
    for (index, seg) in document.segs.iter().enumerate() {
        check_seg(seg, &format!("segs[{index}]"), size, folder, limits, &mut findings);
    }
    findings
}

fn check_seg(seg: &DocumentSeg, at: &str, picture: Size, folder: &Path, limits: &Limits, findings: &mut Findings) {
    let region = seg.crop_region;
    let crop = match region.size() {
        Err(error) => {
            findings.error(format!("{at}.crop_region"), error.to_string());
            None
        }
        Ok(size) => {
            if picture.pixels() != 0 {
                let within = region.within(picture).size();
                if within.pixels() == 0 {
                    findings.error(format!("{at}.crop_region"), format!("{region} lies outside the {picture} picture"));
                } else if within != size {
                    findings.warning(
                        format!("{at}.crop_region"),
                        format!("{region} reaches beyond the {picture} picture, and is cut to it"),
                    );
                }
            }
            Some(size)
        }
    };
    if let Some(bbox) = seg.bbox {
        let corners = <[f64; 4]>::from(bbox);
        if !corners.iter().all(|corner| corner.is_finite()) || bbox.width() <= 0.0 || bbox.height() <= 0.0 {
            findings.error(format!("{at}.bbox"), format!("{bbox} has no width or no height"));
        }
    }
    if let Some(confidence) = seg.confidence
        && !(0.0..=1.0).contains(&confidence)
    {
        findings.error(format!("{at}.confidence"), format!("is {confidence}, and 0 to 1 is wanted"));
    }
    match mask_size(seg, folder, limits) {
        Err(error) => findings.error(format!("{at}.cropped_mask"), format!("{error:#}")),
        Ok(Some((mask, is_empty))) => {
            if is_empty {
                findings.warning(format!("{at}.cropped_mask"), "is 0 everywhere: the segment is left as it is");
            } else if let Some(crop) = crop
                && mask != crop
            {
                findings.warning(
                    format!("{at}.cropped_mask"),
                    format!("is {mask} and the crop region {crop}: it is stretched"),
                );
            }
        }
        Ok(None) => {}
    }
    let pictures = seg.cropped_image.iter().map(|source| ("cropped_image".to_owned(), source));
    let seen = seg.control_images.iter().enumerate().map(|(i, source)| (format!("control_images[{i}]"), source));
    let controls = seg.control_nets.iter().enumerate();
    let control_pictures =
        controls.filter_map(|(i, net)| Some((format!("control_nets[{i}].image"), net.image.as_ref()?)));
    for (field, source) in pictures.chain(seen).chain(control_pictures) {
        match source {
            Source::Path(path) => match local::size(&folder.join(path), limits) {
                Err(error) => findings.error(format!("{at}.{field}"), format!("{error:#}")),
                Ok(size) if field == "cropped_image" && crop.is_some_and(|crop| crop != size) => {
                    let crop = crop.unwrap_or(size);
                    findings.warning(format!("{at}.{field}"), format!("is {size} and the crop region {crop}"));
                }
                Ok(_) => {}
            },
            Source::Uri(uri) => check_uri(uri, &format!("{at}.{field}"), findings),
            Source::Digest(_) => {}
        }
    }
    if let Some(MaskSource::Uri(uri)) = &seg.cropped_mask {
        check_uri(uri, &format!("{at}.cropped_mask"), findings);
    }
    for (i, net) in seg.control_nets.iter().enumerate() {
        let at = format!("{at}.control_nets[{i}]");
        if net.control_net.is_empty() {
            findings.error(format!("{at}.control_net"), "names no model");
        }
        let mut within = |name: &str, value: Option<f64>, most: f64| {
            if let Some(value) = value
                && !(0.0..=most).contains(&value)
            {
                findings.error(format!("{at}.{name}"), format!("is {value}, and 0 to {most} is wanted"));
            }
        };
        within("strength", net.strength, 10.0);
        within("start_percent", net.start_percent, 1.0);
        within("end_percent", net.end_percent, 1.0);
    }
}

fn check_uri(uri: &str, field: &str, findings: &mut Findings) {
    if !uri.starts_with("s3://") {
        findings.error(field, format!("`{uri}` is not an s3:// URI"));
    }
}

/// The size of a segment's mask, and whether it is 0 everywhere; `None` where it is not on this machine.
fn mask_size(seg: &DocumentSeg, folder: &Path, limits: &Limits) -> anyhow::Result<Option<(Size, bool)>> {
    Ok(match &seg.cropped_mask {
        None | Some(MaskSource::Digest(_) | MaskSource::Uri(_)) => None,
        Some(MaskSource::Path(path)) => {
            let mask = local::read_mask(&folder.join(path), limits)?;
            Some((mask.size(), mask.is_zero()))
        }
        Some(MaskSource::Rle(runs)) => {
            runs.check()?;
            let size = Size::new(runs.width, runs.height);
            if size.pixels() == 0 {
                bail!("a {size} mask has no pixels");
            }
            Some((size, runs.counts.iter().skip(1).step_by(2).all(|&count| count == 0)))
        }
    })
}

/// The values of a segment's mask: 1 everywhere where it has none. `None` where it is not on this machine.
pub fn mask(seg: &DocumentSeg, folder: &Path, limits: &Limits) -> anyhow::Result<Option<Mask>> {
    Ok(match &seg.cropped_mask {
        None => Some(Mask::zeros(seg.crop_region.size()?).map(|_| 1.0)),
        Some(MaskSource::Path(path)) => Some(local::read_mask(&folder.join(path), limits)?),
        Some(MaskSource::Rle(runs)) => Some(Mask::new(1, Size::new(runs.width, runs.height), runs.values()?)?),
        Some(MaskSource::Digest(_) | MaskSource::Uri(_)) => None,
    })
}

/// The segments of the document at `path` with their masks.
///
/// # Errors
/// If a mask is not on this machine.
pub fn load(path: &Path, limits: &Limits) -> anyhow::Result<Segs> {
    let document = read(path)?;
    let folder = folder(path);
    let seg = |(index, seg): (usize, &DocumentSeg)| {
        let context = || format!("segs[{index}].cropped_mask of `{}`", path.display());
        let mask = mask(seg, folder, limits).with_context(context)?;
        let mask = mask.with_context(|| anyhow!("it is not on this machine")).with_context(context)?;
        let crop = seg.crop_region.size().with_context(context)?;
        let cropped_mask = if mask.size() == crop { mask } else { mask.resize(crop)? };
        Ok(imaging::segs::Seg {
            cropped_image: None,
            cropped_mask,
            confidence: seg.confidence.unwrap_or(1.0),
            crop_region: seg.crop_region,
            bbox: seg.crop_region, // nothing that is made of these segments asks for it
            label: seg.label.clone(),
        })
    };
    let segs = document.segs.iter().enumerate().map(seg).collect::<anyhow::Result<_>>()?;
    Ok(Segs { header: Size::new(document.width, document.height), segs })
}

/// A document in the making, and where its files go.
#[derive(Debug)]
pub struct Writing {
    /// The document's file.
    file: PathBuf,
    /// The folder of what it names.
    files: PathBuf,
    /// That folder, as the document names it; empty where it is its own.
    below: String,
    masks: Masks,
    limits: Limits,
}

impl Writing {
    /// A document at `output`, a `.json` file whose files go to a folder beside it, or a folder of its own.
    ///
    /// # Errors
    /// If there is one, unless `force` writes over it.
    pub fn to(output: &Path, masks: Masks, force: bool) -> anyhow::Result<Self> {
        let is_file = output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let limits = Limits::default();
        let writing = if is_file && !output.is_dir() {
            let stem = output.file_stem().unwrap_or_default().to_string_lossy();
            let below = if stem.ends_with(".segs") { stem.into_owned() } else { format!("{stem}.segs") };
            Self { file: output.to_owned(), files: folder(output).join(&below), below, masks, limits }
        } else {
            Self { file: output.join(NAME), files: output.to_owned(), below: String::new(), masks, limits }
        };
        refuse_existing(&writing.file, force)?;
        Ok(writing)
    }

    /// Makes a name for a file that belongs to segment `index`; gives its path, and how the document names it.
    fn name(&self, index: usize, label: &str, what: &str) -> anyhow::Result<(PathBuf, String)> {
        std::fs::create_dir_all(&self.files).with_context(|| format!("cannot make `{}`", self.files.display()))?;
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let label: String = label.chars().filter(|&c| fits(c)).take(32).collect();
        let name = match label.as_str() {
            "" => format!("{index}-{what}"),
            label => format!("{index}-{label}-{what}"),
        };
        let named = if self.below.is_empty() { name.clone() } else { format!("{}/{name}", self.below) };
        Ok((self.files.join(name), named))
    }

    /// Writes a mask, as runs or as a file.
    fn mask(&self, index: usize, label: &str, mask: &Mask) -> anyhow::Result<MaskSource> {
        if self.masks == Masks::Rle
            && let Some(runs) = RunLengths::of(mask.size(), &mask.data)
        {
            return Ok(MaskSource::Rle(runs));
        }
        let (path, named) = self.name(index, label, "mask.png")?;
        local::write_mask(&mask.data, mask.size(), &path, &self.limits)?;
        Ok(MaskSource::Path(named))
    }

    /// Writes the segments of a picture of `size` one after the other, and says where the document is.
    pub fn segs(
        &self,
        size: Size,
        segs: impl Iterator<Item = Result<imaging::segs::Seg, PixelError>>,
    ) -> anyhow::Result<&Path> {
        let seg = |(index, seg): (usize, Result<imaging::segs::Seg, PixelError>)| {
            let seg = seg?;
            Ok(DocumentSeg {
                bbox: Some(Bbox::from(seg.bbox)),
                crop_region: seg.crop_region,
                confidence: Some(seg.confidence),
                cropped_mask: Some(self.mask(index, &seg.label, &seg.cropped_mask)?),
                label: seg.label,
                cropped_image: None,
                positive: None,
                negative: None,
                control_nets: Vec::new(),
                control_images: Vec::new(),
            })
        };
        let made = segs.enumerate().map(seg).collect::<anyhow::Result<_>>()?;
        self.document(&Document::new(size, made))
    }

    /// Writes the document `from` anew, whose files lie in `folder`. What is not on this machine stays named as it is.
    pub fn copy(&self, from: &Document, folder: &Path) -> anyhow::Result<&Path> {
        let mut document = from.clone();
        for (index, seg) in document.segs.iter_mut().enumerate() {
            let label = seg.label.clone();
            if seg.cropped_mask.is_some()
                && let Some(mask) =
                    mask(seg, folder, &self.limits).with_context(|| format!("segs[{index}].cropped_mask"))?
            {
                seg.cropped_mask = Some(self.mask(index, &label, &mask)?);
            }
            for (what, source) in pictures(seg) {
                let Source::Path(path) = source else { continue };
                let extension = Path::new(path).extension().unwrap_or_default().to_string_lossy().into_owned();
                let (to, named) = self.name(index, &label, &format!("{what}.{extension}"))?;
                copy(&folder.join(&*path), &to)?;
                *path = named;
            }
            for net in &mut seg.control_nets {
                let file = folder.join(&net.control_net);
                if file.is_file() {
                    let file = std::path::absolute(&file)?; // weights are large, and stay where they are
                    net.control_net = file.to_str().with_context(|| format!("`{}` is no text", file.display()))?.into();
                }
            }
        }
        self.document(&document)
    }

    /// Writes the document itself.
    fn document(&self, document: &Document) -> anyhow::Result<&Path> {
        let context = || format!("cannot write `{}`", self.file.display());
        let folder = Some(folder(&self.file)).filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).with_context(context)?;
        let mut file = transfer::unnamed(folder).with_context(context)?;
        std::io::Write::write_all(&mut file, text(document).as_bytes()).with_context(context)?;
        file.persist(&self.file).map_err(|error| error.error).with_context(context)?;
        Ok(&self.file)
    }

    /// Downloads a document that a job made, and everything that it names.
    pub async fn download(&self, farm: &Farm, artifact: &v1::Artifact) -> anyhow::Result<&Path> {
        transfer::download(farm, artifact, &self.file).await?;
        let mut document = read(&self.file)?;
        for (index, seg) in document.segs.iter_mut().enumerate() {
            let label = seg.label.clone();
            if let Some(MaskSource::Digest(digest)) = &seg.cropped_mask {
                let named = self.fetch(farm, &digest.to_string(), index, &label, "mask").await?;
                seg.cropped_mask = Some(MaskSource::Path(named));
            }
            for (what, source) in pictures(seg) {
                if let Source::Digest(digest) = source {
                    *source = Source::Path(self.fetch(farm, &digest.to_string(), index, &label, &what).await?);
                }
            }
        }
        self.document(&document)
    }

    async fn fetch(&self, farm: &Farm, digest: &str, index: usize, label: &str, what: &str) -> anyhow::Result<String> {
        let (path, named) = self.name(index, label, &format!("{what}.png"))?;
        let artifact = v1::Artifact { digest: digest.to_owned(), ..v1::Artifact::default() };
        transfer::download(farm, &artifact, &path).await?;
        Ok(named)
    }
}

/// The pictures of a segment, and what to call them.
fn pictures(seg: &mut DocumentSeg) -> Vec<(String, &mut Source)> {
    let controls = seg.control_nets.iter_mut().enumerate();
    let controls = controls.filter_map(|(i, net)| Some((format!("control-{i}"), net.image.as_mut()?)));
    let seen = seg.control_images.iter_mut().enumerate().map(|(i, source)| (format!("seen-{i}"), source));
    seg.cropped_image.iter_mut().map(|source| ("image".to_owned(), source)).chain(controls).chain(seen).collect()
}

/// Copies a file, unless it would be onto itself.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() && from.canonicalize().ok() == to.canonicalize().ok() {
        return Ok(());
    }
    let context = || format!("cannot copy `{}` to `{}`", from.display(), to.display());
    std::fs::copy(from, to).with_context(context)?;
    Ok(())
}

/// A document as text: one segment a line, for people and for version control.
fn text(document: &Document) -> String {
    let value = json!(document);
    let line = |value: &Value| format!("    {value}");
    let segs: Vec<String> = value["segs"].as_array().into_iter().flatten().map(line).collect();
    let segs = if segs.is_empty() { "[]".to_owned() } else { format!("[\n{}\n  ]", segs.join(",\n")) };
    format!(
        "{{\n  \"format\": {},\n  \"width\": {},\n  \"height\": {},\n  \"segs\": {segs}\n}}\n",
        value["format"], value["width"], value["height"]
    )
}

#[cfg(test)]
mod tests {
    use domain::region::Corners;
    use jsonschema::Validator;

    use super::*;

    /// Two segments: a mask of 0 and 1, and one with greys.
    fn segs() -> Segs {
        let seg = |crop_region: Corners, values: &[f32], label: &str| imaging::segs::Seg {
            cropped_image: None,
            cropped_mask: Mask::new(1, crop_region.size().unwrap(), values.to_vec()).unwrap(),
            confidence: 0.5,
            crop_region,
            bbox: crop_region,
            label: label.to_owned(),
        };
        let grey = imaging::bytes::from_u8(100);
        Segs {
            header: Size::new(8, 4),
            segs: vec![
                seg(Corners::new(0, 0, 2, 2), &[0.0, 1.0, 1.0, 0.0], "a face/../x"),
                seg(Corners::new(2, 1, 4, 2), &[grey, 1.0], ""),
            ],
        }
    }

    fn schema() -> Validator {
        let text = std::fs::read_to_string(repository("docs/segs.schema.json")).unwrap();
        let schema: Value = serde_json::from_str(&text).unwrap();
        jsonschema::meta::validate(&schema).unwrap();
        jsonschema::draft202012::new(&schema).unwrap()
    }

    fn repository(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
    }

    #[track_caller]
    fn is_valid(validator: &Validator, value: &Value) {
        let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }

    #[test]
    fn a_document_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (masks, output, files) in [
            (Masks::Rle, "a.json", vec!["a.segs/1-mask.png"]),
            (Masks::Png, "b.segs.json", vec!["b.segs/0-afacex-mask.png", "b.segs/1-mask.png"]),
            (Masks::Png, "c", vec!["c/0-afacex-mask.png", "c/1-mask.png"]),
        ] {
            let writing = Writing::to(&at(output), masks, false).unwrap();
            let Segs { header, segs: made } = segs();
            let path = writing.segs(header, made.into_iter().map(Ok)).unwrap();
            assert_eq!(path, if output == "c" { at("c/segs.json") } else { at(output) });
            let document = read(path).unwrap();
            assert_eq!(check(&document, super::folder(path), &Limits::default()), Findings::default());
            assert_eq!(load(path, &Limits::default()).unwrap(), segs());
            files.iter().for_each(|file| assert!(at(file).is_file(), "{file}"));
            assert!(Writing::to(&at(output), masks, false).is_err(), "it is not written over");
            is_valid(&schema(), &json!(document));
        }
        // From files to runs, and back, with everything else.
        let mut document = read(&at("c/segs.json")).unwrap();
        document.segs[0].positive = Some("a face".to_owned());
        document.segs[0].cropped_image = Some(Source::Path("1-mask.png".to_owned()));
        let runs = Writing::to(&at("d.json"), Masks::Rle, false).unwrap();
        let written = read(runs.copy(&document, &at("c")).unwrap()).unwrap();
        assert!(matches!(written.segs[0].cropped_mask, Some(MaskSource::Rle(_))));
        assert_eq!(written.segs[1].cropped_mask, Some(MaskSource::Path("d.segs/1-mask.png".to_owned())));
        assert_eq!(written.segs[0].cropped_image, Some(Source::Path("d.segs/0-afacex-image.png".to_owned())));
        assert_eq!(load(&at("d.json"), &Limits::default()).unwrap(), segs());
        let back = Writing::to(&at("c"), Masks::Png, true).unwrap();
        back.copy(&written, folder.path()).unwrap();
        assert_eq!(load(&at("c/segs.json"), &Limits::default()).unwrap(), segs());
        is_valid(&schema(), &json!(written));
    }

    #[test]
    fn what_is_wrong_with_a_document_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("text.png"), "no picture").unwrap();
        let findings = |segs: Value| {
            let document = json!({ "format": FORMAT, "width": 10, "height": 10, "segs": segs });
            let document = parse(&document.to_string()).unwrap();
            let Findings { errors, warnings } = check(&document, folder.path(), &Limits::default());
            let show = |all: Vec<Finding>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            (show(errors), show(warnings))
        };
        let error = |segs: Value, words: &str| {
            let (errors, warnings) = findings(segs);
            assert!(errors.contains(words), "{errors}; {warnings}");
        };
        let warning = |segs: Value, words: &str| {
            let (errors, warnings) = findings(segs);
            assert!(errors.is_empty() && warnings.contains(words), "{errors}; {warnings}");
        };
        error(
            json!([{ "crop_region": [5, 5, 5, 9] }]),
            "segs[0].crop_region: the region (5, 5, 5, 9) of a segment is empty",
        );
        error(json!([{ "crop_region": [20, 0, 30, 9] }]), "lies outside the 10x10 picture");
        error(json!([{ "crop_region": [0, 0, 9, 9], "bbox": [5, 5, 1, 9] }]), "segs[0].bbox: ");
        error(json!([{ "crop_region": [0, 0, 9, 9], "confidence": 2 }]), "segs[0].confidence: is 2, and 0 to 1");
        error(
            json!([{ "crop_region": [0, 0, 9, 9], "cropped_mask": { "path": "none.png" } }]),
            "segs[0].cropped_mask: ",
        );
        error(
            json!([{ "crop_region": [0, 0, 9, 9], "cropped_mask": { "path": "text.png" } }]),
            "segs[0].cropped_mask: ",
        );
        error(
            json!([{ "crop_region": [0, 0, 9, 9], "cropped_image": { "path": "none.png" } }]),
            "segs[0].cropped_image: ",
        );
        error(json!([{ "crop_region": [0, 0, 9, 9], "cropped_image": { "uri": "http://x" } }]), "not an s3:// URI");
        let runs = |counts: Value| json!({ "rle": { "width": 3, "height": 3, "counts": counts } });
        error(json!([{ "crop_region": [0, 0, 3, 3], "cropped_mask": runs(json!([4, 4])) }]), "hold 8 values");
        let net = json!([{ "control_net": "canny", "strength": 11 }]);
        error(json!([{ "crop_region": [0, 0, 9, 9], "control_nets": net }]), "segs[0].control_nets[0].strength: is 11");
        warning(json!([]), "nothing to do");
        warning(json!([{ "crop_region": [5, 0, 30, 9] }]), "is cut to it");
        warning(json!([{ "crop_region": [0, 0, 3, 3], "cropped_mask": runs(json!([9])) }]), "is 0 everywhere");
        warning(json!([{ "crop_region": [0, 0, 4, 3], "cropped_mask": runs(json!([0, 9])) }]), "is stretched");
        let other = parse(r#"{ "format": "tessera.segs/2", "segs": [] }"#).unwrap_err().to_string();
        assert_eq!(other, "`format` is `tessera.segs/2`, and `tessera.segs/1` is wanted");
    }

    #[test]
    fn the_schema_takes_what_the_program_takes() {
        let schema = schema();
        let guide = std::fs::read_to_string(repository("docs/segs.md")).unwrap();
        let examples: Vec<&str> =
            guide.split("```json\n").skip(1).filter_map(|part| part.split("```").next()).collect();
        assert!(!examples.is_empty());
        for example in examples {
            parse(example).unwrap();
            is_valid(&schema, &serde_json::from_str(example).unwrap());
        }
        let with = |seg: Value| json!({ "format": FORMAT, "segs": [seg] });
        let digest = "0".repeat(64);
        let right = [
            json!({ "crop_region": [-1, 0, 9, 9], "bbox": [0.5, 0, 9, 9.25], "confidence": 0.5 }),
            json!({ "crop_region": [0, 0, 9, 9], "cropped_mask": { "digest": digest }, "cropped_image": { "uri": "s3://b/k" } }),
            json!({ "crop_region": [0, 0, 9, 9], "control_images": [{ "path": "a.png" }], "negative": "" }),
        ];
        for seg in right {
            parse(&with(seg.clone()).to_string()).unwrap();
            is_valid(&schema, &with(seg));
        }
        let wrong = [
            json!({}),
            json!({ "crop_region": [0, 0, 9] }),
            json!({ "crop_region": [0, 0, 9.5, 9] }),
            json!({ "crop_region": [0, 0, 9, 9], "mask": {} }),
            json!({ "crop_region": [0, 0, 9, 9], "cropped_mask": {} }),
            json!({ "crop_region": [0, 0, 9, 9], "cropped_mask": { "path": "a", "digest": "b" } }),
            json!({ "crop_region": [0, 0, 9, 9], "cropped_mask": { "rle": { "width": 1, "height": 1 } } }),
            json!({ "crop_region": [0, 0, 9, 9], "cropped_image": { "rle": { "width": 1, "height": 1, "counts": [1] } } }),
            json!({ "crop_region": [0, 0, 9, 9], "cropped_image": { "digest": "b" } }),
            json!({ "crop_region": [0, 0, 9, 9], "control_nets": [{}] }),
            json!({ "crop_region": [0, 0, 9, 9], "label": null }),
        ];
        for seg in wrong {
            assert!(parse(&with(seg.clone()).to_string()).is_err(), "the program takes {seg}");
            assert!(!schema.is_valid(&with(seg.clone())), "the schema takes {seg}");
        }
        assert!(!schema.is_valid(&json!({ "format": "tessera.segs/2", "segs": [] })));
        assert!(!schema.is_valid(&json!({ "format": FORMAT })));
    }
}

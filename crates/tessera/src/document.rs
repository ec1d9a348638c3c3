//! A job as a JSON document: what may stand in it beside the contract, and how that becomes a request.
//!
//! Where the contract wants a picture, `{"path": "FILE"}` names a local file; where it wants a model, too; and where it
//! wants SEGS, `{"document": "FILE"}` names a file of SEGS. The contract's own descriptors say which is which, so that
//! a new kind of job needs nothing here.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use prost_reflect::{Kind, MessageDescriptor};
use proto::v1;
use serde_json::{Value, json};

use crate::{segs_file, wire_json};

/// The message that a document is.
const MESSAGE: &str = "CreateJobRequest";

/// A document whose local files are not uploaded yet.
#[derive(Debug)]
pub struct Document {
    value: Value,
    folder: PathBuf,
}

/// A local file that a document names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where in the document it stands, as a JSON pointer.
    place: String,
    /// The file.
    pub path: PathBuf,
    /// What it stands for.
    pub stands_for: StandsFor,
}

/// What a local file stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandsFor {
    /// A picture, a mask or a latent.
    Picture,
    /// A model.
    Model,
}

impl Document {
    /// Reads a document whose paths are relative to `folder`, and the files of SEGS that it names.
    pub fn parse(text: &str, folder: &Path) -> anyhow::Result<Self> {
        Self::new(serde_json::from_str(text).context("the document is not JSON")?, folder)
    }

    /// The document `value`, whose paths are relative to `folder`, with the files of SEGS that it names.
    pub fn new(mut value: Value, folder: &Path) -> anyhow::Result<Self> {
        expand(&mut value, &wire_json::descriptor(MESSAGE), "", folder)?;
        Ok(Self { value, folder: folder.to_owned() })
    }

    /// The local files that it names.
    pub fn files(&self) -> anyhow::Result<Vec<LocalFile>> {
        let mut found = Vec::new();
        self.find(&self.value, &wire_json::descriptor(MESSAGE), "", &mut found)?;
        Ok(found)
    }

    fn find(
        &self,
        value: &Value,
        message: &MessageDescriptor,
        place: &str,
        found: &mut Vec<LocalFile>,
    ) -> anyhow::Result<()> {
        let Some(fields) = value.as_object() else { return Ok(()) }; // the contract says what is wrong with it
        if message.full_name() == "tessera.v1.PictureSource" {
            if let Some(path) = fields.get("path") {
                if fields.contains_key("digest") || fields.contains_key("uri") {
                    bail!("`{}` has a `path`, so it can have neither `digest` nor `uri`", dotted(place));
                }
                found.push(self.local(place, path, StandsFor::Picture)?);
            }
            return Ok(());
        }
        for (name, value) in fields {
            let Some(kind) = kind(message, name) else { continue };
            each(value, &format!("{place}/{name}"), |value, place| match &kind {
                Kind::Message(inner) => self.find(value, inner, place, found),
                Kind::String => match value.as_object() {
                    None => Ok(()),
                    Some(model) if model.len() == 1 && model.contains_key("path") => {
                        found.push(self.local(place, &model["path"], StandsFor::Model)?);
                        Ok(())
                    }
                    Some(_) => {
                        bail!("`{}` must be a text, or where it names a model, {{\"path\": \"FILE\"}}", dotted(place))
                    }
                },
                _ => Ok(()),
            })?;
        }
        Ok(())
    }

    /// Puts what a local file became where it stands: the digest of a picture, the name or digest of a model.
    pub fn replace(&mut self, file: &LocalFile, by: String) -> anyhow::Result<()> {
        let value = self.value.pointer_mut(&file.place).context("a file of the document is gone")?;
        match file.stands_for {
            StandsFor::Model => *value = by.into(),
            StandsFor::Picture => {
                let picture = value.as_object_mut().context("a picture of the document is gone")?;
                picture.remove("path");
                picture.insert("digest".to_owned(), by.into());
                let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                picture.entry("name").or_insert(name.into());
            }
        }
        Ok(())
    }

    /// The request; an unknown field is refused by its name.
    pub fn request(self) -> anyhow::Result<v1::CreateJobRequest> {
        wire_json::read(MESSAGE, self.value).context("the document is no job")
    }

    fn local(&self, place: &str, path: &Value, stands_for: StandsFor) -> anyhow::Result<LocalFile> {
        let path = text(path, &format!("{place}/path"))?;
        Ok(LocalFile { place: place.to_owned(), path: self.folder.join(path), stands_for })
    }
}

/// Puts the files of SEGS that `value`, a message of this kind, names where they stand.
fn expand(value: &mut Value, message: &MessageDescriptor, place: &str, folder: &Path) -> anyhow::Result<()> {
    let Some(fields) = value.as_object_mut() else { return Ok(()) };
    let is_source = message.full_name() == "tessera.v1.SegsSource";
    if is_source || message.full_name() == "tessera.v1.Segs" {
        let Some(path) = fields.get("document") else { return descend(fields, message, place, folder) };
        if fields.len() > 1 {
            bail!("`{}` has a `document`, so it can have nothing else", dotted(place));
        }
        let path = Path::new(text(path, &format!("{place}/document"))?);
        let document = segs_file::read(&folder.join(path))?;
        let below = path.parent().unwrap_or(Path::new(""));
        let segs = segs_file::wire(&document, below, folder);
        *value = if is_source { json!({ "segs": segs }) } else { segs };
        return Ok(());
    }
    descend(fields, message, place, folder)
}

fn descend(
    fields: &mut serde_json::Map<String, Value>,
    message: &MessageDescriptor,
    place: &str,
    folder: &Path,
) -> anyhow::Result<()> {
    for (name, value) in fields.iter_mut() {
        if let Some(Kind::Message(inner)) = kind(message, name) {
            let place = format!("{place}/{name}");
            match value {
                Value::Array(all) => {
                    let mut all = all.iter_mut().enumerate();
                    all.try_for_each(|(i, value)| expand(value, &inner, &format!("{place}/{i}"), folder))?;
                }
                value => expand(value, &inner, &place, folder)?,
            }
        }
    }
    Ok(())
}

/// What a field of a message holds, by its name in the contract or in JSON. `None`: there is none, or it is a map.
fn kind(message: &MessageDescriptor, name: &str) -> Option<Kind> {
    let field = message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name))?;
    (!field.is_map()).then(|| field.kind())
}

/// Calls `see` with a value and its place, or with all of a list.
fn each(value: &Value, place: &str, mut see: impl FnMut(&Value, &str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    match value {
        Value::Array(all) => all.iter().enumerate().try_for_each(|(i, value)| see(value, &format!("{place}/{i}"))),
        value => see(value, place),
    }
}

fn text<'a>(value: &'a Value, place: &str) -> anyhow::Result<&'a str> {
    value.as_str().with_context(|| format!("`{}` must be a text", dotted(place)))
}

/// `/upscale/pictures/0` as `upscale.pictures[0]`.
fn dotted(place: &str) -> String {
    place.split('/').skip(1).fold(String::new(), |path, part| match (path.as_str(), part.parse::<usize>()) {
        (_, Ok(index)) => format!("{path}[{index}]"),
        ("", _) => part.to_owned(),
        _ => format!("{path}.{part}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Document {
        Document::parse(text, Path::new("/jobs")).unwrap()
    }

    fn shown(document: &Document) -> Vec<String> {
        let files = document.files().unwrap();
        files.iter().map(|file| format!("{} {:?} {}", file.place, file.stands_for, file.path.display())).collect()
    }

    #[test]
    fn local_files_become_digests_and_names() {
        let text = r#"{ "upscale": {
            "pictures": [{ "uri": "s3://b/k" }, { "path": "a/photo.jpg" }, { "path": "/b.png", "name": "second" }],
            "upscale_model": { "path": "4x.pth" } } }"#;
        let mut document = parse(text);
        let want = [
            "/upscale/pictures/1 Picture /jobs/a/photo.jpg",
            "/upscale/pictures/2 Picture /b.png",
            "/upscale/upscale_model Model /jobs/4x.pth",
        ];
        assert_eq!(shown(&document), want);
        for (file, by) in document.files().unwrap().iter().zip(["d1", "d2", "m"]) {
            document.replace(file, by.to_owned()).unwrap();
        }
        let Some(v1::create_job_request::Kind::Upscale(upscale)) = document.request().unwrap().kind else {
            panic!("no kind")
        };
        assert_eq!(upscale.upscale_model, "m");
        let digest = |digest: &str| Some(v1::picture_source::Source::Digest(digest.to_owned()));
        let picture = |name: &str, source| v1::PictureSource { name: name.to_owned(), source };
        assert_eq!(upscale.pictures[1..], [picture("photo.jpg", digest("d1")), picture("second", digest("d2"))]);
    }

    #[test]
    fn every_place_for_a_picture_or_a_model_takes_a_file() {
        let document = parse(
            r#"{ "segsDetail": {
            "picture": { "path": "p.png" },
            "segs": { "mask": { "mask": { "path": "m.png" } } },
            "basic_pipe": {
                "checkpoint": { "path": "c.safetensors" }, "vae": "v", "embeddings": ["e", { "path": "e.pt" }],
                "loras": [{ "lora": { "path": "l.safetensors" } }],
                "positive": [{ "text": "a", "mask": { "mask": { "path": "pm.png" } } }],
                "controlNets": [{ "control_net": { "path": "n.pth" }, "image": { "path": "i.png" } }] } },
            "labels": { "path": "p" }, "deadline": "2026-11-21T10:00:00Z" }"#,
        );
        let at = "/segsDetail";
        let want = [
            format!("{at}/basic_pipe/checkpoint Model /jobs/c.safetensors"),
            format!("{at}/basic_pipe/controlNets/0/control_net Model /jobs/n.pth"),
            format!("{at}/basic_pipe/controlNets/0/image Picture /jobs/i.png"),
            format!("{at}/basic_pipe/embeddings/1 Model /jobs/e.pt"),
            format!("{at}/basic_pipe/loras/0/lora Model /jobs/l.safetensors"),
            format!("{at}/basic_pipe/positive/0/mask/mask Picture /jobs/pm.png"),
            format!("{at}/picture Picture /jobs/p.png"),
            format!("{at}/segs/mask/mask Picture /jobs/m.png"),
        ];
        let mut found = shown(&document);
        found.sort();
        assert_eq!(found, want);
        let latent = parse(r#"{ "latent_upscale": { "latent": { "path": "a.latent" }, "vae": { "path": "v.pt" } } }"#);
        assert_eq!(shown(&latent).len(), 2);
    }

    #[test]
    fn a_file_of_segs_stands_where_segs_are_wanted() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("found")).unwrap();
        let segs = r#"{ "format": "tessera.segs/1", "width": 64, "height": 48, "segs": [
            { "bbox": [1.5, 2, 9, 9], "crop_region": [0, 0, 16, 16], "label": "face", "confidence": 0.5, "positive": "a face",
              "cropped_mask": { "path": "face.png" }, "control_images": [{ "path": "seen.png" }],
              "control_nets": [{ "control_net": "canny" }, { "control_net": "depth.pth", "strength": 0.5, "image": { "uri": "s3://b/k" } }] },
            { "crop_region": [0, 0, 2, 1], "cropped_mask": { "rle": { "width": 2, "height": 1, "counts": [0, 2] } } }] }"#;
        std::fs::write(folder.path().join("found/faces.json"), segs).unwrap();
        std::fs::write(folder.path().join("found/depth.pth"), "").unwrap();
        let document = format!(
            r#"{{ "segs_upscale": {{ "segs": {{ "tiles": {{ "filter_in_segs": {0} }} }} }},
                "segs_detail": {{ "segs": {0} }} }}"#,
            r#"{ "document": "found/faces.json" }"#
        );
        let mut value: Value = serde_json::from_str(&document).unwrap();
        value.as_object_mut().unwrap().remove("segs_detail");
        let filtered = Document::new(value.clone(), folder.path()).unwrap();
        let path = |name: &str| folder.path().join("found").join(name).display().to_string();
        let at = "/segs_upscale/segs/tiles/filter_in_segs/segs/0";
        let want = [
            format!("{at}/control_nets/1/control_net Model {}", path("depth.pth")),
            format!("{at}/cropped_mask/picture Picture {}", path("face.png")),
        ];
        assert_eq!(shown(&filtered), want);

        let text = r#"{ "segs_detail": { "segs": { "document": "found/faces.json" } } }"#;
        let mut document = Document::parse(text, folder.path()).unwrap();
        for file in document.files().unwrap() {
            document.replace(&file, "d".to_owned()).unwrap();
        }
        let Some(v1::create_job_request::Kind::SegsDetail(job)) = document.request().unwrap().kind else {
            panic!("no kind")
        };
        let Some(v1::segs_source::Source::Segs(segs)) = job.segs.unwrap().source else { panic!("no segs") };
        assert_eq!((segs.width, segs.height, segs.segs.len()), (64, 48, 2));
        let face = &segs.segs[0];
        assert_eq!(
            (face.bbox.as_slice(), face.crop_region.as_slice()),
            ([1.5, 2.0, 9.0, 9.0].as_slice(), [0, 0, 16, 16].as_slice())
        );
        assert_eq!(
            (face.label.as_str(), face.confidence, face.positive.as_deref()),
            ("face", Some(0.5), Some("a face"))
        );
        assert_eq!((face.control_nets[1].control_net.as_str(), face.control_nets[1].strength), ("d", Some(0.5)));
        let Some(v1::seg_mask::Source::Rle(runs)) = segs.segs[1].cropped_mask.clone().unwrap().source else {
            panic!("no runs")
        };
        assert_eq!((runs.width, runs.height, runs.counts), (2, 1, vec![0, 2]));

        let wrong = r#"{ "segs_detail": { "segs": { "document": "found/faces.json", "mask": {} } } }"#;
        let error = Document::parse(wrong, folder.path()).unwrap_err().to_string();
        assert_eq!(error, "`segs_detail.segs` has a `document`, so it can have nothing else");
        let missing = Document::parse(r#"{ "segs_detail": { "segs": { "document": "no.json" } } }"#, folder.path());
        assert!(missing.unwrap_err().to_string().contains("no.json"));
    }

    #[test]
    fn what_a_document_cannot_say_is_named() {
        let error = |text: &str| format!("{:#}", parse(text).request().unwrap_err());
        assert!(error(r#"{ "upscal": {} }"#).contains("upscal"));
        assert!(error(r#"{ "upscale": { "tile": { "sides": 1 } } }"#).contains("sides"));
        let files = |text: &str| parse(text).files().unwrap_err().to_string();
        let untold = files(r#"{ "upscale": { "pictures": [{ "path": 1 }] } }"#);
        assert_eq!(untold, "`upscale.pictures[0].path` must be a text");
        let twice = files(r#"{ "upscale": { "pictures": [{ "path": "a", "uri": "s3://b/k" }] } }"#);
        assert_eq!(twice, "`upscale.pictures[0]` has a `path`, so it can have neither `digest` nor `uri`");
        assert!(files(r#"{ "upscale": { "upscale_model": {} } }"#).contains("`upscale.upscale_model` must be a text"));
        assert!(Document::parse("{", Path::new("")).is_err());
    }
}

//! A job as a JSON document: what may stand in it beside the contract, and how that becomes a request.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use proto::v1;
use serde_json::Value;

use crate::wire_json;

/// A document whose local files are not uploaded yet.
#[derive(Debug)]
pub struct Document {
    value: Value,
    folder: PathBuf,
}

/// A local file that a document names.
#[derive(Debug, PartialEq, Eq)]
pub struct LocalFile {
    /// Where in the document it stands, as a JSON pointer.
    place: String,
    /// The file.
    pub path: PathBuf,
}

impl Document {
    /// Reads a document whose paths are relative to `folder`.
    pub fn parse(text: &str, folder: &Path) -> anyhow::Result<Self> {
        let value = serde_json::from_str(text).context("the document is not JSON")?;
        Ok(Self { value, folder: folder.to_owned() })
    }

    /// The local files that stand for pictures.
    pub fn pictures(&self) -> anyhow::Result<Vec<LocalFile>> {
        let pictures = self.value.pointer("/upscale/pictures").and_then(Value::as_array);
        let found = pictures.into_iter().flatten().enumerate().filter_map(|(index, picture)| {
            let path = picture.get("path")?;
            Some(self.local(format!("/upscale/pictures/{index}"), path))
        });
        found.collect()
    }

    /// The local file that stands for the model.
    pub fn model(&self) -> anyhow::Result<Option<LocalFile>> {
        let place = ["/upscale/upscale_model", "/upscale/upscaleModel"]
            .into_iter()
            .find(|place| self.value.pointer(place).is_some_and(Value::is_object));
        let Some(place) = place else { return Ok(None) };
        match self.value.pointer(place).and_then(Value::as_object) {
            Some(model) if model.len() == 1 && model.contains_key("path") => {
                self.local(place.to_owned(), &model["path"]).map(Some)
            }
            _ => bail!("`upscale.upscale_model` must be a name, a digest or {{\"path\": \"FILE\"}}"),
        }
    }

    /// Puts the digest of an uploaded picture where its path stands.
    pub fn uploaded(&mut self, file: &LocalFile, digest: String) -> anyhow::Result<()> {
        let picture = self.value.pointer_mut(&file.place).and_then(Value::as_object_mut);
        let picture = picture.context("a picture of the document is gone")?;
        if picture.contains_key("digest") || picture.contains_key("uri") {
            bail!("`{}` has a `path`, so it can have neither `digest` nor `uri`", dotted(&file.place));
        }
        picture.remove("path");
        picture.insert("digest".to_owned(), digest.into());
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        picture.entry("name").or_insert(name.into());
        Ok(())
    }

    /// Puts the name of a model where its path stands.
    pub fn added(&mut self, file: &LocalFile, model: String) -> anyhow::Result<()> {
        *self.value.pointer_mut(&file.place).context("the model of the document is gone")? = model.into();
        Ok(())
    }

    /// The request; an unknown field is refused by its name.
    pub fn request(self) -> anyhow::Result<v1::CreateJobRequest> {
        wire_json::read("CreateJobRequest", self.value).context("the document is no job")
    }

    fn local(&self, place: String, path: &Value) -> anyhow::Result<LocalFile> {
        match path.as_str() {
            Some(path) => Ok(LocalFile { place, path: self.folder.join(path) }),
            None => bail!("`{}.path` must be a text", dotted(&place)),
        }
    }
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

    #[test]
    fn local_files_become_digests_and_names() {
        let text = r#"{ "upscale": {
            "pictures": [{ "uri": "s3://b/k" }, { "path": "a/photo.jpg" }, { "path": "/b.png", "name": "second" }],
            "upscale_model": { "path": "4x.pth" } } }"#;
        let mut document = parse(text);
        let pictures = document.pictures().unwrap();
        let paths: Vec<_> = pictures.iter().map(|file| file.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/jobs/a/photo.jpg", "/b.png"]);
        let model = document.model().unwrap().unwrap();
        assert_eq!(model.path, Path::new("/jobs/4x.pth"));
        document.uploaded(&pictures[0], "d1".to_owned()).unwrap();
        document.uploaded(&pictures[1], "d2".to_owned()).unwrap();
        document.added(&model, "m".to_owned()).unwrap();
        let Some(v1::create_job_request::Kind::Upscale(upscale)) = document.request().unwrap().kind else {
            panic!("no kind")
        };
        assert_eq!(upscale.upscale_model, "m");
        let digest = |digest: &str| Some(v1::picture_source::Source::Digest(digest.to_owned()));
        let picture = |name: &str, source| v1::PictureSource { name: name.to_owned(), source };
        assert_eq!(upscale.pictures[1..], [picture("photo.jpg", digest("d1")), picture("second", digest("d2"))]);
    }

    #[test]
    fn what_a_document_cannot_say_is_named() {
        let error = |text: &str| format!("{:#}", parse(text).request().unwrap_err());
        assert!(error(r#"{ "upscal": {} }"#).contains("upscal"));
        assert!(error(r#"{ "upscale": { "tile": { "sides": 1 } } }"#).contains("sides"));
        let document = parse(r#"{ "upscale": { "pictures": [{ "path": 1 }] } }"#);
        assert_eq!(document.pictures().unwrap_err().to_string(), "`upscale.pictures[0].path` must be a text");
        let mut document = parse(r#"{ "upscale": { "pictures": [{ "path": "a", "uri": "s3://b/k" }] } }"#);
        let file = document.pictures().unwrap().remove(0);
        let twice = document.uploaded(&file, "d".to_owned()).unwrap_err().to_string();
        assert_eq!(twice, "`upscale.pictures[0]` has a `path`, so it can have neither `digest` nor `uri`");
        assert!(parse(r#"{ "upscale": { "upscale_model": {} } }"#).model().is_err());
        assert!(Document::parse("{", Path::new("")).is_err());
    }
}

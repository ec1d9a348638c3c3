//! Textual inversion: vectors that a prompt names in place of words.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use weights::{checkpoint::Checkpoint, detect::diffusion::Clip};

use super::error::{Result, TextError};
use crate::{error::ModelError, layers::values};

/// What a name may lack.
const EXTENSIONS: [&str; 4] = ["", ".safetensors", ".pt", ".bin"];

/// The vectors that one name stands for.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// The name by which it was found.
    pub name: String,
    /// The tensor of its file that was taken; of several, the first.
    pub tensor: String,
    /// [rows, width], f32.
    vectors: Tensor,
}

impl Embedding {
    /// Takes from a file what is meant for an encoder: the tensor called after it, or those of a bundle, or the first by name.
    ///
    /// # Errors
    /// If the tensors are no rows of finite numbers of one width.
    pub fn load(name: &str, checkpoint: &Checkpoint, clip: Clip) -> Result<Self> {
        let bundled = |end: &str| -> Vec<&String> {
            let names = checkpoint.tensors().keys();
            names.filter(|name| name.starts_with("bundle_emb.") && name.ends_with(end)).collect()
        };
        let own = checkpoint.tensors().get_key_value(clip.name()).map(|(name, _)| vec![name]);
        let choices = [
            own.unwrap_or_default(),
            bundled(".string_to_param.*"),
            bundled(&format!(".{}", clip.name())),
            checkpoint.tensors().keys().take(1).collect(),
        ];
        let chosen = choices.into_iter().find(|names| !names.is_empty()).expect("a checkpoint has a tensor");

        let (mut numbers, mut width) = (Vec::new(), None);
        for tensor in &chosen {
            let shape = &checkpoint.tensors()[*tensor].shape;
            let (Some(&last), 1..=2) = (shape.last().filter(|&&last| last > 0), shape.len()) else {
                return Err(TextError::EmbeddingShape { name: name.to_owned(), found: shape.clone() });
            };
            if width.is_some_and(|width| width != last) {
                return Err(TextError::EmbeddingShape { name: name.to_owned(), found: shape.clone() });
            }
            width = Some(last);
            numbers.extend(values(checkpoint, tensor).map_err(|error| unreadable(name, error))?);
        }
        let width = width.expect("at least one tensor was chosen");
        let vectors = Tensor::from_vec(numbers, ((), width), &Device::Cpu).map_err(ModelError::from)?;
        Ok(Self { name: name.to_owned(), tensor: chosen[0].clone(), vectors })
    }

    /// How many tokens it takes.
    pub fn rows(&self) -> usize {
        self.vectors.dims()[0]
    }

    /// How wide an encoder must be to take it.
    pub fn width(&self) -> usize {
        self.vectors.dims()[1]
    }

    /// One of its rows, [1, width], f32 on the CPU.
    pub(super) fn row(&self, row: usize) -> Result<Tensor> {
        Ok(self.vectors.narrow(0, row, 1).map_err(ModelError::from)?)
    }
}

fn unreadable(name: &str, source: impl Into<ModelError>) -> TextError {
    TextError::Embedding { name: name.to_owned(), source: source.into() }
}

/// Where embeddings are looked up.
pub trait Embeddings: Sync {
    /// Finds what `name` stands for with an encoder, or `None` if there is nothing of that name.
    ///
    /// # Errors
    /// If it is there but cannot be read.
    fn find(&self, name: &str, clip: Clip) -> Result<Option<Arc<Embedding>>>;
}

/// Embeddings in the files of a folder and of those in it. A name is a path, with or without its extension.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The embeddings below `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Finds the file called `name`, in `folder` or the first of its subfolders by name.
    fn file(folder: &Path, name: &str) -> Option<PathBuf> {
        let mut paths = EXTENSIONS.iter().map(|extension| folder.join(format!("{name}{extension}")));
        paths.find(|path| path.is_file()).or_else(|| {
            let entries = fs::read_dir(folder).ok()?.flatten();
            // A link to a folder is not followed: it might lead round in circles.
            let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let mut folders: Vec<_> = folders.map(|entry| entry.path()).collect();
            folders.sort();
            folders.iter().find_map(|folder| Self::file(folder, name))
        })
    }
}

impl Embeddings for Folder {
    fn find(&self, name: &str, clip: Clip) -> Result<Option<Arc<Embedding>>> {
        // A name leads nowhere but down.
        if name.is_empty() || !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Ok(None);
        }
        let Some(path) = Self::file(&self.root, name) else { return Ok(None) };
        let checkpoint = Checkpoint::open(&path).map_err(|error| unreadable(name, error))?;
        Embedding::load(name, &checkpoint, clip).map(|embedding| Some(Arc::new(embedding)))
    }
}

//! Writing tensors as a safetensors file: a JSON header with its length before it, then the data.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::{Checkpoint, CheckpointError, Dtype, Result, TensorInfo};

/// A type of number that weights can be stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names say it all
pub enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
        }
    }

    /// Writes the number of this type that is nearest to `value`, low byte first; false if it is not finite.
    fn put(self, value: f32, bytes: &mut Vec<u8>) -> bool {
        match self {
            Self::F32 => {
                bytes.extend(value.to_le_bytes());
                value.is_finite()
            }
            Self::F16 => {
                let value = f16::from_f32(value);
                bytes.extend(value.to_le_bytes());
                value.is_finite()
            }
            Self::Bf16 => {
                let value = bf16::from_f32(value);
                bytes.extend(value.to_le_bytes());
                value.is_finite()
            }
        }
    }
}

impl Checkpoint {
    /// Writes the tensors called `names` to a new safetensors file at `path`, with `metadata` in its header.
    ///
    /// Fractional numbers become `float`, rounded to the nearest; without it, and if they are whole numbers, they stay as they
    /// are stored. Equal tensors and metadata make equal files. Of the values, no more than one tensor is in memory. The file
    /// appears whole or not at all, in place of one that may be there.
    ///
    /// # Errors
    /// [`CheckpointError::NotFinite`] if a number does not fit into `float`; [`CheckpointError::NoSuchTensor`];
    /// [`CheckpointError::Write`] if the file cannot be written.
    pub fn save_safetensors<'a>(
        &self,
        path: &Path,
        names: impl IntoIterator<Item = &'a str>,
        float: Option<Float>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let info = |name: &'a str| Ok((name, self.info(name)?));
        let infos: BTreeMap<&str, &TensorInfo> = names.into_iter().map(info).collect::<Result<_>>()?;
        let plan = |(name, info): (&&'a str, &&TensorInfo)| Planned {
            name: (*name).to_owned(),
            dtype: stored(info, float),
            shape: info.shape.clone(),
        };
        save(path, infos.iter().map(plan).collect(), metadata, |Planned { name, .. }| {
            let info = infos[name.as_str()];
            match float {
                Some(float) if is_fractional(info.dtype) && info.dtype != float.dtype() => {
                    narrowed(name, &self.read_f32(name)?, float)
                }
                _ => self.bytes_of(info),
            }
        })
    }
}

/// A tensor that is to be written.
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

/// Writes a new safetensors file at `path`, of which no more than one tensor is in memory: `bytes` gives that of each. The file
/// appears whole or not at all, in place of one that may be there.
pub(crate) fn save(
    path: &Path,
    tensors: Vec<Planned>,
    metadata: &BTreeMap<String, String>,
    bytes: impl FnMut(&Planned) -> Result<Vec<u8>>,
) -> Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".weights-");
    #[cfg(unix)]
    {
        // As any new file: the process's mask decides.
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder).map_err(CheckpointError::Write)?;
    write(&mut file, tensors, metadata, bytes)?;
    file.as_file().sync_all().map_err(CheckpointError::Write)?;
    file.persist(path).map_err(|error| CheckpointError::Write(error.error))?;
    Ok(())
}

/// Writes what [`save`] does to `out`.
fn write(
    out: impl Write,
    mut tensors: Vec<Planned>,
    metadata: &BTreeMap<String, String>,
    mut bytes: impl FnMut(&Planned) -> Result<Vec<u8>>,
) -> Result<()> {
    // The largest numbers first, so that all lie at a multiple of their size, then by name.
    tensors.sort_by_key(|tensor| (Reverse(tensor.dtype.bytes()), tensor.name.clone()));

    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!(metadata));
    let mut at = 0;
    for Planned { name, dtype, shape } in &tensors {
        let end = at + shape.iter().product::<usize>() * dtype.bytes();
        header.insert(name.clone(), json!({"dtype": show(*dtype), "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut out = BufWriter::new(out);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(CheckpointError::Write)?;
    out.write_all(&header).map_err(CheckpointError::Write)?;
    for tensor in &tensors {
        out.write_all(&bytes(tensor)?).map_err(CheckpointError::Write)?;
    }
    out.flush().map_err(CheckpointError::Write)
}

/// Rounds the numbers of tensor `name` to `float`.
pub(crate) fn narrowed(name: &str, values: &[f32], float: Float) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(values.len() * float.dtype().bytes());
    for &value in values {
        if !float.put(value, &mut bytes) {
            return Err(CheckpointError::NotFinite { tensor: name.to_owned(), value, dtype: show(float.dtype()) });
        }
    }
    Ok(bytes)
}

/// Says whether numbers of this type can have fractions.
fn is_fractional(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F8E4M3 | Dtype::F8E5M2)
}

/// Returns the type that a tensor's numbers are written as.
fn stored(info: &TensorInfo, float: Option<Float>) -> Dtype {
    float.filter(|_| is_fractional(info.dtype)).map_or(info.dtype, Float::dtype)
}

/// Returns the name of a type as safetensors has it.
fn show(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "F64",
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::Bf16 => "BF16",
        Dtype::F8E4M3 => "F8_E4M3",
        Dtype::F8E5M2 => "F8_E5M2",
        Dtype::I64 => "I64",
        Dtype::I32 => "I32",
        Dtype::I16 => "I16",
        Dtype::I8 => "I8",
        Dtype::U8 => "U8",
        Dtype::Bool => "BOOL",
    }
}

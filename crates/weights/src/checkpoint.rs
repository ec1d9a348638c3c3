//! A weights file: the tensors it names, and their values on request.
//!
//! Three formats are read, told apart by how the file begins and never by its name: safetensors, the zip archives of
//! today's `torch.save`, and the bare pickle stream of the PyTorch before 1.6. A pickle is a program; the small
//! interpreter in here runs only the part of it that builds dictionaries of tensors, and refuses the rest by name.
//!
//! Training code wraps tensors in more or less nested dictionaries. What [`Checkpoint::tensors`] lists is what is left
//! after unwrapping them: plain names, as the architecture defines them.

mod pickle;
mod safetensors;
mod save;
mod source;
mod torch;
mod unwrap;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor};
use std::path::Path;
use std::sync::Arc;

use half::{f16, slice::HalfFloatSliceExt as _};

pub use save::Float;
pub(crate) use save::{Planned, narrowed, save};
use source::Source;

/// Why a file is no checkpoint that can be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file could not be read at all.
    #[error("cannot read the checkpoint")]
    Io(#[from] io::Error),
    /// The first bytes belong to none of the formats.
    #[error("neither safetensors nor a PyTorch checkpoint: the file begins with `{start}`")]
    UnknownFormat {
        /// The first bytes, escaped.
        start: String,
    },
    /// The file ends too early.
    #[error("{what} needs {needs} bytes, but the file has {has}: it is incomplete")]
    Truncated {
        /// What is cut off.
        what: String,
        /// The bytes that the file must have.
        needs: u64,
        /// The bytes that it has.
        has: u64,
    },
    /// A part that is read as a whole is larger than any honest one.
    #[error("{what} is larger than the limit of {limit}")]
    TooLarge {
        /// The part.
        what: &'static str,
        /// The limit, in bytes or in objects.
        limit: u64,
    },
    /// The header of a safetensors file is not valid.
    #[error("the safetensors header is not valid")]
    Header(#[source] serde_json::Error),
    /// The zip archive is not valid.
    #[error("the zip archive is not valid")]
    Zip(#[from] zip::result::ZipError),
    /// The zip archive lacks a part that every PyTorch checkpoint has.
    #[error("the zip archive has no `{entry}`: it is no PyTorch checkpoint")]
    MissingEntry {
        /// The part.
        entry: String,
    },
    /// A tensor is compressed inside the zip archive, which PyTorch never does.
    #[error("`{entry}` is compressed inside the zip archive; save the checkpoint again with PyTorch")]
    Compressed {
        /// The part.
        entry: String,
    },
    /// The numbers are stored with the high byte first.
    #[error("the checkpoint was written on a big-endian machine")]
    BigEndian,
    /// The pickle asks for a function or class that tensors do not need. Nothing of it was executed.
    #[error("the pickle asks for `{global}`, which tensors do not need: it was refused and nothing was executed")]
    Forbidden {
        /// The full name of what it asks for.
        global: String,
    },
    /// The pickle uses an instruction that tensors do not need.
    #[error("pickle instruction {opcode:#04x} at byte {at} is not one that tensors need")]
    Opcode {
        /// The instruction.
        opcode: u8,
        /// Its position, counted from the start of the pickle.
        at: u64,
    },
    /// The pickle contradicts itself.
    #[error("the pickle is not valid at byte {at}: {problem}")]
    Pickle {
        /// The position, counted from the start of the pickle.
        at: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// The place where tensors are expected holds something else.
    #[error("the checkpoint holds {found} where a dictionary of tensors is expected")]
    NotADictionary {
        /// What it holds.
        found: &'static str,
    },
    /// There is no tensor in the file.
    #[error("the checkpoint holds no tensor")]
    NoTensors,
    /// A tensor lies outside the data it refers to.
    #[error("tensor `{tensor}` needs {needs} values, but its storage has {has}")]
    Outside {
        /// The tensor.
        tensor: String,
        /// One past the last value it refers to.
        needs: u64,
        /// The values that are there.
        has: u64,
    },
    /// A tensor uses the same stored values several times over.
    #[error("tensor `{tensor}` repeats its stored values, as weights never do")]
    Repeated {
        /// The tensor.
        tensor: String,
    },
    /// Values of this type are not known here.
    #[error("tensor `{tensor}` holds `{dtype}` values, which are not supported")]
    UnsupportedDtype {
        /// The tensor.
        tensor: String,
        /// The type, as the file names it.
        dtype: String,
    },
    /// Two tensors end up with one name when a common prefix is dropped.
    #[error("the checkpoint has tensor `{tensor}` twice, with and without a prefix")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// The checkpoint has no tensor of the name that was asked for.
    #[error("the checkpoint has no tensor `{tensor}`")]
    NoSuchTensor {
        /// The name.
        tensor: String,
    },
    /// A number is too large for the type that it was to be written as.
    #[error("tensor `{tensor}` holds {value}, which is no finite number as {dtype}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The number.
        value: f32,
        /// The type.
        dtype: &'static str,
    },
    /// A file could not be written.
    #[error("cannot write the checkpoint")]
    Write(#[source] io::Error),
}

type Result<T> = std::result::Result<T, CheckpointError>;

/// The type of the numbers in a tensor, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it all
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    F8E4M3,
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Returns the size of one number in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Turns little-endian numbers into the nearest f32.
    fn widen_all(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], widen: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|number| widen(*number)).collect()
        }
        match self {
            Self::F64 => each(bytes, |number| f64::from_le_bytes(number) as f32),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => {
                // The processor widens many at once.
                let mut numbers = vec![0.0; bytes.len() / 2];
                for (to, from) in numbers.chunks_mut(256).zip(bytes.chunks(512)) {
                    let mut halves = [f16::ZERO; 256];
                    let halves = &mut halves[..to.len()];
                    halves.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| *to = f16::from_le_bytes(*from));
                    halves.convert_to_f32_slice(to);
                }
                numbers
            }
            Self::Bf16 => each(bytes, |number| f32::from_bits(u32::from(u16::from_le_bytes(number)) << 16)),
            Self::F8E4M3 => each(bytes, |[number]: [u8; 1]| e4m3(number)),
            // Its upper half is an f16's.
            Self::F8E5M2 => each(bytes, |[number]: [u8; 1]| f16::from_le_bytes([0, number]).to_f32()),
            Self::I64 => each(bytes, |number| i64::from_le_bytes(number) as f32),
            Self::I32 => each(bytes, |number| i32::from_le_bytes(number) as f32),
            Self::I16 => each(bytes, |number| f32::from(i16::from_le_bytes(number))),
            Self::I8 => each(bytes, |number| f32::from(i8::from_le_bytes(number))),
            Self::U8 => each(bytes, |[number]: [u8; 1]| f32::from(number)),
            Self::Bool => each(bytes, |[number]: [u8; 1]| f32::from(u8::from(number != 0))),
        }
    }
}

/// Returns the number that a byte stands for: a sign, 4 bits of exponent with a bias of 7 and 3 of mantissa, without infinities
/// (Micikevicius et al. 2022, E4M3).
fn e4m3(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xF), f32::from(byte & 0x7));
    sign * match (exponent, byte & 0x7) {
        (0xF, 0x7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

/// What is known of a tensor without reading its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The type of its numbers in the file.
    pub dtype: Dtype,
    /// Its sides, slowest first. Empty for a single number.
    pub shape: Vec<usize>,
    /// Which of the checkpoint's files it is in.
    source: usize,
    /// Where in the file its first number lies, in bytes.
    offset: u64,
    /// How many numbers lie between neighbours along each side.
    strides: Vec<usize>,
    /// The tensor, of the same file, with the one number by which all numbers are multiplied when they are read.
    scale: Option<Box<TensorInfo>>,
}

impl TensorInfo {
    /// Returns how many numbers the tensor holds.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Says that there are `before` files before its own.
    fn shift(&mut self, before: usize) {
        self.source += before;
        if let Some(scale) = &mut self.scale {
            scale.shift(before);
        }
    }

    /// Places a tensor in a storage of `has` numbers that begins at byte `start` of the file; `first` and `strides` count
    /// numbers. Refuses what lies outside of the storage, and what would grow larger than it.
    fn place(
        tensor: &str,
        dtype: Dtype,
        shape: Vec<usize>,
        strides: Vec<usize>,
        start: u64,
        first: u64,
        has: u64,
    ) -> Result<Self> {
        let outside = |needs| CheckpointError::Outside { tensor: tensor.to_owned(), needs, has };
        let elements = shape
            .iter()
            .try_fold(1u64, |product, &side| product.checked_mul(side as u64))
            .ok_or_else(|| outside(u64::MAX))?;
        // One past the farthest number, counted from the tensor's first.
        let span = if elements == 0 {
            0
        } else {
            let reach = |(&side, &stride): (&usize, &usize)| (side as u64 - 1).checked_mul(stride as u64);
            shape
                .iter()
                .zip(&strides)
                .try_fold(1u64, |span, side| span.checked_add(reach(side)?))
                .ok_or_else(|| outside(u64::MAX))?
        };
        let needs = first.checked_add(span).ok_or_else(|| outside(u64::MAX))?;
        if needs > has {
            return Err(outside(needs));
        }
        if elements > span {
            return Err(CheckpointError::Repeated { tensor: tensor.to_owned() });
        }
        let offset = start + first * dtype.bytes() as u64;
        Ok(Self { dtype, shape, source: 0, offset, strides, scale: None })
    }
}

/// Finds the factors of numbers of 8 bits, which are tensors of a single number.
fn find_scales(tensors: &mut BTreeMap<String, TensorInfo>) {
    const WEIGHT: &str = ".weight";
    let is_short = |info: &TensorInfo| matches!(info.dtype, Dtype::F8E4M3 | Dtype::F8E5M2);
    let scale = |(name, info): (&String, &TensorInfo)| {
        let layer = name.strip_suffix(WEIGHT).filter(|_| is_short(info))?;
        let scale = tensors.get(&format!("{layer}.scale_weight")).filter(|scale| scale.elements() == 1)?;
        Some((name.clone(), scale.clone()))
    };
    let scales: Vec<_> = tensors.iter().filter_map(scale).collect();
    for (name, scale) in scales {
        tensors.get_mut(&name).expect("it was just seen").scale = Some(Box::new(scale));
    }
}

/// Returns the strides of a tensor whose numbers lie one after the other.
fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

/// An open weights file, or several that are seen as one.
///
/// Opening reads names and shapes only. Values are read tensor by tensor, so that a file larger than memory can be used. A clone
/// reads the same file.
///
/// Numbers of 8 bits may have a factor in a tensor of its own, `<layer>.scale_weight` beside `<layer>.weight`: reading
/// multiplies them.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    sources: Vec<Arc<Source>>,
    tensors: BTreeMap<String, TensorInfo>,
    others: Vec<String>,
    metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_source(Source::new(File::open(path)?)?)
    }

    /// Opens a file that is already in memory.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::from_source(Source::new(Cursor::new(bytes.into()))?)
    }

    fn from_source(mut source: Source) -> Result<Self> {
        let start = source.read_at(0, source.len().min(16))?;
        let mut found = if start.starts_with(b"PK\x03\x04") {
            torch::open_zip(&mut source)?
        } else if start.starts_with(torch::LEGACY_START) {
            torch::open_legacy(&mut source)?
        } else if start.len() >= 9 && start[8] == b'{' {
            safetensors::open(&mut source)?
        } else {
            let start = start.escape_ascii().to_string();
            return Err(CheckpointError::UnknownFormat { start });
        };
        let metadata = std::mem::take(&mut found.metadata);
        let (mut tensors, others) = unwrap::drop_prefixes(found)?;
        if tensors.is_empty() {
            return Err(CheckpointError::NoTensors);
        }
        find_scales(&mut tensors);
        Ok(Self { sources: vec![Arc::new(source)], tensors, others, metadata })
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Whether the file has something of this name: a tensor, or what stands for something else.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.others.iter().any(|other| other == name)
    }

    /// The names beside the tensors that stand for something else, such as a step count.
    pub fn others(&self) -> &[String] {
        &self.others
    }

    /// What the header of a safetensors file says beside its tensors; other formats have none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The shapes of all tensors by name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shape = |(name, info): (&String, &TensorInfo)| (name.clone(), info.shape.clone());
        self.tensors.iter().map(shape).collect()
    }

    /// The tensors whose names begin with `prefix`, which they lose, as a checkpoint of their own. It reads the same file.
    pub fn part(&self, prefix: &str) -> Self {
        self.renamed(|name| name.strip_prefix(prefix).map(str::to_owned))
    }

    /// The tensors by other names, as a checkpoint of their own that reads the same file. What has no other name is left out; of
    /// two that get the same name one is.
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            sources: self.sources.clone(),
            tensors: self.tensors.iter().filter_map(|(name, info)| Some((rename(name)?, info.clone()))).collect(),
            others: self.others.iter().filter_map(|name| rename(name)).collect(),
            metadata: self.metadata.clone(),
        }
    }

    /// The same with matrices of the names that `is_pixelwise` chooses as 1 x 1 convolutions, which have the same numbers.
    pub fn with_convolutions(mut self, is_pixelwise: impl Fn(&str) -> bool) -> Self {
        for (_, info) in self.tensors.iter_mut().filter(|(name, info)| info.shape.len() == 2 && is_pixelwise(name)) {
            info.shape.extend([1, 1]);
            info.strides.extend([1, 1]);
        }
        self
    }

    /// The tensors of several checkpoints as one. What their headers say is joined as well; of two that say something else under
    /// one name the first counts.
    ///
    /// # Errors
    /// [`CheckpointError::Duplicate`] if two have a tensor of the same name.
    pub fn joined(parts: impl IntoIterator<Item = Self>) -> Result<Self> {
        let mut all = Self { sources: vec![], tensors: BTreeMap::new(), others: vec![], metadata: BTreeMap::new() };
        for part in parts {
            let before = all.sources.len();
            all.sources.extend(part.sources);
            all.others.extend(part.others);
            part.metadata.into_iter().for_each(|(key, value)| {
                all.metadata.entry(key).or_insert(value);
            });
            for (name, mut info) in part.tensors {
                info.shift(before);
                if all.tensors.insert(name.clone(), info).is_some() {
                    return Err(CheckpointError::Duplicate { tensor: name });
                }
            }
        }
        Ok(all)
    }

    /// The same with `metadata` in addition to what the header says, which counts where both say something.
    pub fn with_metadata(mut self, metadata: BTreeMap<String, String>) -> Self {
        metadata.into_iter().for_each(|(key, value)| {
            self.metadata.entry(key).or_insert(value);
        });
        self
    }

    /// Reads the values of tensor `name` as f32, in row-major order.
    ///
    /// f16, bf16 and numbers of 8 bits widen exactly; f64 and large integers are rounded to the nearest f32.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        let mut numbers = info.dtype.widen_all(&self.bytes_of(info)?);
        if let Some(scale) = &info.scale
            && let Some(&scale) = scale.dtype.widen_all(&self.bytes_of(scale)?).first()
        {
            numbers.iter_mut().for_each(|number| *number *= scale);
        }
        Ok(numbers)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| CheckpointError::NoSuchTensor { tensor: name.to_owned() })
    }

    /// Reads the numbers of a tensor as they are stored, in row-major order.
    fn bytes_of(&self, info: &TensorInfo) -> Result<Vec<u8>> {
        let TensorInfo { dtype, ref shape, source, offset, ref strides, .. } = *info;
        let (elements, size) = (info.elements(), dtype.bytes());
        if elements == 0 {
            return Ok(Vec::new());
        }
        let span = 1 + shape.iter().zip(strides).map(|(side, stride)| (side - 1) * stride).sum::<usize>();
        let bytes = self.sources[source].read_at(offset, (span * size) as u64)?;
        if *strides == contiguous(shape) {
            return Ok(bytes);
        }
        let number_at = |mut flat: usize| {
            let mut place = 0;
            for (side, stride) in shape.iter().zip(strides).rev() {
                place += flat % side * stride;
                flat /= side;
            }
            &bytes[place * size..][..size]
        };
        Ok((0..elements).flat_map(number_at).copied().collect())
    }
}

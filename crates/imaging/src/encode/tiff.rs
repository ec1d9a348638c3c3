//! TIFF in strips, as the rows come; BigTIFF where 32-bit offsets could run out.

use std::io;
use std::mem::ManuallyDrop;

use exif::Context;
use tiff::encoder::compression::{CompressionAlgorithm, Deflate, DeflateLevel};
use tiff::encoder::{DirectoryEncoder, TiffEncoder, TiffKind, TiffKindBig, TiffKindStandard};
use tiff::tags::{CompressionMethod, ExtraSamples, PhotometricInterpretation, Predictor, SampleFormat, Tag, Type};
use tiff::{Directory, TiffError, TiffResult};

use super::{Compression, EncodeError, EncodeOptions, Job, Output};
use crate::metadata::{GPS_DIRECTORY, PICTURE_TAGS};
use crate::picture::{Format, Sample};

/// The bytes of a strip before compression, unless one row is longer.
const STRIP_BYTES: usize = 1 << 20;

/// The bytes of pixels from which a file becomes a BigTIFF: 3.5 GiB, for deflate may make noise a little longer.
const BIG_BYTES: u64 = 7 << 29;

#[derive(Debug)]
pub(super) struct Codec {
    file: Kind,
    job: Job,
    row_bytes: usize,
    rows_per_strip: u32,
    /// Rows that are not yet a whole strip.
    pending: Vec<u8>,
    strips: Vec<Strip>,
}

/// Where a strip lies in the file.
#[derive(Debug)]
struct Strip {
    offset: u64,
    bytes: u64,
}

enum Kind {
    Standard(TiffEncoder<Output, TiffKindStandard>),
    Big(TiffEncoder<Output, TiffKindBig>),
}

impl Codec {
    pub(super) fn new(output: Output, job: Job) -> Result<Self, EncodeError> {
        let row_bytes = job.width as usize * job.options.color.channels() * job.options.sample.bytes();
        let rows_per_strip = u32::try_from(STRIP_BYTES / row_bytes).unwrap_or(u32::MAX).clamp(1, job.height);
        let total = row_bytes as u64 * u64::from(job.height);
        let file = if total > BIG_BYTES {
            Kind::Big(TiffEncoder::new_big(output).map_err(failed)?)
        } else {
            Kind::Standard(TiffEncoder::new(output).map_err(failed)?)
        };
        Ok(Self { file, job, row_bytes, rows_per_strip, pending: Vec::new(), strips: Vec::new() })
    }

    pub(super) fn write_rows(&mut self, mut rows: &[u8]) -> Result<(), EncodeError> {
        let strip_bytes = self.rows_per_strip as usize * self.row_bytes;
        while !rows.is_empty() {
            let (now, later) = rows.split_at(rows.len().min(strip_bytes - self.pending.len()));
            self.pending.extend_from_slice(now);
            rows = later;
            if self.pending.len() == strip_bytes {
                self.write_strip()?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(), EncodeError> {
        if !self.pending.is_empty() {
            self.write_strip()?;
        }
        match &mut self.file {
            Kind::Standard(file) => write_directories(file, &self.job, self.rows_per_strip, &self.strips),
            Kind::Big(file) => write_directories(file, &self.job, self.rows_per_strip, &self.strips),
        }
        .map_err(failed)
    }

    fn write_strip(&mut self) -> Result<(), EncodeError> {
        let options = &self.job.options;
        if predicted(options) {
            for row in self.pending.chunks_exact_mut(self.row_bytes) {
                subtract_left(row, options);
            }
        }
        let mut compressed = Vec::new();
        let strip = match deflate_level(options.compression) {
            None => &self.pending,
            Some(level) => {
                Deflate::with_level(level).write_to(&mut compressed, &self.pending).map_err(write_failed)?;
                &compressed
            }
        };
        let offset = match &mut self.file {
            Kind::Standard(file) => append(file, strip),
            Kind::Big(file) => append(file, strip),
        };
        self.strips.push(Strip { offset: offset.map_err(failed)?, bytes: strip.len() as u64 });
        self.pending.clear();
        Ok(())
    }
}

/// Writes bytes at the end of the file and says where they begin.
fn append<K: TiffKind>(file: &mut TiffEncoder<Output, K>, bytes: &[u8]) -> TiffResult<u64> {
    // Only a directory can write, and it writes itself when it is dropped. This one is never to be in the file.
    let mut lent = ManuallyDrop::new(file.extra_directory()?);
    lent.write_data(bytes)
}

/// Writes what describes the strips, and with it ends the file.
fn write_directories<K: TiffKind>(
    file: &mut TiffEncoder<Output, K>,
    job: &Job,
    rows_per_strip: u32,
    strips: &[Strip],
) -> TiffResult<()> {
    let Job { width, height, options } = job;
    let offsets = strips.iter().map(|strip| K::convert_offset(strip.offset)).collect::<TiffResult<Vec<_>>>()?;
    let counts = strips.iter().map(|strip| K::convert_offset(strip.bytes)).collect::<TiffResult<Vec<_>>>()?;
    let channels = options.color.channels();

    let fields = options.exif.as_deref().map(fields).unwrap_or_default();
    let mut pointers = Vec::new();
    for (pointer, context) in [(Tag::ExifDirectory, Context::Exif), (Tag::Unknown(GPS_DIRECTORY), Context::Gps)] {
        if fields.iter().any(|field| field.context == context) {
            let mut directory = file.extra_directory()?;
            write_fields(&mut directory, &fields, context)?;
            pointers.push((pointer, directory.finish_with_offsets()?.offset));
        }
    }

    let mut directory = file.image_directory()?;
    write_fields(&mut directory, &fields, Context::Tiff)?;
    for (tag, offset) in pointers {
        directory.write_tag(tag, offset)?;
    }
    directory.write_tag(Tag::ImageWidth, *width)?;
    directory.write_tag(Tag::ImageLength, *height)?;
    directory.write_tag(Tag::BitsPerSample, &vec![8 * options.sample.bytes() as u16; channels][..])?;
    let kind = if options.sample == Sample::F32 { SampleFormat::IEEEFP } else { SampleFormat::Uint };
    directory.write_tag(Tag::SampleFormat, &vec![kind.to_u16(); channels][..])?;
    let compression = match options.compression {
        Compression::None => CompressionMethod::None,
        Compression::Fast | Compression::Small => CompressionMethod::Deflate,
    };
    directory.write_tag(Tag::Compression, compression.to_u16())?;
    let predictor = if predicted(options) { Predictor::Horizontal } else { Predictor::None };
    directory.write_tag(Tag::Predictor, predictor.to_u16())?;
    let grey = options.color.is_grey();
    let photometric = if grey { PhotometricInterpretation::BlackIsZero } else { PhotometricInterpretation::RGB };
    directory.write_tag(Tag::PhotometricInterpretation, photometric.to_u16())?;
    directory.write_tag(Tag::SamplesPerPixel, channels as u16)?;
    if options.color.has_alpha() {
        directory.write_tag(Tag::ExtraSamples, &[ExtraSamples::UnassociatedAlpha.to_u16()][..])?;
    }
    directory.write_tag(Tag::RowsPerStrip, rows_per_strip)?;
    directory.write_tag(Tag::StripOffsets, K::convert_slice(&offsets))?;
    directory.write_tag(Tag::StripByteCounts, K::convert_slice(&counts))?;
    if let Some(icc) = &options.icc {
        let profile = directory.write_entry_bytes(Type::UNDEFINED, icc)?;
        directory.extend_from(&Directory::from_iter([(Tag::IccProfile, profile)]));
    }
    directory.finish()
}

/// A field of an EXIF block, its value in this machine's byte order.
struct Field {
    context: Context,
    tag: Tag,
    kind: Type,
    value: Vec<u8>,
}

/// The fields of an EXIF block that mean the same in a TIFF; none if the block cannot be read.
fn fields(block: &[u8]) -> Vec<Field> {
    let Ok((fields, _)) = exif::parse_exif(block) else { return Vec::new() };
    let fields = fields.into_iter().filter_map(|field| {
        let exif::Tag(context, number) = field.tag;
        let carried = match context {
            Context::Tiff => PICTURE_TAGS.contains(&number),
            Context::Exif | Context::Gps => true,
            _ => false,
        };
        let (kind, value) = value(&field.value)?;
        let tag = Tag::from_u16_exhaustive(number);
        (carried && field.ifd_num == exif::In::PRIMARY).then_some(Field { context, tag, kind, value })
    });
    fields.collect()
}

fn value(value: &exif::Value) -> Option<(Type, Vec<u8>)> {
    use exif::Value;
    Some(match value {
        Value::Byte(all) => (Type::BYTE, all.clone()),
        Value::Ascii(all) => (Type::ASCII, all.iter().flat_map(|text| text.iter().copied().chain([0])).collect()),
        Value::Short(all) => (Type::SHORT, all.iter().flat_map(|n| n.to_ne_bytes()).collect()),
        Value::Long(all) => (Type::LONG, all.iter().flat_map(|n| n.to_ne_bytes()).collect()),
        Value::Rational(all) => {
            (Type::RATIONAL, all.iter().flat_map(|q| [q.num, q.denom]).flat_map(u32::to_ne_bytes).collect())
        }
        Value::SByte(all) => (Type::SBYTE, all.iter().flat_map(|n| n.to_ne_bytes()).collect()),
        Value::Undefined(all, _) => (Type::UNDEFINED, all.clone()),
        Value::SShort(all) => (Type::SSHORT, all.iter().flat_map(|n| n.to_ne_bytes()).collect()),
        Value::SLong(all) => (Type::SLONG, all.iter().flat_map(|n| n.to_ne_bytes()).collect()),
        Value::SRational(all) => {
            (Type::SRATIONAL, all.iter().flat_map(|q| [q.num, q.denom]).flat_map(i32::to_ne_bytes).collect())
        }
        Value::Float(all) => (Type::FLOAT, all.iter().flat_map(|n| n.to_ne_bytes()).collect()),
        Value::Double(all) => (Type::DOUBLE, all.iter().flat_map(|n| n.to_ne_bytes()).collect()),
        Value::Unknown(..) => return None,
    })
}

fn write_fields<K: TiffKind>(
    directory: &mut DirectoryEncoder<'_, Output, K>,
    fields: &[Field],
    context: Context,
) -> TiffResult<()> {
    for field in fields.iter().filter(|field| field.context == context) {
        let entry = directory.write_entry_bytes(field.kind, &field.value)?;
        directory.extend_from(&Directory::from_iter([(field.tag, entry)]));
    }
    Ok(())
}

/// Whether rows are stored as differences, which deflate packs better.
fn predicted(options: &EncodeOptions) -> bool {
    options.sample != Sample::F32 && options.compression != Compression::None
}

/// Replaces every sample by its difference from the one a pixel to the left (TIFF 6.0, section 14).
fn subtract_left(row: &mut [u8], options: &EncodeOptions) {
    let channels = options.color.channels();
    if options.sample == Sample::U8 {
        (channels..row.len()).rev().for_each(|i| row[i] = row[i].wrapping_sub(row[i - channels]));
    } else {
        let (words, _) = row.as_chunks_mut::<2>();
        for i in (channels..words.len()).rev() {
            let difference = u16::from_le_bytes(words[i]).wrapping_sub(u16::from_le_bytes(words[i - channels]));
            words[i] = difference.to_le_bytes();
        }
    }
}

fn deflate_level(compression: Compression) -> Option<DeflateLevel> {
    match compression {
        Compression::None => None,
        Compression::Fast => Some(DeflateLevel::Fast),
        Compression::Small => Some(DeflateLevel::Best),
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Standard(_) => "Standard",
            Self::Big(_) => "Big",
        })
    }
}

fn write_failed(source: io::Error) -> EncodeError {
    EncodeError::Write { format: Format::Tiff, source }
}

fn failed(error: TiffError) -> EncodeError {
    match error {
        TiffError::IoError(source) => write_failed(source),
        error => EncodeError::Codec { format: Format::Tiff, source: error.into() },
    }
}

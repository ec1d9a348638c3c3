//! TIFF and BigTIFF, one row of strips or tiles at a time.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Cursor};

use tiff::decoder::{ChunkType, Decoder, DecodingSampleType, TiffCodingUnit};
use tiff::encoder::TiffEncoder;
use tiff::tags::{ByteOrder, ExtraSamples, IfdPointer, PlanarConfiguration, Predictor, Tag, Type, ValueBuffer};
use tiff::{ColorType, Directory, TiffError, TiffFormatError, TiffResult};

use super::inks::Inks;
use super::{DecodeError, Emit, Header, check_size, malformed, profiles, read_failed};
use crate::metadata::{GPS_DIRECTORY, PICTURE_TAGS};
use crate::picture::{Color, Format, Limits, Rows, Sample};

const FORMAT: Format = Format::Tiff;

/// The largest profile or EXIF field that is carried over.
const MAX_METADATA_BYTES: u64 = 1 << 24;

type Tiff = Decoder<BufReader<File>>;

pub(super) struct Source {
    decoder: Tiff,
    /// The bits of a stored sample: 1, 2, 4 for grey; 8, 16, 32.
    bits: u8,
    /// Whether each channel is stored in chunks of its own.
    planar: bool,
    /// Whether the colour is stored multiplied by alpha.
    premultiplied: bool,
    /// How four channels of ink become colour.
    inks: Option<Inks>,
    /// The chunks (strips or tiles) side by side in a row of them.
    across: u32,
    /// The rows of pixels in a row of chunks.
    chunk_rows: u32,
}

pub(super) fn open(file: BufReader<File>, limits: &Limits) -> Result<(Header, Source), DecodeError> {
    let length = file.get_ref().metadata().map_err(DecodeError::Read)?.len();
    let decoder = Decoder::new(file).map_err(failed)?;
    // The library's own bound on a compressed strip gives way to ours.
    let mut library_limits = tiff::decoder::Limits::default();
    library_limits.intermediate_buffer_size = limits.max_whole_picture_bytes as usize;
    let mut decoder = decoder.with_limits(library_limits);
    let (width, height) = decoder.dimensions().map_err(failed)?;
    check_size(FORMAT, width, height, limits)?;

    check_pages(&mut decoder)?;
    let layout = layout(&mut decoder)?;
    check_chunks_are_there(&mut decoder, length)?;
    let (chunk_width, chunk_height) = decoder.chunk_dimensions();
    let mut icc = icc(&mut decoder).map_err(failed)?;
    let inks = match layout.inks {
        true => {
            let inks = Inks::new(icc.as_deref());
            icc = Some(profiles::srgb());
            Some(inks.map_err(|source| DecodeError::Profile { format: FORMAT, source })?)
        }
        false => None,
    };
    let header = Header {
        format: FORMAT,
        width,
        height,
        color: layout.color,
        sample: layout.sample,
        icc,
        exif: exif(&mut decoder),
        orientation: orientation(&mut decoder)?,
    };
    let source = Source {
        decoder,
        bits: layout.bits,
        planar: layout.planar,
        premultiplied: layout.premultiplied,
        inks,
        across: width.div_ceil(chunk_width),
        chunk_rows: chunk_height.min(height),
    };
    let [row, chunk_row] = [width, chunk_width].map(|width| u64::from(width) * source.pixel_bytes(&header) as u64);
    let held = row.max(chunk_row).saturating_mul(u64::from(source.chunk_rows));
    limits.check_whole("the size in bytes of a row of TIFF strips or tiles", held)?;
    let encoded = chunk_row.saturating_mul(u64::from(chunk_height.min(height)));
    limits.check_whole("the size in bytes of a TIFF strip or tile", encoded)?;
    Ok((header, source))
}

impl Source {
    /// The bytes of a pixel of the file, its samples widened.
    fn pixel_bytes(&self, header: &Header) -> usize {
        if self.inks.is_some() { 4 } else { header.pixel_bytes() }
    }

    pub(super) fn rows(mut self, header: &Header, emit: Emit<'_>) -> Result<(), DecodeError> {
        let row_bytes = header.width as usize * self.pixel_bytes(header);
        let mut group = vec![0; self.chunk_rows as usize * row_bytes];
        let mut chunk = Vec::new();
        for (down, y) in (0..).zip((0..header.height).step_by(self.chunk_rows as usize)) {
            let count = self.chunk_rows.min(header.height - y);
            let rows = &mut group[..count as usize * row_bytes];
            let mut left = 0;
            for index in down * self.across..(down + 1) * self.across {
                let (chunk_width, _) = self.decoder.chunk_data_dimensions(index);
                self.read_chunk(index, header, &mut chunk)?;
                let chunk_row = chunk_width as usize * self.pixel_bytes(header);
                for (row, part) in rows.chunks_exact_mut(row_bytes).zip(chunk.chunks_exact(chunk_row)) {
                    row[left..left + chunk_row].copy_from_slice(part);
                }
                left += chunk_row;
            }
            if header.sample == Sample::F32 {
                clamp(header, y, rows)?;
            }
            if self.premultiplied {
                divide_by_alpha(header, rows);
            }
            match &self.inks {
                Some(inks) => emit(Rows { y, count, bytes: &inks.rgb(rows) })?,
                None => emit(Rows { y, count, bytes: rows })?,
            }
        }
        Ok(())
    }

    /// Reads the pixels of one strip or tile in the native layout, without its padding.
    fn read_chunk(&mut self, index: u32, header: &Header, chunk: &mut Vec<u8>) -> Result<(), DecodeError> {
        let (width, height) = self.decoder.chunk_data_dimensions(index);
        let unit = TiffCodingUnit(index);
        let stored = self.decoder.image_coding_unit_layout(unit).map_err(failed)?;
        chunk.clear();
        chunk.resize(stored.complete_len, 0);
        self.decoder.read_coding_unit_bytes(unit, chunk).map_err(failed)?;
        if self.bits < 8 {
            let row_bytes = (width as usize * usize::from(self.bits)).div_ceil(8);
            *chunk = chunk.chunks_exact(row_bytes).flat_map(|row| unpack(row, self.bits, width)).collect();
        } else if self.planar {
            let sample = header.sample.bytes();
            let pixels = width as usize * height as usize;
            let planes: Vec<&[u8]> = chunk.chunks_exact(pixels * sample).collect();
            let mut interleaved = Vec::with_capacity(chunk.len());
            for at in (0..pixels * sample).step_by(sample) {
                planes.iter().for_each(|plane| interleaved.extend_from_slice(&plane[at..at + sample]));
            }
            *chunk = interleaved;
        }
        Ok(())
    }
}

/// Refuses a file of several pages. Smaller copies and masks of a page, which programs keep beside it, are none.
fn check_pages(decoder: &mut Tiff) -> Result<(), DecodeError> {
    let (mut count, mut seen) = (0, HashSet::new());
    let mut next = decoder.ifd_pointer();
    while let Some(pointer) = next {
        if !seen.insert(pointer.0) {
            return Err(malformed(FORMAT, "the directories form a circle"));
        }
        let directory = decoder.read_directory(pointer).map_err(failed)?;
        let mut fields = decoder.read_directory_tags(&directory);
        // TIFF 6.0: bit 0 of the newer field is a smaller copy, bit 2 a mask; 2 in the older one is a smaller copy.
        let kind: u64 = fields.find_tag_unsigned(Tag::NewSubfileType).map_err(failed)?.unwrap_or(0);
        let older: u64 = fields.find_tag_unsigned(Tag::SubfileType).map_err(failed)?.unwrap_or(1);
        count += u64::from(kind & 0b101 == 0 && older != 2);
        next = directory.next();
    }
    if count > 1 {
        let way_out = "magick pages.tif page-%04d.tif";
        return Err(DecodeError::Several { format: FORMAT, count, parts: "pages", way_out });
    }
    Ok(())
}

/// How the samples of a file are stored, and what they become.
struct Layout {
    color: Color,
    sample: Sample,
    bits: u8,
    planar: bool,
    premultiplied: bool,
    inks: bool,
}

fn layout(decoder: &mut Tiff) -> Result<Layout, DecodeError> {
    let unsupported = |what: String| DecodeError::Unsupported { format: FORMAT, what };
    let extra: Vec<u16> = decoder.find_tag_unsigned_vec(Tag::ExtraSamples).map_err(failed)?.unwrap_or_default();
    let premultiplied = extra.first() == Some(&ExtraSamples::AssociatedAlpha.to_u16());
    let alpha = premultiplied || extra.first() == Some(&ExtraSamples::UnassociatedAlpha.to_u16());
    let color_type = decoder.colortype().map_err(failed)?;
    let color = match color_type {
        ColorType::Gray(_) => Color::Grey,
        ColorType::Multiband { num_samples: 2, .. } if alpha => Color::GreyAlpha,
        ColorType::RGB(_) => Color::Rgb,
        ColorType::RGBA(_) => Color::Rgba,
        ColorType::CMYK(8) => Color::Rgb,
        other => return Err(unsupported(format!("colour {other:?}"))),
    };
    let planar = tag(decoder, Tag::PlanarConfiguration, PlanarConfiguration::Chunky.to_u16())?
        == PlanarConfiguration::Planar.to_u16();
    let predicted = tag(decoder, Tag::Predictor, Predictor::None.to_u16())? != Predictor::None.to_u16();
    let samples = usize::from(tag::<u16>(decoder, Tag::SamplesPerPixel, 1)?);
    let inks = matches!(color_type, ColorType::CMYK(_));
    if samples != (if inks { 4 } else { color.channels() }) && (predicted || planar) {
        return Err(unsupported(format!("{samples} samples for {color}, predicted or in planes")));
    }
    let stored = decoder.image_coding_unit_layout(TiffCodingUnit(0)).map_err(failed)?;
    let bits = color_type.bit_depth();
    let sample = match (stored.sample_type, bits) {
        (Some(DecodingSampleType::U8), 8) => Sample::U8,
        (Some(DecodingSampleType::U8), 1 | 2 | 4) if color == Color::Grey => Sample::U8,
        (Some(DecodingSampleType::U16), 16) => Sample::U16,
        (Some(DecodingSampleType::F32), 32) => Sample::F32,
        (kind, bits) => {
            let kind = kind.map_or("unknown".into(), |kind| format!("{kind:?}"));
            return Err(unsupported(format!("{bits}-bit samples of kind {kind}")));
        }
    };
    Ok(Layout { color, sample, bits, planar, premultiplied, inks })
}

/// Compares where strips or tiles should end with the length of the file.
fn check_chunks_are_there(decoder: &mut Tiff, length: u64) -> Result<(), DecodeError> {
    let (offsets, counts) = match decoder.get_chunk_type() {
        ChunkType::Strip => (Tag::StripOffsets, Tag::StripByteCounts),
        ChunkType::Tile => (Tag::TileOffsets, Tag::TileByteCounts),
    };
    let offsets = decoder.get_tag_u64_vec(offsets).map_err(failed)?;
    let counts = decoder.get_tag_u64_vec(counts).map_err(failed)?;
    if counts.contains(&0) {
        return Err(DecodeError::Unsupported { format: FORMAT, what: "strips or tiles without data".into() });
    }
    if offsets.iter().zip(&counts).any(|(offset, count)| offset.saturating_add(*count) > length) {
        return Err(DecodeError::Truncated { format: FORMAT, missing: "the end of a strip or tile" });
    }
    Ok(())
}

fn tag<T: TryFrom<u64>>(decoder: &mut Tiff, tag: Tag, default: T) -> Result<T, DecodeError> {
    Ok(decoder.find_tag_unsigned(tag).map_err(failed)?.unwrap_or(default))
}

fn orientation(decoder: &mut Tiff) -> Result<u8, DecodeError> {
    let told: u64 = tag(decoder, Tag::Orientation, 1)?;
    Ok(u8::try_from(told).ok().filter(|told| (1..=8).contains(told)).unwrap_or(1))
}

fn icc(decoder: &mut Tiff) -> TiffResult<Option<Vec<u8>>> {
    let mut ifd = decoder.image_ifd();
    let Some(entry) = ifd.find_entry(Tag::IccProfile).filter(|entry| entry.count() <= MAX_METADATA_BYTES) else {
        return Ok(None);
    };
    let mut profile = vec![0; entry.count() as usize];
    ifd.find_tag_bytes(Tag::IccProfile, &mut profile, 0)?;
    Ok(Some(profile))
}

/// Puts what a camera wrote into the directories of the file into an EXIF block of its own.
///
/// Fields that cannot be read are left out: they are no reason to refuse the picture.
fn exif(decoder: &mut Tiff) -> Option<Vec<u8>> {
    let mut block = Cursor::new(Vec::new());
    let mut writer = TiffEncoder::new(&mut block).ok()?;
    let mut pointers = Vec::new();
    for pointer_tag in [Tag::ExifDirectory, Tag::Unknown(GPS_DIRECTORY)] {
        let Some(fields) = sub_directory(decoder, pointer_tag) else { continue };
        let mut directory = writer.extra_directory().ok()?;
        for (tag, value) in &fields {
            directory.write_tag_buf(*tag, value).ok()?;
        }
        pointers.push((pointer_tag, directory.finish_with_offsets().ok()?.offset));
    }
    let picture_tags = PICTURE_TAGS.map(Tag::from_u16_exhaustive);
    let main_fields = decoder.image_ifd();
    let main: Directory = picture_tags.iter().filter_map(|tag| Some((*tag, main_fields.find_entry(*tag)?))).collect();
    let fields = read_fields(decoder, &main);
    if fields.is_empty() && pointers.is_empty() {
        return None;
    }
    let mut directory = writer.image_directory().ok()?;
    for (tag, offset) in pointers {
        directory.write_tag(tag, offset).ok()?;
    }
    for (tag, value) in &fields {
        directory.write_tag_buf(*tag, value).ok()?;
    }
    directory.finish().ok()?;
    Some(block.into_inner())
}

fn sub_directory(decoder: &mut Tiff, pointer: Tag) -> Option<Vec<(Tag, ValueBuffer)>> {
    let offset: u64 = decoder.find_tag(pointer).ok()??.into_ifd_pointer().ok()?.0;
    let directory = decoder.read_directory(IfdPointer(offset)).ok()?;
    Some(read_fields(decoder, &directory)).filter(|fields| !fields.is_empty())
}

/// The fields of a directory in this machine's byte order, without those that point on into the file.
fn read_fields(decoder: &mut Tiff, directory: &Directory) -> Vec<(Tag, ValueBuffer)> {
    let mut reader = decoder.read_directory_tags(directory);
    let mut fields = Vec::new();
    for (tag, entry) in directory.iter() {
        let interoperability = tag.to_u16() == 0xa005;
        let pointer_or_big = matches!(entry.field_type(), Type::IFD | Type::IFD8 | Type::LONG8 | Type::SLONG8);
        if interoperability || pointer_or_big || entry.count() > MAX_METADATA_BYTES / 8 {
            continue;
        }
        let mut value = ValueBuffer::empty(entry.field_type());
        if let Ok(Some(_)) = reader.find_tag_buf(tag, &mut value) {
            value.set_byte_order(ByteOrder::native());
            fields.push((tag, value));
        }
    }
    fields
}

/// Widens the first `width` samples of a row of 1, 2 or 4 bits to 8.
fn unpack(row: &[u8], bits: u8, width: u32) -> impl Iterator<Item = u8> + '_ {
    let per_byte = 8 / u32::from(bits);
    let most = (1u8 << bits) - 1;
    (0..width).map(move |x| {
        let shift = 8 - bits * ((x % per_byte) as u8 + 1);
        ((row[(x / per_byte) as usize] >> shift) & most) * (255 / most)
    })
}

/// Clamps float samples to 0..1 and refuses what no clamping makes a colour.
fn clamp(header: &Header, y: u32, rows: &mut [u8]) -> Result<(), DecodeError> {
    for (i, bytes) in rows.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let value = f32::from_le_bytes(*bytes);
        if !value.is_finite() {
            let pixel = i / header.color.channels();
            let (row, x) = (pixel / header.width as usize, pixel % header.width as usize);
            let channel = i % header.color.channels();
            return Err(DecodeError::NotFinite { x: x as u32, y: y + row as u32, channel, value });
        }
        *bytes = value.clamp(0.0, 1.0).to_le_bytes();
    }
    Ok(())
}

/// Undoes the multiplication of colour by alpha; where alpha is 0 the colour stays 0.
fn divide_by_alpha(header: &Header, rows: &mut [u8]) {
    let divide = |color: f64, alpha: f64, most: f64| if alpha > 0.0 { (color / alpha * most).min(most) } else { 0.0 };
    let colors = header.color.channels() - 1;
    for pixel in rows.chunks_exact_mut(header.pixel_bytes()) {
        match header.sample {
            Sample::U8 => {
                let alpha = pixel[colors].into();
                pixel[..colors].iter_mut().for_each(|k| *k = divide((*k).into(), alpha, 255.0).round() as u8);
            }
            Sample::U16 => {
                let (words, _) = pixel.as_chunks_mut::<2>();
                let alpha = u16::from_le_bytes(words[colors]).into();
                for word in &mut words[..colors] {
                    let color = divide(u16::from_le_bytes(*word).into(), alpha, 65535.0);
                    *word = (color.round() as u16).to_le_bytes();
                }
            }
            Sample::F32 => {
                let (words, _) = pixel.as_chunks_mut::<4>();
                let alpha = f32::from_le_bytes(words[colors]).into();
                for word in &mut words[..colors] {
                    *word = (divide(f32::from_le_bytes(*word).into(), alpha, 1.0) as f32).to_le_bytes();
                }
            }
        }
    }
}

fn failed(error: TiffError) -> DecodeError {
    match error {
        TiffError::IoError(error) => read_failed(FORMAT, "what its directory tells", error),
        TiffError::FormatError(TiffFormatError::InvalidDimensions(width, height)) => {
            DecodeError::Empty { format: FORMAT, width, height }
        }
        TiffError::UnsupportedError(what) => DecodeError::Unsupported { format: FORMAT, what: what.to_string() },
        error => malformed(FORMAT, error),
    }
}

//! ICC profiles and EXIF blocks: the little that must be understood to carry them to another picture.
//!
//! An EXIF block is a TIFF structure: a byte order, then directories of 12-byte entries. Only values that sit inside
//! their entry are read or changed here, so a block keeps its length and everything else that is in it.

use crate::picture::Color;

const ORIENTATION: u16 = 0x0112;
const EXIF_DIRECTORY: u16 = 0x8769;
const PIXEL_X_DIMENSION: u16 = 0xa002;
const PIXEL_Y_DIMENSION: u16 = 0xa003;

/// The tag that points to the directory of the place where a picture was taken.
pub(crate) const GPS_DIRECTORY: u16 = 0x8825;

/// The tags of the first directory that say something about a picture, whatever its size and format: description,
/// make, model, x and y resolution and their unit, software, date, artist, host computer, copyright.
pub(crate) const PICTURE_TAGS: [u16; 11] =
    [0x010e, 0x010f, 0x0110, 0x011a, 0x011b, 0x0128, 0x0131, 0x0132, 0x013b, 0x013c, 0x8298];

const SHORT: u16 = 3;
const LONG: u16 = 4;

/// Whether an ICC profile describes pixels of this kind.
///
/// A profile for CMYK must not travel with pixels that were converted to RGB, nor one for grey with RGB.
pub fn icc_describes(icc: &[u8], color: Color) -> bool {
    // ICC.1:2022, 7.2: a header of 128 bytes, "acsp" at 36, the colour space of the data at 16.
    let space: &[u8] = if color.is_grey() { b"GRAY" } else { b"RGB " };
    icc.len() >= 128 && icc[36..40] == *b"acsp" && icc[16..20] == *space
}

/// The orientation, 1 to 8, that an EXIF block asks for; 1 where it does not say.
pub fn orientation(exif: &[u8]) -> u8 {
    let Some(block) = Block::new(exif) else { return 1 };
    let value = block.find(block.first_directory(), ORIENTATION).map(|entry| block.value(entry));
    value.and_then(|value| u8::try_from(value).ok()).filter(|value| (1..=8).contains(value)).unwrap_or(1)
}

/// Sets the orientation of an EXIF block to 1, where it says one at all.
pub fn reset_orientation(exif: &mut [u8]) {
    let Some(block) = Block::new(exif) else { return };
    if let Some(entry) = block.find(block.first_directory(), ORIENTATION) {
        let (range, bytes) = block.replacement(entry, 1);
        exif[range].copy_from_slice(&bytes);
    }
}

/// Sets the picture size that an EXIF block tells, where it tells one.
pub fn set_dimensions(exif: &mut [u8], width: u32, height: u32) {
    for (tag, value) in [(PIXEL_X_DIMENSION, width), (PIXEL_Y_DIMENSION, height)] {
        let Some(block) = Block::new(exif) else { return };
        let Some(pointer) = block.find(block.first_directory(), EXIF_DIRECTORY) else { return };
        let Some(entry) = block.find(block.value(pointer) as usize, tag) else { continue };
        let (range, bytes) = block.replacement(entry, value);
        exif[range].copy_from_slice(&bytes);
    }
}

/// The block without the `Exif\0\0` that some files put before it.
pub(crate) fn strip_exif_prefix(exif: &[u8]) -> &[u8] {
    exif.strip_prefix(b"Exif\0\0").unwrap_or(exif)
}

struct Block<'a> {
    bytes: &'a [u8],
    little_endian: bool,
}

/// An entry that holds one number: its place and its field type.
#[derive(Clone, Copy)]
struct Entry {
    at: usize,
    kind: u16,
}

impl<'a> Block<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let little_endian = match bytes.get(..4)? {
            b"II*\0" => true,
            b"MM\0*" => false,
            _ => return None,
        };
        bytes.get(4..8)?;
        Some(Self { bytes, little_endian })
    }

    fn first_directory(&self) -> usize {
        self.u32(4).unwrap_or(0) as usize
    }

    /// The entry of `tag` in the directory at `directory`, if it holds exactly one 16- or 32-bit number.
    fn find(&self, directory: usize, tag: u16) -> Option<Entry> {
        let count = usize::from(self.u16(directory)?);
        let at = (0..count).map(|i| directory + 2 + i * 12).find(|&at| self.u16(at) == Some(tag))?;
        let kind = self.u16(at + 2).filter(|kind| matches!(*kind, SHORT | LONG))?;
        self.bytes.get(at..at + 12)?;
        (self.u32(at + 4)? == 1).then_some(Entry { at, kind })
    }

    fn value(&self, entry: Entry) -> u32 {
        let value = match entry.kind {
            SHORT => self.u16(entry.at + 8).map(u32::from),
            _ => self.u32(entry.at + 8),
        };
        value.expect("`find` saw all twelve bytes of the entry")
    }

    /// Where the value field of `entry` is, and the bytes that make it say `value`; its type becomes 32-bit if needed.
    fn replacement(&self, entry: Entry, value: u32) -> (std::ops::Range<usize>, [u8; 10]) {
        let short = u16::try_from(value).ok().filter(|_| entry.kind == SHORT);
        let kind = if short.is_some() { SHORT } else { LONG };
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&self.order(kind.to_le_bytes()));
        bytes[2..6].copy_from_slice(&self.order(1u32.to_le_bytes()));
        match short {
            Some(short) => bytes[6..8].copy_from_slice(&self.order(short.to_le_bytes())),
            None => bytes[6..].copy_from_slice(&self.order(value.to_le_bytes())),
        }
        (entry.at + 2..entry.at + 12, bytes)
    }

    fn order<const N: usize>(&self, mut bytes: [u8; N]) -> [u8; N] {
        if !self.little_endian {
            bytes.reverse();
        }
        bytes
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(u16::from_le_bytes(self.order(bytes)))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(u32::from_le_bytes(self.order(bytes)))
    }
}

//! Pictures and masks on this machine: read whole, and written whole or not at all.

use std::path::Path;

use anyhow::Context as _;
use domain::region::Size;
use imaging::{
    decode::{decode_rows, probe},
    encode::{EncodeOptions, Encoder},
    frames::Frames,
    mask::Mask,
    pack::pack_mask,
    picture::{Color, Format, Limits},
    raster::{BandWriter, RasterInfo, Window},
};

use crate::transfer;

/// Reads a picture; what is transparent is left out.
pub fn read(path: &Path, limits: &Limits) -> anyhow::Result<Frames> {
    let context = || format!("cannot read picture `{}`", path.display());
    let info = probe(path, limits).with_context(context)?;
    let raster = RasterInfo::new(info.width, info.height, info.color, info.sample);
    let (mut writer, mut bands) = (BandWriter::new(raster), Vec::new());
    decode_rows(path, limits, &mut |rows| {
        writer.push(rows.bytes, |band| {
            bands.push(band.bytes);
            Ok(())
        })
    })
    .with_context(context)?;
    let window = Window { x: 0, y: 0, width: info.width, height: info.height };
    let parts: Vec<&[u8]> = bands.iter().map(Vec::as_slice).collect();
    let cut = raster.cut(window, &parts).with_context(context)?;
    Frames::new(1, Size::new(info.width, info.height), 3, cut.rgb).with_context(context)
}

/// Reads a mask: white covers, in red as in every other channel.
pub fn read_mask(path: &Path, limits: &Limits) -> anyhow::Result<Mask> {
    let picture = read(path, limits)?;
    let red = picture.data.iter().copied().step_by(3).collect();
    Mask::new(1, picture.size(), red).with_context(|| format!("cannot read mask `{}`", path.display()))
}

/// The size of a picture.
pub fn size(path: &Path, limits: &Limits) -> anyhow::Result<Size> {
    let info = probe(path, limits).with_context(|| format!("cannot read picture `{}`", path.display()))?;
    Ok(Size::new(info.width, info.height))
}

/// Writes rows of a picture; the file appears whole or not at all.
pub fn write(rows: &[u8], size: Size, options: EncodeOptions, path: &Path, limits: &Limits) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let (file, name) = transfer::unnamed(folder)?.into_parts();
    let mut encoder = Encoder::new(file, size.width, size.height, options, limits)?;
    encoder.write_rows(rows)?;
    encoder.finish()?;
    name.persist(path)?;
    Ok(())
}

/// Writes a mask as a grey PNG: of 8 bits where these hold its values, else of 16.
pub fn write_mask(values: &[f32], size: Size, path: &Path, limits: &Limits) -> anyhow::Result<()> {
    let (sample, rows) = pack_mask(values);
    write(&rows, size, EncodeOptions::new(Format::Png, Color::Grey, sample), path, limits)
        .with_context(|| format!("cannot write `{}`", path.display()))
}

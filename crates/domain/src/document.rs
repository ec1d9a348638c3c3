//! SEGS as a file: what `docs/segs.md` describes and `docs/segs.schema.json` checks.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    region::{Corners, Size},
    working::Bbox,
};

/// What a document says of itself.
pub const FORMAT: &str = "tessera.segs/1";

/// SEGS, with masks and pictures by reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// [`FORMAT`].
    pub format: String,
    /// The width of the picture that they were found in; 0: that of whatever picture they are laid on.
    #[serde(default)]
    pub width: u32,
    /// Its height.
    #[serde(default)]
    pub height: u32,
    /// The segments, in the order in which they are worked on and pasted.
    pub segs: Vec<DocumentSeg>,
}

impl Document {
    /// A document about a picture of `size`.
    pub fn new(size: Size, segs: Vec<DocumentSeg>) -> Self {
        Self { format: FORMAT.to_owned(), width: size.width, height: size.height, segs }
    }
}

/// A segment of a document. Field names are Impact Pack's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentSeg {
    /// The thing itself, in pixels of the picture; left out: as `crop_region`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bbox: Option<Bbox>,
    /// The surroundings that are worked on, in pixels of the picture.
    pub crop_region: Corners,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// How sure the finder was, 0 to 1; left out: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// What belongs to the thing, as large as `crop_region`; left out: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cropped_mask: Option<MaskSource>,
    /// A picture that stands for the crop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cropped_image: Option<Source>,
    /// A prompt instead of a job's positive ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positive: Option<String>,
    /// A prompt instead of a job's negative ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative: Option<String>,
    /// ControlNets, in the order in which they are applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control_nets: Vec<DocumentControl>,
    /// The pictures that its ControlNets saw. A job writes them, and does not read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control_images: Vec<Source>,
}

/// A ControlNet of a segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentControl {
    /// The model: its name or digest, or the path of its file.
    pub control_net: String,
    /// How much it steers, 0 to 10; left out: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// From which part of the schedule on, 0 to 1; left out: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_percent: Option<f64>,
    /// To which part of the schedule, 0 to 1; left out: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_percent: Option<f64>,
    /// Steers the negative prompt with a control of its own, as the advanced node does.
    #[serde(default)]
    pub advanced: bool,
    /// The control picture, of the whole picture; left out: the picture that is redrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Source>,
}

/// Where a picture lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A file, relative to the document.
    Path(String),
    /// An artifact of the farm.
    Digest(Digest),
    /// An `s3://` object.
    Uri(String),
}

/// Where the values of a mask come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskSource {
    /// A picture in a file, relative to the document: its red channel, or its only one.
    Path(String),
    /// A picture that is an artifact of the farm.
    Digest(Digest),
    /// A picture that is an `s3://` object.
    Uri(String),
    /// Runs of 0 and 1.
    Rle(RunLengths),
}

/// A mask of 0 and 1 as the lengths of its runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunLengths {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Lengths of runs in row order: zeros first (0 where the mask begins with a one), then ones, and so on.
    pub counts: Vec<u32>,
}

/// Runs that do not make up a mask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the runs hold {found} values, and a {size} mask has {}", size.pixels())]
pub struct NotAMask {
    /// The size that is claimed.
    pub size: Size,
    /// How many values there are.
    pub found: u64,
}

impl RunLengths {
    /// The runs of `values`, row by row; what is not 0 counts as 1. `None` where it holds something between.
    ///
    /// # Panics
    /// When there is not one value for each pixel.
    pub fn of(size: Size, values: &[f32]) -> Option<Self> {
        assert_eq!(size.pixels(), values.len() as u64, "one value for each pixel");
        let (mut counts, mut current) = (vec![0_u32], 0.0);
        for &value in values {
            if value != 0.0 && value != 1.0 {
                return None;
            }
            match counts.last_mut() {
                Some(last) if value == current => *last += 1,
                _ => counts.push(1),
            }
            current = value;
        }
        Some(Self { width: size.width, height: size.height, counts })
    }

    /// Refuses runs that are not as many values as the mask has pixels.
    pub fn check(&self) -> Result<(), NotAMask> {
        let size = Size::new(self.width, self.height);
        let found = self.counts.iter().map(|&count| u64::from(count)).sum();
        if found == size.pixels() { Ok(()) } else { Err(NotAMask { size, found }) }
    }

    /// The values, row by row.
    pub fn values(&self) -> Result<Vec<f32>, NotAMask> {
        self.check()?;
        let run = |(index, &count): (usize, &u32)| std::iter::repeat_n((index % 2) as f32, count as usize);
        Ok(self.counts.iter().enumerate().flat_map(run).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_of_zeros_and_ones_is_as_short_as_its_runs() {
        let check = |values: &[f32], counts: &[u32]| {
            let size = Size::new(values.len() as u32 / 2, 2);
            let runs = RunLengths::of(size, values).unwrap();
            assert_eq!(runs.counts, counts);
            assert_eq!(runs.values().unwrap(), values);
        };
        check(&[0.0, 0.0, 1.0, 1.0], &[2, 2]);
        check(&[1.0, 0.0, 0.0, 1.0], &[0, 1, 2, 1]);
        check(&[0.0, 0.0, 0.0, 0.0], &[4]);
        assert_eq!(RunLengths::of(Size::new(1, 1), &[0.5]), None);
        let short = RunLengths { width: 2, height: 2, counts: vec![1, 2] };
        assert_eq!(short.values().unwrap_err().to_string(), "the runs hold 3 values, and a 2x2 mask has 4");
    }

    #[test]
    fn a_document_reads_as_it_is_written() {
        let text = r#"{"format":"tessera.segs/1","width":64,"height":48,"segs":[{"crop_region":[0,0,32,32],"label":"face",
            "cropped_mask":{"path":"face.png"},"control_nets":[{"control_net":"canny","image":{"uri":"s3://b/k"}}]},
            {"bbox":[1.5,2,9,9],"crop_region":[0,0,16,16],"cropped_mask":{"rle":{"width":1,"height":1,"counts":[0,1]}}}]}"#;
        let document: Document = serde_json::from_str(text).unwrap();
        assert_eq!(document.segs[0].cropped_mask, Some(MaskSource::Path("face.png".to_owned())));
        let again = serde_json::to_string(&document).unwrap();
        assert_eq!(serde_json::from_str::<Document>(&again).unwrap(), document);
        assert!(serde_json::from_str::<Document>(r#"{"format":"tessera.segs/1","segs":[],"seg":[]}"#).is_err());
    }
}

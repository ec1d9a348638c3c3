//! What one worker renders in one go, and the key under which its result is kept.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    job::Precision,
    picture::{Color, Format, Sample},
    region::{Region, Size},
    resize::Resampling,
    tiles::Tiling,
};

/// The revision of the tile-upscaling operation: raised whenever its pixels change, so that stale results are never
/// taken for new ones.
pub const UPSCALE_REVISION: u32 = 1;

/// The revision of the decoders: raised whenever they give other pixels for a file.
pub const DECODE_REVISION: u32 = 2;

/// The revision of blending, resampling and encoding.
pub const ASSEMBLE_REVISION: u32 = 2;

/// Everything about a device and a way of computing on it that can change bytes: its kind, the level of its kernels, and
/// the type of the numbers that are multiplied. A device that can compute in several ways is of several classes.
///
/// Shown as `kind.kernels.dtype`, such as `cpu.fma-1.f32`; the text also names the class's queues.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ComputeClass {
    kind: String,
    kernels: String,
    dtype: String,
}

impl ComputeClass {
    /// A class from its three parts, each of lower-case letters, digits and hyphens.
    pub fn new(kind: &str, kernels: &str, dtype: &str) -> Result<Self, NotAClass> {
        let fits = |part: &str| {
            (1..=40).contains(&part.len())
                && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        };
        if [kind, kernels, dtype].into_iter().all(fits) {
            Ok(Self { kind: kind.to_owned(), kernels: kernels.to_owned(), dtype: dtype.to_owned() })
        } else {
            Err(NotAClass(format!("{kind}.{kernels}.{dtype}")))
        }
    }

    /// The kind of device: `cpu`, `cuda` or `metal`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The numbers that are multiplied, such as `f32`.
    pub fn dtype(&self) -> &str {
        &self.dtype
    }

    /// Whether it computes as exactly as `precision` asks. Every class is fast enough for [`Precision::Fast`].
    pub fn offers(&self, precision: Precision) -> bool {
        match precision {
            Precision::Exact => self.dtype == "f32",
            Precision::Fast => true,
        }
    }
}

impl fmt::Display for ComputeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.kind, self.kernels, self.dtype)
    }
}

/// A text that is not a compute class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a compute class: kind.kernels.dtype is wanted, such as cpu.fma-1.f32")]
pub struct NotAClass(String);

impl FromStr for ComputeClass {
    type Err = NotAClass;

    fn from_str(text: &str) -> Result<Self, NotAClass> {
        let mut parts = text.split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(kind), Some(kernels), Some(dtype), None) => Self::new(kind, kernels, dtype),
            _ => Err(NotAClass(text.chars().take(200).collect())),
        }
    }
}

impl TryFrom<String> for ComputeClass {
    type Error = NotAClass;

    fn try_from(text: String) -> Result<Self, NotAClass> {
        text.parse()
    }
}

impl From<ComputeClass> for String {
    fn from(class: ComputeClass) -> Self {
        class.to_string()
    }
}

/// Who may render a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Workers of this class.
    Class(ComputeClass),
    /// Any worker.
    AnyWorker,
    /// The coordinator itself.
    Coordinator,
}

/// What a group of tasks has in common: all that fixes their results but the one thing in which they differ.
///
/// Its digest is the first half of their result keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum Context {
    /// Tiles of one picture through one network.
    Upscale {
        /// [`UPSCALE_REVISION`] when it was planned.
        revision: u32,
        /// The picture file.
        picture: Digest,
        /// [`DECODE_REVISION`] when it was decoded.
        decode: u32,
        /// The weights.
        upscale_model: Digest,
        /// Output pixels a side per input pixel.
        scale: u32,
        /// How exactly.
        precision: Precision,
        /// Where.
        place: Place,
    },
    /// The finished picture out of its tiles.
    Assemble {
        /// [`ASSEMBLE_REVISION`] when it was planned.
        revision: u32,
        /// The [`Context::Upscale`] of the tiles, as a digest.
        tiles: Digest,
        /// The picture file, from which alpha, colour profile and EXIF come.
        picture: Digest,
        /// The size of the picture.
        size: Size,
        /// How it was cut.
        tiling: Tiling,
        /// Output pixels a side per input pixel.
        scale: u32,
        /// The output's file format.
        format: Format,
        /// The output's channels.
        color: Color,
        /// The output's samples.
        sample: Sample,
        /// Quality of lossy formats.
        quality: u8,
        /// How it is resampled in the end, where it is.
        resize: Option<Resampling>,
    },
}

impl Context {
    /// The digest under which results of this context lie together in the store.
    pub fn digest(&self) -> Digest {
        Digest::of_json(&("tessera context 1", self))
    }

    /// The operation's name, for logs and people.
    pub const fn operation(&self) -> &'static str {
        match self {
            Self::Upscale { .. } => "upscale",
            Self::Assemble { .. } => "assemble",
        }
    }

    /// Who may render tasks of this context.
    pub const fn place(&self) -> &Place {
        match self {
            Self::Upscale { place, .. } => place,
            Self::Assemble { .. } => &Place::Coordinator,
        }
    }
}

/// Names a task's result, and so the task: known before anything runs, and equal for equal work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResultKey {
    /// The digest of the task's [`Context`].
    pub context: Digest,
    /// The digest of the context and of what sets the task apart within it.
    pub task: Digest,
}

impl ResultKey {
    /// The key of the task that renders `region` within the context of this digest.
    pub fn new(context: Digest, region: Region) -> Self {
        let Region { x, y, width, height } = region;
        let mut place = [0; 16];
        for (bytes, number) in place.chunks_exact_mut(4).zip([x, y, width, height]) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        Self { context, task: Digest::of_parts(&[&context.0, &place]) }
    }

    /// Where the result lies in the store.
    pub fn path(&self) -> String {
        format!("{}{}", Self::folder(self.context), self.task)
    }

    /// Where all results of one context lie in the store, with a slash at the end.
    pub fn folder(context: Digest) -> String {
        format!("results/{context}/")
    }
}

impl fmt::Display for ResultKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.context, self.task)
    }
}

/// A text that is not a result key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a result key: two digests with a slash between them are wanted")]
pub struct NotAResultKey(String);

impl FromStr for ResultKey {
    type Err = NotAResultKey;

    fn from_str(text: &str) -> Result<Self, NotAResultKey> {
        let refuse = || NotAResultKey(text.chars().take(200).collect());
        let (context, task) = text.split_once('/').ok_or_else(refuse)?;
        Ok(Self { context: context.parse().map_err(|_| refuse())?, task: task.parse().map_err(|_| refuse())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(revision: u32, class: &str) -> Context {
        Context::Upscale {
            revision,
            picture: Digest::of(b"picture"),
            decode: 1,
            upscale_model: Digest::of(b"model"),
            scale: 2,
            precision: Precision::Exact,
            place: Place::Class(class.parse().unwrap()),
        }
    }

    #[test]
    fn a_result_key_changes_with_everything_that_can_change_pixels() {
        let key = |revision, class, x| {
            ResultKey::new(context(revision, class).digest(), Region::new(x, 0, 512, 512)).to_string()
        };
        let keys = [
            key(1, "cpu.candle.f32", 0),
            key(2, "cpu.candle.f32", 0),
            key(1, "cpu.candle.bf16", 0),
            key(1, "cpu.candle.f32", 480),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(keys[0], key(1, "cpu.candle.f32", 0));
        assert_eq!(keys[0].parse::<ResultKey>().unwrap().to_string(), keys[0]);
    }

    #[test]
    fn result_keys_stay_what_they_were() {
        // A change here makes every stored result unreachable: raise a revision instead, and only when pixels change.
        let key = ResultKey::new(context(1, "cpu.candle.f32").digest(), Region::new(0, 0, 512, 512));
        assert_eq!((key.context.short(), key.task.short()), (CONTEXT.to_owned(), TASK.to_owned()));
    }
    const CONTEXT: &str = "b5147b7c1e52";
    const TASK: &str = "04fd66fa5c81";

    #[test]
    fn a_class_is_read_as_it_is_shown() {
        let class: ComputeClass = "cpu.fma-1.f32".parse().unwrap();
        assert_eq!(class.to_string(), "cpu.fma-1.f32");
        assert_eq!((class.kind(), class.dtype()), ("cpu", "f32"));
        assert!(class.offers(Precision::Exact) && class.offers(Precision::Fast));
        let fast: ComputeClass = "cpu.amx-1.bf16".parse().unwrap();
        assert!(!fast.offers(Precision::Exact) && fast.offers(Precision::Fast));
        for wrong in ["cpu", "cpu..f32", "CPU.candle.f32", "a.b.c.d", "a.b c.d"] {
            assert!(wrong.parse::<ComputeClass>().is_err(), "{wrong}");
        }
    }
}

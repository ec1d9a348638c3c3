//! `tessera segs`: SEGS documents, made and checked on this machine.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    flags::{CropFlags, MaskFlags, TileSegsFlags},
    values::Masks,
};

/// Examples of `tessera segs`.
pub const SEGS_EXAMPLES: &str = "\
Examples:
  tessera segs from-mask faces.png -o faces.json
  tessera segs tiles photo.jpg --bbox-size 256 -o tiles.json
  tessera segs convert faces.json -o faces/ --masks png
  tessera segs check faces/segs.json && tessera segs show faces/segs.json

docs/segs.md describes the documents, docs/segs.schema.json is their JSON Schema. It asks no farm.";

/// `tessera segs`.
#[derive(Debug, Args)]
pub struct Segs {
    /// What to do.
    #[command(subcommand)]
    pub command: SegsCommand,
}

/// Where a SEGS document goes.
#[derive(Debug, Args)]
pub struct SegsOutput {
    /// A file called .json, whose files go to a folder beside it called NAME.segs; or a folder, in which it is called
    /// segs.json
    #[arg(short, long, value_name = "FILE.json|DIR")]
    pub output: PathBuf,
    /// How masks are written: as runs in the document, where they hold no greys, or as PNG files
    #[arg(long, value_enum, default_value_t = Masks::Rle)]
    pub masks: Masks,
    /// Write over files that exist [default: refuse]
    #[arg(short, long)]
    pub force: bool,
}

/// `tessera segs …`.
#[derive(Debug, Subcommand)]
pub enum SegsCommand {
    /// Says what is wrong with a document, and what is worth knowing of it
    Check {
        /// The document
        #[arg(value_name = "FILE.json")]
        file: PathBuf,
        /// Write JSON on stdout, for programs [default: text for people]
        #[arg(long)]
        json: bool,
    },
    /// Shows what a document holds
    Show {
        /// The document
        #[arg(value_name = "FILE.json")]
        file: PathBuf,
        /// Write JSON on stdout, for programs [default: text for people]
        #[arg(long)]
        json: bool,
    },
    /// Makes segments of the parts of a mask: MaskToSEGS
    FromMask {
        /// The mask: a picture, of which what is not black counts
        #[arg(value_name = "MASK")]
        mask: PathBuf,
        /// How large crops are.
        #[command(flatten)]
        crop: CropFlags,
        /// How parts are found.
        #[command(flatten)]
        parts: MaskFlags,
        /// Where they go.
        #[command(flatten)]
        output: SegsOutput,
    },
    /// Covers a picture with tiles: MakeTileSEGS
    Tiles {
        /// The picture's size, such as 1024x768, or a picture
        #[arg(value_name = "WIDTHxHEIGHT|PICTURE")]
        picture: PathBuf,
        /// How large crops are.
        #[command(flatten)]
        crop: CropFlags,
        /// How tiles lie.
        #[command(flatten)]
        tiles: TileSegsFlags,
        /// Where they go.
        #[command(flatten)]
        output: SegsOutput,
    },
    /// Writes a document anew, with its files beside it
    Convert {
        /// The document
        #[arg(value_name = "FILE.json")]
        file: PathBuf,
        /// Where it goes.
        #[command(flatten)]
        output: SegsOutput,
    },
}

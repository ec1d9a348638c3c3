//! The side of a tile where the submitter leaves it to the farm.
//!
//! A fixed table of what a tile takes is held against the memory that the devices of the compute class declare. The answer
//! is recorded with the job, whose bytes depend on it; who renders the job does not matter any more.

use domain::tiles::Tiling;
use weights::detect::ModelFacts;

/// The sides to choose from, in pixels, the largest first. The last is taken whatever it needs.
const SIDES: [u32; 4] = [1024, 512, 256, 128];

/// The memory of a class that nobody declares, in bytes.
const UNDECLARED: u64 = 4 << 30;

/// What networks hold at once when they hold most: maps of the size of the tile and as wide as the network, and maps of the
/// size of the result and [`OUTSIDE_WIDTH`] wide.
struct Row {
    architectures: &'static [&'static str],
    inside: u64,
    outside: u64,
}

/// Convolutions hold their input, their output and what they are made of in between; attention holds queries, keys, values, the
/// windows that they are sorted into, and the wide layer between two linear ones. Some networks convolve what is large
/// already, others only shuffle pixels to the end. One that is not here is taken for the last.
const TABLE: [Row; 4] = [
    Row { architectures: &["Compact", "SPAN", "PLKSR"], inside: 12, outside: 0 },
    Row { architectures: &["ESRGAN", "RCAN", "MoSR"], inside: 12, outside: 4 },
    Row { architectures: &["OmniSR"], inside: 32, outside: 0 },
    Row { architectures: &["SwinIR", "HAT", "DAT", "ATD"], inside: 32, outside: 4 },
];

/// Channels of a map of the size of the result.
const OUTSIDE_WIDTH: u64 = 64;

/// Numbers for each pixel of the result beside those maps: it and what it is made of, in three colours.
const RESULT: u64 = 6;

/// The width of a network that does not say its own, in channels.
const WIDTH: u64 = 64;

/// Chooses the tiling of a model on a class whose smallest device declares `memory_bytes`: the largest of the sides whose tile
/// takes half of that at most. Memory counts in powers of two, so that like machines choose alike.
pub fn tiling(facts: &ModelFacts, memory_bytes: Option<u64>, overlap: u32) -> Tiling {
    let budget = in_powers_of_two(memory_bytes.unwrap_or(UNDECLARED)) / 2;
    let per_pixel = bytes_per_pixel(facts);
    let fits = |side: &u32| (u64::from(*side) * u64::from(*side)).saturating_mul(per_pixel) <= budget;
    let side = SIDES.into_iter().find(fits).unwrap_or(SIDES[SIDES.len() - 1]);
    Tiling { side, overlap }
}

/// The largest power of two of which there are seven eighths: a machine of 16 GiB declares a little less.
fn in_powers_of_two(bytes: u64) -> u64 {
    let generous = bytes.saturating_add(bytes / 7);
    generous.checked_ilog2().map_or(0, |power| 1 << power)
}

/// What a tile takes, in bytes for each of its pixels.
fn bytes_per_pixel(facts: &ModelFacts) -> u64 {
    let row = TABLE.iter().find(|row| row.architectures.contains(&facts.architecture.as_str()));
    let row = row.unwrap_or(&TABLE[TABLE.len() - 1]);
    let enlarged = u64::from(facts.scale) * u64::from(facts.scale);
    let outside = enlarged.saturating_mul(OUTSIDE_WIDTH * row.outside + RESULT);
    width(facts).saturating_mul(row.inside).saturating_add(outside).saturating_mul(size_of::<f32>() as u64)
}

/// Channels of the maps inside a network, by the name that its architecture gives them.
fn width(facts: &ModelFacts) -> u64 {
    // Some that have both mean the head of the network by `num_feat`.
    let names = ["embed_dim", "num_feat", "num_filters", "dim", "n_feats", "feature_channels"];
    let number = |name: &&str| facts.hyperparameters.get(*name).and_then(serde_json::Value::as_u64);
    names.iter().find_map(number).unwrap_or(WIDTH)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weights::detect::SizeRequirements;

    use super::*;

    fn side(architecture: &str, hyperparameters: serde_json::Value, scale: u32, gib: u64) -> u32 {
        let facts = ModelFacts {
            architecture: architecture.to_owned(),
            scale,
            input_channels: 3,
            output_channels: 3,
            size_requirements: SizeRequirements::NONE,
            parameters: 0,
            tags: Vec::new(),
            hyperparameters: hyperparameters.as_object().cloned().unwrap_or_default(),
        };
        let tiling = tiling(&facts, Some(gib << 30), 32);
        assert_eq!(tiling.overlap, 32);
        tiling.side
    }

    #[test]
    fn the_largest_tile_is_taken_that_fits_half_of_the_memory() {
        let compact = |gib| side("Compact", json!({ "num_feat": 64 }), 4, gib);
        assert_eq!([compact(16), compact(8), compact(2), compact(1)], [1024, 1024, 512, 256]);
        let esrgan = |gib| side("ESRGAN", json!({ "num_filters": 64, "num_blocks": 23 }), 4, gib);
        assert_eq!([esrgan(64), esrgan(16), esrgan(4), esrgan(1)], [1024, 512, 256, 128]);
        let hat = |gib| side("HAT", json!({ "embed_dim": 180, "num_feat": 64 }), 4, gib);
        assert_eq!([hat(128), hat(32), hat(24), hat(0)], [1024, 512, 256, 128]);
    }

    #[test]
    fn what_is_not_known_is_taken_for_large_and_memory_that_nobody_declares_for_small() {
        assert_eq!(side("New", json!({}), 4, 16), side("SwinIR", json!({ "embed_dim": WIDTH }), 4, 16));
        let facts: ModelFacts = serde_json::from_value(json!({
            "architecture": "Compact", "scale": 4, "input_channels": 3, "output_channels": 3, "parameters": 1, "tags": [],
            "size_requirements": { "minimum": 0, "multiple_of": 1, "square": false },
            "hyperparameters": { "num_feat": 1_u64 << 40 },
        }))
        .unwrap();
        assert_eq!(tiling(&facts, Some(1 << 40), 0).side, 128);
        assert_eq!(tiling(&facts, None, 0), tiling(&facts, Some(UNDECLARED), 0));
    }

    #[test]
    fn like_machines_count_alike() {
        let check = |bytes: u64, gib: u64| assert_eq!(in_powers_of_two(bytes), gib << 30, "{bytes}");
        check(16 << 30, 16);
        check((16 << 30) - (1 << 30), 16); // what the kernel keeps
        check(31 << 30, 32);
        check(24 << 30, 16);
        check(0, 0);
        assert_eq!(in_powers_of_two(u64::MAX), 1 << 63);
    }
}

//! Rough pictures of latents: a linear map from their four channels to RGB, a pixel for each cell.
//!
//! It costs next to nothing beside a step, and shows composition and colours; the rest only an autoencoder shows.

use weights::detect::diffusion::Family;

/// Channels of a latent.
const CHANNELS: usize = 4;

/// A map from a scaled latent to samples from 0 to 255.
struct Map {
    /// What each channel adds to red, green and blue.
    factors: [[f32; 3]; CHANNELS],
    /// By what the sum is multiplied.
    scale: f32,
    /// What is added then.
    bias: [f32; 3],
}

/// Fitted to SD 1.4, for samples from -1 to 1, by keturn:
/// discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204
const SD: Map = Map {
    factors: [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]],
    scale: 127.5,
    bias: [127.5; 3],
};

/// Fitted to SDXL by Timothy Alexis Vass: huggingface.co/blog/TimothyAlexisVass/explaining-the-sdxl-latent-space
const SDXL: Map = Map {
    factors: [[60.0, 60.0, 60.0], [-60.0, -5.0, 10.0], [25.0, 15.0, -5.0], [-70.0, -50.0, -35.0]],
    scale: 1.0,
    bias: [150.0, 140.0, 130.0],
};

/// A picture of `width` x `height` pixels of 8-bit RGB, row by row, of the first latent of a batch, which is scaled as the
/// network of `family` sees it; `None` if the batch is of another size.
pub fn rgb(family: Family, latents: &[f32], width: usize, height: usize) -> Option<Vec<u8>> {
    let map = match family {
        Family::Sd1 | Family::Sd2 | Family::Sd2Unclip => &SD,
        Family::Sdxl | Family::SdxlRefiner => &SDXL,
    };
    let cells = width * height;
    if cells == 0 || latents.is_empty() || !latents.len().is_multiple_of(CHANNELS * cells) {
        return None;
    }
    let sample = |cell: usize, colour: usize| {
        let channels = map.factors.iter().zip(latents.chunks(cells));
        let sum: f32 = channels.map(|(factors, channel)| factors[colour] * channel[cell]).sum();
        (sum * map.scale + map.bias[colour]).round() as u8 // what is beyond 0 to 255 is cut
    };
    Some((0..cells).flat_map(|cell| [0, 1, 2].map(|colour| sample(cell, colour))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_adds_its_factors_and_nothing_is_the_bias() {
        let check = |family, latent: [f32; 4], want: [u8; 3]| assert_eq!(rgb(family, &latent, 1, 1).unwrap(), want);
        for family in [Family::Sd1, Family::Sd2, Family::Sd2Unclip] {
            check(family, [0.0; 4], [128, 128, 128]);
            check(family, [1.0, 0.0, 0.0, 0.0], [165, 154, 154]);
            check(family, [0.0, 1.0, 0.0, 0.0], [151, 164, 150]);
            check(family, [0.0, 0.0, 1.0, 0.0], [107, 152, 161]);
            check(family, [0.0, 0.0, 0.0, 1.0], [104, 93, 67]);
        }
        for family in [Family::Sdxl, Family::SdxlRefiner] {
            check(family, [0.0; 4], [150, 140, 130]);
            check(family, [1.0, 0.0, 0.0, 0.0], [210, 200, 190]);
            check(family, [0.0, 1.0, 0.0, 0.0], [90, 135, 140]);
            check(family, [0.0, 0.0, 1.0, 0.0], [175, 155, 125]);
            check(family, [0.0, 0.0, 0.0, 1.0], [80, 90, 95]);
        }
        check(Family::Sdxl, [9.0, 0.0, 0.0, 0.0], [255, 255, 255]);
        check(Family::Sd1, [-9.0, 0.0, 0.0, 0.0], [0, 0, 0]);
    }

    #[test]
    fn cells_come_row_by_row_and_of_a_batch_the_first_latent_is_shown() {
        let first = [0.0, 0.5, 1.0, -1.0, -0.5, 2.0]; // two rows of three cells
        let mut latents = first.to_vec();
        latents.resize(2 * 4 * 6, 0.0);
        latents[4 * 6..].fill(7.0);
        let red: Vec<u8> = rgb(Family::Sdxl, &latents, 3, 2).unwrap().into_iter().step_by(3).collect();
        assert_eq!(red, first.map(|x| (150.0 + 60.0 * x) as u8));
    }

    #[test]
    fn a_latent_of_another_size_is_not_shown() {
        for (numbers, width, height) in [(23, 3, 2), (0, 3, 2), (24, 0, 2), (24, 2, 2)] {
            assert_eq!(rgb(Family::Sd1, &vec![0.0; numbers], width, height), None, "{numbers} {width}x{height}");
        }
    }
}

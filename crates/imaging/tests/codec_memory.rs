//! Memory while a large picture is written: it must not grow with the picture.

use imaging::encode::{EncodeOptions, Encoder};
use imaging::picture::{Color, Format, Limits, Sample};

/// The pixels a side: 192 MB of RGB, twice the memory that is allowed.
const SIDE: u32 = 8_000;

#[test]
fn a_large_png_or_tiff_is_written_in_little_memory() {
    for format in [Format::Png, Format::Tiff] {
        let options = EncodeOptions::new(format, Color::Rgb, Sample::U8);
        let mut encoder = Encoder::new(tempfile::tempfile().unwrap(), SIDE, SIDE, options, &Limits::default()).unwrap();
        let mut rows = vec![0; 64 * SIDE as usize * 3];
        let mut state = 1u32;
        for top in (0..SIDE).step_by(64) {
            for (i, byte) in rows.iter_mut().enumerate() {
                // A gradient with a little noise, as a photograph has.
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = ((i / 300) as u32 + top + (state >> 30)) as u8;
            }
            let count = (SIDE - top).min(64);
            encoder.write_rows(&rows[..(count * SIDE * 3) as usize]).unwrap();
        }
        let length = encoder.finish().unwrap().metadata().unwrap().len();
        assert!(length > 1 << 20);
        eprintln!("{format}: {length} bytes");
    }
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        eprintln!("skipped: this system does not tell the peak memory of a process");
        return;
    };
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("every process has a peak");
    let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().expect("the peak is told in kB");
    eprintln!("peak memory: {} MB", kilobytes / 1000);
    assert!(kilobytes < 100_000, "the peak is {kilobytes} kB");
}

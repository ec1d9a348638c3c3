//! Values with units, as people write them: `15s`, `2GiB`.

use std::time::Duration;

/// Reads a span of time: `500ms`, `15s`, `10m`, `2h`; a bare number counts seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wanted = || "a time such as `500ms`, `15s`, `10m` or `2h` is wanted".to_owned();
    let (number, unit) = split(text);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wanted()),
    };
    let number: f64 = number.parse().map_err(|_| wanted())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wanted())
}

/// Reads a number of bytes: `4096`, `20GB` (10^9), `16GiB` (2^30).
pub fn bytes(text: &str) -> Result<u64, String> {
    let wanted = || "a size such as `500MB`, `20GB` or `16GiB` is wanted".to_owned();
    let (number, unit) = split(text);
    let unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(wanted()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit).ok_or_else(wanted);
    }
    let bytes = number.parse::<f64>().map_err(|_| wanted())? * unit as f64;
    if bytes.is_finite() && (0.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wanted()) }
}

/// Writes a number of bytes for people: `1.5 GB`.
pub fn show_bytes(bytes: u64) -> String {
    let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.into_iter().find(|(_, unit)| bytes as f64 >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit),
        None => format!("{bytes} B"),
    }
}

/// Splits `12.5 GiB` into the number and the unit.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("15"), Ok(Duration::from_secs(15)));
        assert_eq!(duration("1.5 m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "s", "-1s", "1d", "1e400s", "1s2"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("20GB"), Ok(20_000_000_000));
        assert_eq!(bytes("1.5 GiB"), Ok(1_610_612_736));
        for bad in ["", "GB", "-1", "1 pint", "99999999999999999999", "18446744073709551615kB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!([0, 999, 1_500, 20_000_000_000].map(show_bytes), ["0 B", "999 B", "1.5 kB", "20.0 GB"]);
    }
}

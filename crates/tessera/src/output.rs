//! Data on stdout: lines, tables, JSON. The only place in the house that writes there.

use std::io::{ErrorKind, Write as _};

/// Writes one line on stdout. A reader that went away, such as `head`, ends the program quietly.
pub fn line(text: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}") {
        let code = if error.kind() == ErrorKind::BrokenPipe { 0 } else { 2 };
        std::process::exit(code);
    }
}

/// Writes a value as one line of JSON.
pub fn json_line(value: &serde_json::Value) {
    line(&value.to_string());
}

/// Writes a value as JSON, for programs and for people who look.
pub fn json(value: &serde_json::Value) {
    line(&format!("{value:#}"));
}

/// Writes rows under their headings, in columns.
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) {
    for row in columns(headings, rows) {
        line(&row);
    }
}

/// Rows under their headings, in columns.
pub fn columns<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let show = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    std::iter::once(&headings.map(str::to_owned)).chain(rows).map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "long".to_owned()], ["größer".to_owned(), "b".to_owned()]];
        assert_eq!(columns(["ID", "STATE"], &rows), ["ID      STATE", "a       long", "größer  b"]);
    }
}

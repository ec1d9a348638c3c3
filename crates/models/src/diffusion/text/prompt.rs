//! Weights in a prompt: `(word)` counts 1.1 times as much, `(word:1.3)` exactly 1.3, and `\(` is a parenthesis.

use std::sync::LazyLock;

use regex::Regex;

/// What a pair of parentheses without a number multiplies weights by.
const EMPHASIS: f64 = 1.1;

/// What stands for `\)` and `\(` while parentheses are counted.
const ESCAPES: [(&str, &str, &str); 2] = [(r"\)", "\0\u{1}", ")"), (r"\(", "\0\u{2}", "(")];

/// Splits a prompt into texts and their weights, in order.
///
/// A weight may be infinite or no number, if that is what the prompt says.
pub fn weighted(prompt: &str) -> Vec<(String, f64)> {
    let escaped = ESCAPES.iter().fold(prompt.to_owned(), |text, (from, to, _)| text.replace(from, to));
    let mut found = Vec::new();
    // A list in place of calls, so that no number of parentheses is too large. The next piece is the last one.
    let mut waiting: Vec<(&str, f64)> = pieces(&escaped).into_iter().rev().map(|piece| (piece, 1.0)).collect();
    while let Some((piece, weight)) = waiting.pop() {
        let Some(inner) = piece.strip_prefix('(').and_then(|piece| piece.strip_suffix(')')) else {
            let text = ESCAPES.iter().fold(piece.to_owned(), |text, (_, from, to)| text.replace(from, to));
            found.push((text, weight));
            continue;
        };
        let number = match inner.rfind(':') {
            Some(colon) if colon > 0 => python_float(&inner[colon + 1..]).map(|number| (&inner[..colon], number)),
            _ => None,
        };
        let (inner, weight) = number.unwrap_or((inner, weight * EMPHASIS));
        waiting.extend(pieces(inner).into_iter().rev().map(|piece| (piece, weight)));
    }
    found
}

/// Splits a text at the parentheses that lie in no others.
fn pieces(text: &str) -> Vec<&str> {
    let (mut pieces, mut start, mut depth) = (Vec::new(), 0, 0i64);
    for (at, byte) in text.bytes().enumerate() {
        if byte == b'(' {
            if depth == 0 && start < at {
                pieces.push(&text[start..at]);
                start = at;
            }
            depth += 1;
        } else if byte == b')' {
            depth -= 1;
            if depth == 0 {
                pieces.push(&text[start..=at]);
                start = at + 1;
            }
        }
    }
    if start < text.len() {
        pieces.push(&text[start..]);
    }
    pieces
}

/// Reads a number as Python's `float` does: blanks around it, digits of any script, `_` between digits, `inf` and `nan`.
fn python_float(text: &str) -> Option<f64> {
    let text: String = text
        .trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
        .chars()
        .map(ascii_digit)
        .collect();
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('_') {
        if at == 0 || !is_digit(bytes.get(at - 1)) || !is_digit(bytes.get(at + 1)) {
            return None;
        }
    }
    text.replace('_', "").parse().ok()
}

/// Turns a decimal digit of any script into that of ours.
fn ascii_digit(c: char) -> char {
    static DIGIT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\p{Nd}$").expect("the pattern is valid"));
    let is_digit = |code: u32| char::from_u32(code).is_some_and(|c| DIGIT.is_match(c.encode_utf8(&mut [0; 4])));
    if c.is_ascii() || !is_digit(c.into()) {
        return c;
    }
    // The digits of a script follow each other from 0 to 9, and scripts that meet do so at a 0.
    let before = (1..=u32::from(c)).take_while(|back| is_digit(u32::from(c) - back)).count();
    char::from(b'0' + (before % 10) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parentheses_weigh_what_is_in_them() {
        let check = |prompt: &str, expected: &[(&str, f64)]| {
            let found = weighted(prompt);
            let found: Vec<_> = found.iter().map(|(text, weight)| (text.as_str(), *weight)).collect();
            assert_eq!(found, expected, "{prompt:?}");
        };
        check("", &[]);
        check("a (b) c", &[("a ", 1.0), ("b", 1.1), (" c", 1.0)]);
        check("((b))", &[("b", 1.1 * 1.1)]);
        check("(a (b:1.5) c:0.8) d", &[("a ", 0.8), ("b", 1.5), (" c", 0.8), (" d", 1.0)]);
        check("(a (b) c:0.5)", &[("a ", 0.5), ("b", 0.5 * 1.1), (" c", 0.5)]);
        check(r"\(a\) (b\):2)", &[("(a) ", 1.0), ("b)", 2.0)]);
        check("(a:b)", &[("a:b", 1.1)]);
        check("(:2)", &[(":2", 1.1)]);
        check("()", &[]);
        check("(a", &[("(a", 1.0)]);
        // A parenthesis too many makes the next one text.
        check("a) (b) (c)", &[("a) (b) (c)", 1.0)]);
        check("a) b( (c:2)", &[("a) b( ", 1.0), ("c", 2.0)]);
    }

    #[test]
    fn numbers_are_read_as_python_reads_them() {
        let check = |text: &str, expected: Option<f64>| assert_eq!(python_float(text), expected, "{text:?}");
        check(" 1.5\n", Some(1.5));
        check("1_0.5", Some(10.5));
        check("-.5e1", Some(-5.0));
        check("Infinity", Some(f64::INFINITY));
        check("１.２", Some(1.2));
        check("٣𝟗", Some(39.0));
        for text in ["", ".", "_1", "1_", "1__0", "1_.5", "0x1", "1 2", "e5", "1,5"] {
            check(text, None);
        }
        assert!(python_float("nan").is_some_and(f64::is_nan));
    }

    #[test]
    fn any_number_of_parentheses_is_taken_apart() {
        let depth = 5_000;
        let found = weighted(&format!("{}x{}", "(".repeat(depth), ")".repeat(depth)));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, "x");
    }
}

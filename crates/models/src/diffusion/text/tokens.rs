//! A prompt as tokens: words and embeddings, placed in chunks of 77.

use std::sync::Arc;

pub use weights::detect::diffusion::CHUNK;
use weights::detect::diffusion::Clip;

use super::{
    bpe,
    embedding::{Embedding, Embeddings},
    error::{Result, Warning},
    prompt::weighted,
};

/// A group of this many tokens is split where a chunk ends; a smaller one moves to the next chunk as a whole.
const LARGE: usize = 8;

/// Begins the name of an embedding.
const IDENTIFIER: &str = "embedding:";

/// What an encoder sees at one place.
#[derive(Debug, Clone)]
pub enum Token {
    /// A token of the vocabulary.
    Id(u32),
    /// A row of an embedding.
    Vector {
        /// The embedding.
        embedding: Arc<Embedding>,
        /// The row.
        row: usize,
    },
}

/// A token in a chunk.
#[derive(Debug, Clone)]
pub struct Weighted {
    /// The token.
    pub token: Token,
    /// How much it counts, as the prompt says: any number, infinite or none.
    pub weight: f64,
    /// Which run of words or which embedding it belongs to, from 1; 0 for start, end and padding.
    pub word: usize,
}

/// A prompt as an encoder sees it.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Chunks of [`CHUNK`] tokens, at least one.
    pub chunks: Vec<Vec<Weighted>>,
    /// What of the prompt was left out.
    pub warnings: Vec<Warning>,
}

impl Tokens {
    /// Whether any token counts more or less than usual.
    pub fn is_weighted(&self) -> bool {
        self.chunks.iter().flatten().any(|token| token.weight != 1.0)
    }
}

/// Turns a prompt into the tokens of an encoder. Without `embeddings`, their names are plain words.
///
/// # Errors
/// If an embedding is there but cannot be read.
pub fn tokenize(prompt: &str, clip: Clip, embeddings: Option<&dyn Embeddings>) -> Result<Tokens> {
    let (mut groups, mut warnings) = (Vec::new(), Vec::new());
    for (text, weight) in weighted(prompt) {
        for part in parts(&text) {
            let named = part.strip_prefix(IDENTIFIER).zip(embeddings);
            let rest = match named {
                None => part,
                Some((named, embeddings)) => {
                    let (embedding, rest) = find(named, clip, embeddings, &mut warnings)?;
                    if let Some(embedding) = embedding {
                        let vector = |row| Token::Vector { embedding: embedding.clone(), row };
                        groups.push(((0..embedding.rows()).map(vector).collect(), weight));
                    }
                    if rest.is_empty() {
                        continue;
                    }
                    rest
                }
            };
            groups.push((bpe::ids(&rest).into_iter().map(Token::Id).collect(), weight));
        }
    }
    Ok(Tokens { chunks: chunks(groups, clip.padding()), warnings })
}

/// Returns a chunk without words.
pub fn empty_chunk(clip: Clip) -> Vec<Weighted> {
    chunks(Vec::new(), clip.padding()).remove(0)
}

/// Splits a text before each embedding that a blank or a line's end comes before.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text;
    while let Some(at) = rest.find(IDENTIFIER) {
        let (before, found) = rest.split_at(at);
        let last = parts.last_mut().expect("there is one from the start");
        match before.strip_suffix([' ', '\n']) {
            Some(before) => {
                last.push_str(before);
                parts.push(IDENTIFIER.to_owned());
            }
            None => last.push_str(&rest[..at + IDENTIFIER.len()]),
        }
        rest = &found[IDENTIFIER.len()..];
    }
    parts.last_mut().expect("there is one from the start").push_str(rest);
    parts.retain(|part| !part.is_empty());
    parts
}

/// Finds the embedding that the first word of `named` names, and what else is to be read as text.
fn find(
    named: &str,
    clip: Clip,
    embeddings: &dyn Embeddings,
    warnings: &mut Vec<Warning>,
) -> Result<(Option<Arc<Embedding>>, String)> {
    let mut words = named.split_whitespace();
    let Some(name) = words.next() else {
        warnings.push(Warning::NamelessEmbedding);
        return Ok((None, String::new()));
    };
    let rest = words.collect::<Vec<_>>().join(" ");
    if let Some(embedding) = embeddings.find(name, clip)? {
        return Ok((Some(embedding), rest));
    }
    let stripped = name.trim_matches(',');
    let (found, rest) = if stripped.len() < name.len() {
        // As many letters of the name as there are commas, which are its last ones unless some come first.
        let tail: String = name.chars().skip(stripped.chars().count()).collect();
        let found = if stripped.is_empty() { None } else { embeddings.find(stripped, clip)? };
        (found, format!("{tail} {rest}"))
    } else {
        (None, rest)
    };
    if found.is_none() {
        warnings.push(Warning::MissingEmbedding { name: stripped.to_owned() });
    }
    Ok((found, rest))
}

/// Places groups of tokens in chunks.
fn chunks(groups: Vec<(Vec<Token>, f64)>, padding: u32) -> Vec<Vec<Weighted>> {
    let special = |id| Weighted { token: Token::Id(id), weight: 1.0, word: 0 };
    let mut chunks = Vec::new();
    let mut chunk = vec![special(bpe::START)];
    let mut finish = |chunk: &mut Vec<Weighted>| {
        chunk.push(special(bpe::END));
        chunk.resize(CHUNK, special(padding));
        chunks.push(std::mem::replace(chunk, vec![special(bpe::START)]));
    };
    for (word, (group, weight)) in (1..).zip(groups) {
        let is_large = group.len() >= LARGE;
        let mut group = group.into_iter();
        loop {
            let room = CHUNK - 1 - chunk.len();
            let fits = group.len() <= room;
            if fits || is_large {
                let taken = group.by_ref().take(room);
                chunk.extend(taken.map(|token| Weighted { token, weight, word }));
            }
            if fits {
                break;
            }
            finish(&mut chunk);
        }
    }
    finish(&mut chunk);
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_split_before_embeddings() {
        let check = |text: &str, expected: &[&str]| assert_eq!(parts(text), expected, "{text:?}");
        check("a b", &["a b"]);
        check("embedding:x", &["embedding:x"]);
        check(" embedding:x", &["embedding:x"]);
        check("a embedding:x\nembedding:y z", &["a", "embedding:x", "embedding:y z"]);
        check("aembedding:x", &["aembedding:x"]);
        check("embedding:embedding:x embedding:", &["embedding:embedding:x", "embedding:"]);
        check("", &[]);
    }

    #[test]
    fn groups_move_on_or_are_split_by_their_size() {
        let check = |sizes: &[usize], expected: &str| {
            let groups = sizes.iter().map(|&size| (vec![Token::Id(7); size], 1.0)).collect();
            let chunks = chunks(groups, 0);
            assert!(chunks.iter().all(|chunk| chunk.len() == CHUNK));
            let words = |chunk: &Vec<Weighted>| {
                let end = chunk.iter().position(|token| matches!(token.token, Token::Id(bpe::END))).unwrap();
                let count = |word| chunk.iter().filter(|token| token.word == word).count();
                let counts = (1..=sizes.len()).map(|word| count(word).to_string()).collect::<Vec<_>>();
                format!("{}|{end}", counts.join(" "))
            };
            assert_eq!(chunks.iter().map(words).collect::<Vec<_>>().join(", "), expected, "{sizes:?}");
        };
        check(&[], "|1");
        check(&[75], "75|76");
        check(&[76], "75|76, 1|2");
        check(&[70, 5], "70 5|76");
        check(&[70, 6], "70 0|71, 0 6|7");
        check(&[70, 8], "70 5|76, 0 3|4");
        check(&[75, 0, 1], "75 0 0|76, 0 0 1|2");
        check(&[75, 8], "75 0|76, 0 8|9");
        check(&[200], "75|76, 75|76, 50|51");
    }
}

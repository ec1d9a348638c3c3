//! Text to token ids: CLIP's byte-pair encoding, as Hugging Face's `CLIPTokenizer` computes it without the ftfy library.
//!
//! `tokenizers` merges the pairs. What comes before is written out here, because its normalizers give other ids: they
//! lower-case letter by letter, so that a sigma at the end of a word is none, keep unassigned characters, know fewer
//! ideographs, and compose by an old version of Unicode.

use std::{io::Read, sync::LazyLock};

use flate2::read::GzDecoder;
use regex::Regex;
use tokenizers::{
    Model,
    models::bpe::{BPE, Vocab},
};
use unicode_normalization::UnicodeNormalization;
pub use weights::detect::diffusion::{END_TOKEN as END, TOKENS};

/// The token before every text.
pub const START: u32 = 49406;

const START_TEXT: &str = "<|startoftext|>";
const END_TEXT: &str = "<|endoftext|>";

/// The merges that are published with CLIP: see `NOTICE` beside them.
static MERGES: &[u8] = include_bytes!("merges.txt.gz");

static ENCODER: LazyLock<Encoder> = LazyLock::new(Encoder::new);

/// Returns the tokens of `text`, without start and end.
pub fn ids(text: &str) -> Vec<u32> {
    let encoder = &*ENCODER;
    let (mut ids, mut at) = (Vec::new(), 0);
    for literal in encoder.literal.find_iter(text) {
        encoder.put_plain(&text[at..literal.start()], &mut ids);
        ids.push(if literal.as_str() == START_TEXT { START } else { END });
        at = literal.end();
    }
    encoder.put_plain(&text[at..], &mut ids);
    ids
}

struct Encoder {
    bpe: BPE,
    /// The letter that stands for each byte.
    letters: [char; 256],
    /// Start and end, spelt out.
    literal: Regex,
    /// What is dropped: controls, formats, private and unassigned characters.
    dropped: Regex,
    /// What is merged by itself.
    word: Regex,
}

impl Encoder {
    fn new() -> Self {
        let mut merges = String::new();
        GzDecoder::new(MERGES).read_to_string(&mut merges).expect("the merges are valid");
        let merges: Vec<_> = merges.lines().filter_map(|line| line.split_once(' ')).collect();

        // In the order of ids: a letter for each byte, the same at the end of a word, what each merge gives, the specials.
        let alphabet = alphabet();
        let letters = alphabet.iter().map(|(_, letter)| letter.to_string());
        let ends = alphabet.iter().map(|(_, letter)| format!("{letter}</w>"));
        let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
        let specials = [START_TEXT, END_TEXT].map(str::to_owned);
        let vocabulary: Vocab = letters.chain(ends).chain(merged).chain(specials).zip(0..).collect();
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary, merges.iter().map(|&(left, right)| (left.into(), right.into())).collect())
            .end_of_word_suffix("</w>".to_owned())
            .unk_token(END_TEXT.to_owned())
            .build()
            .expect("each half of a merge is a token");

        let mut letters = ['\0'; 256];
        alphabet.iter().for_each(|&(byte, letter)| letters[usize::from(byte)] = letter);
        let regex = |pattern: &str| Regex::new(pattern).expect("the patterns are valid");
        let literals = r"<\|startoftext\|>|<\|endoftext\|>";
        Self {
            bpe,
            letters,
            literal: regex(literals),
            dropped: regex(r"[[\p{C}\x{FFFD}]--[\t\n\r]]"),
            // U+0345 is no letter, but in other case one: the reference takes it neither for a letter nor for anything else.
            word: regex(&format!(
                r"{literals}|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}\x{{345}}]+"
            )),
        }
    }

    /// Adds the tokens of a text in which start and end are not spelt out.
    fn put_plain(&self, text: &str, ids: &mut Vec<u32>) {
        let mut spaced = String::with_capacity(text.len());
        for c in self.dropped.replace_all(text, "").chars() {
            if is_ideograph(c) {
                spaced.extend([' ', c, ' ']);
            } else {
                spaced.push(c);
            }
        }
        let text = spaced.nfc().collect::<String>().to_lowercase();
        for word in self.word.find_iter(&text) {
            match word.as_str() {
                // Only now are those of other letters found.
                START_TEXT => ids.push(START),
                END_TEXT => ids.push(END),
                word => {
                    let letters: String = word.bytes().map(|byte| self.letters[usize::from(byte)]).collect();
                    let tokens = self.bpe.tokenize(&letters).expect("a token stands for each byte");
                    ids.extend(tokens.iter().map(|token| token.id));
                }
            }
        }
    }
}

/// The bytes in the order of their ids, each with the letter that stands for it: visible ones for themselves, the others for
/// letters from 256 on.
fn alphabet() -> Vec<(u8, char)> {
    let is_visible = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let visible = (0..=u8::MAX).filter(is_visible).map(|byte| (byte, char::from(byte)));
    visible.chain((0..=u8::MAX).filter(|byte| !is_visible(byte)).zip('\u{100}'..)).collect()
}

fn is_ideograph(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F | 0x2B740..=0x2B81F
            | 0x2B820..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected ids are those of `CLIPTokenizer` of Hugging Face's transformers 4.53.3, the slow one without ftfy.
    #[test]
    fn ids_are_those_of_the_published_tokenizer() {
        let check = |text: &str, expected: &[u32]| assert_eq!(ids(text), expected, "{text:?}");
        check("", &[]);
        check("Don't", &[847, 713]);
        check("!<|endoftext|>", &[256, END]);
        check("!<|ENDOFTEXT|>", &[0, 27, 347, 40786, 4160, 91, 285]);
        check("<|ENDOFTEXT|>x", &[END, 343]);
        check("ΣΑΣ<|endoftext|>Σ", &[139, 225, 138, 109, 139, 480, END, 139, 481]);
        check("don'ſ", &[847, 6, 129, 379]);
        check("K", &[330]);
        check("a\u{2028}b", &[320, 321]);
        check("a\u{85}b", &[3937]);
        check("a\u{fffd}b\u{378}", &[3937]);
        check("〇一𠮷", &[4092, 485, 19759, 478, 172, 254, 106, 371]);
        check("ＡＢＣ １２", &[171, 121, 223, 171, 121, 224, 171, 121, 481, 171, 120, 495, 171, 120, 496]);
        check("ㅎㅏㄴ 한", &[5947, 236, 5947, 237, 159, 226, 368, 15197, 506]);
        check("e\u{301} \u{344}", &[4166, 136, 230, 136, 479]);
        check("Ⅷ ½", &[158, 227, 371, 33613]);
        check("_x_'s's", &[318, 343, 44701, 338, 568]);
        check("İI", &[328, 16384, 328]);
        check("v\u{345}z", &[341, 345]);
        check("\u{10e}\u{8da}\u{1715}", &[128, 493, 157, 250, 243, 156, 96, 504]);
    }

    #[test]
    fn there_are_as_many_tokens_as_published() {
        assert_eq!(ENCODER.bpe.get_vocab_size(), TOKENS);
    }
}

//! Character classes as Go has them: letters are the category L, digits the category Nd.

use std::sync::LazyLock;

use regex::Regex;

static LETTER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\p{L}$").expect("a fixed pattern"));
static DIGIT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\p{Nd}$").expect("a fixed pattern"));

pub(super) fn is_letter(character: char) -> bool {
    match character.is_ascii() {
        true => character.is_ascii_alphabetic(),
        false => character.is_alphabetic() && LETTER.is_match(character.encode_utf8(&mut [0; 4])),
    }
}

pub(super) fn is_digit(character: char) -> bool {
    match character.is_ascii() {
        true => character.is_ascii_digit(),
        false => character.is_numeric() && DIGIT.is_match(character.encode_utf8(&mut [0; 4])),
    }
}

pub(super) fn is_name(character: char) -> bool {
    is_letter(character) || is_digit(character) || character == '_'
}

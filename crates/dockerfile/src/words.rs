//! Splitting the text of an instruction into words, the several ways the reference does it.
//!
//! Every function returns texts with their ranges in its input.

use std::ops::Range;

/// A text and its range in the input.
pub(crate) type Piece = (String, Range<usize>);

/// Tells whether a character separates words in an instruction line (line ends do not).
pub(crate) fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

/// Splits off the first word; the rest begins with its first character that is not blank.
pub(crate) fn split_first(text: &str) -> (Range<usize>, Option<Range<usize>>) {
    match text.find(is_blank) {
        None => (0..text.len(), None),
        Some(at) => {
            let rest = &text[at..];
            let skip = rest.len() - rest.trim_start_matches(is_blank).len();
            (0..at, Some(at + skip..text.len()))
        }
    }
}

/// Splits at blanks. The text is trimmed; an empty one has no words.
pub(crate) fn split_blanks(text: &str) -> Vec<Piece> {
    let mut words = Vec::new();
    let mut pos = 0;
    while pos < text.len() {
        let rest = &text[pos..];
        let len = rest.find(is_blank).unwrap_or(rest.len());
        words.push((rest[..len].to_owned(), pos..pos + len));
        let after = &rest[len..];
        pos = text.len() - after.trim_start_matches(is_blank).len();
        if pos == text.len() && !after.is_empty() {
            words.push((String::new(), pos..pos));
        }
    }
    words
}

/// Splits at white space outside of quotes. Quotes and escapes stay in the words, which a shell lexer reads later.
pub(crate) fn split_quoted(text: &str, escape: char) -> Vec<Piece> {
    let mut words = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some(&(start, first)) = chars.peek() {
        if first.is_whitespace() {
            chars.next();
            continue;
        }
        let mut word = String::new();
        let mut quote = None;
        let mut quoted = false;
        let mut end = text.len();
        while let Some(&(at, c)) = chars.peek() {
            if quote.is_none() && c.is_whitespace() {
                end = at;
                break;
            }
            chars.next();
            match quote {
                None if c == '\'' || c == '"' => {
                    quote = Some(c);
                    quoted = true;
                }
                Some(open) if c == open => quote = None,
                _ => {}
            }
            // In single quotes nothing is escaped.
            if c == escape && quote != Some('\'') {
                let Some((_, escaped)) = chars.next() else {
                    break;
                };
                word.push(c);
                word.push(escaped);
                continue;
            }
            word.push(c);
        }
        if quoted || !word.is_empty() {
            words.push((word, start..end));
        }
    }
    words
}

/// Takes the flags (`--name`, `--name=value`) off the front; returns them and where the rest begins.
///
/// Quotes and escapes are resolved. A lone `--` ends the flags. The reference reads bytes here, so a character outside
/// of ASCII comes out as one character a byte; a flag cannot sensibly hold one, and its bytes are kept the same way.
pub(crate) fn split_flags(text: &str, escape: char) -> (Vec<Piece>, usize) {
    let bytes = text.as_bytes();
    let is_space = |b: u8| char::from(b).is_whitespace();
    let mut flags = Vec::new();
    let mut pos = 0;
    loop {
        while pos < bytes.len() && is_space(bytes[pos]) {
            pos += 1;
        }
        if !bytes[pos..].starts_with(b"--") {
            return (flags, boundary(text, pos));
        }
        let start = pos;
        let mut word = String::new();
        let mut quote = None;
        let mut quoted = false;
        while pos < bytes.len() {
            let mut c = char::from(bytes[pos]);
            if quote.is_none() && c.is_whitespace() {
                break;
            }
            pos += 1;
            match quote {
                None if c == '\'' || c == '"' => {
                    quote = Some(c);
                    quoted = true;
                    continue;
                }
                Some(open) if c == open => {
                    quote = None;
                    continue;
                }
                _ => {}
            }
            if c == escape {
                let Some(&next) = bytes.get(pos) else { break };
                c = char::from(next);
                pos += 1;
            }
            word.push(c);
        }
        if word == "--" {
            return (flags, boundary(text, pos));
        }
        if quoted || !word.is_empty() {
            flags.push((word, start..boundary(text, pos)));
        }
    }
}

/// Returns the first boundary of a character at or after a byte.
fn boundary(text: &str, at: usize) -> usize {
    (at..text.len())
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pieces: Vec<Piece>) -> Vec<String> {
        pieces.into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn words_keep_their_quotes_and_escapes() {
        let check = |text: &str, expect: &[&str]| {
            assert_eq!(texts(split_quoted(text, '\\')), expect, "{text}")
        };
        check("", &[]);
        check("  a  b ", &["a", "b"]);
        check(r#"a="b c" d='e \' f"#, &[r#"a="b c""#, r"d='e \'", "f"]);
        check(r#"a="b \" c" d"#, &[r#"a="b \" c""#, "d"]);
        check(r"a\ b c\", &[r"a\ b", "c"]);
        check(r"\", &[]);
        check("'' x", &["''", "x"]);
        check("\"open a", &["\"open a"]);
        check("a\u{2003}b", &["a", "b"]);
    }

    #[test]
    fn flags_are_taken_off_the_front() {
        let check = |text: &str, flags: &[&str], rest: &str| {
            let (found, at) = split_flags(text, '\\');
            assert_eq!(
                (texts(found), &text[at..]),
                (flags.iter().map(|s| (*s).to_owned()).collect(), rest),
                "{text}"
            );
        };
        check("a --b", &[], "a --b");
        check("--a --b=c d", &["--a", "--b=c"], "d");
        check("--a='b c' \"--d\" e", &["--a=b c"], "\"--d\" e");
        check(r#"--a="b \" c"x\ y z"#, &["--a=b \" cx y"], "z");
        check("--a -- --b", &["--a"], " --b");
        check("--a\\", &["--a"], "");
        check("--a=\u{e9} b", &["--a=\u{c3}\u{a9}"], "b");
        check("-a", &[], "-a");
        check("--", &[], "");
    }
}

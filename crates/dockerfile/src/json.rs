//! JSON as the reference's decoder takes it, with the places of strings.
//!
//! A general decoder would refuse lone surrogates and deep nesting, which the reference takes, and has no spans.

use std::ops::Range;

/// The nesting above which the reference gives up.
const MAX_DEPTH: usize = 10_000;

/// A decoded string and the place of its literal, quotes included.
pub(crate) type Located = (String, Range<usize>);

/// Why a text is not an array of strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotStrings {
    /// It is no JSON array at all.
    NotArray,
    /// It is an array with an element that is no string; its place.
    Element(Range<usize>),
}

/// Reads a JSON array of strings; white space of any kind may stand before it.
pub(crate) fn string_array(text: &str) -> Result<Vec<Located>, NotStrings> {
    let start = text.len() - text.trim_start().len();
    let mut reader = Reader {
        bytes: text.as_bytes(),
        pos: start,
    };
    reader.eat(b'[').ok_or(NotStrings::NotArray)?;
    read_array(text, &mut reader).ok_or(NotStrings::NotArray)?
}

fn read_array(text: &str, reader: &mut Reader<'_>) -> Option<Result<Vec<Located>, NotStrings>> {
    let mut strings = Vec::new();
    let mut stranger = None;
    reader.skip_space();
    if reader.eat(b']').is_none() {
        loop {
            reader.skip_space();
            let range = reader.value(1)?;
            if text.as_bytes()[range.start] == b'"' {
                strings.push((unquote(&text[range.clone()]), range));
            } else {
                stranger.get_or_insert(range);
            }
            reader.skip_space();
            if reader.eat(b',').is_some() {
                continue;
            }
            reader.eat(b']')?;
            break;
        }
    }
    reader.end()?;
    Some(stranger.map_or(Ok(strings), |range| Err(NotStrings::Element(range))))
}

/// Returns the string member of that name if the whole text is one JSON object; the last of several counts.
pub(crate) fn string_member(text: &str, name: &str) -> Option<Located> {
    let mut reader = Reader {
        bytes: text.as_bytes(),
        pos: 0,
    };
    let mut found = None;
    reader.skip_space();
    reader.eat(b'{')?;
    reader.skip_space();
    if reader.eat(b'}').is_none() {
        loop {
            reader.skip_space();
            let key = reader.string()?;
            reader.skip_space();
            reader.eat(b':')?;
            reader.skip_space();
            let value = reader.value(1)?;
            if unquote(&text[key]) == name {
                let literal = &text[value.clone()];
                found = literal.starts_with('"').then(|| (unquote(literal), value));
            }
            reader.skip_space();
            if reader.eat(b',').is_some() {
                continue;
            }
            reader.eat(b'}')?;
            break;
        }
    }
    reader.end()?;
    found
}

/// Decodes a string literal that is known to be well formed.
fn unquote(literal: &str) -> String {
    let body = &literal[1..literal.len() - 1];
    let mut out = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = rest.as_bytes()[at + 1];
        let mut used = at + 2;
        match escape {
            b'b' => out.push('\u{8}'),
            b'f' => out.push('\u{c}'),
            b'n' => out.push('\n'),
            b'r' => out.push('\r'),
            b't' => out.push('\t'),
            b'u' => {
                used += 4;
                let first = hex4(&rest[at + 2..]).unwrap_or_default();
                let second = rest[used..].strip_prefix("\\u").and_then(hex4);
                match char::decode_utf16([first].into_iter().chain(second)).next() {
                    Some(Ok(c)) => {
                        used += if c.len_utf16() == 2 { 6 } else { 0 };
                        out.push(c);
                    }
                    _ => out.push(char::REPLACEMENT_CHARACTER),
                }
            }
            other => out.push(char::from(other)),
        }
        rest = &rest[used..];
    }
    out.push_str(rest);
    out
}

fn hex4(text: &str) -> Option<u16> {
    let digits = text.as_bytes().get(..4)?;
    digits.iter().try_fold(0, |n, d| {
        Some(n << 4 | u16::try_from(char::from(*d).to_digit(16)?).ok()?)
    })
}

/// Walks over JSON text; every method returns `None` where the text is not JSON.
struct Reader<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.pos).copied()
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.pos += 1)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.pos += 1;
        }
    }

    fn end(&mut self) -> Option<()> {
        self.skip_space();
        self.peek().is_none().then_some(())
    }

    /// Passes over one value, without recursion.
    fn value(&mut self, depth: usize) -> Option<Range<usize>> {
        let start = self.pos;
        // The closing brackets still to come.
        let mut open: Vec<u8> = Vec::new();
        loop {
            match self.peek()? {
                opening @ (b'[' | b'{') => {
                    self.pos += 1;
                    let closing = if opening == b'[' { b']' } else { b'}' };
                    if depth + open.len() >= MAX_DEPTH {
                        return None;
                    }
                    self.skip_space();
                    if self.eat(closing).is_none() {
                        open.push(closing);
                        self.member_key(closing)?;
                        continue;
                    }
                }
                b'"' => {
                    self.string()?;
                }
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                _ => self.number()?,
            }
            // A value is complete: close what ends here, or go to the next element.
            loop {
                let Some(&closing) = open.last() else {
                    return Some(start..self.pos);
                };
                self.skip_space();
                if self.eat(closing).is_some() {
                    open.pop();
                    continue;
                }
                self.eat(b',')?;
                self.skip_space();
                self.member_key(closing)?;
                break;
            }
        }
    }

    /// Passes over the key and colon of a member if the container is an object.
    fn member_key(&mut self, closing: u8) -> Option<()> {
        if closing == b'}' {
            self.string()?;
            self.skip_space();
            self.eat(b':')?;
            self.skip_space();
        }
        Some(())
    }

    fn string(&mut self) -> Option<Range<usize>> {
        let start = self.pos;
        self.eat(b'"')?;
        loop {
            match self.peek()? {
                b'"' => {
                    self.pos += 1;
                    return Some(start..self.pos);
                }
                b'\\' => {
                    self.pos += 1;
                    match self.peek()? {
                        b'u' => {
                            let digits = self.bytes.get(self.pos + 1..self.pos + 5)?;
                            digits
                                .iter()
                                .all(u8::is_ascii_hexdigit)
                                .then(|| self.pos += 5)?;
                        }
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.pos += 1,
                        _ => return None,
                    }
                }
                ..0x20 => return None,
                _ => self.pos += 1,
            }
        }
    }

    fn literal(&mut self, word: &[u8]) -> Option<()> {
        self.bytes[self.pos..]
            .starts_with(word)
            .then(|| self.pos += word.len())
    }

    /// Passes over a number; one too large for a double is refused, as the reference does.
    fn number(&mut self) -> Option<()> {
        let start = self.pos;
        let _ = self.eat(b'-');
        if self.eat(b'0').is_none() {
            self.digits()?;
        }
        if self.eat(b'.').is_some() {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.pos += 1;
            if self.eat(b'+').is_none() {
                let _ = self.eat(b'-');
            }
            self.digits()?;
        }
        let text = std::str::from_utf8(&self.bytes[start..self.pos]).ok()?;
        text.parse::<f64>().ok()?.is_finite().then_some(())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.pos;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.pos += 1;
        }
        (self.pos > start).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let found = match string_array(text) {
            Ok(strings) => format!(
                "{:?}",
                strings.into_iter().map(|(s, _)| s).collect::<Vec<_>>()
            ),
            Err(NotStrings::NotArray) => "not an array".to_owned(),
            Err(NotStrings::Element(range)) => format!("element {}", &text[range]),
        };
        assert_eq!(found, expect, "{text}");
    }

    #[test]
    fn arrays_of_strings_are_read_as_the_reference_does() {
        check("[]", "[]");
        check(" \u{a0}[ \"a\" ,\"b\"] ", r#"["a", "b"]"#);
        check(
            r#"["A\u00e9\ud83d\ude00\ud800x\/\n"]"#,
            "[\"Aé😀\u{fffd}x/\\n\"]",
        );
        check(r#"["\ud800A"]"#, "[\"\u{fffd}A\"]");
        check(r#"["a",]"#, "not an array");
        check(r#"["a"] x"#, "not an array");
        check(r#"['a']"#, "not an array");
        check("[\"a\tb\"]", "not an array");
        check(r#"["a", 1]"#, "element 1");
        check(
            r#"["a", {"b": [1, {}, []]}, 2]"#,
            r#"element {"b": [1, {}, []]}"#,
        );
        check("[null]", "element null");
        check("[1e999]", "not an array");
        check("[01]", "not an array");
        check("[\"a\\x\"]", "not an array");
        check("x", "not an array");
    }

    #[test]
    fn deep_nesting_does_not_exhaust_the_stack() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(matches!(
            string_array(&deep(10_000)),
            Err(NotStrings::Element(_))
        ));
        assert_eq!(string_array(&deep(10_001)), Err(NotStrings::NotArray));
        assert_eq!(
            string_array(&"[".repeat(10_000_000)),
            Err(NotStrings::NotArray)
        );
    }

    #[test]
    fn the_last_member_of_a_name_counts() {
        let member = |text| string_member(text, "syntax").map(|(value, _)| value);
        assert_eq!(
            member(r#"{"syntax": "a", "x": [1], "syntax": "b"}"#).as_deref(),
            Some("b")
        );
        assert_eq!(member(r#"{"syntax": 1}"#), None);
        assert_eq!(member(r#"{"syntax": "a"} x"#), None);
    }
}

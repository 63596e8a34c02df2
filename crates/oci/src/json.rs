//! JSON in the bytes Go's `encoding/json` writes: `<`, `>`, `&` and the two Unicode line separators are escaped.
//!
//! Other builders are written in Go; with their escaping, equal documents are equal bytes.

use std::io::{self, Write};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// Returns `value` on one line, as configs are written.
pub fn compact<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    write(value, CompactFormatter)
}

/// Returns `value` indented by two spaces, as manifests and indexes are written.
pub fn indented<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    write(value, PrettyFormatter::new())
}

fn write<T: Serialize, F: Formatter>(value: &T, inner: F) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(
        &mut bytes,
        GoEscapes { inner },
    ))?;
    Ok(bytes)
}

/// Reads `null` as the empty value, as Go does and as Docker writes it.
pub(crate) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

struct GoEscapes<F> {
    inner: F,
}

macro_rules! delegate {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        $(fn $name<W: ?Sized + Write>(&mut self, writer: &mut W $(, $argument: $kind)*) -> io::Result<()> {
            self.inner.$name(writer $(, $argument)*)
        })*
    };
}

impl<F: Formatter> Formatter for GoEscapes<F> {
    delegate! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
        write_char_escape(escape: CharEscape);
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut start = 0;
        for (index, character) in fragment.char_indices() {
            let escape = match character {
                '<' => "\\u003c",
                '>' => "\\u003e",
                '&' => "\\u0026",
                '\u{2028}' => "\\u2028",
                '\u{2029}' => "\\u2029",
                _ => continue,
            };
            writer.write_all(&fragment.as_bytes()[start..index])?;
            writer.write_all(escape.as_bytes())?;
            start = index + character.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[start..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: serde_json::Value, expect: &str) {
        assert_eq!(String::from_utf8(compact(&value).unwrap()).unwrap(), expect);
    }

    #[test]
    fn escapes_are_those_of_go() {
        check(
            "a && b > c <d>".into(),
            r#""a \u0026\u0026 b \u003e c \u003cd\u003e""#,
        );
        check("\u{2028}é\u{2029}".into(), r#""\u2028é\u2029""#);
        check(
            "\"\\\n\t\u{1}\u{7f}".into(),
            "\"\\\"\\\\\\n\\t\\u0001\u{7f}\"",
        );
        check(serde_json::json!({"<": []}), r#"{"\u003c":[]}"#);
    }

    #[test]
    fn indented_form_has_two_spaces_and_no_final_newline() {
        let value = serde_json::json!({"a": [1], "b": {}});
        let text = String::from_utf8(indented(&value).unwrap()).unwrap();
        assert_eq!(text, "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}");
    }
}

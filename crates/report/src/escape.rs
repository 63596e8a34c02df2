//! Texts as parts of markup.

use unicode_width::UnicodeWidthChar;

/// Returns a text for the content of an element or a quoted attribute, of HTML as of XML.
///
/// What XML has no way to hold is replaced.
pub(crate) fn markup(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + text.len() / 8);
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            character if character.is_control() => escaped.push('\u{fffd}'),
            // What turns the direction of a line makes another text of it on the screen.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => escaped.push('\u{fffd}'),
            character => escaped.push(character),
        }
    }
    escaped
}

/// Returns a text on one line, blanks in a row as one.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Cuts a text to a number of columns of a font whose characters are of one width; an ellipsis says so.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if self::columns(text) <= columns {
        return text.to_owned();
    }
    let mut left = columns.saturating_sub(1);
    let mut shown = String::new();
    for character in text.chars() {
        let width = character.width().unwrap_or(1);
        if width > left {
            break;
        }
        left -= width;
        shown.push(character);
    }
    shown.truncate(shown.trim_end().len());
    shown.push('…');
    shown
}

/// Returns how many columns a text takes.
pub(crate) fn columns(text: &str) -> usize {
    text.chars()
        .map(|character| character.width().unwrap_or(1))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_markup() {
        assert_eq!(
            markup("<script a='b' c=\"d\">&\n\t\u{0}\u{1b}\u{202e}é"),
            "&lt;script a=&#39;b&#39; c=&quot;d&quot;&gt;&amp;\n\t\u{fffd}\u{fffd}\u{fffd}é"
        );
    }

    #[test]
    fn texts_are_cut_by_columns() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("a bcd", 3), "a…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(one_line(" a \n\t b "), "a b");
    }
}

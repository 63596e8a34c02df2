//! Heredoc words: `<<EOF`, `<<-EOF`, `3<<"EOF"`.

use std::collections::BTreeMap;

use crate::expand::{ExpandError, ExpandReason, Expander};

/// What the word that asks for a heredoc says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeredocHead {
    /// The line that ends it, quotes taken off.
    pub name: String,
    /// The number before `<<`, 0 if there is none.
    pub fd: u64,
    /// The name was not quoted.
    pub expand: bool,
    /// It was `<<-`.
    pub chomp: bool,
}

/// Returns what a word says if it asks for a heredoc.
pub fn parse_heredoc_word(word: &str) -> Option<HeredocHead> {
    head(word).ok().flatten()
}

/// Returns the text with the tabs at the begin of each line taken off.
pub fn chomp_tabs(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| line.trim_start_matches('\t'))
        .collect()
}

/// Returns the heredocs a line asks for, in order.
///
/// A line that is not good shell has none; a heredoc word that is not is an error.
pub(crate) fn heads(line: &str) -> Result<Vec<HeredocHead>, String> {
    let lexer = Expander::new('\\').raw_quotes().raw_escapes().keep_unset();
    let words = lexer.words(line, &BTreeMap::new()).unwrap_or_default();
    words
        .iter()
        .filter_map(|word| head(word).transpose())
        .collect()
}

fn head(word: &str) -> Result<Option<HeredocHead>, String> {
    let digits = word.len() - word.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = word.split_at(digits);
    let Some(rest) = rest.strip_prefix("<<") else {
        return Ok(None);
    };
    let chomp = rest.starts_with('-');
    let rest = rest.strip_prefix('-').unwrap_or(rest);
    let rest = rest.trim_start_matches(['\t', '\n', '\x0c', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let lex = |lexer: Expander| {
        lexer
            .keep_unset()
            .words(rest, &BTreeMap::new())
            .map_err(|error| message(&error))
    };
    // What has quotes in one reading only was quoted.
    let plain = lex(Expander::new('\\'))?;
    let [name] = plain.as_slice() else {
        return Ok(None);
    };
    let raw = lex(Expander::new('\\').raw_quotes())?;
    let [raw] = raw.as_slice() else {
        return Err(format!(
            "internal lexing of heredoc produced inconsistent results: {rest}"
        ));
    };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    let fd = if number.is_empty() {
        0
    } else {
        number.parse().unwrap_or(u64::MAX)
    };
    Ok(Some(HeredocHead {
        expand: quotes(name) == quotes(raw),
        name: name.clone(),
        fd,
        chomp,
    }))
}

/// Returns an expansion error in the words of the reference.
pub(crate) fn message(error: &ExpandError) -> String {
    let reason = match &error.reason {
        ExpandReason::Pattern { source, .. } => format!("{}: {source}", error.reason),
        // The end of the text stands as a character that is none.
        ExpandReason::Modifier { modifier } if matches!(modifier.as_str(), "" | ":") => {
            format!("unsupported modifier ({modifier}\u{fffd}) in substitution")
        }
        reason => reason.to_string(),
    };
    format!(
        "failed to process {}: {reason}",
        crate::quote::quote(&error.word)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heredoc_words_are_told_from_others() {
        let check = |word: &str, expect: &str| {
            let found = match parse_heredoc_word(word) {
                None => "none".to_owned(),
                Some(HeredocHead {
                    name,
                    fd,
                    expand,
                    chomp,
                }) => {
                    format!(
                        "{fd} {name}{}{}",
                        if expand { " expand" } else { "" },
                        if chomp { " chomp" } else { "" }
                    )
                }
            };
            assert_eq!(found, expect, "{word}");
        };
        check("<<EOF", "0 EOF expand");
        check("<<-EOF", "0 EOF expand chomp");
        check("3<<EOF", "3 EOF expand");
        check("<<'EOF'", "0 EOF");
        check("<<\"EO\"F", "0 EOF");
        check("<<- EOF", "0 EOF expand chomp");
        check("<<", "none");
        check("<<<EOF", "none");
        check("a<<EOF", "none");
        check("<EOF", "none");
        check("<<$EOF", "0 $EOF expand");
        check("<<'EOF", "none");
        check(
            "99999999999999999999<<EOF",
            "18446744073709551615 EOF expand",
        );
    }

    #[test]
    fn leading_tabs_are_taken_off_every_line() {
        assert_eq!(chomp_tabs("\t\ta\n\t b\n\n\tc\td"), "a\n b\n\nc\td");
    }
}

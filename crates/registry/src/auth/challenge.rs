//! The header `WWW-Authenticate` (RFC 9110, 11.6.1).

use std::collections::BTreeMap;

/// One way to log in that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case.
    pub(super) scheme: String,
    /// Names in lower case.
    pub(super) parameters: BTreeMap<String, String>,
}

/// Reads the challenges in one header; what makes no sense ends the reading.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start_matches(is_separator);
    while !rest.is_empty() {
        let word = token(rest);
        if word.is_empty() {
            break;
        }
        rest = &rest[word.len()..];
        let after = rest.trim_start();
        match after.strip_prefix('=') {
            // `name = value`, a parameter of the challenge before it. `token68` padding needs no care: it is not used.
            Some(value) => {
                let Some((value, remaining)) = parameter_value(value.trim_start()) else {
                    break;
                };
                rest = remaining;
                if let Some(challenge) = challenges.last_mut() {
                    challenge
                        .parameters
                        .entry(word.to_ascii_lowercase())
                        .or_insert(value);
                }
            }
            None => challenges.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: BTreeMap::new(),
            }),
        }
        rest = rest.trim_start_matches(is_separator);
    }
    challenges
}

fn is_separator(character: char) -> bool {
    character == ',' || character.is_ascii_whitespace()
}

fn token(text: &str) -> &str {
    let end = text.find(|character: char| {
        !(character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(character))
    });
    &text[..end.unwrap_or(text.len())]
}

fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(is_separator).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => value.push(characters.next()?.1),
            character => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, expect: &str) {
        let challenges = parse(header);
        let show = |challenge: &Challenge| {
            let parameters = challenge
                .parameters
                .iter()
                .map(|(name, value)| format!(" {name}=<{value}>"));
            format!("{}{}", challenge.scheme, parameters.collect::<String>())
        };
        assert_eq!(
            challenges.iter().map(show).collect::<Vec<_>>().join(" | "),
            expect,
            "{header}"
        );
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        check(
            r#"Bearer realm="https://a.example/token",service="r",scope="repository:a/b:pull,push""#,
            "bearer realm=<https://a.example/token> scope=<repository:a/b:pull,push> service=<r>",
        );
        check(
            r#"Basic realm="x, \"y\"" , BEARER Realm=https://t/u, error="invalid_token""#,
            r#"basic realm=<x, "y"> | bearer error=<invalid_token> realm=<https://t/u>"#,
        );
        check(
            "Negotiate, Basic realm = \"r\"",
            "negotiate | basic realm=<r>",
        );
        check("Basic", "basic");
        check("", "");
    }

    #[test]
    fn nonsense_ends_the_reading() {
        check(r#"Bearer realm="open"#, "bearer");
        check("Bearer realm=\"a\\", "bearer");
        check("\u{7f}\u{e9}", "");
        check("=,=,=", "");
        check("Basic \"quoted\"", "basic");
    }
}

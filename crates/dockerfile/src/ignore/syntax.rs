//! Which patterns are well formed, by the rules of Go's `filepath.Match`.

/// Whether the pattern is well formed: brackets closed and not empty, nothing escaped at the end.
pub(super) fn is_valid(pattern: &str) -> bool {
    let mut rest = pattern;
    while !rest.is_empty() {
        let chunk;
        (chunk, rest) = first_chunk(rest.trim_start_matches('*'));
        if !is_valid_chunk(chunk) {
            return false;
        }
    }
    true
}

/// Splits at the next star outside brackets.
fn first_chunk(pattern: &str) -> (&str, &str) {
    let mut in_brackets = false;
    let mut characters = pattern.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            '*' if !in_brackets => return pattern.split_at(index),
            _ => {}
        }
    }
    (pattern, "")
}

fn is_valid_chunk(chunk: &str) -> bool {
    let mut characters = chunk.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' if characters.next().is_none() => return false,
            '[' => match after_brackets(characters.as_str()) {
                Some(rest) => characters = rest.chars(),
                None => return false,
            },
            _ => {}
        }
    }
    true
}

/// Returns what follows a bracket expression that is well formed, given from after its opening bracket.
fn after_brackets(text: &str) -> Option<&str> {
    let mut rest = text.strip_prefix('^').unwrap_or(text);
    rest = after_bracket_character(rest)?;
    loop {
        if let Some(end) = rest.strip_prefix('-') {
            rest = after_bracket_character(end)?;
        }
        if let Some(rest) = rest.strip_prefix(']') {
            return Some(rest);
        }
        rest = after_bracket_character(rest)?;
    }
}

/// Returns what follows one character inside brackets; there must be something.
fn after_bracket_character(text: &str) -> Option<&str> {
    if text.starts_with(['-', ']']) {
        return None;
    }
    let mut characters = text.strip_prefix('\\').unwrap_or(text).chars();
    characters.next()?;
    let rest = characters.as_str();
    (!rest.is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_and_escapes_must_be_complete() {
        for pattern in [
            "", "*", "a]", "[a]", "[^a-c]", "[\\]]", "[\\-x]", "a\\*", "[z-a]", "[[]", "[a*]",
            "[^^]",
        ] {
            assert!(is_valid(pattern), "{pattern}");
        }
        for pattern in [
            "[", "[]", "[^", "[^]", "[]a]", "[-]", "[a-]", "[-x]", "[a", "[a-", "a\\", "[\\", "*[",
            "[x-]",
        ] {
            assert!(!is_valid(pattern), "{pattern}");
        }
    }
}

//! Which patterns are refused when they are read, by the rules of Go's `filepath.Match`.

/// Whether the pattern is well formed as far as matching it against `.` would look: up to the first part between stars
/// that does not match. The reference checks patterns by that.
pub(super) fn is_valid(pattern: &str) -> bool {
    let (mut rest, mut text) = (pattern, ".");
    'parts: while !rest.is_empty() {
        let (starred, part, after) = first_part(rest);
        rest = after;
        if starred && part.is_empty() {
            return true;
        }
        let Ok(matched) = strip_part(part, text) else {
            return false;
        };
        if let Some(left) = matched
            && (left.is_empty() || !rest.is_empty())
        {
            text = left;
            continue;
        }
        if starred {
            for skipped in 1..=text.len() {
                match strip_part(part, &text[skipped..]) {
                    Ok(Some(left)) if rest.is_empty() && !left.is_empty() => {}
                    Ok(Some(left)) => {
                        text = left;
                        continue 'parts;
                    }
                    Ok(None) => {}
                    Err(Malformed) => return false,
                }
            }
        }
        return true;
    }
    true
}

struct Malformed;

/// Splits off stars and what follows them, up to the next star outside brackets.
fn first_part(pattern: &str) -> (bool, &str, &str) {
    let unstarred = pattern.trim_start_matches('*');
    let starred = unstarred.len() < pattern.len();
    let mut in_brackets = false;
    let mut characters = unstarred.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            '*' if !in_brackets => return (starred, &unstarred[..index], &unstarred[index..]),
            _ => {}
        }
    }
    (starred, unstarred, "")
}

/// Matches a part without stars at the start of `text` and returns what follows. The part is read to its end even when
/// it does not match.
fn strip_part<'a>(part: &str, text: &'a str) -> Result<Option<&'a str>, Malformed> {
    let mut wanted = part.chars();
    let mut found = text.chars();
    let mut matches = true;
    while let Some(character) = wanted.next() {
        let next = found.next();
        matches &= match character {
            '[' => {
                let (rest, contains) = brackets(wanted.as_str(), next)?;
                wanted = rest.chars();
                contains
            }
            '?' => next.is_some_and(|next| next != '/'),
            '\\' => next == Some(wanted.next().ok_or(Malformed)?),
            _ => next == Some(character),
        };
    }
    Ok(matches.then_some(found.as_str()))
}

/// Reads a bracket expression from after its opening bracket; returns what follows it, and whether it has `character`.
fn brackets(text: &str, character: Option<char>) -> Result<(&str, bool), Malformed> {
    let (negated, mut rest) = match text.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut contains = false;
    loop {
        let low;
        (low, rest) = bracket_character(rest)?;
        let mut high = low;
        if let Some(end) = rest.strip_prefix('-') {
            (high, rest) = bracket_character(end)?;
        }
        contains |= character.is_some_and(|character| (low..=high).contains(&character));
        if let Some(rest) = rest.strip_prefix(']') {
            return Ok((rest, character.is_some() && contains != negated));
        }
    }
}

/// Reads one character inside brackets; something must follow it.
fn bracket_character(text: &str) -> Result<(char, &str), Malformed> {
    if text.starts_with(['-', ']']) {
        return Err(Malformed);
    }
    let mut characters = text.strip_prefix('\\').unwrap_or(text).chars();
    let character = characters.next().ok_or(Malformed)?;
    let rest = characters.as_str();
    if rest.is_empty() {
        Err(Malformed)
    } else {
        Ok((character, rest))
    }
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

    #[test]
    fn what_stands_after_a_part_that_does_not_match_is_not_looked_at() {
        for pattern in ["a*[", "*a*[", "[^.]*[", "?b*["] {
            assert!(is_valid(pattern), "{pattern}");
        }
        for pattern in [".*[", "?*[", "[^a]*[", "*.*[", "a["] {
            assert!(!is_valid(pattern), "{pattern}");
        }
    }
}

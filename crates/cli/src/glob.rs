//! Go's `path.Match`, by which Docker's reference filters match.

/// Returns whether the whole of `text` matches; `*` and `?` do not match `/`.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last star, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p + 1, t));
            p += 1;
            continue;
        }
        if t == text.len() {
            return p == pattern.len();
        }
        if let Some(next) = one(&pattern, p, text[t]) {
            (p, t) = (next, t + 1);
            continue;
        }
        match star {
            Some((after, taken)) if text[taken] != '/' => {
                star = Some((after, taken + 1));
                (p, t) = (after, taken + 1);
            }
            _ => return false,
        }
    }
}

/// Returns where the pattern goes on if its element at `p` matches this one character.
fn one(pattern: &[char], p: usize, character: char) -> Option<usize> {
    match *pattern.get(p)? {
        '?' => (character != '/').then_some(p + 1),
        '\\' => (*pattern.get(p + 1)? == character).then_some(p + 2),
        '[' => class(pattern, p + 1, character),
        literal => (literal == character).then_some(p + 1),
    }
}

fn class(pattern: &[char], mut p: usize, character: char) -> Option<usize> {
    let negated = pattern.get(p) == Some(&'^');
    if negated {
        p += 1;
    }
    let mut found = false;
    let mut first = true;
    loop {
        let mut low = *pattern.get(p)?;
        if low == ']' && !first {
            break;
        }
        first = false;
        if low == '\\' {
            p += 1;
            low = *pattern.get(p)?;
        }
        p += 1;
        let mut high = low;
        if pattern.get(p) == Some(&'-') {
            high = *pattern.get(p + 1)?;
            p += 2;
        }
        found |= (low..=high).contains(&character);
    }
    (found != negated).then_some(p + 1)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_stop_at_slashes() {
        let check = |pattern, text, expected| {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}")
        };
        check("*realworld-app", "multi-realworld-app", true);
        check("*realworld-app", "realworld-app", true);
        check("*realworld-app", "me/realworld-app", false);
        check("*/*", "me/app", true);
        check("b[a-c]?", "bax", true);
        check("b[^a-c]?", "bax", false);
        check("a*b*c", "axxbyyc", true);
        check("a*b*c", "axxbyy", false);
        check("", "", true);
        check("[", "[", false);
    }
}

//! "Did you mean": the known word nearest to one that is not known.

/// The distance from which words count as strangers.
const TOO_FAR: usize = 3;

/// The length in bytes from which words are not compared.
const LONGEST: usize = 256;

/// Returns the option nearest to `word`, if one is near; none if `word` is itself an option.
///
/// Among equally near ones the one that begins like the word wins, then the first.
pub fn nearest<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best: Option<(usize, bool, &str)> = None;
    for option in options {
        if option == word {
            return None;
        }
        let limit = best
            .map_or(TOO_FAR, |(distance, _, _)| distance + 1)
            .min(TOO_FAR);
        let Some(distance) = distance_below(word, option, limit) else {
            continue;
        };
        let begins_alike = option.chars().next() == word.chars().next();
        if best.is_none_or(|(least, alike, _)| distance < least || (begins_alike && !alike)) {
            best = Some((distance, begins_alike, option));
        }
    }
    best.map(|(_, _, option)| option)
}

/// Returns the Levenshtein distance of two words if it is below `limit`.
///
/// Words longer than any name someone types are not compared: the time is quadratic in their length.
fn distance_below(a: &str, b: &str, limit: usize) -> Option<usize> {
    if a.len() > LONGEST || b.len() > LONGEST {
        return None;
    }
    let b: Vec<char> = b.chars().collect();
    if a.chars().count().abs_diff(b.len()) >= limit {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for j in 1..=b.len() {
            let cost = diagonal + usize::from(ca != b[j - 1]);
            diagonal = row[j];
            row[j] = cost.min(row[j] + 1).min(row[j - 1] + 1);
        }
        if row.iter().all(|distance| *distance >= limit) {
            return None;
        }
    }
    row.last().copied().filter(|distance| *distance < limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_near_words_have_a_distance() {
        let check = |a, b, expect| assert_eq!(distance_below(a, b, 3), expect, "{a} {b}");
        check("", "", Some(0));
        check("mont", "mount", Some(1));
        check("typ", "type", Some(1));
        check("tmp", "tmpfs", Some(2));
        check("FNTRYPOINT", "ENTRYPOINT", Some(1));
        check("abc", "xyz", None);
        check("é", "e", Some(1));
        check("ab", "ba", Some(2));
        check("a", "abcd", None);
    }

    #[test]
    fn the_nearest_word_is_suggested() {
        let options = ["mount", "network", "security", "device"];
        assert_eq!(nearest("mont", options), Some("mount"));
        assert_eq!(nearest("user", options), None);
        assert_eq!(nearest("mount", options), None);
        assert_eq!(nearest("rm", ["arg", "cmd", "run"]), Some("run"));
    }
}

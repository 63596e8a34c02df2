//! Wildcards in source paths.

use std::sync::Arc;

use crate::resolve::Follow;
use crate::tree::{Dir, Tree};
use crate::{Error, Result, RootPath};

/// Returns whether a path holds a wildcard that no backslash takes away.
pub fn has_wildcards(path: &[u8]) -> bool {
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    false
}

/// Splits a path before its first component with a wildcard.
pub(crate) fn split(path: &RootPath) -> (RootPath, Vec<Vec<u8>>) {
    let mut plain = RootPath::root();
    let mut pattern: Vec<Vec<u8>> = Vec::new();
    for component in path.components() {
        if pattern.is_empty() && !has_wildcards(component) {
            plain = plain.child(component);
        } else {
            pattern.push(component.to_vec());
        }
    }
    (plain, pattern)
}

/// Returns the paths that a pattern matches, sorted; symlinks are followed in its part without wildcards only.
///
/// A path without wildcards stands for itself, whether something is there or not.
pub(crate) fn expand(tree: &Tree, path: &RootPath, follow: Follow) -> Result<Vec<RootPath>> {
    let (plain, pattern) = split(path);
    if pattern.is_empty() {
        return Ok(vec![plain]);
    }
    let base = tree.resolve(&plain, follow)?;
    if !base.exists() {
        return Err(Error::NotFound {
            path: plain.to_string(),
        });
    }
    let mut found = Vec::new();
    if base.is_dir() {
        let start = RootPath::new(base.path())?;
        descend(&base.dir, &start, &pattern, &mut found)?;
    }
    Ok(found)
}

fn descend(
    dir: &Arc<Dir>,
    path: &RootPath,
    pattern: &[Vec<u8>],
    found: &mut Vec<RootPath>,
) -> Result<()> {
    let Some((first, rest)) = pattern.split_first() else {
        return Ok(());
    };
    for listed in dir.list()? {
        let name = listed.name.as_bytes();
        if !matches(first, name) {
            continue;
        }
        if rest.is_empty() {
            found.push(path.child(name));
            continue;
        }
        let entry = dir.stat_listed(&listed)?;
        if entry.meta.is_dir() {
            descend(
                &dir.open_dir(&listed.name, &entry)?,
                &path.child(name),
                rest,
                found,
            )?;
        }
    }
    Ok(())
}

/// Matches one file name by the rules of Go's `path.Match`; a malformed pattern matches nothing.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let Some(tokens) = parse(pattern) else {
        return false;
    };
    let name = runes(name);
    // The usual two pointers: on a mismatch the last star takes one more.
    let (mut at, mut token, mut star) = (0, 0, None);
    while at < name.len() || token < tokens.len() {
        match tokens.get(token) {
            Some(Token::Star) => {
                star = Some((token, at));
                token += 1;
                continue;
            }
            Some(one) if at < name.len() && one.takes(name[at]) => {
                (token, at) = (token + 1, at + 1);
                continue;
            }
            _ => {}
        }
        match star {
            Some((star_token, star_at)) if star_at < name.len() => {
                star = Some((star_token, star_at + 1));
                (token, at) = (star_token + 1, star_at + 1);
            }
            _ => return false,
        }
    }
    true
}

enum Token {
    Star,
    Any,
    One(u32),
    Class {
        negated: bool,
        ranges: Vec<(u32, u32)>,
    },
}

impl Token {
    fn takes(&self, rune: u32) -> bool {
        match self {
            Token::Star => false,
            Token::Any => true,
            Token::One(one) => *one == rune,
            Token::Class { negated, ranges } => {
                ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&rune))
                    != *negated
            }
        }
    }
}

fn parse(pattern: &[u8]) -> Option<Vec<Token>> {
    let runes = runes(pattern);
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(rune) = runes.get(at) {
        at += 1;
        tokens.push(match char::from_u32(*rune) {
            Some('*') => Token::Star,
            Some('?') => Token::Any,
            Some('\\') => {
                at += 1;
                Token::One(*runes.get(at - 1)?)
            }
            Some('[') => {
                let negated = runes.get(at) == Some(&u32::from('^'));
                at += usize::from(negated);
                let mut ranges = Vec::new();
                while ranges.is_empty() || *runes.get(at)? != u32::from(']') {
                    let low = class_rune(&runes, &mut at)?;
                    let mut high = low;
                    if runes.get(at) == Some(&u32::from('-')) {
                        at += 1;
                        high = class_rune(&runes, &mut at)?;
                    }
                    ranges.push((low, high));
                }
                at += 1;
                Token::Class { negated, ranges }
            }
            _ => Token::One(*rune),
        });
    }
    Some(tokens)
}

/// Reads one character of a class.
fn class_rune(runes: &[u32], at: &mut usize) -> Option<u32> {
    let rune = *runes.get(*at)?;
    *at += 1;
    match char::from_u32(rune) {
        Some('-' | ']') => None,
        Some('\\') => {
            *at += 1;
            runes.get(*at - 1).copied()
        }
        _ => Some(rune),
    }
}

/// Decodes UTF-8; a byte that is not part of it becomes U+FFFD, as in Go.
fn runes(bytes: &[u8]) -> Vec<u32> {
    let mut runes = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        runes.extend(chunk.valid().chars().map(u32::from));
        runes.extend(chunk.invalid().iter().map(|_| 0xfffd));
    }
    runes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        for name in yes {
            assert!(
                matches(pattern.as_bytes(), name.as_bytes()),
                "{pattern} {name}"
            );
        }
        for name in no {
            assert!(
                !matches(pattern.as_bytes(), name.as_bytes()),
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn names_match_by_gos_rules() {
        check("*", &["", "a", ".hidden"], &[]);
        check("a*", &["a", "ab"], &["ba"]);
        check("*.txt", &["a.txt", ".txt", "a.txt.txt"], &["a.txt~", "txt"]);
        check("a*b*c", &["abc", "axxbyyc", "abcbc"], &["abcd", "acb"]);
        check("?", &["a", "é"], &["", "ab"]);
        check("[ab]c", &["ac", "bc"], &["cc", "c"]);
        check("[^ab]c", &["cc"], &["ac"]);
        check("[a-c]", &["b"], &["d", "-"]);
        check("\\*", &["*"], &["a"]);
        check("[\\]]", &["]"], &["\\"]);
        check("[]a]", &[], &["]", "a"]);
        check("[-x]", &[], &["-", "x"]);
        check("[", &[], &["["]);
        check("a[", &[], &["a", "a["]);
        check("a\\", &[], &["a", "a\\"]);
        check("*a*a*a*a*a*a*b", &[], &[&"a".repeat(200)]);
    }

    #[test]
    fn a_path_is_split_at_its_first_wildcard() {
        let (plain, pattern) = split(&RootPath::new("/a/b/c*/d").unwrap());
        assert_eq!(plain.to_string(), "/a/b");
        assert_eq!(pattern, [b"c*".to_vec(), b"d".to_vec()]);
        assert!(!has_wildcards(b"a\\*b"));
    }
}

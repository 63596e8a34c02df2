//! Two texts as a patch.

use std::collections::HashMap;
use std::fmt::Write;

/// Lines that stand around a change.
const AROUND: usize = 3;
/// How many lines further on both texts are looked through for where they meet again.
const AHEAD: usize = 64;

/// Lines that stand in the old text (from, to) and in its place in the new one (from, to).
type Change = [usize; 4];

/// Returns what turns one text into another, as `diff -u` writes it; nothing where they are equal.
///
/// The time is linear in their lengths. The change may be told longer than it must be, where texts differ in many lines on
/// end.
pub(crate) fn unified(old: &str, new: &str, names: (&str, &str)) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (lines(old), lines(new));
    let changes = changes(&old, &new);
    let mut patch = String::new();
    let mut rest = &changes[..];
    while let [first, ..] = rest {
        if patch.is_empty() {
            let _ = write!(patch, "--- {}\n+++ {}\n", names.0, names.1);
        }
        // Changes whose surroundings touch stand together.
        let near = |pair: &[Change]| pair[1][0] - pair[0][1] <= 2 * AROUND;
        let count = 1 + rest.windows(2).take_while(|pair| near(pair)).count();
        let (group, others) = rest.split_at(count);
        hunk(&mut patch, &old, &new, first, group);
        rest = others;
    }
    patch
}

fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

fn changes(old: &[&str], new: &[&str]) -> Vec<Change> {
    // Numbers are quicker to compare than lines.
    let mut numbers = HashMap::new();
    let mut number = |line| {
        let next = numbers.len();
        *numbers.entry(line).or_insert(next)
    };
    let old: Vec<usize> = old.iter().copied().map(&mut number).collect();
    let new: Vec<usize> = new.iter().copied().map(&mut number).collect();
    let mut changes: Vec<Change> = Vec::new();
    let (mut a, mut b) = (0, 0);
    while a < old.len() || b < new.len() {
        if a < old.len() && b < new.len() && old[a] == new[b] {
            (a, b) = (a + 1, b + 1);
            continue;
        }
        let (skip_a, skip_b) = meeting(&old[a..], &new[b..]);
        match changes.last_mut() {
            Some(last) if last[1] == a && last[3] == b => {
                (last[1], last[3]) = (a + skip_a, b + skip_b)
            }
            _ => changes.push([a, a + skip_a, b, b + skip_b]),
        }
        (a, b) = (a + skip_a, b + skip_b);
    }
    changes
}

/// Returns how many lines of each are to be passed over until they are equal.
fn meeting(old: &[usize], new: &[usize]) -> (usize, usize) {
    let (most_old, most_new) = (old.len().min(AHEAD), new.len().min(AHEAD));
    for both in 1..=most_old + most_new {
        // A line in the place of another is likelier than one that is new.
        let from_middle = |skip: &usize| (2 * skip).abs_diff(both);
        let mut skips: Vec<usize> = (both.saturating_sub(most_new)..=both.min(most_old)).collect();
        skips.sort_by_key(from_middle);
        for skip in skips {
            let (a, b) = (old.get(skip), new.get(both - skip));
            if a == b && (a.is_some() || (skip == old.len() && both - skip == new.len())) {
                return (skip, both - skip);
            }
        }
    }
    (most_old, most_new)
}

fn hunk(patch: &mut String, old: &[&str], new: &[&str], first: &Change, group: &[Change]) {
    let last = group.last().unwrap_or(first);
    let before = first[0].min(AROUND);
    let after = (old.len() - last[1]).min(AROUND);
    let range = |from: usize, to: usize| match to - from {
        0 => format!("{from},0"),
        1 => format!("{}", from + 1),
        count => format!("{},{count}", from + 1),
    };
    let _ = writeln!(
        patch,
        "@@ -{} +{} @@",
        range(first[0] - before, last[1] + after),
        range(first[2] - before, last[3] + after)
    );
    let mut at = first[0] - before;
    for [old_from, old_to, new_from, new_to] in group.iter().copied() {
        put(patch, ' ', &old[at..old_from]);
        put(patch, '-', &old[old_from..old_to]);
        put(patch, '+', &new[new_from..new_to]);
        at = old_to;
    }
    put(patch, ' ', &old[at..at + after]);
}

fn put(patch: &mut String, sign: char, lines: &[&str]) {
    for line in lines {
        let _ = write!(patch, "{sign}{line}");
        if !line.ends_with('\n') {
            patch.push_str("\n\\ No newline at end of file\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old: &str, new: &str, expect: &str) {
        assert_eq!(unified(old, new, ("a/f", "b/f")), expect, "{old:?} {new:?}");
    }

    #[test]
    fn a_patch_is_as_diff_writes_it() {
        check("", "", "");
        check("a\nb\n", "a\nb\n", "");
        check(
            "a\nb\nc\n",
            "a\nB\nc\n",
            "--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n",
        );
        check("a\n", "a\nb\n", "--- a/f\n+++ b/f\n@@ -1 +1,2 @@\n a\n+b\n");
        check("a\nb\n", "b\n", "--- a/f\n+++ b/f\n@@ -1,2 +1 @@\n-a\n b\n");
        check("", "a\n", "--- a/f\n+++ b/f\n@@ -0,0 +1 @@\n+a\n");
        check(
            "a",
            "a\n",
            "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+a\n",
        );
    }

    #[test]
    fn changes_far_from_each_other_stand_apart() {
        let text = |changed: &[usize]| -> String {
            let line = |number: usize| match changed.contains(&number) {
                true => format!("changed {number}\n"),
                false => format!("{number}\n"),
            };
            (0..30).map(line).collect()
        };
        let patch = unified(&text(&[]), &text(&[3, 9, 20]), ("a/f", "b/f"));
        let heads: Vec<&str> = patch
            .lines()
            .filter(|line| line.starts_with("@@"))
            .collect();
        assert_eq!(heads, ["@@ -1,13 +1,13 @@", "@@ -18,7 +18,7 @@"]);
    }

    #[test]
    fn a_patch_leads_from_one_text_to_the_other() {
        // Texts of few different lines, which meet in many ways.
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(11);
            (state >> 33) % below
        };
        for _ in 0..500 {
            let mut text = || -> Vec<String> {
                let count = random(200);
                (0..count).map(|_| format!("{}\n", random(6))).collect()
            };
            let (old, new) = (text(), text());
            let old: Vec<&str> = old.iter().map(String::as_str).collect();
            let new: Vec<&str> = new.iter().map(String::as_str).collect();
            let mut made: Vec<&str> = Vec::new();
            let mut at = 0;
            for [old_from, old_to, new_from, new_to] in changes(&old, &new) {
                made.extend(&old[at..old_from]);
                assert_eq!(made.len(), new_from);
                made.extend(&new[new_from..new_to]);
                at = old_to;
            }
            made.extend(&old[at..]);
            assert_eq!(made, new);
        }
    }

    #[test]
    fn texts_without_a_common_line_are_one_change() {
        let old: String = (0..1000).map(|number| format!("old {number}\n")).collect();
        let new: String = (0..900).map(|number| format!("new {number}\n")).collect();
        let patch = unified(&old, &new, ("a/f", "b/f"));
        assert!(patch.contains("\n@@ -1,1000 +1,900 @@\n"));
    }
}

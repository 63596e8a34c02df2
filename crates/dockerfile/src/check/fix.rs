//! Mending what can be mended without thought.

use crate::{Diagnostic, Edit, KeyValue, Span, Word};

use super::{CheckOptions, check};

/// How often a mended file is checked again: mending one finding can bring up another.
const MOST_ROUNDS: usize = 5;

/// A file after mending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    pub text: String,
    /// What was mended, in the order it was; the places are those of the text it was found in.
    pub mended: Vec<Diagnostic>,
}

/// Mends the findings that know how, until there are none left.
///
/// A file that is not UTF-8 or does not parse is left as it is, as is one that would not parse any more.
pub fn fix(source: &[u8], options: &CheckOptions<'_>) -> Option<Fixed> {
    let mut fixed = Fixed {
        text: String::from_utf8(source.to_vec()).ok()?,
        mended: Vec::new(),
    };
    if !is_sound(&fixed.text) {
        return None;
    }
    for _ in 0..MOST_ROUNDS {
        let report = check(fixed.text.as_bytes(), options);
        let (text, mended) = apply_edits(&fixed.text, &report.warnings);
        if mended.is_empty() || !is_sound(&text) {
            break;
        }
        fixed.text = text;
        fixed.mended.extend(mended.into_iter().cloned());
    }
    Some(fixed)
}

fn is_sound(text: &str) -> bool {
    crate::parse(text.as_bytes())
        .and_then(|ast| ast.stages())
        .is_ok()
}

/// Makes the edits of the findings; returns the text and the findings that were mended.
///
/// Of two findings that want the same bytes the first is mended.
pub fn apply_edits<'a>(source: &str, findings: &'a [Diagnostic]) -> (String, Vec<&'a Diagnostic>) {
    let mut chosen: Vec<&Edit> = Vec::new();
    let mut taken = std::collections::BTreeMap::new();
    let mut mended = Vec::new();
    for finding in findings.iter().filter(|finding| !finding.edits.is_empty()) {
        let is_free = |edit: &Edit| {
            let Span { start, end } = edit.span;
            let before = taken
                .range(..=start)
                .next_back()
                .is_none_or(|(_, taken_end)| *taken_end <= start);
            let behind = taken
                .range(start..)
                .next()
                .is_none_or(|(taken_start, _)| *taken_start >= end.max(start + 1));
            before && behind && source.get(start..end).is_some()
        };
        if !finding.edits.iter().all(is_free) {
            continue;
        }
        mended.push(finding);
        for edit in &finding.edits {
            taken.insert(edit.span.start, edit.span.end);
            chosen.push(edit);
        }
    }
    chosen.sort_by_key(|edit| edit.span);
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    for edit in chosen {
        let Some(kept) = source.get(at..edit.span.start) else {
            continue;
        };
        out.push_str(kept);
        out.push_str(&edit.text);
        at = edit.span.end;
    }
    out.push_str(source.get(at..).unwrap_or_default());
    (out, mended)
}

/// Returns the edits that turn `KEY VALUE` into `KEY=VALUE` of the same meaning; none where that takes thought.
pub(super) fn with_equals_sign(pair: &KeyValue, escape: char) -> Vec<Edit> {
    let KeyValue { key, value, .. } = pair;
    let is_special = |c: char| c == '\'' || c == '"' || c == escape;
    let gap = Span::new(key.span.end, value.span.start);
    if key.text.contains(is_special) || value.text.contains(is_special) {
        return Vec::new();
    }
    if !value.text.contains(char::is_whitespace) {
        return vec![Edit::new(gap, "=")];
    }
    // All white space of the value ends up inside of the quotes, so the words stay as they are.
    vec![
        Edit::new(gap, "=\""),
        Edit::new(Span::new(value.span.end, value.span.end), "\""),
    ]
}

/// Returns the edit that turns `MAINTAINER NAME` into a label.
pub(super) fn maintainer_as_label(keyword: &Word, name: &Word, escape: char) -> Edit {
    let label = if keyword.text == keyword.text.to_lowercase() {
        "label"
    } else {
        "LABEL"
    };
    // A name is taken as it is, but a label is expanded.
    let mut value = String::new();
    for c in name.text.chars() {
        if c == '"' || c == '$' || c == escape {
            value.push(escape);
        }
        value.push(c);
    }
    Edit::new(
        keyword.span.to(name.span),
        format!("{label} org.opencontainers.image.authors=\"{value}\""),
    )
}

/// Returns the edit that takes `--platform=VALUE` and the blank behind it away, if it is written plainly.
pub(super) fn without_platform(value: &Word) -> Option<Edit> {
    let Span { start, end } = value.span;
    let flag = start.checked_sub("--platform=".len())?;
    (end - start == value.text.len()).then(|| Edit::new(Span::new(flag, end + 1), ""))
}

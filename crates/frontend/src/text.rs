//! Texts in Go's forms, which stand in image histories.

use dockerfile::quote;

/// Returns a list as Go's `%v` prints it: `[a b]`.
pub(crate) fn list<T: AsRef<str>>(items: &[T]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    format!("[{}]", items.join(" "))
}

/// Returns a list as Go's `%q` prints it: `["a" "b"]`.
pub(crate) fn quoted_list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
    format!("[{}]", items.join(" "))
}

/// Returns a duration as Go prints it: `1m30s`, `1.5s`, `250ms`.
pub(crate) fn duration(nanoseconds: i64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000, "ms"), (1_000, "µs"), (1, "ns")];
    if nanoseconds == 0 {
        return "0s".to_owned();
    }
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let amount = nanoseconds.unsigned_abs();
    if amount < 1_000_000_000 {
        let fitting = UNITS.iter().find(|(unit, _)| amount >= *unit);
        let (unit, name) = fitting.copied().unwrap_or((1, "ns"));
        return format!("{sign}{}{name}", decimal(amount, unit));
    }
    let seconds = decimal(amount % 60_000_000_000, 1_000_000_000);
    let minutes = amount / 60_000_000_000;
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

/// Returns `amount / unit` without zeros at the end; `unit` is a power of ten.
fn decimal(amount: u64, unit: u64) -> String {
    let (whole, rest) = (amount / unit, amount % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = unit.ilog10() as usize;
    let rest = format!("{rest:0digits$}");
    format!("{whole}.{}", rest.trim_end_matches('0'))
}

/// Returns the text with its first word in upper case.
pub(crate) fn uppercase_first_word(text: String) -> String {
    let first = text.split(' ').next().unwrap_or_default();
    if first
        .bytes()
        .all(|byte| byte.is_ascii() && !byte.is_ascii_lowercase())
    {
        return text;
    }
    [&first.to_uppercase(), &text[first.len()..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (nanoseconds, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_000_000_000, "1s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (1_500_000_000, "1.5s"),
            (61_000_000_001, "1m1.000000001s"),
            (-2_000_000_000, "-2s"),
        ] {
            assert_eq!(duration(nanoseconds), expected);
        }
    }
}

//! Values in the notation of Go's standard library, which the reference reads with it.

/// Why a number is refused, in Go's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NumberError {
    #[error("invalid syntax")]
    Syntax,
    #[error("value out of range")]
    Range,
}

/// Reads a boolean as `strconv.ParseBool` does.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Reads an unsigned number of 32 bits: digits alone, no sign.
pub(crate) fn parse_u32(text: &str, radix: u32) -> Result<u32, NumberError> {
    if text.is_empty() || !text.chars().all(|c| c.is_digit(radix)) {
        return Err(NumberError::Syntax);
    }
    u32::from_str_radix(text, radix).map_err(|_| NumberError::Range)
}

/// Reads a signed decimal number of 64 bits.
pub(crate) fn parse_i64(text: &str) -> Result<i64, NumberError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NumberError::Syntax);
    }
    text.parse().map_err(|_| NumberError::Range)
}

/// Reads a duration like `1m30.5s` in nanoseconds; the error is Go's.
pub(crate) fn parse_duration(text: &str) -> Result<i64, String> {
    let quoted = crate::quote::quote(text);
    let invalid = || format!("time: invalid duration {quoted}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    // One more than the largest positive value fits the negative one.
    const LIMIT: u128 = 1 << 63;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let whole = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (digits, after) = rest.split_at(whole);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(
                after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len(),
            ),
            None => ("", after),
        };
        if digits.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_length = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        let scale: u128 = match unit {
            "" => return Err(format!("time: missing unit in duration {quoted}")),
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                let unit = crate::quote::quote(unit);
                return Err(format!("time: unknown unit {unit} in duration {quoted}"));
            }
        };
        let digits = digits.trim_start_matches('0');
        if digits.len() > 20 {
            return Err(invalid());
        }
        let value: u128 = if digits.is_empty() {
            0
        } else {
            digits.parse().map_err(|_| invalid())?
        };
        total += value * scale + fraction_of(fraction, scale);
        if total > LIMIT {
            return Err(invalid());
        }
        rest = after;
    }
    match (negative, total) {
        (true, LIMIT) => Ok(i64::MIN),
        (_, LIMIT) => Err(invalid()),
        (true, total) => i64::try_from(total).map(|n| -n).map_err(|_| invalid()),
        (false, total) => i64::try_from(total).map_err(|_| invalid()),
    }
}

/// Returns the fraction given by its digits, as a number of the smallest units: with Go's floating point, which may be
/// one off.
fn fraction_of(digits: &str, scale: u128) -> u128 {
    const LARGEST: u64 = (1 << 63) - 1;
    let (mut value, mut base): (u64, f64) = (0, 1.0);
    for digit in digits.bytes() {
        if value > LARGEST / 10 {
            break;
        }
        let next = value * 10 + u64::from(digit - b'0');
        if next > LARGEST + 1 {
            break;
        }
        value = next;
        base *= 10.0;
    }
    (value as f64 * (scale as f64 / base)) as u128
}

/// Reads a size like `64m` or `1.5GiB` in bytes.
pub(crate) fn parse_ram(text: &str) -> Option<i64> {
    let last = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, suffix) = match &text[last..=last] {
        " " => (&text[..last], &text[last + 1..]),
        _ => text.split_at(last + 1),
    };
    let size: f64 = number.parse().ok().filter(|size: &f64| *size >= 0.0)?;
    let suffix = suffix.to_lowercase();
    let mut tail = suffix.chars();
    let power = match tail.next() {
        None => return Some(size as i64),
        Some('b') => return tail.as_str().is_empty().then_some(size as i64),
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some('p') => 5,
        Some(_) => return None,
    };
    matches!(tail.as_str(), "" | "b" | "ib").then(|| (size * 1024_f64.powi(power)) as i64)
}

/// Tells whether two texts are equal but for case, as `strings.EqualFold` does.
pub(crate) fn equal_fold(a: &str, b: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_lowercase().next().unwrap_or(c),
    };
    a.chars().map(fold).eq(b.chars().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_does() {
        let check = |text: &str, expect: Result<i64, &str>| {
            assert_eq!(
                parse_duration(text),
                expect.map_err(str::to_owned),
                "{text}"
            );
        };
        check("0", Ok(0));
        check("5s", Ok(5_000_000_000));
        check("1h1m1.5s", Ok(3_661_500_000_000));
        check("-1.5ms", Ok(-1_500_000));
        check(".5us", Ok(500));
        check("0.3333333333333333333333h", Ok(1_200_000_000_000));
        check("1.000000000999s", Ok(1_000_000_000));
        check("9223372036854775807ns", Ok(i64::MAX));
        check("-9223372036854775808ns", Ok(i64::MIN));
        check(
            "9223372036854775808ns",
            Err("time: invalid duration \"9223372036854775808ns\""),
        );
        check(
            "99999999999999999999999999h",
            Err("time: invalid duration \"99999999999999999999999999h\""),
        );
        check("5", Err("time: missing unit in duration \"5\""));
        check("5x", Err("time: unknown unit \"x\" in duration \"5x\""));
        check("", Err("time: invalid duration \"\""));
        check("s", Err("time: invalid duration \"s\""));
    }

    #[test]
    fn sizes_are_read_with_binary_units() {
        let check = |text: &str, expect: Option<i64>| assert_eq!(parse_ram(text), expect, "{text}");
        check("64m", Some(64 << 20));
        check("1.5GiB", Some(3 << 29));
        check("10 kb", Some(10_240));
        check("7", Some(7));
        check("7b", Some(7));
        check("7bb", None);
        check("7x", None);
        check("-1", None);
        check("m", None);
        check("", None);
        check("1é", None);
    }

    #[test]
    fn numbers_are_read_strictly() {
        assert_eq!(parse_u32("0755", 8), Ok(0o755));
        assert_eq!(parse_u32("+1", 10), Err(NumberError::Syntax));
        assert_eq!(parse_u32("99999999999", 10), Err(NumberError::Range));
        assert_eq!(parse_i64("-5"), Ok(-5));
        assert_eq!(parse_i64("5 "), Err(NumberError::Syntax));
    }
}

//! Numbers in words.

use oci::Timestamp;

/// Writes a duration: `40ms`, `8.1s`, `2m 05s`.
pub(crate) fn duration(nanoseconds: u64) -> String {
    let seconds = nanoseconds as f64 / 1e9;
    match seconds {
        ..0.9995 => format!("{:.0}ms", (seconds * 1000.0).ceil()),
        ..59.95 => format!("{seconds:.1}s"),
        ..3600.0 => format!("{}m {:02}s", seconds as u64 / 60, seconds as u64 % 60),
        _ => format!(
            "{}h {:02}m",
            seconds as u64 / 3600,
            seconds as u64 % 3600 / 60
        ),
    }
}

/// Writes a number of bytes in decimal units.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Writes a count with its noun.
pub(crate) fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}

/// Writes a time as `2026-11-21 11:10:28 UTC`.
pub(crate) fn date(time: Timestamp) -> String {
    let text = time.to_string();
    let day = text.get(..10).unwrap_or_default();
    let clock = text.get(11..19).unwrap_or_default();
    format!("{day} {clock} UTC")
}

/// Returns a step's name with the digest of its image shortened.
pub(crate) fn short_name(name: &str) -> String {
    let name = crate::escape::one_line(name);
    let Some((head, rest)) = name.split_once("@sha256:") else {
        return name;
    };
    let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
    match digits {
        64 => format!("{head}@{}{}", &rest[..8], &rest[64..]),
        _ => name,
    }
}

/// Says how many things of a list are not shown; nothing where all are.
pub(crate) fn rest(left: usize, what: &str) -> String {
    match left {
        0 => String::new(),
        left => format!(
            "<p class=\"quiet\">and {}</p>\n",
            count(left, &format!("more {what}"))
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let durations = [
            0,
            40_000_000,
            999_600_000,
            8_140_000_000,
            59_960_000_000,
            125_000_000_000,
            7_300_000_000_000,
        ];
        assert_eq!(
            durations.map(duration),
            ["0ms", "40ms", "1.0s", "8.1s", "0m 59s", "2m 05s", "2h 01m"]
        );
        let sizes = [999, 1000, 71_400_000, 999_600, 999_400, u64::MAX];
        assert_eq!(
            sizes.map(size),
            [
                "999 B", "1.00 kB", "71.4 MB", "1.00 MB", "999 kB", "18.4 EB"
            ]
        );
        assert_eq!(date(Timestamp::EPOCH), "1970-01-01 00:00:00 UTC");
        assert_eq!(
            (count(1, "step"), count(2, "step")),
            ("1 step".to_owned(), "2 steps".to_owned())
        );
    }
}

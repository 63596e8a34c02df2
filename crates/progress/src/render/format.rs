//! How numbers and names are written.

use oci::Timestamp;

/// Returns the seconds from one time to another; never negative.
pub(super) fn seconds_between(start: Timestamp, end: Timestamp) -> f64 {
    let seconds = (end.unix_seconds() - start.unix_seconds()) as f64;
    let nanoseconds = f64::from(end.nanoseconds()) - f64::from(start.nanoseconds());
    (seconds + nanoseconds / 1e9).max(0.0)
}

/// Returns the time in front of a line of a log, with as many digits as keep its width.
pub(super) fn log_time(seconds: f64) -> String {
    let digits = match seconds {
        ..10.0 => 3,
        10.0..100.0 => 2,
        _ => 1,
    };
    format!("{seconds:.digits$}")
}

/// Returns a size in decimal units: `123B`, `1.23kB`, `45.60MB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut unit, mut base) = (0, 1_u64);
    while unit + 1 < UNITS.len() && count / base >= 1000 {
        unit += 1;
        base *= 1000;
    }
    match unit {
        0 => format!("{count}B"),
        _ => format!("{:.2}{}", count as f64 / base as f64, UNITS[unit]),
    }
}

/// Returns how far a transfer is: `1.00MB / 2.00MB`, or what is known of it.
pub(super) fn transfer(current: u64, total: u64) -> String {
    match (current, total) {
        (0, 0) => String::new(),
        (current, 0) => bytes(current),
        (current, total) => format!("{} / {}", bytes(current), bytes(total)),
    }
}

/// Returns a name on one line without what could steer a terminal.
pub(super) fn one_line(name: &str) -> String {
    name.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_units() {
        for (count, expect) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (1234, "1.23kB"),
            (45_600_000, "45.60MB"),
            (u64::MAX, "18.45EB"),
        ] {
            assert_eq!(bytes(count), expect);
        }
    }

    #[test]
    fn times_of_logs_keep_their_width() {
        for (seconds, expect) in [
            (0.0, "0.000"),
            (9.9991, "9.999"),
            (10.0, "10.00"),
            (123.45, "123.5"),
        ] {
            assert_eq!(log_time(seconds), expect);
        }
    }
}

//! How numbers and names are written.

use oci::Timestamp;

use super::Palette;

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
        .map(|character| match is_unruly(character) {
            true => ' ',
            false => character,
        })
        .collect()
}

/// Returns a line of a log as a terminal shows it in the end: what was written over and what could steer the terminal is
/// gone, but for colours if they are wanted.
pub(super) fn tame(line: &[u8], palette: Palette) -> String {
    let text = String::from_utf8_lossy(line);
    let last = text.trim_end_matches('\r').rsplit('\r').next();
    let mut characters = last.unwrap_or_default().chars().peekable();
    let mut tame = String::new();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            ('\t', _) => tame.push('\t'),
            ('\u{1b}', Some('[')) => {
                let is_inside = |c: &char| !('@'..='~').contains(c);
                characters.next();
                let mut inside = String::new();
                while let Some(character) = characters.next_if(is_inside) {
                    inside.push(character);
                }
                let is_color = inside.chars().all(|c| matches!(c, '0'..='9' | ';' | ':'));
                if characters.next() == Some('m') && is_color && palette == Palette::Colors {
                    tame.push_str(&format!("\u{1b}[{inside}m"));
                }
            }
            // A title, a link: up to its end.
            ('\u{1b}', Some(']' | 'P' | 'X' | '^' | '_')) => {
                while let Some(character) = characters.next() {
                    if character == '\u{7}' || character == '\u{1b}' {
                        characters.next_if(|next| character == '\u{1b}' && *next == '\\');
                        break;
                    }
                }
            }
            // A choice of characters has its name behind it.
            ('\u{1b}', _) => {
                while characters.next_if(|c| (' '..='/').contains(c)).is_some() {}
                characters.next();
            }
            (character, _) if is_unruly(character) => {}
            (character, _) => tame.push(character),
        }
    }
    tame
}

/// Whether a character steers a terminal: controls, line separators, and what turns the direction of writing.
pub(super) fn is_unruly(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_steer_the_terminal() {
        assert_eq!(one_line("RUN a\n\x1b[2Jb\u{202e}c"), "RUN a  [2Jb c");
        assert_eq!(one_line("RUN 日本語 ✅"), "RUN 日本語 ✅");
    }

    #[test]
    fn logs_keep_their_colours_and_nothing_else_that_steers() {
        let check = |line: &str, expect: &str| {
            assert_eq!(tame(line.as_bytes(), Palette::Colors), expect, "{line:?}");
        };
        check("10%\r99%\r", "99%");
        check("\x1b[2J\x1b[1;31mred\x1b[m\x1b[3A", "\x1b[1;31mred\x1b[m");
        check(
            "\x1b]0;title\x07a\x1b]8;;u\x1b\\b\x1b(Bc\x08\t日",
            "abc\t日",
        );
        check("a\x1b[31", "a");
        check("a\x1b]52;c;", "a");
        check("a\x1b", "a");
        assert_eq!(tame(b"\x1b[31mred\xff", Palette::Plain), "red\u{fffd}");
    }

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

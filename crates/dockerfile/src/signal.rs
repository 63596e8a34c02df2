//! The signals `STOPSIGNAL` may name.

use crate::go::parse_i64;

const NAMES: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// Tells whether a text is a signal: any number but 0, or a name in any case, with or without `SIG`.
pub fn is_signal(text: &str) -> bool {
    if let Ok(number) = parse_i64(text) {
        return number != 0;
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let is_offset = |rest: &str, sign: char, largest: u32| {
        rest.is_empty()
            || rest
                .strip_prefix(sign)
                .is_some_and(|number| (1..=largest).any(|offset| number == offset.to_string()))
    };
    NAMES.contains(&name)
        || name
            .strip_prefix("RTMIN")
            .is_some_and(|rest| is_offset(rest, '+', 15))
        || name
            .strip_prefix("RTMAX")
            .is_some_and(|rest| is_offset(rest, '-', 14))
}

#[cfg(test)]
mod tests {
    use super::is_signal;

    #[test]
    fn signals_are_numbers_or_names() {
        for good in [
            "9",
            "-1",
            "SIGTERM",
            "term",
            "SigRtMin+15",
            "RTMAX-14",
            "RTMIN",
            "sigusr1",
        ] {
            assert!(is_signal(good), "{good}");
        }
        for bad in [
            "0",
            "",
            "SIG",
            "TERMINATE",
            "RTMIN+16",
            "RTMIN-1",
            "RTMAX+1",
            "RTMAX-15",
            "RTMIN+01",
            "$SIG",
        ] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}

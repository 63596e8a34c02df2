//! Times as image documents hold them: RFC 3339, written as Go writes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text or number is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimestampError {
    #[error("{text:?} is not a time in RFC 3339")]
    Format { text: String },
    #[error("{seconds} seconds since 1970 lie outside the years 0 to 9999")]
    Range { seconds: i64 },
}

/// A point in time with the offset it was written in. The year has four digits.
///
/// Orders by the point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    seconds: i64,
    nanoseconds: u32,
    offset_minutes: i16,
}

const DAY: i64 = 86_400;
/// 0000-01-02, so that no offset leads before the year 0.
const FIRST: i64 = -62_167_132_800;
/// 9999-12-30T23:59:59.
const LAST: i64 = 253_402_214_399;

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self {
        seconds: 0,
        nanoseconds: 0,
        offset_minutes: 0,
    };

    /// Makes a time in UTC. `nanoseconds` past a second are carried over.
    pub fn from_unix(seconds: i64, nanoseconds: u32) -> Result<Self, TimestampError> {
        let carried = seconds.saturating_add(i64::from(nanoseconds / 1_000_000_000));
        if !(FIRST..=LAST).contains(&carried) {
            return Err(TimestampError::Range { seconds });
        }
        Ok(Self {
            seconds: carried,
            nanoseconds: nanoseconds % 1_000_000_000,
            offset_minutes: 0,
        })
    }

    /// Returns the seconds since 1970, rounded down.
    pub fn unix_seconds(&self) -> i64 {
        self.seconds
    }

    /// Returns the nanoseconds past the second.
    pub fn nanoseconds(&self) -> u32 {
        self.nanoseconds
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.seconds + i64::from(self.offset_minutes) * 60;
        let (year, month, day) = date_of(local.div_euclid(DAY));
        let second = local.rem_euclid(DAY);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            formatter,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )?;
        if self.nanoseconds != 0 {
            let fraction = format!("{:09}", self.nanoseconds);
            write!(formatter, ".{}", fraction.trim_end_matches('0'))?;
        }
        if self.offset_minutes == 0 {
            return formatter.write_str("Z");
        }
        let sign = if self.offset_minutes < 0 { '-' } else { '+' };
        let offset = self.offset_minutes.unsigned_abs();
        write!(formatter, "{sign}{:02}:{:02}", offset / 60, offset % 60)
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        parse(text.as_bytes()).ok_or_else(|| TimestampError::Format {
            text: text.to_owned(),
        })
    }
}

fn parse(text: &[u8]) -> Option<Timestamp> {
    let (date_time, rest) = text.split_at_checked(19)?;
    for (index, separator) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')] {
        if date_time[index] != separator {
            return None;
        }
    }
    let field = |from: usize, to: usize| number(&date_time[from..to]);
    let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
    let (hour, minute, second) = (field(11, 13)?, field(14, 16)?, field(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (nanoseconds, zone) = fraction(rest)?;
    let offset_minutes = offset(zone)?;
    let local = days_before(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    let seconds = local - i64::from(offset_minutes) * 60;
    (FIRST..=LAST).contains(&seconds).then_some(Timestamp {
        seconds,
        nanoseconds,
        offset_minutes,
    })
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |sum, digit| {
        digit
            .is_ascii_digit()
            .then(|| sum * 10 + i64::from(digit - b'0'))
    })
}

/// Reads the optional fraction; what is finer than nanoseconds is cut off.
fn fraction(text: &[u8]) -> Option<(u32, &[u8])> {
    let Some(digits) = text.strip_prefix(b".") else {
        return Some((0, text));
    };
    let length = digits
        .iter()
        .take_while(|digit| digit.is_ascii_digit())
        .count();
    if length == 0 {
        return None;
    }
    let nanoseconds = (0..9).fold(0, |sum, index| {
        let digit = if index < length {
            digits[index] - b'0'
        } else {
            0
        };
        sum * 10 + u32::from(digit)
    });
    Some((nanoseconds, &digits[length..]))
}

fn offset(zone: &[u8]) -> Option<i16> {
    let sign = match zone {
        b"Z" => return Some(0),
        [b'+', _, _, b':', _, _] => 1,
        [b'-', _, _, b':', _, _] => -1,
        _ => return None,
    };
    let (hours, minutes) = (number(&zone[1..3])?, number(&zone[4..6])?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    i16::try_from(sign * (hours * 60 + minutes)).ok()
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Returns the days from 1970-01-01. Years begin in March here, so that the leap day is the last of its year.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, seconds: i64, written: &str) {
        let timestamp: Timestamp = text.parse().unwrap();
        assert_eq!(timestamp.unix_seconds(), seconds, "{text}");
        assert_eq!(timestamp.to_string(), written);
    }

    #[test]
    fn times_are_read_and_written_as_go_does() {
        check("1970-01-01T00:00:00Z", 0, "1970-01-01T00:00:00Z");
        check(
            "2024-02-29T12:30:45.120000000Z",
            1_709_209_845,
            "2024-02-29T12:30:45.12Z",
        );
        check(
            "2021-01-01T01:00:00+01:00",
            1_609_459_200,
            "2021-01-01T01:00:00+01:00",
        );
        check(
            "2021-01-01T00:00:00+00:00",
            1_609_459_200,
            "2021-01-01T00:00:00Z",
        );
        check(
            "2020-12-31T20:30:00-03:30",
            1_609_459_200,
            "2020-12-31T20:30:00-03:30",
        );
        check(
            "0001-01-01T00:00:00Z",
            -62_135_596_800,
            "0001-01-01T00:00:00Z",
        );
        check(
            "1969-12-31T23:59:59.9999999999Z",
            -1,
            "1969-12-31T23:59:59.999999999Z",
        );
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "now",
            "2024-01-01",
            "2024-01-01T00:00:00",
            "2024-01-01 00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:60Z",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+1:00",
            "2024-01-01T00:00:00z",
            "2024-01-01T00:00:00Zx",
            "2024-01-01T00:00:0éZ",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
        assert!(Timestamp::from_unix(i64::MAX, 5).is_err());
        assert!(Timestamp::from_unix(i64::MIN, 5).is_err());
    }

    #[test]
    fn every_day_survives_the_way_there_and_back() {
        for day in (-719_000..2_932_000).step_by(13) {
            let (year, month, of_month) = date_of(day);
            assert_eq!(days_before(year, month, of_month), day);
            assert!((1..=days_in(year, month)).contains(&of_month));
        }
    }
}

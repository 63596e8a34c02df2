//! How much space the store may take, as people write it.

use std::str::FromStr;

use crate::CollectPolicy;

/// An amount of space: bytes, or a part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Bytes(u64),
    Percent(u64),
}

impl Space {
    /// Returns the bytes on a disk of this size.
    pub fn of_disk(self, disk: u64) -> u64 {
        match self {
            Space::Bytes(bytes) => bytes,
            Space::Percent(part) => (u128::from(disk) * u128::from(part) / 100) as u64,
        }
    }
}

impl FromStr for Space {
    type Err = String;

    /// Reads `512`, `64MB`, `1.5g` (of 1024) or `10%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is no amount of space: write for example 10GB, 500MB, 4096 or 20%")
        };
        let lower = text.trim().to_lowercase();
        if let Some(part) = lower.strip_suffix('%') {
            let part: u64 = part.trim().parse().map_err(|_| wrong())?;
            return match part <= 100 {
                true => Ok(Space::Percent(part)),
                false => Err(wrong()),
            };
        }
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = lower[digits.len()..]
            .trim_end_matches('b')
            .trim_end_matches('i');
        let unit: u64 = match unit {
            "" => 1,
            "k" => 1 << 10,
            "m" => 1 << 20,
            "g" => 1 << 30,
            "t" => 1 << 40,
            _ => return Err(wrong()),
        };
        let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
        let bytes = number * unit as f64;
        match bytes.is_finite() && (0.0..=u64::MAX as f64).contains(&bytes) {
            true => Ok(Space::Bytes(bytes as u64)),
            false => Err(wrong()),
        }
    }
}

/// The limits a store is kept within after each build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceLimits {
    /// No more than this is used; `None` is no limit.
    pub max_used: Option<Space>,
    /// Below this nothing is removed for a limit's sake.
    pub reserved: Option<Space>,
    /// This much of the disk stays free for others.
    pub min_free: Option<Space>,
}

const GIB: u64 = 1 << 30;

impl SpaceLimits {
    /// Returns no limits at all.
    pub const NONE: Self = Self {
        max_used: None,
        reserved: None,
        min_free: None,
    };

    /// Returns whether there is any limit.
    pub fn are_set(&self) -> bool {
        self.max_used.is_some() || self.min_free.is_some()
    }

    /// Returns the policy on a disk of this size.
    pub fn policy(&self, disk: u64) -> CollectPolicy {
        CollectPolicy {
            max_used: self.max_used.map(|space| space.of_disk(disk)),
            min_free: self.min_free.map(|space| space.of_disk(disk)),
            reserved: self.reserved.map_or(0, |space| space.of_disk(disk)),
            ..CollectPolicy::default()
        }
    }

    /// Returns what holds where nothing is said, as in BuildKit: 60 % of the disk and 100 GB at most, 20 %
    /// of the disk left free, 10 % of it and 10 GB at most kept in any case.
    pub fn usual(disk: u64) -> Self {
        let at_most = |part, most| Some(Space::Bytes(Space::Percent(part).of_disk(disk).min(most)));
        Self {
            max_used: at_most(60, 100 * GIB),
            reserved: at_most(10, 10 * GIB),
            min_free: Some(Space::Percent(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_read_as_people_write_it() {
        let check = |text: &str, expect: Option<Space>| {
            assert_eq!(text.parse::<Space>().ok(), expect, "{text}");
        };
        check("512", Some(Space::Bytes(512)));
        check("64MB", Some(Space::Bytes(64 << 20)));
        check("64MiB", Some(Space::Bytes(64 << 20)));
        check("1.5g", Some(Space::Bytes(3 << 29)));
        check("10%", Some(Space::Percent(10)));
        check("101%", None);
        check("-1", None);
        check("1x", None);
        check("", None);
        check("inf", None);
    }
}

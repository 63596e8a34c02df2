//! Filters of the history: those of all lists, and comparisons of times (`startedAt`, `completedAt`, `duration`).

use std::time::SystemTime;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::BuildHistoryRecord;
use dockerfile::git::GitRef;
use tonic::Code;

use crate::error::Failure;
use crate::filter::Filters;

/// Which builds a client asks for.
#[derive(Debug, Default)]
pub(crate) struct HistoryFilters(Vec<One>);

/// All of it must be true.
#[derive(Debug)]
struct One {
    times: Vec<Compared>,
    rest: Filters,
}

#[derive(Debug)]
struct Compared {
    what: What,
    /// In nanoseconds; of times since 1970.
    with: i128,
    operator: Operator,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Started,
    Completed,
    Duration,
}

#[derive(Debug, Clone, Copy)]
enum Operator {
    Least,
    Most,
    More,
    Less,
}

const OPERATORS: [(&str, Operator); 4] = [
    (">=", Operator::Least),
    ("<=", Operator::Most),
    (">", Operator::More),
    ("<", Operator::Less),
];

const SECOND: i128 = 1_000_000_000;

impl HistoryFilters {
    /// Reads the filters of a request. What is said of how long ago something was counts from now.
    pub(crate) fn parse(texts: &[String], now: SystemTime) -> Result<Self, Failure> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_nanos() as i128;
        let one = |text: &String| {
            let mut times = Vec::new();
            let mut rest = Vec::new();
            for part in parts(text) {
                match compared(part, now)? {
                    Some(compared) => times.push(compared),
                    None => rest.push(part),
                }
            }
            let rest = rest.join(",");
            Ok(One {
                times,
                rest: Filters::parse(&[rest.as_str()])?,
            })
        };
        texts.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// Returns whether a build is asked for.
    pub(crate) fn matches(&self, record: &BuildHistoryRecord) -> bool {
        let field = |path: &[String]| field(record, path);
        let is_met = |one: &One| {
            let mut times = one.times.iter();
            times.all(|compared| compared.is_true_of(record)) && one.rest.matches(field)
        };
        self.0.is_empty() || self.0.iter().any(is_met)
    }
}

/// Splits a filter at the commas that are not quoted.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
}

fn compared(part: &str, now: i128) -> Result<Option<Compared>, Failure> {
    let find = |(sign, operator): &(&str, Operator)| {
        let (key, value) = part.split_once(sign)?;
        Some((key.trim(), value.trim(), *operator))
    };
    let Some((key, value, operator)) = OPERATORS.iter().find_map(find) else {
        return Ok(None);
    };
    let invalid = |what: &str| {
        let message = format!("invalid {what} {value} in the filter {part:?}");
        Failure::new(Code::InvalidArgument, message)
    };
    let what = match key {
        "startedAt" => What::Started,
        "completedAt" => What::Completed,
        "duration" => What::Duration,
        _ => return Ok(None),
    };
    let with = match (what, duration(value)) {
        (What::Duration, Some(duration)) => duration,
        (What::Duration, None) => return Err(invalid("duration")),
        // As the reference has it, times are compared in whole seconds.
        (_, Some(ago)) => (now - ago).div_euclid(SECOND),
        (_, None) => {
            let time: oci::Timestamp = value.parse().map_err(|_| invalid("time"))?;
            i128::from(time.unix_seconds())
        }
    };
    Ok(Some(Compared {
        what,
        with,
        operator,
    }))
}

impl Compared {
    fn is_true_of(&self, record: &BuildHistoryRecord) -> bool {
        let seconds = |time: Option<Timestamp>| time.map_or(0, |time| i128::from(time.seconds));
        let nanoseconds =
            |time: Timestamp| i128::from(time.seconds) * SECOND + i128::from(time.nanos);
        let value = match self.what {
            What::Started => seconds(record.created_at),
            What::Completed => seconds(record.completed_at),
            What::Duration => match (record.created_at, record.completed_at) {
                (Some(from), Some(to)) => nanoseconds(to) - nanoseconds(from),
                _ => 0,
            },
        };
        match self.operator {
            Operator::Least => value >= self.with,
            Operator::Most => value <= self.with,
            Operator::More => value > self.with,
            Operator::Less => value < self.with,
        }
    }
}

fn field(record: &BuildHistoryRecord, path: &[String]) -> Option<String> {
    match path.first()?.as_str() {
        "ref" => Some(record.r#ref.clone()).filter(|id| !id.is_empty()),
        "status" => {
            let status = match (&record.completed_at, &record.error) {
                (None, _) => "running",
                (Some(_), None) => "completed",
                (Some(_), Some(error)) if error.message.contains("context canceled") => "canceled",
                (Some(_), Some(_)) => "error",
            };
            Some(status.to_owned())
        }
        "repository" => {
            let attrs = &record.frontend_attrs;
            let context = || {
                let context = GitRef::parse(attrs.get("context")?).ok()?;
                Some(context.remote)
            };
            attrs.get("vcs:source").cloned().or_else(context)
        }
        _ => None,
    }
}

/// Reads a duration as Go's `time.ParseDuration` does: `1h30m`, `1.5s`; in nanoseconds.
fn duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (if text.starts_with('-') { -1 } else { 1 }, rest),
        None => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut sum: i128 = 0;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(unit_end.unwrap_or(after.len()));
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3600 * SECOND,
            _ => return None,
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + part.len() == 0 || whole.len() > 18 || part.contains('.') {
            return None;
        }
        let digits = |digits: &str| match digits {
            "" => Some(0),
            digits => digits.parse::<i128>().ok(),
        };
        // What is smaller than a nanosecond is nothing.
        let part = &part[..part.len().min(18)];
        let scale = 10_i128.pow(part.len() as u32);
        sum += digits(whole)? * unit + digits(part)? * unit / scale;
        rest = after;
        if rest.is_empty() {
            return Some(sign * sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    /// The builds of a day: at its begin, after an hour, which still runs, and after two.
    fn records() -> [BuildHistoryRecord; 3] {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let record = |id: &str, from, to, attr: Option<(&str, &str)>| BuildHistoryRecord {
            r#ref: id.to_owned(),
            created_at: at(from),
            completed_at: to,
            frontend_attrs: attr
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into_iter()
                .collect(),
            ..BuildHistoryRecord::default()
        };
        let context = ("context", "https://github.com/user/repo.git#abc");
        [
            record("foo1", 0, at(60), None),
            record("bar2", HOUR, None, Some(context)),
            record(
                "foo3",
                2 * HOUR,
                at(2 * HOUR + 600),
                Some(("vcs:source", "x")),
            ),
        ]
    }

    fn found(texts: &[&str]) -> String {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(DAY as u64);
        let filters = HistoryFilters::parse(&texts, now).unwrap();
        let records = records();
        let found = records.iter().filter(|record| filters.matches(record));
        let names: Vec<&str> = found.map(|record| record.r#ref.as_str()).collect();
        names.join(" ")
    }

    #[test]
    fn builds_are_found_by_name_status_repository_and_time() {
        for (filter, expected) in [
            ("", "foo1 bar2 foo3"),
            ("ref~=foo", "foo1 foo3"),
            ("status==running", "bar2"),
            ("status==completed", "foo1 foo3"),
            ("repository!=x", "foo1 bar2"),
            ("repository==https://github.com/user/repo.git", "bar2"),
            ("repository!=x,ref~=foo", "foo1"),
            ("completedAt>23h", "foo3"),
            ("startedAt<23h", "foo1"),
            ("startedAt<=23h", "foo1 bar2"),
            ("startedAt>=1970-01-01T01:00:00Z", "bar2 foo3"),
            ("duration>5m", "foo3"),
            ("duration<=1m0.5s", "foo1 bar2"),
            ("startedAt>24h,completedAt>22h", "foo3"),
            ("startedAt>24h,ref~=foo", "foo3"),
        ] {
            assert_eq!(found(&[filter]), expected, "{filter}");
        }
        assert_eq!(found(&["startedAt>=22h", "ref==foo1"]), "foo1 foo3");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            "startedAt>yesterday",
            "duration>5",
            "duration>2020-01-01T00:00:00Z",
            "ref+foo",
            "other>5",
        ] {
            let bad = [bad.to_owned()];
            assert!(
                HistoryFilters::parse(&bad, SystemTime::now()).is_err(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn durations_are_go_s() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1h30m", Some(5400 * SECOND)),
            ("-1.5s", Some(-3 * SECOND / 2)),
            (".5ms", Some(500_000)),
            ("1us", Some(1000)),
            ("", None),
            ("5", None),
            ("h", None),
            (".s", None),
            ("1.2.3s", None),
            ("1d", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text), expected, "{text}");
        }
    }
}

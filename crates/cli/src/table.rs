//! Listings: Docker's tables, templates and JSON.

use serde_json::{Map, Value};

use anyhow::Result;

use crate::template::Template;

/// A listing: each row is an object, whose fields have the names templates know.
#[derive(Debug)]
pub(crate) struct Listing<'a> {
    /// Fields of the default table, with their headings.
    pub(crate) columns: &'a [(&'a str, &'a str)],
    /// The rows.
    pub(crate) rows: Vec<Map<String, Value>>,
}

/// A format that cannot be read, or asks for what the rows do not have.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongFormat(String);

impl Listing<'_> {
    /// Renders in the form `--format` asks for: `table`, `json`, or a template.
    pub(crate) fn render(&self, format: Option<&str>) -> Result<String> {
        let rendered = self.rendered(format);
        rendered.map_err(|error| WrongFormat(format!("{error:#}")).into())
    }

    fn rendered(&self, format: Option<&str>) -> Result<String> {
        match format.unwrap_or("table") {
            "table" | "" => {
                let cells = self
                    .columns
                    .iter()
                    .map(|(name, _)| format!("{{{{.{name}}}}}"));
                self.table(cells)
            }
            "json" => Ok(self
                .rows
                .iter()
                .map(|row| format!("{}\n", Value::Object(row.clone())))
                .collect()),
            template => match template.strip_prefix("table ") {
                Some(template) => self.table(unescape(template).split('\t').map(str::to_owned)),
                None => {
                    let template = Template::parse(&unescape(template))?;
                    let mut text = String::new();
                    for row in &self.rows {
                        text.push_str(&template.apply(&Value::Object(row.clone()))?);
                        text.push('\n');
                    }
                    Ok(text)
                }
            },
        }
    }

    fn table(&self, cells: impl Iterator<Item = String>) -> Result<String> {
        let cells = cells
            .map(|cell| Template::parse(&cell))
            .collect::<Result<Vec<_>>>()?;
        let mut lines = vec![
            cells
                .iter()
                .map(|cell| cell.apply(&self.headings(cell)))
                .collect::<Result<Vec<_>>>()?,
        ];
        for row in &self.rows {
            let row = Value::Object(row.clone());
            let line = cells.iter().map(|cell| cell.apply(&row));
            lines.push(line.collect::<Result<_>>()?);
        }
        Ok(align(&lines))
    }

    /// Returns the headings of the fields a cell shows, in the place of their values.
    fn headings(&self, cell: &Template) -> Value {
        let heading = |name: &str| {
            let known = self.columns.iter().find(|(field, _)| *field == name);
            known.map_or_else(|| name.to_uppercase(), |(_, heading)| (*heading).to_owned())
        };
        let names = cell.fields().into_iter();
        let pairs = names.map(|name| (name.to_owned(), Value::from(heading(name))));
        Value::Object(pairs.collect())
    }
}

/// Aligns columns as Docker does: three blanks between them.
fn align(lines: &[Vec<String>]) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            row.push_str(&format!("{cell:<width$}   "));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// Reads `\t` and `\n` as Docker does in formats.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// Writes a size as Docker does: three digits, thousands, `8.45MB`.
pub(crate) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    // Go's %.3g: three significant digits, no zeros behind the point.
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text}{}", UNITS[unit])
}

/// Writes an age as Docker does: `5 seconds`, `About a minute`, `3 weeks`.
pub(crate) fn human_duration(seconds: i64) -> String {
    let plural = |count: i64, unit: &str| format!("{count} {unit}");
    let minutes = seconds / 60;
    let hours = (seconds as f64 / 3600.0).round() as i64;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => plural(seconds, "seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => plural(minutes, "minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => plural(hours, "hours"),
        () if hours < 24 * 7 * 2 => plural(hours / 24, "days"),
        () if hours < 24 * 30 * 2 => plural(hours / 24 / 7, "weeks"),
        () if hours < 24 * 365 * 2 => plural(hours / 24 / 30, "months"),
        () => plural(hours / 24 / 365, "years"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_as_in_docker() {
        let check = |bytes, expected: &str| assert_eq!(human_size(bytes), expected);
        check(0, "0B");
        check(999, "999B");
        check(8_450_000, "8.45MB");
        check(4_200_000, "4.2MB");
        check(150_000_000, "150MB");
        check(1_234_567_890, "1.23GB");
    }

    #[test]
    fn durations_read_as_in_docker() {
        let check = |seconds, expected: &str| assert_eq!(human_duration(seconds), expected);
        check(0, "Less than a second");
        check(20, "20 seconds");
        check(75, "About a minute");
        check(3600, "About an hour");
        check(86_400 * 3, "3 days");
        check(86_400 * 20, "2 weeks");
    }

    #[test]
    fn templates_take_fields_and_tables_align() {
        let row = |name: &str, tag: &str| {
            let mut map = Map::new();
            map.insert("Repository".to_owned(), Value::from(name));
            map.insert("Tag".to_owned(), Value::from(tag));
            map
        };
        let listing = Listing {
            columns: &[("Repository", "REPOSITORY"), ("Tag", "TAG")],
            rows: vec![row("buildme", "latest"), row("a", "v1")],
        };
        let render = |format| listing.render(format).expect("a good format");
        assert_eq!(
            render(None),
            "REPOSITORY   TAG\nbuildme      latest\na            v1\n"
        );
        assert_eq!(
            render(Some("{{.Repository}}:{{.Tag}}")),
            "buildme:latest\na:v1\n"
        );
        assert_eq!(
            render(Some("table {{.Tag}}\\t{{.Repository}}")),
            "TAG      REPOSITORY\nlatest   buildme\nv1       a\n"
        );
        assert!(listing.render(Some("{{.Nothing}}")).is_err());
    }
}

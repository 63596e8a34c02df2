//! Listings: Docker's tables, templates and JSON.

use serde_json::{Map, Value};

use anyhow::{Context, Result, bail};

/// A listing: each row is an object, whose fields have the names templates know.
#[derive(Debug)]
pub(crate) struct Listing<'a> {
    /// Fields of the default table, with their headings.
    pub(crate) columns: &'a [(&'a str, &'a str)],
    /// The rows.
    pub(crate) rows: Vec<Map<String, Value>>,
}

impl Listing<'_> {
    /// Renders in the form `--format` asks for: `table`, `json`, or a template.
    pub(crate) fn render(&self, format: Option<&str>) -> Result<String> {
        match format.unwrap_or("table") {
            "table" | "" => Ok(self.table(&self.default_table())),
            "json" => Ok(self.lines(|row| Ok(Value::Object(row.clone()).to_string()))?),
            template => match template.strip_prefix("table ") {
                Some(template) => {
                    let cells: Vec<Template> = unescape(template)
                        .split('\t')
                        .map(Template::parse)
                        .collect::<Result<_>>()?;
                    Ok(self.table(&cells))
                }
                None => {
                    let template = Template::parse(&unescape(template))?;
                    self.lines(|row| template.apply(row))
                }
            },
        }
    }

    fn default_table(&self) -> Vec<Template> {
        let field = |(name, _): &(&str, &str)| Template(vec![Part::Field((*name).to_owned())]);
        self.columns.iter().map(field).collect()
    }

    fn lines(&self, line: impl Fn(&Map<String, Value>) -> Result<String>) -> Result<String> {
        let mut text = String::new();
        for row in &self.rows {
            text.push_str(&line(row)?);
            text.push('\n');
        }
        Ok(text)
    }

    fn table(&self, cells: &[Template]) -> String {
        let mut lines = vec![cells.iter().map(|cell| self.heading(cell)).collect()];
        for row in &self.rows {
            let line: Vec<String> = cells
                .iter()
                .map(|cell| cell.apply(row).unwrap_or_default())
                .collect();
            lines.push(line);
        }
        align(&lines)
    }

    fn heading(&self, cell: &Template) -> String {
        let mut text = String::new();
        for part in &cell.0 {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Field(name) | Part::Json(name) => {
                    let known = self.columns.iter().find(|(field, _)| field == name);
                    match known {
                        Some((_, heading)) => text.push_str(heading),
                        None => text.push_str(&name.to_uppercase()),
                    }
                }
            }
        }
        text
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

/// A template in the part of Go's language that listings are written in.
#[derive(Debug, PartialEq)]
struct Template(Vec<Part>);

#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    Field(String),
    Json(String),
}

impl Template {
    fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let (action, after) = after
                .split_once("}}")
                .with_context(|| format!("the template {text:?} has {{{{ without }}}}"))?;
            parts.push(Part::parse(action.trim())?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    fn apply(&self, row: &Map<String, Value>) -> Result<String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Json(name) if name.is_empty() => {
                    text.push_str(&Value::Object(row.clone()).to_string());
                }
                Part::Json(name) => text.push_str(&field(row, name)?.to_string()),
                Part::Field(name) => match field(row, name)? {
                    Value::String(value) => text.push_str(value),
                    Value::Null => {}
                    value => text.push_str(&value.to_string()),
                },
            }
        }
        Ok(text)
    }
}

impl Part {
    fn parse(action: &str) -> Result<Self> {
        if let Some(argument) = action.strip_prefix("json ") {
            return match argument.trim().strip_prefix('.') {
                Some(name) => Ok(Part::Json(name.to_owned())),
                None => bail!("json takes a field, such as {{{{json .ID}}}}, not {argument:?}"),
            };
        }
        match action.strip_prefix('.') {
            Some(name) if !name.contains(char::is_whitespace) => Ok(Part::Field(name.to_owned())),
            _ => bail!(
                "the template action {action:?} is not known; use {{{{.Field}}}} or {{{{json .Field}}}}"
            ),
        }
    }
}

fn field<'a>(row: &'a Map<String, Value>, path: &str) -> Result<&'a Value> {
    let mut names = path.split('.');
    let first = names.next().unwrap_or_default();
    let mut value = row.get(first).with_context(|| {
        let known: Vec<&str> = row.keys().map(String::as_str).collect();
        format!(
            "there is no field {first:?}; there are {}",
            known.join(", ")
        )
    })?;
    for name in names {
        value = value
            .get(name)
            .with_context(|| format!("there is no field {name:?} in {path:?}"))?;
    }
    Ok(value)
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

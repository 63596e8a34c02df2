//! The tables: one case a line, one function of ours a table.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use dockerfile::expand::{Expander, Expansion};
use dockerfile::ignore::{IgnoreFile, Matcher};
use oci::{Platform, Reference};
use serde_json::{Map, Value, json};

use super::Tally;

type Fields = Map<String, Value>;

/// Returns what we make of a case.
type Answer<'a> = &'a dyn Fn(&Value) -> anyhow::Result<Fields>;

/// Runs the four tables.
pub(crate) fn run(corpus: &Path, tally: &mut Tally) -> anyhow::Result<()> {
    let folder = corpus.join("tables");
    let tree: Vec<String> = serde_json::from_str(&read(&folder.join("dockerignore-tree.json"))?)?;
    let answer_ignore = |case: &Value| ignore(case, &tree);
    let tables: [(&str, Answer<'_>); 4] = [
        ("shelllex", &shelllex),
        ("dockerignore", &answer_ignore),
        ("platform", &platform),
        ("reference", &reference),
    ];
    for (table, answer) in tables {
        let path = folder.join(format!("{table}.jsonl"));
        for (line, text) in (1..).zip(read(&path)?.lines()) {
            let name = format!("{table}:{line}");
            if !tally.wants(&name) {
                continue;
            }
            let check = || -> anyhow::Result<Option<String>> {
                let case: Value = serde_json::from_str(text)?;
                Ok(difference(&case, &answer(&case)?))
            };
            let found = check()
                .with_context(|| format!("failed to read line {line} of {}", path.display()))?;
            tally.count(&name, found.as_deref());
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}

/// Compares every field that tells a result; of errors only that there is one.
fn difference(case: &Value, found: &Fields) -> Option<String> {
    const GIVEN: &[&str] = &[
        "input", "env", "escape", "opts", "source", "kind", "file", "patterns", "paths",
    ];
    let expected = case.as_object()?;
    let keys = expected.keys().filter(|key| !GIVEN.contains(&key.as_str()));
    let mut differences = Vec::new();
    for key in keys.chain(found.keys().filter(|key| !expected.contains_key(*key))) {
        let (left, right) = (expected.get(key), found.get(key));
        let equal = match (left, right) {
            (Some(_), Some(_)) if key.ends_with("error") => true,
            (left, right) => left == right,
        };
        if !equal {
            let shown =
                |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
            differences.push(format!(
                "{key}: expected {}, found {}",
                shown(left),
                shown(right)
            ));
        }
    }
    let given = case
        .get("input")
        .or(case.get("file"))
        .or(case.get("patterns"))
        .unwrap_or(case);
    (!differences.is_empty()).then(|| format!("{given}: {}", differences.join("; ")))
}

fn text<'a>(case: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    case[key]
        .as_str()
        .with_context(|| format!("the case has no {key}"))
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn shelllex(case: &Value) -> anyhow::Result<Fields> {
    let input = text(case, "input")?;
    let environment = texts(&case["env"]);
    let escape = text(case, "escape")?
        .chars()
        .next()
        .context("the escape is empty")?;
    let mut expander = Expander::new(escape);
    for option in texts(&case["opts"]) {
        expander = match option.as_str() {
            "RawQuotes" => expander.raw_quotes(),
            "RawEscapes" => expander.raw_escapes(),
            "SkipProcessQuotes" => expander.literal_quotes(),
            "SkipUnsetEnv" => expander.keep_unset(),
            other => bail!("the option {other:?} is not known"),
        };
    }
    let mut found = Fields::new();
    match expander.word(input, &environment) {
        Ok(Expansion {
            text,
            matched,
            unmatched,
        }) => {
            found.insert("word".to_owned(), text.into());
            for (key, names) in [("matched", matched), ("unmatched", unmatched)] {
                if !names.is_empty() {
                    found.insert(key.to_owned(), names.into_iter().collect());
                }
            }
        }
        Err(error) => {
            found.insert("word_error".to_owned(), error.to_string().into());
        }
    }
    match expander.words(input, &environment) {
        Ok(words) => found.insert("words".to_owned(), words.into()),
        Err(error) => found.insert("words_error".to_owned(), error.to_string().into()),
    };
    Ok(found)
}

fn ignore(case: &Value, tree: &[String]) -> anyhow::Result<Fields> {
    let paths = match case["paths"].as_str() {
        Some("@tree") => tree.to_vec(),
        _ => texts(&case["paths"]),
    };
    let mut found = Fields::new();
    let matcher = match case["file"].as_str() {
        None => Matcher::new(texts(&case["patterns"])),
        Some(file) => IgnoreFile::parse(file).and_then(|file| {
            let patterns: Value = file
                .lines
                .iter()
                .map(|line| line.pattern.as_str())
                .collect();
            found.insert("parsed".to_owned(), patterns);
            file.matcher()
        }),
    };
    let ignored = matcher.and_then(|matcher| {
        let mut ignored = Vec::new();
        for path in paths {
            if matcher.is_ignored(&path)? {
                ignored.push(path);
            }
        }
        Ok(ignored)
    });
    match ignored {
        Ok(ignored) => found.insert("ignored".to_owned(), ignored.into()),
        Err(error) => found.insert("error".to_owned(), error.to_string().into()),
    };
    Ok(found)
}

fn platform(case: &Value) -> anyhow::Result<Fields> {
    Ok(fields(match text(case, "input")?.parse::<Platform>() {
        Err(error) => json!({ "error": error.to_string() }),
        Ok(platform) => json!({
            "platform": platform,
            "format": platform.to_string(),
            "normalized": platform.normalized().to_string(),
        }),
    }))
}

fn reference(case: &Value) -> anyhow::Result<Fields> {
    let reference = match Reference::parse_normalized(text(case, "input")?) {
        Err(error) => return Ok(fields(json!({ "error": error.to_string() }))),
        Ok(reference) => reference,
    };
    let optional = BTreeMap::from([
        ("tag", reference.tag().map(str::to_owned)),
        ("digest", reference.digest().map(ToString::to_string)),
    ]);
    let mut found = fields(json!({
        "named": reference.to_string(),
        "familiar": reference.familiar(),
        "domain": reference.domain(),
        "path": reference.path(),
        "tagged": reference.clone().or_latest().to_string(),
    }));
    for (key, value) in optional {
        if let Some(value) = value {
            found.insert(key.to_owned(), value.into());
        }
    }
    Ok(found)
}

fn fields(value: Value) -> Fields {
    match value {
        Value::Object(fields) => fields,
        _ => Fields::new(),
    }
}

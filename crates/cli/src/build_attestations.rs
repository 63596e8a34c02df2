//! Turns the words of the command line into the attestations that are wanted.

use anyhow::{Result, bail};
use attest::{Provenance, Sbom};

use crate::build_request::split_csv;
use crate::commands::build::Build;

/// Reads `--provenance`, `--sbom` and `--attest`; the last word about each counts.
pub(crate) fn attestations(build: &Build) -> Result<(Option<Provenance>, Option<Sbom>)> {
    let mut provenance = None;
    let mut sbom = None;
    for text in &build.attest {
        let option = format!("--attest={text}");
        let mut kind = None;
        let mut rest = Vec::new();
        for (name, value) in checked_fields(&option, text)? {
            match name.as_str() {
                "type" => kind = Some(value),
                _ => rest.push((name, value)),
            }
        }
        match kind.as_deref() {
            Some("provenance") => provenance = read_provenance(&option, &rest)?,
            Some("sbom") => sbom = read_sbom(&rest)?,
            Some(kind) => {
                bail!("invalid {option}: there is no type {kind:?}, only provenance and sbom")
            }
            None => bail!("invalid {option}: it has no type, as in type=provenance,mode=max"),
        }
    }
    // As docker has it: no text is no word.
    if let Some(text) = build.sbom.as_deref().filter(|text| !text.is_empty()) {
        let option = format!("--sbom={text}");
        sbom = match switch(text) {
            Some(false) => None,
            Some(true) => read_sbom(&[])?,
            None => read_sbom(&checked_fields(&option, text)?)?,
        };
    }
    if let Some(text) = build.provenance.as_deref().filter(|text| !text.is_empty()) {
        let option = format!("--provenance={text}");
        provenance = match switch(text) {
            Some(false) => None,
            Some(true) => Some(Provenance::default()),
            None => read_provenance(&option, &checked_fields(&option, text)?)?,
        };
    }
    Ok((provenance, sbom))
}

/// Reads the words with which docker turns something on and off; none for any other text.
fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

type Fields = Vec<(String, String)>;

/// Splits fields, each of which has to have a value.
fn checked_fields(option: &str, text: &str) -> Result<Fields> {
    for part in split_csv(text) {
        if !part.is_empty() && !part.contains('=') {
            bail!(
                "invalid {option}: {part:?} is no name=value, as in mode=max, and neither true nor false"
            );
        }
    }
    let fields = attest::fields(option, text)?.into_iter();
    Ok(fields
        .map(|(name, value)| (name.trim().to_lowercase(), value))
        .collect())
}

/// What `--provenance` knows; a typo must not be taken for a wish.
const OF_PROVENANCE: [&str; 8] = [
    "mode",
    "version",
    "builder-id",
    "reproducible",
    "inline-only",
    "filename",
    "complete-materials",
    "disabled",
];

fn read_provenance(option: &str, fields: &[(String, String)]) -> Result<Option<Provenance>> {
    for (name, _) in fields {
        if !OF_PROVENANCE.contains(&name.as_str()) {
            bail!(
                "invalid {option}: provenance has no {name:?}; there are {}",
                OF_PROVENANCE.join(", ")
            );
        }
    }
    Ok(Provenance::parse(&joined(fields))?)
}

fn read_sbom(fields: &[(String, String)]) -> Result<Option<Sbom>> {
    Ok(Sbom::parse(&joined(fields))?)
}

/// Writes fields in quotes, as their values may hold commas.
fn joined(fields: &[(String, String)]) -> String {
    let quoted = |(name, value): &(String, String)| {
        format!("\"{}\"", format!("{name}={value}").replace('"', "\"\""))
    };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",")
}

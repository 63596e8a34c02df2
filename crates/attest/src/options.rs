//! What a user asks for: the text after `--attest type=…`, without the type.

use std::collections::BTreeMap;

use crate::AttestError;

/// Which provenance is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    pub version: Version,
    pub mode: Mode,
    pub builder_id: String,
    pub reproducible: bool,
    /// Only with images of a registry, not with archives and files.
    pub inline_only: bool,
    /// The name of the file beside exported files.
    pub filename: String,
    /// A build that takes from what cannot be named is refused.
    pub complete_materials: bool,
}

impl Default for Provenance {
    fn default() -> Self {
        Self {
            version: Version::V1,
            mode: Mode::Max,
            builder_id: String::new(),
            reproducible: false,
            inline_only: false,
            filename: "provenance.json".to_owned(),
            complete_materials: false,
        }
    }
}

/// The form of the predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V02,
    V1,
}

impl Version {
    /// Returns the predicate type.
    pub fn predicate_type(self) -> &'static str {
        match self {
            Self::V02 => "https://slsa.dev/provenance/v0.2",
            Self::V1 => "https://slsa.dev/provenance/v1",
        }
    }
}

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Materials and times; no arguments, no sources.
    Min,
    /// Everything.
    Max,
}

/// Which SBOM is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sbom {
    /// The image of the scanner.
    pub generator: String,
    /// Given to the scanner as `BUILDKIT_SCAN_NAME`.
    pub parameters: BTreeMap<String, String>,
}

impl Sbom {
    /// The scanner clients take if they name none.
    pub const GENERATOR: &'static str = "docker/buildkit-syft-scanner:stable-1";

    /// Reads `key=value,…`; `None` where it is disabled.
    pub fn parse(text: &str) -> Result<Option<Self>, AttestError> {
        let mut sbom = Self {
            generator: Self::GENERATOR.to_owned(),
            parameters: BTreeMap::new(),
        };
        for (name, value) in fields("sbom", text)? {
            match name.as_str() {
                "disabled" if truth("sbom", &name, &value)? => return Ok(None),
                "disabled" | "inline-only" => {}
                "generator" if value.is_empty() => {}
                "generator" => sbom.generator = value,
                _ => {
                    sbom.parameters.insert(name, value);
                }
            }
        }
        Ok(Some(sbom))
    }
}

/// In the form that [`Sbom::parse`] reads.
impl std::fmt::Display for Sbom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quoted = |name: &str, value: &str| {
            let field = format!("{name}={value}").replace('"', "\"\"");
            format!("\"{field}\"")
        };
        f.write_str(&quoted("generator", &self.generator))?;
        for (name, value) in &self.parameters {
            write!(f, ",{}", quoted(name, value))?;
        }
        Ok(())
    }
}

impl Provenance {
    /// Reads `key=value,…`; `None` where it is disabled.
    pub fn parse(text: &str) -> Result<Option<Self>, AttestError> {
        const WHAT: &str = "provenance";
        let mut provenance = Self::default();
        for (name, value) in fields(WHAT, text)? {
            let invalid = |reason| AttestError::Option {
                attestation: WHAT,
                name: name.clone(),
                value: value.clone(),
                reason,
            };
            match name.as_str() {
                "disabled" if truth(WHAT, &name, &value)? => return Ok(None),
                "version" => {
                    provenance.version = match value.as_str() {
                        "v1" => Version::V1,
                        "v0.2" => Version::V02,
                        _ => return Err(invalid("it is v1 or v0.2")),
                    };
                }
                "mode" => {
                    provenance.mode = match value.as_str() {
                        "min" => Mode::Min,
                        "max" | "full" => Mode::Max,
                        _ => return Err(invalid("it is min or max")),
                    };
                }
                "builder-id" => provenance.builder_id = value,
                "reproducible" => provenance.reproducible = truth(WHAT, &name, &value)?,
                "inline-only" => provenance.inline_only = truth(WHAT, &name, &value)?,
                "complete-materials" => {
                    provenance.complete_materials = truth(WHAT, &name, &value)?;
                }
                "filename" if matches!(value.as_str(), "" | "." | "..") || value.contains('/') => {
                    return Err(invalid("it is the name of a file"));
                }
                "filename" => provenance.filename = value,
                // What newer clients ask for beyond this changes nothing that is promised here.
                _ => {}
            }
        }
        Ok(Some(provenance))
    }
}

fn truth(attestation: &'static str, name: &str, value: &str) -> Result<bool, AttestError> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(AttestError::Option {
            attestation,
            name: name.to_owned(),
            value: value.to_owned(),
            reason: "it is true or false",
        }),
    }
}

/// Splits `key=value` fields at commas, as CSV: a field in quotes may hold commas.
pub fn fields(attestation: &str, text: &str) -> Result<Vec<(String, String)>, AttestError> {
    let wrong = |reason| AttestError::Fields {
        attestation: attestation.to_owned(),
        reason,
    };
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let field;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut value = String::new();
            let mut left = quoted;
            loop {
                let end = left
                    .find('"')
                    .ok_or_else(|| wrong("a quote is not closed"))?;
                value.push_str(&left[..end]);
                left = &left[end + 1..];
                match left.strip_prefix('"') {
                    Some(more) => {
                        value.push('"');
                        left = more;
                    }
                    None => break,
                }
            }
            rest = match left.strip_prefix(',') {
                Some(more) => more,
                None if left.is_empty() => left,
                None => return Err(wrong("something follows a quote")),
            };
            field = value;
        } else {
            let (head, tail) = rest.split_once(',').unwrap_or((rest, ""));
            if head.contains('"') {
                return Err(wrong("there is a quote within a field"));
            }
            field = head.to_owned();
            rest = tail;
        }
        let (name, value) = field.split_once('=').unwrap_or((&field, ""));
        if !name.is_empty() {
            found.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provenance_is_read() {
        let parse = |text| Provenance::parse(text);
        assert_eq!(parse("").unwrap().unwrap(), Provenance::default());
        let found = parse("mode=min,inline-only=true,version=v0.2,builder-id=x").unwrap();
        let found = found.unwrap();
        assert_eq!((found.mode, found.version), (Mode::Min, Version::V02));
        assert!(found.inline_only);
        assert_eq!(found.builder_id, "x");
        assert_eq!(parse("disabled=true").unwrap(), None);
        assert!(parse("disabled=false").unwrap().is_some());
        for bad in [
            "mode=some",
            "version=v2",
            "reproducible=maybe",
            "filename=a/b",
            "\"mode=max",
            "mo\"de=max",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_of_a_scanner_may_hold_commas() {
        let text = r#""generator=x/y","a=b,c","d=say ""no""""#;
        let sbom = Sbom::parse(text).unwrap().unwrap();
        assert_eq!(sbom.generator, "x/y");
        assert_eq!(sbom.parameters["a"], "b,c");
        assert_eq!(sbom.parameters["d"], "say \"no\"");
        assert_eq!(Sbom::parse(&sbom.to_string()).unwrap(), Some(sbom));
        let usual = Sbom::parse("generator=").unwrap().unwrap();
        assert_eq!(usual.generator, Sbom::GENERATOR);
    }
}

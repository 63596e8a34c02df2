//! Reads annotations: `--annotation` and those of `--output`.

use anyhow::{Context, Result, bail};
use engine::{AnnotatedPart, Annotation};
use oci::Platform;

const PARTS: [(&str, AnnotatedPart); 4] = [
    ("manifest", AnnotatedPart::Manifest),
    ("manifest-descriptor", AnnotatedPart::ManifestDescriptor),
    ("index", AnnotatedPart::Index),
    ("index-descriptor", AnnotatedPart::IndexDescriptor),
];

/// Reads `[PART[[PLATFORM]][,PART…]:]KEY=VALUE`.
pub(crate) fn option(text: &str) -> Result<Vec<Annotation>> {
    let wrong = || format!("invalid --annotation {text:?}");
    let (key, value) = text
        .split_once('=')
        .with_context(|| format!("{}: it is not KEY=VALUE", wrong()))?;
    let (parts, key) = match key.split_once(':') {
        Some((parts, key)) => (parts, key),
        None => ("manifest", key),
    };
    if key.is_empty() {
        bail!("{}: it has no key", wrong());
    }
    let parts = parts.split(',').map(|text| {
        let (part, platform) = part(text).with_context(wrong)?;
        Ok(Annotation {
            part,
            platform,
            key: key.to_owned(),
            value: value.to_owned(),
        })
    });
    parts.collect()
}

/// Reads a field of `--output`: `annotation[-PART][[PLATFORM]].KEY`; `None` for one that is no annotation.
pub(crate) fn field(name: &str, value: &str) -> Result<Option<Annotation>> {
    let Some(rest) = name.strip_prefix("annotation") else {
        return Ok(None);
    };
    let Some((prefix, key)) = rest.split_once('.') else {
        return Ok(None);
    };
    let wrong = || format!("invalid field {name:?} of --output");
    let text = match prefix.strip_prefix('-') {
        Some(part) => part.to_owned(),
        None => format!("manifest{prefix}"),
    };
    let (part, platform) = part(&text).with_context(wrong)?;
    Ok(Some(Annotation {
        part,
        platform,
        key: key.to_owned(),
        value: value.to_owned(),
    }))
}

fn part(text: &str) -> Result<(AnnotatedPart, Option<Platform>)> {
    let (name, platform) = match text.split_once('[') {
        None => (text, None),
        Some((name, rest)) => {
            let platform = rest
                .strip_suffix(']')
                .with_context(|| format!("{text:?} lacks its closing bracket"))?;
            let parsed: Platform = platform
                .parse()
                .with_context(|| format!("invalid platform {platform:?}"))?;
            (name, Some(parsed.normalized()))
        }
    };
    match PARTS.iter().find(|(known, _)| *known == name) {
        Some((_, part)) => Ok((*part, platform)),
        None => bail!(
            "there is no {name:?} to annotate; there are manifest, manifest-descriptor, index and index-descriptor"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(note: &Annotation) -> String {
        let platform = note
            .platform
            .as_ref()
            .map(|platform| format!("[{platform}]"));
        format!(
            "{:?}{} {}={}",
            note.part,
            platform.unwrap_or_default(),
            note.key,
            note.value
        )
    }

    #[test]
    fn options_say_what_they_annotate() {
        let check = |text: &str, expect: &[&str]| {
            let found: Vec<String> = option(text).unwrap().iter().map(shown).collect();
            assert_eq!(found, expect, "{text}");
        };
        check("a=b", &["Manifest a=b"]);
        check("a=b=c:d", &["Manifest a=b=c:d"]);
        check("index:a=b", &["Index a=b"]);
        check("index,manifest:a=", &["Index a=", "Manifest a="]);
        check(
            "manifest[linux/arm64],index-descriptor:Some.Key=b",
            &[
                "Manifest[linux/arm64] Some.Key=b",
                "IndexDescriptor Some.Key=b",
            ],
        );
        for text in [
            "a",
            "=b",
            "layer:a=b",
            "index[linux/amd64:a=b",
            "manifest[/]:a=b",
        ] {
            assert!(option(text).is_err(), "{text}");
        }
    }

    #[test]
    fn fields_say_what_they_annotate() {
        let check = |name: &str, expect: Option<&str>| {
            let found = field(name, "v").unwrap().as_ref().map(shown);
            assert_eq!(found.as_deref(), expect, "{name}");
        };
        check("annotation.org.Key", Some("Manifest org.Key=v"));
        check("annotation-index.k", Some("Index k=v"));
        check(
            "annotation-manifest-descriptor[linux/arm/v7].k",
            Some("ManifestDescriptor[linux/arm/v7] k=v"),
        );
        check(
            "annotation[linux/amd64].k",
            Some("Manifest[linux/amd64] k=v"),
        );
        check("dest", None);
        assert!(field("annotation-layer.k", "v").is_err());
    }
}

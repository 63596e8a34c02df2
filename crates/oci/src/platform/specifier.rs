//! The text of platforms.

use std::borrow::Cow;

use super::{Platform, PlatformError, host_architecture, host_os};

const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

const KNOWN_ARCHITECTURES: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "arm64",
    "arm64be",
    "armbe",
    "loong64",
    "mips",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "mipsle",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

pub(super) fn normalize_os(os: &str) -> String {
    let os = os.to_lowercase();
    match os.as_str() {
        "" => host_os().to_owned(),
        "macos" => "darwin".to_owned(),
        _ => os,
    }
}

pub(super) fn normalize_architecture(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = (architecture.to_lowercase(), variant.to_lowercase());
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64" | "arm64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

pub(super) fn parse(text: &str) -> Result<Platform, PlatformError> {
    if text.contains('*') {
        return Err(PlatformError::Wildcard {
            text: text.to_owned(),
        });
    }
    let components: Vec<&str> = text.splitn(4, '/').collect();
    let mut platform = parse_os(text, components[0])?;
    for component in &components[1..] {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if component.is_empty() || !component.bytes().all(valid) {
            return Err(invalid(text, component));
        }
    }
    // The usual variant of arm goes without saying.
    let short =
        |(architecture, variant): (String, String)| match (architecture.as_str(), variant.as_str())
        {
            ("arm", "v7") => (architecture, String::new()),
            _ => (architecture, variant),
        };
    match components[..] {
        [single] => {
            if KNOWN_OS.contains(&platform.os.as_str()) {
                platform.architecture = host_architecture().to_owned();
                return Ok(platform);
            }
            (platform.architecture, platform.variant) = short(normalize_architecture(single, ""));
            if !KNOWN_ARCHITECTURES.contains(&platform.architecture.as_str()) {
                return Err(PlatformError::Unknown {
                    text: text.to_owned(),
                });
            }
            platform.os = host_os().to_owned();
        }
        [_, architecture] => {
            (platform.architecture, platform.variant) =
                short(normalize_architecture(architecture, ""));
        }
        [_, architecture, variant] => {
            (platform.architecture, platform.variant) =
                normalize_architecture(architecture, variant);
            if platform.architecture == "arm64" && platform.variant.is_empty() {
                platform.variant = "v8".to_owned();
            }
        }
        _ => {
            return Err(PlatformError::Components {
                text: text.to_owned(),
            });
        }
    }
    Ok(platform)
}

/// Reads the first component: `os`, `os(version)`, `os(version+feature+feature)` or `os(+feature)`.
fn parse_os(text: &str, component: &str) -> Result<Platform, PlatformError> {
    let (name, options) = match component.split_once('(') {
        Some((name, rest)) => {
            let options = rest
                .strip_suffix(')')
                .ok_or_else(|| invalid(text, component))?;
            (name, Some(options))
        }
        None => (component, None),
    };
    let name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.is_empty() || !name.bytes().all(name_byte) {
        return Err(invalid(text, component));
    }
    let mut platform = Platform {
        os: normalize_os(name),
        ..Platform::default()
    };
    let Some(options) = options else {
        return Ok(platform);
    };
    let option_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_.%-".contains(&byte);
    for (index, option) in options.split('+').enumerate() {
        if (index > 0 && option.is_empty()) || !option.bytes().all(option_byte) {
            return Err(invalid(text, component));
        }
        let decoded = percent_decoded(option).ok_or_else(|| PlatformError::Escape {
            text: text.to_owned(),
            option: option.to_owned(),
        })?;
        match index {
            0 => platform.os_version = decoded,
            _ => platform.os_features.push(decoded),
        }
    }
    Ok(platform)
}

fn invalid(text: &str, component: &str) -> PlatformError {
    PlatformError::Component {
        text: text.to_owned(),
        component: component.to_owned(),
    }
}

fn percent_decoded(option: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(option.len());
    let mut rest = option.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

pub(super) fn format(platform: &Platform, full: bool) -> String {
    if platform.os.is_empty() {
        return "unknown".to_owned();
    }
    let mut os = Cow::Borrowed(platform.os.as_str());
    if full {
        let mut features: Vec<&str> = platform.os_features.iter().map(String::as_str).collect();
        features.retain(|feature| !feature.is_empty());
        features.sort_unstable();
        features.dedup();
        let mut options = percent_encoded(&platform.os_version);
        for feature in features {
            options.push('+');
            options.push_str(&percent_encoded(feature));
        }
        if !options.is_empty() {
            os = Cow::Owned(format!("{os}({options})"));
        }
    }
    joined(&[&os, &platform.architecture, &platform.variant])
}

fn percent_encoded(option: &str) -> String {
    let mut encoded = String::with_capacity(option.len());
    for character in option.chars() {
        match character {
            '%' | '+' | '(' | ')' | '/' => {
                encoded.push_str(&format!("%{:02X}", u32::from(character)))
            }
            _ => encoded.push(character),
        }
    }
    encoded
}

/// Joins as paths are joined: empty components fall away, `.` and `..` are resolved.
fn joined(components: &[&str]) -> String {
    let rooted = components
        .iter()
        .find(|component| !component.is_empty())
        .is_some_and(|first| first.starts_with('/'));
    let mut kept: Vec<&str> = Vec::new();
    for part in components.iter().flat_map(|component| component.split('/')) {
        match part {
            "" | "." => {}
            ".." if kept.last().is_some_and(|last| *last != "..") => {
                kept.pop();
            }
            ".." if rooted => {}
            part => kept.push(part),
        }
    }
    match (rooted, kept.is_empty()) {
        (true, _) => format!("/{}", kept.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => kept.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let shown = match text.parse::<Platform>() {
            Ok(platform) => format!("{platform} {} {}", platform.full(), platform.normalized()),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expect, "{text}");
    }

    #[test]
    fn spellings_are_unified() {
        check("linux/x86_64", "linux/amd64 linux/amd64 linux/amd64");
        check("linux/amd64/v1", "linux/amd64 linux/amd64 linux/amd64");
        check(
            "linux/amd64/v3",
            "linux/amd64/v3 linux/amd64/v3 linux/amd64/v3",
        );
        check("linux/aarch64", "linux/arm64 linux/arm64 linux/arm64");
        check(
            "linux/arm64/v8",
            "linux/arm64/v8 linux/arm64/v8 linux/arm64",
        );
        check("linux/armel", "linux/arm/v6 linux/arm/v6 linux/arm/v6");
        check("macOS/arm64", "darwin/arm64 darwin/arm64 darwin/arm64");
    }

    #[test]
    fn version_and_features_of_the_operating_system_are_kept_apart() {
        check(
            "windows(10.0.17763+win32k+b)/amd64",
            "windows/amd64 windows(10.0.17763+b+win32k)/amd64 windows/amd64",
        );
        check(
            "linux(+a%2Bb)/amd64",
            "linux/amd64 linux(+a%2Bb)/amd64 linux/amd64",
        );
        check("linux()/amd64", "linux/amd64 linux/amd64 linux/amd64");
        check(
            "linux(1+)/amd64",
            "\"linux(1+)\" in platform \"linux(1+)/amd64\" has invalid characters",
        );
        check(
            "linux(%zz)/amd64",
            "\"%zz\" in platform \"linux(%zz)/amd64\" has an invalid percent escape",
        );
        check(
            "linux(1/amd64",
            "\"linux(1\" in platform \"linux(1/amd64\" has invalid characters",
        );
    }

    #[test]
    fn what_names_no_platform_is_refused() {
        check("", "\"\" in platform \"\" has invalid characters");
        check(
            "linux/",
            "\"\" in platform \"linux/\" has invalid characters",
        );
        check(
            "riscy",
            "\"riscy\" is neither a known operating system nor a known architecture",
        );
        check(
            "a/b/c/d",
            "platform \"a/b/c/d\" has more than three components",
        );
        check("*", "platform \"*\" has wildcards, which are not supported");
    }
}

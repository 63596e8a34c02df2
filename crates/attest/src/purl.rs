//! Package URLs of images (package-url specification; types `docker` and `oci`).

use oci::{Platform, Reference};

/// Which kind of package an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Package {
    /// From a registry.
    Docker,
    /// From a layout.
    Oci,
}

/// Returns the package URL of an image by its name.
pub fn package_url(kind: Package, reference: &Reference, platform: Option<&Platform>) -> String {
    let name = reference.clone().without_version().familiar();
    let mut parts: Vec<&str> = name.split('/').collect();
    let last = parts.pop().unwrap_or_default();
    let mut url = String::from(match kind {
        Package::Docker => "pkg:docker/",
        Package::Oci => "pkg:oci/",
    });
    for part in parts {
        url.push_str(&escaped(part, ""));
        url.push('/');
    }
    url.push_str(&escaped(last, ""));
    let version = match (reference.tag(), reference.digest()) {
        (Some(tag), _) => Some(tag),
        (None, None) => Some("latest"),
        (None, Some(_)) => None,
    };
    if let Some(version) = version {
        url.push('@');
        url.push_str(&escaped(version, ":"));
    }
    let digest = reference
        .digest()
        .map(|digest| format!("digest={}", escaped(&digest.to_string(), ":")));
    let platform = platform.map(|platform| {
        let platform = platform.normalized().to_string();
        format!("platform={}", escaped(&platform, ":"))
    });
    let qualifiers: Vec<String> = [digest, platform].into_iter().flatten().collect();
    if !qualifiers.is_empty() {
        url.push('?');
        url.push_str(&qualifiers.join("&"));
    }
    url
}

fn escaped(text: &str, kept: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        let character = char::from(byte);
        let plain = character.is_ascii_alphanumeric() || "-._~".contains(character);
        match plain || (byte.is_ascii() && kept.contains(character)) {
            true => escaped.push(character),
            false => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_package_urls() {
        let check = |name: &str, platform: Option<&str>, expect: &str| {
            let reference = Reference::parse_normalized(name).unwrap();
            let platform = platform.map(|platform| platform.parse().unwrap());
            let url = package_url(Package::Docker, &reference, platform.as_ref());
            assert_eq!(url, expect);
        };
        check("busybox", None, "pkg:docker/busybox@latest");
        check(
            "busybox:1",
            Some("linux/arm64"),
            "pkg:docker/busybox@1?platform=linux%2Farm64",
        );
        check("a/b:c", None, "pkg:docker/a/b@c");
        check(
            "localhost:5000/a/b",
            None,
            "pkg:docker/localhost%3A5000/a/b@latest",
        );
        let digest = format!("sha256:{}", "a".repeat(64));
        check(
            &format!("x@{digest}"),
            Some("linux/amd64"),
            &format!("pkg:docker/x?digest={digest}&platform=linux%2Famd64"),
        );
    }
}

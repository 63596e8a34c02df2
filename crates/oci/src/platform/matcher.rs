//! Which of several images suits a platform best.

use super::{Ordering, Platform};

/// Tells which platforms satisfy a wish, and which of two does so better.
#[derive(Debug, Clone)]
pub struct PlatformMatcher {
    /// Acceptable platforms, normalized, best first.
    accepted: Vec<Platform>,
}

impl PlatformMatcher {
    /// Accepts what a machine of `platform` can run: the platform itself, then lesser variants, then 32 bits.
    pub fn runnable(platform: &Platform) -> Self {
        Self {
            accepted: runnable(platform.normalized()),
        }
    }

    /// Accepts nothing but `platform`, in any spelling.
    pub fn exactly(platform: &Platform) -> Self {
        Self {
            accepted: vec![platform.normalized()],
        }
    }

    /// Accepts exactly the given platforms, best first.
    pub fn ordered(platforms: &[Platform]) -> Self {
        Self {
            accepted: platforms.iter().map(Platform::normalized).collect(),
        }
    }

    pub fn matches(&self, candidate: &Platform) -> bool {
        let normalized = candidate.normalized();
        self.accepted
            .iter()
            .any(|accepted| satisfies(accepted, &normalized))
    }

    /// Orders candidates best first; what does not match at all comes last.
    pub fn compare(&self, first: &Platform, second: &Platform) -> Ordering {
        self.rank(first).cmp(&self.rank(second))
    }

    /// Returns the place among the accepted platforms, then more features of the operating system first.
    ///
    /// Of two that do not match the one that would without its features comes first.
    fn rank(&self, candidate: &Platform) -> (bool, usize, std::cmp::Reverse<usize>) {
        let mut normalized = candidate.normalized();
        let place = |candidate: &Platform| {
            self.accepted
                .iter()
                .position(|accepted| satisfies(accepted, candidate))
        };
        if let Some(place) = place(&normalized) {
            return (
                false,
                place,
                std::cmp::Reverse(normalized.os_features.len()),
            );
        }
        normalized.os_features.clear();
        (
            true,
            place(&normalized).unwrap_or(usize::MAX),
            std::cmp::Reverse(0),
        )
    }
}

/// Both are normalized. Features the candidate asks for must all be wished for.
fn satisfies(wish: &Platform, candidate: &Platform) -> bool {
    let windows = wish.os == "windows";
    wish.os == candidate.os
        && wish.architecture == candidate.architecture
        && wish.variant == candidate.variant
        && (!windows || windows_version_satisfies(&wish.os_version, &candidate.os_version))
        && candidate
            .os_features
            .iter()
            .all(|feature| wish.os_features.contains(feature) || windows && feature == "win32k")
}

/// Windows containers need the host's own release, since Server 2022 also the long-term release before it.
fn windows_version_satisfies(host: &str, container: &str) -> bool {
    const LONG_TERM: [u16; 2] = [20348, 26100];
    let (Some((host_version, host_build)), false) = (windows_version(host), container.is_empty())
    else {
        return true;
    };
    let (container_version, container_build) = windows_version(container).unwrap_or_default();
    if host_version != container_version {
        return false;
    }
    if host_build < LONG_TERM[0] {
        return host_build == container_build;
    }
    let oldest = LONG_TERM
        .into_iter()
        .rev()
        .find(|release| host_build > *release)
        .unwrap_or(LONG_TERM[0]);
    (oldest..=host_build).contains(&container_build)
}

/// Reads `major.minor.build[.revision]`.
fn windows_version(text: &str) -> Option<((u8, u8), u16)> {
    let mut numbers = text.split('.');
    let (major, minor, build) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let version = (
        (major.parse().ok()?, minor.parse().ok()?),
        build.parse().ok()?,
    );
    (version != ((0, 0), 0)).then_some(version)
}

fn runnable(platform: Platform) -> Vec<Platform> {
    let variant_of = |architecture: &str, variant: String| Platform {
        architecture: architecture.to_owned(),
        variant,
        ..platform.clone()
    };
    match platform.architecture.as_str() {
        "amd64" => {
            let mut accepted = vec![platform.clone()];
            let level = version_number(&platform.variant).unwrap_or(1);
            accepted.extend(
                (1..level)
                    .rev()
                    .map(|level| variant_of("amd64", format!("v{level}")).normalized()),
            );
            accepted.push(variant_of("386", String::new()));
            accepted
        }
        "arm" => {
            let mut accepted = vec![platform.clone()];
            let version = version_number(&platform.variant).unwrap_or(5);
            accepted.extend(
                (5..version)
                    .rev()
                    .map(|version| variant_of("arm", format!("v{version}"))),
            );
            accepted
        }
        "arm64" => {
            let Some(versions) = arm64_versions(&platform.variant) else {
                return vec![platform];
            };
            let mut accepted: Vec<Platform> = Vec::new();
            for (major, newest) in versions {
                accepted.extend((0..=newest).rev().map(|minor| {
                    let variant = if minor == 0 {
                        format!("v{major}")
                    } else {
                        format!("v{major}.{minor}")
                    };
                    variant_of("arm64", variant).normalized()
                }));
            }
            accepted.extend(
                (5..=8)
                    .rev()
                    .map(|version| variant_of("arm", format!("v{version}"))),
            );
            accepted
        }
        _ => vec![platform],
    }
}

/// Reads `vN` or `N`; a number no processor has is taken as none, so that lists stay short.
fn version_number(variant: &str) -> Option<u32> {
    let number = variant.strip_prefix('v').unwrap_or(variant).parse().ok()?;
    (number <= 16).then_some(number)
}

/// Returns the major versions an arm64 machine runs, each with its newest minor version: v9.x is a superset of v8.x+5.
fn arm64_versions(variant: &str) -> Option<Vec<(u32, u32)>> {
    let version = if variant.is_empty() {
        "8"
    } else {
        variant.strip_prefix('v')?
    };
    let (major, minor) = match version.split_once('.') {
        Some((major, minor)) => (major, minor.parse().ok()?),
        None => (version, 0),
    };
    match (major, minor) {
        ("8", 0..=9) => Some(vec![(8, minor)]),
        ("9", 0..=7) => Some(vec![(9, minor), (8, (minor + 5).min(9))]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    fn check(matcher: &PlatformMatcher, candidates: &[&str], expect: &[&str]) {
        let mut matching: Vec<Platform> = candidates.iter().map(|text| platform(text)).collect();
        matching.retain(|candidate| matcher.matches(candidate));
        matching.sort_by(|first, second| matcher.compare(first, second));
        let shown: Vec<String> = matching.iter().map(Platform::full).collect();
        assert_eq!(shown, expect);
    }

    const ALL: &[&str] = &[
        "linux/386",
        "linux/amd64/v2",
        "linux/amd64",
        "linux/amd64/v3",
        "linux/arm/v5",
        "linux/arm/v6",
        "linux/arm/v7",
        "linux/arm64",
        "linux/arm64/v8.1",
        "linux/arm64/v9",
        "windows/amd64",
        "linux/s390x",
    ];

    #[test]
    fn a_machine_prefers_its_own_variant_then_lesser_ones() {
        let runnable = |text: &str| PlatformMatcher::runnable(&platform(text));
        check(&runnable("linux/amd64"), ALL, &["linux/amd64", "linux/386"]);
        check(
            &runnable("linux/amd64/v2"),
            ALL,
            &["linux/amd64/v2", "linux/amd64", "linux/386"],
        );
        check(
            &runnable("linux/arm"),
            ALL,
            &["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
        );
        check(
            &runnable("linux/arm/v6"),
            ALL,
            &["linux/arm/v6", "linux/arm/v5"],
        );
        check(
            &runnable("linux/arm64"),
            ALL,
            &[
                "linux/arm64",
                "linux/arm/v7",
                "linux/arm/v6",
                "linux/arm/v5",
            ],
        );
        check(
            &runnable("linux/arm64/v9"),
            ALL,
            &[
                "linux/arm64/v9",
                "linux/arm64/v8.1",
                "linux/arm64",
                "linux/arm/v7",
                "linux/arm/v6",
                "linux/arm/v5",
            ],
        );
        check(&runnable("linux/s390x"), ALL, &["linux/s390x"]);
    }

    #[test]
    fn an_exact_wish_takes_no_lesser_variant() {
        check(
            &PlatformMatcher::exactly(&platform("linux/arm/v7")),
            ALL,
            &["linux/arm/v7"],
        );
        check(
            &PlatformMatcher::exactly(&platform("linux/amd64")),
            ALL,
            &["linux/amd64"],
        );
    }

    #[test]
    fn features_must_be_wished_for_and_more_of_them_are_better() {
        let matcher = PlatformMatcher::exactly(&platform("linux(+a+b)/amd64"));
        check(
            &matcher,
            &[
                "linux/amd64",
                "linux(+b)/amd64",
                "linux(+a+b)/amd64",
                "linux(+c)/amd64",
            ],
            &["linux(+a+b)/amd64", "linux(+b)/amd64", "linux/amd64"],
        );
    }

    #[test]
    fn windows_needs_a_fitting_release() {
        let candidates = &[
            "windows(10.0.17763.1)/amd64",
            "windows(10.0.20348.5)/amd64",
            "windows/amd64",
        ];
        let runnable = |text: &str| PlatformMatcher::runnable(&platform(text));
        check(
            &runnable("windows(10.0.17763)/amd64"),
            candidates,
            &["windows(10.0.17763.1)/amd64", "windows/amd64"],
        );
        check(
            &runnable("windows(10.0.25398)/amd64"),
            candidates,
            &["windows(10.0.20348.5)/amd64", "windows/amd64"],
        );
    }

    #[test]
    fn a_hostile_variant_costs_nothing() {
        let matcher = PlatformMatcher::runnable(&Platform::new("linux", "amd64", "v4000000000"));
        assert!(matcher.accepted.len() < 4);
    }
}

//! The pages of the manual, done word for word through the real binary.

use testkit::pages::Page;
use testkit::{Environment, has_fixture, has_program, skip};

/// Does what a page says, in a world of its own.
#[track_caller]
fn follow(path: &str) {
    let text = std::fs::read_to_string(testkit::checkout().join(path)).expect("the page is there");
    let page = Page::parse(&text);
    assert!(page.is_run(), "{path} has no commands to run");
    for name in page.needed("fixture") {
        if !has_fixture(name) {
            skip!("{path}: no fixture {name} (`cargo xtask fixtures` makes it)");
        }
    }
    for name in page.needed("program") {
        if !has_program(name) {
            skip!("{path}: no {name} on this machine");
        }
    }
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let wrong = page.run(&environment);
    assert!(wrong.is_empty(), "{path}\n{}", wrong.join("\n\n"));
}

macro_rules! pages {
    ($($name:ident: $path:literal,)+) => {
        const FOLLOWED: &[&str] = &[$($path),+];

        $(
            #[test]
            fn $name() {
                follow($path);
            }
        )+
    };
}

pages! {
    air_gapped: "docs/user/air-gapped.md",
    ci: "docs/user/ci.md",
    concepts: "docs/user/concepts.md",
    migration: "docs/user/migration.md",
    readme: "README.md",
    rootless: "docs/user/rootless.md",
    troubleshooting: "docs/user/troubleshooting.md",
    tutorial: "docs/user/tutorial.md",
}

#[test]
fn every_page_with_commands_is_followed() {
    let mut found = vec!["README.md".to_owned()];
    for folder in ["docs", "docs/user"] {
        for entry in std::fs::read_dir(testkit::checkout().join(folder)).expect("docs are there") {
            let name = entry.expect("docs can be read").file_name();
            let path = format!("{folder}/{}", name.to_string_lossy());
            let text = std::fs::read_to_string(testkit::checkout().join(&path)).unwrap_or_default();
            if path.ends_with(".md") && Page::parse(&text).is_run() {
                found.push(path);
            }
        }
    }
    found.sort();
    let mut followed = FOLLOWED.to_vec();
    followed.sort_unstable();
    assert_eq!(found, followed);
}

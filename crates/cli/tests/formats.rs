//! Listings in every form: JSON, templates, ids alone, nothing shortened.

use serde_json::Value;
use testkit::{Environment, require_fixtures};

fn world() -> Environment {
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write(
        "app/Dockerfile",
        "FROM busybox\nRUN --mount=type=cache,target=/kept,id=kept echo made > /kept/file\nCMD [\"true\"]\n",
    );
    world.ok(["build", "-q", "-t", "app", "app"]);
    world.ok(["create", "--name", "box", "app"]);
    world
}

/// Listings, a field of each, and whether it has `-q` and `--no-trunc`.
const LISTINGS: [(&[&str], &str, bool, bool); 9] = [
    (&["images"], "ID", true, true),
    (&["image", "ls"], "Repository", true, true),
    (&["ps", "-a"], "ID", true, true),
    (&["container", "ls", "-a"], "Names", true, true),
    (&["history", "ls"], "Ref", true, true),
    (&["history", "app"], "CreatedBy", true, true),
    (&["image", "history", "app"], "ID", true, true),
    (&["cache", "mounts", "ls"], "ID", true, false),
    (&["system", "df"], "Type", false, false),
];

fn with<'a>(words: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [words, more].concat()
}

#[test]
fn every_listing_is_printed_as_json_a_line_each() {
    require_fixtures!("busybox:latest");
    let world = world();
    for (words, ..) in LISTINGS {
        let told = world.ok(with(words, &["--format", "json"])).stdout;
        assert!(!told.is_empty(), "{words:?} lists nothing");
        for line in told.lines() {
            let row: Value = serde_json::from_str(line).expect("a line of JSON");
            assert!(row.is_object(), "{words:?}: {line}");
        }
    }
    world.ok(["tag", "app", "other"]);
    for words in [
        &["image", "tree", "app"][..],
        &["image", "diff", "app", "other"],
    ] {
        let told = world.ok(with(words, &["--format", "json"])).stdout;
        serde_json::from_str::<Value>(&told).expect("a document of JSON");
    }
    for words in [&["version"][..], &["info"]] {
        let told = world.ok(with(words, &["--format", "json"])).stdout;
        serde_json::from_str::<Value>(&told).expect("a document of JSON");
    }
}

#[test]
fn every_listing_takes_templates_and_names_the_fields_it_has() {
    require_fixtures!("busybox:latest");
    let world = world();
    for (words, field, ..) in LISTINGS {
        let template = format!("<{{{{.{field}}}}}>");
        let told = world.ok(with(words, &["--format", &template])).stdout;
        let is_filled = |line: &str| line.starts_with('<') && line.ends_with('>') && line != "<>";
        assert!(
            told.lines().all(is_filled) && !told.is_empty(),
            "{words:?}: {told}"
        );
        let template = format!("table {{{{.{field}}}}}");
        let told = world.ok(with(words, &["--format", &template])).stdout;
        let heading = told.lines().next().unwrap_or_default();
        assert_eq!(heading, heading.to_uppercase(), "{words:?}");
        let told = world.run(with(words, &["--format", "{{.Nope}}"]));
        let told = told.fails_with(2);
        told.says("there is no field \"Nope\"").says(field);
        let told = world
            .run(with(words, &["--format", "{{.Nope"]))
            .fails_with(2);
        told.says("{{ without }}");
    }
}

#[test]
fn ids_alone_and_whole_where_docker_has_them() {
    require_fixtures!("busybox:latest");
    let world = world();
    for (words, _, has_quiet, has_whole) in LISTINGS {
        if has_quiet {
            let told = world.ok(with(words, &["-q"])).stdout;
            let is_one = |line: &str| line.split_whitespace().count() == 1;
            assert!(
                told.lines().all(is_one) && !told.is_empty(),
                "{words:?}: {told}"
            );
        }
        if has_whole {
            let short = world.ok(words).stdout;
            let whole = world.ok(with(words, &["--no-trunc"])).stdout;
            assert_eq!(short.lines().count(), whole.lines().count(), "{words:?}");
            assert!(!whole.contains('…'), "{words:?}: {whole}");
        }
    }
    let whole = world.ok(["images", "-q", "--no-trunc"]).stdout;
    assert!(
        whole.starts_with("sha256:") && whole.trim().len() == 71,
        "{whole}"
    );
}

//! Pictures of Dockerfiles against the files beside this one; `GOLDEN=update` writes them again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oci::Platform;
use report::{
    NodeKind, Picture, Role, StageOptions, UnknownTarget, dot, mermaid, stage_picture, svg,
};

fn picture_of(
    text: &str,
    target: Option<&str>,
    arguments: &[(&str, &str)],
) -> Result<Picture, UnknownTarget> {
    let platform: Platform = "linux/amd64".parse().unwrap();
    let tree = dockerfile::parse(text.as_bytes()).unwrap();
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let options = StageOptions {
        target,
        build_args: &arguments.iter().map(own).collect::<BTreeMap<_, _>>(),
        named_contexts: &BTreeSet::from(["shared".to_owned()]),
        build_platform: &platform,
        target_platform: &platform,
    };
    stage_picture(&tree.stages().unwrap(), tree.escape, &options)
}

/// Returns nodes with their roles and edges, in short.
fn told(picture: &Picture) -> String {
    let name = |at: usize| picture.nodes[at].name.clone();
    let mut text = String::new();
    for node in &picture.nodes {
        let role = match node.role {
            Role::Target => "*",
            Role::Needed => "+",
            Role::Skipped => "-",
        };
        text.push_str(&format!("{role}{} ", node.name));
    }
    for edge in &picture.edges {
        text.push_str(&format!(
            "| {} {:?} {}.{} ",
            name(edge.from),
            edge.kind,
            name(edge.to),
            edge.row
        ));
    }
    text.trim_end().to_owned()
}

#[track_caller]
fn check(text: &str, target: Option<&str>, expected: &str) {
    let picture = picture_of(text, target, &[]).unwrap();
    assert_eq!(told(&picture), expected);
}

#[test]
fn stages_hang_together_by_name_and_number() {
    check(
        "FROM a AS one\nFROM One AS two\nCOPY --from=0 /x /\nFROM scratch\nCOPY --from=TWO /y /\nENV A=b\nRUN --mount=from=one,target=/m true",
        None,
        "+one +two *stage-2 +a | a Base one.0 | one Base two.0 | one Copy two.1 | two Copy stage-2.1 | one Mount stage-2.2",
    );
}

#[test]
fn a_stage_sees_only_the_bases_above_it_and_the_last_of_a_name() {
    check(
        "FROM x AS x\nFROM x AS x\nFROM x",
        None,
        "+x +x *stage-2 +x | x Base x.0 | x Base x.0 | x Base stage-2.0",
    );
}

#[test]
fn only_what_the_target_needs_is_marked() {
    let text = "FROM a AS base\nFROM base AS test\nRUN test\nFROM base AS tool\nFROM scratch AS app\nCOPY --from=tool / /\n";
    check(
        text,
        None,
        "+base -test +tool *app +a | a Base base.0 | base Base test.0 | base Base tool.0 | tool Copy app.1",
    );
    check(
        text,
        Some("TEST"),
        "+base *test -tool -app +a | a Base base.0 | base Base test.0 | base Base tool.0 | tool Copy app.1",
    );
    let error = picture_of(text, Some("ap"), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no stage \"ap\"; the stages are base, test, tool, app"
    );
}

#[test]
fn contexts_images_and_urls_are_sources() {
    check(
        "FROM shared\nCOPY . /\nCOPY --from=shared a /\nCOPY --from=nginx:1 b /\nADD https://example.com/x c <<E /\nE\n\
         RUN --mount=target=/src --mount=type=cache,target=/c --mount=type=secret,id=s true\nCOPY <<E /d\nE",
        None,
        "*stage-0 +shared +build context +nginx:1 +https://example.com/x | shared Base stage-0.0 | build context Copy stage-0.1 \
         | shared Copy stage-0.2 | nginx:1 Copy stage-0.3 | https://example.com/x Copy stage-0.4 | build context Copy stage-0.4 \
         | build context Mount stage-0.5",
    );
}

#[test]
fn arguments_choose_the_bases() {
    let text = "ARG KIND=small\nARG IMAGE=img-${KIND}\nFROM big AS base-big\nFROM little AS base-small\nFROM base-$KIND AS app\nFROM $IMAGE-$TARGETARCH";
    let told_of = |arguments| told(&picture_of(text, Some("app"), arguments).unwrap());
    assert!(
        told_of(&[])
            .starts_with("-base-big +base-small *app -stage-3 -big +little -img-small-amd64")
    );
    assert!(
        told_of(&[("KIND", "big")])
            .starts_with("+base-big -base-small *app -stage-3 +big -little -img-big-amd64")
    );
}

/// Checks all three languages.
#[track_caller]
fn golden(name: &str, text: &str, target: Option<&str>) {
    let picture = picture_of(text, target, &[]).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs");
    let told = [
        ("svg", svg(&picture, "Stages of Dockerfile")),
        ("mmd", mermaid(&picture)),
        ("dot", dot(&picture)),
    ];
    for (extension, told) in told {
        let path = folder.join(format!("{name}.{extension}"));
        if std::env::var("GOLDEN").is_ok_and(|golden| golden == "update") {
            std::fs::write(&path, &told).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            told == expected,
            "{} is not what is drawn now; look at it and run the test with GOLDEN=update:\n{told}",
            path.display()
        );
    }
}

fn example(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    std::fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn examples_are_drawn_as_they_were() {
    golden("single", &example("buildme/Dockerfile"), None);
    golden("multi", &example("buildme/Dockerfile.multi"), None);
    golden("parallel", &example("buildme/Dockerfile.parallel"), None);
    golden(
        "targets",
        &example("buildme/Dockerfile.targets"),
        Some("client"),
    );
    golden("nextjs", &example("nextjs/Dockerfile"), None);
}

#[test]
fn every_example_can_be_drawn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut drawn = 0;
    for folder in std::fs::read_dir(root).unwrap() {
        let Ok(files) = std::fs::read_dir(folder.unwrap().path()) else {
            continue;
        };
        let files = files.map(|file| file.unwrap().path());
        let is_dockerfile = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("Dockerfile"))
                && !path.to_string_lossy().ends_with(".dockerignore")
        };
        for path in files.filter(is_dockerfile) {
            let text = std::fs::read_to_string(&path).unwrap();
            let picture = picture_of(&text, None, &[]).unwrap();
            assert!(
                picture.nodes.iter().any(|node| node.role == Role::Target),
                "{}",
                path.display()
            );
            assert!(well_formed(&svg(&picture, "t")), "{}", path.display());
            drawn += 1;
        }
    }
    assert!(drawn >= 10, "{drawn}");
}

/// A Dockerfile of many stages, each made of the one before and of others.
fn many(count: usize, reach: usize) -> String {
    let mut text = String::from("FROM base AS s0\nRUN begin\n");
    for number in 1..count {
        text.push_str(&format!(
            "FROM s{} AS s{number}\nCOPY . .\nRUN make {number}\n",
            number / 3
        ));
        for other in 1..=reach.min(number) {
            text.push_str(&format!("COPY --from=s{} /x /x{other}\n", number - other));
        }
    }
    text
}

#[test]
fn two_hundred_stages_are_drawn_without_overlaps_and_the_same_each_time() {
    for reach in [0, 1, 3, 200] {
        let text = many(200, reach);
        let picture = picture_of(&text, None, &[]).unwrap();
        assert_eq!(
            picture
                .nodes
                .iter()
                .filter(|node| node.kind == NodeKind::Stage)
                .count(),
            200
        );
        let drawn = svg(&picture, "many");
        assert!(well_formed(&drawn));
        assert_eq!(drawn, svg(&picture_of(&text, None, &[]).unwrap(), "many"));
        assert_eq!(drawn.matches("<g class=\"stage ").count(), 200);
        let places: Vec<(f64, f64)> = drawn
            .match_indices("<g class=\"stage ")
            .map(|(at, _)| {
                let (_, rest) = drawn[at..].split_once("translate(").unwrap();
                let (x, y) = rest.split_once(')').unwrap().0.split_once(' ').unwrap();
                (x.parse().unwrap(), y.parse().unwrap())
            })
            .collect();
        for (number, a) in places.iter().enumerate() {
            for b in &places[..number] {
                assert!(
                    (a.0 - b.0).abs() >= 304.0 || (a.1 - b.1).abs() >= 66.0,
                    "{a:?} {b:?}"
                );
            }
        }
    }
}

#[test]
fn a_stage_of_thousands_of_steps_is_shown_by_its_first_ones() {
    let text = format!("FROM a\n{}", "RUN x\n".repeat(5000));
    let drawn = svg(&picture_of(&text, None, &[]).unwrap(), "long");
    assert!(drawn.contains("and 4961 more steps"));
    assert!(drawn.len() < 20_000, "{}", drawn.len());
}

#[test]
fn nothing_in_a_dockerfile_becomes_markup() {
    let text = "FROM \"<script>alert(1)</script>\" AS a\nRUN echo \"]; x</text><script>alert('2')</script>&amp;\\\\\" \u{202e}\u{1b}[31m\n\
                ADD https://e/\"onload=\"x /\n";
    let picture = picture_of(text, None, &[]).unwrap();
    let drawn = svg(&picture, "</title><script>alert(3)</script>");
    assert!(well_formed(&drawn), "{drawn}");
    assert!(
        !drawn.contains("<script") && !drawn.contains("\"onload"),
        "{drawn}"
    );
    let chart = mermaid(&picture);
    assert!(
        !chart.contains("<script") && chart.matches('"').count().is_multiple_of(2),
        "{chart}"
    );
    let graph = dot(&picture);
    for line in graph.lines() {
        let quotes = line
            .replace("\\\\", "")
            .replace("\\\"", "")
            .matches('"')
            .count();
        assert_eq!(quotes % 2, 0, "{line}");
    }
}

/// Returns whether each element that begins ends, and in order.
fn well_formed(xml: &str) -> bool {
    let mut open = Vec::new();
    let mut rest = xml;
    while let Some(at) = rest.find('<') {
        let Some(end) = rest[at..].find('>') else {
            return false;
        };
        let tag = &rest[at + 1..at + end];
        rest = &rest[at + end + 1..];
        match tag.strip_prefix('/') {
            Some(name) => {
                if open.pop() != Some(name) {
                    return false;
                }
            }
            None if tag.ends_with('/') => {}
            None => open.push(tag.split_whitespace().next().unwrap_or_default()),
        }
    }
    open.is_empty()
}

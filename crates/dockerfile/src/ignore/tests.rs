use super::*;

fn ignored<'a>(patterns: &[&str], paths: &[&'a str]) -> Vec<&'a str> {
    let matcher = Matcher::new(patterns).unwrap();
    paths
        .iter()
        .copied()
        .filter(|path| matcher.is_ignored(path).unwrap())
        .collect()
}

fn check(patterns: &[&str], paths: &[&str], expect: &[&str]) {
    assert_eq!(ignored(patterns, paths), expect, "{patterns:?}");
}

#[test]
fn files_are_read_line_by_line() {
    let file = IgnoreFile::parse("\u{feff}# c\n /a/ \r\n\n #b\n!/c/../d\n! e\n/\n!\n").unwrap();
    let lines: Vec<_> = file
        .lines
        .iter()
        .map(|line| (line.line, line.pattern.as_str()))
        .collect();
    assert_eq!(
        lines,
        [
            (2, "a"),
            (4, "#b"),
            (5, "!d"),
            (6, "!e"),
            (7, "/"),
            (8, "!")
        ]
    );
    assert_eq!(file.matcher().unwrap_err(), IgnoreError::EmptyException);
    assert_eq!(
        IgnoreFile::parse(&format!("a\n{}", "b".repeat(65_536))).unwrap_err(),
        IgnoreError::LineTooLong { line: 2 }
    );
}

#[test]
fn stars_stay_in_a_component_and_double_stars_do_not() {
    check(&["*.go"], &["a.go", "x/a.go"], &["a.go"]);
    check(
        &["**/*.go"],
        &["a.go", "x/y/a.go", "a.gox"],
        &["a.go", "x/y/a.go"],
    );
    check(&["a/**"], &["a", "a/b", "a/b/c", "ab"], &["a/b", "a/b/c"]);
    check(
        &["**b"],
        &["b", "ab", "a/b", "a/cb/d"],
        &["b", "ab", "a/b", "a/cb/d"],
    );
    check(&["a?c"], &["abc", "aéc", "a/c", "ac"], &["abc", "aéc"]);
}

#[test]
fn what_is_below_an_ignored_directory_is_ignored_unless_taken_back() {
    check(&["a"], &["a", "a/b", "ab"], &["a", "a/b"]);
    check(&["a", "!a/b"], &["a", "a/b", "a/b/c", "a/c"], &["a", "a/c"]);
    check(&["!a/b", "a"], &["a/b"], &["a/b"]);
    check(
        &["*", "!a", "a/x*"],
        &["b", "a", "a/y", "a/x1"],
        &["b", "a/x1"],
    );
}

#[test]
fn brackets_are_those_of_go_expressions() {
    check(&["[a-c]"], &["a", "d", "b"], &["a", "b"]);
    check(&["[^a]"], &["a", "b", "é"], &["b", "é"]);
    check(&["[\\]a]"], &["]", "a"], &["]", "a"]);
    check(&["[a&&b]"], &["a", "&", "b"], &["a", "&", "b"]);
    check(&["[[:alpha:]x]"], &["q", ":", "1"], &["q"]);
    // The question mark becomes brackets inside the brackets.
    check(&["[?]"], &["?", "^]", "/]"], &["^]", "/]"]);
    check(&["[a*]"], &["a", "*", "a]", "aa^]"], &["a]", "aa^]"]);
}

#[test]
fn escapes_are_those_of_go_expressions() {
    check(&["\\*"], &["*", "a"], &["*"]);
    check(&["\\d"], &["d", "7", "٣"], &["7"]);
    check(&["\\x41*"], &["Ab", "x41"], &["Ab"]);
    check(&["a\\b*"], &["ab", "a.c"], &["a.c"]);
    let matcher = Matcher::new(["\\é"]).unwrap();
    assert_eq!(
        matcher.is_ignored("x").unwrap_err(),
        IgnoreError::Syntax {
            pattern: "\\é".to_owned()
        }
    );
}

#[test]
fn a_pattern_no_path_is_compared_with_may_be_no_expression() {
    let matcher = Matcher::new(["!\\é", "a"]).unwrap();
    assert!(matcher.is_ignored("a").unwrap());
}

#[test]
fn malformed_patterns_are_refused() {
    for pattern in ["[", "a[b", "[]", "\\"] {
        assert!(
            matches!(Matcher::new([pattern]), Err(IgnoreError::Syntax { .. })),
            "{pattern}"
        );
    }
    assert!(matches!(
        Matcher::new(["!"]),
        Err(IgnoreError::EmptyException)
    ));
    assert!(Matcher::new(["", "  "]).unwrap().is_empty());
}

#[test]
fn a_walk_comes_to_the_same_result_as_single_paths() {
    let trees = ["a", "a/b", "a/b/c", "a/b/d.go", "a/e", "x", "x/y.go", "x/z"];
    let lists: &[&[&str]] = &[
        &["a", "!a/b"],
        &["**/*.go", "!a/**"],
        &["*", "!x", "x/z", "!**/d.go"],
        &["a/*", "!a/b", "a/b/c"],
    ];
    for patterns in lists {
        let matcher = Matcher::new(*patterns).unwrap();
        let mut walked: Vec<(&str, Matched)> = vec![("", Matched::default())];
        for path in trees {
            let parent = path.rfind('/').map_or("", |slash| &path[..slash]);
            let (_, parent) = walked.iter().find(|(path, _)| *path == parent).unwrap();
            let matched = matcher.matched_below(parent.matching(), path).unwrap();
            assert_eq!(
                matched.is_ignored(),
                matcher.is_ignored(path).unwrap(),
                "{patterns:?} {path}"
            );
            walked.push((path, matched));
        }
    }
}

#[test]
fn a_directory_is_passed_over_when_no_exception_can_match_below() {
    let hides = |patterns: &[&str], directory: &str| {
        let matcher = Matcher::new(patterns).unwrap();
        let matched = matcher.matched(directory).unwrap();
        matcher.hides_below(directory, &matched)
    };
    assert!(hides(&["node_modules"], "node_modules"));
    assert!(hides(&["node_modules", "!src"], "node_modules"));
    assert!(hides(&["*", "!*.md"], "docs"));
    assert!(hides(&["*", "!src/*/x"], "docs"));
    assert!(hides(&["!a/b", "a"], "a"));
    assert!(!hides(&["a", "!a/b"], "a"));
    assert!(!hides(&["a", "!*/b"], "a"));
    assert!(!hides(&["a", "!**/b"], "a"));
    assert!(!hides(&["a", "![x]"], "a"));
    assert!(
        !hides(&["a", "!x|a/b?"], "a"),
        "a bar means what it does in expressions"
    );
    assert!(!hides(&["b"], "a"));
}

#[test]
fn the_line_that_ignores_a_path_is_known() {
    let file = IgnoreFile::parse("# first\n*.log\n\ntmp\n!tmp/keep\n").unwrap();
    let matcher = file.matcher().unwrap();
    let reason = |path: &str| {
        let matched = matcher.matched(path).unwrap();
        matcher
            .reason(&matched)
            .map(|(pattern, line)| (pattern.to_owned(), line.unwrap()))
    };
    assert_eq!(reason("a.log"), Some(("*.log".to_owned(), 2)));
    assert_eq!(reason("tmp/x"), Some(("tmp".to_owned(), 4)));
    assert_eq!(reason("tmp/keep"), None);
}

#[test]
fn bytes_that_are_no_text_count_as_one_character_each() {
    let matcher = Matcher::new(["a??"]).unwrap();
    assert!(matcher.is_ignored(b"a\xff\xfe").unwrap());
    assert!(!matcher.is_ignored(b"a\xff").unwrap());
}

#[test]
fn hostile_patterns_end_soon() {
    let matcher = Matcher::new(["*a".repeat(500), "**/x".repeat(500)]).unwrap();
    assert!(!matcher.is_ignored("a".repeat(20_000) + "b").unwrap());
}

#[test]
fn an_exception_for_a_directory_that_nothing_ignores_takes_nothing_back() {
    let check = |patterns: &[&str], path: &str, expect: bool| {
        let matcher = Matcher::new(patterns).unwrap();
        let matched = matcher.matched_by_walk(path).unwrap();
        assert_eq!(matched.is_ignored(), expect, "{patterns:?} {path}");
    };
    check(&["**/.env", "!app"], "app/.env", true);
    check(&["**/*.log", "!logs"], "logs/a.log", true);
    check(&["config/*.key", "!config"], "config/a.key", true);
    check(&["a/f", "!a"], "a/f", true);
    check(&["**/node_modules", "!src/"], "src/node_modules/x", true);
    // One that something ignores is taken back with all that is in it, as far as nothing later says otherwise.
    check(&["app", "**/.env", "!app"], "app/.env", false);
    check(&["*", "!app"], "app/.env", false);
    check(&["*", "!app", "**/.env"], "app/.env", true);
    check(&["**/.env", "!app/.env"], "app/.env", false);
    check(&["**/.env", "!app/*"], "app/.env", false);
}

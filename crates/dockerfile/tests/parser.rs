//! The parser: text in, tree out.

use dockerfile::{dump, parse};

fn check(source: &str, expect: &str) {
    let found = match parse(source.as_bytes()) {
        Ok(ast) => dump(&ast),
        Err(errors) => errors.iter().map(|error| format!("{error}\n")).collect(),
    };
    let expect: String = expect
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix("        ").unwrap_or(line)))
        .collect();
    assert_eq!(found.trim(), expect.trim(), "\n{source}");
}

#[test]
fn instructions_are_split_by_their_keyword() {
    check(
        "FROM --platform=$P alpine AS a\nrun  echo  hi \nCMD [\"a\", \"b\"]\nCMD ['a']\nCOPY a b  c\nENV A=1 B=\"2 3\"\n\
         LABEL a  b c\nARG X Y=1\nONBUILD RUN [\"x\"]\nHEALTHCHECK --retries=1 CMD x y\nEXPOSE 1 2\nUSER a b\nBOGUS x",
        r#"
        1: FROM --platform=$P "alpine" "AS" "a"
        2: run "echo  hi"
        3: CMD "a" "b" (json)
        4: CMD "['a']"
        5: COPY "a" "b" "c"
        6: ENV "A"="1" "B"="\"2 3\""
        7: LABEL "a" "b c"
        8: ARG "X" "Y=1"
        9: ONBUILD > RUN "x" (json)
        10: HEALTHCHECK --retries=1 "CMD" "x y"
        11: EXPOSE "1" "2"
        12: USER "a b"
        13: BOGUS """#,
    );
}

#[test]
fn lines_are_continued_over_comments_and_empty_lines() {
    check(
        "FROM a\nRUN x \\\n# comment\n  # another\n\n  y\\  \n\\\nz\nRUN a\\\\\nRUN b \\",
        r#"
        1: FROM "a"
        2-8: RUN "x   yz"
        9: RUN "a\\\\"
        10: RUN "b"
        8: empty continuation"#,
    );
}

#[test]
fn the_escape_can_be_a_backtick() {
    check(
        "# escape=`\nFROM a\nRUN x `\n  y\\\nRUN z",
        r#"
        1: # escape=`
        2: FROM "a"
        3-4: RUN "x   y\\"
        5: RUN "z""#,
    );
}

#[test]
fn directives_end_at_the_first_other_line() {
    check(
        "# syntax = a/b:1 x \n# Check=skip=all\n#\n# escape=`\nFROM a",
        r#"
        1: # syntax=a/b:1 x
        2: # check=skip=all
        5: FROM "a"
            # escape=`"#,
    );
    check(
        "# escape=x\nFROM a",
        "line 0: invalid escape token 'x' does not match ` or \\",
    );
    check(
        "# syntax=a\n# SYNTAX=b\nFROM a",
        "line 1: only one syntax parser directive can be used",
    );
}

#[test]
fn comments_belong_to_the_instruction_below() {
    check(
        "# lost\n#\n# one\n\n  # two\nFROM a\n# three \n  RUN x",
        r##"
        6: FROM "a"
            # one
            # # two
        8: RUN "x"
            # three"##,
    );
}

#[test]
fn heredocs_are_read_from_the_lines_below() {
    check(
        "FROM a\nRUN <<A cat && 3<<-'B' x\none\nA\n\t\ttwo\n\tB\nCOPY <<\"C D\" /x\nC D\nRUN [\"<<E\"]\nRUN x <<< y\nONBUILD RUN <<F\nf\nF",
        r#"
        1: FROM "a"
        2-6: RUN "<<A cat && 3<<-'B' x"
            0<<A "one\n"
            3<<-B quoted "\t\ttwo\n"
        7-8: COPY "<<\"C" "D\"" "/x"
            0<<C D quoted ""
        9: RUN "<<E" (json)
        10: RUN "x <<< y"
        11-13: ONBUILD > RUN "<<F"
            0<<F "f\n""#,
    );
    check("FROM a\nRUN <<EOF\nx\n", "line 2: unterminated heredoc");
}

#[test]
fn marks_and_line_ends_of_windows_are_taken() {
    check(
        "\u{feff}FROM a\r\nRUN x \\\r\n y\r\nRUN <<E\r\nz\r\nE\r\n",
        r#"
        1: FROM "a"
        2-3: RUN "x  y"
        4-6: RUN "<<E"
            0<<E "z\r\n""#,
    );
}

#[test]
fn what_is_not_utf8_is_replaced() {
    let ast = parse(b"FROM a\nLABEL a=\xff\xfe").unwrap();
    assert_eq!(
        dump(&ast),
        "1: FROM \"a\"\n2: LABEL \"a\"=\"\u{fffd}\u{fffd}\"\n"
    );
}

#[test]
fn lines_have_a_greatest_length() {
    let file = |length: usize, end: &str| format!("FROM a\nRUN {}{end}", "x".repeat(length - 4));
    for end in ["", "\n"] {
        assert!(parse(file(65_535, end).as_bytes()).is_ok());
        let errors = parse(file(65_536, end).as_bytes()).unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "line 1: dockerfile line greater than max allowed size of 65535"
        );
    }
}

#[test]
fn errors_that_hide_the_tree_are_found_together() {
    check(
        "FROM a\nRUN [1]\nENV x\nENV a=1 b\nLABEL\nCOPY x\nFROM a b\nFRMO a",
        "\
        line 2: when using JSON array syntax, arrays must be comprised of strings only\n\
        line 3: ENV must have two arguments\n\
        line 4: Syntax error - can't find = in \"b\". Must be of the form: name=value\n\
        line 5: LABEL requires at least one argument\n\
        line 6: COPY requires at least two arguments, but only one was provided. Destination could not be determined\n\
        line 7: FROM requires either one or three arguments\n\
        line 8: unknown instruction: FRMO (did you mean FROM?)",
    );
    check("# only a comment\n\n", "line 2: file with no instructions");
}

#[test]
fn spans_are_those_of_the_source() {
    let source = "FROM --platform=p a AS b\nCOPY --chown=x:y one \\\n  two /dest\nENV K=v L=\"w x\"\nCMD [\"p\", \"\\u0071\"]\n";
    let ast = parse(source.as_bytes()).unwrap();
    let mut words = Vec::new();
    for node in &ast.nodes {
        words.push(&source[node.keyword.span.start..node.keyword.span.end]);
        words.extend(
            node.flags
                .iter()
                .chain(node.args.words())
                .map(|word| &source[word.span.start..word.span.end]),
        );
        if let dockerfile::Args::Pairs(pairs) = &node.args {
            let spans = pairs
                .iter()
                .flat_map(|pair| [pair.key.span, pair.value.span]);
            words.extend(spans.map(|span| &source[span.start..span.end]));
        }
    }
    let expect = [
        "FROM",
        "--platform=p",
        "a",
        "AS",
        "b",
        "COPY",
        "--chown=x:y",
        "one",
        "two",
        "/dest",
        "ENV",
        "K",
        "v",
        "L",
        "\"w x\"",
        "CMD",
        "\"p\"",
        "\"\\u0071\"",
    ];
    assert_eq!(words, expect);
}

#[test]
fn the_syntax_is_found_in_several_notations() {
    let find = |source: &str| {
        dockerfile::detect_syntax(source.as_bytes())
            .map(|d| format!("{} {:?} {}", d.first_word(), d.lines, d.value))
    };
    assert_eq!(find("# syntax=a b\nFROM x").as_deref(), Some("a L1 a b"));
    assert_eq!(
        find("#!/bin/x\n// syntax = a\nx").as_deref(),
        Some("a L2 a")
    );
    assert_eq!(
        find("{\"syntax\": \"a\", \"x\": 1}").as_deref(),
        Some("a L0 a")
    );
    assert_eq!(find("FROM x\n# syntax=a"), None);
    assert_eq!(find("# syntax="), None);
}

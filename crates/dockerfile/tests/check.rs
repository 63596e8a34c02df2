//! The check: rules, errors, parameters.

use std::collections::BTreeMap;

use dockerfile::Diagnostic;
use dockerfile::check::{
    BaseImage, CheckOptions, Images, UnknownImages, check, check_parsed, outline,
};
use dockerfile::ignore::IgnoreFile;
use oci::Platform;

/// Each finding on one line: place, rule, message, then the marked words and advice.
fn render(source: &str, diagnostic: &Diagnostic) -> String {
    let lines: Vec<String> = diagnostic
        .lines
        .iter()
        .map(|lines| format!("{lines:?}"))
        .collect();
    let mut out = format!(
        "{} {}: {}",
        if lines.is_empty() {
            "-".to_owned()
        } else {
            lines.join("+")
        },
        diagnostic.code,
        diagnostic.full_message()
    );
    for label in &diagnostic.labels {
        out.push_str(&format!(
            " | {:?} {}",
            &source[label.span.start..label.span.end],
            label.text
        ));
    }
    out.push('\n');
    out
}

fn run(source: &str, images: &dyn Images, ignore: Option<&IgnoreFile>) -> String {
    let options = CheckOptions {
        images,
        ignore,
        ..CheckOptions::default()
    };
    let report = check(source.as_bytes(), &options);
    if let Ok(ast) = dockerfile::parse(source.as_bytes())
        && let Ok(stages) = ast.stages()
    {
        let again = check_parsed(&ast, &stages, &options);
        assert_eq!(again, report, "a file that was read before");
    }
    let mut out: String = report
        .warnings
        .iter()
        .map(|warning| render(source, warning))
        .collect();
    if let Some(error) = report.error {
        out.extend(error.diagnostics.iter().map(|error| render(source, error)));
    }
    out
}

fn expect(source: &str, found: &str, expect: &str) {
    let expect: String = expect
        .trim()
        .lines()
        .map(|line| format!("{}\n", line.trim_start()))
        .collect();
    assert_eq!(found, expect, "\n{source}");
}

fn warns(source: &str, expected: &str) {
    expect(source, &run(source, &UnknownImages, None), expected);
}

#[test]
fn a_clean_file_has_no_findings() {
    warns(
        "FROM alpine AS build\nRUN x\nFROM build\nCOPY --from=build /a /b\nCMD [\"x\"]\n",
        "",
    );
}

#[test]
fn casing_of_instructions_follows_the_majority() {
    warns(
        "FROM a\nrun x\nUser y\n",
        r#"
        L2 ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase) | "run" in another case
        L3 ConsistentInstructionCasing: Command 'User' should match the case of the command majority (uppercase) | "User" in another case"#,
    );
    warns(
        "FROM a as B\nFROM b as b\nFROM c AS scratch\n",
        r#"
        L1 StageNameCasing: Stage name 'B' should be lowercase | "B" not in lower case
        L1 FromAsCasing: 'as' and 'FROM' keywords' casing do not match | "as" in another case than FROM
        L2 FromAsCasing: 'as' and 'FROM' keywords' casing do not match | "as" in another case than FROM
        L2 DuplicateStageName: Duplicate stage name "b", stage names should be unique | "b" used again | "B" first used here
        L3 ReservedStageName: Stage name should not use the same name as reserved stage "scratch" | "scratch" reserved"#,
    );
}

#[test]
fn variables_must_be_set_before_their_use() {
    warns(
        "ARG VERSION=1\nFROM a:$VERSON\nENV foo=1\nRUN $x\nCOPY $fo ${PATH} $bar${y:-z} /\nARG late\nWORKDIR $late/$foo\n",
        r#"
        L2 InvalidDefaultArgInFrom: Default value for ARG a:$VERSON results in empty or invalid base image name | "a:$VERSON" no image name
        L2 UndefinedArgInFrom: FROM argument 'VERSON' is not declared (did you mean VERSION?) | "a:$VERSON" no ARG above the first FROM
        L2 invalid-reference: failed to parse stage name "a:": invalid reference format | "a:$VERSON" this image"#,
    );
    warns(
        "FROM a\nENV foo=1\nRUN $x\nCOPY $fo ${PATH} $bar${y:-z} /\nARG late\nWORKDIR /$late/$foo\n",
        r#"
        L4 UndefinedVar: Usage of undefined variable '$fo' (did you mean $foo?) | "$fo" not set here
        L4 UndefinedVar: Usage of undefined variable '$bar' | "$bar" not set here
        L4 UndefinedVar: Usage of undefined variable '$y' | "${y" not set here"#,
    );
}

#[test]
fn one_rule_each() {
    warns(
        "FROM a\nWORKDIR x\nWORKDIR y\n",
        r#"L2 WorkdirRelativePath: Relative workdir "x" can have unexpected results if the base image changes | "x" not absolute"#,
    );
    warns(
        "FROM a\nMAINTAINER me\n",
        r#"L2 MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label | "MAINTAINER" deprecated"#,
    );
    warns(
        "FROM a\nENV K v w\n",
        r#"L2 LegacyKeyValueFormat: "ENV key=value" should be used instead of legacy "ENV key value" format | "K v w" no = here"#,
    );
    warns(
        "FROM a\nCMD x\nCMD [\"y\"]\n",
        r#"
        L2 JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals | "x" run by a shell, which gets the signals
        L2 MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used | "CMD" has no effect | "CMD" this one counts"#,
    );
    warns("FROM a\nSHELL [\"sh\"]\nENTRYPOINT x\n", "");
    warns(
        "FROM a\nARG API_KEY\nENV TOKEN_FILE=x auth=y\n",
        r#"
        L2 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG "API_KEY") | "API_KEY" this stays readable in the image
        L3 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV "auth") | "auth" this stays readable in the image"#,
    );
    warns(
        "FROM --platform=linux/arm64 a\nFROM --platform=$TARGETPLATFORM b\nFROM --platform=linux/arm64 a AS arm64\n",
        r#"
        L1 FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value "linux/arm64" | "linux/arm64" a constant
        L2 RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior | "$TARGETPLATFORM" the default"#,
    );
    warns(
        "FROM a\nEXPOSE 80/TCP 1:2\n",
        r#"
        L2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '1:2' | "1:2" more than a port of the container
        L2 ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase | "80/TCP" not in lower case"#,
    );
    warns(
        "FROM a\nRUN x \\\n\n  y\n",
        "L4 NoEmptyContinuation: Empty continuation line | \"\\n\" empty line",
    );
    warns(
        "# check=experimental=all\n# what\nFROM a AS b\n",
        r#"L3 InvalidDefinitionDescription: Comment for FROM should follow the format: `# b <description>` | "b" described by the comment above"#,
    );
}

#[test]
fn rules_are_skipped_where_the_file_says_so() {
    warns("# check=skip=all\nFROM a\nMAINTAINER me\n", "");
    warns(
        "FROM a\n# check=skip=MaintainerDeprecated\nMAINTAINER me\nENV a b\n",
        r#"
        L4 LegacyKeyValueFormat: "ENV key=value" should be used instead of legacy "ENV key value" format | "a b" no = here"#,
    );
    warns(
        "# check=error=true\nFROM a\nENV a b\n",
        r#"
        L3 LegacyKeyValueFormat: "ENV key=value" should be used instead of legacy "ENV key value" format | "a b" no = here
        - check-failed: lint violation found for rules: LegacyKeyValueFormat"#,
    );
    warns(
        "# check=what\nFROM a\n",
        r#"- invalid-check: failed to parse check options: invalid check option "what" | "what" these options"#,
    );
}

#[test]
fn sources_left_out_of_the_context_are_named_with_their_pattern() {
    let file = IgnoreFile::parse("# x\n*.log\n").unwrap();
    let source = "FROM a\nCOPY a.log b /\nADD ./sub/../c.log /\nCOPY --from=x a.log /\nCOPY . /\n";
    let found = run(source, &UnknownImages, Some(&file));
    expect(
        source,
        &found,
        r#"
        L2 CopyIgnoredFile: Attempting to Copy file "a.log" that is excluded by .dockerignore | "a.log" not in the context
        L3 CopyIgnoredFile: Attempting to Add file "c.log" that is excluded by .dockerignore | "./sub/../c.log" not in the context"#,
    );
    let file = IgnoreFile::parse("*").unwrap();
    let found = run("FROM a\nCOPY . /\n", &UnknownImages, Some(&file));
    assert!(found.contains("file \".\" that is excluded"), "{found}");
    let file = IgnoreFile::parse("*\n!b").unwrap();
    assert_eq!(run(source, &UnknownImages, Some(&file)), "");
}

#[test]
fn errors_name_the_words_that_are_wrong() {
    warns(
        "FROM a\nRUN --mont=type=cache x\n",
        r#"L2 unknown-flag: unknown flag: --mont (did you mean mount?) | "--mont" no such flag"#,
    );
    warns(
        "FROM a\nRUN --mount=type=tmp x\n",
        r#"L2 invalid-mount: unsupported mount type "tmp" (did you mean tmpfs?) | "type=tmp" this field"#,
    );
    warns(
        "FROM a AS b\nCOPY --from=c /x /y\nFROM d AS c\n",
        r#"L2 stage-order: cannot copy from stage "c", it needs to be defined before current stage "b" | "c" not yet built here | "FROM d AS c" the stage"#,
    );
    warns(
        "FROM a AS b\nCOPY --from=b /x /y\n",
        "L2 circular-dependency: circular dependency detected on stage: b | \"COPY --from=b /x /y\" stage b takes files here",
    );
    warns(
        "FROM a\nCOPY --from=9 x y\n",
        "- unknown-stage: invalid stage index 9 | \"9\" no such stage",
    );
    warns(
        "FROM a\nSTOPSIGNAL x\n",
        "L2 invalid-signal: invalid signal: x | \"x\" no signal",
    );
    warns(
        "FROM a\nCOPY https://x/y /\n",
        "L2 url-in-copy: source can't be a URL for COPY | \"https://x/y\" here",
    );
    warns(
        "RUN x\nFROM a b\n",
        r#"
        L1 no-stage: no build stage in current context | "RUN" before any FROM
        L2 invalid-from: FROM requires either one or three arguments | "FROM a b" 2 arguments"#,
    );
    warns("", "- empty: the Dockerfile cannot be empty");
}

/// Knows one image, with triggers.
struct Triggers(&'static [&'static str]);

impl Images for Triggers {
    fn image(&self, name: &str, _platform: &Platform) -> Result<BaseImage, String> {
        if name != "docker.io/library/known:latest" {
            return Err("not found".to_owned());
        }
        Ok(BaseImage {
            onbuild: self.0.iter().map(|trigger| (*trigger).to_owned()).collect(),
            ..BaseImage::default()
        })
    }
}

#[test]
fn triggers_of_images_are_walked_at_the_from() {
    let source = "FROM known\nRUN x\n";
    let with = |triggers: &'static [&'static str]| run(source, &Triggers(triggers), None);
    expect(
        source,
        &with(&["COPY $x /y", "RUN --mount=from=known,target=/m true"]),
        "L1 UndefinedVar: Usage of undefined variable '$x' | \"known\" not set here",
    );
    expect(
        source,
        &with(&["BAD"]),
        "L1 unknown-instruction: unknown instruction: BAD (did you mean ADD?)",
    );
    expect(
        source,
        &with(&["FROM x"]),
        "L1 invalid-trigger: *instructions.Stage is not a command type",
    );
    expect(
        source,
        &with(&["RUN a\nRUN b"]),
        "L1 invalid-trigger: onbuild trigger should be a single expression",
    );
    let source = "FROM knwn\n";
    expect(
        source,
        &run(source, &Triggers(&[]), None),
        "L1 unresolved-image: knwn: not found | \"knwn\" this image",
    );
    // A trigger of a stage is walked in the stage that uses it.
    warns(
        "FROM a AS b\nONBUILD COPY $x /\nFROM b\n",
        "L3 UndefinedVar: Usage of undefined variable '$x' | \"b\" not set here",
    );
}

#[test]
fn a_build_argument_stands_in_for_the_check_directive() {
    let check_with = |source: &str, text: &str| {
        let build_args =
            BTreeMap::from([("BUILDKIT_DOCKERFILE_CHECK".to_owned(), text.to_owned())]);
        let report = check(
            source.as_bytes(),
            &CheckOptions {
                build_args: &build_args,
                ..CheckOptions::default()
            },
        );
        let rules: Vec<&str> = report.warnings.iter().map(|found| found.code).collect();
        let error = report.error.map(|error| error.message);
        (rules.join(" "), error.unwrap_or_default())
    };
    let source = "# check=error=true\nFROM a as b\nENV x y\n";
    assert_eq!(check_with(source, "skip=all"), Default::default());
    let (rules, error) = check_with(source, "skip=FromAsCasing;error=true");
    assert_eq!(rules, "LegacyKeyValueFormat");
    assert_eq!(
        error,
        "lint violation found for rules: LegacyKeyValueFormat"
    );
    let (rules, error) = check_with(source, "what");
    assert_eq!(rules, "");
    assert_eq!(
        error,
        "failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: invalid check option \"what\""
    );
}

#[test]
fn a_wrong_field_of_a_mount_is_marked_alone() {
    let of = |mount: &str, expected: &str| {
        warns(&format!("FROM a\nRUN --mount={mount} x\n"), expected);
    };
    of(
        "type=cache,target=/c,sharng=locked",
        r#"L2 invalid-mount: unexpected key 'sharng' in 'sharng=locked' (did you mean sharing?) | "sharng=locked" this field"#,
    );
    of(
        "target=/c,size=1",
        r#"L2 invalid-mount: unexpected key 'size' for mount type 'bind' | "size=1" this field"#,
    );
    of(
        // Without its quotes the flag is not what stands in the file.
        "'type=cache,target=/c',wild",
        r#"L2 invalid-mount: invalid field 'wild' must be a key=value pair | "--mount='type=cache,target=/c',wild" this field"#,
    );
}

#[test]
fn only_plain_blanks_end_the_type_of_a_health_check() {
    warns(
        "FROM a\nHEALTHCHECK CMD\u{2003}x\n",
        "L2 invalid-healthcheck: Unknown type \"CMD\\u2003X\" in HEALTHCHECK (try CMD) | \"CMD\\u{2003}x\" neither CMD nor NONE",
    );
    warns("FROM a\nHEALTHCHECK CMD\u{b}x\n", "");
}

#[test]
fn the_outline_lists_what_a_target_can_be_given() {
    let source = "# A is the first\nARG A=1\nARG B=$A-2\nARG UNUSED\nFROM x:$B AS base\nARG C\nFROM base AS final\n\
                  # D is here\nARG D=$C\nRUN --mount=type=secret,id=s,required --mount=type=ssh true\n";
    let build_args = BTreeMap::from([("C".to_owned(), "given".to_owned())]);
    let options = CheckOptions {
        build_args: &build_args,
        target: Some("FINAL"),
        ..CheckOptions::default()
    };
    let outline = outline(source.as_bytes(), &options).unwrap();
    let args: Vec<String> = outline
        .args
        .iter()
        .map(|arg| {
            format!(
                "{}={} {:?} {}",
                arg.name,
                arg.value,
                arg.lines,
                arg.description.as_deref().unwrap_or("-")
            )
        })
        .collect();
    assert_eq!(
        args,
        [
            "A=1 L2 is the first",
            "B=1-2 L3 -",
            "C=given L6 -",
            "D=given L9 is here"
        ]
    );
    assert_eq!(
        format!("{:?}", outline.secrets),
        "[OutlineMount { name: \"s\", required: true, lines: L10 }]"
    );
    assert_eq!(
        format!("{:?}", outline.ssh),
        "[OutlineMount { name: \"default\", required: false, lines: L10 }]"
    );
    let missing = CheckOptions {
        target: Some("finl"),
        ..options
    };
    let error = dockerfile::check::outline(source.as_bytes(), &missing).unwrap_err();
    assert_eq!(
        error.message,
        "target stage \"finl\" could not be found (did you mean final?)"
    );
}

//! Which steps run again after a change of arguments, as in the reference.

use std::collections::BTreeMap;

use serde_json::Value;
use testkit::Environment;

/// Builds and returns the steps that ran, in the order of their names.
fn ran(environment: &Environment, arguments: &[&str]) -> Vec<String> {
    let mut all = vec!["build", "--progress=rawjson"];
    all.extend(arguments);
    all.push("ctx");
    let told = environment.ok(all).stderr;
    let mut steps: BTreeMap<String, bool> = BTreeMap::new();
    for line in told.lines().filter(|line| line.starts_with('{')) {
        let status: Value = serde_json::from_str(line).expect("a line of JSON");
        for vertex in status["vertexes"].as_array().into_iter().flatten() {
            let name = vertex["name"].as_str().unwrap_or_default();
            // `[stage 2/3] RUN one`: what stands behind the brackets.
            let Some((_, step)) = name.split_once("] ") else {
                continue;
            };
            if ["RUN", "COPY", "ADD", "WORKDIR"]
                .iter()
                .any(|word| step.starts_with(word))
            {
                let cached = steps.entry(step.to_owned()).or_default();
                *cached |= vertex["cached"].as_bool().unwrap_or(false);
            }
        }
    }
    let ran = steps.into_iter().filter(|(_, cached)| !cached);
    ran.map(|(step, _)| step).collect()
}

/// Builds twice; what runs the second time has to be `expect`.
#[track_caller]
fn check(dockerfile: &str, first: &[&str], second: &[&str], expect: &[&str]) {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("ctx/Dockerfile", dockerfile);
    environment.write("ctx/a", "a");
    environment.write("ctx/b", "b");
    ran(&environment, first);
    assert_eq!(ran(&environment, first), [""; 0], "it is all there");
    assert_eq!(ran(&environment, second), expect, "{dockerfile}");
}

#[test]
fn a_run_misses_when_an_argument_in_scope_changes() {
    testkit::require_fixtures!("busybox:latest");
    let one = &["--build-arg", "X=1"][..];
    let two = &["--build-arg", "X=2"][..];
    // Declared before: part of its environment, whether it is named or not.
    check(
        "FROM busybox\nARG X\nRUN echo one\n",
        one,
        two,
        &["RUN echo one"],
    );
    // Declared after.
    check("FROM busybox\nRUN echo one\nARG X\n", one, two, &[]);
    check(
        "FROM busybox\nRUN echo one\nARG X\nRUN echo two\n",
        one,
        two,
        &["RUN echo two"],
    );
    // Declared in no stage, before the first one alone, or in another one.
    check("FROM busybox\nRUN echo one\n", one, two, &[]);
    check("ARG X\nFROM busybox\nRUN echo one\n", one, two, &[]);
    check(
        "FROM busybox AS other\nARG X\nRUN echo other > /o\nFROM busybox\nRUN echo one\nCOPY --from=other /o /o\n",
        one,
        two,
        &["RUN echo other > /o"],
    );
    // A stage has the arguments of the one it begins with.
    check(
        "FROM busybox AS base\nARG X\nFROM base\nRUN echo one\n",
        one,
        two,
        &["RUN echo one"],
    );
    // A default is a value like any other.
    check(
        "FROM busybox\nARG X=1\nRUN echo one\n",
        &[],
        two,
        &["RUN echo one"],
    );
    check("FROM busybox\nARG X=1\nRUN echo one\n", &[], one, &[]);
    // ENV hides the argument.
    check(
        "FROM busybox\nARG X\nENV X=3\nRUN echo one\n",
        one,
        two,
        &[],
    );
}

#[test]
fn other_instructions_miss_only_where_they_name_the_argument() {
    testkit::require_fixtures!("busybox:latest");
    let one = &["--build-arg", "X=a"][..];
    let two = &["--build-arg", "X=b"][..];
    check("FROM busybox\nARG X\nCOPY a /to/\n", one, two, &[]);
    check("FROM busybox\nARG X\nWORKDIR /w\n", one, two, &[]);
    check(
        "FROM busybox\nARG X\nCOPY $X /to/\n",
        one,
        two,
        &["COPY b /to/"],
    );
    check(
        "FROM busybox\nARG X\nWORKDIR /$X\n",
        one,
        two,
        &["WORKDIR /b"],
    );
    // The same files under another argument: equal from there on.
    check(
        "FROM busybox AS one\nARG X\nRUN echo $X > /dev/null && touch -d @1 /f\nFROM busybox\nCOPY --from=one /f /f\nRUN cat /f\n",
        one,
        two,
        &["RUN echo b > /dev/null && touch -d @1 /f"],
    );
}

#[test]
fn arguments_that_everyone_has_are_no_part_of_a_step() {
    testkit::require_fixtures!("busybox:latest");
    for name in ["HTTP_PROXY", "http_proxy", "NO_PROXY", "ALL_PROXY"] {
        let (one, two) = (format!("{name}=http://a"), format!("{name}=http://b"));
        let one = ["--build-arg", &one];
        let two = ["--build-arg", &two];
        check("FROM busybox\nRUN echo one\n", &one, &two, &[]);
        check("FROM busybox\nRUN echo one\n", &[], &two, &[]);
    }
    // Declared it is one like any other.
    check(
        "FROM busybox\nARG HTTP_PROXY\nRUN echo one\n",
        &["--build-arg", "HTTP_PROXY=http://a"],
        &["--build-arg", "HTTP_PROXY=http://b"],
        &["RUN echo one"],
    );
    // The addresses of hosts are no part either, their names are.
    check(
        "FROM busybox\nRUN echo one\n",
        &["--add-host=there:10.0.0.1"],
        &["--add-host=there:10.0.0.2"],
        &[],
    );
    check(
        "FROM busybox\nRUN echo one\n",
        &["--add-host=there:10.0.0.1"],
        &["--add-host=here:10.0.0.1"],
        &["RUN echo one"],
    );
    // Which directory a cache mount is makes no other step of it.
    let mount = "RUN --mount=type=cache,target=/c,id=$X,sharing=locked echo one";
    check(
        &format!(
            "ARG X\nFROM busybox\nARG Y\n{}\n",
            mount.replace("$X", "fixed")
        ),
        &["--build-arg", "X=1"],
        &["--build-arg", "X=2"],
        &[],
    );
}

#[test]
fn the_directory_of_a_cache_mount_makes_no_other_step_of_it() {
    testkit::require_fixtures!("busybox:latest");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let dockerfile = |options: &str| {
        let text = format!("FROM busybox\nRUN --mount=type=cache,target=/c{options} echo one\n");
        environment.write("ctx/Dockerfile", text);
    };
    dockerfile("");
    assert_eq!(ran(&environment, &[]).len(), 1);
    for options in [",id=other", ",sharing=locked", ",id=third,sharing=private"] {
        dockerfile(options);
        assert_eq!(ran(&environment, &[]), [""; 0], "{options}");
    }
    dockerfile(",ro");
    assert_eq!(ran(&environment, &[]).len(), 1);
}

#[test]
fn stages_that_are_named_run_again_and_what_equals_stays() {
    testkit::require_fixtures!("busybox:latest");
    let stages = "FROM busybox AS base
RUN echo base > /base
FROM base AS One
RUN echo one > /one
COPY a /a
FROM base AS two
RUN echo two > /two
FROM busybox
COPY --from=one /one /one
COPY --from=two /two /two
RUN cat /one /two
";
    let filter = |names: &'static str| ["--no-cache-filter", names];
    // What comes out is equal, so that what uses it is found by its content.
    check(stages, &[], &filter("two"), &["RUN echo two > /two"]);
    // Names are compared as FROM compares them; one that is not there is passed over.
    check(
        stages,
        &[],
        &filter("ONE,nowhere"),
        &["COPY a /a", "RUN echo one > /one"],
    );
    check(
        stages,
        &[],
        &filter("base,two"),
        &["RUN echo base > /base", "RUN echo two > /two"],
    );
    // A stage without a name has none that a filter could give.
    check(stages, &[], &filter("3"), &[]);
    check(
        stages,
        &[],
        &["--no-cache"],
        &[
            "COPY --from=one /one /one",
            "COPY --from=two /two /two",
            "COPY a /a",
            "RUN cat /one /two",
            "RUN echo base > /base",
            "RUN echo one > /one",
            "RUN echo two > /two",
        ],
    );
}

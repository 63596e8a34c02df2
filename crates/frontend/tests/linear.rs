//! What a file costs grows with its size alone, whatever it holds: memory asked for is counted, not seconds.

use dockerfile::check::{CheckOptions, check};
use dockerfile::ignore::{IgnoreFile, Matcher};
use frontend::{Answers, Lowering, Options, Request, ResolvedImage, Step};
use oci::{Digest, ImageConfig};

const SMALL: usize = 48 << 10;

/// Runs on a text of one size and on one four times as large.
///
/// What is linear asks for four times as much; a fifth time is left for logarithms and growing tables. What grows with
/// the square would ask for sixteen times as much.
#[track_caller]
fn is_linear(name: &str, make: &dyn Fn(usize) -> String, run: &dyn Fn(&str)) {
    let (small, large) = (make(SMALL), make(4 * SMALL));
    assert!(small.len() >= SMALL && large.len() >= 4 * SMALL, "{name}");
    // What is made once for all is not part of it.
    run(&make(1));
    let small = allocation_counter::measure(|| run(&small));
    let large = allocation_counter::measure(|| run(&large));
    for (what, small, large) in [
        ("allocations", small.count_total, large.count_total),
        ("bytes", small.bytes_total, large.bytes_total),
        ("bytes at a time", small.bytes_max, large.bytes_max),
    ] {
        assert!(
            large <= 5 * small + (64 << 10),
            "{name}: {small} {what}, and {large} for four times the size"
        );
    }
}

/// Does all that is done with a Dockerfile before it is built.
fn exercise(text: &str) {
    let _ = check(text.as_bytes(), &CheckOptions::default());
    let Ok(ast) = dockerfile::parse(text.as_bytes()) else {
        return;
    };
    let Ok(stages) = ast.stages() else { return };
    let options = Options::default();
    let mut lowering = Lowering::new(&ast, &stages, &options);
    let mut answers = Answers::default();
    while let Ok(Step::Resolve(requests)) = lowering.step(&answers) {
        for request in requests {
            let Request::Image(request) = request else {
                continue;
            };
            let image = ResolvedImage {
                reference: None,
                digest: Some(Digest::sha256_of(request.reference.as_bytes())),
                config: ImageConfig::new(request.platform.clone()),
            };
            answers.images.insert(request, Ok(image));
        }
    }
}

/// Makes a text of at least some bytes from numbered pieces.
fn numbered(head: &str, piece: impl Fn(usize) -> String) -> impl Fn(usize) -> String {
    move |size| {
        let mut text = head.to_owned();
        for number in 0.. {
            if text.len() >= size {
                break;
            }
            text.push_str(&piece(number));
        }
        text
    }
}

/// Makes a text of one piece again and again, with an end.
fn repeated(head: &str, piece: &str, end: &str) -> impl Fn(usize) -> String {
    move |size| format!("{head}{}{end}", piece.repeat(size.div_ceil(piece.len())))
}

#[test]
#[should_panic(expected = "bytes, and")]
fn what_grows_with_the_square_is_seen() {
    is_linear("a copy a line", &repeated("", "x\n", ""), &|text| {
        for _ in text.lines() {
            std::hint::black_box(text.to_owned());
        }
    });
}

#[test]
fn lines_and_words_are_read_once() {
    for (name, make) in [
        ("continued lines", repeated("FROM a\nRUN x ", "\\\n", "\n")),
        (
            "continued words",
            repeated("FROM a\nRUN x ", "y \\\n", "\n"),
        ),
        (
            "empty continued lines",
            repeated("FROM a\nRUN x \\\n", "\n", "y\n"),
        ),
        (
            "comments in a line",
            repeated("FROM a\nRUN x \\\n", "# c\n", "y\n"),
        ),
        (
            "comments above",
            repeated("", "# check=skip=all\n", "FROM a\n"),
        ),
        (
            "heredocs that never end",
            repeated("FROM a\n", "RUN <<E\n", ""),
        ),
        (
            "one heredoc named again",
            repeated("FROM a\nRUN ", "<<E ", "\nE\n"),
        ),
        ("json without an end", repeated("FROM a\nRUN ", "[", "\n")),
        (
            "flags",
            repeated("FROM a\nRUN ", "--mount=type=ssh ", "x\n"),
        ),
        ("quotes", repeated("FROM a\nENV a=", "'\"", "\n")),
        (
            "onbuild behind onbuild",
            repeated("FROM a\n", "ONBUILD ", "x\n"),
        ),
        ("unknown instructions", repeated("", "FRMO a\n", "")),
    ] {
        is_linear(name, &make, &exercise);
    }
}

#[test]
fn heredocs_are_read_once() {
    let many = numbered("FROM a\n", |i| format!("RUN <<E{i} x\ny\nE{i}\n"));
    is_linear("heredocs one after another", &many, &exercise);
    let files = numbered("FROM scratch\n", |i| {
        format!("COPY <<E{i} /f\n${{x:-y}}\nE{i}\n")
    });
    is_linear("heredocs as files", &files, &exercise);
    // A heredoc asked for by the content of another is content.
    let nested = |size: usize| {
        let count = size / 24 + 1;
        let open: String = (0..count).map(|i| format!("RUN <<E{i}\n")).collect();
        let close: String = (0..count).rev().map(|i| format!("E{i}\n")).collect();
        let padding = "# padding\n".repeat((size / 10).saturating_sub(open.len() / 10) + 1);
        format!("FROM a\n{open}{padding}{close}")
    };
    is_linear("nested heredocs", &nested, &exercise);
    let one_line = |size: usize| {
        let count = size / 12 + 1;
        let open: String = (0..count).map(|i| format!(" \\\n<<E{i}")).collect();
        let close: String = (0..count).map(|i| format!("E{i}\n")).collect();
        format!("FROM a\nRUN x{open}\n{close}")
    };
    is_linear("many heredocs of one instruction", &one_line, &exercise);
}

#[test]
fn substitutions_are_expanded_once() {
    for (name, make) in [
        (
            "open substitutions",
            repeated("FROM a\nENV a=", "${x:-", "\n"),
        ),
        (
            "open substitutions, continued",
            repeated("FROM a\nENV a=", "${x:-\\\n", "\n"),
        ),
        (
            "substitutions side by side",
            repeated("FROM a\nENV a=", "${x:-y}", "\n"),
        ),
        (
            "replacements",
            repeated("FROM a\nENV x=y a=", "${x//y/z}", "\n"),
        ),
        ("dollars", repeated("FROM a\nENV a=", "$", "\n")),
    ] {
        is_linear(name, &make, &exercise);
    }
    let deep = |size: usize| {
        // As deep as may be, again and again.
        let nest = format!("{}y{}", "${x:-".repeat(150), "}".repeat(150));
        format!("FROM a\nENV a={}\n", nest.repeat(size.div_ceil(nest.len())))
    };
    is_linear("deep substitutions", &deep, &exercise);
}

#[test]
fn stages_arguments_and_labels_are_walked_once() {
    let lines = |line: fn(usize) -> String| numbered("FROM a AS s0\n", line);
    is_linear(
        "stages",
        &lines(|i| format!("FROM a AS t{i}\nRUN x\n")),
        &exercise,
    );
    let chain = lines(|i| format!("FROM s{i} AS s{}\nLABEL l{i}=x\n", i + 1));
    is_linear("stages one on the other, without steps", &chain, &|text| {
        // Each stage has a copy of the image it is built on, so lowering them all asks for more.
        let _ = dockerfile::parse(text.as_bytes()).and_then(|ast| ast.stages());
    });
    let copies = lines(|i| format!("FROM a AS s{}\nCOPY --from=s{i} /x /x\n", i + 1));
    is_linear("stages one out of the other", &copies, &exercise);
    is_linear("arguments", &lines(|i| format!("ARG a{i}=x\n")), &exercise);
    is_linear(
        "arguments above",
        &numbered("", |i| format!("ARG a{i}=x\n")),
        &|text| {
            exercise(&format!("{text}FROM b\n"));
        },
    );
    is_linear("labels", &lines(|i| format!("LABEL l{i}=x\n")), &exercise);
    is_linear("variables", &lines(|i| format!("ENV e{i}=x\n")), &exercise);
    is_linear(
        "images that are copied from",
        &lines(|i| format!("COPY --from=i{i} /x /y\n")),
        &exercise,
    );
}

#[test]
fn ignore_files_are_read_once() {
    let run = |text: &str| {
        let Ok(file) = IgnoreFile::parse(text) else {
            return;
        };
        let lines = file.lines.iter().map(|line| line.pattern.as_str());
        if let Ok(matcher) = Matcher::new(lines) {
            let _ = matcher.matched("a/b/c");
        }
    };
    is_linear("patterns", &numbered("", |i| format!("p{i}/*.x\n")), &run);
    is_linear("exceptions", &numbered("", |i| format!("!p{i}/**\n")), &run);
    is_linear("one long pattern", &repeated("", "**/", "x\n"), &run);
    is_linear("comments", &repeated("", "# x\n", ""), &run);
}

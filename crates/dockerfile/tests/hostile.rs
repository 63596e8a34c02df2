//! Files that mean harm: whatever the bytes, there is an answer.

use dockerfile::check::{
    CheckOptions, Report, check, check_parsed, check_sarif, check_text, fix, outline,
};
use dockerfile::{Ast, Span, Word, parse};

/// Checks that a place is one of the text.
fn check_span(source: &str, span: Span) {
    assert!(
        source.get(span.start..span.end).is_some(),
        "{span:?} is no piece of {source:?}"
    );
}

fn check_tree(ast: &Ast) {
    let check_words = |words: &[Word]| {
        words
            .iter()
            .for_each(|word| check_span(&ast.source, word.span))
    };
    let mut end = 0;
    for node in &ast.nodes {
        check_span(&ast.source, node.span);
        assert!(node.span.start >= end && node.lines.first <= node.lines.last);
        end = node.span.end;
        check_words(&node.flags);
        check_words(node.args.words());
        node.heredocs
            .iter()
            .for_each(|doc| check_span(&ast.source, doc.span));
        if let dockerfile::Args::Pairs(pairs) = &node.args {
            pairs
                .iter()
                .for_each(|pair| check_words(&[pair.key.clone(), pair.value.clone()]));
        }
    }
}

fn check_report(source: &str, report: &Report) {
    let errors = report.error.iter().flat_map(|error| &error.diagnostics);
    for diagnostic in report.warnings.iter().chain(errors) {
        diagnostic
            .labels
            .iter()
            .for_each(|label| check_span(source, label.span));
        diagnostic
            .edits
            .iter()
            .for_each(|edit| check_span(source, edit.span));
    }
}

/// Runs everything there is on one file.
fn exercise(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match parse(bytes) {
        Ok(ast) => check_tree(&ast),
        Err(errors) => {
            assert!(!errors.is_empty());
            errors
                .iter()
                .flat_map(|error| &error.labels)
                .for_each(|label| check_span(&text, label.span));
        }
    }
    let options = CheckOptions::default();
    let report = check(bytes, &options);
    check_report(&text, &report);
    if let Ok(ast) = parse(bytes)
        && let Ok(stages) = ast.stages()
    {
        let again = check_parsed(&ast, &stages, &options);
        assert_eq!(again, report, "a file that was read before");
    }
    let _ = outline(bytes, &options);
    let _ = check_text(bytes, "Dockerfile", &report);
    let _ = check_sarif(bytes, "Dockerfile", &report);
    let _ = fix(bytes, &options);
}

/// A small generator of numbers: the same ones from the same seed, on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap_or_default()
    }
}

const SEEDS: [&str; 6] = [
    "# syntax=a\n# escape=`\nARG V=1\nFROM --platform=$BUILDPLATFORM a:$V AS b\nRUN x `\n\n  y\nCOPY --from=b x /y\n",
    "FROM a\nRUN --mount=type=cache,target=/c --network=none <<-'EOF' && 3<<X y\n\tz\nEOF\nX\nCMD [\"a\", \"\\u00e9\"]\n",
    "FROM a as B\nENV k v w\nLABEL a=\"b c\" d='e' f\\ g=h\nEXPOSE 80/TCP 1:2\nVOLUME [\"/v\"]\nHEALTHCHECK --interval=1s CMD x\n",
    "FROM scratch\nONBUILD COPY --from=0 <<A /x\nq\nA\nUSER u\nWORKDIR w\nSTOPSIGNAL 9\nSHELL [\"s\"]\nMAINTAINER m $n\n",
    "\u{feff}#!x\r\n// syntax=b\r\n{\"syntax\": \"c\"}\r\nFROM a\r\nADD --checksum=sha256:x git@h:p.git#r:s?t http://u/v /\r\n",
    "FROM a AS b\n# check=skip=all;error=true\nARG x=${y:-${z:+'q'}} KEY\nRUN $x \u{a0}\u{2003}\nENTRYPOINT x\nENTRYPOINT y\n",
];

const PIECES: [&str; 32] = [
    "\\",
    "`",
    "\"",
    "'",
    "$",
    "${",
    "}",
    "<<",
    "<<-A",
    "\n",
    "\r\n",
    "\\\n",
    "#",
    "=",
    ",",
    "[",
    "]",
    "--",
    " ",
    "\t",
    "\u{a0}",
    "é",
    "\u{1f600}",
    "FROM ",
    "RUN ",
    "COPY --from=",
    "ONBUILD ",
    "--mount=type=",
    "# escape=`",
    ":",
    "\0",
    "/",
];

#[test]
fn changed_files_have_an_answer() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..4_000 {
        let mut bytes = SEEDS[random.below(SEEDS.len())].as_bytes().to_vec();
        for _ in 0..=random.below(6) {
            let at = random.below(bytes.len() + 1);
            match random.below(5) {
                0 => bytes.truncate(at),
                1 => {
                    let end = (at + random.below(12)).min(bytes.len());
                    bytes.drain(at..end);
                }
                2 => bytes.insert(at, u8::try_from(random.below(256)).unwrap_or_default()),
                3 => {
                    let other = SEEDS[random.below(SEEDS.len())].as_bytes();
                    let start = random.below(other.len());
                    let end = (start + random.below(40)).min(other.len());
                    bytes.splice(at..at, other[start..end].iter().copied());
                }
                _ => {
                    let piece = PIECES[random.below(PIECES.len())].bytes();
                    bytes.splice(at..at, piece);
                }
            }
        }
        let answer = std::panic::catch_unwind(|| exercise(&bytes));
        assert!(
            answer.is_ok(),
            "round {round}: {:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

#[test]
fn words_that_grow_without_measure_have_an_end() {
    let mut file = "FROM a\nENV A0=aaaaaaaaaaaaaaaa\n".to_owned();
    for number in 1..400 {
        let former = number - 1;
        file.push_str(&format!("ENV A{number}=${{A{former}}}${{A{former}}}\n"));
    }
    let report = check(file.as_bytes(), &CheckOptions::default());
    let error = report.error.expect("a variable of this length is refused");
    assert!(error.message.contains("longer than"), "{}", error.message);
    let long = "x".repeat(1 << 20);
    let file = format!("FROM a\nENV A={long}\n{}", "ENV B=$A\n".repeat(1000));
    let report = check(file.as_bytes(), &CheckOptions::default());
    let error = report.error.expect("a line of this length is refused");
    assert!(
        error.message.contains("max allowed size"),
        "{}",
        error.message
    );
    let long = format!("ENV A={}\n", "x".repeat(60_000));
    let file = format!("FROM a\n{long}{}", "ENV B=$A$A$A$A$A$A$A$A\n".repeat(1000));
    let report = check(file.as_bytes(), &CheckOptions::default());
    let error = report.error.expect("words of this length are refused");
    assert!(
        error.message.contains("any image can use"),
        "{}",
        error.message
    );
}

#[test]
fn large_files_have_an_answer() {
    // That they cost no more than their size asks for is a test of the lowering, which has its parser in it.
    const SIZE: usize = 1 << 14;
    let fill = |piece: &str| piece.repeat(SIZE / piece.len());
    let numbered = |line: &dyn Fn(usize) -> String| {
        let mut text = String::new();
        let mut number = 0;
        while text.len() < SIZE {
            text.push_str(&line(number));
            number += 1;
        }
        text
    };
    let heredocs = (0..SIZE / 16)
        .map(|i| format!("x\nE{i}\n"))
        .collect::<String>();
    let files = [
        format!("FROM a\nRUN x {}", fill("\\\n")),
        format!("FROM a\nRUN x \\\n{}", fill("\n")),
        format!("FROM a\nRUN x \\\n{}y", fill("#\n")),
        format!(
            "FROM a\nRUN {}\n{heredocs}",
            (0..SIZE / 16)
                .map(|i| format!("<<E{i} \\\n"))
                .collect::<String>()
        ),
        format!("FROM a\nRUN {}", fill("<<E \\\n")),
        format!(
            "FROM a\n{}",
            numbered(&|i| format!("RUN <<E{i}\nx\nE{i}\n"))
        ),
        format!("FROM a\nENV a={}", fill("${x:-\\\n")),
        format!("FROM a\nENV a={}", fill("'\\\n")),
        format!("FROM a\nRUN {}", fill("[\\\n")),
        format!("FROM a\n{}", numbered(&|i| format!("ENV a{i}=$b{i}\n"))),
        format!(
            "FROM a AS s0\n{}",
            numbered(&|i| format!("FROM s{i} AS s{}\n", i + 1))
        ),
        format!("FROM a\nRUN {} x", fill("--mount=type=ssh \\\n")),
        format!(
            "FROM a\n{}",
            numbered(&|i| format!("COPY --from=i{i} x y\n"))
        ),
        format!("FROM a\nEXPOSE {}", fill("0-65535 \\\n")),
        fill("ONBUILD \\\n"),
        fill("FRMO a\n"),
        fill("FROM a\n"),
    ];
    files.iter().for_each(|file| exercise(file.as_bytes()));
}

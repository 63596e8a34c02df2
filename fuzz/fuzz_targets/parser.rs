//! Any bytes as a Dockerfile: no panic, and every place is one of the text.
#![no_main]

use dockerfile::{Args, Ast, Diagnostic, Lines, Span, Word, parse, parse_trigger};
use libfuzzer_sys::fuzz_target;

fn check_span(source: &str, span: Span) {
    assert!(source.get(span.start..span.end).is_some());
}

fn check_tree(ast: &Ast) {
    let check = |word: &Word| check_span(&ast.source, word.span);
    let mut end = 0;
    for node in &ast.nodes {
        assert!(node.span.start >= end && node.lines.first <= node.lines.last);
        end = node.span.end;
        check_span(&ast.source, node.span);
        node.flags.iter().chain(node.args.words()).for_each(check);
        node.heredocs.iter().for_each(|doc| check_span(&ast.source, doc.span));
        if let Args::Pairs(pairs) = &node.args {
            pairs.iter().flat_map(|pair| [&pair.key, &pair.value]).for_each(check);
        }
    }
}

fn check_errors(source: &str, errors: &[Diagnostic]) {
    assert!(!errors.is_empty());
    errors.iter().flat_map(|error| &error.labels).for_each(|label| check_span(source, label.span));
}

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    match parse(data) {
        Err(errors) => check_errors(&text, &errors),
        Ok(ast) => {
            check_tree(&ast);
            let _ = dockerfile::dump(&ast);
            if let Err(errors) = ast.stages() {
                check_errors(&text, &errors);
            }
        }
    }
    let _ = dockerfile::detect_syntax(data);
    let _ = parse_trigger(&text, Lines::at(1));
});

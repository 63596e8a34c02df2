//! The tree as text, to be read and compared.

use std::fmt::Write as _;

use crate::parser::{Args, Ast, Node};
use crate::{Lines, quote};

/// Returns the instructions of a file, one a line, with what belongs to each indented below it.
pub fn dump(ast: &Ast) -> String {
    let mut out = String::new();
    for directive in &ast.directives {
        let _ = writeln!(
            out,
            "{}: # {}={}",
            place(directive.lines),
            directive.name.as_str(),
            directive.value
        );
    }
    for node in &ast.nodes {
        let _ = write!(out, "{}: ", place(node.lines));
        dump_node(node, &mut out);
    }
    for empty in &ast.empty_continuations {
        let _ = writeln!(out, "{}: empty continuation", place(empty.lines));
    }
    out
}

fn place(lines: Lines) -> String {
    if lines.first == lines.last {
        lines.first.to_string()
    } else {
        format!("{}-{}", lines.first, lines.last)
    }
}

fn dump_node(node: &Node, out: &mut String) {
    out.push_str(&node.keyword.text);
    for flag in &node.flags {
        let _ = write!(out, " {}", flag.text);
    }
    let mut words = |words: &[crate::Word]| {
        for word in words {
            let _ = write!(out, " {}", quote(&word.text));
        }
    };
    match &node.args {
        Args::Plain(args) => words(args),
        Args::Exec(args) => {
            words(args);
            out.push_str(" (json)");
        }
        Args::Pairs(pairs) => {
            for pair in pairs {
                let sign = if pair.legacy { ' ' } else { '=' };
                let _ = write!(
                    out,
                    " {}{sign}{}",
                    quote(&pair.key.text),
                    quote(&pair.value.text)
                );
            }
        }
        Args::Nested(child) => {
            out.push_str(" > ");
            dump_node(child, out);
        }
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    for doc in &node.heredocs {
        let (fd, chomp) = (doc.fd, if doc.chomp { "-" } else { "" });
        let kind = if doc.expand { "" } else { " quoted" };
        let _ = writeln!(
            out,
            "    {fd}<<{chomp}{}{kind} {}",
            doc.name,
            quote(&doc.content)
        );
    }
    for comment in &node.comments {
        let _ = writeln!(out, "    # {comment}");
    }
}

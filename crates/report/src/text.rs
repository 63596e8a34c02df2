//! Pictures in the languages of others: Mermaid and DOT.

use std::fmt::Write as _;

use crate::escape::cut;
use crate::{EdgeKind, Node, NodeKind, Picture, Role};

/// Columns of a step's text.
const COLUMNS: usize = 48;

/// Writes a picture as a Mermaid flowchart.
pub fn mermaid(picture: &Picture) -> String {
    let mut text = String::from("flowchart LR\n");
    let mut classes = [Vec::new(), Vec::new()];
    for (number, node) in picture.nodes.iter().enumerate() {
        let class = class(node.role);
        match node.kind {
            NodeKind::Stage => {
                let name = mermaid_text(&headline(node));
                let _ = writeln!(text, "  subgraph n{number}[\"{name}\"]\n    direction TB");
                for (row, step) in node.rows.iter().enumerate() {
                    let label = mermaid_text(&cut(&step.text, COLUMNS));
                    let _ = writeln!(text, "    n{number}s{row}[\"{label}\"]{class}");
                }
                if node.rows.len() > 1 {
                    let steps = 0..node.rows.len();
                    let steps: Vec<String> = steps.map(|row| format!("n{number}s{row}")).collect();
                    let _ = writeln!(text, "    {}", steps.join(" --> "));
                }
                text.push_str("  end\n");
                match node.role {
                    Role::Target => classes[0].push(format!("n{number}")),
                    Role::Skipped => classes[1].push(format!("n{number}")),
                    Role::Needed => {}
                }
            }
            _ => {
                let name = mermaid_text(&cut(&node.name, COLUMNS));
                let _ = writeln!(text, "  n{number}([\"{name}\"]){class}");
            }
        }
    }
    for edge in &picture.edges {
        let arrow = match (picture.is_needed(edge), edge.kind) {
            (true, EdgeKind::Base) => "==>",
            (true, EdgeKind::Copy) => "-->",
            (true, EdgeKind::Mount) => "-.->",
            (false, _) => "-.->",
        };
        let (from, to) = (
            exit(picture, edge.from),
            format!("n{}s{}", edge.to, edge.row),
        );
        let _ = writeln!(text, "  {from} {arrow} {to}");
    }
    text.push_str(
        "  classDef skipped fill:none,stroke:#9aa5b5,color:#7b8798,stroke-dasharray:4 4\n",
    );
    text.push_str("  classDef target stroke:#1d4fbf,stroke-width:3px\n");
    for (class, nodes) in ["target", "skipped"].into_iter().zip(&classes) {
        if !nodes.is_empty() {
            let _ = writeln!(text, "  class {} {class}", nodes.join(","));
        }
    }
    text
}

/// Writes a picture for Graphviz.
pub fn dot(picture: &Picture) -> String {
    let mut text = String::from(
        "digraph stages {\n  rankdir=LR;\n  compound=true;\n  node [shape=box, style=\"rounded\", fontname=\"monospace\", fontsize=10];\n  \
         graph [fontname=\"sans-serif\", fontsize=12, style=\"rounded\"];\n",
    );
    for (number, node) in picture.nodes.iter().enumerate() {
        let grey = match node.role {
            Role::Skipped => ", color=gray60, fontcolor=gray50",
            _ => "",
        };
        match node.kind {
            NodeKind::Stage => {
                let look = match node.role {
                    Role::Target => "penwidth=2; color=blue;",
                    Role::Needed => "",
                    Role::Skipped => "color=gray60; fontcolor=gray50; style=\"rounded,dashed\";",
                };
                let name = dot_text(&headline(node));
                let _ = writeln!(
                    text,
                    "  subgraph cluster_{number} {{\n    label=\"{name}\"; {look}"
                );
                for (row, step) in node.rows.iter().enumerate() {
                    let label = dot_text(&cut(&step.text, COLUMNS));
                    let _ = writeln!(text, "    n{number}s{row} [label=\"{label}\"{grey}];");
                }
                for row in 1..node.rows.len() {
                    let before = row - 1;
                    let _ = writeln!(text, "    n{number}s{before} -> n{number}s{row};");
                }
                text.push_str("  }\n");
            }
            _ => {
                let name = dot_text(&cut(&node.name, COLUMNS));
                let _ = writeln!(text, "  n{number} [label=\"{name}\", shape=ellipse{grey}];");
            }
        }
    }
    for edge in &picture.edges {
        let style = match edge.kind {
            EdgeKind::Base => "style=bold",
            EdgeKind::Copy => "style=solid",
            EdgeKind::Mount => "style=dashed",
        };
        let grey = match picture.is_needed(edge) {
            true => "",
            false => ", color=gray60",
        };
        let from = exit(picture, edge.from);
        let _ = writeln!(
            text,
            "  {from} -> n{}s{} [{style}{grey}];",
            edge.to, edge.row
        );
    }
    text.push_str("}\n");
    text
}

/// Returns where edges leave a node: the last step of a stage.
fn exit(picture: &Picture, node: usize) -> String {
    match picture.nodes[node].rows.len().checked_sub(1) {
        Some(last) => format!("n{node}s{last}"),
        None => format!("n{node}"),
    }
}

fn headline(node: &Node) -> String {
    let name = cut(&node.name, COLUMNS);
    match node.role {
        Role::Target => format!("{name} (target)"),
        Role::Needed => name,
        Role::Skipped => format!("{name} (not built)"),
    }
}

fn class(role: Role) -> &'static str {
    match role {
        Role::Skipped => ":::skipped",
        Role::Target | Role::Needed => "",
    }
}

/// Returns a text for a quoted label; everything that could mean something is written as its number.
fn mermaid_text(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            ' ' | '.' | ',' | '/' | ':' | '-' | '_' | '=' | '(' | ')' | '+' | '@' | '…' => {
                escaped.push(character);
            }
            character if character.is_alphanumeric() => escaped.push(character),
            character if character.is_control() => escaped.push(' '),
            character => {
                let _ = write!(escaped, "#{};", u32::from(character));
            }
        }
    }
    escaped
}

fn dot_text(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                escaped.push('\\');
                escaped.push(character);
            }
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

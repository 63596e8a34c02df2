//! Pictures as SVG: cards with rows, light and dark by what the viewer prefers.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::escape::{columns, cut, markup};
use crate::layout::{Layout, Line, Shape, layout};
use crate::{Edge, EdgeKind, Node, NodeKind, Picture, Role};

/// The look, which a page about a build shares.
const STYLE: &str = include_str!("graph.css");

const CARD_WIDTH: f64 = 304.0;
const HEAD: f64 = 36.0;
const ROW: f64 = 23.0;
const FOOT: f64 = 7.0;
/// Columns of a row's text, and of one that ends with a time.
const ROW_COLUMNS: usize = 40;
const MARKED_COLUMNS: usize = 31;
const NAME_COLUMNS: usize = 26;
const SOURCE_COLUMNS: usize = 34;
const SOURCE_HEIGHT: f64 = 34.0;
/// Around everything.
const MARGIN: f64 = 20.0;
/// Rows of a card; what is more is told in one.
const MOST_ROWS: usize = 40;

/// Draws a picture as a file of its own; `title` says what it is of.
pub fn svg(picture: &Picture, title: &str) -> String {
    let drawing = Drawing::of(picture);
    let (width, height) = drawing.size();
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"graph\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" aria-labelledby=\"graph-title graph-desc\">\n\
         <title id=\"graph-title\">{}</title>\n<desc id=\"graph-desc\">{}</desc>\n<style>\n{STYLE}</style>\n\
         <rect class=\"back\" width=\"{width}\" height=\"{height}\"/>\n",
        markup(title),
        markup(&described(picture))
    );
    text.push_str(&drawing.body(&HashMap::new()));
    text.push_str("</svg>\n");
    text
}

/// How a step ended, beside its row.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub(crate) class: &'static str,
    pub(crate) sign: &'static str,
    pub(crate) word: &'static str,
    /// May be empty.
    pub(crate) time: String,
    pub(crate) link: String,
}

/// Draws a picture as a part of a page, whose style is there already; rows have marks by node and row.
pub(crate) fn embedded(picture: &Picture, marks: &HashMap<(usize, usize), Mark>) -> String {
    let drawing = Drawing::of(picture);
    let (width, height) = drawing.size();
    // What is little wider than a page is shown whole.
    let class = match width {
        ..1500.0 => "graph whole",
        _ => "graph",
    };
    format!(
        "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"group\" \
         aria-label=\"{}\">\n{}</svg>",
        markup(&described(picture)),
        drawing.body(marks)
    )
}

/// Says in words what a picture shows.
fn described(picture: &Picture) -> String {
    let of = |role: Role| {
        let nodes = picture.nodes.iter();
        let nodes = nodes.filter(|node| node.kind == NodeKind::Stage && node.role == role);
        let names: Vec<&str> = nodes.map(|node| node.name.as_str()).collect();
        names.join(", ")
    };
    let mut text = format!("Target: {}.", of(Role::Target));
    for (role, what) in [(Role::Needed, "It needs"), (Role::Skipped, "Not built")] {
        match of(role) {
            names if names.is_empty() => {}
            names => text.push_str(&format!(" {what}: {names}.")),
        }
    }
    text
}

/// A picture with its layout.
struct Drawing<'a> {
    picture: &'a Picture,
    shapes: Vec<Shape>,
    layout: Layout,
}

impl<'a> Drawing<'a> {
    fn of(picture: &'a Picture) -> Self {
        let shapes: Vec<Shape> = picture.nodes.iter().map(shape).collect();
        let lines: Vec<Line> = picture
            .edges
            .iter()
            .map(|edge| Line {
                from: edge.from,
                to: edge.to,
                at: row_middle(&picture.nodes[edge.to], edge.row),
            })
            .collect();
        let layout = layout(&shapes, &lines);
        Self {
            picture,
            shapes,
            layout,
        }
    }

    fn size(&self) -> (f64, f64) {
        (
            self.layout.width + 2.0 * MARGIN,
            self.layout.height + 2.0 * MARGIN,
        )
    }

    fn body(&self, marks: &HashMap<(usize, usize), Mark>) -> String {
        let mut text = String::from(
            "<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
             markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path class=\"tip\" d=\"M0 0L8 4L0 8z\"/></marker></defs>\n",
        );
        // What is needed lies above what is not.
        let edges = self.picture.edges.iter().enumerate();
        let (needed, skipped): (Vec<_>, Vec<_>) =
            edges.partition(|(_, edge)| self.picture.is_needed(edge));
        for (number, edge) in skipped.into_iter().chain(needed) {
            self.add_edge(&mut text, number, edge);
        }
        let nodes = self.picture.nodes.iter().zip(&self.layout.places);
        for (number, (node, (x, y))) in nodes.enumerate() {
            let (x, y) = (x + MARGIN, y + MARGIN);
            let mark_of = |row| marks.get(&(number, row));
            match node.kind {
                NodeKind::Stage => add_stage(&mut text, node, x, y, &mark_of),
                _ => add_source(&mut text, node, x, y),
            }
        }
        text
    }

    fn add_edge(&self, text: &mut String, number: usize, edge: &Edge) {
        let (from, to) = (self.layout.places[edge.from], self.layout.places[edge.to]);
        let shape = &self.shapes[edge.from];
        let start = (from.0 + shape.width, from.1 + shape.out);
        let end = (
            to.0 - 1.0,
            to.1 + row_middle(&self.picture.nodes[edge.to], edge.row),
        );
        let mut at = (start.0 + MARGIN, start.1 + MARGIN);
        let mut path = format!("M{} {}", number_of(at.0), number_of(at.1));
        let bends = self.layout.bends[number].chunks(2);
        for bend in bends {
            if let [into, out] = bend {
                curve(&mut path, at, (into.0 + MARGIN, into.1 + MARGIN));
                at = (out.0 + MARGIN, out.1 + MARGIN);
                let _ = write!(path, "H{}", number_of(at.0));
            }
        }
        curve(&mut path, at, (end.0 + MARGIN, end.1 + MARGIN));
        let kind = match edge.kind {
            EdgeKind::Base => "base",
            EdgeKind::Copy => "copy",
            EdgeKind::Mount => "mount",
        };
        let skipped = match self.picture.is_needed(edge) {
            true => "",
            false => " skipped",
        };
        let _ = writeln!(
            text,
            "<path class=\"edge {kind}{skipped}\" marker-end=\"url(#tip)\" d=\"{path}\"/>"
        );
    }
}

/// Goes on to a point, level at both ends.
fn curve(path: &mut String, from: (f64, f64), to: (f64, f64)) {
    if (from.1 - to.1).abs() < 0.5 && from.0 <= to.0 {
        let _ = write!(path, "H{}", number_of(to.0));
        return;
    }
    let reach = ((to.0 - from.0) / 2.0).max(30.0);
    let _ = write!(
        path,
        "C{} {} {} {} {} {}",
        number_of(from.0 + reach),
        number_of(from.1),
        number_of(to.0 - reach),
        number_of(to.1),
        number_of(to.0),
        number_of(to.1)
    );
}

/// Writes a number with one digit behind the point, where it has any.
fn number_of(value: f64) -> String {
    let tenths = (value * 10.0).round() / 10.0;
    format!("{tenths}")
}

fn shape(node: &Node) -> Shape {
    match node.kind {
        NodeKind::Stage => {
            let rows = shown_rows(node) as f64;
            Shape {
                width: CARD_WIDTH,
                height: HEAD + rows * ROW + FOOT,
                // A stage's result is what its last step leaves.
                out: HEAD + (rows - 0.5).max(0.0) * ROW + FOOT / 2.0,
            }
        }
        _ => Shape {
            width: source_width(node),
            height: SOURCE_HEIGHT,
            out: SOURCE_HEIGHT / 2.0,
        },
    }
}

fn source_width(node: &Node) -> f64 {
    let columns = columns(&cut(&node.name, SOURCE_COLUMNS)) as f64;
    (48.0 + columns * 7.4).round()
}

/// Returns how many rows a card has.
fn shown_rows(node: &Node) -> usize {
    node.rows.len().min(MOST_ROWS + 1)
}

fn row_middle(node: &Node, row: usize) -> f64 {
    let row = row.min(shown_rows(node).saturating_sub(1)) as f64;
    HEAD + (row + 0.5) * ROW + FOOT / 2.0
}

fn class(role: Role) -> &'static str {
    match role {
        Role::Target => "target",
        Role::Needed => "needed",
        Role::Skipped => "skipped",
    }
}

fn add_stage<'a>(
    text: &mut String,
    node: &Node,
    x: f64,
    y: f64,
    mark_of: &dyn Fn(usize) -> Option<&'a Mark>,
) {
    let height = shape(node).height;
    let _ = writeln!(
        text,
        "<g class=\"stage {}\" transform=\"translate({} {})\">\n\
         <rect class=\"card\" width=\"{CARD_WIDTH}\" height=\"{height}\" rx=\"9\"/>\n\
         <path class=\"head\" d=\"M1 {HEAD}V10A9 9 0 0 1 10 1H{}A9 9 0 0 1 {} 10V{HEAD}z\"/>\n\
         <path class=\"rule\" d=\"M0 {HEAD}H{CARD_WIDTH}\"/>\n\
         <text class=\"name\" x=\"14\" y=\"23\">{}</text>",
        class(node.role),
        number_of(x),
        number_of(y),
        CARD_WIDTH - 10.0,
        CARD_WIDTH - 1.0,
        markup(&cut(&node.name, NAME_COLUMNS))
    );
    let badge = match node.role {
        Role::Target => "TARGET",
        Role::Needed => "",
        Role::Skipped => "NOT BUILT",
    };
    if !badge.is_empty() {
        let _ = writeln!(
            text,
            "<text class=\"badge\" x=\"{}\" y=\"22\" text-anchor=\"end\">{badge}</text>",
            CARD_WIDTH - 12.0
        );
    }
    for number in 0..node.rows.len().min(MOST_ROWS) {
        add_row(text, node, number, mark_of(number));
    }
    if let Some(more) = node
        .rows
        .len()
        .checked_sub(MOST_ROWS)
        .filter(|more| *more > 0)
    {
        let _ = writeln!(
            text,
            "<text class=\"row\" x=\"14\" y=\"{}\">and {more} more steps</text>",
            number_of(row_middle(node, MOST_ROWS) + 4.0)
        );
    }
    text.push_str("</g>\n");
}

fn add_row(text: &mut String, node: &Node, number: usize, mark: Option<&Mark>) {
    let row = &node.rows[number];
    let y = number_of(row_middle(node, number) + 4.0);
    let columns = match mark {
        Some(_) => MARKED_COLUMNS,
        None => ROW_COLUMNS,
    };
    let shown = cut(&row.text, columns);
    let (word, rest) = shown.split_at(shown.find(' ').unwrap_or(shown.len()));
    let words = format!(
        "<tspan class=\"word\">{}</tspan>{}",
        markup(word),
        markup(rest)
    );
    let Some(mark) = mark else {
        let _ = writeln!(
            text,
            "<text class=\"row\" x=\"14\" y=\"{y}\"><title>{}</title>{words}</text>",
            markup(&row.text)
        );
        return;
    };
    let ended = match mark.time.as_str() {
        "" => mark.word.to_owned(),
        time => format!("{} in {time}", mark.word),
    };
    let label = markup(&format!("{}: {ended}", row.text));
    let class = mark.class;
    let _ = writeln!(
        text,
        "<a href=\"{}\" class=\"marked {class}\" aria-label=\"{label}\"><title>{label}</title>\
         <rect class=\"hit\" x=\"6\" y=\"{}\" width=\"{}\" height=\"{ROW}\" rx=\"5\"/>\
         <text class=\"sign {class}\" x=\"14\" y=\"{y}\">{}</text><text class=\"row\" x=\"31\" y=\"{y}\">{words}</text>\
         <text class=\"row end {class}\" x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text></a>",
        mark.link,
        number_of(row_middle(node, number) - ROW / 2.0),
        CARD_WIDTH - 12.0,
        mark.sign,
        CARD_WIDTH - 12.0,
        match mark.time.as_str() {
            "" => mark.word,
            time => time,
        },
    );
}

fn add_source(text: &mut String, node: &Node, x: f64, y: f64) {
    let icon = match node.kind {
        // A stack, a folder, a globe.
        NodeKind::Image | NodeKind::Stage => {
            "M13 14l7-3.5l7 3.5l-7 3.5zM13 18l7 3.5l7-3.5M13 21.5l7 3.5l7-3.5"
        }
        NodeKind::Context => "M13 11.5h5l2 2.5h7v10h-14z",
        NodeKind::Remote => {
            "M13.5 17.5a6.5 6.5 0 1 1 13 0a6.5 6.5 0 1 1-13 0zM13.5 17.5h13M20 11a9 9 0 0 1 0 13a9 9 0 0 1 0-13z"
        }
    };
    let _ = writeln!(
        text,
        "<g class=\"source {}\" transform=\"translate({} {})\"><title>{}</title>\n\
         <rect class=\"card\" width=\"{}\" height=\"{SOURCE_HEIGHT}\" rx=\"17\"/>\n\
         <path class=\"icon\" d=\"{icon}\"/>\n<text class=\"name\" x=\"35\" y=\"21.5\">{}</text>\n</g>",
        class(node.role),
        number_of(x),
        number_of(y),
        markup(&node.name),
        source_width(node),
        markup(&cut(&node.name, SOURCE_COLUMNS))
    );
}

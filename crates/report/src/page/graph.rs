//! The stages, each step with how it ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use engine::history::{StepOutcome, StepRecord};
use oci::Platform;

use super::{MOST_STEPS, Page, Section, instruction, outcome, stage, took};
use crate::svg::{Mark, embedded};
use crate::{Edge, EdgeKind, Node, NodeKind, Picture, Role, Row, StageOptions, stage_picture};

pub(super) fn section(page: &Page<'_>) -> Option<Section> {
    let (picture, marks) = match of_dockerfile(page) {
        Some(drawn) => drawn,
        None => of_steps(page)?,
    };
    let skipped = picture.nodes.iter();
    let skipped = skipped
        .filter(|node| node.kind == NodeKind::Stage && node.role == Role::Skipped)
        .count();
    let aside = match skipped {
        0 => String::new(),
        1 => "<p>1 stage was not needed</p>".to_owned(),
        count => format!("<p>{count} stages were not needed</p>"),
    };
    let body = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Graph of the stages, scrolls sideways\">{}</div>\n",
        embedded(&picture, &marks)
    );
    Some(Section {
        id: "graph",
        short: "Graph",
        title: "Stages",
        aside,
        body,
    })
}

/// The mark of each row: node, row.
type Marks = HashMap<(usize, usize), Mark>;

/// Draws the Dockerfile of the build, also what was not needed of it.
fn of_dockerfile(page: &Page<'_>) -> Option<(Picture, Marks)> {
    let record = page.record;
    let text = &record.dockerfile.as_ref()?.text;
    let tree = dockerfile::parse(text.as_bytes()).ok()?;
    let request = &record.request;
    let named: BTreeSet<String> = request.named_contexts.keys().cloned().collect();
    let platform = |text: Option<&String>| text.and_then(|text| text.parse::<Platform>().ok());
    let outputs = record.outputs.iter().map(|output| &output.platform);
    let target = platform(request.platforms.first().or(outputs.into_iter().next()));
    let target = target.unwrap_or_else(Platform::host);
    let options = StageOptions {
        target: request.target.as_deref(),
        build_args: &request.build_args,
        named_contexts: &named,
        build_platform: &Platform::host(),
        target_platform: &target,
    };
    let picture = stage_picture(&tree.stages().ok()?, tree.escape, &options).ok()?;
    let mut by_line: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, step) in record.steps.iter().enumerate().take(MOST_STEPS) {
        if let Some((first, _)) = step.lines {
            by_line.entry(first as usize).or_default().push(number);
        }
    }
    let mut marks = Marks::new();
    let mut bases: HashMap<usize, Mark> = HashMap::new();
    for (node, drawn) in picture.nodes.iter().enumerate() {
        for (row, step) in drawn.rows.iter().enumerate() {
            if let Some(steps) = by_line.get(&step.lines.0)
                && let Some(mark) = mark_of(page, steps)
            {
                marks.insert((node, row), mark);
            }
        }
    }
    // Stages on one image share the step that fetched it.
    let of_images = picture
        .edges
        .iter()
        .filter(|edge| edge.kind == EdgeKind::Base);
    let of_images: Vec<&Edge> = of_images
        .filter(|edge| picture.nodes[edge.from].kind == NodeKind::Image)
        .collect();
    for edge in &of_images {
        if let Some(mark) = marks.get(&(edge.to, edge.row)) {
            bases.entry(edge.from).or_insert_with(|| mark.clone());
        }
    }
    for edge in of_images.iter().filter(|edge| picture.is_needed(edge)) {
        if let Some(mark) = bases.get(&edge.from) {
            marks
                .entry((edge.to, edge.row))
                .or_insert_with(|| mark.clone());
        }
    }
    Some((picture, marks))
}

/// Returns the mark of a row from its steps: one for each platform. What is worst is shown.
fn mark_of(page: &Page<'_>, steps: &[usize]) -> Option<Mark> {
    let rank = |step: &StepRecord| match step.outcome {
        StepOutcome::Failed => 4,
        StepOutcome::Canceled => 3,
        StepOutcome::Ran => 2,
        StepOutcome::Cached => 1,
        StepOutcome::Skipped => 0,
    };
    let all = &page.record.steps;
    let worst = steps
        .iter()
        .copied()
        .max_by_key(|number| (rank(&all[*number]), took(&all[*number])))?;
    let (class, sign, word) = outcome(all[worst].outcome);
    Some(Mark {
        class,
        sign,
        word,
        time: super::time(took(&all[worst])),
        link: format!("#step-{worst}"),
    })
}

/// Draws the steps of a build that had no Dockerfile, by their stages where they have some.
fn of_steps(page: &Page<'_>) -> Option<(Picture, Marks)> {
    let steps = &page.record.steps;
    let mut picture = Picture::default();
    let mut marks = Marks::new();
    let mut places: HashMap<&oci::Digest, (usize, usize)> = HashMap::new();
    let mut nodes: HashMap<String, usize> = HashMap::new();
    for (number, step) in steps.iter().enumerate().take(MOST_STEPS) {
        if !step.is_instruction() {
            continue;
        }
        let name = match &step.stage {
            Some(_) => stage(step),
            None => instruction(step),
        };
        let node = *nodes.entry(name.clone()).or_insert_with(|| {
            picture.nodes.push(Node {
                kind: NodeKind::Stage,
                name,
                role: Role::Needed,
                rows: Vec::new(),
            });
            picture.nodes.len() - 1
        });
        let rows = &mut picture.nodes[node].rows;
        let lines = step.lines.unwrap_or_default();
        rows.push(Row {
            text: instruction(step),
            lines: (lines.0 as usize, lines.1 as usize),
        });
        let place = (node, rows.len() - 1);
        places.insert(&step.vertex, place);
        marks.extend(mark_of(page, &[number]).map(|mark| (place, mark)));
        let sources: BTreeSet<usize> = step
            .inputs
            .iter()
            .filter_map(|input| places.get(input))
            .map(|(source, _)| *source)
            .filter(|source| *source != node)
            .collect();
        picture.edges.extend(sources.into_iter().map(|from| Edge {
            from,
            to: node,
            row: place.1,
            kind: EdgeKind::Copy,
        }));
    }
    (!picture.nodes.is_empty()).then_some((picture, marks))
}

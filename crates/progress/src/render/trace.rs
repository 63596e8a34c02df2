//! What renderers know of a build.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};

use oci::{Digest, Timestamp};

use super::Palette;
use super::format::{log_time, one_line, seconds_between, tame};
use crate::{Event, Log, Outcome, Status, Vertex, VertexState};

/// How many bytes of a step's log are kept.
const LONGEST_LOG: usize = 1 << 20;
/// A line that is longer is kept, and shown, in pieces.
const LONGEST_PIECE: usize = 1 << 16;

/// All steps of a build: vertices, and groups of vertices shown as one.
#[derive(Debug, Default)]
pub(super) struct Trace {
    steps: Vec<Step>,
    by_vertex: BTreeMap<Digest, usize>,
    by_group: BTreeMap<String, usize>,
    /// The steps that are shown, in the order in which they began.
    pub(super) begun: Vec<usize>,
    /// When the first step began.
    pub(super) start: Option<Timestamp>,
}

#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) name: String,
    /// A group is not shown before one of its vertices that is not weak has started.
    hidden: bool,
    members: BTreeMap<Digest, VertexState>,
    /// Each run of a vertex, by its start, then merged where they overlap.
    runs: BTreeMap<(Timestamp, Digest), Option<Timestamp>>,
    spans: Vec<Span>,
    pub(super) parts: Vec<Part>,
    pub(super) warnings: Vec<String>,
    pub(super) log: LogLines,
    /// Something has happened since it was last shown.
    pub(super) changed: bool,
    /// Events since it was last the one shown, and when the first of them came.
    pub(super) activity: usize,
    pub(super) quiet_since: Option<Timestamp>,
}

/// A time in which something of a step was running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: Timestamp,
    end: Option<Timestamp>,
}

/// A part of a step: a layer being fetched, a phase of an export.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) status: Status,
    pub(super) changed: bool,
}

/// The lines a step has printed and that are not shown yet, or not for good.
#[derive(Debug, Default)]
pub(super) struct LogLines {
    pub(super) lines: VecDeque<LogLine>,
    bytes: usize,
    /// How many lines were dropped to keep the rest.
    pub(super) dropped: usize,
}

/// How a line ends, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineEnd {
    /// More of it may come.
    Open,
    /// It goes on in the next one.
    Cut,
    Newline,
}

#[derive(Debug)]
pub(super) struct LogLine {
    /// Seconds since the step began.
    pub(super) time: String,
    pub(super) text: Vec<u8>,
    pub(super) end: LineEnd,
    /// It is a further piece of a long line.
    pub(super) continues: bool,
}

impl Trace {
    pub(super) fn step(&self, step: usize) -> &Step {
        &self.steps[step]
    }

    pub(super) fn step_mut(&mut self, step: usize) -> &mut Step {
        &mut self.steps[step]
    }

    /// Returns the step that shows a vertex.
    pub(super) fn step_of(&self, vertex: &Digest) -> Option<usize> {
        self.by_vertex.get(vertex).copied()
    }

    /// Returns how many steps are known, and how many of them are completed.
    pub(super) fn counts(&self) -> (usize, usize) {
        let shown = self.steps.iter().filter(|step| !step.hidden);
        shown.fold((0, 0), |(all, completed), step| {
            (all + 1, completed + usize::from(step.is_completed()))
        })
    }

    /// Returns the steps that are shown, those of a stage together, in the order in which stages and steps began.
    pub(super) fn by_stage(&self) -> Vec<usize> {
        let mut order: BTreeMap<&str, usize> = BTreeMap::new();
        let mut keyed: Vec<(usize, usize)> = Vec::with_capacity(self.begun.len());
        for place in &self.begun {
            let next = order.len();
            let name = stage_of(&self.steps[*place].name);
            keyed.push((*order.entry(name).or_insert(next), *place));
        }
        // Stable: what began first stays first.
        keyed.sort_by_key(|(stage, _)| *stage);
        keyed.into_iter().map(|(_, place)| place).collect()
    }

    pub(super) fn apply(&mut self, event: &Event) {
        let (place, at) = match event {
            Event::Vertex { vertex, state } => {
                let place = self.place(vertex);
                let changed = self.change(place, vertex, state);
                let at = match state {
                    VertexState::Waiting => None,
                    VertexState::Running { started } => Some(*started),
                    VertexState::Completed { completed, .. } => Some(*completed),
                };
                (changed.then_some(place), at)
            }
            Event::Status(status) => {
                let place = self.step_of(&status.vertex);
                if let Some(place) = place {
                    self.steps[place].set_part(status);
                }
                (place, Some(status.timestamp))
            }
            Event::Log(log) => {
                let place = self.step_of(&log.vertex);
                if let Some(place) = place {
                    self.steps[place].add_log(log);
                }
                (place, Some(log.timestamp))
            }
            Event::Warning(warning) => {
                let place = self.step_of(&warning.vertex);
                if let Some(place) = place {
                    self.steps[place].warnings.push(one_line(&warning.short));
                }
                (place, None)
            }
        };
        if let Some(place) = place {
            let step = &mut self.steps[place];
            step.changed = true;
            step.activity += 1;
            step.quiet_since = step.quiet_since.or(at);
        }
    }

    fn place(&mut self, vertex: &Vertex) -> usize {
        let new = self.steps.len();
        let place = match &vertex.group {
            Some(group) => *self.by_group.entry(group.id.clone()).or_insert(new),
            None => *self.by_vertex.entry(vertex.digest.clone()).or_insert(new),
        };
        self.by_vertex.entry(vertex.digest.clone()).or_insert(place);
        if place == new {
            let name = vertex
                .group
                .as_ref()
                .map_or(&vertex.name, |group| &group.name);
            self.steps.push(Step {
                name: one_line(name),
                hidden: vertex.group.is_some(),
                ..Step::default()
            });
        }
        place
    }

    /// Sets the state of a vertex; returns whether there is something new to show.
    fn change(&mut self, place: usize, vertex: &Vertex, state: &VertexState) -> bool {
        let step = &mut self.steps[place];
        let weak = vertex.group.as_ref().is_some_and(|group| group.weak);
        if vertex.group.is_none() {
            step.name = one_line(&vertex.name);
        }
        let known = step.members.get(&vertex.digest);
        if known.is_some_and(|known| known == state || *state == VertexState::Waiting) {
            return false;
        }
        step.members.insert(vertex.digest.clone(), state.clone());
        let run = match state {
            VertexState::Waiting => return false,
            VertexState::Running { started } => (*started, None),
            VertexState::Completed {
                started, completed, ..
            } => (*started, Some(*completed)),
        };
        step.runs.insert((run.0, vertex.digest.clone()), run.1);
        step.spans = merged(&step.runs);
        step.hidden &= weak;
        let hidden = step.hidden;
        self.start = self.start.or(Some(run.0));
        if !hidden && !self.begun.contains(&place) {
            self.begun.push(place);
        }
        !hidden
    }
}

impl Step {
    pub(super) fn is_completed(&self) -> bool {
        self.spans.last().is_some_and(|span| span.end.is_some())
    }

    /// Returns when the step last ended.
    pub(super) fn end(&self) -> Option<Timestamp> {
        self.spans.last()?.end
    }

    /// Returns how long the step has been running, in seconds.
    pub(super) fn duration(&self, now: Timestamp) -> f64 {
        self.spans
            .iter()
            .map(|span| seconds_between(span.start, span.end.unwrap_or(now)))
            .sum()
    }

    pub(super) fn error(&self) -> Option<&str> {
        self.outcomes().find_map(|outcome| match outcome {
            Some(Outcome::Failed { error }) => Some(error.as_str()),
            _ => None,
        })
    }

    pub(super) fn is_canceled(&self) -> bool {
        self.error().is_none()
            && self
                .outcomes()
                .any(|outcome| outcome == Some(&Outcome::Canceled))
    }

    pub(super) fn is_cached(&self) -> bool {
        self.outcomes()
            .all(|outcome| outcome == Some(&Outcome::Cached))
    }

    fn outcomes(&self) -> impl Iterator<Item = Option<&Outcome>> {
        self.members.values().map(|state| match state {
            VertexState::Completed { outcome, .. } => Some(outcome),
            _ => None,
        })
    }

    fn set_part(&mut self, status: &Status) {
        match self
            .parts
            .iter_mut()
            .find(|part| part.status.id == status.id)
        {
            Some(part) => {
                part.status = status.clone();
                part.changed = true;
            }
            None => self.parts.push(Part {
                status: status.clone(),
                changed: true,
            }),
        }
    }

    fn add_log(&mut self, log: &Log) {
        let since = self
            .spans
            .last()
            .map_or(0.0, |span| seconds_between(span.start, log.timestamp));
        self.log.add(&log.data, since);
    }
}

impl LogLines {
    fn add(&mut self, data: &[u8], seconds: f64) {
        self.bytes += data.len();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let (text, end) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, LineEnd::Newline),
                None => (piece, LineEnd::Open),
            };
            match self
                .lines
                .back_mut()
                .filter(|line| line.end == LineEnd::Open)
            {
                Some(line) if line.text.len() + text.len() > LONGEST_PIECE => {
                    line.end = LineEnd::Cut;
                    self.push(text, end, true, seconds);
                }
                Some(line) => {
                    line.text.extend_from_slice(text);
                    line.end = end;
                }
                None => self.push(text, end, false, seconds),
            }
        }
    }

    fn push(&mut self, text: &[u8], end: LineEnd, continues: bool, seconds: f64) {
        self.lines.push_back(LogLine {
            time: log_time(seconds),
            text: text.to_vec(),
            end,
            continues,
        });
    }

    /// Whether so much waits to be shown that it should not wait longer.
    pub(super) fn is_long(&self) -> bool {
        self.bytes > LONGEST_LOG
    }

    /// Takes the first line out.
    pub(super) fn take_first(&mut self) -> Option<LogLine> {
        let line = self.lines.pop_front()?;
        self.bytes = self
            .bytes
            .saturating_sub(line.text.len() + usize::from(line.end == LineEnd::Newline));
        Some(line)
    }

    /// Writes the last lines, each with its time.
    pub(super) fn write_last(
        &self,
        count: usize,
        palette: Palette,
        output: &mut impl Write,
    ) -> io::Result<()> {
        let first = self.lines.len().saturating_sub(count);
        for line in self.lines.range(first..) {
            if !line.continues {
                write!(output, "{} ", line.time)?;
            }
            output.write_all(tame(&line.text, palette).as_bytes())?;
            if line.end != LineEnd::Cut {
                writeln!(output)?;
            }
        }
        Ok(())
    }

    /// Drops the oldest lines of a log that is kept for its end.
    pub(super) fn trim(&mut self) {
        while self.is_long() && self.lines.len() > 1 {
            self.take_first();
            self.dropped += 1;
        }
    }
}

/// Returns what the steps of a stage have in common: `builder` of `[builder 2/5] RUN make`. A step without a stage is
/// a stage of its own.
fn stage_of(name: &str) -> &str {
    let head = name.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    match head.map(|(head, _)| head) {
        None => name,
        Some(head) => match head.rsplit_once(' ') {
            Some((stage, number)) if number.contains('/') => stage,
            // `[2/5]` of the only stage.
            _ if head.contains('/') => "",
            _ => head,
        },
    }
}

/// Joins runs that overlap. What has no end swallows all that begins after it.
fn merged(runs: &BTreeMap<(Timestamp, Digest), Option<Timestamp>>) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for ((start, _), end) in runs {
        match spans.last_mut() {
            Some(last) if last.end.is_none_or(|end| end >= *start) => {
                last.end = match (last.end, end) {
                    (Some(first), Some(second)) => Some(first.max(*second)),
                    _ => None,
                };
            }
            _ => spans.push(Span {
                start: *start,
                end: *end,
            }),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(runs: &[(i64, Option<i64>)], expect: &[(i64, Option<i64>)]) {
        let at = |seconds| Timestamp::from_unix(seconds, 0).unwrap();
        let runs = runs.iter().enumerate().map(|(index, (start, end))| {
            ((at(*start), Digest::sha256_of(&[index as u8])), end.map(at))
        });
        let found: Vec<_> = merged(&runs.collect())
            .iter()
            .map(|span| {
                (
                    span.start.unix_seconds(),
                    span.end.map(|end| end.unix_seconds()),
                )
            })
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn overlapping_runs_count_once() {
        check(&[], &[]);
        check(&[(0, Some(1)), (2, Some(3))], &[(0, Some(1)), (2, Some(3))]);
        check(
            &[(0, Some(10)), (1, Some(2)), (9, Some(12))],
            &[(0, Some(12))],
        );
        check(&[(0, Some(2)), (2, Some(3))], &[(0, Some(3))]);
        check(&[(0, None), (5, Some(6))], &[(0, None)]);
        check(&[(0, Some(6)), (5, None)], &[(0, None)]);
    }
}

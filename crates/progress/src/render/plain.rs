//! Lines in order, in the shape of BuildKit's `--progress=plain`.
//!
//! Each step has a number. Its lines stand together as far as that is possible: the lines of one running step are
//! shown until it ends or others have waited too long.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};

use oci::Timestamp;

use super::Render;
use super::format::{seconds_between, transfer};
use super::trace::{LineEnd, LogLine, Step, Trace};
use crate::{Event, Status};

/// The least time one step is shown before another takes its turn, in seconds.
const SHORTEST_TURN: f64 = 5.0;
/// After this time a step that has something to show gets its turn.
const LONGEST_WAIT: f64 = 10.0;
/// A part is shown again after this time, or after this much of it.
const PART_TIME: f64 = 5.0;
const PART_SHARE: f64 = 0.05;
/// How many lines of a failed step are repeated at the end.
const LAST_LINES: usize = 10;

/// How the lines of a step are folded away where logs are shown on a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Folds {
    #[default]
    None,
    /// Workflow commands of GitHub Actions.
    GitHub,
    /// Sections of GitLab CI.
    GitLab,
}

/// Shows a build as lines.
#[derive(Debug)]
pub struct Plain<W> {
    output: W,
    folds: Folds,
    /// The fold that is open: its name, where it has one.
    fold: Option<String>,
    /// How many folds there were.
    folded: usize,
    now: Timestamp,
    trace: Trace,
    /// The step whose lines stand last.
    current: Option<usize>,
    shown: BTreeMap<usize, Shown>,
    parts: BTreeMap<(usize, String), (u64, Timestamp)>,
}

/// What has been shown of a step.
#[derive(Debug, Default)]
struct Shown {
    number: usize,
    warnings: usize,
    /// How much of the last line stands there without its newline.
    partial: usize,
    last_lines: VecDeque<String>,
}

impl<W: Write> Plain<W> {
    pub fn new(output: W) -> Self {
        Self {
            output,
            folds: Folds::None,
            fold: None,
            folded: 0,
            now: Timestamp::EPOCH,
            trace: Trace::default(),
            current: None,
            shown: BTreeMap::new(),
            parts: BTreeMap::new(),
        }
    }

    /// Folds the lines of steps.
    #[must_use]
    pub fn folded(mut self, folds: Folds) -> Self {
        self.folds = folds;
        self
    }

    /// Begins the lines of a step. What has nothing to fold is not folded.
    fn begin(&mut self, place: usize) -> io::Result<()> {
        let number = self.shown[&place].number;
        let step = self.trace.step(place);
        let title = format!("#{number} {}", step.name);
        let is_bare = step.is_completed()
            && step.log.lines.is_empty()
            && step.parts.is_empty()
            && step.warnings.is_empty();
        if self.folds == Folds::None || is_bare {
            return writeln!(self.output, "{title}");
        }
        self.folded += 1;
        let mut name = String::new();
        match self.folds {
            Folds::None => {}
            // What stands for line ends in workflow commands is taken literally.
            Folds::GitHub => writeln!(self.output, "::group::{}", title.replace('%', "%25"))?,
            Folds::GitLab => {
                name = format!("lapstrake_{}", self.folded);
                let second = self.now.unix_seconds();
                writeln!(
                    self.output,
                    "\x1b[0Ksection_start:{second}:{name}[collapsed=true]\r\x1b[0K{title}"
                )?;
            }
        }
        self.fold = Some(name);
        Ok(())
    }

    /// Ends a fold, if one is open.
    fn end_fold(&mut self) -> io::Result<()> {
        match (self.fold.take(), self.folds) {
            (None, _) | (_, Folds::None) => Ok(()),
            (Some(_), Folds::GitHub) => writeln!(self.output, "::endgroup::"),
            (Some(name), Folds::GitLab) => {
                let second = self.now.unix_seconds();
                write!(self.output, "\x1b[0Ksection_end:{second}:{name}\r\x1b[0K")
            }
        }
    }

    fn show_changes(&mut self, now: Timestamp) -> io::Result<()> {
        self.now = now;
        let mut completed = Vec::new();
        let mut running = Vec::new();
        for place in self.trace.begun.clone() {
            let step = self.trace.step(place);
            match (step.changed, step.end()) {
                (false, _) => {}
                (true, Some(end)) => completed.push((Some(place) != self.current, end, place)),
                (true, None) => running.push(place),
            }
        }
        // The step whose lines stand last is ended first, the others in the order of their ends.
        completed.sort_unstable();
        for (_, _, place) in &completed {
            self.show(*place)?;
        }
        let current = self
            .current
            .filter(|place| !self.trace.step(*place).is_completed());
        if let Some(current) = current.filter(|current| running.contains(current)) {
            self.show(current)?;
        }
        match self.next_turn(current, &running, now) {
            Some(place) => self.show(place),
            None => Ok(()),
        }
    }

    /// Decides which running step is shown now, if another than the current one.
    fn next_turn(
        &self,
        current: Option<usize>,
        running: &[usize],
        now: Timestamp,
    ) -> Option<usize> {
        let waited = |place: usize| {
            self.trace
                .step(place)
                .quiet_since
                .map_or(0.0, |since| seconds_between(since, now))
        };
        let speed =
            |place: usize| self.trace.step(place).activity as f64 / waited(place).max(0.001);
        let others = running
            .iter()
            .copied()
            .filter(|place| Some(*place) != current);
        let busiest = others
            .clone()
            .max_by(|a, b| speed(*a).total_cmp(&speed(*b)).then(b.cmp(a)));
        let Some(current) = current else {
            // Something that is running stands last, even if it has nothing to say.
            let open = || {
                self.trace
                    .begun
                    .iter()
                    .copied()
                    .find(|place| !self.trace.step(*place).is_completed())
            };
            return busiest.or_else(open);
        };
        let late =
            |place: &usize| waited(*place) > LONGEST_WAIT || self.trace.step(*place).log.is_long();
        if let Some(late) = others.clone().find(late) {
            return Some(late);
        }
        let all: f64 = others.map(speed).sum::<f64>() + speed(current);
        let rest = (1.0 - speed(current) / all).max(f64::EPSILON);
        busiest.filter(|_| SHORTEST_TURN / rest < waited(current))
    }

    /// Shows what is new of a step; its lines then stand last.
    fn show(&mut self, place: usize) -> io::Result<()> {
        let number = self.shown.len() + 1;
        self.shown.entry(place).or_insert_with(|| Shown {
            number,
            ..Shown::default()
        });
        if self.current != Some(place) {
            self.interrupt()?;
            if number > 1 {
                writeln!(self.output)?;
            }
            self.begin(place)?;
        }
        let Some(shown) = self.shown.get_mut(&place) else {
            return Ok(());
        };
        let number = shown.number;
        let step = self.trace.step_mut(place);
        if shown.partial > 0
            && (step.warnings.len() > shown.warnings || step.parts.iter().any(|part| part.changed))
        {
            writeln!(self.output)?;
            shown.partial = 0;
        }
        for part in &mut step.parts {
            let status = &part.status;
            if !std::mem::take(&mut part.changed) {
                continue;
            }
            let last = self.parts.get(&(place, status.id.clone()));
            if !is_worth_a_line(status, last) {
                continue;
            }
            self.parts.insert(
                (place, status.id.clone()),
                (status.current, status.timestamp),
            );
            writeln!(self.output, "#{number} {}", part_line(status))?;
        }
        for warning in &step.warnings[shown.warnings..] {
            writeln!(self.output, "#{number} WARN: {warning}")?;
        }
        shown.warnings = step.warnings.len();
        let tame = self.folds != Folds::None;
        show_log(&mut self.output, shown, step, tame)?;
        step.changed = false;
        self.current = Some(place);
        if step.is_completed() {
            step.activity = 0;
            step.quiet_since = None;
            if shown.partial > 0 {
                writeln!(self.output)?;
                shown.partial = 0;
            }
            self.current = None;
            let end = end_line(step);
            // How it ended is seen without unfolding it.
            self.end_fold()?;
            writeln!(self.output, "#{number} {end}")?;
        }
        self.output.flush()
    }

    /// Says that the lines of the current step will go on later.
    fn interrupt(&mut self) -> io::Result<()> {
        let Some((place, shown)) = self
            .current
            .take()
            .and_then(|place| Some((place, self.shown.get_mut(&place)?)))
        else {
            return Ok(());
        };
        if shown.partial > 0 {
            writeln!(self.output)?;
            shown.partial = 0;
        }
        let step = self.trace.step_mut(place);
        step.activity = 0;
        step.quiet_since = None;
        writeln!(self.output, "#{} ...", shown.number)?;
        self.end_fold()
    }
}

impl<W: Write> Render for Plain<W> {
    fn update(&mut self, events: &[Event]) -> io::Result<()> {
        events.iter().for_each(|event| self.trace.apply(event));
        Ok(())
    }

    fn refresh(&mut self, now: Timestamp) -> io::Result<()> {
        self.show_changes(now)
    }

    fn relieve(&mut self, now: Timestamp) -> io::Result<()> {
        self.show_changes(now)
    }

    fn finish(&mut self, now: Timestamp) -> io::Result<()> {
        self.show_changes(now)?;
        // What still waits for its turn would be lost.
        for place in self.trace.begun.clone() {
            if self.trace.step(place).changed {
                self.show(place)?;
            }
        }
        if let Some(shown) = self.current.and_then(|place| self.shown.get(&place))
            && shown.partial > 0
        {
            writeln!(self.output)?;
        }
        self.end_fold()?;
        for place in &self.trace.begun {
            let step = self.trace.step(*place);
            if step.error().is_none() {
                continue;
            }
            writeln!(self.output, "------\n > {}:", step.name)?;
            for line in self
                .shown
                .get(place)
                .iter()
                .flat_map(|shown| &shown.last_lines)
            {
                writeln!(self.output, "{line}")?;
            }
            writeln!(self.output, "------")?;
        }
        self.output.flush()
    }
}

fn is_worth_a_line(status: &Status, last: Option<&(u64, Timestamp)>) -> bool {
    let Some((current, timestamp)) = last.filter(|_| status.completed.is_none()) else {
        return true;
    };
    let share = match status.total {
        0 => 0.0,
        total => status.current.saturating_sub(*current) as f64 / total as f64,
    };
    share >= PART_SHARE || seconds_between(*timestamp, status.timestamp) >= PART_TIME
}

fn part_line(status: &Status) -> String {
    let mut line = super::format::one_line(&status.id);
    let transfer = transfer(status.current, status.total);
    if !transfer.is_empty() {
        line.push(' ');
        line.push_str(&transfer);
    }
    if let Some(started) = status.started {
        let seconds = seconds_between(started, status.completed.unwrap_or(status.timestamp));
        if seconds > 0.01 {
            line.push_str(&format!(" {seconds:.1}s"));
        }
    }
    if status.completed.is_some() {
        line.push_str(" done");
    }
    line
}

/// Shows what a step printed. With `tame`, a carriage return begins a line, as readers of folds take it for one: what
/// follows would be a command to them.
fn show_log(
    output: &mut impl Write,
    shown: &mut Shown,
    step: &mut Step,
    tame: bool,
) -> io::Result<()> {
    while let Some(line) = step.log.lines.front() {
        let LogLine {
            time,
            text,
            end,
            continues,
        } = line;
        let number = shown.number;
        let mut put = |text: &[u8]| -> io::Result<()> {
            let mut parts = text.split(|byte| tame && *byte == b'\r');
            output.write_all(parts.next().unwrap_or_default())?;
            // Nothing follows the one at the end of a line.
            for part in parts.filter(|part| !part.is_empty()) {
                write!(output, "\n#{number} {time} ")?;
                output.write_all(part)?;
            }
            Ok(())
        };
        match shown.partial {
            0 if *continues => put(text)?,
            0 => put(&[format!("#{number} {time} ").as_bytes(), text].concat())?,
            partial => put(&text[partial - 1..])?,
        }
        match end {
            LineEnd::Open => {
                // One more than what stands there, so that an empty part counts too.
                shown.partial = text.len() + 1;
                break;
            }
            LineEnd::Cut => {}
            LineEnd::Newline => writeln!(output)?,
        }
        shown.partial = 0;
        if let Some(line) = step.log.take_first() {
            remember(shown, &line);
        }
    }
    if step.is_completed()
        && let Some(line) = step.log.take_first()
    {
        remember(shown, &line);
    }
    Ok(())
}

fn remember(shown: &mut Shown, line: &LogLine) {
    if shown.last_lines.len() == LAST_LINES {
        shown.last_lines.pop_front();
    }
    let text = String::from_utf8_lossy(&line.text);
    // What a terminal shows at the end.
    let last = text.trim_end_matches('\r').rsplit('\r').next();
    shown
        .last_lines
        .push_back(format!("{} {}", line.time, last.unwrap_or_default()));
}

fn end_line(step: &Step) -> String {
    if let Some(error) = step.error() {
        format!("ERROR: {error}")
    } else if step.is_canceled() {
        "CANCELED".to_owned()
    } else if step.is_cached() {
        "CACHED".to_owned()
    } else {
        let end = step.end().unwrap_or(Timestamp::EPOCH);
        format!("DONE {:.1}s", step.duration(end))
    }
}

#[cfg(test)]
mod tests;

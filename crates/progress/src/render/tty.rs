//! The live view of a terminal, in the shape of Docker's.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use oci::Timestamp;

use super::Render;
use super::format::{bytes, one_line, seconds_between, transfer};
use super::screen::{Screen, columns, cut, shortened};
use super::trace::{Step, Trace};
use crate::{Event, Status};

/// How many lines of a running step are shown, where there is room.
const SCREEN_HEIGHT: usize = 6;
/// With less the lines of a running step tell nothing.
const SCREEN_LEAST: usize = 2;
/// How many rows are left for completed steps beside each of them.
const SCREEN_APART: usize = 3;
/// What those lines are narrower than the terminal.
const SCREEN_MARGIN: usize = 10;
/// Below this width of a name nothing useful can be shown.
const NARROWEST: usize = 12;
/// From which widths of the terminal on a transfer has a bar, and how wide that is.
const BARS: [(usize, usize); 2] = [(100, 20), (72, 10)];
/// A rate is told once this time has gone by, in seconds.
const RATE_FROM: f64 = 0.5;

/// The columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
}

/// Which colours are used; `Plain` where the user has set `NO_COLOR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Palette {
    Plain,
    Colors,
}

/// Shows a build on a terminal, drawing over itself.
pub struct Tty<W> {
    output: W,
    size: Box<dyn FnMut() -> Size + Send>,
    palette: Palette,
    trace: Trace,
    screens: BTreeMap<usize, Screen>,
    /// How often a step's screen was shown, so that others get their turn.
    turns: BTreeMap<usize, usize>,
    /// The columns each line on the terminal takes.
    drawn: Vec<usize>,
}

impl<W> fmt::Debug for Tty<W> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tty")
            .field("trace", &self.trace)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tint {
    None,
    Done,
    Canceled,
    Failed,
    Faint,
}

/// A line below the heading.
struct Line {
    name: String,
    status: String,
    seconds: f64,
    running: bool,
    tint: Tint,
    /// The step whose screen may follow.
    step: Option<usize>,
}

impl<W: Write> Tty<W> {
    /// Makes a view; `size` is asked before each drawing, so a window may change its size.
    pub fn new(output: W, palette: Palette, size: impl FnMut() -> Size + Send + 'static) -> Self {
        Self {
            output,
            size: Box::new(size),
            palette,
            trace: Trace::default(),
            screens: BTreeMap::new(),
            turns: BTreeMap::new(),
            drawn: Vec::new(),
        }
    }

    fn draw(&mut self, now: Timestamp, last: bool) -> io::Result<()> {
        let Size {
            columns: width,
            rows,
        } = (self.size)();
        let (width, rows) = if width == 0 || rows == 0 {
            (80, 24)
        } else {
            (width, rows)
        };
        let mut lines: Vec<Line> = Vec::new();
        for place in self.trace.by_stage() {
            add_lines(&mut lines, place, self.trace.step(place), now, width);
        }
        let screens = self.choose_screens(&lines, rows);
        let running = running_steps(&lines);
        if !last {
            let used: usize = screens.values().map(Vec::len).sum();
            lines = fitted(lines, rows.saturating_sub(2 + used));
        }
        let more = running - running_steps(&lines);
        let mut drawing = self.cursor_up(width);
        let mut drawn = Vec::new();
        let mut push = |text: String, tint: Tint| {
            drawn.push(columns(&text));
            drawing.push_str(&tinted(&text, tint, self.palette));
            drawing.push_str("\x1b[K\n");
        };
        push(self.heading(now, width, more, last), Tint::None);
        for line in &lines {
            let Some(text) = line.text(width) else {
                continue;
            };
            push(text, line.tint);
            for output in line
                .step
                .and_then(|step| screens.get(&step))
                .into_iter()
                .flatten()
            {
                push(cut(&format!(" => => # {output}"), width - 1), Tint::Faint);
            }
        }
        drawing.push_str("\x1b[J\x1b[?25h");
        self.drawn = drawn;
        self.output.write_all(drawing.as_bytes())?;
        self.output.flush()
    }

    /// Returns what brings the cursor back to the heading. Lines wrap when a window has become narrower.
    fn cursor_up(&self, width: usize) -> String {
        let rows: usize = self
            .drawn
            .iter()
            .map(|columns| columns.div_ceil(width).max(1))
            .sum();
        match rows {
            0 => "\x1b[?25l".to_owned(),
            rows => format!("\x1b[?25l\x1b[{rows}A\r"),
        }
    }

    /// Returns the first line; `more` steps are running that there is no room for.
    fn heading(&self, now: Timestamp, width: usize, more: usize, last: bool) -> String {
        let (all, completed) = self.trace.counts();
        let seconds = self
            .trace
            .start
            .map_or(0.0, |start| seconds_between(start, now));
        let state = if last && all > 0 && completed == all {
            " FINISHED".to_owned()
        } else if more > 0 {
            format!(" and {more} more running")
        } else {
            String::new()
        };
        cut(
            &format!("[+] Building {seconds:.1}s ({completed}/{all}){state}"),
            width,
        )
    }

    /// Gives the running steps that print most room for their last lines, as far as there is room.
    fn choose_screens(&mut self, lines: &[Line], rows: usize) -> BTreeMap<usize, Vec<String>> {
        let running = lines.iter().filter(|line| line.running);
        let mut free = rows.saturating_sub(2 + running.clone().count());
        let mut candidates: Vec<usize> = running
            .filter_map(|line| line.step.filter(|step| self.screens.contains_key(step)))
            .collect();
        let rank = |step: &usize| {
            let turns = self.turns.get(step).copied().unwrap_or_default();
            self.screens[step].bytes + turns * 50
        };
        candidates.sort_by_key(|step| (std::cmp::Reverse(rank(step)), *step));
        let width = (self.size)().columns.saturating_sub(SCREEN_MARGIN).max(1);
        let mut chosen = BTreeMap::new();
        for step in candidates {
            let height = free.saturating_sub(SCREEN_APART).min(SCREEN_HEIGHT);
            if height < SCREEN_LEAST {
                break;
            }
            free -= height + SCREEN_APART;
            *self.turns.entry(step).or_default() += 1;
            let mut lines = self.screens[&step].lines(width);
            lines.drain(..lines.len().saturating_sub(height));
            chosen.insert(step, lines);
        }
        chosen
    }
}

impl<W: Write> Render for Tty<W> {
    fn update(&mut self, events: &[Event]) -> io::Result<()> {
        for event in events {
            self.trace.apply(event);
            match event {
                Event::Log(log) => {
                    if let Some(place) = self.trace.step_of(&log.vertex) {
                        self.screens
                            .entry(place)
                            .or_insert_with(|| Screen::new(SCREEN_HEIGHT))
                            .write(&log.data);
                        self.trace.step_mut(place).log.trim();
                    }
                }
                Event::Vertex { vertex, .. } => {
                    // Only the log of a failed step is shown again.
                    if let Some(place) = self.trace.step_of(&vertex.digest)
                        && self.trace.step(place).is_completed()
                        && self.trace.step(place).error().is_none()
                    {
                        self.screens.remove(&place);
                        self.trace.step_mut(place).log = Default::default();
                    }
                }
                Event::Status(_) | Event::Warning(_) => {}
            }
        }
        Ok(())
    }

    fn refresh(&mut self, now: Timestamp) -> io::Result<()> {
        self.draw(now, false)
    }

    fn finish(&mut self, now: Timestamp) -> io::Result<()> {
        self.draw(now, true)?;
        for place in &self.trace.begun {
            let step = self.trace.step(*place);
            if step.error().is_none() {
                continue;
            }
            writeln!(self.output, "------\n > {}:", step.name)?;
            if step.log.dropped > 0 {
                writeln!(
                    self.output,
                    "({} lines before these are in the log of the step)",
                    step.log.dropped
                )?;
            }
            step.log
                .write_last(step.log.lines.len(), self.palette, &mut self.output)?;
            writeln!(self.output, "------")?;
        }
        self.output.flush()
    }
}

/// Adds the line of a step and those of its parts and warnings.
fn add_lines(lines: &mut Vec<Line>, place: usize, step: &Step, now: Timestamp, width: usize) {
    let (word, tint) = if step.error().is_some() {
        ("ERROR ", Tint::Failed)
    } else if step.is_canceled() {
        ("CANCELED ", Tint::Canceled)
    } else if step.is_cached() {
        ("CACHED ", Tint::Done)
    } else {
        ("", Tint::Done)
    };
    let running = !step.is_completed();
    lines.push(Line {
        name: format!("{word}{}", step.name),
        status: String::new(),
        seconds: step.duration(now),
        running,
        tint: if running { Tint::None } else { tint },
        step: Some(place),
    });
    for part in &step.parts {
        let status = &part.status;
        let end = status.completed.unwrap_or(now);
        let seconds = status
            .started
            .map_or(0.0, |start| seconds_between(start, end));
        let runs = status.completed.is_none() && running;
        lines.push(Line {
            name: format!("=> {}", one_line(&status.id)),
            status: match runs {
                true => under_way(status, seconds, width),
                false => transfer(status.current, status.total),
            },
            seconds,
            running: runs,
            tint: if status.completed.is_some() {
                Tint::Done
            } else {
                Tint::None
            },
            step: None,
        });
    }
    for warning in &step.warnings {
        lines.push(Line {
            name: format!("WARN: {warning}"),
            status: String::new(),
            seconds: step.duration(now),
            running: false,
            tint: Tint::Canceled,
            step: None,
        });
    }
}

/// Returns how far a transfer is, with a bar where there is room for one, and how fast it was so far.
fn under_way(status: &Status, seconds: f64, width: usize) -> String {
    let mut text = transfer(status.current, status.total);
    let bar = BARS.iter().find(|(from, _)| width >= *from);
    if let Some((_, room)) = bar
        && status.current > 0
        && status.total > 0
    {
        let share = status.current.min(status.total) as f64 / status.total as f64;
        let full = (share * *room as f64) as usize;
        let head = if full < *room { ">" } else { "" };
        let bar = format!("{}{head}", "=".repeat(full));
        text = format!("[{bar:<room$}] {text}");
    }
    if status.current > 0 && seconds >= RATE_FROM {
        let rate = (status.current as f64 / seconds) as u64;
        text.push_str(&format!(" {}/s", bytes(rate)));
    }
    text
}

impl Line {
    /// Returns the line with its time at the right, or nothing where the window is too narrow.
    fn text(&self, width: usize) -> Option<String> {
        let seconds = if self.seconds < 0.05 {
            0.0
        } else {
            self.seconds
        };
        let time = format!("{seconds:.1}s");
        let mut left = width.checked_sub(" => ".len() + time.len() + 3)?;
        let mut status = String::new();
        if !self.status.is_empty() && left + self.status.len() > 20 {
            left = left.saturating_sub(self.status.len() + 1);
            status = format!(" {}", self.status);
        }
        if left < NARROWEST {
            return None;
        }
        let shown = format!(" => {}{status}", shortened(&self.name, left));
        let gap = (width - 1).saturating_sub(columns(&shown) + time.len());
        Some(format!("{shown}{}{time}", " ".repeat(gap)))
    }
}

fn running_steps(lines: &[Line]) -> usize {
    let running = |line: &&Line| line.running && line.step.is_some();
    lines.iter().filter(running).count()
}

/// Keeps as many lines as there is room for: the last ones, and those still running instead of completed ones.
fn fitted(lines: Vec<Line>, room: usize) -> Vec<Line> {
    let excess = lines.len().saturating_sub(room);
    if excess == 0 {
        return lines;
    }
    let running_before = lines[..excess].iter().filter(|line| line.running).count();
    let completed_after = lines[excess..].iter().filter(|line| !line.running).count();
    // As many running lines of the cut part return as completed ones of the rest can go.
    let (mut returning, mut going) = (
        running_before.min(completed_after),
        running_before.min(completed_after),
    );
    let mut skip = running_before - returning;
    let mut kept = Vec::with_capacity(room);
    for (index, line) in lines.into_iter().enumerate() {
        let keep = match (index < excess, line.running) {
            (true, true) if skip > 0 => {
                skip -= 1;
                false
            }
            (true, true) => {
                returning -= 1;
                true
            }
            (true, false) => false,
            (false, false) if going > 0 => {
                going -= 1;
                false
            }
            (false, _) => true,
        };
        if keep {
            kept.push(line);
        }
    }
    debug_assert_eq!(returning, 0);
    kept
}

fn tinted(text: &str, tint: Tint, palette: Palette) -> String {
    let code = match (palette, tint) {
        (Palette::Plain, _) | (_, Tint::None) => return text.to_owned(),
        (Palette::Colors, Tint::Done) => "34",
        (Palette::Colors, Tint::Canceled) => "33",
        (Palette::Colors, Tint::Failed) => "31",
        (Palette::Colors, Tint::Faint) => "2",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests;

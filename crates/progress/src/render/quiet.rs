//! Nothing but warnings, and what a failed step has printed last.

use std::collections::BTreeSet;
use std::io::{self, Write};

use oci::Timestamp;

use super::Render;
use super::trace::Trace;
use super::tty::Palette;
use crate::Event;

/// How many lines of a failed step are shown.
const LAST_LINES: usize = 10;

/// Shows nothing of a build that succeeds but its warnings: what was asked for and not done is never silent.
#[derive(Debug)]
pub struct Quiet<W> {
    output: W,
    trace: Trace,
    warn: fn(&str),
    warned: BTreeSet<String>,
}

impl<W: Write> Quiet<W> {
    /// Makes one that gives its warnings to `warn`, each once.
    pub fn new(output: W, warn: fn(&str)) -> Self {
        Self {
            output,
            trace: Trace::default(),
            warn,
            warned: BTreeSet::new(),
        }
    }
}

impl<W: Write> Render for Quiet<W> {
    fn update(&mut self, events: &[Event]) -> io::Result<()> {
        for event in events {
            self.trace.apply(event);
            // Those of a Dockerfile's lines are findings, which are said on their own or with --quiet not at all.
            if let Event::Warning(warning) = event
                && warning.source.is_none()
                && self.warned.insert(warning.short.clone())
            {
                (self.warn)(&warning.short);
            }
            if let Event::Log(log) = event
                && let Some(place) = self.trace.step_of(&log.vertex)
            {
                self.trace.step_mut(place).log.trim();
            }
        }
        Ok(())
    }

    fn refresh(&mut self, _now: Timestamp) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, _now: Timestamp) -> io::Result<()> {
        for place in &self.trace.begun {
            let step = self.trace.step(*place);
            if step.error().is_none() || step.log.lines.is_empty() {
                continue;
            }
            writeln!(self.output, "------\n > {}:", step.name)?;
            step.log
                .write_last(LAST_LINES, Palette::Plain, &mut self.output)?;
            writeln!(self.output, "------")?;
        }
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, Sink, Stream, Vertex};

    fn shown(outcome: Outcome, log: &[u8]) -> String {
        let (sender, events) = std::sync::mpsc::sync_channel(100);
        let sink = Sink::new(sender, || Timestamp::EPOCH);
        let running = sink.vertex(Vertex::named("RUN x")).start();
        for piece in log.chunks(1 << 15) {
            running.logger(Stream::Stdout).log(piece);
        }
        running.complete(outcome);
        drop(sink);
        let mut output = Vec::new();
        let mut quiet = Quiet::new(&mut output, |text| panic!("{text}"));
        quiet
            .update(&events.try_iter().collect::<Vec<_>>())
            .unwrap();
        quiet.finish(Timestamp::EPOCH).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn only_a_failed_step_is_heard() {
        assert_eq!(shown(Outcome::Done, b"said\n"), "");
        let failed = || Outcome::Failed {
            error: "why".to_owned(),
        };
        assert_eq!(shown(failed(), b""), "");
        assert_eq!(
            shown(failed(), b"one\ntwo"),
            "------\n > RUN x:\n0.000 one\n0.000 two\n------\n"
        );
        let many: String = (0..30).map(|number| format!("{number}\n")).collect();
        let text = shown(failed(), many.as_bytes());
        assert!(text.contains(" 29\n") && text.contains(" 20\n") && !text.contains(" 19\n"));
    }

    #[test]
    fn a_long_line_is_whole_but_for_what_is_dropped() {
        let failed = Outcome::Failed {
            error: "why".to_owned(),
        };
        let long = shown(failed, &b"x".repeat(200_000));
        assert_eq!(long.lines().count(), 4, "one line between the frame");
        assert_eq!(
            long.matches('x').count(),
            200_000 + 1,
            "the name has one too"
        );
    }
}

//! What a step printed, as a page shows it: without what steers terminals, and not without end.

use std::collections::VecDeque;

/// How much of the beginning and of the end of a log is kept, in bytes.
const HEAD: usize = 64 << 10;
const TAIL: usize = 192 << 10;
/// The same for a log that comes when the page is full.
const SMALL_HEAD: usize = 1 << 10;
const SMALL_TAIL: usize = 7 << 10;

/// The text of a log. Its room is bounded while it is filled.
#[derive(Debug, Default)]
pub struct LogText {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    limits: (usize, usize),
    total: u64,
}

impl LogText {
    /// Makes an empty log; `small` where others have taken the room.
    pub fn new(small: bool) -> Self {
        Self {
            limits: match small {
                true => (SMALL_HEAD, SMALL_TAIL),
                false => (HEAD, TAIL),
            },
            ..Self::default()
        }
    }

    /// Adds a piece, cut anywhere.
    pub fn push(&mut self, data: &[u8]) {
        self.total += data.len() as u64;
        let room = self
            .limits
            .0
            .saturating_sub(self.head.len())
            .min(data.len());
        let (begin, rest) = data.split_at(room);
        self.head.extend_from_slice(begin);
        let rest = &rest[rest.len().saturating_sub(self.limits.1)..];
        self.tail.extend(rest);
        let excess = self.tail.len().saturating_sub(self.limits.1);
        self.tail.drain(..excess);
    }

    /// Returns how many bytes are kept.
    pub fn kept(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Returns whether the step printed nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Returns the beginning, and, where something between was left out, how many bytes and the end.
    pub(crate) fn parts(&self) -> (String, Option<(u64, String)>) {
        let left_out = self.total - self.kept() as u64;
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        if left_out == 0 {
            return (clean(&[self.head.as_slice(), &tail].concat()), None);
        }
        // Whole lines only, where there are any.
        let head = match self.head.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => &self.head[..=end],
            None => &self.head,
        };
        let tail = match tail.iter().position(|byte| *byte == b'\n') {
            Some(end) => &tail[end + 1..],
            None => &tail,
        };
        let shown = head.len() + tail.len();
        (clean(head), Some((self.total - shown as u64, clean(tail))))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Text,
    Escape,
    Sequence,
    Command,
    CommandEscape,
}

/// Takes out control sequences; of a line that writes over itself the last state stays.
fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut cleaned = String::with_capacity(text.len());
    let mut line = 0;
    let mut state = State::Text;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        state = match (state, character) {
            (State::Escape, '[') => State::Sequence,
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => State::Command,
            (State::Escape, ' '..='/') => State::Escape,
            (State::Sequence, '\u{1b}') | (State::Text, '\u{1b}') => State::Escape,
            (State::Sequence, '@'..='~') | (State::Escape | State::CommandEscape, _) => State::Text,
            (State::Command, '\u{7}') => State::Text,
            (State::Command, '\u{1b}') => State::CommandEscape,
            // A sequence that was cut off does not swallow the rest of a log.
            (State::Sequence | State::Command, '\n') => {
                cleaned.push('\n');
                line = cleaned.len();
                State::Text
            }
            (State::Sequence | State::Command, _) => state,
            (State::Text, '\n') => {
                cleaned.push('\n');
                line = cleaned.len();
                State::Text
            }
            (State::Text, '\r') => {
                if !matches!(characters.peek(), None | Some('\n' | '\r')) {
                    cleaned.truncate(line);
                }
                State::Text
            }
            (State::Text, '\u{8}') => {
                if cleaned.len() > line {
                    cleaned.pop();
                }
                State::Text
            }
            (State::Text, '\t') => {
                cleaned.push('\t');
                State::Text
            }
            (State::Text, character) if character.is_control() => State::Text,
            (State::Text, character) => {
                cleaned.push(character);
                State::Text
            }
        };
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(clean(text.as_bytes()), expected);
    }

    #[test]
    fn terminals_are_not_steered() {
        check(
            "\x1b[31mred\x1b[0m \x1b]0;title\x07x\x1b]8;;u\x1b\\y\x1b(Bz\x00",
            "red xyz",
        );
        check("10%\r20%\r30%\r\nnext\r\n", "30%\nnext\n");
        check("ab\x08c\td\n\x08e", "ac\td\ne");
        check("\x1b]0;never ended\nnext", "\nnext");
        check("é\u{85}x", "éx");
    }

    #[test]
    fn a_log_without_end_keeps_both_its_ends() {
        let mut log = LogText::new(true);
        for number in 0..100_000 {
            log.push(format!("line {number}\n").as_bytes());
        }
        let (head, rest) = log.parts();
        let (left_out, tail) = rest.unwrap();
        assert!(
            head.starts_with("line 0\nline 1\n") && head.ends_with('\n'),
            "{head}"
        );
        assert!(
            tail.starts_with("line 99") && tail.ends_with("line 99999\n"),
            "{tail}"
        );
        assert_eq!(left_out, 1_088_890 - (head.len() + tail.len()) as u64);
        assert!(log.kept() <= SMALL_HEAD + SMALL_TAIL);
        let mut short = LogText::new(true);
        assert!(short.is_empty());
        short.push(b"a\n");
        assert_eq!(short.parts(), ("a\n".to_owned(), None));
        let mut one = LogText::new(false);
        one.push(&vec![b'x'; 10 << 20]);
        assert_eq!(one.kept(), HEAD + TAIL);
    }
}

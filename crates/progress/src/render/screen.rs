//! The last lines of what a step prints, as a terminal would show them.

use std::collections::VecDeque;

use super::format::is_unruly;

/// The longest line kept, in characters.
const LONGEST_LINE: usize = 1000;
const TAB: usize = 8;

/// A terminal without colours and without a way up: lines, carriage returns, backspaces and tabs are obeyed, other
/// control sequences dropped.
#[derive(Debug, Default)]
pub(super) struct Screen {
    height: usize,
    lines: VecDeque<Vec<char>>,
    column: usize,
    state: State,
    /// The beginning of a character whose end has not come yet.
    pending: Vec<u8>,
    pub(super) bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Text,
    Escape,
    /// In a control sequence, up to its final byte.
    Sequence,
    /// In a title or link, up to its terminator.
    Command,
    CommandEscape,
}

impl Screen {
    pub(super) fn new(height: usize) -> Self {
        Self {
            height,
            lines: VecDeque::from([Vec::new()]),
            ..Self::default()
        }
    }

    pub(super) fn write(&mut self, data: &[u8]) {
        self.bytes += data.len();
        let mut data = [std::mem::take(&mut self.pending), data.to_vec()].concat();
        if let Err(error) = std::str::from_utf8(&data)
            && error.error_len().is_none()
        {
            self.pending = data.split_off(error.valid_up_to());
        }
        String::from_utf8_lossy(&data)
            .chars()
            .for_each(|character| self.put(character));
    }

    /// Returns the lines that are not blank, each cut to `width` columns.
    pub(super) fn lines(&self, width: usize) -> Vec<String> {
        let text = self
            .lines
            .iter()
            .map(|line| shortened(&line.iter().collect::<String>(), width));
        text.filter(|line| !line.trim().is_empty()).collect()
    }

    fn put(&mut self, character: char) {
        match (self.state, character) {
            (State::Escape, '[') => self.state = State::Sequence,
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => self.state = State::Command,
            (State::Escape, ' '..='/') => {}
            (State::Escape, _) => self.state = State::Text,
            (State::Sequence, '@'..='~') => self.end_sequence(character),
            (State::Sequence, '\u{1b}') => self.state = State::Escape,
            (State::Sequence, _) => {}
            (State::Command, '\u{7}') => self.state = State::Text,
            (State::Command, '\u{1b}') => self.state = State::CommandEscape,
            (State::Command, _) => {}
            (State::CommandEscape, _) => self.state = State::Text,
            (State::Text, '\u{1b}') => self.state = State::Escape,
            (State::Text, '\n') => self.next_line(),
            (State::Text, '\r') => self.column = 0,
            (State::Text, '\u{8}') => self.column = self.column.saturating_sub(1),
            (State::Text, '\t') => (0..TAB - self.column % TAB).for_each(|_| self.show(' ')),
            (State::Text, character) if is_unruly(character) => {}
            (State::Text, character) => self.show(character),
        }
    }

    /// Obeys the erasure of a line, which progress bars use before they write it again.
    fn end_sequence(&mut self, last: char) {
        self.state = State::Text;
        if last == 'K' {
            let column = self.column;
            if let Some(line) = self.lines.back_mut() {
                line.truncate(column);
            }
        }
    }

    fn next_line(&mut self) {
        self.lines.push_back(Vec::new());
        if self.lines.len() > self.height {
            self.lines.pop_front();
        }
        self.column = 0;
    }

    fn show(&mut self, character: char) {
        let column = self.column;
        if column == LONGEST_LINE {
            return;
        }
        if let Some(line) = self.lines.back_mut() {
            match line.get_mut(column) {
                Some(place) => *place = character,
                None => line.push(character),
            }
            self.column += 1;
        }
    }
}

/// Returns how many columns a character takes on a terminal.
fn width(character: char) -> usize {
    unicode_width::UnicodeWidthChar::width(character).unwrap_or(0)
}

/// Returns how many columns a text takes.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(width).sum()
}

/// Cuts a text to a number of columns.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let mut left = columns;
    let fits = |character: &char| {
        let width = width(*character);
        let fits = width <= left;
        left = if fits { left - width } else { 0 };
        fits
    };
    text.chars().take_while(fits).collect()
}

/// Cuts a text to a number of columns; where something is missing, it ends in `…`.
pub(super) fn shortened(text: &str, columns: usize) -> String {
    match self::columns(text) <= columns {
        true => text.to_owned(),
        false => format!("{}…", cut(text, columns.saturating_sub(1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(data: &[&[u8]], expect: &[&str]) {
        let mut screen = Screen::new(3);
        data.iter().for_each(|piece| screen.write(piece));
        assert_eq!(screen.lines(20), expect);
    }

    #[test]
    fn the_last_lines_are_kept() {
        check(&[b"a\nb\nc\nd"], &["b", "c", "d"]);
        check(&[b"a\nb\nc\nd\n"], &["c", "d"]);
        check(
            &[b"long line of many characters"],
            &["long line of many c…"],
        );
    }

    #[test]
    fn progress_bars_write_over_themselves() {
        check(&[b"10%\r", b"20%\r", b"30%"], &["30%"]);
        check(&[b"abcdef\rxy\x1b[K"], &["xy"]);
        check(&[b"ab\x08c\td"], &["ac      d"]);
    }

    #[test]
    fn sequences_do_not_reach_the_terminal() {
        check(
            &[b"\x1b[31mred\x1b[0m \x1b]0;title\x07x\x1b]8;;u\x1b\\y\x1b(B\x1b[2J\x1b[10;10H"],
            &["red xy"],
        );
        check(&[b"\x1b[3", b"1mred\x00\x7f"], &["red"]);
        check(&["a\u{202e}b\u{2066}c".as_bytes()], &["abc"]);
    }

    #[test]
    fn characters_may_come_in_pieces_and_be_wide() {
        check(&[b"\xe2\x82", b"\xac\xff"], &["€\u{fffd}"]);
        assert_eq!(cut("日本語", 5), "日本");
        assert_eq!(columns("日本語e\u{301}"), 7);
        // What package managers and test runners like to print.
        assert_eq!(columns("✅⭐🧪"), 6);
    }

    #[test]
    fn what_is_missing_of_a_name_is_told() {
        assert_eq!(shortened("RUN make", 8), "RUN make");
        assert_eq!(shortened("RUN make", 7), "RUN ma…");
        assert_eq!(shortened("日本語", 5), "日本…");
        assert_eq!(shortened("日本語", 4), "日…");
    }
}

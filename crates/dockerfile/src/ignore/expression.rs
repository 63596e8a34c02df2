//! From Go's regular expressions, as far as patterns lead to them, to those of the `regex` crate.
//!
//! The two differ where patterns get odd: in brackets, where the crate knows nesting and set operations and Go takes
//! `[`, `&&` and `--` as characters, in braces that hold no count, and in escapes, which mean ASCII only in Go.

use std::fmt::Write as _;

/// How often something may be repeated by a count.
const MOST_REPETITIONS: u32 = 1000;

/// Returns the expression in the crate's syntax, for matching bytes; `None` if Go refuses it.
pub(super) fn translated(expression: &str) -> Option<String> {
    let mut translator = Translator {
        rest: expression,
        output: String::with_capacity(expression.len() * 2),
        previous: Previous::Nothing,
    };
    translator.sequence()?;
    Some(translator.output)
}

struct Translator<'a> {
    rest: &'a str,
    output: String,
    previous: Previous,
}

/// What stands before the place that is being translated.
#[derive(Clone, Copy, PartialEq)]
enum Previous {
    /// Nothing that could be repeated.
    Nothing,
    Item,
    Repetition,
}

/// What an escape stands for.
enum Escape {
    Character(char),
    /// A class in the crate's syntax, usable inside and outside brackets.
    Class(String),
    /// Matches no character but a place; only outside brackets.
    Place(&'static str),
}

impl Translator<'_> {
    fn next(&mut self) -> Option<char> {
        let mut characters = self.rest.chars();
        let character = characters.next()?;
        self.rest = characters.as_str();
        Some(character)
    }

    fn sequence(&mut self) -> Option<()> {
        while let Some(character) = self.rest.chars().next() {
            if self.any_number() {
                self.previous = Previous::Repetition;
                continue;
            }
            if character == '{'
                && let Some(count) = self.count()
            {
                // Two repetitions in a row are refused, and so is one of nothing.
                if self.previous != Previous::Item {
                    return None;
                }
                self.output.push_str(&count?);
                self.previous = Previous::Repetition;
                continue;
            }
            self.previous = match character {
                '|' | '(' => Previous::Nothing,
                '*' | '?' => Previous::Repetition,
                _ => Previous::Item,
            };
            match character {
                '\\' => self.escape_outside()?,
                '[' => {
                    self.next();
                    self.brackets()?;
                }
                _ => {
                    self.next();
                    match character {
                        // Groups and their repetitions come from the conversion of `**` alone, well placed.
                        '(' | ')' | '*' | '?' | '|' => self.output.push(character),
                        '.' => self.output.push_str(r"[^\n]"),
                        '^' => self.output.push_str(r"\A"),
                        '$' => self.output.push_str(r"\z"),
                        _ => self.push_character(character),
                    }
                }
            }
        }
        Some(())
    }

    /// Takes `{n}`, `{n,}` or `{n,m}`; the inner `None` is a count that is refused, the outer one is no count.
    fn count(&mut self) -> Option<Option<String>> {
        let (inside, rest) = self.rest.strip_prefix('{')?.split_once('}')?;
        let number = |digits: &str| {
            let plain = digits.bytes().all(|digit| digit.is_ascii_digit()) && !digits.is_empty();
            let leading_zero = digits.len() > 1 && digits.starts_with('0');
            (plain && !leading_zero).then(|| digits.parse::<u32>().unwrap_or(u32::MAX))
        };
        let (least, most) = match inside.split_once(',') {
            None => {
                let exactly = number(inside)?;
                (exactly, Some(exactly))
            }
            Some((least, "")) => (number(least)?, None),
            Some((least, most)) => (number(least)?, Some(number(most)?)),
        };
        self.rest = rest;
        let valid = least <= MOST_REPETITIONS
            && most.is_none_or(|most| least <= most && most <= MOST_REPETITIONS);
        Some(valid.then(|| format!("{{{inside}}}")))
    }

    /// Takes what `*` and `**` were made into, to run over bytes: the automaton of any number of characters is many
    /// times larger, and over text it matches the same.
    fn any_number(&mut self) -> bool {
        let (rest, bytes) = if let Some(rest) = self.rest.strip_prefix("[^/]*") {
            (rest, "(?-u:[^/])*")
        } else if let Some(rest) = self.rest.strip_prefix(".*") {
            (rest, r"(?-u:[^\n])*")
        } else {
            return false;
        };
        self.rest = rest;
        self.output.push_str(bytes);
        true
    }

    fn escape_outside(&mut self) -> Option<()> {
        if let Some(quoted) = self.rest.strip_prefix(r"\Q") {
            let (quoted, rest) = quoted.split_once(r"\E").unwrap_or((quoted, ""));
            self.rest = rest;
            quoted
                .chars()
                .for_each(|character| self.push_character(character));
            return Some(());
        }
        match self.escape()? {
            Escape::Character(character) => self.push_character(character),
            Escape::Class(class) => write!(self.output, "[{class}]").ok()?,
            Escape::Place(place) => self.output.push_str(place),
        }
        Some(())
    }

    /// Translates a bracket expression, from after its opening bracket.
    fn brackets(&mut self) -> Option<()> {
        self.output.push('[');
        if let Some(rest) = self.rest.strip_prefix('^') {
            self.rest = rest;
            self.output.push('^');
        }
        let mut first = true;
        loop {
            if !first && let Some(rest) = self.rest.strip_prefix(']') {
                self.rest = rest;
                self.output.push(']');
                return Some(());
            }
            first = false;
            if self.named_class()? {
                continue;
            }
            let low = match self.bracket_character()? {
                Escape::Character(character) => character,
                Escape::Class(class) => {
                    self.output.push_str(&class);
                    continue;
                }
                Escape::Place(_) => return None,
            };
            let mut high = low;
            if let Some(rest) = self.rest.strip_prefix('-')
                && !rest.is_empty()
                && !rest.starts_with(']')
            {
                self.rest = rest;
                let Escape::Character(character) = self.bracket_character()? else {
                    return None;
                };
                high = character;
            }
            if high < low {
                return None;
            }
            write!(
                self.output,
                r"\x{{{:x}}}-\x{{{:x}}}",
                u32::from(low),
                u32::from(high)
            )
            .ok()?;
        }
    }

    /// Takes `[:alpha:]` and its like inside brackets.
    fn named_class(&mut self) -> Option<bool> {
        const NAMES: &[&str] = &[
            "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print",
            "punct", "space", "upper", "word", "xdigit",
        ];
        let Some((name, rest)) = self
            .rest
            .strip_prefix("[:")
            .and_then(|rest| rest.split_once(":]"))
        else {
            return Some(false);
        };
        if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return None;
        }
        write!(self.output, "[:{name}:]").ok()?;
        self.rest = rest;
        Some(true)
    }

    fn bracket_character(&mut self) -> Option<Escape> {
        if self.rest.starts_with('\\') {
            return self.escape();
        }
        self.next().map(Escape::Character)
    }

    /// Takes an escape, as Go's parser does.
    fn escape(&mut self) -> Option<Escape> {
        self.next();
        let character = self.next()?;
        Some(match character {
            'd' => Escape::Class("0-9".to_owned()),
            'D' => Escape::Class("[^0-9]".to_owned()),
            's' => Escape::Class(r"\t\n\x0c\r\x20".to_owned()),
            'S' => Escape::Class(r"[^\t\n\x0c\r\x20]".to_owned()),
            'w' => Escape::Class("0-9A-Za-z_".to_owned()),
            'W' => Escape::Class("[^0-9A-Za-z_]".to_owned()),
            'p' | 'P' => {
                let general = self.next().filter(|name| "CLMNPSZ".contains(*name))?;
                Escape::Class(format!(r"\{character}{general}"))
            }
            'A' => Escape::Place(r"\A"),
            'z' => Escape::Place(r"\z"),
            'b' => Escape::Place(r"(?-u:\b)"),
            'B' => Escape::Place(r"(?-u:\B)"),
            'a' => Escape::Character('\u{7}'),
            'f' => Escape::Character('\u{c}'),
            'n' => Escape::Character('\n'),
            'r' => Escape::Character('\r'),
            't' => Escape::Character('\t'),
            'v' => Escape::Character('\u{b}'),
            '0' => Escape::Character(self.octal(0)?),
            // One digit would refer to a group; more are an octal number.
            '1'..='7' if self.rest.starts_with(|next| matches!(next, '0'..='7')) => {
                Escape::Character(self.octal(u32::from(character) - u32::from('0'))?)
            }
            'x' => {
                let digits = self
                    .rest
                    .get(..2)
                    .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
                self.rest = &self.rest[2..];
                Escape::Character(char::from(u8::from_str_radix(digits, 16).ok()?))
            }
            _ if character.is_ascii() && !character.is_ascii_alphanumeric() => {
                Escape::Character(character)
            }
            _ => return None,
        })
    }

    /// Takes up to two more octal digits.
    fn octal(&mut self, first: u32) -> Option<char> {
        let mut number = first;
        for _ in 0..2 {
            let Some(digit) = self.rest.chars().next().and_then(|digit| digit.to_digit(8)) else {
                break;
            };
            number = number * 8 + digit;
            self.rest = &self.rest[1..];
        }
        char::from_u32(number)
    }

    fn push_character(&mut self, character: char) {
        self.output
            .push_str(&regex::escape(character.encode_utf8(&mut [0; 4])));
    }
}

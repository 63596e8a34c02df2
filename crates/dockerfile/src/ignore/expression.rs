//! From Go's regular expressions, as far as patterns lead to them, to those of the `regex` crate.
//!
//! The two differ where patterns get odd: in brackets, where the crate knows nesting and set operations and Go takes
//! `[`, `&&` and `--` as characters, and in escapes, which mean ASCII only in Go.

use std::fmt::Write as _;

/// Returns the expression in the crate's syntax, for matching bytes; `None` if Go refuses it.
pub(super) fn translated(expression: &str) -> Option<String> {
    let mut translator = Translator {
        rest: expression,
        output: String::with_capacity(expression.len() * 2),
    };
    translator.sequence()?;
    Some(translator.output)
}

struct Translator<'a> {
    rest: &'a str,
    output: String,
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
            if self.repetition() {
                continue;
            }
            match character {
                '[' => {
                    self.next();
                    self.brackets()?;
                }
                '\\' => self.escape_outside()?,
                '.' => {
                    self.next();
                    self.output.push_str(r"[^\n]");
                }
                // Made by the conversion of `*` and `**` alone, so always well placed.
                '(' | ')' | '*' | '?' => {
                    self.next();
                    self.output.push(character);
                }
                '^' => {
                    self.next();
                    self.output.push_str(r"\A");
                }
                '$' => {
                    self.next();
                    self.output.push_str(r"\z");
                }
                _ => {
                    self.next();
                    self.push_character(character);
                }
            }
        }
        Some(())
    }

    /// Takes what `*` and `**` were made into, to run over bytes: the automaton of any number of characters is many
    /// times larger, and over text it matches the same.
    fn repetition(&mut self) -> bool {
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

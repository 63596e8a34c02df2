//! File modes as `chmod` takes them: octal or symbolic.

use std::fmt;

use crate::{Error, Result};

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const ALL: u32 = SET_UID | SET_GID | 0o777;
const EXECUTE: u32 = 0o111;

/// A change of the permission bits.
#[derive(Clone, PartialEq, Eq)]
pub enum ModeChange {
    /// The bits are set to this value (12 bits).
    Set(u32),
    /// The bits are worked out from those of the source, clause by clause.
    Symbolic(SymbolicMode),
}

/// A parsed symbolic mode such as `u=rwX,go=rX`.
#[derive(Clone, PartialEq, Eq)]
pub struct SymbolicMode {
    text: String,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Step {
    op: Op,
    /// The classes named before the operator, as bits of the mode; 0 when none was named.
    who: u32,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    Clear,
    Assign,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Bits(u32),
    /// Execute for whoever `who` names, if the source is a directory or executable by anyone.
    ConditionalExecute,
    /// The permissions that a class has at this moment: shift of that class in the mode.
    Class(u32),
}

impl ModeChange {
    /// Reads an octal number or a symbolic mode.
    pub fn parse(text: &str) -> Result<ModeChange> {
        let invalid = |reason| Error::InvalidMode {
            text: text.to_owned(),
            reason,
        };
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let bits = u32::from_str_radix(text, 8).map_err(|_| invalid("not an octal number"))?;
            if bits & !0o7777 != 0 {
                return Err(invalid("more than the twelve permission bits"));
            }
            return Ok(ModeChange::Set(bits));
        }
        let steps = parse_clauses(text.as_bytes()).map_err(invalid)?;
        Ok(ModeChange::Symbolic(SymbolicMode {
            text: text.to_owned(),
            steps,
        }))
    }

    /// Returns the permission bits of something that had `mode`.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            ModeChange::Set(bits) => bits & 0o7777,
            ModeChange::Symbolic(symbolic) => symbolic.apply(mode & 0o7777, is_dir),
        }
    }
}

impl SymbolicMode {
    fn apply(&self, old: u32, is_dir: bool) -> u32 {
        let mut mode = old;
        for step in &self.steps {
            let reach = if step.who == 0 {
                ALL | STICKY
            } else {
                step.who
            };
            let bits = match step.what {
                What::Bits(bits) => bits & reach,
                What::ConditionalExecute if is_dir || old & EXECUTE != 0 => {
                    // With `=` the clause has cleared the class before: X only ever adds.
                    mode |= EXECUTE & reach;
                    continue;
                }
                What::ConditionalExecute => continue,
                What::Class(shift) => {
                    let class = (mode >> shift) & 0o7;
                    (class << 6 | class << 3 | class) & reach
                }
            };
            match step.op {
                Op::Add => mode |= bits,
                Op::Clear => mode &= !bits,
                Op::Assign => {
                    let cleared = match step.what {
                        What::Class(_) => 0o777 & reach,
                        // The sticky bit is cleared by `=` only where a class that owns it is named.
                        _ => reach & if step.who == 0 { ALL } else { reach },
                    };
                    mode = mode & !cleared | bits;
                }
            }
        }
        mode
    }
}

fn parse_clauses(text: &[u8]) -> std::result::Result<Vec<Step>, &'static str> {
    let mut steps = Vec::new();
    for clause in text.split(|b| *b == b',') {
        let named = clause.iter().take_while(|b| b"ugoa".contains(b)).count();
        let mut who = 0;
        for class in &clause[..named] {
            who |= match class {
                b'u' => SET_UID | 0o700,
                b'g' => SET_GID | 0o070,
                b'o' => 0o007,
                _ => ALL,
            };
        }
        let mut rest = &clause[named..];
        if rest.is_empty() {
            return Err("an operator (+, - or =) is missing");
        }
        while let Some((operator, tail)) = rest.split_first() {
            let op = match operator {
                b'+' => Op::Add,
                b'-' => Op::Clear,
                b'=' => Op::Assign,
                _ => return Err("an operator (+, - or =) is expected"),
            };
            let length = tail.iter().take_while(|b| !b"+-=".contains(b)).count();
            parse_permissions(op, who, &tail[..length], &mut steps)?;
            rest = &tail[length..];
        }
    }
    Ok(steps)
}

fn parse_permissions(
    op: Op,
    who: u32,
    letters: &[u8],
    steps: &mut Vec<Step>,
) -> std::result::Result<(), &'static str> {
    let only_others = who != 0 && who & !0o007 == 0;
    let (mut bits, mut extra_who, mut conditional) = (0, 0, false);
    let mut classes = Vec::new();
    for letter in letters {
        match letter {
            b'r' => bits |= 0o444,
            b'w' => bits |= 0o222,
            b'x' => bits |= EXECUTE,
            b'X' if op == Op::Clear => bits |= EXECUTE,
            b'X' => conditional = true,
            b's' if !only_others => bits |= SET_UID | SET_GID,
            b't' if !only_others => {
                bits |= STICKY;
                extra_who |= STICKY;
            }
            b's' | b't' => {}
            b'u' => classes.push(6),
            b'g' => classes.push(3),
            b'o' => classes.push(0),
            _ => return Err("a permission is one of r, w, x, X, s, t, u, g, o"),
        }
    }
    let bits_who = if who == 0 { 0 } else { who | extra_who };
    if bits != 0 || (op == Op::Assign && classes.is_empty()) {
        steps.push(Step {
            op,
            who: bits_who,
            what: What::Bits(bits),
        });
    }
    for (index, shift) in classes.into_iter().enumerate() {
        // `=` clears once; what follows in the same clause adds to it.
        let op = if op == Op::Assign && (index > 0 || bits != 0) {
            Op::Add
        } else {
            op
        };
        steps.push(Step {
            op,
            who,
            what: What::Class(shift),
        });
    }
    if conditional {
        steps.push(Step {
            op: Op::Add,
            who,
            what: What::ConditionalExecute,
        });
    }
    Ok(())
}

impl fmt::Debug for ModeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ModeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModeChange::Set(bits) => write!(f, "{bits:04o}"),
            ModeChange::Symbolic(symbolic) => f.write_str(&symbolic.text),
        }
    }
}

impl fmt::Debug for SymbolicMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: &str, file: (u32, u32), dir: (u32, u32)) {
        let change = ModeChange::parse(change).unwrap();
        let octal = |mode| format!("{mode:04o}");
        assert_eq!(
            octal(change.apply(file.0, false)),
            octal(file.1),
            "{change} on a file"
        );
        assert_eq!(
            octal(change.apply(dir.0, true)),
            octal(dir.1),
            "{change} on a directory"
        );
    }

    #[test]
    fn modes_change_as_chmod_does() {
        check("0644", (0o4755, 0o644), (0o755, 0o644));
        check("4755", (0o644, 0o4755), (0o700, 0o4755));
        check("u=rwX,go=rX", (0o600, 0o644), (0o700, 0o755));
        check("u=rwX,go=rX", (0o4711, 0o755), (0o2777, 0o755));
        check("a+x", (0o644, 0o755), (0o644, 0o755));
        check("+x", (0o644, 0o755), (0o644, 0o755));
        check("go-w", (0o666, 0o644), (0o777, 0o755));
        check("go=", (0o644, 0o600), (0o755, 0o700));
        check("g=u", (0o640, 0o660), (0o700, 0o770));
        check("go=u-w", (0o640, 0o644), (0o700, 0o755));
        check("u+s", (0o755, 0o4755), (0o755, 0o4755));
        check("g+s,o-rx", (0o755, 0o2750), (0o755, 0o2750));
        check("+t", (0o755, 0o1755), (0o755, 0o1755));
        check("o+t", (0o755, 0o755), (0o755, 0o755));
        check("-X", (0o755, 0o644), (0o755, 0o644));
        check("a=rX", (0o600, 0o444), (0o700, 0o555));
        check("a=r,u+w", (0o777, 0o644), (0o777, 0o644));
        check("=rw,+X", (0o600, 0o666), (0o700, 0o777));
    }

    #[test]
    fn malformed_modes_are_refused() {
        for text in [
            "", "9", "77777", "u", "u=z", "rwx", "u=rw,", "+q", "u~r", "0x1",
        ] {
            assert!(ModeChange::parse(text).is_err(), "{text}");
        }
    }
}

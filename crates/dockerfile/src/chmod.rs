//! The values of `--chmod`.

use crate::go::{NumberError, parse_u32};

/// A value of `--chmod`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chmod {
    /// Permission bits, at most `0o7777`.
    Octal(u32),
    /// Changes in the notation of chmod(1), as written.
    Symbolic(String),
}

/// What `--chmod` takes.
pub const HELP: &str = "a mode is octal, as 0755, or changes as chmod has them: u=rwX,go=rX";

/// Reads a value of `--chmod`; the error is the reference's message.
///
/// # Errors
///
/// What begins with a digit and is not octal or too large, and what is no symbolic mode.
pub fn parse_chmod(text: &str) -> Result<Chmod, String> {
    let not_octal = || {
        format!(
            "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
        )
    };
    match parse_u32(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(Chmod::Octal(mode)),
        Ok(_) => Err(not_octal()),
        Err(NumberError::Syntax | NumberError::Range)
            if text.starts_with(|c: char| c.is_ascii_digit()) =>
        {
            Err(not_octal())
        }
        Err(_) if is_symbolic(text) => Ok(Chmod::Symbolic(text.to_owned())),
        Err(_) => Err("invalid syntax".to_owned()),
    }
}

/// Tells whether a text is clauses like `ug+rwX`, with commas between them.
fn is_symbolic(text: &str) -> bool {
    text.split(',').all(|clause| {
        let actions = clause.trim_start_matches(['a', 'u', 'g', 'o']);
        // One operator at least, each with the permissions behind it.
        actions.starts_with(['+', '-', '='])
            && actions.chars().all(|c| {
                matches!(
                    c,
                    '+' | '-' | '=' | 'r' | 'w' | 'x' | 'X' | 's' | 't' | 'u' | 'g' | 'o'
                )
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_or_symbolic() {
        let check = |text: &str, expect: Result<Chmod, &str>| {
            assert_eq!(parse_chmod(text), expect.map_err(str::to_owned), "{text}");
        };
        let symbolic = |text: &str| Ok(Chmod::Symbolic(text.to_owned()));
        let not_octal = |text: &str| {
            Err(format!(
                "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
            ))
        };
        check("0755", Ok(Chmod::Octal(0o755)));
        check("7777", Ok(Chmod::Octal(0o7777)));
        check("u=rwX,go=rX", symbolic("u=rwX,go=rX"));
        check("+x-w", symbolic("+x-w"));
        check("g=u", symbolic("g=u"));
        check("=", symbolic("="));
        for text in ["10000", "64a", "8", "99999999999999"] {
            assert_eq!(parse_chmod(text), not_octal(text), "{text}");
        }
        for text in ["u+x,", "", "u", "ux", "u+q", ",u+x", "-1"] {
            check(text, Err("invalid syntax"));
        }
    }
}

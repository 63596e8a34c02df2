//! Filters of lists, in containerd's words: `field==value`, `field!=value`, `field~=expression`, or `field` for its being
//! there; parts of one filter are joined by commas and must all be true, of several filters one.

use std::iter::Peekable;
use std::str::CharIndices;

use regex::{Regex, RegexBuilder};
use tonic::Code;

use crate::error::Failure;

/// Bytes a compiled expression may take.
const MOST_EXPRESSION: usize = 1 << 20;
/// Parts of all filters together.
const MOST_PARTS: usize = 256;

/// The filters of one request.
#[derive(Debug, Default)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    field: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Reads the filters of a request; without one everything matches.
    pub(crate) fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, Failure> {
        let mut left = MOST_PARTS;
        let filter = |text: &T| {
            let parts = Parser::new(text.as_ref()).selectors()?;
            left = left
                .checked_sub(parts.len())
                .ok_or_else(|| invalid(text.as_ref(), "there are too many parts"))?;
            Ok(parts)
        };
        texts.iter().map(filter).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether one of the filters is true of something, whose fields are told by their path.
    pub(crate) fn matches(&self, value: impl Fn(&[String]) -> Option<String>) -> bool {
        let is_met = |selector: &Selector| {
            let value = value(&selector.field);
            match &selector.test {
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value.is_some_and(|value| value == *wanted),
                Test::NotEqual(unwanted) => value.unwrap_or_default() != *unwanted,
                Test::Matches(pattern) => pattern.is_match(&value.unwrap_or_default()),
            }
        };
        let mut filters = self.0.iter();
        self.0.is_empty() || filters.any(|parts| parts.iter().all(is_met))
    }
}

fn invalid(text: &str, reason: &str) -> Failure {
    Failure::new(
        Code::InvalidArgument,
        format!("invalid filter {text:?}: parse error: {reason}"),
    )
}

struct Parser<'t> {
    text: &'t str,
    rest: Peekable<CharIndices<'t>>,
}

impl<'t> Parser<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            text,
            rest: text.char_indices().peekable(),
        }
    }

    /// Says what was expected where reading stands.
    fn expected(&mut self, what: &str) -> Failure {
        let place = match self.rest.peek() {
            Some((at, _)) => format!("at {:?}", &self.text[*at..]),
            None => "at the end".to_owned(),
        };
        invalid(self.text, &format!("expected {what} {place}"))
    }

    fn skip_space(&mut self) {
        while self.rest.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn take_if(&mut self, wanted: char) -> bool {
        self.rest.next_if(|(_, c)| *c == wanted).is_some()
    }

    fn selectors(mut self) -> Result<Vec<Selector>, Failure> {
        let mut selectors = Vec::new();
        if self.text.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            self.skip_space();
            if self.rest.peek().is_none() {
                return Ok(selectors);
            }
            if !self.take_if(',') {
                return Err(self.expected("a comma"));
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, Failure> {
        let mut field = vec![self.field()?];
        while self.take_if('.') {
            field.push(self.field()?);
        }
        self.skip_space();
        if matches!(self.rest.peek(), None | Some((_, ','))) {
            let test = Test::Present;
            return Ok(Selector { field, test });
        }
        let mut operator = String::new();
        while let Some((_, c)) = self.rest.next_if(|(_, c)| "=!~".contains(*c)) {
            operator.push(c);
        }
        let test = match operator.as_str() {
            "==" => Test::Equal(self.value(&['"'])?),
            "!=" => Test::NotEqual(self.value(&['"'])?),
            "~=" => {
                // Expressions may stand between slashes or bars too.
                let text = self.value(&['"', '/', '|'])?;
                let mut builder = RegexBuilder::new(&text);
                let built = builder.size_limit(MOST_EXPRESSION).build();
                Test::Matches(built.map_err(|error| invalid(self.text, &error.to_string()))?)
            }
            "" => return Err(self.expected("one of ==, != and ~=")),
            other => {
                let reason = format!("unsupported operator {other:?}");
                return Err(invalid(self.text, &reason));
            }
        };
        Ok(Selector { field, test })
    }

    fn field(&mut self) -> Result<String, Failure> {
        self.skip_space();
        if self.take_if('"') {
            return self.quoted('"');
        }
        let mut field = String::new();
        let is_of_field = |c: char| c == '_' || c.is_ascii_alphanumeric();
        while let Some((_, c)) = self.rest.next_if(|(_, c)| is_of_field(*c)) {
            field.push(c);
        }
        match field.is_empty() {
            true => Err(self.expected("a field")),
            false => Ok(field),
        }
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, Failure> {
        self.skip_space();
        if let Some((_, quote)) = self.rest.next_if(|(_, c)| quotes.contains(c)) {
            return self.quoted(quote);
        }
        let mut value = String::new();
        let is_of_value = |c: char| c != ',' && !c.is_whitespace() && !c.is_control();
        while let Some((_, c)) = self.rest.next_if(|(_, c)| is_of_value(*c)) {
            value.push(c);
        }
        match value.is_empty() {
            true => Err(self.expected("a value")),
            false => Ok(value),
        }
    }

    /// Reads up to the closing quote, with Go's escapes.
    fn quoted(&mut self, quote: char) -> Result<String, Failure> {
        let mut value = String::new();
        loop {
            match self.rest.next() {
                None | Some((_, '\n')) => return Err(self.expected("the end of what is quoted")),
                Some((_, c)) if c == quote => return Ok(value),
                Some((_, '\\')) => value.push(self.escaped(quote)?),
                Some((_, c)) => value.push(c),
            }
        }
    }

    fn escaped(&mut self, quote: char) -> Result<char, Failure> {
        let digits = match self.rest.next().map(|(_, c)| c) {
            Some('a') => return Ok('\x07'),
            Some('b') => return Ok('\x08'),
            Some('f') => return Ok('\x0c'),
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('v') => return Ok('\x0b'),
            Some(c) if c == '\\' || c == quote => return Ok(c),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => return Err(invalid(self.text, "illegal escape sequence")),
        };
        let mut number = 0;
        for _ in 0..digits {
            let digit = self.rest.next().and_then(|(_, c)| c.to_digit(16));
            let digit = digit.ok_or_else(|| self.expected("a hexadecimal digit"))?;
            number = number << 4 | digit;
        }
        char::from_u32(number).ok_or_else(|| invalid(self.text, "illegal escape sequence"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filters: &[&str]) -> bool {
        let filters = Filters::parse(filters).unwrap();
        filters.matches(|path| match path {
            [field] if field == "name" => Some("foo".to_owned()),
            [field] if field == "here" => Some(String::new()),
            [field, label] if field == "labels" && label == "a b" => Some("x,y".to_owned()),
            _ => None,
        })
    }

    #[test]
    fn what_is_compared_decides() {
        for yes in [
            "",
            "name==foo",
            " name == foo , here ",
            "name!=bar",
            "nothing!=foo",
            "name~=^f",
            "name~=/o{2}$/",
            "name~=|f.o|",
            "nothing~=^$",
            r#"name=="f\x6fo""#,
            "here",
            r#"labels."a b""#,
            r#"labels."a b"=="x,y",name==foo"#,
        ] {
            assert!(matches(&[yes]), "{yes}");
        }
        for no in [
            "name==bar",
            "name!=foo",
            "name~=^o",
            "nothing",
            "nothing==foo",
            "here,name==bar",
            "labels.a",
        ] {
            assert!(!matches(&[no]), "{no}");
        }
        assert!(matches(&[]));
        assert!(matches(&["name==bar", "name==foo"]), "one is enough");
        assert!(!matches(&["name==bar", "nothing"]));
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for bad in [
            "name=foo",
            "name=~foo",
            "name+foo",
            "name==",
            "==foo",
            ",",
            "name==foo,",
            "name.",
            "name==foo bar",
            r#"name=="foo"#,
            r#"name=="\q""#,
            r#"name=="\ud800""#,
            "name~=(",
            "name~=x{1000}{1000}{1000}",
            "näme==foo",
        ] {
            assert!(Filters::parse(&[bad]).is_err(), "{bad}");
        }
        let many = vec!["a".to_owned(); MOST_PARTS + 1];
        assert!(Filters::parse(&many).is_err());
        assert!(Filters::parse(&[many.join(",")]).is_err());
    }
}

//! Go's templates, as far as `--format` of Docker's commands is written in them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template(Vec<Node>);

#[derive(Debug)]
enum Node {
    Text(String),
    Print(Pipe),
    If {
        condition: Pipe,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        key: Option<String>,
        value: Option<String>,
        over: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        subject: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Calls, each with the result of the one before as its last argument.
#[derive(Debug)]
struct Pipe(Vec<Vec<Term>>);

#[derive(Debug)]
enum Term {
    /// `.A.B` of what the dot is, or `$name.A.B`.
    Path(Option<String>, Vec<String>),
    Literal(Value),
    Function(String),
    Group(Pipe),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Open,
    Close,
    Bar,
    Comma,
    Assign,
}

enum Piece {
    Text(String),
    Action(Vec<Token>),
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let pieces = pieces(text)?;
        let mut pieces = pieces.into_iter();
        let (nodes, end) = nodes(&mut pieces)?;
        match end {
            None => Ok(Self(nodes)),
            Some(word) => bail!("the template has {{{{{word}}}}} without a beginning"),
        }
    }

    /// Returns the fields of the value that are printed.
    pub(crate) fn fields(&self) -> Vec<&str> {
        let calls = self.0.iter().filter_map(|node| match node {
            Node::Print(pipe) => Some(pipe.0.iter().flatten()),
            _ => None,
        });
        let names = calls.flatten().filter_map(|term| match term {
            Term::Path(None, path) => path.first().map(String::as_str),
            _ => None,
        });
        names.collect()
    }

    pub(crate) fn apply(&self, value: &Value) -> Result<String> {
        let mut scope = Scope {
            dot: value.clone(),
            variables: BTreeMap::from([(String::new(), value.clone())]),
        };
        let mut out = String::new();
        scope.run(&self.0, &mut out)?;
        Ok(out)
    }
}

/// Cuts a template into text and actions; `{{-` and `-}}` take blanks away beside them.
fn pieces(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while let Some((before, after)) = rest.split_once("{{") {
        let before = if trim { before.trim_start() } else { before };
        let (before, after) = match after.strip_prefix("- ") {
            Some(after) => (before.trim_end(), after),
            None => (before, after),
        };
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let (action, after) = after
            .split_once("}}")
            .with_context(|| format!("the template {text:?} has {{{{ without }}}}"))?;
        let (action, trims) = match action.strip_suffix(" -") {
            Some(action) => (action, true),
            None => (action, false),
        };
        trim = trims;
        if !action.trim_start().starts_with("/*") {
            pieces.push(Piece::Action(tokens(action)?));
        }
        rest = after;
    }
    let rest = if trim { rest.trim_start() } else { rest };
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

fn tokens(action: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = action.trim();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '|' => (Token::Bar, 1),
            ',' => (Token::Comma, 1),
            ':' if rest.starts_with(":=") => (Token::Assign, 2),
            '"' | '`' => {
                let end = rest[1..]
                    .find(first)
                    .with_context(|| format!("the text in {action:?} has no end"))?;
                let inner = &rest[1..=end];
                let text = match first {
                    '"' => inner.replace("\\n", "\n").replace("\\t", "\t"),
                    _ => inner.to_owned(),
                };
                (Token::Text(text), end + 2)
            }
            _ => {
                let end = rest
                    .find(|c: char| c.is_whitespace() || "()|,\"`".contains(c))
                    .unwrap_or(rest.len());
                (Token::Word(rest[..end].to_owned()), end.max(1))
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// Reads nodes up to `end` or `else`, which is returned.
fn nodes(pieces: &mut std::vec::IntoIter<Piece>) -> Result<(Vec<Node>, Option<String>)> {
    let mut found = Vec::new();
    while let Some(piece) = pieces.next() {
        let tokens = match piece {
            Piece::Text(text) => {
                found.push(Node::Text(text));
                continue;
            }
            Piece::Action(tokens) => tokens,
        };
        let word = match tokens.first() {
            Some(Token::Word(word)) => word.as_str(),
            _ => "",
        };
        match word {
            "end" => return Ok((found, Some("end".to_owned()))),
            "else" => return Ok((found, Some("else".to_owned()))),
            "if" => {
                let condition = pipe(&tokens[1..])?;
                let (then, otherwise) = block(pieces)?;
                found.push(Node::If {
                    condition,
                    then,
                    otherwise,
                });
            }
            "with" => {
                let subject = pipe(&tokens[1..])?;
                let (body, otherwise) = block(pieces)?;
                found.push(Node::With {
                    subject,
                    body,
                    otherwise,
                });
            }
            "range" => {
                let (names, over) = match tokens.iter().position(|token| *token == Token::Assign) {
                    Some(at) => (&tokens[1..at], &tokens[at + 1..]),
                    None => (&[][..], &tokens[1..]),
                };
                let mut names = names.iter().filter_map(|token| match token {
                    Token::Word(word) => word.strip_prefix('$').map(str::to_owned),
                    _ => None,
                });
                let (first, second) = (names.next(), names.next());
                let (key, value) = match second {
                    Some(second) => (first, Some(second)),
                    None => (None, first),
                };
                let over = pipe(over)?;
                let (body, otherwise) = block(pieces)?;
                found.push(Node::Range {
                    key,
                    value,
                    over,
                    body,
                    otherwise,
                });
            }
            _ => found.push(Node::Print(pipe(&tokens)?)),
        }
    }
    Ok((found, None))
}

fn block(pieces: &mut std::vec::IntoIter<Piece>) -> Result<(Vec<Node>, Vec<Node>)> {
    let (then, end) = nodes(pieces)?;
    let otherwise = match end.as_deref() {
        Some("else") => {
            let (otherwise, end) = nodes(pieces)?;
            if end.as_deref() != Some("end") {
                bail!("the template has {{{{else}}}} without {{{{end}}}}");
            }
            otherwise
        }
        Some(_) => Vec::new(),
        None => bail!("the template lacks {{{{end}}}}"),
    };
    Ok((then, otherwise))
}

fn pipe(tokens: &[Token]) -> Result<Pipe> {
    let mut calls = vec![Vec::new()];
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        let term = match token {
            Token::Bar => {
                calls.push(Vec::new());
                continue;
            }
            Token::Open => {
                let end = closing(&tokens[at..])?;
                let group = pipe(&tokens[at..at + end])?;
                at += end + 1;
                Term::Group(group)
            }
            Token::Text(text) => Term::Literal(Value::from(text.as_str())),
            Token::Word(word) => term(word),
            Token::Close | Token::Comma | Token::Assign => {
                bail!("the template has a {token:?} where none belongs")
            }
        };
        calls.last_mut().expect("there is always a call").push(term);
    }
    if calls.iter().any(Vec::is_empty) {
        bail!("the template has an empty action");
    }
    Ok(Pipe(calls))
}

fn closing(tokens: &[Token]) -> Result<usize> {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Open => depth += 1,
            Token::Close if depth == 0 => return Ok(at),
            Token::Close => depth -= 1,
            _ => {}
        }
    }
    bail!("the template has ( without )")
}

fn term(word: &str) -> Term {
    let names = |path: &str| -> Vec<String> {
        path.split('.')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    };
    if let Some(variable) = word.strip_prefix('$') {
        let (name, path) = variable.split_once('.').unwrap_or((variable, ""));
        return Term::Path(Some(name.to_owned()), names(path));
    }
    if let Some(path) = word.strip_prefix('.') {
        return Term::Path(None, names(path));
    }
    match word {
        "true" | "false" => Term::Literal(Value::from(word == "true")),
        _ => match word.parse::<i64>() {
            Ok(number) => Term::Literal(number.into()),
            Err(_) => Term::Function(word.to_owned()),
        },
    }
}

/// What names mean at one place.
struct Scope {
    dot: Value,
    variables: BTreeMap<String, Value>,
}

impl Scope {
    fn run(&mut self, nodes: &[Node], out: &mut String) -> Result<()> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(pipe) => out.push_str(&shown(&self.value(pipe)?)),
                Node::If {
                    condition,
                    then,
                    otherwise,
                } => {
                    let branch = match is_true(&self.value(condition)?) {
                        true => then,
                        false => otherwise,
                    };
                    self.run(branch, out)?;
                }
                Node::With {
                    subject,
                    body,
                    otherwise,
                } => {
                    let subject = self.value(subject)?;
                    match is_true(&subject) {
                        true => self.run_with(subject, body, out)?,
                        false => self.run(otherwise, out)?,
                    }
                }
                Node::Range {
                    key,
                    value,
                    over,
                    body,
                    otherwise,
                } => {
                    let entries: Vec<(Value, Value)> = match self.value(over)? {
                        Value::Array(items) => items
                            .into_iter()
                            .enumerate()
                            .map(|(at, item)| (Value::from(at), item))
                            .collect(),
                        // Go goes through maps in the order of their keys.
                        Value::Object(map) => {
                            let sorted: BTreeMap<String, Value> = map.into_iter().collect();
                            sorted
                                .into_iter()
                                .map(|(key, value)| (Value::from(key), value))
                                .collect()
                        }
                        Value::Null => Vec::new(),
                        other => bail!("range cannot go over {}", shown(&other)),
                    };
                    if entries.is_empty() {
                        self.run(otherwise, out)?;
                    }
                    for (at, item) in entries {
                        if let Some(name) = key {
                            self.variables.insert(name.clone(), at);
                        }
                        if let Some(name) = value {
                            self.variables.insert(name.clone(), item.clone());
                        }
                        self.run_with(item, body, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn run_with(&mut self, dot: Value, body: &[Node], out: &mut String) -> Result<()> {
        let outer = std::mem::replace(&mut self.dot, dot);
        let result = self.run(body, out);
        self.dot = outer;
        result
    }

    fn value(&self, pipe: &Pipe) -> Result<Value> {
        let mut piped: Option<Value> = None;
        for call in &pipe.0 {
            let (first, rest) = call.split_first().expect("calls are not empty");
            let mut arguments = Vec::new();
            for term in rest {
                arguments.push(self.term(term)?);
            }
            arguments.extend(piped.take());
            piped = Some(match first {
                Term::Function(name) => function(name, &arguments)?,
                other if arguments.is_empty() => self.term(other)?,
                _ => bail!("only functions take arguments"),
            });
        }
        Ok(piped.unwrap_or(Value::Null))
    }

    fn term(&self, term: &Term) -> Result<Value> {
        match term {
            Term::Literal(value) => Ok(value.clone()),
            Term::Group(pipe) => self.value(pipe),
            Term::Function(name) => function(name, &[]),
            Term::Path(variable, path) => {
                let mut value = match variable {
                    None => &self.dot,
                    Some(name) => self
                        .variables
                        .get(name)
                        .with_context(|| format!("there is no variable ${name}"))?,
                };
                for name in path {
                    value = field(value, name)?;
                }
                Ok(value.clone())
            }
        }
    }
}

fn field<'a>(value: &'a Value, name: &str) -> Result<&'a Value> {
    match value {
        Value::Object(map) => map.get(name).with_context(|| {
            let known: Vec<&str> = map.keys().map(String::as_str).collect();
            format!("there is no field {name:?}; there are {}", known.join(", "))
        }),
        Value::Null => Ok(&Value::Null),
        other => bail!("{} has no field {name:?}", shown(other)),
    }
}

fn function(name: &str, arguments: &[Value]) -> Result<Value> {
    let text = |at: usize| match arguments.get(at) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Ok(shown(other)),
        None => bail!("{name} takes more arguments"),
    };
    let argument = |at: usize| {
        arguments
            .get(at)
            .with_context(|| format!("{name} takes more arguments"))
    };
    Ok(match name {
        "json" => serde_json::to_string(argument(0)?)?.into(),
        "len" => match argument(0)? {
            Value::String(text) => text.len().into(),
            Value::Array(items) => items.len().into(),
            Value::Object(map) => map.len().into(),
            _ => 0.into(),
        },
        "index" => {
            let mut value = argument(0)?;
            for key in &arguments[1..] {
                value = match (value, key) {
                    (Value::Object(map), key) => map.get(&shown(key)).unwrap_or(&Value::Null),
                    (Value::Array(items), Value::Number(at)) => at
                        .as_u64()
                        .and_then(|at| items.get(at as usize))
                        .with_context(|| format!("index out of range: {at}"))?,
                    (Value::Null, _) => &Value::Null,
                    (other, _) => bail!("index cannot look into {}", shown(other)),
                };
            }
            match value {
                // What a map of texts lacks is the empty text.
                Value::Null => "".into(),
                value => value.clone(),
            }
        }
        "join" => match argument(0)? {
            Value::Array(items) => items
                .iter()
                .map(shown)
                .collect::<Vec<_>>()
                .join(&text(1)?)
                .into(),
            _ => "".into(),
        },
        "split" => text(0)?
            .split(text(1)?.as_str())
            .map(Value::from)
            .collect::<Vec<_>>()
            .into(),
        "upper" => text(0)?.to_uppercase().into(),
        "lower" => text(0)?.to_lowercase().into(),
        "println" => format!(
            "{}\n",
            arguments.iter().map(shown).collect::<Vec<_>>().join(" ")
        )
        .into(),
        "print" => arguments.iter().map(shown).collect::<String>().into(),
        "eq" => arguments[1..]
            .iter()
            .any(|other| arguments.first() == Some(other))
            .into(),
        "ne" => (argument(0)? != argument(1)?).into(),
        "not" => (!is_true(argument(0)?)).into(),
        "and" => arguments
            .iter()
            .find(|value| !is_true(value))
            .or(arguments.last())
            .cloned()
            .unwrap_or(Value::Null),
        "or" => arguments
            .iter()
            .find(|value| is_true(value))
            .or(arguments.last())
            .cloned()
            .unwrap_or(Value::Null),
        _ => bail!("function {name:?} not defined"),
    })
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Prints a value as Go does.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            let pairs: Vec<String> = sorted
                .into_iter()
                .map(|(key, value)| format!("{key}:{}", shown(value)))
                .collect();
            format!("map[{}]", pairs.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_read_as_in_docker() {
        let value = serde_json::json!({
            "Id": "sha256:1", "Size": 12, "Tags": ["a:1", "b:2"],
            "Config": {"Env": ["A=1"], "Labels": {"k": "v", "b": "c"}, "Cmd": null},
        });
        let check = |template: &str, expected: &str| {
            let parsed = Template::parse(template).unwrap();
            assert_eq!(parsed.apply(&value).unwrap(), expected, "{template}");
        };
        check("{{.Id}} {{.Size}}", "sha256:1 12");
        check("{{json .Config.Env}}", "[\"A=1\"]");
        check("{{.Tags}} {{.Config.Labels}}", "[a:1 b:2] map[b:c k:v]");
        check("{{range .Tags}}{{println .}}{{end}}", "a:1\nb:2\n");
        check(
            "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}",
            "b=c;k=v;",
        );
        check("{{index .Config.Labels \"k\"}}", "v");
        check("{{if .Config.Cmd}}yes{{else}}no{{end}}", "no");
        check("{{join .Tags \",\" | upper}}", "A:1,B:2");
        check("{{len .Tags}}{{- /* gone */ -}} x", "2x");
        check("{{if eq (len .Tags) 2}}two{{end}}", "two");
        check("{{with .Config}}{{index .Env 0}}{{end}}", "A=1");
    }

    #[test]
    fn wrong_templates_are_refused() {
        let check = |template: &str| {
            let parsed = Template::parse(template);
            let applied = parsed.and_then(|parsed| parsed.apply(&serde_json::json!({"A": 1})));
            assert!(applied.is_err(), "{template}");
        };
        check("{{.Nothing}}");
        check("{{.A");
        check("{{if .A}}x");
        check("{{end}}");
        check("{{nothing .A}}");
    }
}

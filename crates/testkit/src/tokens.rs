//! A token server, and who lets through only those with its tokens: both in one, as a bad day has them.
//!
//! Tokens end after some requests, whatever was said of their life, so that 401 comes in the middle of what is done
//! with them. A token is good for the repositories and actions it was asked for, and for no others. Now and then the
//! server gives out garbage, or names another one that is not there.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::registry::LOGIN;
use crate::soak::Chance;
use crate::trouble::field;

/// What a token is good for.
#[derive(Debug)]
struct Grant {
    /// Scopes as they were asked for: `repository:NAME:pull,push`.
    scopes: Vec<String>,
    /// Requests that are left.
    left: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Tokens {
    grants: Mutex<BTreeMap<String, Grant>>,
}

impl Tokens {
    /// Lets a request through, or returns the answer to it: a token, or that one is needed.
    pub(crate) fn admit(&self, chance: &mut Chance, first: &str, head: &str) -> Result<(), String> {
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next());
        let target = target.unwrap_or_default();
        let authorization = field(head, "authorization").unwrap_or_default();
        if let Some(query) = target.strip_prefix("/token?") {
            return Err(self.give(chance, query, authorization));
        }
        let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
        let wanted = needed(method, target);
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = grants.get_mut(token).filter(|grant| grant.left > 0);
        if let Some(grant) = grant {
            grant.left -= 1;
            let is_granted = wanted.as_ref().is_none_or(|(repository, action)| {
                grant
                    .scopes
                    .iter()
                    .any(|scope| covers(scope, repository, action))
            });
            if is_granted {
                return Ok(());
            }
        }
        drop(grants);
        let host = match chance.below(60) {
            0 => "127.0.0.1:1",
            _ => field(head, "host").unwrap_or_default(),
        };
        let scope = wanted.map_or_else(String::new, |(repository, action)| {
            let actions = if action == "push" {
                "pull,push"
            } else {
                "pull"
            };
            format!(",scope=\"repository:{repository}:{actions}\"")
        });
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"soak\"{scope}\r\n"
        );
        Err(answer("401 Unauthorized", &challenge, "{}"))
    }

    fn give(&self, chance: &mut Chance, query: &str, authorization: &str) -> String {
        let login = STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
        if authorization.strip_prefix("Basic ") != Some(&login) {
            return answer("401 Unauthorized", "", "{}");
        }
        let scopes = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("scope="));
        let scopes = scopes.map(decoded).collect();
        match chance.below(40) {
            0 => return answer("200 OK", "", "{\"token\":"),
            1 => return answer("200 OK", "", "{\"expires_in\":60}"),
            _ => {}
        }
        let token = format!("t{:x}", chance.any());
        let left = *chance.one(&[1, 3, 8, 40, 1000]);
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.insert(token.clone(), Grant { scopes, left });
        let life = chance.one(&["1", "60", "300"]);
        let key = chance.one(&["token", "access_token"]);
        answer(
            "200 OK",
            "",
            &format!("{{\"{key}\":\"{token}\",\"expires_in\":{life}}}"),
        )
    }
}

fn answer(status: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{fields}Content-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

/// Returns the repository that a request is about, and what it does there.
fn needed(method: &str, target: &str) -> Option<(String, &'static str)> {
    let path = target.split('?').next()?.strip_prefix("/v2/")?;
    let parts = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    let end = parts.iter().filter_map(|part| path.find(part)).min()?;
    let action = match method {
        "GET" | "HEAD" => "pull",
        _ => "push",
    };
    Some((path[..end].to_owned(), action))
}

fn covers(scope: &str, repository: &str, action: &str) -> bool {
    let Some((name, actions)) = scope
        .strip_prefix("repository:")
        .and_then(|scope| scope.rsplit_once(':'))
    else {
        return false;
    };
    name == repository && actions.split(',').any(|granted| granted == action)
}

/// Decodes a part of a query.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns a head with the login of the registry behind in place of what it shows.
pub(crate) fn with_login(head: &str) -> String {
    let login = STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
    let mut told = format!("Authorization: Basic {login}\r\n");
    for line in head.split_inclusive("\r\n") {
        let name = line.split(':').next().unwrap_or_default();
        if !name.eq_ignore_ascii_case("authorization") {
            told.push_str(line);
        }
    }
    told
}

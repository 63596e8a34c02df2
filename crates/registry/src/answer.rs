//! What answers of a registry mean.

use std::time::SystemTime;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::Deserialize;

use crate::RegistryError;
use crate::error::presentable;
use crate::retry::{self, Failure, Retry};

/// How much of the text of an error is read.
pub(crate) const LONGEST_ERROR: u64 = 64 << 10;

#[derive(Debug, Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
}

#[derive(Debug, Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Token servers have their own form (RFC 6749, 5.2), and Docker Hub a third.
#[derive(Debug, Deserialize)]
struct Details {
    #[serde(default)]
    error_description: String,
    #[serde(default)]
    details: String,
    #[serde(default)]
    message: String,
}

/// Returns code and message of the first error in a body (distribution-spec, error codes).
pub(crate) fn error_of(body: &[u8]) -> (String, String) {
    if let Ok(errors) = serde_json::from_slice::<Errors>(body)
        && let Some(first) = errors.errors.into_iter().next()
    {
        let message = if first.message.is_empty() {
            first.code.clone()
        } else {
            first.message
        };
        return (presentable(&first.code), presentable(&message));
    }
    match serde_json::from_slice::<Details>(body) {
        Ok(details) => {
            let texts = [details.error_description, details.details, details.message];
            let message = texts
                .into_iter()
                .find(|text| !text.is_empty())
                .unwrap_or_default();
            (String::new(), presentable(&message))
        }
        // A page in HTML says nothing that fits in a line.
        Err(_) if body.trim_ascii_start().starts_with(b"<") => (String::new(), String::new()),
        Err(_) => (String::new(), presentable(&String::from_utf8_lossy(body))),
    }
}

/// Says what a status means that is no success.
pub(crate) fn refusal(
    subject: &str,
    endpoint: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> Failure {
    let (code, message) = error_of(body);
    let (subject, endpoint) = (subject.to_owned(), endpoint.to_owned());
    let error = match status.as_u16() {
        401 => RegistryError::Unauthorized {
            subject,
            endpoint,
            message,
        },
        403 => RegistryError::Denied {
            subject,
            endpoint,
            message,
        },
        404 => RegistryError::NotFound {
            subject,
            endpoint,
            message,
        },
        429 => {
            let retry_after = retry::retry_after(headers, SystemTime::now());
            RegistryError::RateLimited {
                subject,
                endpoint,
                retry_after,
                message,
            }
        }
        408 | 425 => RegistryError::Unavailable {
            subject,
            endpoint,
            status: status.as_u16(),
            message,
        },
        400..=499 => RegistryError::Refused {
            subject,
            endpoint,
            status: status.as_u16(),
            code,
            message,
        },
        _ => RegistryError::Unavailable {
            subject,
            endpoint,
            status: status.as_u16(),
            message,
        },
    };
    let retry = match retry::retry_after(headers, SystemTime::now()) {
        Some(wait) if retry::is_passing(status) => Retry::After(wait),
        None if retry::is_passing(status) => Retry::Soon,
        // A success or redirect that cannot answer the request: the status may have been changed on its way.
        _ if status.as_u16() < 400 => Retry::Few(3),
        _ => Retry::Never,
    };
    Failure { error, retry }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, code: &str, message: &str) {
        assert_eq!(
            error_of(body.as_bytes()),
            (code.to_owned(), message.to_owned()),
            "{body}"
        );
    }

    #[test]
    fn errors_have_several_forms() {
        check(
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown","detail":{"Tag":"x"}}]}"#,
            "MANIFEST_UNKNOWN",
            "manifest unknown",
        );
        check(r#"{"errors":[{"code":"DENIED"}]}"#, "DENIED", "DENIED");
        check(
            r#"{"details":"incorrect username or password"}"#,
            "",
            "incorrect username or password",
        );
        check(
            r#"{"error":"invalid_grant","error_description":"no"}"#,
            "",
            "no",
        );
        check("<html>500</html>", "", "");
        check("404 page not found\n", "", "404 page not found");
        check("", "", "");
    }

    #[test]
    fn statuses_that_pass_are_tried_again() {
        let retry = |status: u16, headers: &HeaderMap| {
            refusal(
                "s",
                "e",
                StatusCode::from_u16(status).unwrap(),
                headers,
                b"",
            )
            .retry
        };
        let mut headers = HeaderMap::new();
        assert_eq!(retry(503, &headers), Retry::Soon);
        assert_eq!(retry(501, &headers), Retry::Never);
        assert_eq!(retry(404, &headers), Retry::Never);
        assert_eq!(retry(204, &headers), Retry::Few(3));
        headers.insert(reqwest::header::RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(
            retry(429, &headers),
            Retry::After(std::time::Duration::from_secs(7))
        );
        assert_eq!(retry(403, &headers), Retry::Never);
    }
}

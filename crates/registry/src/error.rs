//! What can go wrong between this machine and a registry.

use std::path::PathBuf;
use std::time::Duration;

use oci::Digest;

/// A cause from a library below: HTTP, TLS, the operating system.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an operation failed.
///
/// `subject` names what was asked for (`manifest docker.io/library/busybox:latest`), `endpoint` the server asked.
/// Messages from a registry are cleaned of control characters and cut before they get in here; no variant ever holds
/// a password, a token or the query of a redirect.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{subject} not found at {endpoint}{}", detail(message))]
    NotFound {
        subject: String,
        endpoint: String,
        message: String,
    },
    #[error("{endpoint} wants a login for {subject}{}", detail(message))]
    Unauthorized {
        subject: String,
        endpoint: String,
        message: String,
    },
    #[error("{endpoint} denies access to {subject}{}", detail(message))]
    Denied {
        subject: String,
        endpoint: String,
        message: String,
    },
    #[error(
        "{endpoint} limits the rate of requests for {subject}{}{}",
        after(retry_after),
        detail(message)
    )]
    RateLimited {
        subject: String,
        endpoint: String,
        retry_after: Option<Duration>,
        message: String,
    },
    /// Status 5xx, or one that cannot answer the request, after all retries.
    #[error("{endpoint} answered {status} for {subject}{}", detail(message))]
    Unavailable {
        subject: String,
        endpoint: String,
        status: u16,
        message: String,
    },
    /// Any other status 4xx.
    #[error("{endpoint} refused {subject} with {status}{}", detail(message))]
    Refused {
        subject: String,
        endpoint: String,
        status: u16,
        code: String,
        message: String,
    },
    #[error("failed to connect to {endpoint}")]
    Connect { endpoint: String, source: Cause },
    #[error("no trusted connection to {endpoint}")]
    Tls { endpoint: String, source: Cause },
    #[error("{endpoint} was silent for {} s while {action} {subject}", after.as_secs_f32())]
    Timeout {
        subject: String,
        endpoint: String,
        action: &'static str,
        after: Duration,
    },
    #[error("connection to {endpoint} was cut at byte {offset} of {subject}")]
    Interrupted {
        subject: String,
        endpoint: String,
        offset: u64,
        source: Cause,
    },
    #[error("{subject} from {endpoint} is {actual}, expected {expected}")]
    DigestMismatch {
        subject: String,
        endpoint: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("{subject} from {endpoint} has {actual} bytes, expected {expected}")]
    SizeMismatch {
        subject: String,
        endpoint: String,
        expected: u64,
        actual: u64,
    },
    #[error("{subject} from {endpoint} is larger than the limit of {limit} bytes")]
    TooLarge {
        subject: String,
        endpoint: String,
        limit: u64,
    },
    #[error(
        "{subject} is an image of Docker's schema 1, which is no longer supported; push it again with a current tool"
    )]
    Schema1 { subject: String },
    /// The answer breaks the protocol.
    #[error("{endpoint} gave an answer for {subject} that makes no sense: {message}")]
    Malformed {
        subject: String,
        endpoint: String,
        message: String,
    },
    #[error("{subject} is not available from any of its {} sources: {}", attempts.len(), list(attempts))]
    Exhausted {
        subject: String,
        attempts: Vec<RegistryError>,
    },
    #[error("{operation} is not possible for {subject}: {reason}")]
    Unsupported {
        operation: &'static str,
        subject: String,
        reason: String,
    },
    #[error("invalid registry settings in {origin}: {message}")]
    Settings { origin: String, message: String },
    #[error("failed to get credentials for {registry}: {message}")]
    Credentials { registry: String, message: String },
    #[error("failed to {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// What was to be sent could not be read here, or is not what its descriptor says.
    #[error("failed to read {subject} to send it")]
    Content {
        subject: String,
        source: std::io::Error,
    },
}

/// What kind of failure it was: decides exit codes, retries and words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    InvalidArgument,
    NotFound,
    Unauthenticated,
    PermissionDenied,
    /// Trying again later may help.
    Unavailable,
    /// What came is not what was asked for.
    DataLoss,
    Unsupported,
    Internal,
}

impl RegistryError {
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotFound { .. } => ErrorClass::NotFound,
            Self::Unauthorized { .. } => ErrorClass::Unauthenticated,
            Self::Denied { .. } => ErrorClass::PermissionDenied,
            Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Interrupted { .. } => ErrorClass::Unavailable,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } | Self::Malformed { .. } => {
                ErrorClass::DataLoss
            }
            Self::Schema1 { .. } | Self::Unsupported { .. } => ErrorClass::Unsupported,
            Self::Refused { .. } | Self::TooLarge { .. } | Self::Settings { .. } => {
                ErrorClass::InvalidArgument
            }
            Self::Credentials { .. } => ErrorClass::Unauthenticated,
            Self::Io { .. } | Self::Content { .. } => ErrorClass::Internal,
            // The registry itself comes last and has the last word.
            Self::Exhausted { attempts, .. } => {
                attempts.last().map_or(ErrorClass::Internal, Self::class)
            }
        }
    }

    /// Whether the same operation, begun afresh, may succeed without anybody changing anything.
    ///
    /// The client has done its own retries before it gives an error; content that was cut or changed on its way can
    /// only be asked for again by whoever has taken it in.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Exhausted { attempts, .. } => attempts.iter().any(Self::may_pass),
            Self::Tls { .. } => false,
            _ => matches!(self.class(), ErrorClass::Unavailable | ErrorClass::DataLoss),
        }
    }

    /// Whether no server was there to answer. What one has answered, a refusal too, is its word.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Interrupted { .. } => true,
            Self::Exhausted { attempts, .. } => attempts.iter().all(Self::is_unreachable),
            _ => false,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.class() == ErrorClass::NotFound
    }
}

impl From<RegistryError> for std::io::Error {
    fn from(error: RegistryError) -> Self {
        let kind = match error.class() {
            ErrorClass::NotFound => std::io::ErrorKind::NotFound,
            ErrorClass::Unauthenticated | ErrorClass::PermissionDenied => {
                std::io::ErrorKind::PermissionDenied
            }
            ErrorClass::DataLoss => std::io::ErrorKind::InvalidData,
            _ => std::io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

fn detail(message: &str) -> String {
    match message {
        "" => String::new(),
        message => format!(": {message}"),
    }
}

fn after(retry_after: &Option<Duration>) -> String {
    match retry_after {
        Some(wait) => format!(" (again in {} s)", wait.as_secs()),
        None => String::new(),
    }
}

fn list(attempts: &[RegistryError]) -> String {
    let messages: Vec<String> = attempts.iter().map(chain).collect();
    messages.join("; ")
}

/// Several causes cannot all stand in one chain, so each is written out.
fn chain(error: &RegistryError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Makes text that a registry sent fit to be shown: one line, no control characters, not long.
pub(crate) fn presentable(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut shown = String::new();
    for word in text.split(|character: char| character.is_whitespace() || character.is_control()) {
        if word.is_empty() {
            continue;
        }
        if !shown.is_empty() {
            shown.push(' ');
        }
        shown.extend(word.chars().filter(|character| !is_deceptive(*character)));
        if shown.chars().count() > LONGEST {
            shown = shown.chars().take(LONGEST).collect();
            shown.push('…');
            break;
        }
    }
    shown
}

/// Characters that change how the text around them is shown.
fn is_deceptive(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_answers_is_reached() {
        let connect = || RegistryError::Connect {
            endpoint: "h".into(),
            source: "refused".into(),
        };
        let denied = || RegistryError::Denied {
            subject: "a".into(),
            endpoint: "h".into(),
            message: String::new(),
        };
        let of = |attempts| RegistryError::Exhausted {
            subject: "a".into(),
            attempts,
        };
        assert!(connect().is_unreachable());
        assert!(of(vec![connect(), connect()]).is_unreachable());
        assert!(!denied().is_unreachable());
        assert!(!of(vec![connect(), denied()]).is_unreachable());
        assert!(!of(vec![denied(), connect()]).is_unreachable());
    }

    #[test]
    fn text_of_a_registry_cannot_steer_the_terminal() {
        assert_eq!(presentable("a\x1b[2Jb\r\n\tc\u{202e}d"), "a [2Jb cd");
        assert_eq!(presentable(&"x".repeat(1000)).chars().count(), 301);
        assert_eq!(presentable(" \n "), "");
    }

    #[test]
    fn the_last_source_decides_the_class_of_an_exhausted_list() {
        let not_found = || RegistryError::NotFound {
            subject: "manifest a/b:c".into(),
            endpoint: "a".into(),
            message: String::new(),
        };
        let connect = || RegistryError::Connect {
            endpoint: "mirror".into(),
            source: "refused".into(),
        };
        let error = RegistryError::Exhausted {
            subject: "manifest a/b:c".into(),
            attempts: vec![connect(), not_found()],
        };
        assert_eq!(error.class(), ErrorClass::NotFound);
        assert_eq!(
            error.to_string(),
            "manifest a/b:c is not available from any of its 2 sources: failed to connect to mirror: refused; \
             manifest a/b:c not found at a"
        );
    }
}

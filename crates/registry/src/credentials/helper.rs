//! The protocol of `docker-credential-<name>`: a verb as argument, JSON or a name on standard input and output.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::file::key_of;
use super::{Credential, failure};
use crate::RegistryError;
use crate::error::presentable;

/// A helper may ask its user.
const PATIENCE: Duration = Duration::from_secs(120);
const LONGEST_ANSWER: u64 = 1 << 20;
/// The user name that marks an identity token.
const TOKEN_USER: &str = "<token>";
const NOT_FOUND: &str = "credentials not found in native keychain";

/// A program that keeps the logins of one registry.
#[derive(Debug)]
pub(super) struct Helper<'a> {
    program: PathBuf,
    registry: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Login {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

#[derive(Serialize)]
struct NewLogin<'a> {
    #[serde(rename = "ServerURL")]
    server_url: &'a str,
    #[serde(rename = "Username")]
    username: &'a str,
    #[serde(rename = "Secret")]
    secret: &'a str,
}

impl<'a> Helper<'a> {
    pub(super) fn new(
        name: &str,
        directory: Option<&Path>,
        registry: &'a str,
    ) -> Result<Self, RegistryError> {
        if !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        {
            return Err(failure(
                registry,
                format!("{name:?} is not the name of a helper"),
            ));
        }
        let name = format!("docker-credential-{name}");
        let beside = directory
            .map(|directory| directory.join(&name))
            .filter(|path| path.exists());
        Ok(Self {
            program: beside.unwrap_or_else(|| PathBuf::from(name)),
            registry,
        })
    }

    pub(super) async fn get(&self) -> Result<Option<Credential>, RegistryError> {
        let Some(output) = self.run("get", key_of(self.registry).as_bytes()).await? else {
            return Ok(None);
        };
        let login: Login = serde_json::from_slice(&output)
            .map_err(|_| self.failure("get", "its answer is not valid JSON"))?;
        Ok(match login.username.as_str() {
            _ if login.secret.is_empty() => None,
            TOKEN_USER => Some(Credential::IdentityToken(login.secret)),
            _ => Some(Credential::Basic {
                username: login.username,
                password: login.secret,
            }),
        })
    }

    pub(super) async fn store(&self, credential: &Credential) -> Result<(), RegistryError> {
        let (username, secret) = match credential {
            Credential::Basic { username, password } => (username.as_str(), password),
            Credential::IdentityToken(token) => (TOKEN_USER, token),
            Credential::RegistryToken(_) => {
                return Err(self.failure("store", "helpers cannot keep access tokens"));
            }
        };
        let login = NewLogin {
            server_url: key_of(self.registry),
            username,
            secret,
        };
        let input = serde_json::to_vec(&login).expect("strings");
        self.run("store", &input).await?;
        Ok(())
    }

    pub(super) async fn erase(&self) -> Result<(), RegistryError> {
        self.run("erase", key_of(self.registry).as_bytes()).await?;
        Ok(())
    }

    /// Returns what the helper said, or nothing if it knows of no such login.
    async fn run(
        &self,
        verb: &'static str,
        input: &[u8],
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let mut child = Command::new(&self.program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| self.failure(verb, &error.to_string()))?;
        let mut stdin = child.stdin.take().expect("piped");
        let stdout = child.stdout.take().expect("piped");
        let conversation = async {
            // A helper that does not read what it does not need closes its end.
            let _ = stdin.write_all(input).await;
            drop(stdin);
            let mut output = Vec::new();
            stdout.take(LONGEST_ANSWER).read_to_end(&mut output).await?;
            Ok::<_, std::io::Error>((child.wait().await?, output))
        };
        let (status, output) = tokio::time::timeout(PATIENCE, conversation)
            .await
            .map_err(|_| self.failure(verb, "it did not answer in time"))?
            .map_err(|error| self.failure(verb, &error.to_string()))?;
        if status.success() {
            return Ok(Some(output));
        }
        let message = presentable(&String::from_utf8_lossy(&output));
        if message.contains(NOT_FOUND) {
            return Ok(None);
        }
        let message = if message.is_empty() {
            status.to_string()
        } else {
            message
        };
        Err(self.failure(verb, &message))
    }

    fn failure(&self, verb: &str, message: &str) -> RegistryError {
        failure(
            self.registry,
            format!("{} {verb}: {message}", self.program.display()),
        )
    }
}

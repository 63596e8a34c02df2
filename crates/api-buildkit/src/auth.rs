//! Logins at registries, asked of the client whose build needs them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bollard_buildkit_proto::moby::filesync::v1::CredentialsRequest;
use bollard_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use registry::{Credential, CredentialProvider, RegistryError};
use tonic::Code;

use crate::session::Session;

/// The logins of one client. The server's own are never used for a client.
pub(crate) struct SessionCredentials(pub(crate) Arc<Session>);

impl fmt::Debug for SessionCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SessionCredentials")
            .field(&self.0.id)
            .finish()
    }
}

impl CredentialProvider for SessionCredentials {
    fn credential<'a>(
        &'a self,
        registry: &'a str,
        _repository: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Credential>, RegistryError>> + Send + 'a>> {
        Box::pin(async move {
            if !self.0.supports("/moby.filesync.v1.Auth/Credentials") {
                return Ok(None);
            }
            let request = CredentialsRequest {
                host: host_of(registry).to_owned(),
            };
            let answer = AuthClient::new(self.0.channel()).credentials(request).await;
            match answer {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    Ok(credential_of(answer.username, answer.secret))
                }
                Err(status) => {
                    if !matches!(status.code(), Code::NotFound | Code::Unimplemented) {
                        tracing::warn!(%status, registry, "the client gives no login");
                    }
                    Ok(None)
                }
            }
        })
    }
}

/// Returns the name by which clients know a registry.
fn host_of(registry: &str) -> &str {
    match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// A secret without a name is a token to be exchanged; nothing at all is no login.
fn credential_of(username: String, secret: String) -> Option<Credential> {
    match (username.as_str(), secret.as_str()) {
        ("", "") => None,
        ("", _) => Some(Credential::IdentityToken(secret)),
        _ => Some(Credential::Basic {
            username,
            password: secret,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_without_a_name_is_a_token() {
        let of = |name: &str, secret: &str| credential_of(name.to_owned(), secret.to_owned());
        assert!(of("", "").is_none());
        assert!(matches!(of("", "t"), Some(Credential::IdentityToken(token)) if token == "t"));
        assert!(
            matches!(of("u", "p"), Some(Credential::Basic { username, password }) if username == "u" && password == "p")
        );
        assert_eq!(host_of("docker.io"), "registry-1.docker.io");
        assert_eq!(host_of("localhost:5000"), "localhost:5000");
    }
}

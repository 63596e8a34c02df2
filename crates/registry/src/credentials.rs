//! Who the user is at a registry: credentials that Docker, Podman and their helpers keep.

mod file;
mod helper;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use crate::RegistryError;
use crate::settings::Settings;

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token, exchanged for access tokens.
    IdentityToken(String),
    /// An access token, used as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => formatter
                .debug_struct("Basic")
                .field("username", username)
                .finish_non_exhaustive(),
            Self::IdentityToken(_) => formatter.write_str("IdentityToken(..)"),
            Self::RegistryToken(_) => formatter.write_str("RegistryToken(..)"),
        }
    }
}

/// Answers which credential belongs to a repository.
pub trait CredentialProvider: fmt::Debug + Send + Sync {
    /// Returns the credential for a repository, or none to be anonymous.
    ///
    /// `registry` is the name users know (`docker.io`), or host and port of a mirror. Asked once for each repository
    /// that wants a login, never for others.
    fn credential<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Credential>, RegistryError>> + Send + 'a>>;
}

/// The files of Docker and Podman, in the order in which they are looked at.
///
/// A file may name helpers (`credHelpers`, `credsStore`), programs `docker-credential-<name>`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CredentialSources {
    /// The first is where a login is kept.
    pub files: Vec<PathBuf>,
    /// Where helpers are looked for before `PATH`.
    pub helper_directory: Option<PathBuf>,
}

impl CredentialSources {
    /// Returns `$REGISTRY_AUTH_FILE`, Docker's `config.json`, then Podman's files.
    pub fn from_environment() -> Self {
        let variable = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let home = std::env::home_dir();
        let docker = variable("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
        let files = [
            variable("REGISTRY_AUTH_FILE"),
            docker.map(|directory| directory.join("config.json")),
            variable("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")),
            variable("XDG_CONFIG_HOME")
                .or_else(|| Some(home.as_ref()?.join(".config")))
                .map(|directory| directory.join("containers/auth.json")),
        ];
        Self {
            files: files.into_iter().flatten().collect(),
            helper_directory: None,
        }
    }

    async fn find(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, RegistryError> {
        for path in &self.files {
            let Some(file) = file::AuthFile::read(path)? else {
                continue;
            };
            if let Some(name) = file.helper(registry) {
                let helper = helper::Helper::new(name, self.helper_directory.as_deref(), registry)?;
                if let Some(credential) = helper.get().await? {
                    return Ok(Some(credential));
                }
            }
            if let Some(credential) = file.credential(registry, repository)? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }

    /// Keeps the credential of a registry: with the helper that the first file names, else in that file (mode 0600).
    ///
    /// The file is replaced in one step; what else stands in it stays.
    pub async fn store(
        &self,
        registry: &str,
        credential: &Credential,
    ) -> Result<Stored, RegistryError> {
        let registry = crate::settings::canonical_registry(registry);
        let path = self.login_file(registry)?;
        let file = file::AuthFile::read(path)?.unwrap_or_else(|| file::AuthFile::empty(path));
        if let Some(name) = file.helper(registry) {
            helper::Helper::new(name, self.helper_directory.as_deref(), registry)?
                .store(credential)
                .await?;
            let name = name.to_owned();
            file.with_placeholder(registry).write()?;
            return Ok(Stored::Helper(name));
        }
        file.with_credential(registry, credential)?.write()?;
        Ok(Stored::File(path.to_owned()))
    }

    /// Forgets what is kept for a registry, in every file and helper; returns whether there was anything.
    pub async fn erase(&self, registry: &str) -> Result<bool, RegistryError> {
        let registry = crate::settings::canonical_registry(registry);
        let mut found = false;
        for path in &self.files {
            let Some(file) = file::AuthFile::read(path)? else {
                continue;
            };
            if let Some(name) = file.helper(registry) {
                let helper = helper::Helper::new(name, self.helper_directory.as_deref(), registry)?;
                if helper.get().await?.is_some() {
                    helper.erase().await?;
                    found = true;
                }
            }
            if let Some(file) = file.without(registry) {
                file.write()?;
                found = true;
            }
        }
        Ok(found)
    }

    fn login_file(&self, registry: &str) -> Result<&PathBuf, RegistryError> {
        self.files
            .first()
            .ok_or_else(|| RegistryError::Credentials {
                registry: registry.to_owned(),
                message: "no file is known to keep them in".to_owned(),
            })
    }
}

impl CredentialProvider for CredentialSources {
    fn credential<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Credential>, RegistryError>> + Send + 'a>> {
        Box::pin(self.find(registry, repository))
    }
}

/// One credential for one registry, to try out before it is kept.
#[derive(Debug)]
struct Single {
    registry: String,
    credential: Credential,
}

impl CredentialProvider for Single {
    fn credential<'a>(
        &'a self,
        registry: &'a str,
        _repository: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Credential>, RegistryError>> + Send + 'a>> {
        let found = (registry == self.registry).then(|| self.credential.clone());
        Box::pin(std::future::ready(Ok(found)))
    }
}

/// Where a login was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    Helper(String),
    File(PathBuf),
}

/// Tries a credential at a registry, then keeps it.
///
/// Nothing is kept that the registry does not take.
pub async fn login(
    settings: &Settings,
    sources: &CredentialSources,
    registry: &str,
    credential: &Credential,
) -> Result<Stored, RegistryError> {
    let registry = crate::settings::canonical_registry(registry);
    let single = Single {
        registry: registry.to_owned(),
        credential: credential.clone(),
    };
    let settings = Settings {
        credentials: std::sync::Arc::new(single),
        ..settings.clone()
    };
    crate::Client::new(settings).authenticate(registry).await?;
    sources.store(registry, credential).await
}

/// Forgets the credentials of a registry; returns whether there were any.
pub async fn logout(sources: &CredentialSources, registry: &str) -> Result<bool, RegistryError> {
    sources.erase(registry).await
}

fn failure(registry: &str, message: impl Into<String>) -> RegistryError {
    RegistryError::Credentials {
        registry: registry.to_owned(),
        message: message.into(),
    }
}

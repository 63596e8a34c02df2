//! Reads the Dockerfile, its ignore file, and the contexts a request names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dockerfile::ignore::IgnoreFile;
use frontend::{MainContext, NamedContext, NoCache, Options, ResolveMode};
use llb::{HostIp, NetworkMode, Ulimit};
use oci::{Platform, Reference};
use progress::{Outcome, Sink, Vertex};
use rootfs::apply::{ApplyOptions, Devices, Ownership, apply_layer};
use rootfs::{Form, LayerDir};
use tempfile::TempDir;

use crate::EngineError;
use crate::request::{BuildRequest, Context, DockerfileSource, IgnoreCache};

/// A Dockerfile and where its files are.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// As shown in messages.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    ignore: IgnoreFile,
    /// Directories by the name the graph knows them by.
    directories: BTreeMap<String, PathBuf>,
    named: BTreeMap<String, NamedContext>,
    /// Keeps what was unpacked for this build.
    _unpacked: Vec<TempDir>,
}

/// The largest Dockerfile or ignore file, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Reads what a request names.
pub(crate) fn load(request: &BuildRequest, sink: &Sink) -> Result<Loaded, EngineError> {
    let mut unpacked = Vec::new();
    let directory = match &request.context {
        Context::Directory(directory) => directory.clone(),
        Context::Tar(path) => {
            let temporary = unpack_tar(path)?;
            let directory = temporary.path().join("context");
            unpacked.push(temporary);
            directory
        }
        Context::Empty => {
            let temporary = temporary()?;
            let directory = temporary.path().to_owned();
            unpacked.push(temporary);
            directory
        }
        Context::Git(text) => {
            let temporary = temporary()?;
            let directory = super::git::checkout(text, temporary.path())?;
            unpacked.push(temporary);
            directory
        }
        Context::Http(url) => return Err(EngineError::Unsupported(format!("the context {url}"))),
    };
    let (name, bytes) = read_dockerfile(request, &directory, sink)?;
    let ignore = read_ignore(request, &directory, sink)?;
    let mut directories = BTreeMap::from([("context".to_owned(), directory)]);
    let named = named_contexts(request, &mut directories)?;
    Ok(Loaded {
        name,
        bytes,
        ignore,
        directories,
        named,
        _unpacked: unpacked,
    })
}

fn read_dockerfile(
    request: &BuildRequest,
    directory: &Path,
    sink: &Sink,
) -> Result<(String, Vec<u8>), EngineError> {
    let shown = |name: &str| {
        let name = Path::new(name)
            .file_name()
            .map_or(name.into(), |name| name.to_string_lossy());
        format!("[internal] load build definition from {name}")
    };
    let (name, path) = match &request.dockerfile {
        DockerfileSource::Bytes { name, bytes } => {
            let running = sink.vertex(Vertex::named(shown(name))).start();
            let size = bytes.len() as u64;
            running
                .status_of("transferring dockerfile:", "", size)
                .finish(size);
            running.complete(Outcome::Done);
            return Ok((name.clone(), bytes.clone()));
        }
        DockerfileSource::File(path) => (path.display().to_string(), path.clone()),
        DockerfileSource::InContext(path) => (path.clone(), directory.join(clean(path))),
    };
    let running = sink.vertex(Vertex::named(shown(&name))).start();
    let bytes = read_limited(&path)
        .and_then(|bytes| bytes.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => EngineError::Request(format!(
                "failed to read the Dockerfile: there is no file {}",
                path.display()
            )),
            _ => EngineError::io("read the Dockerfile", &path)(error),
        });
    match bytes {
        Ok(bytes) => {
            let size = bytes.len() as u64;
            running
                .status_of("transferring dockerfile:", "", size)
                .finish(size);
            running.complete(Outcome::Done);
            Ok((name, bytes))
        }
        Err(error) => {
            let text = crate::error::chain(&error);
            running.complete(Outcome::Failed { error: text });
            Err(error)
        }
    }
}

/// Takes `..` and roots out of a path that comes from outside.
fn clean(path: &str) -> PathBuf {
    let parts = Path::new(path).components();
    parts
        .filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect()
}

fn read_limited(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    use std::io::Read;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(std::io::Error::other(format!(
            "it is larger than {MAX_FILE} bytes"
        ))),
        false => Ok(Some(bytes)),
    }
}

/// Reads the ignore file: the Dockerfile's own, or that of the context.
fn read_ignore(
    request: &BuildRequest,
    directory: &Path,
    sink: &Sink,
) -> Result<IgnoreFile, EngineError> {
    let running = sink
        .vertex(Vertex::named("[internal] load .dockerignore"))
        .start();
    let mut candidates = Vec::new();
    match &request.dockerfile {
        DockerfileSource::File(path) => candidates.push(with_suffix(path)),
        DockerfileSource::InContext(path) => {
            candidates.push(with_suffix(&directory.join(clean(path))))
        }
        DockerfileSource::Bytes { .. } => {}
    }
    candidates.push(directory.join(".dockerignore"));
    for path in candidates {
        let text = read_limited(&path).map_err(EngineError::io("read", &path))?;
        if let Some(text) = text {
            let size = text.len() as u64;
            running
                .status_of("transferring context:", "", size)
                .finish(size);
            let ignore = parse_ignore(&path, &text)?;
            running.complete(Outcome::Done);
            return Ok(ignore);
        }
    }
    running.complete(Outcome::Done);
    Ok(IgnoreFile::default())
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".dockerignore");
    PathBuf::from(name)
}

fn patterns_of(file: &IgnoreFile) -> Vec<String> {
    file.lines.iter().map(|line| line.pattern.clone()).collect()
}

fn parse_ignore(path: &Path, text: &[u8]) -> Result<IgnoreFile, EngineError> {
    let text = String::from_utf8_lossy(text);
    let invalid = |error: dockerfile::ignore::IgnoreError| {
        EngineError::Request(format!("invalid {}: {error}", path.display()))
    };
    let file = IgnoreFile::parse(&text).map_err(invalid)?;
    // What cannot be matched is better said here than when the first file comes.
    dockerfile::ignore::Matcher::new(patterns_of(&file)).map_err(invalid)?;
    Ok(file)
}

fn unpack_tar(path: &Path) -> Result<TempDir, EngineError> {
    let temporary = temporary()?;
    let directory = temporary.path().join("context");
    std::fs::create_dir(&directory).map_err(EngineError::io("create", &directory))?;
    let file = std::fs::File::open(path).map_err(EngineError::io("open", path))?;
    let mut options = ApplyOptions::new(Form::Plain);
    options.devices = Devices::Skip;
    options.ownership = Ownership::Ignore;
    apply_layer(file, &LayerDir::open(&directory)?, &options)?;
    Ok(temporary)
}

fn temporary() -> Result<TempDir, EngineError> {
    tempfile::Builder::new()
        .prefix("lapstrake-context-")
        .tempdir()
        .map_err(EngineError::io("create", "a temporary directory"))
}

fn named_contexts(
    request: &BuildRequest,
    directories: &mut BTreeMap<String, PathBuf>,
) -> Result<BTreeMap<String, NamedContext>, EngineError> {
    let mut named = BTreeMap::new();
    for (name, value) in &request.named_contexts {
        let context = match value.split_once("://") {
            Some(("docker-image", image)) => NamedContext::Image(image.to_owned()),
            Some(("oci-layout" | "target", _)) => {
                return Err(EngineError::Unsupported(format!(
                    "the context {name}={value}"
                )));
            }
            Some(("http" | "https" | "git" | "ssh", _)) => NamedContext::Url(value.clone()),
            _ if value.starts_with("git@") => NamedContext::Url(value.clone()),
            _ => {
                let directory = PathBuf::from(value);
                if !directory.is_dir() {
                    return Err(EngineError::Request(format!(
                        "the context {name}={value} is no directory"
                    )));
                }
                let path = directory.join(".dockerignore");
                let text = read_limited(&path).map_err(EngineError::io("read", &path))?;
                let ignore = text.map(|text| parse_ignore(&path, &text)).transpose()?;
                directories.insert(name.clone(), directory);
                NamedContext::Local {
                    name: name.clone(),
                    ignore: ignore.as_ref().map(patterns_of).unwrap_or_default(),
                }
            }
        };
        named.insert(canonical(name), context);
    }
    Ok(named)
}

/// Returns the name a context is looked up by: as an image's, without its default parts.
fn canonical(name: &str) -> String {
    match Reference::parse_normalized(name) {
        Ok(reference) => {
            let familiar = reference.familiar();
            familiar
                .strip_suffix(":latest")
                .unwrap_or(&familiar)
                .to_owned()
        }
        Err(_) => name.to_lowercase(),
    }
}

impl Loaded {
    /// Returns the directory behind a name.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf, EngineError> {
        self.directories
            .get(name)
            .cloned()
            .ok_or_else(|| EngineError::Graph(format!("there is no context {name}")))
    }

    /// Returns the name and the text of the Dockerfile, for messages.
    pub(crate) fn source_text(&self) -> (String, String) {
        let text = String::from_utf8_lossy(&self.bytes).into_owned();
        (self.name.clone(), text)
    }

    /// Returns the context that stands for a stage or an image.
    pub(crate) fn named_context(&self, name: &str) -> Option<&NamedContext> {
        self.named.get(&canonical(name))
    }

    /// Returns the ignore file of the context.
    pub(crate) fn ignore_file(&self) -> &IgnoreFile {
        &self.ignore
    }

    /// Says which line of the ignore file keeps a path out, if one does.
    pub(crate) fn excluded_by(&self, path: &str) -> Option<String> {
        let matcher = self.ignore.matcher().ok()?;
        let matched = matcher.matched(path).ok()?;
        let (pattern, line) = matcher.reason(&matched)?;
        Some(match line {
            Some(line) => format!("it is excluded by line {line} of the ignore file: {pattern}"),
            None => format!("it is excluded by the ignore file: {pattern}"),
        })
    }

    /// Returns the settings of the lowering.
    pub(crate) fn options(&self, request: &BuildRequest) -> Result<Options, EngineError> {
        let network = match request.network.as_str() {
            "" | "default" => NetworkMode::Sandbox,
            "none" => NetworkMode::None,
            "host" => NetworkMode::Host,
            other => {
                return Err(EngineError::Request(format!(
                    "there is no network mode {other:?}; there are default, none and host"
                )));
            }
        };
        let options = Options {
            filename: self.name.clone(),
            target: request.target.clone(),
            build_args: request.build_args.clone(),
            labels: request.labels.clone(),
            platforms: request.platforms.clone(),
            build_platforms: vec![Platform::host()],
            multi_platform: request.platforms.len() > 1,
            shm_size: request.shm_size.unwrap_or(0) as i64,
            ulimits: request
                .ulimits
                .iter()
                .map(|text| ulimit(text))
                .collect::<Result<_, _>>()?,
            extra_hosts: extra_hosts(&request.add_hosts)?,
            network,
            cgroup_parent: request.cgroup_parent.clone().unwrap_or_default(),
            no_cache: match &request.ignore_cache {
                IgnoreCache::No => NoCache::None,
                IgnoreCache::All => NoCache::All,
                IgnoreCache::Stages(stages) => NoCache::Stages(stages.clone()),
            },
            resolve_mode: match request.pull {
                true => ResolveMode::Pull,
                false => ResolveMode::Default,
            },
            context: MainContext::Local {
                ignore: patterns_of(&self.ignore),
            },
            named_contexts: self.named.clone(),
            ..Options::default()
        };
        let heeded = options.heeding_build_args();
        heeded.map_err(|diagnostics| EngineError::Dockerfile { diagnostics })
    }
}

fn ulimit(text: &str) -> Result<Ulimit, EngineError> {
    let invalid = || {
        EngineError::Request(format!(
            "invalid --ulimit {text:?}: it is not NAME=SOFT[:HARD]"
        ))
    };
    let (name, limits) = text.split_once('=').ok_or_else(invalid)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    Ok(Ulimit {
        name: name.to_owned(),
        soft: soft.parse().map_err(|_| invalid())?,
        hard: hard.parse().map_err(|_| invalid())?,
    })
}

fn extra_hosts(lines: &[String]) -> Result<Vec<HostIp>, EngineError> {
    lines
        .iter()
        .map(|line| {
            // Docker writes HOST:IP, and HOST=IP for addresses with colons.
            let split = line.split_once('=').or_else(|| line.split_once(':'));
            let invalid =
                || EngineError::Request(format!("invalid --add-host {line:?}: it is not HOST:IP"));
            let (host, ip) = split.ok_or_else(invalid)?;
            let ip = ip.trim_matches(['[', ']']);
            let ip = match ip {
                "host-gateway" => "127.0.0.1",
                ip => ip,
            };
            ip.parse::<std::net::IpAddr>().map_err(|_| invalid())?;
            Ok(HostIp {
                host: host.to_owned(),
                ip: ip.to_owned(),
            })
        })
        .collect()
}

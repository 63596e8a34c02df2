//! Reads the Dockerfile, its ignore file, and the contexts a request names.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dockerfile::git::{GitRef, GitRefError};
use dockerfile::ignore::IgnoreFile;
use frontend::{MainContext, NamedContext, NoCache, Options, ResolveMode};
use llb::{HostIp, NetworkMode, SourceOp, Ulimit};
use oci::{Platform, Reference};
use progress::{Outcome, RunningVertex, Sink, Vertex};
use rootfs::{Root, RootPath};

use super::fetched::PinnedSource;
use super::local_client::{DOCKERFILE, LocalClient};
use super::main_context::Main;
use super::missing::{directory_for_file, missing_file, missing_in_context};
use crate::EngineError;
use crate::request::{BuildRequest, Context, DockerfileSource, IgnoreCache};
use crate::step::Shared;

/// A Dockerfile and where its files are.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// As shown in messages.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    ignore: IgnoreFile,
    /// Directories by the name the graph knows them by.
    directories: BTreeMap<String, PathBuf>,
    /// Directories of OCI layouts by the name the graph knows them by.
    layouts: BTreeMap<String, PathBuf>,
    named: BTreeMap<String, NamedContext>,
    main: Main,
    parsed: OnceLock<Parsed>,
}

/// A Dockerfile that has been read.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) ast: dockerfile::Ast,
    pub(crate) stages: dockerfile::Stages,
}

/// The largest Dockerfile or ignore file, in bytes.
pub(crate) const MAX_FILE: u64 = 64 << 20;

const IGNORE_FILE: &str = ".dockerignore";

/// Reads what a request names.
pub(crate) fn load(
    request: &BuildRequest,
    shared: &Shared,
    sink: &Sink,
) -> Result<Loaded, EngineError> {
    let mut main = Main::of(request, shared, sink)?;
    let (name, bytes) = read_dockerfile(request, shared, &mut main, sink)?;
    let ignore = match main.has_ignore_file(request) {
        true => read_ignore(request, &main.directory, sink)?,
        false => IgnoreFile::default(),
    };
    let mut directories = BTreeMap::from([("context".to_owned(), main.directory.clone())]);
    let mut layouts = BTreeMap::new();
    let named = named_contexts(request, &mut directories, &mut layouts)?;
    Ok(Loaded {
        name,
        bytes,
        ignore,
        directories,
        layouts,
        named,
        main,
        parsed: OnceLock::new(),
    })
}

fn read_dockerfile(
    request: &BuildRequest,
    shared: &Shared,
    main: &mut Main,
    sink: &Sink,
) -> Result<(String, Vec<u8>), EngineError> {
    let name = match &request.dockerfile {
        DockerfileSource::Bytes { name, .. } => name.clone(),
        DockerfileSource::File(path) => path.display().to_string(),
        DockerfileSource::InContext(path) => path.clone(),
        DockerfileSource::Url(url) => url.clone(),
    };
    let shown = Path::new(&name).file_name();
    let shown = shown.map_or(name.as_str().into(), |name| name.to_string_lossy());
    let shown = format!("[internal] load build definition from {shown}");
    let running = sink.vertex(Vertex::named(shown)).start();
    let bytes = match (&request.dockerfile, main.dockerfile.take()) {
        (DockerfileSource::Bytes { bytes, .. }, _) => Ok(bytes.clone()),
        (DockerfileSource::File(path), _) => read_file(path, &main.directory),
        (DockerfileSource::Url(url), _) => download(url, shared, &running),
        (DockerfileSource::InContext(_), Some(bytes)) => Ok(bytes),
        (DockerfileSource::InContext(path), None) => read_in_context(path, &main.directory),
    };
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

fn read_file(path: &Path, context: &Path) -> Result<Vec<u8>, EngineError> {
    match read_limited(path) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(missing_file(path, context)),
        Err(_) if path.is_dir() => Err(directory_for_file(path)),
        Err(error) => Err(EngineError::io("read the Dockerfile", path)(error)),
    }
}

/// Reads a Dockerfile that came with its context: links in it lead nowhere else.
fn read_in_context(path: &str, directory: &Path) -> Result<Vec<u8>, EngineError> {
    let root = Root::open(directory)?;
    let mut places = vec![path.to_owned()];
    if path == "Dockerfile" || path.ends_with("/Dockerfile") {
        places.push(format!(
            "{}d{}",
            &path[..path.len() - 10],
            &path[path.len() - 9..]
        ));
    }
    for place in places {
        let place = RootPath::new(&place)?;
        if let Some(bytes) = root.tree().read(&place, MAX_FILE)? {
            return Ok(bytes);
        }
    }
    Err(missing_in_context(path))
}

/// Reads a Dockerfile behind a URL.
fn download(url: &str, shared: &Shared, running: &RunningVertex) -> Result<Vec<u8>, EngineError> {
    let source = SourceOp {
        identifier: url.to_owned(),
        ..SourceOp::default()
    };
    let file = super::http::pin(shared, &[], &source, running)?;
    let mut bytes = Vec::new();
    let read = file
        .open(shared)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes);
    read.map_err(EngineError::io("read", url))?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(EngineError::Request(format!(
            "{} is no Dockerfile: it is larger than {MAX_FILE} bytes",
            oci::without_user_info(url)
        ))),
        false => Ok(bytes),
    }
}

fn read_limited(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
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
    let found = find_ignore(request, directory).and_then(|found| match found {
        Some((path, text)) => {
            let size = text.len() as u64;
            running
                .status_of("transferring context:", "", size)
                .finish(size);
            parse_ignore(&path, &text)
        }
        None => Ok(IgnoreFile::default()),
    });
    running.conclude(&found, |error| crate::error::chain(error));
    found
}

fn find_ignore(
    request: &BuildRequest,
    directory: &Path,
) -> Result<Option<(PathBuf, Vec<u8>)>, EngineError> {
    if let DockerfileSource::File(path) = &request.dockerfile {
        let path = with_suffix(path);
        // It lies beside a file that the user has named, and may be a link as that may.
        let text = read_regular(&path).map_err(EngineError::io("read", &path))?;
        if let Some(text) = text {
            return Ok(Some((path, text)));
        }
    }
    let text = read_ignore_of(directory)?;
    Ok(text.map(|text| (directory.join(IGNORE_FILE), text)))
}

/// Reads the ignore file of a directory, wherever links lead to inside it; `None` where there is none.
fn read_ignore_of(directory: &Path) -> Result<Option<Vec<u8>>, EngineError> {
    let path = directory.join(IGNORE_FILE);
    if std::fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    let root = Root::open(directory)?;
    match root.tree().read(&RootPath::new(IGNORE_FILE)?, MAX_FILE) {
        Ok(Some(text)) => Ok(Some(text)),
        // To go on without it would take in what it keeps out.
        Ok(None) => Err(EngineError::Request(format!(
            "{} is a link to what is not in its directory; put a file in its place",
            path.display()
        ))),
        Err(error) => Err(EngineError::Request(format!(
            "failed to read {}: {}; it has to be a file of at most {MAX_FILE} bytes",
            path.display(),
            crate::error::chain(&error)
        ))),
    }
}

/// Reads what is a file, and waits for nobody to write into what is none.
fn read_regular(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => read_limited(path),
        Ok(_) => Err(std::io::Error::other("it is no file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
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

fn named_contexts(
    request: &BuildRequest,
    directories: &mut BTreeMap<String, PathBuf>,
    layouts: &mut BTreeMap<String, PathBuf>,
) -> Result<BTreeMap<String, NamedContext>, EngineError> {
    let mut named = BTreeMap::new();
    for (name, value) in &request.named_contexts {
        let context = match value.split_once("://") {
            Some(("docker-image", image)) => NamedContext::Image(image.to_owned()),
            Some(("oci-layout", text)) => {
                let (directory, digest) = super::layout::find(text)?;
                let store = format!("{name}-layout");
                layouts.insert(store.clone(), directory);
                NamedContext::OciLayout { store, digest }
            }
            _ if is_remote(value) => NamedContext::Url(value.clone()),
            _ if let Some(stage) = value.strip_prefix("target:") => match stage {
                "" => {
                    return Err(EngineError::Request(format!(
                        "the context {name}={value} names no stage; write {name}=target:STAGE"
                    )));
                }
                stage => NamedContext::Stage(stage.to_owned()),
            },
            _ => {
                let directory = PathBuf::from(value);
                if !directory.is_dir() {
                    return Err(EngineError::Request(format!(
                        "the context {name}={value} is no directory; others begin with docker-image://, \
                         oci-layout://, target:, http://, https://, or are git repositories"
                    )));
                }
                let path = directory.join(IGNORE_FILE);
                let text = read_ignore_of(&directory)?;
                let ignore = text.map(|text| parse_ignore(&path, &text)).transpose()?;
                // The main context has that name already.
                let local = match name.as_str() {
                    "context" | "dockerfile" => format!("_{name}"),
                    name => name.to_owned(),
                };
                directories.insert(local.clone(), directory);
                NamedContext::Local {
                    name: local,
                    ignore: ignore.as_ref().map(patterns_of).unwrap_or_default(),
                }
            }
        };
        named.insert(canonical(name), context);
    }
    Ok(named)
}

/// Tells whether a text is a URL or a git repository.
fn is_remote(text: &str) -> bool {
    let is_http = text.starts_with("http://") || text.starts_with("https://");
    is_http || !matches!(GitRef::parse(text), Err(GitRefError::NotGit))
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
    /// Returns the instructions and the stages, which are read once.
    ///
    /// # Errors
    ///
    /// All that is wrong with the text.
    pub(crate) fn parsed(&self) -> Result<&Parsed, Vec<dockerfile::Diagnostic>> {
        if let Some(parsed) = self.parsed.get() {
            return Ok(parsed);
        }
        let ast = dockerfile::parse(&self.bytes)?;
        let stages = ast.stages()?;
        Ok(self.parsed.get_or_init(|| Parsed { ast, stages }))
    }

    /// Returns the directory behind a name.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf, EngineError> {
        self.directories
            .get(name)
            .cloned()
            .ok_or_else(|| EngineError::Graph(format!("there is no context {name}")))
    }

    /// Returns whether a directory was there before this build, and may be there for the next.
    pub(crate) fn lasts(&self, directory: &Path) -> bool {
        let unpacked = self.main.unpacked.as_ref();
        unpacked.is_none_or(|unpacked| !directory.starts_with(unpacked.path()))
    }

    /// Returns the name and the text of the Dockerfile, for messages.
    pub(crate) fn source_text(&self) -> (String, String) {
        let text = dockerfile::text_of(&self.bytes).into_owned();
        (self.name.clone(), text)
    }

    /// Returns the context that stands for a stage or an image.
    pub(crate) fn named_context(&self, name: &str) -> Option<&NamedContext> {
        self.named.get(&canonical(name))
    }

    /// Returns the directory of an OCI layout.
    pub(crate) fn layout(&self, store: &str) -> Result<&Path, EngineError> {
        let missing = || EngineError::Graph(format!("there is no layout {store}"));
        self.layouts
            .get(store)
            .map(PathBuf::as_path)
            .ok_or_else(missing)
    }

    /// Offers what was read to another frontend, and says in its words where that is.
    pub(crate) fn client(
        &self,
        request: &BuildRequest,
        attrs: &mut BTreeMap<String, String>,
    ) -> Result<LocalClient, EngineError> {
        let mut directories = self.directories.clone();
        let mut set = |name: &str, value: &str| attrs.insert(name.to_owned(), value.to_owned());
        let mut files: Vec<(String, &[u8])> = Vec::new();
        let is_remote = match &request.context {
            Context::Git(url) | Context::Http(url) => {
                set("context", url);
                directories.remove("context");
                true
            }
            Context::Directory(_) | Context::Tar(_) | Context::Empty => false,
        };
        match &request.dockerfile {
            DockerfileSource::InContext(path) if is_remote => {
                set("filename", path);
            }
            DockerfileSource::InContext(path) => {
                set("filename", path);
                directories.insert(DOCKERFILE.to_owned(), self.main.directory.clone());
            }
            DockerfileSource::File(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                set("filename", &name.to_string_lossy());
                let folder = path.parent().filter(|folder| *folder != Path::new(""));
                let folder = folder.unwrap_or(Path::new(".")).to_owned();
                directories.insert(DOCKERFILE.to_owned(), folder);
            }
            DockerfileSource::Bytes { .. } | DockerfileSource::Url(_) => {
                files.push(("Dockerfile".to_owned(), &self.bytes));
                set("filename", "Dockerfile");
            }
        }
        if is_remote && !matches!(request.dockerfile, DockerfileSource::InContext(_)) {
            set("dockerfilekey", DOCKERFILE);
        }
        for (name, context) in &self.named {
            let value = match context {
                NamedContext::Image(image) => format!("docker-image://{image}"),
                NamedContext::OciLayout { store, digest } => {
                    format!("oci-layout://{store}@{digest}")
                }
                NamedContext::Local { name, .. } => format!("local:{name}"),
                NamedContext::Url(url) => url.clone(),
                NamedContext::Stage(stage) => format!("target:{stage}"),
                NamedContext::Graph { .. } => continue,
            };
            set(&format!("context:{name}"), &value);
        }
        LocalClient::new(request, directories, self.layouts.clone(), &files)
    }

    /// Returns what a remote main context was pinned to.
    pub(crate) fn pinned(&self) -> Option<&PinnedSource> {
        self.main.pinned.as_ref()
    }

    /// Returns the ignore file of the context.
    pub(crate) fn ignore_file(&self) -> &IgnoreFile {
        &self.ignore
    }

    /// Says which line of the ignore file keeps a path out, if one does.
    pub(crate) fn excluded_by(&self, path: &str) -> Option<String> {
        let matcher = self.ignore.matcher().ok()?;
        let matched = matcher.matched_by_walk(path).ok()?;
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
            context: match &self.main.context {
                MainContext::Local { .. } => MainContext::Local {
                    ignore: patterns_of(&self.ignore),
                },
                remote => remote.clone(),
            },
            named_contexts: self.named.clone(),
            scan_targets: request.sbom.is_some(),
            ..Options::default()
        };
        let heeded = options.heeding_build_args();
        heeded.map_err(|diagnostics| EngineError::Dockerfile { diagnostics })
    }
}

/// Refuses options whose values cannot be read.
pub(crate) fn check_options(request: &BuildRequest) -> Result<(), EngineError> {
    extra_hosts(&request.add_hosts)?;
    request
        .ulimits
        .iter()
        .try_for_each(|text| ulimit(text).map(drop))
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

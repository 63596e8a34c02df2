//! Turns the words of the command line into a request.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dockerfile::git::{GitRef, GitRefError};
use engine::{
    BuildRequest, CaBundle, Context, DockerfileSource, Frontends, IgnoreCache, SecretSource,
    StepOptions,
};
use oci::{Platform, Reference};
use tempfile::TempPath;

use crate::build_attestations::attestations;
use crate::build_cache;
use crate::build_outputs::outputs;
use crate::commands::build::Build;
use crate::commands::space::duration;

/// Reads the options of `lapstrake build`; with the request comes what must not be dropped before it is carried out.
pub(crate) fn request(build: &Build) -> Result<(BuildRequest, Option<TempPath>)> {
    // Whoever sets it relies on it.
    const POLICY: &str = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";
    if std::env::var_os(POLICY).is_some_and(|path| !path.is_empty()) {
        bail!(
            "{POLICY} is set, and source policies are only followed by `lapstrake serve`: \
             build there with docker buildx, or unset it"
        );
    }
    let (provenance, sbom) = attestations(build)?;
    let (context, dockerfile, spool) = sources(build)?;
    let tags = build
        .tags
        .iter()
        .map(|tag| reference(tag))
        .collect::<Result<Vec<_>>>()?;
    let build_args = assignments("--build-arg", &build.build_args)?;
    let mut build_args = build_args;
    for (name, value) in docker_proxies()? {
        build_args.entry(name).or_insert(value);
    }
    if let Ok(time) = std::env::var("SOURCE_DATE_EPOCH")
        && !time.is_empty()
    {
        let given = build_args.entry("SOURCE_DATE_EPOCH".to_owned());
        given.or_insert(time);
    }
    // Docker's way to ask for a cache inside the image.
    let inline = build_args
        .get("BUILDKIT_INLINE_CACHE")
        .is_some_and(|value| matches!(value.as_str(), "1" | "true"));
    // What is no number names a source whose time is meant: the build finds it out.
    let epoch = build_args.get("SOURCE_DATE_EPOCH");
    let source_date_epoch = epoch.and_then(|text| text.parse().ok());
    let mut ssh = ssh(&build.ssh);
    if ssh.is_empty()
        && is_fetched_by_ssh(&context)
        && std::env::var_os("SSH_AUTH_SOCK").is_some_and(|socket| !socket.is_empty())
    {
        // As buildx does it: the agent of whoever asks for a context is meant to open it.
        ssh.insert("default".to_owned(), Vec::new());
    }
    let request = BuildRequest {
        context,
        dockerfile,
        target: build.target.clone().filter(|target| !target.is_empty()),
        build_args,
        labels: pairs("--label", &build.labels)?,
        platforms: platforms(&build.platforms)?,
        named_contexts: pairs("--build-context", &build.build_contexts)?,
        ignore_cache: match (build.no_cache, build.no_cache_filters.as_slice()) {
            (true, _) => IgnoreCache::All,
            (false, []) => IgnoreCache::No,
            (false, stages) => IgnoreCache::Stages(stages.to_vec()),
        },
        pull: build.pull.unwrap_or(false),
        network: network(&build.network)?,
        add_hosts: build.add_hosts.clone(),
        shm_size: build
            .shm_size
            .as_deref()
            .map(|text| bytes("--shm-size", text))
            .transpose()?,
        ulimits: build.ulimits.clone(),
        cgroup_parent: build.cgroup_parent.clone(),
        limits: limits(build)?,
        steps: steps(build)?,
        secrets: secrets(&build.secrets)?,
        ssh,
        entitlements: entitlements(build),
        source_date_epoch,
        jobs: build.jobs,
        keep_going: build.keep_going,
        outputs: outputs(build, &tags)?,
        cache_from: build_cache::sources(&build.cache_from)?,
        cache_to: build_cache::targets(&build.cache_to, inline)?,
        tags,
        squash: build.squash,
        provenance,
        sbom,
        frontends: Some(Frontends(Arc::new(api_buildkit::Frontends))),
    };
    request.check_options()?;
    Ok((request, spool))
}

/// Reads `--network` as the engine knows it.
fn network(mode: &str) -> Result<String> {
    match mode {
        "" | "default" | "none" | "host" => Ok(mode.to_owned()),
        _ => bail!("invalid --network {mode:?}: there are default, none and host"),
    }
}

/// Returns the proxies that the user's Docker configuration gives to every build, as build arguments.
fn docker_proxies() -> Result<Vec<(String, String)>> {
    let folder = match std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => match std::env::var_os("HOME") {
            Some(home) => PathBuf::from(home).join(".docker"),
            None => return Ok(Vec::new()),
        },
    };
    let path = folder.join("config.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        // None, or none for this user to read: the login it may hold is asked for elsewhere, with words.
        return Ok(Vec::new());
    };
    proxies_of(&text).with_context(|| format!("failed to read {}", path.display()))
}

/// Reads `proxies.default`; each becomes a variable in both the cases that programs look for.
fn proxies_of(text: &str) -> Result<Vec<(String, String)>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let config: serde_json::Value = serde_json::from_str(text)?;
    let known = [
        ("httpProxy", "HTTP_PROXY"),
        ("httpsProxy", "HTTPS_PROXY"),
        ("ftpProxy", "FTP_PROXY"),
        ("noProxy", "NO_PROXY"),
        ("allProxy", "ALL_PROXY"),
    ];
    let mut proxies = Vec::new();
    for (field, name) in known {
        let value = config["proxies"]["default"][field].as_str();
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            proxies.push((name.to_owned(), value.to_owned()));
            proxies.push((name.to_lowercase(), value.to_owned()));
        }
    }
    Ok(proxies)
}

fn sources(build: &Build) -> Result<(Context, DockerfileSource, Option<TempPath>)> {
    let file = build.file.as_deref();
    let stdin_file = file == Some("-");
    if build.context == "-" {
        if stdin_file {
            bail!("the context and the Dockerfile cannot both come from standard input");
        }
        return from_stdin(file);
    }
    let context = context(&build.context)?;
    let dockerfile = match (file, &context) {
        (Some("-"), _) => DockerfileSource::Bytes {
            name: "Dockerfile".to_owned(),
            bytes: read_stdin()?,
        },
        (Some(file), _) if is_url(file) => DockerfileSource::Url(file.to_owned()),
        (Some(file), Context::Directory(_)) if Path::new(file).is_dir() => {
            bail!("invalid --file {file:?}: it is a directory; name the file in it")
        }
        (Some(file), Context::Directory(_)) => DockerfileSource::File(named_file(file)),
        // What is absolute is meant on this machine, as docker has it.
        (Some(file), Context::Git(_) | Context::Http(_)) if file.starts_with('/') => {
            DockerfileSource::File(PathBuf::from(file))
        }
        (Some(file), _) => DockerfileSource::InContext(file.to_owned()),
        (None, Context::Directory(directory)) => DockerfileSource::File(default_file(directory)),
        (None, _) => DockerfileSource::InContext("Dockerfile".to_owned()),
    };
    Ok((context, dockerfile, None))
}

/// Returns the file of a name; `dockerfile` where `Dockerfile` is asked for and only that is there.
fn named_file(file: &str) -> PathBuf {
    let path = PathBuf::from(file);
    match path.file_name().is_some_and(|name| name == "Dockerfile") && !path.exists() {
        true => default_file(path.parent().unwrap_or(Path::new(""))),
        false => path,
    }
}

/// Returns `Dockerfile`, or `dockerfile` where only that is there, as Docker has it.
pub(crate) fn default_file(directory: &Path) -> PathBuf {
    // "Dockerfile" for the one here, as everyone writes it.
    let directory = directory.strip_prefix(".").unwrap_or(directory);
    let usual = directory.join("Dockerfile");
    let lower = directory.join("dockerfile");
    match !usual.exists() && lower.exists() {
        true => lower,
        false => usual,
    }
}

fn is_fetched_by_ssh(context: &Context) -> bool {
    let Context::Git(url) = context else {
        return false;
    };
    let git = GitRef::parse(url).ok().filter(|git| !git.is_like_local);
    git.is_some_and(|git| git.remote.starts_with("ssh://") || !git.remote.contains("://"))
}

fn context(text: &str) -> Result<Context> {
    let path = PathBuf::from(text);
    if path.is_dir() {
        return Ok(Context::Directory(path));
    }
    match GitRef::parse(text) {
        Ok(_) => return Ok(Context::Git(text.to_owned())),
        Err(GitRefError::NotGit) => {}
        Err(error) => return Err(error).with_context(|| format!("invalid git context {text:?}")),
    }
    if is_url(text) {
        return Ok(Context::Http(text.to_owned()));
    }
    let meta = match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("failed to prepare the context: there is no directory {text:?}")
        }
        found => found.with_context(|| format!("failed to prepare the context: path {text:?}"))?,
    };
    if !meta.is_file() {
        bail!("the context {text:?} is neither a directory nor an archive");
    }
    let mut head = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(HEAD).read_to_end(&mut head))
        .with_context(|| format!("failed to read the context {text:?}"))?;
    if !engine::looks_like_archive(&head) {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        bail!(
            "the context {text:?} is a file, and no archive; give the directory, and name a Dockerfile with --file: \
             lapstrake build --file {text} {}",
            folder.display()
        );
    }
    Ok(Context::Tar(path))
}

fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// As many bytes as tell an archive from a Dockerfile.
const HEAD: u64 = 1024;

fn from_stdin(file: Option<&str>) -> Result<(Context, DockerfileSource, Option<TempPath>)> {
    if std::io::stdin().is_terminal() {
        bail!(
            "the context is to come from standard input, which is a terminal; pipe a tar or a Dockerfile into it"
        );
    }
    let mut bytes = Vec::new();
    let mut stdin = std::io::stdin().lock();
    stdin
        .by_ref()
        .take(HEAD)
        .read_to_end(&mut bytes)
        .context("failed to read standard input")?;
    if engine::looks_like_archive(&bytes) {
        let mut spool = tempfile::NamedTempFile::new().context("failed to keep the context")?;
        spool
            .write_all(&bytes)
            .context("failed to keep the context")?;
        std::io::copy(&mut stdin, &mut spool).context("failed to keep the context")?;
        let path = spool.into_temp_path();
        let dockerfile = DockerfileSource::InContext(file.unwrap_or("Dockerfile").to_owned());
        return Ok((Context::Tar(path.to_path_buf()), dockerfile, Some(path)));
    }
    if file.is_some() {
        bail!("standard input is no archive, so --file cannot name a file in it");
    }
    stdin
        .read_to_end(&mut bytes)
        .context("failed to read standard input")?;
    let name = "Dockerfile".to_owned();
    Ok((
        Context::Empty,
        DockerfileSource::Bytes { name, bytes },
        None,
    ))
}

pub(crate) fn read_stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .read_to_end(&mut bytes)
        .context("failed to read standard input")?;
    Ok(bytes)
}

/// Reads a name, which gets the tag `latest` if it has none.
pub(crate) fn reference(text: &str) -> Result<Reference> {
    let reference = Reference::parse_normalized(text)
        .with_context(|| format!("invalid tag {text:?}"))?
        .or_latest();
    if reference.digest().is_some() {
        bail!("invalid tag {text:?}: a name to give cannot have a digest");
    }
    Ok(reference)
}

fn pairs(option: &str, values: &[String]) -> Result<BTreeMap<String, String>> {
    values
        .iter()
        .map(|value| {
            let (key, value) = match value.split_once('=') {
                Some(("", _)) => bail!("invalid {option} {value:?}: it has no name"),
                Some(pair) => pair,
                None if option == "--label" => (value.as_str(), ""),
                None => bail!("invalid {option} {value:?}: it is not KEY=VALUE"),
            };
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Reads `NAME=VALUE`; a `NAME` alone is taken from the environment, or left out.
pub(crate) fn assignments(option: &str, values: &[String]) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for value in values {
        match value.split_once('=') {
            Some(("", _)) => bail!("invalid {option} {value:?}: it has no name"),
            Some((name, value)) => {
                found.insert(name.to_owned(), value.to_owned());
            }
            None => match std::env::var(value) {
                Ok(text) => {
                    found.insert(value.clone(), text);
                }
                Err(_) => {
                    found.remove(value);
                }
            },
        }
    }
    Ok(found)
}

fn platforms(values: &[String]) -> Result<Vec<Platform>> {
    let mut platforms = Vec::new();
    for value in values.iter().filter(|value| !value.is_empty()) {
        let platform: Platform = match value.as_str() {
            "local" => Platform::host(),
            text => text
                .parse()
                .with_context(|| format!("invalid platform {text:?}"))?,
        };
        let platform = platform.normalized();
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// Reads a number of bytes with Docker's units: `64m`, `1g`, `512`.
pub(crate) fn bytes(option: &str, text: &str) -> Result<u64> {
    let lower = text.trim().to_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match lower[digits.len()..]
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => bail!("invalid {option} {text:?}: use a number with b, k, m or g behind it"),
    };
    let number: f64 = digits
        .trim()
        .parse()
        .with_context(|| format!("invalid {option} {text:?}"))?;
    Ok((number * unit as f64) as u64)
}

/// Reads a number of processors, in thousandths.
pub(crate) fn processors(text: &str) -> Result<u64> {
    let number: f64 = text
        .parse()
        .with_context(|| format!("invalid --cpus {text:?}"))?;
    Ok((number * 1000.0) as u64)
}

fn limits(build: &Build) -> Result<engine::Limits> {
    let cpus = match (&build.cpus, build.cpu_quota) {
        (Some(text), _) => Some(processors(text)?),
        (None, Some(quota)) if quota > 0 => {
            Some(quota as u64 * 1000 / build.cpu_period.unwrap_or(100_000).max(1))
        }
        _ => None,
    };
    Ok(engine::Limits {
        memory: build
            .memory
            .as_deref()
            .map(|text| bytes("--memory", text))
            .transpose()?,
        memory_swap: match build.memory_swap.as_deref() {
            None | Some("-1") => None,
            Some(text) => Some(bytes("--memory-swap", text)?),
        },
        cpu_milli: cpus,
        cpu_shares: build.cpu_shares,
        cpuset_cpus: build.cpuset_cpus.clone(),
        cpuset_mems: build.cpuset_mems.clone(),
        pids: build.pids_limit.and_then(|limit| u64::try_from(limit).ok()),
        parent: build.cgroup_parent.clone(),
    })
}

fn steps(build: &Build) -> Result<StepOptions> {
    Ok(StepOptions {
        ca_bundle: build.ca_bundle.as_deref().map(ca_bundle),
        timeout: match build.step_timeout.as_deref() {
            None | Some("0") => None,
            Some(text) => {
                let seconds = duration(text).context("--step-timeout")?;
                Some(Duration::from_secs(seconds.unsigned_abs()))
            }
        },
        retries: build.retry,
        keep_failed: build.on_failure.is_some(),
    })
}

/// Reads a file's name, or the word for what this machine trusts.
pub(crate) fn ca_bundle(text: &str) -> CaBundle {
    match text {
        "host" => CaBundle::Host,
        path => CaBundle::File(expand_home(path)),
    }
}

fn secrets(values: &[String]) -> Result<BTreeMap<String, SecretSource>> {
    let mut secrets = BTreeMap::new();
    for value in values {
        let mut fields = fields(value)?;
        let kind = fields.remove("type");
        let source = fields.remove("src").or_else(|| fields.remove("source"));
        let variable = fields.remove("env");
        let id = fields.remove("id");
        if let Some(name) = fields.keys().next() {
            bail!("invalid --secret {value:?}: the field {name:?} is not known");
        }
        let id = id
            .or_else(|| source.clone())
            .with_context(|| format!("invalid --secret {value:?}: it has no id"))?;
        let from_environment = match kind.as_deref() {
            Some("env") => true,
            Some("file") => false,
            Some(kind) => bail!("invalid --secret {value:?}: there is no type {kind:?}"),
            // As docker has it: without a source, a variable of that name comes first.
            None => source.is_none() && (variable.is_some() || std::env::var_os(&id).is_some()),
        };
        let source = match (from_environment, source, variable) {
            (true, source, variable) => {
                SecretSource::Environment(variable.or(source).unwrap_or_else(|| id.clone()))
            }
            (false, Some(source), _) => SecretSource::File(expand_home(&source)),
            (false, None, Some(variable)) => SecretSource::Environment(variable),
            (false, None, None) => SecretSource::File(PathBuf::from(&id)),
        };
        if let SecretSource::File(path) = &source
            && !path.exists()
        {
            // Without a source the id is the name of a variable or of a file.
            let instead = match path.as_os_str() == id.as_str() {
                true => ", and no variable of that name; say src=FILE or env=NAME",
                false => "",
            };
            bail!(
                "invalid --secret {value:?}: there is no file {}{instead}",
                path.display()
            );
        }
        secrets.insert(id, source);
    }
    Ok(secrets)
}

fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    }
}

fn ssh(values: &[String]) -> BTreeMap<String, Vec<PathBuf>> {
    let read = |value: &String| match value.split_once('=') {
        Some((id, paths)) => (id.to_owned(), paths.split(',').map(PathBuf::from).collect()),
        None => (value.clone(), Vec::new()),
    };
    values.iter().map(read).collect()
}

fn entitlements(build: &Build) -> Vec<String> {
    build
        .allow
        .iter()
        .map(|text| text.trim().to_owned())
        .collect()
}

/// Reads `key=value,key=value`, with CSV's quotes.
pub(crate) fn fields(text: &str) -> Result<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    for field in split_csv(text) {
        let (key, value) = field.split_once('=').unwrap_or((&field, "true"));
        // What follows the dot is a key of the user's.
        let key = match key.trim().split_once('.') {
            Some((name, rest)) => format!("{}.{rest}", name.to_lowercase()),
            None => key.trim().to_lowercase(),
        };
        fields.insert(key, value.to_owned());
    }
    if fields.contains_key("") {
        bail!("{text:?} has a field without a name");
    }
    Ok(fields)
}

pub(crate) fn split_csv(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let last = fields.last_mut().expect("there is one field at least");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                last.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            character => last.push(character),
        }
    }
    fields
}

/// Reads what is true or false.
pub(crate) fn boolean(name: &str, text: &str) -> Result<bool> {
    match text.to_lowercase().as_str() {
        "true" | "1" | "t" => Ok(true),
        "false" | "0" | "f" => Ok(false),
        _ => bail!("{name}={text}: it is neither true nor false"),
    }
}

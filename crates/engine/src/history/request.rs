//! What is known of a build before it begins.

use std::path::{Path, PathBuf};

use oci::Timestamp;
use store::Store;

use super::hidden::Hidden;
use super::record::{BuildRecord, BuildStatus, RECORD_VERSION, RequestRecord};
use crate::request::{BuildRequest, Context, DockerfileSource, IgnoreCache, Output};

/// Returns the record of a build that is about to begin.
pub(crate) fn opening(store: &Store, request: &BuildRequest, started: Timestamp) -> BuildRecord {
    let request = request_record(&hider(store), request);
    BuildRecord {
        version: RECORD_VERSION,
        id: super::new_id(),
        name: name_of(&request),
        started,
        completed: None,
        status: BuildStatus::Running,
        request,
        dockerfile: None,
        sources: Vec::new(),
        steps: Vec::new(),
        warnings: Vec::new(),
        outputs: Vec::new(),
        errors: Vec::new(),
    }
}

/// Returns what hides values in the records of a store; its key is drawn once.
pub(super) fn hider(store: &Store) -> Hidden {
    let store = store.clone();
    Hidden::new(move || {
        let (space, name) = ("salt", b"hidden".as_slice());
        let known = store.recall(space, name).ok().flatten();
        if let Some(key) = known.and_then(|bytes| bytes.try_into().ok()) {
            return key;
        }
        let random = crate::plan::random();
        let key = std::array::from_fn(|index| random[index]);
        if let Err(error) = store.remember(space, [(name, key.as_slice())]) {
            tracing::warn!(%error, "the key of hidden values is not kept");
        }
        key
    })
}

fn request_record(hidden: &Hidden, request: &BuildRequest) -> RequestRecord {
    let context = match &request.context {
        Context::Directory(path) | Context::Tar(path) => absolute(path),
        Context::Empty => "-".to_owned(),
        Context::Git(url) | Context::Http(url) => oci::without_user_info(url).into_owned(),
    };
    let dockerfile = match &request.dockerfile {
        DockerfileSource::File(path) => absolute(path),
        DockerfileSource::InContext(path) => path.clone(),
        DockerfileSource::Url(url) => oci::without_user_info(url).into_owned(),
        DockerfileSource::Bytes { name, .. } => name.clone(),
    };
    let (no_cache, no_cache_filter) = match &request.ignore_cache {
        IgnoreCache::No => (false, Vec::new()),
        IgnoreCache::Stages(stages) => (false, stages.clone()),
        IgnoreCache::All => (true, Vec::new()),
    };
    let named_contexts = request.named_contexts.iter();
    RequestRecord {
        context,
        dockerfile,
        target: request.target.clone(),
        platforms: request.platforms.iter().map(ToString::to_string).collect(),
        build_args: request
            .build_args
            .iter()
            .map(|(name, value)| (name.clone(), hidden.value(name, value)))
            .collect(),
        labels: request.labels.clone(),
        named_contexts: named_contexts
            .map(|(name, value)| (name.clone(), oci::without_user_info(value).into_owned()))
            .collect(),
        tags: request
            .tags
            .iter()
            .map(|tag| tag.familiar().to_string())
            .collect(),
        no_cache,
        no_cache_filter,
        pull: request.pull,
        network: request.network.clone(),
        runtime: String::new(),
        caches: request.cache_from.iter().map(ToString::to_string).collect(),
        outputs: request.outputs.iter().map(kind_of_output).collect(),
        secrets: request.secrets.keys().cloned().collect(),
        source_date_epoch: request.source_date_epoch,
    }
}

fn kind_of_output(output: &Output) -> String {
    match output {
        Output::Image(image) if image.push && !image.store => "registry",
        Output::Image(_) => "image",
        Output::Oci(_) => "oci",
        Output::Docker(_) => "docker",
        Output::Local { .. } => "local",
        Output::Tar { .. } => "tar",
        Output::CacheOnly => "cacheonly",
    }
    .to_owned()
}

/// Returns a path by which the same place has the same name in every build.
fn absolute(path: &Path) -> String {
    let found = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // `.` and `..` as people write them; what they lead through may be gone.
    let mut clean = PathBuf::new();
    for part in found.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean.display().to_string()
}

/// Returns the name that buildx gives a build: where it comes from, and the target.
fn name_of(request: &RequestRecord) -> String {
    let context = request.context.as_str();
    let place = match context {
        "-" => String::new(),
        url if url.contains("://") => url.to_owned(),
        path => {
            let last = |path: &Path| {
                let name = path.file_name();
                name.map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default()
            };
            let file = Path::new(&request.dockerfile);
            let folder = file.parent().unwrap_or(Path::new(""));
            let below = file.is_absolute() && folder.starts_with(path) && folder != Path::new(path);
            let (folder, file) = match below || (file.is_absolute() && !folder.starts_with(path)) {
                true => (last(folder), last(file)),
                false => (last(Path::new(path)), last(file)),
            };
            match file.as_str() {
                "" | "Dockerfile" => folder,
                file => format!("{folder}/{file}"),
            }
        }
    };
    match (&request.target, place.as_str()) {
        (Some(target), "") => target.clone(),
        (Some(target), place) => format!("{place} ({target})"),
        (None, _) => place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_named_as_in_buildx() {
        let check = |context: &str, dockerfile: &str, target: Option<&str>, expected: &str| {
            let request = RequestRecord {
                context: context.to_owned(),
                dockerfile: dockerfile.to_owned(),
                target: target.map(str::to_owned),
                ..RequestRecord::default()
            };
            assert_eq!(name_of(&request), expected);
        };
        check("/a/app", "/a/app/Dockerfile", None, "app");
        check(
            "/a/app",
            "/a/app/Dockerfile",
            Some("client"),
            "app (client)",
        );
        check("/a/app", "/a/app/web/Dockerfile", None, "web");
        check(
            "/a/app",
            "/a/app/dev.Dockerfile",
            None,
            "app/dev.Dockerfile",
        );
        check("/a/app", "/b/c/Dockerfile", None, "c");
        check(
            "https://host/x.git",
            "Dockerfile",
            None,
            "https://host/x.git",
        );
        check("-", "Dockerfile", None, "");
        check("-", "Dockerfile", Some("t"), "t");
    }
}

//! The request that a result was made for.

use std::collections::{BTreeMap, BTreeSet};

use dockerfile::git::GitRef;
use serde_json::{Map, Value, json};

use crate::Sources;
use crate::sources::{commit_set, digest_set};
use crate::url::without_credentials;

/// What a frontend was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Empty where a graph was handed over.
    pub frontend: String,
    pub arguments: BTreeMap<String, String>,
    /// What made the inputs that were handed over, where that is known.
    pub inputs: BTreeMap<String, RequestRecord>,
    /// The request of the user, where this is another that its client made of it.
    pub root: Option<Box<RequestRecord>>,
}

/// A request, and where its instructions came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestRecord {
    pub config_source: ConfigSource,
    pub request: Request,
}

/// Where a build's instructions came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigSource {
    pub uri: String,
    pub digest: Option<Value>,
    /// The path of the Dockerfile.
    pub path: String,
}

/// Returns the arguments without those that are of the machine and of attestations, URLs without credentials.
pub fn filter_arguments(arguments: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let key = context_key(arguments);
    let arguments = arguments.iter().filter(|(name, _)| {
        !matches!(
            name.as_str(),
            "cgroup-parent" | "image-resolve-mode" | "platform" | "cache-imports"
        ) && !name.starts_with("attest:")
    });
    arguments
        .map(|(name, value)| {
            let is_url = name == key || name == "vcs:source" || name.starts_with("context:");
            let value = match is_url {
                true => without_credentials(value),
                false => value.clone(),
            };
            (name.clone(), value)
        })
        .collect()
}

fn context_key(arguments: &BTreeMap<String, String>) -> &str {
    match arguments.get("contextkey") {
        Some(key) if !key.is_empty() => key,
        _ => "context",
    }
}

impl Request {
    /// Whether anything was asked.
    pub fn is_empty(&self) -> bool {
        self.frontend.is_empty() && self.arguments.is_empty() && self.inputs.is_empty()
    }

    /// Separates where the instructions came from, among what the build took.
    pub fn record(mut self, sources: &Sources) -> RequestRecord {
        let mut config_source = ConfigSource::default();
        let key = context_key(&self.arguments).to_owned();
        if let Some(context) = self.arguments.get(&key).filter(|text| !text.is_empty()) {
            (config_source.uri, config_source.digest) = material_of(context, sources);
            self.arguments.remove(&key);
        }
        if let Some(name) = self
            .arguments
            .get("filename")
            .filter(|text| !text.is_empty())
        {
            config_source.path.clone_from(name);
            self.arguments.remove("filename");
        }
        RequestRecord {
            config_source,
            request: self,
        }
    }

    /// Leaves out arguments and labels, here and in all requests within; tells whether there were any.
    pub(crate) fn scrub(&mut self) -> bool {
        let before = self.arguments.len();
        self.arguments
            .retain(|name, _| !name.starts_with("build-arg:") && !name.starts_with("label:"));
        let mut scrubbed = self.arguments.len() != before;
        for input in self.inputs.values_mut() {
            scrubbed |= input.request.scrub();
        }
        if let Some(root) = &mut self.root {
            scrubbed |= root.request.scrub();
        }
        scrubbed
    }

    /// Leaves out arguments that are secret, here and in all requests within, and returns their names.
    pub(crate) fn take_secrets(&mut self, is_secret: fn(&str) -> bool) -> BTreeSet<String> {
        let mut taken = BTreeSet::new();
        self.arguments.retain(|name, _| {
            let argument = name
                .strip_prefix("build-arg:")
                .filter(|name| is_secret(name));
            taken.extend(argument.map(str::to_owned));
            argument.is_none()
        });
        for input in self.inputs.values_mut().chain(self.root.as_deref_mut()) {
            taken.extend(input.request.take_secrets(is_secret));
        }
        taken
    }

    /// Takes out what is told of a version control system.
    pub(crate) fn take_vcs(&mut self) -> BTreeMap<String, String> {
        let mut vcs = BTreeMap::new();
        self.arguments.retain(|name, value| {
            let Some(kind) = name.strip_prefix("vcs:") else {
                return true;
            };
            if !value.is_empty() {
                vcs.insert(kind.to_owned(), value.clone());
            }
            false
        });
        vcs
    }

    /// Returns the parameters; secrets, agents and directories are those of the build.
    pub(crate) fn parameters(&self, taken: Option<(&Sources, bool)>) -> Value {
        let mut object = Map::new();
        if !self.frontend.is_empty() {
            object.insert("frontend".to_owned(), json!(self.frontend));
        }
        if !self.arguments.is_empty() {
            object.insert("args".to_owned(), json!(self.arguments));
        }
        if let Some((sources, with_secrets)) = taken {
            for (name, uses) in [("secrets", &sources.secrets), ("ssh", &sources.ssh)] {
                if uses.is_empty() || !with_secrets {
                    continue;
                }
                let uses = uses.iter().map(|used| match used.optional {
                    true => json!({"id": used.id, "optional": true}),
                    false => json!({"id": used.id}),
                });
                object.insert(name.to_owned(), uses.collect());
            }
            if !sources.locals.is_empty() {
                let locals = sources.locals.iter().map(|name| json!({"name": name}));
                object.insert("locals".to_owned(), locals.collect());
            }
        }
        if !self.inputs.is_empty() {
            let inputs = self.inputs.iter();
            let inputs: Map<String, Value> = inputs
                .map(|(name, input)| (name.clone(), input.to_json()))
                .collect();
            object.insert("inputs".to_owned(), Value::Object(inputs));
        }
        if let Some(root) = &self.root {
            object.insert("root".to_owned(), root.to_json());
        }
        Value::Object(object)
    }
}

impl RequestRecord {
    /// Returns how much is told, in bytes: about what it takes in memory, with all requests within.
    pub fn weight(&self) -> usize {
        let arguments = self.request.arguments.iter();
        let own: usize = arguments
            .map(|(name, value)| name.len() + value.len())
            .sum();
        let within = self
            .request
            .inputs
            .values()
            .chain(self.request.root.as_deref());
        size_of::<Self>() + own + within.map(Self::weight).sum::<usize>()
    }

    fn to_json(&self) -> Value {
        json!({
            "configSource": self.config_source.to_json("path"),
            "request": self.request.parameters(None),
        })
    }
}

impl ConfigSource {
    /// `path` is the name of the member for the path.
    pub(crate) fn to_json(&self, path: &str) -> Value {
        let mut object = Map::new();
        if !self.uri.is_empty() {
            object.insert("uri".to_owned(), json!(self.uri));
        }
        if let Some(digest) = &self.digest {
            object.insert("digest".to_owned(), digest.clone());
        }
        if !self.path.is_empty() {
            object.insert(path.to_owned(), json!(self.path));
        }
        Value::Object(object)
    }
}

/// Returns the URI of a context, and its digest if it is among what the build took.
fn material_of(context: &str, sources: &Sources) -> (String, Option<Value>) {
    let context = without_credentials(context);
    if let Ok(git) = GitRef::parse(&context) {
        let folder = git.sub_dir.trim_matches('/');
        let repository = match git.reference.is_empty() {
            true => git.remote.clone(),
            false => format!("{}#{}", git.remote, git.reference),
        };
        let whole = match (git.reference.is_empty(), folder.is_empty()) {
            (_, true) => repository.clone(),
            (true, false) => format!("{repository}#:{folder}"),
            (false, false) => format!("{repository}:{folder}"),
        };
        let found = sources.git.iter().find(|known| known.url == repository);
        return (whole, found.map(|git| commit_set(&git.commit)));
    }
    let found = sources.http.iter().find(|known| known.url == context);
    let digest = found.map(|http| digest_set(&http.digest));
    (context, digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pairs: &[(&str, &str)]) -> Request {
        let pairs = pairs.iter();
        Request {
            frontend: "dockerfile.v0".to_owned(),
            arguments: pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Request::default()
        }
    }

    #[test]
    fn a_repository_is_where_the_instructions_came_from() {
        let mut sources = Sources::default();
        sources.add_git("https://u:p@h/r.git#v1", &"a".repeat(40));
        let record = request(&[
            ("context", "https://u:p@h/r.git#v1:src"),
            ("filename", "D"),
            ("target", "t"),
        ])
        .record(&sources);
        assert_eq!(
            record.config_source.uri,
            "https://xxxxx:xxxxx@h/r.git#v1:src"
        );
        assert!(record.config_source.digest.is_some());
        assert_eq!(record.config_source.path, "D");
        assert_eq!(record.request.arguments.len(), 1);
    }

    #[test]
    fn what_is_of_the_machine_is_filtered() {
        let given = request(&[
            ("platform", "linux/amd64"),
            ("attest:provenance", "mode=max"),
            ("context:foo", "https://u:p@h/x"),
            ("vcs:source", "https://u:p@h/r"),
            ("target", "t"),
        ]);
        let left = filter_arguments(&given.arguments);
        assert_eq!(left.len(), 3);
        assert_eq!(left["context:foo"], "https://xxxxx:xxxxx@h/x");
        assert_eq!(left["vcs:source"], "https://xxxxx:xxxxx@h/r");
    }

    #[test]
    fn arguments_are_scrubbed_in_all_requests() {
        let mut inner = request(&[("build-arg:A", "1"), ("target", "t")]);
        inner.root = Some(Box::new(
            request(&[("label:x", "1")]).record(&Sources::default()),
        ));
        let mut outer = request(&[("vcs:source", "https://h/"), ("vcs:revision", "")]);
        let vcs = outer.take_vcs();
        assert_eq!(vcs["source"], "https://h/");
        assert_eq!(vcs.len(), 1);
        outer
            .inputs
            .insert("in".to_owned(), inner.record(&Sources::default()));
        assert!(outer.scrub());
        assert!(!outer.scrub());
        assert_eq!(outer.inputs["in"].request.arguments.len(), 1);
    }
}

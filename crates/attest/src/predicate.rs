//! The predicate of provenance, as BuildKit writes it (SLSA provenance v1 and v0.2).

use std::collections::BTreeMap;

use llb::Graph;
use oci::{Descriptor, Platform, Timestamp};
use serde_json::{Map, Value, json};

use crate::request::RequestRecord;
use crate::steps::{source_of, steps};
use crate::{AttestError, Mode, Provenance, Request, Sources, Version};

const BUILD_TYPE_V1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_V02: &str = "https://mobyproject.org/buildkit@v1";

/// Chains of layers by the output of a step (`step0:0`).
pub type Layers = BTreeMap<String, Vec<Vec<Descriptor>>>;

/// What is known of a build.
#[derive(Debug)]
pub struct Build<'a> {
    pub request: &'a Request,
    /// Tidied.
    pub sources: &'a Sources,
    pub graph: &'a Graph,
    /// Names this build among all others.
    pub invocation: &'a str,
    pub started: Timestamp,
    pub finished: Timestamp,
    /// What the builder ran on.
    pub platform: &'a Platform,
    /// The version of the Dockerfile frontend, where it made the graph.
    pub frontend_version: Option<&'a str>,
    /// What whoever runs the builder says of it.
    pub environment: &'a Map<String, Value>,
    pub layers: &'a Layers,
    /// Tells by the name of a build argument whether its value is not for others.
    pub is_secret: fn(&str) -> bool,
}

/// Makes the predicate of a build.
///
/// Build arguments whose names say that they are secret are in neither mode: they are left out of the request, which is then
/// not told as a whole, and their values are starred where steps have them as variables.
pub fn predicate(wanted: &Provenance, build: &Build<'_>) -> Result<Value, AttestError> {
    let sources = build.sources;
    if wanted.complete_materials && !sources.is_complete() {
        return Err(AttestError::Incomplete {
            names: sources.locals.clone(),
        });
    }
    let RequestRecord {
        config_source,
        mut request,
    } = build.request.clone().record(sources);
    let vcs = request.take_vcs();
    let hidden = request.take_secrets(build.is_secret);
    let mut all_told = !request.frontend.is_empty() && hidden.is_empty();
    if wanted.mode == Mode::Min {
        all_told &= !request.scrub();
    }
    let is_max = wanted.mode == Mode::Max;
    let parameters = request.parameters(Some((sources, is_max)));
    let mut metadata = Map::new();
    if !vcs.is_empty() {
        metadata.insert("vcs".to_owned(), json!(vcs));
    }
    let mut config = None;
    if is_max {
        if let Some((steps, digests)) = steps(build.graph, &hidden) {
            config = Some(json!({"llbDefinition": steps, "digestMapping": digests}));
        }
        if let Some(source) = source_of(build.graph) {
            metadata.insert("source".to_owned(), source);
        }
        if !build.layers.is_empty() {
            metadata.insert("layers".to_owned(), json!(build.layers));
        }
    }
    let parts = Parts {
        config_source: &config_source,
        parameters,
        config,
        metadata: Value::Object(metadata),
        all_told,
        hermetic: sources.is_complete() && !sources.network_access,
    };
    Ok(match wanted.version {
        Version::V1 => parts.v1(wanted, build),
        Version::V02 => parts.v02(wanted, build),
    })
}

/// What both versions say, each in its own place.
struct Parts<'a> {
    config_source: &'a crate::ConfigSource,
    parameters: Value,
    config: Option<Value>,
    metadata: Value,
    /// The whole request is told.
    all_told: bool,
    hermetic: bool,
}

impl Parts<'_> {
    fn v1(self, wanted: &Provenance, build: &Build<'_>) -> Value {
        let mut internal = Map::new();
        if let Some(config) = self.config {
            internal.insert("buildConfig".to_owned(), config);
        }
        internal.insert(
            "builderPlatform".to_owned(),
            json!(build.platform.to_string()),
        );
        add_version(&mut internal, build);
        let mut definition = Map::new();
        definition.insert("buildType".to_owned(), json!(BUILD_TYPE_V1));
        definition.insert(
            "externalParameters".to_owned(),
            json!({"configSource": self.config_source.to_json("path"), "request": self.parameters}),
        );
        definition.insert("internalParameters".to_owned(), Value::Object(internal));
        let materials = build.sources.materials();
        if !materials.is_empty() {
            definition.insert("resolvedDependencies".to_owned(), Value::Array(materials));
        }
        let mut metadata = Map::new();
        metadata.insert("invocationId".to_owned(), json!(build.invocation));
        metadata.insert("startedOn".to_owned(), json!(build.started));
        metadata.insert("finishedOn".to_owned(), json!(build.finished));
        metadata.insert("buildkit_metadata".to_owned(), self.metadata);
        if self.hermetic {
            metadata.insert("buildkit_hermetic".to_owned(), json!(true));
        }
        metadata.insert(
            "buildkit_completeness".to_owned(),
            json!({"request": self.all_told, "resolvedDependencies": build.sources.is_complete()}),
        );
        if wanted.reproducible {
            metadata.insert("buildkit_reproducible".to_owned(), json!(true));
        }
        json!({
            "buildDefinition": definition,
            "runDetails": {"builder": {"id": wanted.builder_id}, "metadata": metadata},
        })
    }

    fn v02(self, wanted: &Provenance, build: &Build<'_>) -> Value {
        let mut environment = Map::new();
        environment.insert("platform".to_owned(), json!(build.platform.to_string()));
        add_version(&mut environment, build);
        let mut metadata = Map::new();
        metadata.insert("buildInvocationID".to_owned(), json!(build.invocation));
        metadata.insert("buildStartedOn".to_owned(), json!(build.started));
        metadata.insert("buildFinishedOn".to_owned(), json!(build.finished));
        metadata.insert(
            "completeness".to_owned(),
            json!({
                "parameters": self.all_told,
                "environment": true,
                "materials": build.sources.is_complete(),
            }),
        );
        metadata.insert("reproducible".to_owned(), json!(wanted.reproducible));
        metadata.insert(format!("{BUILD_TYPE_V02}#metadata"), self.metadata);
        if self.hermetic {
            metadata.insert(format!("{BUILD_TYPE_V02}#hermetic"), json!(true));
        }
        let mut predicate = Map::new();
        predicate.insert("builder".to_owned(), json!({"id": wanted.builder_id}));
        predicate.insert("buildType".to_owned(), json!(BUILD_TYPE_V02));
        let materials = build.sources.materials();
        if !materials.is_empty() {
            predicate.insert("materials".to_owned(), Value::Array(materials));
        }
        predicate.insert(
            "invocation".to_owned(),
            json!({
                "configSource": self.config_source.to_json("entryPoint"),
                "parameters": self.parameters,
                "environment": environment,
            }),
        );
        if let Some(config) = self.config {
            predicate.insert("buildConfig".to_owned(), config);
        }
        predicate.insert("metadata".to_owned(), Value::Object(metadata));
        Value::Object(predicate)
    }
}

fn add_version(object: &mut Map<String, Value>, build: &Build<'_>) {
    if let Some(version) = build.frontend_version {
        object.insert("dockerfileVersion".to_owned(), json!(version));
    }
    for (name, value) in build.environment {
        // What is known goes before what is said.
        if !object.contains_key(name) {
            object.insert(name.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llb::{Draft, GraphBuilder, Metadata, SourceOp};

    fn check(text: &str, see: impl FnOnce(&Value)) {
        let wanted = Provenance::parse(text).unwrap().unwrap();
        let mut builder = GraphBuilder::default();
        let source = SourceOp {
            identifier: "docker-image://docker.io/library/busybox:latest".to_owned(),
            ..SourceOp::default()
        };
        let output = builder.add(Draft {
            metadata: Metadata::named("base"),
            ..Draft::new(llb::Op::Source(source), Vec::new())
        });
        let graph = builder.finish(Some(output)).unwrap();
        let mut sources = Sources::default();
        sources.add_local("context");
        sources.add_secret("token", true);
        let arguments = [("build-arg:A", "1"), ("target", "t"), ("filename", "D")];
        let arguments = arguments.iter();
        let request = Request {
            frontend: "dockerfile.v0".to_owned(),
            arguments: arguments
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Request::default()
        };
        let build = Build {
            request: &request,
            sources: &sources,
            graph: &graph,
            invocation: "i",
            started: Timestamp::from_unix(1, 0).unwrap(),
            finished: Timestamp::from_unix(2, 0).unwrap(),
            platform: &"linux/amd64".parse().unwrap(),
            frontend_version: Some("1"),
            environment: &Map::new(),
            layers: &Layers::new(),
            is_secret: |name| name.ends_with("TOKEN"),
        };
        see(&predicate(&wanted, &build).unwrap());
    }

    #[test]
    fn secret_arguments_are_in_no_mode() {
        let mut builder = GraphBuilder::default();
        let mut op = llb::ExecOp::default();
        op.meta.args = vec!["make".to_owned()];
        op.meta.cwd = "/".to_owned();
        op.mounts = vec![llb::Mount {
            dest: "/".to_owned(),
            output: Some(0),
            ..llb::Mount::default()
        }];
        op.meta.env = vec!["TOKEN=hunter2".to_owned(), "A=1".to_owned()];
        let output = builder.add(Draft {
            metadata: Metadata::named("RUN make"),
            ..Draft::new(llb::Op::Exec(Box::new(op)), Vec::new())
        });
        let graph = builder.finish(Some(output)).unwrap();
        let request = |names: &[(&str, &str)]| Request {
            frontend: "dockerfile.v0".to_owned(),
            arguments: names
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Request::default()
        };
        let mut outer = request(&[("build-arg:TOKEN", "hunter2"), ("build-arg:A", "1")]);
        outer.root = Some(Box::new(RequestRecord {
            request: request(&[("build-arg:TOKEN", "hunter2")]),
            ..RequestRecord::default()
        }));
        for mode in ["mode=min", "mode=max", "mode=max,version=v0.2"] {
            let wanted = Provenance::parse(mode).unwrap().unwrap();
            let found = predicate(
                &wanted,
                &Build {
                    request: &outer,
                    sources: &Sources::default(),
                    graph: &graph,
                    invocation: "i",
                    started: Timestamp::from_unix(1, 0).unwrap(),
                    finished: Timestamp::from_unix(2, 0).unwrap(),
                    platform: &"linux/amd64".parse().unwrap(),
                    frontend_version: None,
                    environment: &Map::new(),
                    layers: &Layers::new(),
                    is_secret: |name| name == "TOKEN",
                },
            );
            let text = found.unwrap().to_string();
            assert!(!text.contains("hunter2"), "{text}");
            assert_eq!(text.contains("TOKEN=***"), mode != "mode=min", "{text}");
            assert_eq!(text.contains("\"A=1\""), mode != "mode=min", "{text}");
            let whole = match mode.contains("v0.2") {
                true => "\"parameters\":false",
                false => "\"request\":false",
            };
            assert!(text.contains(whole), "{text}");
        }
    }

    #[test]
    fn min_says_neither_arguments_nor_steps() {
        check("mode=min", |found| {
            let definition = &found["buildDefinition"];
            let external = &definition["externalParameters"];
            assert_eq!(external["request"]["args"], json!({"target": "t"}));
            assert_eq!(external["request"]["secrets"], Value::Null);
            assert_eq!(external["configSource"], json!({"path": "D"}));
            let internal = &definition["internalParameters"];
            assert_eq!(internal["buildConfig"], Value::Null);
            let completeness = &found["runDetails"]["metadata"]["buildkit_completeness"];
            assert_eq!(completeness["request"], json!(false));
        });
    }

    #[test]
    fn max_says_everything_in_both_versions() {
        check("mode=max", |found| {
            let definition = &found["buildDefinition"];
            let config = &definition["internalParameters"]["buildConfig"];
            let steps = config["llbDefinition"].as_array().unwrap();
            assert_eq!(steps.len(), 2);
            assert_eq!(steps[1]["inputs"], json!(["step0:0"]));
            assert_eq!(config["digestMapping"].as_object().unwrap().len(), 2);
            let request = &definition["externalParameters"]["request"];
            assert_eq!(request["locals"], json!([{"name": "context"}]));
            let metadata = &found["runDetails"]["metadata"];
            assert_eq!(metadata["buildkit_completeness"]["request"], json!(true));
            assert_eq!(metadata["startedOn"], json!("1970-01-01T00:00:01Z"));
        });
        check("version=v0.2", |found| {
            assert_eq!(
                found["invocation"]["configSource"]["entryPoint"],
                json!("D")
            );
            assert!(found["buildConfig"]["llbDefinition"].is_array());
            let metadata = &found["metadata"];
            assert_eq!(metadata["completeness"]["materials"], json!(false));
        });
    }

    #[test]
    fn complete_materials_refuse_directories() {
        let wanted = Provenance::parse("complete-materials=true")
            .unwrap()
            .unwrap();
        let mut sources = Sources::default();
        sources.add_local("context");
        let build = Build {
            request: &Request::default(),
            sources: &sources,
            graph: &Graph::scratch(),
            invocation: "",
            started: Timestamp::from_unix(0, 0).unwrap(),
            finished: Timestamp::from_unix(0, 0).unwrap(),
            platform: &Platform::host(),
            frontend_version: None,
            environment: &Map::new(),
            layers: &Layers::new(),
            is_secret: |_| false,
        };
        assert!(predicate(&wanted, &build).is_err());
    }
}

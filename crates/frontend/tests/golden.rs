//! Golden cases: `tests/golden/*.txt`, each with its options, a Dockerfile, and what comes of it.
//!
//! `GOLDEN=update cargo test -p frontend` writes the third part anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use dockerfile::{Diagnostic, Severity};
use frontend::{
    Answers, Lowering, MainContext, NamedContext, NoCache, Options, PlatformBuild, Request,
    ResolveMode, ResolvedImage, Step, Unresolved,
};
use oci::{Digest, History, ImageConfig, Platform, Reference};

const DOCKERFILE: &str = "--- Dockerfile\n";
const EXPECTED: &str = "--- expected\n";

#[test]
fn lowered_files_are_as_they_were() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    let update = std::env::var("GOLDEN").is_ok_and(|golden| golden == "update");
    let mut different = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let (input, expected) = text.split_once(EXPECTED).unwrap_or((&text, ""));
        let (options, dockerfile) = input.split_once(DOCKERFILE).unwrap();
        let found = Case::parse(options).lower(dockerfile);
        if update {
            fs::write(&path, format!("{input}{EXPECTED}{found}")).unwrap();
        } else if found != expected {
            println!("=== {}\n{}", path.display(), difference(expected, &found));
            different.push(path);
        }
    }
    assert!(different.is_empty(), "{different:?}");
}

/// Shows the first lines that differ.
fn difference(expected: &str, found: &str) -> String {
    let same = expected
        .lines()
        .zip(found.lines())
        .take_while(|(one, other)| one == other)
        .count();
    let part = |text: &str| {
        text.lines()
            .skip(same)
            .take(8)
            .collect::<Vec<_>>()
            .join("\n  ")
    };
    format!(
        "from line {}:\n- {}\n+ {}",
        same + 1,
        part(expected),
        part(found)
    )
}

/// What a case is given.
struct Case {
    options: Options,
    /// Configs of images by their full names; others are a stub.
    images: BTreeMap<String, ImageConfig>,
    /// What to show: `graph`, `config`, `contexts`, `stages`.
    show: Vec<String>,
}

impl Case {
    fn parse(text: &str) -> Self {
        let mut options = Options {
            filename: "Dockerfile".to_owned(),
            build_platforms: vec![Platform::new("linux", "amd64", "")],
            ..Options::default()
        };
        let mut images = BTreeMap::new();
        let mut show = vec!["graph".to_owned(), "config".to_owned()];
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (key, value) = line.split_once(": ").unwrap();
            let pair = || value.split_once('=').unwrap();
            match key {
                "target" => options.target = Some(value.to_owned()),
                "platform" => options.platforms.push(value.parse().unwrap()),
                "build-arg" => {
                    options
                        .build_args
                        .extend([(pair().0.to_owned(), pair().1.to_owned())]);
                }
                "label" => options
                    .labels
                    .extend([(pair().0.to_owned(), pair().1.to_owned())]),
                "no-cache" if value == "all" => options.no_cache = NoCache::All,
                "no-cache" => {
                    options.no_cache =
                        NoCache::Stages(value.split(',').map(str::to_owned).collect());
                }
                "ignore" => {
                    let ignore = value.split(' ').map(str::to_owned).collect();
                    options.context = MainContext::Local { ignore };
                }
                "git" => {
                    let url = value.to_owned();
                    options.context = MainContext::Git {
                        url,
                        keep_git_dir: false,
                    };
                }
                "archive" => {
                    options.context = MainContext::HttpArchive {
                        url: value.to_owned(),
                    }
                }
                "context" => {
                    let context = match pair().1.split_once(':').unwrap() {
                        ("image", name) => NamedContext::Image(name.to_owned()),
                        ("local", name) => NamedContext::Local {
                            name: name.to_owned(),
                            ignore: vec!["*.o".to_owned()],
                        },
                        ("layout", store) => NamedContext::OciLayout {
                            store: store.to_owned(),
                            digest: Digest::sha256_of(store.as_bytes()),
                        },
                        ("stage", name) => NamedContext::Stage(name.to_owned()),
                        (_, url) => NamedContext::Url(url.to_owned()),
                    };
                    options.named_contexts.insert(pair().0.to_owned(), context);
                }
                "run" => {
                    options.shm_size = 1 << 26;
                    options.hostname = "box".to_owned();
                    options.network = llb::NetworkMode::Host;
                    options.cgroup_parent = "/c".to_owned();
                    options.cache_namespace = value.to_owned();
                    options.ulimits = vec![llb::Ulimit {
                        name: "nofile".to_owned(),
                        soft: 10,
                        hard: -1,
                    }];
                    options.extra_hosts = vec![llb::HostIp {
                        host: "h".to_owned(),
                        ip: "10.0.0.1".to_owned(),
                    }];
                    options.resolve_mode = ResolveMode::Pull;
                }
                "image" => {
                    let reference = Reference::parse_normalized(pair().0).unwrap().or_latest();
                    let config = serde_json::from_str(pair().1).unwrap();
                    images.insert(reference.to_string(), config);
                }
                "show" => show = value.split(' ').map(str::to_owned).collect(),
                _ => panic!("unknown option {key}"),
            }
        }
        Self {
            options,
            images,
            show,
        }
    }

    fn lower(&self, dockerfile: &str) -> String {
        let ast = match dockerfile::parse(dockerfile.as_bytes()) {
            Ok(ast) => ast,
            Err(errors) => return diagnostics(&errors),
        };
        let stages = match ast.stages() {
            Ok(stages) => stages,
            Err(errors) => return diagnostics(&errors),
        };
        let mut lowering = Lowering::new(&ast, &stages, &self.options);
        let mut answers = Answers::default();
        let mut text = String::new();
        loop {
            match lowering.step(&answers) {
                Err(errors) => return text + &diagnostics(&errors),
                Ok(Step::Resolve(requests)) => {
                    for request in requests {
                        text.push_str(&self.answer(request, &mut answers));
                    }
                }
                Ok(Step::Done(lowered)) => {
                    for build in &lowered.builds {
                        self.show(build, &mut text);
                    }
                    return text;
                }
            }
        }
    }

    fn answer(&self, request: Request, answers: &mut Answers) -> String {
        match request {
            Request::Image(request) => {
                let text = format!("? {} for {}\n", request.name, request.platform);
                let mut config = ImageConfig::new(request.platform.clone());
                config.config.env.push("PATH=/bin".to_owned());
                config.rootfs.diff_ids.push(Digest::sha256_of(b"layer"));
                config.history.push(History {
                    created_by: "stub".to_owned(),
                    ..History::default()
                });
                let found = match self.images.get(&request.reference) {
                    Some(config) => Ok(config.clone()),
                    None if request.reference.contains("missing") => Err(Unresolved {
                        reason: "not found".to_owned(),
                        help: None,
                    }),
                    None => Ok(config),
                };
                let digest = Some(Digest::sha256_of(request.reference.as_bytes()));
                let found = found.map(|config| ResolvedImage {
                    reference: None,
                    digest,
                    config,
                });
                answers.images.insert(request, found);
                text
            }
            Request::SourceTime(request) => {
                let text = format!("? {} {}\n", request.name, request.identifier);
                answers
                    .source_times
                    .insert(request, Ok(Some(1_600_000_000)));
                text
            }
        }
    }

    fn show(&self, build: &PlatformBuild, text: &mut String) {
        let decoded = llb::Graph::decode_definition(&build.graph.encode_definition()).unwrap();
        assert_eq!(decoded.dump(), build.graph.dump());
        let _ = writeln!(text, "= {}", build.platform.full());
        for part in &self.show {
            match part.as_str() {
                "graph" => text.push_str(&build.graph.dump()),
                "config" => {
                    let config = oci::json::indented(&build.config).unwrap();
                    let _ = writeln!(text, "{}", String::from_utf8(config).unwrap());
                }
                "contexts" => {
                    for context in &build.contexts {
                        let _ = writeln!(text, "{context:?}");
                    }
                }
                "stages" => {
                    for stage in &build.stages {
                        let _ = writeln!(text, "{stage:?}");
                    }
                }
                _ => {}
            }
        }
    }
}

fn diagnostics(found: &[Diagnostic]) -> String {
    let mut text = String::new();
    for one in found {
        let severity = match one.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let _ = writeln!(
            text,
            "{severity}[{}] {:?}: {}",
            one.code,
            one.lines,
            one.full_message()
        );
        for label in &one.labels {
            let _ = writeln!(text, "  {:?} {}", label.span, label.text);
        }
        for line in one.notes.iter().chain(&one.helps) {
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

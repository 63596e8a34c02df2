//! Any bytes as a Dockerfile, lowered for one platform and for two: no panic, an end, and a graph whose wire form
//! says the same.
#![no_main]

use std::collections::BTreeMap;

use dockerfile::Diagnostic;
use frontend::{Answers, Lowering, NamedContext, Options, Request, ResolvedImage, Step};
use libfuzzer_sys::fuzz_target;
use llb::Graph;
use oci::{Digest, ImageConfig, Platform};

/// How often a lowering may ask. Each round brings images it did not know of; triggers name new ones.
const MOST_ROUNDS: usize = 16;

/// An image by its name: some have triggers.
fn image(reference: &str, platform: &Platform) -> Result<ResolvedImage, String> {
    if reference.contains("missing") {
        return Err("not found".to_owned());
    }
    let mut config = ImageConfig {
        platform: platform.clone(),
        ..ImageConfig::default()
    };
    config.config.env = vec!["PATH=/bin".to_owned(), "V=w".to_owned()];
    if reference.contains("onbuild") {
        config.config.on_build = vec![
            "RUN --mount=from=busybox,target=/m true".to_owned(),
            "COPY --from=b . /x$V".to_owned(),
        ];
    }
    Ok(ResolvedImage {
        reference: None,
        digest: Some(Digest::sha256_of(reference.as_bytes())),
        config,
    })
}

fn check_errors(source: &str, errors: &[Diagnostic]) {
    assert!(!errors.is_empty());
    for label in errors.iter().flat_map(|error| &error.labels) {
        assert!(source.get(label.span.start..label.span.end).is_some());
    }
}

fn lower(source: &[u8], options: &Options) {
    let Ok(ast) = dockerfile::parse(source) else { return };
    let Ok(stages) = ast.stages() else { return };
    let mut lowering = Lowering::new(&ast, &stages, options);
    let mut answers = Answers::default();
    for _ in 0..MOST_ROUNDS {
        match lowering.step(&answers) {
            Err(errors) => return check_errors(&ast.source, &errors),
            Ok(Step::Done(lowered)) => {
                for build in &lowered.builds {
                    let bytes = build.graph.encode_definition();
                    let decoded = Graph::decode_definition(&bytes).expect("our own definition is read");
                    assert_eq!(decoded.encode_definition(), bytes);
                    assert_eq!(decoded.vertices().len(), build.graph.vertices().len());
                }
                return;
            }
            Ok(Step::Resolve(requests)) => {
                assert!(!requests.is_empty());
                for request in requests {
                    match request {
                        Request::Image(asked) => {
                            let answer = image(&asked.reference, &asked.platform);
                            assert!(answers.images.insert(asked, answer).is_none());
                        }
                        Request::SourceTime(asked) => {
                            assert!(answers.source_times.insert(asked, Ok(Some(1))).is_none());
                        }
                    }
                }
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let amd64 = Platform::new("linux", "amd64", "");
    let one = Options {
        filename: "Dockerfile".to_owned(),
        build_platforms: vec![amd64.clone()],
        ..Options::default()
    };
    let several = Options {
        platforms: vec![amd64, Platform::new("linux", "arm64", "v8")],
        build_args: BTreeMap::from([("V".to_owned(), "given".to_owned())]),
        named_contexts: BTreeMap::from([(
            "b".to_owned(),
            NamedContext::Local {
                name: "b".to_owned(),
                ignore: vec!["x".to_owned()],
            },
        )]),
        ..one.clone()
    };
    lower(data, &one);
    lower(data, &several);
});

//! Frontends that are images, for builds that no client asks for: this process is the client.

use std::sync::Arc;

use engine::{EngineError, FailedVertex, FrontendCall, FrontendOutput, GraphFailure, RunFrontend};
use llb::{Position, Range, SourceFile};
use tonic::Code;

use crate::attestations::Wanted;
use crate::build::{Build, BuildParts, Trees};
use crate::caches;
use crate::error::Failure;
use crate::export;
use crate::policy::Policies;
use crate::scope::Producers;

/// Runs frontends over LLBBridge.
#[derive(Debug, Default)]
pub struct Frontends;

impl RunFrontend for Frontends {
    fn run(&self, call: FrontendCall<'_>) -> Result<FrontendOutput, GraphFailure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("frontend")
            .enable_all()
            .build()
            .map_err(|source| EngineError::Thread { source })?;
        let ran = run(call, runtime.handle().clone()).map_err(told);
        // What is left are calls of a frontend that has ended.
        runtime.shutdown_background();
        ran
    }
}

fn run(call: FrontendCall<'_>, runtime: tokio::runtime::Handle) -> Result<FrontendOutput, Failure> {
    let request = Arc::clone(&call.request);
    let build = Build::new(BuildParts {
        engine: call.engine.clone(),
        client: call.client,
        remote: None,
        runtime,
        cancel: call.cancel.clone(),
        limits: request.limits.clone(),
        part_of: Some((Arc::clone(&request), call.id.to_owned())),
        sink: call.sink.clone(),
        job: None,
        id: call.id.to_owned(),
        entitlements: request.entitlements.clone(),
        inputs: Default::default(),
        attestations: Wanted {
            provenance: request.provenance.clone(),
            sbom: request.sbom.clone(),
            mode: if request.pull { "pull" } else { "local" }.to_owned(),
            environment: Arc::default(),
        },
        caches: caches::Wanted::default(),
        frontend: "gateway.v0".to_owned(),
        attrs: call.attrs.clone(),
        producers: Arc::new(Producers::default()),
        policies: Policies::default(),
    });
    build.use_caches(call.caches);
    let build = Arc::new(build);
    let result = build.gateway(&call.attrs, Default::default(), &build.scope)?;
    let trees = export::trees(&build, &result)?;
    let graphs = result.trees.in_order(&trees);
    Ok(FrontendOutput {
        multi_platform: matches!(result.trees, Trees::ByPlatform(_)),
        trees: trees.into_iter().zip(graphs).collect(),
    })
}

/// Says of a failure what a build here says.
fn told(failure: Failure) -> GraphFailure {
    let error = match failure.code {
        Code::Cancelled => EngineError::Canceled,
        _ => EngineError::Request(failure.message.clone()),
    };
    GraphFailure {
        failed: vec![FailedVertex {
            digest: None,
            name: None,
            locations: failure
                .sources()
                .map(|source| {
                    let range = |(first, last)| Range {
                        start: at(first),
                        end: at(last),
                    };
                    let file = SourceFile {
                        filename: source.filename,
                        data: source.data.into(),
                        ..SourceFile::default()
                    };
                    (file, source.lines.into_iter().map(range).collect())
                })
                .collect(),
            error: Arc::new(error),
        }],
    }
}

fn at(line: u32) -> Position {
    Position { line, character: 0 }
}

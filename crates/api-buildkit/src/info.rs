//! Control's `Info` with what newer clients read of it and the generated types do not have.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bollard_buildkit_proto::moby::buildkit::v1::InfoRequest;
use bollard_buildkit_proto::moby::buildkit::v1::types::BuildkitVersion;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::attestations::FRONTEND_VERSION;

const PATH: &str = "/moby.buildkit.v1.Control/Info";

/// Answers `Info` itself, and leaves all else to the service within.
#[derive(Debug, Clone)]
pub(crate) struct WithInfo<S> {
    pub(crate) inner: S,
    pub(crate) version: BuildkitVersion,
}

/// `BuildkitVersion` of BuildKit 0.32.
#[derive(Clone, PartialEq, prost::Message)]
struct Version {
    #[prost(string, tag = "1")]
    package: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, tag = "3")]
    revision: String,
    #[prost(string, tag = "4")]
    dockerfile_version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    version: Option<Version>,
}

struct Answer(BuildkitVersion);

impl UnaryService<InfoRequest> for Answer {
    type Response = InfoResponse;
    type Future = std::future::Ready<Result<Response<InfoResponse>, Status>>;

    fn call(&mut self, _request: Request<InfoRequest>) -> Self::Future {
        let version = self.0.clone();
        std::future::ready(Ok(Response::new(InfoResponse {
            version: Some(Version {
                package: version.package,
                version: version.version,
                revision: version.revision,
                dockerfile_version: FRONTEND_VERSION.to_owned(),
            }),
        })))
    }
}

impl<S> Service<http::Request<Body>> for WithInfo<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != PATH {
            return Box::pin(self.inner.call(request));
        }
        let answer = Answer(self.version.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<InfoResponse, InfoRequest>::default());
            Ok(grpc.unary(answer, request).await)
        })
    }
}

impl<S: NamedService> NamedService for WithInfo<S> {
    const NAME: &'static str = S::NAME;
}

//! A client that decides about sources.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bollard_buildkit_proto::moby::buildkit::v1::frontend as pbf;
use bollard_buildkit_proto::pb;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

pub(crate) const METHOD: &str =
    "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";

/// Is told what a source is, and answers.
pub type Verify = dyn Fn(pbf::ResolveSourceMetaResponse) -> Answer + Send + Sync;

/// What it answers with.
#[derive(Clone)]
pub struct Verifier(pub Arc<Verify>);

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Question {
    #[prost(message, optional, tag = "2")]
    pub source: Option<pbf::ResolveSourceMetaResponse>,
}

/// A decision, or a question back.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    #[prost(message, optional, tag = "1")]
    pub decision: Option<Decision>,
    #[prost(message, optional, tag = "2")]
    pub request: Option<pbf::ResolveSourceMetaRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Decision {
    /// 0 allows, 1 denies, 2 converts.
    #[prost(int32, tag = "1")]
    pub action: i32,
    #[prost(message, repeated, tag = "2")]
    pub messages: Vec<Said>,
    #[prost(message, optional, tag = "3")]
    pub update: Option<pb::SourceOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Said {
    #[prost(string, tag = "1")]
    pub message: String,
}

impl UnaryService<Question> for Verifier {
    type Response = Answer;
    type Future = Ready<Result<Response<Answer>, Status>>;

    fn call(&mut self, request: Request<Question>) -> Self::Future {
        let told = request.into_inner().source.unwrap_or_default();
        ready(Ok(Response::new((self.0)(told))))
    }
}

impl tower::Service<http::Request<Body>> for Verifier {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<Answer, Question>::default();
            Ok(Grpc::new(codec).unary(service, request).await)
        })
    }
}

impl NamedService for Verifier {
    const NAME: &'static str = "moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier";
}

//! Source policies that a client decides by: it is asked about each source, over its session.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use bollard_buildkit_proto::moby::buildkit::v1::frontend as pbf;
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::PolicyAction;
use bollard_buildkit_proto::pb;
use http::uri::PathAndQuery;
use serde_json::json;
use tokio::runtime::Handle;
use tonic::Request;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use crate::build::Build;
use crate::error::Failure;
use crate::policy::Source;
use crate::scope::Scope;
use crate::session::Session;
use crate::source_meta;

const METHOD: &str = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";
/// How often a client may ask back about one source.
const MOST_QUESTIONS: usize = 10;

/// A client that decides.
#[derive(Debug)]
pub(crate) struct Verifier {
    session: Arc<Session>,
    runtime: Handle,
    /// Whose sources they are; set once that is made.
    build: OnceLock<Weak<Build>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CheckPolicyRequest {
    #[prost(message, optional, tag = "1")]
    platform: Option<pb::Platform>,
    #[prost(message, optional, tag = "2")]
    source: Option<pbf::ResolveSourceMetaResponse>,
    #[prost(map = "string, bool", tag = "3")]
    caps: HashMap<String, bool>,
}

/// One of both.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckPolicyResponse {
    #[prost(message, optional, tag = "1")]
    decision: Option<Decision>,
    #[prost(message, optional, tag = "2")]
    request: Option<pbf::ResolveSourceMetaRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Decision {
    #[prost(enumeration = "PolicyAction", tag = "1")]
    action: i32,
    #[prost(message, repeated, tag = "2")]
    messages: Vec<DenyMessage>,
    #[prost(message, optional, tag = "3")]
    update: Option<pb::SourceOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DenyMessage {
    #[prost(string, tag = "1")]
    message: String,
}

impl Verifier {
    /// Lets the client at the end of a session decide.
    pub(crate) fn new(session: Arc<Session>, runtime: Handle) -> Result<Self, Failure> {
        if !session.supports(METHOD) {
            let message =
                "the session that is to decide about sources does not: it has no PolicyVerifier";
            return Err(Failure::unknown(message));
        }
        Ok(Self {
            session,
            runtime,
            build: OnceLock::new(),
        })
    }

    /// Says whose sources they are, for questions about them.
    pub(crate) fn belongs_to(&self, build: &Arc<Build>) {
        let _ = self.build.set(Arc::downgrade(build));
    }

    /// Returns what is taken in the place of a source, `None` for itself. Blocks.
    pub(crate) fn decide(
        &self,
        source: &Source,
        platform: Option<&pb::Platform>,
    ) -> Result<Option<Source>, Failure> {
        let op = pb::SourceOp {
            identifier: source.identifier.clone(),
            attrs: source.attrs.clone().into_iter().collect(),
        };
        let mut asked = CheckPolicyRequest {
            platform: platform.cloned(),
            source: Some(pbf::ResolveSourceMetaResponse {
                source: Some(op.clone()),
                ..pbf::ResolveSourceMetaResponse::default()
            }),
            caps: HashMap::new(),
        };
        for _ in 0..=MOST_QUESTIONS {
            let answer = self.runtime.block_on(self.ask(asked.clone()))?;
            if let Some(question) = answer.request {
                if question.source.as_ref() != Some(&op) {
                    return Err(Failure::unknown(format!(
                        "the policy asks about another source than {:?}",
                        op.identifier
                    )));
                }
                let told = self.look_up(question).map_err(|failure| {
                    failure.context("error resolving source metadata from policy request")
                })?;
                asked.source = Some(told);
                continue;
            }
            let decision = answer
                .decision
                .ok_or_else(|| Failure::unknown("no decision in policy response"))?;
            return decided(source, decision);
        }
        Err(Failure::unknown("too many policy requests"))
    }

    async fn ask(&self, asked: CheckPolicyRequest) -> Result<CheckPolicyResponse, Failure> {
        let mut grpc = Grpc::new(self.session.channel());
        grpc.ready()
            .await
            .map_err(|error| Failure::unknown(format!("the client is gone: {error}")))?;
        let codec = ProstCodec::<CheckPolicyRequest, CheckPolicyResponse>::default();
        let path = PathAndQuery::from_static(METHOD);
        let answer = grpc.unary(Request::new(asked), path, codec).await?;
        Ok(answer.into_inner())
    }

    fn look_up(
        &self,
        question: pbf::ResolveSourceMetaRequest,
    ) -> Result<pbf::ResolveSourceMetaResponse, Failure> {
        let image = question.image.as_ref();
        let signed = |image: &pbf::ResolveSourceImageRequest| {
            image.attestation_chain || !image.resolve_attestations.is_empty()
        };
        let http = question.http.as_ref();
        // To leave it out would read as if there were none.
        let unsupported = match () {
            () if image.is_some_and(signed) => "attestations of an image",
            () if http.is_some_and(|http| http.checksum_request.is_some()) => {
                "checksums of another kind"
            }
            () => "",
        };
        if !unsupported.is_empty() {
            return Err(Failure::unsupported(format!(
                "what the policy asks for, {unsupported},"
            )));
        }
        let build = self.build.get().and_then(Weak::upgrade);
        let build = build.ok_or_else(|| Failure::unknown("the build has ended"))?;
        // What is only looked at is no part of the result.
        let scope = Scope::new(attest::Request::default());
        source_meta::of(&build, &scope, question)
    }
}

fn decided(source: &Source, decision: Decision) -> Result<Option<Source>, Failure> {
    let (action, name) = match PolicyAction::try_from(decision.action) {
        Ok(PolicyAction::Allow) => return Ok(None),
        Ok(PolicyAction::Convert) => {
            let update = decision
                .update
                .ok_or_else(|| Failure::unknown("convert action requires updated source"))?;
            return Ok(Some(Source::new(&update.identifier, update.attrs)));
        }
        Ok(PolicyAction::Deny) => (PolicyAction::Deny as i32, "DENY".to_owned()),
        Err(_) => (decision.action, decision.action.to_string()),
    };
    let failure = Failure::unknown(format!(
        "source {:?} not allowed by policy: action {name}",
        source.identifier
    ));
    if decision.messages.is_empty() {
        return Err(failure);
    }
    let messages = decision.messages.into_iter();
    let messages: Vec<_> = messages
        .map(|said| json!({"message": said.message}))
        .collect();
    let detail = json!({"action": action, "denyMessages": messages});
    Err(failure.with_detail("policysession.DecisionResponse+json", detail))
}

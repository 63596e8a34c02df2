//! What one frontend has of the build it belongs to, and its results in the words of the wire.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{self as pbf, result};
use bollard_buildkit_proto::pb;
use tokio::sync::watch;

use crate::build::{Build, FrontendRequest, FrontendResult, Said, SaidKind, Tree, Trees};
use crate::containers::Containers;
use crate::error::Failure;
use crate::scope::Scope;

/// A frontend that calls LLBBridge: a client's own, or one that is an image.
pub(crate) struct Bridge {
    pub(crate) build: Arc<Build>,
    /// What it is asked for.
    pub(crate) scope: Arc<Scope>,
    pub(crate) inputs: BTreeMap<String, pb::Definition>,
    /// What it came to.
    pub(crate) returned: watch::Sender<Option<Result<FrontendResult, Failure>>>,
    pub(crate) containers: Containers,
}

impl Bridge {
    pub(crate) fn new(
        build: &Arc<Build>,
        scope: &Arc<Scope>,
        inputs: BTreeMap<String, pb::Definition>,
    ) -> Arc<Self> {
        Arc::new(Self {
            build: Arc::clone(build),
            scope: Arc::clone(scope),
            inputs,
            returned: watch::channel(None).0,
            containers: Containers::default(),
        })
    }

    /// Carries out a request of the frontend. Blocks.
    pub(crate) fn solve(&self, request: FrontendRequest) -> Result<FrontendResult, Failure> {
        self.build.solve(request, &self.scope)
    }

    /// Takes what the frontend came to; the first word counts.
    pub(crate) fn set_result(
        &self,
        result: Result<FrontendResult, Failure>,
    ) -> Result<(), Failure> {
        let is_first = self.returned.send_if_modified(|returned| {
            let is_first = returned.is_none();
            if is_first {
                *returned = Some(result);
            }
            is_first
        });
        match is_first {
            true => Ok(()),
            false => Err(Failure::unknown("gateway result is already set")),
        }
    }
}

pub(crate) fn sorted<V>(map: HashMap<String, V>) -> BTreeMap<String, V> {
    map.into_iter().collect()
}

pub(crate) fn to_wire(
    build: &Build,
    result: &FrontendResult,
    with_definitions: bool,
) -> pbf::Result {
    let named = |tree: &Option<Arc<Tree>>| match tree {
        None => pbf::Ref::default(),
        Some(tree) => pbf::Ref {
            id: build.register(tree),
            def: Some(tree.definition.clone()),
        },
    };
    let trees = match (&result.trees, with_definitions) {
        (Trees::One(tree), true) => result::Result::Ref(named(tree)),
        (Trees::One(tree), false) => result::Result::RefDeprecated(named(tree).id),
        (Trees::ByPlatform(trees), true) => result::Result::Refs(pbf::RefMap {
            refs: trees
                .iter()
                .map(|(id, tree)| (id.clone(), named(tree)))
                .collect(),
        }),
        (Trees::ByPlatform(trees), false) => {
            result::Result::RefsDeprecated(pbf::RefMapDeprecated {
                refs: trees
                    .iter()
                    .map(|(id, tree)| (id.clone(), named(tree).id))
                    .collect(),
            })
        }
    };
    let attestations = result.attestations.iter().map(|(id, list)| {
        let list = list.iter().map(|said| pbf::Attestation {
            kind: match said.kind {
                SaidKind::Predicate => pbf::AttestationKind::InToto as i32,
                SaidKind::Statements => pbf::AttestationKind::Bundle as i32,
            },
            metadata: said.metadata.clone().into_iter().collect(),
            r#ref: Some(named(&said.tree)),
            path: said.path.clone(),
            in_toto_predicate_type: said.predicate_type.clone(),
            in_toto_subjects: Vec::new(),
        });
        let list = pbf::Attestations {
            attestation: list.collect(),
        };
        (id.clone(), list)
    });
    pbf::Result {
        metadata: result.metadata.clone().into_iter().collect(),
        attestations: attestations.collect(),
        result: Some(trees),
    }
}

pub(crate) fn from_wire(build: &Build, result: pbf::Result) -> Result<FrontendResult, Failure> {
    let trees = match result.result {
        None => Trees::One(None),
        Some(result::Result::RefDeprecated(id)) => Trees::One(build.tree(&id)?),
        Some(result::Result::Ref(named)) => Trees::One(build.tree(&named.id)?),
        Some(result::Result::RefsDeprecated(map)) => Trees::ByPlatform(
            sorted(map.refs)
                .into_iter()
                .map(|(platform, id)| Ok((platform, build.tree(&id)?)))
                .collect::<Result<_, Failure>>()?,
        ),
        Some(result::Result::Refs(map)) => Trees::ByPlatform(
            sorted(map.refs)
                .into_iter()
                .map(|(platform, named)| Ok((platform, build.tree(&named.id)?)))
                .collect::<Result<_, Failure>>()?,
        ),
    };
    let mut attestations = BTreeMap::new();
    for (id, list) in result.attestations {
        let list = list.attestation.into_iter().map(|said| {
            Ok(Said {
                kind: match said.kind() {
                    pbf::AttestationKind::InToto => SaidKind::Predicate,
                    pbf::AttestationKind::Bundle => SaidKind::Statements,
                },
                metadata: sorted(said.metadata),
                tree: match said.r#ref {
                    None => None,
                    Some(named) => build.tree(&named.id)?,
                },
                path: said.path,
                predicate_type: said.in_toto_predicate_type,
            })
        });
        attestations.insert(id, list.collect::<Result<Vec<_>, Failure>>()?);
    }
    Ok(FrontendResult {
        trees,
        metadata: sorted(result.metadata),
        attestations,
    })
}

pub(crate) fn existing(build: &Build, id: &str) -> Result<Arc<Tree>, Failure> {
    build
        .tree(id)?
        .ok_or_else(|| Failure::unknown(format!("empty ref: {id}")))
}

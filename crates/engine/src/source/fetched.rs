//! Sources that are fetched from elsewhere: files behind URLs, git repositories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use llb::{Op, SourceOp, VertexId};
use progress::{RunningVertex, Sink, Vertex};
use store::{Key, Layer};

use super::git::{self, GitTree};
use super::git_program::GitAccess;
use super::http::{self, HttpFile};
use crate::EngineError;
use crate::keys::KeyBuilder;
use crate::step::Shared;

/// How many sources one build asks for at once.
const MOST_AT_ONCE: usize = 8;

/// A source pinned to its content.
#[derive(Debug, Clone)]
pub(crate) enum Fetched {
    Http(HttpFile),
    Git(GitTree),
}

/// Whether a source is one of these.
pub(crate) fn is_fetched(source: &SourceOp) -> bool {
    let scheme = source.identifier.split("://").next();
    matches!(scheme, Some("http" | "https" | "git")) && !http::is_upload(source)
}

impl Fetched {
    /// Finds out what a source is now.
    pub(crate) fn pin(
        shared: &Shared,
        access: &GitAccess,
        source: &SourceOp,
        running: &RunningVertex,
    ) -> Result<Self, EngineError> {
        match source.identifier.starts_with("git://") {
            true => git::pin(access, source, running).map(Self::Git),
            false => http::pin(shared, access.cancels(), source, running).map(Self::Http),
        }
    }

    /// Returns the key of what it is.
    pub(crate) fn operation_key(&self) -> Key {
        let key = match self {
            Self::Http(file) => KeyBuilder::new("http").part("file", file.identity().as_bytes()),
            Self::Git(tree) => KeyBuilder::new("git").part("tree", tree.identity().as_bytes()),
        };
        key.finish()
    }

    /// Returns what it is, in a name and a word for people.
    pub(crate) fn content(&self) -> (&'static str, String) {
        match self {
            Self::Http(file) => ("file", file.digest.to_string()),
            Self::Git(tree) => ("commit", tree.commit().to_owned()),
        }
    }

    /// Makes its tree.
    pub(crate) fn unpack(
        &self,
        shared: &Shared,
        access: &GitAccess,
        running: &RunningVertex,
    ) -> Result<Vec<Layer>, EngineError> {
        match self {
            Self::Http(file) => file.unpack(shared),
            Self::Git(tree) => tree.unpack(shared, access, running),
        }
    }

    /// Returns the time of a source as [`Fetched::time`] does, or the latest one of an archive's files.
    pub(crate) fn own_time(
        &self,
        shared: &Shared,
        access: &GitAccess,
        running: &RunningVertex,
    ) -> Result<Option<i64>, EngineError> {
        match (self.time(access, running)?, self) {
            (None, Self::Http(file)) => file.latest_in_archive(shared, access.cancels()),
            (time, _) => Ok(time),
        }
    }

    /// Returns the time of a source, in seconds since 1970: of a commit, or of a file whose server says so.
    pub(crate) fn time(
        &self,
        access: &GitAccess,
        running: &RunningVertex,
    ) -> Result<Option<i64>, EngineError> {
        match self {
            Self::Http(file) => Ok(file.modified()),
            Self::Git(tree) => tree.time(access, running).map(Some),
        }
    }
}

/// A source that was pinned before there was a graph, so that the graph means the same.
#[derive(Debug, Clone)]
pub(crate) struct PinnedSource {
    pub(crate) source: SourceOp,
    pub(crate) fetched: Fetched,
}

/// Pins all fetched sources that a graph names, at once.
pub(crate) fn pin_all(
    shared: &Arc<Shared>,
    access: &GitAccess,
    known: Option<&PinnedSource>,
    graph: &llb::Graph,
    sink: &Sink,
) -> Result<BTreeMap<VertexId, Fetched>, (VertexId, EngineError)> {
    let pin_one = |vertex: &llb::Vertex, source: &SourceOp| {
        if let Some(known) = known.filter(|known| known.source == *source) {
            return Ok((vertex.id(), known.fetched.clone()));
        }
        let name = match vertex.metadata().name.as_str() {
            "" => source.identifier.clone(),
            name => name.to_owned(),
        };
        let running = sink.vertex(Vertex::new(vertex.id().digest(), name)).start();
        let found = Fetched::pin(shared, access, source, &running);
        running.conclude(&found, |error| error.to_string());
        match found {
            Ok(found) => Ok((vertex.id(), found)),
            Err(error) => Err((vertex.id(), error)),
        }
    };
    let sources: Vec<_> = graph
        .vertices()
        .iter()
        .filter_map(|vertex| match vertex.op() {
            Op::Source(source) if is_fetched(source) => Some((vertex, source)),
            _ => None,
        })
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..sources.len().min(MOST_AT_ONCE))
            .map(|_| {
                scope.spawn(|| {
                    let mut found = Vec::new();
                    while let Some((vertex, source)) =
                        sources.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        match pin_one(vertex, source) {
                            Ok(one) => found.push(one),
                            Err(failed) => {
                                // The others begin nothing more.
                                next.store(sources.len(), Ordering::Relaxed);
                                return Err(failed);
                            }
                        }
                    }
                    Ok(found)
                })
            })
            .collect();
        let mut all = BTreeMap::new();
        for thread in threads {
            all.extend(thread.join().expect("fetching does not panic")?);
        }
        Ok(all)
    })
}

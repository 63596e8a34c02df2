//! Who asked for what, and what it took: the provenance of results while a build is under way.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use attest::{ImageSource, Request, RequestRecord, Sources, filter_arguments};
use bollard_buildkit_proto::pb;
use engine::Taken;
use llb::{Graph, VertexId};
use prost::Message;

/// Bytes of what is told of the inputs of a request: inputs have inputs, and a client that hands over what it got
/// doubles them each time.
const MOST_OF_INPUTS: usize = 1 << 20;

/// One request to a frontend, or all that a client's own frontend does.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) request: Request,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    images: Vec<ImageSource>,
    locals: Vec<String>,
    /// What solved trees took, by the trees' numbers.
    trees: Vec<(u64, Taken)>,
    within: Vec<Arc<Scope>>,
}

impl Scope {
    pub(crate) fn new(request: Request) -> Arc<Self> {
        Arc::new(Self {
            request,
            noted: Mutex::default(),
        })
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    /// Adds the scope of a request that was made within this one.
    pub(crate) fn add(&self, inner: &Arc<Scope>) {
        self.noted().within.push(Arc::clone(inner));
    }

    pub(crate) fn add_image(&self, image: ImageSource) {
        self.noted().images.push(image);
    }

    pub(crate) fn add_local(&self, name: &str) {
        self.noted().locals.push(name.to_owned());
    }

    pub(crate) fn add_tree(&self, number: u64, taken: &Taken) {
        self.noted().trees.push((number, taken.clone()));
    }

    /// Returns all images that were asked about, here and within.
    pub(crate) fn images(&self) -> Vec<ImageSource> {
        let noted = self.noted();
        let mut images = noted.images.clone();
        for inner in &noted.within {
            images.extend(inner.images());
        }
        images
    }

    /// Adds what was taken beside the trees that are the result.
    pub(crate) fn add_sources(&self, sources: &mut Sources, result: &[u64]) {
        let noted = self.noted();
        for name in &noted.locals {
            sources.add_local(name);
        }
        for (number, taken) in &noted.trees {
            if !result.contains(number) {
                sources.merge(taken.sources());
            }
        }
        for inner in &noted.within {
            inner.add_sources(sources, result);
        }
    }
}

/// The requests that results were made for, by the results: a client may hand them to another request as inputs.
#[derive(Debug, Default)]
pub(crate) struct Producers {
    known: Mutex<HashMap<VertexId, Vec<(u64, RequestRecord)>>>,
}

/// Forgets what a build has made once it ends.
#[derive(Debug)]
pub(crate) struct Produced {
    producers: Arc<Producers>,
    numbers: Mutex<Vec<(VertexId, u64)>>,
}

impl Producers {
    fn table(&self) -> MutexGuard<'_, HashMap<VertexId, Vec<(u64, RequestRecord)>>> {
        self.known
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    pub(crate) fn of_build(self: &Arc<Self>) -> Produced {
        Produced {
            producers: Arc::clone(self),
            numbers: Mutex::default(),
        }
    }

    /// Returns what made inputs, where that is known and there is but one answer.
    fn lookup(&self, inputs: &BTreeMap<String, pb::Definition>) -> BTreeMap<String, RequestRecord> {
        let find = |definition: &pb::Definition| {
            let graph = Graph::decode_definition(&definition.encode_to_vec()).ok()?;
            let id = head(&graph)?;
            let table = self.table();
            let mut records = table.get(&id)?.iter().map(|(_, record)| {
                let mut record = record.clone();
                record.request.root = None;
                record
            });
            let first = records.next()?;
            records.all(|record| record == first).then_some(first)
        };
        let mut left = MOST_OF_INPUTS;
        let found = inputs.iter();
        found
            .filter_map(|(name, definition)| {
                let record = find(definition)?;
                left = left.checked_sub(record.weight())?;
                Some((name.clone(), record))
            })
            .collect()
    }

    /// Returns what is told of a request.
    pub(crate) fn request(
        &self,
        frontend: &str,
        attrs: &BTreeMap<String, String>,
        inputs: &BTreeMap<String, pb::Definition>,
    ) -> Request {
        Request {
            frontend: frontend.to_owned(),
            arguments: filter_arguments(attrs),
            inputs: self.lookup(inputs),
            root: None,
        }
    }
}

impl Produced {
    /// Notes what a result was made for.
    pub(crate) fn add(&self, graph: &Graph, record: RequestRecord) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(id) = head(graph) else {
            return;
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut table = self.producers.table();
        table.entry(id).or_default().push((number, record));
        drop(table);
        self.numbers
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .push((id, number));
    }

    pub(crate) fn producers(&self) -> &Producers {
        &self.producers
    }
}

impl Drop for Produced {
    fn drop(&mut self) {
        let numbers = self
            .numbers
            .get_mut()
            .unwrap_or_else(|poison| poison.into_inner());
        let mut table = self.producers.table();
        for (id, number) in numbers.drain(..) {
            if let Some(known) = table.get_mut(&id) {
                known.retain(|(kept, _)| *kept != number);
                if known.is_empty() {
                    table.remove(&id);
                }
            }
        }
    }
}

fn head(graph: &Graph) -> Option<VertexId> {
    let root = graph.root()?;
    Some(graph.vertices()[root.vertex].id())
}

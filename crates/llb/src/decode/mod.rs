//! Reading `pb.Definition`. Its bytes are hostile.

mod exec;
mod file;
mod metadata;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use oci::Platform;

use crate::graph::{Foreign, Pending};
use crate::wire::{Field, Reader};
use crate::{
    BuildOp, DiffOp, Draft, FileOp, Graph, GraphBuilder, LlbError, Location, MergeOp, Metadata, Op,
    Output, SourceFile, SourceOp, VertexId, encode,
};

use exec::read_exec;
use file::read_action;
use metadata::{read_locations, read_metadata, read_source_file};

/// The longest definition that is read.
const LONGEST: usize = 256 << 20;
/// The most vertices a definition may have.
const MOST_VERTICES: usize = 1 << 20;

type Decoded<T> = Result<T, LlbError>;

/// Fields not known here, with their tags.
type Unknown = Vec<u8>;

/// Calls `take` for each field; those it does not take are kept in `unknown`.
fn fields<'a>(
    message: &'static str,
    bytes: &'a [u8],
    unknown: &mut Unknown,
    mut take: impl FnMut(&Field<'a>, &mut Unknown) -> Decoded<bool>,
) -> Decoded<()> {
    let mut reader = Reader::new(message, bytes);
    while let Some(field) = reader.next()? {
        if !take(&field, unknown)? {
            unknown.extend_from_slice(field.raw);
        }
    }
    Ok(())
}

/// An op as it stands on the wire.
#[derive(Default)]
struct WireOp {
    op: Option<Op>,
    inputs: Vec<(String, i64)>,
    platform: Option<Platform>,
    constraints: Vec<String>,
    unknown: Unknown,
}

impl Graph {
    /// Reads a graph from the bytes of a `pb.Definition`.
    ///
    /// What the root does not need is left out. Links are followed by the digests of the bytes that were given; the
    /// vertices get ids of their own.
    ///
    /// # Errors
    ///
    /// If the bytes are not such a message, are too many, or name things that are not there.
    pub fn decode_definition(bytes: &[u8]) -> Result<Self, LlbError> {
        if bytes.len() > LONGEST {
            return Err(LlbError::TooLarge {
                size: bytes.len(),
                limit: LONGEST,
            });
        }
        let mut definition = Definition::default();
        fields("definition", bytes, &mut Vec::new(), |field, _| {
            definition.take(field)
        })?;
        definition.into_graph()
    }
}

#[derive(Default)]
struct Definition<'a> {
    operations: Vec<&'a [u8]>,
    metadata: BTreeMap<String, (Metadata, Unknown)>,
    sources: Vec<SourceFile>,
    locations: BTreeMap<String, Vec<Location>>,
    unknown: Unknown,
}

impl<'a> Definition<'a> {
    fn take(&mut self, field: &Field<'a>) -> Decoded<bool> {
        match field.number {
            1 if self.operations.len() > MOST_VERTICES => {
                let count = self.operations.len();
                return Err(LlbError::TooMany {
                    count,
                    limit: MOST_VERTICES,
                });
            }
            1 => self.operations.push(field.bytes()?),
            2 => {
                let (digest, value) = entry("metadata entry", field)?;
                let mut unknown = Vec::new();
                let metadata = read_metadata(value, &mut unknown)?;
                self.metadata.insert(digest, (metadata, unknown));
            }
            3 => {
                let mut unknown = Vec::new();
                let (sources, locations) = (&mut self.sources, &mut self.locations);
                fields("source", field.bytes()?, &mut unknown, |field, _| {
                    match field.number {
                        1 => {
                            let (digest, value) = entry("locations entry", field)?;
                            locations.insert(digest, read_locations(value)?);
                        }
                        2 => sources.push(read_source_file(field.bytes()?)?),
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
            }
            _ => self.unknown.extend_from_slice(field.raw),
        }
        Ok(true)
    }

    fn into_graph(mut self) -> Decoded<Graph> {
        let Some(last) = self.operations.pop() else {
            return Ok(Graph {
                sources: self.sources,
                unknown: self.unknown,
                ..Graph::default()
            });
        };
        let root = read_operation(last)?;
        if root.op.is_some() || root.inputs.len() != 1 {
            return Err(LlbError::Root {
                count: root.inputs.len(),
            });
        }
        let by_digest: HashMap<VertexId, usize> = self
            .operations
            .iter()
            .map(|bytes| VertexId::of(bytes))
            .zip(0..)
            .collect();
        let link = |position: usize, (digest, index): &(String, i64)| {
            let missing = || LlbError::MissingInput {
                position,
                digest: digest.clone(),
            };
            let id = VertexId::parse(digest).ok_or_else(missing)?;
            let draft = *by_digest.get(&id).ok_or_else(missing)?;
            let index = usize::try_from(*index).map_err(|_| LlbError::NoSuchOutput {
                kind: "op",
                position,
                output: *index,
                outputs: 0,
            })?;
            Ok((Output { draft, index }, id))
        };
        let mut builder = GraphBuilder::default();
        for (position, bytes) in self.operations.iter().enumerate() {
            let wire = read_operation(bytes)?;
            let op = wire.op.ok_or(LlbError::NoOperation { position })?;
            let linked = wire.inputs.iter().map(|input| link(position, input));
            let (inputs, links): (Vec<Output>, Vec<VertexId>) =
                linked.collect::<Decoded<Vec<_>>>()?.into_iter().unzip();
            let digest = VertexId::of(bytes).to_string();
            let (mut metadata, unknown_metadata) =
                self.metadata.get(&digest).cloned().unwrap_or_default();
            metadata.locations = self.locations.get(&digest).cloned().unwrap_or_default();
            let mut ours = Vec::with_capacity(bytes.len());
            let named = links
                .iter()
                .copied()
                .zip(inputs.iter().map(|input| input.index));
            encode::operation(
                &mut ours,
                &op,
                inputs.len(),
                named,
                wire.platform.as_ref(),
                &wire.constraints,
            );
            let same = ours == **bytes;
            let foreign = (!same || !unknown_metadata.is_empty()).then(|| {
                Arc::new(Foreign {
                    bytes: if same { Vec::new() } else { bytes.to_vec() },
                    links,
                    unknown: wire.unknown,
                    unknown_metadata,
                })
            });
            let draft = Draft {
                platform: wire.platform.map(Arc::new),
                constraints: wire.constraints,
                metadata,
                ..Draft::new(op, inputs)
            };
            builder.add_pending(Pending { draft, foreign });
        }
        // As they are numbered in the definition, even if one is there twice.
        builder.sources = std::mem::take(&mut self.sources);
        let (root, _) = link(self.operations.len(), &root.inputs[0])?;
        let mut graph = builder.finish(Some(root))?;
        graph.unknown = self.unknown;
        Ok(graph)
    }
}

/// Reads an entry of a map from texts to messages or texts.
fn entry<'a>(message: &'static str, field: &Field<'a>) -> Decoded<(String, &'a [u8])> {
    let mut key = String::new();
    let mut value: &[u8] = &[];
    fields(message, field.bytes()?, &mut Vec::new(), |field, _| {
        match field.number {
            1 => key = field.text()?,
            2 => value = field.bytes()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((key, value))
}

fn text_entry(message: &'static str, field: &Field<'_>) -> Decoded<(String, String)> {
    let (key, value) = entry(message, field)?;
    let value = std::str::from_utf8(value).map_err(|_| LlbError::Text { message })?;
    Ok((key, value.to_owned()))
}

/// Reads a position that is -1 where there is none.
fn position(what: &'static str, value: i64) -> Decoded<Option<usize>> {
    match value {
        -1 => Ok(None),
        _ => usize::try_from(value)
            .map(Some)
            .map_err(|_| LlbError::Value { what, value }),
    }
}

fn number(what: &'static str, value: i64) -> Decoded<u32> {
    u32::try_from(value).map_err(|_| LlbError::Value { what, value })
}

fn choice<T: std::marker::Copy>(what: &'static str, choices: &[T], value: i64) -> Decoded<T> {
    let chosen = usize::try_from(value)
        .ok()
        .and_then(|value| choices.get(value));
    chosen.copied().ok_or(LlbError::Value { what, value })
}

fn read_operation(bytes: &[u8]) -> Decoded<WireOp> {
    let mut wire = WireOp::default();
    let mut unknown = Vec::new();
    fields("op", bytes, &mut unknown, |field, unknown| {
        match field.number {
            1 => wire.inputs.push(read_input(field.bytes()?, unknown)?),
            2 => {
                let mut exec = match wire.op.take() {
                    Some(Op::Exec(exec)) => exec,
                    _ => Box::default(),
                };
                read_exec(&mut exec, field.bytes()?, unknown)?;
                wire.op = Some(Op::Exec(exec));
            }
            3 => wire.op = Some(Op::Source(read_source(field.bytes()?, unknown)?)),
            4 => wire.op = Some(Op::File(FileOp::default())),
            5 => wire.op = Some(Op::Build(read_build(field.bytes()?, unknown)?)),
            6 => wire.op = Some(Op::Merge(read_merge(field.bytes()?, unknown)?)),
            7 => wire.op = Some(Op::Diff(read_diff(field.bytes()?, unknown)?)),
            10 => {
                let platform = wire.platform.get_or_insert_default();
                read_platform(platform, field.bytes()?, unknown)?;
            }
            11 => fields("constraints", field.bytes()?, unknown, |field, _| {
                if field.number == 1 {
                    wire.constraints.push(field.text()?);
                }
                Ok(field.number == 1)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    // The numbers in file actions are counted after the inputs, which may come later.
    if let Some(Op::File(_)) = wire.op {
        let inputs = wire.inputs.len();
        let mut file = FileOp::default();
        fields("op", bytes, &mut Vec::new(), |field, _| {
            if field.number == 4 {
                fields("file op", field.bytes()?, &mut unknown, |field, unknown| {
                    if field.number == 2 {
                        file.actions
                            .push(read_action(field.bytes()?, inputs, unknown)?);
                    }
                    Ok(field.number == 2)
                })?;
            }
            Ok(true)
        })?;
        wire.op = Some(Op::File(file));
    }
    wire.unknown = unknown;
    Ok(wire)
}

fn read_input(bytes: &[u8], unknown: &mut Unknown) -> Decoded<(String, i64)> {
    let mut input = (String::new(), 0);
    fields("input", bytes, unknown, |field, _| {
        match field.number {
            1 => input.0 = field.text()?,
            2 => input.1 = field.int()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(input)
}

fn read_platform(into: &mut Platform, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
    fields("platform", bytes, unknown, |field, _| {
        match field.number {
            1 => into.architecture = field.text()?,
            2 => into.os = field.text()?,
            3 => into.variant = field.text()?,
            4 => into.os_version = field.text()?,
            5 => into.os_features.push(field.text()?),
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn read_source(bytes: &[u8], unknown: &mut Unknown) -> Decoded<SourceOp> {
    let mut source = SourceOp::default();
    fields("source op", bytes, unknown, |field, _| {
        match field.number {
            1 => source.identifier = field.text()?,
            2 => source
                .attrs
                .extend([text_entry("source attribute", field)?]),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(source)
}

/// Reads a message whose one field is a position.
fn read_position(field: &Field<'_>, unknown: &mut Unknown) -> Decoded<Option<usize>> {
    let mut input = Some(0);
    fields("input number", field.bytes()?, unknown, |field, _| {
        if field.number == 1 {
            input = position("input number", field.int()?)?;
        }
        Ok(field.number == 1)
    })?;
    Ok(input)
}

fn read_merge(bytes: &[u8], unknown: &mut Unknown) -> Decoded<MergeOp> {
    let mut merge = MergeOp::default();
    fields("merge op", bytes, unknown, |field, unknown| {
        if field.number == 1 {
            merge.inputs.push(read_position(field, unknown)?);
        }
        Ok(field.number == 1)
    })?;
    Ok(merge)
}

fn read_diff(bytes: &[u8], unknown: &mut Unknown) -> Decoded<DiffOp> {
    let mut diff = DiffOp::default();
    fields("diff op", bytes, unknown, |field, unknown| {
        match field.number {
            1 => diff.lower = read_position(field, unknown)?,
            2 => diff.upper = read_position(field, unknown)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(diff)
}

fn read_build(bytes: &[u8], unknown: &mut Unknown) -> Decoded<BuildOp> {
    let mut build = BuildOp {
        builder: Some(0),
        ..BuildOp::default()
    };
    fields("build op", bytes, unknown, |field, unknown| {
        match field.number {
            1 => build.builder = position("builder", field.int()?)?,
            2 => {
                let (name, value) = entry("build input", field)?;
                let mut input = Some(0);
                fields("build input", value, unknown, |field, _| {
                    if field.number == 1 {
                        input = position("build input", field.int()?)?;
                    }
                    Ok(field.number == 1)
                })?;
                build.inputs.insert(name, input);
            }
            3 => build.definition = Some(field.bytes()?.to_vec()),
            4 => build.attrs.extend([text_entry("build attribute", field)?]),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(build)
}

#[cfg(test)]
mod tests {
    use crate::{Draft, Graph, GraphBuilder, Location, Op, SourceFile, SourceOp};

    #[test]
    fn files_keep_their_numbers_and_are_one_where_graphs_meet() {
        let mut builder = GraphBuilder::default();
        let file = |name: &str| SourceFile {
            filename: name.to_owned(),
            ..SourceFile::default()
        };
        builder.sources = vec![file("a"), file("a"), file("b")];
        let mut draft = Draft::new(
            Op::Source(SourceOp {
                identifier: "docker-image://a".to_owned(),
                ..SourceOp::default()
            }),
            Vec::new(),
        );
        draft.metadata.locations = [1, 2]
            .map(|source| Location {
                source,
                ..Location::default()
            })
            .to_vec();
        let root = builder.add(draft);
        let graph = builder.finish(Some(root)).unwrap();
        let graph = Graph::decode_definition(&graph.encode_definition()).unwrap();
        let numbers = |graph: &Graph| -> Vec<usize> {
            let locations = graph.vertices()[0].metadata().locations.iter();
            locations.map(|location| location.source).collect()
        };
        assert_eq!(numbers(&graph), [1, 2]);
        let mut builder = GraphBuilder::default();
        let root = builder.import(&graph);
        let graph = builder.finish(root).unwrap();
        assert_eq!(numbers(&graph), [0, 1]);
        assert_eq!(graph.sources().len(), 2);
    }
}

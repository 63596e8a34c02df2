//! Compares inputs by content: what changed in name or way of making, but not in what it holds.

use llb::{Action, ActionInput, ExecOp, FileOp, MountKind, Op};
use store::{Key, Layer, LayerId};

use crate::EngineError;
use crate::context::accounts;
use crate::keys::KeyBuilder;
use crate::snapshot::Snapshot;
use crate::step::Shared;

/// What an operation uses of an input.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum InputUse {
    /// All of it.
    Whole,
    /// What a copy selects.
    Copied(Box<llb::Copy>),
    /// What lies at a path, links followed, as a mount follows them.
    Path(String),
}

impl InputUse {
    /// Returns the uses of each input.
    pub(crate) fn of(op: &Op, inputs: usize) -> Vec<Vec<InputUse>> {
        let mut uses = vec![Vec::new(); inputs];
        match op {
            Op::Exec(op) => Self::of_exec(op, &mut uses),
            Op::File(op) => Self::of_file(op, &mut uses),
            Op::Source(_) | Op::Merge(_) | Op::Diff(_) | Op::Build(_) => {}
        }
        for uses in &mut uses {
            // What is not known to be less counts as a whole.
            if uses.is_empty() {
                uses.push(InputUse::Whole);
            }
        }
        uses
    }

    fn of_exec(op: &ExecOp, uses: &mut [Vec<InputUse>]) {
        for mount in &op.mounts {
            let Some(input) = mount.input else { continue };
            // What a step writes to a mount without an output is dropped: it matters as little as what it cannot write.
            let is_source = mount.read_only || (mount.output.is_none() && mount.dest != "/");
            let part = mount.kind == MountKind::Bind && is_source && !mount.selector.is_empty();
            uses[input].push(match part {
                true => InputUse::Path(mount.selector.clone()),
                false => InputUse::Whole,
            });
        }
    }

    fn of_file(op: &FileOp, uses: &mut [Vec<InputUse>]) {
        for action in &op.actions {
            if let Some(ActionInput::Vertex(input)) = action.input {
                uses[input].push(InputUse::Whole);
            }
            if let Some(ActionInput::Vertex(input)) = action.secondary_input {
                uses[input].push(match &action.action {
                    Action::Copy(copy) => InputUse::Copied(copy.clone()),
                    _ => InputUse::Whole,
                });
            }
            for input in action.action.names_from() {
                if !uses[input].contains(&InputUse::Whole) {
                    uses[input].extend(accounts().map(|copy| InputUse::Copied(Box::new(copy))));
                }
            }
        }
    }
}

/// Returns whether an input holds what it held at an earlier run, as far as it is used.
pub(crate) fn same_input(
    shared: &Shared,
    now: &Snapshot,
    then: Option<&[LayerId]>,
    uses: &[InputUse],
) -> Result<bool, EngineError> {
    let (Snapshot::Layers(now), Some(then)) = (now, then) else {
        // A context is compared by its checksum, which is part of the operation's key.
        return Ok(matches!(now, Snapshot::Context(_)) && then.is_none());
    };
    if now.iter().map(Layer::id).eq(then.iter().copied()) {
        return Ok(true);
    }
    let Some(then) = shared.store.layers(then)? else {
        return Ok(false);
    };
    for part in uses {
        let same = match part {
            InputUse::Whole => same_layers(shared, now, &then)?,
            InputUse::Copied(copy) => {
                checksum(shared, now, copy)? == checksum(shared, &then, copy)?
            }
            InputUse::Path(path) => {
                let copy = llb::Copy {
                    source: path.clone(),
                    follow_symlink: true,
                    ..llb::Copy::default()
                };
                checksum(shared, now, &copy)? == checksum(shared, &then, &copy)?
            }
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes a key of an operation and of what its inputs hold, as far as it uses them: equal wherever it is computed.
pub(crate) fn content_key(
    shared: &Shared,
    operation: &Key,
    inputs: &[Snapshot],
    uses: &[Vec<InputUse>],
) -> Result<Key, EngineError> {
    let mut key = KeyBuilder::new("content").key("operation", operation);
    for (input, uses) in inputs.iter().zip(uses) {
        let layers = match input {
            Snapshot::Layers(layers) => layers,
            // Its files are part of the operation's key.
            Snapshot::Context(_) => {
                key = key.part("input", b"context");
                continue;
            }
        };
        key = key.part("input", b"layers");
        for part in uses {
            let path;
            let copy = match part {
                InputUse::Whole => {
                    for layer in layers {
                        key = key.key("layer", &content_id(shared, layer)?);
                    }
                    key = key.part("layers", &(layers.len() as u64).to_be_bytes());
                    continue;
                }
                InputUse::Copied(copy) => copy.as_ref(),
                InputUse::Path(source) => {
                    path = llb::Copy {
                        source: source.clone(),
                        follow_symlink: true,
                        ..llb::Copy::default()
                    };
                    &path
                }
            };
            key = key.part("selection", &checksum(shared, layers, copy)?);
        }
    }
    Ok(key.finish())
}

fn same_layers(shared: &Shared, now: &[Layer], then: &[Layer]) -> Result<bool, EngineError> {
    if now.len() != then.len() {
        return Ok(false);
    }
    for (now, then) in now.iter().zip(then) {
        if now.id() != then.id() && content_id(shared, now)? != content_id(shared, then)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the checksum of a layer's content, times left out; computed once.
pub(crate) fn content_id(shared: &Shared, layer: &Layer) -> Result<[u8; 32], EngineError> {
    if let Some(id) = shared.store.layer_info(layer.id())?.content_id {
        return Ok(id);
    }
    let id = rootfs::checksum::layer(layer.path(), shared.xattrs())?;
    shared.store.set_layer_content_id(layer.id(), &id)?;
    Ok(id)
}

/// Returns the checksum of what a copy selects; remembered, as layers never change.
pub(crate) fn checksum(
    shared: &Shared,
    layers: &[Layer],
    copy: &llb::Copy,
) -> Result<Vec<u8>, EngineError> {
    let mut key = KeyBuilder::new("selection");
    for layer in layers {
        key = key.part("layer", &layer.id().0.to_be_bytes());
    }
    key = key.part("source", copy.source.as_bytes());
    let flags = [
        copy.follow_symlink,
        copy.directory_contents,
        copy.unpack,
        copy.allow_wildcard,
        copy.allow_empty_wildcard,
    ];
    key = key.part("flags", &flags.map(u8::from));
    for pattern in &copy.include_patterns {
        key = key.part("include", pattern.as_bytes());
    }
    for pattern in &copy.exclude_patterns {
        key = key.part("exclude", pattern.as_bytes());
    }
    for path in &copy.required_paths {
        key = key.part("required", path.as_bytes());
    }
    let key = key.finish();
    if let Some(known) = shared.store.recall("selection", &key)? {
        return Ok(known);
    }
    let found = crate::context::selection_checksum(&shared.tree(layers)?, copy)?;
    shared
        .store
        .remember("selection", [(key.as_slice(), found.as_slice())])?;
    Ok(found)
}

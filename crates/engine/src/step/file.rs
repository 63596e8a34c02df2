//! Changes files without a process: COPY, ADD, WORKDIR, inline files.

use std::collections::BTreeMap;
use std::sync::Arc;

use llb::{Action, ActionInput, CopyMode, FileAction, FileOp};
use rootfs::{RootPath, Tree, checksum, copy as request};
use store::{Layer, MutLayer};

use crate::context::{ContextTree, Patterns};
use crate::snapshot::Snapshot;
use crate::staged::StagedCopy;
use crate::step::StepContext;
use crate::{Cancel, EngineError};

/// The tree an action yields.
enum Work {
    /// Not needed any more, or moved into the action after it.
    Moved,
    /// Being written.
    Open { below: Vec<Layer>, layer: MutLayer },
    /// Committed.
    Done(Snapshot),
}

/// Where a copy takes its files from.
enum Secondary {
    Layers(Vec<Layer>),
    /// Files of a context, copied for this step.
    Staged {
        copy: Arc<StagedCopy>,
        /// What actions have linked of them, if this is not the only one that takes from them.
        linked: Option<Arc<request::LinkedOnce>>,
    },
}

/// What the actions of one operation share.
struct Actions<'a> {
    context: &'a StepContext,
    inputs: &'a [Snapshot],
    name: &'a str,
    cancel: &'a Cancel,
    /// How often the tree of each action is used by a later one or as an output.
    uses: Vec<usize>,
    /// What was linked of the inputs that several actions take from.
    linked: BTreeMap<usize, Arc<request::LinkedOnce>>,
    /// The trees of the actions so far.
    works: Vec<Work>,
    /// The copy that all files come from as they are, if there is one.
    origin: Option<(&'a ContextTree, Arc<StagedCopy>)>,
}

/// Carries out the actions and returns the outputs by number. `staged` has what they take of contexts.
pub(crate) fn run(
    context: &StepContext,
    staged: BTreeMap<usize, Arc<StagedCopy>>,
    op: &FileOp,
    inputs: &[Snapshot],
    name: &str,
    cancel: &Cancel,
) -> Result<Vec<Snapshot>, EngineError> {
    let mut actions = Actions {
        context,
        inputs,
        name,
        cancel,
        uses: uses(op),
        linked: linked(op),
        works: Vec::with_capacity(op.actions.len()),
        origin: origin(op, inputs, &staged),
    };
    let count = op.actions.iter().filter_map(|action| action.output);
    let count = count.max().map_or(0, |last| last + 1);
    let mut outputs = vec![Snapshot::Layers(Vec::new()); count];
    for (number, action) in op.actions.iter().enumerate() {
        if cancel.is_requested() {
            return Err(EngineError::Canceled);
        }
        let (below, layer) = actions.begin(action)?;
        let secondary = match action.secondary_input {
            None => Secondary::Layers(Vec::new()),
            Some(ActionInput::Vertex(input)) => match (&inputs[input], staged.get(&input)) {
                (Snapshot::Layers(layers), _) => Secondary::Layers(layers.clone()),
                (Snapshot::Context(_), Some(copy)) => Secondary::Staged {
                    copy: Arc::clone(copy),
                    linked: actions.linked.get(&input).cloned(),
                },
                (Snapshot::Context(_), None) => unreachable!("all contexts were staged"),
            },
            Some(ActionInput::Action(earlier)) => Secondary::Layers(actions.finish(earlier)?),
        };
        actions.apply(&action.action, &secondary, &below, &layer)?;
        actions.works.push(Work::Open { below, layer });
        if let Some(output) = action.output {
            outputs[output] = Snapshot::Layers(actions.finish(number)?);
        }
    }
    Ok(outputs)
}

/// Returns how often the tree of each action is used by a later one or as an output.
fn uses(op: &FileOp) -> Vec<usize> {
    let mut uses = vec![0; op.actions.len()];
    for (number, action) in op.actions.iter().enumerate() {
        uses[number] += usize::from(action.output.is_some());
        for input in [action.input, action.secondary_input] {
            if let Some(ActionInput::Action(earlier)) = input {
                uses[earlier] += 1;
            }
        }
    }
    uses
}

/// Makes what notes, for each input that several actions take from, which of its files were linked.
fn linked(op: &FileOp) -> BTreeMap<usize, Arc<request::LinkedOnce>> {
    let mut takers: BTreeMap<usize, usize> = BTreeMap::new();
    for action in &op.actions {
        if let Some(ActionInput::Vertex(input)) = action.secondary_input {
            *takers.entry(input).or_default() += 1;
        }
    }
    takers.retain(|_, count| *count > 1);
    takers
        .into_keys()
        .map(|input| (input, Arc::default()))
        .collect()
}

/// Returns the one copy of context files that an operation takes all its files from, leaving them as they are.
fn origin<'a>(
    op: &FileOp,
    inputs: &'a [Snapshot],
    staged: &BTreeMap<usize, Arc<StagedCopy>>,
) -> Option<(&'a ContextTree, Arc<StagedCopy>)> {
    let (number, copy) = match staged.len() {
        1 => staged.first_key_value()?,
        _ => return None,
    };
    let as_it_is = |action: &FileAction| {
        let input = ActionInput::Vertex(*number);
        action.input != Some(input)
            && match &action.action {
                Action::Copy(copy) => {
                    action.secondary_input == Some(input)
                        && copy.owner.is_none()
                        && matches!(copy.mode, CopyMode::Keep)
                        && !copy.unpack
                }
                _ => true,
            }
    };
    match &inputs[*number] {
        Snapshot::Context(tree) if op.actions.iter().all(as_it_is) => Some((tree, copy.clone())),
        _ => None,
    }
}

impl Actions<'_> {
    /// Returns the tree an action changes: the one of the action before, if nobody else needs it.
    fn begin(&mut self, action: &FileAction) -> Result<(Vec<Layer>, MutLayer), EngineError> {
        let below = match action.input {
            None => Vec::new(),
            Some(ActionInput::Vertex(input)) => match &self.inputs[input] {
                Snapshot::Layers(layers) => layers.clone(),
                Snapshot::Context(tree) => vec![self.context.materialize(tree)?],
            },
            Some(ActionInput::Action(earlier)) => {
                let alone = self.uses[earlier] == 1;
                if alone && matches!(self.works[earlier], Work::Open { .. }) {
                    match std::mem::replace(&mut self.works[earlier], Work::Moved) {
                        Work::Open { below, layer } => return Ok((below, layer)),
                        _ => unreachable!("it was looked at"),
                    }
                }
                self.finish(earlier)?
            }
        };
        let layer = self.context.new_layer(&below)?;
        Ok((below, layer))
    }

    /// Commits the tree of an action, once.
    fn finish(&mut self, action: usize) -> Result<Vec<Layer>, EngineError> {
        match std::mem::replace(&mut self.works[action], Work::Moved) {
            Work::Open { mut below, layer } => {
                below.push(self.commit(layer)?);
                self.works[action] = Work::Done(Snapshot::Layers(below.clone()));
                Ok(below)
            }
            Work::Done(Snapshot::Layers(layers)) => {
                self.works[action] = Work::Done(Snapshot::Layers(layers.clone()));
                Ok(layers)
            }
            Work::Done(Snapshot::Context(_)) | Work::Moved => Err(EngineError::Graph(
                "an action's tree is used after it was changed".to_owned(),
            )),
        }
    }

    fn apply(
        &self,
        action: &Action,
        secondary: &Secondary,
        below: &[Layer],
        layer: &MutLayer,
    ) -> Result<(), EngineError> {
        let (context, inputs) = (self.context, self.inputs);
        let dest = context.writable_tree(below, &layer.path())?;
        match action {
            Action::Copy(copy) => {
                let owner = owner_of(context, copy.owner.as_ref(), inputs)?;
                return copy_from(context, copy, owner, secondary, &dest, self.cancel);
            }
            Action::MakeDirectory(directory) => request::mkdir(
                &dest,
                &request::Mkdir {
                    path: directory.path.clone(),
                    mode: directory.mode,
                    make_parents: directory.make_parents,
                    owner: owner_of(context, directory.owner.as_ref(), inputs)?,
                    time: time_of(directory.timestamp),
                },
            ),
            Action::MakeFile(file) => request::mkfile(
                &dest,
                &request::Mkfile {
                    path: file.path.clone(),
                    mode: file.mode,
                    data: file.data.clone(),
                    owner: owner_of(context, file.owner.as_ref(), inputs)?,
                    time: time_of(file.timestamp),
                },
            ),
            Action::Symlink(link) => request::symlink(
                &dest,
                &request::Symlink {
                    target: link.old_path.clone(),
                    path: link.new_path.clone(),
                    owner: owner_of(context, link.owner.as_ref(), inputs)?,
                    time: time_of(link.timestamp),
                },
            ),
            Action::Remove(remove) => request::remove(
                &dest,
                &request::Remove {
                    path: remove.path.clone(),
                    allow_not_found: remove.allow_not_found,
                    wildcard: remove.allow_wildcard,
                },
            ),
        }?;
        Ok(())
    }

    fn commit(&self, layer: MutLayer) -> Result<Layer, EngineError> {
        let Some((tree, copy)) = &self.origin else {
            return self.context.commit(layer, self.name);
        };
        // What the files hold is known: the checksum costs a look at each.
        let census = checksum::census(&layer.path(), self.context.xattrs(), &copy.staged)?;
        let layer = self.context.commit_counted(layer, self.name, &census)?;
        tree.remember_copies(copy, &layer, &census);
        Ok(layer)
    }
}

fn copy_from(
    context: &StepContext,
    copy: &llb::Copy,
    owner: Option<request::Owner>,
    source: &Secondary,
    dest: &Tree,
    cancel: &Cancel,
) -> Result<(), EngineError> {
    let mut wanted = request_of(copy)?;
    wanted.owner = owner;
    if wanted.unpack && owner.is_none() && context.store.ids().is_single() {
        // As the layers of images are unpacked there.
        wanted.owner = Some(request::Owner { uid: 0, gid: 0 });
    }
    let tree = match source {
        Secondary::Layers(layers) => {
            if !copy.required_paths.is_empty() {
                // What is selected is only known by a walk, which the checksum is; for a context it was made when it
                // was captured.
                crate::matching::checksum(&context.shared, layers, copy)?;
            }
            context.tree(layers)?
        }
        Secondary::Staged { copy, linked } => {
            // The copy was made for this step alone: its files can become the layer's.
            wanted.link = match linked {
                None => request::LinkPolicy::Moved,
                Some(_) => request::LinkPolicy::Allowed,
            };
            wanted.linked.clone_from(linked);
            Tree::open(&copy.layer.path())?
        }
    };
    let (stopped, _guards) = Cancel::flag_of(std::slice::from_ref(cancel));
    wanted.stopped = Some(stopped);
    match request::copy(&tree, dest, &wanted) {
        Err(rootfs::Error::Stopped) => Err(EngineError::Canceled),
        copied => Ok(copied.map(drop)?),
    }
}

fn request_of(copy: &llb::Copy) -> Result<request::Copy, EngineError> {
    let mut wanted = request::Copy::new(copy.source.clone(), copy.dest.clone());
    wanted.follow_symlink = copy.follow_symlink;
    wanted.dir_contents = copy.directory_contents;
    wanted.unpack = copy.unpack;
    wanted.create_dest_path = copy.create_dest_path;
    wanted.wildcard = match (copy.allow_wildcard, copy.allow_empty_wildcard) {
        (false, _) => request::Wildcard::No,
        (true, false) => request::Wildcard::Required,
        (true, true) => request::Wildcard::MayBeEmpty,
    };
    if !copy.include_patterns.is_empty() || !copy.exclude_patterns.is_empty() {
        let patterns = Patterns::new(&copy.include_patterns, &copy.exclude_patterns)?;
        wanted.filter = Some(Arc::new(patterns));
    }
    wanted.replace = copy.replace_existing;
    wanted.mode = match &copy.mode {
        CopyMode::Keep => None,
        CopyMode::Bits(bits) => Some(request::ModeChange::Set(*bits)),
        CopyMode::Symbolic(text) => Some(request::ModeChange::parse(text)?),
    };
    wanted.time = time_of(copy.timestamp);
    Ok(wanted)
}

fn time_of(nanoseconds: Option<i64>) -> Option<request::Timestamp> {
    nanoseconds.and_then(request::Timestamp::from_llb)
}

/// The largest `/etc/passwd` or `/etc/group` that is read.
const MAX_ACCOUNTS: u64 = 16 << 20;

/// Returns the ids an action asks for; names are looked up in the image they name.
fn owner_of(
    context: &StepContext,
    owner: Option<&llb::Owner>,
    inputs: &[Snapshot],
) -> Result<Option<request::Owner>, EngineError> {
    let Some(owner) = owner else {
        return Ok(None);
    };
    let (mut uid, mut gid) = (0, 0);
    match &owner.user {
        None => {}
        Some(llb::UserRef::Id(id)) => (uid, gid) = (*id, *id),
        Some(llb::UserRef::Name { name, input }) => {
            // A name that is not there is root, as in the reference.
            if let Some(fields) = account(context, *input, inputs, "/etc/passwd", name)? {
                (uid, gid) = (field(&fields, 2)?, field(&fields, 3)?);
            }
        }
    }
    match &owner.group {
        None => {}
        Some(llb::UserRef::Id(id)) => gid = *id,
        Some(llb::UserRef::Name { name, input }) => {
            // A group that is not there leaves that of the user.
            if let Some(fields) = account(context, *input, inputs, "/etc/group", name)? {
                gid = field(&fields, 2)?;
            }
        }
    }
    let ids = context.store.ids();
    if !ids.maps(uid) || !ids.maps(gid) {
        return Err(EngineError::Request(format!(
            "a file cannot be given to {uid}:{gid}, which is not mapped in this user namespace: \
             subordinate ids are needed for it (`lapstrake info` says why there are none)"
        )));
    }
    Ok(Some(request::Owner { uid, gid }))
}

/// Returns the fields of the first line for a name, if there is one.
fn account(
    context: &StepContext,
    input: Option<usize>,
    inputs: &[Snapshot],
    file: &str,
    name: &str,
) -> Result<Option<Vec<String>>, EngineError> {
    let Some(input) = input else {
        return Err(EngineError::Request(format!(
            "{name:?} cannot be looked up in {file}: the stage has no files yet; give the numbers of the user and the group"
        )));
    };
    let content = match &inputs[input] {
        Snapshot::Layers(layers) => context
            .tree(layers)?
            .read(&RootPath::new(file)?, MAX_ACCOUNTS)?,
        Snapshot::Context(_) => None,
    };
    let content = content.unwrap_or_default();
    for line in String::from_utf8_lossy(&content).lines() {
        let fields: Vec<String> = line.trim().split(':').map(str::to_owned).collect();
        if fields[0] == name {
            return Ok(Some(fields));
        }
    }
    Ok(None)
}

fn field(fields: &[String], number: usize) -> Result<u32, EngineError> {
    fields
        .get(number)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            EngineError::Request(format!(
                "the entry of {:?} has no number in field {number}",
                fields[0]
            ))
        })
}

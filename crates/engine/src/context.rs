//! Files from outside the store that a build copies.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dockerfile::ignore::Matcher;
use llb::{Action, ActionInput, FileOp, MountKind, Op};
use rootfs::Tree;
use rootfs::checksum::{Selection, checksum};
use rootfs::context::{Capture, ListedFile};
use rootfs::copy::Owner;
use rootfs::filter::{Filter, FilterState, Verdict};
use rootfs::memo::{MemoTable, NoMemo};

use crate::EngineError;
use crate::keys::KeyBuilder;
use crate::staged::Staging;
use crate::step::Shared;

/// A directory of files for a build, less what its ignore file names, as it was when captured.
#[derive(Debug)]
pub(crate) struct ContextTree {
    pub(crate) capture: Capture,
    pub(crate) memo: MemoTable,
    /// Where to remember what was read; nowhere for a directory that no later build will find.
    pub(crate) memo_file: Option<PathBuf>,
    number: u64,
    pub(crate) staging: Mutex<Staging>,
}

/// What comes from outside is root's, whoever has it there.
const OWNER: Owner = Owner { uid: 0, gid: 0 };

impl ContextTree {
    /// Captures the names and attributes of a directory; content is read when it is asked for.
    ///
    /// `ignore` are patterns of an ignore file; `lasts` says whether later builds can find this directory again.
    pub(crate) fn capture_of(
        shared: &Shared,
        root: &Path,
        (include, ignore): (&[String], &[String]),
        lasts: bool,
    ) -> Result<Self, EngineError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let patterns = Patterns::new(include, ignore)?;
        let filter: Option<&dyn Filter> = match (include, ignore) {
            ([], []) => None,
            _ => Some(&patterns),
        };
        let capture = Capture::new(root, filter, Some(OWNER))?;
        let place = std::fs::canonicalize(root).map_err(EngineError::io("find", root))?;
        let name = KeyBuilder::new("memo")
            .part("root", place.as_os_str().as_encoded_bytes())
            .finish();
        let memos = shared.store.root().join("memos");
        let memo_file = lasts.then(|| memos.join(crate::keys::hex(&name)));
        let bytes = memo_file.as_ref().and_then(|file| std::fs::read(file).ok());
        Ok(Self {
            capture,
            memo: MemoTable::from_bytes(bytes.unwrap_or_default()),
            memo_file,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            staging: Mutex::default(),
        })
    }

    /// Returns a number that no other capture of this process has.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Returns whether no build has remembered anything of this directory, though later ones could find it.
    pub(crate) fn is_new(&self) -> bool {
        self.memo_file.as_ref().is_some_and(|file| !file.exists())
    }

    /// Returns the paths of all files, for finding the one that was meant.
    pub(crate) fn paths(&self) -> impl Iterator<Item = String> {
        let files = self.capture.files();
        files.map(|file| String::from_utf8_lossy(&file.path).into_owned())
    }

    /// Returns the first files of a selection with what counts of each, and how many more there are.
    pub(crate) fn list(
        &self,
        selection: &Selection,
        most: usize,
    ) -> Result<(Vec<ListedFile>, usize), EngineError> {
        Ok(self.capture.list(selection, most, &self.memo)?)
    }

    /// Returns the checksum of what a step takes.
    pub(crate) fn checksum(&self, selection: &Selection) -> Result<[u8; 32], EngineError> {
        Ok(self.capture.checksum(selection, &self.memo)?)
    }

    /// Keeps what was learned of the files for the next build.
    pub(crate) fn remember(&self) {
        let Some(memo_file) = &self.memo_file else {
            return;
        };
        if !self.memo.is_changed()
            && let Ok(meta) = std::fs::metadata(memo_file)
        {
            // What nobody uses any more is removed after some months.
            let age = meta.modified().ok().and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > std::time::Duration::from_secs(86_400)) {
                let now = std::fs::FileTimes::new().set_modified(std::time::SystemTime::now());
                let _ = std::fs::File::open(memo_file).map(|file| file.set_times(now));
            }
            return;
        }
        if let Err(error) = write_whole(memo_file, &self.memo.to_bytes()) {
            tracing::warn!(%error, "file digests are not remembered");
        }
    }
}

/// Replaces a file by one with these bytes.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.persist(path)?;
    Ok(())
}

/// Returns what an operation takes of the input `input`, which is a context.
pub(crate) fn selections_of(op: &Op, input: usize) -> Result<Vec<Selection>, EngineError> {
    let mut found = Vec::new();
    match op {
        Op::File(op) => return selections_of_file(op, input),
        Op::Exec(op) => {
            for mount in &op.mounts {
                if mount.input == Some(input) {
                    let part = mount.kind == MountKind::Bind && !mount.selector.is_empty();
                    found.push(match part {
                        // A mount follows the links of its source.
                        true => Selection {
                            follow_symlink: true,
                            ..Selection::path(mount.selector.as_str())
                        },
                        false => Selection::path("/"),
                    });
                }
            }
        }
        _ => found.push(Selection::path("/")),
    }
    Ok(found)
}

/// Returns what file actions take of the input `input`, which is a context.
pub(crate) fn selections_of_file(op: &FileOp, input: usize) -> Result<Vec<Selection>, EngineError> {
    let mut found = Vec::new();
    for action in &op.actions {
        if action.secondary_input == Some(ActionInput::Vertex(input))
            && let Action::Copy(copy) = &action.action
        {
            check_pattern(copy)?;
            found.push(selection(copy)?);
        }
        if action.input == Some(ActionInput::Vertex(input)) {
            found.push(Selection::path("/"));
        }
        if action.action.names_from().any(|from| from == input) {
            for copy in &accounts() {
                found.push(selection(copy)?);
            }
        }
    }
    Ok(found)
}

/// Refuses a pattern that is malformed: what was meant would be missing.
fn check_pattern(copy: &llb::Copy) -> Result<(), EngineError> {
    let pattern = copy.source.trim_start_matches('/');
    match copy.allow_wildcard.then(|| Matcher::new([pattern])) {
        Some(Err(_)) => Err(EngineError::Request(format!(
            "syntax error in pattern {pattern:?}: a bracket is not closed, or a range is wrong; \\[ stands for the \
             character, and a list in JSON needs double quotes around each part"
        ))),
        _ => Ok(()),
    }
}

/// Selects the files that names of users and groups are looked up in, as patterns: they need not be there.
pub(crate) fn accounts() -> [llb::Copy; 2] {
    ["/etc/[p]asswd", "/etc/[g]roup"].map(|pattern| llb::Copy {
        source: pattern.to_owned(),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..llb::Copy::default()
    })
}

/// Returns the checksum of what a copy takes from a tree.
pub(crate) fn selection_checksum(tree: &Tree, copy: &llb::Copy) -> Result<Vec<u8>, EngineError> {
    Ok(checksum(tree, &selection(copy)?, &NoMemo)?.to_vec())
}

fn selection(copy: &llb::Copy) -> Result<Selection, EngineError> {
    let mut selection = Selection::path(copy.source.clone());
    selection.wildcard = copy.allow_wildcard;
    selection.follow_symlink = copy.follow_symlink;
    selection.contents_only = copy.directory_contents;
    selection.required = copy.required_paths.clone();
    if !copy.include_patterns.is_empty() || !copy.exclude_patterns.is_empty() {
        let patterns = Patterns::new(&copy.include_patterns, &copy.exclude_patterns)?;
        selection.filter = Some(Arc::new(patterns));
    }
    Ok(selection)
}

/// Include and exclude patterns as a filter over what lies below a directory.
#[derive(Debug)]
pub(crate) struct Patterns {
    included: Option<Matcher>,
    excluded: Option<Matcher>,
}

impl Patterns {
    /// Reads both lists; an empty list of includes takes everything.
    pub(crate) fn new(included: &[String], excluded: &[String]) -> Result<Self, EngineError> {
        let matcher = |patterns: &[String]| match patterns {
            [] => Ok(None),
            patterns => Matcher::new(patterns.iter().map(String::as_str))
                .map(Some)
                .map_err(|error| EngineError::Request(format!("invalid pattern: {error}"))),
        };
        Ok(Self {
            included: matcher(included)?,
            excluded: matcher(excluded)?,
        })
    }
}

impl Filter for Patterns {
    fn judge(&self, path: &[u8], parent: &FilterState) -> (Verdict, FilterState) {
        let known = parent.0.as_deref().unwrap_or_default();
        let includes = self.included.as_ref().map_or(0, Matcher::len);
        let (included, excluded) = known.split_at(includes.min(known.len()));
        let (is_included, included) = self.judge_included(path, included);
        let (verdict, excluded) = self.judge_excluded(path, excluded, is_included);
        let state = [&*included, &*excluded].concat();
        (verdict, FilterState(Some(state.into())))
    }
}

/// What is known of a directory by the patterns, for what lies in it.
type Matching = Box<[bool]>;

impl Patterns {
    /// Tells whether the include patterns take a path.
    fn judge_included(&self, path: &[u8], parent: &[bool]) -> (bool, Matching) {
        let Some(included) = &self.included else {
            return (true, Matching::default());
        };
        // A pattern that was accepted cannot fail on a path: only huge inputs could.
        let matched = included.matched_below(parent, path);
        let matched = matched.unwrap_or_default();
        (matched.is_ignored(), matched.matching().into())
    }

    fn judge_excluded(
        &self,
        path: &[u8],
        parent: &[bool],
        is_included: bool,
    ) -> (Verdict, Matching) {
        let verdict = match is_included {
            true => Verdict::Take,
            false => Verdict::Descend,
        };
        let Some(excluded) = &self.excluded else {
            return (verdict, Matching::default());
        };
        let Ok(matched) = excluded.matched_below(parent, path) else {
            return (Verdict::Descend, Matching::default());
        };
        let verdict = match (matched.is_ignored(), excluded.hides_below(path, &matched)) {
            (false, _) => verdict,
            (true, true) => Verdict::Prune,
            (true, false) => Verdict::Descend,
        };
        (verdict, matched.matching().into())
    }
}

//! Which entries of a captured context a selection takes.

use super::{Capture, Selected, Taken};
use crate::checksum::Selection;
use crate::copy::pattern;
use crate::filter::{FilterState, Verdict};
use crate::meta::Kind;
use crate::path::components;
use crate::resolve::Follow;
use crate::{Error, Result, RootPath};

/// The most symlinks followed in one path, as in the reference.
const MOST_LINKS: usize = 255;

impl Capture {
    /// Returns what a selection takes, sorted by path.
    pub(super) fn select(&self, selection: &Selection) -> Result<Taken> {
        let path = RootPath::new(&selection.path)?;
        let follow = selection.follow();
        let mut taken = Taken::default();
        let base = if selection.wildcard {
            let (base, pattern) = pattern::split(&path);
            self.select_matches(&base, &pattern, selection, &mut taken)?;
            base
        } else {
            let index = self
                .lookup(&path, follow, &mut taken.through)?
                .ok_or_else(|| Error::NotFound {
                    path: path.to_string(),
                })?;
            self.take(index, Vec::new(), selection, &mut taken);
            path
        };
        let full = |selected: &Selected| {
            let mut full = if base.is_root() {
                Vec::new()
            } else {
                base.as_bytes().to_vec()
            };
            full.extend(
                taken
                    .path(selected)
                    .iter()
                    .map(|byte| if *byte == 0 { b'/' } else { *byte }),
            );
            full
        };
        selection.check_required(|required| {
            taken
                .entries
                .iter()
                .any(|selected| full(selected).starts_with(required))
        })?;
        Ok(taken)
    }

    fn select_matches(
        &self,
        base: &RootPath,
        pattern: &[Vec<u8>],
        selection: &Selection,
        taken: &mut Taken,
    ) -> Result<()> {
        let follow = selection.follow();
        let start = self
            .lookup(base, follow, &mut taken.through)?
            .ok_or_else(|| Error::NotFound {
                path: base.to_string(),
            })?;
        if pattern.is_empty() {
            self.take(start, Vec::new(), selection, taken);
            return Ok(());
        }
        let mut matches = Vec::new();
        self.matches(start, pattern, &mut Vec::new(), &mut matches);
        for (found, path) in matches {
            let mut index = found;
            if follow == Follow::Last && self.entry(found).meta.kind == Kind::Symlink {
                let link = RootPath::new(format_path(&self.path(found)))?;
                index = self
                    .lookup(&link, follow, &mut taken.through)?
                    .ok_or_else(|| Error::NotFound {
                        path: link.to_string(),
                    })?;
            }
            self.take(index, path, selection, taken);
        }
        Ok(())
    }

    /// Collects what matches below an entry, with the path that it has in the checksum.
    fn matches(
        &self,
        dir: u32,
        pattern: &[Vec<u8>],
        path: &mut Vec<u8>,
        found: &mut Vec<(u32, Vec<u8>)>,
    ) {
        let Some((first, rest)) = pattern.split_first() else {
            return;
        };
        for child in self.children(dir) {
            if !pattern::matches(first, self.name(child)) {
                continue;
            }
            let length = path.len();
            path.push(0);
            path.extend_from_slice(self.name(child));
            if rest.is_empty() {
                found.push((child, path.clone()));
            } else {
                self.matches(child, rest, path, found);
            }
            path.truncate(length);
        }
    }

    /// Takes an entry and, as far as the filter wants them, those below it.
    fn take(&self, index: u32, path: Vec<u8>, selection: &Selection, taken: &mut Taken) {
        let entry = self.entry(index);
        let contents_only = selection.contents_only && entry.meta.is_dir();
        let top = path.len();
        taken.add(index, &path, contents_only);
        let mut path = path;
        let mut open = vec![Level {
            end: entry.end,
            length: top,
            state: FilterState::default(),
            kept: taken.entries.len(),
            included: true,
        }];
        let mut at = index + 1;
        while at < entry.end {
            while let Some(last) = open.last()
                && at >= last.end
            {
                close(&mut open, taken);
            }
            let level = open
                .last()
                .expect("the entry is below the one that was taken");
            path.truncate(level.length);
            path.push(0);
            path.extend_from_slice(self.name(at));
            let current = self.entry(at);
            let (verdict, state) = match &selection.filter {
                None => (Verdict::Take, FilterState::default()),
                Some(filter) => filter.judge(&filter_path(&path[top + 1..]), &level.state),
            };
            if verdict == Verdict::Prune {
                at = current.end;
                continue;
            }
            let included = verdict == Verdict::Take;
            if included || current.meta.is_dir() {
                taken.add(at, &path, false);
            }
            if current.meta.is_dir() {
                open.push(Level {
                    end: current.end,
                    length: path.len(),
                    state,
                    kept: taken.entries.len(),
                    included,
                });
            }
            at += 1;
        }
        while !open.is_empty() {
            close(&mut open, taken);
        }
    }

    pub(super) fn children(&self, dir: u32) -> impl Iterator<Item = u32> {
        let end = self.entry(dir).end;
        let first = (dir + 1 < end).then_some(dir + 1);
        std::iter::successors(first, move |child| {
            Some(self.entry(*child).end).filter(|next| *next < end)
        })
    }

    pub(super) fn child(&self, dir: u32, name: &[u8]) -> Option<u32> {
        self.children(dir).find(|child| self.name(*child) == name)
    }

    /// Walks a path through the captured entries; `None` where nothing is. Symlinks that are followed, and the entry
    /// itself, are added to `through`.
    fn lookup(
        &self,
        path: &RootPath,
        follow: Follow,
        through: &mut Vec<u32>,
    ) -> Result<Option<u32>> {
        let mut at = 0;
        let mut ahead: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    at = self.entry(at).parent;
                    continue;
                }
                _ => {}
            }
            let Some(child) = self.child(at, &name) else {
                return Ok(None);
            };
            let is_link = self.entry(child).meta.kind == Kind::Symlink;
            if is_link && (follow == Follow::Last || !ahead.is_empty()) {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Error::TooManyLinks {
                        path: path.to_string(),
                    });
                }
                through.push(child);
                let Some(target) = self.links.get(&child) else {
                    return Ok(None);
                };
                if target.as_bytes().starts_with(b"/") {
                    at = 0;
                }
                ahead.extend(components(target.as_bytes()).rev().map(<[u8]>::to_vec));
                continue;
            }
            at = child;
        }
        through.push(at);
        Ok(Some(at))
    }
}

/// A directory whose contents are being selected.
struct Level {
    end: u32,
    /// Length of its path.
    length: usize,
    state: FilterState,
    /// How many entries were selected when it had been.
    kept: usize,
    included: bool,
}

/// Ends a directory; one that was not included and holds nothing that was goes again.
fn close(open: &mut Vec<Level>, taken: &mut Taken) {
    let done = open.pop().expect("the caller has seen a level");
    if !done.included && taken.entries.len() == done.kept {
        taken.entries.pop();
    }
}

fn filter_path(path: &[u8]) -> Vec<u8> {
    path.iter()
        .map(|byte| if *byte == 0 { b'/' } else { *byte })
        .collect()
}

fn format_path(relative: &[u8]) -> Vec<u8> {
    [b"/", relative].concat()
}

//! The variables a word can see.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use crate::expand::Environment;

/// Variables by name; it knows in which order they were last set.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    values: HashMap<String, (u64, String)>,
    next: u64,
}

impl Scope {
    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        let entry = (self.next, value.into());
        self.next += 1;
        match self.values.get_mut(name) {
            Some(slot) => *slot = entry,
            None => {
                self.values.insert(name.to_owned(), entry);
            }
        }
    }

    /// Sets a variable; one that was set before keeps its place.
    pub(super) fn update(&mut self, name: &str, value: String) {
        match self.values.get_mut(name) {
            Some((_, slot)) => *slot = value,
            None => self.set(name, value),
        }
    }

    /// Returns names and values, the one set last at the end.
    pub(super) fn entries(&self) -> Vec<(&str, &str)> {
        let mut entries: Vec<(u64, &str, &str)> = self
            .values
            .iter()
            .map(|(name, (at, value))| (*at, name.as_str(), value.as_str()))
            .collect();
        entries.sort_unstable();
        entries
            .into_iter()
            .map(|(_, name, value)| (name, value))
            .collect()
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.values.remove(name);
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(_, value)| value.as_str())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    pub(super) fn count(&self) -> usize {
        self.values.len()
    }

    /// Returns the names, the one set last at the end.
    pub(super) fn names(&self) -> Vec<&str> {
        self.entries().into_iter().map(|(name, _)| name).collect()
    }
}

impl Environment for Scope {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self.value(name).map(Cow::Borrowed)
    }
}

/// Sees what a scope has and remembers what was asked for in vain, also when the expansion fails in the end.
#[derive(Debug)]
pub(super) struct Recorder<'a> {
    scope: &'a Scope,
    missed: RefCell<BTreeSet<String>>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(scope: &'a Scope) -> Self {
        Recorder {
            scope,
            missed: RefCell::default(),
        }
    }

    /// Returns the names that are not set, sorted.
    pub(super) fn missed(self) -> BTreeSet<String> {
        self.missed.into_inner()
    }
}

impl Environment for Recorder<'_> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        let value = self.scope.get(name);
        if value.is_none() {
            self.missed.borrow_mut().insert(name.to_owned());
        }
        value
    }
}

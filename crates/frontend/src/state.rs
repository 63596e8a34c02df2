//! What a stage is while its instructions are followed: a tree, an environment, an image.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use dockerfile::{expand, paths};
use llb::Output;
use oci::{ContainerConfig, History, ImageConfig, Platform, RootFs, Timestamp};

/// The `PATH` of an image that sets none.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Paths used of a tree. Stages built on one another use one tree and so share them.
pub(crate) type UsedPaths = Rc<RefCell<Paths>>;

/// Some paths of a tree, or all of them.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    all: bool,
    /// Absolute; may hold one several times.
    some: Vec<String>,
}

impl Paths {
    pub(crate) fn add_all(&mut self) {
        self.all = true;
        self.some.clear();
    }

    pub(crate) fn add(&mut self, path: String) {
        if path == "/" {
            self.add_all();
        } else if !self.all {
            self.some.push(path);
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        match other.all {
            true => self.add_all(),
            false => other.some.into_iter().for_each(|path| self.add(path)),
        }
    }

    /// Returns the paths relative to the tree, sorted; none if all of it is used.
    pub(crate) fn relative(&self) -> Vec<String> {
        let relative = |path: &String| paths::join(".", path);
        let mut paths: Vec<String> = self.some.iter().map(relative).collect();
        paths.sort();
        paths.dedup();
        paths
    }
}

/// How many entries are looked through one by one before an index is made.
const FEW: usize = 32;

/// Variables in the order in which they were last set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variables {
    /// What was set again elsewhere leaves a gap.
    pairs: Vec<Option<(Rc<str>, Rc<str>)>>,
    /// Where each is, once there are many.
    places: HashMap<Rc<str>, usize>,
    count: usize,
}

impl Variables {
    fn place(&self, name: &str) -> Option<usize> {
        if !self.places.is_empty() {
            return self.places.get(name).copied();
        }
        let is_named = |pair: &Option<(Rc<str>, Rc<str>)>| {
            pair.as_ref().is_some_and(|(known, _)| **known == *name)
        };
        self.pairs.iter().position(is_named)
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let known = self.place(name).and_then(|at| self.pairs[at].take());
        let name: Rc<str> = match known {
            Some((name, _)) => name,
            None => {
                self.count += 1;
                name.into()
            }
        };
        self.pairs.push(Some((name.clone(), value.into())));
        if self.pairs.len() > 2 * self.count + FEW {
            self.pairs.retain(Option::is_some);
            self.places.clear();
        }
        if !self.places.is_empty() {
            self.places.insert(name, self.pairs.len() - 1);
        } else if self.count > FEW {
            let pairs = self.pairs.iter().enumerate();
            let named = pairs.filter_map(|(at, pair)| Some((pair.as_ref()?.0.clone(), at)));
            self.places = named.collect();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let pair = self.pairs[self.place(name)?].as_ref();
        pair.map(|(_, value)| &**value)
    }

    /// Whether setting these assignments, in order, would change nothing.
    pub(crate) fn end_with(&self, assignments: &[String]) -> bool {
        let mut pairs = self.pairs.iter().rev().flatten();
        assignments.iter().rev().all(|assignment| {
            pairs.next().is_some_and(|(name, value)| {
                assignment.split_once('=') == Some((&**name, &**value))
            })
        })
    }

    pub(crate) fn remove(&mut self, name: &str) {
        if self
            .place(name)
            .and_then(|at| self.pairs[at].take())
            .is_some()
        {
            self.places.remove(name);
            self.count -= 1;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.pairs.iter().flatten();
        pairs.map(|(name, value)| (&**name, &**value))
    }

    /// Returns the variables as `NAME=value`.
    pub(crate) fn assignments(&self) -> Vec<String> {
        let mut all = Vec::with_capacity(self.count);
        all.extend(self.iter().map(|(name, value)| [name, "=", value].concat()));
        all
    }
}

impl expand::Environment for Variables {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self.value(name).map(Cow::Borrowed)
    }
}

/// A tree and how a process in it would start.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// `None` is an empty tree.
    pub(crate) output: Option<Output>,
    pub(crate) variables: Rc<Variables>,
    pub(crate) directory: Rc<str>,
    pub(crate) user: Rc<str>,
    /// What the tree is for; `None` is the target platform.
    pub(crate) platform: Option<Arc<Platform>>,
}

impl Default for State {
    fn default() -> Self {
        Self::new(None)
    }
}

impl State {
    pub(crate) fn new(output: Option<Output>) -> Self {
        Self {
            output,
            variables: Rc::default(),
            directory: "/".into(),
            user: "".into(),
            platform: None,
        }
    }

    pub(crate) fn with_platform(mut self, platform: &Platform) -> Self {
        self.platform = Some(Arc::new(platform.normalized()));
        self
    }

    pub(crate) fn set_variable(&mut self, name: &str, value: &str) {
        Rc::make_mut(&mut self.variables).set(name, value);
    }

    /// Takes over environment, directory and platform of an image's config.
    pub(crate) fn with_image(mut self, image: &ImageConfig) -> Self {
        for pair in &image.config.env {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !name.is_empty() {
                self.set_variable(name, value);
            }
        }
        let directory = &image.config.working_dir;
        self.directory = match directory.starts_with('/') {
            true => directory.as_str().into(),
            false => paths::join("/", directory).into(),
        };
        let platform = &image.platform;
        match platform.os.is_empty() || platform.architecture.is_empty() {
            true => self,
            false => self.with_platform(platform),
        }
    }
}

/// An image in the making. Copies are cheap.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    pub(crate) author: Rc<str>,
    pub(crate) platform: Rc<Platform>,
    pub(crate) config: Rc<ContainerConfig>,
    pub(crate) rootfs: Rc<RootFs>,
    /// The last entry.
    pub(crate) history: Option<usize>,
    env_places: Rc<EnvPlaces>,
}

/// Where the variables of a long environment are.
#[derive(Debug, Clone, Default)]
struct EnvPlaces {
    places: HashMap<String, usize>,
    /// How many entries were looked at.
    seen: usize,
}

impl Image {
    /// Returns the image that `FROM scratch` begins with.
    pub(crate) fn empty(platform: &Platform) -> Self {
        let mut config = ContainerConfig {
            working_dir: "/".to_owned(),
            ..ContainerConfig::default()
        };
        if platform.os != "windows" {
            config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        Self {
            platform: Rc::new(platform.clone()),
            config: Rc::new(config),
            ..Self::default()
        }
    }

    pub(crate) fn config_mut(&mut self) -> &mut ContainerConfig {
        Rc::make_mut(&mut self.config)
    }

    /// Sets a variable where it stands, or at the end.
    pub(crate) fn set_variable(&mut self, name: &str, value: &str) {
        let assignment = [name, "=", value].concat();
        let known = self.variable_place(name);
        let env = &mut self.config_mut().env;
        match known {
            Some(at) => env[at] = assignment,
            None => env.push(assignment),
        }
    }

    pub(crate) fn has_variable(&mut self, name: &str) -> bool {
        self.variable_place(name).is_some()
    }

    /// Returns how many bytes the environment takes.
    pub(crate) fn env_size(&self) -> usize {
        size(&self.config.env)
    }

    fn variable_place(&mut self, name: &str) -> Option<usize> {
        let env = &self.config.env;
        let key = |pair: &'_ str| pair.find('=').unwrap_or(pair.len());
        if env.len() <= FEW {
            return env.iter().position(|pair| pair[..key(pair)] == *name);
        }
        if self.env_places.seen < env.len() {
            let known = Rc::make_mut(&mut self.env_places);
            for (at, pair) in env.iter().enumerate().skip(known.seen) {
                known
                    .places
                    .entry(pair[..key(pair)].to_owned())
                    .or_insert(at);
            }
            known.seen = env.len();
        }
        self.env_places.places.get(name).copied()
    }

    /// Returns the command line that runs a text in the image's shell.
    pub(crate) fn in_shell(&self, args: &[String]) -> Vec<String> {
        let mut line: Vec<String> = match (self.config.shell.is_empty(), self.platform.os.as_str())
        {
            (false, _) => self.config.shell.clone(),
            (true, "windows") => ["cmd", "/S", "/C"].map(str::to_owned).into(),
            (true, _) => ["/bin/sh", "-c"].map(str::to_owned).into(),
        };
        line.push(args.join(" "));
        line
    }
}

/// History entries of all images of a lowering: each says which came before it, so that stages share them.
#[derive(Debug, Default)]
pub(crate) struct HistoryLog {
    entries: Vec<(Option<usize>, History)>,
}

impl HistoryLog {
    pub(crate) fn append(&mut self, image: &mut Image, entry: History) {
        self.entries.push((image.history, entry));
        image.history = Some(self.entries.len() - 1);
    }

    /// Returns an image as it is found.
    pub(crate) fn image(&mut self, config: &ImageConfig) -> Image {
        let known = config.clone().without_unknown();
        let mut image = Image {
            author: known.author.into(),
            platform: Rc::new(known.platform),
            config: Rc::new(known.config),
            rootfs: Rc::new(known.rootfs),
            history: None,
            env_places: Rc::default(),
        };
        for entry in known.history {
            self.append(&mut image, entry);
        }
        image
    }

    /// Returns an image as a document.
    pub(crate) fn config(&self, image: &Image) -> ImageConfig {
        let mut history = Vec::new();
        let mut next = image.history;
        while let Some(at) = next {
            let (before, entry) = &self.entries[at];
            history.push(entry.clone());
            next = *before;
        }
        history.reverse();
        ImageConfig {
            author: image.author.to_string(),
            config: (*image.config).clone(),
            rootfs: (*image.rootfs).clone(),
            history,
            ..ImageConfig::new((*image.platform).clone())
        }
    }
}

/// Returns how many bytes texts take, roughly.
pub(crate) fn size(texts: &[String]) -> usize {
    texts.iter().map(|text| text.len() + 48).sum()
}

/// Whether an instruction makes a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Made,
    None,
}

/// Returns a history entry.
pub(crate) fn history(created_by: String, layer: Layer, epoch: Option<i64>) -> History {
    History {
        created: epoch.and_then(|seconds| Timestamp::from_unix(seconds, 0).ok()),
        created_by,
        comment: "buildkit.dockerfile.v0".to_owned(),
        empty_layer: layer == Layer::None,
        ..History::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_stand_in_the_order_in_which_they_were_last_set() {
        for many in [3, 200] {
            let mut variables = Variables::default();
            for number in 0..many {
                variables.set(&format!("V{number}"), "1");
            }
            for _ in 0..500 {
                variables.set("V1", "2");
            }
            variables.remove("V0");
            variables.remove("V0");
            let names: Vec<&str> = variables.iter().map(|(name, _)| name).collect();
            assert_eq!(
                (names.len(), names[0], names[many - 2]),
                (many - 1, "V2", "V1")
            );
            assert_eq!(variables.value("V1"), Some("2"));
            assert_eq!(variables.value("V0"), None);
            assert!(variables.end_with(&["V1=2".to_owned()]));
            assert!(!variables.end_with(&["V1=1".to_owned()]));
            variables.set("V0", "3");
            assert_eq!(
                variables.assignments().last().map(String::as_str),
                Some("V0=3")
            );
        }
    }

    #[test]
    fn a_variable_of_an_image_keeps_its_place() {
        let mut image = Image::default();
        for number in 0..100 {
            image.set_variable(&format!("V{number}"), "1");
        }
        let mut copy = image.clone();
        copy.set_variable("V50", "2");
        copy.set_variable("NEW", "");
        assert_eq!(copy.config.env[50], "V50=2");
        assert_eq!((copy.config.env.len(), image.config.env.len()), (101, 100));
        assert!(copy.has_variable("NEW") && !image.has_variable("NEW"));
    }
}

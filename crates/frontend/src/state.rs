//! What a stage is while its instructions are followed: a tree, an environment, an image.

use std::borrow::Cow;
use std::cell::RefCell;
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

/// Variables in the order in which they were last set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variables {
    pairs: Vec<(Rc<str>, Rc<str>)>,
}

impl Variables {
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let name = match self.pairs.iter().position(|(known, _)| **known == *name) {
            Some(at) => self.pairs.remove(at).0,
            None => name.into(),
        };
        self.pairs.push((name, value.into()));
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|(known, _)| **known == *name);
        found.map(|(_, value)| &**value)
    }

    /// Whether setting these assignments, in order, would change nothing.
    pub(crate) fn end_with(&self, assignments: &[String]) -> bool {
        let Some(before) = self.pairs.len().checked_sub(assignments.len()) else {
            return false;
        };
        let pairs = self.pairs[before..].iter().zip(assignments);
        pairs.into_iter().all(|((name, value), assignment)| {
            assignment.split_once('=') == Some((&**name, &**value))
        })
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.pairs.retain(|(known, _)| **known != *name);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Returns the variables as `NAME=value`.
    pub(crate) fn assignments(&self) -> Vec<String> {
        self.iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
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
        let env = &mut self.config_mut().env;
        let assignment = format!("{name}={value}");
        let known = env
            .iter()
            .position(|pair| pair.split('=').next() == Some(name));
        match known {
            Some(at) => env[at] = assignment,
            None => env.push(assignment),
        }
    }

    pub(crate) fn has_variable(&self, name: &str) -> bool {
        self.config
            .env
            .iter()
            .any(|pair| pair.split('=').next() == Some(name))
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

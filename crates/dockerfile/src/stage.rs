//! A Dockerfile as a list of build stages.

use crate::{Arg, Header, Instruction, Word};

/// The whole of a Dockerfile, typed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stages {
    /// The `ARG` instructions before the first `FROM`.
    pub meta_args: Vec<MetaArg>,
    pub stages: Vec<Stage>,
}

/// An `ARG` before the first `FROM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaArg {
    pub header: Header,
    pub arg: Arg,
}

/// A `FROM` and the instructions that follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// That of the `FROM`.
    pub header: Header,
    /// The name after `AS`, in lower case (the span is that of the name as written).
    pub name: Option<Word>,
    /// The base: an image, a stage or `scratch`.
    pub base: Word,
    /// The value of `--platform`; an empty value counts as none.
    pub platform: Option<Word>,
    /// The description in the comment above the `FROM`: `# NAME description`.
    pub doc: Option<String>,
    pub instructions: Vec<Instruction>,
}

impl Stage {
    /// Returns the name, empty for a stage without one.
    pub fn name_str(&self) -> &str {
        self.name.as_ref().map_or("", Word::as_str)
    }
}

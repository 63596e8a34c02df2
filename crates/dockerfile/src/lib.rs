//! The Dockerfile language: parser, stages, expansion, ignore patterns, lint.
//!
//! *Responsibility.* Turns the bytes of a Dockerfile into a tree with source spans ([`parse`]), then into typed
//! build stages ([`Ast::stages`]); expands shell words; matches ignore patterns; reports what `docker build --check`
//! reports ([`mod@check`]) and lists targets and parameters. Everything is a function of its arguments.
//!
//! *Not here.* Any knowledge of builds: no graph, no image, no file system, no network. Rendering of diagnostics for
//! a terminal; they are data with spans.
//!
//! *Invariants.* Input is hostile: no function panics, and each takes time linear in its input. Instructions hold
//! their words unexpanded. Every error of the reference implementation is an error here, at the same lines.

use std::borrow::Cow;

pub mod check;
pub mod chmod;
mod diagnostic;
mod directive;
mod dump;
pub mod expand;
mod flags;
pub mod git;
mod go;
mod heredoc;
pub mod ignore;
mod instruction;
mod json;
mod keyword;
mod lines;
mod mount;
mod parser;
pub mod paths;
pub mod ports;
mod quote;
pub mod signal;
mod span;
mod stage;
mod suggest;
mod typed;
mod words;

pub use diagnostic::{Diagnostic, Edit, Label, Severity};
pub use directive::{Directive, DirectiveName, detect_syntax, find_directive};
pub use dump::dump;
pub use go::parse_bool;
pub use heredoc::{HeredocHead, chomp_tabs, parse_heredoc_word};
pub use instruction::{
    Add, Arg, ArgItem, Cmd, CommandForm, CommandLine, Copy, Device, Entrypoint, Env, Expose,
    Header, Healthcheck, Heredoc, InlineFile, Instruction, KeyValue, Kind, LabelSet, Maintainer,
    NetworkMode, Onbuild, Run, SecurityMode, Shell, StopSignal, User, Volume, Workdir,
};
pub use keyword::Keyword;
pub use mount::{CacheSharing, Mount, MountKind, MountSpec};
pub use parser::{Args, Ast, EmptyContinuation, Node, parse};
pub use quote::quote;
pub use span::{Lines, Span, Word};
pub use stage::{MetaArg, Stage, Stages};
pub use suggest::nearest;
pub use typed::parse_trigger;

/// Returns the bytes of a file as the text that all spans refer to: what is not UTF-8 is replaced.
pub fn text_of(bytes: &[u8]) -> Cow<'_, str> {
    // A look at the whole is many times quicker than the search for what is to be replaced.
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}

//! The sources and destinations of `COPY` and `ADD`.

use oci::{Digest, DigestError};

use crate::chmod::parse_chmod;
use crate::expand::Expander;
use crate::git::{GitRef, GitRefError, is_git_source, is_http_source};
use crate::{Add, Copy, InlineFile, Word, paths, quote};

use super::dispatch::Walker;
use super::{Result, Rule, failure};

/// Patterns that leave nothing of a context.
const EVERYTHING: [&str; 3] = ["*", "**", "**/*"];

/// A `COPY` or `ADD` with its words expanded.
struct Transfer<'a> {
    is_add: bool,
    words: &'a [Word],
    sources: Vec<String>,
    dest: (&'a Word, String),
    chmod: (Option<&'a Word>, String),
    checksum: (Option<&'a Word>, String),
    keep_git_dir: Option<bool>,
    parents: bool,
    contents: &'a [InlineFile],
    /// The sources are of the build context.
    is_from_context: bool,
}

impl Walker<'_, '_> {
    pub(super) fn add(&mut self, add: &Add) -> Result<()> {
        self.expand_optional(add.chown.as_ref())?;
        let chmod = (
            add.chmod.as_ref(),
            self.expand_optional(add.chmod.as_ref())?,
        );
        let checksum = (
            add.checksum.as_ref(),
            self.expand_optional(add.checksum.as_ref())?,
        );
        let sources = self.expand_all(&add.sources)?;
        let dest = (&add.dest, self.expand(&add.dest)?);
        self.expand_contents(&add.contents)?;
        self.transfer(&Transfer {
            is_add: true,
            words: &add.sources,
            sources,
            dest,
            chmod,
            checksum,
            keep_git_dir: add.keep_git_dir,
            parents: false,
            contents: &add.contents,
            is_from_context: true,
        })
    }

    pub(super) fn copy(&mut self, copy: &Copy) -> Result<()> {
        self.expand_optional(copy.chown.as_ref())?;
        let chmod = (
            copy.chmod.as_ref(),
            self.expand_optional(copy.chmod.as_ref())?,
        );
        let sources = self.expand_all(&copy.sources)?;
        let dest = (&copy.dest, self.expand(&copy.dest)?);
        self.expand_contents(&copy.contents)?;
        if let (Some(from), Some(&source)) = (&copy.from, self.command.sources.first())
            && !self.plan.states[source].is_dispatched
        {
            let message = format!(
                "cannot copy from stage {}, it needs to be defined before current stage {}",
                quote(&from.text),
                quote(&self.state().name)
            );
            let mut error =
                failure("stage-order", message).label(self.place(from).span, "not yet built here");
            if let Some(stage) = self.plan.states[source].stage {
                error = error
                    .label(stage.header.span, "the stage")
                    .help("move the stage up");
            }
            return Err(Box::new(error));
        }
        self.transfer(&Transfer {
            is_add: false,
            words: &copy.sources,
            sources,
            dest,
            chmod,
            checksum: (None, String::new()),
            keep_git_dir: None,
            parents: copy.parents,
            contents: &copy.contents,
            is_from_context: copy.from.is_none(),
        })
    }

    /// Expands the heredocs that are not quoted. Their escape is always `\`, and quotes mean nothing in them.
    fn expand_contents(&mut self, contents: &[InlineFile]) -> Result<()> {
        for file in contents.iter().filter(|file| file.expand) {
            let word = Word::new(file.path.clone(), file.span);
            self.expand_text(&file.data, &word, Expander::new('\\').literal_quotes())?;
        }
        Ok(())
    }

    fn transfer(&mut self, transfer: &Transfer<'_>) -> Result<()> {
        let os = self.state().os().to_owned();
        let check_path = |path: &str| {
            paths::without_drive(path, &os, true)
                .map(drop)
                .map_err(|reason| format!("removing drive letter: {reason}"))
        };
        let (dest, path) = &transfer.dest;
        check_path(path).map_err(|message| self.wrong("invalid-path", message, dest))?;
        if let (Some(word), mode) = &transfer.chmod
            && !mode.is_empty()
        {
            parse_chmod(mode).map_err(|message| self.wrong("invalid-chmod", message, word))?;
        }
        self.check_checksum(transfer)?;
        let mut checksum = transfer.checksum.1.clone();
        let mut keep_git_dir = transfer.keep_git_dir;
        for (source, word) in transfer.sources.iter().zip(transfer.words) {
            let git = match GitRef::parse(source) {
                Ok(git) => Some(git).filter(|git| !git.is_like_local),
                Err(GitRefError::NotGit) => None,
                Err(error @ GitRefError::Query { .. }) => {
                    return Err(self.wrong("invalid-git-reference", error.to_string(), word));
                }
            };
            if let Some(git) = git {
                self.check_git(transfer, &git, word, &mut checksum, &mut keep_git_dir)?;
            } else if is_http_source(source) {
                if !transfer.is_add {
                    let error = self.wrong(
                        "url-in-copy",
                        "source can't be a URL for COPY".to_owned(),
                        word,
                    );
                    return Err(Box::new(error.help("ADD takes URLs")));
                }
                if !checksum.is_empty() {
                    check_digest(&checksum)
                        .map_err(|message| self.wrong("invalid-checksum", message, word))?;
                }
            } else {
                self.check_ignored(transfer, source, word)?;
                let path = match source.split_once("/./") {
                    Some((parent, _)) if transfer.parents => parent,
                    _ => source,
                };
                check_path(path).map_err(|message| self.wrong("invalid-path", message, word))?;
            }
        }
        for file in transfer.contents {
            let word = Word::new(file.path.clone(), file.span);
            check_path(&file.path).map_err(|message| self.wrong("invalid-path", message, &word))?;
        }
        Ok(())
    }

    fn check_checksum(&self, transfer: &Transfer<'_>) -> Result<()> {
        let (Some(word), checksum) = &transfer.checksum else {
            return Ok(());
        };
        if checksum.is_empty() {
            return Ok(());
        }
        let message = match transfer.sources.as_slice() {
            [source] if is_git_source(source) || is_http_source(source) => return Ok(()),
            [_] => "checksum requires HTTP(S) or Git sources",
            _ => "checksum can't be specified for multiple sources",
        };
        Err(self.wrong("invalid-checksum", message.to_owned(), word))
    }

    /// Checks a repository; what its query says holds for the sources behind it too, as in the reference.
    fn check_git(
        &self,
        transfer: &Transfer<'_>,
        git: &GitRef,
        word: &Word,
        checksum: &mut String,
        keep_git_dir: &mut Option<bool>,
    ) -> Result<()> {
        let fail = |message: &str| self.wrong("invalid-git-source", message.to_owned(), word);
        if !transfer.is_add {
            let error = fail("source can't be a git ref for COPY");
            return Err(Box::new(error.help("ADD takes git references")));
        }
        if let Some(keep) = git.keep_git_dir {
            if keep_git_dir.is_some_and(|former| former != keep) {
                return Err(fail("inconsistent keep-git-dir configuration"));
            }
            *keep_git_dir = Some(keep);
        }
        if !git.checksum.is_empty() {
            if !checksum.is_empty() && *checksum != git.checksum {
                return Err(fail(&format!(
                    "checksum mismatch {} != {}",
                    quote(checksum),
                    quote(&git.checksum)
                )));
            }
            checksum.clone_from(&git.checksum);
        }
        Ok(())
    }

    /// Warns of a source that the ignore file leaves out of the context.
    fn check_ignored(&mut self, transfer: &Transfer<'_>, source: &str, word: &Word) -> Result<()> {
        let (Some(file), Some(matcher)) = (self.plan.options.ignore, &self.plan.ignore) else {
            return Ok(());
        };
        // With exceptions it would depend on the files.
        if !transfer.is_from_context || matcher.has_exceptions() || matcher.is_empty() {
            return Ok(());
        }
        let path = paths::clean(source);
        let is_root = path == "." || path == "/";
        if is_root
            && !file
                .lines
                .iter()
                .any(|line| EVERYTHING.contains(&line.pattern.as_str()))
        {
            return Ok(());
        }
        let matched = matcher
            .matched(&path)
            .map_err(|error| Box::new(failure("invalid-ignore", error.to_string())))?;
        if !matched.is_ignored() {
            return Ok(());
        }
        let instruction = if transfer.is_add { "Add" } else { "Copy" };
        let message = format!(
            "Attempting to {instruction} file {} that is excluded by .dockerignore",
            quote(&path)
        );
        let mut finding = self.finding(Rule::CopyIgnoredFile, word, message, "not in the context");
        if let Some((pattern, Some(line))) = matcher.reason(&matched) {
            finding = finding.help(format!(
                "excluded by `{pattern}` in line {line} of the ignore file"
            ));
        }
        self.warn(Rule::CopyIgnoredFile, finding);
        Ok(())
    }

    fn wrong(&self, code: &'static str, message: String, word: &Word) -> Box<crate::Diagnostic> {
        Box::new(failure(code, message).label(self.place(word).span, "here"))
    }
}

/// Checks the digest of a file; the error is the reference's.
pub(super) fn check_digest(text: &str) -> Result<(), String> {
    text.parse::<Digest>()
        .map(drop)
        .map_err(|error| digest_reason(&error))
}

/// Returns why a text is no digest, in the words of the reference.
pub(super) fn digest_reason(error: &DigestError) -> String {
    match error {
        DigestError::Format { .. } => "invalid checksum digest format".to_owned(),
        DigestError::Algorithm { .. } => "unsupported digest algorithm".to_owned(),
        DigestError::Encoding { text, expected } => {
            let length = text.split_once(':').map_or(0, |(_, hex)| hex.len());
            let what = if length == *expected {
                "format"
            } else {
                "length"
            };
            format!("invalid checksum digest {what}")
        }
        error => error.to_string(),
    }
}

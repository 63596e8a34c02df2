//! `ADD` and `COPY`.

use crate::flags::{FlagKind, FlagSpecs};
use crate::heredoc::{chomp_tabs, parse_heredoc_word};
use crate::{Add, Copy, InlineFile, Word};

use super::{Reader, Result};

const ADD_FLAGS: FlagSpecs = &[
    ("chown", FlagKind::Value),
    ("chmod", FlagKind::Value),
    ("link", FlagKind::Bool),
    ("keep-git-dir", FlagKind::Bool),
    ("checksum", FlagKind::Value),
    ("unpack", FlagKind::Bool),
    ("exclude", FlagKind::Values),
];
const COPY_FLAGS: FlagSpecs = &[
    ("chown", FlagKind::Value),
    ("from", FlagKind::Value),
    ("chmod", FlagKind::Value),
    ("link", FlagKind::Bool),
    ("exclude", FlagKind::Values),
    ("parents", FlagKind::Bool),
];

impl Reader<'_> {
    pub(super) fn add(&self) -> Result<Add> {
        self.check_destination("ADD")?;
        let flags = self.flags(ADD_FLAGS)?;
        let Files {
            sources,
            contents,
            dest,
        } = self.files("ADD")?;
        Ok(Add {
            sources,
            contents,
            dest,
            chown: flags.value("chown"),
            chmod: flags.value("chmod"),
            link: flags.bool("link").unwrap_or_default(),
            exclude: flags.values("exclude").cloned().collect(),
            keep_git_dir: flags.bool("keep-git-dir"),
            checksum: flags.value("checksum"),
            unpack: flags.bool("unpack"),
        })
    }

    pub(super) fn copy(&self) -> Result<Copy> {
        self.check_destination("COPY")?;
        let flags = self.flags(COPY_FLAGS)?;
        let Files {
            sources,
            contents,
            dest,
        } = self.files("COPY")?;
        Ok(Copy {
            from: flags.value("from"),
            sources,
            contents,
            dest,
            chown: flags.value("chown"),
            chmod: flags.value("chmod"),
            link: flags.bool("link").unwrap_or_default(),
            exclude: flags.values("exclude").cloned().collect(),
            parents: flags.bool("parents").unwrap_or_default(),
        })
    }

    fn check_destination(&self, name: &str) -> Result<()> {
        if self.words().len() >= 2 {
            return Ok(());
        }
        let message = format!(
            "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        );
        let span = self
            .words()
            .first()
            .map_or(self.node.keyword.span, |word| word.span);
        let error = self
            .error("missing-destination", message)
            .label(span, "no destination behind this");
        Err(Box::new(
            error.help(format!("write {name} SOURCE... DESTINATION")),
        ))
    }

    /// Tells sources that are heredocs from paths. There are at least two words.
    fn files(&self, name: &str) -> Result<Files> {
        let (dest, words) = self
            .words()
            .split_last()
            .ok_or_else(|| self.at_least_one(name))?;
        if parse_heredoc_word(&dest.text).is_some() {
            let message = format!("{name} cannot accept a heredoc as a destination");
            let error = self
                .error("invalid-heredoc", message)
                .label(dest.span, "the destination");
            return Err(Box::new(
                error.help(format!("write {name} <<FILE /path/to/destination")),
            ));
        }
        let mut files = Files {
            sources: Vec::new(),
            contents: Vec::new(),
            dest: dest.clone(),
        };
        for word in words {
            let Some(head) = parse_heredoc_word(&word.text) else {
                files.sources.push(word.clone());
                continue;
            };
            // Of several heredocs with one name the last counts.
            let content = self.node.heredocs.iter().rfind(|doc| doc.name == head.name);
            let content = content.map_or("", |doc| doc.content.as_str());
            let data = if head.chomp {
                chomp_tabs(content)
            } else {
                content.to_owned()
            };
            files.contents.push(InlineFile {
                path: head.name,
                data,
                expand: head.expand,
                span: word.span,
            });
        }
        Ok(files)
    }
}

/// The files of `ADD` and `COPY`.
struct Files {
    sources: Vec<Word>,
    contents: Vec<InlineFile>,
    dest: Word,
}

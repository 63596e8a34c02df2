//! Git repositories: contexts and ADD. Fetched by the git program, as the reference does, and pinned to a commit.

use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};
use std::time::{Duration, SystemTime};

use llb::{SourceOp, attr};
use oci::without_user_info;
use progress::RunningVertex;
use store::Layer;

use super::git_program::{ALLOWED_PROTOCOLS, Git, GitAccess, Remote};
use super::temporary;
use crate::EngineError;
use crate::step::Shared;

/// A repository at a commit.
#[derive(Debug, Clone)]
pub(crate) struct GitTree {
    wanted: Wanted,
    /// What is fetched: a full name of a branch or tag, or the commit itself.
    reference: String,
    /// What the reference leads to: a commit, or the object of an annotated tag.
    object: String,
    /// The commit, where the object is a tag.
    commit: Option<String>,
    /// Its tree, if it was needed before the build began.
    pub(crate) unpacked: Option<Vec<Layer>>,
}

/// What a source asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    remote: Remote,
    /// Empty for the default branch.
    reference: String,
    folder: String,
    keep_git_dir: bool,
    checksum: String,
    submodules: bool,
    /// Files get the time of the commit.
    commit_times: bool,
    fetch_by_commit: bool,
}

impl Wanted {
    fn of(source: &SourceOp) -> Self {
        let attribute = |name: &str| source.attrs.get(name).cloned().unwrap_or_default();
        let is_set = |name: &str| attribute(name) == "true";
        let (place, fragment) = source
            .identifier
            .split_once('#')
            .unwrap_or((&source.identifier, ""));
        let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
        let remote = attribute(attr::FULL_REMOTE_URL);
        let url = match remote.is_empty() {
            true => place.to_owned(),
            false => remote,
        };
        Self {
            remote: Remote::new(
                url,
                attribute(attr::MOUNT_SSH_SOCK),
                attribute(attr::KNOWN_SSH_HOSTS),
            ),
            reference: reference.to_owned(),
            folder: folder.trim_matches('/').to_owned(),
            keep_git_dir: is_set(attr::KEEP_GIT_DIR),
            checksum: attribute(attr::GIT_CHECKSUM),
            submodules: !is_set(attr::GIT_SKIP_SUBMODULES),
            commit_times: attribute(attr::GIT_MTIME) == "commit",
            fetch_by_commit: is_set(attr::GIT_FETCH_BY_COMMIT),
        }
    }
}

/// Finds the commit a source leads to now.
pub(crate) fn pin(
    access: &GitAccess,
    source: &SourceOp,
    running: &RunningVertex,
) -> Result<GitTree, EngineError> {
    let wanted = Wanted::of(source);
    let shown = without_user_info(&wanted.remote.url);
    check_remote(&wanted.remote.url)?;
    if wanted.reference.starts_with('-') {
        return Err(EngineError::Request(format!(
            "invalid git reference {:?}: it reads as an option",
            wanted.reference
        )));
    }
    if !wanted.checksum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(EngineError::Request(format!(
            "invalid checksum {:?} of {shown}: expected hex commit hash",
            wanted.checksum
        )));
    }
    let (reference, object, commit) = if is_commit(&wanted.reference) {
        (wanted.reference.clone(), wanted.reference.clone(), None)
    } else if wanted.fetch_by_commit {
        if !is_commit(&wanted.checksum) {
            return Err(EngineError::Request(format!(
                "fetch-by-commit of {shown} needs the whole commit as checksum, not {:?}",
                wanted.checksum
            )));
        }
        (wanted.checksum.clone(), wanted.checksum.clone(), None)
    } else {
        ask_remote(access, &wanted, running)?
    };
    let is_expected = |found: &str| found.starts_with(&wanted.checksum.to_ascii_lowercase());
    if !is_expected(&object) && !commit.as_deref().is_some_and(is_expected) {
        let found = commit.as_ref().unwrap_or(&object);
        return Err(EngineError::Request(format!(
            "checksum mismatch of {shown}: expected checksum to match {}, got {found}",
            wanted.checksum
        )));
    }
    Ok(GitTree {
        wanted,
        reference,
        object,
        commit,
        unpacked: None,
    })
}

/// Refuses what git would read as anything but a repository of a server: a path or a bundle of this machine, a remote
/// helper, an option.
fn check_remote(remote: &str) -> Result<(), EngineError> {
    let is_host = |host: &str| {
        let host = host.rsplit('@').next().unwrap_or(host);
        !host.is_empty() && !host.starts_with('-')
    };
    let is_good = match remote.split_once("://") {
        Some((scheme, rest)) => {
            let authority = rest.split('/').next().unwrap_or(rest);
            ALLOWED_PROTOCOLS.contains(&scheme) && is_host(authority) && !authority.starts_with('-')
        }
        // As scp has it: what is before the colon is a host if no slash is.
        None => remote.split_once(':').is_some_and(|(host, path)| {
            is_host(host)
                && !host.starts_with('-')
                && !host.contains('/')
                && !path.is_empty()
                && !path.starts_with([':', '-'])
        }),
    };
    match is_good && !remote.contains(char::is_control) {
        true => Ok(()),
        false => Err(EngineError::Request(format!(
            "invalid git repository {:?}: it is fetched by https, http, ssh or git, as https://host/path or user@host:path",
            without_user_info(remote)
        ))),
    }
}

/// Returns whether a text is the whole name of a commit.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64)
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Asks a remote what a reference leads to: its full name, its object, and the commit of an annotated tag.
fn ask_remote(
    access: &GitAccess,
    wanted: &Wanted,
    running: &RunningVertex,
) -> Result<(String, String, Option<String>), EngineError> {
    let git = Git::bare(access, &wanted.remote, running);
    if wanted.reference.is_empty() {
        let listing = git.run(&["ls-remote", "--symref", "--", &wanted.remote.url, "HEAD"])?;
        let branch = listing
            .lines()
            .find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"))
            // What the server says is its name goes to git again.
            .filter(|branch| branch.starts_with("refs/") && !branch.contains([':', '*', '^']));
        let objects = listing
            .lines()
            .filter_map(|line| line.strip_suffix("\tHEAD"));
        let object = objects.into_iter().find(|object| is_commit(object));
        return match object {
            Some(object) => Ok((branch.unwrap_or("HEAD").to_owned(), object.to_owned(), None)),
            None => Err(EngineError::Request(format!(
                "{} has no default branch; name one behind #",
                without_user_info(&wanted.remote.url)
            ))),
        };
    }
    let name = wanted.reference.as_str();
    let peeled = format!("{name}^{{}}");
    let listing = git.run(&["ls-remote", "--", &wanted.remote.url, name, &peeled])?;
    let find = |full: &str| {
        let mut lines = listing.lines().filter_map(|line| line.split_once('\t'));
        lines.find_map(|(object, found)| (found == full).then(|| object.to_owned()))
    };
    let bare = |prefix: &str| format!("{prefix}{}", name.strip_prefix(prefix).unwrap_or(name));
    // As git checkout has it: what is named in full, then a branch, then a tag.
    for full in [bare("refs/"), bare("refs/heads/")] {
        if let Some(object) = find(&full) {
            return Ok((full.clone(), object, find(&format!("{full}^{{}}"))));
        }
    }
    let tag = bare("refs/tags/");
    match find(&tag) {
        Some(object) => Ok((tag.clone(), object, find(&format!("{tag}^{{}}")))),
        None => Err(EngineError::Request(format!(
            "{} has no branch or tag {name:?}",
            without_user_info(&wanted.remote.url)
        ))),
    }
}

impl GitTree {
    /// Returns what decides on the tree, and where it is from: who names a commit gets what the remote gave of it, not what
    /// another remote gave to someone else.
    pub(crate) fn identity(&self) -> String {
        let Wanted {
            remote,
            folder,
            keep_git_dir,
            submodules,
            commit_times,
            ..
        } = &self.wanted;
        let mut text = format!(
            "{:?} {} {folder:?}",
            without_user_info(&remote.url),
            self.commit()
        );
        if *keep_git_dir {
            text.push_str(&format!(" {} {}", self.object, self.reference));
        }
        if !submodules {
            text.push_str(" without submodules");
        }
        if *commit_times {
            text.push_str(" times of the commit");
        }
        text
    }

    /// Returns the repository, with the reference that was asked for as its fragment.
    pub(crate) fn place(&self) -> String {
        match self.wanted.reference.is_empty() {
            true => self.wanted.remote.url.clone(),
            false => format!("{}#{}", self.wanted.remote.url, self.wanted.reference),
        }
    }

    /// Returns the commit it is at.
    pub(crate) fn commit(&self) -> &str {
        self.commit.as_ref().unwrap_or(&self.object)
    }

    /// Returns when the commit was made, in seconds since 1970.
    pub(crate) fn time(
        &self,
        access: &GitAccess,
        running: &RunningVertex,
    ) -> Result<i64, EngineError> {
        let folder = temporary("git")?;
        let git = Git::new(access, &self.wanted.remote, folder.path(), None, running);
        self.fetch(&git)?;
        commit_time(&git, self.commit())
    }

    /// Returns the commit as git keeps it.
    pub(crate) fn commit_object(
        &self,
        access: &GitAccess,
        running: &RunningVertex,
    ) -> Result<Vec<u8>, EngineError> {
        let folder = temporary("git")?;
        let git = Git::new(access, &self.wanted.remote, folder.path(), None, running);
        self.fetch(&git)?;
        git.run_for_bytes(&["cat-file", "commit", self.commit()])
    }

    /// Checks the commit out.
    pub(crate) fn unpack(
        &self,
        shared: &Shared,
        access: &GitAccess,
        running: &RunningVertex,
    ) -> Result<Vec<Layer>, EngineError> {
        if let Some(layers) = &self.unpacked {
            return Ok(layers.clone());
        }
        let layer = shared.new_layer(&[])?;
        let root = layer.path();
        let whole = self.wanted.folder.is_empty();
        let hidden = temporary("git")?;
        // What is not asked for is never at a place where it could be taken for what is.
        let part = match whole {
            true => None,
            false => Some(
                tempfile::Builder::new()
                    .tempdir_in(&root)
                    .map_err(EngineError::io("create a directory in", &root))?,
            ),
        };
        let work = part.as_ref().map_or(root.as_path(), |part| part.path());
        let git_dir = match self.wanted.keep_git_dir && whole {
            true => work.join(".git"),
            false => hidden.path().join("repository"),
        };
        let git = Git::new(access, &self.wanted.remote, &git_dir, Some(work), running);
        self.fetch(&git)?;
        git.run(&["checkout", "--quiet", "--force", "--detach", self.commit()])?;
        if self.wanted.submodules && work.join(".gitmodules").is_file() {
            update_submodules(&git, &git_dir)?;
        }
        if git_dir.starts_with(work) {
            self.tidy(&git, &git_dir)?;
        }
        let time = match self.wanted.commit_times {
            true => Some(commit_time(&git, self.commit())?),
            false => None,
        };
        if let Some(part) = part {
            move_up(part.path(), &self.wanted.folder, &root)?;
            part.close()
                .map_err(EngineError::io("remove a directory in", &root))?;
        }
        settle(&root, true, self.wanted.keep_git_dir && whole, time)
            .map_err(EngineError::io("set the attributes of files in", &root))?;
        Ok(vec![shared.commit(layer, "git checkout")?])
    }

    /// Brings the commit into an empty repository.
    fn fetch(&self, git: &Git<'_>) -> Result<(), EngineError> {
        let mut init = vec!["init", "--quiet"];
        if self.object.len() == 64 {
            init.push("--object-format=sha256");
        }
        git.run(&init)?;
        // What addresses of submodules are relative to.
        git.run(&["remote", "add", "origin", &self.wanted.remote.url])?;
        let commit = self.commit();
        let has_commit = || -> Result<bool, EngineError> {
            let object = format!("{commit}^{{commit}}");
            Ok(git.attempt(&["cat-file", "-e", &object])?.is_ok())
        };
        let remote = self.wanted.remote.url.as_str();
        let shallow = ["fetch", "--quiet", "--depth=1", "--no-tags", "--"];
        // By its name the commit is the one that was pinned, whatever its branch is at by now. Not every server has it.
        for wanted in [commit, &self.reference] {
            let mut arguments = shallow.to_vec();
            arguments.extend([remote, wanted]);
            if git.attempt(&arguments)?.is_ok() && has_commit()? {
                return Ok(());
            }
        }
        let all = [
            "fetch",
            "--quiet",
            "--",
            remote,
            "+refs/heads/*:refs/remotes/origin/*",
            "+refs/tags/*:refs/tags/*",
        ];
        git.run(&all)?;
        match has_commit()? {
            true => Ok(()),
            false => Err(EngineError::Request(format!(
                "{} has no commit {commit} in its branches and tags",
                without_user_info(remote)
            ))),
        }
    }

    /// Makes of a repository that is kept what a clone of it would be, without what this fetch has left.
    fn tidy(&self, git: &Git<'_>, git_dir: &Path) -> Result<(), EngineError> {
        let shown = without_user_info(&self.wanted.remote.url);
        git.run(&["remote", "set-url", "origin", &shown])?;
        if self.wanted.submodules {
            // Addresses relative to that of the repository were made of the one that was used.
            git.run(&["submodule", "--quiet", "sync", "--recursive"])?;
        }
        if self.reference.starts_with("refs/") {
            let update = ["update-ref", &self.reference, &self.object];
            if git.attempt(&update)?.is_err() {
                // The object of the tag itself did not come along.
                git.run(&["update-ref", &self.reference, self.commit()])?;
            }
        }
        git.run(&["reflog", "expire", "--all", "--expire=now"])?;
        for name in ["FETCH_HEAD", "hooks", "description", "logs"] {
            let path = git_dir.join(name);
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(EngineError::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Checks out the submodules of a work tree, and theirs.
fn update_submodules(git: &Git<'_>, git_dir: &Path) -> Result<(), EngineError> {
    let update = ["submodule", "--quiet", "update", "--init", "--recursive"];
    let mut shallow = update.to_vec();
    shallow.push("--depth=1");
    if git.attempt(&shallow)?.is_ok() {
        return Ok(());
    }
    // Not every server cuts a history off, or has a commit that no branch is at: begin again, with all of it.
    let _ = git.attempt(&["submodule", "--quiet", "deinit", "--all", "--force"])?;
    let modules = git_dir.join("modules");
    match std::fs::remove_dir_all(&modules) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(EngineError::io("remove", &modules)(error));
        }
        _ => {}
    }
    git.run(&update).map(drop)
}

fn commit_time(git: &Git<'_>, commit: &str) -> Result<i64, EngineError> {
    let text = git.run(&["show", "--no-patch", "--format=%ct", commit])?;
    text.trim()
        .parse()
        .map_err(|_| EngineError::Request(format!("commit {commit} has no time: {text:?}")))
}

/// Moves what a folder of a work tree holds to the root; the way to it may lead through directories only.
fn move_up(work: &Path, folder: &str, root: &Path) -> Result<(), EngineError> {
    let mut from = work.to_owned();
    for component in Path::new(folder).components() {
        let Component::Normal(name) = component else {
            continue;
        };
        from.push(name);
        let is_directory = std::fs::symlink_metadata(&from).is_ok_and(|meta| meta.is_dir());
        if !is_directory {
            return Err(EngineError::Request(format!(
                "the repository has no directory {folder:?}"
            )));
        }
    }
    let entries = std::fs::read_dir(&from).map_err(EngineError::io("list", &from))?;
    for entry in entries {
        let entry = entry.map_err(EngineError::io("list", &from))?;
        let to = root.join(entry.file_name());
        std::fs::rename(entry.path(), &to).map_err(EngineError::io("move", &to))?;
    }
    Ok(())
}

/// Gives files the modes git keeps, whatever the mask of this process, and all the time of the commit if asked for.
/// Links of submodules to their repositories lead nowhere without one; they go.
fn settle(folder: &Path, is_root: bool, keep_git: bool, time: Option<i64>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let meta = entry.metadata()?;
        if entry.file_name() == ".git" {
            if keep_git {
                continue;
            }
            if meta.is_file() && !is_root {
                std::fs::remove_file(&path)?;
                continue;
            }
        }
        if meta.is_dir() {
            settle(&path, false, keep_git, time)?;
            set_attributes(&path, 0o755, time)?;
        } else if meta.is_file() {
            let is_executable = meta.permissions().mode() & 0o100 != 0;
            set_attributes(&path, if is_executable { 0o755 } else { 0o644 }, time)?;
        } else if let Some(time) = time {
            let time = rustix::fs::Timespec {
                tv_sec: time,
                tv_nsec: 0,
            };
            let times = rustix::fs::Timestamps {
                last_access: time,
                last_modification: time,
            };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags)?;
        }
    }
    match (is_root, time) {
        (true, Some(_)) => set_attributes(folder, 0o755, time),
        _ => Ok(()),
    }
}

fn set_attributes(path: &Path, mode: u32, time: Option<i64>) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if let Some(time) = time {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time.max(0) as u64);
        std::fs::File::open(path)?.set_modified(time)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_source_is_read_as_the_frontend_writes_it() {
        let git =
            dockerfile::git::GitRef::parse("https://u:p@h.example/o/r.git#v1:a/b?submodules=0");
        let git = git.unwrap_or_default();
        let source = frontend::git_source(&git, true, "abc");
        let wanted = Wanted::of(&source);
        assert_eq!(wanted.remote.url, git.remote);
        assert!(wanted.keep_git_dir);
        assert_eq!(wanted.checksum, "abc");
        let source = SourceOp {
            identifier: "git://h/r.git#refs/tags/v1:a/b".to_owned(),
            ..SourceOp::default()
        };
        let wanted = Wanted::of(&source);
        assert_eq!(
            (wanted.reference.as_str(), wanted.folder.as_str()),
            ("refs/tags/v1", "a/b")
        );
        assert_eq!(wanted.remote.url, "git://h/r.git");
        assert!(wanted.submodules);
    }

    #[test]
    fn repositories_are_those_of_servers() {
        for good in [
            "https://h/r.git",
            "http://u:p@h:80/r",
            "ssh://git@h:22/r.git",
            "git://h/r",
            "git@h:r.git",
            "h:o/r.git",
            "git@h:/abs/r.git",
        ] {
            assert!(check_remote(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/srv/r.git",
            "./r.git",
            "../r",
            "r.git",
            "file:///srv/r.git",
            "FILE:///srv/r.git",
            "ext::sh -c id",
            "foo::bar",
            "fd::3",
            "https::/srv/r.git",
            "git@h::r",
            "ftp://h/r.git",
            "rsync://h/r",
            "--upload-pack=id",
            "-oProxyCommand=id:r",
            "-oProxyCommand=id@h:r",
            "ssh://-oProxyCommand=id/r",
            "ssh://git@-oProxyCommand=id/r",
            "git@-oProxyCommand=id:r",
            "git@h:--upload-pack=id",
            "https:///r.git",
            "./a:b",
            "/srv/a:b",
            "https://h/r\n.git",
        ] {
            let told = check_remote(bad).expect_err(bad).to_string();
            assert!(told.starts_with("invalid git repository"), "{told}");
        }
    }

    #[test]
    fn a_graph_cannot_have_git_read_this_machine() {
        let folder = temporary("git").expect("a directory");
        let made = Command::new("git")
            .args(["init", "-q", "--bare"])
            .arg(folder.path())
            .status();
        if !made.is_ok_and(|made| made.success()) {
            testkit::skip!("git is not installed");
        }
        let sink = progress::Sink::discard();
        let running = sink.vertex(progress::Vertex::named("git")).start();
        let path = folder.path().to_str().expect("a temporary directory");
        for remote in [path.to_owned(), format!("file://{path}")] {
            let source = SourceOp {
                identifier: "git://h/r.git".to_owned(),
                attrs: BTreeMap::from([(attr::FULL_REMOTE_URL.to_owned(), remote.clone())]),
            };
            let told = pin(&GitAccess::default(), &source, &running).expect_err("refused");
            assert!(
                told.to_string().contains("invalid git repository"),
                "{told}"
            );
            // Git itself would refuse it too, for submodules.
            let access = GitAccess::default();
            let place = Remote::new(remote.clone(), String::new(), String::new());
            let git = Git::bare(&access, &place, &running);
            let told = git
                .attempt(&["ls-remote", "--", &remote])
                .expect("git runs");
            let told = told.expect_err("refused");
            assert!(told.contains("transport 'file' not allowed"), "{told}");
        }
    }

    #[test]
    fn a_commit_of_one_remote_is_not_that_of_another() {
        let identity = |url: &str| {
            let source = SourceOp {
                identifier: format!("git://h/r.git#{}", "a".repeat(40)),
                attrs: BTreeMap::from([(attr::FULL_REMOTE_URL.to_owned(), url.to_owned())]),
            };
            let sink = progress::Sink::discard();
            let running = sink.vertex(progress::Vertex::named("git")).start();
            let tree = pin(&GitAccess::default(), &source, &running).expect("a commit is itself");
            tree.identity()
        };
        let one = identity("https://h/r.git");
        assert_ne!(one, identity("https://other/r.git"));
        assert_ne!(one, identity("https://h/r2.git"));
        // Who asks for it is no part of it.
        assert_eq!(one, identity("https://token@h/r.git"));
    }
}

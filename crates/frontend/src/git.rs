//! Sources that fetch git repositories.

use dockerfile::git::GitRef;
use dockerfile::paths;
use llb::{SourceOp, attr};

/// Returns the source of a repository.
///
/// Equal repositories have equal identifiers, whichever protocol fetches them.
pub fn git_source(git: &GitRef, keep_git_dir: bool, checksum: &str) -> SourceOp {
    let remote = match git.is_like_local {
        true => format!("https://{}", git.remote),
        false => git.remote.clone(),
    };
    let (is_ssh, host, path) = parts(&remote);
    let mut identifier = format!("git://{host}{}", paths::join("/", path));
    if !git.reference.is_empty() || !git.sub_dir.is_empty() {
        identifier.push('#');
        identifier.push_str(&git.reference);
        if !git.sub_dir.is_empty() {
            identifier.push(':');
            identifier.push_str(&git.sub_dir);
        }
    }
    let mut source = SourceOp {
        identifier,
        ..SourceOp::default()
    };
    let mut set = |name: &str, value: &str| {
        source.attrs.insert(name.to_owned(), value.to_owned());
    };
    set(attr::FULL_REMOTE_URL, &remote);
    set(attr::AUTH_TOKEN_SECRET, "GIT_AUTH_TOKEN");
    set(attr::AUTH_HEADER_SECRET, "GIT_AUTH_HEADER");
    if keep_git_dir {
        set(attr::KEEP_GIT_DIR, "true");
    }
    if is_ssh {
        set(attr::MOUNT_SSH_SOCK, "default");
    }
    if !checksum.is_empty() {
        set(attr::GIT_CHECKSUM, checksum);
    }
    if git.submodules == Some(false) {
        set(attr::GIT_SKIP_SUBMODULES, "true");
    }
    if !git.mtime.is_empty() {
        set(attr::GIT_MTIME, &git.mtime);
    }
    if git.fetch_by_commit {
        set(attr::GIT_FETCH_BY_COMMIT, "true");
    }
    source
}

/// Returns whether a remote is reached by ssh, its host and its path.
fn parts(remote: &str) -> (bool, &str, &str) {
    let without_user = |authority: &'_ str| authority.rfind('@').map_or(0, |at| at + 1);
    match remote.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            (scheme == "ssh", &authority[without_user(authority)..], path)
        }
        None => {
            let (authority, path) = remote.split_once(':').unwrap_or((remote, ""));
            (true, &authority[without_user(authority)..], path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_a_repository_does_not_depend_on_the_protocol() {
        let identifier =
            |text: &str| git_source(&GitRef::parse(text).unwrap(), false, "").identifier;
        for text in [
            "git@h.example:o/r.git#v1:d",
            "https://u:p@h.example/o/r.git#v1:d",
            "ssh://git@h.example/o/r.git#v1:d",
        ] {
            assert_eq!(identifier(text), "git://h.example/o/r.git#v1:d");
        }
        assert_eq!(identifier("github.com/o/r"), "git://github.com/o/r");
    }

    #[test]
    fn a_source_says_how_to_fetch() {
        let git = GitRef::parse("git@h.example:r.git?submodules=0").unwrap();
        let attrs = git_source(&git, true, "abc").attrs;
        for (name, value) in [
            (attr::KEEP_GIT_DIR, "true"),
            (attr::MOUNT_SSH_SOCK, "default"),
            (attr::GIT_CHECKSUM, "abc"),
            (attr::GIT_SKIP_SUBMODULES, "true"),
            (attr::FULL_REMOTE_URL, "git@h.example:r.git"),
        ] {
            assert_eq!(attrs.get(name).map(String::as_str), Some(value), "{name}");
        }
    }
}

//! Words about a Dockerfile that is not there.

use std::path::Path;

use crate::EngineError;

/// As many files are named that may be meant.
const MOST_NAMED: usize = 5;

/// Says that there is no Dockerfile under a path of this machine, and which one may be meant.
pub(crate) fn missing_file(path: &Path, context: &Path) -> EngineError {
    let below = context.join(path);
    let folder = path.parent().unwrap_or(Path::new(""));
    let hint = if path.is_relative() && below != path && below.is_file() {
        format!(
            "there is {}, and --file begins at the working directory, not at the context",
            below.display()
        )
    } else {
        let here = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        match like_dockerfiles(here).as_slice() {
            _ if !here.is_dir() => format!("there is no directory {}", here.display()),
            [] => "write one, or name another with --file".to_owned(),
            names => format!("name another with --file: there is {}", names.join(", ")),
        }
    };
    EngineError::Request(format!(
        "failed to read the Dockerfile: there is no file {}; {hint}",
        path.display()
    ))
}

/// Says that a directory is where the Dockerfile should be, and which file in it may be meant.
pub(crate) fn directory_for_file(path: &Path) -> EngineError {
    let hint = match like_dockerfiles(path).as_slice() {
        [] => "name the file with --file".to_owned(),
        names => format!("name the file with --file: there is {}", names.join(", ")),
    };
    EngineError::Request(format!(
        "failed to read the Dockerfile: {} is a directory; {hint}",
        path.display()
    ))
}

/// Says that there is no Dockerfile under a path of a context that came as an archive or from elsewhere.
pub(crate) fn missing_in_context(path: &str) -> EngineError {
    EngineError::Request(format!(
        "failed to read the Dockerfile: there is no file {path} in the context; name another with --file"
    ))
}

/// Returns the files of a directory that are named like Dockerfiles, in order.
fn like_dockerfiles(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_like = |name: &String| {
        let lower = name.to_lowercase();
        !lower.ends_with(".dockerignore")
            && ["dockerfile", "containerfile"]
                .iter()
                .any(|word| lower.starts_with(word) || lower.ends_with(word))
    };
    let mut names: Vec<String> = names
        .filter(is_like)
        .map(|name| directory.join(name).display().to_string())
        .map(|path| path.trim_start_matches("./").to_owned())
        .collect();
    names.sort();
    names.truncate(MOST_NAMED);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_may_be_meant_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir(root.join("app")).unwrap();
        std::fs::create_dir(root.join("empty")).unwrap();
        for name in [
            "app/Containerfile",
            "app/Dockerfile.dev",
            "app/x.dockerignore",
        ] {
            std::fs::write(root.join(name), "").unwrap();
        }
        let check = |path: &str, expected: &str| {
            let said = missing_file(&root.join(path), &root.join("app")).to_string();
            let said = said.replace(root.to_str().unwrap(), "ROOT");
            let (_, hint) = said.split_once("; ").unwrap();
            assert_eq!(hint, expected);
        };
        check("empty/Dockerfile", "write one, or name another with --file");
        check(
            "app/Dockerfile",
            "name another with --file: there is ROOT/app/Containerfile, ROOT/app/Dockerfile.dev",
        );
        check("nowhere/Dockerfile", "there is no directory ROOT/nowhere");
        let said = directory_for_file(&root.join("empty")).to_string();
        assert!(
            said.ends_with("empty is a directory; name the file with --file"),
            "{said}"
        );
        let said = directory_for_file(&root.join("app")).to_string();
        assert!(
            said.contains("--file: there is ") && said.contains("app/Containerfile, "),
            "{said}"
        );
        let said = missing_file(Path::new("Dockerfile.dev"), &root.join("app")).to_string();
        assert!(said.ends_with("--file begins at the working directory, not at the context"));
    }
}

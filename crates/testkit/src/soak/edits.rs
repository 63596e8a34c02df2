//! Edits a context at random: what a build takes from its records equals what it makes without them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Chance, Trial};
use crate::times::{set_times, times_of};
use crate::{Environment, Outcome};

const DOCKERFILE: &str = "FROM busybox AS parts
WORKDIR /parts
COPY one one/
COPY --chmod=640 two/*.txt two/
RUN --mount=type=bind,source=three,target=/three find /three -type f -exec sha256sum {} + | sort > sums
FROM busybox AS list
COPY --from=parts /parts/two /two
COPY --from=parts /parts/one/deep /deep
RUN ls -lR /deep /two | grep -v '^total' | awk '{print $1, $3, $NF}' > /listing
FROM scratch
COPY --exclude=*.skip . /all/
COPY --from=parts /parts /parts
COPY --from=list /listing /listing
";

const IGNORED: &str = "ignored\n**/*.tmp\n!one/keep.tmp\n";

/// A time after which all files of the context are.
const EPOCH: &str = "1000000000";

/// Edits a context `count` times and builds it after each, with records and without: images are equal bit for
/// bit with `SOURCE_DATE_EPOCH`; without it, config and files are equal, times aside.
///
/// # Panics
///
/// When they are not.
pub fn edits(environment: &Environment, trial: Trial) {
    trial.tell(0);
    let mut chance = Chance(trial.seed);
    let context = environment.work().join("ctx");
    begin(environment);
    for turn in 1..=trial.count {
        let mut done = String::new();
        for _ in 0..=chance.below(3) {
            done.push_str(&edit(&context, &mut chance));
            done.push_str("; ");
        }
        let told = format!("seed {}, turn {turn}: {done}", trial.seed);
        if turn.is_multiple_of(8) {
            equal_without_epoch(environment, &told);
        } else {
            equal_bit_for_bit(environment, &told);
        }
        if turn.is_multiple_of(64) {
            environment.ok(["builder", "prune", "-f", "--keep-storage", "50MB"]);
        }
        trial.tell(turn);
    }
}

fn begin(environment: &Environment) {
    environment.write("ctx/Dockerfile", DOCKERFILE);
    environment.write("ctx/.dockerignore", IGNORED);
    for folder in ["one", "one/deep", "one/deep/er", "two", "three", "ignored"] {
        for number in 0..4 {
            let text = format!("{folder} {number}");
            environment.write(&format!("ctx/{folder}/{number}.txt"), text);
        }
    }
    environment.write("ctx/one/keep.tmp", "kept");
    environment.write("ctx/two/not.tmp", "not kept");
    // Beside the context: the other name of files in it.
    environment.write("beside/link", "linked");
    let work = environment.work();
    fs::hard_link(work.join("beside/link"), work.join("ctx/one/linked")).expect("a link");
}

fn build(environment: &Environment, arguments: &[&str], epoch: bool) -> Outcome {
    let mut command = environment.command(["build", "-q"]);
    command.args(arguments).arg("ctx");
    if epoch {
        command.env("SOURCE_DATE_EPOCH", EPOCH);
    }
    Outcome::of(&mut command)
}

/// The id names the config, which names the tar of each layer.
fn equal_bit_for_bit(environment: &Environment, told: &str) {
    let cached = build(environment, &["-t", "cached"], true);
    let fresh = build(environment, &["--no-cache", "-t", "fresh"], true);
    match (cached.status.success(), fresh.status.success()) {
        (true, true) => assert_eq!(cached.stdout, fresh.stdout, "{told}"),
        // An edit may have taken away what the Dockerfile names; then neither builds.
        (cached_is_built, fresh_is_built) => assert_eq!(
            cached_is_built,
            fresh_is_built,
            "{told}\n{}\n{}",
            cached.told(),
            fresh.told()
        ),
    }
}

fn equal_without_epoch(environment: &Environment, told: &str) {
    let work = environment.work();
    for name in ["cached", "fresh"] {
        let _ = fs::remove_dir_all(work.join(name));
    }
    let cached = build(
        environment,
        &["-t", "cached", "-o", "cached", "--load"],
        false,
    );
    let fresh = ["--no-cache", "-t", "fresh", "-o", "fresh", "--load"];
    let fresh = build(environment, &fresh, false);
    assert_eq!(
        cached.status.success(),
        fresh.status.success(),
        "{told}\n{}\n{}",
        cached.told(),
        fresh.told()
    );
    if !cached.status.success() {
        return;
    }
    let config = |name: &str| {
        let format = "{{json .Config}} {{json .Os}} {{json .Architecture}} {{len .RootFS.Layers}}";
        environment
            .ok(["image", "inspect", "-f", format, name])
            .stdout
    };
    assert_eq!(config("cached"), config("fresh"), "{told}");
    assert_eq!(
        files(&work.join("cached")),
        files(&work.join("fresh")),
        "{told}"
    );
}

/// Describes all files below a folder, in the order of their paths, times aside.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut work = vec![root.to_owned()];
    while let Some(folder) = work.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let meta = path.symlink_metadata().expect("a file");
            let content = match () {
                () if meta.is_symlink() => format!("{:?}", fs::read_link(&path)),
                () if meta.is_file() => format!("{:?}", fs::read(&path)),
                () => String::new(),
            };
            let name = path.strip_prefix(root).unwrap_or(&path).display();
            let owner = (meta.mode(), meta.uid(), meta.gid());
            found.push(format!("{name} {owner:?} {content}"));
            if meta.is_dir() {
                work.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Returns the files of the context that are edited, in order.
fn regular(context: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut work = vec![context.to_owned()];
    while let Some(folder) = work.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let meta = path.symlink_metadata().expect("a file");
            let is_own = path.parent() == Some(context);
            match () {
                () if meta.is_dir() => work.push(path),
                () if meta.is_file() && !is_own => found.push(path),
                () => {}
            }
        }
    }
    found.sort();
    found
}

/// Makes one edit and says what it was.
fn edit(context: &Path, chance: &mut Chance) -> String {
    let files = regular(context);
    let folders = ["one", "one/deep", "one/deep/er", "two", "three", "ignored"];
    let folder = context.join(chance.one(&folders));
    fs::create_dir_all(&folder).expect("a folder");
    if files.len() < 6 {
        let path = folder.join(format!("{}.txt", chance.below(8)));
        fs::write(&path, chance.any().to_string()).expect("a file");
        return format!("add {}", path.display());
    }
    let path = chance.one(&files).clone();
    let other = chance.one(&files).clone();
    let shown = path.display();
    match chance.below(14) {
        0 => {
            fs::write(&path, chance.any().to_string()).expect("a file");
            format!("write {shown}")
        }
        1 | 2 => {
            // Same size, same time of change: only the content is another.
            let times = times_of(&path);
            let mut bytes = fs::read(&path).expect("a file");
            bytes
                .iter_mut()
                .for_each(|byte| *byte = b'a' + (chance.any() % 26) as u8);
            fs::write(&path, bytes).expect("a file");
            set_times(&path, times);
            format!("write {shown} with its old size and time")
        }
        3 => {
            // As `touch -r` does after a copy by an editor: another file in its place.
            let times = times_of(&path);
            let size = fs::metadata(&path).expect("a file").len() as usize;
            let fresh = path.with_extension("new");
            fs::write(&fresh, "z".repeat(size)).expect("a file");
            set_times(&fresh, times);
            fs::rename(&fresh, &path).expect("a rename");
            format!("replace {shown} with its old size and time")
        }
        4 => {
            let between = path.with_extension("between");
            fs::rename(&path, &between).expect("a rename");
            if other != path {
                fs::rename(&other, &path).expect("a rename");
            }
            fs::rename(&between, &other).expect("a rename");
            format!("swap {shown} and {}", other.display())
        }
        5 => {
            let link = context.with_file_name("beside").join("link");
            let times = times_of(&link);
            let text = format!("{:06}", chance.below(1_000_000));
            fs::write(&link, text).expect("a file");
            set_times(&link, times);
            "edit through the other link".to_owned()
        }
        6 => {
            let mode = *chance.one(&[0o644, 0o755, 0o600, 0o4755]);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
            format!("chmod {mode:o} {shown}")
        }
        7 => {
            let mode = *chance.one(&[0o755, 0o700, 0o750, 0o1777]);
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("a mode");
            format!("chmod {mode:o} {}", folder.display())
        }
        8 => {
            fs::remove_file(&path).expect("it is removed");
            format!("remove {shown}")
        }
        9 | 10 => {
            let extension = chance.one(&["txt", "tmp", "skip", "c"]);
            let new = folder.join(format!("{}.{extension}", chance.below(8)));
            if !new.exists() || new.is_file() {
                let _ = fs::remove_file(&new);
                fs::write(&new, chance.any().to_string()).expect("a file");
            }
            format!("add {}", new.display())
        }
        11 => {
            let new = folder.join("link.txt");
            let _ = fs::remove_file(&new);
            let _ = symlink(format!("{}.txt", chance.below(8)), &new);
            format!("link {}", new.display())
        }
        12 => {
            set_times(&path, fs::FileTimes::new().set_modified(SystemTime::now()));
            format!("touch {shown}")
        }
        _ => {
            fs::remove_file(&path).expect("it is removed");
            fs::hard_link(&other, &path).ok();
            format!("link {shown} to {}", other.display())
        }
    }
}

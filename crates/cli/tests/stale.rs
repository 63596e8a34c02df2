//! Changes of a context that are easily overlooked: none may be missed, and nothing else may count.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::SystemTime;

use testkit::times::{set_times, times_of};
use testkit::{Environment, Outcome};

/// Waits until the file system's clock has passed the times of everything made so far: only then is anything
/// remembered of these files.
fn let_files_settle(environment: &Environment) {
    let probe = environment.write("probe", "");
    let clock = || {
        fs::write(&probe, "x").expect("a file");
        let meta = fs::metadata(&probe).expect("a file");
        meta.ctime() * 1000 + meta.ctime_nsec() / 1_000_000
    };
    let start = clock();
    while clock() < start + 60 {
        std::thread::yield_now();
    }
}

/// Writes a file and gives it back the times it had.
fn write_unseen(path: &Path, text: &str) {
    let before = times_of(path);
    fs::write(path, text).expect("a file");
    set_times(path, before);
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

fn begin() -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write(
        "ctx/Dockerfile",
        "FROM scratch AS part\nCOPY part /part/\nFROM scratch AS top\nCOPY *.txt /top/\n\
         FROM scratch\nCOPY --from=part / /\nCOPY --from=top / /\n",
    );
    for name in ["part/one", "part/two", "part/deep/three", "part/empty/four"] {
        environment.write(&format!("ctx/{name}"), name);
    }
    environment.write("ctx/top.txt", "top");
    environment.write("ctx/aside", "aside");
    environment.write("beside", "linked");
    let work = environment.work();
    fs::hard_link(work.join("beside"), work.join("ctx/part/link")).expect("a link");
    symlink("one", work.join("ctx/part/soft")).expect("a link");
    environment
}

fn build(environment: &Environment, out: &str) -> Outcome {
    environment.ok(["build", "--progress=plain", "-o", out, "ctx"])
}

/// Counts the COPY steps that took something of the context.
fn copies(outcome: &Outcome) -> usize {
    let lines = || outcome.stderr.lines();
    let number = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let cached: Vec<String> = lines()
        .filter(|line| line.ends_with(" CACHED"))
        .map(number)
        .collect();
    let steps = lines().filter(|line| line.contains("] COPY ") && !line.contains("--from"));
    let mut ran: Vec<String> = steps.map(number).collect();
    ran.sort();
    ran.dedup();
    ran.retain(|step| !cached.contains(step));
    ran.len()
}

/// Makes one change in a context that was built twice; `expect` says how many of its two COPY have to run.
/// Returns what comes out.
#[track_caller]
fn check(
    what: &str,
    expect: usize,
    change: impl FnOnce(&Path),
) -> (Environment, std::path::PathBuf) {
    let environment = begin();
    let_files_settle(&environment);
    build(&environment, "before");
    assert_eq!(copies(&build(&environment, "again")), 0, "{what}");
    change(&environment.work().join("ctx"));
    let outcome = build(&environment, "after");
    assert_eq!(copies(&outcome), expect, "{what}: {}", outcome.told());
    let out = environment.work().join("after");
    (environment, out)
}

#[track_caller]
fn check_text(what: &str, file: &str, expect: &str, change: impl FnOnce(&Path)) {
    let (_environment, out) = check(what, 1, change);
    let text = fs::read_to_string(out.join(file)).expect("a file");
    assert_eq!(text, expect, "{what}");
}

#[test]
fn content_counts_whatever_size_and_times_say() {
    check_text("same size, same times", "part/one", "part/ONE", |context| {
        write_unseen(&context.join("part/one"), "part/ONE");
    });
    check_text("touch -r", "part/one", "longer than it was", |context| {
        let (file, reference) = (context.join("part/one"), context.join("part/two"));
        fs::write(&file, "longer than it was").expect("a file");
        set_times(&file, times_of(&reference));
    });
    check_text(
        "another file in its place",
        "part/one",
        "part/ONE",
        |context| {
            let (file, fresh) = (context.join("part/one"), context.join("fresh"));
            fs::write(&fresh, "part/ONE").expect("a file");
            set_times(&fresh, times_of(&file));
            fs::rename(&fresh, &file).expect("a rename");
        },
    );
    check_text("a byte in the middle", "part/one", "part-one", |context| {
        use std::os::unix::fs::FileExt;
        let file = context.join("part/one");
        let before = times_of(&file);
        let opened = fs::File::options().write(true).open(&file).expect("a file");
        opened.write_all_at(b"-", 4).expect("room");
        drop(opened);
        set_times(&file, before);
    });
    check_text(
        "a file that a pattern takes",
        "top/top.txt",
        "TOP",
        |context| {
            write_unseen(&context.join("top.txt"), "TOP");
        },
    );
}

#[test]
fn swaps_and_links_count() {
    check_text(
        "two files change places",
        "part/one",
        "part/two",
        |context| {
            let path = |name: &str| context.join("part").join(name);
            fs::rename(path("one"), context.join("between")).expect("a rename");
            fs::rename(path("two"), path("one")).expect("a rename");
            fs::rename(context.join("between"), path("two")).expect("a rename");
        },
    );
    check_text(
        "two folders change places",
        "part/empty/three",
        "part/deep/three",
        |context| {
            let path = |name: &str| context.join("part").join(name);
            fs::rename(path("deep"), context.join("between")).expect("a rename");
            fs::rename(path("empty"), path("deep")).expect("a rename");
            fs::rename(context.join("between"), path("empty")).expect("a rename");
        },
    );
    check_text(
        "an edit through another link",
        "part/link",
        "LINKED",
        |context| {
            write_unseen(&context.with_file_name("beside"), "LINKED");
        },
    );
    let (_environment, out) = check("a symlink with another target", 1, |context| {
        let link = context.join("part/soft");
        fs::remove_file(&link).expect("it is removed");
        symlink("two", &link).expect("a link");
    });
    assert_eq!(
        fs::read_link(out.join("part/soft")).expect("a link"),
        Path::new("two")
    );
    let (_environment, out) = check("a file becomes a folder", 1, |context| {
        fs::remove_file(context.join("part/one")).expect("it is removed");
        fs::create_dir(context.join("part/one")).expect("a folder");
    });
    assert!(out.join("part/one").is_dir());
}

#[test]
fn modes_count_on_files_and_on_folders() {
    for (name, bits) in [
        ("part/one", 0o755),
        ("part/one", 0o4755),
        ("part/one", 0o2755),
        ("part/deep", 0o700),
        ("part/deep", 0o2755),
        ("part/deep", 0o1777),
        ("part/empty", 0o750),
    ] {
        let (_environment, out) = check(&format!("mode {bits:o} of {name}"), 1, |context| {
            mode(&context.join(name), bits);
        });
        let found = fs::metadata(out.join(name)).expect("it is there");
        // Directories of root's get no setuid programs.
        let kept = match found.is_file() && testkit::is_root() {
            true => bits & 0o1777,
            false => bits,
        };
        assert_eq!(found.mode() & 0o7777, kept, "{name}");
    }
}

#[test]
fn extended_attributes_count() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let set = |path: &Path, value: &[u8]| setxattr(path, "user.test", value, XattrFlags::empty());
    let probe = tempfile::NamedTempFile::new().expect("a file");
    if set(probe.path(), b"x").is_err() {
        testkit::skip!("this file system keeps no attributes of users");
    }
    let (_environment, out) = check("an attribute", 1, |context| {
        set(&context.join("part/one"), b"value").expect("an attribute");
    });
    let mut value = [0; 16];
    let length = getxattr(out.join("part/one"), "user.test", &mut value).expect("it is there");
    assert_eq!(&value[..length], b"value");
    check("an attribute of a folder", 1, |context| {
        set(&context.join("part/deep"), b"value").expect("an attribute");
    });
}

#[test]
fn what_comes_and_goes_counts() {
    check("a new file", 1, |context| {
        fs::write(context.join("part/deep/new"), "").expect("a file");
    });
    check("an empty folder", 1, |context| {
        fs::create_dir(context.join("part/new")).expect("a folder");
    });
    check("a file that is gone", 1, |context| {
        fs::remove_file(context.join("part/two")).expect("it is removed");
    });
    check("one that a pattern takes now", 1, |context| {
        fs::rename(context.join("aside"), context.join("aside.txt")).expect("a rename");
    });
    check("one that is ignored now", 1, |context| {
        fs::write(context.join(".dockerignore"), "part/two\n").expect("a file");
    });
}

#[test]
fn nothing_else_counts() {
    check("times", 0, |context| {
        let now = fs::FileTimes::new().set_modified(SystemTime::now());
        set_times(&context.join("part/one"), now);
        set_times(&context.join("part/deep"), now);
    });
    check("files that no step takes", 0, |context| {
        fs::write(context.join("aside"), "changed").expect("a file");
        fs::write(context.join("new"), "new").expect("a file");
    });
    check("the same content in another file", 0, |context| {
        let file = context.join("part/one");
        fs::remove_file(&file).expect("it is removed");
        fs::write(&file, "part/one").expect("a file");
    });
    check(
        "another owner, as all that comes in is root's",
        0,
        |context| {
            let _ = std::os::unix::fs::chown(context.join("part/one"), Some(1234), Some(1234));
        },
    );
    check("a change that is taken back", 0, |context| {
        let file = context.join("part/one");
        fs::write(&file, "other").expect("a file");
        fs::write(&file, "part/one").expect("a file");
    });
}

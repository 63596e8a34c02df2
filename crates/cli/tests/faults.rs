//! Disks that are full, files that were cut: a build fails with a reason, and the store goes on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use testkit::{Environment, Outcome};

/// A small file system of its own, which no process sees but those that are run in it.
struct SmallDisk<'a> {
    environment: &'a Environment,
    place: PathBuf,
    holder: Child,
}

impl<'a> SmallDisk<'a> {
    /// Puts a file system of so many bytes in a place; `None` where that is not allowed, which is said.
    fn new(environment: &'a Environment, place: &Path, bytes: u64) -> Option<Self> {
        if !testkit::is_root()
            || !testkit::has_program("unshare")
            || !testkit::has_program("nsenter")
        {
            println!("skipped: a small file system needs root, unshare and nsenter");
            return None;
        }
        fs::create_dir_all(place).expect("a folder");
        let mount = format!("size={bytes}");
        let mut holder = environment
            .program("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount -t tmpfs -o \"$1\" tmpfs \"$0\" && echo ready && exec cat")
            .arg(place)
            .arg(&mount)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare starts");
        let stdout = holder.stdout.take().expect("a pipe");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let disk = Self {
            environment,
            place: place.to_owned(),
            holder,
        };
        if line != "ready\n" {
            println!("skipped: no file system can be mounted here");
            return None;
        }
        Some(disk)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.environment.program("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .arg("env")
            .arg("-C")
            .arg(self.environment.work())
            .args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Outcome {
        let mut all = vec!["lapstrake"];
        all.extend(words);
        Outcome::of(&mut self.command(&all))
    }

    /// Leaves so many bytes free.
    fn fill(&self, leave: u64) {
        let script = "cat /dev/zero > \"$0/filler\" 2>/dev/null; truncate -s -\"$1\" \"$0/filler\"";
        let place = self.place.to_str().expect("text");
        Outcome::of(&mut self.command(&["sh", "-c", script, place, &leave.to_string()])).success();
    }

    fn relieve(&self) {
        let filler = self.place.join("filler");
        let filler = filler.to_str().expect("text");
        Outcome::of(&mut self.command(&["rm", "-f", filler])).success();
    }

    /// Checks that the store is whole, and that nothing is left of what failed.
    #[track_caller]
    fn is_whole(&self) {
        let checked = self.run(&["system", "check", "--format=json"]).success();
        assert!(
            checked.stdout.contains("\"problems\":[]"),
            "{}",
            checked.told()
        );
        let ingest = self.place.join("ingest");
        let listed = self.command(&["ls", ingest.to_str().expect("text")]);
        assert_eq!(Outcome::of(&mut { listed }).stdout, "", "leftovers");
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // With its last process the namespace goes, and the file system with it.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

fn environment() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

/// A failure has to say why: to a shell in a step as to anyone.
#[track_caller]
fn says_full(outcome: &Outcome) {
    let told = outcome.stderr.to_lowercase();
    assert!(
        told.contains("no space left") || told.contains("disk is full"),
        "{}",
        outcome.told()
    );
    assert!(!told.contains("panicked"), "{}", outcome.told());
    assert!(
        matches!(outcome.status.code(), Some(1 | 3)),
        "{}",
        outcome.told()
    );
}

const MIB: u64 = 1 << 20;

/// Builds on a store of `bytes`, which has to fail for want of space; then a smaller build has to work there.
#[track_caller]
fn check(bytes: u64, dockerfile: &str, arguments: &[&str], code: i32) {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    let Some(disk) = SmallDisk::new(&environment, &environment.root(), bytes) else {
        return;
    };
    environment.write("ctx/large", vec![b'x'; 24 * MIB as usize]);
    environment.write("ctx/Dockerfile", dockerfile);
    let mut all = vec!["build"];
    all.extend(arguments);
    all.push("ctx");
    let outcome = disk.run(&all);
    says_full(&outcome);
    assert_eq!(outcome.status.code(), Some(code), "{}", outcome.told());
    outcome.says("system prune");
    disk.is_whole();
    environment.write("ctx/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    disk.run(&["build", "-t", "small", "ctx"]).success();
    disk.is_whole();
}

#[test]
fn a_disk_that_is_full_fails_a_run_step() {
    let dockerfile = "FROM busybox\nRUN head -c 64000000 /dev/zero > /big\n";
    check(16 * MIB, dockerfile, &[], 1);
}

#[test]
fn a_disk_that_is_full_fails_a_copy() {
    check(16 * MIB, "FROM busybox\nCOPY large /\n", &[], 3);
}

#[test]
fn a_disk_that_is_full_fails_the_unpacking_of_an_image() {
    check(2 * MIB, "FROM busybox\nRUN true\n", &[], 3);
}

#[test]
fn a_disk_that_is_full_fails_an_export_from_the_store() {
    // The layer fits, its tar in the archive's form does not.
    let export = ["-o", "type=oci,dest=app.tar,compression=uncompressed"];
    check(40 * MIB, "FROM scratch\nCOPY large /\n", &export, 3);
}

/// A context whose image is larger than a disk of a mebibyte.
fn environment_of_large() -> Environment {
    let environment = environment();
    environment.write("ctx/large", vec![b'x'; 4 * MIB as usize]);
    environment.write("ctx/Dockerfile", "FROM scratch\nCOPY large /\n");
    environment
}

#[test]
fn a_full_disk_at_the_place_of_an_export_is_its_failure() {
    let environment = environment_of_large();
    let place = environment.work().join("small");
    let Some(disk) = SmallDisk::new(&environment, &place, MIB) else {
        return;
    };
    for output in [
        "type=oci,dest=small/app.tar,compression=uncompressed",
        "type=docker,dest=small/app.tar,compression=uncompressed",
        "type=tar,dest=small/app.tar",
        "type=local,dest=small/tree",
    ] {
        let outcome = disk.run(&["build", "-o", output, "ctx"]);
        says_full(&outcome);
        // No half of an archive stands where a whole one was asked for.
        let there = disk.command(&["test", "-e", "small/app.tar"]).status();
        assert!(!there.expect("it runs").success(), "{output}");
        Outcome::of(&mut disk.command(&["sh", "-c", "rm -rf small/*"])).success();
        disk.run(&["system", "check"]).success();
    }
    disk.run(&["build", "-o", "type=oci,dest=app.tar", "ctx"])
        .success();
}

/// The disk is full at ever later moments of a build: wherever it stops, the store is whole.
#[test]
fn a_disk_that_is_full_at_any_moment_harms_nothing() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    let Some(disk) = SmallDisk::new(&environment, &environment.root(), 24 * MIB) else {
        return;
    };
    let mut failed = 0;
    let steps = [
        0, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192,
    ];
    for (turn, free) in steps.into_iter().enumerate() {
        // A step of its own each time, beside those that are recorded by then.
        environment.write(
            "ctx/Dockerfile",
            format!(
                "FROM busybox\nCOPY file /\nRUN seq 20000 > /numbers && echo {turn}\nFROM busybox\n\
                 COPY --from=0 /numbers /\nLABEL turn={turn}\n"
            ),
        );
        environment.write("ctx/file", "x".repeat(100_000));
        if turn == 0 {
            // Something is there before it gets narrow.
            disk.run(&["build", "-t", "first", "ctx"]).success();
            disk.run(&["builder", "prune", "-f"]).success();
        }
        disk.fill(free << 10);
        let outcome = disk.run(&[
            "build",
            "-t",
            "app",
            "-o",
            "type=oci,dest=app.tar",
            "--load",
            "ctx",
        ]);
        if !outcome.status.success() {
            failed += 1;
            says_full(&outcome);
        }
        disk.relieve();
        disk.is_whole();
    }
    assert!(failed > 3, "it was never narrow");
    assert!(failed < steps.len(), "it never fitted");
    disk.run(&["build", "-t", "app", "ctx"]).success();
    let told = disk
        .run(&["run", "--rm", "app", "wc", "-l", "/numbers"])
        .success();
    assert!(told.stdout.starts_with("20000"), "{}", told.told());
}

/// Images come in and go out while the disk is full: what fails says so and leaves nothing half, and works afterwards.
#[test]
fn a_full_disk_fails_what_brings_images_in_or_out_and_harms_nothing() {
    let environment = environment();
    let folder = environment.work().join("mirror/docker.io/library/large");
    fs::create_dir_all(&folder).expect("a folder");
    // Bytes that do not compress, so that an image is as large as its files.
    let mut noise = vec![0; 6 * MIB as usize];
    let mut word = 1_u64;
    for byte in &mut noise {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (word >> 56) as u8;
    }
    environment.write("ctx/large", noise);
    environment.write("ctx/Dockerfile", "FROM scratch\nCOPY large /\n");
    let layout = format!("type=oci,tar=false,dest={},name=large:1", folder.display());
    let archive = "type=docker,dest=large.tar,name=loaded:1";
    let files = "type=tar,dest=files.tar";
    environment.ok(["build", "-o", &layout, "-o", archive, "-o", files, "ctx"]);
    environment.write_config(&format!(
        "[registry.\"docker.io\"]\nmirrors = [\"oci-layout:{}\"]\n",
        environment.work().join("mirror").display()
    ));
    let Some(disk) = SmallDisk::new(&environment, &environment.root(), 28 * MIB) else {
        return;
    };
    let check = |free: u64, words: &[&str]| {
        disk.fill(free);
        let outcome = disk.run(words);
        says_full(&outcome);
        outcome.says("system prune");
        disk.relieve();
        disk.is_whole();
        disk.run(words).success();
        disk.is_whole();
        disk.run(&["system", "prune", "-a", "-f"]).success();
    };
    for free in [64 << 10, 3 * MIB, 8 * MIB] {
        check(free, &["load", "-i", "large.tar"]);
        check(free, &["pull", "large:1"]);
    }
    check(3 * MIB, &["import", "files.tar", "imported:1"]);
    // What was built is in no blob before it goes out.
    disk.run(&["build", "-t", "127.0.0.1:1/built", "ctx"])
        .success();
    disk.fill(64 << 10);
    for words in [
        &["save", "-o", "saved.tar", "127.0.0.1:1/built"][..],
        &["push", "127.0.0.1:1/built"],
    ] {
        says_full(&disk.run(words));
        assert!(
            !environment.work().join("saved.tar").exists(),
            "half an archive"
        );
    }
    disk.relieve();
    disk.is_whole();
    disk.run(&["save", "-o", "saved.tar", "127.0.0.1:1/built"])
        .success();
}

/// An archive that does not fit where it is to go is not left there by half.
#[test]
fn a_full_disk_at_the_place_of_a_saved_image_is_told() {
    let environment = environment_of_large();
    let place = environment.work().join("small");
    let Some(disk) = SmallDisk::new(&environment, &place, MIB) else {
        return;
    };
    disk.run(&["build", "-t", "built", "ctx"]).success();
    disk.run(&["create", "--name", "one", "built", "/large"])
        .success();
    for words in [
        &["save", "-o", "small/out.tar", "built"][..],
        &["export", "-o", "small/out.tar", "one"],
    ] {
        let outcome = disk.run(words);
        says_full(&outcome);
        outcome.says("small");
        let left = Outcome::of(&mut disk.command(&["ls", "small"])).stdout;
        assert_eq!(left, "", "{words:?}");
    }
    let copied = disk.run(&["cp", "one:/large", "small/copy"]);
    says_full(&copied);
    copied.says("small/copy");
    assert!(
        !copied.stderr.contains("system prune"),
        "the store is not full"
    );
    disk.run(&["system", "check"]).success();
}

/// Copies a store as it lies there.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.expect("cp runs").success());
}

fn built(environment: &Environment) {
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nRUN seq 5000 | tee /numbers\nCOPY file /\n",
    );
    environment.write("ctx/file", "from the context");
    environment.ok(["build", "-t", "app", "ctx"]);
}

/// Returns a store with a build, and a copy of it to start from.
fn built_twice() -> (Environment, PathBuf, PathBuf) {
    let environment = environment();
    built(&environment);
    let (root, whole) = (environment.root(), environment.work().join("whole"));
    copy(&root, &whole);
    (environment, root, whole)
}

fn is_right(environment: &Environment, told: &str) {
    environment.ok(["build", "-t", "app", "ctx"]);
    let outcome = environment.ok([
        "run",
        "--rm",
        "app",
        "sh",
        "-c",
        "wc -l < /numbers; cat /file",
    ]);
    assert_eq!(outcome.stdout, "5000\nfrom the context", "{told}");
    let checked = environment.ok(["system", "check", "--format=json"]);
    assert!(
        checked.stdout.contains("\"problems\":[]"),
        "{told}: {}",
        checked.told()
    );
}

#[test]
fn records_that_were_cut_are_recovered_or_named() {
    testkit::require_fixtures!("busybox:latest");
    let (environment, root, whole) = built_twice();
    for name in ["records.db", "records.db-wal"] {
        let length = fs::metadata(whole.join(name)).map_or(0, |meta| meta.len());
        assert!(length > 0, "{name} is there");
        for cut in [
            0,
            1,
            31,
            100,
            4095,
            length / 3,
            length / 2,
            length - 4096,
            length - 1,
        ] {
            let told = format!("{name} of {length} cut to {cut}");
            copy(&whole, &root);
            let file = fs::File::options().write(true).open(root.join(name));
            file.expect("a file").set_len(cut).expect("it is cut");
            let _ = fs::remove_file(root.join("records.db-shm"));
            let outcome = environment.run(["build", "-t", "app", "ctx"]);
            assert!(
                !outcome.stderr.contains("panicked"),
                "{told}: {}",
                outcome.told()
            );
            let checked = environment.run(["system", "check"]);
            if !outcome.status.success() || !checked.status.success() {
                let both = format!("{}{}", outcome.stderr, checked.stderr);
                assert!(
                    both.contains("--repair") || both.contains("damaged"),
                    "{told}: {both}"
                );
                environment.ok(["system", "check", "--repair"]);
            }
            is_right(&environment, &told);
        }
    }
}

#[test]
fn small_files_of_the_store_that_were_cut_cost_at_most_their_use() {
    testkit::require_fixtures!("busybox:latest");
    let (environment, root, whole) = built_twice();
    let mut cut = 0;
    for folder in ["memos", "builds"] {
        let mut work = vec![PathBuf::from(folder)];
        while let Some(relative) = work.pop() {
            let path = whole.join(&relative);
            if path.is_dir() {
                let entries = fs::read_dir(&path).expect("a folder");
                work.extend(
                    entries.map(|entry| relative.join(entry.expect("an entry").file_name())),
                );
                continue;
            }
            let length = fs::metadata(&path).expect("a file").len();
            for length in [0, length / 2, length.saturating_sub(1)] {
                copy(&whole, &root);
                let file = fs::File::options().write(true).open(root.join(&relative));
                file.expect("a file").set_len(length).expect("it is cut");
                let told = format!("{} cut to {length}", relative.display());
                is_right(&environment, &told);
                environment.ok(["history", "ls"]);
                environment.ok(["history", "logs"]);
                cut += 1;
            }
        }
    }
    assert!(cut >= 6, "{cut} files");
}

#[test]
fn a_blob_that_was_cut_is_not_exported() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    built(&environment);
    environment.ok(["save", "-o", "first.tar", "app"]);
    let blobs = environment.root().join("blobs/sha256");
    let entries = fs::read_dir(&blobs).expect("blobs");
    let mut sizes: Vec<(u64, PathBuf)> = entries
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (fs::metadata(&path).expect("a blob").len(), path))
        .collect();
    sizes.sort();
    let (length, largest) = sizes.pop().expect("a blob");
    let file = fs::File::options()
        .write(true)
        .open(&largest)
        .expect("a blob");
    file.set_len(length / 2).expect("it is cut");
    let outcome = environment.run(["save", "-o", "second.tar", "app"]);
    if outcome.status.success() {
        // Written anew from its layer, or fetched again.
        let read = |name: &str| fs::read(environment.work().join(name)).expect("an archive");
        assert_eq!(read("first.tar"), read("second.tar"));
    } else {
        assert!(!environment.work().join("second.tar").exists());
        outcome.says("sha256:");
    }
    environment.ok(["system", "check", "--repair"]);
    is_right(&environment, "after the repair");
}

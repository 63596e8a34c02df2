//! What processes see of a context: through mounts, and whatever happens to the directory meanwhile.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Stdio;

use testkit::{Environment, Outcome};

fn machine(dockerfile: &str) -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("ctx/Dockerfile", dockerfile);
    environment
}

fn build(machine: &Environment) -> Outcome {
    machine.ok(["build", "--progress=plain", "ctx"])
}

/// Returns the directories of all layers of the store.
fn layers(machine: &Environment) -> Vec<PathBuf> {
    let layers = fs::read_dir(machine.root().join("layers")).expect("layers");
    let mut paths: Vec<_> = layers
        .map(|entry| entry.expect("a layer").path().join("fs"))
        .collect();
    paths.sort();
    paths
}

#[test]
fn a_mount_whose_source_is_a_link_is_what_it_leads_to() {
    testkit::require_fixtures!("busybox:latest");
    let machine = machine(
        "FROM busybox AS files\nCOPY releases /releases\nFROM busybox\n\
         RUN --mount=type=bind,source=releases/current,target=/m cat /m/f\n\
         RUN --mount=type=bind,from=files,source=releases/current,target=/m sed s/^/again:/ /m/f\n",
    );
    machine.write("ctx/releases/one/f", "first\n");
    symlink("one", machine.work().join("ctx/releases/current")).expect("a link");
    build(&machine).says("first").says("again:first");
    machine.write("ctx/releases/one/f", "second\n");
    build(&machine).says("second").says("again:second");
}

#[test]
fn a_mount_of_the_context_leaves_no_layer_behind() {
    testkit::require_fixtures!("busybox:latest");
    let machine = machine(
        "FROM busybox\nRUN --mount=type=bind,target=/m cat /m/d/f > /first && echo x > /m/d/new || :\n\
         RUN --mount=type=bind,source=d,target=/m,rw cat /m/f > /m/new && cat /m/new && echo no > /m/f\n\
         RUN --mount=type=bind,source=d,target=/m ls /m | tr '\\n' ' ' && cat /m/f\n",
    );
    machine.write("ctx/d/f", "content\n");
    let told = build(&machine);
    told.says(" content").says("f content");
    let holds_f = |layer: &PathBuf| layer.join("d/f").exists();
    assert!(!layers(&machine).iter().any(holds_f));
    assert_eq!(
        fs::read_to_string(machine.work().join("ctx/d/f")).expect("a file"),
        "content\n"
    );
}

#[test]
fn what_is_saved_during_a_build_is_not_in_it() {
    testkit::require_fixtures!("busybox:latest");
    let machine = machine(
        "FROM busybox\nARG TIME\nRUN --mount=type=cache,id=meet,target=/c \
         touch /c/here && until [ -e /c/go-$TIME ]; do sleep 0.01; done\n\
         COPY f /f\nRUN --mount=type=bind,source=f,target=/m cat /f /m\n",
    );
    machine.write("ctx/f", "before\n");
    let begin = |time: &str| {
        let argument = format!("TIME={time}");
        let arguments = ["build", "--progress=plain", "--build-arg", &argument, "ctx"];
        let mut command = machine.command(arguments);
        command.stderr(Stdio::piped()).stdout(Stdio::null());
        command.spawn().expect("it starts")
    };
    let meet = |time: &str, then: &dyn Fn()| {
        let running = begin(time);
        let folder = loop {
            let mounts = fs::read_dir(machine.root().join("mounts"));
            let mounts = mounts.into_iter().flatten().flatten();
            let mut folders = mounts.map(|entry| entry.path().join("fs"));
            if let Some(folder) = folders.find(|folder| folder.join("here").exists()) {
                break folder;
            }
            std::thread::yield_now();
        };
        fs::remove_file(folder.join("here")).expect("it is removed");
        then();
        fs::write(folder.join(format!("go-{time}")), "").expect("a file");
        let output = running.wait_with_output().expect("it ends");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        told
    };
    let count = |told: &str, word: &str| told.lines().filter(|line| line.ends_with(word)).count();
    let told = meet("one", &|| ());
    assert_eq!(count(&told, " before"), 2, "{told}");
    // All that follows has run before, and runs again on what the first step makes anew.
    let told = meet("two", &|| drop(machine.write("ctx/f", "after\n")));
    assert_eq!(
        (count(&told, " before"), count(&told, " after")),
        (2, 0),
        "{told}"
    );
    let told = meet("three", &|| ());
    assert_eq!(
        (count(&told, " before"), count(&told, " after")),
        (0, 2),
        "{told}"
    );
}

#[test]
fn two_mounts_of_one_cache_are_one_directory() {
    testkit::require_fixtures!("busybox:latest");
    for (first, second) in [
        ("locked", "locked"),
        ("shared", "locked"),
        ("private", "private"),
        ("shared", "private"),
    ] {
        let machine = machine(&format!(
            "FROM busybox\nRUN --mount=type=cache,id=x,target=/a,sharing={first} \
             --mount=type=cache,id=x,target=/b,sharing={second} echo {first}-{second} > /a/f && cat /b/f\n"
        ));
        build(&machine).says(&format!(" {first}-{second}"));
    }
}

#[test]
fn an_edit_links_the_files_that_stay() {
    let machine = machine("FROM scratch\nCOPY . /src/\n");
    machine.write("ctx/d/stays", "stays");
    machine.write("ctx/edited", "before");
    // Only of files that are older than a tick of the clock is anything remembered.
    for path in ["ctx/d/stays", "ctx/edited", "ctx/Dockerfile"] {
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        let file = fs::File::options()
            .write(true)
            .open(machine.work().join(path));
        file.and_then(|file| file.set_modified(old))
            .expect("a time");
    }
    build(&machine);
    let inode = |layer: &PathBuf, name: &str| fs::metadata(layer.join(name)).expect("a file").ino();
    loop {
        // The change time is not for us to set: build again until it has become old.
        machine.write("ctx/edited", "after");
        machine.ok(["build", "--no-cache", "ctx"]);
        let all = layers(&machine);
        let [.., before, after] = all.as_slice() else {
            unreachable!("two builds leave two layers")
        };
        assert_ne!(inode(before, "src/edited"), inode(after, "src/edited"));
        if inode(before, "src/d/stays") == inode(after, "src/d/stays") {
            break;
        }
    }
    machine.ok(["build", "-q", "-o", "out", "ctx"]);
    let out = machine.work().join("out/src");
    assert_eq!(
        fs::read_to_string(out.join("d/stays")).expect("a file"),
        "stays"
    );
    assert_eq!(
        fs::read_to_string(out.join("edited")).expect("a file"),
        "after"
    );
    let archive = machine.work().join("image.tar");
    machine.ok(["build", "-q", "-o", "type=tar,dest=image.tar", "ctx"]);
    let listed = Outcome::of(machine.program("tar").arg("tvf").arg(archive)).success();
    let is_link = |line: &str| line.starts_with('h');
    assert!(!listed.stdout.lines().any(is_link), "{}", listed.stdout);
}

#[test]
fn a_context_that_does_not_last_leaves_no_memo() {
    let machine = machine("FROM scratch\nCOPY f /f\n");
    machine.write("ctx/f", "text");
    let path = machine.work().join("context.tar");
    let mut pack = machine.program("tar");
    Outcome::of(pack.args(["-C", "ctx", "-cf", "context.tar", "."])).success();
    for _ in 0..2 {
        let mut command = machine.command(["build", "--progress=plain", "-"]);
        command.stdin(fs::File::open(&path).expect("an archive"));
        let told = Outcome::of(&mut command).success();
        told.says("COPY f /f");
    }
    let memos = fs::read_dir(machine.root().join("memos"));
    assert_eq!(memos.into_iter().flatten().count(), 0);
}

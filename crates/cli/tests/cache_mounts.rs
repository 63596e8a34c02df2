//! Cache mounts that travel: `lapstrake cache mounts export` and `import`.

use std::fs;
use std::path::{Path, PathBuf};

use oci::media_type::Naming;
use oci::{Descriptor, Index, Manifest};
use testkit::Environment;

#[allow(dead_code)]
#[path = "../../registry/tests/it/server.rs"]
mod server;

/// Three mounts: one of root's, one of a user's own, one made from an image; and a copy a private mount has made.
const FILL: &str = "FROM busybox
RUN --mount=type=cache,id=one,target=/c umask 22; mkdir -p /c/deep && seq 5000 > /c/deep/file && \
 ln -s deep/file /c/link && ln /c/deep/file /c/hard && chown 12:34 /c/deep && chmod 4755 /c/deep/file && \
 touch -d @1000000000 /c/deep/file && : > '/c/.wh.name'
RUN --mount=type=cache,target=/home/me,uid=1000,gid=1001,mode=0700 echo mine > /home/me/file
RUN --mount=type=cache,id=from,from=busybox,source=/bin,target=/c echo more > /c/more
";

/// Says what is in the mounts, and fails where one is empty.
const LOOK: &str = "FROM busybox
RUN --mount=type=cache,id=one,target=/c cd /c && stat -c '%n %a %u %g %h %Y' deep/file deep && stat -c '%a %u %g' . && \
 readlink link && wc -l < hard && ls -A
RUN --mount=type=cache,target=/home/me,uid=1000,gid=1001,mode=0700 stat -c '%a %u %g' /home/me; cat /home/me/file
RUN --mount=type=cache,id=from,from=busybox,source=/bin,target=/c cat /c/more && test -x /c/sh
";

fn machine() -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("look/Dockerfile", LOOK);
    environment.write("fill/Dockerfile", FILL);
    environment
}

fn filled() -> Environment {
    let machine = machine();
    machine.ok(["build", "fill"]);
    machine
}

/// Returns what the steps of [`LOOK`] print.
fn looked(machine: &Environment) -> String {
    let told = machine.ok(["build", "--progress=plain", "look"]).stderr;
    let printed = told.lines().filter_map(|line| {
        let (time, text) = line.split_once(' ')?.1.split_once(' ')?;
        time.parse::<f64>().ok().map(|_| format!("{text}\n"))
    });
    printed.collect()
}

fn ids(machine: &Environment) -> String {
    let list = ["cache", "mounts", "ls", "--format", "{{.ID}} {{.FullName}}"];
    machine.ok(list).stdout
}

fn import(machine: &Environment, source: &str) -> String {
    machine.ok(["cache", "mounts", "import", source]).stdout
}

#[test]
fn mounts_go_through_archives_directories_and_registries() {
    testkit::require_fixtures!("busybox:latest");
    let first = filled();
    let seen = looked(&first);
    assert!(
        seen.contains("deep/file 4755 0 0 2 1000000000\ndeep 755 12 34 2 "),
        "{seen}"
    );
    assert!(seen.contains("700 1000 1001\nmine\nmore\n"), "{seen}");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let registry = runtime.block_on(server::Registry::start());
    let name = format!("{}/team/mounts:ci", registry.authority);
    let folder = first.work().join("folder");
    let archive = first.work().join("mounts.tar");
    let places = [
        archive.display().to_string(),
        folder.display().to_string(),
        name.clone(),
        format!("type=oci,src={}", archive.display()),
        format!("type=local,src={}", folder.display()),
        format!("type=registry,ref={name}"),
    ];
    let mut told = Vec::new();
    for place in &places[..3] {
        told.push(first.ok(["cache", "mounts", "export", place]).stdout);
    }
    assert_eq!(told[0].lines().count(), 3);
    assert_eq!(told[0], told[1], "the same each time");
    assert_eq!(told[0], told[2], "the same each time");
    for place in &places {
        let second = machine();
        assert_eq!(import(&second, place), told[0], "{place}");
        assert_eq!(ids(&second), ids(&first), "{place}");
        assert_eq!(looked(&second), seen, "{place}");
        let again = second.work().join("again.tar");
        second.ok(["cache", "mounts", "export", &again.display().to_string()]);
        assert!(
            fs::read(&again).expect("a file") == fs::read(&archive).expect("a file"),
            "{place}: equal mounts make equal archives"
        );
    }
}

#[test]
fn mounts_are_chosen_by_id_and_those_that_are_there_stay() {
    testkit::require_fixtures!("busybox:latest");
    let first = filled();
    let export = |arguments: &[&str]| {
        let mut all = vec!["cache", "mounts", "export"];
        all.extend(arguments);
        first.run(all)
    };
    export(&["--id", "three", "x.tar"])
        .fails_with(1)
        .says("there is no cache mount \"three\"");
    let told = export(&["--id", "one", "--id", "/home/me", "two.tar"]).success();
    let named: Vec<&str> = told
        .stdout
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(named, ["//home/me", "/one"]);
    let archive = first.work().join("two.tar").display().to_string();

    let second = machine();
    let import = |arguments: &[&str]| {
        let mut all = vec!["cache", "mounts", "import"];
        all.extend(arguments);
        second.run(all)
    };
    import(&["--id", "from", &archive])
        .fails_with(1)
        .says("there is no cache mount \"from\"");
    import(&["--missing-ok", "./nothing"])
        .success()
        .says("nothing at ./nothing yet");
    import(&["./nothing"])
        .fails_with(1)
        .says("there is nothing at ./nothing");
    let told = import(&["--id", "one", &archive]).success();
    assert_eq!(told.stdout.lines().count(), 1);
    let file = |machine: &Environment| {
        let line = ids(machine);
        let name = line.lines().find_map(|line| line.strip_prefix("/one "));
        let name = name.expect("it is there").to_owned();
        machine
            .root()
            .join("mounts")
            .join(name)
            .join("fs/deep/file")
    };
    fs::write(file(&second), "own").expect("it can be written");
    import(&[&archive])
        .success()
        .says("/one is here already and stays");
    assert_eq!(fs::read(file(&second)).expect("a file"), b"own");
    import(&["--replace", &archive]).success();
    assert_eq!(fs::read(file(&second)).expect("a file").len(), 23893);
    // As a step holds it.
    let folder = file(&second)
        .ancestors()
        .nth(3)
        .map(Path::to_owned)
        .expect("a folder");
    let lock = fs::File::open(&folder).expect("a folder");
    lock.lock_shared().expect("a lock");
    import(&["--replace", &archive])
        .fails_with(1)
        .says("is in use by a build");
    drop(lock);
    // Nothing half made is left.
    assert_eq!(fs::read_dir(folder).expect("a folder").count(), 2);
}

#[test]
fn a_directory_keeps_what_else_is_in_it() {
    testkit::require_fixtures!("busybox:latest");
    let first = filled();
    first.ok([
        "build",
        "--cache-to",
        "type=local,dest=shared,mode=max",
        "fill",
    ]);
    first.ok(["cache", "mounts", "export", "./shared"]);
    first.ok([
        "build",
        "--cache-to",
        "type=local,dest=shared,mode=max",
        "fill",
    ]);
    first.ok(["cache", "mounts", "export", "--id", "one", "./shared"]);
    let shared = first.work().join("shared").display().to_string();
    let second = machine();
    assert_eq!(import(&second, &shared).lines().count(), 1);
    let source = format!("type=local,src={shared}");
    let told = second.ok(["build", "--progress=plain", "--cache-from", &source, "fill"]);
    assert_eq!(told.stderr.matches(" CACHED").count(), 5, "{}", told.stderr);
    second
        .run([
            "cache",
            "mounts",
            "import",
            &format!("type=local,src={shared},tag=latest"),
        ])
        .fails_with(1)
        .says("there are no cache mounts");
}

/// A layout whose one mount is this tar.
struct Forged {
    folder: PathBuf,
    manifest: Manifest,
    document: serde_json::Value,
}

impl Forged {
    fn new(folder: PathBuf, tar: &[u8]) -> Self {
        fs::create_dir_all(folder.join("blobs/sha256")).expect("a folder");
        let layer = Descriptor::of("application/vnd.oci.image.layer.v1.tar", tar);
        let document = serde_json::json!({
            "version": 1,
            "mounts": [{
                "name": "ab".repeat(32),
                "id": "/forged",
                "diffId": layer.digest,
                "layer": layer.digest,
            }],
        });
        let config = Descriptor::of("", b"");
        let forged = Self {
            manifest: Manifest::new(Naming::Oci, config, vec![layer]),
            folder,
            document,
        };
        forged.blob(tar);
        forged
    }

    fn blob(&self, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of("", bytes);
        let path = oci::layout::blob_path(&descriptor.digest);
        fs::write(self.folder.join(path), bytes).expect("it can be written");
        descriptor
    }

    /// Writes the documents, and returns the place.
    fn finish(mut self) -> String {
        let mut config = self.blob(self.document.to_string().as_bytes());
        config.media_type = "application/vnd.lapstrake.cache-mounts.config.v1+json".to_owned();
        self.manifest.config = config;
        let manifest = oci::json::compact(&self.manifest).expect("JSON");
        let mut entry = self.blob(&manifest);
        entry.media_type = Naming::Oci.manifest().to_owned();
        let name = oci::layout::ANNOTATION_REF_NAME.to_owned();
        entry.annotations.insert(name, "cache-mounts".to_owned());
        let index = oci::json::compact(&Index::new(Naming::Oci, vec![entry])).expect("JSON");
        fs::write(self.folder.join("index.json"), index).expect("it can be written");
        self.folder.display().to_string()
    }
}

#[test]
fn artifacts_from_outside_are_checked_and_stay_inside() {
    testkit::require_programs!("tar");
    let machine = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    machine.write("evil", "evil\n");
    let outside = machine.work().join("outside");
    fs::create_dir(&outside).expect("a folder");
    let tar = |arguments: &[&str]| {
        let mut tar = machine.program("tar");
        tar.args(["-P", "-cf", "-"]).args(arguments);
        let made = tar.output().expect("tar starts");
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        made.stdout
    };
    let mut number = 0;
    let mut forged = |tar: &[u8]| {
        number += 1;
        Forged::new(machine.work().join(format!("layout-{number}")), tar)
    };
    let refused = |place: String, reason: &str| {
        machine
            .run(["cache", "mounts", "import", &place])
            .fails_with(1)
            .says(reason);
        assert_eq!(machine.ok(["cache", "mounts", "ls", "-q"]).stdout, "");
    };
    let plain = tar(&["evil"]);

    let mut other = forged(&plain);
    other.document["mounts"][0]["name"] = "../../../outside".into();
    refused(other.finish(), "is no name of a cache mount");
    let mut other = forged(&plain);
    other.document["version"] = 2.into();
    refused(other.finish(), "form 2 is not known");
    let mut other = forged(&plain);
    other.document["mounts"][0]["layer"] = format!("sha256:{}", "0".repeat(64)).into();
    refused(other.finish(), "is not in it");
    let mut other = forged(&plain);
    other.document["mounts"][0]["diffId"] = format!("sha256:{}", "0".repeat(64)).into();
    refused(other.finish(), "sha256:0000");
    let other = forged(&plain);
    let path = oci::layout::blob_path(&other.manifest.layers[0].digest);
    let path = other.folder.join(path);
    let place = other.finish();
    let mut bytes = plain.clone();
    bytes[600] ^= 1;
    fs::write(&path, bytes).expect("it can be written");
    refused(place.clone(), "sha256:");
    fs::write(&path, b"no tar").expect("it can be written");
    refused(place, "");

    // A link out of it, and a file behind the link; names that lead out.
    std::os::unix::fs::symlink(&outside, machine.work().join("way")).expect("a link");
    let mut linked = tar(&["way"]);
    linked.truncate(512);
    linked.extend(tar(&["--transform", "s,^evil,way/evil,", "evil"]));
    let _ = machine.run(["cache", "mounts", "import", &forged(&linked).finish()]);
    let climbing = tar(&["--transform", "s,^,../../../outside/,", "evil"]);
    let _ = machine.run([
        "cache",
        "mounts",
        "import",
        "--replace",
        &forged(&climbing).finish(),
    ]);
    assert_eq!(fs::read_dir(&outside).expect("a folder").count(), 0);
    assert!(!machine.root().join("outside").exists());
}

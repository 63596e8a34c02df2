//! Layers are compressed and sent while later steps still run. Told by the order of events: a step waits until it has
//! happened, so that without it the build would never end.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::Environment;

/// How long a test waits for what has to happen before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn world() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

/// A step that runs until the test lets it end.
struct Gate {
    listener: TcpListener,
}

impl Gate {
    fn new() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
        }
    }

    fn step(&self) -> String {
        let port = self.listener.local_addr().unwrap().port();
        format!("RUN --network=host nc 127.0.0.1 {port} </dev/null")
    }

    /// Waits until the step runs; it ends when what is returned is dropped.
    fn reached(&self, build: &mut Child) -> TcpStream {
        self.listener.set_nonblocking(true).unwrap();
        let found = wait_for("the step is reached", || {
            assert!(
                build.try_wait().unwrap().is_none(),
                "the build has ended before its last step"
            );
            self.listener.accept().ok()
        });
        found.0
    }
}

/// Looks again and again until there is something.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "it never came to pass that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start(world: &Environment, arguments: &[&str]) -> Child {
    let mut all = vec!["build", "--allow=network.host", "--progress=plain"];
    all.extend(arguments);
    all.push("ctx");
    let mut command = world.command(all);
    let log = fs::File::create(world.work().join("log")).unwrap();
    command.stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

fn end(world: &Environment, mut build: Child) {
    let status = build.wait().unwrap();
    let log = fs::read_to_string(world.work().join("log")).unwrap();
    assert!(status.success(), "{log}");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut work = vec![folder.to_owned()];
    while let Some(folder) = work.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => work.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    found
}

fn gzip_blobs(folder: &Path) -> usize {
    let is_gzip = |path: &&PathBuf| {
        let mut head = [0; 2];
        fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok())
            && head == [0x1f, 0x8b]
    };
    files(folder).iter().filter(is_gzip).count()
}

#[test]
fn a_layer_for_an_archive_is_compressed_while_the_next_step_runs() {
    testkit::require_fixtures!("busybox:latest");
    let world = world();
    let gate = Gate::new();
    world.write("ctx/file", "content\n".repeat(1000));
    let dockerfile = format!("FROM busybox\nCOPY file /file\n{}\n", gate.step());
    world.write("ctx/Dockerfile", dockerfile);
    let mut build = start(&world, &["-o", "type=oci,dest=app.tar"]);
    let held = gate.reached(&mut build);
    // That of the base, and that of COPY.
    let blobs = world.root().join("blobs");
    wait_for("the layer is compressed", || {
        (gzip_blobs(&blobs) >= 2).then_some(())
    });
    assert!(!world.work().join("app.tar").exists());
    drop(held);
    end(&world, build);
    assert!(world.work().join("app.tar").exists());
}

#[test]
fn a_layer_for_a_cache_is_written_while_the_next_step_runs() {
    testkit::require_fixtures!("busybox:latest");
    let world = world();
    let gate = Gate::new();
    world.write("ctx/file", "content\n".repeat(1000));
    // The step waits for a stage whose result is in no image: only a cache of all steps wants it.
    let dockerfile = format!(
        "FROM busybox AS side\nCOPY file /file\nRUN cp /file /other\nFROM busybox\n\
         RUN --mount=from=side,target=/side --network=host {}\n",
        gate.step().trim_start_matches("RUN --network=host ")
    );
    world.write("ctx/Dockerfile", dockerfile);
    let mut build = start(
        &world,
        &["--cache-to", "type=local,dest=cache,mode=max", "-t", "app"],
    );
    let held = gate.reached(&mut build);
    // That of the base, of COPY and of RUN.
    let blobs = world.root().join("blobs");
    wait_for("the layers are compressed", || {
        (gzip_blobs(&blobs) >= 3).then_some(())
    });
    assert!(!world.work().join("cache/index.json").exists());
    drop(held);
    end(&world, build);
    assert!(gzip_blobs(&world.work().join("cache")) >= 3);
}

#[test]
fn nothing_is_compressed_for_the_store() {
    testkit::require_fixtures!("busybox:latest");
    let world = world();
    world.write("ctx/file", "content\n".repeat(1000));
    world.write(
        "ctx/Dockerfile",
        "FROM busybox\nCOPY file /file\nRUN echo 1 >/1\n",
    );
    world.ok(["build", "-q", "-t", "app", "ctx"]);
    assert_eq!(
        gzip_blobs(&world.root().join("blobs")),
        1,
        "that of the base"
    );
}

#[test]
fn a_build_that_fails_leaves_nothing_half_written() {
    testkit::require_fixtures!("busybox:latest");
    let world = world();
    let mut noise: u64 = 1;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise as u8
    })
    .take(16 << 20)
    .collect();
    for number in 0..4 {
        world.write(&format!("ctx/big/{number}"), &bytes);
    }
    world.write("ctx/Dockerfile", "FROM busybox\nCOPY big /big\nRUN false\n");
    world
        .run(["build", "-o", "type=oci,dest=app.tar", "ctx"])
        .fails_with(1)
        .says("exit code: 1");
    let left: Vec<_> = files(&world.root().join("ingest"));
    assert_eq!(left, Vec::<PathBuf>::new());
    assert!(!world.work().join("app.tar").exists());
}

#[test]
fn a_changed_file_is_all_that_is_compressed_again() {
    let world = world();
    world.write_config("");
    world.write("ctx/Dockerfile", "FROM scratch\nCOPY big /big\n");
    let content = |number: u64, salt: u64| -> String {
        let mut state = number * 1000 + salt + 1;
        let line = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            format!("{:x}\n", state >> 40)
        };
        std::iter::repeat_with(line).take(20_000).collect()
    };
    for number in 0..200 {
        world.write(&format!("ctx/big/{number:03}"), content(number, 0));
    }
    // Returns how many blocks were found, how many were compressed, and what came of them.
    let build = |root: &str| {
        let output = format!("type=oci,tar=false,dest={root}.layout");
        let root = world.work().join(root);
        let mut command = world.command(["build", "-q", "-o", &output, "ctx"]);
        command
            .env("LAPSTRAKE_LOG", "engine=debug")
            .env("NO_COLOR", "1")
            .env("LAPSTRAKE_ROOT", &root);
        let told = testkit::Outcome::of(&mut command).success().stderr;
        let line = told.lines().find(|line| line.contains("blocks of a layer"));
        let line = line.unwrap_or_else(|| panic!("no blocks in {told}"));
        let number = |name: &str| -> u64 {
            let (_, rest) = line.split_once(&format!("{name}=")).expect(name);
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest[..end].parse().expect(name)
        };
        (number("found"), number("compressed"))
    };
    let layer = |root: &str| {
        let layout = world.work().join(format!("{root}.layout"));
        let read = |digest: &str| {
            let path = layout.join("blobs").join(digest.replace(':', "/"));
            serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap()
        };
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let manifest = read(index["manifests"][0]["digest"].as_str().unwrap());
        manifest["layers"][0]["digest"].as_str().unwrap().to_owned()
    };
    let (found, all) = build("one");
    assert!(found == 0 && all > 10, "{found} of {all}");
    world.write("ctx/big/100", content(100, 7));
    fs::remove_dir_all(world.work().join("one.layout")).unwrap();
    let (found, compressed) = build("one");
    assert!(
        compressed <= 3 && found >= all - 3,
        "{found} found, {compressed} compressed of {all}"
    );
    let (found, _) = build("two");
    assert_eq!(found, 0);
    assert_eq!(layer("one"), layer("two"), "as if compressed afresh");
}

/// Debian's registry, on a port of its own.
struct Registry {
    process: Child,
    authority: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn registry(world: &Environment) -> Registry {
    let config = world.write(
        "registry.yml",
        format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: 127.0.0.1:0\n  secret: s\n",
            world.work().join("registry").display()
        ),
    );
    let mut process = Command::new("docker-registry")
        .arg("serve")
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let authority = loop {
        let line = lines.next().expect("it says where it listens").unwrap();
        if let Some((_, rest)) = line.split_once("listening on ") {
            let end = rest.find(['"', ',', ' ']).unwrap_or(rest.len());
            break rest[..end].to_owned();
        }
    };
    // It must not be held up by what nobody reads.
    std::thread::spawn(move || lines.for_each(drop));
    Registry { process, authority }
}

#[test]
fn a_layer_for_a_registry_is_sent_while_the_next_step_runs() {
    testkit::require_fixtures!("busybox:latest");
    testkit::require_programs!("docker-registry", "skopeo");
    let world = world();
    let registry = registry(&world);
    let gate = Gate::new();
    world.write("ctx/file", "content\n".repeat(1000));
    let dockerfile = format!("FROM busybox\nCOPY file /file\n{}\n", gate.step());
    world.write("ctx/Dockerfile", dockerfile);
    let name = format!("{}/app:1", registry.authority);
    let mut build = start(&world, &["-t", &name, "--push"]);
    let held = gate.reached(&mut build);
    let stored = world.work().join("registry/docker/registry/v2/blobs");
    wait_for("the layers are sent", || {
        (gzip_blobs(&stored) >= 2).then_some(())
    });
    drop(held);
    end(&world, build);
    world.ok(["rmi", &name]);
    world.ok(["pull", "-q", &name]);
    let mut skopeo = world.program("skopeo");
    skopeo.args(["inspect", "--tls-verify=false", &format!("docker://{name}")]);
    testkit::Outcome::of(&mut skopeo).success();
}

#[test]
fn several_platforms_are_pushed_under_one_name() {
    testkit::require_programs!("docker-registry", "skopeo");
    let world = world();
    let registry = registry(&world);
    world.write("ctx/amd64", "amd64\n");
    world.write("ctx/arm64", "arm64\n");
    world.write(
        "ctx/Dockerfile",
        "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /machine\n",
    );
    let platforms = "--platform=linux/amd64,linux/arm64";
    let built = format!("{}/built:1", registry.authority);
    let kept = format!("{}/kept:1", registry.authority);
    // From the build, and from the store.
    world.ok([
        "build",
        "-q",
        platforms,
        "-t",
        &built,
        "-o",
        "type=registry",
        "--metadata-file=meta.json",
        "ctx",
    ]);
    world.ok(["build", "-q", platforms, "-t", &kept, "ctx"]);
    let told = world.ok(["push", &kept]).stdout;
    let meta = fs::read(world.work().join("meta.json")).unwrap();
    let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
    let digest = meta["containerimage.digest"].as_str().unwrap();
    assert!(told.contains(digest), "{told} against {digest}");
    assert_eq!(
        meta["containerimage.descriptor"]["mediaType"],
        "application/vnd.oci.image.index.v1+json"
    );
    world.ok(["rmi", &kept]);
    for (platform, name) in [("linux/arm64", &built), ("linux/amd64", &kept)] {
        world.ok(["pull", "-q", "--platform", platform, name]);
        let told = world.ok(["inspect", "-f", "{{.Os}}/{{.Architecture}}", name]);
        assert_eq!(told.stdout.trim(), platform);
    }
    // The registry takes a layer from another of its repositories.
    world.write("next/Dockerfile", format!("FROM {built}\nLABEL next=1\n"));
    let next = format!("{}/next:1", registry.authority);
    world.ok(["build", "-q", platforms, "-t", &next, "--push", "next"]);
    let other = world.work().join("other");
    world.ok(["--root", other.to_str().unwrap(), "pull", "-q", &next]);
    // A name that is in the registry already is nothing to send again, and a missing one is an error.
    world.ok(["push", &built]);
    let absent = format!("{}/absent:1", registry.authority);
    world.run(["push", &absent]).fails_with(1);
    world
        .run(["pull", "-q", &absent])
        .fails_with(1)
        .says("absent");
}

//! Where the result of a build goes: several outputs at once, several platforms, other programs.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::Value;
use testkit::Environment;

const DOCKERFILE: &str = "FROM scratch
ARG TARGETARCH
COPY $TARGETARCH /machine
COPY file /file
LABEL a=b
";

fn world() -> Environment {
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write_config("");
    world.write("ctx/Dockerfile", DOCKERFILE);
    for name in ["amd64", "arm64", "file"] {
        world.write(&format!("ctx/{name}"), format!("{name}\n"));
    }
    world
}

const TWO: &str = "--platform=linux/amd64,linux/arm64";

fn json(path: impl AsRef<Path>) -> Value {
    let path = path.as_ref();
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// Reads a blob of a layout.
fn blob(layout: &Path, digest: &Value) -> Value {
    let digest = digest.as_str().expect("a digest");
    json(layout.join("blobs").join(digest.replace(':', "/")))
}

#[test]
fn one_build_goes_to_many_places() {
    let world = world();
    let told = world.ok([
        "build",
        "-t",
        "app:1",
        "-o",
        "type=image",
        "-o",
        "type=oci,dest=layout,tar=false,compression=zstd",
        "-o",
        "type=docker,dest=docker.tar",
        "-o",
        "type=local,dest=files",
        "-o",
        "type=tar,dest=files.tar",
        "-o",
        "type=cacheonly",
        "--metadata-file=meta.json",
        "--iidfile=id",
        "ctx",
    ]);
    let work = world.work();
    assert_eq!(
        fs::read_to_string(work.join("files/file")).unwrap(),
        "file\n"
    );
    let id = fs::read_to_string(work.join("id")).unwrap();
    let found = world.ok(["inspect", "-f", "{{.Id}}", "app:1"]).stdout;
    assert_eq!(found.trim(), id, "{}", told.stderr);
    let layout = work.join("layout");
    let index = json(layout.join("index.json"));
    let entry = &index["manifests"][0];
    assert_eq!(
        entry["annotations"]["io.containerd.image.name"],
        "docker.io/library/app:1"
    );
    let manifest = blob(&layout, &entry["digest"]);
    assert_eq!(manifest["config"]["digest"], id.as_str());
    assert_eq!(
        manifest["layers"][0]["mediaType"],
        "application/vnd.oci.image.layer.v1.tar+zstd"
    );
    // The last one that has a manifest is told of: the archive for Docker.
    let meta = json(work.join("meta.json"));
    assert_eq!(meta["containerimage.config.digest"], id.as_str());
    assert_eq!(meta["image.name"], "docker.io/library/app:1");
    assert_eq!(
        meta["containerimage.descriptor"]["mediaType"],
        "application/vnd.docker.distribution.manifest.v2+json"
    );
    assert_eq!(
        meta["containerimage.descriptor"]["digest"],
        meta["containerimage.digest"]
    );
    world.ok(["rmi", "app:1"]);
    let told = world.ok(["load", "-i", "docker.tar"]).stdout;
    assert_eq!(told, "Loaded image: app:1\n");
}

#[test]
fn a_failed_output_leaves_no_half_of_it() {
    let world = world();
    world.write("taken", "");
    world
        .run(["build", "-o", "type=local,dest=taken/files", "ctx"])
        .fails_with(3);
    world
        .run(["build", "-o", "type=oci,dest=nowhere/app.tar", "ctx"])
        .fails_with(2)
        .says("there is no directory nowhere");
    world
        .run(["build", TWO, "-o", "type=docker,dest=app.tar", "ctx"])
        .fails_with(1)
        .says("use type=oci for several");
    let mut names: Vec<_> = fs::read_dir(world.work())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["ctx", "taken"]);
}

#[test]
fn annotations_go_where_they_are_wanted() {
    let world = world();
    world.ok([
        "build",
        TWO,
        "--annotation",
        "all=1",
        "--annotation",
        "index,manifest-descriptor:Part=2",
        "--annotation",
        "manifest[linux/arm64]:arm=3",
        "-o",
        "type=oci,dest=layout,tar=false,annotation-index-descriptor.k=4,annotation.all=5",
        "ctx",
    ]);
    let layout = world.work().join("layout");
    let top = json(layout.join("index.json"));
    assert_eq!(top["manifests"][0]["annotations"]["k"], "4");
    let index = blob(&layout, &top["manifests"][0]["digest"]);
    assert_eq!(index["annotations"]["Part"], "2");
    let check = |number: usize, platform: &str, arm: Option<&str>| {
        let entry = &index["manifests"][number];
        assert_eq!(entry["platform"]["architecture"], platform);
        assert_eq!(entry["annotations"]["Part"], "2");
        let manifest = blob(&layout, &entry["digest"]);
        assert_eq!(manifest["annotations"]["all"], "5");
        assert_eq!(manifest["annotations"]["arm"].as_str(), arm);
    };
    check(0, "amd64", None);
    check(1, "arm64", Some("3"));
    let refused = |arguments: &[&str], code: i32, text: &str| {
        let mut all = vec!["build"];
        all.extend(arguments);
        all.push("ctx");
        world.run(all).fails_with(code).says(text);
    };
    let note = ["--annotation", "index:a=b"];
    refused(&note, 1, "an image for one platform has none");
    refused(&["--annotation", "a"], 2, "KEY=VALUE");
    refused(&["--annotation", "layer:a=b"], 2, "no \"layer\"");
    refused(
        &["--annotation", "a=b", "-o", "out"],
        2,
        "no output is an image",
    );
    refused(
        &["-o", "type=local,dest=x,annotation.a=b"],
        2,
        "annotation.a",
    );
}

#[test]
fn several_platforms_live_under_one_name() {
    let world = world();
    world.ok(["build", "-q", TWO, "--iidfile=id", "-t", "app", "ctx"]);
    let id = fs::read_to_string(world.work().join("id")).unwrap();
    let format = "{{.Repository}}:{{.Tag}} {{.Platform}} {{.Size}}";
    let told = world.ok(["images", "--format", format]).stdout;
    assert_eq!(told, "app:latest linux/amd64,linux/arm64 22B\n");
    assert_eq!(world.ok(["images", "-q", "--no-trunc"]).stdout.trim(), id);
    let check = |arguments: &[&str], expect: &str| {
        let mut all = vec!["inspect", "-f", "{{.Architecture}}"];
        all.extend(arguments);
        assert_eq!(world.ok(all).stdout.trim(), expect);
    };
    check(&["--platform=linux/arm64", "app"], "arm64");
    check(&["--platform=linux/amd64", "app"], "amd64");
    world
        .run(["inspect", "--platform=linux/s390x", "app"])
        .fails_with(1);
    let host = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    check(&["app"], host);
    check(&[&id[7..20]], host);
    // Nothing of it is dangling, and a collection keeps it.
    world.ok(["image", "prune", "-f"]);
    world.ok(["builder", "prune", "-a", "-f"]);
    world.ok(["tag", "app", "other:2"]);
    world.ok(["rmi", "app"]);
    world.ok(["save", "-o", "app.tar", "other:2"]);
    world.ok(["save", "-o", "arm.tar", "--platform=linux/arm64", "other:2"]);
    // What is built from it finds the image for each platform.
    world.write(
        "next/Dockerfile",
        "FROM other:2\nCOPY --from=other:2 /machine /copy\n",
    );
    world.ok([
        "build",
        "-q",
        TWO,
        "-o",
        "type=local,dest=next-files",
        "next",
    ]);
    for machine in ["amd64", "arm64"] {
        let place = world
            .work()
            .join(format!("next-files/linux_{machine}/copy"));
        assert_eq!(fs::read_to_string(place).unwrap(), format!("{machine}\n"));
    }
    let told = world.ok(["rmi", "other:2"]).stdout;
    assert_eq!(told, format!("Untagged: other:2\nDeleted: {id}\n"));
    assert_eq!(world.ok(["images", "-aq"]).stdout, "");
    world.ok(["load", "-i", "app.tar"]);
    check(&["--platform=linux/arm64", "other:2"], "arm64");
    check(&["--platform=linux/amd64", "other:2"], "amd64");
    world.ok(["rmi", "other:2"]);
    world.ok(["load", "--platform=linux/arm64", "-i", "app.tar"]);
    check(&["other:2"], "arm64");
    world.ok(["rmi", "other:2"]);
    world.ok(["load", "-i", "arm.tar"]);
    check(&["other:2"], "arm64");
}

#[test]
fn squashed_layers_make_the_same_files() {
    testkit::require_fixtures!("busybox:latest");
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write("ctx/file", "1\n");
    world.write(
        "ctx/Dockerfile",
        "FROM busybox
RUN mkdir -p /d/e && echo 1 >/d/gone && echo 2 >/d/e/kept && rm /bin/vi && ln /d/e/kept /d/link
RUN rm /d/gone && rm -rf /var/spool && mkdir /var/spool && echo 3 >/var/spool/only && chmod 700 /d/e
COPY file /var/spool/more
WORKDIR /w
",
    );
    world.ok([
        "build",
        "-q",
        "-t",
        "plain",
        "-o",
        "type=image",
        "-o",
        "plain-files",
        "ctx",
    ]);
    let squashed = [
        "build",
        "-q",
        "--squash",
        "-t",
        "squashed",
        "-o",
        "type=image",
        "-o",
        "files",
        "ctx",
    ];
    world.ok(squashed);
    let listing = |folder: &str| {
        let mut find = world.program("find");
        find.args([folder, "-printf", "%P %y %m %U %G %s %l %n\n"]);
        let mut lines: Vec<String> = testkit::Outcome::of(&mut find)
            .success()
            .stdout
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    let plain = listing("plain-files");
    assert!(plain.iter().any(|line| line.starts_with("var/spool/only ")));
    assert_eq!(listing("files"), plain);
    let layers = |name: &str| {
        let told = world
            .ok(["inspect", "-f", "{{len .RootFS.Layers}}", name])
            .stdout;
        told.trim().parse::<usize>().unwrap()
    };
    assert_eq!(layers("squashed"), layers("plain") - 3);
    let told = world
        .ok(["history", "--format", "{{.Comment}}", "squashed"])
        .stdout;
    assert!(told.starts_with("merge 4 layers\n"), "{told}");
}

/// Answers one request on a socket as Docker would and returns what was sent.
fn docker(listener: &UnixListener, answer: &str) -> (String, Vec<u8>) {
    let (asked, _) = small_request(listener, &self::answer("404 Not Found", "{}"));
    assert!(asked.starts_with("GET /images/sha256:"), "{asked}");
    let (mut stream, _) = listener.accept().unwrap();
    let mut sent = Vec::new();
    let mut buffer = [0; 65536];
    let end = b"\r\n0\r\n\r\n";
    while !sent.ends_with(end) {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the request breaks off");
        sent.extend_from_slice(&buffer[..count]);
    }
    stream.write_all(answer.as_bytes()).unwrap();
    let head = sent
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .unwrap();
    let mut rest = &sent[head + 4..];
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|bytes| bytes == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
    (String::from_utf8_lossy(&sent[..head]).into_owned(), body)
}

/// Answers one request without a body and returns its head.
fn small_request(listener: &UnixListener, answer: &str) -> (String, UnixStream) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut sent = Vec::new();
    while !sent.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert!(
            stream.read(&mut byte).unwrap() > 0,
            "the request breaks off"
        );
        sent.push(byte[0]);
    }
    stream.write_all(answer.as_bytes()).unwrap();
    (String::from_utf8_lossy(&sent).into_owned(), stream)
}

#[test]
fn an_image_that_docker_has_is_only_named() {
    let world = world();
    let socket = world.work().join("docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    world.ok(["build", "-t", "app:1", "ctx"]);
    let id = world.ok(["inspect", "-f", "{{.Id}}", "app:1"]).stdout;
    let id = id.trim().to_owned();
    let server = std::thread::spawn(move || {
        let said = answer("200 OK", &format!("{{\"Id\":\"{id}\"}}"));
        let (asked, _) = small_request(&listener, &said);
        assert!(
            asked.starts_with(&format!("GET /images/{id}/json HTTP/1.1\r\n")),
            "{asked}"
        );
        let (tagged, _) = small_request(&listener, &answer("201 Created", ""));
        let path = format!("POST /images/{id}/tag?repo=docker.io/library/app&tag=2 HTTP/1.1\r\n");
        assert!(tagged.starts_with(&path), "{tagged}");
    });
    let mut command = world.command(["build", "--load", "-t", "app:2", "ctx"]);
    command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
    testkit::Outcome::of(&mut command).success();
    server.join().unwrap();
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[test]
fn load_hands_the_image_to_docker() {
    let world = world();
    let socket = world.work().join("docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let build = |answer: String| {
        let mut command = world.command(["build", "--load", "-t", "app:1", "ctx"]);
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        let listener = listener.try_clone().unwrap();
        let server = std::thread::spawn(move || docker(&listener, &answer));
        let outcome = testkit::Outcome::of(&mut command);
        (outcome, server.join().unwrap())
    };
    let (outcome, (head, archive)) = build(answer("200 OK", "{\"stream\":\"Loaded\"}\r\n"));
    outcome.success().says("importing to docker");
    assert!(
        head.starts_with("POST /images/load?quiet=1 HTTP/1.1\r\n"),
        "{head}"
    );
    // It is in the store too, and what Docker was given is the same image.
    let id = world.ok(["inspect", "-f", "{{.Id}}", "app:1"]).stdout;
    world.ok(["rmi", "app:1"]);
    world.write("sent.tar", archive);
    let told = world.ok(["load", "-i", "sent.tar"]).stdout;
    assert_eq!(told, "Loaded image: app:1\n");
    assert_eq!(world.ok(["inspect", "-f", "{{.Id}}", "app:1"]).stdout, id);
    let full = "{\"errorDetail\":{\"message\":\"no space left\"},\"error\":\"no space left\"}\r\n";
    let (outcome, _) = build(answer("200 OK", full));
    outcome
        .fails_with(1)
        .says("failed to load the image into docker: no space left");
    let (outcome, _) = build(answer(
        "500 Internal Server Error",
        "{\"message\":\"broken\"}",
    ));
    outcome
        .fails_with(1)
        .says("500 Internal Server Error: broken");
}

#[test]
fn load_without_an_engine_keeps_the_image_and_says_so() {
    let world = world();
    // A host that is no socket is for Docker's own client, which is not there.
    let mut command = world.command(["build", "--load", "-t", "app:1", "ctx"]);
    command.env("DOCKER_HOST", "ssh://nowhere").env("PATH", "");
    testkit::Outcome::of(&mut command)
        .success()
        .says("the image is in lapstrake's store");
    world.ok(["inspect", "app:1"]);
}

#[test]
fn load_hands_the_image_to_a_program() {
    let world = world();
    let client = world.write(
        "clients/docker",
        "#!/bin/sh\ncat >\"$SENT\"; echo \"$@\" >\"$SENT.arguments\"\n",
    );
    let mut mode = fs::metadata(&client).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    fs::set_permissions(&client, mode).unwrap();
    let build = || {
        let mut command = world.command(["build", "--load", "-t", "app:1", "ctx"]);
        let paths = format!("{}:/usr/bin:/bin", world.work().join("clients").display());
        command
            .env("DOCKER_HOST", "ssh://somewhere")
            .env("SENT", world.work().join("sent.tar"))
            .env("PATH", paths);
        testkit::Outcome::of(&mut command)
    };
    build().success();
    let arguments = fs::read_to_string(world.work().join("sent.tar.arguments")).unwrap();
    assert_eq!(arguments, "load -q\n");
    world.ok(["load", "-i", "sent.tar"]);
    fs::write(
        &client,
        "#!/bin/sh\ncat >/dev/null; echo refused >&2; exit 3\n",
    )
    .unwrap();
    build().fails_with(1).says("exit status: 3: refused");
    fs::write(&client, "#!/bin/sh\necho no room >&2; exit 4\n").unwrap();
    build().fails_with(1).says("no room");
}

#[test]
fn times_are_cut_to_the_epoch_unless_that_is_refused() {
    let world = world();
    let listed = |output: &str| {
        let mut build = world.command(["build", "-q", "-o", output, "ctx"]);
        build.env("SOURCE_DATE_EPOCH", "1000000000");
        testkit::Outcome::of(&mut build).success();
        let layout = world.work().join("layout");
        let index = json(layout.join("index.json"));
        let manifest = blob(&layout, &index["manifests"][0]["digest"]);
        let config = blob(&layout, &manifest["config"]["digest"]);
        assert_eq!(config["created"], "2001-09-09T01:46:40Z");
        let layer = manifest["layers"][1]["digest"].as_str().unwrap();
        let mut tar = world.program("tar");
        let path = layout.join("blobs").join(layer.replace(':', "/"));
        tar.args(["--full-time", "--utc", "-tvf"]).arg(path);
        testkit::Outcome::of(&mut tar).success().stdout
    };
    let cut = listed("type=oci,dest=layout,tar=false,compression=uncompressed");
    assert!(cut.contains(" 2001-09-09 01:46:40 file"), "{cut}");
    let kept =
        listed("type=oci,dest=layout,tar=false,compression=uncompressed,rewrite-timestamp=false");
    assert!(!kept.contains(" 2001-09-09 "), "{kept}");
}

#[test]
fn what_attestations_are_is_read() {
    let world = world();
    for accepted in [
        "--provenance=false",
        "--provenance=0",
        "--provenance=F",
        "--provenance=",
        "--sbom=false",
        "--sbom=0",
        "--attest=type=sbom,disabled=true",
        "--attest=type=provenance,disabled=1",
        // What the store keeps holds none, so that nothing is scanned.
        "--sbom=generator=127.0.0.1:1/scanner",
    ] {
        world.ok(["build", "-q", accepted, "ctx"]);
    }
    for (refused, said) in [
        ("--provenance=mode=some", "it is min or max"),
        ("--provenance=typo", "\"typo\" is no name=value"),
        ("--provenance=max", "as in mode=max"),
        ("--provenance=mode=max,min", "\"min\" is no name=value"),
        (
            "--provenance=mod=max",
            "provenance has no \"mod\"; there are mode,",
        ),
        ("--sbom=typo", "\"typo\" is no name=value"),
        ("--attest=type=sbom,typo", "\"typo\" is no name=value"),
        (
            "--attest=type=provenance,mod=max",
            "provenance has no \"mod\"",
        ),
        ("--attest=type=horoscope", "only provenance and sbom"),
        ("--attest=mode=max", "it has no type"),
    ] {
        world
            .run(["build", refused, "ctx"])
            .fails_with(2)
            .says(said);
    }
}

#[test]
fn a_scanner_writes_the_bill_of_materials() {
    testkit::require_fixtures!("busybox:latest");
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write(
        "scanner/scan",
        "#!/bin/sh\nset -e\n\
         for source in $BUILDKIT_SCAN_SOURCE $BUILDKIT_SCAN_SOURCE_EXTRAS/*; do\n\
         [ -d $source ] || continue\n\
         cat > $BUILDKIT_SCAN_DESTINATION/$(basename $source).spdx.json <<EOF\n\
         {\"_type\": \"x\", \"predicateType\": \"https://spdx.dev/Document\",\n\
          \"predicate\": {\"files\": \"$(ls $source | tr '\\n' ' ')\", \"words\": \"$BUILDKIT_SCAN_words\"}}\n\
         EOF\n\
         done\n\
         ! touch $BUILDKIT_SCAN_SOURCE/not\n",
    );
    world.write(
        "scanner/Dockerfile",
        "FROM busybox\nCOPY --chmod=755 scan /scan\nCMD [\"/scan\"]\n",
    );
    world.ok(["build", "-q", "-t", "scanner", "scanner"]);
    world.write(
        "scanned/Dockerfile",
        "FROM busybox AS made\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN mkdir /only && touch /only/here\n\
         FROM scratch\nCOPY --from=made /only /\n",
    );
    let build = |more: &[&str]| {
        let mut words = vec![
            "build",
            "--attest=type=sbom,generator=scanner,\"words=a,b\"",
            "-o=type=oci,dest=layout,tar=false",
        ];
        words.extend(more);
        words.push("scanned");
        world.ok(words)
    };
    build(&["-o=type=local,dest=files", "--provenance=mode=min"]);
    let layout = world.work().join("layout");
    let entry = json(layout.join("index.json"));
    let index = blob(&layout, &entry["manifests"][0]["digest"]);
    let manifest = blob(&layout, &index["manifests"][1]["digest"]);
    let layers = manifest["layers"].as_array().unwrap();
    let statements: Vec<_> = layers
        .iter()
        .map(|layer| blob(&layout, &layer["digest"]))
        .collect();
    assert_eq!(statements.len(), 3);
    let [result, stage, provenance] = statements.as_slice() else {
        panic!("{statements:?}");
    };
    for statement in [result, stage] {
        assert_eq!(statement["predicateType"], "https://spdx.dev/Document");
        assert_eq!(statement["predicate"]["words"], "a,b");
    }
    assert_eq!(result["predicate"]["files"], "here ");
    let files = stage["predicate"]["files"].as_str().unwrap();
    assert!(files.contains("bin ") && files.contains("only "), "{files}");
    assert_eq!(
        provenance["predicateType"],
        "https://slsa.dev/provenance/v1"
    );
    let beside = json(world.work().join("files/sbom.spdx.json"));
    assert_eq!(beside["subject"][0]["name"], "here");
    // A scan of what was scanned is not run again, and no build is for a scan's sake.
    let again = build(&["--progress=plain"]);
    let (_, scanned) = again.stderr.split_once("generating sbom").expect("a scan");
    assert!(scanned.contains("CACHED"), "{}", again.stderr);
    world
        .run([
            "build",
            "--sbom=generator=127.0.0.1:1/scanner",
            "-o=type=oci,dest=other,tar=false",
            "scanned",
        ])
        .fails_with(1)
        .says("the SBOM generator cannot be had");
}

#[test]
fn provenance_stands_beside_images_and_files() {
    let world = world();
    world.ok([
        "build",
        "--build-arg=TOKEN=1",
        "--build-arg=WHO=me",
        "--provenance=mode=max",
        "-o=type=oci,dest=layout,tar=false",
        "-o=type=local,dest=files",
        TWO,
        "ctx",
    ]);
    let layout = world.work().join("layout");
    let entry = json(layout.join("index.json"));
    let index = blob(&layout, &entry["manifests"][0]["digest"]);
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 4, "{index}");
    for (image, said) in manifests[..2].iter().zip(&manifests[2..]) {
        let notes = &said["annotations"];
        assert_eq!(notes["vnd.docker.reference.digest"], image["digest"]);
        let manifest = blob(&layout, &said["digest"]);
        let statement = blob(&layout, &manifest["layers"][0]["digest"]);
        assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
        let definition = &statement["predicate"]["buildDefinition"];
        let request = &definition["externalParameters"]["request"];
        assert_eq!(request["args"]["build-arg:WHO"], "me");
        assert_eq!(request["args"]["build-arg:TOKEN"], Value::Null);
        assert_eq!(request["locals"][0]["name"], "context");
        let metadata = &statement["predicate"]["runDetails"]["metadata"];
        let layers = &metadata["buildkit_metadata"]["layers"];
        let image = blob(&layout, &image["digest"]);
        let all = layers.as_object().unwrap().values();
        assert!(
            all.flat_map(|chains| chains.as_array().unwrap())
                .any(|chain| *chain == image["layers"]),
            "{layers}"
        );
    }
    let beside = json(world.work().join("files/linux_arm64/provenance.json"));
    let subjects = beside["subject"].as_array().unwrap();
    let names: Vec<&str> = subjects
        .iter()
        .map(|subject| subject["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["file", "machine"]);
    // A pure image stays what it is without a word of it.
    world.ok(["build", "-o=type=oci,dest=plain,tar=false", "ctx"]);
    let entry = json(world.work().join("plain/index.json"));
    let manifest = blob(
        &world.work().join("plain"),
        &entry["manifests"][0]["digest"],
    );
    assert!(manifest["config"].is_object(), "{manifest}");
}

#[test]
fn a_profile_has_every_step_that_took_time() {
    let world = world();
    world.ok([
        "build",
        "-q",
        "--profile=trace.json",
        "-t",
        "app",
        "--build-arg=TARGETARCH=amd64",
        "ctx",
    ]);
    let trace = json(world.work().join("trace.json"));
    let names: Vec<&str> = trace["traceEvents"]
        .as_array()
        .expect("events")
        .iter()
        .filter(|event| event["ph"] == "X")
        .filter_map(|event| event["name"].as_str())
        .collect();
    for wanted in ["[2/2] COPY file /file", "exporting to image"] {
        assert!(names.contains(&wanted), "no {wanted} in {names:?}");
    }
}

#[test]
fn a_step_for_another_machine_says_what_it_takes() {
    let world = world();
    // The beginning of a program for s390x, for which nobody has an emulator by chance.
    let mut program = vec![0; 64];
    program[..7].copy_from_slice(b"\x7fELF\x02\x02\x01");
    program[17] = 2;
    program[19] = 0x16;
    let path = world.write("foreign/program", program);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, mode).unwrap();
    world.write(
        "foreign/Dockerfile",
        "FROM scratch\nCOPY program /\nRUN [\"/program\"]\n",
    );
    if Path::new("/proc/sys/fs/binfmt_misc/qemu-s390x").exists() {
        testkit::skip!("programs for s390x run on this machine");
    }
    let told = world
        .run(["build", "--platform=linux/s390x", "foreign"])
        .fails_with(1);
    told.says("exec format error")
        .says("programs for linux/s390x on")
        .says("qemu-user-static");
    // What is wrong with a program for this machine is not a matter of emulators.
    let told = world.run(["build", "foreign"]).fails_with(1);
    assert!(!told.stderr.contains("qemu"), "{}", told.stderr);
}

#[test]
fn the_verbs_of_docker_lead_to_the_same() {
    let world = world();
    world.ok(["image", "build", "-q", "-t", "one", "ctx"]);
    world.ok(["buildx", "build", "-q", "-t", "two", "ctx"]);
    world.ok(["builder", "build", "-q", "-t", "three", "ctx"]);
    let ids = world.ok(["images", "-q"]).stdout;
    assert_eq!(ids.lines().count(), 1, "{ids}");
    for prune in [
        ["builder", "prune", "-f"],
        ["buildx", "prune", "-f"],
        ["image", "prune", "-f"],
    ] {
        world.ok(prune);
    }
}

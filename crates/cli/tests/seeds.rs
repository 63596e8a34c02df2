//! The scenarios of multi-stage builds, each with its real compilers, through the real binary.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::{Environment, Outcome, require_fixtures, require_programs};

const BUILD: [&str; 2] = ["build", "--progress=plain"];

fn environment() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

/// Builds in a folder, with the progress as lines on stderr.
#[track_caller]
fn build(environment: &Environment, folder: &Path, arguments: &[&str]) -> Outcome {
    let mut command = environment.command(BUILD);
    Outcome::of(command.args(arguments).current_dir(folder)).success()
}

/// Returns the fields of the images that match, a line each.
#[track_caller]
fn images(environment: &Environment, reference: &str, format: &str) -> Vec<String> {
    let filter = format!("reference={reference}");
    let told = environment
        .ok(["images", "-f", &filter, "--format", format])
        .stdout;
    told.lines().map(str::to_owned).collect()
}

/// Returns the size column of an image, in bytes as far as it tells them.
#[track_caller]
fn size(environment: &Environment, image: &str) -> f64 {
    let told = environment
        .ok(["images", "--format", "{{.Size}}", image])
        .stdout;
    let text = told.trim();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[number.len()..] {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => panic!("{image} has a size in {other:?}: {told:?}"),
    };
    number.parse::<f64>().expect("a size is a number") * unit
}

/// Takes a path out of an image.
#[track_caller]
fn copy_out(environment: &Environment, image: &str, path: &str, to: &str) {
    environment.ok(["container", "create", "--name", "taken", image]);
    environment.ok(["container", "cp", &format!("taken:{path}"), to]);
    environment.ok(["container", "rm", "-f", "taken"]);
}

/// Returns the lines of the steps that ran (or were cached), less their numbers and times.
fn steps(outcome: &Outcome) -> Vec<&str> {
    outcome
        .stderr
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(number, _)| number.starts_with('#'))
        .map(|(_, text)| text)
        .filter(|text| text.starts_with('['))
        .collect()
}

/// Starts the server, lets the client greet through it, and returns what the client printed.
fn talk(environment: &Environment, server: &Path, client: &Path) -> String {
    let mut serving = Command::new(server)
        .args(["-listen", "127.0.0.1:0", "-once"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let mut line = String::new();
    BufReader::new(serving.stdout.take().expect("stdout is a pipe"))
        .read_line(&mut line)
        .expect("the server says where it listens");
    let address = line.trim().rsplit(' ').next().expect("a line has words");
    let told = Outcome::of(
        environment
            .program(client)
            .args(["-server", address, "ana", "ken"]),
    );
    serving.wait().expect("the server ends");
    told.success().stdout
}

#[test]
fn two_programs_in_one_stage_and_in_two() {
    require_fixtures!("golang:1.23-alpine");
    let environment = environment();
    let folder = environment.example("buildme");

    build(&environment, &folder, &["--tag=buildme", "."]);
    let single = size(&environment, "buildme");
    let table = environment.ok(["images", "buildme"]).stdout;
    let head: Vec<&str> = table
        .lines()
        .next()
        .unwrap_or("")
        .split("  ")
        .filter(|word| !word.is_empty())
        .map(str::trim)
        .collect();
    assert_eq!(head, ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);

    let told = build(
        &environment,
        &folder,
        &["--tag=buildme", "-f", "Dockerfile.multi", "."],
    );
    told.says("naming to docker.io/library/buildme");
    let multi = size(&environment, "buildme");
    assert!(
        single > 200e6 && multi < 10e6,
        "{single} in one stage, {multi} in two"
    );

    // The steps of the first stage are those of the first build.
    let ran = told.stderr.matches("CACHED").count();
    assert!(ran >= 6, "{}", told.told());

    copy_out(&environment, "buildme", "/bin", "out");
    let out = environment.work().join("out");
    let mut names: Vec<String> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["client", "server"]);
    let files: u64 = names
        .iter()
        .map(|name| out.join(name).metadata().unwrap().len())
        .sum();
    let difference = (multi - files as f64).abs();
    assert!(
        difference < 6e3,
        "the size column says {multi}, the files have {files}"
    );
    let told = talk(&environment, &out.join("server"), &out.join("client"));
    assert_eq!(told, "hello, ana\nhello, ken\n");
}

#[test]
fn independent_stages_overlap_in_time() {
    require_fixtures!("golang:1.23-alpine");
    let environment = environment();
    let folder = environment.example("buildme");
    let mut command = environment.command(["build", "--progress=rawjson", "-t", "buildme"]);
    let told = Outcome::of(
        command
            .args(["-f", "Dockerfile.parallel", "."])
            .current_dir(&folder),
    )
    .success();

    let mut times: Vec<(String, String, String)> = Vec::new();
    for line in told.stderr.lines() {
        let Ok(status) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        for vertex in status["vertexes"].as_array().into_iter().flatten() {
            let text = |field: &str| vertex[field].as_str().unwrap_or("").to_owned();
            if text("name").contains("RUN go build") && !text("completed").is_empty() {
                times.push((text("name"), text("started"), text("completed")));
            }
        }
    }
    times.sort();
    times.dedup_by(|a, b| a.0 == b.0);
    let [client, server] = times.as_slice() else {
        panic!("two steps build the programs: {times:?}");
    };
    assert!(client.0.contains("build-client") && server.0.contains("build-server"));
    // RFC 3339 with equal offsets: the order of the texts is that of the times to the second.
    assert!(client.1 < server.2 && server.1 < client.2, "{times:?}");
}

#[test]
fn a_target_runs_nothing_that_it_does_not_need() {
    require_fixtures!("golang:1.23-alpine");
    let environment = environment();
    let folder = environment.example("buildme");
    let path = folder.join("Dockerfile.targets");
    let with_trap = fs::read_to_string(&path).unwrap() + "\nFROM base AS never\nRUN false\n";
    fs::write(&path, with_trap).unwrap();

    let client = [
        "--tag=buildme-client",
        "--target=client",
        "-f",
        "Dockerfile.targets",
        ".",
    ];
    let told = build(&environment, &folder, &client);
    let ran = steps(&told);
    assert!(
        ran.iter()
            .any(|step| step.starts_with("[build-client 1/1] RUN go build")),
        "{ran:?}"
    );
    assert!(
        !ran.iter()
            .any(|step| step.contains("server") || step.contains("never")),
        "{ran:?}"
    );

    let server = [
        "--tag=buildme-server",
        "--target=server",
        "-f",
        "Dockerfile.targets",
        ".",
    ];
    build(&environment, &folder, &server);
    let listed = images(&environment, "buildme-*", "{{.Repository}}");
    assert_eq!(listed.len(), 2);
    for name in ["buildme-client", "buildme-server"] {
        assert!(listed.iter().any(|image| image == name));
        assert!(size(&environment, name) < 5e6);
    }
}

#[test]
fn one_go_program_on_four_bases() {
    require_fixtures!(
        "golang:1.23",
        "debian:bookworm-slim",
        "gcr.io/distroless/base-debian12"
    );
    let environment = environment();
    let folder = environment.example("golang");
    for (tag, file) in [
        ("myapp:single", "Dockerfile.single"),
        ("myapp:slim", "Dockerfile"),
        ("myapp:distroless", "Dockerfile.distroless"),
        ("myapp:scratch", "Dockerfile.scratch"),
    ] {
        build(&environment, &folder, &["-t", tag, "-f", file, "."]);
    }
    for (tag, shell) in [
        ("single", "yes"),
        ("slim", "yes"),
        ("distroless", "no"),
        ("scratch", "no"),
    ] {
        let told = environment
            .ok(["run", "--rm", &format!("myapp:{tag}")])
            .stdout;
        assert!(told.starts_with("hello from go1.23"), "{told}");
        assert!(told.contains(&format!("shell: {shell}")), "{tag}: {told}");
    }
    let told = environment.ok(["run", "--rm", "myapp:distroless"]).stdout;
    assert!(told.contains("time zones: yes"), "{told}");
    let sizes = ["scratch", "distroless", "slim", "single"]
        .map(|tag| size(&environment, &format!("myapp:{tag}")));
    assert!(sizes.is_sorted(), "{sizes:?}");
}

#[test]
fn a_service_that_needs_c_to_build() {
    require_fixtures!("golang:1.20-alpine3.17", "alpine:3.17");
    let environment = environment();
    let folder = environment.example("realworld");
    let told = build(&environment, &folder, &["-t", "multi-realworld-app", "."]);
    for line in [
        "[builder 1/9] FROM docker.io/library/golang:1.20-alpine3.17@sha256:",
        "[stage-1 1/3] FROM docker.io/library/alpine:3.17@sha256:",
        "[builder 2/9] RUN apk update && apk add --no-cache gcc musl-dev sqlite-dev",
        "[stage-1 2/3] WORKDIR /app",
        "[builder 3/9] WORKDIR /app",
        "[builder 4/9] COPY go.mod go.sum hello.go doc.go ./",
        "[builder 7/9] COPY articles ./articles",
        "[builder 9/9] RUN GOOS=linux go build -o ./realworld",
        "[stage-1 3/3] COPY --from=builder /app/realworld .",
        "exporting to image",
        "exporting layers",
        "naming to docker.io/library/multi-realworld-app",
    ] {
        told.says(line);
    }
    let told = build(
        &environment,
        &folder,
        &["-t", "realworld-app", "-f", "Dockerfile.single", "."],
    );
    assert!(
        told.stderr.matches("CACHED").count() >= 8,
        "{}",
        told.told()
    );

    let listed = images(&environment, "*realworld-app", "{{.Repository}}");
    assert_eq!(listed.len(), 2, "{listed:?}");
    let (multi, single) = (
        size(&environment, "multi-realworld-app"),
        size(&environment, "realworld-app"),
    );
    assert!(
        single > 10.0 * multi,
        "{single} in one stage, {multi} in two"
    );

    let told = environment
        .ok([
            "run",
            "--rm",
            "multi-realworld-app",
            "./realworld",
            "-check",
        ])
        .stdout;
    assert!(told.contains(r#"/api/users ["ana","ken"]"#), "{told}");
    assert!(
        told.contains(r#"[{"author":"ana","title":"Overlapping planks"}]"#),
        "{told}"
    );
}

#[test]
fn a_stage_by_number_is_the_stage_by_name() {
    require_fixtures!("golang:1.16", "alpine:latest");
    let environment = environment();
    let folder = environment.example("href-counter");
    build(
        &environment,
        &folder,
        &["-t", "alexellis2/href-counter:latest", "."],
    );
    let named = [
        "-t",
        "alexellis2/href-counter:named",
        "-f",
        "Dockerfile.named",
        ".",
    ];
    let told = build(&environment, &folder, &named);
    assert!(!told.stderr.contains("RUN CGO_ENABLED=0") || told.stderr.contains("CACHED"));
    let ids = images(&environment, "alexellis2/href-counter", "{{.ID}}");
    assert_eq!(ids.len(), 2);
    assert_eq!(
        ids[0], ids[1],
        "the name of a stage changes nothing in the image"
    );

    let stop = [
        "--target",
        "builder",
        "-t",
        "alexellis2/href-counter:builder",
        "-f",
        "Dockerfile.named",
        ".",
    ];
    let told = build(&environment, &folder, &stop);
    assert!(!told.stderr.contains("[stage-1"), "{}", told.told());

    copy_out(
        &environment,
        "alexellis2/href-counter:latest",
        "/root/app",
        "app",
    );
    let mut app = Command::new(environment.work().join("app"))
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let page = br#"<a href="/in">1</a> <a href="https://example.com">2</a> <a href="in">3</a>"#;
    app.stdin
        .take()
        .expect("stdin is a pipe")
        .write_all(page)
        .unwrap();
    let told = app.wait_with_output().unwrap().stdout;
    assert_eq!(
        String::from_utf8_lossy(&told),
        "{\"internal\":2,\"external\":1}\n"
    );
}

#[test]
fn the_builder_pattern_takes_a_program_out_of_a_container() {
    require_fixtures!("golang:1.16", "alpine:latest");
    let environment = environment();
    let folder = environment.example("builder-pattern");
    let mut script = environment.program("./build.sh");
    let told = Outcome::of(script.env("DOCKER_BUILDKIT", "1").current_dir(&folder)).success();
    assert!(
        told.stdout
            .starts_with("Building alexellis2/href-counter:build\n"),
        "{}",
        told.told()
    );
    assert!(
        told.stdout
            .contains("Building alexellis2/href-counter:latest\n")
    );
    assert!(
        !folder.join("app").exists(),
        "the script removes what it took"
    );

    let mut tags = images(&environment, "alexellis2/href-counter", "{{.Tag}}");
    tags.sort();
    assert_eq!(tags, ["build", "latest"]);
    let left = environment.ok(["container", "ls", "-a", "-q"]).stdout;
    assert_eq!(left, "", "no container is left");
    let told = environment
        .ok(["run", "--rm", "alexellis2/href-counter:latest"])
        .stdout;
    assert_eq!(told, "{\"internal\":0,\"external\":0}\n");
}

#[test]
fn a_stage_begins_where_another_ended() {
    require_fixtures!("alpine:latest");
    let environment = environment();
    let folder = environment.example("cpp");
    build(
        &environment,
        &folder,
        &["--target", "build1", "-t", "cpp:1", "."],
    );
    let told = build(
        &environment,
        &folder,
        &["--target", "build2", "-t", "cpp:2", "."],
    );
    assert!(
        !told.stderr.contains("Installing g++"),
        "the shared stage is built once: {}",
        told.told()
    );
    for (tag, text) in [("cpp:1", "build1\n"), ("cpp:2", "build2\n")] {
        assert_eq!(environment.ok(["run", "--rm", tag, "/binary"]).stdout, text);
    }
}

#[test]
fn a_file_out_of_an_image_that_is_no_stage() {
    require_fixtures!("nginx:latest");
    let environment = environment();
    let folder = environment.example("nginx-conf");
    build(&environment, &folder, &["-o", "out", "."]);
    let config = fs::read_to_string(folder.join("out/nginx.conf")).unwrap();
    assert!(config.contains("worker_processes"), "{config}");
    assert_eq!(fs::read_dir(folder.join("out")).unwrap().count(), 1);
}

#[test]
fn five_stages_of_a_next_js_app() {
    require_fixtures!("node:14-alpine");
    let environment = environment();
    let folder = environment.example("nextjs");
    let development = [
        "--target",
        "development",
        "-t",
        "buildtest/development:latest",
        ".",
    ];
    let told = build(&environment, &folder, &development);
    assert!(
        !told.stderr.contains("[builder") && !told.stderr.contains("[production"),
        "{}",
        told.told()
    );
    let planks = [
        "run",
        "--rm",
        "buildtest/development:latest",
        "yarn",
        "--silent",
        "planks",
    ];
    assert!(environment.ok(planks).stdout.contains("garboard"));

    let production = [
        "--target",
        "production",
        "-t",
        "buildtest/production:latest",
        ".",
    ];
    let told = build(&environment, &folder, &production);
    assert!(!told.stderr.contains("[development"), "{}", told.told());
    told.says("Compiled successfully");
    let serve = "next start -p 3000 >/dev/null & \
         for i in $(seq 100); do curl -sf http://127.0.0.1:3000/api/planks && exit; sleep 0.2; done; exit 1";
    let told = environment.ok([
        "run",
        "--rm",
        "buildtest/production:latest",
        "sh",
        "-c",
        serve,
    ]);
    assert_eq!(told.stdout, r#"["garboard","broad strake","sheer strake"]"#);
    // What only builds is not in the image that runs.
    let look = [
        "run",
        "--rm",
        "buildtest/production:latest",
        "ls",
        "/app/node_modules",
    ];
    let packages = environment.ok(look).stdout;
    assert!(
        packages.lines().any(|name| name == "next")
            && !packages.lines().any(|name| name == "kleur")
    );
}

#[test]
fn an_exported_archive_is_valid_for_other_tools() {
    require_fixtures!("alpine:latest", "nginx:latest");
    require_programs!("skopeo", "umoci");
    let environment = environment();
    environment.write("Dockerfile", "FROM alpine:3.17\nCOPY --from=nginx:latest /etc/nginx/nginx.conf /nginx.conf\nRUN rm /etc/os-release\nCMD [\"sh\"]\n");
    let work = environment.work();
    build(
        &environment,
        &work,
        &["-t", "app", "--output", "type=oci,dest=app.tar", "."],
    );

    let inspected = Outcome::of(
        environment
            .program("skopeo")
            .args(["inspect", "oci-archive:app.tar"]),
    )
    .success();
    let about: Value = serde_json::from_str(&inspected.stdout).unwrap();
    assert_eq!(about["Layers"].as_array().map(Vec::len), Some(3));
    Outcome::of(environment.program("skopeo").args([
        "copy",
        "--insecure-policy",
        "oci-archive:app.tar",
        "oci:layout:app",
    ]))
    .success();
    Outcome::of(
        environment
            .program("umoci")
            .args(["unpack", "--image", "layout:app", "bundle"]),
    )
    .success();
    let root = work.join("bundle/rootfs");
    assert!(root.join("nginx.conf").is_file());
    assert!(!root.join("etc/os-release").exists());
    assert!(root.join("usr/bin/busybox").is_file());
}

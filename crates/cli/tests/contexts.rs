//! Where the files of a build come from: archives, URLs, git repositories, images, named contexts.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use testkit::{Environment, Outcome, require_fixtures, require_programs};

fn environment() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

/// Serves the files of a folder for the rest of the test; returns the URL of the folder.
fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            std::thread::spawn(move || answer(stream, &folder));
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: TcpStream, folder: &Path) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut request = String::new();
    reader.read_line(&mut request).unwrap_or_default();
    let mut header = String::new();
    while reader.read_line(&mut header).unwrap_or_default() > 2 {
        header.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    let path = path
        .split('?')
        .next()
        .unwrap_or("/")
        .trim_start_matches('/');
    let (status, body) = match fs::read(folder.join(path)) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body);
}

/// Runs a shell script in the scratch folder.
#[track_caller]
fn script(environment: &Environment, text: &str) {
    let told = Outcome::of(environment.program("sh").args(["-euc", text]));
    assert!(told.status.success(), "{}", told.told());
}

/// Makes a repository `r.git` with two commits, a tag on the first, and a branch on it.
fn repository(environment: &Environment) {
    script(
        environment,
        "git init -q -b trunk repo && cd repo
        git config user.email a@example.com && git config user.name n
        mkdir -p sub/deep
        printf 'FROM scratch\\nCOPY . /all/\\n' > Dockerfile
        printf 'FROM scratch\\nCOPY f /f\\n' > sub/Dockerfile
        echo '*' > .dockerignore
        echo one > sub/f && echo run > tool && chmod +x tool && ln -s tool link && ln -s sub through
        git add -A
        GIT_COMMITTER_DATE=2020-01-02T03:04:05Z git commit -qm one
        git tag -a v1 -m v1 && git branch side
        echo two > sub/f && git commit -qam two
        cd .. && git clone -q --bare repo r.git && cd r.git && git update-server-info",
    );
}

fn output_of(environment: &Environment, path: &str) -> String {
    let path = environment.work().join("out").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Builds into the folder `out`.
#[track_caller]
fn build(environment: &Environment, arguments: &[&str]) -> Outcome {
    let _ = fs::remove_dir_all(environment.work().join("out"));
    let mut command = environment.command(["build", "--progress=plain", "-o", "out"]);
    Outcome::of(command.args(arguments))
}

#[track_caller]
fn builds(environment: &Environment, arguments: &[&str]) {
    let told = build(environment, arguments);
    assert!(told.status.success(), "{}", told.told());
}

#[test]
fn a_repository_is_a_context() {
    require_programs!("git");
    let environment = environment();
    repository(&environment);
    let url = serve(environment.work());
    builds(&environment, &[&format!("{url}/r.git")]);
    assert_eq!(output_of(&environment, "all/sub/f"), "two\n");
    let out = environment.work().join("out/all");
    assert!(out.join("link").is_symlink());
    assert!(!out.join(".git").exists());
    // As in the reference the ignore file of a repository keeps nothing out.
    assert!(out.join(".dockerignore").exists());
    for context in [
        "r.git#v1:sub",
        "r.git#side:sub",
        "r.git?tag=v1&subdir=sub",
        "r.git?ref=side&subdir=sub",
    ] {
        builds(&environment, &[&format!("{url}/{context}")]);
        assert_eq!(output_of(&environment, "f"), "one\n", "{context}");
    }
    // The same commit again needs nothing but to ask where the branch is at.
    let again = build(&environment, &[&format!("{url}/r.git")]);
    again.says("CACHED");
}

#[test]
fn what_a_repository_lacks_is_named() {
    require_programs!("git");
    let environment = environment();
    repository(&environment);
    let url = serve(environment.work());
    for (context, says) in [
        ("r.git#nope", "no branch or tag \"nope\""),
        ("r.git#trunk:none", "no directory \"none\""),
        ("r.git#trunk:through", "no directory \"through\""),
        ("none.git", "not found"),
        ("r.git?checksum=abcdef1", "checksum mismatch"),
    ] {
        let told = build(&environment, &[&format!("{url}/{context}")]);
        assert_eq!(told.status.code(), Some(1), "{context}: {}", told.told());
        told.says(says);
    }
    let told = build(&environment, &[&format!("{url}/r.git?what=ever")]);
    assert_eq!(told.status.code(), Some(2), "{}", told.told());
}

#[test]
fn repositories_are_added_and_named() {
    require_programs!("git");
    let environment = environment();
    repository(&environment);
    let url = serve(environment.work());
    let dockerfile = format!(
        "FROM scratch
ADD --keep-git-dir=true {url}/r.git#v1 /kept/
ADD {url}/r.git#v1:sub /part/
COPY --from=side sub/f /side
COPY --from=files f /files
"
    );
    environment.write("ctx/Dockerfile", dockerfile);
    let side = format!("side={url}/r.git#side");
    let arguments = [
        "--build-context",
        &side,
        "--build-context",
        "files=repo/sub",
        "ctx",
    ];
    builds(&environment, &arguments);
    assert_eq!(output_of(&environment, "part/f"), "one\n");
    assert_eq!(output_of(&environment, "side"), "one\n");
    assert_eq!(output_of(&environment, "files"), "two\n");
    let log = environment
        .program("git")
        .args([
            "-c",
            "safe.directory=*",
            "-C",
            "out/kept",
            "log",
            "--format=%s",
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&log.stdout), "one\n");
    let wrong = format!("FROM scratch\nADD --checksum=abcdef1 {url}/r.git /\n");
    environment.write("ctx/Dockerfile", wrong);
    let told = build(&environment, &["ctx"]);
    told.says("checksum mismatch").says("ctx/Dockerfile:2");
}

#[test]
fn submodules_come_along_unless_told_otherwise() {
    require_programs!("git");
    let environment = environment();
    let url = serve(environment.work());
    // One has a submodule of its own, one an address relative to that of the repository. None of the servers here cuts
    // a history off.
    script(
        &environment,
        &format!(
            "new() {{
                git init -q -b trunk $1 && cd $1
                git config user.email a@example.com && git config user.name n
            }}
            (new inner && echo inner > f && git add -A && git commit -qm 1 && git update-server-info)
            (new outer && echo outer > f && git add -A && git commit -qm 1
                git submodule --quiet add {url}/inner/.git in
                git commit -qm 2 && echo later > f && git commit -qam 3 && git update-server-info)
            (new main && git submodule --quiet add {url}/outer/.git far
                git -C far -c advice.detachedHead=false checkout -q HEAD~1
                git config -f .gitmodules submodule.near.path near
                git config -f .gitmodules submodule.near.url ../../inner/.git
                git -c protocol.file.allow=always clone -q ../inner near
                git add -A 2> /dev/null
                git commit -qm 1 && git update-server-info)"
        ),
    );
    let main = format!("{url}/main/.git");
    environment.write("Dockerfile", "FROM scratch\nCOPY --from=main . /\n");
    let context = |query: &str| ["--build-context".to_owned(), format!("main={main}{query}")];
    let with = |query: &str| {
        let [flag, value] = context(query);
        builds(&environment, &[&flag, &value, "."]);
    };
    for query in ["", "?submodules", "?submodules=true", "?keep-git-dir=true"] {
        with(query);
        assert_eq!(output_of(&environment, "far/f"), "outer\n", "{query}");
        assert_eq!(output_of(&environment, "far/in/f"), "inner\n", "{query}");
        assert_eq!(output_of(&environment, "near/f"), "inner\n", "{query}");
    }
    assert!(output_of(&environment, ".git/config").contains(&main));
    with("?submodules=false");
    assert!(!environment.work().join("out/far/f").exists());
    environment.write("Dockerfile", format!("FROM scratch\nADD {main} /\n"));
    builds(&environment, &["."]);
    assert_eq!(output_of(&environment, "far/in/f"), "inner\n");
}

#[test]
fn the_time_of_a_commit_is_that_of_the_image() {
    require_programs!("git");
    let environment = environment();
    repository(&environment);
    let url = serve(environment.work());
    let config = |epoch: &str| {
        let context = format!("{url}/r.git#v1:sub");
        let epoch = format!("SOURCE_DATE_EPOCH={epoch}");
        environment.ok(["build", "-t", "dated", "--build-arg", &epoch, &context]);
        environment
            .ok(["inspect", "--format", "{{.Created}}", "dated"])
            .stdout
    };
    assert_eq!(config("context").trim(), "2020-01-02T03:04:05Z");
    assert_eq!(config("0").trim(), "1970-01-01T00:00:00Z");
    let told = environment.run(["build", "--build-arg=SOURCE_DATE_EPOCH=what", "repo"]);
    told.says("invalid SOURCE_DATE_EPOCH: what");
}

#[test]
fn archives_are_contexts_in_every_compression() {
    require_programs!("tar", "gzip", "xz", "bzip2", "zstd");
    let environment = environment();
    environment.write("c/Dockerfile", "FROM scratch\nCOPY a b /\n");
    environment.write("c/a", "a\n");
    environment.write("c/b", "b\n");
    environment.write("c/.dockerignore", "b\n");
    let url = serve(environment.work());
    for compress in ["cat", "gzip", "xz", "bzip2", "zstd"] {
        script(
            &environment,
            &format!("tar c -C c . | {compress} > archive"),
        );
        builds(&environment, &[&format!("{url}/archive")]);
        assert_eq!(output_of(&environment, "b"), "b\n", "{compress}");
        builds(&environment, &["archive"]);
        let mut command = environment.command(["build", "-q", "-o", "out", "-"]);
        let archive = fs::File::open(environment.work().join("archive")).unwrap();
        let told = Outcome::of(
            command
                .env("TMPDIR", environment.work())
                .stdin(Stdio::from(archive)),
        );
        assert!(told.status.success(), "{compress}: {}", told.told());
    }
    let left = fs::read_dir(environment.work()).unwrap();
    let left = left
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".tmp"));
    assert_eq!(left.count(), 0, "nothing of standard input is left behind");
    environment.write("archive", b"\x1f\x8b\x08 not really");
    let told = build(&environment, &["archive"]);
    assert_ne!(told.status.code(), Some(0));
}

#[test]
fn a_dockerfile_comes_from_a_url_or_from_outside() {
    let environment = environment();
    environment.write("c/a", "a\n");
    environment.write("c/b", "b\n");
    environment.write("c/.dockerignore", "a\n");
    environment.write("else/D", "FROM scratch\nCOPY . /\n");
    environment.write("else/D.dockerignore", "b\n");
    environment.write("alone", "FROM scratch\nCOPY context /itself\n");
    let url = serve(environment.work());
    builds(&environment, &["-f", "else/D", "c"]);
    assert_eq!(
        output_of(&environment, "a"),
        "a\n",
        "its own ignore file counts"
    );
    assert!(!environment.work().join("out/b").exists());
    builds(&environment, &["-f", &format!("{url}/else/D"), "c"]);
    assert_eq!(
        output_of(&environment, "b"),
        "b\n",
        "that of the context counts"
    );
    assert!(!environment.work().join("out/a").exists());
    builds(&environment, &[&format!("{url}/alone")]);
    assert!(output_of(&environment, "itself").starts_with("FROM"));
    let told = build(&environment, &[&format!("{url}/nothing")]);
    assert_eq!(told.status.code(), Some(1));
    told.says("404");
}

#[test]
fn a_dockerfile_in_an_archive_reads_nothing_outside() {
    require_programs!("tar");
    let environment = environment();
    let outside = environment.write("outside", "FROM scratch\nLABEL secret=1\n");
    script(
        &environment,
        &format!(
            "mkdir c && ln -s {} c/Dockerfile && tar cf archive -C c .",
            outside.display()
        ),
    );
    let told = build(&environment, &["archive"]);
    assert_eq!(told.status.code(), Some(1));
    told.says("there is no file Dockerfile in the context");
}

#[test]
fn a_stage_stands_in_for_a_base_or_a_source() {
    let environment = environment();
    environment.write(
        "Dockerfile",
        "FROM scratch AS made\nCOPY <<F /f\nmade\nF\nFROM nowhere.example/base\nCOPY --from=tools /f /copied\n",
    );
    let arguments = |base| {
        [
            "--build-context",
            base,
            "--build-context",
            "tools=target:made",
            ".",
        ]
    };
    builds(&environment, &arguments("nowhere.example/base=target:made"));
    assert_eq!(output_of(&environment, "f"), "made\n");
    assert_eq!(output_of(&environment, "copied"), "made\n");
    for (base, says) in [
        ("nowhere.example/base=target:mad", "did you mean made?"),
        ("nowhere.example/base=target:", "names no stage"),
    ] {
        let told = build(&environment, &arguments(base));
        assert!(!told.status.success());
        told.says(says);
    }
}

#[test]
fn an_image_layout_stands_in_for_a_base() {
    require_fixtures!("busybox:latest");
    let environment = environment();
    environment.write("c/Dockerfile", "FROM base\nRUN echo ran > /ran\n");
    let layout = testkit::fixtures().join("docker.io/library/busybox");
    let layout = layout.display();
    for reference in [format!("{layout}"), format!("{layout}:latest")] {
        let context = format!("base=oci-layout://{reference}");
        builds(&environment, &["--build-context", &context, "c"]);
        assert_eq!(output_of(&environment, "ran"), "ran\n");
    }
    let context = format!("base=oci-layout://{layout}:none");
    let told = build(&environment, &["--build-context", &context, "c"]);
    told.says("has no image \"none\"").says("latest");
    let told = build(
        &environment,
        &["--build-context", "base=docker-image://busybox", "c"],
    );
    assert!(told.status.success(), "{}", told.told());
    let told = build(&environment, &["--build-context", "base=nowhere", "c"]);
    told.says("base=nowhere is no directory");
}

#[test]
fn git_is_asked_without_prompts() {
    require_programs!("git");
    let environment = environment();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap_or_default() > 2 {
                line.clear();
            }
            let _ = stream.write_all(head.as_bytes());
        }
    });
    let told = build(&environment, &[&format!("http://{address}/r.git")]);
    assert_eq!(told.status.code(), Some(1), "{}", told.told());
    told.says("terminal prompts disabled");
}

#[test]
fn what_is_copied_with_its_parents_has_to_be_there() {
    let env = environment();
    env.write_config("");
    env.write("ctx/file", "x\n");
    let dockerfile = |path: &str| {
        format!(
            "FROM scratch AS base\nCOPY file /a/b/file\nFROM scratch\nCOPY --from=base --parents {path} /out/\n"
        )
    };
    env.write("ctx/Dockerfile", dockerfile("/a/missing"));
    env.run(["build", "-o=type=cacheonly", "ctx"])
        .fails_with(1)
        .says("/a/missing");
    env.write("ctx/Dockerfile", dockerfile("/a/miss*"));
    env.ok(["build", "-o=type=cacheonly", "ctx"]);
    env.write("ctx/Dockerfile", dockerfile("/a/b"));
    env.ok(["build", "-o=type=cacheonly", "ctx"]);
}

/// Puts a program of this name into the way of others; returns the `PATH` with it.
fn in_the_way(environment: &Environment, name: &str, script: &str) -> std::ffi::OsString {
    let path = environment.work().join("first").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, mode).unwrap();
    let mut paths = vec![path.parent().unwrap().to_owned()];
    paths.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    std::env::join_paths(paths).unwrap()
}

#[test]
fn git_sees_nothing_of_the_users_configuration() {
    require_programs!("git");
    let environment = environment();
    repository(&environment);
    let url = serve(environment.work());
    let config = format!("[url \"http://127.0.0.1:1/\"]\n insteadOf = {url}/\n");
    environment.write("home/.gitconfig", &config);
    let home = environment.work().join("home");
    let build = |variables: &[(&str, &str)]| {
        let mut command = environment.command(["build", "--progress=plain", "-o", "out"]);
        command.arg(format!("{url}/r.git")).env("HOME", &home);
        Outcome::of(command.envs(variables.iter().copied())).success();
    };
    build(&[]);
    // Nor of what its variables would have it do.
    build(&[
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", "url.http://127.0.0.1:1/.insteadOf"),
        ("GIT_CONFIG_VALUE_0", &url),
        ("GIT_DIR", "/nowhere"),
    ]);
}

#[test]
fn ssh_for_git_gets_an_agent_and_no_keys() {
    require_programs!("git");
    let environment = environment();
    let told = environment.work().join("told");
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$*\" \"agent=${{SSH_AUTH_SOCK-none}} home=$HOME own=${{OWN-none}}\" > {}\nexit 1\n",
        told.display()
    );
    let path = in_the_way(&environment, "ssh", &script);
    let build = |agent: Option<&Path>| {
        let mut command = environment.command(["build", "--progress=plain", "-o", "out"]);
        command.arg("git@127.0.0.1:r.git").env("PATH", &path);
        command.env("OWN", "1").env("GIT_SSH_COMMAND", "false");
        if let Some(agent) = agent {
            command.env("SSH_AUTH_SOCK", agent);
        }
        Outcome::of(&mut command).fails_with(1);
        fs::read_to_string(&told).unwrap()
    };
    let without = build(None);
    assert!(without.contains("-F none"), "{without}");
    assert!(without.contains("IdentityFile=none"), "{without}");
    assert!(
        without.contains("agent=none home=/dev/null own=none"),
        "{without}"
    );
    // As in buildx the agent of whoever names the context opens it.
    let socket = environment.work().join("agent");
    let _agent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let with = build(Some(&socket));
    assert!(with.contains("agent=/"), "{with}");
}

#[test]
fn a_token_in_an_address_is_shown_and_kept_nowhere() {
    require_programs!("git");
    let environment = environment();
    repository(&environment);
    environment.write("file", "x\n");
    let url = serve(environment.work()).replace("//", "//sup3rtoken@");
    let dockerfile =
        format!("FROM scratch\nADD --keep-git-dir=true {url}/r.git /kept/\nADD {url}/file /\n");
    environment.write("tokens/Dockerfile", dockerfile);
    let hidden = |told: &Outcome| {
        let said = format!("{}{}", told.stdout, told.stderr);
        assert!(!said.contains("sup3rtoken"), "{said}");
    };
    let told = build(&environment, &["tokens"]).success();
    hidden(&told);
    let config = output_of(&environment, "kept/.git/config");
    assert!(config.contains("url = http://127.0.0.1"), "{config}");
    assert!(!config.contains("sup3rtoken"), "{config}");
    let told = environment.ok(["build", "--progress=plain", "-t", "made", "tokens"]);
    hidden(&told);
    let config = environment.ok([
        "history",
        "--no-trunc",
        "--format",
        "{{.CreatedBy}}",
        "made",
    ]);
    assert!(
        config.stdout.contains("ADD http://127.0.0.1"),
        "{}",
        config.told()
    );
    hidden(&config);
    for address in ["none.git", "none", "r.git#nope"] {
        let told = build(&environment, &[&format!("{url}/{address}")]).fails_with(1);
        hidden(&told);
    }
}

#[test]
fn an_ignore_file_is_a_file_of_its_context() {
    let environment = environment();
    environment.write("ctx/Dockerfile", "FROM scratch\nCOPY . /\n");
    environment.write("ctx/kept", "x\n");
    environment.write("ctx/out", "x\n");
    environment.write("ctx/sub/patterns", "out\n");
    environment.write("beside", "out\n");
    let ignore = environment.work().join("ctx/.dockerignore");
    let put = |make: &dyn Fn(&Path)| {
        let _ = fs::remove_file(&ignore);
        make(&ignore);
        build(&environment, &["ctx"])
    };
    let link = |to: &'static str| move |path: &Path| std::os::unix::fs::symlink(to, path).unwrap();
    put(&link("sub/patterns")).success();
    assert!(!environment.work().join("out/out").exists());
    for to in ["../beside", "/etc/hostname", "nowhere"] {
        let told = put(&link(to)).fails_with(1);
        told.says("a link to what is not in its directory");
    }
    let fifo = |path: &Path| {
        let made = Outcome::of(environment.program("mkfifo").arg(path));
        assert!(made.status.success(), "{}", made.told());
    };
    put(&fifo).fails_with(1).says("it has to be a file");
    put(&|path| fs::create_dir(path).unwrap())
        .fails_with(1)
        .says("it has to be a file");
    fs::remove_dir(&ignore).unwrap();
    // So is that of a Dockerfile.
    fifo(&environment.work().join("ctx/Dockerfile.dockerignore"));
    build(&environment, &["ctx"])
        .fails_with(3)
        .says("it is no file");
}

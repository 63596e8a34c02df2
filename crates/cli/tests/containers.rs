//! Containers: created, run, entered, copied from and to, listed, stopped and removed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Stdio;

use testkit::{Environment, Outcome, skip};

const BUSYBOX: &str = "/bin/busybox";

/// Makes a world with two images: `tools`, a static busybox as a shell, and `bare`, some files.
fn world() -> Option<Environment> {
    if !Path::new(BUSYBOX).is_file() {
        return None;
    }
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write_config("");
    fs::copy(BUSYBOX, environment.write("tools/sh", "")).unwrap();
    environment.write(
        "tools/passwd",
        "root:x:0:0::/root:/bin/sh\nme:x:7:8::/home:/bin/sh\n",
    );
    environment.write(
        "tools/Dockerfile",
        "FROM scratch\nCOPY --chmod=755 sh /bin/sh\nCOPY passwd /etc/passwd\n\
         ENV FROM_IMAGE=yes\nLABEL kind=tools\nCMD [\"sh\", \"-c\", \"echo the default\"]\n",
    );
    environment.write("bare/app", "the program\n");
    environment.write("bare/dir/inner", "inner\n");
    symlink("app", environment.work().join("bare/link")).unwrap();
    environment.write("bare/Dockerfile", "FROM scratch\nCOPY . /srv/\n");
    for name in ["tools", "bare"] {
        environment.ok(["build", "-q", "-t", name, name]);
    }
    Some(environment)
}

macro_rules! world {
    () => {
        match world() {
            Some(world) => world,
            None => skip!("no {BUSYBOX} on this machine"),
        }
    };
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_program_comes_out_of_a_scratch_image_without_a_process() {
    let world = world!();
    world.ok(["container", "create", "--name", "extract", "bare"]);
    world.ok(["container", "cp", "extract:/srv/app", "./app"]);
    assert_eq!(read(world.work().join("app")), "the program\n");
    let listed = world.ok([
        "container",
        "ls",
        "-a",
        "--format",
        "{{.Names}} {{.Image}} {{.Status}}",
    ]);
    assert_eq!(listed.stdout, "extract bare Created\n");
    assert_eq!(world.ok(["ps"]).stdout.lines().count(), 1);
    world.ok(["container", "rm", "-f", "extract"]);
    assert_eq!(world.ok(["ps", "-aq"]).stdout, "");
    world
        .run(["rm", "extract"])
        .fails_with(1)
        .says("No such container: extract");
    world.ok(["rm", "-f", "extract"]);
}

#[test]
fn copies_out_go_where_docker_puts_them() {
    let world = world!();
    world.ok(["create", "--name", "box", "bare"]);
    let copy = |from: &str, to: &str| world.run(["cp", from, to]);
    let path = |name: &str| world.work().join(name);
    fs::create_dir(path("there")).unwrap();
    copy("box:/srv/app", "there").success();
    assert_eq!(read(path("there/app")), "the program\n");
    copy("box:/srv", "there").success();
    assert_eq!(read(path("there/srv/dir/inner")), "inner\n");
    copy("box:/srv", "new").success();
    assert_eq!(read(path("new/dir/inner")), "inner\n");
    copy("box:/srv/.", "there").success();
    assert_eq!(read(path("there/dir/inner")), "inner\n");
    copy("box:/srv/link", "there").success();
    assert_eq!(fs::read_link(path("there/link")).unwrap(), Path::new("app"));
    world.ok(["cp", "-L", "box:/srv/link", "there/followed"]);
    assert_eq!(read(path("there/followed")), "the program\n");
    assert!(path("there/followed").symlink_metadata().unwrap().is_file());

    copy("box:/nothing", "there")
        .fails_with(1)
        .says("Could not find the file /nothing");
    copy("box:/srv/dir", "there/app")
        .fails_with(1)
        .says("cannot copy a directory");
    copy("box:/srv/app", "no/where")
        .fails_with(1)
        .says("does not exist");
    copy("box:/srv/app", "missing/")
        .fails_with(1)
        .says("no such directory");
    copy("there", "new")
        .fails_with(1)
        .says("at least one container");
    copy("nobody:/x", ".")
        .fails_with(1)
        .says("No such container: nobody");
}

#[test]
fn copies_in_belong_to_root_unless_they_are_archives() {
    let world = world!();
    world.ok(["create", "--name", "box", "bare"]);
    let file = world.write("in/file", "new\n");
    let owned = std::os::unix::fs::chown(&file, Some(1234), Some(1234)).is_ok();
    world.ok(["cp", "in", "box:/srv"]);
    world.ok(["cp", "in/.", "box:/flat"]);
    world.ok(["cp", "in/file", "box:/srv/app"]);
    world.ok(["cp", "-a", "in/file", "box:/kept"]);
    world
        .run(["cp", "in/file", "box:/no/such/dir"])
        .fails_with(1)
        .says("no such directory");
    let mut tar = world.command(["cp", "box:/", "-"]);
    let told = tar.stdout(Stdio::piped()).output().unwrap();
    let listed = world
        .program("tar")
        .args(["tvf", "-", "--numeric-owner"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut listed = listed.unwrap();
    listed
        .stdin
        .take()
        .unwrap()
        .write_all(&told.stdout)
        .unwrap();
    let text = String::from_utf8(listed.wait_with_output().unwrap().stdout).unwrap();
    let owner = |name: &str| {
        let line = text.lines().find(|line| line.ends_with(name));
        line.and_then(|line| line.split_whitespace().nth(1))
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(owner("srv/in/file"), "0/0", "{text}");
    assert_eq!(owner("flat/file"), "0/0", "{text}");
    if owned {
        assert_eq!(owner("kept"), "1234/1234", "{text}");
    }
    world.ok(["cp", "box:/srv/app", "back"]);
    assert_eq!(read(world.work().join("back")), "new\n");
    assert_eq!(
        fs::metadata(world.work().join("back")).unwrap().uid(),
        rustix::process::geteuid().as_raw()
    );
}

#[test]
fn a_tar_goes_in_and_what_was_written_is_seen_by_the_process() {
    let world = world!();
    world.ok([
        "create",
        "--name",
        "box",
        "tools",
        "sh",
        "-c",
        "cat /data/file; echo more >> /data/file",
    ]);
    world.write("data/file", "from a tar\n");
    let tar = world
        .program("tar")
        .args(["cf", "-", "data"])
        .output()
        .unwrap()
        .stdout;
    let mut child = world
        .command(["cp", "-", "box:/"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&tar).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(world.ok(["start", "-a", "box"]).stdout, "from a tar\n");
    world.ok(["cp", "box:/data/file", "out"]);
    assert_eq!(read(world.work().join("out")), "from a tar\nmore\n");
    assert_eq!(
        world.ok(["start", "-a", "box"]).stdout,
        "from a tar\nmore\n"
    );
}

#[test]
fn run_ends_as_the_command_does() {
    let world = world!();
    let check = |words: &[&str], code: i32| {
        let words = ["run", "--rm", "--network", "none"].iter().chain(words);
        world.run(words).fails_with(code)
    };
    let told = check(&["tools"], 0);
    assert_eq!(
        (told.stdout.as_str(), told.stderr.as_str()),
        ("the default\n", "")
    );
    let told = check(&["tools", "sh", "-c", "echo out; echo err >&2; exit 7"], 7);
    assert_eq!(
        (told.stdout.as_str(), told.stderr.as_str()),
        ("out\n", "err\n")
    );
    check(&["tools", "sh", "-c", "kill -TERM $$"], 143);
    check(&["tools", "nothing"], 127).says("executable file not found in $PATH");
    check(&["tools", "/etc/passwd"], 126).says("permission denied");
    check(&["bare", "sh"], 127).says("no shell");
    check(&["bare"], 125).says("no command specified");
    check(&["--user", "nobody-here", "tools"], 125).says("nobody-here");
    check(&["--pull", "never", "absent"], 125).says("No such image: absent");
    check(&["-p", "80:none", "tools"], 125).says("no port from 1 to 65535");
    assert_eq!(world.ok(["ps", "-aq"]).stdout, "", "--rm leaves nothing");
}

#[test]
fn options_of_run_reach_the_command() {
    let world = world!();
    world.write("mounted/file", "mounted\n");
    world.write("variables", "# some\nFROM_FILE=1\n");
    let told = world.ok([
        "run",
        "--rm",
        "--network",
        "none",
        "-e",
        "A=1",
        "-e",
        "FROM_IMAGE=no",
        "--env-file",
        "variables",
        "-w",
        "/new/dir",
        "-u",
        "me",
        "--hostname",
        "box",
        "--add-host",
        "db:10.1.2.3",
        "-v",
        "./mounted:/mnt:ro",
        "--tmpfs",
        "/scratch",
        "tools",
        "sh",
        "-c",
        "echo $A $FROM_IMAGE $FROM_FILE; pwd; id -u; id -g; hostname; grep -c db /etc/hosts; \
         cat /mnt/file; touch /mnt/x 2>&1; touch /scratch/y && echo written",
    ]);
    assert_eq!(
        told.stdout,
        "1 no 1\n/new/dir\n7\n8\nbox\n1\nmounted\ntouch: /mnt/x: Read-only file system\nwritten\n"
    );
    let told = world.ok([
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "/bin/sh",
        "tools",
        "-c",
        "echo -n $0",
    ]);
    assert_eq!(told.stdout, "/bin/sh");
}

#[test]
fn standard_input_is_passed_on_when_asked() {
    let world = world!();
    let feed = |words: &[&str]| {
        let words = ["run", "--rm", "--network", "none"].iter().chain(words);
        let mut child = world
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(b"some input\n");
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(feed(&["-i", "tools", "sh", "-c", "cat"]), "some input\n");
    assert_eq!(feed(&["tools", "sh", "-c", "cat"]), "");
}

#[test]
fn a_container_in_the_background_is_entered_logged_and_stopped() {
    let world = world!();
    let script = "trap 'echo bye; exit 3' TERM; echo ready; echo err >&2; sleep 1000 & wait";
    world.ok([
        "create",
        "--name",
        "web",
        "--network",
        "none",
        "tools",
        "sh",
        "-c",
        script,
    ]);
    world.ok(["start", "web"]);
    // Its command writes this first; following the log waits for it.
    let mut follow = world
        .command(["logs", "-f", "web"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = follow.stdout.as_mut().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert_eq!(
        world.ok(["ps", "--format", "{{.Names}} {{.State}}"]).stdout,
        "web running\n"
    );
    let told = world
        .run([
            "exec",
            "-e",
            "B=2",
            "-u",
            "me",
            "web",
            "sh",
            "-c",
            "echo $B; id -u; exit 5",
        ])
        .fails_with(5);
    assert_eq!(told.stdout, "2\n7\n");
    world
        .run(["exec", "web", "nothing"])
        .fails_with(127)
        .says("executable file not found");
    world
        .run(["rm", "web"])
        .fails_with(1)
        .says("container is running");
    assert_eq!(
        world
            .ok(["inspect", "-f", "{{.State.Running}} {{.Name}}", "web"])
            .stdout,
        "true /web\n"
    );
    world.ok(["stop", "web"]);
    assert!(follow.wait().unwrap().success());
    assert_eq!(world.ok(["wait", "web"]).stdout, "3\n");
    let logs = world.ok(["logs", "web"]);
    assert_eq!(
        (logs.stdout.as_str(), logs.stderr.as_str()),
        ("ready\nbye\n", "err\n")
    );
    assert_eq!(world.ok(["logs", "--tail", "1", "web"]).stdout, "bye\n");
    world
        .run(["exec", "web", "true"])
        .fails_with(1)
        .says("is not running");
    assert_eq!(
        world
            .ok(["inspect", "-f", "{{.State.ExitCode}}", "web"])
            .stdout,
        "3\n"
    );
    world.ok(["rm", "web"]);
}

#[test]
fn a_running_container_can_be_killed_and_removed() {
    let world = world!();
    world.ok([
        "run",
        "-d",
        "--name",
        "one",
        "--network",
        "none",
        "tools",
        "sh",
        "-c",
        "sleep 1000",
    ]);
    world.ok(["kill", "one"]);
    assert_eq!(world.ok(["wait", "one"]).stdout, "137\n");
    world.ok(["start", "one"]);
    world.ok(["rm", "-f", "one"]);
    assert_eq!(world.ok(["ps", "-aq"]).stdout, "");
    world
        .run([
            "run",
            "-d",
            "--name",
            "bad",
            "--network",
            "none",
            "tools",
            "nothing",
        ])
        .fails_with(127);
}

#[test]
fn names_are_checked_and_taken_once() {
    let world = world!();
    world.ok(["create", "--name", "taken", "bare"]);
    world
        .run(["create", "--name", "taken", "bare"])
        .fails_with(1)
        .says("already in use");
    world
        .run(["create", "--name=-x", "bare"])
        .fails_with(1)
        .says("Invalid container name");
    let id = world.ok(["create", "bare"]).stdout;
    let id = id.trim();
    assert_eq!(id.len(), 64);
    world.ok(["rename", &id[..10], "other"]);
    world
        .run(["rename", "other", "taken"])
        .fails_with(1)
        .says("already in use");
    assert_eq!(
        world
            .ok(["ps", "-a", "-f", "name=oth", "-q", "--no-trunc"])
            .stdout
            .trim(),
        id
    );
}

#[test]
fn a_container_keeps_its_image_from_the_collector() {
    let world = world!();
    world.ok(["create", "--name", "holder", "bare"]);
    world
        .run(["rmi", "bare"])
        .fails_with(1)
        .says("is using its referenced image");
    world.ok(["rmi", "-f", "bare"]);
    world.ok(["builder", "prune", "-f"]);
    world.ok(["cp", "holder:/srv/app", "app"]);
    assert_eq!(read(world.work().join("app")), "the program\n");
    world.ok(["container", "prune", "-f"]);
    world.ok(["builder", "prune", "-f"]);
    assert_eq!(world.ok(["ps", "-aq"]).stdout, "");
    let left = fs::read_dir(world.root().join("containers"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}

#[test]
fn the_builder_pattern_of_a_script_works() {
    let world = world!();
    world.write(
        "p/Dockerfile.build",
        "FROM tools\nWORKDIR /src\nRUN --network=none echo built > app\n",
    );
    world.write(
        "p/Dockerfile",
        "FROM scratch\nCOPY app ./\nCMD [\"./app\"]\n",
    );
    let script = "set -e\n\
        lapstrake build -q -t me/counter:build . -f Dockerfile.build\n\
        lapstrake container create --name extract me/counter:build\n\
        lapstrake container cp extract:/src/app ./app\n\
        lapstrake container rm -f extract\n\
        lapstrake build -q --no-cache -t me/counter:latest .\n\
        rm ./app\n";
    Outcome::of(
        world
            .program("sh")
            .args(["-c", script])
            .current_dir(world.work().join("p")),
    )
    .success();
    world.ok(["create", "--name", "final", "me/counter"]);
    world.ok(["cp", "final:/app", "final-app"]);
    assert_eq!(read(world.work().join("final-app")), "built\n");
}

/// Asks an address for what a web server has, until it answers.
fn fetch(address: &str, path: &str) -> String {
    use std::io::Read;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let mut answer = String::new();
        if let Ok(mut stream) = std::net::TcpStream::connect(address) {
            let asked = stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
            if asked
                .and_then(|()| stream.read_to_string(&mut answer))
                .is_ok()
                && answer.contains("\r\n\r\n")
            {
                return answer.split("\r\n\r\n").skip(1).collect();
            }
        }
        assert!(std::time::Instant::now() < deadline, "{address} is silent");
        std::thread::yield_now();
    }
}

#[test]
fn published_ports_reach_a_container() {
    testkit::require_fixtures!("busybox:latest");
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write(
        "web/Dockerfile",
        "FROM busybox\nRUN mkdir /www && seq 200000 > /www/numbers\nEXPOSE 8099\n\
         CMD [\"httpd\", \"-f\", \"-p\", \"8099\", \"-h\", \"/www\"]\n",
    );
    world.ok(["build", "-q", "-t", "web", "web"]);
    world.ok(["run", "-d", "--name", "one", "-p", "127.0.0.1::8099", "web"]);
    let address = world.ok(["port", "one", "8099"]).stdout.trim().to_owned();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let numbers: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(fetch(&address, "/numbers") == numbers));
        }
    });
    let shown = world.ok(["ps", "--format", "{{.Ports}}"]).stdout;
    assert_eq!(shown.trim(), format!("{address}->8099/tcp"));
    let ports = "{{json .NetworkSettings.Ports}}";
    let told = world.ok(["inspect", "-f", ports, "one"]).stdout;
    let port = address.rsplit(':').next().expect("a port");
    assert_eq!(
        told.trim(),
        format!("{{\"8099/tcp\":[{{\"HostIp\":\"127.0.0.1\",\"HostPort\":\"{port}\"}}]}}")
    );
    // Another cannot have it, and is not started without it.
    let taken = format!("{address}:8099");
    world
        .run(["run", "--rm", "-p", &taken, "web"])
        .fails_with(125)
        .says("port is already allocated");
    world
        .run(["port", "one", "1"])
        .fails_with(1)
        .says("no public port");
    world
        .run(["run", "--rm", "-p", "53:53/udp", "web"])
        .fails_with(125)
        .says("ports of udp cannot be published");
    // It is free again when the container ends, and another is drawn when it is started again.
    world.ok(["stop", "-t", "0", "one"]);
    assert!(std::net::TcpStream::connect(&address).is_err());
    assert_eq!(world.ok(["port", "one"]).stdout, "");
    world.ok(["start", "one"]);
    let address = world.ok(["port", "one", "8099/tcp"]).stdout;
    assert!(fetch(address.trim(), "/numbers") == numbers);
    world.ok(["rm", "-f", "one"]);
    // What the image exposes.
    world.ok(["run", "-d", "--name", "all", "-P", "web"]);
    let told = world.ok(["port", "all"]).stdout;
    assert!(told.starts_with("8099/tcp -> 0.0.0.0:"), "{told}");
    world.ok(["rm", "-f", "all"]);
}

#[test]
fn the_volumes_of_an_image_are_there_as_directories() {
    testkit::require_fixtures!("busybox:latest");
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write(
        "ctx/Dockerfile",
        "FROM busybox\nRUN mkdir -p -m 700 /kept && echo here > /kept/file\nVOLUME /new/data /kept\n",
    );
    world.ok(["build", "-q", "-t", "app", "ctx"]);
    let script = "echo 1 > /new/data/x && stat -c %a /new/data /kept && cat /kept/file";
    let told = world.ok(["run", "--rm", "app", "sh", "-c", script]);
    assert_eq!(told.stdout, "755\n700\nhere\n");
}

#[test]
fn a_port_that_takes_no_connection_holds_up_no_other() {
    testkit::require_fixtures!("busybox:latest");
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    // Its queue is soon full: what comes then hangs in the middle of connecting.
    world.write(
        "web/Dockerfile",
        "FROM busybox\nRUN mkdir /www && echo here > /www/file\n\
         CMD httpd -p 8098 && kill -STOP $(pidof httpd) && exec httpd -f -p 8099 -h /www\n",
    );
    world.ok(["build", "-q", "-t", "web", "web"]);
    let ports = ["-p", "127.0.0.1::8098", "-p", "127.0.0.1::8099"];
    world.ok([&["run", "-d", "--name", "one"][..], &ports, &["web"]].concat());
    let address = |port: &str| world.ok(["port", "one", port]).stdout.trim().to_owned();
    assert_eq!(fetch(&address("8099"), "/file"), "here\n");
    let slow = address("8098");
    let held: Vec<_> = (0..100)
        .map(|_| std::net::TcpStream::connect(&slow).expect("this machine takes it"))
        .collect();
    assert_eq!(fetch(&address("8099"), "/file"), "here\n");
    drop(held);
    world.ok(["rm", "-f", "one"]);
}

#[test]
fn all_files_of_a_container_go_into_a_tar() {
    let world = world!();
    world.ok(["create", "--name", "box", "bare"]);
    world.write("more", "more\n");
    world.ok(["cp", "more", "box:/srv/more"]);
    world.ok(["export", "-o", "files.tar", "box"]);
    let names = Outcome::of(world.program("tar").args(["tf", "files.tar"]))
        .success()
        .stdout;
    let names: Vec<&str> = names.lines().collect();
    let expected = [
        "srv/",
        "srv/Dockerfile",
        "srv/app",
        "srv/dir/",
        "srv/dir/inner",
        "srv/link",
        "srv/more",
    ];
    assert_eq!(names, expected);
    // It is an image again, and the same goes to standard output.
    world.ok(["import", "files.tar", "again"]);
    let script = "lapstrake container export box | cmp - files.tar";
    Outcome::of(world.program("sh").args(["-c", script])).success();
    world
        .run(["export", "nobody"])
        .fails_with(1)
        .says("No such container");
}

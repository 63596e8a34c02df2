//! What a newcomer types wrong: what is said, what to do about it, and the code.

use testkit::Environment;

fn world() -> Environment {
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write_config("");
    world.write("app/Dockerfile", "FROM scratch\nCOPY file /\n");
    world.write("app/Dockerfile.dev", "FROM scratch\nCOPY file /\n");
    world.write("app/file", "content\n");
    world.write("empty/nothing", "");
    world
}

/// Each line of words is refused with this code, saying these texts.
#[track_caller]
fn check(lines: &[(&str, i32, &[&str])]) {
    let world = world();
    for (line, code, texts) in lines {
        let told = world.run(line.split_whitespace()).fails_with(*code);
        for text in *texts {
            told.says(text);
        }
        assert!(!told.stderr.contains("panicked"), "{line}: {}", told.told());
    }
}

#[test]
fn words_that_are_near_are_suggested() {
    check(&[
        ("biuld .", 2, &["subcommand 'biuld'", "'build'"]),
        ("build --tga x app", 2, &["'--tga'", "'--tag'"]),
        ("prune", 2, &["`lapstrake system prune`"]),
        (
            "build --target=stge app",
            1,
            &["\"stge\"", "the stages are"],
        ),
        (
            "build --network foo app",
            2,
            &["--network", "default, none and host"],
        ),
        (
            "build --output type=xyz app",
            2,
            &["\"xyz\"", "image, registry, oci"],
        ),
        ("build --progress fancy app", 2, &["fancy", "plain"]),
        ("explain nope", 1, &["`lapstrake explain` lists all"]),
        (
            "images --filter foo=bar",
            2,
            &["reference, dangling, label"],
        ),
    ]);
}

#[test]
fn the_file_that_may_be_meant_is_named() {
    check(&[
        ("build", 2, &["<PATH|URL|->", "most often a dot"]),
        (
            "build nowhere",
            2,
            &["\"nowhere\"", "there is no directory"],
        ),
        ("build empty", 1, &["no file empty/Dockerfile", "write one"]),
        (
            "build -f Dockerfile.dev app",
            1,
            &["there is app/Dockerfile.dev", "working directory"],
        ),
        (
            "build -f app/Nope app",
            1,
            &["there is app/Dockerfile, app/Dockerfile.dev"],
        ),
        (
            "build -f nowhere/Dockerfile app",
            1,
            &["there is no directory nowhere"],
        ),
        ("build -f app app", 2, &["\"app\"", "is a directory"]),
        (
            "build app/Dockerfile",
            2,
            &["lapstrake build --file app/Dockerfile app"],
        ),
        (
            "build --secret id=nope app",
            2,
            &["no file nope", "src=FILE or env=NAME"],
        ),
        (
            "build --secret id=a,src=nope app",
            2,
            &["there is no file nope"],
        ),
        (
            "load -i app/Dockerfile",
            1,
            &["app/Dockerfile", "`lapstrake save -o FILE IMAGE`"],
        ),
        ("load -i nowhere.tar", 1, &["nowhere.tar", "No such file"]),
    ]);
}

#[test]
fn what_is_not_there_is_said_once() {
    check(&[
        ("rmi nope", 1, &["No such image: nope"]),
        ("tag nope a", 1, &["No such image: nope"]),
        ("push nope", 1, &["nope"]),
        ("exec nope sh", 1, &["No such container: nope"]),
        ("history inspect nope", 1, &["`lapstrake history ls`"]),
        (
            "login localhost:1",
            1,
            &["--username NAME --password-stdin"],
        ),
    ]);
    let told = world().run(["rmi", "nope"]).fails_with(1);
    assert_eq!(told.stderr, "error: No such image: nope\n");
}

#[test]
fn a_registry_that_cannot_be_reached_is_told_with_a_way_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let world = world();
    world.write("app/far", format!("FROM {address}/app\n"));
    let way = "look at the registry's name and the network";
    let told = world.run(["build", "-f", "app/far", "app"]).fails_with(1);
    told.says(&address).says("app/far:1:6").says(way);
    let told = world.run(["pull", &format!("{address}/app")]).fails_with(1);
    told.says(&address).says(way);
    let told = world
        .run(["run", &format!("{address}/app")])
        .fails_with(125);
    told.says(&address).says(way);
}

#[test]
fn switches_are_told_yes_and_no_as_docker_takes_it() {
    let world = world();
    world.ok([
        "build",
        "-q",
        "--no-cache=true",
        "--rm=true",
        "--force-rm=false",
        "app",
    ]);
    let told = world
        .run(["build", "--no-cache=maybe", "app"])
        .fails_with(2);
    told.says("say true or false");
}

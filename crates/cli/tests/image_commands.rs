//! Images: named, listed, told of, saved, loaded, pulled and removed.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use testkit::{Environment, Outcome, has_program, skip};

fn world() -> Environment {
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write_config("");
    world.write("ctx/file", "content\n");
    world.write(
        "ctx/Dockerfile",
        "FROM scratch\nCOPY file /one\nENV A=1\nCOPY file /two\nLABEL k=v\nCMD [\"/one\"]\n",
    );
    world.ok(["build", "-q", "-t", "thing", "ctx"]);
    world
}

fn id_of(world: &Environment, name: &str) -> String {
    world
        .ok(["inspect", "-f", "{{.Id}}", name])
        .stdout
        .trim()
        .to_owned()
}

#[test]
fn an_image_has_several_names_and_loses_them_one_by_one() {
    let world = world();
    world.ok(["tag", "thing", "me/other:2"]);
    let id = id_of(&world, "thing");
    assert_eq!(id_of(&world, "me/other:2"), id);
    assert_eq!(id_of(&world, &id[7..19]), id);
    world
        .run(["tag", "absent", "x"])
        .fails_with(1)
        .says("No such image: absent");
    world.run(["rmi", &id[7..19]]).fails_with(1).says("2 names");
    assert_eq!(
        world.ok(["rmi", "thing"]).stdout,
        "Untagged: thing:latest\n"
    );
    let told = world.ok(["image", "rm", "me/other:2"]).stdout;
    assert_eq!(told, format!("Untagged: me/other:2\nDeleted: {id}\n"));
    world
        .run(["inspect", "thing"])
        .fails_with(1)
        .says("No such object: thing");
}

#[test]
fn history_and_inspect_read_as_dockers() {
    let world = world();
    let told = world
        .ok(["history", "--format", "{{.Size}} {{.CreatedBy}}", "thing"])
        .stdout;
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "0B CMD [\"/one\"]",
            "0B LABEL k=v",
            "8B COPY file /two # buildkit",
            "0B ENV A=1",
            "8B COPY file /one # buildkit",
        ]
    );
    let heading = world.ok(["history", "thing"]).stdout;
    let words: Vec<&str> = heading.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        words,
        ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    );
    let format = "{{json .Config.Cmd}} {{index .Config.Labels \"k\"}} {{len .RootFS.Layers}} {{.Config.Env}} {{.RepoTags}}";
    let told = world
        .ok(["image", "inspect", "--format", format, "thing"])
        .stdout;
    assert!(told.starts_with("[\"/one\"] v 2 [PATH="), "{told}");
    assert!(told.ends_with("A=1] [thing:latest]\n"), "{told}");
    let value: serde_json::Value =
        serde_json::from_str(&world.ok(["inspect", "thing"]).stdout).unwrap();
    assert_eq!(value[0]["Os"], "linux");
    world
        .run(["inspect", "-f", "{{.Nothing}}", "thing"])
        .fails_with(1)
        .says("no field \"Nothing\"");
}

#[test]
fn a_saved_image_is_loaded_as_it_was() {
    let world = world();
    let id = id_of(&world, "thing");
    world.ok(["tag", "thing", "me/other:2"]);
    world.ok(["save", "-o", "image.tar", "thing", "me/other:2"]);
    world.ok(["rmi", "-f", "thing", "me/other:2"]);
    world.ok(["builder", "prune", "-f"]);
    let told = world.ok(["load", "-i", "image.tar"]).stdout;
    assert_eq!(
        told,
        "Loaded image: thing:latest\nLoaded image: me/other:2\n"
    );
    assert_eq!(id_of(&world, "thing"), id);
    world.ok(["create", "--name", "look", "thing"]);
    world.ok(["cp", "look:/two", "two"]);
    assert_eq!(fs::read(world.work().join("two")).unwrap(), b"content\n");
}

#[test]
fn archives_of_others_are_loaded() {
    if !has_program("skopeo") {
        skip!("no skopeo on this machine");
    }
    let world = world();
    let id = id_of(&world, "thing");
    world.ok(["save", "-o", "image.tar", "thing"]);
    let from = "docker-archive:image.tar:docker.io/library/thing:latest";
    for to in [
        "docker-archive:copy.tar:some/name:1",
        "oci-archive:copy.tar:some/name:1",
    ] {
        let _ = fs::remove_file(world.work().join("copy.tar"));
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["--insecure-policy", "copy", "-q", from, to])
            .current_dir(world.work());
        assert!(skopeo.status().unwrap().success(), "{to}");
        let told = world.ok(["load", "-i", "copy.tar"]).stdout;
        assert_eq!(told, "Loaded image: some/name:1\n", "{to}");
        // The config may be written anew, its layers are the same.
        let layers = |name: &str| {
            world
                .ok(["inspect", "-f", "{{.RootFS.Layers}}", name])
                .stdout
        };
        assert_eq!(layers("some/name:1"), layers(&id), "{to}");
    }
}

/// Returns the ids of an image's layers, of which the first came with busybox.
fn layers_of(world: &Environment, name: &str) -> Vec<String> {
    let told = world.ok(["inspect", "-f", "{{json .RootFS.Layers}}", name]);
    serde_json::from_str(&told.stdout).unwrap()
}

/// Returns the media types of the layers in an archive with one image.
fn layer_types(world: &Environment, archive: &str) -> Vec<String> {
    let read = |path: &str| -> serde_json::Value {
        let out = Command::new("tar")
            .args(["xOf", archive, path])
            .current_dir(world.work())
            .output()
            .unwrap();
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let digest = read("index.json")["manifests"][0]["digest"].clone();
    let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
    let manifest = read(&format!("blobs/sha256/{hex}"));
    let layers = manifest["layers"].as_array().unwrap();
    let types = layers.iter().map(|layer| layer["mediaType"].as_str());
    types.map(|kind| kind.unwrap().to_owned()).collect()
}

#[test]
fn layers_of_a_base_image_stay_what_they_were() {
    let Some(world) = on_busybox() else {
        skip!("there is no image busybox here");
    };
    world.ok(["build", "-q", "-t", "one", "based"]);
    let layers = layers_of(&world, "one");
    // Nothing of what the image needs goes, and what is compressed anew is the same tar.
    world.ok(["builder", "prune", "-a", "-f"]);
    world.ok(["save", "-o", "saved.tar", "one"]);
    let forced = "type=oci,dest=forced.tar,name=forced,compression=zstd,force-compression=true";
    let outputs = ["-o", forced, "-o", "type=image,name=two"];
    world.ok([&["build", "-q", "based"][..], &outputs].concat());
    assert_eq!(layers_of(&world, "two"), layers);
    let types = layer_types(&world, "forced.tar");
    assert!(
        types.iter().all(|kind| kind.ends_with("+zstd")),
        "{types:?}"
    );
    world.ok(["build", "-q", "-t", "three", "based"]);
    assert_eq!(layers_of(&world, "three"), layers);
    world.ok(["load", "-i", "forced.tar"]);
    assert_eq!(layers_of(&world, "forced"), layers);
    // Once nothing needs them they go together.
    world.ok(["system", "prune", "-a", "-f"]);
    let left = world.ok(["system", "df", "-v"]).stdout;
    assert!(
        !left.contains("layer-") && !left.contains("sha256:"),
        "{left}"
    );
}

#[test]
fn a_loaded_layer_is_called_what_it_is() {
    let Some(world) = on_busybox() else {
        skip!("there is no image busybox here");
    };
    world.ok(["build", "-q", "-t", "one", "based"]);
    // Docker's document in the archive does not tell that the first layer is compressed.
    world.ok(["save", "-o", "saved.tar", "one"]);
    world.ok(["system", "prune", "-a", "-f"]);
    world.ok(["load", "-i", "saved.tar"]);
    world.ok(["save", "-o", "again.tar", "one"]);
    let types = layer_types(&world, "again.tar");
    assert!(types[0].ends_with("tar.gzip"), "{types:?}");
    assert_eq!(types, layer_types(&world, "saved.tar"));
}

/// Returns a world with a context `based` that begins with busybox; `None` where there is no such image.
fn on_busybox() -> Option<Environment> {
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    if !testkit::has_fixture("docker.io/library/busybox") {
        return None;
    }
    world.write_config(&testkit::configuration(&["docker.io"]));
    world.write("based/Dockerfile", "FROM busybox\nCOPY file /file\n");
    world.write("based/file", "content\n");
    Some(world)
}

#[test]
fn a_layout_is_loaded_from_its_directory() {
    let world = world();
    let id = id_of(&world, "thing");
    world.ok([
        "build",
        "-q",
        "-o",
        "type=oci,tar=false,dest=layout,name=other:1",
        "ctx",
    ]);
    world.ok(["rmi", "thing"]);
    let told = world.ok(["load", "-i", "layout"]).stdout;
    assert_eq!(told, "Loaded image: other:1\n");
    assert_eq!(id_of(&world, "other:1"), id);
    // A link in it leads nowhere.
    let blob = world.work().join("layout/blobs/sha256").join(&id[7..]);
    fs::rename(&blob, world.work().join("outside")).unwrap();
    std::os::unix::fs::symlink(world.work().join("outside"), &blob).unwrap();
    world.ok(["system", "prune", "-a", "-f"]);
    world.run(["load", "-i", "layout"]).fails_with(1).says(&id);
    world
        .run(["load", "-i", "ctx"])
        .fails_with(1)
        .says("neither manifest.json nor index.json");
}

#[test]
fn what_is_not_there_may_be_removed_by_force() {
    let world = world();
    world
        .run(["rmi", "nothing"])
        .fails_with(1)
        .says("No such image: nothing");
    let told = world.ok(["rmi", "-f", "nothing", "thing"]);
    assert!(
        told.stderr.contains("No such image: nothing"),
        "{}",
        told.told()
    );
    assert!(
        told.stdout.starts_with("Untagged: thing:latest\n"),
        "{}",
        told.told()
    );
}

#[test]
fn streams_carry_images_compressed_or_not() {
    let world = world();
    let saved = world
        .command(["save", "thing"])
        .stderr(Stdio::null())
        .output()
        .unwrap()
        .stdout;
    let mut gzip = Command::new("gzip")
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = gzip.stdin.take().unwrap();
    let copy = saved.clone();
    let writer = std::thread::spawn(move || input.write_all(&copy).unwrap());
    let packed = gzip.wait_with_output().unwrap().stdout;
    writer.join().unwrap();
    for bytes in [saved, packed] {
        world.ok(["rmi", "-f", "thing"]);
        let mut child = world
            .command(["load"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let told = child.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&told.stdout),
            "Loaded image: thing:latest\n"
        );
    }
}

/// Packs files into a tar.
fn archive(world: &Environment, name: &str, files: &[(&str, &[u8])]) {
    let folder = format!("{name}.d");
    for (path, content) in files {
        world.write(&format!("{folder}/{path}"), content);
    }
    let mut tar = Command::new("tar");
    tar.args(["cf", name, "-C", &folder, "."])
        .current_dir(world.work());
    assert!(tar.status().unwrap().success());
}

#[test]
fn archives_that_are_no_images_are_refused() {
    let world = world();
    let check = |name: &str, files: &[(&str, &[u8])], text: &str| {
        archive(&world, name, files);
        let told = world.run(["load", "-i", name]).fails_with(1);
        told.says(text);
    };
    check(
        "empty.tar",
        &[("other", b"x")],
        "neither manifest.json nor index.json",
    );
    check("json.tar", &[("manifest.json", b"{")], "manifest.json");
    let missing = br#"[{"Config":"config.json","RepoTags":["a:1"],"Layers":["layer.tar"]}]"#;
    check("missing.tar", &[("manifest.json", missing)], "config.json");
    let config = br#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}"#;
    let wrong: [(&str, &[u8]); 3] = [
        ("manifest.json", missing),
        ("config.json", config),
        ("layer.tar", &[0; 1024]),
    ];
    check("wrong.tar", &wrong, "sha256:");
    let outside = br#"[{"Config":"../../config.json","RepoTags":[],"Layers":[]}]"#;
    check("outside.tar", &[("manifest.json", outside)], "is not in it");
    world.write("garbage.tar", "not a tar at all");
    world.run(["load", "-i", "garbage.tar"]).fails_with(1);
    assert_eq!(
        world.ok(["images", "-q"]).stdout.lines().count(),
        1,
        "only the first image"
    );
}

#[test]
fn a_pull_takes_what_a_mirror_has() {
    let world = world();
    let mirror = world.work().join("mirror");
    let place = mirror.join("docker.io/library/remote");
    fs::create_dir_all(&place).unwrap();
    let output = format!(
        "type=oci,tar=false,dest={},name=docker.io/library/remote:1",
        place.display()
    );
    world.ok(["build", "-q", "-o", &output, "ctx"]);
    world.write_config(&format!(
        "[registry.\"docker.io\"]\nmirrors = [\"oci-layout:{}\"]\n",
        mirror.display()
    ));
    world
        .run(["pull", "--platform", "plan9/mips", "remote:1"])
        .fails_with(1)
        .says("has no image for plan9/mips");
    let told = world.ok(["pull", "remote:1"]).stdout;
    assert!(
        told.contains("Status: Downloaded newer image for remote:1\ndocker.io/library/remote:1\n"),
        "{told}"
    );
    let told = world.ok(["pull", "remote:1"]).stdout;
    assert!(told.contains("Status: Image is up to date"), "{told}");
    assert_eq!(id_of(&world, "remote:1"), id_of(&world, "thing"));
    let digest = world
        .ok(["inspect", "-f", "{{index .RepoDigests 0}}", "remote:1"])
        .stdout;
    assert!(digest.starts_with("remote@sha256:"), "{digest}");
    world.ok(["inspect", digest.trim()]);
    // What was fetched and unpacked may lose its packed form, and is asked for again when it is needed.
    world.ok(["builder", "prune", "-f"]);
    world.ok(["save", "-o", "again.tar", "remote:1"]);
}

#[test]
fn prune_takes_what_nothing_needs() {
    let world = world();
    world.write("ctx/file", "changed\n");
    world.ok(["build", "-q", "-t", "thing", "ctx"]);
    assert_eq!(
        world
            .ok(["images", "-f", "dangling=true", "-q"])
            .stdout
            .lines()
            .count(),
        1
    );
    let told = world.ok(["image", "prune", "-f"]).stdout;
    assert!(told.contains("deleted: sha256:"), "{told}");
    assert_eq!(world.ok(["images", "-q"]).stdout.lines().count(), 1);
    world.ok(["create", "--name", "user", "thing"]);
    world.ok(["image", "prune", "-a", "-f"]);
    assert_eq!(
        world.ok(["images", "-q"]).stdout.lines().count(),
        1,
        "a container needs it"
    );
    let table = world.ok(["system", "df"]).stdout;
    assert!(table.starts_with("TYPE"), "{table}");
    world.ok(["system", "prune", "-a", "-f"]);
    assert_eq!(world.ok(["images", "-q"]).stdout, "");
    assert_eq!(world.ok(["ps", "-aq"]).stdout, "");
    world.run(["system", "prune"]).fails_with(1).says("--force");
}

#[test]
fn a_tree_tells_what_is_carried_for_nothing() {
    testkit::require_fixtures!("busybox:latest");
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write("ctx/big", "x".repeat(2_000_000));
    world.write("ctx/small", "y");
    world.write(
        "ctx/Dockerfile",
        "FROM busybox\nCOPY big /one/big\nCOPY big /two\nCOPY small /two\nRUN rm -r /one\n",
    );
    world.ok(["build", "-q", "-t", "thing", "ctx"]);
    let told = world.ok(["image", "tree", "thing"]).stdout;
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].ends_with("in 5 layers, 4MB wasted"), "{told}");
    let at = |text: &str| {
        let found = lines.iter().position(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("{text:?} is not in\n{told}"))
    };
    assert_eq!(
        at("COPY big /one/big"),
        at("/one/big is removed in layer 5") - 1
    );
    assert_eq!(at("COPY big /two"), at("/two is replaced in layer 4") - 1);
    let told = world.ok(["image", "tree", "--format=json", "thing"]).stdout;
    let value: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(value["wasted"], 4_000_000);
    assert_eq!(value["layers"][1]["hidden"][0]["path"], "/one/big");
    assert_eq!(value["layers"][1]["hidden"][0]["hiddenBy"], 5);
    assert_eq!(
        value["layers"][4]["createdBy"],
        "RUN /bin/sh -c rm -r /one # buildkit"
    );
    world
        .run(["image", "tree", "absent"])
        .fails_with(1)
        .says("No such image");
}

#[test]
fn a_diff_tells_what_differs_between_two_images() {
    let world = world();
    world.write("ctx/file", "other content\n");
    world.write(
        "ctx/Dockerfile",
        "FROM scratch\nCOPY file /one\nCOPY --chmod=600 file /dir/new\nCMD [\"/two\"]\n",
    );
    world.ok(["build", "-q", "-t", "next", "ctx"]);
    let told = world.ok(["image", "diff", "thing", "next"]).stdout;
    let lines: Vec<&str> = told.lines().collect();
    assert!(
        lines.contains(&"config Cmd: [\"/one\"] -> [\"/two\"]"),
        "{told}"
    );
    assert!(
        lines.contains(&"config Labels: {\"k\":\"v\"} -> nothing"),
        "{told}"
    );
    let files: Vec<&&str> = lines
        .iter()
        .filter(|line| !line.starts_with("config "))
        .collect();
    assert_eq!(
        files,
        [
            &"A /dir",
            &"A /dir/new  14B",
            &"C /one  8B -> 14B",
            &"D /two  8B"
        ]
    );
    let told = world
        .ok(["image", "diff", "--format=json", "thing", "next"])
        .stdout;
    let value: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(value["files"][1]["after"]["mode"], "0600");
    assert_eq!(value["files"][3]["change"], "removed");
    let same = world.ok(["image", "diff", "thing", "thing"]).stdout;
    assert_eq!(same, "");
    for (name, line) in [
        ("plain", "LABEL a=b"),
        ("signed", "LABEL a=b\nMAINTAINER ann"),
        ("twice", "LABEL a=c\nLABEL a=b"),
    ] {
        world.write("Dockerfile", format!("FROM scratch\n{line}\n"));
        world.ok(["build", "-q", "-t", name, "."]);
    }
    let told = world.ok(["image", "diff", "plain", "signed"]).stdout;
    assert_eq!(told, "config Author: nothing -> \"ann\"\n");
    let told = world.ok(["image", "diff", "plain", "twice"]).stdout;
    assert_eq!(told, "only times and history differ\n");
}

#[test]
fn a_tar_becomes_an_image() {
    let world = world();
    archive(
        &world,
        "files.tar",
        &[("bin/app", b"program"), ("etc/conf", b"1\n")],
    );
    let import = [
        "import",
        "-c",
        "CMD [\"/bin/app\"]",
        "-c",
        "ENV A=b",
        "files.tar",
        "mine:1",
    ];
    let id = world.ok(import).stdout;
    assert_eq!(id_of(&world, "mine:1"), id.trim());
    let format = "{{json .Config.Cmd}} {{len .RootFS.Layers}}";
    let told = world.ok(["inspect", "-f", format, "mine:1"]).stdout;
    assert_eq!(told, "[\"/bin/app\"] 1\n");
    let told = world
        .ok(["history", "--format", "{{.Comment}} {{.Size}}", "mine:1"])
        .stdout;
    assert_eq!(told, "Imported from files.tar 9B\n");
    // Compressed, from standard input, without a name; and what comes of it can be written again.
    let mut gzip = Command::new("gzip");
    assert!(
        gzip.arg(world.work().join("files.tar"))
            .status()
            .unwrap()
            .success()
    );
    let mut command = world.command(["image", "import", "-", "other:2"]);
    command.stdin(fs::File::open(world.work().join("files.tar.gz")).unwrap());
    testkit::Outcome::of(&mut command).success();
    world.ok(["save", "-o", "saved.tar", "other:2"]);
    world.ok(["rmi", "mine:1", "other:2"]);
    world.ok(["load", "-i", "saved.tar"]);
    world.ok(["create", "--name", "look", "other:2", "/bin/app"]);
    world.ok(["cp", "look:/etc/conf", "conf"]);
    assert_eq!(fs::read(world.work().join("conf")).unwrap(), b"1\n");
    world.write("garbage", "not a tar");
    world.run(["import", "garbage"]).fails_with(1);
    world
        .run(["import", "-c", "RUN true", "saved.tar"])
        .fails_with(1)
        .says("\"RUN\" is not possible");
    world
        .run(["import", "absent.tar"])
        .fails_with(1)
        .says("absent.tar");
}

#[test]
fn archives_that_are_garbage_are_refused_in_words() {
    let world = world();
    world.ok(["save", "-o", "whole.tar", "thing"]);
    let whole = fs::read(world.work().join("whole.tar")).unwrap();
    let escape = [b"\x1b]0;title\x07".as_slice(), &[0x80; 2000]].concat();
    for (content, words) in [
        (escape.as_slice(), "it is not a tar"),
        (b"short", "it is cut off, or not a tar"),
        (b"", "it has neither manifest.json nor index.json"),
        (&whole[..whole.len() / 2], "it is cut off"),
    ] {
        let garbage = fs::File::open(world.write("garbage", content)).unwrap();
        let mut load = world.command(["load"]);
        let failed = Outcome::of(load.stdin(garbage)).fails_with(1);
        failed.says(words);
        assert!(!failed.stderr.contains('\u{1b}'), "{}", failed.told());
    }
    // A layer that is damaged is named, whichever of them it is.
    for part in 1..20 {
        let mut flipped = whole.clone();
        flipped[whole.len() / 20 * part] ^= 0x10;
        world.write("flipped", &flipped);
        let root = world.work().join(format!("flipped-{part}"));
        let root = root.to_str().unwrap();
        let outcome = world.run(["--root", root, "load", "-q", "-i", "flipped"]);
        assert!(!outcome.stderr.contains("canceled"), "{}", outcome.told());
        if outcome.stderr.contains("layer") {
            outcome.says("sha256:");
        }
        world.ok(["--root", root, "system", "check"]);
    }
}

//! Private keys for steps: `--ssh default=KEY,KEY`.

use testkit::{Environment, Outcome};

/// Makes keys with the real tool, and an image in which the real client is.
fn environment(kinds: &[(&str, &str)]) -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("ctx/keys/.keep", "");
    for (kind, bits) in kinds {
        let name = format!("{kind}{bits}");
        let mut made = environment.program("ssh-keygen");
        made.args([
            "-q", "-N", "", "-C", &name, "-t", kind, "-b", bits, "-f", &name,
        ]);
        Outcome::of(&mut made).success();
        let public = environment.work().join(format!("{name}.pub"));
        std::fs::copy(
            public,
            environment.work().join(format!("ctx/keys/{name}.pub")),
        )
        .expect("a copy");
    }
    let programs = ["/usr/bin/ssh-add", "/usr/bin/ssh-keygen"];
    let listed = Outcome::of(environment.program("ldd").args(programs))
        .success()
        .stdout;
    let files = listed
        .split_whitespace()
        .map(|word| word.trim_end_matches(':'));
    for file in files.filter(|word| word.starts_with('/')) {
        let to = environment.work().join("ctx/tree").join(&file[1..]);
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("a directory");
        std::fs::copy(file, to).expect("a copy");
    }
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nCOPY tree /\nCOPY keys /keys\n\
         RUN --mount=type=ssh ssh-add -L > /listed; for key in /keys/*.pub; do \
         echo $key | ssh-keygen -Y sign -q -n test -f $key > $key.sig || exit 9; done; \
         ssh-add -D && exit 8; ls -ld $SSH_AUTH_SOCK > /socket\n",
    );
    environment
}

macro_rules! require_ssh {
    () => {
        testkit::require_fixtures!("busybox:latest");
        testkit::require_programs!("ssh-keygen", "ssh-add", "ldd");
    };
}

#[test]
fn a_step_signs_with_given_keys_and_never_sees_them() {
    require_ssh!();
    let kinds = [
        ("ed25519", "256"),
        ("ecdsa", "256"),
        ("ecdsa", "384"),
        ("rsa", "2048"),
        ("rsa", "3072"),
    ];
    let environment = environment(&kinds);
    let names: Vec<String> = kinds
        .iter()
        .map(|(kind, bits)| format!("{kind}{bits}"))
        .collect();
    let ssh = format!("default={}", names.join(","));
    environment.ok(["build", "--ssh", &ssh, "-o", "out", "ctx"]);
    let listed = std::fs::read_to_string(environment.work().join("out/listed")).expect("a file");
    let expected: String = names
        .iter()
        .map(|name| std::fs::read_to_string(environment.work().join(format!("{name}.pub"))))
        .collect::<Result<_, _>>()
        .expect("files");
    assert_eq!(listed, expected);
    for name in &names {
        environment.write("signed", format!("/keys/{name}.pub\n"));
        let file =
            |path: String| std::fs::File::open(environment.work().join(path)).expect("a file");
        let mut check = environment.program("ssh-keygen");
        let signature = format!("out/keys/{name}.pub.sig");
        check.args(["-Y", "check-novalidate", "-n", "test", "-s", &signature]);
        Outcome::of(check.stdin(file("signed".to_owned()))).success();
    }
}

#[test]
fn keys_that_cannot_be_used_are_refused_with_what_to_do() {
    require_ssh!();
    let environment = environment(&[]);
    let make = |arguments: &[&str]| {
        Outcome::of(environment.program("ssh-keygen").args(arguments)).success();
    };
    make(&["-q", "-N", "secret words", "-t", "ed25519", "-f", "locked"]);
    make(&["-q", "-N", "", "-t", "rsa", "-b", "1024", "-f", "short"]);
    make(&["-q", "-N", "", "-t", "rsa", "-m", "PEM", "-f", "old"]);
    make(&["-q", "-N", "", "-t", "ecdsa", "-b", "521", "-f", "rare"]);
    for (given, words) in [
        (
            "locked",
            "it has a passphrase; give it to an agent with ssh-add locked",
        ),
        (
            "locked.pub",
            "it is a public key; the private one is needed",
        ),
        (
            "short",
            "keys of the kind ssh-rsa of 1024 bits are not known here",
        ),
        ("old", "ssh-keygen -p -f old brings it into that"),
        (
            "rare",
            "keys of the kind ecdsa-sha2-nistp521 are not known here",
        ),
        ("ctx", "which is a directory"),
        ("gone", "which is not there"),
    ] {
        environment
            .run(["build", "--ssh", &format!("default={given}"), "ctx"])
            .fails_with(1)
            .says(words);
    }
}

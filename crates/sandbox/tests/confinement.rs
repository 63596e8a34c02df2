//! What a command may do, and what it sees: capabilities, filter, masks, ids, devices, names.

mod support;

use sandbox::{Network, Resource, Rlimit, Root, Security, Spec, Status, User};
use support::{Bench, able, program_of_call, program_of_call_i386, rootless, skip, write_program};

support::everything_holds!();

/// Runs a script and compares what it prints.
#[track_caller]
fn check(script: &str, expected: &str) {
    if able() {
        assert_eq!(
            Bench::new().run_shell(script).printed(),
            expected,
            "{script}"
        );
    }
}

#[track_caller]
fn check_spec(change: impl FnOnce(&mut Spec), script: &str, expected: &str) {
    if able() {
        let bench = Bench::new();
        let mut spec = bench.shell("step", script);
        change(&mut spec);
        assert_eq!(bench.run(&spec).printed(), expected, "{script}");
    }
}

fn ids(uid: u32, gid: u32, groups: &[u32]) -> impl FnOnce(&mut Spec) {
    let user = User::Ids {
        uid,
        gid,
        groups: groups.to_vec(),
    };
    move |spec| spec.user = user
}

fn named(name: &str) -> impl FnOnce(&mut Spec) {
    let user = User::Named(name.to_owned());
    move |spec| spec.user = user
}

#[test]
fn root_has_dockers_capabilities_and_nothing_more() {
    let status = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f2 | tr '\\n' ' '";
    check(
        status,
        "0000000000000000 00000000a80425fb 00000000a80425fb 00000000a80425fb 0000000000000000",
    );
}

#[test]
fn another_user_has_no_capabilities_but_may_gain_them_from_setuid_programs() {
    let status =
        "grep -E '^Cap(Prm|Eff|Bnd)|^NoNewPrivs' /proc/self/status | cut -f2 | tr '\\n' ' '";
    check_spec(
        ids(1000, 1000, &[]),
        status,
        "0000000000000000 0000000000000000 00000000a80425fb 0",
    );
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_setuid_program_gains_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    if !able() {
        return;
    }
    const GETEUID: u32 = 107;
    let bench = Bench::new();
    let program = bench.lower().join("euid");
    write_program(&program, &program_of_call(GETEUID, [0, 0]));
    let run = || {
        let spec = Spec::new(bench.root("step"), vec!["/euid".to_owned()]);
        let user = User::Ids {
            uid: 1000,
            gid: 1000,
            groups: vec![],
        };
        bench.run(&Spec { user, ..spec }).status()
    };
    // The program exits with the low byte of the negated id.
    assert_eq!(run(), Status::Code(-1000 & 0xff));
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755))
        .expect("permissions");
    assert_eq!(run(), Status::Code(0));
}

#[test]
fn the_filter_is_in_force_and_a_user_does_not_lose_it() {
    check("grep ^Seccomp: /proc/self/status | cut -f2", "2");
    check_spec(
        ids(1000, 1000, &[]),
        "grep ^Seccomp: /proc/self/status | cut -f2",
        "2",
    );
}

/// Makes one system call in the sandbox and compares its error number.
#[track_caller]
fn check_call(program: &[u8], expected: i32) {
    if !able() {
        return;
    }
    let bench = Bench::new();
    write_program(&bench.lower().join("call"), program);
    let spec = Spec {
        network: Network::None,
        ..Spec::new(bench.root("step"), vec!["/call".to_owned()])
    };
    assert_eq!(bench.run(&spec).status(), Status::Code(expected));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn system_calls_get_the_verdict_of_the_profile() {
    const CLONE_NEWUSER: u32 = 0x1000_0000;
    let (mount, keyctl, unshare, clone3, bpf, getpgrp, unknown) =
        (165, 250, 272, 435, 321, 102, 3000);
    for (number, expected) in [
        (mount, 1),
        (keyctl, 1),
        (bpf, 1),
        (clone3, libc_enosys()),
        (getpgrp, 0),
    ] {
        check_call(&program_of_call(number, [0, 0]), expected);
    }
    if support::runtime().as_deref() == Some("crun") {
        skip("crun: calls that came after its library are answered with EPERM");
    } else {
        check_call(&program_of_call(unknown, [0, 0]), libc_enosys());
    }
    check_call(&program_of_call(unshare, [CLONE_NEWUSER, 0]), 1);
}

fn libc_enosys() -> i32 {
    38
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_32_bit_program_runs_under_its_own_rules() {
    // 21 is mount for i386 (and access for x86_64); 199 is getuid32 (and fremovexattr).
    check_call(&program_of_call_i386(21), 1);
    check_call(&program_of_call_i386(199), 0);
}

#[test]
fn namespaces_and_mounts_are_out_of_reach() {
    check("mount -t tmpfs none /tmp 2>/dev/null; echo $?", "1");
    check("unshare -r true 2>/dev/null; echo $?", "1");
    check("chroot / true && echo ok", "ok");
    check(
        "hostname other 2>/dev/null; echo $?; hostname",
        "1\nbuildkitsandbox",
    );
}

#[test]
fn paths_that_tell_of_the_host_are_hidden() {
    check(
        "for f in /proc/kcore /proc/keys /proc/timer_list; do [ -e $f ] && wc -c < $f; done | sort -u",
        "0",
    );
    check("ls /sys/firmware | wc -l", "0");
    check("grep -c . /proc/acpi/* 2>/dev/null; true", "");
}

#[test]
fn kernel_settings_are_read_only() {
    let refused = "Read-only file system";
    let check = |command: &str| check(&format!("({command}) 2>&1 | grep -o '{refused}'"), refused);
    check("echo 1 > /proc/sys/vm/drop_caches");
    check("touch /sys/x");
    if std::path::Path::new("/proc/sysrq-trigger").exists() {
        check("echo h > /proc/sysrq-trigger");
    }
}

#[test]
fn the_user_is_resolved_in_the_image() {
    check_spec(
        named(""),
        "id -u; id -g; id -G; echo $HOME",
        "0\n0\n0\n/root",
    );
    check_spec(
        named("app"),
        "id -u; id -g; id -G; echo $HOME",
        "1000\n1001\n1001 50\n/home/app",
    );
    check_spec(named("app:extra"), "id -u; id -g; id -G", "1000\n50\n50");
    check_spec(named("4321"), "id -u; id -g; echo $HOME", "4321\n0\n/");
    check_spec(ids(12, 34, &[56, 78]), "id -G", "34 56 78");
}

#[test]
fn an_unknown_user_is_an_error_in_words() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let mut spec = bench.shell("step", "true");
    spec.user = User::Named("nosuchuser".to_owned());
    let error = bench.run(&spec).exit.expect_err("no such user").to_string();
    assert_eq!(
        error,
        "unable to find user nosuchuser: no matching entries in passwd file"
    );
}

#[test]
fn an_id_that_is_not_mapped_is_an_error_in_words() {
    if !able() || !rootless() {
        return skip("only a user namespace lacks ids");
    }
    let bench = Bench::new();
    let mut spec = bench.shell("step", "true");
    spec.user = User::Ids {
        uid: 100_000_000,
        gid: 0,
        groups: vec![],
    };
    let error = bench.run(&spec).exit.expect_err("not mapped").to_string();
    assert!(error.contains("user 100000000 is not mapped"), "{error}");
}

#[test]
fn the_devices_are_dockers() {
    let names = "ls /dev | tr '\\n' ' '";
    check(
        names,
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
    );
    check(
        "for d in null zero full random urandom tty; do stat -c '%t:%T:%a' /dev/$d; done | tr '\\n' ' '",
        "1:3:666 1:5:666 1:7:666 1:8:666 1:9:666 5:0:666",
    );
    check(
        "echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c",
        "3\n4",
    );
    check(
        "echo fd > /dev/stdout; echo $(ls -l /dev/fd | sed 's/.*-> //')",
        "fd\n/proc/self/fd",
    );
    check(
        "stat -f -c %T /dev/shm; stat -c %a /dev/shm; echo x > /dev/shm/x && cat /dev/shm/x",
        "tmpfs\n1777\nx",
    );
}

#[test]
fn a_user_may_open_its_standard_streams_again() {
    check_spec(ids(1000, 1000, &[]), "echo again > /dev/stdout", "again");
}

#[test]
fn shared_memory_has_the_size_that_was_chosen() {
    check("df -k /dev/shm | tail -1 | awk '{print $2}'", "65536");
    check_spec(
        |spec| spec.shm_size = Some(8 << 20),
        "df -k /dev/shm | tail -1 | awk '{print $2}'",
        "8192",
    );
}

#[test]
fn the_step_has_its_own_names_and_processes() {
    check_spec(
        |spec| spec.hostname = "elsewhere".to_owned(),
        "hostname",
        "elsewhere",
    );
    // The heading, the shell and ps, and init where the sandbox is the executor.
    let lines = if support::runtime().is_some() {
        "3"
    } else {
        "4"
    };
    check("ps -o pid,comm > /dev/shm/ps; grep -c . /dev/shm/ps", lines);
    check("cat /proc/sys/kernel/hostname", "buildkitsandbox");
    check(
        "ipcs -m | grep -c 0x; umask; ulimit -c >/dev/null && pwd",
        "0\n0022\n/",
    );
}

#[test]
fn the_environment_is_what_the_spec_says() {
    let change = |spec: &mut Spec| {
        spec.args = vec!["env".to_owned()];
        spec.env = vec![
            "B=2".to_owned(),
            "A=1 x".to_owned(),
            "PATH=/nowhere::/bin/".to_owned(),
        ];
    };
    check_spec(change, "", "B=2\nA=1 x\nPATH=/nowhere::/bin/\nHOME=/root");
}

#[test]
fn the_working_directory_is_made() {
    check_spec(
        |spec| spec.cwd = "/new/dir".to_owned(),
        "pwd; stat -c '%a %u' .",
        "/new/dir\n755 0",
    );
}

#[test]
fn limits_of_processes_are_set() {
    let limit = |resource, soft, hard| Rlimit {
        resource,
        soft: Some(soft),
        hard: Some(hard),
    };
    check_spec(
        |spec| {
            spec.rlimits = vec![
                limit(Resource::Nofile, 123, 456),
                limit(Resource::Core, 0, 0),
            ]
        },
        "ulimit -Sn; ulimit -Hn; ulimit -c",
        "123\n456\n0",
    );
}

#[test]
fn a_read_only_root_has_writable_mounts() {
    check_spec(
        |spec| {
            spec.read_only_root = true;
            spec.mounts = vec![support::mount(
                "/data",
                sandbox::Source::Tmpfs {
                    size: None,
                    mode: 0o1777,
                },
            )];
        },
        "touch /x 2>/dev/null || echo refused; touch /data/x && echo written",
        "refused\nwritten",
    );
}

#[test]
fn a_plain_directory_is_a_root_too() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let tree = bench.path("plain");
    support::make_tree(&tree);
    let spec = Spec {
        root: Root::Directory(tree.clone()),
        ..bench.shell("step", "echo x > /made")
    };
    assert_eq!(bench.run(&spec).printed(), "");
    let mut left: Vec<_> = std::fs::read_dir(&tree)
        .expect("read")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["bin", "etc", "home", "made", "root", "tmp"]);
}

#[test]
fn a_long_stack_of_layers_is_mounted() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let mut overlay = bench.overlay("step");
    for index in 0..120 {
        let layer = bench.path(&format!("{:040}-{index}", 0));
        std::fs::create_dir(&layer).expect("a layer");
        std::fs::write(layer.join(format!("file{index}")), index.to_string()).expect("a file");
        std::fs::write(layer.join("same"), index.to_string()).expect("a file");
        overlay.lowers.push(layer);
    }
    let spec = Spec {
        root: Root::Overlay(overlay),
        ..bench.shell("other", "cat /same; ls / | grep -c file")
    };
    assert_eq!(bench.run(&spec).printed(), "119120");
}

#[test]
fn an_unconfined_step_has_the_builders_rights() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let mut spec = bench.shell(
        "step",
        "mount -t tmpfs none /tmp && grep ^Seccomp: /proc/self/status | cut -f2",
    );
    spec.security = Security::Insecure;
    assert_eq!(bench.run(&spec).printed(), "0");
}

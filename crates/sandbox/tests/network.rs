//! Networks of steps: each its own, with a way out and no way to the host's loopback.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use sandbox::{Network, NetworkMode, Options, Spec};
use support::{Bench, able, run_again, skip};

/// Set for a test program whose process has a network namespace of its own.
const INSIDE: &str = "LAPSTRAKE_TEST_NETWORK";

#[used]
#[unsafe(link_section = ".init_array")]
static LEAVE_THE_NETWORK: extern "C" fn() = leave_the_network;

/// These tests change the machine's network, so they get one of their own.
extern "C" fn leave_the_network() {
    sandbox::entry::run_if_requested();
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    // SAFETY: no thread was started yet.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        eprintln!("no network namespace");
        std::process::exit(3);
    }
}

fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

#[test]
fn networks_hold_in_a_machine_of_their_own() {
    if inside() || !able() {
        return;
    }
    run_again(&["--test-threads", "1"], (INSIDE, "1"));
}

fn command(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().expect("sh");
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Answers one connection with the address it came from.
fn answer(listener: TcpListener) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("a connection");
        write!(stream, "{}", from.ip()).expect("an answer");
    })
}

#[test]
fn a_bridge_leads_out_but_not_to_loopback() {
    if !inside() {
        return;
    }
    command("ip link set lo up; echo 0 > /proc/sys/net/ipv4/ip_forward");
    let bench = Bench::with(&Options {
        network: NetworkMode::Bridge,
        ..Options::default()
    });
    if bench.helper.network() != NetworkMode::Bridge {
        return skip(&format!("no bridge here: {:?}", bench.helper.notes()));
    }
    let run = |name: &str, script: &str| {
        let spec = Spec {
            network: Network::Default,
            ..bench.shell(name, script)
        };
        bench.run(&spec).printed().to_owned()
    };
    let route = run(
        "route",
        "ip route | head -1; ip -o link | grep -c .; ip -o -4 addr show eth0 | wc -l",
    );
    assert!(
        route.starts_with("default via 10.213.0.1 dev eth0") && route.ends_with("2\n1"),
        "{route}"
    );

    // This machine forwarded nothing before: still not for others.
    let rules = Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .expect("nft")
        .stdout;
    let rules = String::from_utf8_lossy(&rules).into_owned();
    assert!(
        rules.contains("iifname != \"lapstrake0\" oifname != \"lapstrake0\" drop"),
        "{rules}"
    );

    assert!(
        rules.contains("iifname \"lapstrake0\" oifname \"lapstrake0\" drop"),
        "{rules}"
    );

    // The machine itself answers at the gateway for names, and for nothing else.
    let resolver = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 53)).expect("a listener");
    let served = answer(resolver);
    let seen = run("resolver", "nc -w 3 10.213.0.1 53 </dev/null");
    assert!(seen.starts_with("10.213."), "{seen}");
    served.join().expect("served");
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let script = format!("nc -w 1 10.213.0.1 {port} </dev/null; echo $?");
    assert_eq!(run("gateway", &script), "1");

    // The machine's loopback.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    assert_eq!(
        run(
            "loopback",
            &format!("nc -w 1 127.0.0.1 {port} </dev/null; echo $?")
        ),
        "1"
    );

    // Two steps at once: neither ports nor addresses are shared.
    let script = "ip -o -4 addr show eth0 | awk '{print $4}'; nc -l -p 4444 -w 2 </dev/null >/dev/null & sleep 0.3; netstat -ltn | grep -c :4444";
    let both = std::thread::scope(|scope| {
        let steps = ["one", "two"].map(|name| scope.spawn(move || run(name, script)));
        steps.map(|step| step.join().expect("a step"))
    });
    assert!(
        both[0] != both[1] && both.iter().all(|one| one.ends_with("\n1")),
        "{both:?}"
    );
}

#[test]
fn the_outside_sees_the_machine_and_not_the_step() {
    if !inside() {
        return;
    }
    let bench = Bench::with(&Options {
        network: NetworkMode::Bridge,
        ..Options::default()
    });
    if bench.helper.network() != NetworkMode::Bridge {
        return skip(&format!("no bridge here: {:?}", bench.helper.notes()));
    }
    // A world behind the machine that knows no way to the steps' network: only masquerading reaches back.
    let mut world = Command::new("unshare")
        .args(["-n", "sh", "-ec", "echo ready; read go; ip addr add 192.0.2.2/24 dev world; ip link set world up; echo up; echo through | /bin/busybox nc -l -p 80 -w 5"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a world");
    let mut output = world.stdout.take().expect("output");
    let mut word = [0; 6];
    output.read_exact(&mut word).expect("ready");
    command(&format!(
        "ip link add uplink type veth peer name world netns {}; ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up",
        world.id()
    ));
    world
        .stdin
        .take()
        .expect("input")
        .write_all(b"go\n")
        .expect("go");
    output.read_exact(&mut word[..3]).expect("up");
    let script = "for try in 1 2 3 4 5; do sleep 1 | nc -w 2 192.0.2.2 80 && exit 0; done; exit 1";
    let spec = Spec {
        network: Network::Default,
        ..bench.shell("step", script)
    };
    let outcome = bench.run(&spec);
    let _ = world.wait();
    assert_eq!(outcome.printed(), "through");
}

#[test]
fn none_and_host_are_what_they_say() {
    if !inside() {
        return;
    }
    command("ip link set lo up; ip link add marker type veth peer name other");
    let bench = Bench::with(&Options {
        network: NetworkMode::Host,
        ..Options::default()
    });
    let links = |network: Network| {
        let spec = Spec { network, ..bench.shell("step", "ip -o link | grep -c ' marker'; cat /sys/class/net/lo/operstate; ls /sys/class/net | grep -c marker") };
        bench.run(&spec).stdout
    };
    assert_eq!(links(Network::None), "0\nunknown\n0\n");
    assert_eq!(links(Network::Host), "1\nunknown\n1\n");
}

/// Set for the ordinary user whose machine has a way out and a tunnel device.
const USER_SPACE: &str = "LAPSTRAKE_TEST_USER_SPACE";

#[test]
fn networks_in_user_space_hold_for_an_ordinary_user() {
    if inside() {
        return;
    }
    // A machine with a world behind it, and a tunnel device that the user may open.
    let script = "\
        mkdir -p /dev/net; mount -t tmpfs none /mnt; mknod -m 666 /mnt/tun c 10 200; mount --bind /mnt/tun /dev/net/tun
        ip link set lo up
        mkfifo /mnt/up
        echo nameserver 127.0.0.1 > /mnt/resolv.conf; mount --bind /mnt/resolv.conf /etc/resolv.conf
        echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start
        unshare -n sh -ec 'echo $$ > /mnt/pid; read go < /mnt/up; ip addr add 192.0.2.2/24 dev world; ip link set world up; \
            for n in 1 2; do echo through | timeout 20 /bin/busybox nc -l -p 80; done' >/dev/null 2>&1 &
        while [ ! -s /mnt/pid ]; do :; done
        ip link add uplink type veth peer name world netns $(cat /mnt/pid)
        ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up; ip route add default via 192.0.2.2
        echo go > /mnt/up
        exec \"$@\"";
    support::run_as_user(
        &[
            "--exact",
            "a_program_in_user_space_leads_out_but_not_to_loopback",
        ],
        script,
        &[(USER_SPACE, "1")],
    );
}

#[test]
fn a_program_in_user_space_leads_out_but_not_to_loopback() {
    if std::env::var_os(USER_SPACE).is_none() {
        return;
    }
    for mode in [NetworkMode::Pasta, NetworkMode::Slirp] {
        let bench = Bench::with(&Options {
            network: mode,
            ..Options::default()
        });
        if bench.helper.network() != mode {
            skip(&format!("no {mode:?} here: {:?}", bench.helper.notes()));
            continue;
        }
        let run = |name: &str, script: &str| {
            let spec = Spec {
                network: Network::Default,
                ..bench.shell(name, script)
            };
            bench.run(&spec).printed().to_owned()
        };
        let reach =
            "for try in 1 2 3 4 5; do sleep 1 | nc -w 2 192.0.2.2 80 && exit 0; done; exit 1";
        assert_eq!(run("out", reach), "through", "{mode:?}");
        // The loopback of the machine, by its own name and by those of the gateways.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        for address in ["127.0.0.1", "10.0.2.2", "192.0.2.2", "169.254.53.53"] {
            let reached = run(
                "loopback",
                &format!("nc -w 1 {address} {port} </dev/null; echo $?"),
            );
            assert_eq!(reached, "1", "{mode:?} {address}");
        }
        // The resolver of the machine answers on its loopback, and answers the step all the same. Old versions
        // of pasta do not lead to a resolver there.
        if mode == NetworkMode::Slirp {
            answer_names();
            let mut spec = bench.shell("names", "nslookup name.test 2>&1 | grep -c 192.0.2.77");
            spec.network = Network::Default;
            let content =
                sandbox::Content(sandbox::resolver_file(Network::Default, mode).into_bytes());
            let source = sandbox::Source::File {
                content,
                mode: 0o644,
                uid: 0,
                gid: 0,
            };
            spec.mounts = vec![support::mount("/etc/resolv.conf", source)];
            assert_eq!(bench.run(&spec).printed(), "1", "{mode:?}");
        }
        println!("{mode:?} leads out");
    }
}

/// Answers every question for an address with 192.0.2.77, on the loopback of this machine.
fn answer_names() {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).expect("a socket");
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let mut reply = packet[..length].to_vec();
            // The name ends with a zero byte; the kind of the question follows.
            let end = 12
                + reply[12..]
                    .iter()
                    .position(|byte| *byte == 0)
                    .expect("a name")
                + 1;
            let address = reply[end..end + 2] == [0, 1];
            reply.truncate(end + 4);
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(address), 0, 0, 0, 0]);
            if address {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
            }
            let _ = socket.send_to(&reply, from);
        }
    });
}

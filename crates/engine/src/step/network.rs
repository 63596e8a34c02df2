//! The files that tell a step about names: `/etc/hosts` and `/etc/resolv.conf`.
//!
//! They are laid over the root for the step and never end in a layer.

use llb::{ExecOp, NetworkMode};
use sandbox::{Content, Mount, Source, Spec};

use crate::EngineError;
use crate::step::StepContext;

/// Returns the mounts of both files.
pub(crate) fn files(
    context: &StepContext,
    op: &ExecOp,
    spec: &Spec,
    root: &rootfs::Tree,
) -> Result<Vec<Mount>, EngineError> {
    let _ = root;
    let file = |target: &str, text: String| Mount {
        target: target.to_owned(),
        source: Source::File {
            content: Content(text.into_bytes()),
            mode: 0o644,
            uid: 0,
            gid: 0,
        },
        read_only: true,
    };
    let mut mounts = vec![file("/etc/hosts", hosts(op, &spec.hostname))];
    if op.network != NetworkMode::None {
        let own = op.network == NetworkMode::Sandbox && context.shared.has_own_network()?;
        let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        mounts.push(file("/etc/resolv.conf", resolvers(&host, own)));
    }
    Ok(mounts)
}

fn hosts(op: &ExecOp, hostname: &str) -> String {
    let mut text = format!(
        "127.0.0.1\tlocalhost {hostname}\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n"
    );
    for entry in &op.meta.extra_hosts {
        text.push_str(&format!("{}\t{}\n", entry.ip, entry.host));
    }
    text
}

/// Name servers that answer anywhere, as Docker falls back to them.
const PUBLIC: &str = "nameserver 8.8.8.8\nnameserver 8.8.4.4\n";

/// Returns the host's file; in a network of its own without servers that only the host can reach.
fn resolvers(host: &str, own_network: bool) -> String {
    if !own_network {
        return host.to_owned();
    }
    let mut text = String::new();
    let mut servers = 0;
    for line in host.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver") {
            let address = words.next().and_then(|word| word.split('%').next());
            let address: Option<std::net::IpAddr> = address.and_then(|word| word.parse().ok());
            match address {
                Some(address) if !address.is_loopback() => servers += 1,
                _ => continue,
            }
        }
        text.push_str(line);
        text.push('\n');
    }
    if servers == 0 {
        text.push_str(PUBLIC);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::resolvers;

    #[test]
    fn loopback_resolvers_stay_with_the_host() {
        let check = |host, own, expected: &str| assert_eq!(resolvers(host, own), expected);
        check("nameserver 127.0.0.53\n", false, "nameserver 127.0.0.53\n");
        check(
            "search a\nnameserver ::1\nnameserver 10.0.0.1\n",
            true,
            "search a\nnameserver 10.0.0.1\n",
        );
        check("nameserver 127.0.0.53\n", true, super::PUBLIC);
    }
}

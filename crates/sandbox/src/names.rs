//! `/etc/hosts` and `/etc/resolv.conf` of a step, as text. They are mounted, never written into a layer.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;

use crate::helper::NetworkMode;
use crate::spec::Network;

/// The address at which `pasta` answers for the resolver of the host.
pub(crate) const PASTA_RESOLVER: &str = "169.254.53.53";

/// The address at which `slirp4netns` answers for the resolver of the host.
const SLIRP_RESOLVER: &str = "10.0.2.3";

/// Where systemd-resolved keeps the servers that its stub asks.
const SYSTEMD_SERVERS: &str = "/run/systemd/resolve/resolv.conf";

/// Asked when the host names none that a step can reach, as Docker does.
const PUBLIC_SERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// Returns the hosts file of a step: its own name, and the names the user added, in their order.
pub fn hosts_file(hostname: &str, extra: &[(String, IpAddr)]) -> String {
    let mut text =
        format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra {
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

/// Returns the resolver file of a step with the given network, from the host's.
///
/// A resolver on the host's loopback is left out where it can't be reached.
pub fn resolver_file(network: Network, mode: NetworkMode) -> String {
    let own = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let shared =
        network == Network::Host || network == Network::Default && mode == NetworkMode::Host;
    if shared {
        return own;
    }
    let stub = servers(&own).eq(["127.0.0.53"]);
    let upstream = if stub {
        fs::read_to_string(SYSTEMD_SERVERS).ok()
    } else {
        None
    };
    filter(upstream.as_deref().unwrap_or(&own), mode)
}

fn servers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next())
            .flatten()
    })
}

fn filter(text: &str, mode: NetworkMode) -> String {
    let reachable = |server: &&str| {
        // A zone (`fe80::1%eth0`) names an interface that the step has not.
        server
            .parse::<IpAddr>()
            .is_ok_and(|address| !address.is_loopback() && !address.is_unspecified())
    };
    let all = servers(text).collect::<Vec<_>>();
    let mut kept: Vec<&str> = all.iter().copied().filter(reachable).collect();
    if kept.is_empty() {
        kept = match mode {
            NetworkMode::Pasta => vec![PASTA_RESOLVER],
            NetworkMode::Slirp => vec![SLIRP_RESOLVER],
            _ => PUBLIC_SERVERS.to_vec(),
        };
    }
    let mut result: String = kept
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    let settings = text.lines().filter(|line| {
        matches!(
            line.split_whitespace().next(),
            Some("search" | "domain" | "options" | "sortlist")
        )
    });
    for line in settings {
        let _ = writeln!(result, "{}", line.trim());
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_has_the_users_names_last() {
        let extra = [("db".to_owned(), "10.1.2.3".parse().expect("an address"))];
        let expected =
            "127.0.0.1\tlocalhost me\n::1\tlocalhost ip6-localhost ip6-loopback\n10.1.2.3\tdb\n";
        assert_eq!(hosts_file("me", &extra), expected);
    }

    #[track_caller]
    fn check(text: &str, mode: NetworkMode, expected: &str) {
        assert_eq!(filter(text, mode), expected, "{text}");
    }

    #[test]
    fn resolvers_that_can_not_be_reached_are_left_out() {
        let bridge = NetworkMode::Bridge;
        check(
            "# c\nnameserver 1.2.3.4\nsearch a b\n",
            bridge,
            "nameserver 1.2.3.4\nsearch a b\n",
        );
        check(
            "nameserver 127.0.0.1\nnameserver 9.9.9.9\n",
            bridge,
            "nameserver 9.9.9.9\n",
        );
        check(
            "nameserver ::1\noptions ndots:2\n",
            bridge,
            "nameserver 8.8.8.8\nnameserver 8.8.4.4\noptions ndots:2\n",
        );
        check(
            "nameserver fe80::1%eth0\nnameserver 2001:db8::1\n",
            bridge,
            "nameserver 2001:db8::1\n",
        );
        check(
            "nameserver 127.0.0.53\n",
            NetworkMode::Pasta,
            "nameserver 169.254.53.53\n",
        );
        check(
            "nameserver 127.0.0.1\n",
            NetworkMode::Slirp,
            "nameserver 10.0.2.3\n",
        );
    }
}

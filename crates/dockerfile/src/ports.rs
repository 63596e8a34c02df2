//! The ports of `EXPOSE`: `80`, `80-90/udp`, and the `[ip:]host:container` the reference warns of.

use std::net::IpAddr;

use crate::go::{NumberError, parse_i64};

/// What one word of `EXPOSE` says, after expansion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// The first and last port in the container.
    pub first: u16,
    pub last: u16,
    /// In lower case: `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The protocol was not written in lower case.
    pub protocol_is_cased: bool,
    /// There was an address or a port of the host, which mean nothing here.
    pub is_mapping: bool,
}

impl PortSpec {
    /// Returns `PORT/PROTOCOL` for each port, ascending.
    pub fn ports(&self) -> impl Iterator<Item = String> {
        (self.first..=self.last).map(|port| format!("{port}/{}", self.protocol))
    }
}

/// A word of `EXPOSE` that cannot be read; the flags of [`PortSpec`] as far as they are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortError {
    /// What is wrong, in the reference's words.
    pub message: String,
    pub protocol_is_cased: bool,
    pub is_mapping: bool,
}

/// What can stand in `EXPOSE`.
pub const HELP: &str = "a port is a number up to 65535, or a range such as 8000-8010, with /udp behind it if it is not tcp";

/// Reads one word of `EXPOSE`.
///
/// # Errors
///
/// Numbers that are no ports, unknown protocols, addresses that are none.
pub fn parse_port(text: &str) -> Result<PortSpec, PortError> {
    let (address, host, container) = split_parts(text);
    let fail = |message| PortError {
        message,
        protocol_is_cased: false,
        is_mapping: false,
    };
    let (protocol, container) = split_protocol(container)
        .map_err(|reason| fail(format!("invalid port: {}: {reason}", crate::quote(text))))?;
    let protocol_is_cased = protocol != protocol.to_lowercase();
    let is_mapping = !address.is_empty() || !host.is_empty();
    let fail = |message| PortError {
        message,
        protocol_is_cased,
        is_mapping,
    };
    check_address(&address).map_err(fail)?;
    let (first, last) =
        parse_range(container).map_err(|_| fail(format!("invalid containerPort: {container}")))?;
    if !host.is_empty() {
        let (host_first, host_last) =
            parse_range(host).map_err(|_| fail(format!("invalid hostPort: {host}")))?;
        if last - first != host_last - host_first && last != first {
            let message = format!(
                "invalid ranges specified for container and host Ports: {container} and {host}"
            );
            return Err(fail(message));
        }
    }
    Ok(PortSpec {
        first,
        last,
        protocol: protocol.to_lowercase(),
        protocol_is_cased,
        is_mapping,
    })
}

/// Splits `[ip:][host:]container` at its last colons.
fn split_parts(text: &str) -> (String, &str, &str) {
    let Some((rest, container)) = text.rsplit_once(':') else {
        return (String::new(), "", text);
    };
    match rest.rsplit_once(':') {
        None => (String::new(), rest, container),
        Some((address, host)) => (address.to_owned(), host, container),
    }
}

fn split_protocol(text: &str) -> Result<(&str, &str), String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, ""));
    if port.is_empty() {
        return Err("no port specified".to_owned());
    }
    match protocol.to_lowercase().as_str() {
        "" => Ok(("tcp", port)),
        "tcp" | "udp" | "sctp" => Ok((protocol, port)),
        _ => Err(format!("invalid proto: {protocol}")),
    }
}

fn check_address(address: &str) -> Result<(), String> {
    let mut bare = address;
    if let Some(inner) = address.strip_prefix('[') {
        let invalid =
            |why: &str| format!("invalid IP address {address}: address {address}:: {why}");
        let Some((inside, behind)) = inner.split_once(']') else {
            return Err(invalid("missing ']' in address"));
        };
        if !behind.is_empty() {
            let why = if behind.starts_with(':') {
                "too many colons in address"
            } else {
                "missing port in address"
            };
            return Err(invalid(why));
        }
        if inside.contains('[') {
            return Err(invalid("unexpected '[' in address"));
        }
        bare = inside;
    }
    if bare.is_empty() || bare.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(format!("invalid IP address: {bare}"))
}

fn parse_range(text: &str) -> Result<(u16, u16), NumberError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| u16::try_from(parse_i64(text)?).map_err(|_| NumberError::Range);
    let (first, last) = (number(first)?, number(last)?);
    if last < first {
        Err(NumberError::Range)
    } else {
        Ok((first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_with_ranges_protocols_and_mappings() {
        let check = |text: &str, expect: &str| {
            let found = match parse_port(text) {
                Ok(spec) => {
                    let marks = (
                        if spec.protocol_is_cased { " cased" } else { "" },
                        if spec.is_mapping { " mapping" } else { "" },
                    );
                    format!(
                        "{}{}{}",
                        spec.ports().collect::<Vec<_>>().join(" "),
                        marks.0,
                        marks.1
                    )
                }
                Err(error) => error.message,
            };
            assert_eq!(found, expect, "{text}");
        };
        check("80", "80/tcp");
        check("80-82/UDP", "80/udp 81/udp 82/udp cased");
        check("8080:80", "80/tcp mapping");
        check("8080-8090:80", "80/tcp mapping");
        check("127.0.0.1::80", "80/tcp mapping");
        check("[::1]:8080:80/sctp", "80/sctp mapping");
        check("::1:8080:80", "80/tcp mapping");
        check("80/icmp", "invalid port: \"80/icmp\": invalid proto: icmp");
        check("", "invalid port: \"\": no port specified");
        check("66000", "invalid containerPort: 66000");
        check("82-80", "invalid containerPort: 82-80");
        check(
            "1-2:3-5",
            "invalid ranges specified for container and host Ports: 3-5 and 1-2",
        );
        check("x:80", "invalid hostPort: x");
        check("300.0.0.1:1:2", "invalid IP address: 300.0.0.1");
        check(
            "[::1:1:2",
            "invalid IP address [::1: address [::1:: missing ']' in address",
        );
    }
}

//! The files that tell a step about names: `/etc/hosts` and `/etc/resolv.conf`.
//!
//! They are laid over the root for the step and never end in a layer.

use std::net::IpAddr;

use llb::ExecOp;
use sandbox::{Content, Mount, Source, Spec};

use crate::EngineError;
use crate::step::StepContext;

/// Returns the mounts of both files.
pub(crate) fn files(
    context: &StepContext,
    op: &ExecOp,
    spec: &Spec,
) -> Result<Vec<Mount>, EngineError> {
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
    let extra = op.meta.extra_hosts.iter().map(|entry| {
        let address: IpAddr = entry.ip.parse().map_err(|_| {
            EngineError::Request(format!(
                "the host {} has no valid address: {:?}",
                entry.host, entry.ip
            ))
        })?;
        Ok((entry.host.clone(), address))
    });
    let extra: Vec<(String, IpAddr)> = extra.collect::<Result<_, EngineError>>()?;
    let hosts = sandbox::hosts_file(&spec.hostname, &extra);
    // Without a network too, as in the reference: what such a step writes there does not end in a layer.
    let mode = context.shared.helper()?.network();
    let resolvers = sandbox::resolver_file(spec.network, mode);
    Ok(vec![
        file("/etc/hosts", hosts),
        file("/etc/resolv.conf", resolvers),
    ])
}

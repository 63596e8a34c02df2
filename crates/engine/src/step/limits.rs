//! Reads resource limits by Docker's names.

use llb::Ulimit;
use sandbox::{Resource, Rlimit};

use crate::EngineError;

/// Returns the limits in the sandbox's terms.
pub(crate) fn rlimits(ulimits: &[Ulimit]) -> Result<Vec<Rlimit>, EngineError> {
    ulimits.iter().map(rlimit).collect()
}

fn rlimit(ulimit: &Ulimit) -> Result<Rlimit, EngineError> {
    let resource = match ulimit.name.as_str() {
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        name => return Err(EngineError::Request(format!("invalid ulimit type: {name}"))),
    };
    let value = |number: i64| u64::try_from(number).ok();
    Ok(Rlimit {
        resource,
        soft: value(ulimit.soft),
        hard: value(ulimit.hard),
    })
}

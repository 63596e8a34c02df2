//! What a step may take: resource limits by Docker's names, and those of its control group.

use llb::{LinuxResources, Ulimit};
use sandbox::{Limits, Resource, Rlimit};

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

/// The kernel's length of a period of the processors, in microseconds.
const USUAL_PERIOD: u64 = 100_000;

/// Returns the limits of a step: those that the builder sets, and what a graph asks for as far as that is tighter.
pub(crate) fn of_group(
    set: &Limits,
    asked: Option<&LinuxResources>,
    cgroup_parent: &str,
) -> Limits {
    let mut limits = set.clone();
    if !cgroup_parent.is_empty() {
        limits.parent = Some(cgroup_parent.to_owned());
    }
    let Some(asked) = asked else {
        return limits;
    };
    let tighter = |set: Option<u64>, asked: u64| match asked {
        0 => set,
        asked => Some(set.map_or(asked, |set| set.min(asked))),
    };
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    limits.memory = tighter(limits.memory, positive(asked.memory));
    limits.memory_swap = tighter(limits.memory_swap, positive(asked.memory_swap));
    limits.cpu_shares = tighter(limits.cpu_shares, asked.cpu_shares);
    let period = match asked.cpu_period {
        0 => USUAL_PERIOD,
        period => period,
    };
    let quota = positive(asked.cpu_quota);
    let milli = match quota {
        0 => 0,
        quota => {
            (u128::from(quota) * 1000 / u128::from(period)).clamp(1, u128::from(u64::MAX)) as u64
        }
    };
    limits.cpu_milli = tighter(limits.cpu_milli, milli);
    // A set that the builder has chosen is not left.
    let chosen = |set: &mut Option<String>, asked: &str| {
        if set.is_none() && !asked.is_empty() {
            *set = Some(asked.to_owned());
        }
    };
    chosen(&mut limits.cpuset_cpus, &asked.cpuset_cpus);
    chosen(&mut limits.cpuset_mems, &asked.cpuset_mems);
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tighter_limit_counts() {
        let set = Limits {
            memory: Some(100),
            cpu_milli: Some(4000),
            cpuset_cpus: Some("0-1".to_owned()),
            pids: Some(50),
            ..Limits::default()
        };
        let asked = LinuxResources {
            memory: 200,
            memory_swap: -1,
            cpu_quota: 50_000,
            cpuset_cpus: "0-7".to_owned(),
            cpuset_mems: "0".to_owned(),
            ..LinuxResources::default()
        };
        let limits = of_group(&set, Some(&asked), "builds");
        assert_eq!(
            limits,
            Limits {
                cpu_milli: Some(500),
                cpuset_mems: Some("0".to_owned()),
                parent: Some("builds".to_owned()),
                ..set.clone()
            }
        );
        assert_eq!(of_group(&set, None, ""), set);
        let asked = LinuxResources {
            memory: 50,
            cpu_period: 1_000,
            cpu_quota: i64::MAX,
            ..LinuxResources::default()
        };
        let limits = of_group(&set, Some(&asked), "");
        assert_eq!((limits.memory, limits.cpu_milli), (Some(50), Some(4000)));
    }
}

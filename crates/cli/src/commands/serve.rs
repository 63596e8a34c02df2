//! `lapstrake serve`.

use std::path::PathBuf;

use anyhow::Context;
use api_buildkit::{Access, Address, Config, Server, Settings, Tls, Warning};
use clap::Args;
use engine::{Cancel, Engine};

use crate::arguments::{ChosenRuntime, Global};
use crate::build_request::{bytes, processors};
use crate::failure::{Failure, exit};
use crate::{configuration, log, settings, signals, telemetry};

/// Serve BuildKit's API, for docker buildx and other clients
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapstrake serve --addr unix:///run/lapstrake.sock
  docker buildx create --driver remote --name lap unix:///run/lapstrake.sock
  docker buildx build --builder lap .
  lapstrake serve --addr tcp://0.0.0.0:1234 --tlscert server.pem --tlskey server-key.pem --tlscacert ca.pem

--config is read as buildkitd.toml is; keys that mean nothing here are named and passed over.")]
pub(crate) struct Serve {
    /// Where to listen, any number of times: unix:///PATH, tcp://HOST:PORT, or fd:// for sockets of a service manager
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) addr: Vec<String>,
    /// Let this group use the socket, by name or number
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Certificate of this server for tcp, in PEM
    #[arg(long, value_name = "FILE", requires = "tlskey")]
    pub(crate) tlscert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tlscert")]
    pub(crate) tlskey: Option<PathBuf>,
    /// Let in only clients whose certificates this authority has signed
    #[arg(long, value_name = "FILE", requires = "tlscert")]
    pub(crate) tlscacert: Option<PathBuf>,
    /// Let everybody who reaches a tcp port use it, without a certificate
    #[arg(long)]
    pub(crate) allow_unprotected_tcp: bool,
    /// Let clients ask for this: network.host or security.insecure
    #[arg(long = "allow-insecure-entitlement", value_name = "ENTITLEMENT")]
    pub(crate) entitlements: Vec<String>,
    /// Run so many steps at once
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_parallelism: Option<usize>,
    /// Memory limit of each step, such as 4g
    #[arg(long, short = 'm', value_name = "BYTES")]
    pub(crate) memory: Option<String>,
    /// Processors each step may use
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<String>,
    /// Processes each step may have
    #[arg(long, value_name = "NUMBER")]
    pub(crate) pids_limit: Option<u64>,
    /// Parent control group of steps, whose limits hold for all of them together
    #[arg(long, value_name = "GROUP")]
    pub(crate) cgroup_parent: Option<String>,
    #[command(flatten)]
    pub(crate) runtime: ChosenRuntime,
}

impl Serve {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let config = configuration(global).map_err(exit::usage)?;
        let addresses = self.addresses(&config).map_err(exit::usage)?;
        let access = self.access(&config).map_err(exit::usage)?;
        let mut global = global.clone();
        if global.root.is_none() {
            global.root = config.root.map(PathBuf::from);
        }
        let runtime = settings::runtime(&global, self.runtime.named()).map_err(exit::usage)?;
        let parent = self.cgroup_parent.clone();
        let network = config.network.unwrap_or(sandbox::NetworkMode::Auto);
        let sandbox = sandbox::Options {
            network,
            // What was asked for by its name is not replaced by less.
            own_network: network != sandbox::NetworkMode::Auto,
            cgroup_parent: parent.or(config.cgroup_parent),
            ..sandbox::Options::default()
        };
        let step_limits = self.step_limits().map_err(exit::usage)?;
        let mut settings = settings::engine_settings(&global, sandbox, runtime)?;
        settings.limits = settings.limits.or(config.space);
        settings.slots = self
            .max_parallelism
            .or(config.max_parallelism)
            .map(|steps| steps.max(1));
        settings.step_limits = step_limits;
        let engine = Engine::open(settings).map_err(exit::builder)?;
        let stop = Cancel::default();
        signals::cancel_on_signal(&stop)
            .context("failed to listen for signals")
            .map_err(exit::builder)?;
        let mut entitlements = config.entitlements;
        entitlements.extend(self.entitlements.iter().cloned());
        let (collector, _forwarding) = match telemetry::collector(&global) {
            Ok(Some((collector, forwarding))) => (Some(collector), Some(forwarding)),
            Ok(None) => (None, None),
            Err(error) => return Err(exit::usage(error.context("builds cannot be traced"))),
        };
        let server = Server::new(
            engine,
            Settings {
                addresses,
                access,
                entitlements,
                environment: config.provenance_environment,
                collector,
                history: config.history,
            },
        );
        server
            .run(&stop, |addresses| {
                for address in addresses {
                    log::info(&format!("serving on {address}"));
                }
            })
            .map_err(exit::builder)
    }

    fn step_limits(&self) -> anyhow::Result<engine::Limits> {
        let (memory, cpus) = (self.memory.as_deref(), self.cpus.as_deref());
        Ok(engine::Limits {
            memory: memory.map(|text| bytes("--memory", text)).transpose()?,
            cpu_milli: cpus.map(processors).transpose()?,
            pids: self.pids_limit,
            ..engine::Limits::default()
        })
    }

    fn addresses(&self, config: &Config) -> anyhow::Result<Vec<Address>> {
        let addresses = match self.addr.is_empty() {
            true => &config.addresses,
            false => &self.addr,
        };
        if addresses.is_empty() {
            anyhow::bail!("--addr is missing: where to listen, such as unix:///run/lapstrake.sock");
        }
        let addresses = addresses.iter().map(|address| Ok(address.parse()?));
        addresses.collect()
    }

    fn access(&self, config: &Config) -> anyhow::Result<Access> {
        let tls = match (&self.tlscert, &self.tlskey) {
            (Some(certificate), Some(key)) => Some(Tls {
                certificate: certificate.clone(),
                key: key.clone(),
                client_authority: self.tlscacert.clone().or_else(|| {
                    let configured = config.tls.as_ref()?;
                    configured.client_authority.clone()
                }),
            }),
            _ => config.tls.clone(),
        };
        let group = self.group.as_deref().map(group_id).transpose()?;
        Ok(Access {
            tls,
            unprotected_tcp: self.allow_unprotected_tcp,
            socket_user: config.socket_user,
            socket_group: group.or(config.socket_group),
        })
    }
}

/// Finds a group of this machine.
fn group_id(group: &str) -> anyhow::Result<u32> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let path = "/etc/group";
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {path}"))?;
    let mut groups = text.lines().map(|line| line.split(':'));
    let id = groups.find_map(|mut fields| {
        let named = fields.next() == Some(group);
        fields.nth(1).filter(|_| named)?.parse().ok()
    });
    id.with_context(|| format!("--group {group}: {path} has no such group"))
}

fn configuration(global: &Global) -> anyhow::Result<Config> {
    let Some((path, text)) = settings::read_config(global)? else {
        return Ok(Config::default());
    };
    let config = Config::parse(&path, &text)?;
    let unknown = configuration::unknown(&text);
    for Warning { key } in &config.warnings {
        // Others were warned of when the file was read.
        if !unknown.iter().any(|unknown| unknown.covers(key)) {
            log::warning(&format!("the configuration's key {key} is not followed"));
        }
    }
    Ok(config)
}

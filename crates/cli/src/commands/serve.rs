//! `lapstrake serve`.

use std::path::PathBuf;

use anyhow::Context;
use api_buildkit::{Address, Config, Server, Settings};
use clap::Args;
use engine::Cancel;

use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::{log, places, settings, signals};

/// Serve BuildKit's API, for docker buildx and other clients
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapstrake serve --addr unix:///run/lapstrake.sock
  docker buildx create --driver remote --name lap unix:///run/lapstrake.sock
  docker buildx build --builder lap .

--config is read as buildkitd.toml is; keys that mean nothing here are named and passed over.")]
pub(crate) struct Serve {
    /// Where to listen: unix:///PATH or tcp://HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) addr: Option<String>,
    /// Let clients ask for this: network.host or security.insecure
    #[arg(long = "allow-insecure-entitlement", value_name = "ENTITLEMENT")]
    pub(crate) entitlements: Vec<String>,
}

impl Serve {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let config = configuration(global).map_err(exit::usage)?;
        for warning in &config.warnings {
            log::warning(&format!(
                "the configuration's key {} is not followed",
                warning.key
            ));
        }
        let address = self.address(&config).map_err(exit::usage)?;
        let mut global = global.clone();
        if global.root.is_none() {
            global.root = config.root.map(PathBuf::from);
        }
        let engine = settings::open_engine(&global)?;
        let stop = Cancel::default();
        signals::cancel_on_signal(&stop)
            .context("failed to listen for signals")
            .map_err(exit::builder)?;
        let mut entitlements = config.entitlements;
        entitlements.extend(self.entitlements.iter().cloned());
        let server = Server::new(
            engine,
            Settings {
                address,
                entitlements,
                environment: config.provenance_environment,
            },
        );
        server
            .run(&stop, |address| log::info(&format!("serving on {address}")))
            .map_err(exit::builder)
    }

    fn address(&self, config: &Config) -> anyhow::Result<Address> {
        let given = self.addr.as_deref();
        let address = match given.or(config.addresses.first().map(String::as_str)) {
            Some(address) => address,
            None => anyhow::bail!(
                "--addr is missing: where to listen, such as unix:///run/lapstrake.sock"
            ),
        };
        Ok(address.parse()?)
    }
}

fn configuration(global: &Global) -> anyhow::Result<Config> {
    let (path, asked) = places::config(global)?;
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Config::parse(&path, &text)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !asked => {
            Ok(Config::default())
        }
        Err(error) => Err(error)
            .with_context(|| format!("failed to read the configuration {}", path.display())),
    }
}

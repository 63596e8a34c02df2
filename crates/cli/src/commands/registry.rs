//! `lapstrake registry serve`.

use std::net::SocketAddr;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use engine::{Cancel, Compression};

use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::{output, settings, signals};

/// Be a registry for other tools
#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    Serve(Serve),
}

impl RegistryCommand {
    pub(crate) fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Serve(command) => command.run(global),
        }
    }
}

/// Serve the images of the store on this machine, for reading
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Address to listen on, of the loopback interface; port 0 is a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,
    /// How layers that were built here are compressed
    #[arg(long, value_name = "KIND", value_enum, default_value = "uncompressed")]
    compression: Kind,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Uncompressed,
    Gzip,
    Zstd,
}

impl Serve {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = settings::open_engine(global)?;
        let cancel = Cancel::default();
        signals::cancel_on_signal(&cancel)
            .context("failed to listen for signals")
            .map_err(exit::builder)?;
        let server = engine
            .listen_as_registry(self.listen)
            .map_err(exit::engine)?;
        let address = server.address();
        output::print(&format!(
            "Serving the images of {} at http://{address}, as {address}/NAME:TAG\n",
            engine.store().root().display()
        ))
        .map_err(exit::builder)?;
        let compression = match self.compression {
            Kind::Uncompressed => Compression::Uncompressed,
            Kind::Gzip => Compression::Gzip,
            Kind::Zstd => Compression::Zstd,
        };
        server.run(compression, &cancel).map_err(exit::engine)
    }
}

//! The instructions that hold a command, or another instruction.

use crate::flags::{FlagKind, FlagSpecs, Flags};
use crate::go::{NumberError, parse_duration, parse_i64};
use crate::mount::parse_device;
use crate::parser::Args;
use crate::quote::quote;
use crate::{
    CommandForm, CommandLine, Healthcheck, MountSpec, NetworkMode, Onbuild, Run, SecurityMode,
    Shell,
};

use super::{NO_FLAGS, Reader, Result};

const RUN_FLAGS: FlagSpecs = &[
    ("mount", FlagKind::Values),
    ("network", FlagKind::Value),
    ("security", FlagKind::Value),
    ("device", FlagKind::Values),
];
const HEALTHCHECK_FLAGS: FlagSpecs = &[
    ("interval", FlagKind::Value),
    ("timeout", FlagKind::Value),
    ("start-period", FlagKind::Value),
    ("start-interval", FlagKind::Value),
    ("retries", FlagKind::Value),
];

impl Reader<'_> {
    /// Reads the command of `CMD` and `ENTRYPOINT`.
    pub(super) fn command(&self) -> Result<CommandLine> {
        self.flags(NO_FLAGS)?;
        Ok(self.command_line())
    }

    fn command_line(&self) -> CommandLine {
        CommandLine {
            form: if self.node.args.is_exec() {
                CommandForm::Exec
            } else {
                CommandForm::Shell
            },
            args: self.words().to_vec(),
            heredocs: self.node.heredocs.clone(),
        }
    }

    pub(super) fn run(&self) -> Result<Run> {
        let flags = self.flags(RUN_FLAGS)?;
        let lines = self.node.lines;
        let devices = flags
            .values("device")
            .map(|word| parse_device(word, lines))
            .collect::<Result<_>>()?;
        let mounts = flags
            .values("mount")
            .map(|word| MountSpec::parse(word.clone(), lines))
            .collect::<Result<_>>()?;
        let network = match flags
            .given("network")
            .map(|word| (word.text.as_str(), word))
        {
            None | Some(("default", _)) => NetworkMode::Default,
            Some(("none", _)) => NetworkMode::None,
            Some(("host", _)) => NetworkMode::Host,
            Some((mode, word)) => {
                let error = self.error(
                    "invalid-network",
                    format!("invalid network mode {}", quote(mode)),
                );
                let error = error
                    .label(word.span, "no such mode")
                    .help("the modes are default, none and host");
                return Err(Box::new(error));
            }
        };
        let security = match flags
            .given("security")
            .map(|word| (word.text.as_str(), word))
        {
            None | Some(("sandbox", _)) => SecurityMode::Sandbox,
            Some(("insecure", _)) => SecurityMode::Insecure,
            Some((mode, word)) => {
                let error = self.error(
                    "invalid-security",
                    format!("security {} is not valid", quote(mode)),
                );
                let error = error
                    .label(word.span, "no such mode")
                    .help("the modes are sandbox and insecure");
                return Err(Box::new(error));
            }
        };
        Ok(Run {
            command: self.command_line(),
            mounts,
            network,
            security,
            devices,
            flags_used: flags.names(),
        })
    }

    pub(super) fn shell(&self) -> Result<Shell> {
        self.flags(NO_FLAGS)?;
        if self.words().is_empty() {
            return Err(self.at_least_one("SHELL"));
        }
        if !self.node.args.is_exec() {
            let error = self.error(
                "not-json",
                "SHELL requires the arguments to be in JSON form",
            );
            let error = error.label(self.words()[0].span, "not a JSON array");
            return Err(Box::new(error.help(
                "write SHELL [\"program\", \"argument\"], with double quotes",
            )));
        }
        Ok(Shell {
            args: self.words().to_vec(),
        })
    }

    pub(super) fn onbuild(&self) -> Result<Onbuild> {
        let Args::Nested(child) = &self.node.args else {
            return Err(self.at_least_one("ONBUILD"));
        };
        self.flags(NO_FLAGS)?;
        let forbidden = |message: String| {
            let error = self.error("invalid-trigger", message);
            Box::new(error.label(child.keyword.span, "not allowed behind ONBUILD"))
        };
        match child.keyword.text.trim().to_uppercase().as_str() {
            "ONBUILD" => {
                return Err(forbidden(
                    "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned(),
                ));
            }
            name @ ("MAINTAINER" | "FROM") => {
                return Err(forbidden(format!(
                    "{name} isn't allowed as an ONBUILD trigger"
                )));
            }
            _ => {}
        }
        let is_space = |c: char| matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
        let original = self.node.original.as_str();
        // The keyword may be written with letters that only fold to ASCII; such a one stays, as with the reference.
        let mut trigger = original
            .trim_start_matches(is_space)
            .split_at_checked("ONBUILD".len())
            .filter(|(keyword, _)| keyword.eq_ignore_ascii_case("ONBUILD"))
            .map_or(original, |(_, rest)| rest.trim_start_matches(is_space))
            .to_owned();
        for doc in &self.node.heredocs {
            trigger.push('\n');
            trigger.push_str(&doc.content);
            trigger.push_str(&doc.name);
        }
        Ok(Onbuild { trigger })
    }

    pub(super) fn healthcheck(&self) -> Result<Healthcheck> {
        let Some((kind, args)) = self.words().split_first() else {
            return Err(self.at_least_one("HEALTHCHECK"));
        };
        let name = kind.text.to_uppercase();
        if name == "NONE" {
            if let Some(arg) = args.first() {
                let error =
                    self.error("invalid-healthcheck", "HEALTHCHECK NONE takes no arguments");
                return Err(Box::new(error.label(arg.span, "behind NONE")));
            }
            return Ok(Healthcheck {
                test: vec![name],
                ..Healthcheck::default()
            });
        }
        let flags = self.flags(HEALTHCHECK_FLAGS)?;
        if name != "CMD" {
            let message = format!("Unknown type {} in HEALTHCHECK (try CMD)", quote(&name));
            let error = self
                .error("invalid-healthcheck", message)
                .label(kind.span, "neither CMD nor NONE");
            return Err(Box::new(error));
        }
        if args.is_empty() {
            let error = self.error("missing-argument", "Missing command after HEALTHCHECK CMD");
            return Err(Box::new(error.label(kind.span, "no command behind this")));
        }
        let head = if self.node.args.is_exec() {
            "CMD"
        } else {
            "CMD-SHELL"
        };
        let test = std::iter::once(head.to_owned())
            .chain(args.iter().map(|word| word.text.clone()))
            .collect();
        Ok(Healthcheck {
            test,
            interval: self.interval(&flags, "interval")?,
            timeout: self.interval(&flags, "timeout")?,
            start_period: self.interval(&flags, "start-period")?,
            start_interval: self.interval(&flags, "start-interval")?,
            retries: self.retries(&flags)?,
        })
    }

    fn interval(&self, flags: &Flags, name: &str) -> Result<i64> {
        let Some(word) = flags.value(name) else {
            return Ok(0);
        };
        let error = |message| {
            Box::new(
                self.error("invalid-duration", message)
                    .label(word.span, "this duration"),
            )
        };
        let nanoseconds = parse_duration(&word.text).map_err(error)?;
        if nanoseconds != 0 && nanoseconds < 1_000_000 {
            return Err(error(format!(
                "Interval {} cannot be less than 1ms",
                quote(name)
            )));
        }
        Ok(nanoseconds)
    }

    fn retries(&self, flags: &Flags) -> Result<i32> {
        let Some(word) = flags.value("retries") else {
            return Ok(0);
        };
        let error = |message| {
            Box::new(
                self.error("invalid-number", message)
                    .label(word.span, "this number"),
            )
        };
        let invalid = |reason: NumberError| {
            error(format!(
                "strconv.ParseInt: parsing {}: {reason}",
                quote(&word.text)
            ))
        };
        let number = parse_i64(&word.text).map_err(invalid)?;
        let number = i32::try_from(number).map_err(|_| invalid(NumberError::Range))?;
        if number < 0 {
            return Err(error(format!("--retries cannot be negative ({number})")));
        }
        Ok(number)
    }
}

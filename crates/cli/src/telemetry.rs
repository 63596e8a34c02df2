//! Sends a build to a collector of OpenTelemetry, where the environment names one.
//!
//! The variables are those of OpenTelemetry's specification ("OpenTelemetry Protocol Exporter"). A collector that does
//! not answer costs a warning and a bounded wait, never the build.

use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api_buildkit::Collector;
use engine::history::{BuildRecord, TraceParent, spans};

use crate::arguments::Global;
use crate::{log, settings};

/// Where to send builds, and as what.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    endpoint: String,
    headers: Vec<(String, String)>,
    timeout: Duration,
    resource: Vec<(String, String)>,
    parent: Option<TraceParent>,
}

/// How long all of the sending may take, where nothing is said.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is being sent; dropped, it waits for the end of that.
#[derive(Debug)]
pub(crate) struct Sending {
    ended: Option<(Receiver<Result<()>>, Instant)>,
}

/// Begins to send a build, if the environment asks for it.
pub(crate) fn send(global: &Global, record: &BuildRecord) -> Sending {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let ended = match Target::of(&variable) {
        Ok(None) => None,
        Ok(Some(target)) => begin(global, record, target).inspect_err(warn).ok(),
        Err(error) => {
            warn(&error);
            None
        }
    };
    Sending { ended }
}

fn warn(error: &anyhow::Error) {
    log::warning(&format!("the build is not traced: {error:#}"));
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Some((ended, until)) = self.ended.take() else {
            return;
        };
        let left = until.saturating_duration_since(Instant::now());
        match ended.recv_timeout(left) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn(&error),
            Err(_) => warn(&anyhow::anyhow!("the collector took too long")),
        }
    }
}

fn begin(
    global: &Global,
    record: &BuildRecord,
    target: Target,
) -> Result<(Receiver<Result<()>>, Instant)> {
    let registries = settings::registries(global)?;
    let messages = spans(record, target.parent.as_ref(), &target.resource);
    // A little longer than the requests themselves may take, so that their own words are heard.
    let until = Instant::now() + target.timeout + Duration::from_millis(200);
    let (sender, ended) = channel();
    std::thread::Builder::new()
        .name("telemetry".to_owned())
        .spawn(move || {
            let sent = post(&registries, &target, messages);
            // Nobody listens any more who has waited long enough.
            let _ = sender.send(sent);
        })
        .context("failed to start a thread")?;
    Ok((ended, until))
}

/// Messages that wait to be sent; a collector that is slower loses what comes beyond them.
const MOST_WAITING: usize = 256;

/// What a server forwards; dropped, it waits a bounded time for the end of that.
#[derive(Debug)]
pub(crate) struct Forwarding {
    ended: Receiver<()>,
    patience: Duration,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        // The thread sends nothing: it ends when all that could give it something have gone.
        let _ = self.ended.recv_timeout(self.patience);
    }
}

/// Begins to forward what a server's builds and its clients tell, if the environment names a collector.
pub(crate) fn collector(global: &Global) -> Result<Option<(Collector, Forwarding)>> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(target) = Target::of(&variable)? else {
        return Ok(None);
    };
    let registries = settings::registries(global)?;
    let (patience, resource) = (target.timeout, target.resource.clone());
    let (sender, messages) = sync_channel::<Vec<u8>>(MOST_WAITING);
    let (alive, ended) = channel();
    std::thread::Builder::new()
        .name("telemetry".to_owned())
        .spawn(move || {
            let _alive = alive;
            let mut said = String::new();
            for message in messages {
                let sent = post(&registries, &target, vec![message]);
                let complaint = sent.map_or_else(|error| format!("{error:#}"), |()| String::new());
                // Once, until it is another one.
                if complaint != said && !complaint.is_empty() {
                    log::warning(&format!("builds are not traced: {complaint}"));
                }
                said = complaint;
            }
        })
        .context("failed to start a thread")?;
    let collector = Collector::new(resource, move |message| {
        let _ = sender.try_send(message);
    });
    Ok(Some((collector, Forwarding { ended, patience })))
}

fn post(registries: &registry::Settings, target: &Target, messages: Vec<Vec<u8>>) -> Result<()> {
    let endpoint = &target.endpoint;
    let shown = attest::without_credentials(endpoint);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the network")?;
    let client = registries.upload_client(endpoint)?;
    let send = async {
        for message in messages {
            let mut request = client
                .post(endpoint)
                .header("Content-Type", "application/x-protobuf");
            for (name, value) in &target.headers {
                request = request.header(name, value);
            }
            let answer = request
                .body(message)
                .send()
                .await
                .map_err(|error| anyhow::anyhow!("{}", engine::chain(&error)))?;
            if !answer.status().is_success() {
                bail!("{shown} answers {}", answer.status());
            }
        }
        Ok(())
    };
    let sent = runtime.block_on(async {
        match tokio::time::timeout(target.timeout, send).await {
            Ok(sent) => sent,
            Err(_) => bail!(
                "{shown} has not answered within {} s",
                target.timeout.as_secs_f32()
            ),
        }
    });
    // A name that is still being looked up is waited for by nobody.
    runtime.shutdown_background();
    sent
}

impl Target {
    /// Reads the variables; `None` if they name no collector, or want nothing sent.
    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Target>> {
        let is_off = variable("OTEL_SDK_DISABLED")
            .is_some_and(|it| it.eq_ignore_ascii_case("true"))
            || variable("OTEL_TRACES_EXPORTER").is_some_and(|it| it == "none");
        // What is said of traces goes before what is said of all.
        let of_traces = |name: &str| {
            variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let endpoint = match variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            Some(endpoint) => Some(endpoint),
            None => variable("OTEL_EXPORTER_OTLP_ENDPOINT")
                .map(|base| format!("{}/v1/traces", base.trim_end_matches('/'))),
        };
        let Some(endpoint) = endpoint.filter(|_| !is_off) else {
            return Ok(None);
        };
        let parent = variable("TRACEPARENT").and_then(|parent| {
            TraceParent::parse(&parent, &variable("TRACESTATE").unwrap_or_default())
        });
        if parent.as_ref().is_some_and(|parent| !parent.is_sampled) {
            return Ok(None);
        }
        if let Some(protocol) = of_traces("PROTOCOL").filter(|it| it != "http/protobuf") {
            bail!(
                "OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}; only http/protobuf is spoken, which collectors take at \
                 port 4318"
            );
        }
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            bail!("the endpoint does not begin with http:// or https://");
        }
        let timeout = match of_traces("TIMEOUT") {
            None => PATIENCE,
            Some(text) => {
                let wrong =
                    || format!("OTEL_EXPORTER_OTLP_TIMEOUT={text} is no number of milliseconds");
                Duration::from_millis(text.trim().parse().with_context(wrong)?)
            }
        };
        let mut resource = pairs(
            "OTEL_RESOURCE_ATTRIBUTES",
            variable("OTEL_RESOURCE_ATTRIBUTES"),
        )?;
        if let Some(name) = variable("OTEL_SERVICE_NAME") {
            resource.retain(|(key, _)| key != "service.name");
            resource.push(("service.name".to_owned(), name));
        }
        for (key, value) in [
            ("service.name", "lapstrake"),
            ("service.version", env!("CARGO_PKG_VERSION")),
        ] {
            if resource.iter().all(|(known, _)| known != key) {
                resource.push((key.to_owned(), value.to_owned()));
            }
        }
        Ok(Some(Target {
            endpoint,
            headers: pairs("OTEL_EXPORTER_OTLP_HEADERS", of_traces("HEADERS"))?,
            timeout,
            resource,
            parent,
        }))
    }
}

/// Reads `KEY=VALUE,…`, in which a `%` begins a byte in hexadecimal digits. An error does not repeat values, which
/// are often tokens.
fn pairs(name: &str, text: Option<String>) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for pair in text.unwrap_or_default().split(',').map(str::trim) {
        if pair.is_empty() {
            continue;
        }
        let (key, value) = pair
            .split_once('=')
            .with_context(|| format!("a part of {name} is not KEY=VALUE"))?;
        let key = key.trim();
        let decoded = decode(value.trim());
        let value =
            decoded.with_context(|| format!("the value of {key} in {name} is not encoded"))?;
        pairs.push((key.to_owned(), value));
    }
    Ok(pairs)
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(variables: &[(&str, &str)]) -> Result<Option<Target>> {
        let variables: Vec<(String, String)> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Target::of(&|name| {
            let found = variables.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.clone())
        })
    }

    #[test]
    fn without_an_endpoint_nothing_is_sent() {
        let check = |variables: &[(&str, &str)]| assert_eq!(target(variables).unwrap(), None);
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:4318");
        check(&[]);
        check(&[("OTEL_SERVICE_NAME", "x")]);
        check(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]);
        check(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]);
        let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        check(&[endpoint, ("TRACEPARENT", unsampled)]);
    }

    #[test]
    fn what_is_said_of_traces_goes_first_and_is_not_added_to() {
        let check = |variables: &[(&str, &str)], expect: &str| {
            let target = target(variables).unwrap().expect("a target");
            assert_eq!(target.endpoint, expect);
        };
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:4318/");
        check(&[all], "http://h:4318/v1/traces");
        check(
            &[all, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/x")],
            "https://t/x",
        );
    }

    #[test]
    fn headers_and_attributes_are_decoded_and_names_have_an_order() {
        let found = target(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Bearer%20x=, b = c ",
            ),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,team=k%C3%A9"),
            ("OTEL_SERVICE_NAME", "b"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
        ]);
        let found = found.unwrap().expect("a target");
        let of = |pairs: &[(String, String)]| {
            let pairs = pairs.iter().map(|(key, value)| format!("{key}={value}"));
            pairs.collect::<Vec<_>>()
        };
        assert_eq!(of(&found.headers), ["authorization=Bearer x=", "b=c"]);
        assert_eq!(of(&found.resource)[..2], ["team=k\u{e9}", "service.name=b"]);
        assert_eq!(found.timeout, Duration::from_millis(250));
    }

    #[test]
    fn what_cannot_be_read_is_said_without_the_values() {
        let check = |name: &str, value: &str, expect: &str| {
            let error = target(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h"), (name, value)]);
            assert_eq!(error.unwrap_err().to_string(), expect);
        };
        check(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "token",
            "a part of OTEL_EXPORTER_OTLP_HEADERS is not KEY=VALUE",
        );
        check(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "k=%zz",
            "the value of k in OTEL_EXPORTER_OTLP_HEADERS is not encoded",
        );
        check(
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grpc",
            "OTEL_EXPORTER_OTLP_PROTOCOL is grpc; only http/protobuf is spoken, which collectors take at port 4318",
        );
        check(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "h:4317",
            "the endpoint does not begin with http:// or https://",
        );
    }
}

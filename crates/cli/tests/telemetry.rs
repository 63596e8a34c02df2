//! Builds sent to a collector of OpenTelemetry: a listener of the test that reads the protobuf itself.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread::JoinHandle;

use testkit::{Environment, Outcome};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn environment() -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write(
        "Dockerfile",
        "FROM scratch AS files\nCOPY Dockerfile /a\nFROM scratch\nCOPY --from=files /a /b\n",
    );
    environment
}

fn build(environment: &Environment, variables: &[(&str, &str)]) -> Outcome {
    let mut command: Command = environment.command(["build", "--progress=plain", "."]);
    Outcome::of(command.envs(variables.iter().copied()))
}

/// What was asked of the collector: its first line, its headers, its body.
type Asked = (String, BTreeMap<String, String>, Vec<u8>);

/// Takes one request on loopback and answers with a status; returns the address.
fn collector(status: &'static str) -> (String, JoinHandle<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let headers: BTreeMap<String, String> = lines[1..]
            .iter()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).unwrap();
        (lines[0].clone(), headers, body)
    });
    (address, thread)
}

/// One field of a message of protobuf.
#[derive(Debug, Clone)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

/// Splits a message into its fields, by their tags.
fn fields(mut message: &[u8]) -> Vec<(u64, Field)> {
    fn number(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (first, rest) = message.split_first().expect("a number ends");
            *message = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = number(&mut message);
        let mut take = |count: usize| {
            let (taken, rest) = message.split_at(count);
            message = rest;
            taken.to_vec()
        };
        let field = match key & 7 {
            1 => Field::Number(u64::from_le_bytes(take(8).try_into().unwrap())),
            5 => Field::Number(u32::from_le_bytes(take(4).try_into().unwrap()).into()),
            2 => {
                let count = number(&mut message);
                let (taken, rest) = message.split_at(count as usize);
                message = rest;
                Field::Bytes(taken.to_vec())
            }
            _ => Field::Number(number(&mut message)),
        };
        fields.push((key >> 3, field));
    }
    fields
}

/// Returns the parts of a message with this tag.
fn parts(message: &[u8], tag: u64) -> Vec<Vec<u8>> {
    let of_tag = fields(message)
        .into_iter()
        .filter(|(known, _)| *known == tag);
    of_tag
        .filter_map(|(_, field)| match field {
            Field::Bytes(bytes) => Some(bytes),
            Field::Number(_) => None,
        })
        .collect()
}

fn text(message: &[u8], tag: u64) -> String {
    String::from_utf8(parts(message, tag).concat()).unwrap()
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(message: &[u8], tag: u64) -> BTreeMap<String, String> {
    parts(message, tag)
        .iter()
        .map(|pair| (text(pair, 1), text(&parts(pair, 2).concat(), 1)))
        .collect()
}

#[test]
fn a_build_goes_to_the_collector_as_spans_below_the_given_one() {
    let environment = environment();
    let (address, collector) = collector("200 OK");
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let told = build(
        &environment,
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &address),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Bearer%20secret",
            ),
            ("OTEL_SERVICE_NAME", "our-builds"),
            ("TRACEPARENT", &parent),
        ],
    )
    .success();
    assert!(!told.stderr.contains("traced"), "{}", told.stderr);
    let (line, headers, body) = collector.join().unwrap();
    assert_eq!(line, "POST /v1/traces HTTP/1.1");
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert_eq!(headers["authorization"], "Bearer secret");

    let [of_resource] = parts(&body, 1).try_into().expect("one resource");
    let resource = attributes(&parts(&of_resource, 1).concat(), 1);
    assert_eq!(resource["service.name"], "our-builds");
    let scope = parts(&of_resource, 2).concat();
    let spans = parts(&scope, 2);
    let of_name = |name: &str| {
        let found = spans.iter().find(|span| text(span, 5) == name);
        found.unwrap_or_else(|| panic!("no span {name}")).clone()
    };
    let names: Vec<String> = spans.iter().map(|span| text(span, 5)).collect();
    assert!(names[0].starts_with("build "), "{names:?}");
    let build = &spans[0];
    assert_eq!(digits(&parts(build, 1).concat()), TRACE);
    assert_eq!(digits(&parts(build, 4).concat()), PARENT);
    let copied = of_name("[files 1/1] COPY Dockerfile /a");
    assert_eq!(
        parts(&copied, 4),
        parts(build, 2),
        "it lies below the build"
    );
    assert_eq!(attributes(&copied, 9)["lapstrake.step.outcome"], "ran");
    let last = of_name("[stage-1 1/1] COPY --from=files /a /b");
    let link = parts(&last, 13).concat();
    assert_eq!(
        parts(&link, 2),
        parts(&copied, 2),
        "it points to what it needs"
    );
    for span in &spans {
        let time = |tag: u64| match fields(span).iter().find(|(known, _)| *known == tag) {
            Some((_, Field::Number(time))) => *time,
            other => panic!("no time: {other:?}"),
        };
        assert!(time(7) > 1_600_000_000_000_000_000 && time(7) <= time(8));
    }
}

#[test]
fn a_collector_that_is_not_there_costs_a_warning() {
    let environment = environment();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    build(&environment, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &address)])
        .success()
        .says("warning: the build is not traced: ");
}

#[test]
fn a_collector_that_never_answers_is_waited_for_no_longer_than_is_said() {
    let environment = environment();
    // Accepts by its backlog, and reads nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    build(
        &environment,
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &address),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "300"),
        ],
    )
    .success()
    .says("has not answered within 0.3 s");
}

#[test]
fn a_collector_that_refuses_is_quoted() {
    let environment = environment();
    let (address, collector) = collector("401 Unauthorized");
    build(&environment, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &address)])
        .success()
        .says("answers 401 Unauthorized");
    collector.join().unwrap();
}

#[test]
fn a_build_that_fails_is_sent_with_its_error() {
    let environment = environment();
    environment.write("Dockerfile", "FROM scratch\nCOPY missing /\n");
    let (address, collector) = collector("200 OK");
    build(&environment, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &address)]).fails_with(1);
    let (_, _, body) = collector.join().unwrap();
    let scope = parts(&parts(&body, 1).concat(), 2).concat();
    let build = &parts(&scope, 2)[0];
    let status = parts(build, 15).concat();
    assert!(text(&status, 2).contains("missing"), "{}", text(&status, 2));
}

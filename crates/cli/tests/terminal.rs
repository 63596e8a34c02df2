//! The live view of a build, as a terminal shows it: at 80 and at 200 columns, and while the window changes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZero;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use testkit::Environment;

/// The longest anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// What is sent of a file before the server waits, and after.
const HALF: usize = 3 << 20;

/// A server whose answers wait: half of `/slow`, and all of `/hold`, come when they are let go.
struct Server {
    port: u16,
    slow: Sender<()>,
    hold: Sender<()>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (slow, slow_gate) = channel();
        let (hold, hold_gate) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                answer(stream, &slow_gate, &hold_gate);
            }
        });
        Self { port, slow, hold }
    }
}

fn answer(mut stream: TcpStream, slow: &Receiver<()>, hold: &Receiver<()>) {
    let mut request = [0; 4096];
    let Ok(length) = stream.read(&mut request) else {
        return;
    };
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length:";
    // Who goes away has ended its test.
    let _ = match request.starts_with("GET /slow") {
        true => stream
            .write_all(format!("{head} {}\r\n\r\n", 2 * HALF).as_bytes())
            .and_then(|()| stream.write_all(&vec![b'x'; HALF]))
            .and_then(|()| {
                let _ = slow.recv();
                stream.write_all(&vec![b'x'; HALF])
            }),
        false if request.starts_with("GET /hold") => {
            let _ = hold.recv();
            stream.write_all(format!("{head} 2\r\n\r\nok").as_bytes())
        }
        false => stream.write_all(format!("{head} {}\r\n\r\n", 2 * HALF).as_bytes()),
    };
}

fn size(number: u16) -> NonZero<u16> {
    NonZero::new(number).unwrap()
}

/// A program in a pseudo-terminal, and what is seen of it.
struct Terminal {
    child: Child,
    _input: ChildStdin,
    output: Receiver<Vec<u8>>,
    parser: vt100::Parser,
    /// Everything that was written.
    raw: Vec<u8>,
    tty: std::path::PathBuf,
}

impl Terminal {
    /// Starts a build of the scratch folder.
    fn build(
        environment: &Environment,
        (columns, rows): (u16, u16),
        variables: &[(&str, &str)],
    ) -> Self {
        let build = "exec lapstrake build --allow network.host --network=host -t app .";
        let script = format!("stty cols {columns} rows {rows}; tty > tty; {build}");
        let mut child = environment
            .program("script")
            .args(["-qefc", &script, "/dev/null"])
            .env("TERM", "xterm-256color")
            .env("SHELL", "/bin/sh")
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            _input: input,
            output,
            parser: vt100::Parser::new(size(rows), size(columns), 1000),
            raw: Vec::new(),
            tty: environment.work().join("tty"),
        }
    }

    /// Changes the size of the window.
    fn resize(&mut self, columns: u16, rows: u16) {
        let tty = std::fs::read_to_string(&self.tty).unwrap();
        let (wide, high) = (columns.to_string(), rows.to_string());
        let done = Command::new("stty")
            .args(["-F", tty.trim(), "cols", &wide, "rows", &high])
            .status();
        assert!(done.unwrap().success());
        self.parser.screen_mut().set_size(size(rows), size(columns));
    }

    /// Returns the lines that are seen, without blanks at their ends.
    fn lines(&self) -> Vec<String> {
        let columns = self.parser.screen().size().1.get();
        let rows = self.parser.screen().rows(0, columns);
        let lines: Vec<String> = rows.map(|row| row.trim_end().to_owned()).collect();
        let used = lines.iter().rposition(|line| !line.is_empty());
        lines[..used.map_or(0, |last| last + 1)].to_vec()
    }

    /// Waits until the screen is like that; `false` is never.
    #[track_caller]
    fn wait(&mut self, what: &str, is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
        let began = Instant::now();
        loop {
            let lines = self.lines();
            if is_so(&lines) {
                return lines;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{what} is not seen in {lines:#?}"
            );
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => {
                    self.parser.process(&bytes);
                    self.raw.extend(bytes);
                }
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(_) => panic!("it ended before {what} was seen in {lines:#?}"),
            }
        }
    }

    /// Reads to the end; the build has to succeed.
    #[track_caller]
    fn finish(&mut self) -> Vec<String> {
        while let Ok(bytes) = self.output.recv_timeout(PATIENCE) {
            self.parser.process(&bytes);
            self.raw.extend(bytes);
        }
        assert!(self.child.wait().unwrap().success(), "{:#?}", self.lines());
        self.lines()
    }
}

fn environment(server: &Server) -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let port = server.port;
    environment.write(
        "Dockerfile",
        format!(
            "FROM busybox AS fetch\nADD http://127.0.0.1:{port}/slow /slow\nFROM busybox AS work\n\
             RUN echo first line; echo second line; wget -q -O /ok http://127.0.0.1:{port}/hold\n\
             FROM busybox\nCOPY --from=fetch /slow /\nCOPY --from=work /ok /\n"
        ),
    );
    environment
}

fn find<'a>(lines: &'a [String], part: &str) -> Option<&'a String> {
    lines.iter().find(|line| line.contains(part))
}

/// Returns whether the lines of each stage stand together, and each once.
fn is_grouped(lines: &[String]) -> bool {
    let stage = |line: &String| {
        let (_, rest) = line.split_once('[')?;
        let (stage, number) = rest.split_once(']')?.0.split_once(' ')?;
        number.contains('/').then(|| stage.to_owned())
    };
    let steps = lines
        .iter()
        .filter(|line| line.contains(" => ") && !line.contains("=> =>"));
    let mut stages: Vec<String> = steps.filter_map(stage).collect();
    stages.dedup();
    let count = stages.len();
    stages.sort();
    stages.dedup();
    count == stages.len()
}

#[test]
fn a_build_is_seen_at_80_columns_and_in_a_window_that_grows() {
    testkit::require_fixtures!("busybox");
    testkit::require_programs!("script", "stty");
    let server = Server::start();
    let environment = environment(&server);
    let mut terminal = Terminal::build(&environment, (80, 24), &[]);
    let lines = terminal.wait("a bar", |lines| {
        find(lines, "MB / 6.29MB").is_some_and(|line| line.contains("/s"))
    });
    let bar = find(&lines, "MB / 6.29MB").unwrap();
    assert!(bar.contains("[==="), "{bar}");
    assert!(lines[0].starts_with("[+] Building "), "{lines:#?}");
    assert!(
        lines.iter().all(|line| line.chars().count() < 80),
        "{lines:#?}"
    );
    terminal.resize(200, 40);
    let lines = terminal.wait("the wide view", |lines| {
        find(lines, "MB / 6.29MB").is_some_and(|line| line.chars().count() == 199)
    });
    assert!(find(&lines, "[======").is_some(), "{lines:#?}");
    server.slow.send(()).unwrap();
    let lines = terminal.wait("the last lines of the step", |lines| {
        find(lines, "=> => # second line").is_some()
    });
    let step = lines
        .iter()
        .position(|line| line.contains("RUN echo first line"))
        .unwrap();
    assert!(
        lines[step + 1].ends_with("# first line") && lines[step + 2].ends_with("# second line"),
        "{lines:#?}"
    );
    assert!(is_grouped(&lines), "{lines:#?}");
    server.hold.send(()).unwrap();
    let lines = terminal.finish();
    assert!(
        find(&lines, "FINISHED").is_some() && find(&lines, "Built in ").is_some(),
        "{lines:#?}"
    );
    assert!(find(&lines, "# first line").is_none(), "{lines:#?}");
    assert!(is_grouped(&lines), "{lines:#?}");
    assert!(terminal.raw.windows(5).any(|bytes| bytes == b"\x1b[34m"));
}

#[test]
fn a_build_is_seen_at_200_columns_and_in_a_window_that_shrinks_without_colours() {
    testkit::require_fixtures!("busybox");
    testkit::require_programs!("script", "stty");
    let server = Server::start();
    let environment = environment(&server);
    let mut terminal = Terminal::build(&environment, (200, 40), &[("NO_COLOR", "1")]);
    terminal.wait("a wide bar", |lines| {
        find(lines, "[======").is_some_and(|line| line.chars().count() == 199)
    });
    terminal.resize(80, 24);
    terminal.wait("the narrow view", |lines| {
        let bar = find(lines, "MB / 6.29MB");
        bar.is_some_and(|line| line.chars().count() == 79)
    });
    server.slow.send(()).unwrap();
    server.hold.send(()).unwrap();
    let lines = terminal.finish();
    assert!(
        lines.iter().all(|line| line.chars().count() <= 80),
        "{lines:#?}"
    );
    for part in [
        "FINISHED",
        "COPY --from=work /ok /",
        "exporting to image",
        "Built in ",
    ] {
        assert!(find(&lines, part).is_some(), "{part} is not in {lines:#?}");
    }
    let coloured = terminal
        .raw
        .windows(3)
        .any(|bytes| bytes == b"\x1b[3" || bytes == b"\x1b[0");
    assert!(!coloured, "{}", String::from_utf8_lossy(&terminal.raw));
}

//! Hands images to a container engine on this machine.

use std::io::{Error, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Body;
use hyper_util::rt::TokioIo;
use oci::{Digest, Reference};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::EngineError;
use crate::request::{ContainerEngine, EngineDoor};

/// The longest answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// An engine that is being given an archive.
pub(super) struct Loading {
    engine: String,
    answer: Answer,
    runtime: Handle,
}

enum Answer {
    Request(JoinHandle<Result<String, String>>),
    Program(Child),
}

/// Begins to load; the archive goes into the writer, which is dropped at its end.
pub(super) fn begin(
    runtime: &Handle,
    engine: &ContainerEngine,
) -> Result<(Box<dyn Write + Send>, Loading), EngineError> {
    let (writer, answer): (Box<dyn Write + Send>, Answer) = match &engine.via {
        EngineDoor::Socket(path) => {
            let (sender, body) = Channel::new(4);
            let answer = runtime.spawn(load(path.clone(), body));
            let writer = BodyWriter {
                sender,
                runtime: runtime.clone(),
            };
            (Box::new(writer), Answer::Request(answer))
        }
        EngineDoor::Program { program, arguments } => {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(EngineError::io("start", program))?;
            let input = child.stdin.take().expect("it is a pipe");
            (Box::new(input), Answer::Program(child))
        }
    };
    let loading = Loading {
        engine: engine.name.clone(),
        answer,
        runtime: runtime.clone(),
    };
    Ok((writer, loading))
}

impl Loading {
    /// Waits for the engine to say what it made of it.
    pub(super) fn finish(self) -> Result<(), EngineError> {
        let failed = |reason: String| EngineError::Load {
            engine: self.engine.clone(),
            reason,
        };
        match self.answer {
            Answer::Request(answer) => {
                let answer = self.runtime.block_on(answer);
                let text = answer
                    .map_err(|error| failed(error.to_string()))?
                    .map_err(failed)?;
                match error_in(&text) {
                    Some(reason) => Err(failed(reason)),
                    None => Ok(()),
                }
            }
            Answer::Program(mut child) => {
                let mut told = String::new();
                if let Some(stderr) = child.stderr.take() {
                    let mut stderr = stderr.take(MAX_ANSWER as u64);
                    let _ = stderr.read_to_string(&mut told);
                }
                let status = child.wait().map_err(|error| failed(error.to_string()))?;
                match status.success() {
                    true => Ok(()),
                    false => Err(failed(format!("{status}: {}", told.trim()))),
                }
            }
        }
    }
}

/// Gives an image that the engine has already these names. `false` where it has to be loaded: it is not there, or goes by
/// another id, as in engines that call images by their manifests.
pub(super) fn name_what_is_there(
    runtime: &Handle,
    engine: &ContainerEngine,
    id: &Digest,
    names: &[Reference],
) -> bool {
    let EngineDoor::Socket(socket) = &engine.via else {
        return false;
    };
    let named = async {
        let inspected = call(socket, Request::get(format!("/images/{id}/json"))).await?;
        let image: serde_json::Value =
            serde_json::from_str(&inspected).map_err(|error| error.to_string())?;
        if image.get("Id").and_then(|found| found.as_str()) != Some(&id.to_string()) {
            return Err("it is another image".to_owned());
        }
        for name in names {
            let (repo, tag) = (name.name(), name.tag().unwrap_or("latest"));
            let path = format!("/images/{id}/tag?repo={repo}&tag={tag}");
            call(socket, Request::post(path)).await?;
        }
        Ok(())
    };
    match runtime.block_on(named) {
        Ok(()) => true,
        Err(reason) => {
            tracing::debug!(reason, "the image has to be loaded");
            false
        }
    }
}

async fn call(socket: &Path, request: hyper::http::request::Builder) -> Result<String, String> {
    send(socket, request, Empty::<Bytes>::new()).await
}

async fn load(socket: PathBuf, body: Channel<Bytes>) -> Result<String, String> {
    let request = Request::post("/images/load?quiet=1").header("content-type", "application/x-tar");
    send(&socket, request, body).await
}

/// Sends one request and returns the answer's text; one that says no is an error.
async fn send<B>(
    socket: &Path,
    request: hyper::http::request::Builder,
    body: B,
) -> Result<String, String>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let told = |error: &dyn std::error::Error| {
        let mut text = format!("{}: {error}", socket.display());
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| told(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| told(&error))?;
    tokio::spawn(connection);
    let request = request
        .header("host", "localhost")
        .body(body)
        .map_err(|error| told(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| told(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await;
    let bytes = body
        .map_err(|error| format!("its answer broke off: {error}"))?
        .to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match status.is_success() {
        true => Ok(text),
        false => {
            let said = serde_json::from_str::<serde_json::Value>(&text).ok();
            let said = said.and_then(|value| Some(value.get("message")?.as_str()?.to_owned()));
            Err(format!("{status}: {}", said.unwrap_or(text)))
        }
    }
}

/// Returns the failure in a stream of messages, which comes after a good status.
fn error_in(text: &str) -> Option<String> {
    let messages = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    messages
        .map_while(Result::ok)
        .find_map(|message| Some(message.get("error")?.as_str()?.to_owned()))
}

/// The body of a request, written by a thread that may wait.
struct BodyWriter {
    sender: Sender<Bytes>,
    runtime: Handle,
}

impl Write for BodyWriter {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let sent = self.sender.send_data(Bytes::copy_from_slice(buffer));
        self.runtime
            .block_on(sent)
            .map_err(|_| Error::new(std::io::ErrorKind::BrokenPipe, "it wants no more"))?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_among_messages_is_found() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(error_in(text).as_deref(), expect, "{text}");
        };
        check("", None);
        check(r#"{"stream":"Loaded image: a:1\n"}"#, None);
        check(
            "{\"stream\":\"x\"}\r\n{\"errorDetail\":{\"message\":\"no\"},\"error\":\"no\"}",
            Some("no"),
        );
        check("not json", None);
    }
}

//! Processes in a frontend's containers: their streams, signals and ends, as messages of one call.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    DoneMessage, ExecMessage, ExitMessage, FdMessage, InitMessage, StartedMessage,
    exec_message::Input,
};
use bollard_buildkit_proto::pb;
use engine::TreeProcessRequest;
use engine::container::{ContainerHandle, Streams, TerminalSize, signal_number};
use llb::{SecretEnv, SecurityMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::bridge::Bridge;
use crate::error::Failure;
use crate::gateway::blocking;

/// Messages that wait to be sent or written.
const WAITING: usize = 64;

type Answers = mpsc::Sender<Result<ExecMessage, Status>>;

/// Serves one call; the stream ends when the client sends no more and all its processes have ended.
pub(crate) fn serve(
    bridge: Arc<Bridge>,
    incoming: Streaming<ExecMessage>,
) -> ReceiverStream<Result<ExecMessage, Status>> {
    let (answers, stream) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let mut call = Call {
            bridge,
            answers: answers.clone(),
            processes: HashMap::new(),
        };
        if let Err(failure) = call.run(incoming).await {
            call.kill();
            let _ = answers.send(Err(failure.into())).await;
        }
    });
    ReceiverStream::new(stream)
}

struct Call {
    bridge: Arc<Bridge>,
    answers: Answers,
    processes: HashMap<String, Process>,
}

struct Process {
    handle: ContainerHandle,
    /// What goes to its standard input; closed by the client's end of it.
    input: Option<mpsc::Sender<Vec<u8>>>,
}

fn unknown_process(id: &str) -> Failure {
    Failure::new(Code::NotFound, format!("IO for process {id:?} not found"))
}

impl Call {
    async fn run(&mut self, mut incoming: Streaming<ExecMessage>) -> Result<(), Failure> {
        loop {
            let message = tokio::select! {
                message = incoming.message() => message?,
                () = self.answers.closed() => {
                    return Err(Failure::new(Code::Cancelled, "context canceled"));
                }
            };
            let Some(message) = message else {
                // Nothing more comes for any of them.
                for process in self.processes.values_mut() {
                    process.input = None;
                }
                return Ok(());
            };
            let id = message.process_id;
            if id.is_empty() {
                return Err(Failure::new(Code::InvalidArgument, "ProcessID required"));
            }
            match message.input {
                Some(Input::Init(init)) => {
                    if self.processes.contains_key(&id) {
                        return Err(Failure::new(
                            Code::AlreadyExists,
                            format!("Process {id} already exists"),
                        ));
                    }
                    let process = self.start(&id, init).await?;
                    self.processes.insert(id, process);
                }
                Some(Input::File(file)) => self.write(&id, file).await?,
                Some(Input::Resize(size)) => {
                    let process = self.process(&id)?;
                    if let Some(terminal) = process.handle.terminal() {
                        terminal.resize(TerminalSize {
                            rows: u16::try_from(size.rows).unwrap_or(u16::MAX),
                            columns: u16::try_from(size.cols).unwrap_or(u16::MAX),
                        });
                    }
                }
                Some(Input::Signal(signal)) => {
                    let process = self.process(&id)?;
                    let number = signal_number(&signal.name).map_err(|_| {
                        Failure::new(
                            Code::InvalidArgument,
                            format!("Unknown signal {}", signal.name),
                        )
                    })?;
                    process.handle.signal(number);
                }
                Some(Input::Started(_) | Input::Exit(_) | Input::Done(_)) | None => {}
            }
        }
    }

    fn process(&mut self, id: &str) -> Result<&mut Process, Failure> {
        let process = self.processes.get_mut(id);
        process.ok_or_else(|| unknown_process(id))
    }

    async fn write(&mut self, id: &str, file: FdMessage) -> Result<(), Failure> {
        let process = self.process(id)?;
        let closed = || {
            Failure::new(
                Code::OutOfRange,
                format!("fd {} unavailable to write", file.fd),
            )
        };
        let input = match (&process.input, file.fd) {
            (Some(input), 0) => input,
            _ => return Err(closed()),
        };
        if !file.data.is_empty() {
            // A process that has closed its input, or ended, takes no more of it.
            let _ = input.send(file.data).await;
        }
        if file.eof {
            process.input = None;
        }
        Ok(())
    }

    async fn start(&self, id: &str, init: InitMessage) -> Result<Process, Failure> {
        let container = self.bridge.containers.get(&init.container_id)?;
        let has = |fd: u32| init.fds.contains(&fd);
        let mut streams = Streams::default();
        let (stdin, stdout, stderr) = (
            has(0).then(to_process).transpose()?,
            has(1).then(from_process).transpose()?,
            has(2).then(from_process).transpose()?,
        );
        let (stdin, theirs) = split(stdin);
        streams.stdin = theirs;
        let (stdout, theirs) = split(stdout);
        streams.stdout = theirs;
        let (stderr, theirs) = split(stderr);
        streams.stderr = theirs;
        let request = request_of(init);
        let process = blocking(move || Ok(container.start(&request, streams)?)).await?;
        let handle = process.handle();
        let answers = &self.answers;
        send(answers, id, Input::Started(StartedMessage {})).await;
        let input = stdin.map(|pipe| {
            let (sender, pieces) = mpsc::channel(WAITING);
            tokio::spawn(feed(pipe, pieces));
            sender
        });
        let outputs = [(1, stdout), (2, stderr)]
            .into_iter()
            .filter_map(|(fd, pipe)| {
                let copying = drain(pipe?, fd, id.to_owned(), answers.clone());
                Some(tokio::spawn(copying))
            });
        let outputs: Vec<JoinHandle<()>> = outputs.collect();
        let (id, answers) = (id.to_owned(), answers.clone());
        tokio::spawn(async move {
            let ended = blocking(move || Ok(process.wait()?)).await;
            send(&answers, &id, Input::Exit(exit_of(ended))).await;
            for output in outputs {
                let _ = output.await;
            }
            send(&answers, &id, Input::Done(DoneMessage {})).await;
        });
        Ok(Process { handle, input })
    }

    /// Ends what a client that has gone has left.
    fn kill(&self) {
        const KILL: i32 = 9;
        for process in self.processes.values() {
            process.handle.signal(KILL);
        }
    }
}

fn request_of(init: InitMessage) -> TreeProcessRequest {
    let security = match init.security() {
        pb::SecurityMode::Sandbox => SecurityMode::Sandbox,
        pb::SecurityMode::Insecure => SecurityMode::Insecure,
    };
    let meta = init.meta.unwrap_or_default();
    let secrets = init.secretenv.into_iter();
    TreeProcessRequest {
        args: meta.args,
        env: meta.env,
        cwd: meta.cwd,
        user: meta.user,
        tty: init.tty,
        security,
        secret_env: secrets
            .map(|secret| SecretEnv {
                id: secret.id,
                name: secret.name,
                optional: secret.optional,
            })
            .collect(),
    }
}

fn exit_of(ended: Result<engine::ProcessStatus, Failure>) -> ExitMessage {
    /// What the reference says where there is no exit code.
    const UNKNOWN: u32 = 255;
    let said = |message: String| rpc::Status {
        code: Code::Unknown as i32,
        message,
        ..rpc::Status::default()
    };
    match ended {
        Ok(engine::ProcessStatus::Code(0)) => ExitMessage::default(),
        Ok(status) => {
            let code = status.shell_code();
            let message = match &status {
                engine::ProcessStatus::NotStarted { reason, .. } => {
                    format!("failed to start process: {reason}")
                }
                _ => format!("exit code: {code}"),
            };
            ExitMessage {
                code: code as u32,
                error: Some(said(message)),
            }
        }
        Err(failure) => ExitMessage {
            code: UNKNOWN,
            error: Some(failure.to_rpc()),
        },
    }
}

async fn send(answers: &Answers, id: &str, input: Input) {
    let message = ExecMessage {
        process_id: id.to_owned(),
        input: Some(input),
    };
    // Nobody may be listening any more.
    let _ = answers.send(Ok(message)).await;
}

async fn feed(mut pipe: pipe::Sender, mut pieces: mpsc::Receiver<Vec<u8>>) {
    while let Some(piece) = pieces.recv().await {
        if pipe.write_all(&piece).await.is_err() {
            return;
        }
    }
}

async fn drain(mut pipe: pipe::Receiver, fd: u32, id: String, answers: Answers) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let file = FdMessage {
            fd,
            eof: false,
            data: buffer[..count].to_vec(),
        };
        send(&answers, &id, Input::File(file)).await;
    }
    let file = FdMessage {
        fd,
        eof: true,
        data: Vec::new(),
    };
    send(&answers, &id, Input::File(file)).await;
}

/// Our end of a pipe, and that of a process.
type Ends<T> = (T, OwnedFd);

fn split<T>(ends: Option<Ends<T>>) -> (Option<T>, Option<OwnedFd>) {
    ends.unzip()
}

fn no_pipe(error: std::io::Error) -> Failure {
    Failure::unknown(format!("no pipe: {error}"))
}

/// Makes a pipe that a process reads.
pub(crate) fn to_process() -> Result<Ends<pipe::Sender>, Failure> {
    let (theirs, ours) = std::io::pipe().map_err(no_pipe)?;
    let ours = pipe::Sender::from_owned_fd(ours.into()).map_err(no_pipe)?;
    Ok((ours, theirs.into()))
}

/// Makes a pipe that a process writes.
pub(crate) fn from_process() -> Result<Ends<pipe::Receiver>, Failure> {
    let (ours, theirs) = std::io::pipe().map_err(no_pipe)?;
    let ours = pipe::Receiver::from_owned_fd(ours.into()).map_err(no_pipe)?;
    Ok((ours, theirs.into()))
}

//! Many clients at once, most of them ill-mannered: a server has to outlast them as it was.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1 as pbc;
use bollard_buildkit_proto::moby::buildkit::v1::frontend as pbf;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use testkit::Environment;
use testkit::soak::{Chance, Trial};
use tokio::time::timeout;

use crate::{Client, Directory, of, offer};

/// Clients at once.
const CLIENTS: u64 = 64;
/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Has many clients build at once: some cancel, some vanish, some read slowly, some are frontends. No build hangs or
/// comes out wrong, and once all have gone the server has no more descriptors, mounts, processes and folders than
/// before, and hardly more memory.
///
/// # Panics
///
/// If it is not so.
pub fn clients(environment: &Environment, trial: Trial) {
    let mut server = Server::start(environment);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    // The first builds fill caches of the server.
    let warm = Trial {
        count: (trial.count / 5).clamp(8, 4 * CLIENTS),
        seed: trial.seed ^ 1,
        is_told: false,
    };
    trial.tell(0);
    runtime.block_on(storm(&server, warm));
    let before = server.rest(None);
    runtime.block_on(storm(&server, trial));
    let after = server.rest(Some(&before));
    runtime.shutdown_background();
    if trial.is_told {
        println!("before: {before}\nafter:  {after}");
    }
    // What is remembered of the last builds differs a little.
    let allowed = before.memory + before.memory / 4 + (32 << 10);
    assert!(
        after.memory <= allowed,
        "memory has grown: {before}, then {after}"
    );
    server.stop();
}

/// What a server has while it has nothing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rest {
    /// In KiB.
    memory: u64,
    descriptors: usize,
    mounts: usize,
    processes: usize,
    folders: Vec<String>,
}

impl std::fmt::Display for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} MiB, {} descriptors, {} mounts, {} processes, {} folders of clients",
            self.memory >> 10,
            self.descriptors,
            self.mounts,
            self.processes,
            self.folders.len()
        )
    }
}

struct Server {
    child: Child,
    socket: PathBuf,
    root: PathBuf,
}

impl Server {
    fn start(environment: &Environment) -> Self {
        let socket = environment.work().join("socket");
        let address = format!("unix://{}", socket.display());
        let mut child = environment
            .command(["serve", "--addr", &address])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a server");
        let mut lines = BufReader::new(child.stderr.take().expect("its words")).lines();
        let serving = lines.find(|line| {
            let line = line.as_ref().expect("a line");
            line.starts_with("serving on ")
        });
        assert!(serving.is_some(), "the server ended");
        // What it says later is for nobody, but must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            socket,
            root: environment.root(),
        }
    }

    /// Waits until nothing is left of the clients, and says what there is.
    fn rest(&self, as_before: Option<&Rest>) -> Rest {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let mut now = self.look(&process);
        for _ in 0..300 {
            let done = match as_before {
                // It had no clients then either.
                Some(before) => {
                    now.descriptors <= before.descriptors + 2
                        && now.mounts <= before.mounts
                        && now.processes <= before.processes
                        && now.folders.is_empty()
                }
                None => false,
            };
            if done {
                return now;
            }
            std::thread::sleep(Duration::from_millis(100));
            let next = self.look(&process);
            if as_before.is_none() && next.descriptors == now.descriptors && now.folders.is_empty()
            {
                return next;
            }
            now = next;
        }
        panic!("something of the clients is left: {as_before:?}, then {now:?}");
    }

    fn look(&self, process: &Path) -> Rest {
        let text = |name: &str| std::fs::read_to_string(process.join(name)).expect("a process");
        let memory = text("status")
            .lines()
            .find_map(|line| {
                let words = line.strip_prefix("VmRSS:")?;
                words.split_whitespace().next()?.parse().ok()
            })
            .expect("its memory");
        let descriptors = std::fs::read_dir(process.join("fd")).expect("descriptors");
        let folders = std::fs::read_dir(self.root.join("sync"))
            .into_iter()
            .flatten();
        let folders = folders.flatten().map(|entry| entry.file_name());
        Rest {
            memory,
            descriptors: descriptors.count(),
            mounts: text("mountinfo").lines().count(),
            processes: descendants(self.child.id()),
            folders: folders
                .map(|name| name.to_string_lossy().into_owned())
                .filter(|name| name.starts_with("one-"))
                .collect(),
        }
    }

    fn stop(&mut self) {
        let id = self.child.id().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-TERM", &id])
            .status();
        assert!(sent.expect("kill").success());
        assert!(self.child.wait().expect("an end").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After its end this does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counts the processes below a process.
fn descendants(id: u32) -> usize {
    let mut parents: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").expect("processes").flatten() {
        let Ok(number) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let fields = stat.rsplit(')').next().unwrap_or_default();
        if let Some(parent) = fields
            .split_whitespace()
            .nth(1)
            .and_then(|id| id.parse().ok())
        {
            parents.entry(parent).or_default().push(number);
        }
    }
    let mut count = 0;
    let mut open = vec![id];
    while let Some(next) = open.pop() {
        let below = parents.remove(&next).unwrap_or_default();
        count += below.len();
        open.extend(below);
    }
    count
}

async fn storm(server: &Server, trial: Trial) {
    let next = Arc::new(AtomicU64::new(0));
    let failed = Arc::new(Mutex::new(None));
    let tasks: Vec<_> = (0..CLIENTS.min(trial.count))
        .map(|number| {
            let (next, failed) = (Arc::clone(&next), Arc::clone(&failed));
            let socket = server.socket.clone();
            let mut chance = Chance(trial.seed.wrapping_mul(CLIENTS + 1).wrapping_add(number));
            tokio::spawn(async move {
                loop {
                    let turn = next.fetch_add(1, Ordering::SeqCst);
                    if turn >= trial.count || failed.lock().expect("no panic").is_some() {
                        return;
                    }
                    if turn > 0 {
                        trial.tell(turn);
                    }
                    let manner = *chance.one(&MANNERS);
                    let one = timeout(PATIENCE, one(&socket, manner, turn, &mut chance));
                    let problem = match one.await {
                        Ok(Ok(())) => continue,
                        Ok(Err(problem)) => problem,
                        Err(_) => "it hangs".to_owned(),
                    };
                    let said = format!("turn {turn}, {manner:?}: {problem}");
                    failed.lock().expect("no panic").get_or_insert(said);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a client that does not panic");
    }
    if let Some(said) = failed.lock().expect("no panic").take() {
        panic!("seed {}: {said}", trial.seed);
    }
}

/// How a client behaves.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// Builds what no one else does.
    Builds,
    /// Builds what others build too.
    Shares,
    /// Gives up the call in the middle.
    Cancels,
    /// Closes the connection in the middle.
    Vanishes,
    /// Takes the result and the progress slowly.
    ReadsSlowly,
    /// Is a frontend itself, with a container.
    Fronts,
    /// Is a frontend that vanishes with a container.
    FrontsAndVanishes,
    /// Asks for what fails.
    Fails,
}

const MANNERS: [Manner; 9] = [
    Manner::Builds,
    Manner::Builds,
    Manner::Shares,
    Manner::Cancels,
    Manner::Vanishes,
    Manner::ReadsSlowly,
    Manner::Fronts,
    Manner::FrontsAndVanishes,
    Manner::Fails,
];

fn dockerfile(word: &str) -> String {
    format!(
        "FROM busybox AS made\nRUN echo {word} > /made\nFROM scratch\nCOPY --from=made /made /\nCOPY file /\n"
    )
}

async fn one(socket: &Path, manner: Manner, turn: u64, chance: &mut Chance) -> Result<(), String> {
    let word = match manner {
        Manner::Shares => format!("shared{}", turn / 16),
        _ => format!("own{turn}-{}", chance.below(1 << 30)),
    };
    let text = match manner {
        Manner::Fails => "FROM busybox\nRUN exit 3\n".to_owned(),
        _ => dockerfile(&word),
    };
    let mut offer = offer(&text, Directory::default().file("file", &word));
    if let Manner::ReadsSlowly = manner {
        offer.pause = Duration::from_millis(chance.below(200));
    }
    let channel = crate::channel(socket.to_owned());
    let channel = channel
        .await
        .map_err(|error| format!("no connection: {error}"))?;
    let mut client = Client::connect(channel, offer, "").await;
    let request = client.request();
    match manner {
        Manner::Builds | Manner::Shares => built(&mut client, request, &word).await,
        Manner::Fails => match client.solve(request).await {
            Ok(_) => Err("it did not fail".to_owned()),
            Err(status) if status.message().contains("exit code: 3") => Ok(()),
            Err(status) => Err(status.to_string()),
        },
        Manner::ReadsSlowly => {
            let mut control = client.control.clone();
            let asked = pbc::StatusRequest {
                r#ref: request.r#ref.clone(),
            };
            let pause = client.offer.pause;
            let slow = async move {
                let status = control
                    .status(asked)
                    .await
                    .map_err(|error| error.to_string())?;
                let mut status = status.into_inner();
                while let Ok(Some(_)) = status.message().await {
                    tokio::time::sleep(pause).await;
                }
                Ok::<_, String>(())
            };
            let building = built(&mut client, request, &word);
            let (built, read) = tokio::join!(building, slow);
            built.and(read)
        }
        Manner::Cancels => {
            let pause = Duration::from_millis(chance.below(400));
            // Some are done before.
            let _ = timeout(pause, client.solve(request)).await;
            // The session goes on: what it is used for next works.
            let again = client.request();
            built(&mut client, again, &word).await
        }
        Manner::Vanishes => {
            let pause = Duration::from_millis(chance.below(400));
            let mut control = client.control.clone();
            let build = tokio::spawn(async move { control.solve(request).await.map(drop) });
            tokio::time::sleep(pause).await;
            drop(client);
            build.abort();
            Ok(())
        }
        Manner::Fronts | Manner::FrontsAndVanishes => {
            let mut request = request;
            request.frontend.clear();
            let id = request.r#ref.clone();
            let mut control = client.control.clone();
            let build = tokio::spawn(async move { control.solve(request).await.map(drop) });
            let tree = front(&client, &id).await.map_err(|error| error.to_string());
            let tree = match (tree, manner) {
                (tree, Manner::Fronts) => tree?,
                (tree, _) => {
                    tree?;
                    drop(client);
                    build.abort();
                    return Ok(());
                }
            };
            let mut bridge = LlbBridgeClient::new(client.channel.clone());
            let back = pbf::ReturnRequest {
                result: Some(tree),
                error: None,
            };
            let back = bridge.r#return(of(&id, back)).await;
            back.map_err(|error| error.to_string())?;
            let ended = build.await.map_err(|error| error.to_string())?;
            ended.map_err(|error| error.to_string())?;
            came(&client, &word)
        }
    }
}

async fn built(client: &mut Client, request: pbc::SolveRequest, word: &str) -> Result<(), String> {
    client
        .solve(request)
        .await
        .map_err(|status| status.to_string())?;
    came(client, word)
}

fn came(client: &Client, word: &str) -> Result<(), String> {
    let files = client.files();
    let made = files.get("made").map(|text| text.trim_end());
    match made == Some(word) && files.get("file").map(String::as_str) == Some(word) {
        true => Ok(()),
        false => Err(format!("{files:?} came, not {word}")),
    }
}

/// Builds as a frontend does, and makes a container of the result with a process in it that waits.
async fn front(client: &Client, id: &str) -> Result<pbf::Result, tonic::Status> {
    let mut bridge = LlbBridgeClient::new(client.channel.clone());
    let solve = |target: &str| pbf::SolveRequest {
        frontend: "dockerfile.v0".to_owned(),
        frontend_opt: HashMap::from([("target".to_owned(), target.to_owned())]),
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: true,
        ..pbf::SolveRequest::default()
    };
    let made = bridge.solve(of(id, solve("made"))).await?.into_inner();
    let Some(Some(pbf::result::Result::Ref(root))) = made.result.map(|result| result.result) else {
        return Err(tonic::Status::unknown("not one tree"));
    };
    let container = pbf::NewContainerRequest {
        container_id: "c".to_owned(),
        mounts: vec![bollard_buildkit_proto::pb::Mount {
            dest: "/".to_owned(),
            result_id: root.id,
            ..Default::default()
        }],
        ..pbf::NewContainerRequest::default()
    };
    bridge.new_container(of(id, container)).await?;
    let init = pbf::InitMessage {
        container_id: "c".to_owned(),
        meta: Some(bollard_buildkit_proto::pb::Meta {
            args: ["sh", "-c", "cat /made; exec sleep 1000"]
                .map(str::to_owned)
                .to_vec(),
            ..Default::default()
        }),
        fds: vec![1],
        ..pbf::InitMessage::default()
    };
    let message = pbf::ExecMessage {
        process_id: "p".to_owned(),
        input: Some(pbf::exec_message::Input::Init(init)),
    };
    let messages = tokio_stream::once(message);
    let mut answers = bridge.exec_process(of(id, messages)).await?.into_inner();
    loop {
        let answer = answers.message().await?.and_then(|answer| answer.input);
        match answer {
            Some(pbf::exec_message::Input::File(file)) if !file.data.is_empty() => break,
            Some(pbf::exec_message::Input::Started(_)) => {}
            other => return Err(tonic::Status::unknown(format!("unexpected: {other:?}"))),
        }
    }
    let result = bridge.solve(of(id, solve(""))).await?.into_inner().result;
    result.ok_or_else(|| tonic::Status::unknown("no result"))
}

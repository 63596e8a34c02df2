//! Pulls, builds, pushes and caches over a bad connection to a registry: each is right or a clear error.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;

use super::{Chance, Trial};
use crate::registry::{Certificate, LOGIN, Registry};
use crate::trouble::{Targets, connection};
use crate::{Environment, Outcome, configuration};

/// Images in the registry before anything goes wrong.
const IMAGES: u64 = 4;

/// The step whose result only a cache can bring a second time.
const CACHED: &str = "FROM busybox
COPY data /data
RUN head -c 20000 /dev/urandom > /random
";

/// What is known of an image that is right.
struct Known {
    id: String,
    files: String,
}

/// The registry, and the ways to it.
struct Place {
    /// Sees the registry as it is.
    direct: Environment,
    /// The registry's own address, with TLS.
    authority: String,
    /// Bad connections: with TLS, without, and with tokens in place of the login.
    bad: [String; 3],
    troubles: Arc<AtomicU64>,
    _registries: [Registry; 2],
}

/// What came of the turns.
#[derive(Debug, Default)]
pub struct Tally {
    /// By deed: how many came out right, and how many failed with a clear error.
    pub deeds: BTreeMap<&'static str, (u64, u64)>,
    /// Connections and requests that met with trouble.
    pub troubles: u64,
    /// The last line of each error.
    pub errors: Vec<String>,
}

impl Tally {
    /// Returns how many came out right.
    pub fn right(&self) -> u64 {
        self.deeds.values().map(|(right, _)| right).sum()
    }
}

/// Pulls, builds, pushes, and exports and imports caches `count` times over connections that are cut, delayed, truncated
/// and changed, to a registry that answers 429 and 500 at random. What a success brought is compared to what is right;
/// what failed has to say so, and to leave nothing half under its name. The store is checked as it goes.
///
/// # Panics
///
/// When an outcome is neither right nor a clear error, or the store is not whole.
pub fn registry(environment: &Environment, trial: Trial) -> Tally {
    trial.tell(0);
    let mut chance = Chance(trial.seed);
    let place = place(environment, &mut chance, trial.count >= 100);
    let known: Vec<Known> = (0..IMAGES)
        .map(|number| seed(&place, number, &mut chance))
        .collect();
    let cached = seed_cache(&place, &mut chance);
    let mut tally = Tally::default();
    for turn in 1..=trial.count {
        let bad = chance.one(&place.bad).clone();
        let number = chance.below(IMAGES);
        let attempt = Attempt {
            place: &place,
            bad: &bad,
            environment,
            turn,
        };
        if chance.below(3) > 0 {
            environment.ok(["system", "prune", "-f", "-a"]);
        }
        let (deed, outcome) = match chance.below(10) {
            0..=3 => ("pull", attempt.pull(number, &known[number as usize])),
            4..=5 => ("build FROM", attempt.build(number, &known[number as usize])),
            6..=7 => ("push", attempt.push(&mut chance)),
            8 => ("cache export", attempt.export_cache(&mut chance)),
            _ => ("cache import", attempt.import_cache(&cached)),
        };
        let counts = tally.deeds.entry(deed).or_default();
        match outcome {
            Ok(()) => counts.0 += 1,
            Err(failure) => {
                counts.1 += 1;
                tally
                    .errors
                    .push(format!("{deed}: {}", clear(&failure, &trial, turn)));
            }
        }
        if turn.is_multiple_of(20) || turn == trial.count {
            check(environment, &trial, turn);
        }
        trial.tell(turn);
    }
    check(&place.direct, &trial, trial.count);
    tally.troubles = place.troubles.load(Ordering::Relaxed);
    tally
}

/// Returns what a failed command said last, which has to be an error that tells what it concerns.
fn clear(failure: &Outcome, trial: &Trial, turn: u64) -> String {
    let seed = trial.seed;
    assert_eq!(
        failure.status.code(),
        Some(1),
        "seed {seed}, turn {turn}: {}",
        failure.told()
    );
    let errors: Vec<&str> = failure
        .stderr
        .lines()
        .skip_while(|line| !line.starts_with("error: "))
        .collect();
    let text = errors.join(" | ");
    let is_told = ["127.0.0.1", "sha256:", "image-", "pushed-", "cache-"]
        .iter()
        .any(|subject| text.contains(subject));
    assert!(
        is_told && !failure.stderr.contains("panicked"),
        "seed {seed}, turn {turn}: {}",
        failure.told()
    );
    text
}

fn check(environment: &Environment, trial: &Trial, turn: u64) {
    let checked = environment.run(["system", "check"]);
    assert!(
        checked.status.success() && !checked.stdout.contains("damaged:"),
        "seed {}, turn {turn}: {}",
        trial.seed,
        checked.told()
    );
}

fn place(environment: &Environment, chance: &mut Chance, stalls: bool) -> Place {
    let folder = environment.work().join("registry");
    let certificate = Arc::new(Certificate::new());
    let secure = Registry::start(&folder, Some(&certificate));
    let plain = Registry::start(&folder, None);
    let ca = environment.write("ca.pem", &certificate.authority);
    let mut targets = Targets {
        plain: plain.authority.clone(),
        secure: Some((secure.authority.clone(), certificate)),
        with_tokens: false,
    };
    let troubles = Arc::default();
    let with_tls = connection(&targets, chance.any(), stalls, &troubles);
    targets.secure = None;
    let without_tls = connection(&targets, chance.any(), stalls, &troubles);
    targets.with_tokens = true;
    let with_tokens = connection(&targets, chance.any(), stalls, &troubles);
    let direct = Environment::new(&environment.binary);
    let login =
        base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
    for (environment, authorities) in [
        (&direct, vec![(&secure.authority, true)]),
        (
            environment,
            vec![
                (&with_tls, true),
                (&without_tls, false),
                (&with_tokens, false),
            ],
        ),
    ] {
        let mut text = configuration(&["docker.io"]);
        let mut logins = serde_json::Map::new();
        for (authority, tls) in authorities {
            let how = match tls {
                true => format!("ca = [{:?}]", ca.display().to_string()),
                false => "http = true".to_owned(),
            };
            text += &format!("[registry.\"{authority}\"]\n{how}\n");
            logins.insert(authority.clone(), serde_json::json!({"auth": login}));
        }
        environment.write_config(&text);
        let auths = serde_json::json!({"auths": logins}).to_string();
        environment.write("../home/.docker/config.json", auths);
    }
    Place {
        direct,
        authority: secure.authority.clone(),
        bad: [with_tls, without_tls, with_tokens],
        troubles,
        _registries: [secure, plain],
    }
}

/// Puts an image of several layers into the registry.
fn seed(place: &Place, number: u64, chance: &mut Chance) -> Known {
    let direct = &place.direct;
    direct.write("seed/one", noise(chance, 2_000_000));
    direct.write("seed/two", noise(chance, 300_000));
    direct.write("seed/text", format!("{number}\n").repeat(50_000));
    let base = ["busybox", "scratch"][number as usize % 2];
    let text = format!(
        "FROM {base}\nCOPY one /one\nCOPY two /two\nCOPY text /text\nLABEL number={number}\n"
    );
    direct.write("seed/Dockerfile", text);
    let name = format!("{}/image-{number}:1", place.authority);
    let compression = ["gzip", "zstd", "uncompressed"][number as usize % 3];
    let output = format!("type=image,push=true,compression={compression}");
    direct.ok([
        "build", "-q", "-t", &name, "-o", &output, "-o", "seeded", "seed",
    ]);
    let known = Known {
        id: id(direct, &name),
        files: files(&direct.work().join("seeded")),
    };
    fs::remove_dir_all(direct.work().join("seeded")).expect("it was written");
    known
}

/// Puts a cache into the registry, and returns the file only it can bring.
fn seed_cache(place: &Place, chance: &mut Chance) -> Cached {
    let data = noise(chance, 400_000);
    let direct = &place.direct;
    direct.write("kept/Dockerfile", CACHED);
    direct.write("kept/data", &data);
    let to = format!(
        "type=registry,ref={}/cache-seed:1,mode=max",
        place.authority
    );
    direct.ok(["build", "-q", "--cache-to", &to, "-o", "kept-out", "kept"]);
    let random = fs::read(direct.work().join("kept-out/random")).expect("it was written");
    Cached { data, random }
}

struct Cached {
    data: Vec<u8>,
    random: Vec<u8>,
}

/// One turn.
struct Attempt<'a> {
    place: &'a Place,
    /// The address of a bad connection.
    bad: &'a str,
    environment: &'a Environment,
    turn: u64,
}

/// A failed command is an error; what must not be is a panic.
type Came = Result<(), Box<Outcome>>;

fn came(outcome: Outcome) -> Result<Outcome, Box<Outcome>> {
    if outcome.status.success() {
        return Ok(outcome);
    }
    Err(Box::new(outcome))
}

impl Attempt<'_> {
    fn pull(&self, number: u64, known: &Known) -> Came {
        let name = format!("{}/image-{number}:1", self.bad);
        came(self.environment.run(["pull", "-q", &name]))?;
        assert_eq!(id(self.environment, &name), known.id, "turn {}", self.turn);
        self.environment
            .write("from/Dockerfile", format!("FROM {name}\n"));
        let files = self.files_of(self.environment, "from");
        assert_eq!(files, known.files, "turn {}", self.turn);
        Ok(())
    }

    fn build(&self, number: u64, known: &Known) -> Came {
        let text = format!("FROM {}/image-{number}:1\n", self.bad);
        self.environment.write("from/Dockerfile", text);
        let out = self.environment.work().join("out");
        let built = self
            .environment
            .run(["build", "-q", "--pull", "-o", "out", "from"]);
        let found = built.status.success().then(|| files(&out));
        let _ = fs::remove_dir_all(&out);
        came(built)?;
        assert_eq!(found.as_ref(), Some(&known.files), "turn {}", self.turn);
        Ok(())
    }

    fn push(&self, chance: &mut Chance) -> Came {
        let environment = self.environment;
        let size = 1 + chance.below(1_500_000);
        environment.write("pushed/data", noise(chance, size));
        environment.write("pushed/more", noise(chance, 3000));
        let base = ["busybox", "scratch"][chance.below(2) as usize];
        let text = format!("FROM {base}\nCOPY data /data\nCOPY more /more\n");
        environment.write("pushed/Dockerfile", text);
        let repository = format!("pushed-{}:1", self.turn);
        let name = format!("{}/{repository}", self.bad);
        let platforms = "--platform=linux/amd64,linux/arm64";
        let pushed = match chance.below(4) {
            0 => environment.run(["build", "-q", "-t", &name, "--push", "pushed"]),
            1 if base == "scratch" => {
                let output = "type=registry,compression=zstd";
                environment.run([
                    "build", "-q", "-t", &name, platforms, "-o", output, "pushed",
                ])
            }
            _ => {
                environment.ok(["build", "-q", "-t", &name, "pushed"]);
                environment.run(["push", "-q", &name])
            }
        };
        // What the name stands for in the registry is right, or it stands for nothing.
        let direct = format!("{}/{repository}", self.place.authority);
        let pulled = self.place.direct.run(["pull", "-q", &direct]);
        if !pulled.status.success() {
            assert!(
                !pushed.status.success() && pulled.stderr.contains("not found"),
                "turn {}: {}\n{}",
                self.turn,
                pushed.told(),
                pulled.told()
            );
        } else {
            let place = &self.place.direct;
            place.write("from/Dockerfile", format!("FROM {direct}\n"));
            let found = self.files_of(place, "from");
            let expected = self.files_of(environment, "pushed");
            assert_eq!(found, expected, "turn {}: {}", self.turn, pushed.told());
            place.ok(["rmi", &direct]);
        }
        came(pushed)?;
        Ok(())
    }

    fn export_cache(&self, chance: &mut Chance) -> Came {
        let environment = self.environment;
        environment.write("kept/Dockerfile", CACHED);
        environment.write("kept/data", noise(chance, 500_000));
        let repository = format!("cache-{}:1", self.turn);
        let to = format!("type=registry,ref={}/{repository},mode=max", self.bad);
        let out = environment.work().join("kept-out");
        came(environment.run(["build", "-q", "--cache-to", &to, "-o", "kept-out", "kept"]))?;
        let random = fs::read(out.join("random")).expect("it was written");
        // Another machine gets the same out of it.
        let direct = &self.place.direct;
        direct.ok(["system", "prune", "-f", "-a"]);
        direct.write(
            "kept/data",
            fs::read(environment.work().join("kept/data")).expect("data"),
        );
        let from = format!("type=registry,ref={}/{repository}", self.place.authority);
        direct.ok([
            "build",
            "-q",
            "--cache-from",
            &from,
            "-o",
            "kept-out",
            "kept",
        ]);
        let found = fs::read(direct.work().join("kept-out/random")).expect("it was written");
        assert!(
            found == random,
            "turn {}: the cache brought something else",
            self.turn
        );
        Ok(())
    }

    fn import_cache(&self, cached: &Cached) -> Came {
        let environment = self.environment;
        environment.write("kept/Dockerfile", CACHED);
        environment.write("kept/data", &cached.data);
        let from = format!("type=registry,ref={}/cache-seed:1", self.bad);
        let built = environment.run([
            "build",
            "--progress=plain",
            "--cache-from",
            &from,
            "-o",
            "kept-out",
            "kept",
        ]);
        let built = came(built)?;
        let read = |name: &str| fs::read(environment.work().join("kept-out").join(name));
        assert!(
            read("data").ok().as_ref() == Some(&cached.data),
            "turn {}",
            self.turn
        );
        let random = read("random").expect("it was written");
        assert_eq!(random.len(), cached.random.len(), "turn {}", self.turn);
        // A cache that cannot be reached costs a warning and the steps, and no more.
        let is_new = random != cached.random;
        if is_new && !built.stderr.to_lowercase().contains("warn") {
            return Err(Box::new(built));
        }
        Ok(())
    }

    /// Builds what needs no registry any more, and returns its files.
    fn files_of(&self, environment: &Environment, context: &str) -> String {
        let out = environment.work().join("out");
        environment.ok(["build", "-q", "-o", "out", context]);
        let found = files(&out);
        fs::remove_dir_all(&out).expect("it was written");
        found
    }
}

fn id(environment: &Environment, name: &str) -> String {
    environment.ok(["inspect", "-f", "{{.Id}}", name]).stdout
}

fn noise(chance: &mut Chance, size: u64) -> Vec<u8> {
    let words = (0..size.div_ceil(8)).flat_map(|_| chance.any().to_le_bytes());
    words.take(size as usize).collect()
}

/// Tells a tree: a line for each entry, in the order of their names.
fn files(path: &Path) -> String {
    let mut told = String::new();
    tell(path, path, &mut told);
    told
}

fn tell(root: &Path, path: &Path, told: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(path)
        .expect("a folder can be read")
        .map(|entry| entry.expect("a folder can be read").path())
        .collect();
    entries.sort();
    for path in entries {
        let metadata = path.symlink_metadata().expect("it is there");
        let mut hash = DefaultHasher::new();
        if metadata.is_symlink() {
            fs::read_link(&path).expect("a link").hash(&mut hash);
        } else if metadata.is_file() {
            fs::read(&path).expect("a file").hash(&mut hash);
        }
        let name = path.strip_prefix(root).unwrap_or(&path).display();
        let (mode, uid) = (metadata.permissions().mode(), metadata.uid());
        told.push_str(&format!("{name} {mode:o} {uid} {:x}\n", hash.finish()));
        if metadata.is_dir() {
            tell(root, &path, told);
        }
    }
}

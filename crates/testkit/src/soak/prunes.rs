//! Builds at once beside prunes that never end: none fails, none comes out wrong, the limit holds.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Chance, Trial};
use crate::{Environment, configuration};

/// Builds that run at once.
const BUILDERS: u64 = 10;

/// What the store may take, in bytes: less than the builds of one turn make.
const LIMIT: u64 = 16 << 20;

const PRUNES: [&[&str]; 4] = [
    &["system", "prune", "-f"],
    &["system", "prune", "-f", "-a"],
    &["builder", "prune", "-f", "--keep-storage", "2MB"],
    &["builder", "prune", "-f", "--filter", "unused-for=0s"],
];

/// Runs ten builds at once `count` times, beside prunes one after the other; looks at what comes out of each, and at
/// the space that is taken when all have ended.
///
/// # Panics
///
/// When one of them fails, comes out wrong, or the limit does not hold.
pub fn prunes(environment: &Environment, trial: Trial) {
    trial.tell(0);
    let limit = format!("[gc]\nmax-used-space = {LIMIT}\nreserved-space = 0\n");
    environment.write_config(&format!("{}\n{limit}", configuration(&["docker.io"])));
    let mut chance = Chance(trial.seed);
    for turn in 1..=trial.count {
        let contexts: Vec<String> = (0..BUILDERS)
            .map(|number| context(environment, turn, number, &mut chance))
            .collect();
        let first = chance.below(PRUNES.len() as u64) as usize;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for prune in PRUNES.iter().cycle().skip(first) {
                    environment.ok(*prune);
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
            let builders: Vec<_> = contexts
                .iter()
                .enumerate()
                .map(|(number, expected)| scope.spawn(move || build(environment, number, expected)))
                .collect();
            let ended: Vec<_> = builders.into_iter().map(|builder| builder.join()).collect();
            done.store(true, Ordering::SeqCst);
            let failed = ended.iter().filter(|ended| ended.is_err()).count();
            assert_eq!(failed, 0, "seed {}, turn {turn}", trial.seed);
        });
        // The builder that ends last leaves the store within its limit.
        environment.ok(["build", "-q", "-o", "out0", "ctx0"]);
        let used = used(environment);
        assert!(
            used <= LIMIT,
            "seed {}, turn {turn}: {used} bytes",
            trial.seed
        );
        environment.ok(["system", "check"]);
        trial.tell(turn);
    }
}

/// Writes a context whose steps are partly those of others; returns what has to come out.
fn context(environment: &Environment, turn: u64, number: u64, chance: &mut Chance) -> String {
    let (shared, own) = (chance.below(3), chance.any());
    let dockerfile = format!(
        "FROM busybox AS shared\nRUN head -c 1500000 /dev/urandom > /large && echo {turn} {shared} > /shared\n\
         FROM busybox AS own\nCOPY file /file\nRUN head -c 500000 /dev/zero > /zeros && echo {own} > /own\n\
         FROM busybox\nCOPY --from=shared /shared /\nCOPY --from=own /own /file /\n\
         RUN cat /shared /own /file > /all\n"
    );
    environment.write(&format!("ctx{number}/Dockerfile"), dockerfile);
    let file = chance.any().to_string();
    environment.write(&format!("ctx{number}/file"), &file);
    format!("{turn} {shared}\n{own}\n{file}")
}

fn build(environment: &Environment, number: usize, expected: &str) {
    let (out, context) = (format!("out{number}"), format!("ctx{number}"));
    let path = environment.work().join(&out);
    let _ = fs::remove_dir_all(&path);
    let mut words = vec!["build", "-q", "-o", &out];
    let tag = format!("app{number}");
    if number.is_multiple_of(3) {
        words.extend(["-t", &tag, "--load"]);
    }
    words.push(&context);
    environment.ok(words);
    let found = fs::read_to_string(path.join("all")).expect("a file");
    assert_eq!(found, expected, "build {number}");
}

/// Returns the bytes that everything in the store takes.
fn used(environment: &Environment) -> u64 {
    let listing = environment.ok(["system", "df", "-v", "--format", "{{.Bytes}}"]);
    let bytes = listing.stdout.lines().map(|line| line.parse::<u64>());
    bytes.map(|bytes| bytes.expect("a number")).sum()
}

//! The hot paths of a build that are pure computation, each with an input of a size that matters.
//!
//! *Responsibility*: one list of workloads for two readers: `cargo bench -p hotpaths` times them (beside the paths that
//! go through the kernel), `cargo xtask bench instructions` counts their instructions against a baseline.
//!
//! *Not here*: whole builds (`cargo xtask bench compare`, `steps`, `growth`).
//!
//! *Invariants*: a round does the same work each time, on one thread, without files, clock or randomness.

mod dockerfiles;
mod schedule;

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;

use dockerfile::check::{CheckOptions, check};
use dockerfile::expand::Expander;
use dockerfile::ignore::Matcher;
use rootfs::copy::Timestamp;
use rootfs::memo::{FileContent, FileMemo, FileStamp, MemoTable};

/// Something to be timed or counted.
pub struct Workload {
    pub name: &'static str,
    round: Box<dyn Fn() + Send + Sync>,
}

impl Workload {
    fn new<T>(name: &'static str, round: impl Fn() -> T + Send + Sync + 'static) -> Workload {
        Workload {
            name,
            round: Box::new(move || {
                black_box(round());
            }),
        }
    }

    /// Does the work once.
    pub fn round(&self) {
        (self.round)();
    }
}

impl fmt::Debug for Workload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// Stages of the Dockerfiles.
const STAGES: usize = 2000;
/// Files of the contexts.
const FILES: usize = 10_000;

/// Returns all workloads, their inputs made.
pub fn workloads() -> Vec<Workload> {
    let (few, all) = (
        dockerfiles::few_needed(STAGES),
        dockerfiles::all_needed(STAGES),
    );
    let (few_parsed, all_parsed) = (few.clone(), all.clone());
    let lowered = dockerfiles::lower(&all);
    let paths: Vec<String> = (0..FILES)
        .map(|number| format!("src/d{:03}/deep/f{number}.rs", number % 300))
        .collect();
    let matcher = Matcher::new(["**/target", "*.log", "src/**/tmp*", "!src/d007/**", "docs"])
        .expect("valid patterns");
    let memo = memo().to_bytes();
    vec![
        Workload::new("parse 2,000 stages", move || parse(&few_parsed)),
        Workload::new("check 2,000 stages", move || lint(&few)),
        Workload::new("parse and lower 2,000 stages, 3 needed", {
            let few = dockerfiles::few_needed(STAGES);
            move || dockerfiles::lower(&few)
        }),
        Workload::new("parse and lower 2,000 stages, all needed", move || {
            dockerfiles::lower(&all_parsed)
        }),
        Workload::new("write 2,000 stages as LLB", move || {
            lowered.encode_definition()
        }),
        Workload::new("expand 1,000 words", expand),
        Workload::new("ignore patterns over 10,000 paths", move || {
            let ignored = paths
                .iter()
                .filter(|path| matcher.is_ignored(path) == Ok(true));
            ignored.count()
        }),
        Workload::new("schedule 2,000 vertices", || schedule::run(STAGES as u32)),
        Workload::new("read what is known of 10,000 files", move || {
            MemoTable::from_bytes(&memo)
        }),
    ]
}

fn parse(text: &str) -> usize {
    let ast = dockerfile::parse(text.as_bytes()).expect("a valid Dockerfile");
    ast.stages().expect("valid instructions").stages.len()
}

fn lint(text: &str) -> usize {
    let options = CheckOptions {
        target: Some(""),
        ..CheckOptions::default()
    };
    check(text.as_bytes(), &options).warnings.len()
}

fn expand() -> usize {
    let environment = BTreeMap::from([
        ("NAME".to_owned(), "lib/some-package.tar.gz".to_owned()),
        ("VERSION".to_owned(), "1.23.4-alpine".to_owned()),
    ]);
    let expander = Expander::new('\\');
    let word = "/opt/${NAME%.tar.*}/\"$VERSION\"/${UNSET:-${NAME##*/}}/${VERSION//./_}";
    (0..1000)
        .map(|_| {
            expander
                .word(black_box(word), &environment)
                .map_or(0, |it| it.text.len())
        })
        .sum()
}

fn memo() -> MemoTable {
    let table = MemoTable::default();
    let time = Timestamp {
        seconds: 1_700_000_000,
        nanoseconds: 5,
    };
    for inode in 0..FILES as u64 {
        let stamp = FileStamp {
            device: 1,
            inode,
            size: inode * 3,
            modified: time,
            changed: time,
        };
        let content = FileContent {
            data: [inode as u8; 32],
            xattrs: None,
        };
        table.remember(&stamp, &content);
    }
    table
}

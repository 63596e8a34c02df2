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
use std::sync::OnceLock;

use dockerfile::check::{CheckOptions, check, check_parsed};
use dockerfile::expand::Expander;
use dockerfile::ignore::Matcher;
use dockerfile::{Ast, Stages};
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

    /// Returns work on an input that is made with the first round.
    fn on<I: Send + Sync + 'static, T>(
        name: &'static str,
        input: impl Fn() -> I + Send + Sync + 'static,
        round: impl Fn(&I) -> T + Send + Sync + 'static,
    ) -> Workload {
        let made = OnceLock::new();
        Workload::new(name, move || round(made.get_or_init(&input)))
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

/// Returns all workloads.
pub fn workloads() -> Vec<Workload> {
    let few = || dockerfiles::few_needed(STAGES);
    let all = || dockerfiles::all_needed(STAGES);
    vec![
        Workload::on("parse 2,000 stages", few, |few| parse(few)),
        Workload::on("check 2,000 stages", few, |few| lint(few)),
        Workload::on(
            "check 2,000 stages that were parsed",
            move || read(&few()),
            |parsed| {
                let (ast, stages) = parsed;
                check_parsed(ast, stages, &options()).warnings.len()
            },
        ),
        Workload::on("parse and lower 2,000 stages, 3 needed", few, |few| {
            dockerfiles::lower(few)
        }),
        Workload::on("parse and lower 2,000 stages, all needed", all, |all| {
            dockerfiles::lower(all)
        }),
        Workload::on(
            "write 2,000 stages as LLB",
            move || dockerfiles::lower(&all()),
            llb::Graph::encode_definition,
        ),
        Workload::new("expand 1,000 words", expand),
        Workload::on(
            "ignore patterns over 10,000 paths",
            ignored,
            |(matcher, paths)| {
                let ignored = paths
                    .iter()
                    .filter(|path| matcher.is_ignored(path) == Ok(true));
                ignored.count()
            },
        ),
        Workload::new("schedule 2,000 vertices", || schedule::run(STAGES as u32)),
        Workload::on(
            "read what is known of 10,000 files",
            || memo().to_bytes(),
            |memo| MemoTable::from_bytes(memo.clone()),
        ),
    ]
}

fn ignored() -> (Matcher, Vec<String>) {
    let paths = (0..FILES).map(|number| format!("src/d{:03}/deep/f{number}.rs", number % 300));
    let matcher = Matcher::new(["**/target", "*.log", "src/**/tmp*", "!src/d007/**", "docs"])
        .expect("valid patterns");
    (matcher, paths.collect())
}

fn read(text: &str) -> (Ast, Stages) {
    let ast = dockerfile::parse(text.as_bytes()).expect("a valid Dockerfile");
    let stages = ast.stages().expect("valid instructions");
    (ast, stages)
}

fn parse(text: &str) -> usize {
    read(text).1.stages.len()
}

fn lint(text: &str) -> usize {
    check(text.as_bytes(), &options()).warnings.len()
}

/// The last stage alone, as a build checks it.
fn options() -> CheckOptions<'static> {
    CheckOptions {
        target: Some(""),
        ..CheckOptions::default()
    }
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

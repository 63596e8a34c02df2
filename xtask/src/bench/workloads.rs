//! What is measured: Dockerfiles and contexts, made from a seed, and the least work that any builder must do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// What a median is held against.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// At most this share of BuildKit's time.
    OfBuildKit(f64),
    /// At most this many times the plain limit.
    OfLimit(f64),
}

/// One part of a workload that is timed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) goal: Goal,
    /// What any builder must do, as a shell command over `$context` and `$out`.
    pub(crate) limit: Option<&'static str>,
    before: Before,
}

/// What is done before a phase, untimed.
#[derive(Debug, Clone, Copy)]
enum Before {
    Nothing,
    /// The same build once.
    Build,
    /// A build of another Dockerfile of the workload.
    Warm,
    /// One file of the context is written anew.
    Edit,
}

#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) target: Option<&'static str>,
    pub(crate) phases: &'static [Phase],
    prepare: fn(&Place) -> anyhow::Result<()>,
}

/// Where the files of a workload lie, and how large they are to be (1 as published).
#[derive(Debug)]
pub(crate) struct Place {
    folder: PathBuf,
    scale: f64,
}

const fn cold(goal: Goal) -> Phase {
    Phase {
        name: "cold",
        goal,
        limit: None,
        before: Before::Nothing,
    }
}

const fn bounded(phase: Phase, limit: &'static str) -> Phase {
    Phase {
        limit: Some(limit),
        ..phase
    }
}

const WALK: &str = "find \"$context\" -printf '%i %s %T@\\n' >/dev/null";

pub(crate) const WORKLOADS: &[Workload] = &[
    Workload {
        name: "noop",
        about: "nothing changed since the last build: four stages, 14 steps",
        target: None,
        phases: &[Phase {
            name: "warm",
            goal: Goal::OfBuildKit(1.0 / 6.0),
            limit: None,
            before: Before::Build,
        }],
        prepare: noop,
    },
    Workload {
        name: "context",
        about: "40,000 files (320 MB) copied from the context",
        target: None,
        phases: &[
            bounded(
                cold(Goal::OfBuildKit(1.0 / 5.0)),
                "tar -C \"$context\" -cf \"$out\" .",
            ),
            Phase {
                name: "warm",
                goal: Goal::OfBuildKit(1.0 / 6.0),
                limit: Some(WALK),
                before: Before::Nothing,
            },
            Phase {
                name: "edit",
                goal: Goal::OfBuildKit(1.0 / 8.0),
                limit: Some(WALK),
                before: Before::Edit,
            },
        ],
        prepare: context,
    },
    Workload {
        name: "pull",
        about: "a base image with a Go toolchain into an empty store, then one RUN",
        target: None,
        phases: &[cold(Goal::OfBuildKit(1.0 / 4.0))],
        prepare: |place| place.dockerfile("FROM golang:1.23-alpine\nRUN true\n"),
    },
    Workload {
        name: "stages-wait",
        about: "eight independent stages that each wait for one second",
        target: None,
        phases: &[bounded(
            cold(Goal::OfLimit(1.25)),
            "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait",
        )],
        prepare: |place| stages(place, 8, "sleep 1 && echo {i} > /out{i}"),
    },
    Workload {
        name: "stages-cpu",
        about: "four independent stages that compute",
        target: None,
        phases: &[bounded(
            cold(Goal::OfLimit(1.05)),
            "for k in 1 2 3 4; do busybox sh -c \"i=0; while [ \\$i -lt $count ]; do i=\\$((i+1)); done\" & done; wait",
        )],
        prepare: |place| {
            let body = "i=0; while [ $i -lt {n} ]; do i=$((i+1)); done; echo {i} $i > /out{i}";
            stages(place, 4, &body.replace("{n}", &place.count().to_string()))
        },
    },
    Workload {
        name: "steps",
        about: "100 RUN steps in a row that do nothing",
        target: None,
        phases: &[bounded(
            cold(Goal::OfBuildKit(1.0 / 12.0)),
            "for i in $(seq 100); do unshare -mpf chroot / /bin/true; done",
        )],
        prepare: |place| {
            let steps: String = (0..100).map(|number| format!("RUN : {number}\n")).collect();
            place.dockerfile(&format!("FROM busybox\n{steps}"))
        },
    },
    Workload {
        name: "prune",
        about: "2,000 stages of which the target needs three",
        target: Some("wanted"),
        phases: &[cold(Goal::OfBuildKit(1.0 / 8.0))],
        prepare: prune,
    },
    Workload {
        name: "copy-tree",
        about: "COPY --from of a Go toolchain out of an image that is in the store",
        target: None,
        phases: &[Phase {
            before: Before::Warm,
            ..cold(Goal::OfBuildKit(1.0 / 4.0))
        }],
        prepare: |place| {
            place.write("warm.Dockerfile", b"FROM golang:1.23-alpine\nRUN true\n")?;
            place.dockerfile(
                "FROM golang:1.23-alpine AS g\nFROM scratch\nCOPY --from=g /usr/local/go /usr/local/go\n",
            )
        },
    },
    Workload {
        name: "export-gzip",
        about: "one layer of 512 MB of this machine's /usr, compressed into an archive",
        target: None,
        phases: &[bounded(
            cold(Goal::OfBuildKit(1.0 / 4.0)),
            "tar -C \"$context\" -c . | gzip -6 > \"$out\"",
        )],
        prepare: |place| {
            real_files(&place.context(), (512e6 * place.scale) as u64)?;
            place.dockerfile("FROM scratch\nCOPY . /data\n")
        },
    },
];

impl Workload {
    /// Makes the workload's files in a folder of `work`, once.
    pub(crate) fn place(&self, work: &Path, scale: f64) -> anyhow::Result<Place> {
        let folder = work.join(self.name);
        let place = Place { folder, scale };
        let ready = place.folder.join(".ready");
        let said = scale.to_string();
        if fs::read_to_string(&ready).ok().as_ref() != Some(&said) {
            if place.folder.exists() {
                fs::remove_dir_all(&place.folder)?;
            }
            fs::create_dir_all(place.context())?;
            (self.prepare)(&place).with_context(|| format!("failed to make {}", self.name))?;
            fs::write(ready, said)?;
        }
        Ok(place)
    }

    /// Brings a builder to where a phase begins. `build` builds a Dockerfile, untimed.
    pub(crate) fn before(
        &self,
        phase: &Phase,
        place: &Place,
        build: impl Fn(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match phase.before {
            Before::Nothing => Ok(()),
            Before::Build => build(&place.file()),
            Before::Warm => build(&place.folder.join("warm.Dockerfile")),
            Before::Edit => {
                let now = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)?
                    .as_nanos();
                let text = format!("edited {now}\n");
                place.write("ctx/d0007/f000007.txt", text.as_bytes())
            }
        }
    }
}

impl Place {
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join("Dockerfile")
    }

    pub(crate) fn context(&self) -> PathBuf {
        self.folder.join("ctx")
    }

    /// How far a stage counts that computes.
    pub(crate) fn count(&self) -> u64 {
        (2e6 * self.scale) as u64
    }

    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, bytes).with_context(|| format!("failed to write {name}"))
    }

    fn dockerfile(&self, text: &str) -> anyhow::Result<()> {
        self.write("Dockerfile", text.as_bytes())
    }
}

fn noop(place: &Place) -> anyhow::Result<()> {
    place.write("ctx/a.txt", b"a")?;
    place.write("ctx/b.txt", b"b")?;
    place.dockerfile(
        "FROM busybox AS base\nWORKDIR /src\nCOPY a.txt .\nRUN cat a.txt > deps\nCOPY . .\n\
         FROM base AS client\nRUN cat a.txt b.txt > /bin/client\nRUN echo 1 >> /bin/client\n\
         FROM base AS server\nRUN cat b.txt a.txt > /bin/server\nRUN echo 1 >> /bin/server\n\
         FROM scratch\nCOPY --from=client /bin/client /bin/\nCOPY --from=server /bin/server /bin/\n\
         ENTRYPOINT [\"/bin/server\"]\n",
    )
}

/// Files of about 8 kB in 2,000 folders: a quarter random bytes, the rest text of random words.
fn context(place: &Place) -> anyhow::Result<()> {
    let mut chance = Chance(1);
    let words: Vec<Vec<u8>> = (0..4000)
        .map(|_| {
            let length = 2 + chance.below(8);
            (0..length)
                .map(|_| b"etaoinshrdlucmfw"[chance.below(16)])
                .collect()
        })
        .collect();
    for number in 0..(40_000.0 * place.scale) as usize {
        let size = 4000 + chance.below(8000);
        let mut body = Vec::with_capacity(size);
        while body.len() < size / 4 {
            body.extend_from_slice(&chance.next().to_le_bytes());
        }
        while body.len() < size {
            body.extend_from_slice(&words[chance.below(words.len())]);
            body.push(b' ');
        }
        place.write(
            &format!("ctx/d{:04}/f{number:06}.txt", number % 2000),
            &body,
        )?;
    }
    place.dockerfile("FROM busybox\nCOPY . /src\nRUN ls /src | wc -l > /count\n")
}

/// Independent stages of one step each, whose results meet in the last; `{i}` is the stage's number.
fn stages(place: &Place, count: usize, step: &str) -> anyhow::Result<()> {
    let mut text = String::from("FROM busybox AS base\n");
    for number in 0..count {
        let step = step.replace("{i}", &number.to_string());
        text.push_str(&format!("FROM base AS s{number}\nRUN {step}\n"));
    }
    text.push_str("FROM scratch\n");
    for number in 0..count {
        text.push_str(&format!("COPY --from=s{number} /out{number} /\n"));
    }
    place.dockerfile(&text)
}

fn prune(place: &Place) -> anyhow::Result<()> {
    place.write("ctx/x", b"x")?;
    let mut text = String::from("FROM busybox AS base\n");
    for number in 0..1997 {
        text.push_str(&format!(
            "FROM base AS s{number}\nENV A{number}=1\nRUN sleep 1000 {number}\nCOPY . /x\n"
        ));
    }
    text.push_str(
        "FROM base AS dep\nRUN echo 1 > /one\nFROM base AS wanted\nCOPY --from=dep /one /one\n\
         FROM s1996\nRUN false\n",
    );
    place.dockerfile(&text)
}

/// Copies files of this machine, by their path, until they hold so many bytes.
pub(super) fn real_files(to: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut left = bytes;
    let mut folders = vec![PathBuf::from("/usr")];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<fs::DirEntry> = fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut below = Vec::new();
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                below.push(entry.path());
            } else if kind.is_file() {
                let inside = to.join(folder.strip_prefix("/")?);
                fs::create_dir_all(&inside)?;
                fs::copy(entry.path(), inside.join(entry.file_name()))?;
                left = left.saturating_sub(entry.metadata()?.len());
                if left == 0 {
                    return Ok(());
                }
            }
        }
        folders.extend(below.into_iter().rev());
    }
    Ok(())
}

/// Numbers that look random and are the same each time (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_the_same_each_time() {
        let read = || {
            let folder = tempfile::tempdir().unwrap();
            let workload = WORKLOADS.iter().find(|it| it.name == "context").unwrap();
            let place = workload.place(folder.path(), 0.0001).unwrap();
            fs::read(place.context().join("d0003/f000003.txt")).unwrap()
        };
        let body = read();
        assert_eq!(body, read());
        assert!(body.len() >= 4000);
    }

    #[test]
    fn real_files_end_at_the_bytes_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        real_files(folder.path(), 1).unwrap();
        let count = walk(folder.path());
        assert_eq!(count, 1);
    }

    fn walk(folder: &Path) -> usize {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| if path.is_dir() { walk(&path) } else { 1 })
            .sum()
    }
}

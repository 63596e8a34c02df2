//! The curves of `cargo xtask bench growth`: what grows, and what is measured of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use oci::{Digest, Reference};
use serde_json::json;
use store::{Image, Key, LayerId, LayerInfo, OpenOptions, Store};

use super::growth::Bench;

/// Something that grows, in one folder, and what is measured at each of its sizes.
#[derive(Debug)]
pub(super) struct Curve {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) sizes: &'static [u64],
    /// Brings it from one size to a larger one.
    pub(super) grow: fn(&Bench, u64, u64) -> anyhow::Result<()>,
    pub(super) phases: &'static [Phase],
    /// The gigabytes that the largest size takes on the disk.
    pub(super) gigabytes: u64,
}

/// One thing that is measured at each size.
#[derive(Debug)]
pub(super) struct Phase {
    /// Empty where it is the only one.
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// The memory it may take at any size.
    pub(super) megabytes: Option<f64>,
    /// What comes before each measurement.
    pub(super) before: fn(&Bench) -> anyhow::Result<()>,
    /// Starts what is measured: so many processes at once, all with the same words.
    pub(super) run: Run,
}

#[derive(Debug)]
pub(super) enum Run {
    /// A build of the Dockerfile, with further words.
    Build(&'static [&'static str]),
    /// As many builds at once as the size says.
    BuildsAtOnce(&'static [&'static str]),
    /// Another command.
    Command(&'static [&'static str]),
}

const MEGABYTES: Option<f64> = Some(150.0);
const INTO_STORE: Run = Run::Build(&["-t", "grown"]);

pub(super) const CURVES: &[Curve] = &[
    Curve {
        name: "files",
        unit: "files",
        sizes: &[1000, 5000, 20_000, 50_000, 100_000, 200_000],
        grow: files,
        phases: &[
            Phase {
                name: "cold",
                about: "a context of small files, first build",
                megabytes: MEGABYTES,
                before: Bench::forget,
                run: INTO_STORE,
            },
            Phase {
                name: "warm",
                about: "a context of small files, nothing changed",
                megabytes: MEGABYTES,
                // The first build may come too soon after the files were made to believe their times.
                before: Bench::build_once,
                run: INTO_STORE,
            },
        ],
        gigabytes: 3,
    },
    Curve {
        name: "stages",
        unit: "stages",
        sizes: &[10, 100, 1000, 2000, 5000, 10_000],
        grow: stages,
        phases: &[
            Phase {
                name: "cold",
                about: "stages of a Dockerfile, three of them needed, first build",
                megabytes: None,
                before: Bench::forget,
                run: INTO_STORE,
            },
            Phase {
                name: "warm",
                about: "stages of a Dockerfile, three of them needed, nothing changed",
                megabytes: None,
                before: |_| Ok(()),
                run: INTO_STORE,
            },
        ],
        gigabytes: 1,
    },
    Curve {
        name: "needed",
        unit: "stages",
        sizes: &[10, 100, 1000, 2000, 5000, 10_000],
        grow: needed_stages,
        phases: &[
            Phase {
                name: "cold",
                about: "stages of a Dockerfile, all of them needed, first build",
                megabytes: None,
                before: Bench::forget,
                run: INTO_STORE,
            },
            Phase {
                name: "warm",
                about: "stages of a Dockerfile, all of them needed, nothing changed",
                megabytes: None,
                before: |_| Ok(()),
                run: INTO_STORE,
            },
        ],
        gigabytes: 1,
    },
    Curve {
        name: "layers",
        unit: "layers",
        sizes: &[1, 10, 30, 60, 90, 120],
        grow: layers,
        phases: &[Phase {
            name: "",
            about: "RUN steps in a row, each a layer",
            megabytes: MEGABYTES,
            before: Bench::forget,
            run: INTO_STORE,
        }],
        gigabytes: 1,
    },
    Curve {
        name: "bytes",
        unit: "MB",
        sizes: &[10, 50, 200, 1000, 2000, 4000],
        grow: large_file,
        phases: &[Phase {
            name: "",
            about: "one large file, into an archive",
            megabytes: MEGABYTES,
            before: Bench::forget,
            run: Run::Build(&["--output", "type=oci,dest=out.tar"]),
        }],
        gigabytes: 13,
    },
    Curve {
        name: "images",
        unit: "images",
        sizes: &[10, 100, 1000, 5000, 20_000],
        grow: images,
        phases: &[
            Phase {
                name: "build",
                about: "images in the store, a build of which nothing changed",
                megabytes: MEGABYTES,
                before: Bench::build_once,
                run: INTO_STORE,
            },
            Phase {
                name: "list",
                about: "images in the store, all listed",
                megabytes: MEGABYTES,
                before: |_| Ok(()),
                run: Run::Command(&["images"]),
            },
            Phase {
                name: "space",
                about: "images in the store, the space that all take",
                megabytes: MEGABYTES,
                before: |_| Ok(()),
                run: Run::Command(&["system", "df"]),
            },
        ],
        gigabytes: 1,
    },
    Curve {
        name: "records",
        unit: "records",
        sizes: &[1000, 10_000, 100_000, 1_000_000],
        grow: |bench, from, to| {
            bench.dockerfile("FROM busybox\nRUN true\n")?;
            records(&bench.root(), from, to)
        },
        phases: &[
            Phase {
                name: "warm",
                about: "cache records in the store, a build of which nothing changed",
                megabytes: MEGABYTES,
                before: Bench::build_once,
                run: INTO_STORE,
            },
            Phase {
                name: "run",
                about: "cache records in the store, a build with one new step",
                megabytes: MEGABYTES,
                before: |bench| {
                    let nonce = bench.nonce();
                    bench.dockerfile(&format!("FROM busybox\nRUN : {nonce}\n"))
                },
                run: INTO_STORE,
            },
        ],
        gigabytes: 2,
    },
    Curve {
        name: "at-once",
        unit: "builds",
        sizes: &[1, 2, 4, 8, 16, 32, 64],
        grow: |bench, _, _| bench.dockerfile("FROM busybox\nRUN echo 1 > /one\n"),
        phases: &[Phase {
            name: "",
            about: "equal builds of one step at once over one store",
            megabytes: MEGABYTES,
            before: Bench::forget,
            run: Run::BuildsAtOnce(&["-t", "grown"]),
        }],
        gigabytes: 1,
    },
];

/// Makes small files, a hundred in each folder.
fn files(bench: &Bench, from: u64, to: u64) -> anyhow::Result<()> {
    for number in from..to {
        let folder = bench.context().join(format!("d{}", number / 100));
        if number % 100 == 0 {
            fs::create_dir(&folder)?;
        }
        fs::write(
            folder.join(format!("f{number}")),
            format!("{number}\n").repeat(30),
        )?;
    }
    bench.dockerfile("FROM scratch\nCOPY . /src\n")
}

fn stages(bench: &Bench, _: u64, count: u64) -> anyhow::Result<()> {
    let mut text = String::from("FROM busybox AS base\n");
    for number in 3..count {
        text.push_str(&format!(
            "FROM base AS s{number}\nENV A{number}=1\nRUN sleep 1000 {number}\nCOPY . /x\n"
        ));
    }
    text.push_str("FROM base AS dep\nRUN echo 1 > /one\nFROM base\nCOPY --from=dep /one /one\n");
    bench.dockerfile(&text)
}

/// A tree of stages: each copies a file of its own, and what two others made.
fn needed_stages(bench: &Bench, _: u64, count: u64) -> anyhow::Result<()> {
    fs::write(bench.context().join("x"), "x")?;
    let mut text = String::new();
    for number in (1..=count).rev() {
        text.push_str(&format!("FROM scratch AS s{number}\nCOPY x /{number}\n"));
        for below in [2 * number, 2 * number + 1] {
            if below <= count {
                text.push_str(&format!("COPY --from=s{below} /{below} /{below}\n"));
            }
        }
    }
    bench.dockerfile(&text)
}

fn layers(bench: &Bench, _: u64, count: u64) -> anyhow::Result<()> {
    let lines = (0..count).map(|number| format!("RUN echo {number} > /{number}\n"));
    bench.dockerfile(&format!("FROM busybox\n{}", lines.collect::<String>()))
}

/// Makes a file of so many megabytes, half of it random.
fn large_file(bench: &Bench, from: u64, to: u64) -> anyhow::Result<()> {
    use std::io::Write;
    let path = bench.context().join("large");
    let mut file = fs::File::options().append(true).create(true).open(path)?;
    let mut state = from + 1;
    let mut piece = vec![0_u8; 1_000_000];
    for _ in from..to {
        for chunk in piece.chunks_exact_mut(16) {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            chunk[..8].copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
        }
        file.write_all(&piece)
            .context("failed to write a large file")?;
    }
    bench.dockerfile("FROM scratch\nCOPY large /\n")
}

/// Things that are added to a store before it is opened anew, which lets go of what was held.
const BATCH: u64 = 500;

/// Adds images to a store, each with a layer, a config, a name and a record, as builds leave them.
fn images(bench: &Bench, from: u64, to: u64) -> anyhow::Result<()> {
    let mut store = Store::open(&bench.root(), OpenOptions::new(None))?;
    for number in from..to {
        if number % BATCH == 0 {
            store = Store::open(&bench.root(), OpenOptions::new(None))?;
        }
        let made = store.new_layer()?;
        fs::write(made.path().join("number"), number.to_string())?;
        let tar = Digest::sha256_of(number.to_string().as_bytes());
        let layer = made.commit(LayerInfo {
            tar: Some((tar.clone(), 2048)),
            content_id: None,
            bytes: 4096,
            content: 8,
            origin: "RUN make".to_owned(),
            created: number as i64,
        })?;
        store.record(
            &key(1, number),
            &[key(2, number)],
            &[layer.id()],
            &json!({"name": "RUN make"}),
        )?;
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": {"Cmd": ["sh"], "Labels": {"number": number.to_string()}},
            "rootfs": {"type": "layers", "diff_ids": [tar]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "RUN make"}]
        });
        let mut writer = store.blobs().writer()?;
        writer.append(&serde_json::to_vec(&config)?)?;
        let (id, _) = writer.commit_volatile(None)?;
        let image = Image {
            id,
            manifest: None,
            layers: Some(vec![layer.id()]),
            platform: "linux/amd64".to_owned(),
            size: 8,
            created: number as i64,
            annotations: Default::default(),
        };
        let name: Reference = format!("docker.io/library/grown-{number}:latest").parse()?;
        store.put_image(&image, &[name], None)?;
    }
    ensure!(
        store.images()?.len() as u64 >= to,
        "the store has fewer images than were added"
    );
    bench.dockerfile("FROM busybox\nRUN true\n")
}

/// Adds records of results to a store, as builds leave them.
fn records(root: &Path, from: u64, to: u64) -> anyhow::Result<()> {
    let store = Store::open(root, OpenOptions::new(None))?;
    let info = json!({"name": "RUN make", "took": 1.5});
    for number in from..to {
        let keys = [key(2, number), key(3, number)];
        store.record(&key(1, number), &keys, &[LayerId(1)], &info)?;
    }
    Ok(())
}

fn key(what: u8, number: u64) -> Key {
    let mut key = [what; 32];
    // Keys are hashes: neighbours in time lie far from each other in the index.
    key[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key
}

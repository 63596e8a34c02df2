//! `cargo xtask dist`: the static program, an archive, a Debian package, checksums.

mod trial;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::command::{command, output, run as run_command};
use crate::{program, tools, workspace};

/// The version of cargo-deb that is compiled where there is none.
const CARGO_DEB: &str = "3.8.0";

/// How the packages are made.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Package this program instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where the packages go [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A file of a package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Where it lies below `/`.
    path: String,
    mode: u32,
    content: Vec<u8>,
}

impl Entry {
    fn new(path: impl Into<String>, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            mode,
            content: content.into(),
        }
    }
}

/// Builds the program, makes the packages, and writes their checksums.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| workspace::root().join("target/dist"));
    fs::create_dir_all(&out).with_context(|| format!("failed to make {}", out.display()))?;
    let built = match &arguments.program {
        Some(program) => program.clone(),
        None => build()?,
    };
    check_static(&built)?;
    let program = out.join("lapstrake");
    // Another program may run from the old file: it is replaced, not written to.
    let _ = fs::remove_file(&program);
    fs::copy(&built, &program).with_context(|| format!("failed to copy {}", built.display()))?;
    trial::run(&program)?;
    let version = version(&program)?;
    let time = commit_time()?;
    let entries = entries(&program)?;
    let machine = std::env::consts::ARCH;
    let archive = format!("lapstrake-{version}-{machine}-linux.tar.gz");
    write_archive(
        &out.join(&archive),
        &format!("lapstrake-{version}"),
        &entries,
        time.unix_timestamp().unsigned_abs(),
    )?;
    // Debian's version: that of the program, and how often it was packaged.
    let revised = format!("{version}-1");
    let package = format!("lapstrake_{revised}_{}.deb", debian_machine(machine));
    write_package(&out.join(&package), &revised, &entries, time)?;
    write_checksums(&out, &["lapstrake", &archive, &package])
}

/// What the compiler is told for a program without a loader.
///
/// The `getrandom` crate looks for the C library's function of that name at run time, which a static program does not
/// find: it would open `/dev/urandom` instead, and fail in a root that has none. It is linked.
const STATIC_FLAGS: &str =
    "-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\"";

/// Builds the program for release without anything that is loaded when it starts.
fn build() -> anyhow::Result<PathBuf> {
    let machine = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = workspace::root().join("target/static");
    let mut cargo = program::cargo();
    cargo
        .args(["build", "--release", "--locked", "--package", "cli"])
        .args(["--features", "cli/in-process-names", "--target", &machine])
        .env("RUSTFLAGS", STATIC_FLAGS)
        .env("CARGO_TARGET_DIR", &folder);
    run_command(&mut cargo)?;
    Ok(folder.join(machine).join("release/lapstrake"))
}

/// Refuses a program that asks for a loader (`PT_INTERP`).
fn check_static(program: &Path) -> anyhow::Result<()> {
    let bytes =
        fs::read(program).with_context(|| format!("failed to read {}", program.display()))?;
    match has_loader(&bytes) {
        Some(false) => Ok(()),
        Some(true) => bail!("{} is not linked statically", program.display()),
        None => bail!("{} is no 64-bit ELF program", program.display()),
    }
}

/// Returns whether a program has a segment that names a loader; `None` where it is no program of 64 bits.
fn has_loader(bytes: &[u8]) -> Option<bool> {
    const LITTLE_ENDIAN_64: &[u8] = b"\x7fELF\x02\x01";
    const INTERPRETER: u32 = 3;
    if !bytes.starts_with(LITTLE_ENDIAN_64) {
        return None;
    }
    let at = |from: usize, length: usize| bytes.get(from..from.checked_add(length)?);
    let table = usize::try_from(u64::from_le_bytes(at(32, 8)?.try_into().ok()?)).ok()?;
    let size = usize::from(u16::from_le_bytes(at(54, 2)?.try_into().ok()?));
    let count = usize::from(u16::from_le_bytes(at(56, 2)?.try_into().ok()?));
    for number in 0..count {
        let kind = at(table.checked_add(number * size)?, 4)?;
        if u32::from_le_bytes(kind.try_into().ok()?) == INTERPRETER {
            return Some(true);
        }
    }
    Some(false)
}

fn version(program: &Path) -> anyhow::Result<String> {
    let told = output(Command::new(program).args(["version", "--format", "{{.Client.Version}}"]))?;
    let version = told.trim().to_owned();
    if version.is_empty()
        || !version
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-+".contains(c))
    {
        bail!("{} tells no version: {version:?}", program.display());
    }
    Ok(version)
}

/// Returns the time of the last commit, which everything in the packages carries.
fn commit_time() -> anyhow::Result<OffsetDateTime> {
    let mut git = command("git", ["log", "-1", "--format=%ct"]);
    let told = output(git.current_dir(workspace::root()))?;
    let seconds = told.trim().parse().context("git tells no time")?;
    OffsetDateTime::from_unix_timestamp(seconds).context("git tells no time")
}

/// Returns what is installed, in the order of its paths.
fn entries(program: &Path) -> anyhow::Result<Vec<Entry>> {
    let read = |path: &str| {
        let path = workspace::root().join(path);
        fs::read(&path).with_context(|| format!("failed to read {}", path.display()))
    };
    let mut entries = vec![
        Entry::new("usr/bin/lapstrake", 0o755, fs::read(program)?),
        Entry::new(
            "usr/share/lapstrake/apparmor/lapstrake",
            0o644,
            read("packaging/apparmor/lapstrake")?,
        ),
        Entry::new(
            "usr/share/lintian/overrides/lapstrake",
            0o644,
            read("packaging/debian/lintian-overrides")?,
        ),
        Entry::new(
            "usr/share/doc/lapstrake/README.md",
            0o644,
            read("README.md")?,
        ),
        Entry::new(
            "usr/share/doc/lapstrake/changelog",
            0o644,
            read("CHANGELOG.md")?,
        ),
    ];
    for (shell, path) in [
        ("bash", "usr/share/bash-completion/completions/lapstrake"),
        ("zsh", "usr/share/zsh/vendor-completions/_lapstrake"),
        ("fish", "usr/share/fish/vendor_completions.d/lapstrake.fish"),
    ] {
        let text = output(Command::new(program).args(["completions", shell]))?;
        entries.push(Entry::new(path, 0o644, text));
    }
    let pages = tempfile::tempdir()?;
    output(
        Command::new(program)
            .args(["man", "--out"])
            .arg(pages.path()),
    )?;
    for page in fs::read_dir(pages.path())? {
        let page = page?;
        let name = page.file_name().to_string_lossy().into_owned();
        entries.push(Entry::new(
            format!("usr/share/man/man1/{name}"),
            0o644,
            fs::read(page.path())?,
        ));
    }
    entries.sort();
    Ok(entries)
}

/// Writes a tar of entries, all root's, all of one time.
fn write_tar<W: std::io::Write>(to: W, entries: &[Entry], time: u64) -> anyhow::Result<W> {
    let mut tar = tar::Builder::new(to);
    let mut folders = std::collections::BTreeSet::new();
    for entry in entries {
        let header = |kind: tar::EntryType, mode: u32, size: u64| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(size);
            header.set_mtime(time);
            header.set_uid(0);
            header.set_gid(0);
            header
        };
        let parents: Vec<&Path> = Path::new(&entry.path).ancestors().skip(1).collect();
        for parent in parents
            .into_iter()
            .rev()
            .filter(|path| !path.as_os_str().is_empty())
        {
            if folders.insert(parent.to_path_buf()) {
                let mut header = header(tar::EntryType::Directory, 0o755, 0);
                tar.append_data(&mut header, parent, std::io::empty())?;
            }
        }
        let mut header = header(
            tar::EntryType::Regular,
            entry.mode,
            entry.content.len() as u64,
        );
        tar.append_data(&mut header, &entry.path, &*entry.content)?;
    }
    Ok(tar.into_inner()?)
}

fn write_archive(path: &Path, folder: &str, entries: &[Entry], time: u64) -> anyhow::Result<()> {
    let short = |entry: &Entry| Entry {
        path: entry.path.replacen("usr", folder, 1),
        ..entry.clone()
    };
    let mut entries: Vec<Entry> = entries.iter().map(short).collect();
    let licence = workspace::root().join("LICENSE");
    let licence =
        fs::read(&licence).with_context(|| format!("failed to read {}", licence.display()))?;
    entries.push(Entry::new(format!("{folder}/LICENSE"), 0o644, licence));
    entries.sort();
    let file = File::create(path).with_context(|| format!("failed to write {}", path.display()))?;
    write_tar(GzEncoder::new(file, Compression::best()), &entries, time)?.finish()?;
    Ok(())
}

fn debian_machine(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Has cargo-deb write a Debian package, as `crates/cli/Cargo.toml` says, of the entries laid out as files.
fn write_package(
    path: &Path,
    version: &str,
    entries: &[Entry],
    time: OffsetDateTime,
) -> anyhow::Result<()> {
    let left_out = left_out(&assets()?, entries);
    if !left_out.is_empty() {
        bail!(
            "crates/cli/Cargo.toml does not take into the package: {}",
            left_out.join(", ")
        );
    }
    let staged = workspace::root().join("target/package");
    match fs::remove_dir_all(&staged) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("failed to remove {}", staged.display()));
        }
        _ => {}
    }
    for entry in entries {
        let file = staged.join("root").join(&entry.path);
        let folder = file.parent().expect("an entry lies in a folder");
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to make {}", folder.display()))?;
        fs::write(&file, &entry.content)
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    fs::write(staged.join("changelog"), changelog(version, time)?)?;
    let mut deb = command(
        &cargo_deb()?,
        ["--package", "cli", "--no-build", "--no-strip"],
    );
    // Two threads or ten: the bytes are the same.
    deb.args(["--quiet", "--deb-version", version, "--output"])
        .arg(path)
        .current_dir(workspace::root())
        .env("CARGO", program::cargo().get_program())
        .env("SOURCE_DATE_EPOCH", time.unix_timestamp().to_string());
    run_command(&mut deb)
}

/// Returns what the package is made of: where each file is found, where it goes, its mode.
fn assets() -> anyhow::Result<Vec<[String; 3]>> {
    let told = output(program::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let about: Value = serde_json::from_str(&told).context("failed to read cargo's metadata")?;
    let packages = about["packages"].as_array().into_iter().flatten();
    let cli = packages
        .into_iter()
        .find(|package| package["name"] == "cli");
    let assets = cli.map(|package| package["metadata"]["deb"]["assets"].clone());
    serde_json::from_value(assets.unwrap_or_default())
        .context("crates/cli/Cargo.toml has no assets")
}

/// Returns the entries that no asset takes into the package, or with another mode.
fn left_out<'a>(assets: &[[String; 3]], entries: &'a [Entry]) -> Vec<&'a str> {
    let takes = |asset: &[String; 3], entry: &Entry| {
        let (folder, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
        let [source, place, mode] = asset;
        let staged = source.strip_prefix("../../target/package/root/");
        let from = staged.and_then(|source| source.rsplit_once('/'));
        from.is_some_and(|(from, pattern)| from == folder && (pattern == "*" || pattern == name))
            && place.strip_suffix('/') == Some(folder)
            && *mode == format!("{:o}", entry.mode)
    };
    let is_left_out = |entry: &&Entry| !assets.iter().any(|asset| takes(asset, entry));
    let paths = entries.iter().filter(is_left_out);
    paths.map(|entry| entry.path.as_str()).collect()
}

/// Returns what Debian's tools read as the changes of this version.
fn changelog(version: &str, time: OffsetDateTime) -> anyhow::Result<String> {
    let date = time.format(&Rfc2822)?;
    Ok(format!(
        "lapstrake ({version}) unstable; urgency=medium\n\n  * What has changed is told in CHANGELOG.md.\n\n \
         -- lapstrake maintainers <maintainers@users.noreply.github.com>  {date}\n"
    ))
}

/// Returns cargo-deb; where the machine has none, it is compiled once and kept with the target.
fn cargo_deb() -> anyhow::Result<String> {
    if tools::is_there("cargo-deb") {
        return Ok("cargo-deb".to_owned());
    }
    let folder = workspace::root().join("target/tools");
    let program = folder.join("bin/cargo-deb");
    if !program.is_file() {
        eprintln!("compiling cargo-deb {CARGO_DEB}");
        let mut install = program::cargo();
        install
            .args([
                "install",
                "cargo-deb",
                "--locked",
                "--version",
                CARGO_DEB,
                "--root",
            ])
            .arg(&folder)
            .env("CARGO_TARGET_DIR", folder.join("target"));
        run_command(&mut install)?;
        fs::remove_dir_all(folder.join("target"))?;
    }
    Ok(program.display().to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_checksums(out: &Path, names: &[&str]) -> anyhow::Result<()> {
    let mut text = String::new();
    for name in names {
        let bytes = fs::read(out.join(name))?;
        let _ = writeln!(text, "{}  {name}", hex(&Sha256::digest(&bytes)));
        println!("{} {:>12} bytes", out.join(name).display(), bytes.len());
    }
    fs::write(out.join("SHA256SUMS"), text)?;
    println!("{}", out.join("SHA256SUMS").display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> [Entry; 2] {
        [
            Entry::new("usr/bin/lapstrake", 0o755, "odd"),
            Entry::new("usr/share/man/man1/lapstrake.1", 0o644, "page"),
        ]
    }

    #[test]
    fn an_archive_is_the_same_for_the_same_files() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, entries: &[Entry]| {
            let path = folder.path().join(name);
            write_archive(&path, "lapstrake-1.2.3", entries, 1_700_000_000).unwrap();
            path
        };
        let [one, two] = entries();
        let first = write("first", &[one.clone(), two.clone()]);
        let second = write("second", &[two, one]);
        assert_eq!(fs::read(&first).unwrap(), fs::read(second).unwrap());
        let listed = output(command("tar", ["tvzf"]).arg(first)).unwrap();
        let lines: Vec<&str> = listed.lines().collect();
        assert_eq!(lines.len(), 8, "{listed}");
        assert!(lines.iter().all(|line| line.contains(" 0/0 ")), "{listed}");
        assert!(listed.contains("lapstrake-1.2.3/LICENSE\n"), "{listed}");
        assert!(lines.iter().any(|line| {
            line.starts_with("-rwxr-xr-x") && line.ends_with(" lapstrake-1.2.3/bin/lapstrake")
        }));
    }

    #[test]
    fn no_file_is_left_out_of_the_package() {
        let assets = assets().unwrap();
        assert_eq!(left_out(&assets, &entries()), Vec::<&str>::new());
        let [mut one, two] = entries();
        one.path = "usr/lib/lapstrake/one".to_owned();
        assert_eq!(left_out(&assets, &[one, two]), ["usr/lib/lapstrake/one"]);
        let [mut one, _] = entries();
        one.mode = 0o644;
        assert_eq!(left_out(&assets, &[one]), ["usr/bin/lapstrake"]);
    }

    #[test]
    fn what_is_built_in_is_allowed() {
        if !tools::is_there("cargo-deny") {
            println!("skipped: no cargo-deny on this machine");
            return;
        }
        // What is known of weaknesses comes over a network.
        let checks = ["deny", "--offline", "check", "licenses", "bans", "sources"];
        output(program::cargo().args(checks)).unwrap();
    }

    #[test]
    fn what_has_changed_is_told_as_debian_reads_it() {
        let time = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let text = changelog("1.2.3", time).unwrap();
        assert!(text.starts_with("lapstrake (1.2.3) unstable; urgency=medium\n\n  * "));
        assert!(
            text.ends_with(">  Tue, 14 Nov 2023 22:13:20 +0000\n"),
            "{text}"
        );
    }

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        let program = |kind: u32| {
            let mut bytes = vec![0_u8; 64 + 56];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            bytes[32] = 64;
            bytes[54] = 56;
            bytes[56] = 1;
            bytes[64..68].copy_from_slice(&kind.to_le_bytes());
            bytes
        };
        assert_eq!(has_loader(&program(3)), Some(true));
        assert_eq!(has_loader(&program(1)), Some(false));
        assert_eq!(has_loader(b"#!/bin/sh"), None);
        assert_eq!(has_loader(b"\x7fELF\x02\x01"), None);
        // This test is run by a loader.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(has_loader(&own).is_some());
    }
}

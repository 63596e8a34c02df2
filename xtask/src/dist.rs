//! `cargo xtask dist`: the static program, an archive, a Debian package, checksums.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use crate::command::{command, output, run as run_command};
use crate::{program, workspace};

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
    let version = version(&program)?;
    let time = commit_time()?;
    let entries = entries(&program)?;
    let machine = std::env::consts::ARCH;
    let archive = format!("lapstrake-{version}-{machine}-linux.tar.gz");
    write_archive(
        &out.join(&archive),
        &format!("lapstrake-{version}"),
        &entries,
        time,
    )?;
    let package = format!("lapstrake_{version}_{}.deb", debian_machine(machine));
    write_package(&out.join(&package), &version, &entries, time)?;
    write_checksums(&out, &["lapstrake", &archive, &package])
}

/// Builds the program for release without anything that is loaded when it starts.
fn build() -> anyhow::Result<PathBuf> {
    let machine = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = workspace::root().join("target/static");
    let mut cargo = program::cargo();
    cargo
        .args(["build", "--release", "--locked", "--package", "cli"])
        .args(["--features", "cli/in-process-names", "--target", &machine])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
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
fn commit_time() -> anyhow::Result<u64> {
    let mut git = command("git", ["log", "-1", "--format=%ct"]);
    let told = output(git.current_dir(workspace::root()))?;
    told.trim().parse().context("git tells no time")
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
            "etc/apparmor.d/lapstrake",
            0o644,
            read("packaging/apparmor/lapstrake")?,
        ),
        Entry::new(
            "usr/share/doc/lapstrake/README.md",
            0o644,
            read("README.md")?,
        ),
        Entry::new(
            "usr/share/doc/lapstrake/CHANGELOG.md",
            0o644,
            read("CHANGELOG.md")?,
        ),
        Entry::new("usr/share/doc/lapstrake/copyright", 0o644, read("LICENSE")?),
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
    let short = |entry: &Entry| {
        let path = entry.path.strip_prefix("usr/").unwrap_or(&entry.path);
        Entry {
            path: format!("{folder}/{path}"),
            ..entry.clone()
        }
    };
    let mut entries: Vec<Entry> = entries.iter().map(short).collect();
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

/// Writes a Debian package (deb(5)): an `ar` of a version, a tar about the package, and a tar of its files.
fn write_package(path: &Path, version: &str, entries: &[Entry], time: u64) -> anyhow::Result<()> {
    let bytes: usize = entries.iter().map(|entry| entry.content.len()).sum();
    let about = control(version, bytes.div_ceil(1024));
    let configuration = |entry: &&Entry| entry.path.starts_with("etc/");
    let files: Vec<String> = entries
        .iter()
        .filter(configuration)
        .map(|entry| format!("/{}\n", entry.path))
        .collect();
    let control = [
        Entry::new("conffiles", 0o644, files.concat()),
        Entry::new("control", 0o644, about),
        Entry::new("postinst", 0o755, POST_INSTALL),
    ];
    let packed = |entries: &[Entry]| -> anyhow::Result<Vec<u8>> {
        Ok(write_tar(
            GzEncoder::new(Vec::new(), Compression::best()),
            entries,
            time,
        )?
        .finish()?)
    };
    let mut package = b"!<arch>\n".to_vec();
    for (name, content) in [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", packed(&control)?),
        ("data.tar.gz", packed(entries)?),
    ] {
        let header = format!(
            "{name:<16}{time:<12}{:<6}{:<6}{:<8}{:<10}`\n",
            0,
            0,
            100_644,
            content.len()
        );
        package.extend_from_slice(header.as_bytes());
        package.extend_from_slice(&content);
        if content.len() % 2 == 1 {
            package.push(b'\n');
        }
    }
    fs::write(path, package).with_context(|| format!("failed to write {}", path.display()))
}

fn control(version: &str, kilobytes: usize) -> String {
    let machine = debian_machine(std::env::consts::ARCH);
    format!(
        "Package: lapstrake\nVersion: {version}\nArchitecture: {machine}\n\
         Maintainer: lapstrake maintainers <maintainers@users.noreply.github.com>\n\
         Installed-Size: {kilobytes}\nSection: admin\nPriority: optional\n\
         Recommends: uidmap, passt | slirp4netns, nftables, ca-certificates\nSuggests: git, qemu-user-static\n\
         Description: builds container images from Dockerfiles\n \
         No daemon, no root, one program: Dockerfiles in, OCI images out. The command line is\n \
         that of docker build.\n"
    )
}

/// Loads the profile where AppArmor is in use and knows the rule.
const POST_INSTALL: &str = "#!/bin/sh
set -e
if [ \"$1\" = configure ] && [ -d /sys/kernel/security/apparmor ] && command -v apparmor_parser >/dev/null; then
    # AppArmor before 4.0 knows no rule about user namespaces, and restricts none.
    apparmor_parser --replace --write-cache /etc/apparmor.d/lapstrake 2>/dev/null || true
fi
";

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

    #[test]
    fn packages_are_read_by_the_tools_of_debian() {
        if command("dpkg-deb", ["--version"]).output().is_err() {
            println!("skipped: no dpkg-deb on this machine");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.deb");
        let entries = [
            Entry::new("etc/apparmor.d/lapstrake", 0o644, "profile\n"),
            Entry::new("usr/bin/lapstrake", 0o755, "odd"),
        ];
        write_package(&path, "1.2.3", &entries, 1_700_000_000).unwrap();
        let shown = path.to_str().unwrap();
        let listed = output(&mut command("dpkg-deb", ["--contents", shown])).unwrap();
        assert!(
            listed.contains("-rwxr-xr-x root/root") || listed.contains("-rwxr-xr-x 0/0"),
            "{listed}"
        );
        assert!(listed.contains("usr/bin/lapstrake"), "{listed}");
        let field = output(&mut command("dpkg-deb", ["--field", shown, "Version"])).unwrap();
        assert_eq!(field, "1.2.3\n");
        let again = folder.path().join("two.deb");
        write_package(&again, "1.2.3", &entries, 1_700_000_000).unwrap();
        assert_eq!(fs::read(path).unwrap(), fs::read(again).unwrap());
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

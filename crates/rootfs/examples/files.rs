//! Times file operations on a real tree.
//!
//! ```text
//! files copy|link SOURCE DEST     copy a tree into an empty directory
//! files walk DIR                  capture a context, beside a bare walk with one statx a file
//! files checksum DIR              checksum a context without and with what is remembered of it
//! files stage DIR DEST            copy a context into an empty directory and hash it
//! ```

use std::path::Path;
use std::time::Instant;

use rootfs::checksum::{Selection, checksum};
use rootfs::context::Capture;
use rootfs::copy::{Copy, LinkPolicy, copy};
use rootfs::memo::{FileMemo, MemoTable, NoMemo};
use rootfs::{Result, Tree};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["copy", source, dest] => timed("copy", || copy_tree(source, dest, LinkPolicy::Never)),
        ["link", source, dest] => timed("link", || copy_tree(source, dest, LinkPolicy::Allowed)),
        ["walk", dir] => {
            for _ in 0..3 {
                timed("bare statx walk", || Ok(bare_walk(Path::new(dir))))?;
                timed("capture", || {
                    Capture::new(Path::new(dir), None, None).map(|c| c.len())
                })?;
            }
            Ok(())
        }
        ["checksum", dir] => {
            let memo = MemoTable::default();
            timed("cold", || sum(dir, &memo))?;
            let bytes = timed("save", || Ok(memo.to_bytes()))?;
            for _ in 0..3 {
                let memo = timed("load", || Ok(MemoTable::from_bytes(bytes.clone())))?;
                timed("warm", || sum(dir, &memo))?;
            }
            timed("as a tree", || {
                checksum(&Tree::open(Path::new(dir))?, &Selection::path("/"), &NoMemo)
            })?;
            Ok(())
        }
        ["stage", dir, dest] => timed("stage", || {
            let capture = Capture::new(Path::new(dir), None, None)?;
            let staged = capture.stage(&[Selection::path("/")], Path::new(dest), &NoMemo, None)?;
            println!("{staged:?}");
            Ok(())
        }),
        _ => panic!("files copy|link|walk|checksum|stage DIR [DEST]"),
    }
}

/// Prints the time that passed and the processor time of all threads: on a busy machine only the latter means much.
fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let processor = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec as f64 * 1000.0 + time.tv_nsec as f64 / 1e6
    };
    let (start, before) = (Instant::now(), processor());
    let result = work();
    let passed = start.elapsed().as_secs_f64() * 1000.0;
    println!(
        "{passed:>8.1} ms, {:>8.1} ms of processor time: {what}",
        processor() - before
    );
    result
}

fn copy_tree(source: &str, dest: &str, link: LinkPolicy) -> Result<()> {
    let request = Copy {
        dir_contents: true,
        create_dest_path: true,
        link,
        ..Copy::new("/", "/")
    };
    let report = copy(
        &Tree::open(Path::new(source))?,
        &Tree::open(Path::new(dest))?,
        &request,
    )?;
    println!("{report:?}");
    Ok(())
}

fn sum(dir: &str, memo: &dyn FileMemo) -> Result<[u8; 32]> {
    Capture::new(Path::new(dir), None, None)?.checksum(&Selection::path("/"), memo)
}

/// The least that looking at every file costs on one thread.
fn bare_walk(dir: &Path) -> usize {
    use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags, openat, statx};
    fn walk(dir: &impl std::os::fd::AsFd, count: &mut usize) {
        for entry in Dir::read_from(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            *count += 1;
            let _ = statx(
                dir,
                name,
                AtFlags::SYMLINK_NOFOLLOW,
                StatxFlags::BASIC_STATS,
            );
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            if entry.file_type() == FileType::Directory
                && let Ok(below) = openat(dir, name, flags, Mode::empty())
            {
                walk(&below, count);
            }
        }
    }
    let mut count = 0;
    if let Ok(root) = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
        walk(&root, &mut count);
    }
    count
}

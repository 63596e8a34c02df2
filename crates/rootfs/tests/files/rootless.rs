//! The same operations in a user namespace, where overlay keeps its marks in `user.overlay.*`.

use std::fs;
use std::process::Command;

use crate::support::{build, describe, lines, path_of};
use rootfs::copy::{Copy, Mkfile, Remove, copy, mkfile, remove};
use rootfs::overlay::supported;
use rootfs::{Overlay, OverlayXattrs, Tree};

const INSIDE: &str = "ROOTFS_TEST_IN_USER_NAMESPACE";

/// Runs a test again inside a user and mount namespace; skipped where there are none.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshared = Command::new("unshare").args(["-Urm", "true"]).status();
    if !unshared.is_ok_and(|status| status.success()) {
        println!("skipped: no user namespaces here");
        return false;
    }
    let status = Command::new("unshare")
        .arg("-Urm")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in the user namespace");
    false
}

#[test]
fn layers_are_written_and_mounted_without_privileges() {
    if !inside("rootless::layers_are_written_and_mounted_without_privileges") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [lower, upper, work, scratch, source] = ["lower", "upper", "work", "scratch", "source"]
        .map(|name| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        });
    build(
        &lower,
        "d/old file o\nd/gone file g\nkeep dir 711\nkeep/f file k",
    );
    build(&source, "d/new file n 4755\nd/l -> new");
    if let Err(error) = supported(&scratch, OverlayXattrs::User) {
        println!("skipped: {error}");
        return;
    }

    let overlay = Overlay::open(&[&lower], OverlayXattrs::User)
        .unwrap()
        .with_upper(&upper, &work)
        .unwrap();
    let dest = Tree::writable(
        overlay.lowers,
        overlay.upper.unwrap().upper,
        OverlayXattrs::User,
    );
    let rm = |path: &str| Remove {
        path: path.to_owned(),
        allow_not_found: false,
        wildcard: false,
    };
    remove(&dest, &rm("/keep/f")).unwrap();
    remove(&dest, &rm("/d")).unwrap();
    let request = Copy {
        create_dest_path: true,
        ..Copy::new("/d", "/d")
    };
    copy(&Tree::open(&source).unwrap(), &dest, &request).unwrap();
    let file = Mkfile {
        path: "/m".to_owned(),
        mode: 0o600,
        data: b"m".to_vec(),
        owner: None,
        time: None,
    };
    mkfile(&dest, &file).unwrap();
    let expect = lines("d dir 755\nd/l -> new\nd/new file n 4755\nkeep dir 711\nm file m 600");

    let both = Overlay::open(&[&lower, &upper], OverlayXattrs::User).unwrap();
    let mounted = both.mount_detached().unwrap();
    assert_eq!(describe(&path_of(&mounted)), expect);
    let merged = dir.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let view = Tree::open_layers(&[&lower, &upper], OverlayXattrs::User).unwrap();
    let all = Copy {
        dir_contents: true,
        create_dest_path: true,
        ..Copy::new("/", "/")
    };
    copy(&view, &Tree::open(&merged).unwrap(), &all).unwrap();
    assert_eq!(describe(&merged), expect);
}

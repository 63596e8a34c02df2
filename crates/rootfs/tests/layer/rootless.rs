//! Layers in a user namespace, as without privileges.

use std::process::Command;

use rootfs::apply::{ApplyOptions, Devices, Ownership, apply_layer};
use rootfs::compress::{CompressOptions, Compression};
use rootfs::diff::{DiffOptions, write_layer};
use rootfs::{Form, OverlayXattrs};

use crate::support::*;

const FORM: Form = Form::Overlay(OverlayXattrs::User);

#[test]
fn a_layer_is_unpacked_and_written_in_a_user_namespace() {
    let unshare = |arguments: &[&str]| {
        Command::new("unshare")
            .args(["--user", "--map-root-user"])
            .args(arguments)
            .output()
    };
    if !unshare(&["true"]).is_ok_and(|output| output.status.success()) {
        println!("skipped: needs user namespaces");
        return;
    }
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let output = unshare(&[
        own,
        "--exact",
        "rootless::inside_of_a_user_namespace",
        "--ignored",
        "--nocapture",
    ])
    .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The other half of the test above, which runs it where it belongs.
#[test]
#[ignore = "is run in a user namespace by another test"]
fn inside_of_a_user_namespace() {
    let capability =
        b"SCHILY.xattr.security.capability=\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let capability: &[u8] = capability;
    let tar = Tar::new()
        .file("d/.wh..wh..opq", "")
        .file(".wh.gone", "")
        .head(Head::new(b'0', "owned").mode(0o4755).owner(1000, 1000))
        .head(Head::new(b'3', "dev/null").device(1, 3))
        .head(Head::new(b'6', "pipe"))
        .pax(&[
            "SCHILY.xattr.trusted.x=y",
            "SCHILY.xattr.security.other=z",
            "SCHILY.xattr.user.mine=m",
        ])
        .file("file", "content")
        .pax(&[capability])
        .head(Head::new(b'0', "capable").mode(0o755))
        .end();
    let place = Place::new();
    let mut options = ApplyOptions::new(FORM);
    let error = place.apply_with(&tar[..], &options).unwrap_err();
    assert!(told(&error).contains("set the owner"), "{}", told(&error));

    let place = Place::new();
    options.ownership = Ownership::Ignore;
    options.devices = Devices::Skip;
    let applied = place.apply_with(&tar[..], &options).unwrap();
    assert_eq!(
        (applied.left_out.devices, applied.left_out.reserved_xattrs),
        (1, 1)
    );
    assert_eq!(applied.left_out.unsupported_xattrs, 1);
    let tree = place.tree();
    for line in [
        "d d 755 0:0 user.overlay.opaque=y",
        "file f 644 0:0 7 user.mine=m",
        "gone c 0 0:0 0:0",
        "owned f 4755 0:0 0",
        "pipe p 644 0:0",
    ] {
        assert!(
            tree.lines().any(|told| told == line),
            "{line} not in\n{tree}"
        );
    }
    assert!(
        tree.contains("capable f 755 0:0 0 security.capability="),
        "{tree}"
    );

    let mut blob = Vec::new();
    let diff = DiffOptions::new(FORM);
    let compress = CompressOptions::new(Compression::GZIP);
    let written = write_layer(&place.layer(), None, &diff, &compress, &mut blob).unwrap();
    let again = Place::new();
    let reapplied = apply_layer(&blob[..], &again.layer(), &options).unwrap();
    assert_eq!(reapplied.diff_id, written.layer.diff_id);
    assert_eq!(again.tree(), place.tree());
}

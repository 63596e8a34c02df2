//! What a layer takes for granted, filled in from the layers below.

use std::fs;
use std::path::PathBuf;

use rootfs::apply::{Applied, ApplyOptions, apply_layer, mend};
use rootfs::{LayerDir, OverlayXattrs, Tree};

use crate::support::*;

/// Layers on top of each other, the lowest first.
struct Chain {
    dir: tempfile::TempDir,
    layers: Vec<PathBuf>,
}

impl Chain {
    fn new() -> Chain {
        Chain {
            dir: tempfile::tempdir().unwrap(),
            layers: Vec::new(),
        }
    }

    fn lowers(&self) -> Tree {
        Tree::open_layers(&self.layers, OverlayXattrs::Trusted).unwrap()
    }

    /// Unpacks and mends one more layer; returns its tree and whether it depends on those below.
    fn push(&mut self, tar: Tar) -> (String, bool) {
        let path = self.dir.path().join(self.layers.len().to_string());
        fs::create_dir(&path).unwrap();
        let layer = LayerDir::open(&path).unwrap();
        let applied: Applied =
            apply_layer(&tar.end()[..], &layer, &ApplyOptions::new(OVERLAY)).unwrap();
        let depends = mend(&layer, OVERLAY, &applied, &self.lowers()).unwrap();
        let told = tree(&path);
        self.layers.push(path);
        (told, depends)
    }
}

fn base() -> Tar {
    Tar::new()
        .head(Head::new(b'5', "home").mode(0o750).owner(7, 8))
        .pax(&["mtime=1234567890.5", "SCHILY.xattr.user.a=b"])
        .head(Head::new(b'5', "home/me").mode(0o700).owner(1000, 1000))
        .head(Head::new(b'5', "usr/lib").mode(0o711))
        .symlink("lib", "usr/lib")
        .file("file", "")
}

#[test]
fn missing_directories_get_what_they_have_below() {
    if !is_root() {
        return;
    }
    let mut chain = Chain::new();
    assert!(!chain.push(base()).1);
    let (told, depends) = chain.push(Tar::new().file("home/me/new", "").file("opt/x", ""));
    assert!(depends);
    assert_eq!(
        told,
        " d 755 0:0\nhome d 750 7:8\nhome/me d 700 1000:1000 user.a=b\nhome/me/new f 644 0:0 0\nopt d 755 0:0\nopt/x f 644 0:0 0\n"
    );
    assert_eq!(
        mtime(&chain.layers[1].join("home/me")),
        (1_234_567_890, 500_000_000)
    );
    assert_eq!(mtime(&chain.layers[1].join("opt")), (0, 0));
    // From a layer that was mended itself, and from the topmost that has it.
    let (told, _) = chain.push(
        Tar::new()
            .head(Head::new(b'5', "home").mode(0o701))
            .file("home/me/x", ""),
    );
    assert!(
        told.contains("home d 701 0:0\nhome/me d 700 1000:1000 user.a=b\n"),
        "{told}"
    );
}

#[test]
fn a_layer_that_takes_nothing_for_granted_depends_on_nothing() {
    if !is_root() {
        return;
    }
    let mut chain = Chain::new();
    chain.push(base());
    assert!(!chain.push(Tar::new().dir("home").file("home/x", "")).1);
    assert!(!chain.push(Tar::new().file("new/x", "")).1);
}

#[test]
fn what_is_hidden_gives_nothing() {
    if !is_root() {
        return;
    }
    let mut chain = Chain::new();
    chain.push(base());
    // In this layer: the directory itself takes from below, what is in it does not.
    let (told, _) = chain.push(
        Tar::new()
            .file("home/.wh..wh..opq", "")
            .file("home/me/x", ""),
    );
    assert!(
        told.contains("home d 750 7:8 trusted.overlay.opaque=y\nhome/me d 755 0:0\n"),
        "{told}"
    );
    // In a layer between.
    chain.push(Tar::new().file(".wh.usr", ""));
    let (told, depends) = chain.push(Tar::new().file("usr/lib/x", "").file("file/x", ""));
    assert!(
        told.contains("usr d 755 0:0\nusr/lib d 755 0:0\n"),
        "{told}"
    );
    assert!(!depends);
}

#[test]
fn a_symlink_below_is_replaced_by_a_directory_like_the_one_it_leads_to() {
    if !is_root() {
        return;
    }
    let mut chain = Chain::new();
    chain.push(base());
    let (told, depends) = chain.push(Tar::new().file("lib/x", ""));
    assert!(depends);
    assert_eq!(told, " d 755 0:0\nlib d 711 0:0\nlib/x f 644 0:0 0\n");
}

#[test]
fn the_root_is_like_the_one_below() {
    if !is_root() {
        return;
    }
    let mut chain = Chain::new();
    chain.push(Tar::new().head(Head::new(b'5', "./").mode(0o700).owner(1, 2)));
    let (told, depends) = chain.push(Tar::new().file("x", ""));
    assert_eq!(told, " d 700 1:2\nx f 644 0:0 0\n");
    assert!(depends);
    let (told, depends) = chain.push(Tar::new().head(Head::new(b'5', ".").mode(0o755)));
    assert_eq!(told, " d 755 0:0\n");
    assert!(!depends);
}

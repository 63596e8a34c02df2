//! Directories, files and symlinks that are made, and what is removed, each in three forms of one destination.

use crate::support::{Stack, describe, lines, on_each_form, source};
use rootfs::copy::{
    Copy, LinkPolicy, Mkdir, Mkfile, Owner, Remove, Symlink, copy, mkdir, mkfile, remove, symlink,
};
use rootfs::{Error, Tree};

#[test]
fn mkdir_makes_parents_and_leaves_what_exists() {
    let request = |path: &str, make_parents| Mkdir {
        path: path.to_owned(),
        mode: 0o750,
        make_parents,
        owner: Some(Owner { uid: 1, gid: 2 }),
        time: None,
    };
    let check = |layers: &[&str], request: Mkdir, expect: &str| {
        assert_eq!(
            on_each_form(layers, |dest| mkdir(dest, &request)),
            Ok(lines(expect))
        );
    };
    check(
        &[""],
        request("/a/b", true),
        "a dir 750 1:2\na/b dir 750 1:2",
    );
    check(
        &["a dir 777"],
        request("/a/b", false),
        "a dir 777\na/b dir 750 1:2",
    );
    check(&["a dir 777"], request("/a", true), "a dir 777");
    check(
        &["l -> /x/y"],
        request("l/z", true),
        "l -> /x/y\nx dir 750 1:2\nx/y dir 750 1:2\nx/y/z dir 750 1:2",
    );
    let error = on_each_form(&[""], |dest| mkdir(dest, &request("/a/b", false)));
    assert_eq!(error, Err("/a/b: no such file or directory".to_owned()));
    let error = on_each_form(&["f file x"], |dest| mkdir(dest, &request("/f/b", true)));
    assert_eq!(error, Err("/f is not a directory".to_owned()));
}

#[test]
fn mkfile_writes_through_symlinks_and_keeps_an_old_files_mode() {
    let request = |path: &str| Mkfile {
        path: path.to_owned(),
        mode: 0o640,
        data: b"new".to_vec(),
        owner: None,
        time: None,
    };
    let check = |layers: &[&str], path: &str, expect: &str| {
        assert_eq!(
            on_each_form(layers, |dest| mkfile(dest, &request(path))),
            Ok(lines(expect))
        );
    };
    check(&[""], "/f", "f file new 640");
    check(&["f file old 755 3:4"], "/f", "f file new 755 3:4");
    check(
        &["l -> /d/f\nd dir"],
        "/l",
        "d dir 755\nd/f file new 640\nl -> /d/f",
    );
    for path in ["/d", "/x/f"] {
        on_each_form(&["d dir"], |dest| mkfile(dest, &request(path))).unwrap_err();
    }
}

#[test]
fn mkfile_does_not_write_into_a_layer_that_shares_the_file() {
    let layer = source("f file committed");
    let to = tempfile::tempdir().unwrap();
    let dest = Tree::open(to.path()).unwrap();
    let link = Copy {
        link: LinkPolicy::Allowed,
        ..Copy::new("/f", "/f")
    };
    copy(&Tree::open(layer.path()).unwrap(), &dest, &link).unwrap();
    let request = Mkfile {
        path: "/f".to_owned(),
        mode: 0o644,
        data: b"new".to_vec(),
        owner: None,
        time: None,
    };
    mkfile(&dest, &request).unwrap();
    assert_eq!(describe(layer.path()), "f file committed 644\n");
    assert_eq!(describe(to.path()), "f file new 644\n");
}

#[test]
fn symlinks_are_made_where_nothing_is() {
    let request = |path: &str| Symlink {
        target: "../t".to_owned(),
        path: path.to_owned(),
        owner: None,
        time: None,
    };
    let result = on_each_form(&["d dir"], |dest| symlink(dest, &request("/d/l")));
    assert_eq!(result, Ok(lines("d dir 755\nd/l -> ../t")));
    on_each_form(&["d file x"], |dest| symlink(dest, &request("/d"))).unwrap_err();
}

#[test]
fn remove_takes_paths_patterns_and_missing_ones() {
    let request = |path: &str, allow_not_found, wildcard| Remove {
        path: path.to_owned(),
        allow_not_found,
        wildcard,
    };
    let layers = [
        "a/b/c file x\nd file y\nl -> a/b\ne1 file\te2",
        "a/b/k file z\ne1 file q\ne2 file r",
    ];
    let layers = [layers[0].replace("\ne1 file\te2", ""), layers[1].to_owned()];
    let layers = [&*layers[0], &*layers[1]];
    let check = |request: Remove, expect: &str| {
        assert_eq!(
            on_each_form(&layers, |dest| remove(dest, &request)),
            Ok(lines(expect))
        );
    };
    check(
        request("/a", false, false),
        "d file y 644\ne1 file q 644\ne2 file r 644\nl -> a/b",
    );
    check(
        request("/l", false, false),
        "a dir 755\na/b dir 755\na/b/c file x 644\na/b/k file z 644\nd file y 644\ne1 file q 644\ne2 file r 644",
    );
    check(
        request("/l/c", false, false),
        "a dir 755\na/b dir 755\na/b/k file z 644\nd file y 644\ne1 file q 644\ne2 file r 644\nl -> a/b",
    );
    check(
        request("/e?", false, true),
        "a dir 755\na/b dir 755\na/b/c file x 644\na/b/k file z 644\nd file y 644\nl -> a/b",
    );
    check(
        request("/nothing", true, false),
        "a dir 755\na/b dir 755\na/b/c file x 644\na/b/k file z 644\nd file y 644\ne1 file q 644\ne2 file r 644\nl -> a/b",
    );
    let error = on_each_form(&layers, |dest| {
        remove(dest, &request("/nothing", false, false))
    });
    assert_eq!(error, Err("/nothing: no such file or directory".to_owned()));
    on_each_form(&layers, |dest| remove(dest, &request("/", true, false))).unwrap_err();
}

#[test]
fn a_read_only_view_refuses_writes() {
    let stack = Stack::new(&["a file x"]);
    let request = Mkdir {
        path: "/d".to_owned(),
        mode: 0o755,
        make_parents: true,
        owner: None,
        time: None,
    };
    assert!(matches!(
        mkdir(&stack.view(), &request),
        Err(Error::ReadOnly { .. })
    ));
}

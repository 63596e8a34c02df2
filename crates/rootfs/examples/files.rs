//! Times file operations on a real tree: `files copy|link SOURCE DEST` (an empty directory).

use std::path::Path;
use std::time::Instant;

use rootfs::copy::{Copy, LinkPolicy, copy};
use rootfs::{Result, Tree};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, paths @ ..] = &arguments[..] else {
        panic!("files copy|link SOURCE DEST");
    };
    let start = Instant::now();
    match (what.as_str(), paths) {
        ("copy" | "link", [source, dest]) => {
            let request = Copy {
                dir_contents: true,
                create_dest_path: true,
                link: if what == "link" {
                    LinkPolicy::Allowed
                } else {
                    LinkPolicy::Never
                },
                ..Copy::new("/", "/")
            };
            let report = copy(
                &Tree::open(Path::new(source))?,
                &Tree::open(Path::new(dest))?,
                &request,
            )?;
            println!("{report:?}");
        }
        _ => panic!("files copy|link SOURCE DEST"),
    }
    println!("{} ms", start.elapsed().as_millis());
    Ok(())
}

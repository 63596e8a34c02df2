//! Times how layers are unpacked and written:
//!
//! ```text
//! layer apply BLOB DIRECTORY
//! layer write DIRECTORY BLOB uncompressed|gzip|zstd [LEVEL [THREADS]]
//! ```

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use rootfs::apply::{ApplyOptions, apply_layer};
use rootfs::compress::{CompressOptions, Compression};
use rootfs::diff::{DiffOptions, write_layer};
use rootfs::{Form, LayerDir, OverlayXattrs};

const FORM: Form = Form::Overlay(OverlayXattrs::Trusted);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let start = Instant::now();
    match arguments[..] {
        ["apply", blob, directory] => apply(Path::new(blob), Path::new(directory))?,
        ["write", directory, blob, ref how @ ..] => {
            write(Path::new(directory), Path::new(blob), how)?
        }
        _ => return Err("usage: layer apply BLOB DIRECTORY | layer write DIRECTORY BLOB FORMAT [LEVEL [THREADS]]".into()),
    }
    println!("{:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn apply(blob: &Path, directory: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir(directory)?;
    let layer = LayerDir::open(directory)?;
    let applied = apply_layer(File::open(blob)?, &layer, &ApplyOptions::new(FORM))?;
    println!(
        "{} entries, {} bytes, {}",
        applied.entries, applied.size, applied.diff_id
    );
    println!(
        "{} directories taken for granted, {:?}",
        applied.implicit.len(),
        applied.left_out
    );
    Ok(())
}

fn write(directory: &Path, blob: &Path, how: &[&str]) -> Result<(), Box<dyn Error>> {
    let level = how.get(1).map(|level| level.parse::<i32>()).transpose()?;
    let compression = match how.first() {
        Some(&"uncompressed") => Compression::Uncompressed,
        Some(&"gzip") => Compression::Gzip {
            level: level.unwrap_or(6).unsigned_abs(),
        },
        Some(&"zstd") => Compression::Zstd {
            level: level.unwrap_or(3),
        },
        _ => return Err("the format is uncompressed, gzip or zstd".into()),
    };
    let mut compress = CompressOptions::new(compression);
    if let Some(threads) = how.get(2) {
        compress.threads = threads.parse()?;
    }
    let layer = LayerDir::open(directory)?;
    let written = write_layer(
        &layer,
        None,
        &DiffOptions::new(FORM),
        &compress,
        File::create(blob)?,
    )?;
    println!(
        "{} entries, {} bytes, {}",
        written.layer.entries, written.layer.size, written.layer.diff_id
    );
    println!("{} bytes, {}", written.blob_size, written.blob);
    Ok(())
}

//! What Alpine's package manager knows of a file.

use rootfs::{RootPath, Tree};
use sha1::{Digest, Sha1};

use crate::EngineError;

/// Where the list of installed packages is; the second since version 3.
const DATABASES: [&str; 2] = ["/lib/apk/db/installed", "/usr/lib/apk/db/installed"];

const MAX_DATABASE: u64 = 64 << 20;

/// Returns whether a file of an image is as its package brought it.
pub(crate) fn is_unchanged(image: &Tree, path: &str, content: &[u8]) -> Result<bool, EngineError> {
    for place in DATABASES {
        if let Some(text) = image.read(&RootPath::new(place)?, MAX_DATABASE)? {
            let sum = sum_of(&String::from_utf8_lossy(&text), path);
            return Ok(sum.is_some_and(|sum| sum == sum_in_database(content)));
        }
    }
    Ok(false)
}

/// Returns the sum the database has of a file: `F:` names a directory, `R:` a file in it, `Z:` its sum.
fn sum_of(database: &str, path: &str) -> Option<String> {
    let (directory, name) = path.trim_start_matches('/').rsplit_once('/')?;
    let (mut here, mut file) = (false, false);
    for line in database.lines() {
        match line.split_once(':') {
            Some(("F", value)) => (here, file) = (value == directory, false),
            Some(("R", value)) => file = here && value == name,
            Some(("Z", value)) if file => return Some(value.to_owned()),
            _ => {}
        }
    }
    None
}

/// Returns the sum of a content as the database writes it: `Q1` and the base64 of a SHA-1.
fn sum_in_database(content: &[u8]) -> String {
    use base64::Engine as _;
    let sum = Sha1::digest(content);
    format!(
        "Q1{}",
        base64::engine::general_purpose::STANDARD.encode(sum)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_database() {
        // The well-known SHA-1 of "abc": a9993e364706816aba3e25717850c26c9cd0d89d.
        assert_eq!(sum_in_database(b"abc"), "Q1qZk+NkcGgWq6PiVxeFDCbJzQ2J0=");
        let database = "P:other\nF:etc\nR:file\nZ:Q1wrong=\n\nP:bundle\nF:etc/ssl/certs\nR:a.crt\nZ:Q1a=\n\
                        R:ca.crt\na:0:0:644\nZ:Q1right=\nF:usr\nR:ca.crt\nZ:Q1other=\n";
        assert_eq!(
            sum_of(database, "/etc/ssl/certs/ca.crt").as_deref(),
            Some("Q1right=")
        );
        assert_eq!(sum_of(database, "/etc/ssl/certs/none.crt"), None);
        assert_eq!(sum_of(database, "/usr/ca.crt").as_deref(), Some("Q1other="));
    }
}

//! Reads what a step prints, hides secrets, and sends it on.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;

use progress::Logger;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::EngineError;

/// Makes a pipe that no child gets by itself: its end to read and its end to write.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), EngineError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| EngineError::io("make", "a pipe")(errno.into()))
}

/// Reads one stream of a step.
pub(crate) struct OutputReader {
    stream: File,
    logger: Logger,
    mask: Mask,
}

impl OutputReader {
    /// Values in `secrets` are shown as `***`, also where they are cut by the pieces they come in.
    pub(crate) fn new(stream: OwnedFd, logger: Logger, secrets: &[Vec<u8>]) -> Self {
        Self {
            stream: stream.into(),
            logger,
            mask: Mask::new(secrets),
        }
    }

    /// Sends what is there; returns whether more may come.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        let more = match self.stream.read(buffer) {
            Ok(0) => false,
            Ok(count) => {
                let shown = self.mask.pass(&buffer[..count]);
                if !shown.is_empty() {
                    self.logger.log(shown);
                }
                true
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(error) => {
                tracing::warn!(%error, "output of a step cannot be read");
                false
            }
        };
        if !more {
            let rest = self.mask.finish();
            if !rest.is_empty() {
                self.logger.log(rest);
            }
        }
        more
    }
}

/// As much as a pipe holds, so that one read empties it.
const PIPE: usize = 64 * 1024;

/// Sends what streams yield, in pieces as they come; ends when the last writer of each has gone.
///
/// Nothing tells in which order streams were written that have something at the same moment. The first one goes first:
/// with stdout there, the reason of a failure comes last, as it was said.
pub(crate) fn read_to_end(readers: [OutputReader; 2]) {
    let mut buffer = vec![0; PIPE];
    let mut open = Vec::from(readers);
    while !open.is_empty() {
        let mut polled: Vec<PollFd<'_>> = open
            .iter()
            .map(|reader| PollFd::new(&reader.stream, PollFlags::IN))
            .collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "output of a step cannot be waited for");
                return;
            }
        }
        let ready: Vec<bool> = polled
            .iter()
            .map(|polled| !polled.revents().is_empty())
            .collect();
        let mut ready = ready.into_iter();
        open.retain_mut(|reader| !ready.next().unwrap_or(false) || reader.read(&mut buffer));
    }
}

/// Replaces secrets in a stream.
struct Mask {
    secrets: Vec<Vec<u8>>,
    /// The end of what came so far, which may be the beginning of a secret.
    kept: Vec<u8>,
}

const SHOWN: &[u8] = b"***";

impl Mask {
    fn new(secrets: &[Vec<u8>]) -> Self {
        let mut masked: Vec<Vec<u8>> = Vec::new();
        for secret in secrets {
            // Files end in a newline that a program may not print; each line of a key is one too.
            masked.push(secret.trim_ascii().to_vec());
            masked.extend(
                secret
                    .split(|byte| *byte == b'\n')
                    .map(|line| line.trim_ascii().to_vec()),
            );
        }
        // One or two characters would mask half of every output and hide nothing.
        masked.retain(|secret| secret.len() >= 3);
        masked.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        masked.dedup();
        Self {
            secrets: masked,
            kept: Vec::new(),
        }
    }

    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.secrets.is_empty() {
            return bytes.to_vec();
        }
        self.kept.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.kept);
        let mut shown = Vec::with_capacity(all.len());
        let mut at = 0;
        while at < all.len() {
            let rest = &all[at..];
            if let Some(secret) = self.secrets.iter().find(|secret| rest.starts_with(secret)) {
                shown.extend_from_slice(SHOWN);
                at += secret.len();
            } else if self.secrets.iter().any(|secret| secret.starts_with(rest)) {
                break;
            } else {
                shown.push(all[at]);
                at += 1;
            }
        }
        self.kept = all[at..].to_vec();
        shown
    }

    fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(secrets: &[&str], pieces: &[&str], expected: &str) {
        let secrets: Vec<Vec<u8>> = secrets
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .collect();
        let mut mask = Mask::new(&secrets);
        let mut shown = Vec::new();
        for piece in pieces {
            shown.extend(mask.pass(piece.as_bytes()));
        }
        shown.extend(mask.finish());
        assert_eq!(String::from_utf8(shown).expect("text"), expected);
    }

    #[test]
    fn secrets_are_hidden_also_when_cut() {
        check(&["hunter2\n"], &["x hunter2 y"], "x *** y");
        check(&["hunter2"], &["x hun", "ter", "2 y"], "x *** y");
        check(&["hunter2"], &["hunter", "3 hun"], "hunter3 hun");
        check(&["abcd", "abcdef"], &["abcdef abcd"], "*** ***");
        check(&["ab"], &["ab cab"], "ab cab");
        check(&[], &["plain"], "plain");
    }
}

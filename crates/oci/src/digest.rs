//! Content digests (image-spec, descriptor.md, digests).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// The longest digest in bytes.
const LONGEST: usize = 64;

/// A registered digest algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

impl Algorithm {
    /// Returns the name as it stands before the colon.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Returns the length of the hash in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("{text:?} is not a digest: expected <algorithm>:<hex>")]
    Format { text: String },
    #[error("digest {text:?} has an unsupported algorithm")]
    Algorithm { text: String },
    #[error("digest {text:?} does not have {expected} lower-case hexadecimal digits")]
    Encoding { text: String, expected: usize },
    #[error("a {algorithm} hash has {} bytes, not {actual}", algorithm.size())]
    Size { algorithm: Algorithm, actual: usize },
}

/// The digest of some content: algorithm and hash, always valid.
///
/// Orders as its text does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    /// The hash, then zeros.
    bytes: [u8; LONGEST],
}

impl Digest {
    /// Returns the SHA-256 digest of `content`.
    pub fn sha256_of(content: &[u8]) -> Self {
        Self::filled(Algorithm::Sha256, &Sha256::digest(content))
    }

    /// Makes a digest of a hash already computed.
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Result<Self, DigestError> {
        if hash.len() != algorithm.size() {
            return Err(DigestError::Size {
                algorithm,
                actual: hash.len(),
            });
        }
        Ok(Self::filled(algorithm, hash))
    }

    /// Makes a SHA-256 digest of a hash already computed.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self::filled(Algorithm::Sha256, &hash)
    }

    fn filled(algorithm: Algorithm, hash: &[u8]) -> Self {
        let mut bytes = [0; LONGEST];
        bytes[..hash.len()].copy_from_slice(hash);
        Self { algorithm, bytes }
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the hash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.size()]
    }

    /// Returns the hash in lower-case hexadecimal, the name of a blob's file.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = String::with_capacity(self.algorithm.size() * 2);
        for byte in self.as_bytes() {
            hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
            hex.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        hex
    }

    /// Returns the first twelve hexadecimal digits, for people.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }

    /// Whether this is the digest of `content`.
    pub fn is_of(&self, content: &[u8]) -> bool {
        let mut digester = Digester::new(self.algorithm);
        digester.update(content);
        digester.finish() == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm, self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some((name, encoded)) = text.split_once(':') else {
            return Err(DigestError::Format {
                text: text.to_owned(),
            });
        };
        if name.is_empty() || encoded.is_empty() {
            return Err(DigestError::Format {
                text: text.to_owned(),
            });
        }
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha384" => Algorithm::Sha384,
            "sha512" => Algorithm::Sha512,
            _ => {
                return Err(DigestError::Algorithm {
                    text: text.to_owned(),
                });
            }
        };
        let expected = algorithm.size() * 2;
        let invalid = || DigestError::Encoding {
            text: text.to_owned(),
            expected,
        };
        if encoded.len() != expected {
            return Err(invalid());
        }
        let mut bytes = [0; LONGEST];
        for (byte, pair) in bytes.iter_mut().zip(encoded.as_bytes().chunks_exact(2)) {
            let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
                return Err(invalid());
            };
            *byte = high << 4 | low;
        }
        Ok(Self { algorithm, bytes })
    }
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a [`Digest`] of content that comes in pieces.
#[derive(Debug, Clone)]
pub struct Digester {
    state: State,
    length: u64,
}

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Digester {
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha384 => State::Sha384(Sha384::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        };
        Self { state, length: 0 }
    }

    pub fn update(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        match &mut self.state {
            State::Sha256(state) => state.update(piece),
            State::Sha384(state) => state.update(piece),
            State::Sha512(state) => state.update(piece),
        }
    }

    /// Returns how many bytes were taken in.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(state) => Digest::filled(Algorithm::Sha256, &state.finalize()),
            State::Sha384(state) => Digest::filled(Algorithm::Sha384, &state.finalize()),
            State::Sha512(state) => Digest::filled(Algorithm::Sha512, &state.finalize()),
        }
    }
}

impl Default for Digester {
    fn default() -> Self {
        Self::new(Algorithm::Sha256)
    }
}

impl std::io::Write for Digester {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        self.update(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_round_trips_through_its_text() {
        assert_eq!(Digest::sha256_of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::sha256_of(b""));
        for (algorithm, digits) in [("sha384", 96), ("sha512", 128)] {
            let text = format!("{algorithm}:{}", "0a".repeat(digits / 2));
            assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn digest_needs_a_known_algorithm_and_lower_case_digits_of_the_right_number() {
        for text in [
            "",
            ":",
            "sha256",
            "sha256:",
            ":e3b0",
            "sha256:e3b0",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "SHA256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:E3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85g",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8555",
            "sha256:../../../../../../../../../../../../../../../../../../../../../../",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn digester_gives_the_digest_of_the_whole() {
        let mut digester = Digester::default();
        digester.update(b"ab");
        digester.update(b"c");
        assert_eq!(digester.length(), 3);
        assert_eq!(digester.finish(), Digest::sha256_of(b"abc"));
        assert!(Digest::sha256_of(b"abc").is_of(b"abc"));
        assert!(!Digest::sha256_of(b"abc").is_of(b"abd"));
    }

    #[test]
    fn digests_order_as_their_texts() {
        let mut digests: Vec<Digest> = (0..50_u8).map(|seed| Digest::sha256_of(&[seed])).collect();
        digests.push(format!("sha512:{}", "00".repeat(64)).parse().unwrap());
        digests.sort();
        let texts: Vec<String> = digests.iter().map(Digest::to_string).collect();
        assert!(texts.is_sorted());
    }
}

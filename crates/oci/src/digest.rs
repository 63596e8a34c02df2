//! Content digests (image-spec, descriptor.md, digests).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

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

/// The digest of some content: algorithm and hash, always valid. Cheap to clone.
///
/// Orders as its text does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Arc<str>);

impl Digest {
    /// Returns the SHA-256 digest of `content`.
    pub fn sha256_of(content: &[u8]) -> Self {
        Self::written(Algorithm::Sha256, &Sha256::digest(content))
    }

    /// Makes a digest of a hash already computed.
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Result<Self, DigestError> {
        if hash.len() != algorithm.size() {
            return Err(DigestError::Size {
                algorithm,
                actual: hash.len(),
            });
        }
        Ok(Self::written(algorithm, hash))
    }

    /// Makes a SHA-256 digest of a hash already computed.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self::written(Algorithm::Sha256, &hash)
    }

    fn written(algorithm: Algorithm, hash: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(algorithm.name().len() + 1 + hash.len() * 2);
        text.push_str(algorithm.name());
        text.push(':');
        for byte in hash {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        Self(text.into())
    }

    pub fn algorithm(&self) -> Algorithm {
        match self.hex().len() {
            64 => Algorithm::Sha256,
            96 => Algorithm::Sha384,
            _ => Algorithm::Sha512,
        }
    }

    /// Returns the whole text, `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the hash in lower-case hexadecimal, the name of a blob's file.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// Returns the first twelve hexadecimal digits, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// Returns the hash itself.
    pub fn to_hash(&self) -> Vec<u8> {
        let value = |digit: u8| {
            if digit.is_ascii_digit() {
                digit - b'0'
            } else {
                digit - b'a' + 10
            }
        };
        let pairs = self.hex().as_bytes().chunks_exact(2);
        pairs
            .map(|pair| value(pair[0]) << 4 | value(pair[1]))
            .collect()
    }

    /// Whether this is the digest of `content`.
    pub fn is_of(&self, content: &[u8]) -> bool {
        let mut digester = Digester::new(self.algorithm());
        digester.update(content);
        digester.finish() == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
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
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if encoded.len() != expected || !encoded.bytes().all(digit) {
            return Err(DigestError::Encoding {
                text: text.to_owned(),
                expected,
            });
        }
        Ok(Self(text.into()))
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
            State::Sha256(state) => Digest::written(Algorithm::Sha256, &state.finalize()),
            State::Sha384(state) => Digest::written(Algorithm::Sha384, &state.finalize()),
            State::Sha512(state) => Digest::written(Algorithm::Sha512, &state.finalize()),
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
            let digest: Digest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(digest.algorithm().name(), algorithm);
            assert_eq!(digest.to_hash(), vec![0x0a; digits / 2]);
            assert_eq!(
                Digest::from_hash(digest.algorithm(), &digest.to_hash()).unwrap(),
                digest
            );
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

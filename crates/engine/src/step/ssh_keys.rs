//! An ssh agent of given keys: `--ssh default=KEY,KEY`.
//!
//! The keys stay in this process. A step gets a socket on which it may list them and have them sign (the agent protocol,
//! draft-ietf-sshm-ssh-agent, messages 11 and 13), and nothing else: none is added, removed or told.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair,
};

use crate::EngineError;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// Flags of a request to sign with an RSA key.
const RSA_SHA256: u32 = 2;
const RSA_SHA512: u32 = 4;

/// As long as a message may be in OpenSSH's agent.
const MAX_MESSAGE: u32 = 256 << 10;

/// No key file is longer.
const MAX_FILE: u64 = 64 << 10;

/// Private keys that sign for a step.
#[derive(Debug)]
pub(crate) struct Keys(Vec<Key>);

struct Key {
    /// The public key as ssh sends it.
    blob: Vec<u8>,
    comment: Vec<u8>,
    secret: Secret,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

enum Secret {
    Ed25519(Ed25519KeyPair),
    /// With the name of the algorithm.
    Ecdsa(&'static str, EcdsaKeyPair),
    Rsa(Box<RsaKeyPair>),
}

impl Keys {
    /// Reads private keys in OpenSSH's format.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Self, EngineError> {
        let read = |path: &PathBuf| {
            let text = text_of(path)?;
            parse(&text).map_err(|reason| {
                EngineError::Request(format!(
                    "the ssh key {} cannot be used: {}",
                    path.display(),
                    reason.words(path)
                ))
            })
        };
        paths.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Answers on a connection until its other end closes it, or sends what is no message.
    pub(crate) fn serve(&self, mut connection: UnixStream) -> std::io::Result<()> {
        loop {
            let mut length = [0; 4];
            connection.read_exact(&mut length)?;
            let length = u32::from_be_bytes(length);
            if length == 0 || length > MAX_MESSAGE {
                return Ok(());
            }
            let mut message = vec![0; length as usize];
            connection.read_exact(&mut message)?;
            let answer = self.answer(&message).unwrap_or_else(|| vec![FAILURE]);
            let mut bytes = Vec::with_capacity(answer.len() + 4);
            put_string(&mut bytes, &answer);
            connection.write_all(&bytes)?;
        }
    }

    fn answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        let mut message = Reader(message);
        match message.bytes(1)? {
            [REQUEST_IDENTITIES] => {
                let mut answer = vec![IDENTITIES_ANSWER];
                answer.extend(u32::try_from(self.0.len()).ok()?.to_be_bytes());
                for key in &self.0 {
                    put_string(&mut answer, &key.blob);
                    put_string(&mut answer, &key.comment);
                }
                Some(answer)
            }
            [SIGN_REQUEST] => {
                let (blob, data, flags) = (message.string()?, message.string()?, message.number()?);
                let key = self.0.iter().find(|key| key.blob == blob)?;
                let (algorithm, signature) = key.secret.sign(data, flags)?;
                let mut signed = Vec::new();
                put_string(&mut signed, algorithm.as_bytes());
                put_string(&mut signed, &signature);
                let mut answer = vec![SIGN_RESPONSE];
                put_string(&mut answer, &signed);
                Some(answer)
            }
            _ => None,
        }
    }
}

impl Secret {
    /// Returns the algorithm's name and the signature; `None` for SHA-1, which no server of today asks for.
    fn sign(&self, data: &[u8], flags: u32) -> Option<(&'static str, Vec<u8>)> {
        let random = SystemRandom::new();
        match self {
            Secret::Ed25519(pair) => Some(("ssh-ed25519", pair.sign(data).as_ref().to_vec())),
            Secret::Ecdsa(name, pair) => {
                let signature = pair.sign(&random, data).ok()?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                let mut numbers = Vec::new();
                put_number(&mut numbers, r);
                put_number(&mut numbers, s);
                Some((name, numbers))
            }
            Secret::Rsa(pair) => {
                let (name, padding) = match flags {
                    flags if flags & RSA_SHA512 != 0 => ("rsa-sha2-512", &RSA_PKCS1_SHA512),
                    flags if flags & RSA_SHA256 != 0 => ("rsa-sha2-256", &RSA_PKCS1_SHA256),
                    _ => return None,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, data, &mut signature).ok()?;
                Some((name, signature))
            }
        }
    }
}

fn text_of(path: &Path) -> Result<String, EngineError> {
    let file = std::fs::File::open(path).map_err(EngineError::io("read", path))?;
    let mut text = String::new();
    match file.take(MAX_FILE).read_to_string(&mut text) {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(String::new()),
        result => result.map(|_| text).map_err(EngineError::io("read", path)),
    }
}

/// Why a key cannot be used.
#[derive(Debug, PartialEq, Eq)]
enum Unusable {
    NoKey,
    Public,
    OtherFormat,
    Encrypted,
    Malformed,
    Kind(String),
}

impl Unusable {
    fn words(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::NoKey => "it is no private key".to_owned(),
            Self::Public => "it is a public key; the private one is needed".to_owned(),
            Self::OtherFormat => format!(
                "it is not in OpenSSH's format; ssh-keygen -p -f {path} brings it into that (and keeps its passphrase \
                 if none is given)"
            ),
            Self::Encrypted => format!(
                "it has a passphrase; give it to an agent with ssh-add {path}, and the agent to the build with \
                 --ssh default"
            ),
            Self::Malformed => "it is damaged".to_owned(),
            Self::Kind(kind) => format!(
                "keys of the kind {kind} are not known here; there are ssh-ed25519, ecdsa-sha2-nistp256, \
                 ecdsa-sha2-nistp384 and ssh-rsa of 2048 to 4096 bits, and an agent for others"
            ),
        }
    }
}

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";

/// Reads a key (PROTOCOL.key of OpenSSH).
fn parse(text: &str) -> Result<Key, Unusable> {
    let Some((_, rest)) = text.split_once(BEGIN) else {
        let start = text.trim_start();
        return Err(match () {
            () if start.starts_with("ssh-") || start.starts_with("ecdsa-") => Unusable::Public,
            () if start.starts_with("-----BEGIN ") && text.contains("PRIVATE KEY-----") => {
                Unusable::OtherFormat
            }
            () => Unusable::NoKey,
        });
    };
    let (body, _) = rest.split_once(END).ok_or(Unusable::Malformed)?;
    let body: String = body.split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(body);
    let bytes = bytes.map_err(|_| Unusable::Malformed)?;
    let mut outer = Reader(
        bytes
            .strip_prefix(b"openssh-key-v1\0")
            .ok_or(Unusable::Malformed)?,
    );
    let mut string = || outer.string().ok_or(Unusable::Malformed);
    let (cipher, _, _) = (string()?, string()?, string()?);
    if cipher != b"none" {
        return Err(Unusable::Encrypted);
    }
    if outer.number() != Some(1) {
        return Err(Unusable::Malformed);
    }
    let (blob, private) = match (outer.string(), outer.string()) {
        (Some(blob), Some(private)) => (blob, private),
        _ => return Err(Unusable::Malformed),
    };
    let mut private = Reader(private);
    let checks = (private.number(), private.number());
    let kind = private.string().ok_or(Unusable::Malformed)?;
    if checks.0.is_none() || checks.0 != checks.1 {
        return Err(Unusable::Malformed);
    }
    let secret = match kind {
        b"ssh-ed25519" => ed25519(&mut private),
        b"ecdsa-sha2-nistp256" => ecdsa(&mut private, "ecdsa-sha2-nistp256", 32),
        b"ecdsa-sha2-nistp384" => ecdsa(&mut private, "ecdsa-sha2-nistp384", 48),
        b"ssh-rsa" => rsa(&mut private),
        other => Err(Unusable::Kind(String::from_utf8_lossy(other).into_owned())),
    }?;
    let comment = private.string().ok_or(Unusable::Malformed)?;
    Ok(Key {
        blob: blob.to_vec(),
        comment: comment.to_vec(),
        secret,
    })
}

fn ed25519(private: &mut Reader<'_>) -> Result<Secret, Unusable> {
    let (public, both) = (private.string(), private.string());
    let (Some(public), Some(both)) = (public, both) else {
        return Err(Unusable::Malformed);
    };
    let seed = both.get(..32).ok_or(Unusable::Malformed)?;
    let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public);
    pair.map(Secret::Ed25519).map_err(|_| Unusable::Malformed)
}

fn ecdsa(private: &mut Reader<'_>, name: &'static str, length: usize) -> Result<Secret, Unusable> {
    let (_, point, number) = (private.string(), private.string(), private.string());
    let (Some(point), Some(number)) = (point, number.map(unsigned)) else {
        return Err(Unusable::Malformed);
    };
    let missing = length
        .checked_sub(number.len())
        .ok_or(Unusable::Malformed)?;
    let number = [vec![0; missing], number.to_vec()].concat();
    let algorithm = match length {
        32 => &ECDSA_P256_SHA256_FIXED_SIGNING,
        _ => &ECDSA_P384_SHA384_FIXED_SIGNING,
    };
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &number, point, &random);
    pair.map(|pair| Secret::Ecdsa(name, pair))
        .map_err(|_| Unusable::Malformed)
}

fn rsa(private: &mut Reader<'_>) -> Result<Secret, Unusable> {
    let mut number = || private.string().map(unsigned).ok_or(Unusable::Malformed);
    let (n, e, d, q_inverse, p, q) = (
        number()?,
        number()?,
        number()?,
        number()?,
        number()?,
        number()?,
    );
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n, e },
        d,
        p,
        q,
        dP: &remainder(d, &one_less(p))[..],
        dQ: &remainder(d, &one_less(q))[..],
        qInv: q_inverse,
    };
    // It also refuses those that are too short to be safe.
    RsaKeyPair::from_components(&components)
        .map(|pair| Secret::Rsa(Box::new(pair)))
        .map_err(|_| Unusable::Kind(format!("ssh-rsa of {} bits", n.len() * 8)))
}

/// Returns an odd number less one.
fn one_less(number: &[u8]) -> Vec<u8> {
    let mut less = number.to_vec();
    if let Some(last) = less.last_mut() {
        *last &= !1;
    }
    less
}

/// Divides big-endian numbers bit by bit and returns the remainder, without zeros before it.
fn remainder(number: &[u8], divisor: &[u8]) -> Vec<u8> {
    // One byte more, for the bit that is shifted out.
    let mut rest = vec![0_u8; divisor.len() + 1];
    let divisor = [&[0], divisor].concat();
    if divisor.iter().all(|byte| *byte == 0) {
        return Vec::new();
    }
    for bit in number
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1))
    {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        if rest >= divisor {
            let mut borrow = false;
            for (byte, less) in rest.iter_mut().zip(&divisor).rev() {
                let (without, first) = byte.overflowing_sub(*less);
                let (without, second) = without.overflowing_sub(u8::from(borrow));
                (*byte, borrow) = (without, first || second);
            }
        }
    }
    unsigned(&rest).to_vec()
}

/// Returns a number without the zeros before it.
fn unsigned(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        let bytes = self.bytes(4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.bytes(usize::try_from(length).ok()?)
    }
}

fn put_string(to: &mut Vec<u8>, bytes: &[u8]) {
    // What is put here is far shorter than that.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    to.extend(length.to_be_bytes());
    to.extend(bytes);
}

/// Puts a number that is not negative.
fn put_number(to: &mut Vec<u8>, number: &[u8]) {
    let number = unsigned(number);
    match number.first() {
        Some(first) if first & 0x80 != 0 => put_string(to, &[&[0], number].concat()),
        _ => put_string(to, number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_are_those_of_numbers() {
        let bytes = |number: u128| unsigned(&number.to_be_bytes()).to_vec();
        for (number, divisor) in [
            (0_u128, 1_u128),
            (1, 1),
            (100, 7),
            (u128::MAX, 0xffff_0001),
            (u128::MAX - 5, u128::MAX >> 3),
            (12345, u128::MAX),
        ] {
            assert_eq!(
                remainder(&bytes(number), &bytes(divisor)),
                bytes(number % divisor),
                "{number} by {divisor}"
            );
        }
        assert_eq!(remainder(&[5], &[0]), [0; 0]);
        assert_eq!(one_less(&[1, 0x81]), [1, 0x80]);
    }

    #[test]
    fn what_is_no_key_is_told_apart() {
        let check = |text: &str, expected: Unusable| {
            assert_eq!(parse(text).map(|_| ()), Err(expected), "{text}");
        };
        check("", Unusable::NoKey);
        check("ssh-ed25519 AAAA me@here\n", Unusable::Public);
        check(
            "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
            Unusable::OtherFormat,
        );
        check(&format!("{BEGIN}\nAAAA\n"), Unusable::Malformed);
        check(&format!("{BEGIN}\n!\n{END}"), Unusable::Malformed);
        check(&format!("{BEGIN}\n\n{END}"), Unusable::Malformed);
        let encoded = |bytes: &[u8]| {
            let text = base64::engine::general_purpose::STANDARD.encode(bytes);
            format!("{BEGIN}\n{text}\n{END}\n")
        };
        let mut bytes = b"openssh-key-v1\0".to_vec();
        put_string(&mut bytes, b"aes256-ctr");
        put_string(&mut bytes, b"bcrypt");
        put_string(&mut bytes, b"");
        check(&encoded(&bytes), Unusable::Encrypted);
        // Cut anywhere, it is damaged and nothing worse.
        let mut private = vec![0; 8];
        for part in [&b"ssh-ed25519"[..], &[1; 32], &[1; 64], b"me"] {
            put_string(&mut private, part);
        }
        let mut bytes = b"openssh-key-v1\0".to_vec();
        for part in [&b"none"[..], b"none", b""] {
            put_string(&mut bytes, part);
        }
        bytes.extend(1_u32.to_be_bytes());
        put_string(&mut bytes, b"blob");
        put_string(&mut bytes, &private);
        for length in 15..=bytes.len() {
            check(&encoded(&bytes[..length]), Unusable::Malformed);
        }
    }

    #[test]
    fn what_is_no_request_fails_and_ends_nothing() {
        let keys = Keys(Vec::new());
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let served = std::thread::spawn(move || keys.serve(theirs));
        let ask = |message: &[u8]| {
            let mut bytes = Vec::new();
            put_string(&mut bytes, message);
            (&ours).write_all(&bytes).expect("it is read");
            let mut length = [0; 4];
            (&ours).read_exact(&mut length).expect("an answer");
            let mut answer = vec![0; u32::from_be_bytes(length) as usize];
            (&ours).read_exact(&mut answer).expect("an answer");
            answer
        };
        assert_eq!(ask(&[REQUEST_IDENTITIES]), [IDENTITIES_ANSWER, 0, 0, 0, 0]);
        for odd in [
            &[SIGN_REQUEST][..],
            &[SIGN_REQUEST, 255, 255, 255, 255],
            &[17],
            &[27, 0],
        ] {
            assert_eq!(ask(odd), [FAILURE]);
        }
        (&ours)
            .write_all(&u32::MAX.to_be_bytes())
            .expect("it is read");
        served.join().expect("no panic").expect("closed");
    }
}

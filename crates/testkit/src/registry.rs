//! The registry that Debian packages (`docker-registry`), on a free port of this machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// The name and the password that [`Registry::start`] asks for.
pub const LOGIN: (&str, &str) = ("user", "pass");

/// [`LOGIN`] as the registry reads it.
const LOGINS: &str = "user:$2y$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K\n";

/// A certificate for this machine, and who vouches for it.
#[derive(Debug)]
pub struct Certificate {
    /// To be trusted by who connects.
    pub authority: String,
    /// The certificate itself.
    pub chain: String,
    /// Its key.
    pub key: String,
}

impl Certificate {
    /// Makes a certificate for 127.0.0.1.
    ///
    /// # Panics
    ///
    /// When there are no random numbers.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        Self {
            authority: issuer.pem(),
            chain: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Default for Certificate {
    fn default() -> Self {
        Self::new()
    }
}

/// A registry that runs until this is dropped.
#[derive(Debug)]
pub struct Registry {
    /// Its host and port.
    pub authority: String,
    process: Child,
}

impl Registry {
    /// Starts a registry that asks for [`LOGIN`], in plain HTTP without a certificate. Several may share a folder.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(folder: &Path, certificate: Option<&Certificate>) -> Self {
        let kind = if certificate.is_some() {
            "tls"
        } else {
            "plain"
        };
        let path = |name: &str| folder.join(format!("{kind}-{name}"));
        let write = |name: &str, text: &str| {
            fs::write(path(name), text).expect("a file can be written");
            path(name).display().to_string()
        };
        fs::create_dir_all(folder).expect("a folder can be made");
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: {}}}\n\
             auth:\n  htpasswd: {{realm: test, path: {}}}\n\
             http:\n  addr: 127.0.0.1:0\n  secret: s\n",
            folder.join("data").display(),
            write("logins", LOGINS),
        );
        if let Some(certificate) = certificate {
            let chain = write("server.pem", &certificate.chain);
            let key = write("server.key", &certificate.key);
            config += &format!("  tls: {{certificate: {chain}, key: {key}}}\n");
        }
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(write("config.yml", &config))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry starts");
        let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let authority = loop {
            let line = lines.next().expect("it says where it listens");
            let line = line.expect("a line");
            if let Some((_, rest)) = line.split_once("listening on ") {
                let end = rest.find(['"', ',', ' ']).unwrap_or(rest.len());
                break rest[..end].to_owned();
            }
        };
        // It must not be held up by what nobody reads.
        std::thread::spawn(move || lines.for_each(drop));
        Self { authority, process }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

//! The keys of the configuration file: one list, which is what is documented and what is taken as known.

use std::collections::BTreeSet;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::log;

/// One key of the configuration file.
#[derive(Debug)]
pub(crate) struct Key {
    /// The tables it is in and its own name; `*` stands for a name of the user's.
    pub(crate) path: &'static [&'static str],
    /// Other names it has.
    pub(crate) aliases: &'static [&'static str],
    /// What it can be, in words.
    pub(crate) value: &'static str,
    /// What holds where it is not set.
    pub(crate) default: &'static str,
    pub(crate) meaning: &'static str,
    /// A value as TOML writes it.
    pub(crate) example: &'static str,
    pub(crate) reader: Reader,
}

/// Who looks at a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Everyone,
    /// `lapstrake serve`, for which the file is a `buildkitd.toml`.
    Server,
}

const fn key(path: &'static [&'static str], example: &'static str) -> Key {
    Key {
        path,
        aliases: &[],
        value: "",
        default: "",
        meaning: "",
        example,
        reader: Reader::Everyone,
    }
}

impl Key {
    const fn told(self, value: &'static str, default: &'static str, meaning: &'static str) -> Self {
        Self {
            value,
            default,
            meaning,
            ..self
        }
    }

    const fn or(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn of_servers(self) -> Self {
        Self {
            reader: Reader::Server,
            ..self
        }
    }

    fn names(&self, depth: usize) -> impl Iterator<Item = &'static str> {
        let is_last = depth + 1 == self.path.len();
        let aliases = if is_last { self.aliases } else { &[] };
        let own = self.path.get(depth).copied();
        own.into_iter().chain(aliases.iter().copied())
    }
}

/// All keys, in the order they are documented in.
pub(crate) const KEYS: &[Key] = &[
    key(
        &["registry", "*", "mirrors"],
        r#"["mirror.example", "oci-layout:/srv/images"]"#,
    )
    .told(
        "list of URLs, hosts and `oci-layout:PATH`",
        "none",
        "Asked in this order before the registry itself",
    ),
    key(&["registry", "*", "http"], "true").told(
        "true or false",
        "true for loopback addresses",
        "Speak plain HTTP",
    ),
    key(&["registry", "*", "insecure"], "true").told(
        "true or false",
        "false",
        "Check no certificate, and take plain HTTP where there is no TLS",
    ),
    key(&["registry", "*", "ca"], r#"["corporate.pem"]"#).told(
        "list of files",
        "none",
        "Certificates to trust beside those of the system",
    ),
    key(&["registry", "*", "tlsconfigdir"], r#"["certs"]"#).told(
        "list of directories",
        "none",
        "Directories with `*.crt` (authorities) and pairs of `*.cert` and `*.key`",
    ),
    key(&["registry", "*", "keypair", "key"], r#""client-key.pem""#).told(
        "file",
        "",
        "Key of a client certificate; `keypair` is a list of tables",
    ),
    key(&["registry", "*", "keypair", "cert"], r#""client.pem""#).told(
        "file",
        "",
        "The certificate of this key",
    ),
    key(&["gc", "enabled"], "true").told(
        "true or false",
        "true",
        "false: the store grows without limit",
    ),
    key(&["gc", "max-used-space"], r#""20GB""#)
        .or(&["maxUsedSpace"])
        .told(
            "bytes, an amount (`\"20GB\"`) or a part of the disk (`\"20%\"`)",
            "see below",
            "What the store may take at most",
        ),
    key(&["gc", "reserved-space"], r#""5GB""#)
        .or(&["reservedSpace"])
        .told(
            "as above",
            "see below",
            "What the store may keep even where less than `min-free-space` is left",
        ),
    key(&["gc", "min-free-space"], r#""10%""#)
        .or(&["minFreeSpace"])
        .told(
            "as above",
            "see below",
            "What the store leaves free on its disk",
        ),
    key(&["history", "max-builds"], "200").told(
        "number",
        "500",
        "Records of builds that are kept, the newest first",
    ),
    key(&["history", "max-log-space"], r#""1GB""#).told(
        "bytes or an amount",
        "2 GiB",
        "Space of their logs",
    ),
    key(&["history", "max-age"], r#""90d""#).told(
        "duration",
        "for ever",
        "How long a record is kept",
    ),
    key(&["run", "runtime"], r#""crun""#).told(
        "`crun`, `runc` or a path",
        "the built-in sandbox",
        "What runs RUN steps, as `--runtime`",
    ),
    key(&["run", "ca-bundle"], r#""corporate.pem""#).told(
        "a PEM file, or `host`",
        "none",
        "Certificates that RUN steps trust, as `--ca-bundle`",
    ),
    key(&["root"], r#""/var/lib/lapstrake""#)
        .told("directory", "as `--root`", "The state directory")
        .of_servers(),
    key(&["insecure-entitlements"], r#"["network.host"]"#)
        .told(
            "list of `network.host`, `security.insecure`",
            "none",
            "What clients may ask for",
        )
        .of_servers(),
    key(&["provenanceEnvDir"], r#""/nowhere""#)
        .told(
            "directory of JSON files",
            "none",
            "What provenance says of this builder",
        )
        .of_servers(),
    key(&["grpc", "address"], r#"["unix:///run/lapstrake.sock"]"#)
        .told("list of addresses", "none", "Where to listen, as `--addr`")
        .of_servers(),
    key(&["grpc", "uid"], "0")
        .told("number", "who serves", "Owner of sockets")
        .of_servers(),
    key(&["grpc", "gid"], "0")
        .told("number", "who serves", "Group of sockets")
        .of_servers(),
    key(&["grpc", "tls", "cert"], r#""server.pem""#)
        .told("file", "none", "Certificate for TCP, as `--tlscert`")
        .of_servers(),
    key(&["grpc", "tls", "key"], r#""server-key.pem""#)
        .told("file", "none", "Its key, as `--tlskey`")
        .of_servers(),
    key(&["grpc", "tls", "ca"], r#""ca.pem""#)
        .told("file", "none", "Who signs clients, as `--tlscacert`")
        .of_servers(),
    key(&["worker", "oci", "max-parallelism"], "8")
        .told(
            "number",
            "max(16, 4 × cores)",
            "Steps at once, as `--max-parallelism`",
        )
        .of_servers(),
    key(&["worker", "oci", "defaultCgroupParent"], "\"builds\"")
        .told(
            "control group",
            "that of the server",
            "As `--cgroup-parent`",
        )
        .of_servers(),
    key(&["worker", "oci", "networkMode"], "\"bridge\"")
        .told(
            "`auto`, `bridge`, `host` or `none`",
            "`auto`",
            "Network of steps; `bridge` fails where it cannot be had",
        )
        .of_servers(),
    key(&["worker", "oci", "gc"], "false")
        .told("true or false", "true", "As `gc.enabled`")
        .of_servers(),
    key(&["worker", "oci", "reservedSpace"], "\"5GB\"")
        .or(&["gckeepstorage"])
        .told(
            "bytes, or text such as `10GB` or `20%`",
            "see `gc`",
            "As `gc.reserved-space`; by itself what the store is brought down to",
        )
        .of_servers(),
    key(&["worker", "oci", "maxUsedSpace"], "\"50GB\"")
        .told("as above", "see `gc`", "As `gc.max-used-space`")
        .of_servers(),
    key(&["worker", "oci", "minFreeSpace"], "\"20%\"")
        .told("as above", "see `gc`", "As `gc.min-free-space`")
        .of_servers(),
    key(&["worker", "oci", "enabled"], "true")
        .told("true", "", "Taken, without effect")
        .of_servers(),
    key(&["history", "maxEntries"], "50")
        .told(
            "number",
            "50",
            "Builds of clients that are kept whatever their age",
        )
        .of_servers(),
    key(&["history", "maxAge"], "\"48h\"")
        .told(
            "seconds, or text such as `1h30m`",
            "`48h`",
            "How long builds of clients are kept whatever their number",
        )
        .of_servers(),
    key(&["debug"], "true")
        .told("true or false", "", "Taken, without effect: say `--debug`")
        .of_servers(),
    key(&["trace"], "true")
        .told(
            "true or false",
            "",
            "Taken, without effect: say `LAPSTRAKE_LOG=trace`",
        )
        .of_servers(),
];

/// A key that nothing looks at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub(crate) key: String,
    pub(crate) line: usize,
    nearest: Option<String>,
}

impl Unknown {
    /// Returns whether this is a key, or a table that it lies in.
    pub(crate) fn covers(&self, key: &str) -> bool {
        let rest = key.strip_prefix(self.key.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// Says which keys of a file have no effect.
pub(crate) fn warn(path: &Path, text: &str) {
    for unknown in unknown(text) {
        let Unknown { key, line, nearest } = unknown;
        let meant = match nearest {
            Some(name) => format!("; did you mean {name}?"),
            None => String::new(),
        };
        let place = path.display();
        log::warning(&format!(
            "{place}:{line}: the key {key} is not known and has no effect{meant}"
        ));
    }
}

/// Returns the keys that nothing looks at, in the order of their lines; none where the file cannot be read as TOML.
pub(crate) fn unknown(text: &str) -> Vec<Unknown> {
    let Ok(file) = DeTable::parse(text) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let all: Vec<&Key> = KEYS.iter().collect();
    look(text, file.get_ref(), &all, &mut Vec::new(), &mut found);
    found.sort_by_key(|(at, _): &(usize, Unknown)| *at);
    found.into_iter().map(|(_, unknown)| unknown).collect()
}

/// Looks through a table; `known` are the keys that lie in it, `path` is its own.
fn look(
    text: &str,
    table: &DeTable<'_>,
    known: &[&Key],
    path: &mut Vec<String>,
    found: &mut Vec<(usize, Unknown)>,
) {
    let depth = path.len();
    for (name, value) in table {
        let word: &str = name.get_ref();
        let below: Vec<&Key> = known
            .iter()
            .copied()
            .filter(|key| key.names(depth).any(|it| it == word || it == "*"))
            .collect();
        path.push(word.to_owned());
        if below.is_empty() {
            let at = name.span().start;
            let names: BTreeSet<&str> = known.iter().flat_map(|key| key.names(depth)).collect();
            let nearest = dockerfile::nearest(word, names).map(|near| {
                let mut near_path = path.clone();
                near_path[depth] = near.to_owned();
                near_path.join(".")
            });
            let unknown = Unknown {
                key: path.join("."),
                line: text[..at].matches('\n').count() + 1,
                nearest,
            };
            found.push((at, unknown));
        } else if below.iter().all(|key| key.path.len() > depth + 1) {
            match value.get_ref() {
                DeValue::Table(table) => look(text, table, &below, path, found),
                DeValue::Array(items) => {
                    let tables = items.iter().filter_map(|item| item.get_ref().as_table());
                    for table in tables {
                        look(text, table, &below, path, found);
                    }
                }
                // Of another type than it should be: for the reader to say.
                _ => {}
            }
        }
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde::de::value::Error;
    use serde::de::{Deserializer, Error as _, Visitor};

    use super::*;
    use crate::settings::{Collection, Records, Steps};

    /// A source of values that has none, and hears which fields are asked for.
    struct Listener<'a>(&'a mut BTreeSet<&'static str>);

    impl<'de> Deserializer<'de> for Listener<'_> {
        type Error = Error;

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Error> {
            self.0.extend(fields);
            Err(Error::custom("there is nothing here"))
        }

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Error::custom("this is no struct"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    fn fields_of<T: for<'de> Deserialize<'de>>() -> BTreeSet<&'static str> {
        let mut fields = BTreeSet::new();
        let _ = T::deserialize(Listener(&mut fields));
        fields
    }

    /// Returns a file with a key, and with what it means nothing without.
    fn file(path: &[&str], value: &str) -> String {
        let (name, tables) = path.split_last().expect("a key has a name");
        let header = tables.join(".").replace('*', "\"docker.io\"");
        let header = match tables.last() {
            None => String::new(),
            Some(&"keypair") => format!("[[{header}]]\n"),
            Some(_) => format!("[{header}]\n"),
        };
        let partner = match path {
            ["grpc", "tls", "cert"] | ["registry", .., "cert"] => "key = \"k\"\n",
            ["grpc", "tls", "key"] | ["registry", .., "key"] => "cert = \"c\"\n",
            ["grpc", "tls", "ca"] => "cert = \"c\"\nkey = \"k\"\n",
            ["gc", "reserved-space" | "reservedSpace"] => "min-free-space = 1\n",
            _ => "",
        };
        format!("{header}{partner}{name} = {value}\n")
    }

    #[test]
    fn each_key_has_a_reader() {
        let folder = tempfile::tempdir().unwrap();
        for key in KEYS {
            for name in key.names(key.path.len() - 1) {
                let mut path = key.path.to_vec();
                *path.last_mut().unwrap() = name;
                let example = match key.path {
                    ["provenanceEnvDir"] => format!("{:?}", folder.path().display().to_string()),
                    _ => key.example.to_owned(),
                };
                let text = file(&path, &example);
                assert_eq!(unknown(&text), [], "{text}");
                let place = Path::new("x.toml");
                match key.reader {
                    Reader::Server => {
                        let read = api_buildkit::Config::parse(place, &text).expect(&text);
                        assert_eq!(read.warnings, [], "{text}");
                        let is_silent = ["debug", "trace", "enabled"].contains(&name);
                        let read_one = read != api_buildkit::Config::default();
                        assert!(
                            is_silent || read_one || name == "provenanceEnvDir",
                            "{text}"
                        );
                    }
                    Reader::Everyone => {
                        let read = crate::settings::read_all(place, &text).expect(&text);
                        let none = crate::settings::read_all(place, "").unwrap();
                        let is_default = key.path == ["gc", "enabled"];
                        assert!(is_default || read != none, "{text}: without effect");
                    }
                }
            }
        }
    }

    #[test]
    fn unknown_keys_are_named_with_their_line_and_the_nearest() {
        let check = |text: &str, key: &str, line: usize, nearest: Option<&str>| {
            let expected = Unknown {
                key: key.to_owned(),
                line,
                nearest: nearest.map(str::to_owned),
            };
            assert_eq!(unknown(text), [expected], "{text}");
        };
        check(
            "\n[regsitry.\"docker.io\"]\nmirrors = []\n",
            "regsitry",
            2,
            Some("registry"),
        );
        check(
            "[gc]\nmax-used-spac = 1\n",
            "gc.max-used-spac",
            2,
            Some("gc.max-used-space"),
        );
        check("gc.colour = 1\n", "gc.colour", 1, None);
        check(
            "[registry.\"a:5000\"]\nmirror = []\n",
            "registry.a:5000.mirror",
            2,
            Some("registry.a:5000.mirrors"),
        );
        check(
            "[[registry.x.keypair]]\nkey = \"k\"\n\ncrt = \"c\"\n",
            "registry.x.keypair.crt",
            4,
            Some("registry.x.keypair.cert"),
        );
        check(
            "[worker.containerd]\ngc = true\n",
            "worker.containerd",
            1,
            None,
        );
        assert_eq!(
            unknown("gc = 1\n"),
            [],
            "its reader says that this is no table"
        );
        assert_eq!(
            unknown("gc = \n"),
            [],
            "its reader says that this is no TOML"
        );
    }

    /// The readers name their fields; the list has the same.
    #[test]
    fn each_field_of_a_reader_is_a_key() {
        let named = |path: &[&str]| {
            let inside = KEYS
                .iter()
                .filter(|key| key.reader == Reader::Everyone)
                .filter(|key| key.path.len() == path.len() + 1 && key.path.starts_with(path));
            let names: BTreeSet<&str> = inside.flat_map(|key| key.names(path.len())).collect();
            names
        };
        assert_eq!(named(&["gc"]), fields_of::<Collection>());
        assert_eq!(named(&["history"]), fields_of::<Records>());
        assert_eq!(named(&["run"]), fields_of::<Steps>());
        let mut of_registries = named(&["registry", "*"]);
        of_registries.insert("keypair");
        assert_eq!(of_registries, fields_of::<registry::RegistrySettings>());
        let of_pairs = named(&["registry", "*", "keypair"]);
        assert_eq!(of_pairs, fields_of::<registry::KeyPair>());
    }
}

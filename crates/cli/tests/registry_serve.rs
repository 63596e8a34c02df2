//! The store behind the distribution API: what its specification asks of the pull part, and other tools.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::Value;
use testkit::{Environment, Outcome};

const TWO: &str = "--platform=linux/amd64,linux/arm64";

fn world() -> Environment {
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write_config("");
    for name in ["amd64", "arm64"] {
        world.write(&format!("ctx/{name}"), format!("{name}\n"));
    }
    world.write(
        "ctx/Dockerfile",
        "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /machine\nLABEL a=b\n",
    );
    world.ok([
        "build",
        "-q",
        "-t",
        "app:1",
        "-t",
        "app:2",
        "-t",
        "some.host/deep/app",
        "ctx",
    ]);
    world.ok(["build", "-q", TWO, "-t", "many", "--iidfile=index", "ctx"]);
    world
}

/// `registry serve`, on a free port.
struct Server {
    process: Child,
    authority: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(world: &Environment, arguments: &[&str]) -> Server {
    let mut all = vec!["registry", "serve", "--listen=127.0.0.1:0"];
    all.extend(arguments);
    let mut process = world.command(all).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let (_, rest) = line.split_once("http://").expect("it says where");
    let authority = rest.split(',').next().unwrap().to_owned();
    Server { process, authority }
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Server {
    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut stream = TcpStream::connect(&self.authority).unwrap();
        let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            text.push_str(&format!("Host: {}\r\n", self.authority));
        }
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let mut body = Vec::new();
        reader.read_to_end(&mut body).unwrap();
        Answer {
            status,
            headers,
            body,
        }
    }

    fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[])
    }

    fn refuses(&self, method: &str, path: &str, status: u16, code: &str) {
        let answer = self.request(method, path, &[]);
        assert_eq!(answer.status, status, "{method} {path}");
        if method != "HEAD" {
            assert_eq!(answer.json()["errors"][0]["code"], code, "{method} {path}");
        }
    }
}

#[test]
fn the_pull_part_of_the_specification() {
    let world = world();
    let server = serve(&world, &[]);
    let base = server.get("/v2/");
    assert_eq!(base.status, 200);
    assert_eq!(
        base.header("docker-distribution-api-version"),
        "registry/2.0"
    );
    // Manifests, by tag and by digest, with and without a body.
    let by_tag = server.get("/v2/app/manifests/1");
    assert_eq!(by_tag.status, 200);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    assert_eq!(by_tag.header("content-type"), kind);
    let digest = by_tag.header("docker-content-digest").to_owned();
    assert_eq!(digest, oci::Digest::sha256_of(&by_tag.body).to_string());
    let by_digest = server.get(&format!("/v2/app/manifests/{digest}"));
    assert_eq!((by_digest.status, &by_digest.body), (200, &by_tag.body));
    for path in [
        "/v2/app/manifests/1",
        &format!("/v2/app/manifests/{digest}"),
    ] {
        let head = server.request("HEAD", path, &[]);
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-length"), by_tag.body.len().to_string());
        assert_eq!(head.header("docker-content-digest"), digest);
        assert!(head.body.is_empty());
    }
    // Blobs: the config, and layers by part.
    let manifest = by_tag.json();
    let config = manifest["config"]["digest"].as_str().unwrap();
    let answer = server.get(&format!("/v2/app/blobs/{config}"));
    assert_eq!(oci::Digest::sha256_of(&answer.body).to_string(), config);
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let path = format!("/v2/app/blobs/{layer}");
    let whole = server.get(&path);
    assert_eq!(oci::Digest::sha256_of(&whole.body).to_string(), layer);
    let head = server.request("HEAD", &path, &[]);
    assert_eq!(head.header("content-length"), whole.body.len().to_string());
    assert_eq!(head.header("docker-content-digest"), layer);
    let part = server.request("GET", &path, &[("Range", "bytes=100-199")]);
    assert_eq!((part.status, &part.body[..]), (206, &whole.body[100..200]));
    let size = whole.body.len();
    assert_eq!(
        part.header("content-range"),
        format!("bytes 100-199/{size}")
    );
    let rest = server.request("GET", &path, &[("Range", "bytes=1000-")]);
    assert_eq!((rest.status, &rest.body[..]), (206, &whole.body[1000..]));
    let beyond = server.request("GET", &path, &[("Range", &format!("bytes={size}-"))]);
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), format!("bytes */{size}"));
    // Several platforms are an index, and each of its manifests is there.
    let index = server.get("/v2/many/manifests/latest");
    let kind = "application/vnd.oci.image.index.v1+json";
    assert_eq!(index.header("content-type"), kind);
    for entry in index.json()["manifests"].as_array().unwrap() {
        let digest = entry["digest"].as_str().unwrap();
        let answer = server.get(&format!("/v2/many/manifests/{digest}"));
        assert_eq!(oci::Digest::sha256_of(&answer.body).to_string(), digest);
    }
    let built = fs::read_to_string(world.work().join("index")).unwrap();
    assert_eq!(index.header("docker-content-digest"), built);
    let referrers = server.get(&format!("/v2/app/referrers/{digest}"));
    assert_eq!(referrers.header("content-type"), kind);
    assert_eq!(referrers.json()["manifests"], serde_json::json!([]));
    // "MUST NOT return a 404", whatever is asked for.
    let nothing = server.get(&format!("/v2/absent/referrers/{digest}"));
    assert_eq!((nothing.status, nothing.body), (200, referrers.body));
}

#[test]
fn lists_come_in_parts() {
    let world = world();
    let server = serve(&world, &[]);
    let catalog = |query: &str| server.get(&format!("/v2/_catalog{query}"));
    let all = serde_json::json!(["app", "many", "some.host/deep/app"]);
    assert_eq!(catalog("").json()["repositories"], all);
    let first = catalog("?n=2");
    assert_eq!(
        first.json()["repositories"],
        serde_json::json!(["app", "many"])
    );
    assert_eq!(
        first.header("link"),
        "</v2/_catalog?last=many&n=2>; rel=\"next\""
    );
    let next = catalog("?n=2&last=many");
    let rest = serde_json::json!(["some.host/deep/app"]);
    assert_eq!(next.json()["repositories"], rest);
    assert_eq!(next.header("link"), "");
    let tags = |query: &str| server.get(&format!("/v2/app/tags/list{query}")).json();
    assert_eq!(
        tags(""),
        serde_json::json!({"name": "app", "tags": ["1", "2"]})
    );
    assert_eq!(tags("?n=1")["tags"], serde_json::json!(["1"]));
    assert_eq!(tags("?n=1&last=1")["tags"], serde_json::json!(["2"]));
    assert_eq!(tags("?n=0")["tags"], serde_json::json!([]));
    let full = server.get("/v2/docker.io/library/app/tags/list").json();
    assert_eq!(full["tags"], serde_json::json!(["1", "2"]));
    // What is built from now on is there too.
    world.ok(["tag", "app:1", "app:3"]);
    assert_eq!(tags("?last=2")["tags"], serde_json::json!(["3"]));
    world.ok(["rmi", "app:3"]);
    server.refuses("GET", "/v2/app/manifests/3", 404, "MANIFEST_UNKNOWN");
}

#[test]
fn what_is_not_there_or_not_allowed_is_told_as_the_specification_has_it() {
    let world = world();
    let server = serve(&world, &[]);
    let absent = oci::Digest::sha256_of(b"absent");
    for method in ["GET", "HEAD"] {
        let check = |path: &str, code: &str| server.refuses(method, path, 404, code);
        check("/v2/app/manifests/absent", "MANIFEST_UNKNOWN");
        check(&format!("/v2/app/manifests/{absent}"), "MANIFEST_UNKNOWN");
        check(&format!("/v2/app/blobs/{absent}"), "BLOB_UNKNOWN");
        check("/v2/absent/manifests/1", "MANIFEST_UNKNOWN");
        check("/v2/absent/tags/list", "NAME_UNKNOWN");
        check("/v1/", "UNSUPPORTED");
    }
    server.refuses("GET", "/v2/app/referrers/sha256:1", 400, "DIGEST_INVALID");
    server.refuses("GET", "/v2/app/blobs/..", 400, "DIGEST_INVALID");
    server.refuses("GET", "/v2/../../etc/manifests/1", 400, "NAME_INVALID");
    server.refuses("GET", "/v2/%2e%2e/blobs/sha256:1", 400, "NAME_INVALID");
    // A blob of the store that belongs to no image of the repository is not given out.
    let other = world.ok(["inspect", "-f", "{{.Id}}", "--platform=linux/arm64", "many"]);
    let other = other.stdout.trim().to_owned();
    assert_eq!(server.get(&format!("/v2/many/blobs/{other}")).status, 200);
    let path = format!("/v2/app/blobs/{other}");
    server.refuses("GET", &path, 404, "BLOB_UNKNOWN");
    for (method, path) in [
        ("POST", "/v2/app/blobs/uploads/"),
        ("PUT", "/v2/app/manifests/1"),
        ("DELETE", "/v2/app/manifests/1"),
        ("PATCH", "/v2/app/blobs/uploads/x"),
    ] {
        server.refuses(method, path, 405, "UNSUPPORTED");
    }
    // A name that somebody else leads here.
    let answer = server.request("GET", "/v2/_catalog", &[("Host", "evil.example:5000")]);
    assert_eq!(answer.status, 403);
    world
        .run(["registry", "serve", "--listen=0.0.0.0:0"])
        .fails_with(1)
        .says("no loopback address");
    let taken = format!("--listen={}", server.authority);
    let arguments = ["registry", "serve", taken.as_str()];
    world
        .run(arguments)
        .fails_with(1)
        .says("failed to listen on");
}

#[test]
fn other_tools_pull_what_was_built() {
    testkit::require_programs!("skopeo");
    let world = world();
    for compression in ["uncompressed", "gzip", "zstd"] {
        let server = serve(&world, &["--compression", compression]);
        let skopeo = |arguments: &[&str]| {
            let mut command = world.program("skopeo");
            command.arg("--insecure-policy").args(arguments);
            Outcome::of(&mut command).success().stdout
        };
        let name = format!("docker://{}/app:1", server.authority);
        let told = skopeo(&["inspect", "--tls-verify=false", &name]);
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["Labels"]["a"], "b");
        assert_eq!(told["RepoTags"], serde_json::json!(["1", "2"]));
        let layout = format!("oci:{compression}:1");
        let many = format!("docker://{}/many", server.authority);
        skopeo(&[
            "copy",
            "-q",
            "--all",
            "--src-tls-verify=false",
            &many,
            &layout,
        ]);
        // And lapstrake itself, with another store.
        let root = world.work().join(format!("state-{compression}"));
        let root = root.to_str().unwrap();
        let many = format!("{}/many", server.authority);
        world.ok([
            "--root",
            root,
            "pull",
            "-q",
            "--platform=linux/arm64",
            &many,
        ]);
        let told = world.ok(["--root", root, "inspect", "-f", "{{.Architecture}}", &many]);
        assert_eq!(told.stdout, "arm64\n");
    }
}

#[test]
fn a_pulled_image_is_served_as_it_came() {
    testkit::require_fixtures!("busybox:latest");
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.ok(["pull", "-q", "busybox"]);
    let server = serve(&world, &[]);
    let manifest = server.get("/v2/busybox/manifests/latest");
    let known = world.ok(["inspect", "-f", "{{index .RepoDigests 0}}", "busybox"]);
    assert_eq!(manifest.status, 200);
    let layer = manifest.json()["layers"][0].clone();
    let digest = layer["digest"].as_str().unwrap();
    let answer = server.get(&format!("/v2/busybox/blobs/{digest}"));
    assert_eq!(oci::Digest::sha256_of(&answer.body).to_string(), digest);
    assert_eq!(answer.body.len() as u64, layer["size"].as_u64().unwrap());
    assert!(known.stdout.starts_with("busybox@sha256:"));
}

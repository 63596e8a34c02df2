//! What builds take: directories of the client as they are, and images that no registry has.

mod common;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;

use bollard_buildkit_proto::moby::buildkit::v1 as pbc;
use common::{TestServer, source, with_server};
use oci::Digest;
use store::{OpenOptions, Store};
use testclient::{Client, Directory, offer};

/// Returns the ids of what takes space.
async fn kept(client: &mut Client) -> Vec<String> {
    let asked = pbc::DiskUsageRequest::default();
    let usage = client.control.disk_usage(asked).await.expect("an answer");
    let records = usage.into_inner().record.into_iter();
    records.map(|record| record.id).collect()
}

#[test]
fn a_directory_that_is_shown_as_it_is_is_kept_once() {
    with_server(|server| async move {
        let context = Directory::default().file("foo", "one");
        let mut client = server.client(offer("", context), "").await;
        let request = |client: &Client| pbc::SolveRequest {
            frontend: String::new(),
            definition: Some(source("local://context")),
            ..client.request()
        };
        let first = request(&client);
        client.solve(first).await.expect("a build");
        let once = kept(&mut client).await;
        let again = request(&client);
        client.solve(again).await.expect("a build");
        assert_eq!(client.files()["foo"], "one");
        assert_eq!(kept(&mut client).await, once);

        // The same content of another time is another directory.
        let mut touched = Directory::default().file("foo", "one");
        touched.0[0].0.mod_time += 1_000_000_000;
        client
            .offer
            .directories
            .lock()
            .unwrap()
            .insert("context".to_owned(), touched);
        let later = request(&client);
        client.solve(later).await.expect("a build");
        assert_eq!(kept(&mut client).await.len(), once.len() + 1);
    });
}

/// Starts a registry that has nothing, for as long as the test runs, and returns where it is.
fn empty_registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                while connection.read(&mut request).is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
                    if connection.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Builds an image into the store, and returns its name and id.
async fn build_image(server: &TestServer) -> (String, String) {
    let name = format!("{}/app:latest", empty_registry());
    let context = Directory::default().file("foo", "of the image");
    let offer = offer("FROM scratch\nCOPY foo /\n", context);
    let mut client = server.client(offer, "").await;
    let request = pbc::SolveRequest {
        exporters: vec![pbc::Exporter {
            r#type: "image".to_owned(),
            attrs: HashMap::from([("name".to_owned(), name.clone())]),
        }],
        ..client.request()
    };
    let mut answer = client.solve(request).await.expect("an image");
    let id = answer.remove("containerimage.config.digest");
    (name, id.expect("the digest of its config"))
}

#[test]
fn an_image_that_was_named_here_counts_where_the_registry_has_none() {
    with_server(|server| async move {
        let (name, id) = build_image(&server).await;
        let dockerfile = format!("FROM {name}\nCOPY bar /\n");
        let context = Directory::default().file("bar", "on top");
        let mut client = server.client(offer(&dockerfile, context), "").await;
        let request = client.request();
        client.solve(request).await.expect("a build");
        let files = client.files();
        assert_eq!(files["foo"], "of the image");
        assert_eq!(files["bar"], "on top");

        // A frontend at the client asks for the digest first, and then for what has it.
        let request = pbc::SolveRequest {
            frontend: String::new(),
            definition: Some(source(&format!("docker-image://{name}@{id}"))),
            ..client.request()
        };
        client.solve(request).await.expect("a build");
        assert_eq!(client.files()["foo"], "of the image");

        // Who asks for the registry's gets the registry's.
        let request = pbc::SolveRequest {
            frontend_attrs: HashMap::from([("image-resolve-mode".to_owned(), "pull".to_owned())]),
            ..client.request()
        };
        let status = client.solve(request).await.expect_err("no such image");
        assert!(status.message().contains("app"), "{}", status.message());
    });
}

#[test]
fn an_image_of_a_registry_does_not_count_where_that_refuses_it() {
    with_server(|server| async move {
        let (name, id) = build_image(&server).await;
        // As it is after it was pulled or pushed with somebody's login.
        let store = Store::open(&server.root(), OpenOptions::new(None)).expect("the store");
        let id: Digest = id.parse().expect("a digest");
        let reference = oci::Reference::parse_normalized(&name).expect("a name");
        let known = Some(&id);
        store.set_name(&reference, &id, known).expect("a name");
        let context = Directory::default();
        let offer = offer(&format!("FROM {name}\nLABEL a=b\n"), context);
        let mut client = server.client(offer, "").await;
        let request = client.request();
        let status = client.solve(request).await.expect_err("no such image");
        assert!(status.message().contains("app"), "{}", status.message());
        let request = pbc::SolveRequest {
            frontend_attrs: HashMap::from([("image-resolve-mode".to_owned(), "local".to_owned())]),
            ..client.request()
        };
        client.solve(request).await.expect("a build");
    });
}

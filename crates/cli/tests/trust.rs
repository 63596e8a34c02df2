//! `--ca-bundle`: steps trust further certificates, and nothing of it stays.

use testkit::Environment;

const CORPORATE: &str = "-----BEGIN CERTIFICATE-----\nY29ycG9yYXRl\n-----END CERTIFICATE-----\n";
const ORIGINAL: &str =
    "# Original\n-----BEGIN CERTIFICATE-----\nb3JpZ2luYWw=\n-----END CERTIFICATE-----\n";

/// An image with a bundle as Debian and Alpine keep it.
const BASE: &str = "FROM busybox AS base
COPY original.pem /etc/ssl/certs/ca-certificates.crt
RUN ln -s certs/ca-certificates.crt /etc/ssl/cert.pem; touch -d '2020-01-01 00:00:00' /etc/ssl/certs /etc/ssl
FROM base
";

fn environment(instructions: &str) -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("corporate.pem", CORPORATE);
    environment.write("ctx/original.pem", ORIGINAL);
    environment.write("ctx/Dockerfile", format!("{BASE}{instructions}"));
    environment
}

/// Builds a layout whose bytes depend on nothing but the Dockerfile, and returns the image's id.
fn id(environment: &Environment, out: &str, more: &[&str]) -> String {
    let output = format!("type=oci,rewrite-timestamp=true,dest={out}");
    let words = ["build", "-q", "--no-cache", "-o", &output];
    let mut command = environment.command(words);
    command
        .args(more)
        .arg("ctx")
        .env("SOURCE_DATE_EPOCH", "1700000000");
    testkit::Outcome::of(&mut command).success().stdout
}

#[test]
fn a_step_trusts_the_bundle_in_every_place() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment(
        "ENV PIP_CERT=/mine\n\
         RUN for file in $SSL_CERT_FILE $CURL_CA_BUNDLE /etc/ssl/cert.pem /etc/ssl/certs/ca-certificates.crt; do \
         grep -q Y29ycG9yYXRl $file && grep -q b3JpZ2luYWw= $file || exit 1; done; echo $PIP_CERT > /pip\n\
         FROM busybox\n\
         RUN grep -q Y29ycG9yYXRl $SSL_CERT_FILE && test ! -e /etc/ssl/certs/ca-certificates.crt\n\
         COPY --from=1 /pip /etc/ssl/certs/ca-certificates.crt /\n",
    );
    let build = [
        "build",
        "-q",
        "-o",
        "out",
        "--ca-bundle",
        "corporate.pem",
        "ctx",
    ];
    environment.ok(build);
    let read = |name: &str| std::fs::read_to_string(environment.work().join("out").join(name));
    assert_eq!(read("pip").expect("a file"), "/mine\n");
    assert_eq!(read("ca-certificates.crt").expect("a file"), ORIGINAL);
}

#[test]
fn nothing_of_it_is_in_the_image_whatever_the_step_does_to_its_bundle() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment(
        "RUN true\n\
         RUN touch /etc/ssl/new\n\
         RUN chmod 600 /etc/ssl/certs/ca-certificates.crt\n\
         RUN echo '# mine' >> /etc/ssl/cert.pem\n\
         RUN cp -a /etc/ssl/certs/ca-certificates.crt /opt.pem; ln /opt.pem /same.pem\n\
         RUN cd /etc/ssl/certs && cat *.crt > tmp && mv tmp ca-certificates.crt\n\
         RUN rm -r /etc/ssl/certs && mkdir /etc/ssl/certs && echo new > /etc/ssl/certs/ca-certificates.crt\n\
         RUN rm -r /etc/ssl\n",
    );
    let plain = id(&environment, "plain.tar", &[]);
    let trusting = id(
        &environment,
        "trusting.tar",
        &["--ca-bundle", "corporate.pem"],
    );
    assert_eq!(plain, trusting);
    let bytes = |name: &str| std::fs::read(environment.work().join(name)).expect("an archive");
    assert_eq!(bytes("plain.tar"), bytes("trusting.tar"));
    // Nor is it in a key: what was built without is found with it.
    let again = environment.ok(["build", "--ca-bundle", "corporate.pem", "ctx"]);
    assert_eq!(
        again.stderr.matches(" CACHED").count(),
        11,
        "{}",
        again.stderr
    );
}

/// What `apk upgrade` does to a file that it takes for changed by the user: the new one is laid beside it.
#[test]
fn a_bundle_that_apk_took_for_changed_is_replaced_all_the_same() {
    testkit::require_fixtures!("busybox:latest");
    let check = |sum: &str, expected: &[&str]| {
        let environment = environment(&format!(
            "RUN printf abc > /etc/ssl/cert.pem && mkdir -p /lib/apk/db && \
             printf 'P:bundle\\nF:etc/ssl/certs\\nR:ca-certificates.crt\\nZ:{sum}\\n' > /lib/apk/db/installed\n\
             RUN echo upgraded > /etc/ssl/certs/ca-certificates.crt.apk-new\n"
        ));
        let build = [
            "build",
            "-q",
            "-o",
            "out",
            "--ca-bundle",
            "corporate.pem",
            "ctx",
        ];
        environment.ok(build);
        let folder = environment.work().join("out/etc/ssl/certs");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| {
                let path = entry.expect("an entry").path();
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                format!(
                    "{name}={}",
                    std::fs::read_to_string(&path).expect("text").trim()
                )
            })
            .collect();
        found.sort();
        assert_eq!(found, expected);
    };
    check(
        "Q1qZk+NkcGgWq6PiVxeFDCbJzQ2J0=",
        &["ca-certificates.crt=upgraded"],
    );
    check(
        "Q1AAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        &[
            "ca-certificates.crt.apk-new=upgraded",
            "ca-certificates.crt=abc",
        ],
    );
}

#[test]
fn the_configuration_names_it_too_and_a_bad_one_is_refused() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment("RUN grep -q Y29ycG9yYXRl $SSL_CERT_FILE\n");
    let config = testkit::configuration(&["docker.io"]);
    let named = environment.work().join("corporate.pem");
    let named = named.display();
    environment.write_config(&format!("[run]\nca-bundle = \"{named}\"\n{config}"));
    environment.ok(["build", "-q", "ctx"]);

    let check = |text: &str, words: &str| {
        environment.write("bad.pem", text);
        let build = ["build", "--no-cache", "--ca-bundle", "bad.pem", "ctx"];
        environment.run(build).fails_with(1).says(words);
    };
    check("", "it holds no certificate in PEM form");
    check(
        "-----BEGIN CERTIFICATE-----\nAA",
        "its last certificate has no end",
    );
    check(
        "-----BEGIN CERTIFICATE-----\n%\n",
        "line 2 is no part of a certificate",
    );
    environment
        .run(["build", "--no-cache", "--ca-bundle", "none.pem", "ctx"])
        .says("failed to read none.pem");
    environment.write_config(&format!("[run]\nca = 1\n{config}"));
    environment
        .run(["build", "ctx"])
        .success()
        .says("config.toml:2: the key run.ca is not known and has no effect");
}

//! Times parsing and lowering of a Dockerfile with many stages: `cargo run --release --example stages [STAGES]`.
//!
//! Two shapes: all but three stages are not needed by the target, and every stage is needed by the next. With a second
//! argument each is done so often; once is right for counting instructions (`valgrind --tool=callgrind`).

use std::time::{Duration, Instant};

use frontend::{Answers, Lowering, Options, Request, ResolvedImage, Step};
use oci::{Digest, ImageConfig};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| {
        arguments
            .next()
            .map_or(default, |it| it.parse().expect("a number"))
    };
    let (stages, rounds) = (number(2000), number(31));
    println!("{stages} stages, median of {rounds}, milliseconds");
    println!(
        "{:14} {:>8} {:>8} {:>8} {:>8}",
        "", "parse", "stages", "lower", "all"
    );
    for (name, text) in [("few needed", few(stages)), ("all needed", all(stages))] {
        let mut times: Vec<[Duration; 4]> = (0..rounds).map(|_| once(text.as_bytes())).collect();
        times.sort_by_key(|it| it[3]);
        let cells = times[rounds / 2].map(|it| format!("{:8.2}", it.as_secs_f64() * 1e3));
        println!("{name:14} {}", cells.join(" "));
    }
}

/// Three of the stages are needed.
fn few(stages: usize) -> String {
    let mut text = String::from("FROM busybox AS base\n");
    for number in 0..stages.saturating_sub(3) {
        text.push_str(&format!(
            "FROM base AS s{number}\nENV A{number}=1\nRUN sleep 1000 {number}\nCOPY . /x\n"
        ));
    }
    text + "FROM base AS dep\nRUN echo 1 > /one\nFROM base\nCOPY --from=dep /one /one\n"
}

/// Each stage takes a file of the one before.
fn all(stages: usize) -> String {
    let mut text = String::from("FROM busybox AS s0\n");
    for number in 1..stages {
        text.push_str(&format!(
            "FROM busybox AS s{number}\nCOPY --from=s{} /x /x\nRUN make {number}\n",
            number - 1
        ));
    }
    text
}

fn once(text: &[u8]) -> [Duration; 4] {
    let options = Options::default();
    let began = Instant::now();
    let ast = dockerfile::parse(text).expect("a valid Dockerfile");
    let parsed = began.elapsed();
    let stages = ast.stages().expect("valid instructions");
    let typed = began.elapsed();
    let mut lowering = Lowering::new(&ast, &stages, &options);
    let mut answers = Answers::default();
    loop {
        match lowering.step(&answers).expect("nothing that is refused") {
            Step::Resolve(requests) => {
                for request in requests {
                    if let Request::Image(request) = request {
                        let image = ResolvedImage {
                            reference: None,
                            digest: Some(Digest::sha256_of(request.reference.as_bytes())),
                            config: ImageConfig::new(request.platform.clone()),
                        };
                        answers.images.insert(request, Ok(image));
                    }
                }
            }
            Step::Done(lowered) => {
                let done = began.elapsed();
                assert_eq!(lowered.builds.len(), 1);
                return [parsed, typed - parsed, done - typed, done];
            }
        }
    }
}

//! Dockerfiles with many stages, and their graphs.

use frontend::{Answers, Lowering, Options, Request, ResolvedImage, Step};
use oci::{Digest, ImageConfig};

/// Three of the stages are needed.
pub(crate) fn few_needed(stages: usize) -> String {
    let mut text = String::from("FROM busybox AS base\n");
    for number in 0..stages.saturating_sub(3) {
        text.push_str(&format!(
            "FROM base AS s{number}\nENV A{number}=1\nRUN sleep 1000 {number}\nCOPY . /x\n"
        ));
    }
    text + "FROM base AS dep\nRUN echo 1 > /one\nFROM base\nCOPY --from=dep /one /one\n"
}

/// Each stage takes a file of the one before.
pub(crate) fn all_needed(stages: usize) -> String {
    let mut text = String::from("FROM busybox AS s0\n");
    for number in 1..stages {
        let before = number - 1;
        text.push_str(&format!(
            "FROM busybox AS s{number}\nCOPY --from=s{before} /x /x\nRUN make {number}\n"
        ));
    }
    text
}

/// Returns the graph of the last stage; all bases are empty images.
pub(crate) fn lower(text: &str) -> llb::Graph {
    let options = Options::default();
    let ast = dockerfile::parse(text.as_bytes()).expect("a valid Dockerfile");
    let stages = ast.stages().expect("valid instructions");
    let mut lowering = Lowering::new(&ast, &stages, &options);
    let mut answers = Answers::default();
    loop {
        match lowering.step(&answers).expect("nothing that is refused") {
            Step::Resolve(requests) => {
                for request in requests {
                    let Request::Image(request) = request else {
                        continue;
                    };
                    let image = ResolvedImage {
                        reference: None,
                        digest: Some(Digest::sha256_of(request.reference.as_bytes())),
                        config: ImageConfig::new(request.platform.clone()),
                    };
                    answers.images.insert(request, Ok(image));
                }
            }
            Step::Done(mut lowered) => return lowered.builds.remove(0).graph,
        }
    }
}

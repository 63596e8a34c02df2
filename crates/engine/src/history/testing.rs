//! Records for tests.

use oci::{Digest, Timestamp};

use super::record::{
    BuildRecord, BuildStatus, KeyRecord, RECORD_VERSION, RequestRecord, StepKind, StepOutcome,
    StepRecord,
};
use crate::KeyPart;

/// Returns the vertex of a step with this name.
pub(crate) fn vertex(name: &str) -> Digest {
    Digest::sha256_of(name.as_bytes())
}

/// Returns a step that ran for so many seconds.
pub(crate) fn step(name: &str, inputs: &[&str], seconds: i64) -> StepRecord {
    let at = |seconds| Timestamp::from_unix(seconds, 0).expect("a small number");
    let (stage, command) = super::complete::split_name(name);
    StepRecord {
        name: name.to_owned(),
        kind: match command.split(' ').next() {
            Some("FROM") => StepKind::Image,
            Some("RUN") => StepKind::Exec,
            _ => StepKind::File,
        },
        stage: stage.map(str::to_owned),
        command: command.to_owned(),
        inputs: inputs.iter().map(|input| vertex(input)).collect(),
        started: Some(at(0)),
        completed: Some(at(seconds)),
        outcome: StepOutcome::Ran,
        ..StepRecord::unseen(vertex(name))
    }
}

/// Gives a step parts; its keys follow from them.
pub(crate) fn with_parts(mut step: StepRecord, parts: &[(&str, &str)]) -> StepRecord {
    let parts: Vec<KeyPart> = parts
        .iter()
        .map(|(name, value)| KeyPart {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        })
        .collect();
    let key = Digest::sha256_of(format!("{parts:?}").as_bytes());
    step.key = Some(KeyRecord {
        definition: key.hex().to_owned(),
        operation: key.hex().to_owned(),
        parts,
    });
    step
}

/// Returns a build of these steps.
pub(crate) fn record(id: &str, steps: &[StepRecord]) -> BuildRecord {
    BuildRecord {
        version: RECORD_VERSION,
        id: id.to_owned(),
        name: "app".to_owned(),
        started: Timestamp::EPOCH,
        completed: Some(Timestamp::EPOCH),
        status: BuildStatus::Completed,
        request: RequestRecord::default(),
        dockerfile: None,
        sources: Vec::new(),
        steps: steps.to_vec(),
        warnings: Vec::new(),
        outputs: Vec::new(),
        errors: Vec::new(),
    }
}

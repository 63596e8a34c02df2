//! Lays trees over one another, and takes them apart again.

use llb::{DiffOp, MergeOp};
use store::Layer;

use crate::EngineError;
use crate::snapshot::Snapshot;
use crate::step::StepContext;

/// Lays the inputs over one another, the first lowest.
pub(crate) fn merge(
    context: &StepContext,
    op: &MergeOp,
    inputs: &[Snapshot],
) -> Result<Vec<Snapshot>, EngineError> {
    let mut all: Vec<Layer> = Vec::new();
    for input in op.inputs.iter().flatten() {
        all.extend(layers(context, &inputs[*input])?);
    }
    Ok(vec![Snapshot::Layers(all)])
}

/// Returns what the upper tree has over the lower one.
pub(crate) fn diff(
    context: &StepContext,
    op: &DiffOp,
    inputs: &[Snapshot],
) -> Result<Vec<Snapshot>, EngineError> {
    let tree = |input: Option<usize>| match input {
        None => Ok(Vec::new()),
        Some(input) => layers(context, &inputs[input]),
    };
    let lower = tree(op.lower)?;
    let upper = tree(op.upper)?;
    match upper.strip_prefix(lower.as_slice()) {
        Some(rest) => Ok(vec![Snapshot::Layers(rest.to_vec())]),
        None => Err(EngineError::Unsupported(
            "the difference of trees of which one is not made from the other".to_owned(),
        )),
    }
}

fn layers(context: &StepContext, snapshot: &Snapshot) -> Result<Vec<Layer>, EngineError> {
    match snapshot {
        Snapshot::Layers(layers) => Ok(layers.clone()),
        Snapshot::Context(tree) => Ok(vec![context.materialize(tree)?]),
    }
}

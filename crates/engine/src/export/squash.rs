//! Makes one layer of those that a build adds (`--squash`).

use oci::History;
use progress::{Sink, Vertex};
use rootfs::compare::{Change, compare};
use rootfs::copy::{Copy, LinkPolicy, Remove, copy, remove};
use store::Layer;

use crate::EngineError;
use crate::build::Built;
use crate::step::Shared;

/// Returns the builds with one layer each over their bases.
pub(super) fn squash_all(
    shared: &Shared,
    built: &[Built],
    sink: &Sink,
) -> Result<Vec<Built>, EngineError> {
    let running = sink.vertex(Vertex::named("squashing layers")).start();
    let squashed: Result<Vec<Built>, EngineError> =
        built.iter().map(|built| squash(shared, built)).collect();
    running.conclude(&squashed, |error| crate::error::chain(error));
    squashed
}

fn squash(shared: &Shared, built: &Built) -> Result<Built, EngineError> {
    let mut build = built.build.clone();
    let count = build.config.rootfs.diff_ids.len().min(built.layers.len());
    let (base, added) = built.layers.split_at(count);
    if added.len() <= 1 {
        return Ok(Built {
            build,
            layers: built.layers.clone(),
            inline: Vec::new(),
            attestations: built.attestations.clone(),
        });
    }
    let mut layers = base.to_vec();
    layers.push(merged(shared, base, added, &built.layers)?);
    let mut described = 0;
    for entry in &mut build.config.history {
        described += usize::from(!entry.empty_layer);
        entry.empty_layer |= described > count;
    }
    build.config.history.push(History {
        comment: format!("merge {} layers", added.len()),
        ..History::default()
    });
    // What keys yield is said of layers that are not there any more.
    Ok(Built {
        build,
        layers,
        inline: Vec::new(),
        attestations: built.attestations.clone(),
    })
}

/// Returns a layer that makes of `base` what all the layers make.
fn merged(
    shared: &Shared,
    base: &[Layer],
    added: &[Layer],
    all: &[Layer],
) -> Result<Layer, EngineError> {
    let layer = shared.new_layer(base)?;
    let path = layer.path();
    let target = shared.writable_tree(base, &path)?;
    let mut everything = Copy::new("/", "/");
    everything.dir_contents = true;
    everything.replace = true;
    // Layers are not written to any more: a link to a file in one is as good as a copy.
    everything.link = LinkPolicy::Allowed;
    copy(&shared.tree(added)?, &target, &everything)?;
    // What a layer took away is still seen below.
    let mut gone: Vec<Vec<u8>> = Vec::new();
    compare(&target, &shared.tree(all)?, |difference| {
        let below_last = gone.last().is_some_and(|last| {
            let rest = difference.path.strip_prefix(last.as_slice());
            rest.is_some_and(|rest| rest.starts_with(b"/"))
        });
        if difference.change == Change::Removed && !below_last {
            gone.push(difference.path);
        }
    })?;
    for path in gone {
        let path = String::from_utf8(path).map_err(|_| {
            EngineError::Unsupported("squashing layers that remove a name outside UTF-8".to_owned())
        })?;
        remove(
            &target,
            &Remove {
                path,
                allow_not_found: true,
                wildcard: false,
            },
        )?;
    }
    shared.commit(layer, "squash")
}

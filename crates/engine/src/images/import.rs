//! Makes images of plain tars.

use std::io::Read;

use frontend::{Answers, Lowering, Options, Step};
use oci::{History, ImageConfig, Platform, Reference, Timestamp};
use progress::{Sink, Vertex};
use rootfs::LayerDir;
use rootfs::apply::apply_layer;
use store::{Image, LayerInfo};

use crate::source::pull::{Stoppable, options};
use crate::{Cancel, Engine, EngineError};

/// What a tar is to become.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    pub platform: Platform,
    /// Instructions for the config, as in a Dockerfile, one each.
    pub changes: Vec<String>,
    pub message: String,
    pub name: Option<Reference>,
}

impl Engine {
    /// Makes an image of one layer out of a tar, which may be compressed.
    pub fn import(
        &self,
        archive: impl Read + Send,
        request: &ImportRequest,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<Image, EngineError> {
        let config = config_from_changes(&request.platform, &request.changes)?;
        let running = sink.vertex(Vertex::named("importing")).start();
        let image = self.import_layer(archive, request, config, cancel);
        running.conclude(&image, |error| crate::error::chain(error));
        image
    }

    fn import_layer(
        &self,
        archive: impl Read + Send,
        request: &ImportRequest,
        mut config: ImageConfig,
        cancel: &Cancel,
    ) -> Result<Image, EngineError> {
        let store = self.store();
        let layer = store.new_layer()?;
        let path = layer.path();
        crate::step::attributes_of_root(None, &path)?;
        let reader = Stoppable {
            inner: archive,
            stop: cancel,
        };
        let options = options(store, None);
        let applied = apply_layer(reader, &LayerDir::open(&path)?, &options);
        if cancel.is_requested() {
            return Err(EngineError::Canceled);
        }
        let applied = applied?;
        let layer = layer.commit(LayerInfo {
            // The tar that is written of it is ours, not the one that came in.
            tar: None,
            content_id: None,
            bytes: applied.content_size,
            content: applied.content_size,
            origin: "import".to_owned(),
            created: store.now(),
        })?;
        let tar = crate::export::layers::measure_one(&self.shared, &layer)?;
        let now = store.now();
        let created = Timestamp::from_unix(now, 0)
            .map_err(|error| EngineError::Request(format!("the clock says {now}: {error}")))?;
        config.created = Some(created);
        config.rootfs.kind = "layers".to_owned();
        config.rootfs.diff_ids = vec![tar];
        config.history = vec![History {
            created: Some(created),
            comment: request.message.clone(),
            ..History::default()
        }];
        let _blobs = store.hold_blobs();
        let config = oci::json::compact(&config).expect("a config can be written as JSON");
        let image = Image {
            id: store.blobs().put(&config)?,
            manifest: None,
            layers: Some(vec![layer.id()]),
            platform: request.platform.to_string(),
            size: applied.content_size,
            created: now,
            annotations: Default::default(),
        };
        store.put_image(&image, request.name.as_slice(), None)?;
        Ok(image)
    }
}

/// What may be changed of an imported image, as with Docker.
const CHANGES: [&str; 11] = [
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Returns the config that instructions make of nothing.
fn config_from_changes(
    platform: &Platform,
    changes: &[String],
) -> Result<ImageConfig, EngineError> {
    let wrong = |reason: String| EngineError::Request(format!("invalid --change: {reason}"));
    let mut text = "FROM scratch\n".to_owned();
    for change in changes {
        let word = change.split_whitespace().next().unwrap_or_default();
        if !CHANGES.contains(&word.to_ascii_uppercase().as_str()) {
            return Err(wrong(format!(
                "{word:?} is not possible; there are {}",
                CHANGES.join(", ")
            )));
        }
        if change.contains('\n') {
            return Err(wrong(format!("{change:?} has several lines")));
        }
        text.push_str(change);
        text.push('\n');
    }
    let said = |diagnostics: Vec<dockerfile::Diagnostic>| {
        let first = diagnostics.into_iter().next();
        wrong(first.map_or_else(String::new, |first| first.message))
    };
    let ast = dockerfile::parse(text.as_bytes()).map_err(said)?;
    let stages = ast.stages().map_err(said)?;
    let options = Options {
        platforms: vec![platform.clone()],
        ..Options::default()
    };
    let mut lowering = Lowering::new(&ast, &stages, &options);
    let Step::Done(lowered) = lowering.step(&Answers::default()).map_err(said)? else {
        return Err(wrong("it asks for an image".to_owned()));
    };
    let build = lowered.builds.into_iter().next();
    let build = build.ok_or_else(|| wrong("nothing came of it".to_owned()))?;
    let mut config = ImageConfig::new(platform.clone());
    config.config = build.config.config;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_instructions_for_the_config() {
        let read = |changes: &[&str]| {
            let changes: Vec<String> = changes.iter().map(|text| (*text).to_owned()).collect();
            config_from_changes(&Platform::host(), &changes)
        };
        let config = read(&["CMD [\"/a\", \"b\"]", "env K=v", "EXPOSE 80", "WORKDIR /w"]);
        let config = config.expect("they can be read").config;
        assert_eq!(config.cmd, ["/a", "b"]);
        assert!(config.env.contains(&"K=v".to_owned()));
        assert_eq!(config.working_dir, "/w");
        for wrong in [
            "RUN true",
            "FROM x",
            "",
            "COPY a b",
            "CMD a\nRUN b",
            "EXPOSE x/y/z",
        ] {
            let error = read(&[wrong]).expect_err(wrong).to_string();
            assert!(error.starts_with("invalid --change: "), "{error}");
        }
    }
}

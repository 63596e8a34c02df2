//! Shows the progress of what is no build.

use std::sync::mpsc::sync_channel;

use anyhow::Context;
use engine::{Cancel, Engine};
use progress::{Event, Sink, render, system_clock};

use crate::arguments::ProgressMode;
use crate::commands::build::renderer_of;
use crate::failure::{Failure, exit};
use crate::signals;

/// Events that may wait to be shown.
const EVENTS: usize = 1024;

/// Lets an engine do `work`, which tells of its progress and is canceled by Ctrl-C.
pub(crate) fn show<T>(
    engine: &Engine,
    mode: ProgressMode,
    work: impl FnOnce(&Sink, &Cancel) -> Result<T, engine::EngineError>,
) -> Result<T, Failure> {
    let cancel = Cancel::default();
    let listening = signals::cancel_on_signal(&cancel)
        .context("failed to listen for signals")
        .map_err(exit::builder)?;
    let (sender, events) = sync_channel::<Event>(EVENTS);
    let mut renderer = renderer_of(mode);
    let screen = std::thread::Builder::new()
        .name("progress".to_owned())
        .spawn(move || render::drive(&events, renderer.as_mut(), system_clock))
        .context("failed to start a thread")
        .map_err(exit::builder)?;
    let sink = Sink::new(sender, system_clock);
    let waiting = engine.clone();
    let guard = cancel.on_request(move || waiting.stop_waiting());
    let result = work(&sink, &cancel);
    drop((sink, guard));
    let _ = screen.join();
    // What comes after may have another use for signals.
    listening.close();
    result.map_err(exit::engine)
}

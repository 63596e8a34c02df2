//! Shows the progress of what is no build.

use std::sync::mpsc::sync_channel;

use anyhow::Context;
use engine::Cancel;
use progress::{Event, Sink, render, system_clock};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::arguments::ProgressMode;
use crate::commands::build::renderer_of;
use crate::failure::{Failure, exit};

/// Events that may wait to be shown.
const EVENTS: usize = 1024;

/// Runs `work`, which tells of its progress and is canceled by Ctrl-C.
pub(crate) fn show<T>(
    mode: ProgressMode,
    work: impl FnOnce(&Sink, &Cancel) -> Result<T, engine::EngineError>,
) -> Result<T, Failure> {
    let cancel = Cancel::default();
    let listening = listen(&cancel)
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
    let result = work(&sink, &cancel);
    drop(sink);
    let _ = screen.join();
    // What comes after may have another use for signals.
    listening.close();
    result.map_err(exit::engine)
}

fn listen(cancel: &Cancel) -> std::io::Result<Handle> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let handle = signals.handle();
    let cancel = cancel.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || signals.forever().for_each(|_| cancel.request()))?;
    Ok(handle)
}

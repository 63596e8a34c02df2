//! Ctrl-C: the first asks to stop, the second stops.

use engine::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Asks `cancel` at the first signal to end; ends the process at the second.
pub(crate) fn cancel_on_signal(cancel: &Cancel) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let cancel = cancel.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                if cancel.is_requested() {
                    // The sandbox's helper and all steps die with this process.
                    std::process::exit(130);
                }
                cancel.request();
            }
        })?;
    Ok(())
}

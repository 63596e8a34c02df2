//! Ctrl-C: the first asks to stop, the second stops.

use engine::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// Asks `cancel` at the first signal to end; ends the process at the second. Closing what is returned gives signals back
/// their usual meaning.
pub(crate) fn cancel_on_signal(cancel: &Cancel) -> std::io::Result<Handle> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let handle = signals.handle();
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
    Ok(handle)
}

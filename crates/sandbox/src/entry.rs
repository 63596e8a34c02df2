//! The door of the helper process.

use std::os::unix::ffi::OsStrExt;

use crate::serve;

/// `argv[0]` of the helper.
pub(crate) const HELPER_NAME: &str = "lapstrake-sandbox";

/// Becomes the sandbox helper when this process was started as one, and never returns then.
///
/// The first call of `main`, before any thread starts and any descriptor opens.
pub fn run_if_requested() {
    let mut arguments = std::env::args_os();
    if arguments
        .next()
        .is_none_or(|name| name.as_bytes() != HELPER_NAME.as_bytes())
    {
        return;
    }
    let parent = arguments
        .next()
        .and_then(|text| text.to_str()?.parse().ok());
    let code = match parent {
        Some(parent) => serve::serve(parent),
        None => 2,
    };
    std::process::exit(code);
}

/// Makes a test program answer as the sandbox helper before its `main`, which the test harness owns.
///
/// Once in each test crate that starts a [`crate::Helper`].
#[macro_export]
macro_rules! answer_as_helper_before_main {
    () => {
        #[used]
        #[unsafe(link_section = ".init_array")]
        static ANSWER_AS_HELPER: extern "C" fn() = {
            extern "C" fn answer() {
                $crate::entry::run_if_requested();
            }
            answer
        };
    };
}

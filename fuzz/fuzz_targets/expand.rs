//! Any text as a word to expand, in every mode: no panic, and what was asked for is said once.
#![no_main]

use std::collections::BTreeMap;

use dockerfile::expand::Expander;
use libfuzzer_sys::fuzz_target;

/// Returns the expander that the bits of a number choose.
fn expander(mode: u8) -> Expander {
    let mut expander = Expander::new(if mode & 1 == 0 { '\\' } else { '`' });
    if mode & 2 != 0 {
        expander = expander.raw_quotes();
    }
    if mode & 4 != 0 {
        expander = expander.raw_escapes();
    }
    if mode & 8 != 0 {
        expander = expander.literal_quotes();
    }
    if mode & 16 != 0 {
        expander = expander.keep_unset();
    }
    expander
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, word)) = data.split_first() else {
        return;
    };
    let word = String::from_utf8_lossy(word);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let environment = BTreeMap::from([
        pair("a", "value"),
        pair("b", ""),
        pair("path", "/usr/local/bin:/usr/bin"),
        pair("p", "*?[a-z]\\"),
        pair("1", "one"),
        pair("quoted", "x \"y z\" 'w'"),
    ]);
    let expander = expander(*mode);
    let expansion = expander.word(&word, &environment);
    let words = expander.words(&word, &environment);
    assert_eq!(expansion.is_ok(), words.is_ok());
    if let Ok(expansion) = expansion {
        assert!(expansion.matched.iter().all(|name| environment.contains_key(name)));
        assert!(expansion.unmatched.iter().all(|name| !environment.contains_key(name)));
    }
});

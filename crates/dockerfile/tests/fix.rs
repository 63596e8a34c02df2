//! Mending: a file in, a better one out.

use dockerfile::check::{CheckOptions, check, fix};

fn mend(source: &str) -> Option<String> {
    fix(source.as_bytes(), &CheckOptions::default()).map(|fixed| fixed.text)
}

fn expect(source: &str, expect: &str) {
    assert_eq!(mend(source).as_deref(), Some(expect), "\n{source}");
}

#[test]
fn casing_is_made_one() {
    expect("from a as B\nRUN x\nRun y\n", "FROM a AS b\nRUN x\nRUN y\n");
    expect("from a AS b\nrun x\n", "from a as b\nrun x\n");
}

#[test]
fn pairs_get_their_equals_sign() {
    expect(
        "FROM a\nENV k v\nLABEL l  x $y z \n",
        "FROM a\nENV k=v\nLABEL l=\"x $y z\" \n",
    );
    expect(
        "FROM a\nENV k \\\n  v \\\n  w\n",
        "FROM a\nENV k=\"v \\\n  w\"\n",
    );
    // What has quotes of its own takes thought.
    expect("FROM a\nENV k it\"s a\" b\n", "FROM a\nENV k it\"s a\" b\n");
}

#[test]
fn a_maintainer_becomes_a_label() {
    expect(
        "FROM a\nMAINTAINER A \"B\" $C <d@e>\n",
        "FROM a\nLABEL org.opencontainers.image.authors=\"A \\\"B\\\" \\$C <d@e>\"\n",
    );
}

#[test]
fn empty_lines_platforms_and_protocols_are_mended() {
    expect(
        "FROM a\nRUN x \\\n\n  \n  && y\n",
        "FROM a\nRUN x \\\n  && y\n",
    );
    expect("FROM --platform=$TARGETPLATFORM a\n", "FROM a\n");
    expect(
        "FROM a\nARG P=80/TCP\nEXPOSE 80/TCP $P\n",
        "FROM a\nARG P=80/TCP\nEXPOSE 80/tcp $P\n",
    );
}

#[test]
fn a_file_that_does_not_parse_is_left_alone() {
    assert_eq!(mend("FROM a\nrun x\nBAD\n"), None);
    expect("FROM a\nRUN x\n", "FROM a\nRUN x\n");
}

#[test]
fn a_mended_file_means_the_same() {
    let source =
        "from a As b\nENV k v  w\nLABEL one 'x'\nENV z $k\nRUN x \\\n\n && y\nEXPOSE 1/UDP\n";
    let fixed = fix(source.as_bytes(), &CheckOptions::default()).unwrap();
    let left = check(fixed.text.as_bytes(), &CheckOptions::default());
    let left: Vec<&str> = left.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(left, ["LegacyKeyValueFormat"], "{}", fixed.text);
}

use super::*;

fn environment() -> BTreeMap<String, String> {
    [
        ("PWD", "/home"),
        ("EMPTY", ""),
        ("FILE", "a/b.tar.gz"),
        ("SPACED", " x  y "),
        ("DOLLARS", "$0$0"),
        ("LINES", "a\nb"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn message(error: &ExpandError) -> String {
    let source = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    format!("error: {source}")
}

fn check(word: &str, expect: &str) {
    let shown = match Expander::new('\\').word(word, &environment()) {
        Ok(expansion) => expansion.text,
        Err(error) => message(&error),
    };
    assert_eq!(shown, expect, "{word}");
}

fn check_words(word: &str, expect: &[&str]) {
    assert_eq!(
        Expander::new('\\').words(word, &environment()).unwrap(),
        expect,
        "{word}"
    );
}

#[test]
fn variables_are_replaced_outside_single_quotes() {
    check("x$PWD", "x/home");
    check("${PWD}x", "/homex");
    check("\"$PWD\"", "/home");
    check("'$PWD'", "$PWD");
    check("\\$PWD", "$PWD");
    check("$", "$");
    check("$+", "$+");
    check("$1x$@y", "xy");
    check("$NONE.", ".");
}

#[test]
fn quotes_and_escapes_are_removed() {
    check("he\\'llo", "he'llo");
    check("a\\", "a");
    check(r#""a\"b\c\\""#, r#"a"b\c\"#);
    check(
        "'a",
        "error: unexpected end of statement while looking for matching single-quote",
    );
    check(
        "\"a",
        "error: unexpected end of statement while looking for matching double-quote",
    );
}

#[test]
fn defaults_look_at_emptiness_only_with_a_colon() {
    check("${NONE-d}${NONE:-d}", "dd");
    check("${EMPTY-d}${EMPTY:-d}", "d");
    check("${EMPTY+d}${EMPTY:+e}${NONE+f}", "d");
    check("${NONE:-${PWD}/x}", "/home/x");
    check("${PWD?}", "/home");
    check("${NONE?}", "error: NONE: is not allowed to be unset");
    check("${EMPTY:?}", "error: EMPTY: is not allowed to be empty");
    check("${EMPTY?x}", "");
    check("${NONE?because of $PWD}", "error: NONE: because of /home");
}

#[test]
fn patterns_trim_the_shortest_or_the_longest_part() {
    check("${FILE#*.}", "tar.gz");
    check("${FILE##*.}", "gz");
    check("${FILE%.*}", "a/b.tar");
    check("${FILE%%.*}", "a/b");
    check("${FILE#?/}", "b.tar.gz");
    check("${FILE%\\*}", "a/b.tar.gz");
    check(
        "${FILE#\\x}",
        "error: invalid pattern (\\x) in substitution",
    );
    check("${LINES#*b}", "a\nb");
    check("${NONE#*}", "");
    check(
        "${FILE:#a}",
        "error: unsupported modifier (:#) in substitution",
    );
}

#[test]
fn patterns_replace_the_first_or_every_match() {
    check("${FILE/./_}", "a/b_tar.gz");
    check("${FILE//./_}", "a/b_tar_gz");
    check("${FILE/\\//_}", "a_b.tar.gz");
    check("${FILE/t*r/}", "a/b..gz");
    check("${FILE//?/$DOLLARS}", "aa//bb..ttaarr..ggzz");
    check("${FILE/?/$DOLLARS}", "$0$0/b.tar.gz");
    check("${PWD///-}", "-/-h-o-m-e-");
    check("${PWD/a}", "error: syntax error: missing '/' in ${}'");
    check("${PWD//x*/-}", "/home");
    check("${PWD//*/-}", "-");
    check("${EMPTY//*/-}", "-");
}

#[test]
fn bad_substitutions_are_told_apart() {
    check("${", "error: syntax error: missing '}'");
    check("${}", "error: syntax error: bad substitution");
    check("${{x}}", "error: syntax error: bad substitution");
    check("${:x}", "error: syntax error: bad substitution");
    check("${PWD", "error: unsupported modifier () in substitution");
    check("${PWD-", "error: syntax error: missing '}'");
    check(
        "${PWD=x}",
        "error: unsupported modifier (=) in substitution",
    );
    check(
        "${PWD:=x}",
        "error: unsupported modifier (:=) in substitution",
    );
}

#[test]
fn words_are_split_after_expansion_but_not_inside_quotes() {
    check_words("a $SPACED b", &["a", "x", "y", "b"]);
    check_words("a \"$SPACED\" '' b\\ c", &["a", " x  y ", "b c"]);
    check_words("  ", &[]);
    check_words("<<  EOF x", &["<<  EOF", "x"]);
}

#[test]
fn a_substitution_forgets_what_stood_before_it_in_the_split_word() {
    check("ab${NONE-c}d", "abcd");
    check_words("ab${NONE-c}d", &["cd"]);
}

#[test]
fn variables_asked_for_are_reported() {
    let expansion = Expander::new('\\')
        .word("$PWD ${NONE:-$OTHER} ${EMPTY+x}", &environment())
        .unwrap();
    assert_eq!(
        expansion.matched.iter().collect::<Vec<_>>(),
        ["EMPTY", "PWD"]
    );
    assert_eq!(
        expansion.unmatched.iter().collect::<Vec<_>>(),
        ["NONE", "OTHER"]
    );
}

#[test]
fn modes_keep_what_they_say() {
    let expand = |expander: Expander, word| expander.word(word, &environment()).unwrap().text;
    let plain = Expander::new('\\');
    assert_eq!(expand(plain.raw_quotes(), "'a' \"$PWD\""), "'a' \"/home\"");
    assert_eq!(expand(plain.raw_escapes(), "a\\ b ${NONE-\\x}"), "a\\ b x");
    assert_eq!(expand(plain.literal_quotes(), "'$PWD"), "'/home");
    assert_eq!(
        expand(
            plain.keep_unset(),
            "$PWD $NONE ${NONE} ${NONE:-x} ${NONE//a/b}"
        ),
        "/home $NONE ${NONE} ${NONE:-x} ${NONE/a/b}"
    );
    assert_eq!(expand(Expander::new('`'), "C:\\x `$PWD"), "C:\\x $PWD");
}

#[test]
fn the_last_assignment_of_a_list_counts() {
    let list = ["A=1", "B", "A=2=3"].map(str::to_owned).to_vec();
    assert_eq!(
        Expander::new('\\').word("$A$B${B-x}", &list).unwrap().text,
        "2=3"
    );
}

#[test]
fn hostile_words_end_soon() {
    let deep = "${x-".repeat(100_000);
    check(&deep, "error: substitutions nest deeper than 200");
    let word = format!("${{A/{}x/}}", "*a".repeat(300));
    let value = BTreeMap::from([("A".to_owned(), "a".repeat(3000))]);
    let expansion = Expander::new('\\').word(&word, &value).unwrap();
    assert_eq!(expansion.text.len(), 3000);
    let value = BTreeMap::from([("A".to_owned(), "a".repeat(1 << 20))]);
    let error = Expander::new('\\')
        .word(&"$A".repeat(100), &value)
        .unwrap_err();
    assert!(matches!(error.reason, ExpandReason::Length { .. }));
    // Each replaces every place of the one inside of it.
    let word = "${A////".repeat(30) + "x" + &"}".repeat(30);
    let value = BTreeMap::from([("A".to_owned(), "value".to_owned())]);
    let grown = "${A//a/".repeat(12) + "aaaaaaaa" + &"}".repeat(12);
    for word in [word, grown] {
        let expansion = Expander::new('\\').word(&word, &value);
        assert!(expansion.is_err() || expansion.is_ok_and(|found| found.text.len() < 4 << 20));
    }
    // What is long itself may stay so.
    let long = format!("${{A}}{}", "x".repeat(1 << 22));
    let expansion = Expander::new('\\').word(&long, &value).unwrap();
    assert_eq!(expansion.text.len(), (1 << 22) + 5);
}

#[test]
fn a_word_without_anything_special_is_itself_whatever_the_options() {
    let environment = environment();
    for word in ["a", "/usr/local/bin", "--x=y,z", "[a-z]*?", "{}", ">file"] {
        for escape in ['\\', '`'] {
            for expander in [
                Expander::new(escape),
                Expander::new(escape).raw_quotes().raw_escapes(),
            ] {
                // What stands before it sends a word the long way.
                let long = expander.words(&format!("'' {word}"), &environment).unwrap();
                assert_eq!(
                    expander.words(word, &environment).unwrap(),
                    long[long.len() - 1..]
                );
                assert_eq!(expander.word(word, &environment).unwrap().text, word);
            }
        }
    }
}

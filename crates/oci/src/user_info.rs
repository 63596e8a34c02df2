//! URLs without who opens them.

use std::borrow::Cow;

/// Takes user names and passwords out of all URLs of a text; of others than http and https the passwords.
///
/// What stands before the last `@` of an authority is user information, with a colon or without: a token is often given as
/// a user. It goes before a URL is shown, kept or made part of a key.
pub fn without_user_info(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        rest = after;
        let is_end = |c: char| c.is_whitespace() || c.is_control() || "/?#\\".contains(c);
        let authority = &after[..after.find(is_end).unwrap_or(after.len())];
        let Some((user, _)) = authority.rsplit_once('@') else {
            continue;
        };
        rest = &after[user.len() + 1..];
        let scheme = before[..at].to_ascii_lowercase();
        if !scheme.ends_with("http") && !scheme.ends_with("https") {
            let name = user.split(':').next().unwrap_or(user);
            out.push_str(name);
            out.push('@');
        }
    }
    match out.is_empty() {
        true => Cow::Borrowed(text),
        false => Cow::Owned(out + rest),
    }
}

#[cfg(test)]
mod tests {
    use super::without_user_info;

    #[test]
    fn urls_lose_who_opens_them() {
        for (text, expected) in [
            ("https://me:pass@h/a@b.git", "https://h/a@b.git"),
            ("https://ghp_token@h/x.git", "https://h/x.git"),
            ("https://:p@h", "https://h"),
            ("http://a:b@c@h/p#x", "http://h/p#x"),
            ("HTTPS://t@h/", "HTTPS://h/"),
            ("ssh://git@h/a.git", "ssh://git@h/a.git"),
            ("ssh://git:pw@h/a.git", "ssh://git@h/a.git"),
            ("git@h:a.git", "git@h:a.git"),
            (
                "docker-image://a/b@sha256:00",
                "docker-image://a/b@sha256:00",
            ),
            ("https://h?x=a@b", "https://h?x=a@b"),
            ("https://h/x and me@h", "https://h/x and me@h"),
            (
                "ADD https://t@h/x https://u:p@g/y /",
                "ADD https://h/x https://g/y /",
            ),
            (
                "fatal: 'https://u:p@h/r': no, http://h",
                "fatal: 'https://h/r': no, http://h",
            ),
            ("://", "://"),
            ("/a/b", "/a/b"),
            ("", ""),
        ] {
            assert_eq!(without_user_info(text), expected, "{text}");
        }
    }
}

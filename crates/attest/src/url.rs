//! URLs without what is nobody's business.

const MASK: &str = "xxxxx";

/// Replaces user and password of a URL; what is no URL stays as it is.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let Some((who, host)) = authority.rsplit_once('@') else {
        return url.to_owned();
    };
    let masked = match who.split_once(':') {
        Some(("", _)) => format!(":{MASK}"),
        Some(_) => format!("{MASK}:{MASK}"),
        None if who.is_empty() => String::new(),
        None => MASK.to_owned(),
    };
    format!("{scheme}://{masked}@{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_masked() {
        let check = |url: &str, expect: &str| assert_eq!(without_credentials(url), expect);
        check("https://a:b@h/p#x", "https://xxxxx:xxxxx@h/p#x");
        check("https://token@h", "https://xxxxx@h");
        check("https://:b@h/", "https://:xxxxx@h/");
        check("https://h/a@b", "https://h/a@b");
        check("https://h?x=a@b", "https://h?x=a@b");
        check("not a url", "not a url");
        check("https://a:b@c@h/p", "https://xxxxx:xxxxx@h/p");
    }
}

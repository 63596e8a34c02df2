//! `user:group`, by name or number.

use llb::{Owner, UserRef};

/// Reads an owner. Names are looked up when the build runs.
pub(crate) fn parse(text: &str) -> Owner {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    Owner {
        user: Some(one(user)),
        group: group.map(one),
    }
}

fn one(text: &str) -> UserRef {
    match text.parse::<i32>() {
        _ if text.is_empty() || text == "root" => UserRef::Id(0),
        // The reference takes the bits of a negative number.
        Ok(number) => UserRef::Id(number as u32),
        Err(_) => UserRef::Name {
            name: text.to_owned(),
            input: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_numbers_or_names() {
        let name = |text: &str| UserRef::Name {
            name: text.to_owned(),
            input: None,
        };
        let check = |text: &str, user: UserRef, group: Option<UserRef>| {
            assert_eq!(
                parse(text),
                Owner {
                    user: Some(user),
                    group
                },
                "{text}"
            );
        };
        check("root", UserRef::Id(0), None);
        check("1000:50", UserRef::Id(1000), Some(UserRef::Id(50)));
        check("app:", name("app"), Some(UserRef::Id(0)));
        check(":app", UserRef::Id(0), Some(name("app")));
        check("4294967296", name("4294967296"), None);
    }
}

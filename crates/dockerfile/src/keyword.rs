//! The names of the instructions.

/// An instruction's name, in whatever case it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Keyword {
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
}

impl Keyword {
    /// All of them, by name.
    pub const ALL: [Keyword; 18] = [
        Keyword::Add,
        Keyword::Arg,
        Keyword::Cmd,
        Keyword::Copy,
        Keyword::Entrypoint,
        Keyword::Env,
        Keyword::Expose,
        Keyword::From,
        Keyword::Healthcheck,
        Keyword::Label,
        Keyword::Maintainer,
        Keyword::Onbuild,
        Keyword::Run,
        Keyword::Shell,
        Keyword::StopSignal,
        Keyword::User,
        Keyword::Volume,
        Keyword::Workdir,
    ];

    /// Returns the instruction of that name, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        // As nearly all are written; a file is asked for its keywords several times.
        if let Some(keyword) = Self::in_upper_case(name) {
            return Some(keyword);
        }
        // Longer than any name in any encoding: no need to change the case of a megabyte.
        if name.len() > 64 {
            return None;
        }
        if name.is_ascii() {
            return Self::of_length(name.len())
                .iter()
                .copied()
                .find(|keyword| keyword.as_str().eq_ignore_ascii_case(name));
        }
        // A few other letters have one of ASCII as their lower case.
        let upper = name.to_lowercase().to_uppercase();
        Self::ALL
            .into_iter()
            .find(|keyword| keyword.as_str() == upper)
    }

    fn in_upper_case(name: &str) -> Option<Self> {
        Some(match name {
            "ADD" => Keyword::Add,
            "ARG" => Keyword::Arg,
            "CMD" => Keyword::Cmd,
            "COPY" => Keyword::Copy,
            "ENTRYPOINT" => Keyword::Entrypoint,
            "ENV" => Keyword::Env,
            "EXPOSE" => Keyword::Expose,
            "FROM" => Keyword::From,
            "HEALTHCHECK" => Keyword::Healthcheck,
            "LABEL" => Keyword::Label,
            "MAINTAINER" => Keyword::Maintainer,
            "ONBUILD" => Keyword::Onbuild,
            "RUN" => Keyword::Run,
            "SHELL" => Keyword::Shell,
            "STOPSIGNAL" => Keyword::StopSignal,
            "USER" => Keyword::User,
            "VOLUME" => Keyword::Volume,
            "WORKDIR" => Keyword::Workdir,
            _ => return None,
        })
    }

    /// Returns those whose names have so many letters.
    fn of_length(length: usize) -> &'static [Keyword] {
        match length {
            3 => &[
                Keyword::Run,
                Keyword::Env,
                Keyword::Arg,
                Keyword::Add,
                Keyword::Cmd,
            ],
            4 => &[Keyword::From, Keyword::Copy, Keyword::User],
            5 => &[Keyword::Label, Keyword::Shell],
            6 => &[Keyword::Expose, Keyword::Volume],
            7 => &[Keyword::Workdir, Keyword::Onbuild],
            10 => &[
                Keyword::Entrypoint,
                Keyword::Maintainer,
                Keyword::StopSignal,
            ],
            11 => &[Keyword::Healthcheck],
            _ => &[],
        }
    }

    /// Returns the name in upper case.
    pub fn as_str(self) -> &'static str {
        match self {
            Keyword::Add => "ADD",
            Keyword::Arg => "ARG",
            Keyword::Cmd => "CMD",
            Keyword::Copy => "COPY",
            Keyword::Entrypoint => "ENTRYPOINT",
            Keyword::Env => "ENV",
            Keyword::Expose => "EXPOSE",
            Keyword::From => "FROM",
            Keyword::Healthcheck => "HEALTHCHECK",
            Keyword::Label => "LABEL",
            Keyword::Maintainer => "MAINTAINER",
            Keyword::Onbuild => "ONBUILD",
            Keyword::Run => "RUN",
            Keyword::Shell => "SHELL",
            Keyword::StopSignal => "STOPSIGNAL",
            Keyword::User => "USER",
            Keyword::Volume => "VOLUME",
            Keyword::Workdir => "WORKDIR",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_any_case() {
        for keyword in Keyword::ALL {
            let name = keyword.as_str();
            assert_eq!(Keyword::parse(name), Some(keyword));
            assert_eq!(Keyword::parse(&name.to_lowercase()), Some(keyword));
            assert_eq!(Keyword::parse(&name[1..]), None);
        }
    }
}

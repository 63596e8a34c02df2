//! The names of vertices as people know them: `[builder 3/9] RUN make`.

use oci::Platform;

use crate::pass::Stage;
use crate::state::Variables;

/// The variables that say what a cross build is for.
const TARGET_VARIABLES: [&str; 4] = ["TARGETPLATFORM", "TARGETOS", "TARGETARCH", "TARGETVARIANT"];

/// Returns the name of the next step of a stage.
///
/// `platform` is what the step runs on, if that is to be shown, and `variables` say what it builds for.
pub(crate) fn step(
    stage: &mut Stage<'_>,
    text: &str,
    platform: Option<&Platform>,
    variables: Option<&Variables>,
) -> String {
    if stage.command_total == 0 {
        return text.to_owned();
    }
    stage.command_index += 1;
    repeated_step(stage, text, platform, variables)
}

/// Returns another name for the step named last.
pub(crate) fn repeated_step(
    stage: &Stage<'_>,
    text: &str,
    platform: Option<&Platform>,
    variables: Option<&Variables>,
) -> String {
    if stage.command_total == 0 {
        return text.to_owned();
    }
    let mut name = "[".to_owned();
    if let Some(platform) = platform {
        name.push_str(&platform.full());
        name.push_str(&cross(platform, variables).unwrap_or_default());
        name.push(' ');
    }
    if !stage.label.is_empty() {
        name.push_str(&stage.label);
        name.push(' ');
    }
    let (index, total) = (stage.command_index, stage.command_total);
    let width = 1 + total.ilog10() as usize;
    name.push_str(&format!("{index:width$}/{total}] "));
    if stage.in_trigger {
        name.push_str("ONBUILD ");
    }
    name.push_str(text);
    name
}

/// Returns `->arm64` where the variables say that another platform is built for.
fn cross(platform: &Platform, variables: Option<&Variables>) -> Option<String> {
    let mut target = Platform::default();
    let mut is_set = false;
    for (name, value) in variables?
        .iter()
        .filter(|(name, _)| TARGET_VARIABLES.contains(name))
    {
        let part = match name {
            "TARGETPLATFORM" => match value.parse() {
                Ok(whole) => {
                    target = whole;
                    is_set = true;
                    break;
                }
                Err(_) => continue,
            },
            "TARGETOS" => &mut target.os,
            "TARGETARCH" => &mut target.architecture,
            _ => &mut target.variant,
        };
        value.clone_into(part);
        is_set = true;
    }
    if !is_set {
        return None;
    }
    if target.os.is_empty() {
        target.os.clone_from(&platform.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&platform.architecture);
    }
    let target = target.normalized();
    if target.os != platform.os {
        return Some(format!("->{}", target.full()));
    }
    if target.architecture == platform.architecture {
        return None;
    }
    Some(match target.variant.as_str() {
        "" => format!("->{}", target.architecture),
        variant => format!("->{}/{variant}", target.architecture),
    })
}

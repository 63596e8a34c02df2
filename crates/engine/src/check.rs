//! Checks a Dockerfile by the rules of `docker build --check` before it is built.

use std::collections::BTreeMap;

use dockerfile::Diagnostic;
use dockerfile::check::{BaseImage, CheckOptions, Images, check_parsed, is_configured};
use oci::Platform;

use crate::EngineError;
use crate::request::BuildRequest;
use crate::source::dockerfile::{Loaded, Parsed};
use crate::source::image::PinnedImage;

/// The images a lowering has asked about.
struct Known<'a>(&'a BTreeMap<(String, String), PinnedImage>);

impl Images for Known<'_> {
    fn image(&self, name: &str, platform: &Platform) -> Result<BaseImage, String> {
        let wanted = oci::Reference::parse_normalized(name).map_err(|error| error.to_string())?;
        let wanted = wanted.or_latest();
        let platform = platform.normalized().to_string();
        let known = self
            .0
            .iter()
            .find(|((_, known), image)| *known == platform && image.reference == wanted);
        let Some((_, image)) = known else {
            // A stage that is not built: its base is not worth a question to the network.
            return dockerfile::check::UnknownImages.image(name, &Platform::host());
        };
        Ok(crate::inspect::base_image(image))
    }
}

/// Returns whether findings may fail the build, so that it must not begin before they are known.
pub(crate) fn decides(request: &BuildRequest, loaded: &Loaded) -> bool {
    is_configured(&loaded.bytes, &request.build_args)
}

/// Returns what the check finds in the stages that are built.
///
/// # Errors
///
/// If the file says `# check=error=true` and there are findings; if the options of the check cannot be read.
pub(crate) fn warnings(
    request: &BuildRequest,
    loaded: &Loaded,
    images: &BTreeMap<(String, String), PinnedImage>,
) -> Result<Vec<Diagnostic>, EngineError> {
    let host = Platform::host();
    let options = CheckOptions {
        build_args: &request.build_args,
        target: Some(request.target.as_deref().unwrap_or("")),
        config: None,
        build_platform: &host,
        target_platform: request.platforms.first(),
        images: &Known(images),
        ignore: Some(loaded.ignore_file()),
    };
    let report = match loaded.parsed() {
        Ok(Parsed { ast, stages }) => check_parsed(ast, stages, &options),
        // The lowering has said why.
        Err(_) => return Ok(Vec::new()),
    };
    match report.error {
        Some(error) if !report.warnings.is_empty() || error.is_of_options() => {
            let mut diagnostics = report.warnings;
            diagnostics.extend(error.diagnostics);
            Err(EngineError::Dockerfile { diagnostics })
        }
        // Whatever else is wrong, the lowering has said it already, and better.
        _ => Ok(report.warnings),
    }
}

//! `lapstrake system check`: verifies the state directory, and mends it.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use store::{CheckReport, Problem, Store, StoreError};

use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::{output, places, settings};

/// Verify everything in the state directory: digests, records, layers
///
/// Ends with 0 if nothing is wrong or all was mended, with 1 if something is wrong, with 3 if it cannot be checked.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Remove what is damaged, so that it is pulled or made again, and what killed builds have left
    #[arg(long)]
    repair: bool,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Check {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let (store, aside) = self.open(global)?;
        let mut report = store.check(self.repair).map_err(exit::builder)?;
        if let Some((reason, path)) = aside {
            let mended = format!("put aside as {path}; images have to be pulled or built again");
            report.problem("records.db".to_owned(), reason, Some(mended));
        }
        engine::verify_layers(&store, &mut report, self.repair).map_err(exit::engine)?;
        // What was removed for a damaged layer may have left others without it.
        if self.repair && !report.problems.is_empty() {
            let again = store.check(true).map_err(exit::builder)?;
            report.problems.extend(again.problems);
        }
        let text = match self.format {
            Format::Text => text(&report, self.repair),
            Format::Json => format!("{}\n", value(&report)),
        };
        output::print(&text).map_err(exit::builder)?;
        match report.is_clean() {
            true => Ok(()),
            false => Err(Failure::Said(1)),
        }
    }

    /// Opens the store. Records that cannot be read at all are put aside, if they are to be mended.
    fn open(&self, global: &Global) -> Result<(Store, Option<(String, String)>), Failure> {
        let failure = match settings::open_for_files(global) {
            Ok(store) => return Ok((store, None)),
            Err(failure) => failure,
        };
        let damaged = match &failure {
            Failure::Plain { error, .. } => error
                .downcast_ref::<StoreError>()
                .is_some_and(StoreError::is_damaged),
            _ => false,
        };
        if !damaged || !self.repair {
            return Err(failure);
        }
        let root = places::root(global).map_err(exit::usage)?;
        let reason = failure.text();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs() as i64);
        let aside = store::set_records_aside(&root, now).map_err(exit::builder)?;
        let store = settings::open_for_files(global)?;
        Ok((store, Some((reason, aside.display().to_string()))))
    }
}

fn text(report: &CheckReport, repair: bool) -> String {
    let mut out = String::new();
    let mut list = |word: &str, problems: &[Problem]| {
        for problem in problems {
            let Problem {
                subject,
                reason,
                mended,
            } = problem;
            let done = mended.as_ref().map(|done| format!(" ({done})"));
            let done = done.unwrap_or_default();
            out.push_str(&format!("{word}: {subject}: {reason}{done}\n"));
        }
    };
    list("damaged", &report.problems);
    list("left over", &report.leftovers);
    let counts: Vec<String> = report
        .checked
        .iter()
        .filter(|(kind, _)| **kind != "records")
        .map(|(kind, number)| format!("{number} {kind}"))
        .collect();
    let damaged = report.problems.len();
    let mended = report
        .problems
        .iter()
        .filter(|problem| problem.mended.is_some());
    let verdict = match (damaged, mended.count()) {
        (0, _) => "nothing is damaged".to_owned(),
        (all, mended) if repair => format!("{all} damaged, {mended} mended"),
        (all, _) => format!("{all} damaged; --repair removes what is, so that it is made again"),
    };
    out.push_str(&format!("Checked {}: {verdict}\n", counts.join(", ")));
    out
}

fn value(report: &CheckReport) -> Value {
    let list = |problems: &[Problem]| -> Vec<Value> {
        let entry = |problem: &Problem| {
            json!({
                "subject": problem.subject,
                "reason": problem.reason,
                "mended": problem.mended,
            })
        };
        problems.iter().map(entry).collect()
    };
    json!({
        "clean": report.is_clean(),
        "checked": report.checked,
        "problems": list(&report.problems),
        "leftovers": list(&report.leftovers),
    })
}

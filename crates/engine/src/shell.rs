//! Looks into steps: a command in the state a step left behind, or began with.

use std::sync::Arc;

use llb::ExecOp;
use sandbox::{Network, Overlay, Root, Running, Spec, Status, Stdio, Upper, User};
use store::Layer;

use crate::container::streams::Copying;
use crate::container::{ContainerHandle, Streams};
use crate::history::{BuildRecord, History, ProcessRecord, StepKind, StepOutcome, StepRecord};
use crate::step::exec::{DEFAULT_PATH, Held};
use crate::step::{Shared, StepContext, network};
use crate::vertex::RecordInfo;
use crate::{Engine, EngineError};

/// Shells of images whose steps name none.
const SHELLS: [&str; 4] = ["/bin/sh", "/bin/bash", "/bin/ash", "/busybox/sh"];

/// The root of a step with all that is needed to run commands in it. What they change is thrown away with it.
pub struct StepState {
    shared: Arc<Shared>,
    /// As shown: `[builder 2/5] RUN make`.
    name: String,
    spec: Spec,
    held: Held,
    /// Variables whose values are not known any more.
    missing: Vec<String>,
}

impl std::fmt::Debug for StepState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepState")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl StepState {
    pub(crate) fn new(shared: &Arc<Shared>, name: &str, spec: Spec, held: Held) -> Self {
        Self {
            shared: Arc::clone(shared),
            name: name.to_owned(),
            spec,
            held,
            missing: Vec::new(),
        }
    }

    /// Returns the step as shown.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the command of the step; empty for one that runs no process.
    pub fn command(&self) -> &[String] {
        &self.spec.args
    }

    /// Returns the names of the step's variables whose values were not kept.
    pub fn missing_variables(&self) -> &[String] {
        &self.missing
    }

    /// Finds the shell of the image: the one the step itself was run by, or one where shells are.
    pub fn shell(&self) -> Result<String, EngineError> {
        let own = match self.spec.args.as_slice() {
            [first, options @ ..] if options.iter().any(|option| option == "-c") => Some(first),
            _ => None,
        };
        let own = own.map(String::as_str).filter(|own| own.ends_with("sh"));
        let others = SHELLS.into_iter().filter(|shell| own != Some(shell));
        let candidates: Vec<&str> = own.into_iter().chain(others).collect();
        for shell in &candidates {
            // A file of that name may lack its loader, or be for another machine: only a start tells.
            let mut trial = self.spec.clone();
            trial.args = ["-c", ":"].map(str::to_owned).to_vec();
            trial.args.insert(0, (*shell).to_owned());
            trial.network = Network::None;
            let running = self.start(&trial, Stdio::default())?;
            if matches!(running.wait()?.status, Status::Code(0)) {
                return Ok((*shell).to_owned());
            }
        }
        Err(EngineError::Request(format!(
            "the image has no shell (none of {} starts); a program that is in it runs with \
             lapstrake debug BUILD -- PROGRAM",
            candidates.join(", ")
        )))
    }

    /// Runs a command and returns how it ended. `started` is given what reaches it meanwhile.
    pub fn run(
        &self,
        command: Vec<String>,
        streams: Streams,
        terminal: bool,
        started: impl FnOnce(ContainerHandle),
    ) -> Result<Status, EngineError> {
        let mut spec = self.spec.clone();
        spec.args = command;
        spec.terminal = terminal;
        if terminal
            && !spec
                .env
                .iter()
                .any(|variable| variable.starts_with("TERM="))
        {
            spec.env.push("TERM=xterm".to_owned());
        }
        let (copying, stdio) = Copying::start(streams, terminal, None)?;
        let running = self.start(&spec, stdio)?;
        copying.on_vanishing({
            let running = Arc::downgrade(&running);
            move || {
                if let Some(running) = running.upgrade() {
                    running.kill();
                }
            }
        });
        started(ContainerHandle::new(&running, copying.terminal.clone()));
        let exit = running.wait();
        copying.finish();
        Ok(exit?.status)
    }

    fn start(&self, spec: &Spec, stdio: Stdio) -> Result<Arc<Running>, EngineError> {
        // Each mount of an overlay needs an empty work directory; what is written stays.
        for (_, layer, _) in &self.held.written {
            let work = layer.work();
            match std::fs::remove_dir_all(&work) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(EngineError::io("remove", &work)(error));
                }
                _ => std::fs::create_dir(&work).map_err(EngineError::io("create", &work))?,
            }
        }
        // The sandbox itself, whatever ran the step: no runtime is asked for a terminal.
        let helper = self.shared.helper()?;
        let locks = self.held.locks()?;
        Ok(Arc::new(helper.spawn(spec, stdio, Vec::new(), locks)?))
    }
}

impl Engine {
    /// Returns the state in which a recorded step left its files; that in which it began if it did not succeed,
    /// or if `before` asks for that.
    ///
    /// Mounts of the step are not part of it, nor are secrets.
    pub fn state_of(
        &self,
        record: &BuildRecord,
        step: &StepRecord,
        before: bool,
    ) -> Result<StepState, EngineError> {
        let history = History::new(self.store());
        let process = match &step.process {
            Some(process) => Some(process.clone()),
            None => history.process_where_it_ran(step)?,
        };
        let succeeded = matches!(step.outcome, StepOutcome::Ran | StepOutcome::Cached);
        let layers = match succeeded && !before {
            true => self.layers_after(step, process.as_ref())?,
            false => self.layers_before(record, step, process.as_ref())?,
        };
        let Some(layers) = layers else {
            return Err(self.evicted(step));
        };
        let process = process.unwrap_or_default();
        let layer = self.shared.new_layer(&layers)?;
        let overlay = Overlay {
            lowers: layers.iter().map(|layer| layer.path().to_owned()).collect(),
            upper: Some(Upper {
                upper: layer.path(),
                work: layer.work(),
            }),
        };
        let mut spec = Spec::new(Root::Overlay(overlay), process.args);
        spec.env = process.env;
        if !spec
            .env
            .iter()
            .any(|variable| variable.starts_with("PATH="))
        {
            spec.env.push(DEFAULT_PATH.to_owned());
        }
        if !process.cwd.is_empty() {
            spec.cwd = process.cwd;
        }
        spec.user = User::Named(process.user);
        spec.network = match process.network.as_str() {
            "host" => Network::Host,
            "none" => Network::None,
            _ => Network::Default,
        };
        let context = StepContext::new(Arc::clone(&self.shared));
        spec.mounts = network::files(&context, &ExecOp::default(), &spec)?;
        let mut held = Held::default();
        held.written.push((None, layer, layers));
        let state = StepState::new(&self.shared, &step.name, spec, held);
        Ok(StepState {
            missing: process.hidden,
            ..state
        })
    }

    /// Returns the layers a step left; `None` where they are gone.
    fn layers_after(
        &self,
        step: &StepRecord,
        process: Option<&ProcessRecord>,
    ) -> Result<Option<Vec<Layer>>, EngineError> {
        // What this build made, where it did; a later one may have recorded another result under the key.
        if let (StepOutcome::Ran, Some(process), Some(layer)) = (step.outcome, process, &step.layer)
        {
            let mut ids = process.root.clone();
            ids.push(layer.id);
            return Ok(self.store().layers(&ids)?);
        }
        let Some(key) = step.key.as_ref() else {
            return Ok(None);
        };
        let Some(found) = crate::history::unhex(&key.definition)
            .map(|key| self.store().find(&key))
            .transpose()?
            .flatten()
        else {
            return Ok(None);
        };
        let info: Option<RecordInfo> = serde_json::from_value(found.info).ok();
        match info.as_ref().and_then(|info| info.outputs.first()) {
            Some(layers) => Ok(self.store().layers(layers)?),
            None => Ok(None),
        }
    }

    /// Returns the layers a step began with; `None` where they are gone.
    fn layers_before(
        &self,
        record: &BuildRecord,
        step: &StepRecord,
        process: Option<&ProcessRecord>,
    ) -> Result<Option<Vec<Layer>>, EngineError> {
        if let Some(process) = process {
            return Ok(self.store().layers(&process.root)?);
        }
        if matches!(step.kind, StepKind::Source | StepKind::Builder) {
            return Err(EngineError::Request(format!(
                "there are no files to look into before {:?}",
                step.name
            )));
        }
        // Nothing lies below the first instruction on FROM scratch.
        let Some(base) = &step.base else {
            return Ok(Some(Vec::new()));
        };
        match record.steps.iter().find(|other| other.vertex == *base) {
            Some(base) => self.layers_after(base, base.process.as_ref()),
            None => Ok(None),
        }
    }

    fn evicted(&self, step: &StepRecord) -> EngineError {
        let key = step.key.as_ref();
        let key = key.and_then(|key| crate::history::unhex(&key.definition));
        let buried = key.and_then(|key| self.store().tombstone(&key).ok().flatten());
        let rule = buried.map(|(_, rule)| format!(" (removed by {rule})"));
        EngineError::Request(format!(
            "the files of {:?} are no longer in the store{}; build it again, with --on-failure=shell to look \
             into a step that fails",
            step.name,
            rule.unwrap_or_default()
        ))
    }
}

//! A request to stop is heard whatever a build is doing.

use engine::{
    ArchiveOutput, Blame, BuildRequest, Cancel, Destination, Engine, EngineSettings, LayerOptions,
    Output,
};
use progress::{Event, Receiver, Sink, VertexState, system_clock};

/// Asks to stop once a vertex of a name has begun.
struct StopAt {
    name: &'static str,
    cancel: Cancel,
}

impl Receiver for StopAt {
    fn receive(&self, event: Event) {
        if let Event::Vertex { vertex, state } = event
            && vertex.name.starts_with(self.name)
            && matches!(state, VertexState::Running { .. })
        {
            self.cancel.request();
        }
    }
}

#[test]
fn an_export_is_given_up() {
    let folder = tempfile::tempdir().expect("a directory");
    let context = folder.path().join("ctx");
    std::fs::create_dir(&context).expect("a directory");
    std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY f /f\n").expect("a file");
    std::fs::write(context.join("f"), vec![7; 3 << 20]).expect("a file");
    let settings = EngineSettings::of_this_machine(folder.path().join("state"));
    let engine = Engine::open(settings.expect("settings")).expect("an engine");
    let out = folder.path().join("out.tar");
    let destination = Destination::Path(out.clone());
    let archive = ArchiveOutput {
        destination: destination.clone(),
        tar: true,
        names: Vec::new(),
        layers: LayerOptions::default(),
        annotations: Vec::new(),
    };
    let outputs = [
        Output::Oci(archive.clone()),
        Output::Docker(archive),
        Output::Tar { destination },
    ];
    for output in outputs {
        let request = BuildRequest {
            outputs: vec![output.clone()],
            ..BuildRequest::of_directory(&context)
        };
        let cancel = Cancel::default();
        let name = "exporting to";
        let stop = StopAt {
            name,
            cancel: cancel.clone(),
        };
        let failure = engine.build(&request, &Sink::new(stop, system_clock), &cancel);
        let failure = failure.expect_err("it was asked to stop");
        assert_eq!(failure.blame(), Blame::Canceled, "{output:?}: {failure}");
        assert!(!out.exists(), "{output:?}");
    }
}

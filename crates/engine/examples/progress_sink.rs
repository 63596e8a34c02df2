//! Follows a build with a progress sink of one's own.
//!
//! ```sh
//! cargo run -p engine --example progress_sink -- /tmp/state CONTEXT
//! ```

use std::error::Error;
use std::sync::Mutex;

use engine::{BuildRequest, Engine, EngineSettings, become_helper_if_asked};
use progress::{Event, Outcome, Receiver, Sink, VertexState, system_clock};

/// Prints a line for each step that ends, and counts them.
#[derive(Default)]
struct Lines {
    count: Mutex<usize>,
}

impl Receiver for Lines {
    // Events come from the threads that do the work: what is done here should take little time.
    fn receive(&self, event: Event) {
        match event {
            Event::Vertex {
                vertex,
                state: VertexState::Completed { outcome, .. },
            } => {
                let mut count = self
                    .count
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                *count += 1;
                let how = match outcome {
                    Outcome::Cached => "was there",
                    Outcome::Done => "ran",
                    _ => "failed",
                };
                println!("{count:>3} {} {how}", vertex.name);
            }
            Event::Log(log) => print!("    {}", String::from_utf8_lossy(&log.data)),
            _ => {}
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    become_helper_if_asked();
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(context)) = (arguments.next(), arguments.next()) else {
        return Err("say: STATE-DIRECTORY CONTEXT".into());
    };
    let engine = Engine::open(EngineSettings::of_this_machine(root)?)?;
    let sink = Sink::new(Lines::default(), system_clock);
    let request = BuildRequest::of_directory(context);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(engine.build_async(request, sink))?;
    Ok(())
}

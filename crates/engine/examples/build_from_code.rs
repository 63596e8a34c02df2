//! Builds an image from Rust code.
//!
//! ```sh
//! cargo run -p engine --example build_from_code -- /tmp/state CONTEXT [NAME]
//! ```

use std::error::Error;

use engine::{BuildRequest, Engine, EngineSettings, become_helper_if_asked};
use progress::Sink;

fn main() -> Result<(), Box<dyn Error>> {
    // First of all: the engine starts this program again to make its steps.
    become_helper_if_asked();
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(context)) = (arguments.next(), arguments.next()) else {
        return Err("say: STATE-DIRECTORY CONTEXT [NAME]".into());
    };
    // Before any thread is started: an ordinary user's process enters its namespaces here.
    let engine = Engine::open(EngineSettings::of_this_machine(root)?)?;

    let mut request = BuildRequest::of_directory(context).with_argument("BUILT_BY", "an example");
    if let Some(name) = arguments.next() {
        request = request.named(name.parse()?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let built = runtime.block_on(engine.build_async(request, Sink::discard()))?;
    for name in &built.names {
        println!("named {name}");
    }
    if let Some(id) = &built.image {
        println!("image {id}");
    }
    Ok(())
}

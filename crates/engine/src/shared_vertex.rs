//! What a vertex tells, for all builds that wait for it.
//!
//! Builds of one process that need the same step share one vertex of the scheduler, which belongs to the first of them.
//! Those that come later hear what it has told so far, and from then on all that the first hears.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use progress::{Event, Receiver, Sink, Vertex, VertexHandle, VertexState};

/// Bytes of what a vertex prints that are kept for who comes later.
const MOST_LOG: usize = 4 << 20;
/// Events that are kept.
const MOST_EVENTS: usize = 4096;

/// A vertex as one build knows it, and the other builds that listen to it.
#[derive(Debug)]
pub(crate) struct SharedVertex {
    sink: Sink,
    vertex: Arc<Vertex>,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Debug, Default)]
struct Heard {
    /// Since it began.
    events: Vec<Event>,
    bytes: usize,
    others: Vec<(Sink, Arc<Vertex>)>,
}

/// Stands between a vertex and those who listen.
struct Fan {
    first: Sink,
    heard: Arc<Mutex<Heard>>,
}

impl SharedVertex {
    /// Announces a vertex, and returns by what it is worked on.
    pub(crate) fn announce(sink: &Sink, vertex: Vertex) -> (Self, VertexHandle) {
        let heard = Arc::default();
        let shared = Self {
            sink: sink.clone(),
            vertex: Arc::new(vertex.clone()),
            heard: Arc::clone(&heard),
        };
        let first = sink.clone();
        let handle = sink.with_receiver(Fan { first, heard }).vertex(vertex);
        (shared, handle)
    }

    /// Lets another build listen, by its own name of the vertex.
    pub(crate) fn join(&self, other: &SharedVertex) {
        let mut heard = lock(&self.heard);
        for event in &heard.events {
            other.sink.send(renamed(event, &other.vertex));
        }
        let listener = (other.sink.clone(), Arc::clone(&other.vertex));
        heard.others.push(listener);
    }
}

impl Receiver for Fan {
    fn receive(&self, event: Event) {
        let mut heard = lock(&self.heard);
        for (sink, vertex) in &heard.others {
            sink.send(renamed(&event, vertex));
        }
        heard.keep(&event);
        // Under the lock, so that nobody hears things in another order.
        self.first.send(event);
    }
}

impl Heard {
    fn keep(&mut self, event: &Event) {
        let size = match event {
            Event::Vertex { state, .. } => {
                match state {
                    // Everybody announces it himself.
                    VertexState::Waiting => return,
                    VertexState::Running { .. } => {}
                    // What it printed can be looked up from now on; that it has ended must be known.
                    VertexState::Completed { .. } => {
                        self.events.clear();
                        self.bytes = 0;
                    }
                }
                0
            }
            Event::Log(log) => log.data.len(),
            Event::Status(_) | Event::Warning(_) => 0,
        };
        if self.events.len() < MOST_EVENTS && self.bytes + size <= MOST_LOG {
            self.bytes += size;
            self.events.push(event.clone());
        }
    }
}

/// Returns an event as one of another vertex.
fn renamed(event: &Event, vertex: &Arc<Vertex>) -> Event {
    let mut event = event.clone();
    match &mut event {
        Event::Vertex { vertex: named, .. } => *named = Arc::clone(vertex),
        Event::Status(status) => status.vertex = vertex.digest.clone(),
        Event::Log(log) => log.vertex = vertex.digest.clone(),
        Event::Warning(warning) => warning.vertex = vertex.digest.clone(),
    }
    event
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use progress::{Outcome, Stream};

    /// Keeps what one build is told, in short.
    #[derive(Debug, Clone, Default)]
    struct Build(Arc<Mutex<Vec<String>>>);

    impl Build {
        fn vertex(&self, name: &str) -> (SharedVertex, VertexHandle) {
            let sink = Sink::new(self.clone(), progress::system_clock);
            SharedVertex::announce(&sink, Vertex::named(name))
        }

        fn told(&self) -> String {
            self.0.lock().unwrap().join(" ")
        }
    }

    impl Receiver for Build {
        fn receive(&self, event: Event) {
            let word = match event {
                Event::Vertex { vertex, state } => match state {
                    VertexState::Waiting => format!("{}?", vertex.name),
                    VertexState::Running { .. } => format!("{}+", vertex.name),
                    VertexState::Completed { .. } => format!("{}-", vertex.name),
                },
                Event::Log(log) => String::from_utf8_lossy(&log.data).into_owned(),
                Event::Status(_) | Event::Warning(_) => return,
            };
            self.0.lock().unwrap().push(word);
        }
    }

    #[test]
    fn who_comes_later_hears_all_by_its_own_name() {
        let (one, two, three) = (Build::default(), Build::default(), Build::default());
        let (first, handle) = one.vertex("a");
        let running = handle.start();
        let logger = running.logger(Stream::Stdout);
        logger.log(b"early".to_vec());
        let (second, _handle) = two.vertex("b");
        first.join(&second);
        logger.log(b"late".to_vec());
        running.complete(Outcome::Done);
        let (third, _handle) = three.vertex("c");
        first.join(&third);
        assert_eq!(one.told(), "a? a+ early late a-");
        assert_eq!(two.told(), "b? b+ early late b-");
        assert_eq!(three.told(), "c? c-");
    }

    #[test]
    fn what_is_kept_for_those_who_come_later_has_an_end() {
        let (one, two) = (Build::default(), Build::default());
        let (first, handle) = one.vertex("a");
        let running = handle.start();
        let logger = running.logger(Stream::Stdout);
        logger.log(vec![b'x'; MOST_LOG + 1]);
        logger.log(b"short".to_vec());
        first.join(&two.vertex("b").0);
        assert_eq!(two.told(), "b? b+ short");
        running.complete(Outcome::Done);
    }
}

//! A bounded queue between two threads of a pipeline.
//!
//! Waiting threads sleep at once: those of a channel that spins first take the cores from the work they wait for.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

struct State<T> {
    waiting: VecDeque<T>,
    senders: usize,
    receivers: usize,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    capacity: usize,
    has_item: Condvar,
    has_room: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a queue that things go into.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// The end of a queue that things come out of.
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

/// The other end is gone.
#[derive(Debug)]
pub(crate) struct Closed;

/// Makes a queue in which up to `capacity` things may wait.
pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            waiting: VecDeque::with_capacity(capacity),
            senders: 1,
            receivers: 1,
        }),
        capacity,
        has_item: Condvar::new(),
        has_room: Condvar::new(),
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Waits for room; fails when nobody receives any more.
    pub(crate) fn send(&self, item: T) -> Result<(), Closed> {
        let mut state = self.0.lock();
        while state.waiting.len() >= self.0.capacity && state.receivers > 0 {
            state = self
                .0
                .has_room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.receivers == 0 {
            return Err(Closed);
        }
        state.waiting.push_back(item);
        drop(state);
        self.0.has_item.notify_one();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// Waits for the next thing; `None` when nobody sends any more.
    pub(crate) fn receive(&self) -> Option<T> {
        let mut state = self.0.lock();
        loop {
            if let Some(item) = state.waiting.pop_front() {
                drop(state);
                self.0.has_room.notify_one();
                return Some(item);
            }
            if state.senders == 0 {
                return None;
            }
            state = self
                .0
                .has_item
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Sender(self.0.clone())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.lock().receivers += 1;
        Receiver(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.senders -= 1;
        if state.senders == 0 {
            drop(state);
            self.0.has_item.notify_all();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receivers -= 1;
        if state.receivers == 0 {
            // What nobody will take may hold ends of other queues.
            let unclaimed = std::mem::take(&mut state.waiting);
            drop(state);
            drop(unclaimed);
            self.0.has_room.notify_all();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Sender")
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Receiver")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_come_out_in_order_and_ends_are_noticed() {
        let (sender, receiver) = bounded(2);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 0..1000 {
                    sender.send(number).unwrap();
                }
            });
            for number in 0..1000 {
                assert_eq!(receiver.receive(), Some(number));
            }
            assert_eq!(receiver.receive(), None);
        });
        let (sender, receiver) = bounded(1);
        sender.send(1).unwrap();
        std::thread::scope(|scope| {
            let blocked = scope.spawn(move || sender.send(2));
            drop(receiver);
            assert!(blocked.join().unwrap().is_err());
        });
    }
}

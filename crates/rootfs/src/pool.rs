//! A queue of tasks that make more tasks, worked off by the threads of one operation.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::{Error, Result};

/// Tasks that wait, the newest first: a walk goes deep before it goes wide and keeps few directories open.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    tasks: Vec<T>,
    running: usize,
    failure: Option<Error>,
    panicked: bool,
}

/// Returns how many threads an operation uses.
pub(crate) fn threads() -> usize {
    thread::available_parallelism()
        .map_or(1, usize::from)
        .min(16)
}

/// Works off `tasks` and all that `work` pushes; the first failure ends it.
///
/// The calling thread works too; others join it only when there is something for them to do.
pub(crate) fn run<T: Send>(
    tasks: Vec<T>,
    threads: usize,
    work: impl Fn(T, &Queue<T>) -> Result<()> + Sync,
) -> Result<()> {
    let queue = Queue {
        state: Mutex::new(State {
            tasks,
            running: 0,
            failure: None,
            panicked: false,
        }),
        changed: Condvar::new(),
    };
    thread::scope(|scope| {
        let mut helpers = 0;
        while let Some(task) = queue.next() {
            if helpers == 0 && threads > 1 && !queue.lock().tasks.is_empty() {
                helpers = threads - 1;
                for _ in 0..helpers {
                    scope.spawn(|| {
                        while let Some(task) = queue.next() {
                            queue.work_off(task, &work);
                        }
                    });
                }
            }
            queue.work_off(task, &work);
        }
    });
    let state = queue
        .state
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    state.failure.map_or(Ok(()), Err)
}

impl<T> Queue<T> {
    pub(crate) fn push(&self, task: T) {
        self.lock().tasks.push(task);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a task; `None` when all is done or something failed.
    fn next(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if state.failure.is_some() || state.panicked {
                return None;
            }
            if let Some(task) = state.tasks.pop() {
                state.running += 1;
                return Some(task);
            }
            if state.running == 0 {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work_off(&self, task: T, work: &impl Fn(T, &Queue<T>) -> Result<()>) {
        /// Lets the others go home when this thread panics; the scope passes the panic on.
        struct Alarm<'a, T>(&'a Queue<T>);
        impl<T> Drop for Alarm<'_, T> {
            fn drop(&mut self) {
                if thread::panicking() {
                    self.0.lock().panicked = true;
                    self.0.changed.notify_all();
                }
            }
        }
        let alarm = Alarm(self);
        let result = work(task, self);
        drop(alarm);
        self.finish(result);
    }

    fn finish(&self, result: Result<()>) {
        let mut state = self.lock();
        state.running -= 1;
        if let Err(failure) = result {
            state.failure.get_or_insert(failure);
        }
        if state.failure.is_some() || (state.running == 0 && state.tasks.is_empty()) {
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn tasks_that_make_tasks_are_all_done() {
        for threads in [1, 2, 5] {
            let sum = AtomicU64::new(0);
            let work = |depth: u64, queue: &Queue<u64>| {
                sum.fetch_add(1, Ordering::Relaxed);
                (0..depth).for_each(|below| queue.push(below));
                Ok(())
            };
            run(vec![10], threads, work).unwrap();
            assert_eq!(sum.into_inner(), 1 << 10, "{threads} threads");
        }
    }

    #[test]
    fn a_failure_ends_the_work() {
        let work = |n: u64, queue: &Queue<u64>| {
            if n == 50 {
                return Err(Error::NotFound {
                    path: "/x".to_owned(),
                });
            }
            queue.push(n + 1);
            Ok(())
        };
        assert!(matches!(
            run(vec![0, 0], 3, work),
            Err(Error::NotFound { .. })
        ));
    }
}

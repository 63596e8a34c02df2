//! Asking something that runs to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use crate::EngineError;

/// What is done when the request comes.
type Action = Box<dyn Fn() + Send>;

/// A request to stop, shared by who asks and who runs.
#[derive(Clone, Default)]
pub struct Cancel {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    requested: AtomicBool,
    actions: Mutex<Vec<(u64, Action)>>,
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cancel")
            .field("requested", &self.is_requested())
            .finish_non_exhaustive()
    }
}

impl Cancel {
    /// Asks to stop; runs the actions that are registered. The second request does nothing.
    pub fn request(&self) {
        if self.inner.requested.swap(true, Ordering::SeqCst) {
            return;
        }
        let actions = self.inner.actions.lock().unwrap_or_else(|p| p.into_inner());
        for (_, action) in actions.iter() {
            action();
        }
    }

    /// Returns whether it was asked.
    pub fn is_requested(&self) -> bool {
        self.inner.requested.load(Ordering::SeqCst)
    }

    /// Waits for a lock that cannot be given up once it is waited for; `None` if it is asked to stop before.
    ///
    /// `lock` has a thread of its own, which is then left behind: it drops the lock as soon as it has it.
    pub(crate) fn wait_for<T: Send + 'static>(
        &self,
        lock: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, EngineError> {
        let (sender, taken) = channel();
        let canceled = sender.clone();
        let _guard = self.on_request(move || {
            let _ = canceled.send(None);
        });
        std::thread::Builder::new()
            .name("lock".to_owned())
            .spawn(move || {
                let _ = sender.send(Some(lock()));
            })
            .map_err(|source| EngineError::Thread { source })?;
        Ok(taken.recv().unwrap_or_default())
    }

    /// Returns a flag that is set when any of them is asked, as long as the guards are kept.
    pub(crate) fn flag_of(cancels: &[Cancel]) -> (Arc<AtomicBool>, Vec<CancelGuard>) {
        let flag = Arc::new(AtomicBool::new(false));
        let guards = cancels.iter().map(|cancel| {
            let own = Arc::clone(&flag);
            cancel.on_request(move || own.store(true, Ordering::Relaxed))
        });
        let guards = guards.collect();
        (flag, guards)
    }

    /// Runs `action` when it is asked, at once if it was already; no longer once the guard is gone.
    #[must_use = "the action is forgotten when the guard is dropped"]
    pub fn on_request(&self, action: impl Fn() + Send + 'static) -> CancelGuard {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut actions = self.inner.actions.lock().unwrap_or_else(|p| p.into_inner());
        // Under the lock: a request either sees the action in the list or is seen here.
        if self.is_requested() {
            action();
        }
        actions.push((id, Box::new(action)));
        drop(actions);
        CancelGuard {
            cancel: self.clone(),
            id,
        }
    }
}

/// Keeps an action registered.
#[derive(Debug)]
pub struct CancelGuard {
    cancel: Cancel,
    id: u64,
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        let mut actions = self
            .cancel
            .inner
            .actions
            .lock()
            .unwrap_or_else(|p| p.into_inner());
        actions.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_what_is_waited_for_or_with_the_request() {
        let cancel = Cancel::default();
        assert_eq!(cancel.wait_for(|| 7).expect("a thread"), Some(7));
        let (hold, held) = channel::<()>();
        let (sender, dropped) = channel::<()>();
        let other = cancel.clone();
        let waiting = std::thread::spawn(move || {
            let lock = move || {
                let _ = held.recv();
                sender
            };
            other.wait_for(lock).expect("a thread").is_none()
        });
        cancel.request();
        assert!(waiting.join().expect("no panic"));
        // What comes too late is given back.
        drop(hold);
        assert!(dropped.recv().is_err());
        assert_eq!(cancel.wait_for(std::thread::park).expect("a thread"), None);
    }
}

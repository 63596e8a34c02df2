//! Waiting for a lock, and following the log that its holder keeps meanwhile.
//!
//! Nothing is looked at again and again: one thread waits for the lock in the kernel, another for the kernel's word
//! that the log has grown. Where the kernel has no such word to give (its watches are limited), the log is told when
//! the lock is there.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{TryRecvError, channel};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::log::{LogPiece, LogReader};
use crate::{NamedLock, Store, StoreError};

/// What is told to who waits for a lock.
#[derive(Debug)]
pub enum Told {
    /// The build that holds it now.
    Holder(String),
    /// What the step under the lock has printed.
    Log(LogPiece),
}

/// The log of what is done under a lock, as its holder names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockNote {
    /// The id of the build.
    pub build: String,
    /// The name of the log in the build's folder.
    pub log: String,
    /// So many bytes in the log were there before the lock was taken.
    pub skip: u64,
}

impl LockNote {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_suffix('\n')?.split(' ');
        let (build, log, skip) = (words.next()?, words.next()?, words.next()?);
        // They become names of files.
        let is_name =
            |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let skip = skip.parse().ok()?;
        (is_name(build) && is_name(log) && words.next().is_none()).then(|| Self {
            build: build.to_owned(),
            log: log.to_owned(),
            skip,
        })
    }

    pub(crate) fn line(&self) -> String {
        format!("{} {} {}\n", self.build, self.log, self.skip)
    }
}

/// Ends a wait from another thread. Clones end the same one.
#[derive(Debug, Clone)]
pub struct Waker {
    inner: Arc<(OwnedFd, AtomicBool)>,
}

impl Waker {
    /// Makes one for a wait.
    pub fn new() -> Result<Self, StoreError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = eventfd(0, flags).map_err(|errno| {
            StoreError::io("wake who waits in", Path::new("the store"))(errno.into())
        })?;
        Ok(Self {
            inner: Arc::new((fd, AtomicBool::new(false))),
        })
    }

    /// Ends the wait.
    pub fn stop(&self) {
        self.inner.1.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        // It fails only where it is full of wakes already.
        let _ = rustix::io::write(&self.inner.0, &1_u64.to_ne_bytes());
    }

    fn is_stopped(&self) -> bool {
        self.inner.1.load(Ordering::SeqCst)
    }
}

impl Store {
    /// Waits for the lock of this name, and tells what its holder's log gets meanwhile.
    ///
    /// Returns `None` when it was stopped. `tell` is called on this thread.
    pub fn lock_and_follow(
        &self,
        name: &str,
        waker: &Waker,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Option<NamedLock>, StoreError> {
        let path = self.inner.root.join("locks").join(name);
        let (sender, taken) = channel();
        let (lock_path, lock_waker) = (path.clone(), waker.clone());
        // Left alone when the wait is stopped: it then gives the lock back as soon as it has it.
        std::thread::Builder::new()
            .name("lock".to_owned())
            .spawn(move || {
                let _ = sender.send(NamedLock::acquire(&lock_path));
                lock_waker.wake();
            })
            .map_err(StoreError::io("start a thread for the lock", &path))?;
        let mut follower = Follower::new(self, &path);
        loop {
            let ended = match taken.try_recv() {
                Ok(lock) => Some(lock),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => {
                    let error = std::io::Error::other("its thread has died");
                    return Err(StoreError::io("wait for the lock", &path)(error));
                }
            };
            if ended.is_none() && waker.is_stopped() {
                return Ok(None);
            }
            // After the lock is there, so that nothing is missed that was printed before it was given up.
            follower.advance(waker, tell);
            match ended {
                Some(lock) => return lock.map(Some),
                None => follower.wait(waker),
            }
        }
    }
}

/// Reads the log that the note in a lock names, as far as it goes.
struct Follower<'a> {
    store: &'a Store,
    lock: &'a Path,
    watches: Option<OwnedFd>,
    current: Option<LockNote>,
    log: Option<LogReader>,
    /// Bytes that are still to be passed over.
    skip: u64,
}

impl<'a> Follower<'a> {
    fn new(store: &'a Store, lock: &'a Path) -> Self {
        let watches = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        if let Err(error) = &watches {
            tracing::debug!(%error, "the log of a shared step is shown when it ends");
        }
        let follower = Self {
            store,
            lock,
            watches: watches.ok(),
            current: None,
            log: None,
            skip: 0,
        };
        // The first build of a store makes it; what is not there cannot be watched.
        let _ = std::fs::create_dir(store.path("builds"));
        // The file may be removed and made again, so its folder is watched.
        if let Some(folder) = lock.parent() {
            follower.watch(folder, WatchFlags::CREATE | WatchFlags::MODIFY);
        }
        follower
    }

    fn watch(&self, path: &Path, what: WatchFlags) {
        if let Some(watches) = &self.watches
            && let Err(error) = inotify::add_watch(watches, path, what)
            && error != Errno::NOENT
        {
            tracing::debug!(%error, path = %path.display(), "no word of changes");
        }
    }

    /// Tells all that is new.
    fn advance(&mut self, waker: &Waker, tell: &mut dyn FnMut(Told)) {
        let text = std::fs::read_to_string(self.lock).unwrap_or_default();
        if let Some(note) = LockNote::parse(&text)
            && self.current.as_ref() != Some(&note)
        {
            // What the holder before this one printed last.
            self.read(waker, tell);
            tell(Told::Holder(note.build.clone()));
            self.skip = note.skip;
            self.log = None;
            self.current = Some(note);
        }
        if self.log.is_none() {
            self.open();
        }
        self.read(waker, tell);
    }

    /// Opens the log, or has the kernel tell when there is one.
    fn open(&mut self) {
        let Some(note) = &self.current else { return };
        let builds = self.store.path("builds");
        let folder = builds.join(&note.build);
        let log = folder.join(&note.log);
        // Watched first, looked at then: whatever comes between is seen.
        self.watch(&builds, WatchFlags::CREATE);
        self.watch(&folder, WatchFlags::CREATE);
        self.watch(&log, WatchFlags::MODIFY);
        match LogReader::open(&log) {
            Ok(found) => self.log = found,
            Err(error) => tracing::debug!(%error, "the log of a shared step is not shown"),
        }
    }

    fn read(&mut self, waker: &Waker, tell: &mut dyn FnMut(Told)) {
        let Some(log) = &mut self.log else { return };
        for piece in log {
            if waker.is_stopped() {
                return;
            }
            match piece {
                Ok(mut piece) => {
                    let passed = self.skip.min(piece.data.len() as u64);
                    self.skip -= passed;
                    piece.data.drain(..passed as usize);
                    if !piece.data.is_empty() {
                        tell(Told::Log(piece));
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the log of a shared step is not shown any more");
                    return;
                }
            }
        }
    }

    /// Waits until something has changed.
    fn wait(&self, waker: &Waker) {
        let name = self.lock.file_name().unwrap_or_default();
        loop {
            let mut polled = vec![PollFd::new(&waker.inner.0, PollFlags::IN)];
            if let Some(watches) = &self.watches {
                polled.push(PollFd::new(watches, PollFlags::IN));
            }
            match poll(&mut polled, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => tracing::warn!(%error, "a lock cannot be waited for"),
            }
            let woken = !polled[0].revents().is_empty();
            if woken {
                let _ = rustix::io::read(&waker.inner.0, &mut [0; 8]);
            }
            if self.has_news(name) || woken {
                return;
            }
        }
    }

    /// Empties the queue of changes; says whether one of them is of what is followed.
    fn has_news(&self, lock: &OsStr) -> bool {
        let Some(watches) = &self.watches else {
            return false;
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(watches, &mut buffer);
        let mut news = false;
        while let Ok(event) = reader.next() {
            use std::os::unix::ffi::OsStrExt;
            // Other steps have locks and logs too.
            news |= match event.file_name() {
                None => true,
                Some(name) => {
                    let name = OsStr::from_bytes(name.to_bytes());
                    let is_of = |note: &LockNote| name == &*note.build || name == &*note.log;
                    name == lock || self.current.as_ref().is_some_and(is_of)
                }
            };
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender};
    use std::time::Duration;

    use super::*;
    use crate::testing::store;

    fn note(build: &str, skip: u64) -> LockNote {
        LockNote {
            build: build.to_owned(),
            log: "log".to_owned(),
            skip,
        }
    }

    /// A wait on a thread of its own, and what it was told.
    struct Waiting {
        told: Receiver<String>,
        waker: Waker,
        thread: std::thread::JoinHandle<Option<NamedLock>>,
    }

    fn wait(store: &Store) -> Waiting {
        let (sender, told): (Sender<String>, _) = channel();
        let waker = Waker::new().expect("an event");
        let (store, inner) = (store.clone(), waker.clone());
        let thread = std::thread::spawn(move || {
            let mut tell = |told: Told| {
                let text = match told {
                    Told::Holder(build) => format!("held by {build}"),
                    Told::Log(piece) => String::from_utf8(piece.data).expect("text"),
                };
                let _ = sender.send(text);
            };
            store
                .lock_and_follow("step-x", &inner, &mut tell)
                .expect("no error")
        });
        Waiting {
            told,
            waker,
            thread,
        }
    }

    impl Waiting {
        #[track_caller]
        fn hears(&self, expected: &str) {
            let mut heard = String::new();
            while heard.len() < expected.len() {
                let next = self.told.recv_timeout(Duration::from_secs(60));
                heard.push_str(&next.expect("it is told"));
            }
            assert_eq!(heard, expected);
        }
    }

    #[test]
    fn who_waits_hears_what_the_holder_prints_while_it_prints() {
        let (_folder, store) = store();
        let mut lock = store.lock("step-x").expect("a lock");
        let waiting = wait(&store);
        lock.note(&note("one", 0)).expect("room");
        waiting.hears("held by one");
        // The folder, the log and its lines come one after another.
        let folder = store.begin_build("one", b"{}").expect("a folder");
        let mut log = folder.log("log").expect("a log");
        log.write(1, 0, b"first ").expect("room");
        waiting.hears("first ");
        log.write(1, 0, b"second").expect("room");
        waiting.hears("second");
        log.write(1, 0, b"last").expect("room");
        drop(lock);
        waiting.hears("last");
        assert!(waiting.thread.join().expect("no panic").is_some());
    }

    #[test]
    fn the_next_holder_is_followed_from_where_it_begins() {
        let (_folder, store) = store();
        let mut lock = store.lock("step-x").expect("a lock");
        lock.note(&note("one", 0)).expect("room");
        let waiting = wait(&store);
        waiting.hears("held by one");
        // Another takes it before: its log has what it had heard, which is not told again.
        let two = store.begin_build("two", b"{}").expect("a folder");
        let mut log = two.log("log").expect("a log");
        log.write(1, 0, b"heard").expect("room");
        lock.note(&note("two", 5)).expect("room");
        waiting.hears("held by two");
        log.write(1, 0, b"new").expect("room");
        waiting.hears("new");
        drop(lock);
        let lock = waiting.thread.join().expect("no panic").expect("a lock");
        assert!(store.try_lock("step-x").expect("no error").is_none());
        drop(lock);
        assert!(!store.root().join("locks/step-x").exists());
    }

    #[test]
    fn a_wait_can_be_stopped_and_gives_the_lock_back() {
        let (_folder, store) = store();
        let lock = store.lock("step-x").expect("a lock");
        let waiting = wait(&store);
        waiting.waker.stop();
        assert!(waiting.thread.join().expect("no panic").is_none());
        drop(lock);
        // Its thread may have it for a moment.
        drop(store.lock("step-x").expect("a lock"));
    }

    #[test]
    fn a_note_with_a_path_in_it_is_none() {
        assert_eq!(LockNote::parse("one log 7\n"), Some(note("one", 7)));
        for text in [
            "",
            "one",
            "one log\n",
            "one log 7",
            "../x log 0\n",
            "one / 0\n",
            "one log 7 8\n",
        ] {
            assert_eq!(LockNote::parse(text), None, "{text:?}");
        }
    }
}

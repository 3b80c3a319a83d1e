//! Signals during a pull: it ends at once, and what it had half done goes with it.

use super::progress::screen;
use crate::store::{Session, Store, gc};
use crate::sys::Signals;
use std::sync::{Arc, Mutex, PoisonError};

type Abandon = Box<dyn Fn() + Send>;

/// Runs `work` in a session of its own. SIGINT, SIGTERM or SIGHUP ends the program meanwhile, with 128 and the signal's
/// number, wherever it stands: waiting for a lock, for input or for the disk.
pub(super) fn in_session<T>(store: &Store, work: impl FnOnce(&Session) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let slot: Arc<Mutex<Option<Abandon>>> = Arc::default();
    let signals = Signals::block_heeded()?;
    let watched = Arc::clone(&slot);
    std::thread::Builder::new().name("plyfs-signals".into()).spawn(move || end_on_signal(&signals, &watched))?;
    gc::reap_partials(store)?;
    let session = {
        let lock = store.lock_shared()?;
        // Held until the session is known here: a signal finds none, or one that it can take away.
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let session = Session::begin_under(&lock, store)?;
        *slot = Some(Box::new(session.abandoner()));
        session
    };
    let done = work(&session);
    while done.is_err() && session.is_abandoned() {
        // It failed because its folder was taken away. The program is about to end.
        std::thread::park();
    }
    done
}

fn end_on_signal(signals: &Signals, slot: &Mutex<Option<Abandon>>) {
    if let Ok(signal) = signals.wait() {
        if let Some(abandon) = &*slot.lock().unwrap_or_else(PoisonError::into_inner) {
            abandon();
        }
        screen::leave();
        std::process::exit(128 + signal);
    }
}

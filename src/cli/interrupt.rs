//! Interruption of a pull: on SIGINT, SIGTERM or SIGHUP the program removes its session's data and exits at once.

use crate::cli::output::progress::screen;
use crate::store::{Session, Store, gc};
use crate::sys::Signals;
use parking_lot::Mutex;
use std::sync::Arc;

type Abandon = Box<dyn Fn() + Send>;

/// Runs `work` in a new session. On SIGINT, SIGTERM or SIGHUP the program exits with 128 plus the signal's number, even
/// while `work` waits for a lock, for input or for the disk.
pub(in crate::cli) fn in_session<T>(
    store: &Store,
    work: impl FnOnce(&Session) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let slot: Arc<Mutex<Option<Abandon>>> = Arc::default();
    let signals = Signals::block_heeded()?;
    let watched = Arc::clone(&slot);
    std::thread::Builder::new().name("plyfs-signals".into()).spawn(move || exit_on_signal(&signals, &watched))?;
    gc::reap_partials(store)?;
    let session = {
        let lock = store.lock_shared()?;
        // Held until the session is in the slot: the signal thread finds no session, or one that it can abandon.
        let mut slot = slot.lock();
        let session = Session::begin_under(&lock, store)?;
        *slot = Some(Box::new(session.abandoner()));
        session
    };
    let done = work(&session);
    while done.is_err() && session.is_abandoned() {
        // It failed because the signal thread removed its directory. That thread is about to exit the program.
        std::thread::park();
    }
    done
}

/// Waits for a signal, abandons the session in the slot and exits.
fn exit_on_signal(signals: &Signals, slot: &Mutex<Option<Abandon>>) {
    if let Ok(signal) = signals.wait() {
        if let Some(abandon) = &*slot.lock() {
            abandon();
        }
        screen::leave();
        std::process::exit(128 + signal);
    }
}

//! The control socket of a running container. Requests are one line each: `kill N` sends a signal, `pause` freezes all
//! processes of the container until the connection is closed.
//!
//! A foreground `run` or `start` sends its requests through a socket pair; every other process uses the socket
//! `control` in the container's folder, which answers `ok` or an error. The container's init sends the signal: it knows
//! the process and may signal it, so that the client needs neither the PID nor the privilege. Init also thaws the
//! container, so that it does not stay frozen when the client is killed.

use crate::sys;
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// The control socket's name in a container's folder.
pub(super) const SOCKET: &str = "control";

/// Sends a requested signal to the container.
pub(super) type Deliver = Arc<dyn Fn(i32) -> io::Result<()> + Send + Sync>;
/// Freezes (`true`) or thaws (`false`) all processes of the container.
pub(super) type Freeze = Arc<dyn Fn(bool) -> io::Result<()> + Send + Sync>;

/// Timeout of a pause request. An init from before `pause` was added does not respond it.
const PAUSE_LIMIT: Duration = Duration::from_secs(15);

/// A request line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// Send this signal.
    Kill(i32),
    /// Freeze the container until the connection is closed.
    Pause,
}

/// A paused container. It resumes when this is dropped, and when the process exits or is killed.
pub struct Paused {
    _connection: UnixStream,
}

/// Requests a signal, without waiting for an answer.
pub fn send(mut to: &UnixStream, signal: i32) -> io::Result<()> {
    to.write_all(format!("kill {signal}\n").as_bytes())
}

/// Sends a signal to the running container whose folder is `dir`, and waits until it is sent. Fails with
/// [`io::ErrorKind::ConnectionRefused`] or [`io::ErrorKind::NotFound`] if the container is not running.
pub fn signal(dir: &Path, signal: i32) -> io::Result<()> {
    let stream = connect(dir)?;
    send(&stream, signal)?;
    answer(&stream)
}

/// Pauses the running container whose folder is `dir`. All its processes are frozen when this returns.
pub fn pause(dir: &Path) -> io::Result<Paused> {
    let stream = connect(dir)?;
    stream.set_read_timeout(Some(PAUSE_LIMIT))?;
    (&stream).write_all(b"pause\n")?;
    answer(&stream)?;
    Ok(Paused { _connection: stream })
}

fn connect(dir: &Path) -> io::Result<UnixStream> {
    // A socket path is limited to 107 bytes (unix(7)), which a store's path may exceed.
    let dir = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

fn answer(stream: &UnixStream) -> io::Result<()> {
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.trim_end() {
        "ok" => Ok(()),
        "" => Err(io::ErrorKind::ConnectionRefused.into()),
        why => Err(io::Error::other(why.to_owned())),
    }
}

/// Serves the socket `control` in the working directory, one thread per connection.
pub(super) fn listen(deliver: Deliver, freeze: Freeze) -> io::Result<()> {
    match std::fs::remove_file(SOCKET) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(SOCKET)?;
    let pauses = Arc::new(Pauses { count: Mutex::new(0), freeze });
    thread::Builder::new().name("plyfs-control".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let (deliver, pauses) = (Arc::clone(&deliver), Arc::clone(&pauses));
            let answer = move || {
                let mut answers = &stream;
                let mut paused = None;
                each(&stream, |request| {
                    let done = match request {
                        Request::Kill(signal) => deliver(signal),
                        Request::Pause if paused.is_some() => Ok(()),
                        Request::Pause => pauses.begin().map(|pause| paused = Some(pause)),
                    };
                    let text = done.map_or_else(|e| sys::describe(&e), |()| "ok".into());
                    // The client may have closed the connection.
                    let _unread = writeln!(answers, "{text}");
                });
            };
            if let Err(e) = thread::Builder::new().name("plyfs-answer".into()).spawn(answer) {
                tracing::warn!("cannot start a thread to answer a client: {e}");
            }
        }
    })?;
    Ok(())
}

/// Counts the clients that pause the container: it is thawed when the last one resumes.
struct Pauses {
    count: Mutex<usize>,
    freeze: Freeze,
}

/// One client's pause; dropping it resumes.
struct Pause<'a>(&'a Pauses);

impl Pauses {
    fn begin(&self) -> io::Result<Pause<'_>> {
        let mut count = self.count.lock();
        if *count == 0 {
            (self.freeze)(true)?;
        }
        *count += 1;
        Ok(Pause(self))
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        let mut count = self.0.count.lock();
        *count -= 1;
        if *count == 0
            && let Err(e) = (self.0.freeze)(false)
        {
            tracing::error!("cannot resume the container: {}", sys::describe(&e));
        }
    }
}

/// Calls `act` for each request read from `from`, until end of file. Ignores unknown requests.
pub(super) fn each(from: impl Read, mut act: impl FnMut(Request)) {
    for line in BufReader::new(from).lines() {
        let Ok(line) = line else { return };
        let signal = line.strip_prefix("kill ").and_then(|number| number.parse().ok());
        match (signal, line.as_str()) {
            (Some(signal), _) => act(Request::Kill(signal)),
            (None, "pause") => act(Request::Pause),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_signals_are_delivered_in_order() {
        let (asks, hears) = UnixStream::pair().unwrap();
        send(&asks, 15).unwrap();
        (&asks).write_all(b"nonsense\nkill x\nkill 9\n").unwrap();
        drop(asks);
        let got = Mutex::new(Vec::new());
        each(hears, |request| got.lock().push(request));
        assert_eq!(*got.lock(), [Request::Kill(15), Request::Kill(9)]);
    }

    #[test]
    fn a_container_is_thawed_when_the_last_client_resumes_it() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        let freeze: Freeze = Arc::new(move |frozen| {
            seen.lock().push(frozen);
            Ok(())
        });
        let pauses = Pauses { count: Mutex::new(0), freeze };
        let (first, second) = (pauses.begin().unwrap(), pauses.begin().unwrap());
        drop(first);
        assert_eq!(*calls.lock(), [true]);
        drop(second);
        assert_eq!(*calls.lock(), [true, false]);
        let never = Pauses { count: Mutex::new(0), freeze: Arc::new(|_| Err(io::ErrorKind::Unsupported.into())) };
        assert!(never.begin().is_err() && *never.count.lock() == 0);
    }

    #[test]
    fn signalling_a_stopped_container_fails() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(signal(dir.path(), 15).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        assert_eq!(signal(dir.path(), 15).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}

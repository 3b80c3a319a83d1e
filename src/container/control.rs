//! Requests to a running container, a line each: `kill N` sends a signal, `pause` freezes all its processes until the
//! connection is closed.
//!
//! Who started it in front sends signals through a socket pair; everybody else uses the socket `control` in its folder,
//! which answers `ok` or why not. The process that runs the container sends the signal, as it knows which process that is
//! and may, without its process ID or rights over it. It resumes the container too, so that one whose pauser is killed
//! does not stay frozen.

use crate::sys;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// In a container's folder.
pub(super) const SOCKET: &str = "control";

/// What is done with a signal that is asked for.
pub(super) type Deliver = Arc<dyn Fn(i32) -> io::Result<()> + Send + Sync>;
/// Freezes all processes of the container, or lets them run again.
pub(super) type Freeze = Arc<dyn Fn(bool) -> io::Result<()> + Send + Sync>;

/// How long a pause may take. A container's runner that knows no pause does not answer.
const PAUSE_LIMIT: Duration = Duration::from_secs(15);

/// One line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// Send this signal.
    Kill(i32),
    /// Freeze the container until the connection is closed.
    Pause,
}

/// A paused container. It is resumed when this is dropped, or the process ends in whatever way.
pub struct Paused {
    _connection: UnixStream,
}

/// Asks for a signal.
pub fn send(mut to: &UnixStream, signal: i32) -> io::Result<()> {
    to.write_all(format!("kill {signal}\n").as_bytes())
}

/// Sends a signal to the running container whose folder that is, and waits until it is sent. If nobody runs it any more,
/// the error is [`io::ErrorKind::ConnectionRefused`] or [`io::ErrorKind::NotFound`].
pub fn signal(dir: &Path, signal: i32) -> io::Result<()> {
    let stream = connect(dir)?;
    send(&stream, signal)?;
    answer(&stream)
}

/// Pauses the running container whose folder that is: all its processes are frozen when this returns.
pub fn pause(dir: &Path) -> io::Result<Paused> {
    let stream = connect(dir)?;
    stream.set_read_timeout(Some(PAUSE_LIMIT))?;
    (&stream).write_all(b"pause\n")?;
    answer(&stream)?;
    Ok(Paused { _connection: stream })
}

fn connect(dir: &Path) -> io::Result<UnixStream> {
    // A socket's path may have 107 bytes, and a store may lie deep.
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

/// Answers at the socket `control` of the working directory, in threads of its own.
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
                    // Who asked may not wait for it.
                    let _unheard = writeln!(answers, "{text}");
                });
            };
            if let Err(e) = thread::Builder::new().name("plyfs-answer".into()).spawn(answer) {
                tracing::warn!("cannot answer: {e}");
            }
        }
    })?;
    Ok(())
}

/// Who has the container paused: it is frozen as long as anybody has.
struct Pauses {
    count: Mutex<usize>,
    freeze: Freeze,
}

/// One who has it paused, until this is dropped.
struct Pause<'a>(&'a Pauses);

impl Pauses {
    fn begin(&self) -> io::Result<Pause<'_>> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if *count == 0 {
            (self.freeze)(true)?;
        }
        *count += 1;
        Ok(Pause(self))
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        let mut count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0
            && let Err(e) = (self.0.freeze)(false)
        {
            tracing::error!("cannot resume the container: {}", sys::describe(&e));
        }
    }
}

/// Does what is asked on `from`, until that is closed.
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
    fn signals_that_are_asked_for_are_delivered_in_order() {
        let (asks, hears) = UnixStream::pair().unwrap();
        send(&asks, 15).unwrap();
        (&asks).write_all(b"nonsense\nkill x\nkill 9\n").unwrap();
        drop(asks);
        let got = Mutex::new(Vec::new());
        each(hears, |request| got.lock().unwrap().push(request));
        assert_eq!(*got.lock().unwrap(), [Request::Kill(15), Request::Kill(9)]);
    }

    #[test]
    fn a_container_is_frozen_as_long_as_anybody_has_it_paused() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        let freeze: Freeze = Arc::new(move |frozen| {
            seen.lock().unwrap().push(frozen);
            Ok(())
        });
        let pauses = Pauses { count: Mutex::new(0), freeze };
        let (first, second) = (pauses.begin().unwrap(), pauses.begin().unwrap());
        drop(first);
        assert_eq!(*calls.lock().unwrap(), [true]);
        drop(second);
        assert_eq!(*calls.lock().unwrap(), [true, false]);
        let never = Pauses { count: Mutex::new(0), freeze: Arc::new(|_| Err(io::ErrorKind::Unsupported.into())) };
        assert!(never.begin().is_err() && *never.count.lock().unwrap() == 0);
    }

    #[test]
    fn a_container_that_nobody_runs_cannot_be_reached() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(signal(dir.path(), 15).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        assert_eq!(signal(dir.path(), 15).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}

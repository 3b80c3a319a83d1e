//! The word that reaches a running container: `kill N`, a line.
//!
//! Who started it in front sends that through a socket pair; everybody else through the socket `control` in its folder,
//! which answers `ok` or why not. The process that runs the container sends the signal, as it knows which process that is
//! and may: nobody needs its number or rights over it.

use crate::sys;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// In a container's folder.
pub(super) const SOCKET: &str = "control";

/// What is done with a signal that is asked for.
pub(super) type Deliver = Arc<dyn Fn(i32) -> io::Result<()> + Send + Sync>;

/// Asks for a signal.
pub fn send(mut to: &UnixStream, signal: i32) -> io::Result<()> {
    to.write_all(format!("kill {signal}\n").as_bytes())
}

/// Sends a signal to the running container whose folder that is, and waits until it is sent. If nobody runs it any more,
/// the error is [`io::ErrorKind::ConnectionRefused`] or [`io::ErrorKind::NotFound`].
pub fn signal(dir: &Path, signal: i32) -> io::Result<()> {
    // A socket's path may have 107 bytes, and a store may lie deep.
    let dir = File::open(dir)?;
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
    send(&stream, signal)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.trim_end() {
        "ok" => Ok(()),
        "" => Err(io::ErrorKind::ConnectionRefused.into()),
        why => Err(io::Error::other(why.to_owned())),
    }
}

/// Answers at the socket `control` of the working directory, in threads of its own.
pub(super) fn listen(deliver: Deliver) -> io::Result<()> {
    match std::fs::remove_file(SOCKET) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(SOCKET)?;
    thread::Builder::new().name("plyfs-control".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let deliver = Arc::clone(&deliver);
            let answer = move || {
                let mut answers = &stream;
                each(&stream, |signal| {
                    let text = deliver(signal).map_or_else(|e| sys::describe(&e), |()| "ok".into());
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

/// Does what is asked on `from`, until that is closed.
pub(super) fn each(from: impl Read, mut deliver: impl FnMut(i32)) {
    for line in BufReader::new(from).lines() {
        let Ok(line) = line else { return };
        if let Some(signal) = line.strip_prefix("kill ").and_then(|number| number.parse().ok()) {
            deliver(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn signals_that_are_asked_for_are_delivered_in_order() {
        let (asks, hears) = UnixStream::pair().unwrap();
        send(&asks, 15).unwrap();
        (&asks).write_all(b"nonsense\nkill x\nkill 9\n").unwrap();
        drop(asks);
        let got = Mutex::new(Vec::new());
        each(hears, |signal| got.lock().unwrap().push(signal));
        assert_eq!(*got.lock().unwrap(), [15, 9]);
    }

    #[test]
    fn a_container_that_nobody_runs_cannot_be_reached() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(signal(dir.path(), 15).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        assert_eq!(signal(dir.path(), 15).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}

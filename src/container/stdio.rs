//! What a container reads and prints, and the threads that carry it.
//!
//! A container never gets what its caller has: a runtime gives the standard streams to the container's user, which must
//! not be a file of this machine, and a terminal that a container had could be typed into by it. It gets pipes, or a
//! terminal of its own.

use super::log;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::termios::Winsize;
use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Where the runtime delivers a container's terminal: a socket in the container's folder.
pub(super) const CONSOLE: &str = "console";

/// What a container reads.
pub enum Input {
    /// Nothing: it is at the end at once.
    None,
    /// Nothing, for as long as it runs.
    Open,
    /// What the caller gives.
    From(OwnedFd),
}

/// Where what a container prints goes: into its log, and to the caller before that.
pub struct Sink {
    /// The caller's, if the container runs in front.
    pub caller: Option<OwnedFd>,
    /// The container's log; none if it cannot be opened, which must not keep a caller from seeing the output.
    pub log: Option<Arc<File>>,
}

/// What a container has to do with its caller.
pub struct Streams {
    /// What it reads.
    pub input: Input,
    /// What it prints.
    pub output: Sink,
    /// Its complaints. With a terminal everything goes to `output`.
    pub errors: Sink,
    /// Whether it is to have a terminal.
    pub terminal: bool,
    /// The caller's terminal, which gives the container's its size.
    pub size_of: Option<OwnedFd>,
}

impl Streams {
    /// The size that the container's terminal is to have, if the caller has one.
    pub fn size(&self) -> Option<Winsize> {
        rustix::termios::tcgetwinsize(self.size_of.as_ref()?).ok()
    }
}

/// Our ends of what the container was given, before it runs.
pub(super) enum Ends {
    Pipes { input: Option<io::PipeWriter>, output: io::PipeReader, errors: io::PipeReader },
    Terminal(UnixListener),
}

/// The container at the other end.
pub(super) struct Carried {
    /// Those that carry what it prints: they end when nobody in it can print any more.
    printing: Vec<JoinHandle<()>>,
    /// Its terminal.
    pub terminal: Option<Arc<Terminal>>,
    /// Keeps its input open.
    _input: Option<io::PipeWriter>,
}

/// A container's terminal.
pub(super) struct Terminal {
    ours: OwnedFd,
    callers: Option<OwnedFd>,
}

impl Terminal {
    /// Gives it the size of the caller's. The kernel tells the container, if that is another.
    pub fn resize(&self) -> io::Result<()> {
        let Some(callers) = &self.callers else { return Ok(()) };
        Ok(rustix::termios::tcsetwinsize(&self.ours, rustix::termios::tcgetwinsize(callers)?)?)
    }
}

/// Has a call of the runtime hand the container its ends. The working directory is the container's folder.
pub(super) fn give(streams: &Streams, call: &mut Command) -> io::Result<Ends> {
    if streams.terminal {
        match std::fs::remove_file(CONSOLE) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        call.args(["--console-socket", CONSOLE]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        return Ok(Ends::Terminal(UnixListener::bind(CONSOLE)?));
    }
    let mut input = None;
    call.stdin(Stdio::null());
    if !matches!(streams.input, Input::None) {
        let (reader, writer) = io::pipe()?;
        call.stdin(reader);
        input = Some(writer);
    }
    let (output, writer) = io::pipe()?;
    call.stdout(writer);
    let (errors, writer) = io::pipe()?;
    call.stderr(writer);
    Ok(Ends::Pipes { input, output, errors })
}

/// Begins to carry, now that the container runs.
pub(super) fn carry(streams: Streams, ends: Ends) -> io::Result<Carried> {
    match ends {
        Ends::Pipes { input, output, errors } => {
            let kept = match (streams.input, input) {
                (Input::From(from), Some(to)) => feed(from, to.into()).map(|()| None)?,
                (_, input) => input,
            };
            let printing =
                vec![print(output.into(), streams.output, false)?, print(errors.into(), streams.errors, true)?];
            Ok(Carried { printing, terminal: None, _input: kept })
        }
        Ends::Terminal(listener) => {
            // The runtime has delivered it before it ended, or never will.
            listener.set_nonblocking(true)?;
            let ours = receive(listener)?;
            if let Input::From(from) = streams.input {
                feed(from, ours.try_clone()?)?;
            }
            let printing = vec![print(ours.try_clone()?, streams.output, false)?];
            let terminal = Terminal { ours, callers: streams.size_of };
            // It may have changed since the runtime was told.
            let _has_none = terminal.resize();
            Ok(Carried { printing, terminal: Some(Arc::new(terminal)), _input: None })
        }
    }
}

impl Carried {
    /// Waits until all that was printed has arrived.
    pub fn finish(self) {
        for thread in self.printing {
            // One that panicked has nothing more to carry.
            let _panicked = thread.join();
        }
        let _gone = std::fs::remove_file(CONSOLE);
    }
}

/// Carries what the caller gives, as long as anybody wants it. The end of input is passed on by closing a pipe; at a
/// terminal there is none.
fn feed(from: OwnedFd, to: OwnedFd) -> io::Result<()> {
    let (mut from, mut to) = (File::from(from), File::from(to));
    let feed = move || {
        // A reader that is gone, or a caller whose terminal is: either way there is nothing more to do.
        let _ended = io::copy(&mut from, &mut to);
    };
    thread::Builder::new().name("plyfs-input".into()).spawn(feed).map(drop)
}

/// Carries what the container prints. Where nobody wants it any more the container is told so by its next write.
fn print(from: OwnedFd, to: Sink, is_error: bool) -> io::Result<JoinHandle<()>> {
    let print = move || {
        if let Err(error) = copy(File::from(from), to, is_error) {
            tracing::debug!("output is not wanted any more: {error}");
        }
    };
    thread::Builder::new().name("plyfs-output".into()).spawn(print)
}

/// As far as it goes: a terminal whose other side is closed gives EIO, not an end.
fn copy(mut from: File, to: Sink, is_error: bool) -> io::Result<()> {
    let mut caller = to.caller.map(File::from);
    let mut log = to.log.as_deref().map(|log| log::Writer::new(log, is_error));
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                let text = &buffer[..read];
                let shown = caller.as_mut().map_or(Ok(()), |caller| caller.write_all(text));
                if let Some(log) = &mut log {
                    log.put(text);
                }
                shown?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if Errno::from_io_error(&e) == Some(Errno::IO) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

/// Takes the terminal that the runtime sent to the socket.
fn receive(listener: UnixListener) -> io::Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(false)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    rustix::net::recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    let sent = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut all) => all.next(),
        _ => None,
    });
    sent.ok_or_else(|| io::Error::other("the runtime sent no terminal"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use std::io::{IoSlice, Seek};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_terminal_is_received_although_the_sender_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut sent = tempfile::tempfile().unwrap();
        sent.write_all(b"it").unwrap();
        {
            let stream = UnixStream::connect(&path).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            let all = [sent.as_fd()];
            assert!(beside.push(SendAncillaryMessage::ScmRights(&all)));
            rustix::net::sendmsg(&stream, &[IoSlice::new(b"/dev/ptmx")], &mut beside, SendFlags::empty()).unwrap();
        }
        let mut got = File::from(receive(listener).unwrap());
        got.rewind().unwrap();
        let mut text = String::new();
        got.read_to_string(&mut text).unwrap();
        assert_eq!(text, "it");
    }

    #[test]
    fn pipes_carry_all_and_end() {
        let mut call = Command::new("sh");
        call.args(["-c", "cat; echo bad >&2"]);
        let mut typed = tempfile::tempfile().unwrap();
        typed.write_all(&[b'x'; 1 << 20]).unwrap();
        typed.rewind().unwrap();
        let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let streams = Streams {
            input: Input::From(typed.into()),
            output: Sink { caller: Some(out.try_clone().unwrap().into()), log: None },
            errors: Sink { caller: Some(err.try_clone().unwrap().into()), log: None },
            terminal: false,
            size_of: None,
        };
        let ends = give(&streams, &mut call).unwrap();
        let mut child = call.spawn().unwrap();
        drop(call);
        let carried = carry(streams, ends).unwrap();
        assert!(child.wait().unwrap().success());
        carried.finish();
        let (mut text, mut complaints) = (Vec::new(), String::new());
        out.rewind().unwrap();
        out.read_to_end(&mut text).unwrap();
        err.rewind().unwrap();
        err.read_to_string(&mut complaints).unwrap();
        assert_eq!(text, [b'x'; 1 << 20]);
        assert_eq!(complaints, "bad\n");
    }
}

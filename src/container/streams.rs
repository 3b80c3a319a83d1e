//! The container's standard streams: pipes or a pseudoterminal, and the threads that copy them.
//!
//! A container never gets its caller's descriptors. A runtime changes the owner of the standard streams to the
//! container's user, which must not happen to a file of the host, and a container with the caller's terminal could
//! inject input into it.

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

/// The console socket in the container's folder, over which the runtime sends the pseudoterminal.
pub(super) const CONSOLE: &str = "console";

/// The source of a container's standard input.
pub enum Input {
    /// /dev/null.
    None,
    /// A pipe that stays open and empty while the container runs.
    Open,
    /// The caller's descriptor.
    From(OwnedFd),
}

/// The destinations of an output stream: first the caller, then the log.
pub struct Sink {
    /// The caller's descriptor, if the container runs in the foreground.
    pub caller: Option<OwnedFd>,
    /// The container's log; `None` if it cannot be opened, which must not hide the output from the caller.
    pub log: Option<Arc<File>>,
}

/// The configuration of a container's standard streams.
pub struct Streams {
    /// Standard input.
    pub input: Input,
    /// Standard output.
    pub output: Sink,
    /// Standard error. With a terminal, everything is written to `output`.
    pub errors: Sink,
    /// Whether to allocate a pseudoterminal.
    pub terminal: bool,
    /// The caller's terminal, whose size the container's terminal gets.
    pub size_of: Option<OwnedFd>,
}

impl Streams {
    /// The size of the caller's terminal, if there is one.
    pub fn size(&self) -> Option<Winsize> {
        rustix::termios::tcgetwinsize(self.size_of.as_ref()?).ok()
    }
}

/// This process's ends of the container's streams, before the container runs.
pub(super) enum Ends {
    Pipes { input: Option<io::PipeWriter>, output: io::PipeReader, errors: io::PipeReader },
    Terminal(UnixListener),
}

/// The streams of a running container.
pub(super) struct RunningStreams {
    /// The output threads. They end when no process in the container has the streams open.
    printing: Vec<JoinHandle<()>>,
    /// The container's terminal.
    pub terminal: Option<Arc<Terminal>>,
    /// Keeps the container's input open.
    _input: Option<io::PipeWriter>,
}

/// A container's pseudoterminal.
pub(super) struct Terminal {
    master: OwnedFd,
    caller_terminal: Option<OwnedFd>,
}

impl Terminal {
    /// Sets the size to that of the caller's terminal. The kernel sends SIGWINCH to the container if it changes.
    pub fn resize(&self) -> io::Result<()> {
        let Some(caller_terminal) = &self.caller_terminal else { return Ok(()) };
        Ok(rustix::termios::tcsetwinsize(&self.master, rustix::termios::tcgetwinsize(caller_terminal)?)?)
    }
}

/// Creates the streams, and sets the container's ends on a runtime call. The working directory must be the container's
/// folder.
pub(super) fn create(streams: &Streams, call: &mut Command) -> io::Result<Ends> {
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

/// Starts the copying threads of a running container.
pub(super) fn start(streams: Streams, ends: Ends) -> io::Result<RunningStreams> {
    match ends {
        Ends::Pipes { input, output, errors } => {
            let kept = match (streams.input, input) {
                (Input::From(from), Some(to)) => feed(from, to.into()).map(|()| None)?,
                (_, input) => input,
            };
            let printing =
                vec![print(output.into(), streams.output, false)?, print(errors.into(), streams.errors, true)?];
            Ok(RunningStreams { printing, terminal: None, _input: kept })
        }
        Ends::Terminal(listener) => {
            // The runtime has exited: it has connected already, or never will.
            listener.set_nonblocking(true)?;
            let master = receive(listener)?;
            if let Input::From(from) = streams.input {
                feed(from, master.try_clone()?)?;
            }
            let printing = vec![print(master.try_clone()?, streams.output, false)?];
            let terminal = Terminal { master, caller_terminal: streams.size_of };
            // The size may have changed since config.json was written.
            let _no_terminal = terminal.resize();
            Ok(RunningStreams { printing, terminal: Some(Arc::new(terminal)), _input: None })
        }
    }
}

impl RunningStreams {
    /// Waits until all output is copied, and removes the console socket.
    pub fn finish(self) {
        for thread in self.printing {
            // A thread that panicked has nothing more to copy.
            let _panicked = thread.join();
        }
        let _gone = std::fs::remove_file(CONSOLE);
    }
}

/// Copies standard input to the container in a thread. At end of file a pipe is closed; a terminal has no end of file
/// to pass on.
fn feed(from: OwnedFd, to: OwnedFd) -> io::Result<()> {
    let (mut from, mut to) = (File::from(from), File::from(to));
    let feed = move || {
        // An error means that the container or the caller's terminal is gone: the thread ends either way.
        let _ended = io::copy(&mut from, &mut to);
    };
    thread::Builder::new().name("plyfs-input".into()).spawn(feed).map(drop)
}

/// Copies an output stream in a thread. If the caller cannot be written to, the stream is closed, and the container's
/// next write fails.
fn print(from: OwnedFd, to: Sink, is_error: bool) -> io::Result<JoinHandle<()>> {
    let print = move || {
        if let Err(error) = copy(File::from(from), to, is_error) {
            tracing::debug!("cannot write the container's output: {error}");
        }
    };
    thread::Builder::new().name("plyfs-output".into()).spawn(print)
}

/// Copies until end of file, or until EIO: reading a pseudoterminal whose other side is closed fails with EIO.
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

/// Receives the pseudoterminal's descriptor from the console socket.
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
    fn a_terminal_is_received_after_the_sender_has_exited() {
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
    fn pipes_copy_everything_until_end_of_file() {
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
        let ends = create(&streams, &mut call).unwrap();
        let mut child = call.spawn().unwrap();
        drop(call);
        let running = start(streams, ends).unwrap();
        assert!(child.wait().unwrap().success());
        running.finish();
        let (mut text, mut errors_text) = (Vec::new(), String::new());
        out.rewind().unwrap();
        out.read_to_end(&mut text).unwrap();
        err.rewind().unwrap();
        err.read_to_string(&mut errors_text).unwrap();
        assert_eq!(text, [b'x'; 1 << 20]);
        assert_eq!(errors_text, "bad\n");
    }
}

//! Asking the user at the terminal.

use super::output;
use crate::sys::Signals;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io;

/// The terminal as it was. Dropping this brings it back.
struct Silence(Termios);

impl Silence {
    /// Has the terminal show nothing of what is typed but the end of the line.
    fn begin() -> io::Result<Silence> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Silence(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        restore(&self.0);
    }
}

fn restore(before: &Termios) {
    // A terminal that is gone needs nothing.
    let _gone = tcsetattr(io::stdin(), OptionalActions::Now, before);
}

/// Prints `prompt` and reads a line, without the space around it.
pub(super) fn ask(prompt: &str) -> anyhow::Result<String> {
    output::text(prompt)?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Prints `prompt` and reads a line that the terminal does not show. A signal that ends the program meanwhile leaves the
/// terminal as it was.
pub(super) fn ask_secret(prompt: &str) -> anyhow::Result<String> {
    let signals = Signals::block_heeded()?;
    let silence = Silence::begin()?;
    let before = silence.0.clone();
    std::thread::Builder::new().name("plyfs-signals".into()).spawn(move || {
        if let Ok(signal) = signals.wait() {
            restore(&before);
            // The cursor stands behind the prompt.
            output::complaint("");
            std::process::exit(128 + signal);
        }
    })?;
    output::text(prompt)?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

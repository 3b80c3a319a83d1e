//! Terminal prompts, with and without echo.

use crate::cli::output::stdout as output;
use crate::sys::Signals;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io;

/// Disables the terminal's echo until dropped. Holds the settings to restore.
struct NoEcho(Termios);

impl NoEcho {
    /// Disables the echo, except for the newline.
    fn begin() -> io::Result<NoEcho> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(NoEcho(before))
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        restore(&self.0);
    }
}

fn restore(before: &Termios) {
    // The terminal may be gone.
    let _gone = tcsetattr(io::stdin(), OptionalActions::Now, before);
}

/// Prints `prompt` and reads a line, trimmed.
pub(in crate::cli) fn ask(prompt: &str) -> anyhow::Result<String> {
    output::text(prompt)?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Prints `prompt` and reads a line without echo. SIGINT, SIGTERM and SIGHUP restore the terminal before the program
/// exits.
pub(in crate::cli) fn ask_secret(prompt: &str) -> anyhow::Result<String> {
    let signals = Signals::block_heeded()?;
    let no_echo = NoEcho::begin()?;
    let before = no_echo.0.clone();
    std::thread::Builder::new().name("plyfs-signals".into()).spawn(move || {
        if let Ok(signal) = signals.wait() {
            restore(&before);
            // Ends the line of the prompt.
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

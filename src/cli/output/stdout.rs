//! Standard output and standard error: lines, tables, JSON. A closed pipe is an error for the caller, never a panic.

use crate::sys;
use serde::Serialize;
use std::io::{self, BufWriter, StdoutLock, Write};

/// The capacity of [`writer`] in bytes.
const BUFFER: usize = 1 << 16;

/// Prints text without changes, and flushes.
pub(in crate::cli) fn text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(failed)
}

/// Returns a buffered writer to standard output, for much output or such that is no text. Its errors go through
/// [`failed`]; the caller flushes it.
pub(in crate::cli) fn writer() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(BUFFER, io::stdout().lock())
}

/// Describes an error of a write to standard output.
pub(in crate::cli) fn failed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        // Kept as an io::Error: the program then exits without a message.
        io::ErrorKind::BrokenPipe => error.into(),
        _ => anyhow::anyhow!("cannot write to standard output: {}", sys::describe(&error)),
    }
}

/// Prints one line.
pub(in crate::cli) fn line(line: impl std::fmt::Display) -> anyhow::Result<()> {
    text(&format!("{line}\n"))
}

/// Prints a line to standard error. Ignores write errors.
pub(in crate::cli) fn complaint(line: impl std::fmt::Display) {
    // An error on standard error cannot be reported anywhere.
    let _gone = writeln!(io::stderr().lock(), "{line}");
}

/// Aligns tab-separated cells as Go's tabwriter does, with minimum width 10 and padding 3.
pub(in crate::cli) fn tabbed(lines: &str) -> anyhow::Result<String> {
    // Go counts the padding into the minimum width.
    let mut writer = tabwriter::TabWriter::new(Vec::new()).minwidth(7).padding(3);
    writer.write_all(lines.as_bytes())?;
    writer.flush()?;
    let bytes = writer.into_inner().map_err(|e| anyhow::anyhow!("cannot format a table: {e}"))?;
    Ok(String::from_utf8(bytes)?)
}

/// Pretty-prints JSON, indented by four spaces as Docker does.
pub(in crate::cli) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    bytes.push(b'\n');
    text(&String::from_utf8(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(headings: &[&str], rows: &[Vec<String>]) -> String {
        let rows: Vec<String> = rows.iter().map(|row| row.join("\t") + "\n").collect();
        tabbed(&format!("{}\n{}", headings.join("\t"), rows.concat())).unwrap()
    }

    #[test]
    fn tables_are_aligned_as_docker_does() {
        let headings = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
        let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
        let empty = layout(&headings, &[]);
        assert_eq!(empty, "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n");
        let rows = [
            row(["alpine", "latest", "05455a08881e", "2 years ago", "7.38MB"]),
            row(["<none>", "<none>", "c059bfaa849c", "About a minute ago", "1GB"]),
        ];
        let want = "REPOSITORY   TAG       IMAGE ID       CREATED              SIZE\n\
                    alpine       latest    05455a08881e   2 years ago          7.38MB\n\
                    <none>       <none>    c059bfaa849c   About a minute ago   1GB\n";
        assert_eq!(layout(&headings, &rows), want);
    }
}

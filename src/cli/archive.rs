//! Where archives go: a file that is made whole or not at all, or standard output.

use super::Exit;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const BUFFER: usize = 1 << 20;

/// Refuses to write an archive where a person would have to look at it.
pub(super) fn refuse_terminal(output: Option<&Path>) -> anyhow::Result<()> {
    if output.is_none() && io::stdout().is_terminal() {
        let text = "cowardly refusing to save to a terminal. Use the -o flag or redirect";
        return Err(Exit::Text(1, text.into()).into());
    }
    Ok(())
}

/// Standard output, for an archive.
pub(super) fn stdout() -> impl Write {
    BufWriter::with_capacity(BUFFER, io::stdout().lock())
}

/// An output path that is taken apart: what is written first gets a name beside it.
pub(super) struct Place<'a> {
    path: &'a Path,
    folder: &'a Path,
    temporary: PathBuf,
}

impl Place<'_> {
    /// Judges a path; `failed` is how the message begins.
    pub(super) fn new<'a>(path: &'a Path, failed: &str) -> anyhow::Result<Place<'a>> {
        let invalid = |why: &str| anyhow::anyhow!("{failed}: invalid output path: {why}");
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if let Err(e) = fs::metadata(folder) {
            return Err(invalid(&format!("{}: {}", folder.display(), crate::sys::describe(&e))));
        }
        let mut name = path.file_name().ok_or_else(|| invalid("it names no file"))?.to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        Ok(Place { path, folder, temporary: folder.join(name) })
    }

    /// Makes the file, for its owner only, whole or not at all. What is no plain file, a pipe or a device, is written to.
    pub(super) fn file(
        &self,
        failed: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let there = fs::metadata(self.path);
        if there.as_ref().is_ok_and(fs::Metadata::is_dir) {
            anyhow::bail!("{failed}: invalid output path: {} is a directory", self.path.display());
        }
        if there.is_ok_and(|m| !m.is_file()) {
            let mut out = BufWriter::with_capacity(BUFFER, File::options().write(true).open(self.path)?);
            write(&mut out)?;
            return Ok(out.flush()?);
        }
        self.put(|temporary| {
            let file = File::options().write(true).create_new(true).mode(0o600).open(temporary);
            let file = file.map_err(|e| anyhow::anyhow!("cannot create {}: {e}", temporary.display()))?;
            let mut out = BufWriter::with_capacity(BUFFER, file);
            write(&mut out)?;
            out.flush()?;
            Ok(out.get_ref().sync_all()?)
        })
    }

    /// Makes the folder whole or not at all. One that is there must be empty.
    pub(super) fn folder(&self, failed: &str, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let empty = |mut entries: fs::ReadDir| entries.next().is_none();
        let free = match fs::read_dir(self.path) {
            Ok(entries) => empty(entries),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        if !free {
            anyhow::bail!("{failed}: invalid output path: {} is there and is no empty directory", self.path.display());
        }
        self.put(fill)
    }

    fn put(&self, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let done = make(&self.temporary).and_then(|()| Ok(fs::rename(&self.temporary, self.path)?));
        if done.is_err() {
            // Nothing half written stays behind.
            let _gone = if self.temporary.is_dir() {
                fs::remove_dir_all(&self.temporary)
            } else {
                fs::remove_file(&self.temporary)
            };
        }
        done?;
        Ok(File::open(self.folder)?.sync_all()?)
    }
}

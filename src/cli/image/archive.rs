//! Archive output: a file or folder that appears complete or not at all, or stdout.

use crate::cli::Exit;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const BUFFER: usize = 1 << 20;

/// Refuses to write an archive to a terminal.
pub(in crate::cli) fn refuse_terminal(output: Option<&Path>) -> anyhow::Result<()> {
    if output.is_none() && io::stdout().is_terminal() {
        let text = "cowardly refusing to save to a terminal. Use the -o flag or redirect";
        return Err(Exit::Text(1, text.into()).into());
    }
    Ok(())
}

/// Returns stdout as the output of an archive.
pub(in crate::cli) fn stdout() -> impl Write {
    BufWriter::with_capacity(BUFFER, io::stdout().lock())
}

/// An output path, split so that a temporary name can be made beside it.
pub(in crate::cli) struct Place<'a> {
    path: &'a Path,
    folder: &'a Path,
    temporary: PathBuf,
}

impl Place<'_> {
    /// Checks a path; `failed` is the beginning of the error message.
    pub(in crate::cli) fn new<'a>(path: &'a Path, failed: &str) -> anyhow::Result<Place<'a>> {
        let invalid = |why: &str| anyhow::anyhow!("{failed}: invalid output path: {why}");
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if let Err(e) = fs::metadata(folder) {
            return Err(invalid(&format!("{}: {}", folder.display(), crate::sys::describe(&e))));
        }
        let mut name = path.file_name().ok_or_else(|| invalid("the path has no file name"))?.to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        Ok(Place { path, folder, temporary: folder.join(name) })
    }

    /// Creates the file, readable by its owner only, complete or not at all. A pipe or device is written to directly.
    pub(in crate::cli) fn file(
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

    /// Creates the folder, complete or not at all. An existing one must be empty.
    pub(in crate::cli) fn folder(
        &self,
        failed: &str,
        fill: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let empty = |mut entries: fs::ReadDir| entries.next().is_none();
        let free = match fs::read_dir(self.path) {
            Ok(entries) => empty(entries),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        if !free {
            anyhow::bail!(
                "{failed}: invalid output path: {} exists and is not an empty directory",
                self.path.display()
            );
        }
        self.put(fill)
    }

    fn put(&self, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let done = make(&self.temporary).and_then(|()| Ok(fs::rename(&self.temporary, self.path)?));
        if done.is_err() {
            // Remove the incomplete output.
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

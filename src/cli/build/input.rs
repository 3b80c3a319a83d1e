//! The input of a build: Dockerfile, context, `.dockerignore`, build arguments and secrets.

use crate::build::{self, Disk, Patterns, Tree};
use crate::dockerfile::{self, Dockerfile};
use crate::sys;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;

/// Largest Dockerfile, in bytes.
const FILE_CAP: u64 = 16 << 20;
/// Largest secret, in bytes, as in Docker.
const SECRET_CAP: u64 = 500 << 10;

/// The Dockerfile and the context.
pub(super) struct Input {
    /// The Dockerfile's name in messages.
    name: String,
    text: String,
    context: Option<Arc<Tree>>,
    /// A context that came as a tar, unpacked.
    _unpacked: Option<TempDir>,
}

impl Input {
    /// Opens the context, a directory or `-`, and reads the Dockerfile.
    pub(super) fn open(context: &str, file: Option<&Path>) -> anyhow::Result<Input> {
        let from_stdin = file == Some(Path::new("-"));
        anyhow::ensure!(
            !(from_stdin && context == "-"),
            "invalid argument: can't use stdin for both build context and dockerfile"
        );
        if context == "-" {
            return Input::of_stdin(file);
        }
        anyhow::ensure!(
            !["http://", "https://", "git@", "git://"].iter().any(|scheme| context.starts_with(scheme)),
            "{context}: a remote build context is not supported: fetch it, and name its directory"
        );
        let dir = Path::new(context);
        let meta =
            fs::metadata(dir).map_err(|e| anyhow::anyhow!("path \"{context}\" not found: {}", sys::describe(&e)))?;
        anyhow::ensure!(meta.is_dir(), "unable to prepare context: {context} is not a directory");
        Input::of_dir(dir, file, None)
    }

    fn of_dir(dir: &Path, file: Option<&Path>, unpacked: Option<TempDir>) -> anyhow::Result<Input> {
        let path = match file {
            None => dir.join("Dockerfile"),
            // Docker: a relative name is one of the current directory, or of the context.
            Some(file) if file.is_relative() && (unpacked.is_some() || !file.exists()) => dir.join(file),
            Some(file) => file.to_owned(),
        };
        let text = if file == Some(Path::new("-")) {
            read(io::stdin(), "standard input")?
        } else {
            let name = path.display().to_string();
            let opened = fs::File::open(&path);
            let opened =
                opened.map_err(|e| anyhow::anyhow!("failed to read dockerfile: open {name}: {}", sys::describe(&e)))?;
            read(opened, &name)?
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own = path.with_file_name(format!("{name}.dockerignore"));
        let ignore = if own.is_file() { own } else { dir.join(".dockerignore") };
        let lines = match fs::read_to_string(&ignore) {
            Ok(lines) => lines,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => anyhow::bail!("cannot read {}: {}", ignore.display(), sys::describe(&e)),
        };
        let patterns = Patterns::parse(&lines).map_err(|why| anyhow::anyhow!("{}: {why}", ignore.display()))?;
        let disk = Disk::open(dir, patterns)
            .map_err(|e| anyhow::anyhow!("cannot read {}: {}", dir.display(), sys::describe(&e)))?;
        let name = if file == Some(Path::new("-")) { "Dockerfile".to_owned() } else { name };
        Ok(Input { name, text, context: Some(Arc::new(Tree::Disk(disk))), _unpacked: unpacked })
    }

    /// Reads the Dockerfile, or a tar of the context, from standard input.
    fn of_stdin(file: Option<&Path>) -> anyhow::Result<Input> {
        anyhow::ensure!(!io::stdin().is_terminal(), "standard input is a terminal: nothing to build from");
        let dir = tempfile::Builder::new().prefix("plyfs-context-").tempdir()?;
        let saved = dir.path().join("input");
        let mut copy = fs::File::create(&saved)?;
        io::copy(&mut io::stdin().lock(), &mut copy)?;
        if !crate::image::is_archive(fs::File::open(&saved)?) {
            let text = read(fs::File::open(&saved)?, "standard input")?;
            anyhow::ensure!(!text.trim().is_empty(), "the Dockerfile on standard input is empty");
            return Ok(Input { name: "Dockerfile".into(), text, context: None, _unpacked: None });
        }
        let unpacked = dir.path().join("context");
        fs::create_dir(&unpacked)?;
        // As in Docker, a context is what tar makes of it for this user.
        let tar = Command::new("tar").arg("-xf").arg(&saved).arg("-C").arg(&unpacked).stdin(Stdio::null()).output();
        let tar = tar.map_err(|e| anyhow::anyhow!("cannot run tar to unpack the context: {}", sys::describe(&e)))?;
        let said = String::from_utf8_lossy(&tar.stderr);
        anyhow::ensure!(
            tar.status.success(),
            "cannot unpack the context: {}",
            said.lines().next().unwrap_or("tar failed")
        );
        Input::of_dir(&unpacked, file, Some(dir))
    }

    /// The Dockerfile's name in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The Dockerfile's lines.
    pub(super) fn lines(&self) -> Vec<&str> {
        self.text.lines().collect()
    }

    pub(super) fn context(&self) -> Option<Arc<Tree>> {
        self.context.clone()
    }

    pub(super) fn parse(&self) -> anyhow::Result<Dockerfile> {
        dockerfile::parse(&self.text).map_err(|e| anyhow::anyhow!("{}:{}: {}", self.name, e.line, e.why))
    }

    /// Formats an error with the Dockerfile's name.
    pub(super) fn describe(&self, error: &build::Error) -> String {
        match error.line {
            Some(line) => format!("{}:{line}: {}", self.name, error.why),
            None => error.why.clone(),
        }
    }
}

fn read(from: impl Read, name: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    from.take(FILE_CAP + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| anyhow::anyhow!("cannot read {name}: {}", sys::describe(&e)))?;
    anyhow::ensure!(bytes.len() as u64 <= FILE_CAP, "{name} is too long for a Dockerfile");
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{name} is not UTF-8 text"))
}

/// Parses `--build-arg`. A name alone is copied from the environment, if it is there.
pub(super) fn build_args(given: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for text in given {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), std::env::var(text).ok()),
        };
        anyhow::ensure!(!name.is_empty(), "invalid build argument: {text}");
        all.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(all)
}

/// Parses `--secret`: `id=ID` with `src=FILE` or `env=NAME`; the ID alone names a variable or a file.
pub(super) fn secrets(given: &[String]) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for text in given {
        let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
        for field in text.split(',') {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            anyhow::ensure!(!value.is_empty(), "invalid field '{field}' of --secret: it must be a key=value pair");
            match key {
                "id" => id = Some(value),
                "src" | "source" => file = Some(PathBuf::from(value)),
                "env" => variable = Some(value),
                "type" => kind = Some(value),
                _ => anyhow::bail!("unexpected key '{key}' in --secret"),
            }
        }
        anyhow::ensure!(
            matches!(kind, None | Some("file" | "env")),
            "unsupported secret type {:?}",
            kind.unwrap_or_default()
        );
        let id = id.ok_or_else(|| anyhow::anyhow!("--secret needs an id: {text}"))?;
        if kind == Some("env") {
            // `type=env,src=NAME` names a variable.
            let name = file.take().map(|name| name.display().to_string());
            let name = name.or_else(|| variable.map(str::to_owned)).unwrap_or_else(|| id.to_owned());
            all.insert(id.to_owned(), secret_variable(&name)?);
            continue;
        }
        let content = match (file, variable) {
            (Some(file), _) => secret_file(&file)?,
            (None, Some(name)) => secret_variable(name)?,
            (None, None) => match std::env::var(id) {
                Ok(value) if kind.is_none() => value.into_bytes(),
                _ => secret_file(Path::new(id))?,
            },
        };
        all.insert(id.to_owned(), content);
    }
    Ok(all)
}

fn secret_variable(name: &str) -> anyhow::Result<Vec<u8>> {
    std::env::var(name)
        .map(String::into_bytes)
        .map_err(|_| anyhow::anyhow!("the variable {name} of a secret is not set"))
}

fn secret_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let file =
        fs::File::open(path).map_err(|e| anyhow::anyhow!("cannot read the secret {shown}: {}", sys::describe(&e)))?;
    let mut bytes = Vec::new();
    file.take(SECRET_CAP + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| anyhow::anyhow!("cannot read the secret {shown}: {}", sys::describe(&e)))?;
    anyhow::ensure!(bytes.len() as u64 <= SECRET_CAP, "the secret {shown} is longer than {SECRET_CAP} bytes");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_from_files_and_variables() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s");
        fs::write(&file, "from file").unwrap();
        let src = format!("id=a,src={}", file.display());
        let all = secrets(&[src, "id=PATH".into(), "id=p,env=PATH".into(), "type=env,id=q,src=PATH".into()]).unwrap();
        assert_eq!(all["a"], b"from file");
        let path = std::env::var("PATH").unwrap().into_bytes();
        assert!(all["PATH"] == path && all["p"] == path && all["q"] == path);
        for bad in ["", "src=x", "id=a,foo=1", "id=a,src=/no/such", "id=a,env=NO_SUCH_VARIABLE", "id=a,type=x"] {
            assert!(secrets(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}

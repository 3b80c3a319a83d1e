//! Steps that write a layer without a mount: `COPY`, `ADD` and `WORKDIR`; and the build cache.

use super::copy::{self, Source, Wanted};
use super::items::{self, DataDigests};
use super::mode::Mode;
use super::patterns::{Patterns, literal};
use super::place::NewFiles;
use super::source::{Disk, Tree};
use super::stage::StageRun;
use super::{Build, Ended, Error, Result, StepId};
use crate::container::user;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::dockerfile::{self, CopyFiles, Instruction, clean_path, expand_heredoc};
use crate::fs::Fs;
use crate::image::import;
use crate::meta::Time;
use crate::store::builds;
use crate::store::{Intent, LayerRecord};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// Bytes written at once: the capacity of a pipe.
const PIECE: usize = 64 << 10;
/// Largest /etc/passwd and /etc/group, in bytes.
const ACCOUNTS_CAP: u64 = 8 << 20;

/// The result of a step.
pub(super) struct Made {
    /// The layer; `None` if nothing changed.
    pub layer: Option<LayerRecord>,
    /// When it was made, RFC 3339.
    pub created: String,
    pub cached: bool,
}

type Outcome<T> = std::result::Result<T, String>;

/// Returns the digest of a list of texts, as a key of the cache.
pub(super) fn key(parts: &[&str]) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finish()
}

impl Build<'_> {
    /// Looks up a step in the cache. Its layer stays in the store as long as the session.
    pub(super) fn cached(&self, key: &Digest) -> Outcome<Option<Made>> {
        if !self.options.use_cache {
            return Ok(None);
        }
        let store = self.session.store();
        let Some(step) = builds::find(store, key) else { return Ok(None) };
        if let Some(layer) = &step.layer {
            self.need(Intent { layers: [layer.diff_id.clone()].into(), ..Intent::default() })?;
            let tar = fs::metadata(store.layer_tar(&layer.diff_id));
            if !tar.is_ok_and(|tar| tar.len() == layer.size) {
                return Ok(None);
            }
        }
        Ok(Some(Made { layer: step.layer, created: step.created, cached: true }))
    }

    /// Records a step in the cache under its keys.
    pub(super) fn record(&self, keys: &[&Digest], made: &Made, title: &str) -> Outcome<()> {
        let step = builds::Step { layer: made.layer.clone(), created: made.created.clone(), title: title.to_owned() };
        keys.iter().try_for_each(|key| builds::record(self.session.store(), key, &step)).map_err(|e| e.to_string())
    }

    /// Publishes a layer that a step has made.
    pub(super) fn publish_layer(&self, taken: Option<&import::Taken>) -> Outcome<Made> {
        let now = self.options.newest.unwrap_or_else(Timestamp::now);
        if let Some(taken) = taken {
            self.need(Intent { layers: [taken.diff_id.clone()].into(), ..Intent::default() })?;
            // What is new stays: the cache has it.
            import::publish_layer(self.session, taken, &mut Intent::default()).map_err(|e| e.to_string())?;
        }
        Ok(Made { layer: taken.map(import::Taken::record), created: now.to_string(), cached: false })
    }

    /// Writes new files as a layer into the store.
    pub(super) fn write_layer(&self, files: &NewFiles<'_>, data: &mut DataDigests) -> Outcome<Made> {
        if files.is_empty() {
            return self.publish_layer(None);
        }
        items::check(&files.items)?;
        let dir = self.session.temp_path("layer");
        let newest = self.options.newest.map(Timestamp::as_second);
        let (from, to) = std::io::pipe().map_err(|e| crate::sys::describe(&e))?;
        let warn = |text: &str| self.watch.warn(text);
        let (taken, written) = thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let out = BufWriter::with_capacity(PIECE, to);
                items::write(&files.items, newest, out, data).and_then(|mut out| out.flush())
            });
            let taken = import::take_into(dir, Box::new(from), "the copied files", &warn);
            (taken, writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        match (taken, written) {
            (Ok(taken), Ok(())) => self.publish_layer(Some(&taken)),
            // EPIPE: the reading side failed first.
            (Err(error), Err(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(error.to_string()),
            (_, Err(e)) => Err(crate::sys::describe(&e)),
            (Err(error), Ok(())) => Err(error.to_string()),
        }
    }

    /// Reports the end of a step.
    pub(super) fn end<T>(&self, step: StepId, line: usize, done: Outcome<T>, cached: impl Fn(&T) -> bool) -> Result<T> {
        match done {
            Ok(value) => {
                self.watch.end(step, if cached(&value) { Ended::Cached } else { Ended::Done });
                Ok(value)
            }
            Err(why) => {
                self.watch.end(step, Ended::Failed(why.clone()));
                // A step that was killed because another stage failed.
                self.check()?;
                Err(Error::new(Some(line), why))
            }
        }
    }

    /// Now, or SOURCE_DATE_EPOCH.
    pub(super) fn now(&self) -> Time {
        let now = self.options.newest.unwrap_or_else(Timestamp::now);
        Time { sec: now.as_second(), nsec: 0 }
    }

    /// Opens a tar, plain or compressed, as a tree, with the digest of the file as it was read; `None` if the file is no
    /// archive.
    fn open_archive(&self, path: &Path) -> Outcome<Option<(Tree, Digest)>> {
        let open = || File::open(path).map_err(|e| format!("{}: {}", path.display(), crate::sys::describe(&e)));
        if !crate::image::is_archive(open()?) {
            return Ok(None);
        }
        let dir = self.session.temp_path("archive");
        let origin = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let warn = |text: &str| self.watch.warn(&format!("{origin}: {text}"));
        let hasher = Arc::new(Mutex::new(Hasher::new(Algorithm::Sha256)));
        let file = Hashed { file: open()?, hasher: Arc::clone(&hasher) };
        let taken = import::take_into(dir.clone(), Box::new(file), &origin, &warn).map_err(|e| e.to_string())?;
        let opened = crate::image::open_single(self.session.store(), &dir, &taken.diff_id, &origin);
        let fs = opened.map_err(|e| e.to_string())?;
        let digest = hasher.lock().clone().finish();
        Ok(Some((Tree::Image(Box::new(fs)), digest)))
    }
}

/// A file that is hashed as it is read.
struct Hashed {
    file: File,
    hasher: Arc<Mutex<Hasher>>,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hasher.lock().update(&buffer[..n]);
        Ok(n)
    }
}

/// Reads a small file of an image; empty if it is missing.
fn read_small(fs: &Fs, path: &str) -> String {
    let Ok(attr) = crate::browse::resolve(fs, path.as_bytes(), true) else { return String::new() };
    let bytes = fs.read(attr.ino, 0, attr.size.min(ACCOUNTS_CAP) as u32);
    bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Resolves `USER[:GROUP]` of `--chown` and `USER` in an image. Without a group it is that of the user's ID.
fn owner(fs: &Fs, spec: &str) -> Outcome<(u32, u32)> {
    let user = user::resolve_with(|path| Ok(read_small(fs, path)), spec).map_err(|e| e.to_string())?;
    // Docker: the group of a user that is given by its ID alone is the same number.
    match spec.parse::<u32>() {
        Ok(id) => Ok((id, id)),
        Err(_) => Ok((user.uid, user.gid)),
    }
}

/// The destination in the image: absolute, with a slash at its end if it must be a directory.
fn target(work_dir: &str, given: &str) -> String {
    let is_dir =
        given.is_empty() || given == "." || given.ends_with('/') || given.ends_with("/.") || given.ends_with("..");
    let whole = if given.starts_with('/') { given.to_owned() } else { format!("{work_dir}/{given}") };
    let clean = clean_path(&whole);
    format!("/{clean}{}", if is_dir && !clean.is_empty() { "/" } else { "" })
}

fn is_url(path: &str) -> bool {
    path.starts_with("http://") || path.starts_with("https://")
}

/// A `COPY` or `ADD` whose variables are replaced.
struct Copying {
    sources: Vec<dockerfile::Source>,
    target: String,
    chown: Option<String>,
    mode: Option<Mode>,
    exclude: Patterns,
    /// Everything that is written in the instruction.
    text: String,
}

impl StageRun<'_> {
    pub(super) fn work_dir(&self) -> String {
        let dir = self.state.config.fields.get("WorkingDir").and_then(Value::as_str).filter(|dir| !dir.is_empty());
        dir.unwrap_or("/").to_owned()
    }

    fn user(&self) -> String {
        self.state.config.fields.get("User").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Adds the result of a step to the state.
    pub(super) fn finish(&mut self, instruction: &str, made: Made) {
        let layer = made.layer.map(|layer| (layer, made.created.as_str()));
        self.state.add_step(instruction, layer);
    }

    /// Begins a step.
    pub(super) fn begin(&mut self, text: &str) -> StepId {
        let title = self.title(text);
        self.build.watch.begin(&title)
    }

    /// Makes the working directory, if it is missing. It belongs to `USER`, as in Docker.
    pub(super) fn make_work_dir(&mut self, instruction: &Instruction) -> Result<()> {
        let step = self.begin(&instruction.text);
        let done = self.work_dir_layer(&instruction.text);
        let made = self.build.end(step, instruction.first, done, |made| made.cached)?;
        self.finish(&instruction.text, made);
        Ok(())
    }

    fn work_dir_layer(&mut self, title: &str) -> Outcome<Made> {
        let (dir, user) = (self.work_dir(), self.user());
        let newest = self.build.options.newest.map(|newest| newest.to_string()).unwrap_or_default();
        let key = key(&["WORKDIR", &self.state.chain().to_string(), &dir, &user, &newest]);
        if let Some(made) = self.build.cached(&key)? {
            return Ok(made);
        }
        let tree = self.tree()?;
        let mut files = NewFiles::new(Some(&tree), self.build.now());
        let place = files.resolve(dir.as_bytes())?;
        let owner = if place.attr.is_none() { owner(&tree, &user)? } else { (0, 0) };
        files.make_dir(&place.path, owner)?;
        let made = self.build.write_layer(&files, &mut DataDigests::default())?;
        self.build.record(&[&key], &made, title)?;
        Ok(made)
    }

    pub(super) fn copy(&mut self, given: &CopyFiles, instruction: &Instruction) -> Result<()> {
        let line = instruction.first;
        let copying = self.expanded(given, instruction)?;
        let from = match &given.from {
            Some(from) => Some(self.layers_of(from, line)?),
            None => None,
        };
        let step = self.begin(&instruction.text);
        let done = self.copied(given, &copying, from.as_deref(), &instruction.text);
        let made = self.build.end(step, line, done, |made| made.cached)?;
        self.finish(&instruction.text, made);
        Ok(())
    }

    /// Replaces the variables of a `COPY` or `ADD`.
    fn expanded(&self, given: &CopyFiles, instruction: &Instruction) -> Result<Copying> {
        let line = instruction.first;
        let escape = self.build.options.file.escape;
        let mut sources = Vec::new();
        for source in &given.sources {
            sources.push(match source {
                dockerfile::Source::Path(path) => dockerfile::Source::Path(self.expand(path, line)?),
                dockerfile::Source::Heredoc(heredoc) => {
                    let mut heredoc = heredoc.clone();
                    if heredoc.expand {
                        let content = expand_heredoc(&heredoc.content, escape, &|name| self.state.variable(name));
                        heredoc.content = content.map_err(Error::at(line))?;
                    }
                    dockerfile::Source::Heredoc(heredoc)
                }
            });
        }
        let word = |text: &Option<String>| text.as_ref().map(|text| self.expand(text, line)).transpose();
        let (chown, chmod) = (word(&given.chown)?, word(&given.chmod)?);
        let mode = chmod.as_deref().map(Mode::parse).transpose().map_err(Error::at(line))?;
        let target = target(&self.work_dir(), &self.expand(&given.target, line)?);
        let exclude = given.exclude.iter().map(|pattern| self.expand(pattern, line)).collect::<Result<Vec<_>>>()?;
        let patterns = Patterns::parse(&exclude.join("\n")).map_err(Error::at(line))?;
        let flags = [given.is_add, given.link, given.parents];
        let text = format!("{flags:?} {sources:?} {target} {chown:?} {chmod:?} {exclude:?} {:?}", given.checksum);
        Ok(Copying { sources, target, chown, mode, exclude: patterns, text })
    }

    /// Copies into a new layer, or finds it in the cache.
    fn copied(
        &mut self,
        given: &CopyFiles,
        copying: &Copying,
        from: Option<&[LayerRecord]>,
        title: &str,
    ) -> Outcome<Made> {
        let build = self.build;
        // With --link the layer does not depend on those below, but for the names of owners.
        let has_names =
            copying.chown.as_ref().is_some_and(|spec| !spec.bytes().all(|b| b.is_ascii_digit() || b == b':'));
        let chain = if given.link && !has_names { "linked".to_owned() } else { self.state.chain().to_string() };
        let newest = build.options.newest.map(|newest| newest.to_string()).unwrap_or_default();
        // A key that needs no look at the files.
        let known = match from {
            Some(layers) => Some(super::stage::image_of(layers).chain_id().to_string()),
            None => given.checksum.clone().filter(|_| copying.sources.iter().all(is_remote)),
        };
        let by_origin = known.map(|known| key(&["COPY of", &chain, &copying.text, &known, &newest]));
        if let Some(by_origin) = &by_origin
            && let Some(made) = build.cached(by_origin)?
        {
            return Ok(made);
        }
        let tree = match from {
            Some(layers) => Some(Arc::new(Tree::Image(Box::new(build.open(layers)?)))),
            None => build.options.context.clone(),
        };
        let mut data = DataDigests::default();
        // What is copied, regardless of what is there: the part of the key that is content.
        let mut selected = NewFiles::new(None, Time::default());
        let sources = self.sources(given, copying, tree.as_ref())?;
        let wanted = |sources, target, owner| Wanted {
            sources,
            target,
            owner,
            mode: copying.mode.as_ref(),
            parents: given.parents,
            exclude: &copying.exclude,
            now: build.now(),
        };
        copy::copy(&mut selected, wanted(sources.clone(), "/", None))?;
        let content_key = |data: &mut DataDigests| {
            let content = items::content(&selected.items, data).map_err(|e| crate::sys::describe(&e))?;
            Ok::<_, String>(key(&["COPY", &chain, &copying.text, &content.to_string(), &newest]))
        };
        let shape = key(&["shape", &chain, &copying.text, &items::shape(&selected.items).to_string()]);
        if build.options.use_cache && builds::has_shape(build.session.store(), &shape) {
            let by_content = content_key(&mut data)?;
            if let Some(made) = build.cached(&by_content)? {
                build.record(&by_origin.iter().collect::<Vec<_>>(), &made, title)?;
                return Ok(made);
            }
        }
        let sources = if given.is_add { self.with_archives(sources, &mut data)? } else { sources };
        let below = self.tree()?;
        let mut files = NewFiles::new((!given.link).then_some(&*below), build.now());
        let owner = copying.chown.as_ref().map(|spec| owner(&below, spec)).transpose()?;
        copy::copy(&mut files, wanted(sources, &copying.target, owner))?;
        let made = build.write_layer(&files, &mut data)?;
        let by_content = content_key(&mut data)?;
        let keys: Vec<&Digest> = by_origin.iter().chain([&by_content]).collect();
        build.record(&keys, &made, title)?;
        builds::note_shape(build.session.store(), &shape).map_err(|e| e.to_string())?;
        Ok(made)
    }
    /// Opens the sources: fetches URLs.
    fn sources(&self, given: &CopyFiles, copying: &Copying, tree: Option<&Arc<Tree>>) -> Outcome<Vec<Source>> {
        let mut all = Vec::new();
        for source in &copying.sources {
            match source {
                dockerfile::Source::Heredoc(heredoc) => {
                    let content = heredoc.content.clone().into_bytes();
                    all.push(Source::File(heredoc.name.clone(), content, 0o644, None));
                }
                dockerfile::Source::Path(url) if given.is_add && is_url(url) => {
                    all.push(self.download(url, given.checksum.as_deref())?);
                }
                dockerfile::Source::Path(path)
                    if given.is_add && (path.starts_with("git@") || path.ends_with(".git")) =>
                {
                    return Err(format!("ADD {path}: git repositories are not supported; clone it into the context"));
                }
                dockerfile::Source::Path(path) => {
                    let tree = tree.ok_or("there is no build context to copy from")?;
                    all.push(Source::Path(Arc::clone(tree), path.clone()));
                }
            }
        }
        Ok(all)
    }

    /// Replaces the archives among the files by what is in them. `data` gets their digests.
    fn with_archives(&self, sources: Vec<Source>, data: &mut DataDigests) -> Outcome<Vec<Source>> {
        let mut all = Vec::new();
        for source in sources {
            let Source::Path(tree, path) = source else {
                all.push(source);
                continue;
            };
            let mut any = false;
            let mut found = Vec::new();
            for (name, node) in copy::files(&tree, &path)? {
                found.push(match node.file().map(|file| self.build.open_archive(file)).transpose()?.flatten() {
                    Some((archive, digest)) => {
                        any = true;
                        data.note(&tree, &node, digest);
                        Source::Archive(Arc::new(archive))
                    }
                    None => Source::Path(Arc::clone(&tree), literal(&name)),
                });
            }
            if any {
                all.extend(found);
            } else {
                all.push(Source::Path(tree, path));
            }
        }
        Ok(all)
    }

    /// Fetches a URL. Docker gives the file mode 0600 and the time that the server says.
    fn download(&self, url: &str, checksum: Option<&str>) -> Outcome<Source> {
        let path = url.split(['?', '#']).next().unwrap_or_default();
        let name = path.splitn(4, '/').nth(3).and_then(|path| path.rsplit('/').next()).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("ADD {url}: cannot determine the name of the file"))?;
        let dir = self.build.session.temp_path("download");
        fs::create_dir(&dir).map_err(|e| crate::sys::describe(&e))?;
        let download = (self.build.options.fetch)(url, &dir.join("download"))?;
        if let Some(wanted) = checksum {
            let wanted: Digest = wanted.parse().map_err(|e| format!("--checksum: {e}"))?;
            let mut hasher = Hasher::new(wanted.algorithm());
            let copied = File::open(&download.path).and_then(|mut file| std::io::copy(&mut file, &mut hasher));
            copied.map_err(|e| crate::sys::describe(&e))?;
            let got = hasher.finish();
            if got != wanted {
                return Err(format!("ADD {url}: its digest is {got}, --checksum wants {wanted}"));
            }
        }
        let tree = Disk::open(&dir, Patterns::default()).map_err(|e| crate::sys::describe(&e))?;
        let modified = download.modified.map(|sec| Time { sec, nsec: 0 });
        Ok(Source::Download(name.to_owned(), Arc::new(Tree::Disk(tree)), 0o600, modified))
    }
}

fn is_remote(source: &dockerfile::Source) -> bool {
    matches!(source, dockerfile::Source::Path(path) if is_url(path))
}

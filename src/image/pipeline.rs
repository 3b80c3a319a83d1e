//! Layer pipeline: verifies, decompresses, writes and indexes a layer in one pass. One thread reads, hashes and
//! inflates the blob; the other hashes, writes and indexes the plain tar. A few recycled buffers connect them, so
//! memory is constant and the slower thread sets the pace.

use super::Problem;
use super::inflate::Inflate;
use super::progress::Event;
use crate::digest::{Algorithm, Digest, Hasher, Verifier};
use crate::layer::{self, Draft, LayerError};
use crate::sys;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

const BUFFERS: usize = 8;
const BUFFER: usize = 256 << 10;
/// Bytes of the tar after which write-back is started, so that the final sync has little left to write.
const WRITE_BACK: u64 = 8 << 20;

/// Expected digests and sizes of a layer.
pub(super) struct Expected<'a> {
    /// Digest and size of the blob, if the source states them.
    pub blob: Option<(&'a Digest, u64)>,
    /// DiffID, if it is known in advance.
    pub diff_id: Option<&'a Digest>,
}

/// A verified layer whose tar is written and synced.
pub(super) struct Done {
    /// The index, complete except for its seal.
    pub draft: Draft,
    /// DiffID: digest of the plain tar.
    pub diff_id: Digest,
    /// Size of the blob, in bytes.
    pub compressed_size: u64,
    /// Size of the plain tar, in bytes.
    pub size: u64,
    /// Time measurements.
    pub timings: Timings,
}

/// Time measurements of a layer.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Timings {
    /// Total time.
    pub total: Duration,
    /// Indexing, without waiting, hashing and writing.
    pub index: Duration,
    /// Hashing and writing the plain tar.
    pub write: Duration,
    /// Waiting for the inflating thread.
    pub wait: Duration,
}

/// Writes a blob's stream as a plain tar to `tar_path`, verifies everything, and returns the index. Calls `tell` with
/// the blob's bytes as they are read, and when they are verified; `stop` cancels.
pub(super) fn run(
    blob: Box<dyn Read + Send>,
    expected: &Expected<'_>,
    tar_path: &Path,
    stop: &AtomicBool,
    tell: &(dyn Fn(Event) + Sync),
) -> Result<Done, Problem> {
    let begun = Instant::now();
    let file = File::create_new(tar_path).map_err(|cause| Problem::Write { path: tar_path.to_owned(), cause })?;
    let (full_in, full_out) = sync_channel(BUFFERS);
    let (empty_in, empty_out) = channel();
    for _ in 0..BUFFERS {
        // The receiver is in this function, so sending cannot fail.
        let _sent = empty_in.send(Vec::new());
    }
    let algorithm = expected.diff_id.map_or(Algorithm::Sha256, Digest::algorithm);
    let mut chunks = Chunks::new(full_out, empty_in, file, algorithm);
    let (inflated, draft) = thread::scope(|scope| {
        let inflater = scope.spawn(move || inflate(blob, expected, &full_in, &empty_out, stop, tell));
        let draft = layer::index_tar(&mut chunks, &layer::Limits::default());
        // Wakes an inflating thread that waits for a buffer or for room in the channel.
        chunks.hang_up();
        let inflated = inflater.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (inflated, draft)
    });
    // The blob's error comes first: a damaged blob explains all later errors.
    let compressed_size = inflated?;
    if let Some(cause) = chunks.write_error.take() {
        return Err(Problem::Write { path: tar_path.to_owned(), cause });
    }
    let draft = draft.map_err(|e| match e {
        LayerError::Io(cause) => Problem::Read { what: "the layer's tar".into(), cause },
        other => Problem::Tar(other),
    })?;
    let (diff_id, size, mut timings) = chunks.finish(tar_path, begun)?;
    if let Some(want) = expected.diff_id.filter(|want| **want != diff_id) {
        return Err(Problem::DiffId { want: want.clone(), got: diff_id });
    }
    timings.total = begun.elapsed();
    Ok(Done { draft, diff_id, compressed_size, size, timings })
}

/// A reader that reports the number of bytes read.
struct Counted<'a, R> {
    inner: R,
    total: u64,
    /// Bytes still expected, if known.
    size: Option<u64>,
    tell: &'a (dyn Fn(Event) + Sync),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.total += n as u64;
        if n > 0 {
            (self.tell)(Event::Read(self.total));
            if self.size == Some(self.total) {
                (self.tell)(Event::Verifying);
            }
        }
        Ok(n)
    }
}

/// A blob's stream, verified if its digest is known.
enum Checked<R> {
    Blob(Box<Verifier<R>>),
    Bare(R),
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Checked::Blob(r) => r.read(buf),
            Checked::Bare(r) => r.read(buf),
        }
    }
}

type Chunk = Vec<u8>;

/// Body of the inflating thread. Returns the blob's size if all of it was read and verified, also if the other thread
/// hung up.
fn inflate(
    blob: Box<dyn Read + Send>,
    expected: &Expected<'_>,
    full: &SyncSender<Chunk>,
    empty: &Receiver<Chunk>,
    stop: &AtomicBool,
    tell: &(dyn Fn(Event) + Sync),
) -> Result<u64, Problem> {
    let digest = expected.blob.map(|(digest, _)| digest);
    let size = expected.blob.map(|(_, size)| size);
    let counted = Counted { inner: blob, total: 0, size, tell };
    let checked = match expected.blob {
        Some((digest, size)) => Checked::Blob(Box::new(Verifier::new(counted, digest, size))),
        None => Checked::Bare(counted),
    };
    let read_error = |cause| Problem::read("the layer's blob", digest, cause);
    let mut stream = Inflate::new(checked, read_error)?;
    let kind = stream.kind();
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Problem::Stopped);
        }
        // The other thread failed; its error counts unless the blob is damaged.
        let Ok(mut chunk) = empty.recv() else { break };
        chunk.resize(BUFFER, 0);
        let n = match fill(&mut stream, &mut chunk) {
            Ok(n) => n,
            Err(cause) => {
                // The digest tells whether the blob was cut or damaged in transit, or badly made.
                drain(stream.inner_mut()).map_err(read_error)?;
                let inflate = |cause| Problem::Inflate { kind: kind.name(), cause };
                return Err(match cause.downcast::<crate::digest::VerifyError>() {
                    Ok(wrong) => read_error(io::Error::new(io::ErrorKind::InvalidData, wrong)),
                    Err(cause) => inflate(cause),
                });
            }
        };
        chunk.truncate(n);
        if n == 0 {
            if !stream.used_up().map_err(read_error)? {
                let cause = io::Error::new(io::ErrorKind::InvalidData, "data follows its end");
                return Err(Problem::Inflate { kind: kind.name(), cause });
            }
            break;
        }
        if full.send(chunk).is_err() {
            break;
        }
    }
    drain(stream.inner_mut()).map_err(read_error)?;
    tell(Event::Verified);
    Ok(match stream.inner_mut() {
        Checked::Blob(_) => expected.blob.map_or(0, |(_, size)| size),
        Checked::Bare(counted) => counted.total,
    })
}

/// Reads until the buffer is full or the stream ends.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match stream.read(&mut buffer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

/// Reads a verified blob to its end, so that its size and digest are checked.
fn drain<R: Read>(blob: &mut Checked<R>) -> io::Result<()> {
    match blob {
        Checked::Blob(verifier) => verifier.drain(),
        Checked::Bare(_) => Ok(()),
    }
}

/// Input of the indexing thread: hashes and writes each chunk, then passes it to the indexer.
struct Chunks {
    full: Option<Receiver<Chunk>>,
    empty: Option<Sender<Chunk>>,
    chunk: Chunk,
    at: usize,
    file: File,
    hasher: Hasher,
    size: u64,
    /// Bytes for which write-back was started.
    sent: u64,
    write_error: Option<io::Error>,
    wait: Duration,
    write: Duration,
}

impl Chunks {
    fn new(full: Receiver<Chunk>, empty: Sender<Chunk>, file: File, algorithm: Algorithm) -> Chunks {
        Chunks {
            full: Some(full),
            empty: Some(empty),
            chunk: Vec::new(),
            at: 0,
            file,
            hasher: Hasher::new(algorithm),
            size: 0,
            sent: 0,
            write_error: None,
            wait: Duration::ZERO,
            write: Duration::ZERO,
        }
    }

    fn hang_up(&mut self) {
        self.full = None;
        self.empty = None;
    }

    /// Receives the next chunk; an empty one at the end.
    fn next(&mut self) -> io::Result<()> {
        let old = std::mem::take(&mut self.chunk);
        self.at = 0;
        if let (Some(empty), true) = (&self.empty, old.capacity() > 0) {
            // The inflating thread may have finished and need no buffer.
            let _sent = empty.send(old);
        }
        let waiting = Instant::now();
        let next = self.full.as_ref().and_then(|full| full.recv().ok());
        self.wait += waiting.elapsed();
        let Some(chunk) = next else { return Ok(()) };
        let writing = Instant::now();
        self.hasher.update(&chunk);
        let written = self.file.write_all(&chunk);
        self.size += chunk.len() as u64;
        if self.size - self.sent >= WRITE_BACK {
            // File systems without support for it write everything at the sync.
            let _begun = sys::begin_write_back(&self.file, self.sent, self.size - self.sent);
            self.sent = self.size;
        }
        self.write += writing.elapsed();
        if let Err(cause) = written {
            self.write_error = Some(cause);
            self.hang_up();
            return Err(io::Error::other("the layer's tar cannot be written"));
        }
        self.chunk = chunk;
        Ok(())
    }

    fn finish(self, tar_path: &Path, begun: Instant) -> Result<(Digest, u64, Timings), Problem> {
        let busy = begun.elapsed();
        let timings = Timings {
            total: busy,
            index: busy.saturating_sub(self.wait + self.write),
            write: self.write,
            wait: self.wait,
        };
        self.file.sync_all().map_err(|cause| Problem::Write { path: tar_path.to_owned(), cause })?;
        Ok((self.hasher.finish(), self.size, timings))
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() {
            self.next()?;
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.chunk.len());
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

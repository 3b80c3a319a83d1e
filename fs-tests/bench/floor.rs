//! Lower bound of a pull: only inflating the layers and hashing the compressed and uncompressed bytes.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use plyfs::digest::{Algorithm, Hasher};

/// Number of concurrent layers, and of the buffers between the two threads of each, as in plyfs.
const LAYERS: usize = 3;
const BUFFERS: usize = 8;
const BUFFER: usize = 256 << 10;

/// Inflates gzip blobs and hashes both sides, several at once and each in two threads. The blobs are in the page cache,
/// as those of a registry on this machine are.
pub fn inflate_and_hash(blobs: &[PathBuf]) -> io::Result<()> {
    let mut queue = blobs.to_vec();
    // The longest last: the queue is popped from its end.
    queue.sort_by_key(|path| path.metadata().map_or(0, |m| m.len()));
    let queue = Mutex::new(queue);
    let next = || queue.lock().ok()?.pop();
    let work = || -> io::Result<()> {
        while let Some(blob) = next() {
            process_blob(&blob)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..LAYERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| io::Error::other("a worker panicked"))?)
    })
}

struct HashingReader {
    inner: File,
    hasher: Hasher,
}

impl Read for HashingReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

fn process_blob(blob: &PathBuf) -> io::Result<()> {
    let inner = HashingReader { inner: File::open(blob)?, hasher: Hasher::new(Algorithm::Sha256) };
    let (full_in, full_out) = sync_channel(BUFFERS);
    let (empty_in, empty_out) = sync_channel(BUFFERS);
    (0..BUFFERS).try_for_each(|_| empty_in.send(Vec::new())).map_err(io::Error::other)?;
    thread::scope(|scope| {
        scope.spawn(move || hash(&full_out, &empty_in));
        let mut inflater = flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER / 2, inner));
        while let Ok(mut buffer) = empty_out.recv() {
            buffer.resize(BUFFER, 0);
            let mut filled = 0;
            while filled < BUFFER {
                match inflater.read(&mut buffer[filled..])? {
                    0 => break,
                    more => filled += more,
                }
            }
            buffer.truncate(filled);
            if filled == 0 || full_in.send(buffer).is_err() {
                break;
            }
        }
        // The inflater has finished.
        drop(full_in);
        std::hint::black_box(inflater.into_inner().into_inner().hasher.finish());
        Ok(())
    })
}

fn hash(full: &Receiver<Vec<u8>>, empty: &SyncSender<Vec<u8>>) {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for buffer in full {
        hasher.update(&buffer);
        // The inflater may have finished; then the buffer is not needed.
        let _sent = empty.send(buffer);
    }
    std::hint::black_box(hasher.finish());
}

//! Blob download: a stream that resumes with a range request after a broken connection.

use super::client::{Ask, Backoff, Client, ask_below};
use super::http::{self, Method, Response, header};
use super::{Error, Kind, Repository, Result};
use crate::digest::Digest;
use std::io::{self, Read};

/// Bytes after which a connection counts as good: a later fault starts a new series of tries.
const PROGRESS: u64 = 1 << 20;

/// A stream of a blob's unverified bytes, to be read once. After a broken connection it requests the rest, after a
/// failed mirror it continues at the next place. Errors are [`io::Error`]s carrying an [`Error`]; later reads repeat
/// them.
pub struct Blob {
    repository: Repository,
    digest: Digest,
    /// Index of the repository's place (mirror or registry) that is read.
    place: usize,
    client: Client,
    ask: Ask,
    size: u64,
    /// Offset in the blob of the next byte to return.
    at: u64,
    body: Option<ureq::BodyReader<'static>>,
    /// Whether the server supports range requests.
    ranges: bool,
    backoff: Backoff,
    /// Offset of the last fault.
    fault_at: u64,
    failed: Option<Error>,
}

impl Blob {
    /// Opens the blob's stream at byte `at`. Sends the request at once, so an error of the first request is returned
    /// here.
    pub(super) fn open(repository: &Repository, digest: &Digest, size: u64, at: u64) -> Result<Blob> {
        let (place, client) = repository.place_for(digest, 0);
        let mut blob = Blob {
            repository: repository.clone(),
            digest: digest.clone(),
            place,
            ask: ask_for_blob(&client, digest),
            size,
            at,
            body: None,
            ranges: true,
            backoff: client.backoff(),
            client,
            fault_at: at,
            failed: None,
        };
        if at >= size {
            return Ok(blob);
        }
        loop {
            match blob.connect() {
                Err(error) if blob.next_place(&error) => {}
                done => return done.map(|()| blob),
            }
        }
    }

    /// Switches to the next place for the rest if the current one is a mirror; returns whether it did.
    fn next_place(&mut self, error: &Error) -> bool {
        if !self.repository.passes_over(self.place, error) {
            return false;
        }
        let (place, client) = self.repository.place_for(&self.digest, self.place + 1);
        self.ask = ask_for_blob(&client, &self.digest);
        self.backoff = client.backoff();
        (self.place, self.client, self.body, self.ranges, self.fault_at) = (place, client, None, true, self.at);
        true
    }

    /// Makes an error about this blob.
    pub(super) fn error(&self, kind: Kind, why: String) -> Error {
        self.ask.error(&self.client, kind, why)
    }

    /// Opens a connection for the rest.
    fn connect(&mut self) -> Result<()> {
        self.body = None;
        loop {
            let ranged = self.ranges && self.at > 0;
            let ask = match ranged {
                true => {
                    let range = format!("bytes={}-{}", self.at, self.size.saturating_sub(1));
                    &self.ask.clone().header("Range", range).answers(&[416])
                }
                false => &self.ask,
            };
            let response = self.client.ask_for(ask, Ok)?;
            let (skip, total) = match response.status().as_u16() {
                206 if ranged => match content_range(&response) {
                    Some((from, total)) if from == self.at && total.is_none_or(|t| t == self.size) => (0, None),
                    other => {
                        tracing::info!(host = self.client.host(), ?other, "invalid Content-Range: starting over");
                        self.ranges = false;
                        continue;
                    }
                },
                // The server rejects the range: request the whole blob.
                416 => {
                    self.ranges = false;
                    continue;
                }
                200 => (self.at, header(&response, "content-length").and_then(|n| n.parse::<u64>().ok())),
                _ => {
                    return Err(self.error(Kind::Protocol, format!("unexpected status {}", response.status())));
                }
            };
            if let Some(total) = total.filter(|total| *total != self.size) {
                let what = if total > self.size { "longer" } else { "shorter" };
                let why = format!("it has {total} bytes, {what} than the {} in its descriptor", self.size);
                return Err(self.error(Kind::Protocol, why));
            }
            self.body = Some(response.into_body().into_reader());
            self.repository.came_from(&self.digest, self.place);
            return self.skip(skip);
        }
    }

    /// Reads and discards bytes that were returned before.
    fn skip(&mut self, count: u64) -> Result<()> {
        let Some(body) = &mut self.body else { return Ok(()) };
        match io::copy(&mut body.take(count), &mut io::sink()) {
            Ok(passed) if passed == count => Ok(()),
            Ok(_) => self.reconnect("the connection broke".into()),
            Err(e) => self.reconnect(http::describe(&e)),
        }
    }

    /// Waits after a fault and connects again; fails after too many tries.
    fn reconnect(&mut self, why: String) -> Result<()> {
        self.body = None;
        if self.at >= self.fault_at + PROGRESS {
            self.backoff = self.client.backoff();
        }
        self.fault_at = self.at;
        let why = format!("{why} after {} of {} bytes", self.at, self.size);
        let error = self.error(Kind::Failed, why);
        self.backoff.wait(&self.client, error, None)?;
        self.connect()
    }

    fn next(&mut self, buf: &mut [u8]) -> Result<usize> {
        loop {
            let Some(body) = &mut self.body else {
                if self.at >= self.size {
                    return Ok(0);
                }
                self.connect()?;
                continue;
            };
            let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
            if left == 0 {
                // Reading to the end returns the connection to the pool. Surplus bytes are the caller's to reject.
                let extra = body.read(&mut buf[..1]).unwrap_or(0);
                self.body = None;
                return Ok(extra);
            }
            let most = left.min(buf.len());
            match body.read(&mut buf[..most]) {
                Ok(0) => self.reconnect("the connection broke".into())?,
                Ok(n) => {
                    self.at += n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self.reconnect(http::describe(&e))?,
            }
        }
    }
}

impl Read for Blob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let read = match &self.failed {
            Some(error) => Err(error.clone()),
            None => loop {
                match self.next(buf) {
                    Err(error) if self.next_place(&error) => {}
                    done => break done,
                }
            },
        };
        read.map_err(|error| {
            self.failed = Some(error.clone());
            io::Error::other(error)
        })
    }
}

impl Repository {
    /// Opens a stream of the blob's unverified bytes from byte `at`.
    pub fn blob(&self, digest: &Digest, size: u64, at: u64) -> Result<Blob> {
        Blob::open(self, digest, size, at)
    }
}

fn ask_for_blob(client: &Client, digest: &Digest) -> Ask {
    ask_below(client, Method::Get, format!("blob {digest}"), &format!("blobs/{digest}"))
}

/// Parses `Content-Range`: start of the range, and total length if stated.
fn content_range(response: &Response) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(response, "content-range")?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to) = (from.parse::<u64>().ok()?, to.parse::<u64>().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (from <= to).then_some((from, total))
}

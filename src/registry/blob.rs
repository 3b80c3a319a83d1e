//! A blob's stream, which goes on where it was when a connection breaks.

use super::client::{Ask, Client, Pauses};
use super::http::{self, Method, Response, header};
use super::repository::ask_below;
use super::{Error, Kind, Repository, Result};
use crate::digest::Digest;
use std::io::{self, Read};

/// So many bytes make a connection a good one: what breaks after them is a new fault and not one more of the same.
const PROGRESS: u64 = 1 << 20;

/// The bytes of a blob, unchecked, to be read once. A connection that breaks is replaced by one for the rest, and a mirror
/// that fails by the next place. An error is an [`io::Error`] carrying an [`Error`], and every further read repeats it.
pub struct Blob {
    repository: Repository,
    digest: Digest,
    /// Which of the repository's places is asked.
    place: usize,
    client: Client,
    ask: Ask,
    size: u64,
    /// How much has been handed out, from the blob's beginning.
    at: u64,
    body: Option<ureq::BodyReader<'static>>,
    /// Whether the server is asked for the rest only.
    ranges: bool,
    pauses: Pauses,
    /// Where the last fault was.
    fault_at: u64,
    failed: Option<Error>,
}

impl Blob {
    /// The stream of a blob from byte `at` on. Asks at once, so that what is wrong from the beginning is an error here.
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
            pauses: client.pauses(),
            client,
            fault_at: at,
            failed: None,
        };
        if at >= size {
            return Ok(blob);
        }
        loop {
            match blob.connect() {
                Err(error) if blob.moves_on(&error) => {}
                done => return done.map(|()| blob),
            }
        }
    }

    /// Goes to the next place for what is left, if this one is a mirror.
    fn moves_on(&mut self, error: &Error) -> bool {
        if !self.repository.passes_over(self.place, error) {
            return false;
        }
        let (place, client) = self.repository.place_for(&self.digest, self.place + 1);
        self.ask = ask_for_blob(&client, &self.digest);
        self.pauses = client.pauses();
        (self.place, self.client, self.body, self.ranges, self.fault_at) = (place, client, None, true, self.at);
        true
    }

    /// An error about it.
    pub(super) fn error(&self, kind: Kind, why: String) -> Error {
        self.ask.error(&self.client, kind, why)
    }

    /// Opens a connection for what is left.
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
                        tracing::info!(host = self.client.host(), ?other, "a wrong Content-Range: starting over");
                        self.ranges = false;
                        continue;
                    }
                },
                // Whatever it has against the range: the whole will do.
                416 => {
                    self.ranges = false;
                    continue;
                }
                200 => (self.at, header(&response, "content-length").and_then(|n| n.parse::<u64>().ok())),
                _ => {
                    return Err(
                        self.error(Kind::Protocol, format!("an answer that was not asked for: {}", response.status()))
                    );
                }
            };
            if let Some(total) = total.filter(|total| *total != self.size) {
                let what = if total > self.size { "longer" } else { "shorter" };
                let why = format!("it has {total} bytes, {what} than the {} that its descriptor says", self.size);
                return Err(self.error(Kind::Protocol, why));
            }
            self.body = Some(response.into_body().into_reader());
            self.repository.came_from(&self.digest, self.place);
            return self.skip(skip);
        }
    }

    /// Passes over what was handed out before.
    fn skip(&mut self, count: u64) -> Result<()> {
        let Some(body) = &mut self.body else { return Ok(()) };
        match io::copy(&mut body.take(count), &mut io::sink()) {
            Ok(passed) if passed == count => Ok(()),
            Ok(_) => self.broken("the connection broke".into()),
            Err(e) => self.broken(http::describe(&e)),
        }
    }

    /// Waits after a fault and connects again, unless there were too many.
    fn broken(&mut self, why: String) -> Result<()> {
        self.body = None;
        if self.at >= self.fault_at + PROGRESS {
            self.pauses = self.client.pauses();
        }
        self.fault_at = self.at;
        let why = format!("{why} after {} of {} bytes", self.at, self.size);
        let error = self.error(Kind::Failed, why);
        self.pauses.wait(&self.client, error, None)?;
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
                // Reads the end, which frees the connection. A byte too many is the taker's to refuse.
                let extra = body.read(&mut buf[..1]).unwrap_or(0);
                self.body = None;
                return Ok(extra);
            }
            let most = left.min(buf.len());
            match body.read(&mut buf[..most]) {
                Ok(0) => self.broken("the connection broke".into())?,
                Ok(n) => {
                    self.at += n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self.broken(http::describe(&e))?,
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
                    Err(error) if self.moves_on(&error) => {}
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

fn ask_for_blob(client: &Client, digest: &Digest) -> Ask {
    ask_below(client, Method::Get, format!("blob {digest}"), &format!("blobs/{digest}"))
}

/// Where a partial answer begins, and the length of the whole if it says so.
fn content_range(response: &Response) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(response, "content-range")?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to) = (from.parse::<u64>().ok()?, to.parse::<u64>().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (from <= to).then_some((from, total))
}

//! Upload to a repository: existence checks, cross-repository mounts, chunked blob uploads, manifests.

use super::client::{Ask, Attempt, Client};
use super::http::{Method, Response, header};
use super::url::Url;
use super::{Error, Kind, Repository, Result};
use crate::digest::Digest;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// Result of starting a blob upload.
pub enum UploadStart {
    /// The registry mounted the blob from another repository: there is nothing to send.
    Mounted,
    /// The blob must be sent.
    Upload(Upload),
}

/// A blob upload session at a registry. The registry discards an unfinished one after a time of its own.
pub struct Upload {
    client: Client,
    /// Description of the upload, for errors.
    what: String,
    /// Path of the repository's blobs.
    blobs: String,
    /// URL for the next request. Registries keep state in it, so every answer may change it.
    place: Url,
    /// Number of bytes that the registry has.
    at: u64,
}

impl Repository {
    /// Whether the repository has the blob.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool> {
        has_blob(self.client(), &self.ask(Method::Head, format!("blob {digest}"), &format!("blobs/{digest}")))
    }

    /// Starts a blob upload.
    pub fn upload(&self) -> Result<Upload> {
        let ask = self.ask(Method::Post, "a new blob".into(), "blobs/uploads/");
        let response = self.client().ask_for(&ask, Ok)?;
        self.begun(&ask, &response)
    }

    /// Starts a blob upload, or mounts the blob from the repository `path` of the same registry. If access to that
    /// repository is denied, that is an error like any other.
    pub fn mount_or_upload(&self, digest: &Digest, path: &str) -> Result<UploadStart> {
        let resource = format!("repository:{path}");
        self.client().add_scope(&resource, "pull");
        let query = format!("blobs/uploads/?mount={}&from={}", encode(&digest.to_string()), encode(path));
        let ask = self.ask(Method::Post, format!("blob {digest}"), &query);
        let response = self.client().ask_for(&ask, Ok).inspect_err(|_| self.client().remove_scope(&resource))?;
        match response.status().as_u16() {
            201 => Ok(UploadStart::Mounted),
            _ => self.begun(&ask, &response).map(UploadStart::Upload),
        }
    }

    fn begun(&self, ask: &Ask, response: &Response) -> Result<Upload> {
        let (client, what) = (self.client().clone(), "a new blob".to_owned());
        let blobs = format!("/v2/{}/blobs", client.path());
        let place = moved(&client, ask, response)?;
        Ok(Upload { client, what, blobs, place, at: 0 })
    }

    /// Uploads a manifest or index under a tag or its digest. Everything that it refers to must be in the repository.
    pub fn put_manifest(&self, name: &str, media_type: &str, bytes: &[u8]) -> Result<Digest> {
        let ask = self.ask(Method::Put, format!("manifest {name}"), &format!("manifests/{name}"));
        let ask = ask.header("Content-Type", media_type).body(bytes);
        let response = self.client().ask_for(&ask, Ok)?;
        let digest = Digest::of(bytes);
        same_digest(self.client(), &ask, &response, &digest)?;
        Ok(digest)
    }
}

impl Upload {
    /// Sends the next chunk, which must not be the last one. After a broken connection the upload resumes at the offset
    /// that the registry reports; [`Kind::Lost`] means that it reports no usable offset, and that the blob must be sent
    /// from its beginning.
    pub fn chunk(&mut self, bytes: &[u8]) -> Result<()> {
        self.send(bytes, |upload, part| {
            if part.is_empty() {
                // All bytes had arrived; only the answer was lost.
                return Ok(());
            }
            let last = (upload.at + part.len() as u64).saturating_sub(1);
            let ask = upload.ask(Method::Patch).header("Content-Type", "application/octet-stream");
            let ask = ask.header("Content-Range", format!("{}-{last}", upload.at)).answers(&[416]).body(part);
            let response = upload.client.try_once(&ask)?;
            if response.status() == 416 {
                let why = "it expects another offset of the blob";
                return Err(Attempt::Again(ask.error(&upload.client, Kind::Failed, why), None));
            }
            upload.place = moved(&upload.client, &ask, &response).map_err(Attempt::Final)?;
            Ok(())
        })
    }

    /// Sends the last bytes (of a small blob, all bytes) and completes the upload; the registry verifies the digest.
    /// Errors as with [`Upload::chunk`].
    pub fn finish(mut self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        self.what = format!("blob {digest}");
        let there = format!("{}/{digest}", self.blobs);
        self.send(bytes, |upload, part| {
            let place = upload.place.with_query(&format!("digest={}", encode(&digest.to_string())));
            let ask = upload.ask(Method::Put).at(place);
            let ask = ask.header("Content-Type", "application/octet-stream").answers(&[404]).body(part);
            let done = upload.client.try_once(&ask);
            if !matches!(&done, Ok(response) if response.status() != 404) {
                // The answer to a successful try may have been lost.
                let look = Ask::new(Method::Head, &*upload.what, &*there);
                if has_blob(&upload.client, &look).unwrap_or(false) {
                    return Ok(());
                }
            }
            match done?.status().as_u16() {
                404 => Err(Attempt::Final(upload.lost("it no longer knows the upload".into()))),
                _ => Ok(()),
            }
        })
    }

    /// Sends bytes with `send` until the registry has all of them.
    fn send(
        &mut self,
        bytes: &[u8],
        send: impl Fn(&mut Upload, &[u8]) -> std::result::Result<(), Attempt>,
    ) -> Result<()> {
        let (start, end) = (self.at, self.at + bytes.len() as u64);
        let mut backoff = self.client.backoff();
        loop {
            let have = usize::try_from(self.at - start).unwrap_or(bytes.len());
            match send(self, &bytes[have..]) {
                Ok(()) => {
                    self.at = end;
                    return Ok(());
                }
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(error, wanted)) => backoff.wait(&self.client, error, wanted)?,
            }
            self.locate(start, end)?;
        }
    }

    /// Asks for the upload's offset, which must be between the last reported one and the end of what was sent.
    fn locate(&mut self, start: u64, end: u64) -> Result<()> {
        let ask = self.ask(Method::Get).answers(&[400, 404, 416]);
        let response = self.client.ask_for(&ask, Ok)?;
        if !response.status().is_success() {
            return Err(self.lost(format!("{}: it no longer knows the upload", response.status())));
        }
        let range = header(&response, "range").unwrap_or_default();
        let last = range.strip_prefix("bytes=").unwrap_or(range).strip_prefix("0-").and_then(|n| n.parse::<u64>().ok());
        // `0-0` means no bytes more often than one byte.
        let have = last.map(|last| if last == 0 { 0 } else { last + 1 });
        match have {
            Some(have) if (start..=end).contains(&have) => self.at = have,
            _ => return Err(self.lost(format!("it does not report the upload's offset ({})", range.escape_debug()))),
        }
        if header(&response, "location").is_some() {
            self.place = moved(&self.client, &ask, &response)?;
        }
        Ok(())
    }

    fn ask(&self, method: Method) -> Ask {
        Ask::new(method, &*self.what, "").at(self.place.clone())
    }

    fn lost(&self, why: String) -> Error {
        self.ask(Method::Patch).error(&self.client, Kind::Lost, why)
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn has_blob(client: &Client, ask: &Ask) -> Result<bool> {
    // A redirect means that the registry has the blob. It is not followed: storage hosts may reject HEAD.
    client.ask_for(&ask.clone().answers(&[302, 303, 307, 404]), |response| Ok(response.status() != 404))
}

/// Resolves the `Location` of the next request.
fn moved(client: &Client, ask: &Ask, response: &Response) -> Result<Url> {
    client.place(ask, header(response, "location").unwrap_or_default())
}

/// Fails if the registry reports another digest for what it received.
fn same_digest(client: &Client, ask: &Ask, response: &Response, digest: &Digest) -> Result<()> {
    match header(response, "docker-content-digest").and_then(|d| d.parse::<Digest>().ok()) {
        Some(other) if other != *digest && other.algorithm() == digest.algorithm() => {
            let why = format!("it stored {other} instead of {digest}");
            Err(ask.error(client, Kind::Protocol, why))
        }
        _ => Ok(()),
    }
}

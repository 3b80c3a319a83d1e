//! Download of a file from any server by `http` or `https`, for `ADD`.

use super::http::{Http, Request, header};
use super::url::Url;
use super::{Error, Kind, Result, Settings};
use std::fs::File;
use std::io;
use std::path::Path;

/// How many redirects are followed.
const MOST_REDIRECTS: u32 = 10;

/// Fetches a URL into a new file; returns the modification time that the server states, in seconds. No credentials are
/// sent.
pub fn download(url: &str, settings: &Settings, to: &Path) -> Result<Option<i64>> {
    let mut at = Url::parse(url).ok_or_else(|| error(url, "", Kind::Protocol, "is not a URL that can be fetched"))?;
    for _ in 0..=MOST_REDIRECTS {
        let host = at.authority().to_owned();
        let failed = |kind, why: String| error(url, &host, kind, &why);
        let response = Http::new(settings, &host).send(&Request::get(&at, &[]));
        let response = response.map_err(|fault| failed(Kind::Unreachable, fault.text().to_owned()))?;
        let status = response.status().as_u16();
        match status {
            200 => {
                let modified = header(&response, "last-modified").and_then(seconds);
                let mut body = response.into_body().into_reader();
                let copied = File::create_new(to).and_then(|mut file| io::copy(&mut body, &mut file));
                copied.map_err(|e| failed(Kind::Failed, crate::sys::describe(&e)))?;
                return Ok(modified);
            }
            301 | 302 | 303 | 307 | 308 => {
                let next = header(&response, "location").and_then(|place| at.join(place));
                at = next.ok_or_else(|| failed(Kind::Protocol, "it redirects to no URL".into()))?;
            }
            404 | 410 => return Err(failed(Kind::Missing, format!("the server answers {status}"))),
            _ => return Err(failed(Kind::Failed, format!("the server answers {status}"))),
        }
    }
    Err(error(url, at.authority(), Kind::Protocol, "too many redirects"))
}

fn error(url: &str, host: &str, kind: Kind, why: &str) -> Error {
    Error { host: host.to_owned(), asked: url.to_owned(), kind, why: why.to_owned() }
}

/// Parses a date of HTTP (RFC 9110, 5.6.7).
fn seconds(date: &str) -> Option<i64> {
    jiff::fmt::rfc2822::parse(date).ok().map(|zoned| zoned.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http() {
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(seconds("yesterday"), None);
    }
}

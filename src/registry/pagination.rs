//! Pagination of list endpoints (tags, catalog, referrers), by the `Link` header.

use super::client::{Ask, Client};
use super::http::{self, header};
use super::{Kind, Result};
use serde::de::DeserializeOwned;

const PAGE_CAP: u64 = 4 << 20;
const PAGES: usize = 1000;

/// Requests page after page and passes each to `take`, until `take` returns false. The `Link` header holds the URL of
/// the next page, which must have the registry's own origin.
pub(super) fn each<P: DeserializeOwned>(client: &Client, mut ask: Ask, mut take: impl FnMut(P) -> bool) -> Result<()> {
    for _ in 0..PAGES {
        let (next, bytes) = client.ask_for(&ask, |response| {
            let next = header(&response, "link").and_then(next_link).map(str::to_owned);
            Ok((next, http::small_body(response, PAGE_CAP)?))
        })?;
        let page: P = serde_json::from_slice(&bytes)
            .map_err(|e| ask.error(client, Kind::Protocol, format!("unexpected JSON: {e}")))?;
        if !take(page) {
            return Ok(());
        }
        let Some(next) = next else { return Ok(()) };
        let place = client.place(&ask, &next)?;
        if !client.is_own(&ask, &place)? {
            let why = format!("the next page of the list is on another host: {}", next.escape_debug());
            return Err(ask.error(client, Kind::Protocol, why));
        }
        ask = ask.at(place);
    }
    Err(ask.error(client, Kind::Protocol, format!("the list has more than {PAGES} pages")))
}

/// Returns the URL of a `Link` header's `rel="next"`.
fn next_link(header: &str) -> Option<&str> {
    let (_, rest) = header.split_once('<')?;
    let (target, parameters) = rest.split_once('>')?;
    let is_next = |p: &str| matches!(p.trim().to_ascii_lowercase().as_str(), "rel=next" | "rel=\"next\"");
    let this = parameters.split(',').next().unwrap_or_default();
    if this.split(';').any(is_next) {
        return Some(target);
    }
    next_link(parameters.split_once(',')?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        assert_eq!(next_link("</v2/a/tags/list?last=b&n=2>; rel=\"next\""), Some("/v2/a/tags/list?last=b&n=2"));
        assert_eq!(next_link("<a>; rel=prev, <b>; title=x; rel=next"), Some("b"));
        for none in ["", "<a>", "<a>; rel=prev", "a; rel=next", "<a"] {
            assert_eq!(next_link(none), None, "{none}");
        }
    }
}

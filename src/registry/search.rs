//! Repository search: version 1 of Docker's protocol, which Docker Hub still supports, else the registry's catalog.

use super::client::{Ask, Client};
use super::http::{self, Method};
use super::identity::{HUB, HUB_ALIASES};
use super::{Error, Kind, Result, Settings, pagination};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

/// Host of Docker Hub's search API. The registry host has none.
const HUB_INDEX: &str = HUB_ALIASES[0];
/// Largest search result of at most 100 repositories, in bytes.
const FOUND_CAP: u64 = 4 << 20;

/// A search term and the registry to search.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Term {
    /// Registry; `None` is Docker Hub.
    host: Option<String>,
    text: String,
}

/// A search result. All fields are claims of the registry.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hit {
    /// Repository name, with the registry's unless that is Docker Hub.
    pub name: String,
    /// Description.
    #[serde(deserialize_with = "null_is_empty")]
    pub description: String,
    /// Number of stars.
    pub star_count: i64,
    /// Whether it is a Docker official image.
    pub is_official: bool,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<String, D::Error> {
    Ok(Option::<String>::deserialize(from)?.unwrap_or_default())
}

impl Term {
    /// Parses `[HOST[:PORT]/]TERM`. By Docker's rule a host has a dot or a port or is `localhost`.
    pub fn new(text: &str) -> Term {
        let named = text.split_once('/').filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost");
        match named {
            Some((host, rest)) if host != HUB && host != HUB_INDEX => {
                Term { host: Some(host.to_owned()), text: rest.to_owned() }
            }
            // Docker Hub finds `library/foo` only as `foo`.
            named => {
                let rest = named.map_or(text, |(_, rest)| rest);
                Term { host: None, text: rest.strip_prefix("library/").unwrap_or(rest).to_owned() }
            }
        }
    }
}

/// Returns at most `limit` repositories that match the term, in the registry's order.
pub fn search(term: &Term, limit: usize, settings: &Settings) -> Result<Vec<Hit>> {
    let client = Client::new(term.host.as_deref().unwrap_or(HUB_INDEX), "", "", settings);
    let mut hits = match (by_version_1(&client, &term.text, limit), &term.host) {
        (Err(error), Some(_)) if is_no_search(&error) => in_catalog(&client, &term.text, limit)?,
        (done, _) => done?,
    };
    hits.truncate(limit);
    if let Some(host) = &term.host {
        hits.iter_mut().for_each(|hit| hit.name = format!("{host}/{}", hit.name));
    }
    Ok(hits)
}

/// Whether the error may mean that the registry has no such search endpoint.
fn is_no_search(error: &Error) -> bool {
    matches!(error.kind, Kind::Missing | Kind::Protocol | Kind::Failed)
}

fn by_version_1(client: &Client, text: &str, limit: usize) -> Result<Vec<Hit>> {
    #[derive(Deserialize)]
    struct Answer {
        results: Vec<Hit>,
    }
    let path = format!("/v1/search?q={}&n={limit}", utf8_percent_encode(text, NON_ALPHANUMERIC));
    let ask = Ask::new(Method::Get, format!("search for {}", text.escape_debug()), path);
    let bytes = client.ask_for(&ask, |response| http::small_body(response, FOUND_CAP))?;
    let answer: Answer = serde_json::from_slice(&bytes)
        .map_err(|e| ask.error(client, Kind::Protocol, format!("not a list of repositories: {e}")))?;
    Ok(answer.results)
}

/// Returns the catalog's repositories whose names contain the text; an exact match first.
fn in_catalog(client: &Client, text: &str, limit: usize) -> Result<Vec<Hit>> {
    #[derive(Deserialize)]
    struct Page {
        repositories: Option<Vec<String>>,
    }
    client.add_scope("registry:catalog", "*");
    let ask = Ask::new(Method::Get, "catalog of repositories", "/v2/_catalog");
    let mut hits: Vec<Hit> = Vec::new();
    pagination::each(client, ask, |page: Page| {
        let fitting = page.repositories.unwrap_or_default().into_iter().filter(|name| name.contains(text));
        hits.extend(fitting.map(|name| Hit { name, ..Hit::default() }));
        hits.len() < limit
    })?;
    hits.sort_by_key(|hit| hit.name != text);
    Ok(hits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms() {
        let of = |text: &str| {
            let Term { host, text } = Term::new(text);
            (host.unwrap_or_default(), text)
        };
        for (text, host, rest) in [
            ("alpine", "", "alpine"),
            ("library/alpine", "", "alpine"),
            ("team/app", "", "team/app"),
            ("docker.io/team/app", "", "team/app"),
            ("index.docker.io/library/alpine", "", "alpine"),
            ("localhost/app", "localhost", "app"),
            ("quay.io/team/app", "quay.io", "team/app"),
            ("reg:5000/library/x", "reg:5000", "library/x"),
            ("quay.io/", "quay.io", ""),
            ("my.app", "", "my.app"),
        ] {
            assert_eq!(of(text), (host.to_owned(), rest.to_owned()), "{text}");
        }
    }
}

//! Looking for repositories: by version 1 of Docker's protocol, which Docker Hub still answers, else in the registry's
//! whole catalog.

use super::client::{Ask, Client};
use super::credentials::{HUB, HUB_ALIASES};
use super::http::{self, Method};
use super::{Error, Kind, Result, Settings, pages};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

/// Where Docker Hub is searched. Its other server knows no search.
const HUB_INDEX: &str = HUB_ALIASES[0];
/// More bytes than this are no list of at most a hundred repositories.
const FOUND_CAP: u64 = 4 << 20;

/// What to look for, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Term {
    /// The registry; none for Docker Hub.
    host: Option<String>,
    text: String,
}

/// A repository that was found. What it says of itself is a claim.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hit {
    /// Its name, with the registry's where that is not Docker Hub.
    pub name: String,
    /// What it is for.
    #[serde(deserialize_with = "null_is_empty")]
    pub description: String,
    /// How many users like it.
    pub star_count: i64,
    /// Whether Docker answers for it.
    pub is_official: bool,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<String, D::Error> {
    Ok(Option::<String>::deserialize(from)?.unwrap_or_default())
}

impl Term {
    /// `[HOST[:PORT]/]TERM`, told apart by Docker's rule: a host has a dot or a port or is `localhost`.
    pub fn new(text: &str) -> Term {
        let named = text.split_once('/').filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost");
        match named {
            Some((host, rest)) if host != HUB && host != HUB_INDEX => {
                Term { host: Some(host.to_owned()), text: rest.to_owned() }
            }
            // Docker Hub finds `foo` under no other name than `foo`.
            named => {
                let rest = named.map_or(text, |(_, rest)| rest);
                Term { host: None, text: rest.strip_prefix("library/").unwrap_or(rest).to_owned() }
            }
        }
    }
}

/// At most `limit` repositories that the registry finds for the term, in its order.
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

/// Whether the error may come from there being no such search, so that another way is worth a try.
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

/// The catalog's repositories that have the text in their names; one of just that name first.
fn in_catalog(client: &Client, text: &str, limit: usize) -> Result<Vec<Hit>> {
    #[derive(Deserialize)]
    struct Page {
        repositories: Option<Vec<String>>,
    }
    client.need("registry:catalog", "*");
    let ask = Ask::new(Method::Get, "catalog of repositories", "/v2/_catalog");
    let mut hits: Vec<Hit> = Vec::new();
    pages::each(client, ask, |page: Page| {
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

//! Registry login: checks an account's credentials against the registry.

use super::client::{Ask, Client};
use super::http::{self, Method};
use super::identity::Account;
use super::{Result, Settings};

/// Largest answer to the login request, in bytes.
const ANSWER_CAP: u64 = 1 << 20;

/// Sends the credentials of the settings to the registry. It is no error if the registry requires none.
pub fn check(account: &Account, settings: &Settings) -> Result<()> {
    let client = Client::new(account.domain(), "", "", settings);
    let ask = Ask::new(Method::Get, "login", "/v2/");
    client.ask_for(&ask, |response| http::small_body(response, ANSWER_CAP).map(drop))
}

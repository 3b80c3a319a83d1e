//! The few things that a registry client must know of URLs: where they lead, whether that is safe, what they are
//! relative to.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs};

/// An absolute `http` or `https` URL, without a fragment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Url {
    /// Whether it is `https`.
    pub https: bool,
    /// `HOST` or `HOST:PORT`, lower case.
    pub authority: String,
    /// From the first slash, with the query.
    pub path: String,
}

impl Url {
    /// Parses an absolute URL. One with a user in it is none.
    pub fn parse(text: &str) -> Option<Url> {
        let (scheme, rest) = text.split_once("://")?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let rest = rest.split('#').next()?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let clean = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        if authority.is_empty() || !authority.chars().all(clean) || path.contains(|c: char| !c.is_ascii_graphic()) {
            return None;
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Some(Url { https, authority: authority.to_ascii_lowercase(), path: format!("{slash}{path}") })
    }

    /// What `reference`, found in an answer to this URL, leads to.
    pub fn join(&self, reference: &str) -> Option<Url> {
        let scheme = if self.https { "https" } else { "http" };
        if reference.starts_with("//") {
            return Url::parse(&format!("{scheme}:{reference}"));
        }
        if reference.contains("://") && !reference.starts_with(['/', '?']) {
            return Url::parse(reference);
        }
        let bare = self.path.split('?').next().unwrap_or("/");
        let folder = &bare[..=bare.rfind('/').unwrap_or(0)];
        let path = match reference.chars().next() {
            Some('/') => reference.to_owned(),
            Some('?') => format!("{bare}{reference}"),
            _ => format!("{folder}{reference}"),
        };
        Url::parse(&format!("{scheme}://{}{path}", self.authority))
    }

    /// Whether both go to the same server by the same protocol.
    pub fn same_origin(&self, other: &Url) -> bool {
        self.https == other.https && self.authority_with_port() == other.authority_with_port()
    }

    /// The host without its port.
    pub fn host(&self) -> &str {
        host(&self.authority)
    }

    fn authority_with_port(&self) -> String {
        let port = self.authority[self.host().len()..].strip_prefix(':').unwrap_or_default();
        let usual = if self.https { "443" } else { "80" };
        format!("{}:{}", self.host(), if port.is_empty() { usual } else { port })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.https { "https" } else { "http" }, self.authority, self.path)
    }
}

/// The host of `HOST:PORT`; an IPv6 address keeps its brackets.
pub(super) fn host(authority: &str) -> &str {
    let from = authority.rfind(']').unwrap_or(0);
    match authority[from..].find(':') {
        Some(colon) => &authority[..from + colon],
        None => authority,
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Whether the host is this machine by its name alone.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || literal(host).is_some_and(|ip| ip.is_loopback())
}

/// Whether the host is an address, or a name of one, that only this machine or its own network reaches. A name that
/// cannot be resolved is not.
pub(super) fn is_private(host: &str) -> bool {
    if let Some(ip) = literal(host) {
        return is_private_address(ip);
    }
    if is_loopback(host) || host.to_ascii_lowercase().ends_with(".localhost") {
        return true;
    }
    (host, 443).to_socket_addrs().is_ok_and(|mut all| all.any(|a| is_private_address(a.ip())))
}

fn is_private_address(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_broadcast() || a == 0 || shared
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_private_address(IpAddr::V4(v4)),
            None => {
                let first = v6.segments()[0];
                let local = first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80;
                local || v6.is_loopback() || v6 == Ipv6Addr::UNSPECIFIED
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_and_joining() {
        let base = Url::parse("https://Reg.example:5000/v2/a/tags/list?n=2").unwrap();
        for (reference, want) in [
            ("/v2/x?last=b", "https://reg.example:5000/v2/x?last=b"),
            ("?last=b", "https://reg.example:5000/v2/a/tags/list?last=b"),
            ("other", "https://reg.example:5000/v2/a/tags/other"),
            ("//cdn/x", "https://cdn/x"),
            ("http://cdn:1/x?u=http://y", "http://cdn:1/x?u=http://y"),
        ] {
            assert_eq!(base.join(reference).unwrap().to_string(), want);
        }
        for bad in ["ftp://a/", "https://", "https://u:p@host/", "https://a b/", "host/x", "https://a/\r\nX: y"] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
        assert_eq!(host("[::1]:5000"), "[::1]");
        assert_eq!((host("a:1"), host("a"), host("[::1]")), ("a", "a", "[::1]"));
    }

    #[test]
    fn origins() {
        let url = |text| Url::parse(text).unwrap();
        assert!(url("https://a/x").same_origin(&url("https://A:443/y")));
        assert!(!url("https://a/x").same_origin(&url("http://a/x")));
        assert!(!url("http://127.0.0.1:1/").same_origin(&url("http://127.0.0.1:2/")));
    }

    #[test]
    fn private_places() {
        for host in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "[::1]", "[fd00::1]"] {
            assert!(is_private(host), "{host}");
        }
        for host in ["localhost", "[fe80::1]", "[::ffff:10.0.0.1]", "100.64.0.1", "0.0.0.0", "x.localhost"] {
            assert!(is_private(host), "{host}");
        }
        assert!(!is_private("8.8.8.8") && !is_private("[2606:4700::1]"));
        assert!(is_loopback("127.9.9.9") && is_loopback("[::1]") && !is_loopback("10.0.0.1"));
    }
}
